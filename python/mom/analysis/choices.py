"""Routes as flat tables of real tokens, and intervals from leaving out sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import count
from ..interventions.layout import layout_of
from ..interventions.selection import FREE
from ..model import Routes

__all__ = [
    "MOST_GROUPS", "Tokens", "counts_of", "halves_of", "interval", "modules_of", "modules_of_row", "need_choices",
    "real_of_row", "routes_of", "texts_of_row", "tokens_of",
]  # fmt: skip

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: Sequences are left out in at most so many groups.
MOST_GROUPS = 20


@dataclass(frozen=True)
class Tokens:
    """The N real tokens of some routes.

    Attributes
    ----------
    ids, row, position : ndarray of int64, shape (N,)
    group : ndarray of int64, shape (N,)
        Neighbouring sequences form a group. All groups have nearly equally many sequences.
    groups : int
    """

    ids: Integers
    row: Integers
    position: Integers
    group: Integers
    groups: int


def routes_of(routes: Any, name: str = "routes") -> Routes:
    """Check the type of an argument."""
    if not isinstance(routes, Routes):
        raise TypeError(
            f"{name}: expected mom.Routes, got {type(routes).__name__}; model(ids, return_routes=True).routes"
        )
    return routes


def halves_of(routes: Any, half: str | None, name: str = "routes") -> list[str]:
    """The halves with a router, or the one that is asked for.

    Raises
    ------
    TypeError, ValueError
        If it is not `mom.Routes`, has no real token, or the half has no router.
    """
    found = list(routes_of(routes, name).index)
    if half is not None and half not in found:
        raise ValueError(f"half: {half!r} has no router here; those with one are {found}")
    if routes.tokens.size == 0 or (routes.mask is not None and not routes.mask.any()):
        raise ValueError(f"{name}: there are no tokens to count")
    return found if half is None else [half]


def tokens_of(routes: Routes) -> Tokens:
    """What is known of the real tokens beside their routes."""
    routes_of(routes)
    layout = layout_of(routes.tokens, routes.mask, routes.lengths)
    row, position = layout.row[layout.real].astype(np.int64), layout.position[layout.real].astype(np.int64)
    number = np.unique(row, return_inverse=True)[1].reshape(-1)
    sequences = int(number.max(initial=-1)) + 1
    groups = min(MOST_GROUPS, sequences)
    group = number * groups // max(1, sequences)
    return Tokens(layout.tokens[layout.real].astype(np.int64), row, position, group.astype(np.int64), groups)


def modules_of(routes: Routes, half: str) -> Integers:
    """Modules of all real tokens in rising order, shape (L, N, K). The number of modules means SKIP."""
    module = routes.module[half]
    real = layout_of(routes.tokens, routes.mask, routes.lengths).real
    found: Integers = np.sort(module.reshape(len(module), -1, module.shape[-1])[:, real], axis=-1).astype(np.int64)
    need_choices(found)
    return found


def need_choices(module: npt.NDArray[Any]) -> None:
    """Raise if some choices are free."""
    if (module == FREE).any():
        raise ValueError("routes: some choices are free. Take the routes that a model has returned")


def real_of_row(routes: Routes, row: int) -> npt.NDArray[np.bool_]:
    """Which tokens of a sequence are no padding."""
    row = count(row, "row")
    if row >= routes.rows:
        raise ValueError(f"row: there is no row {row}; there are {routes.rows}")
    if routes.mask is None:
        return np.ones(len(routes.of_row(routes.tokens, row)), bool)
    real: npt.NDArray[np.bool_] = routes.of_row(routes.mask, row).astype(bool)
    return real


def modules_of_row(routes: Routes, half: str, row: int) -> npt.NDArray[Any]:
    """Modules of the real tokens of one sequence, the best choice first, shape (L, T, K)."""
    real = real_of_row(routes, row)
    found: npt.NDArray[Any] = routes.of_row(routes.module[half], row)[:, real]
    need_choices(found)
    return found


def texts_of_row(routes: Routes, row: int, names: Sequence[str] | None) -> list[str]:
    """A text for each real token of one sequence: those of `names`, which has all tokens, or the ids."""
    real = real_of_row(routes, row)
    ids = routes.of_row(routes.tokens, row)
    texts = [str(i) for i in ids] if names is None else list(names)
    if len(texts) != len(ids):
        raise ValueError(f"names: {len(texts)} of them for {len(ids)} tokens")
    return [_on_one_line(text) for text, there in zip(texts, real, strict=True) if there]


def _on_one_line(text: str) -> str:
    """A text in which line ends, tabs and other control characters are written as escapes."""
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode("ascii") for c in text)


def counts_of(values: Integers, group: Integers, size: int, groups: int) -> Integers:
    """How often each value below `size` occurs in each group of tokens, shape (groups, size)."""
    flat = values.reshape(len(group), -1) + (group * size)[:, None]
    return np.bincount(flat.ravel(), minlength=groups * size).reshape(groups, size)


def interval(value: Any, without: Sequence[Any] | Floats) -> tuple[Any, Any]:
    """Ends of the 95 % interval of a statistic by the jackknife.

    Parameters
    ----------
    value : float or ndarray
        The statistic of all sequences.
    without : sequence of the same
        The statistic without each of the groups of sequences.

    Returns
    -------
    low, high : float or ndarray
        ``value`` -+ 1.96 standard errors; NaN with a single group.
    """
    parts = np.asarray(without, np.float64)
    G = len(parts)
    if G < 2:
        return value * np.nan, value * np.nan
    error = np.sqrt((G - 1) / G * np.square(parts - parts.mean(axis=0)).sum(axis=0))
    return value - 1.96 * error, value + 1.96 * error
