"""Linear layers of a pool of modules, on the slots of a routing plan. See docs/derivations/routed_linear.md.

- `gather_forward`: rows of tokens to rows of slots.
- `forward`: slots to slots, each with the weights of its module.
- `weighted_forward`: the same, times the score of each slot.
- `combine_forward`: slots to tokens, ``out[n] = sum over slots of n of score * (slot @ W_m + b_m)``.

Weights are sequences of M arrays [in, out]. Gradients of modules without slots are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import linear
from ._checks import Float, as_float
from .routing_plan import RoutingPlan


def gather_forward(inp: Float, plan: RoutingPlan) -> Float:
    """Rows of the tokens of all slots: (N, C) to (P, C)."""
    return as_float("inp", inp, (plan.num_tokens, "C"))[plan.token]


def gather_backward(dslots: Float, plan: RoutingPlan) -> Float:
    """Sum over the slots of each token: (P, C) to (N, C)."""
    dinp = np.zeros((plan.num_tokens, dslots.shape[1]))
    np.add.at(dinp, plan.token, dslots)
    return dinp


def forward(slots: Float, weight: Sequence[Float], bias: Sequence[Float], plan: RoutingPlan) -> Float:
    """``out[s] = slots[s] @ weight[m] + bias[m]`` for every slot s of module m.

    Parameters
    ----------
    slots : ndarray of float64, shape (P, I)
    weight : sequence of M ndarrays of float64, shape (I, O)
    bias : sequence of M ndarrays of float64, shape (O,)
    plan : RoutingPlan

    Returns
    -------
    ndarray of float64, shape (P, O)
    """
    slots = as_float("slots", slots, (plan.num_slots, weight[0].shape[0]))
    out = np.empty((plan.num_slots, weight[0].shape[1]))
    for m, rows in plan.modules():
        out[rows] = linear.forward(slots[rows], weight[m], bias[m])
    return out


def backward(
    dout: Float, slots: Float, weight: Sequence[Float], plan: RoutingPlan
) -> tuple[Float, list[Float], list[Float]]:
    """Gradients of `forward`: dslots (P, I), and per module dweight (I, O) and dbias (O,)."""
    dslots = np.empty_like(slots)
    dweight = [np.zeros_like(w) for w in weight]
    dbias = [np.zeros(w.shape[1]) for w in weight]
    for m, rows in plan.modules():
        dslots[rows], dweight[m], dbias[m] = linear.backward(dout[rows], slots[rows], weight[m])
    return dslots, dweight, dbias


def weighted_forward(
    slots: Float, weight: Sequence[Float], bias: Sequence[Float], score: Float | None, plan: RoutingPlan
) -> Float:
    """`forward` times the score of each slot, shape (P, O). Arguments as for `combine_forward`."""
    return _slot_scores(score, plan)[:, None] * forward(slots, weight, bias, plan)


def weighted_backward(
    drows: Float,
    slots: Float,
    weight: Sequence[Float],
    bias: Sequence[Float],
    score: Float | None,
    plan: RoutingPlan,
) -> tuple[Float, list[Float], list[Float], Float]:
    """Gradients of `weighted_forward` from `drows` (P, O); results as of `combine_backward`."""
    dscore = np.zeros((plan.num_tokens, plan.num_choices))
    for m, rows in plan.modules():
        out = linear.forward(slots[rows], weight[m], bias[m])
        dscore[plan.token[rows], plan.choice[rows]] = (drows[rows] * out).sum(-1)
    return *backward(_slot_scores(score, plan)[:, None] * drows, slots, weight, plan), dscore


def combine_forward(
    slots: Float, weight: Sequence[Float], bias: Sequence[Float], score: Float | None, plan: RoutingPlan
) -> Float:
    """Product, score and sum over the choices of each token.

    Parameters
    ----------
    slots : ndarray of float64, shape (P, I)
    weight, bias
        As in `forward`.
    score : ndarray of float64, shape (N, K), or None
        Factor of each choice; None stands for 1. Entries of SKIP are not read.
    plan : RoutingPlan

    Returns
    -------
    ndarray of float64, shape (N, O)
        Zero for tokens without slots.
    """
    return gather_backward(weighted_forward(slots, weight, bias, score, plan), plan)


def combine_backward(
    dout: Float,
    slots: Float,
    weight: Sequence[Float],
    bias: Sequence[Float],
    score: Float | None,
    plan: RoutingPlan,
) -> tuple[Float, list[Float], list[Float], Float]:
    """Gradients of `combine_forward`.

    Returns
    -------
    dslots : ndarray of float64, shape (P, I)
    dweight, dbias : lists of M ndarrays
    dscore : ndarray of float64, shape (N, K)
        Zero at SKIP. Also given when `score` is None.
    """
    return weighted_backward(dout[plan.token], slots, weight, bias, score, plan)


def _slot_scores(score: Float | None, plan: RoutingPlan) -> Float:
    if score is None:
        return np.ones(plan.num_slots)
    return as_float("score", score, (plan.num_tokens, plan.num_choices))[plan.token, plan.choice]
