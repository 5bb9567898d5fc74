"""Losses: cross entropy, the output head, classification."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .. import _core
from .shared import Float, Partial, is_bfloat16

__all__ = [
    "cross_entropy_backward", "cross_entropy_forward", "label_loss", "lm_head_backward", "lm_head_forward",
    "lm_head_gradient", "lm_head_loss",
]  # fmt: skip


def cross_entropy_forward(logits: Float, labels: ArrayLike) -> tuple[Float, Float]:
    """Cross entropy of every row, ``lse - logits[label]``.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, V)
    labels : array of int, shape (N,)
        In [0, V), or -100 for rows that are left out (their loss is 0).

    Returns
    -------
    loss : ndarray of float32, shape (N,)
    lse : ndarray of float32, shape (N,)
        Log-sum-exp of every row, saved for `cross_entropy_backward`.
    """
    return _core.cross_entropy_forward(logits, labels)


def cross_entropy_backward(logits: Float, lse: Float, labels: ArrayLike, scale: float = 1.0) -> Float:
    """``scale * (softmax(logits) - one_hot(labels))``, 0 for rows that are left out.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, V)
    lse : ndarray of float32, shape (N,)
        From `cross_entropy_forward`.
    labels : array of int, shape (N,)
    scale : float
        Gradient of every row's loss.

    Returns
    -------
    ndarray of float32, shape (N, V)
    """
    return _core.cross_entropy_backward(logits, lse, labels, scale)


def lm_head_forward(hidden: Float, wte: Float, labels: ArrayLike) -> tuple[float, Float]:
    """Sum of the cross entropies of ``hidden @ wte.T``, computed for labelled rows only.

    Parameters
    ----------
    hidden : ndarray of float32, shape (N, C)
    wte : ndarray of float32, shape (V, C)
    labels : array of int, shape (N,)
        In [0, V), or -100 for rows that are left out.

    Returns
    -------
    loss_sum : float
    lse : ndarray of float32, shape (number of labelled rows,)
        Saved for `lm_head_backward`.
    """
    lse, loss_sum = _core.lm_head_forward(hidden, wte, labels)
    return loss_sum, lse


def lm_head_backward(
    hidden: Float, wte: Float, lse: Float, labels: ArrayLike, scale: float = 1.0, *, add_to: Partial | None = None
) -> tuple[Float, Float]:
    """Gradients of `lm_head_forward`.

    Parameters
    ----------
    hidden, wte, lse, labels
        As there.
    scale : float
        Gradient of the sum.
    add_to : tuple (dhidden, dwte), optional
        Gradients so far.

    Returns
    -------
    dhidden : ndarray of float32, shape (N, C)
    dwte : ndarray of float32, shape (V, C)
    """
    return _core.lm_head_backward(hidden, wte, lse, labels, scale, add_to)


def lm_head_gradient(
    hidden: Float, wte: Float, labels: ArrayLike, *, precision: str = "float32"
) -> tuple[float, Float, Float]:
    """`lm_head_forward` and `lm_head_backward` of scale 1 in one pass that computes every logit once.

    Parameters
    ----------
    hidden, wte, labels
        As there.
    precision : {"float32", "bfloat16"}, optional
        Of the factors of products, probabilities included.

    Returns
    -------
    loss_sum : float
    dhidden : ndarray of float32, shape (N, C)
    dwte : ndarray of float32, shape (V, C)
    """
    dhidden, dwte, loss_sum = _core.lm_head_gradient(hidden, wte, labels, is_bfloat16(precision), False)
    return loss_sum, dhidden, dwte


def lm_head_loss(hidden: Float, wte: Float, labels: ArrayLike, *, precision: str = "float32") -> float:
    """Only the loss of `lm_head_gradient`, to the same bits.

    Parameters
    ----------
    hidden, wte, labels, precision
        As there.

    Returns
    -------
    float
    """
    return _core.lm_head_gradient(hidden, wte, labels, is_bfloat16(precision), True)


_LABEL_LOSSES = ("regression", "single_label_classification", "multi_label_classification")


def label_loss(logits: Float, labels: ArrayLike, kind: str, scale: float = 1.0) -> tuple[float, Float]:
    """Mean loss of sequence classification, and its gradient.

    Parameters
    ----------
    logits : ndarray of float32, shape (B, L)
    labels : array
        int (B,) with -100 for rows that are left out, for single labels; else ndarray of float32 (B, L).
    kind : {"regression", "single_label_classification", "multi_label_classification"}
        Squared error, cross entropy, or binary cross entropy of sigmoids.
    scale : float
        Multiplies the gradient.

    Returns
    -------
    loss : float
    dlogits : ndarray of float32, shape (B, L)
    """
    if kind not in _LABEL_LOSSES:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(map(repr, _LABEL_LOSSES))}")
    dlogits, loss = _core.label_loss(logits, labels, _LABEL_LOSSES.index(kind), scale)
    return loss, dlogits
