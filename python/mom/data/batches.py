"""Rows of unequal length to batches: the one place that decides what is computed together, and how it is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "bucketed", "iter_batches", "make_batch", "pad_labelled", "pad_rows"]

#: Batches among which rows are sorted by length while training: enough to pad little, few enough to stay random.
_POOL_BATCHES = 50


class Batch(NamedTuple):
    """Rows that go through a model together.

    Attributes
    ----------
    rows : ndarray of int64, shape (B,)
        Which rows of the data these are.
    tokens : ndarray of int32, shape (B, T)
    attention_mask : ndarray of uint8, shape (B, T), or None
        0 at padding; None if there is none.
    positions : ndarray of int32, shape (B, T), or None
        Position ids that count real tokens; None if they are 0 to T-1 wherever there is a token (padding on the right).
    """

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.uint8] | None
    positions: npt.NDArray[np.int32] | None

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Real tokens of each row, (B,)."""
        if self.attention_mask is None:
            return np.full(len(self.tokens), self.tokens.shape[1], np.int64)
        return np.asarray(self.attention_mask.sum(axis=1, dtype=np.int64))


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


def pad_rows(
    rows: Sequence[npt.NDArray[Any]], fill: int = 0, side: str = "right"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8] | None]:
    """Rows of unequal length as one array.

    Parameters
    ----------
    rows : sequence of ndarray of int, shape (T_i,)
    fill : int
        What padding holds.
    side : {"right", "left"}
        Where padding goes.

    Returns
    -------
    tokens : ndarray of int32, shape (B, T)
    mask : ndarray of uint8, shape (B, T), or None
        0 at padding; None if there is none.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side: {side!r} is not one of 'right', 'left'")
    lengths = np.array([len(row) for row in rows], np.int64)
    longest = int(lengths.max())
    tokens = np.full((len(rows), longest), fill, np.int32)
    columns = np.arange(longest)
    real = columns < lengths[:, None] if side == "right" else columns >= longest - lengths[:, None]
    tokens[real] = np.concatenate(rows)
    return tokens, None if real.all() else real.astype(np.uint8)


def pad_labelled(
    rows: Sequence[tuple[npt.NDArray[np.int32], int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8] | None]:
    """Rows for a language model, each with the number of its first tokens that are not scored.

    Returns
    -------
    tokens, labels : ndarray of int32, shape (B, T)
        Labels are the tokens where they are scored, and -100 elsewhere.
    mask : ndarray of uint8, shape (B, T), or None
        See `pad_rows`.
    """
    labels = [ids.copy() for ids, _ in rows]
    for label, (_, first) in zip(labels, rows, strict=True):
        label[:first] = -100
    tokens, mask = pad_rows([ids for ids, _ in rows])
    return tokens, pad_rows(labels, fill=-100)[0], mask


def make_batch(rows: Sequence[npt.NDArray[Any]], chosen: npt.NDArray[np.int64], side: str = "right") -> Batch:
    """Some of the rows as a batch; see `pad_rows`."""
    tokens, mask = pad_rows([rows[i] for i in chosen], side=side)
    positions = None
    if side == "left" and mask is not None:
        positions = np.maximum(np.cumsum(mask, axis=1, dtype=np.int32) - 1, 0).astype(np.int32)
    return Batch(chosen, tokens, mask, positions)


def iter_batches(
    rows: Sequence[npt.NDArray[Any]],
    batch_size: int,
    rng: np.random.Generator | None = None,
    side: str = "right",
) -> Iterator[Batch]:
    """Go through rows once in batches of similar length, padded as little as possible; see `bucketed`."""
    for chosen in bucketed([len(row) for row in rows], batch_size, rng):
        yield make_batch(rows, chosen, side)
