"""Coupling loss of a linear router and its modules (after Lv et al., arXiv:2512.23447).

A row of the router's map stands for the tokens of its module, and shall excite this module more than the others.
See docs/derivations/coupling_loss.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from . import layernorm, linear
from ._checks import Float, as_float

#: Weight and bias of a layer.
Pair = tuple[Float, Float]


@dataclass(frozen=True)
class Saved:
    """What `forward` saves.

    They are the random factors (M, C), the proxies (M, C), and their means and reciprocal standard deviations (M,).
    By module they are the normalised proxies (M, C) and the outputs of the first layer (M, F).
    """

    delta: Float
    proxies: Float
    mean: Float
    rstd: Float
    normed: list[Float]
    excited: list[Float]

    @property
    def lengths(self) -> Float:
        """Length of the output of proxy i in module j, shape (M, M)."""
        return np.stack([np.linalg.norm(rows, axis=1) for rows in self.excited], axis=1)


def spread(rows: ArrayLike) -> Float:
    """How far the random factors of each row are from 1 at most, shape (M,).

    It is half of the distance to the nearest other row, relative to the row's length.

    Parameters
    ----------
    rows : ndarray of float64, shape (M, C)
    """
    rows = as_float("rows", rows, ("M", "C"))
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    length = np.linalg.norm(rows, axis=1)
    return np.where(length > 0, distances.min(1) / (2 * np.where(length > 0, length, 1.0)), 0.0)


def forward(
    rows: ArrayLike, delta: ArrayLike, norms: Sequence[Pair], layers: Sequence[Pair], eps: float = 1e-5
) -> tuple[float, Saved]:
    """Mean over pairs of modules of how much more a row excites a module that is not its own.

    Parameters
    ----------
    rows : ndarray of float64, shape (M, C)
        Of the router's map, for the modules.
    delta : ndarray of float64, shape (M, C)
        Random factors of the rows; 1 in evaluation.
    norms, layers : sequence of (weight, bias)
        LayerNorm (C,) and first layer (C, F) of each module.
    eps : float
        Of the LayerNorms.

    Returns
    -------
    loss : float
    saved : Saved
        For `backward`.
    """
    rows = as_float("rows", rows, ("M", "C"))
    delta = as_float("delta", delta, rows.shape)
    proxies, normed = rows * delta, []
    mean = rstd = np.empty(0)
    for weight, bias in norms:
        out, mean, rstd = layernorm.forward(proxies, weight, bias, eps)
        normed.append(out)
    excited = [linear.forward(inp, *layer) for inp, layer in zip(normed, layers, strict=True)]
    saved = Saved(delta, proxies, mean, rstd, normed, excited)
    lengths = saved.lengths
    own = np.diag(lengths)
    excess = np.maximum(lengths - own[:, None], 0.0) + np.maximum(lengths.T - own[:, None], 0.0)
    return float(excess.sum() / len(rows) ** 2), saved


def backward(
    dloss: float, saved: Saved, norms: Sequence[Pair], layers: Sequence[Pair]
) -> tuple[Float, list[Pair], list[Pair]]:
    """Gradients of `forward`; delta is a constant.

    Returns
    -------
    drows : ndarray of float64, shape (M, C)
    dnorms, dlayers : list of (dweight, dbias)
        By module.
    """
    lengths = saved.lengths
    own = np.diag(lengths)
    by_row, by_module = lengths > own[:, None], lengths > own[None]
    slope = by_row.astype(np.float64) + by_module
    np.fill_diagonal(slope, -(by_row.sum(1) + by_module.sum(0)).astype(np.float64))
    factor = dloss / len(own) ** 2 * slope / np.where(lengths > 0, lengths, np.inf)
    dproxies, dnorms, dlayers = np.zeros_like(saved.proxies), [], []
    for j, ((norm, _), (layer, _)) in enumerate(zip(norms, layers, strict=True)):
        dnormed, dweight, dbias = linear.backward(factor[:, j, None] * saved.excited[j], saved.normed[j], layer)
        dlayers.append((dweight, dbias))
        dinp, dweight, dbias = layernorm.backward(dnormed, saved.proxies, norm, saved.mean, saved.rstd)
        dnorms.append((dweight, dbias))
        dproxies += dinp
    return dproxies * saved.delta, dnorms, dlayers
