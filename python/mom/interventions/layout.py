"""Which sequence and position each token of a call belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Layout", "continued", "find", "layout_of"]


@dataclass(frozen=True)
class Layout:
    """The N tokens of a call, flat.

    Attributes
    ----------
    tokens : ndarray of int32, shape (N,)
    row : ndarray of int32, shape (N,)
        The sequence of each token. In a decoder: the prompt that the sequence continues.
    position : ndarray of int32, shape (N,)
        Counted from the sequence's first real token; negative before it.
    real : ndarray of bool, shape (N,)
        False for padding.
    rows : int
        Number of sequences.
    shape : tuple of int
        Of arrays with an entry per token: (B, T), or (N,) for packed rows.
    before : tuple of (int, ndarray)
        In a decoder: for sequences that go on, the flat number of the first token here, and the tokens before it.
    grows : bool
        Whether it is a decoder's, which may read any part of each sequence.
    """

    tokens: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]
    real: npt.NDArray[np.bool_]
    rows: int
    shape: tuple[int, ...]
    before: tuple[tuple[int, npt.NDArray[np.int32]], ...] = ()
    grows: bool = False


def layout_of(
    tokens: npt.NDArray[np.int32],
    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8] | None = None,
    lengths: npt.NDArray[np.int32] | None = None,
) -> Layout:
    """The layout of tokens (B, T) with an optional mask, or of packed tokens (N,) with lengths.

    Raises
    ------
    ValueError
        If the lengths are not those of N tokens.
    """
    if lengths is not None:
        if (lengths < 1).any():
            place = int(np.argmax(lengths < 1))
            raise ValueError(f"lengths: {lengths[place]} at position {place} is less than 1")
        if (total := int(lengths.sum(dtype=np.int64))) != len(tokens):
            raise ValueError(f"lengths: sum {total}, expected {len(tokens)} like tokens")
        row = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        starts = np.cumsum(lengths) - lengths
        position = np.arange(len(tokens), dtype=np.int32) - np.repeat(starts, lengths).astype(np.int32)
        return Layout(tokens, row, position, np.ones(len(tokens), bool), len(lengths), tokens.shape)
    B, T = tokens.shape
    real = np.ones((B, T), bool) if mask is None else mask.astype(bool)
    first = np.where(real.any(axis=1), real.argmax(axis=1), 0)
    position = np.arange(T, dtype=np.int32) - first[:, None].astype(np.int32)
    row = np.repeat(np.arange(B, dtype=np.int32), T)
    return Layout(tokens.ravel(), row, position.ravel(), real.ravel(), B, tokens.shape)


def find(layout: Layout, other: Layout) -> npt.NDArray[np.intp]:
    """For each token of `layout` the flat number of the real token with its row and position in `other`, or -1."""
    table = np.full((other.rows, 1 + int(other.position.max(initial=0))), -1, np.intp)
    real = np.flatnonzero(other.real)
    table[other.row[real], other.position[real]] = real
    known = (layout.row < table.shape[0]) & (layout.position < table.shape[1])
    found = np.full(len(layout.tokens), -1, np.intp)
    found[known] = table[layout.row[known], layout.position[known]]
    return found


def continued(parts: Sequence[tuple[int, int, npt.NDArray[np.int32], Sequence[int]]]) -> Layout:
    """The layout of tokens that are added to sequences: (row, first position, tokens, tokens before them) of each."""
    tokens = np.concatenate([ids for _, _, ids, _ in parts]) if parts else np.zeros(0, np.int32)
    row = np.concatenate([np.full(len(ids), number, np.int32) for number, _, ids, _ in parts])
    position = np.concatenate([np.arange(start, start + len(ids), dtype=np.int32) for _, start, ids, _ in parts])
    begins = np.cumsum([0, *(len(ids) for _, _, ids, _ in parts)])
    before = tuple(
        (int(begin), np.array(earlier, np.int32))
        for begin, (_, _, ids, earlier) in zip(begins, parts, strict=False)
        if len(ids) and len(earlier)
    )
    rows = max((number for number, *_ in parts), default=-1) + 1
    return Layout(tokens, row, position, np.ones(len(tokens), bool), rows, tokens.shape, before, grows=True)
