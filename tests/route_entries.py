"""The arrays of single half-rounds in `mom.Routes`."""

from __future__ import annotations

from typing import Any

import numpy as np

from mom import Routes

__all__ = ["entries", "entry"]


def entry(routes: Routes | None, half: str, block: int, round: int) -> dict[str, np.ndarray] | None:
    """``scores``, ``index`` and ``weight`` of one half-round; None if the half has no router."""
    assert routes is not None
    if half not in routes.index:
        return None
    number = routes.rounds.index((block, round))
    arrays: dict[str, dict[str, Any]] = {"scores": routes.scores, "index": routes.index, "weight": routes.weight}
    return {kind: of_half[half][number] for kind, of_half in arrays.items()}


def entries(routes: Routes | None) -> list[dict[str, np.ndarray]]:
    """The same of all half-rounds that have a router: attention before feed-forward, then by round."""
    assert routes is not None
    found = [entry(routes, half, block, round) for half in routes.index for block, round in routes.rounds]
    return [arrays for arrays in found if arrays is not None]
