"""The loss of many rows of tokens, summed over every token that counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.batches import bucketed, pack_labelled
from ..distributed import Communicator, Serial
from .on_ranks import own_batches, summed_losses

if TYPE_CHECKING:
    from .language_model import MoM

__all__ = ["token_loss"]

_Window = tuple[npt.NDArray[np.int32], int]

#: Rows that are sorted by length before they are cut into batches.
_POOL = 256


def token_loss(
    model: MoM, windows: Iterator[_Window], batch_size: int, ranks: Communicator | None = None
) -> tuple[float, int]:
    """Sum of the negative log probabilities of the scored tokens, and their number.

    Every window comes with the number of tokens at its beginning that are not scored. The `ranks`, if there are
    several, deal the batches out among them, and all get the result.
    """
    ranks = ranks or Serial()
    losses: list[tuple[float, int]] = []
    with model.evaluating():
        for rows in own_batches(model, ranks, _batches(windows, batch_size)):
            ids, labels, lengths = pack_labelled(rows)
            out = model(ids, labels=labels, lengths=lengths, keep=False)
            losses.append((0.0 if out.lm_loss is None else out.lm_loss, out.num_labelled))
    return summed_losses(losses, ranks)


def _batches(windows: Iterator[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Windows of similar length."""
    while pool := list(itertools.islice(windows, _POOL * max(1, batch_size // 8))):
        for chosen in bucketed([len(ids) for ids, _ in pool], batch_size):
            yield [pool[i] for i in chosen]
