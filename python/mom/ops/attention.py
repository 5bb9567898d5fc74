"""Causal attention."""

from __future__ import annotations

from numpy.typing import ArrayLike

from .. import _core
from .shared import Float, is_bfloat16

__all__ = ["attention_backward", "attention_forward", "attention_probabilities"]


def attention_forward(
    qkv: Float,
    num_heads: int,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    masked_query: str = "causal",
    *,
    active: ArrayLike | None = None,
    queries: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    precision: str = "float32",
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
) -> tuple[Float, Float]:
    """Causal multi-head self-attention over mixed queries, keys and values.

    Parameters
    ----------
    qkv : ndarray of float32, shape (B, T, 3C), or (N, 3C) with `lengths`
        Queries, keys and values side by side. In each of the three, the heads are side by side.
    num_heads : int
        H, a divisor of C.
    mask : array, shape (B, T) or (N,), optional
        Nonzero where a key is real.
    scale : float, optional
        Multiplies the products of queries and keys; ``1 / sqrt(C / H)`` by default.
    masked_query : {"causal", "reference"}
        What a query attends to, with equal weights, when its whole past is masked: ``"causal"``, its past;
        ``"reference"``, also the real keys of its future, as in the published reference.
    active : array, shape (B, T) or (N,), optional
        Nonzero where a token has a module. Other tokens have ``q = k = v = 0``, whatever `qkv` holds. They count in
        every softmax as keys with score 0 and value 0, but are not computed as queries.
    queries : array, shape (B, T) or (N,), optional
        Nonzero where the output of a token is wanted. Other tokens are still keys, but their queries are not read.
    lengths : array of int, shape (B,), optional
        Lengths of the sequences. The rows of `qkv` are then the tokens of all sequences, one after the other without
        padding. T is the greatest length.
    precision : {"float32", "bfloat16"}
        Format of the arrays during the computation. With ``"bfloat16"`` inputs, factors of products and results are
        rounded to it. Softmax and sums are float32.
    dropout, seed, counter, site
        Dropout of the attention weights; weight (b, h, i, j) is element
        ``((b * H + h) * T + i) * T + j`` of the stream, see `random_uniform`.

    Returns
    -------
    out : ndarray of float32, shape (B, T, C) or (N, C)
        Zero where a token is not active or not among `queries`.
    lse : ndarray of float32, shape (B, T, H) or (N, H)
        Logarithm of each softmax's denominator, saved for `attention_backward`.
    """
    how, bf16 = _masked_query(masked_query), is_bfloat16(precision)
    return _core.attention_forward(
        qkv, num_heads, mask, active, queries, lengths, scale, how, bf16, dropout, seed, counter, site
    )


def attention_backward(
    dout: Float,
    qkv: Float,
    out: Float,
    lse: Float,
    num_heads: int,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    masked_query: str = "causal",
    *,
    active: ArrayLike | None = None,
    queries: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    precision: str = "float32",
    dropout: float = 0.0,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
) -> Float:
    """Gradient of `attention_forward` with respect to `qkv`.

    Parameters
    ----------
    dout, out : ndarray of float32, shape (B, T, C) or (N, C)
    qkv : ndarray of float32, shape (B, T, 3C) or (N, 3C)
    lse : ndarray of float32, shape (B, T, H) or (N, H)
        From `attention_forward`.
    num_heads, mask, scale, masked_query, active, queries, lengths, precision, dropout, seed, counter, site
        As in `attention_forward`. `dout` is not read where a token is not among `queries`.

    Returns
    -------
    ndarray of float32, shape (B, T, 3C) or (N, 3C)
        Zero where a token is not active; zero for q where it is not among `queries`.
    """
    how, bf16 = _masked_query(masked_query), is_bfloat16(precision)
    return _core.attention_backward(
        dout, qkv, out, lse, num_heads, mask, active, queries, lengths, scale, how, bf16, dropout, seed, counter, site
    )


def attention_probabilities(
    qkv: Float,
    num_heads: int,
    mask: ArrayLike | None = None,
    scale: float | None = None,
    masked_query: str = "causal",
    *,
    rows: ArrayLike,
    active: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    precision: str = "float32",
) -> Float:
    """The probabilities with which the queries of some sequences attend to keys, without dropout.

    Parameters
    ----------
    qkv, num_heads, mask, scale, masked_query, active, lengths, precision
        As in `attention_forward`.
    rows : array of int, shape (R,)
        Sequences.

    Returns
    -------
    ndarray of float32, shape (R, H, T, T)
        Query by key. Rows of queries that are not active, or beyond the end of a sequence, are 0.
    """
    how, bf16 = _masked_query(masked_query), is_bfloat16(precision)
    return _core.attention_probabilities(
        qkv, rows, num_heads, mask, active, None, lengths, scale, how, bf16, 0.0, 0, 0, 0
    )


def _masked_query(value: str) -> bool:
    if value not in ("causal", "reference"):
        raise ValueError(f"masked_query: {value!r}, expected 'causal' or 'reference'")
    return value == "reference"
