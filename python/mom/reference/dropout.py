"""Inverted dropout with a given mask: ``out = inp * keep / (1 - p)``."""

from __future__ import annotations

from numpy.typing import ArrayLike

from ._checks import Float, as_float


def forward(inp: ArrayLike, keep: ArrayLike | None, p: float) -> Float:
    """Zero the elements that are not kept and scale the others.

    Parameters
    ----------
    inp : ndarray of float64
    keep : ndarray of bool or 0/1, same shape, or None
        None stands for evaluation: the input is returned as it is.
    p : float
        Probability in [0, 1) of not being kept.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p: {p} is not in [0, 1)")
    inp = as_float("inp", inp, ("...",))
    return inp if keep is None else inp * (as_float("keep", keep, inp.shape) / (1.0 - p))


def backward(dout: Float, keep: ArrayLike | None, p: float) -> Float:
    """Gradient of `forward`: the same factors."""
    return forward(dout, keep, p)
