"""The measures of the audit, of one batch at a time: a numerator and a denominator for each sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..interventions import Forbid, Force, Intervention, RandomRoutes
from ..interventions.selection import FREE
from ..model import MoM, Routes
from .restart import begin_at, losses_from, places_to_restart, rounds_of_config, routed_halves

__all__ = ["MEASURES", "OF_MODULES", "OF_ROUNDS", "Item", "items_of", "of_batch"]

Floats = npt.NDArray[np.float64]

#: Measures of a module that cost no pass of their own.
CHEAP = ("usage", "weight", "norm", "reap", "taylor")
OF_MODULES = (*CHEAP, "drop_one")
OF_ROUNDS = ("skip_round", "random_router", "frozen_router")
MEASURES = (*OF_MODULES, *OF_ROUNDS)


class Item(NamedTuple):
    """What a row of the audit is about: a module of a block, or a half of a round."""

    half: str
    block: int
    round: int | None
    module: int | None


def items_of(model: MoM) -> list[Item]:
    """All modules of routed halves, block by block, and then the halves of all rounds."""
    rounds, halves = rounds_of_config(model.config), routed_halves(model.config)
    counts = {"attn": model.config.num_attn, "ffn": model.config.num_ffn}
    blocks = sorted({block for block, _ in rounds})
    modules = [Item(half, block, None, m) for half in halves for block in blocks for m in range(counts[half])]
    return modules + [Item(half, block, round, None) for half in halves for block, round in rounds]


class _Batch:
    """A batch, the model's own pass over it, and its loss after changes."""

    def __init__(self, model: MoM, ids: npt.NDArray[np.int32], measures: Sequence[str]) -> None:
        self.model, self.ids, self.config = model, ids, model.config
        self.rounds = rounds_of_config(self.config)
        self.random_state = model.random_state
        wanted = places_to_restart(self.config) if set(measures) & {"drop_one", *OF_ROUNDS} else []
        if set(measures) & {"norm", "reap", "taylor"}:
            wanted = [*wanted, *(f"block*.{half}.module*.output" for half in routed_halves(self.config))]
        gradients = "taylor" in measures
        out = model(ids, labels=ids, return_routes=True, return_token_losses=True, capture=wanted, keep=gradients)
        assert out.routes is not None and out.token_losses is not None
        self.routes, self.captured = out.routes, out.captured
        self.losses = _by_sequence(out.token_losses)
        if gradients:
            model.zero_grad()
            model.backward(scales={"lm": 1.0})

    def first(self, block: int) -> int:
        """Number of the first round of a block."""
        return self.rounds.index((block, 0))

    def use_of(self, half: str, rounds: list[int], module: int) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Whether tokens run a module, and with which weight (0 where they do not), shape (L, B, T)."""
        if self.config.routing_all_possible_path:
            score = self.routes.scores[half][rounds, ..., module].astype(np.float64)
            return np.ones(score.shape, bool), score
        runs = self.routes.index[half][rounds] == module
        return runs.any(axis=-1), (self.routes.weight[half][rounds] * runs).sum(axis=-1, dtype=np.float64)

    def increase(
        self, number: int, half: str, rules: Sequence[Intervention] = (), routes: Routes | None = None
    ) -> Floats:
        """What a change from this half-round on adds to each sequence's sum of losses."""
        assert self.captured is not None
        self.model.random_state = self.random_state
        begin = begin_at(self.config, self.captured, number, half)
        losses = losses_from(self.model, self.ids, self.ids, begin, rules, routes)
        return _by_sequence(losses) - self.losses

    def frozen(self, number: int, half: str) -> Routes:
        """Routes that are free but for one half-round, which has those of its block's first round."""
        index = {h: np.full_like(i, FREE) for h, i in self.routes.index.items()}
        index[half][number] = self.routes.index[half][self.first(self.rounds[number][0])]
        r = self.routes
        return Routes(r.tokens, index, r.scores, r.weight, r.rounds, r.num_modules)


def _by_sequence(losses: npt.NDArray[np.float32]) -> Floats:
    sums: Floats = np.nansum(losses, axis=1, dtype=np.float64)
    return sums


def of_batch(
    model: MoM, ids: npt.NDArray[np.int32], measures: Sequence[str], items: Sequence[Item], seed: int
) -> tuple[Floats, dict[str, tuple[Floats, Floats]]]:
    """Sums of losses by sequence, and for each measure the numerator and denominator of every item by sequence.

    Arrays of measures have the shape (items, B). A denominator of 0 means that the measure does not apply.
    """
    batch = _Batch(model, ids, measures)
    found: dict[str, tuple[Floats, Floats]] = {m: (np.zeros((len(items), len(ids))), np.zeros((len(items), len(ids))))
                                               for m in measures}  # fmt: skip
    predicted = float(ids.shape[1] - 1)
    for place, item in enumerate(items):
        values = _of_module(batch, item, measures) if item.round is None else _of_round(batch, item, measures, seed)
        for measure, top, bottom in values:
            found[measure][0][place] = top
            found[measure][1][place] = predicted if bottom is None else bottom
    return batch.losses, found


def _of_module(
    batch: _Batch, item: Item, measures: Sequence[str]
) -> Iterator[tuple[str, Floats, Floats | float | None]]:
    """(measure, numerator, denominator) of a module. Without a denominator, it is the number of predictions."""
    rounds = [number for number, (block, _) in enumerate(batch.rounds) if block == item.block]
    routed, weight = batch.use_of(item.half, rounds, item.module or 0)
    pairs = float(routed.shape[0] * routed.shape[2])
    if "usage" in measures:
        yield "usage", routed.sum(axis=(0, 2), dtype=np.float64), pairs
    if "weight" in measures:
        yield "weight", weight.sum(axis=(0, 2)), pairs
    if set(measures) & {"norm", "reap", "taylor"}:
        yield from _of_outputs(batch, item, measures, rounds, routed, weight)
    if "drop_one" in measures:
        number = batch.first(item.block)
        change = Forbid(item.half, [item.module], rounds=rounds)
        yield "drop_one", batch.increase(number, item.half, [change]), None


def _of_outputs(
    batch: _Batch, item: Item, measures: Sequence[str], rounds: list[int], routed: Any, weight: Floats
) -> Iterator[tuple[str, Floats, Floats | float | None]]:
    """Measures that need what the module has added to the stream."""
    assert batch.captured is not None
    names = [f"block{item.block}.round{batch.rounds[n][1]}.{item.half}.module{item.module}.output" for n in rounds]
    size = np.stack([np.linalg.norm(batch.captured[name].astype(np.float64), axis=-1) for name in names])
    # The module's own output was multiplied by the weight, or by the sign of the weight.
    applied = np.abs(np.sign(weight) if batch.config.use_ste else weight)
    seen = routed & (applied > 0)
    own = np.where(seen, size / np.where(seen, applied, 1.0), 0.0)
    if "norm" in measures:
        yield "norm", own.sum(axis=(0, 2)), seen.sum(axis=(0, 2), dtype=np.float64)
    if "reap" in measures:
        yield "reap", (np.abs(weight) * own).sum(axis=(0, 2)), routed.sum(axis=(0, 2), dtype=np.float64)
    if "taylor" in measures:
        products = [np.einsum("btc,btc->b", batch.captured[n], batch.captured.gradients[n], dtype=np.float64)
                    for n in names]  # fmt: skip
        # Gradients are of the mean over the whole batch, here each sequence's own sum is wanted.
        yield "taylor", -np.sum(products, axis=0) * len(batch.ids) * (batch.ids.shape[1] - 1), None


def _of_round(
    batch: _Batch, item: Item, measures: Sequence[str], seed: int
) -> Iterator[tuple[str, Floats, Floats | float | None]]:
    """(measure, numerator, denominator) of a half of a round."""
    number = batch.rounds.index((item.block, item.round or 0))
    if "skip_round" in measures:
        yield "skip_round", batch.increase(number, item.half, [Force(item.half, "SKIP", rounds=[number])]), None
    if "random_router" in measures:
        change = RandomRoutes(item.half, rounds=[number], seed=seed)
        yield "random_router", batch.increase(number, item.half, [change]), None
    if "frozen_router" in measures and item.round:
        yield "frozen_router", batch.increase(number, item.half, routes=batch.frozen(number, item.half)), None
