"""Routing plans and routed layers."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .. import _core
from .._arguments import flag
from .._core import RoutingPlan
from .shared import Float, Partial

__all__ = [
    "routed_combine_backward", "routed_combine_forward", "routed_layernorm_backward", "routed_layernorm_forward",
    "routed_linear_backward", "routed_linear_forward", "routed_score_backward", "routed_slot_scale", "routing_plan",
    "routing_plan_dense",
]  # fmt: skip


def routing_plan(index: ArrayLike, num_modules: int) -> RoutingPlan:
    """Sort tokens by the modules they have chosen.

    Parameters
    ----------
    index : array of int, shape (N, K)
        Choices of every token, no module twice; at least `num_modules` means SKIP.
    num_modules : int
        M.

    Returns
    -------
    RoutingPlan
        With the read-only arrays ``offsets`` (M + 1,), ``counts`` (M,), ``token`` (P,), ``choice``
        (P,) and ``slot`` (N, K), all int32, and ``num_tokens``, ``num_choices``, ``num_modules``,
        ``num_slots``.

    Examples
    --------
    >>> import mom
    >>> plan = mom.ops.routing_plan([[1], [0], [2], [1]], num_modules=2)
    >>> plan.offsets.tolist(), plan.token.tolist(), plan.slot.ravel().tolist()
    ([0, 1, 3], [1, 0, 3], [1, 0, -1, 2])
    """
    return _core.routing_plan(index, num_modules)


def routing_plan_dense(num_tokens: int, num_modules: int) -> RoutingPlan:
    """Make the plan in which every token uses every module. Choice m of token t is slot ``m * N + t``.

    Parameters
    ----------
    num_tokens, num_modules : int

    Returns
    -------
    RoutingPlan
    """
    return _core.routing_plan_dense(num_tokens, num_modules)


def routed_linear_forward(
    inp: Float, weights: Float, biases: Float | None, plan: RoutingPlan, gathered: bool = True
) -> Float:
    """Multiply every slot by its module's weight and add the module's bias.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, In) or (P, In)
    weights : ndarray of float32, shape (M, In, Out)
    biases : ndarray of float32, shape (M, Out), or None
    plan : RoutingPlan
    gathered : bool
        Whether `inp` has a row per token (N), shared by the token's slots, or a row per slot (P).

    Returns
    -------
    ndarray of float32, shape (P, Out)
    """
    return _core.routed_linear_forward(inp, weights, biases, plan, gathered)


def routed_linear_backward(
    dout: Float,
    inp: Float,
    weights: Float,
    plan: RoutingPlan,
    gathered: bool = True,
    dout_gathered: bool = False,
    slot_scale: Float | None = None,
    *,
    add_to: Partial | None = None,
) -> tuple[Float, Float, Float]:
    """Gradients of `routed_linear_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (P, Out), or (N, Out) with `dout_gathered`
    inp, weights, plan, gathered
        As in `routed_linear_forward`.
    dout_gathered : bool
        `dout` has a row for every token.
    slot_scale : ndarray of float32, shape (P,), optional
        Multiplies the rows of `dout` in `dweights` and `dbiases` (not in `dinp`).
    add_to : tuple (dweights, dbiases), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (P, In)
        One row per slot in either case.
    dweights : ndarray of float32, shape (M, In, Out)
    dbiases : ndarray of float32, shape (M, Out)
    """
    return _core.routed_linear_backward(dout, inp, weights, plan, gathered, dout_gathered, slot_scale, add_to)


def routed_combine_forward(y: Float, weight: Float | None, plan: RoutingPlan, *, add_to: Float | None = None) -> Float:
    """Weighted sum of every token's slots.

    Parameters
    ----------
    y : ndarray of float32, shape (P, C)
    weight : ndarray of float32, shape (N, K), or None
        Factor of each choice; None stands for 1.
    plan : RoutingPlan
    add_to : ndarray of float32, shape (N, C), optional
        Added to the result.

    Returns
    -------
    ndarray of float32, shape (N, C)
    """
    return _core.routed_combine_forward(y, weight, plan, None if add_to is None else (add_to,))


def routed_combine_backward(dout: Float, y: Float, weight: Float | None, plan: RoutingPlan) -> tuple[Float, Float]:
    """Gradients of `routed_combine_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (N, C)
    y, weight, plan
        As in `routed_combine_forward`.

    Returns
    -------
    dweight : ndarray of float32, shape (N, K)
        0 at SKIP. Also returned if `weight` is None.
    dy : ndarray of float32, shape (P, C)
    """
    return _core.routed_combine_backward(dout, y, weight, plan)


def routed_slot_scale(weight: Float, plan: RoutingPlan) -> Float:
    """Rearrange the factors of choices by slot.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
    plan : RoutingPlan

    Returns
    -------
    ndarray of float32, shape (P,)
    """
    return _core.routed_slot_scale(weight, plan)


def routed_score_backward(
    dh: Float,
    h: Float,
    dout: Float,
    biases: Float,
    weight: Float | None,
    plan: RoutingPlan,
    h_gathered: bool = False,
    *,
    add_to: Float | None = None,
) -> tuple[Float, Float]:
    """Gradient of the factors of ``combine(linear(h), weight)``, computed without the output of the linear layer.

    It uses ``dout . (h @ W + b) = (dout @ W.T) . h + dout . b``, since ``dout @ W.T`` is needed anyway.

    Parameters
    ----------
    dh : ndarray of float32, shape (P, In)
        ``dout[token] @ W.T`` of every slot, not multiplied by its factor.
    h : ndarray of float32, shape (P, In), or (N, In) with `h_gathered`
    dout : ndarray of float32, shape (N, Out)
    biases : ndarray of float32, shape (M, Out)
    weight : ndarray of float32, shape (N, K), or None
    plan : RoutingPlan
    h_gathered : bool
    add_to : ndarray of float32, shape (N, K), optional
        Gradient so far.

    Returns
    -------
    dweight : ndarray of float32, shape (N, K)
    dh : ndarray of float32, shape (P, In)
        Multiplied by the factors.
    """
    so_far = None if add_to is None else (add_to,)
    return _core.routed_score_backward(dh, h, dout, biases, weight, plan, flag(h_gathered, "h_gathered"), so_far)


def routed_layernorm_forward(
    inp: Float, mean: Float, rstd: Float, weights: Float, biases: Float, plan: RoutingPlan
) -> Float:
    """Layer normalisation of every slot with its module's weight and bias.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, C)
    mean, rstd : ndarray of float32, shape (N,)
        From `layernorm_stats`. All modules share them.
    weights, biases : ndarray of float32, shape (M, C)
    plan : RoutingPlan

    Returns
    -------
    ndarray of float32, shape (P, C)
    """
    return _core.routed_layernorm_forward(inp, mean, rstd, weights, biases, plan)


def routed_layernorm_backward(
    dout: Float,
    inp: Float,
    mean: Float,
    rstd: Float,
    weights: Float,
    plan: RoutingPlan,
    *,
    add_to: Partial | None = None,
) -> tuple[Float, Float, Float]:
    """Gradients of `routed_layernorm_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (P, C)
    inp, mean, rstd, weights, plan
        As in `routed_layernorm_forward`.
    add_to : tuple (dinp, dweights, dbiases), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (N, C)
    dweights, dbiases : ndarray of float32, shape (M, C)
    """
    return _core.routed_layernorm_backward(dout, inp, mean, rstd, weights, plan, add_to)
