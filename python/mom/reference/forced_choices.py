"""Choices of which some are given beforehand. See docs/derivations/routing_interventions.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float, Int, as_float, as_int

FREE, NONE, SKIP = -1, -2, -3


def forward(
    scores: ArrayLike,
    outputs: ArrayLike,
    forced: ArrayLike | None,
    top_k: int,
    modules: int,
    renormalise: bool,
    scored: bool = True,
    ranking: ArrayLike | None = None,
) -> tuple[Int, Float]:
    """Fill in what is left free, and weigh all choices by the live scores.

    Parameters
    ----------
    scores : ndarray of float64, shape (N, S)
    outputs : ndarray of float64, shape (N, S)
        Of the router, from which the scores were made. Minus infinity forbids a choice.
    forced : ndarray of int, shape (N, K), or None
        Numbers of choices; -1: the best allowed choice that is not in the row yet; -2: none; -3: the best SKIP that is
        not in the row yet, or S if the router has no more of them. None: everything is free.
    top_k : int
        K.
    modules : int
        M; choices from M on mean SKIP, and S is a SKIP without a score.
    renormalise : bool
        Divide the kept scores by their sum. If it is 0, all kept choices weigh the same.
    scored : bool
        Otherwise all kept choices weigh the same.
    ranking : ndarray of float64, shape (N, S), optional
        What free entries are chosen by, if that is not the scores.

    Returns
    -------
    index : ndarray of int64, shape (N, K)
        Numbers of choices, S or -2.
    weight : ndarray of float64, shape (N, K)

    Notes
    -----
    `router.top_k_backward` is the backward: choices without a score, and rows with equal weights, pass no gradient.
    """
    scores = as_float("scores", scores, ("N", "S"))
    outputs = as_float("outputs", outputs, scores.shape)
    given = np.full((len(scores), top_k), FREE) if forced is None else as_int("forced", forced, (len(scores), top_k))
    order = scores if ranking is None else as_float("ranking", ranking, scores.shape)
    rows = [_row(row, order[t], outputs[t], modules) for t, row in enumerate(given.tolist())]
    index = np.array(rows, dtype=np.int64).reshape(given.shape)
    kept = index >= 0
    known = kept & (index < scores.shape[1])
    weight = np.where(known, np.take_along_axis(scores, np.where(known, index, 0), -1), 0.0)
    equal = kept / np.maximum(kept.sum(-1, keepdims=True), 1)
    if not scored:
        return index, equal
    total = weight.sum(-1, keepdims=True)
    if renormalise:
        weight = np.where(total == 0.0, equal, weight / np.where(total == 0.0, 1.0, total))
    return index, weight


def _row(row: list[int], scores: Float, outputs: Float, modules: int) -> list[int]:
    choices = len(scores)
    falling = sorted(range(choices), key=lambda s: (-scores[s], s))
    for k, entry in enumerate(row):
        if entry == SKIP:
            row[k] = next((s for s in falling if s >= modules and s not in row), choices)
    for k, entry in enumerate(row):
        if entry == FREE:
            row[k] = next((s for s in falling if outputs[s] > -np.inf and s not in row), NONE)
    return row
