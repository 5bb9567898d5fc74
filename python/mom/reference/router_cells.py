"""The kinds of routers in the twin: the counterpart of the table in `mom.routers`.

A cell turns a token, and the state of a recurrent router, into logits. Its functions take the router's parameters as
a list, in the order of `Cell.names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import linear, router
from ._checks import Float

__all__ = ["CELLS", "Cell", "CellInputs"]


@dataclass(frozen=True)
class CellInputs:
    """What a cell reads in a round: tokens (N, C), state (N, R) or None in the first round, noise (N, R) or None.

    A router that hashes reads `hashed` instead. `modules` is M: choices from M on mean SKIP. `change` is what an
    intervention does to the new state, and
    `change_backward` its gradient.
    """

    inp: Float
    state: Float | None
    noise: Float | None
    hashed: router.HashInputs | None = None
    modules: int = 0
    change: Callable[[Float], Float] | None = None
    change_backward: Callable[[Float], Float] | None = None


@dataclass(frozen=True)
class Cell:
    """One kind.

    Attributes
    ----------
    names : tuple of str
        Parameters, after ``router.``.
    forward : callable
        Takes the parameters and `CellInputs`. Returns logits (N, S), the new state (N, R) or None, and what backward
        needs.
    backward : callable
        Takes dlogits, the new state's gradient or None, the parameters, `CellInputs` and what forward saved. Returns
        dinp, the old state's gradient or None, and the gradients of the parameters.
    """

    names: tuple[str, ...]
    forward: Callable[[list[Float], CellInputs], tuple[Float, Float | None, Any]]
    backward: Callable[[Float, Float | None, list[Float], CellInputs, Any], tuple[Float, Float | None, Iterable[Float]]]


def _naive_forward(weights: list[Float], given: CellInputs) -> tuple[Float, None, Float]:
    logits, hidden = router.naive_forward(given.inp, *weights)
    return logits, None, hidden


def _naive_backward(
    dlogits: Float, dstate: Float | None, weights: list[Float], given: CellInputs, hidden: Float
) -> tuple[Float, None, Iterable[Float]]:
    dinp, *gradients = router.naive_backward(dlogits, given.inp, hidden, weights[0], weights[2])
    return dinp, None, gradients


def _zeros_for(given: CellInputs, weights: list[Float]) -> Float:
    return np.zeros((len(given.inp), weights[4].shape[1]))


def _gru_forward(dev: bool, weights: list[Float], given: CellInputs) -> tuple[Float, Float, router.GruGates]:
    state = _zeros_for(given, weights) if given.state is None else given.state
    return router.gru_forward(given.inp, state, router.GruWeights(*weights), dev, given.noise, given.change)


def _gru_backward(
    dev: bool, dlogits: Float, dstate: Float | None, weights: list[Float], given: CellInputs, gates: router.GruGates
) -> tuple[Float, Float, Iterable[Float]]:
    zeros = _zeros_for(given, weights)
    state, dstate = (zeros if array is None else array for array in (given.state, dstate))
    return router.gru_backward(
        dlogits, dstate, given.inp, state, gates, router.GruWeights(*weights), dev, given.noise, given.change_backward
    )


def _hash_forward(weights: list[Float], given: CellInputs) -> tuple[Float, None, None]:
    if given.hashed is None:
        raise ValueError("hashed: a hash router needs the ids of tokens")
    return router.hash_forward(given.hashed), None, None


def _hash_backward(
    dlogits: Float, dstate: Float | None, weights: list[Float], given: CellInputs, saved: None
) -> tuple[Float, None, Iterable[Float]]:
    return np.zeros_like(given.inp), None, ()


def _linear_forward(weights: list[Float], given: CellInputs) -> tuple[Float, None, None]:
    return linear.forward(given.inp, weights[0].T, weights[1]), None, None


def _linear_backward(
    dlogits: Float, dstate: Float | None, weights: list[Float], given: CellInputs, saved: None
) -> tuple[Float, None, Iterable[Float]]:
    dinp, dweight, dbias = linear.backward(dlogits, given.inp, weights[0].T)
    return dinp, None, (dweight.T, dbias)


def _norm_forward(weights: list[Float], given: CellInputs) -> tuple[Float, None, Float]:
    logits, hidden = router.norm_forward(given.inp, weights[0], weights[1], given.modules)
    return logits, None, hidden


def _norm_backward(
    dlogits: Float, dstate: Float | None, weights: list[Float], given: CellInputs, hidden: Float
) -> tuple[Float, None, Iterable[Float]]:
    dinp, *gradients = router.norm_backward(dlogits, given.inp, hidden, weights[0], given.modules)
    return dinp, None, gradients


_GRU = ("x2h.weight", "x2h.bias", "h2h.weight", "h2h.bias", "router.weight", "router.bias")
#: By the names in `mom.routers.KINDS`.
CELLS = {
    "naive": Cell(
        ("router.0.weight", "router.0.bias", "router.2.weight", "router.2.bias"), _naive_forward, _naive_backward
    ),
    "gru-dev": Cell(_GRU, partial(_gru_forward, True), partial(_gru_backward, True)),
    "gru": Cell(_GRU, partial(_gru_forward, False), partial(_gru_backward, False)),
    "hash": Cell((), _hash_forward, _hash_backward),
    "linear": Cell(("router.weight", "router.bias"), _linear_forward, _linear_backward),
    "norm": Cell(("router.0.weight", "router.bias"), _norm_forward, _norm_backward),
}
