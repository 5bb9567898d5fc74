"""Batches of an evaluation, dealt out to ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..distributed import Communicator

if TYPE_CHECKING:
    from .network import Network

__all__ = ["own_batches", "summed_losses"]

Batch = TypeVar("Batch")


def own_batches(model: Network, ranks: Communicator, batches: Iterable[Batch]) -> Iterator[Batch]:
    """This rank's batches, which are dealt out in turn.

    Before each, the model's `random_state` is what it would be in a single process, for routers with noise.
    """
    seed, first = model.random_state
    for number, batch in enumerate(batches):
        if number % ranks.size == ranks.rank:
            if ranks.size > 1:
                model.random_state = (seed, first + number)
            yield batch


def summed_losses(losses: Sequence[tuple[float, int]], ranks: Communicator) -> tuple[float, int]:
    """Sum over the tokens of all ranks' batches, and their number. It does not depend on the number of ranks.

    `losses` are those of this rank's `own_batches`: mean and number of tokens.
    """
    nats, tokens = 0.0, 0
    for in_turn in itertools.zip_longest(*ranks.exchange(list(losses))):
        for mean, count in filter(None, in_turn):
            if count:
                nats += mean * count
                tokens += count
    return nats, tokens
