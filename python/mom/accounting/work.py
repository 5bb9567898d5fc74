"""Multiply-adds of a half-round and of the head: the formulas of the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..config import MoMConfig
from .batch import Batch
from .loads import Load
from .shapes import Half, Trained

__all__ = ["Entry", "Step", "half_work", "head_work"]

_BYTES = 4  # of a weight, which is float32 whatever the model's dtype
Number = int | float


@dataclass(frozen=True)
class Entry:
    """Work of one part, and of one module if it has several.

    Attributes
    ----------
    part : str
    module : int or None
    tokens : int or float
        Rows that it works on.
    forward, backward, recomputed : int or float
        Multiply-adds.
    bytes : int or float
        Of the weights that it reads in a forward pass.
    hidden : int or float
        Multiply-adds forward of hidden pairs, which only attention without a causal mask would compute.
    """

    part: str
    module: int | None
    tokens: Number
    forward: Number
    backward: Number
    recomputed: Number
    bytes: Number
    hidden: Number = 0


@dataclass(frozen=True)
class Step:
    """What is done beside the forward pass of a half-round.

    Attributes
    ----------
    backward : bool
        Backward goes through it.
    weights : bool
        Backward computes gradients of its modules' weights.
    again : bool
        Backward computes the forward pass once more.
    """

    backward: bool
    weights: bool
    again: bool

    @classmethod
    def of(cls, training: bool, checkpointing: bool, trained: Trained, place: int, half: str) -> Step:
        backward = training and place >= trained.lowest
        return cls(backward, backward and (place, half) not in trained.frozen, backward and checkpointing)


def _plain(value: Any) -> Number:
    """A Python number."""
    number: Number = value.item() if hasattr(value, "item") else value
    return number


def half_work(half: Half, load: Load, batch: Batch, first_round: bool, step: Step) -> Iterator[Entry]:
    """The entries of one half-round."""
    C, F = half.width, half.inner
    attn = half.name == "attn"
    layers = {  # multiply-adds of each row that has an output, of each other row, weights
        "qkv" if attn else "up": (3 * C * C if attn else C * F, 2 * C * C if attn else 0, half.first_parameters),
        "projection" if attn else "down": (C * C if attn else F * C, 0, half.last_parameters),
    }
    factor = int(step.backward) + int(step.weights)
    for part, (full, keys_only, weights) in layers.items():
        for m in range(half.modules):
            rows, needed = _plain(load.rows[m]), _plain(load.needed[m])
            forward = needed * full + (rows - needed) * keys_only
            read = _plain(load.reached[m]) * weights * _BYTES
            tokens = rows if keys_only else needed
            yield Entry(part, m if half.routed else None, tokens, forward, factor * forward,
                        forward * step.again, read)  # fmt: skip
    if attn:
        forward, hidden = 2 * C * load.pairs, 2 * C * (load.all_pairs - load.pairs)
        again = forward * step.again + C * load.pairs * step.backward
        yield Entry("scores", None, load.queries, forward, 2 * forward * step.backward, again, 0, hidden)
    if not half.router_parameters:
        return
    each, state = half.router_products
    sizes = {"router": half.router_parameters - half.state_parameters, "state": half.state_parameters}
    for part, products in (("router", each), ("state", 0 if first_round else state)):
        if products:
            forward = batch.num_real * products
            backward = (1 if part == "state" and half.detached else 2) * forward * step.backward
            yield Entry(part, None, batch.num_real, forward, backward, forward * step.again, sizes[part] * _BYTES)


def head_work(config: MoMConfig, batch: Batch, training: bool, trained: Trained) -> Entry:
    """The head. That of a language model computes its gradients with the loss."""
    outputs = config.vocab_size if config.num_labels is None else config.num_labels
    forward = batch.scored * config.n_embd * outputs
    if config.num_labels is None:
        factor = 1 + (trained.lowest == 0)
    else:
        factor = 1 + (trained.lowest <= len(config.places()))
    rows = batch.scored + batch.logits
    return Entry(
        "head", None, rows, rows * config.n_embd * outputs, factor * forward * training, 0,
        config.n_embd * outputs * _BYTES * (rows > 0),
    )  # fmt: skip
