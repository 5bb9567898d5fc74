"""Causal multi-head attention with an optional key mask. See docs/derivations/attention.md.

A masked key is invisible. If the whole past of a query (itself included) is masked, the query sees no key. It then
attends with equal weights, and its output does not depend on any score. It attends:

- ``masked_query="causal"``: to the positions up to its own;
- ``masked_query="reference"``: to the positions up to its own and to every real position in its future. In the
  published model this happens because the most negative finite number is added twice.

Only the rows of masked tokens differ between the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import dropout
from ._checks import Bool, Float, as_float, check_shape


def visible(steps: int, key_mask: ArrayLike | None, masked_query: str = "causal") -> tuple[Bool, Bool]:
    """Which keys each query sees.

    Parameters
    ----------
    steps : int
        T.
    key_mask : ndarray, shape (B, T), or None
        Nonzero where the token is real.
    masked_query : {"causal", "reference"}

    Returns
    -------
    sees : ndarray of bool, shape (B or 1, T, T)
        ``sees[b, i, j]``: query i sees key j.
    blind : ndarray of bool, shape (B or 1, T)
        Queries with a fully masked past. They attend with equal weights to the keys in `sees`.
    """
    if masked_query not in ("causal", "reference"):
        raise ValueError(f"masked_query: {masked_query!r} is neither 'causal' nor 'reference'")
    past = np.tri(steps, dtype=bool)
    if key_mask is None:
        return past[None], np.zeros((1, steps), dtype=bool)
    real = np.asarray(key_mask)[:, None, :] != 0
    sees = past & real
    blind = ~sees.any(-1)
    for_blind = past | real if masked_query == "reference" else np.broadcast_to(past, sees.shape)
    return np.where(blind[:, :, None], for_blind, sees), blind


def forward(
    qkv: ArrayLike,
    n_head: int,
    key_mask: ArrayLike | None = None,
    masked_query: str = "causal",
    scaled: bool = True,
    keep: ArrayLike | None = None,
    p: float = 0.0,
    active: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> tuple[Float, Float]:
    """``out = dropout(softmax(q k^T * scale)) v`` in every head.

    Parameters
    ----------
    qkv : ndarray of float64, shape (B, T, 3C), or (N, 3C) with `lengths`
        Queries, keys and values side by side. A head is D = C/H neighbouring channels of each.
    n_head : int
        H.
    key_mask : ndarray, shape (B, T) or (N,), optional
        Nonzero where the token is real.
    masked_query : {"causal", "reference"}
        See the head of this file.
    scaled : bool
        Multiply scores by ``1 / sqrt(D)``.
    keep, p
        Dropout of the attention weights: mask of shape (B, H, T, T) and probability.
    active : ndarray, shape (B, T) or (N,), optional
        Nonzero where the token has a module. Other tokens have the constants ``q = k = v = 0``. Their output is not
        needed and is set to zero.
    lengths : array of int, shape (B,), optional
        Lengths of the sequences, N tokens in all, one sequence after the other. T is the greatest length.

    Returns
    -------
    out : ndarray of float64, shape (B, T, C) or (N, C)
    probs : ndarray of float64, shape (B, H, T, T)
        Attention weights before dropout, saved for `backward`; with `lengths` padded with zeros.
    """
    qkv = as_float("qkv", qkv, ("B", "T", "3C") if lengths is None else ("N", "3C"))
    if qkv.shape[-1] % (3 * n_head):
        raise ValueError(f"qkv: {qkv.shape[-1]} channels are not 3 * n_head ({n_head}) equal parts")
    if key_mask is not None:
        check_shape("key_mask", np.shape(key_mask), qkv.shape[:-1])
    if active is not None:
        check_shape("active", np.shape(active), qkv.shape[:-1])
    if lengths is not None:
        inside = _inside(lengths)
        qkv, key_mask, active = (_padded(x, inside) for x in (qkv, key_mask, active))
        out, probs = forward(qkv, n_head, key_mask, masked_query, scaled, keep, p, active)
        return out[inside], np.where(inside[:, None, :, None], probs, 0.0)
    qkv = _silenced(qkv, active)
    q, k, v = _split(qkv, n_head)
    sees, blind = visible(qkv.shape[1], key_mask, masked_query)
    scores = np.where(blind[:, None, :, None], 0.0, q @ k.swapaxes(-1, -2) * _scale(q, scaled))
    scores = np.where(sees[:, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return _silenced(_merge(dropout.forward(probs, keep, p) @ v), active), probs


def backward(
    dout: Float,
    qkv: Float,
    probs: Float,
    n_head: int,
    key_mask: ArrayLike | None = None,
    masked_query: str = "causal",
    scaled: bool = True,
    keep: ArrayLike | None = None,
    p: float = 0.0,
    active: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
) -> Float:
    """Gradient of `forward` with respect to `qkv`, shape (B, T, 3C) or (N, 3C)."""
    if lengths is not None:
        inside = _inside(lengths)
        dout, qkv, key_mask, active = (_padded(x, inside) for x in (dout, qkv, key_mask, active))
        return backward(dout, qkv, probs, n_head, key_mask, masked_query, scaled, keep, p, active)[inside]
    qkv, dout = _silenced(qkv, active), _silenced(dout, active)
    q, k, v = _split(qkv, n_head)
    _, blind = visible(qkv.shape[1], key_mask, masked_query)
    dheads = _heads(dout, n_head)
    dv = dropout.forward(probs, keep, p).swapaxes(-1, -2) @ dheads
    dprobs = dropout.backward(dheads @ v.swapaxes(-1, -2), keep, p)
    dscores = probs * (dprobs - (dprobs * probs).sum(-1, keepdims=True))
    # The weights of blind queries do not depend on the scores. But the reference adds a huge constant to the scores of
    # the past, and its autograd still passes a gradient to these scores.
    passes = np.tri(qkv.shape[1], dtype=bool) & (masked_query == "reference")
    dscores = np.where(blind[:, None, :, None] & ~passes, 0.0, dscores) * _scale(q, scaled)
    dqkv = np.concatenate([_merge(dscores @ k), _merge(dscores.swapaxes(-1, -2) @ q), _merge(dv)], axis=-1)
    return _silenced(dqkv, active)


def _silenced(x: Float, active: ArrayLike | None) -> Float:
    """Zeros in the rows of tokens without a module."""
    return x if active is None else np.where(np.asarray(active)[..., None] != 0, x, 0.0)


def _inside(lengths: ArrayLike) -> Bool:
    """Which positions of a padded batch (B, T) hold a token."""
    return np.arange(np.max(lengths)) < np.asarray(lengths)[:, None]


def _padded(rows: Any, inside: Bool) -> Any:
    """Rows of tokens (N, ...) as (B, T, ...), with zeros behind each sequence, which no token of it sees."""
    if rows is None:
        return None
    padded = np.zeros((*inside.shape, *np.shape(rows)[1:]))
    padded[inside] = rows
    return padded


def _scale(q: Float, scaled: bool) -> float:
    return 1.0 / np.sqrt(q.shape[-1]) if scaled else 1.0


def _heads(x: Float, n_head: int) -> Float:
    """(B, T, C) to (B, H, T, D)."""
    batch, steps, channels = x.shape
    return x.reshape(batch, steps, n_head, channels // n_head).swapaxes(1, 2)


def _merge(x: Float) -> Float:
    """(B, H, T, D) to (B, T, C)."""
    batch, heads, steps, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, steps, heads * width)


def _split(qkv: Float, n_head: int) -> tuple[Float, Float, Float]:
    q, k, v = np.split(qkv, 3, axis=-1)
    return _heads(q, n_head), _heads(k, n_head), _heads(v, n_head)
