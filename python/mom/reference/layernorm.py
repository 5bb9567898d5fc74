"""Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450). See docs/derivations/layernorm.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float, as_float


def forward(inp: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float = 1e-5) -> tuple[Float, Float, Float]:
    """``out = (inp - mean) * rstd * weight + bias``.

    Parameters
    ----------
    inp : ndarray of float64, shape (..., C)
    weight, bias : ndarray of float64, shape (C,)
    eps : float
        Added to the (biased) variance.

    Returns
    -------
    out : ndarray of float64, shape (..., C)
    mean, rstd : ndarray of float64, shape (...,)
        Saved for `backward`.
    """
    inp = as_float("inp", inp, ("...", "C"))
    weight = as_float("weight", weight, (inp.shape[-1],))
    bias = as_float("bias", bias, (inp.shape[-1],))
    mean = inp.mean(-1)
    rstd = 1.0 / np.sqrt(inp.var(-1) + eps)
    return (inp - mean[..., None]) * rstd[..., None] * weight + bias, mean, rstd


def backward(dout: Float, inp: Float, weight: Float, mean: Float, rstd: Float) -> tuple[Float, Float, Float]:
    """Gradients of `forward`.

    Returns
    -------
    dinp : ndarray of float64, shape (..., C)
    dweight, dbias : ndarray of float64, shape (C,)
    """
    xhat = (inp - mean[..., None]) * rstd[..., None]
    g = weight * dout
    dinp = rstd[..., None] * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    rows = tuple(range(dout.ndim - 1))
    return dinp, (dout * xhat).sum(rows), dout.sum(rows)
