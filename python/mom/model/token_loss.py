"""The loss of many rows of tokens, summed over every token that counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.batches import bucketed, pack_labelled

if TYPE_CHECKING:
    from .language_model import MoM

__all__ = ["token_loss"]

#: Rows that are sorted by length before they are cut into batches.
_POOL = 256


def token_loss(model: MoM, windows: Iterator[tuple[npt.NDArray[np.int32], int]], batch_size: int) -> tuple[float, int]:
    """Sum of the negative log probabilities of the scored tokens, and their number.

    Every window comes with the number of tokens at its beginning that are not scored.
    """
    nats, tokens = 0.0, 0
    with model.evaluating():
        while pool := list(itertools.islice(windows, _POOL * max(1, batch_size // 8))):
            for chosen in bucketed([len(ids) for ids, _ in pool], batch_size):
                ids, labels, lengths = pack_labelled([pool[i] for i in chosen])
                out = model(ids, labels=labels, lengths=lengths, keep=False)
                if out.num_labelled and out.lm_loss is not None:
                    nats += out.lm_loss * out.num_labelled
                    tokens += out.num_labelled
    return nats, tokens
