"""How often modules were used, round by round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model import Routes
from .choices import halves_of, modules_of

__all__ = ["ModuleUse", "module_use", "round_labels"]


@dataclass(frozen=True)
class ModuleUse:
    """Share of choices per module.

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


def module_use(routes: Routes) -> dict[str, ModuleUse]:
    """Count how often each module was chosen, by half and round. Padding is left out.

    Parameters
    ----------
    routes : Routes

    Returns
    -------
    dict of str to ModuleUse
        By half; only halves that have a router.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> mom.analysis.module_use(routes)["ffn"].share.shape
    (4, 5)
    """
    result = {}
    for half in halves_of(routes, None):
        chosen, modules = modules_of(routes, half), routes.num_modules[half]
        counts = np.array([np.bincount(round.ravel(), minlength=modules + 1) for round in chosen])
        result[half] = ModuleUse(half, counts / counts.sum(axis=1, keepdims=True), round_labels(routes))
    return result


def round_labels(routes: Routes) -> list[str]:
    """Names of the rounds; blocks are named if there are several."""
    several = any(block for block, _ in routes.rounds)
    return [f"block {block} round {r}" if several else f"round {r}" for block, r in routes.rounds]
