"""GELU in the tanh form that GPT-2 uses (Hendrycks and Gimpel 2016, arXiv:1606.08415). See docs/derivations/gelu.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float

_SCALE = np.sqrt(2.0 / np.pi)
_CUBIC = 0.044715


def forward(inp: ArrayLike) -> Float:
    """``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``, element by element."""
    x = np.asarray(inp, dtype=np.float64)
    out: Float = 0.5 * x * (1.0 + np.tanh(_SCALE * (x + _CUBIC * x**3)))
    return out


def backward(dout: Float, inp: Float) -> Float:
    """Gradient of `forward` with respect to its input."""
    t = np.tanh(_SCALE * (inp + _CUBIC * inp**3))
    slope = 0.5 * (1.0 + t) + 0.5 * inp * (1.0 - t * t) * _SCALE * (1.0 + 3.0 * _CUBIC * inp**2)
    dinp: Float = dout * slope
    return dinp
