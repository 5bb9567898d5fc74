"""Which rows of a batch are real, labelled and needed in the last round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_array
from ..config import MoMConfig
from ..interventions.layout import Layout, layout_of
from ..model.classifier import pooled_positions
from ..model.routes import Routes

__all__ = ["Batch", "batch_of"]

#: The value of a label that does not count.
_IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """The N rows of a batch. A row is one token of one sequence.

    Attributes
    ----------
    row : ndarray of int, shape (N,)
        The sequence of each row.
    real : ndarray of bool, shape (N,)
        False for padding.
    needed : ndarray of bool, shape (N,), or None
        Rows with an output that a loss or a caller needs; None: all. The core skips the others only if at most three
        quarters of the rows are needed.
    scored : int
        Rows of which the head computes a loss.
    logits : int
        Rows of which it computes logits for the caller.
    sequences : int
    """

    row: NDArray[np.int32]
    real: NDArray[np.bool_]
    needed: NDArray[np.bool_] | None
    scored: int
    logits: int
    sequences: int

    @cached_property
    def num_real(self) -> int:
        return int(self.real.sum())

    @cached_property
    def start(self) -> NDArray[np.intp]:
        """The first row of each row's sequence."""
        return np.searchsorted(self.row, self.row)

    @cached_property
    def earlier(self) -> NDArray[np.int64]:
        """For each row the number of real rows before it in its sequence."""
        return self.count(self.real) - self.real

    @cached_property
    def others(self) -> NDArray[np.int64]:
        """For each row the number of other real rows in its sequence."""
        return self.in_sequence(self.real) - self.real

    def count(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each row, how many chosen rows its sequence has up to it, itself included."""
        total = np.cumsum(chosen, dtype=np.int64)
        counts: NDArray[np.int64] = total - (total - chosen)[self.start]
        return counts

    def in_sequence(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """For each row, how many chosen rows its sequence has."""
        counts: NDArray[np.int64] = np.bincount(self.row[chosen], minlength=self.sequences)[self.row]
        return counts


def batch_of(
    config: MoMConfig,
    shape: tuple[int, int],
    routes: Routes | None = None,
    labels: ArrayLike | None = None,
    *,
    labelled: bool = True,
    logits: bool = False,
) -> Batch:
    """The batch of a shape (sequences, tokens of each), or of routes. Without `labels` every real token has a label."""
    tokens = np.zeros(shape, np.int32) if routes is None else routes.tokens
    mask, lengths = (None, None) if routes is None else (routes.mask, routes.lengths)
    layout = layout_of(tokens, mask, lengths)
    size, sequences = len(layout.tokens), layout.rows
    if config.num_labels is not None:
        chosen = _pooled(config, layout, None if routes is None else tokens, mask, lengths)
        scored = sequences
    elif not labelled:
        chosen, scored = np.zeros(size, bool), 0
    else:
        chosen = _labelled(layout, labels)
        scored = int(chosen.sum())
    used = int(chosen.sum())
    saves = (config.num_labels is not None or labelled) and 0 < used <= size // 4 * 3
    all_rows = logits and config.num_labels is None
    real = layout.real
    return Batch(
        layout.row, real, chosen if saves and not all_rows else None, scored,
        int(real.sum()) if all_rows else 0, sequences,
    )  # fmt: skip


def _labelled(layout: Layout, labels: ArrayLike | None) -> NDArray[np.bool_]:
    """Rows that are scored: those whose next row, of the same sequence, has a label."""
    if labels is None:
        counts = layout.real
    else:
        given = as_array(labels, "labels")
        if given.shape != layout.shape:
            raise ValueError(f"labels: shape {given.shape}, expected {layout.shape} like the tokens")
        counts = given.ravel() != _IGNORED
    chosen = np.zeros(len(layout.row), bool)
    chosen[:-1] = counts[1:] & (layout.row[1:] == layout.row[:-1])
    if labels is None:
        chosen &= layout.real
    return chosen


def _pooled(
    config: MoMConfig,
    layout: Layout,
    tokens: NDArray[np.int32] | None,
    mask: NDArray[np.bool_] | None,
    lengths: NDArray[np.int32] | None,
) -> NDArray[np.bool_]:
    """The row of each sequence that is classified. Without tokens that is the last one."""
    chosen = np.zeros(len(layout.row), bool)
    if lengths is not None:
        chosen[np.cumsum(lengths) - 1] = True
        return chosen
    length = layout.shape[1]
    if tokens is None:
        chosen[length - 1 :: length] = True
        return chosen
    positions = pooled_positions(config, tokens, None if mask is None else mask.astype(np.uint8))
    chosen[np.arange(len(tokens)) * length + positions] = True
    return chosen
