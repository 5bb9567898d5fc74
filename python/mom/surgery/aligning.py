"""Putting the neurons or heads of a module into the order of another one's.

A feed-forward module computes the same when its neurons change places, an attention module when its heads do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .._extras import need

__all__ = ["aligned", "distance"]

Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]


def distance(a: Tensors, b: Tensors) -> float:
    """Norm of the difference of all matrices of two modules, as a share of the norm of the first one's."""
    matrices = [short for short, tensor in a.items() if tensor.ndim == 2]
    square = sum(float(((a[short].astype(np.float64) - b[short]) ** 2).sum()) for short in matrices)
    own = sum(float((a[short].astype(np.float64) ** 2).sum()) for short in matrices)
    return float(np.sqrt(square / own)) if own else 0.0


def aligned(target: Tensors, moved: Tensors, heads: int) -> dict[str, Floats]:
    """The tensors of the second module, its neurons or heads in the order in which they are most like the first one's.

    Likeness is the inner product of all weights of a neuron or head. The best order is found by the Hungarian method.

    Parameters
    ----------
    target, moved : mapping
        Tensors by short name, as `mom.Module.parameters`.
    heads : int
        Of an attention module.
    """
    attention = "c_attn.weight" in target
    parts = _heads if attention else _neurons
    a, b = (parts(tensors, heads) for tensors in (target, moved))
    assign = need("scipy.optimize", "the alignment of neurons and heads", "scipy").linear_sum_assignment
    order = assign(-(a @ b.T))[1]
    result = dict(moved)
    if attention:
        width = len(moved["c_proj.weight"]) // heads
        rows = (order[:, None] * width + np.arange(width)).reshape(-1)
        columns = (np.arange(3)[:, None] * len(rows) + rows).reshape(-1)
        result["c_attn.weight"] = moved["c_attn.weight"][:, columns]
        result["c_attn.bias"] = moved["c_attn.bias"][columns]
        result["c_proj.weight"] = moved["c_proj.weight"][rows]
    else:
        result["c_fc.weight"], result["c_fc.bias"] = moved["c_fc.weight"][:, order], moved["c_fc.bias"][order]
        result["c_proj.weight"] = moved["c_proj.weight"][order]
    return result


def _neurons(tensors: Tensors, heads: int) -> NDArray[np.float64]:
    """All weights of each neuron, shape (F, 2 C + 1)."""
    parts = (tensors["c_fc.weight"].T, tensors["c_fc.bias"][:, None], tensors["c_proj.weight"])
    return np.concatenate(parts, axis=1).astype(np.float64)


def _heads(tensors: Tensors, heads: int) -> NDArray[np.float64]:
    """All weights of each head, shape (H, 4 C D + 3 D)."""
    width, out = tensors["c_attn.weight"], tensors["c_proj.weight"]
    by_head = width.T.reshape(3, heads, -1).transpose(1, 0, 2).reshape(heads, -1)
    biases = tensors["c_attn.bias"].reshape(3, heads, -1).transpose(1, 0, 2).reshape(heads, -1)
    return np.concatenate([by_head, biases, out.reshape(heads, -1)], axis=1).astype(np.float64)
