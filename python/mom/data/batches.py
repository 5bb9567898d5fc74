"""From rows of unequal length to batches: the one place that decides which rows are computed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bucketed", "pack_labelled", "pack_rows"]

#: In training, rows are sorted by length within groups of this many batches; few enough to keep the order random.
_POOL_BATCHES = 50


def bucketed(
    lengths: npt.ArrayLike, batch_size: int, rng: np.random.Generator | None = None
) -> list[npt.NDArray[np.int64]]:
    """Group rows of similar length.

    Parameters
    ----------
    lengths : array of int, shape (N,)
    batch_size : int
        Rows per batch; the last one may be smaller.
    rng : Generator, optional
        Draws the order of one epoch: rows are shuffled, sorted within groups of some 50 batches, and the batches
        are shuffled. Without it, all rows are sorted, longest first.

    Returns
    -------
    list of ndarray of int64
        Row numbers; every row occurs once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    lengths = np.asarray(lengths)
    if rng is None:
        order = np.argsort(-lengths, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    shuffled = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(shuffled), _POOL_BATCHES * batch_size):
        pool = shuffled[start : start + _POOL_BATCHES * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def pack_rows(rows: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Concatenate rows.

    Parameters
    ----------
    rows : sequence of ndarray of int, shape (T_i,)

    Returns
    -------
    tokens : ndarray of int32, shape (N,)
    lengths : ndarray of int32, shape (B,)
    """
    return np.concatenate(rows).astype(np.int32, copy=False), np.array([len(row) for row in rows], np.int32)


def pack_labelled(
    rows: Sequence[tuple[npt.NDArray[np.int32], int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Pack rows for a language model. Each row comes with the number of first tokens that are not scored.

    Returns
    -------
    tokens, labels : ndarray of int32, shape (N,)
        Labels are the tokens where they are scored, and -100 elsewhere.
    lengths : ndarray of int32, shape (B,)
    """
    tokens, lengths = pack_rows([ids for ids, _ in rows])
    unscored = np.array([first for _, first in rows])
    position = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return tokens, np.where(position < np.repeat(unscored, lengths), np.int32(-100), tokens), lengths
