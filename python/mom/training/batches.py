"""Sources of a run's batches: windows of a token file, or rows of unequal length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._reading import shown
from ..data.batches import bucketed
from ..data.same_tokenizer import tokenizer_for
from ..data.token_files import WindowSampler
from ..data.tokenizer import Tokenizer
from ..errors import DataError

__all__ = ["MicroBatch", "Rows", "Windows"]


class MicroBatch(NamedTuple):
    """A batch that goes through the model at once. A step has one or more of them.

    Attributes
    ----------
    inputs : dict
        Arguments of the model's call, labels included.
    scored : int
        Number of labelled positions or rows. The loss is the mean over them. The micro-batch's weight in the step's
        loss is its share of the step's.
    examples, tokens : int
        Counts for the records.
    """

    inputs: dict[str, Any]
    scored: int
    examples: int
    tokens: int


class Windows:
    """Windows of a token file; every token is predicted from those before it.

    Parameters
    ----------
    sampler : WindowSampler
        Its batches are those of a step.
    batch_size : int
        Windows of a micro-batch.
    """

    #: Settings and facts that determine the order of the windows. If one changes, a saved position means nothing.
    ordered_by = frozenset({"data", "sequence_length", "sampling", "seed"})

    def __init__(self, sampler: WindowSampler, batch_size: int) -> None:
        self._sampler, self._batch_size = sampler, batch_size
        self.state_dict, self.load_state_dict = sampler.state_dict, sampler.load_state_dict

    def tokenizer(self, vocab_size: int) -> Tokenizer | None:
        """The tokenizer of the data, for a model that has none; see `tokenizer_for`."""
        return tokenizer_for(self._sampler.tokens, vocab_size)

    @property
    def epoch(self) -> int:
        """Whole passes over the data so far."""
        return self._sampler.epoch

    def next_step(self, rows: int | None = None) -> list[MicroBatch]:
        """The micro-batches of the next step; with `rows`, micro-batches of so many windows."""
        step, size = self._sampler.next_batch(), rows or self._batch_size
        batches = [step[i : i + size] for i in range(0, len(step), size)]
        # Position t is scored against token t + 1, so T - 1 positions of a row are scored.
        return [MicroBatch({"tokens": ids, "labels": ids}, ids[:, 1:].size, len(ids), ids.size) for ids in batches]


class Rows:
    """Rows of unequal length. Each epoch has a new order, in which rows of similar length form a batch.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    batch_size, accumulation : int
        Rows of a micro-batch; micro-batches of a step.
    seed : int
        Determines the order.
    make : callable
        Takes row numbers and makes a micro-batch of these rows.
    """

    #: See `Windows`.
    ordered_by = frozenset({"data", "batch_size", "accumulation", "seed"})

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        seed: int,
        make: Callable[[npt.NDArray[np.int64]], MicroBatch],
    ) -> None:
        self._lengths, self._batch_size, self._make = lengths, batch_size, make
        self._step_size = batch_size * accumulation
        self._rng = np.random.default_rng([seed, 0x6D6F6D])
        self._begun = self._rng.bit_generator.state  # the state before the order of this epoch was drawn
        self._steps: list[npt.NDArray[np.int64]] = []
        self._done, self._epochs = 0, 0

    def tokenizer(self, vocab_size: int) -> None:
        """None: rows were made with the model's own tokenizer, if it has one."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the rows."""
        return -(-len(self._lengths) // self._step_size)

    @property
    def epoch(self) -> int:
        """Whole passes over the rows before this one."""
        return max(0, self._epochs - 1)

    def next_step(self, rows: int | None = None) -> list[MicroBatch]:
        """The micro-batches of the next step; with `rows`, micro-batches of so many rows."""
        if self._done == len(self._steps):
            self._begin_epoch()
        step, size = self._steps[self._done], rows or self._batch_size
        self._done += 1
        return [self._make(step[i : i + size]) for i in range(0, len(step), size)]

    def _begin_epoch(self) -> None:
        self._begun = self._rng.bit_generator.state
        self._steps = bucketed(self._lengths, self._step_size, self._rng)
        self._done = 0
        self._epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """The position in the data as JSON values. `load_state_dict` continues from it exactly."""
        return {"rows": len(self._lengths), "epochs": self._epochs, "done": self._done, "random": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position of another source of the same rows.

        Raises
        ------
        DataError
            If the state belongs to other rows or is malformed.
        """
        wanted = self.state_dict()
        if not isinstance(state, dict) or state.keys() != wanted.keys():
            raise DataError(f"state: expected the keys {', '.join(wanted)}")
        if state["rows"] != len(self._lengths):
            raise DataError(f"state: rows is {shown(state['rows'])}, but there are {len(self._lengths)}")
        for name in ("epochs", "done"):
            if type(state[name]) is not int or state[name] < 0:
                raise DataError(f"state: {name} is {shown(state[name])}, expected a number of at least 0")
        try:
            self._rng.bit_generator.state = state["random"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"state: random is no state of the random numbers ({error!r})") from None
        if state["epochs"]:
            self._begin_epoch()
        if state["done"] > len(self._steps):
            raise DataError(f"state: done is {shown(state['done'])}, but an epoch has {len(self._steps)} steps")
        self._epochs, self._done = state["epochs"], state["done"]
