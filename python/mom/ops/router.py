"""Routers, their scores, and the choice of modules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..routers import KINDS
from .shared import Float, Partial

__all__ = [
    "RouterSaved", "RouterTensors", "forced_choices_backward", "forced_choices_forward", "router_backward",
    "router_forward", "router_scores_backward", "router_scores_forward", "ste_backward", "ste_forward", "topk_backward",
    "topk_forward",
]  # fmt: skip


class RouterTensors(NamedTuple):
    """Parameters of a router (or their gradients), stored [out, in]; None for what a kind does not have.

    G gates: 3 (reset, update, new), or 4 with the noise gate. Only recurrent routers have a state.
    """

    in_weight: Float | None  #: (R, C) naive and norm, (G * R, C) recurrent
    in_bias: Float | None  #: (R,) naive, (G * R,) recurrent
    out_weight: Float | None  #: (S, R), (S, C) linear, None norm
    out_bias: Float  #: (S,)
    state_weight: Float | None = None  #: (G * R, R), recurrent only
    state_bias: Float | None = None  #: (G * R,), recurrent only


class RouterSaved(NamedTuple):
    """What `router_forward` saves for `router_backward`."""

    hidden: Float | None  #: (N, R) naive: after the ReLU; norm: projected; recurrent: the new state; linear: None
    gates: Float | None  #: (N, G * R) activated gates, recurrent only
    h_n: Float | None  #: (N, R) the state's part of the new gate, recurrent only


def router_forward(
    inp: Float,
    weights: RouterTensors,
    kind: str,
    state: Float | None = None,
    *,
    random: bool = False,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
) -> tuple[Float, RouterSaved]:
    """One round of a router: logits of all choices for every token.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, C)
    weights : RouterTensors
    kind : str
        A key of `mom.routers.KINDS`.
    state : ndarray of float32, shape (N, R), optional
        Recurrent state of the round before (``saved.hidden``); zero by default.
    random : bool
        Recurrent routers: the fourth gate mixes in uniform noise.
    seed, counter, site : int
        Stream of the noise; component j of token t is element ``t * R + j``, see `random_uniform`.

    Returns
    -------
    logits : ndarray of float32, shape (N, S)
    saved : RouterSaved

    Notes
    -----
    Recurrent, with ``x = inp @ in_weight.T + in_bias`` and ``h = state @ state_weight.T + state_bias`` cut
    into gates: ``r = sigmoid(x_r + h_r)``, ``i = sigmoid(x_i + h_i)``, ``n = tanh(x_n + r * h_n)``
    (``gru-dev``: ``tanh(x_n)``), ``new = n + i * (state - n)``; with noise u,
    ``p = sigmoid(x_p + h_p)`` and ``new = p * (new - u) + u``.
    """
    logits, hidden, gates, h_n = _core.router_forward(
        inp, _router_tensors(weights), _router_kind(kind), random, state, seed, counter, site
    )
    return logits, RouterSaved(hidden, gates, h_n)


def router_backward(
    dlogits: Float,
    inp: Float,
    saved: RouterSaved,
    weights: RouterTensors,
    kind: str,
    state: Float | None = None,
    dstate: Float | None = None,
    *,
    random: bool = False,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
    add_to: tuple[Float | None, RouterTensors | None] | None = None,
) -> tuple[Float, Float | None, RouterTensors]:
    """Gradients of `router_forward`.

    Parameters
    ----------
    dlogits : ndarray of float32, shape (N, S)
    inp : ndarray of float32, shape (N, C)
    saved : RouterSaved
    weights, kind, state, random, seed, counter, site
        As in `router_forward`.
    dstate : ndarray of float32, shape (N, R), optional
        Gradient of ``saved.hidden`` from the next round; zero by default.
    add_to : tuple (dinp, dweights), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (N, C)
    dstate : ndarray of float32, shape (N, R), or None
        Gradient of `state`; None if `state` was not given or the router has no state.
    dweights : RouterTensors
    """
    so_far: Partial | None = None
    if add_to is not None:
        if not isinstance(add_to, tuple) or len(add_to) != 2:
            raise TypeError(f"add_to: expected (dinp, dweights), got {type(add_to).__name__}")
        so_far = (add_to[0], *((None,) * 6 if add_to[1] is None else _router_tensors(add_to[1], "add_to")))
    dinp, dbefore, *gradients = _core.router_backward(
        dlogits, inp, tuple(saved), dstate, _router_tensors(weights), _router_kind(kind), random, state, seed, counter,
        site, so_far,
    )  # fmt: skip
    in_weight, in_bias, state_weight, state_bias, out_weight, out_bias = gradients
    return dinp, dbefore, RouterTensors(in_weight, in_bias, out_weight, out_bias, state_weight, state_bias)


def _router_tensors(t: RouterTensors, name: str = "weights") -> tuple[Float | None, ...]:
    if not isinstance(t, RouterTensors):
        raise TypeError(f"{name}: expected RouterTensors, got {type(t).__name__}")
    return (t.in_weight, t.in_bias, t.state_weight, t.state_bias, t.out_weight, t.out_bias)


def _router_kind(kind: str) -> int:
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    return list(KINDS).index(kind)


def router_scores_forward(logits: Float, temperature: float | None = None) -> Float:
    """``softmax(logits / temperature)``, or the logits themselves without a temperature.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, S)
    temperature : float, optional
        Positive.

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    softmax = temperature is not None
    return _core.router_scores_forward(logits, softmax, 1.0 if temperature is None else temperature)


def router_scores_backward(dscores: Float, scores: Float, temperature: float | None = None) -> Float:
    """Gradient of `router_scores_forward` with respect to the logits.

    Parameters
    ----------
    dscores, scores : ndarray of float32, shape (N, S)
        `scores` as returned by forward.
    temperature : float, optional

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    softmax = temperature is not None
    return _core.router_scores_backward(dscores, scores, softmax, 1.0 if temperature is None else temperature)


def topk_forward(scores: Float, k: int, renormalise: bool = False) -> tuple[NDArray[np.int16], Float]:
    """The k largest scores of every token.

    Parameters
    ----------
    scores : ndarray of float32, shape (N, S)
    k : int
        0 to S.
    renormalise : bool
        Divide the kept scores by their sum.

    Returns
    -------
    index : ndarray of int16, shape (N, k)
        In falling order of the scores; NaN counts as larger than every number.
    weight : ndarray of float32, shape (N, k)
        The kept scores.

    Notes
    -----
    Among equal scores, the choice follows the steps of C++'s ``std::nth_element`` for S up to 64, as in PyTorch. For
    larger S the lower index is kept.
    """
    return _core.topk_forward(scores, k, renormalise)


def topk_backward(
    dweight: Float,
    index: ArrayLike,
    weight: Float,
    scores: Float,
    renormalise: bool = False,
    *,
    add_to: Float | None = None,
) -> Float:
    """Gradient of `topk_forward` with respect to all scores. The selection counts as a constant.

    Parameters
    ----------
    dweight, weight : ndarray of float32, shape (N, K)
    index : array of int, shape (N, K)
    scores : ndarray of float32, shape (N, S)
    renormalise : bool
        As in `topk_forward`.
    add_to : ndarray of float32, shape (N, S), optional
        Gradient so far.

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    so_far = None if add_to is None else (add_to,)
    return _core.topk_backward(dweight, index, weight, scores, renormalise, so_far)


def forced_choices_forward(
    scores: Float,
    outputs: Float,
    forced: ArrayLike | None,
    k: int,
    num_modules: int,
    renormalise: bool = False,
    scored: bool = True,
) -> tuple[NDArray[np.int16], Float]:
    """Choices of which some are given beforehand, with weights from the live scores.

    Parameters
    ----------
    scores : ndarray of float32, shape (N, S)
    outputs : ndarray of float32, shape (N, S)
        Of the router, from which the scores were made. Minus infinity forbids a choice.
    forced : array of int, shape (N, k), or None
        Numbers of choices, none twice in a row; -1: the best allowed choice that is not in the row yet; -2: none; -3:
        the best SKIP that is not in the row yet, or S. None: everything is free.
    k : int
        0 to S.
    num_modules : int
        M; choices from M on mean SKIP. S is a SKIP without a score.
    renormalise : bool
        Divide the kept scores by their sum. If it is 0, all kept choices have the same weight.
    scored : bool
        Otherwise all kept choices have the same weight.

    Returns
    -------
    index : ndarray of int16, shape (N, k)
        Numbers of choices, S or -2.
    weight : ndarray of float32, shape (N, k)
    """
    return _core.forced_choices_forward(scores, outputs, forced, k, num_modules, renormalise, scored)


def forced_choices_backward(
    dweight: Float,
    index: ArrayLike,
    weight: Float,
    scores: Float,
    renormalise: bool = False,
    *,
    add_to: Float | None = None,
) -> Float:
    """Gradient of `forced_choices_forward` with respect to all scores, for a router whose choices have scores.

    Parameters
    ----------
    dweight, weight : ndarray of float32, shape (N, K)
    index : array of int, shape (N, K)
    scores : ndarray of float32, shape (N, S)
    renormalise : bool
        As in `forced_choices_forward`.
    add_to : ndarray of float32, shape (N, S), optional
        Gradient so far.

    Returns
    -------
    ndarray of float32, shape (N, S)
        Entries without a score, and rows whose kept scores sum to 0 if they are renormalised, pass none.
    """
    so_far = None if add_to is None else (add_to,)
    return _core.forced_choices_backward(dweight, index, weight, scores, renormalise, so_far)


def ste_forward(weight: Float) -> Float:
    """Straight-through estimator: the sign, 0 for 0.

    Parameters
    ----------
    weight : ndarray of float32

    Returns
    -------
    ndarray of float32, shape of `weight`
    """
    return _core.ste_forward(weight)


def ste_backward(dout: Float) -> Float:
    """Gradient of `ste_forward`: the incoming one, clamped to [-1, 1].

    Parameters
    ----------
    dout : ndarray of float32

    Returns
    -------
    ndarray of float32, shape of `dout`
    """
    return _core.ste_backward(dout)
