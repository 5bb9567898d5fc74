"""How often modules were used, round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_array, flag
from .._html import html_table
from ..interventions.layout import layout_of
from ..model import Routes
from .choices import halves_of, need_choices

__all__ = ["ModuleUse", "module_use", "round_labels"]


@dataclass(frozen=True, repr=False)
class ModuleUse:
    """Share of choices, or of their weight, per module.

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
        return float(self.share[:, -1].mean())

    @property
    def modules(self) -> list[str]:
        """Names of the columns: ``A0, A1, ..., SKIP`` for attention, ``F0, ...`` for feed-forward modules."""
        return [*(f"{self.half[0].upper()}{m}" for m in range(self.share.shape[1] - 1)), "SKIP"]

    def __str__(self) -> str:
        width = max(map(len, self.labels), default=0)
        lines = [" " * width + "".join(name.rjust(7) for name in self.modules)]
        for label, row in zip(self.labels, self.share, strict=True):
            lines.append(label.ljust(width) + "".join(f"{value:7.1%}" for value in row))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<ModuleUse of {self.half}: {len(self.labels)} rounds, SKIP {self.skip_share:.1%}>\n{self}"

    def _repr_html_(self) -> str:
        rows = ([label, *(f"{v:.1%}" for v in row)] for label, row in zip(self.labels, self.share, strict=True))
        return html_table(f"use of {self.half} modules", ["", *self.modules], rows)


@overload
def module_use(routes: Routes, *, weighted: bool = False, by: None = None) -> dict[str, ModuleUse]: ...


@overload
def module_use(routes: Routes, *, weighted: bool = False, by: ArrayLike) -> dict[Any, dict[str, ModuleUse]]: ...


def module_use(routes: Routes, *, weighted: bool = False, by: ArrayLike | None = None) -> Any:
    """Count how often each module was chosen, by half and round. Padding is left out.

    Parameters
    ----------
    routes : Routes
    weighted : bool
        Count each choice by its weight (its absolute value) instead of as one. A choice of weight 0.02 then counts a
        fiftieth of a choice of weight 1.
    by : array, shape of the tokens, optional
        A label for each token, such as its class of words. The use is counted for each label apart.

    Returns
    -------
    dict of str to ModuleUse
        By half; only halves that have a router. With `by`, such a dict for each label, in the order of the labels.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> mom.analysis.module_use(routes)["ffn"].share.shape
    (4, 5)
    >>> list(mom.analysis.module_use(routes, weighted=True, by=[["noun", "verb", "noun"]]))
    ['noun', 'verb']
    """
    flag(weighted, "weighted")
    halves = halves_of(routes, None)
    real = layout_of(routes.tokens, routes.mask, routes.lengths).real
    if by is None:
        return {half: _use(routes, half, real, weighted) for half in halves}
    labels = as_array(by, "by")
    if labels.shape != routes.tokens.shape:
        raise ValueError(f"by: shape {labels.shape}, expected {routes.tokens.shape}, a label for each token")
    flat = labels.ravel()
    return {
        label: {half: _use(routes, half, real & (flat == label), weighted) for half in halves}
        for label in np.unique(flat[real]).tolist()
    }


def _use(routes: Routes, half: str, tokens: NDArray[np.bool_], weighted: bool) -> ModuleUse:
    """Use by the chosen tokens (N,)."""
    modules, K = routes.num_modules[half], routes.index[half].shape[-1]
    chosen = routes.module[half].reshape(len(routes.rounds), -1, K)[:, tokens]
    need_choices(chosen)
    weight = np.ones(chosen.shape)
    if weighted:
        weight = np.abs(routes.weight[half].reshape(len(routes.rounds), -1, K)[:, tokens].astype(np.float64))
    counts = np.array([
        np.bincount(round.ravel(), weights=of_round.ravel(), minlength=modules + 1)
        for round, of_round in zip(chosen, weight, strict=True)
    ])  # fmt: skip
    whole = counts.sum(axis=1, keepdims=True)
    share = counts / np.where(whole, whole, 1.0)
    return ModuleUse(half, share.astype(np.float64), round_labels(routes))


def round_labels(routes: Routes) -> list[str]:
    """Names of the rounds; blocks are named if there are several."""
    several = any(block for block, _ in routes.rounds)
    return [f"block {block} round {r}" if several else f"round {r}" for block, r in routes.rounds]
