"""Every operator of the C core on plain NumPy arrays, forward and backward.

For notebooks, tests and experiments: each function is one call into C with the active level and
number of threads (see `use_level` and `mom.set_num_threads`).

Floating point arguments are ndarrays of float32, C-contiguous; nothing is converted silently.
Integer arguments (tokens, labels, indices) may have any integer dtype. Inputs are never modified.
Where the core *adds* a gradient, `add_to` takes the gradients so far (a tuple in the order of the
results, None for zero) and the results are those plus the new ones, in new arrays.

A wrong dtype raises ``TypeError``; a wrong shape, layout or value raises ``ValueError``; both name
the argument, what came and what was wanted.

Dimension letters: B batch, T sequence, N tokens, C channels, H heads, V vocabulary, M modules,
K choices per token, S router outputs (modules and SKIP), R router width, P slots of a routing plan
(one per choice that is a module).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from ._core import RoutingPlan

__all__ = [
    "GemmProduct",
    "RouterSaved",
    "RouterTensors",
    "RoutingPlan",
    "adamw_step",
    "attention_backward",
    "attention_forward",
    "balance_loss",
    "balance_loss_backward",
    "clip_grad_norm",
    "column_sum",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "gemm",
    "gemm_grouped",
    "label_loss",
    "layernorm_backward",
    "layernorm_forward",
    "layernorm_stats",
    "linear_backward",
    "linear_forward",
    "lm_head_backward",
    "lm_head_forward",
    "lm_head_gradient",
    "lm_head_loss",
    "random_uniform",
    "routed_combine_backward",
    "routed_combine_forward",
    "routed_layernorm_backward",
    "routed_layernorm_forward",
    "routed_linear_backward",
    "routed_linear_forward",
    "routed_score_backward",
    "routed_slot_scale",
    "router_backward",
    "router_forward",
    "router_scores_backward",
    "router_scores_forward",
    "routing_plan",
    "routing_plan_dense",
    "ste_backward",
    "ste_forward",
    "topk_backward",
    "topk_forward",
    "use_level",
]

Float = NDArray[np.float32]
Partial = tuple["Float | None", ...]  #: gradients so far, see `add_to` above


@contextmanager
def use_level(level: str) -> Iterator[None]:
    """Run the body of a ``with`` statement at an instruction-set level, then go back.

    The level belongs to the process, not to the thread.

    Parameters
    ----------
    level : str
        One of ``mom.cpu_info()["levels"]``.

    Examples
    --------
    >>> import numpy as np, mom
    >>> with mom.ops.use_level("baseline"):
    ...     mom.ops.gelu_forward(np.zeros(2, dtype=np.float32))
    array([0., 0.], dtype=float32)
    """
    previous = _core.set_cpu_level(level)
    try:
        yield
    finally:
        _core.set_cpu_level(previous)


# ------------------------------------------------------------------ layer normalisation
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


# ------------------------------------------------------------------ linear
def linear_forward(
    inp: Float, weight: Float, bias: Float | None = None, *, out_in: bool = False, add_to: Float | None = None
) -> Float:
    """``inp @ weight + bias``.

    Parameters
    ----------
    inp : ndarray of float32, shape (..., In)
    weight : ndarray of float32, shape (In, Out)
        (Out, In) with `out_in`.
    bias : ndarray of float32, shape (Out,), optional
    out_in : bool
        The weight is stored [out, in], as routers and heads do.
    add_to : ndarray of float32, shape (..., Out), optional
        Added to the result, e.g. a residual stream.

    Returns
    -------
    ndarray of float32, shape (..., Out)
    """
    return _core.linear_forward(inp, weight, bias, out_in, None if add_to is None else (add_to,))


def linear_backward(
    dout: Float, inp: Float, weight: Float, *, out_in: bool = False, add_to: Partial | None = None
) -> tuple[Float, Float, Float]:
    """Gradients of `linear_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (..., Out)
    inp : ndarray of float32, shape (..., In)
    weight : ndarray of float32, shape (In, Out)
        (Out, In) with `out_in`.
    out_in : bool
        As in `linear_forward`.
    add_to : tuple (dinp, dweight, dbias), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (..., In)
    dweight : ndarray of float32, shape of `weight`
    dbias : ndarray of float32, shape (Out,)
    """
    return _core.linear_backward(dout, inp, weight, out_in, add_to)


def column_sum(
    inp: Float, scale: Float | None = None, rows: ArrayLike | None = None, *, add_to: Float | None = None
) -> Float:
    """Sum over rows of ``scale[i] * inp[rows[i]]``.

    Parameters
    ----------
    inp : ndarray of float32, shape (R, C)
    scale : ndarray of float32, shape (N,), optional
        None stands for 1.
    rows : array of int, shape (N,), optional
        Rows of `inp`, by default all in order (N = R).
    add_to : ndarray of float32, shape (C,), optional
        Sum so far.

    Returns
    -------
    ndarray of float32, shape (C,)
    """
    return _core.column_sum(inp, scale, rows, None if add_to is None else (add_to,))


# ------------------------------------------------------------------ element-wise
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

    Applied to a gradient with the same numbers it is its own backward.

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


# ------------------------------------------------------------------ attention
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
        Queries, keys and values side by side; heads side by side in each.
    num_heads : int
        H, a divisor of C.
    mask : array, shape (B, T) or (N,), optional
        Nonzero where a key is real.
    scale : float, optional
        Multiplies the products of queries and keys; ``1 / sqrt(C / H)`` by default.
    masked_query : {"causal", "reference"}
        What a query attends to (evenly) when its whole past is masked: that past, or also the real
        keys of its future, as the published reference does.
    active : array, shape (B, T) or (N,), optional
        Nonzero where a token has a module. The others have ``q = k = v = 0`` whatever `qkv` holds: they keep their
        share of every softmax, as keys of score 0 and value 0, but are not computed as queries.
    queries : array, shape (B, T) or (N,), optional
        Nonzero where the output of a token is wanted. The others are keys like any other; their q is not read.
    lengths : array of int, shape (B,), optional
        Sequences of these lengths, one after the other without padding, are the rows of `qkv`. T is the longest.
    precision : {"float32", "bfloat16"}
        Format in which arrays are stored while computing: with "bfloat16" inputs are rounded first and so are the
        factors of products and the results. Softmax and sums are float32.
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
    how, bf16 = _masked_query(masked_query), _is_bfloat16(precision)
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
    how, bf16 = _masked_query(masked_query), _is_bfloat16(precision)
    return _core.attention_backward(
        dout, qkv, out, lse, num_heads, mask, active, queries, lengths, scale, how, bf16, dropout, seed, counter, site
    )


def _masked_query(value: str) -> bool:
    if value not in ("causal", "reference"):
        raise ValueError(f"masked_query: {value!r}, expected 'causal' or 'reference'")
    return value == "reference"


def _is_bfloat16(precision: str) -> bool:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision: {precision!r}, expected 'float32' or 'bfloat16'")
    return precision == "bfloat16"


# ------------------------------------------------------------------ losses
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
    dhidden, dwte, loss_sum = _core.lm_head_gradient(hidden, wte, labels, _is_bfloat16(precision), False)
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
    return _core.lm_head_gradient(hidden, wte, labels, _is_bfloat16(precision), True)


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


# ------------------------------------------------------------------ matrix products
@dataclass(frozen=True)
class GemmProduct:
    """One matrix product ``op(a) @ op(b) + bias`` or ``c + op(a) @ op(b)``.

    Parameters
    ----------
    a, b : ndarray of float32
        Two-dimensional; op is the transpose if `transpose_a` or `transpose_b` is set.
    transpose_a, transpose_b : bool
    a_rows, b_rows : array of int, optional
        Stored rows to use, with repetition, before op.
    bias : ndarray of float32, shape (n,), optional
        Left out when `c` is given.
    k_scale : ndarray of float32, shape (k,), optional
        Multiplies the rows of op(b).
    c : ndarray of float32, shape (m, n), optional
        Added to the product; it is not modified.
    """

    a: Float
    b: Float
    transpose_a: bool = False
    transpose_b: bool = False
    a_rows: ArrayLike | None = None
    b_rows: ArrayLike | None = None
    bias: Float | None = None
    k_scale: Float | None = None
    c: Float | None = None

    def _fields(self) -> tuple[Any, ...]:
        return (
            self.a,
            self.b,
            self.transpose_a,
            self.transpose_b,
            self.a_rows,
            self.b_rows,
            self.bias,
            self.k_scale,
            self.c,
        )


def gemm(a: Float, b: Float, *, precision: str = "float32", prepack: bool = False, **options: Any) -> Float:
    """Matrix product; `options` are the other fields of `GemmProduct`.

    Parameters
    ----------
    a, b : ndarray of float32
        Shapes (m, k) and (k, n) after transposing and choosing rows.
    precision : {"float32", "bfloat16"}
        In ``"bfloat16"`` both factors are rounded to it first; sums are float32 all the same.
    prepack : bool
        Pack `b` in a pass of its own, as the layers do with weights that serve several products; the same bits.

    Returns
    -------
    ndarray of float32, shape (m, n)

    Examples
    --------
    >>> import numpy as np, mom
    >>> mom.ops.gemm(np.eye(2, dtype=np.float32), np.ones((3, 2), dtype=np.float32), transpose_b=True)
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    return gemm_grouped([GemmProduct(a, b, **options)], precision=precision, prepack=prepack)[0]


def gemm_grouped(
    products: Sequence[GemmProduct], *, precision: str = "float32", prepack: bool = False
) -> list[Float]:
    """Independent matrix products of any sizes, which share the threads.

    Parameters
    ----------
    products : sequence of GemmProduct
    precision, prepack
        As in `gemm`.

    Returns
    -------
    list of ndarray of float32
    """
    return _core.gemm([product._fields() for product in products], _is_bfloat16(precision), prepack)


# ------------------------------------------------------------------ router
class RouterTensors(NamedTuple):
    """Parameters of a router (or their gradients), stored [out, in].

    G gates: 3 (reset, update, new), or 4 with the noise gate. A linear router has no state.
    """

    in_weight: Float  #: (R, C) linear, (G * R, C) recurrent
    in_bias: Float  #: (R,) or (G * R,)
    out_weight: Float  #: (S, R)
    out_bias: Float  #: (S,)
    state_weight: Float | None = None  #: (G * R, R), recurrent only
    state_bias: Float | None = None  #: (G * R,), recurrent only


class RouterSaved(NamedTuple):
    """What `router_forward` saves for `router_backward`."""

    hidden: Float  #: (N, R) linear: after the ReLU; recurrent: the new state
    gates: Float | None  #: (N, G * R) activated gates, recurrent only
    h_n: Float | None  #: (N, R) the state's part of the new gate, recurrent only


_ROUTERS = ("naive", "gru", "gru-dev")


def router_forward(
    inp: Float,
    weights: RouterTensors,
    kind: str,
    state: Float | None = None,
    *,
    random: bool = False,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
) -> tuple[Float, RouterSaved]:
    """One round of a router: logits of all choices for every token.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, C)
    weights : RouterTensors
    kind : {"naive", "gru", "gru-dev"}
        Two linear layers with a ReLU between, a recurrent cell over rounds, or that cell without its
        reset gate.
    state : ndarray of float32, shape (N, R), optional
        Recurrent state of the round before (``saved.hidden``); zero by default.
    random : bool
        Recurrent routers: the fourth gate mixes in uniform noise.
    seed, counter, site : int
        Stream of the noise; component j of token t is element ``t * R + j``, see `random_uniform`.

    Returns
    -------
    logits : ndarray of float32, shape (N, S)
    saved : RouterSaved

    Notes
    -----
    Recurrent, with ``x = inp @ in_weight.T + in_bias`` and ``h = state @ state_weight.T + state_bias`` cut
    into gates: ``r = sigmoid(x_r + h_r)``, ``i = sigmoid(x_i + h_i)``, ``n = tanh(x_n + r * h_n)``
    (``gru-dev``: ``tanh(x_n)``), ``new = n + i * (state - n)``; with noise u,
    ``p = sigmoid(x_p + h_p)`` and ``new = p * (new - u) + u``.
    """
    logits, hidden, gates, h_n = _core.router_forward(
        inp, _router_tensors(weights), _router_kind(kind), random, state, seed, counter, site
    )
    return logits, RouterSaved(hidden, gates, h_n)


def router_backward(
    dlogits: Float,
    inp: Float,
    saved: RouterSaved,
    weights: RouterTensors,
    kind: str,
    state: Float | None = None,
    dstate: Float | None = None,
    *,
    random: bool = False,
    seed: int = 0,
    counter: int = 0,
    site: int = 0,
    add_to: tuple[Float | None, RouterTensors | None] | None = None,
) -> tuple[Float, Float | None, RouterTensors]:
    """Gradients of `router_forward`.

    Parameters
    ----------
    dlogits : ndarray of float32, shape (N, S)
    inp : ndarray of float32, shape (N, C)
    saved : RouterSaved
    weights, kind, state, random, seed, counter, site
        As in `router_forward`.
    dstate : ndarray of float32, shape (N, R), optional
        Gradient of ``saved.hidden`` from the next round; zero by default.
    add_to : tuple (dinp, dweights), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (N, C)
    dstate : ndarray of float32, shape (N, R), or None
        Gradient of `state`; None if that was not given or the router has none.
    dweights : RouterTensors
    """
    so_far: Partial | None = None
    if add_to is not None:
        so_far = (add_to[0], *((None,) * 6 if add_to[1] is None else _router_tensors(add_to[1])))
    dinp, dbefore, *gradients = _core.router_backward(
        dlogits, inp, tuple(saved), dstate, _router_tensors(weights), _router_kind(kind), random, state, seed, counter,
        site, so_far,
    )  # fmt: skip
    in_weight, in_bias, state_weight, state_bias, out_weight, out_bias = gradients
    return dinp, dbefore, RouterTensors(in_weight, in_bias, out_weight, out_bias, state_weight, state_bias)


def _router_tensors(t: RouterTensors) -> tuple[Float | None, ...]:
    return (t.in_weight, t.in_bias, t.state_weight, t.state_bias, t.out_weight, t.out_bias)


def _router_kind(kind: str) -> int:
    if kind not in _ROUTERS:
        raise ValueError(f"kind: {kind!r}, expected one of {', '.join(map(repr, _ROUTERS))}")
    return _ROUTERS.index(kind)


def router_scores_forward(logits: Float, temperature: float | None = None) -> Float:
    """``softmax(logits / temperature)``, or the logits themselves without a temperature.

    Parameters
    ----------
    logits : ndarray of float32, shape (N, S)
    temperature : float, optional
        Positive.

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    softmax = temperature is not None
    return _core.router_scores_forward(logits, softmax, 1.0 if temperature is None else temperature)


def router_scores_backward(dscores: Float, scores: Float, temperature: float | None = None) -> Float:
    """Gradient of `router_scores_forward` with respect to the logits.

    Parameters
    ----------
    dscores, scores : ndarray of float32, shape (N, S)
        `scores` as returned by forward.
    temperature : float, optional

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    softmax = temperature is not None
    return _core.router_scores_backward(dscores, scores, softmax, 1.0 if temperature is None else temperature)


def topk_forward(scores: Float, k: int, renormalise: bool = False) -> tuple[NDArray[np.int16], Float]:
    """The k largest scores of every token.

    Parameters
    ----------
    scores : ndarray of float32, shape (N, S)
    k : int
        0 to S.
    renormalise : bool
        Divide the kept scores by their sum.

    Returns
    -------
    index : ndarray of int16, shape (N, k)
        In falling order of the scores; NaN counts as larger than every number.
    weight : ndarray of float32, shape (N, k)
        The kept scores.

    Notes
    -----
    Which of equal scores are kept follows, for S up to 64, the steps of C++'s ``std::nth_element``
    (as PyTorch does); above that, the lower index is kept.
    """
    return _core.topk_forward(scores, k, renormalise)


def topk_backward(
    dweight: Float,
    index: ArrayLike,
    weight: Float,
    scores: Float,
    renormalise: bool = False,
    *,
    add_to: Float | None = None,
) -> Float:
    """Gradient of the kept scores with respect to all; the selection is a constant.

    Parameters
    ----------
    dweight, weight : ndarray of float32, shape (N, K)
    index : array of int, shape (N, K)
    scores : ndarray of float32, shape (N, S)
    renormalise : bool
        As in `topk_forward`.
    add_to : ndarray of float32, shape (N, S), optional
        Gradient so far.

    Returns
    -------
    ndarray of float32, shape (N, S)
    """
    so_far = None if add_to is None else (add_to,)
    return _core.topk_backward(dweight, index, weight, scores, renormalise, so_far)


def ste_forward(weight: Float) -> Float:
    """Straight-through estimator: the sign, 0 for 0.

    Parameters
    ----------
    weight : ndarray of float32

    Returns
    -------
    ndarray of float32, shape of `weight`
    """
    return _core.ste_forward(weight)


def ste_backward(dout: Float) -> Float:
    """Gradient of `ste_forward`: the incoming one, clamped to [-1, 1].

    Parameters
    ----------
    dout : ndarray of float32

    Returns
    -------
    ndarray of float32, shape of `dout`
    """
    return _core.ste_backward(dout)


# ------------------------------------------------------------------ routing plans and routed layers
def routing_plan(index: ArrayLike, num_modules: int) -> RoutingPlan:
    """Sort tokens by the modules they have chosen.

    Parameters
    ----------
    index : array of int, shape (N, K)
        Choices of every token, no module twice; at least `num_modules` means SKIP.
    num_modules : int
        M.

    Returns
    -------
    RoutingPlan
        With the read-only arrays ``offsets`` (M + 1,), ``counts`` (M,), ``token`` (P,), ``choice``
        (P,) and ``slot`` (N, K), all int32, and ``num_tokens``, ``num_choices``, ``num_modules``,
        ``num_slots``.

    Examples
    --------
    >>> import mom
    >>> plan = mom.ops.routing_plan([[1], [0], [2], [1]], num_modules=2)
    >>> plan.offsets.tolist(), plan.token.tolist(), plan.slot.ravel().tolist()
    ([0, 1, 3], [1, 0, 3], [1, 0, -1, 2])
    """
    return _core.routing_plan(index, num_modules)


def routing_plan_dense(num_tokens: int, num_modules: int) -> RoutingPlan:
    """The plan by which every token uses every module; choice m of token t is slot ``m * N + t``.

    Parameters
    ----------
    num_tokens, num_modules : int

    Returns
    -------
    RoutingPlan
    """
    return _core.routing_plan_dense(num_tokens, num_modules)


def routed_linear_forward(
    inp: Float, weights: Float, biases: Float | None, plan: RoutingPlan, gathered: bool = True
) -> Float:
    """Every slot times its module's weight, plus its bias.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, In) or (P, In)
    weights : ndarray of float32, shape (M, In, Out)
    biases : ndarray of float32, shape (M, Out), or None
    plan : RoutingPlan
    gathered : bool
        `inp` has a row for every token (N), which its slots share; else a row for every slot (P).

    Returns
    -------
    ndarray of float32, shape (P, Out)
    """
    return _core.routed_linear_forward(inp, weights, biases, plan, gathered)


def routed_linear_backward(
    dout: Float,
    inp: Float,
    weights: Float,
    plan: RoutingPlan,
    gathered: bool = True,
    dout_gathered: bool = False,
    slot_scale: Float | None = None,
    *,
    add_to: Partial | None = None,
) -> tuple[Float, Float, Float]:
    """Gradients of `routed_linear_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (P, Out), or (N, Out) with `dout_gathered`
    inp, weights, plan, gathered
        As in `routed_linear_forward`.
    dout_gathered : bool
        `dout` has a row for every token.
    slot_scale : ndarray of float32, shape (P,), optional
        Multiplies the rows of `dout` in `dweights` and `dbiases` (not in `dinp`).
    add_to : tuple (dweights, dbiases), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (P, In)
        By slot in any case.
    dweights : ndarray of float32, shape (M, In, Out)
    dbiases : ndarray of float32, shape (M, Out)
    """
    return _core.routed_linear_backward(dout, inp, weights, plan, gathered, dout_gathered, slot_scale, add_to)


def routed_combine_forward(y: Float, weight: Float | None, plan: RoutingPlan, *, add_to: Float | None = None) -> Float:
    """Weighted sum of every token's slots.

    Parameters
    ----------
    y : ndarray of float32, shape (P, C)
    weight : ndarray of float32, shape (N, K), or None
        Factor of each choice; None stands for 1.
    plan : RoutingPlan
    add_to : ndarray of float32, shape (N, C), optional
        Added to the result.

    Returns
    -------
    ndarray of float32, shape (N, C)
    """
    return _core.routed_combine_forward(y, weight, plan, None if add_to is None else (add_to,))


def routed_combine_backward(dout: Float, y: Float, weight: Float | None, plan: RoutingPlan) -> tuple[Float, Float]:
    """Gradients of `routed_combine_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (N, C)
    y, weight, plan
        As in `routed_combine_forward`.

    Returns
    -------
    dweight : ndarray of float32, shape (N, K)
        0 at SKIP. Also given when `weight` is None.
    dy : ndarray of float32, shape (P, C)
    """
    return _core.routed_combine_backward(dout, y, weight, plan)


def routed_slot_scale(weight: Float, plan: RoutingPlan) -> Float:
    """The factors of choices, rearranged by slot.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
    plan : RoutingPlan

    Returns
    -------
    ndarray of float32, shape (P,)
    """
    return _core.routed_slot_scale(weight, plan)


def routed_score_backward(
    dh: Float,
    h: Float,
    dout: Float,
    biases: Float,
    weight: Float | None,
    plan: RoutingPlan,
    h_gathered: bool = False,
    *,
    add_to: Float | None = None,
) -> tuple[Float, Float]:
    """Gradient of the factors of ``combine(linear(h), weight)`` without that linear layer's output.

    ``dout . (h @ W + b) = (dout @ W.T) . h + dout . b``, and ``dout @ W.T`` is computed anyway.

    Parameters
    ----------
    dh : ndarray of float32, shape (P, In)
        ``dout[token] @ W.T`` of every slot, not multiplied by its factor.
    h : ndarray of float32, shape (P, In), or (N, In) with `h_gathered`
    dout : ndarray of float32, shape (N, Out)
    biases : ndarray of float32, shape (M, Out)
    weight : ndarray of float32, shape (N, K), or None
    plan : RoutingPlan
    h_gathered : bool
    add_to : ndarray of float32, shape (N, K), optional
        Gradient so far.

    Returns
    -------
    dweight : ndarray of float32, shape (N, K)
    dh : ndarray of float32, shape (P, In)
        Multiplied by the factors.
    """
    so_far = None if add_to is None else (add_to,)
    return _core.routed_score_backward(dh, h, dout, biases, weight, plan, h_gathered, so_far)


def routed_layernorm_forward(
    inp: Float, mean: Float, rstd: Float, weights: Float, biases: Float, plan: RoutingPlan
) -> Float:
    """Layer normalisation of every slot with its module's weight and bias.

    Parameters
    ----------
    inp : ndarray of float32, shape (N, C)
    mean, rstd : ndarray of float32, shape (N,)
        From `layernorm_stats`: modules share them.
    weights, biases : ndarray of float32, shape (M, C)
    plan : RoutingPlan

    Returns
    -------
    ndarray of float32, shape (P, C)
    """
    return _core.routed_layernorm_forward(inp, mean, rstd, weights, biases, plan)


def routed_layernorm_backward(
    dout: Float,
    inp: Float,
    mean: Float,
    rstd: Float,
    weights: Float,
    plan: RoutingPlan,
    *,
    add_to: Partial | None = None,
) -> tuple[Float, Float, Float]:
    """Gradients of `routed_layernorm_forward`.

    Parameters
    ----------
    dout : ndarray of float32, shape (P, C)
    inp, mean, rstd, weights, plan
        As in `routed_layernorm_forward`.
    add_to : tuple (dinp, dweights, dbiases), optional
        Gradients so far.

    Returns
    -------
    dinp : ndarray of float32, shape (N, C)
    dweights, dbiases : ndarray of float32, shape (M, C)
    """
    return _core.routed_layernorm_backward(dout, inp, mean, rstd, weights, plan, add_to)


# ------------------------------------------------------------------ balance loss
def balance_loss(
    scores: Sequence[Float],
    definition: str = "switch",
    depthwise: bool = False,
    *,
    probabilities: bool = True,
    mask: ArrayLike | None = None,
) -> float:
    """Load-balancing loss ``S * sum over choices of f * P`` over the score arrays of one half.

    f is the share of tokens whose best choice it is (no gradient) and P its mean probability.

    Parameters
    ----------
    scores : sequence of ndarray of float32, shape (N, S)
        One array per round.
    definition : {"switch", "reference"}
        ``"switch"``: P is the mean of the scores if they are probabilities, else of their softmax;
        ``"reference"``: of their softmax in any case, as the published model does.
    depthwise : bool
        The loss of every round, averaged, instead of f and P over all rounds together.
    probabilities : bool
        Whether the scores are probabilities (a softmax has been applied).
    mask : array, shape (N,), optional
        Nonzero for real tokens; others are left out of both means.

    Returns
    -------
    float

    References
    ----------
    Fedus et al., arXiv:2101.03961, equations 4 to 6.
    """
    groups = _balance_groups(scores, definition, depthwise, probabilities, mask)
    losses = [_core.balance_loss(g.counts, g.tokens, g.prob_sums, g.tokens) for g in groups]
    return float(sum(losses) / len(losses)) if losses else 0.0


def balance_loss_backward(
    scores: Sequence[Float],
    definition: str = "switch",
    depthwise: bool = False,
    *,
    probabilities: bool = True,
    mask: ArrayLike | None = None,
    dloss: float = 1.0,
    add_to: Sequence[Float | None] | None = None,
) -> list[Float]:
    """Gradients of `balance_loss` with respect to the scores.

    Parameters
    ----------
    scores, definition, depthwise, probabilities, mask
        As in `balance_loss`.
    dloss : float
        Gradient of the loss.
    add_to : sequence of ndarray of float32, shape (N, S), optional
        Gradients so far.

    Returns
    -------
    list of ndarray of float32, shape (N, S)
    """
    groups = _balance_groups(scores, definition, depthwise, probabilities, mask)
    softmax = _balance_softmax(definition, probabilities)
    so_far: Sequence[Float | None] = [None] * len(scores) if add_to is None else add_to
    if len(so_far) != len(scores):
        raise ValueError(f"add_to: {len(so_far)} entries, expected {len(scores)}")
    out = []
    for i, (s, g) in enumerate(zip(scores, so_far, strict=True)):
        group = groups[i if depthwise else 0]
        out.append(
            _core.balance_backward(
                s, mask, group.counts, group.tokens, group.tokens, dloss / len(groups), softmax, (g,)
            )
        )
    return out


class _BalanceGroup(NamedTuple):
    counts: NDArray[np.float64]
    prob_sums: NDArray[np.float64]
    tokens: float


def _balance_softmax(definition: str, probabilities: bool) -> bool:
    if definition not in ("switch", "reference"):
        raise ValueError(f"definition: {definition!r}, expected 'switch' or 'reference'")
    return definition == "reference" or not probabilities


def _balance_groups(
    scores: Sequence[Float], definition: str, depthwise: bool, probabilities: bool, mask: ArrayLike | None
) -> list[_BalanceGroup]:
    softmax = _balance_softmax(definition, probabilities)
    groups = [_BalanceGroup(*_core.balance_counts(s, mask, softmax)) for s in scores]
    if depthwise or len(groups) < 2:
        return groups
    if any(g.counts.shape != groups[0].counts.shape for g in groups):
        raise ValueError("scores: arrays differ in their number of choices, expected one number")
    counts, prob_sums, tokens = zip(*groups, strict=True)
    return [_BalanceGroup(np.sum(counts, axis=0), np.sum(prob_sums, axis=0), float(sum(tokens)))]


# ------------------------------------------------------------------ optimizer
def adamw_step(
    params: Sequence[Float],
    grads: Sequence[Float],
    exp_avg: Sequence[Float],
    exp_avg_sq: Sequence[Float],
    steps: ArrayLike,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-5,
    weight_decay: float = 0.1,
    decay: ArrayLike | None = None,
    used: ArrayLike | None = None,
    grad_scale: float = 1.0,
) -> tuple[list[Float], list[Float], list[Float], NDArray[np.float64]]:
    """One AdamW step for a list of tensors.

    Parameters
    ----------
    params, grads, exp_avg, exp_avg_sq : sequence of ndarray of float32
        Entries at one place have one shape.
    steps : array, shape (number of tensors,)
        Updates each tensor has had before this one.
    lr, betas, eps, weight_decay : float
    decay : array of bool, shape (number of tensors,), optional
        Whether weight decay applies to a tensor; to all by default.
    used : array of bool, shape (number of tensors,), optional
        A tensor that is not used has no gradient: nothing about it changes.
    grad_scale : float
        Gradients count times this, to the bits of gradients that were multiplied before.

    Returns
    -------
    params, exp_avg, exp_avg_sq : list of ndarray of float32
    steps : ndarray of float64

    References
    ----------
    Loshchilov and Hutter, arXiv:1711.05101.
    """
    new = [[np.array(array, order="C") for array in arrays] for arrays in (params, exp_avg, exp_avg_sq)]
    before = np.asarray(steps, dtype=np.float64)
    after = _core.adamw_step(
        new[0], list(grads), new[1], new[2], before, decay, used, lr, *betas, eps, weight_decay, grad_scale
    )
    return new[0], new[1], new[2], after


def clip_grad_norm(grads: Sequence[Float], max_norm: float) -> tuple[list[Float], float]:
    """Scale gradients so that their common norm is at most `max_norm`.

    Parameters
    ----------
    grads : sequence of ndarray of float32
    max_norm : float
        They are multiplied by ``min(1, max_norm / (norm + 1e-6))``, unless the norm is not finite.

    Returns
    -------
    grads : list of ndarray of float32
    norm : float
        Before scaling.
    """
    clipped = [np.array(grad, order="C") for grad in grads]
    return clipped, _core.clip_gradients(clipped, max_norm)
