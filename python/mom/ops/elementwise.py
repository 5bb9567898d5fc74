"""Layer normalisation, GELU, dropout and random numbers."""

from __future__ import annotations

from .. import _core
from .shared import Float, Partial

__all__ = [
    "dropout", "gelu_backward", "gelu_forward", "layernorm_backward", "layernorm_forward", "layernorm_stats",
    "random_uniform",
]  # fmt: skip


def layernorm_forward(inp: Float, weight: Float, bias: Float, eps: float = 1e-5) -> tuple[Float, Float, Float]:
    """Layer normalisation over the last axis, ``(inp - mean) * rstd * weight + bias``.

    Parameters
    ----------
    inp : ndarray of float32, shape (..., C)
    weight, bias : ndarray of float32, shape (C,)
    eps : float
        Added to the (biased) variance.

    Returns
    -------
    out : ndarray of float32, shape (..., C)
    mean, rstd : ndarray of float32, shape (...,)
        Saved for `layernorm_backward`.

    References
    ----------
    Ba et al. 2016, arXiv:1607.06450.
    """
    return _core.layernorm_forward(inp, weight, bias, eps)


def layernorm_stats(inp: Float, eps: float = 1e-5) -> tuple[Float, Float]:
    """Mean and reciprocal standard deviation of the last axis.

    Parameters
    ----------
    inp : ndarray of float32, shape (..., C)
    eps : float
        Added to the (biased) variance.

    Returns
    -------
    mean, rstd : ndarray of float32, shape (...,)
    """
    return _core.layernorm_stats(inp, eps)


def layernorm_backward(
    dout: Float, inp: Float, weight: Float, mean: Float, rstd: Float, *, add_to: Partial | None = None
) -> tuple[Float, Float, Float]:
    """Gradients of `layernorm_forward`.

    Parameters
    ----------
    dout, inp : ndarray of float32, shape (..., C)
    weight : ndarray of float32, shape (C,)
    mean, rstd : ndarray of float32, shape (...,)
        From `layernorm_forward`.
    add_to : tuple (dinp, dweight, dbias), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (..., C)
    dweight, dbias : ndarray of float32, shape (C,)
    """
    return _core.layernorm_backward(dout, inp, weight, mean, rstd, add_to)


def gelu_forward(inp: Float) -> Float:
    """GELU in its tanh form, ``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.

    Parameters
    ----------
    inp : ndarray of float32

    Returns
    -------
    ndarray of float32, shape of `inp`

    References
    ----------
    Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """
    return _core.gelu_forward(inp)


def gelu_backward(dout: Float, inp: Float) -> Float:
    """Gradient of `gelu_forward`.

    Parameters
    ----------
    dout, inp : ndarray of float32, one shape

    Returns
    -------
    ndarray of float32, the same shape
    """
    return _core.gelu_backward(dout, inp)


def dropout(inp: Float, p: float, seed: int = 0, counter: int = 0, site: int = 0) -> Float:
    """Zero elements with probability `p` and scale the others by ``1 / (1 - p)``.

    The same function, called with a gradient and the same random stream, is the backward pass.

    Parameters
    ----------
    inp : ndarray of float32
    p : float
        In [0, 1).
    seed, counter, site : int
        Name the stream of random numbers, modulo 2**64: see `random_uniform`.

    Returns
    -------
    ndarray of float32, shape of `inp`
    """
    return _core.dropout(inp, p, seed, counter, site)


def random_uniform(seed: int, counter: int, site: int, n: int) -> Float:
    """The first `n` numbers of a counter-based random stream.

    Element i of every random operation with the same three numbers uses draw i: dropout keeps
    element i when its draw is at least `p`; the noise of a recurrent router is the draw itself.

    Parameters
    ----------
    seed, counter, site : int
        Seed of the run, number of the step, and place in the network, modulo 2**64.
    n : int
        At least 0.

    Returns
    -------
    ndarray of float32, shape (n,)
        In [0, 1).
    """
    return _core.random_uniform(seed, counter, site, n)
