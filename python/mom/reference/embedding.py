"""Token and position embedding: ``out[b, t] = wte[tokens[b, t]] + wpe[t]``, or at other positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float, Int, as_float, as_int


def forward(tokens: ArrayLike, wte: ArrayLike, wpe: ArrayLike, positions: ArrayLike | None = None) -> Float:
    """Sum of the rows of both tables.

    Parameters
    ----------
    tokens : ndarray of int, shape (B, T), or of any shape with `positions`
        Ids in [0, V).
    wte : ndarray of float64, shape (V, C)
    wpe : ndarray of float64, shape (P, C)
        P is the longest sequence, T <= P.
    positions : ndarray of int, as `tokens`, optional
        Below P; 0 to T-1 by default.

    Returns
    -------
    ndarray of float64, shape (B, T, C) or (..., C)

    Raises
    ------
    ValueError
        If an id is out of range or the sequence is too long.
    """
    wte = as_float("wte", wte, ("V", "C"))
    wpe = as_float("wpe", wpe, ("P", wte.shape[1]))
    tokens = as_int("tokens", tokens, ("B", "T") if positions is None else ("...",))
    at = np.arange(tokens.shape[1]) if positions is None else as_int("positions", positions, tokens.shape)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= wte.shape[0]):
        raise ValueError(f"tokens: id outside [0, {wte.shape[0]})")
    if at.size and (at.min() < 0 or at.max() >= wpe.shape[0]):
        raise ValueError(f"tokens: {at.max() + 1} positions, at most {wpe.shape[0]} are possible")
    return wte[tokens] + wpe[at]


def backward(
    dout: Float, tokens: Int, vocab_size: int, n_positions: int, positions: Int | None = None
) -> tuple[Float, Float]:
    """Gradients of both tables.

    Parameters
    ----------
    dout : ndarray of float64, shape (B, T, C) or (..., C)
    tokens, positions
        As in `forward`.
    vocab_size, n_positions : int
        V and P.

    Returns
    -------
    dwte : ndarray of float64, shape (V, C)
        A row collects the gradients of all positions that hold its token.
    dwpe : ndarray of float64, shape (P, C)
    """
    dwte = np.zeros((vocab_size, dout.shape[-1]))
    np.add.at(dwte, tokens, dout)
    dwpe = np.zeros((n_positions, dout.shape[-1]))
    at = np.broadcast_to(np.arange(tokens.shape[-1]), tokens.shape) if positions is None else positions
    np.add.at(dwpe, at, dout)
    return dwte, dwpe
