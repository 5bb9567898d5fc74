"""AdamW and clipping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .shared import Float

__all__ = ["adamw_step", "clip_grad_norm"]


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
        The i-th entries of all four have the same shape.
    steps : array, shape (number of tensors,)
        Updates each tensor has had before this one.
    lr, betas, eps, weight_decay : float
    decay : array of bool, shape (number of tensors,), optional
        Whether weight decay applies to a tensor; to all by default.
    used : array of bool, shape (number of tensors,), optional
        A tensor that is not used has no gradient and does not change.
    grad_scale : float
        Factor of the gradients. The result has the same bits as with gradients multiplied before the call.

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
        The gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``, unless the norm is not finite.

    Returns
    -------
    grads : list of ndarray of float32
    norm : float
        Before scaling.
    """
    clipped = [np.array(grad, order="C") for grad in grads]
    return clipped, _core.clip_gradients(clipped, max_norm)
