"""Linear layers and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from .. import _core
from .shared import Float, Partial, is_bfloat16

__all__ = ["GemmProduct", "column_sum", "gemm", "gemm_grouped", "linear_backward", "linear_forward"]


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


@dataclass(frozen=True)
class GemmProduct:
    """One matrix product ``op(a) @ op(b) + bias`` or ``c + op(a) @ op(b)``.

    Parameters
    ----------
    a, b : ndarray of float32
        Two-dimensional; op is the transpose if `transpose_a` or `transpose_b` is set.
    transpose_a, transpose_b : bool
    a_rows, b_rows : array of int, optional
        Stored rows to use, possibly repeated, before op.
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
        return tuple(vars(self).values())


def gemm(a: Float, b: Float, *, precision: str = "float32", prepack: bool = False, **options: Any) -> Float:
    """Matrix product; `options` are the other fields of `GemmProduct`.

    Parameters
    ----------
    a, b : ndarray of float32
        Shapes (m, k) and (k, n) after transposing and choosing rows.
    precision : {"float32", "bfloat16"}
        With ``"bfloat16"`` both factors are first rounded to it. Sums are float32 in either case.
    prepack : bool
        Pack `b` in a separate pass, as layers do with weights that several products use. The result has the same bits.

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
    given = list(products)
    for product in given:
        if not isinstance(product, GemmProduct):
            raise TypeError(f"products: expected GemmProduct, got {type(product).__name__}")
    return _core.gemm([product._fields() for product in given], is_bfloat16(precision), prepack)
