"""Routers: from a token to the modules it uses and their weights. See docs/derivations/router.md.

The stages, each with its backward: router outputs ("logits") by `naive_forward`, `gru_forward` or `hash_forward`;
`scores_forward` (softmax with temperature, or nothing); `top_k_forward` (selection, and
renormalisation of probabilities); `sign_forward` (straight-through sign).

Router weights are stored [out, in]. R is the router's width, S its number of outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import linear
from ._checks import Float, Int, as_float


# ------------------------------------------------------------------ two linear layers
def naive_forward(
    inp: ArrayLike, weight_0: Float, bias_0: Float, weight_2: Float, bias_2: Float
) -> tuple[Float, Float]:
    """Linear, ReLU, linear.

    Parameters
    ----------
    inp : ndarray of float64, shape (N, C)
    weight_0, bias_0 : ndarray of float64, shapes (R, C), (R,)
    weight_2, bias_2 : ndarray of float64, shapes (S, R), (S,)

    Returns
    -------
    logits : ndarray of float64, shape (N, S)
    hidden : ndarray of float64, shape (N, R)
        After the ReLU, saved for `naive_backward`.
    """
    hidden = np.maximum(linear.forward(inp, weight_0.T, bias_0), 0.0)
    return linear.forward(hidden, weight_2.T, bias_2), hidden


def naive_backward(
    dlogits: Float, inp: Float, hidden: Float, weight_0: Float, weight_2: Float
) -> tuple[Float, Float, Float, Float, Float]:
    """Gradients dinp, dweight_0, dbias_0, dweight_2, dbias_2 of `naive_forward`."""
    dhidden, dweight_2, dbias_2 = linear.backward(dlogits, hidden, weight_2.T)
    dinp, dweight_0, dbias_0 = linear.backward(dhidden * (hidden > 0), inp, weight_0.T)
    return dinp, dweight_0.T, dbias_0, dweight_2.T, dbias_2


# ------------------------------------------------------------------ recurrent
class GruWeights(NamedTuple):
    """Parameters of a recurrent router, [out, in]; G gates (3, or 4 with noise) in the order r, i, n, p."""

    x2h_weight: Float  #: (G * R, C)
    x2h_bias: Float  #: (G * R,)
    h2h_weight: Float  #: (G * R, R)
    h2h_bias: Float  #: (G * R,)
    router_weight: Float  #: (S, R)
    router_bias: Float  #: (S,)


@dataclass(frozen=True)
class GruGates:
    """What `gru_forward` saves, each (N, R)."""

    r: Float
    i: Float
    n: Float
    h_n: Float  #: the state's part of the candidate n, before the reset gate
    p: Float | None  #: only with noise
    cell: Float  #: the state before noise is mixed in
    state: Float  #: the new state


def gru_forward(
    inp: ArrayLike,
    state: ArrayLike,
    weights: GruWeights,
    dev: bool = False,
    noise: ArrayLike | None = None,
    change: Callable[[Float], Float] | None = None,
) -> tuple[Float, Float, GruGates]:
    """One round of the recurrent router.

    Parameters
    ----------
    inp : ndarray of float64, shape (N, C)
    state : ndarray of float64, shape (N, R)
        State after the previous round; zero in a block's first round.
    weights : GruWeights
    dev : bool
        Leave the reset gate out of the candidate state.
    noise : ndarray of float64, shape (N, R), optional
        Uniform numbers in [0, 1); selects the variant with the fourth gate p.
    change : callable, optional
        What is done to the new state before it is used.

    Returns
    -------
    logits : ndarray of float64, shape (N, S)
    state : ndarray of float64, shape (N, R)
    gates : GruGates
        Saved for `gru_backward`.

    Notes
    -----
    With ``x = inp @ x2h.T + b`` and ``h = state @ h2h.T + b`` cut into gates: ``r = sigmoid(x_r + h_r)``,
    ``i = sigmoid(x_i + h_i)``, ``n = tanh(x_n + r * h_n)`` (``dev``: ``tanh(x_n)``),
    ``cell = n + i * (state - n)``. With noise u: ``p = sigmoid(x_p + h_p)``, new state
    ``p * (cell - u) + u``; else ``cell``. Logits are a linear map of the new state.
    """
    state = as_float("state", state, ("N", "R"))
    num_gates = 3 if noise is None else 4
    x = np.split(linear.forward(inp, weights.x2h_weight.T, weights.x2h_bias), num_gates, axis=-1)
    h = np.split(linear.forward(state, weights.h2h_weight.T, weights.h2h_bias), num_gates, axis=-1)
    r, i = _sigmoid(x[0] + h[0]), _sigmoid(x[1] + h[1])
    n = np.tanh(x[2]) if dev else np.tanh(x[2] + r * h[2])
    cell = n + i * (state - n)
    p, new = None, cell
    if noise is not None:
        noise = as_float("noise", noise, state.shape)
        p = _sigmoid(x[3] + h[3])
        new = p * (cell - noise) + noise
    new = new if change is None else change(new)
    logits = linear.forward(new, weights.router_weight.T, weights.router_bias)
    return logits, new, GruGates(r, i, n, h[2], p, cell, new)


def gru_backward(
    dlogits: Float,
    dstate: Float,
    inp: Float,
    state: Float,
    gates: GruGates,
    weights: GruWeights,
    dev: bool = False,
    noise: Float | None = None,
    change: Callable[[Float], Float] | None = None,
) -> tuple[Float, Float, GruWeights]:
    """Gradients of `gru_forward`.

    Parameters
    ----------
    dlogits : ndarray of float64, shape (N, S)
    dstate : ndarray of float64, shape (N, R)
        Gradient of the new state from the next round, zero in the last one.
    inp, state, gates, weights, dev, noise
        As in and from `gru_forward`; `state` is the state before the round.
    change : callable, optional
        The gradient before the change from the one after it.

    Returns
    -------
    dinp : ndarray of float64, shape (N, C)
    dstate : ndarray of float64, shape (N, R)
        For the previous round.
    dweights : GruWeights
    """
    dnew, drouter_weight, drouter_bias = linear.backward(dlogits, gates.state, weights.router_weight.T)
    dnew = dnew + dstate
    dnew = dnew if change is None else change(dnew)
    dcell, dp = dnew, []
    if noise is not None and gates.p is not None:
        dcell = dnew * gates.p
        dp = [dnew * (gates.cell - noise) * gates.p * (1.0 - gates.p)]
    di = dcell * (state - gates.n) * gates.i * (1.0 - gates.i)
    dn = dcell * (1.0 - gates.i) * (1.0 - gates.n**2)
    dr = np.zeros_like(dn) if dev else dn * gates.h_n * gates.r * (1.0 - gates.r)
    dh_n = np.zeros_like(dn) if dev else dn * gates.r
    dinp, dx2h_weight, dx2h_bias = linear.backward(np.concatenate([dr, di, dn, *dp], -1), inp, weights.x2h_weight.T)
    dbefore, dh2h_weight, dh2h_bias = linear.backward(
        np.concatenate([dr, di, dh_n, *dp], -1), state, weights.h2h_weight.T
    )
    dweights = GruWeights(dx2h_weight.T, dx2h_bias, dh2h_weight.T, dh2h_bias, drouter_weight.T, drouter_bias)
    return dinp, dbefore + dcell * gates.i, dweights


# ------------------------------------------------------------------ lengths
def norm_forward(inp: ArrayLike, weight: Float, bias: Float, modules: int) -> tuple[Float, Float]:
    """The length of each module's own projection of a token.

    Parameters
    ----------
    inp : ndarray of float64, shape (N, C)
    weight : ndarray of float64, shape (R, C)
        The first D = R // M rows belong to the first module, and so on; rows that are left over to none.
    bias : ndarray of float64, shape (S,)
    modules : int
        M; outputs from M on, which mean SKIP, are their bias.

    Returns
    -------
    logits : ndarray of float64, shape (N, S)
        ``|h_m| / sqrt(D) + bias_m``, with h_m the D projected values of module m.
    hidden : ndarray of float64, shape (N, R)
        All projected values, for `norm_backward`.
    """
    hidden = linear.forward(inp, weight.T, np.zeros(len(weight)))
    logits = np.tile(bias, (len(hidden), 1))
    parts = _by_module(hidden, modules)
    logits[:, :modules] += np.hypot.reduce(parts, axis=-1) / np.sqrt(max(parts.shape[-1], 1))  # hypot does not overflow
    return logits, hidden


def norm_backward(dlogits: Float, inp: Float, hidden: Float, weight: Float, modules: int) -> tuple[Float, Float, Float]:
    """Gradients dinp, dweight, dbias of `norm_forward`. A projection of length 0 passes no gradient."""
    parts = _by_module(hidden, modules)
    width = parts.shape[-1]
    length = np.hypot.reduce(parts, axis=-1)
    divisor = np.where(length > 0, length, 1.0) * np.sqrt(max(width, 1))
    factor = np.where(length > 0, dlogits[:, :modules] / divisor, 0.0)
    dhidden = np.zeros_like(hidden)
    dhidden[:, : modules * width] = (factor[..., None] * parts).reshape(len(hidden), modules * width)
    dinp, dweight, _ = linear.backward(dhidden, inp, weight.T)
    return dinp, dweight.T, dlogits.sum(0)


def _by_module(hidden: Float, modules: int) -> Float:
    width = hidden.shape[1] // max(modules, 1)
    return hidden[:, : modules * width].reshape(len(hidden), modules, width)


def _sigmoid(x: Float) -> Float:
    y: Float = 0.5 * (1.0 + np.tanh(0.5 * x))  # does not overflow
    return y


# ------------------------------------------------------------------ hash
class HashInputs(NamedTuple):
    """What decides the choices of a router that hashes."""

    tokens: Int  #: (N,) ids
    round: int  #: of the block
    half: int  #: 0 attention, 1 feed-forward
    modules: int  #: M
    choices: int  #: S, at least M; choices from M on stand for SKIP


def hash_forward(given: HashInputs) -> Float:
    """An order of the choices for each token, without gradient.

    Returns
    -------
    ndarray of float64, shape (N, S)
        The numbers 1 to S, the largest for the best choice. Those of modules are shuffled by a hash of token, round and
        half. SKIP comes after all modules.
    """
    values = np.tile(np.arange(given.choices, 0, -1.0), (len(given.tokens), 1))
    key = given.tokens.astype(np.uint64)  # from here on as mom_rng_key and mom_rng_u64 of the core
    for part, number in enumerate((1, given.round, given.half)):
        key = _mix(key + np.uint64((number * _GOLDEN + part) % 2**64))
    rows = np.arange(len(values))
    for i in range(given.modules - 1):
        draw = _mix(_mix(key + np.uint64(i * _GOLDEN % 2**64)) ^ key)
        j = i + (draw % np.uint64(given.modules - i)).astype(np.int64)
        values[rows, i], values[rows, j] = values[rows, j], values[rows, i]
    return values


_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64; products wrap around at 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# ------------------------------------------------------------------ scores
def scores_forward(logits: ArrayLike, temperature: float | None) -> Float:
    """``softmax(logits / temperature)`` over the last axis, or the logits themselves if it is None."""
    logits = as_float("logits", logits, ("...", "S"))
    if temperature is None:
        return logits
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not positive")
    z = logits / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    scores: Float = e / e.sum(-1, keepdims=True)
    return scores


def scores_backward(dscores: Float, scores: Float, temperature: float | None) -> Float:
    """Gradient of `scores_forward` with respect to the logits."""
    if temperature is None:
        return dscores
    dlogits: Float = scores * (dscores - (dscores * scores).sum(-1, keepdims=True)) / temperature
    return dlogits


# ------------------------------------------------------------------ selection
def top_k_forward(scores: ArrayLike, top_k: int, renormalise: bool) -> tuple[Int, Float]:
    """The K = min(top_k, S) best choices.

    Parameters
    ----------
    scores : ndarray of float64, shape (N, S)
    top_k : int
        At least 0.
    renormalise : bool
        Divide the kept scores by their sum (SKIP's included).

    Returns
    -------
    index : ndarray of int64, shape (N, K)
        In falling order of the scores; of equal scores the lower index comes first.
    weight : ndarray of float64, shape (N, K)
    """
    scores = as_float("scores", scores, ("N", "S"))
    if top_k < 0:
        raise ValueError(f"top_k: {top_k} is negative")
    index = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(scores, index, -1)
    return index, kept / kept.sum(-1, keepdims=True) if renormalise else kept


def top_k_backward(dweight: Float, scores: Float, index: Int, weight: Float, renormalise: bool) -> Float:
    """Gradient of the kept weights with respect to all scores (N, S). The selection counts as a constant.

    Entries of `index` that are no choice with a score get none. A row whose kept scores sum to 0 passes no gradient.
    """
    choices = scores.shape[1]
    known = (index >= 0) & (index < choices)
    at = np.where(known, index, 0)
    if renormalise:
        total = np.where(known, np.take_along_axis(scores, at, -1), 0.0).sum(-1, keepdims=True)
        dweight = (dweight - (dweight * weight).sum(-1, keepdims=True)) / np.where(total == 0.0, np.inf, total)
    dscores = np.zeros((len(scores), choices + 1))  # the last column is for what has no score
    np.put_along_axis(dscores, np.where(known, index, choices), dweight, -1)
    return dscores[:, :choices]


def sign_forward(weight: ArrayLike) -> Float:
    """Straight-through estimator, forward: the sign (0 of 0)."""
    return np.sign(np.asarray(weight, dtype=np.float64))


def sign_backward(dsign: Float) -> Float:
    """Straight-through estimator, backward: the gradient clamped to [-1, 1].

    It is applied once to every (token, choice, use), to the gradient summed over the features.
    """
    return np.clip(dsign, -1.0, 1.0)
