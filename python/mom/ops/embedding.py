"""Token and position embeddings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .shared import Float, Partial

__all__ = ["embedding_backward", "embedding_forward"]


def embedding_forward(
    tokens: ArrayLike,
    wte: Float,
    wpe: Float,
    positions: ArrayLike | None = None,
    *,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
) -> Float:
    """``wte[tokens] + wpe[positions]``, then dropout.

    Parameters
    ----------
    tokens : array of int, shape (..., T)
        Ids in [0, V).
    wte : ndarray of float32, shape (V, C)
    wpe : ndarray of float32, shape (P, C)
        P is the number of positions.
    positions : array of int, shape of `tokens`, optional
        In [0, P); by default 0 to T - 1.
    dropout, seed, counter, site
        See `dropout`.

    Returns
    -------
    ndarray of float32, shape (..., T, C)
    """
    at = _positions(tokens, positions)
    return _core.embedding_forward(tokens, at, wte, wpe, dropout, seed, counter, site)


def embedding_backward(
    dout: Float,
    tokens: ArrayLike,
    vocab_size: int,
    n_positions: int,
    positions: ArrayLike | None = None,
    *,
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
    add_to: Partial | None = None,
) -> tuple[Float, Float]:
    """Gradients of `embedding_forward` with respect to both tables.

    Parameters
    ----------
    dout : ndarray of float32, shape (..., T, C)
    tokens : array of int, shape (..., T)
    vocab_size, n_positions : int
        V and P.
    positions : array of int, shape of `tokens`, optional
    dropout, seed, counter, site
        As in `embedding_forward`.
    add_to : tuple (dwte, dwpe), optional
        Gradients so far.

    Returns
    -------
    dwte : ndarray of float32, shape (V, C)
    dwpe : ndarray of float32, shape (P, C)
    """
    at = _positions(tokens, positions)
    return _core.embedding_backward(dout, tokens, at, vocab_size, n_positions, dropout, seed, counter, site, add_to)


def _positions(tokens: ArrayLike, positions: ArrayLike | None) -> ArrayLike:
    if positions is not None:
        return positions
    shape = np.shape(tokens)
    return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)
