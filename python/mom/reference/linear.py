"""Affine map ``out = inp @ weight + bias`` with the weight stored [in, out], as in GPT-2."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from ._checks import Float, as_float


def forward(inp: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Float:
    """Affine map of the last axis.

    Parameters
    ----------
    inp : ndarray of float64, shape (..., I)
    weight : ndarray of float64, shape (I, O)
        Router and classification weights are stored [out, in]: pass their transpose.
    bias : ndarray of float64, shape (O,), optional

    Returns
    -------
    ndarray of float64, shape (..., O)
    """
    inp = as_float("inp", inp, ("...", "I"))
    weight = as_float("weight", weight, (inp.shape[-1], "O"))
    out = inp @ weight
    return out if bias is None else out + as_float("bias", bias, (weight.shape[1],))


def backward(dout: Float, inp: Float, weight: Float) -> tuple[Float, Float, Float]:
    """Gradients of `forward`.

    Returns
    -------
    dinp : ndarray of float64, shape (..., I)
        ``dout @ weight.T``.
    dweight : ndarray of float64, shape (I, O)
        ``inp.T @ dout`` over all rows.
    dbias : ndarray of float64, shape (O,)
    """
    n = math.prod(inp.shape[:-1])
    rows, drows = inp.reshape(n, inp.shape[-1]), dout.reshape(n, dout.shape[-1])
    return dout @ weight.T, rows.T @ drows, drows.sum(0)
