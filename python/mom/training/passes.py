"""The forward and backward passes of a step, on one rank or on many, and the losses of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..distributed import Communicator, Tree
from ..model import Network
from .batches import MicroBatch

__all__ = ["Losses", "Passes"]


class Losses(NamedTuple):
    """Losses of a step: their weighted sum, which is trained on, and the mean of each term over the micro-batches."""

    joint: float
    terms: dict[str, float]


class Passes:
    """Runs the passes of steps. Afterwards the gradients in the model are those of the whole step on one rank; on
    several, they are those of this rank's micro-batches.

    Parameters
    ----------
    model : Network
    communicator : Communicator
    by_tree : bool
        Add up the gradients of micro-batches in the order of a `Tree` over all of them. Otherwise each rank adds its
        own as they come.
    terms_first : bool
        See `Schedule`.

    Attributes
    ----------
    tree : Tree
        Of the last step: which micro-batches were those of each rank, and how gradients are added over ranks.
    used : ndarray of uint8, shape (parameters,)
        After the last step: which parameters have a gradient on any rank.
    counts_choices : bool
        Whether the choices of modules are counted.
    choices : list
        Of the last step, if they are counted: `Network.route_counts` of each of this rank's micro-batches.
    """

    def __init__(self, model: Network, communicator: Communicator, by_tree: bool, terms_first: bool) -> None:
        self.model, self._ranks = model, communicator
        self._by_tree, self._terms_first = by_tree, terms_first
        self._sums: list[NDArray[np.float32]] = []  # gradients of left branches, by depth
        self.tree = Tree(1, 1)
        self.used = np.zeros(0, np.uint8)
        self.counts_choices = False
        self.choices: list[dict[str, Any]] = []

    def run(self, batches: Sequence[MicroBatch]) -> Losses:
        """Run the passes of a step.

        The loss ``lm`` of a step is the mean over what the step scores: labelled positions, or rows that are
        classified. So a micro-batch has the weight of its share. Other terms are means over the micro-batches.
        """
        self._batches, self._total = batches, sum(batch.scored for batch in batches)
        self._losses: list[dict[str, float]] = []
        self.choices = []
        if self._ranks.size == 1:
            self._run(range(len(batches)))
            return self._sum_up(self._losses)
        seed, self._first_draw = self.model.random_state
        own = self._plan(len(batches))
        self._run(own)
        draws = self.model.random_state[1] != self._first_draw + own.stop - 1
        said = self._ranks.exchange((self._losses, self.model.core.used, bool(own) and draws))
        self.used = np.bitwise_or.reduce([used for _, used, _ in said])
        self.model.random_state = (seed, self._first_draw + len(batches) * any(drew for _, _, drew in said))
        return self._sum_up([losses for of_rank, _, _ in said for losses in of_rank])

    def _plan(self, count: int) -> range:
        """Distribute micro-batches over the ranks. Returns those of this one."""
        rank, size = self._ranks.rank, self._ranks.size
        self.tree = Tree(count if self._by_tree else size, size)
        if self._by_tree:
            return self.tree.runs[rank]
        return range(-(-count * rank // size), -(-count * (rank + 1) // size))

    def _run(self, own: range) -> None:
        if self._by_tree and own:
            self._add_up(own, 0)
            return
        for i in own:
            self._pass(i)

    def _add_up(self, own: range, depth: int) -> None:
        """Leave the sum of a node's gradients in the model. It does not depend on what other ranks compute."""
        core = self.model.core
        if len(own) == 1:
            self.model.zero_grad()
            self._pass(own.start)
            return
        self._add_up(own[: len(own) // 2], depth + 1)
        used, block = core.used, _core.gradient_block(core)
        while len(self._sums) <= depth:
            self._sums.append(np.empty_like(block))
        np.copyto(self._sums[depth], block)
        self._add_up(own[len(own) // 2 :], depth + 1)
        block = _core.gradient_block(core)
        _core.add_pieces((block, self._sums[depth]), ((0, 1),))
        _core.take_gradients(core, used | core.used)

    def _pass(self, i: int) -> None:
        """Micro-batch i. Its random numbers are those that a single process would draw."""
        batch = self._batches[i]
        if self._ranks.size > 1:
            self.model.random_state = (self.model.random_state[0], self._first_draw + i)
        out = self.model(**batch.inputs)  # type: ignore[operator]
        self._losses.append(dict(out.losses))
        if self.counts_choices:
            self.choices.append(self.model.route_counts())
        if math.isfinite(out.lm_loss):
            self.model.backward(scales=self._scales(batch))

    def _scales(self, batch: MicroBatch) -> dict[str, float]:
        weights = self.model.config.loss_weights
        scales = {name: weight / len(self._batches) for name, weight in weights.items()}
        return scales | {"lm": batch.scored / self._total}

    def _sum_up(self, losses: Sequence[Mapping[str, float]]) -> Losses:
        weights: Mapping[str, Any] = self.model.config.loss_weights
        joint, terms = 0.0, dict[str, float]()
        for batch, values in zip(self._batches, losses, strict=True):
            scales = self._scales(batch)
            joint += sum(scales[name] * value for name, value in values.items())
            for name, value in values.items():
                share = value * batch.scored / self._total if name == "lm" else value / len(self._batches)
                terms[name] = terms.get(name, 0.0) + share
        apart = sum(weights[name] * value for name, value in terms.items())
        return Losses(apart if self._terms_first else joint, terms)
