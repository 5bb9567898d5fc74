"""Reads routes: how often modules were used, and which path each token took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._extras import need
from .model import MoM, MoMForSequenceClassification, Routes

__all__ = ["ModuleUse", "format_paths", "module_use", "paths", "plot_module_use"]

_HALVES = ("attn", "ffn")


@dataclass(frozen=True)
class ModuleUse:
    """Share of kept choices per module.

    Attributes
    ----------
    half : str
        ``"attn"`` or ``"ffn"``.
    share : ndarray of float64, shape (blocks * rounds, M + 1)
        One row per round, block after block. The last column is SKIP. Rows sum to 1.
    labels : list of str
        Names of the rows, for example ``"block 1 round 0"``.
    """

    half: str
    share: NDArray[np.float64]
    labels: list[str]

    @property
    def skip_share(self) -> float:
        """Mean share of SKIP."""
        return float(self.share[:, -1].mean()) if len(self.share) else 0.0


def module_use(routes: Routes, mask: NDArray[Any] | None = None) -> dict[str, ModuleUse]:
    """Count how often each module was chosen, by half and round.

    Parameters
    ----------
    routes : Routes
        From ``model(tokens, return_routes=True).routes``.
    mask : array of 0/1, shape (B, T) or of packed rows (N,), optional
        Tokens to count; by default all.

    Returns
    -------
    dict of str to ModuleUse
        By half; only halves that have a router.

    Raises
    ------
    ValueError
        If the shape of `mask` is not that of the tokens.
    """
    result = {}
    counted = None if mask is None else np.asarray(mask, bool)
    for half in _HALVES:
        if half not in routes.index:
            continue
        if counted is not None and counted.shape != routes.tokens.shape:
            raise ValueError(f"mask: shape {counted.shape}, expected {routes.tokens.shape} like the tokens")
        modules, rows = routes.num_modules[half], []
        for module in routes.module[half]:
            chosen = module if counted is None else module[counted]
            counts = np.bincount(chosen.ravel(), minlength=modules + 1)
            rows.append(counts / max(1, counts.sum()))
        result[half] = ModuleUse(half, np.array(rows), _round_names(routes))
    return result


def _round_names(routes: Routes) -> list[str]:
    several = any(block for block, _ in routes.rounds)
    return [f"block {block} round {r}" if several else f"round {r}" for block, r in routes.rounds]


def paths(routes: Routes, row: int = 0) -> list[list[str]]:
    """The path of every token of one row, for each round in the form ``"A2+A0 F1"``. SKIP is written ``"-"``.

    Parameters
    ----------
    routes : Routes
    row : int
        Which sequence of the batch.

    Returns
    -------
    list of list of str
        One list per token, with an entry per round, block after block. A half without a router is written ``A`` or
        ``F``.
    """
    chosen = {half: routes.of_row(module, row) for half, module in routes.module.items()}
    length = next((module.shape[1] for module in chosen.values()), 0)

    def written(half: str, number: int, t: int) -> str:
        letter = half[0].upper()
        if half not in chosen:
            return letter
        return "+".join(f"{letter}{i}" for i in chosen[half][number, t] if i < routes.num_modules[half]) or "-"

    rounds = range(len(routes.rounds))
    return [[f"{written('attn', n, t)} {written('ffn', n, t)}" for n in rounds] for t in range(length)]


def format_paths(
    model: MoM | MoMForSequenceClassification, tokens: NDArray[Any], routes: Routes, names: Sequence[str], row: int = 0
) -> str:
    """A table of one row's tokens with their paths.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    tokens : array of int, shape (T,)
    routes : Routes
    names : sequence of str
        The text to print for each token.
    row : int

    Returns
    -------
    str
        One line per token, one column per round.

    Raises
    ------
    ValueError
        If `names`, `tokens` and `routes` are not equally long.
    """
    if len(names) != len(tokens):
        raise ValueError(f"names: {len(names)} of them for {len(tokens)} tokens")
    table = paths(routes, row)
    if not table:
        return f"{type(model).__name__} has no routers"
    if len(table) != len(tokens):
        raise ValueError(f"tokens: {len(tokens)} of them, but the routes are of {len(table)}")
    heads = _round_names(routes)
    width = max([len(n) for n in names] + [5])
    cell = max(len(c) for line in [heads, *table] for c in line)
    head = "token".ljust(width) + "  " + "  ".join(h.ljust(cell) for h in heads)
    lines = [
        n.ljust(width) + "  " + "  ".join(c.ljust(cell) for c in line) for n, line in zip(names, table, strict=True)
    ]
    return "\n".join(line.rstrip() for line in [head, *lines])


def plot_module_use(use: dict[str, ModuleUse], title: str = "Module use by round") -> Any:
    """Heat map of module use, one panel per half.

    Parameters
    ----------
    use : dict of str to ModuleUse
        From `module_use`.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If there is nothing to show.
    """
    if not use:
        raise ValueError("use: empty; the model has no routers")
    Figure = need("matplotlib.figure", "a plot", "matplotlib").Figure
    rows = max(len(u.share) for u in use.values())
    figure = Figure(figsize=(4.5 * len(use), 1.6 + 0.45 * rows), layout="constrained")
    top = max(float(u.share.max()) for u in use.values()) or 1.0
    axes = figure.subplots(1, len(use), squeeze=False)[0]
    for axis, (half, u) in zip(axes, use.items(), strict=True):
        image = axis.imshow(u.share, vmin=0.0, vmax=top, cmap="viridis", aspect="auto")
        modules = u.share.shape[1] - 1
        axis.set_xticks(range(modules + 1), [str(m) for m in range(modules)] + ["SKIP"])
        axis.set_yticks(range(len(u.labels)), u.labels)
        axis.set_xlabel("module")
        axis.set_title("attention" if half == "attn" else "feed-forward")
        for (y, x), value in np.ndenumerate(u.share):
            axis.text(
                x,
                y,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value < 0.6 * top else "black",
                fontsize=8,
            )
    figure.colorbar(image, ax=list(axes), label="share of kept choices")
    figure.suptitle(title)
    return figure
