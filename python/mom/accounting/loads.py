"""How many rows go to each module of a half-round: counted from real routes, or expected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..interventions.selection import FREE
from ..model.routes import Routes
from .batch import Batch
from .shapes import Half

__all__ = ["Load", "expected_load", "real_load", "share_still_choosing"]

#: A count is an integer; what is expected is a float.
Number = int | float


@dataclass(frozen=True)
class Load:
    """The work of one half-round in rows and in pairs of rows.

    Attributes
    ----------
    rows : ndarray, shape (M,)
        Real rows by module.
    needed : ndarray, shape (M,)
        Those of them with an output that is needed. The others are keys and values only.
    reached : ndarray, shape (M,)
        Whether any row reaches the module: 0 or 1, or a probability.
    queries : int or float
        Rows of attention that ask.
    pairs, all_pairs : int or float
        Pairs of a query and a key: those that the query sees, and those of the whole sequence.
    """

    rows: NDArray[Any]
    needed: NDArray[Any]
    reached: NDArray[Any]
    queries: Number
    pairs: Number
    all_pairs: Number


def _load(
    rows: NDArray[Any], needed: NDArray[Any], batch: Batch, keys: NDArray[np.bool_], asks: NDArray[np.bool_]
) -> Load:
    """A load that is known exactly: `keys` and `asks` are the rows that are keys, and queries, in attention."""
    seen, all_keys = batch.count(keys)[asks], batch.in_sequence(keys)[asks]
    return Load(rows, needed, (rows > 0).astype(np.int64), int(asks.sum()), int(seen.sum()), int(all_keys.sum()))


def _dense(half: Half, batch: Batch, saves: bool) -> Load:
    """Every real row goes to every module."""
    needed = batch.real if batch.needed is None or not saves else batch.real & batch.needed
    rows = np.full(half.modules, batch.num_real, np.int64)
    return _load(rows, np.full(half.modules, int(needed.sum()), np.int64), batch, batch.real, needed)


def real_load(half: Half, batch: Batch, routes: Routes, number: int, saves: bool) -> Load:
    """What routes say of round `number` of all blocks. `saves`: only needed rows have an output."""
    if not half.routed or half.all_paths:
        return _dense(half, batch, saves)
    module = routes.module[half.name][number].reshape(len(batch.row), -1)
    if (module == FREE).any():
        raise ValueError("routes: some entries are free; a model's call with return_routes=True says what was chosen")
    chosen = module[batch.real]
    rows = np.bincount(chosen[chosen < half.modules], minlength=half.modules).astype(np.int64)
    active = batch.real & (module < half.modules).any(axis=1)
    return _load(rows, rows, batch, active, active)


def _share_with_module(half: Half) -> float:
    """Probability that at least one of K distinct, uniform choices is a module."""
    skips = half.outputs - half.modules
    return 1.0 - math.comb(skips, half.choices) / math.comb(half.outputs, half.choices)


def share_still_choosing(half: Half, round_number: int) -> float:
    """With a SKIP that is final: the expected share of rows whose first choices so far were all modules."""
    if not half.final_skip or not half.routed:
        return 1.0
    return float((half.modules / half.outputs) ** round_number)


def expected_load(half: Half, batch: Batch, saves: bool, round_number: int) -> Load:
    """What is expected if every row makes K distinct choices, uniform over all outputs of the router."""
    if not half.routed or half.all_paths:
        return _dense(half, batch, saves)
    N, choosing = batch.num_real, share_still_choosing(half, round_number)
    share, active = choosing * half.choices / half.outputs, choosing * _share_with_module(half)
    rows = np.full(half.modules, N * share)
    pairs, all_pairs = (active * (N + active * float(n[batch.real].sum())) for n in (batch.earlier, batch.others))
    reached = np.full(half.modules, 1.0 - (1.0 - share) ** N)
    return Load(rows, rows, reached, active * N, pairs, all_pairs)
