"""The best subset of a pool, by trying all."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..analysis import audit
from ..interventions import Forbid
from ..model import MoM
from .modules import checked_half

__all__ = ["MOST_SUBSETS", "best_subsets"]

#: No more subsets than this are tried for a half of a block.
MOST_SUBSETS = 500


def best_subsets(
    model: MoM, half: str, stay: int, data: Any, options: dict[str, Any]
) -> tuple[list[list[int]], list[list[dict[str, Any]]]]:
    """By block, the modules to keep so that the loss is lowest while the other blocks have all of theirs.

    Parameters
    ----------
    model : MoM
    half : {"attn", "ffn"}
    stay : int
        How many modules are kept.
    data, options
        Of `mom.analysis.audit`.

    Returns
    -------
    kept : list of list of int
    tried : list of list of dict
        By block every subset that was tried, in falling order of its worth: ``left_out`` and the ``loss`` without it.

    Raises
    ------
    ValueError
        If there are more than `MOST_SUBSETS` subsets.
    """
    modules = checked_half(model, half)
    subsets = math.comb(modules, stay)
    if subsets > MOST_SUBSETS:
        raise ValueError(
            f"by: 'exhaustive' would try {subsets:,} subsets of {modules} {half} modules; at most {MOST_SUBSETS}. "
            "Use another criterion"
        )
    blocks = [[block] for block in range(len(model.blocks))]
    if model.config.shared_pools in (half, "both"):
        blocks = [list(range(len(model.blocks)))]
    kept: list[list[int]] = []
    tried: list[list[dict[str, Any]]] = []
    for group in blocks:
        rounds = [(block, r) for block in group for r in range(model.config.rounds)]
        found: list[dict[str, Any]] = []
        for gone in itertools.combinations(range(modules), modules - stay):
            with model.intervene([Forbid(half, list(gone), rounds=rounds)]):
                found.append({"left_out": list(gone), "loss": audit(model, data, ["usage"], **options).loss})
        found.sort(key=lambda entry: entry["loss"])
        for _ in group:
            kept.append([m for m in range(modules) if m not in found[0]["left_out"]])
            tried.append(found)
    return kept, tried
