"""Cross entropy of integer labels; a label of -100 is left out. See docs/derivations/cross_entropy.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float, Int, as_float, as_int

IGNORED = -100


def forward(logits: ArrayLike, labels: ArrayLike) -> tuple[float, int, Float]:
    """Sum of ``logsumexp(logits[n]) - logits[n, labels[n]]`` over the labelled rows.

    Parameters
    ----------
    logits : ndarray of float64, shape (N, V)
    labels : ndarray of int, shape (N,)
        Class in [0, V), or -100.

    Returns
    -------
    total : float
        The sum; the mean over labelled rows is ``total / count``.
    count : int
        Number of labelled rows.
    lse : ndarray of float64, shape (N,)
        Log-sum-exp of every row, saved for `backward`.
    """
    logits = as_float("logits", logits, ("N", "V"))
    labels = as_int("labels", labels, (logits.shape[0],))
    used = labels != IGNORED
    if np.any((labels[used] < 0) | (labels[used] >= logits.shape[1])):
        raise ValueError(f"labels: value outside [0, {logits.shape[1]}) other than {IGNORED}")
    top = logits.max(-1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    return float((lse[used] - logits[used, labels[used]]).sum()), int(used.sum()), lse


def backward(dtotal: float, logits: Float, labels: Int, lse: Float) -> Float:
    """Gradient with respect to the logits, shape (N, V).

    Parameters
    ----------
    dtotal : float
        Gradient of the sum; for the mean loss pass ``dloss / max(count, 1)``.
    logits, labels, lse
        As in and from `forward`.
    """
    used = np.flatnonzero(labels != IGNORED)
    dlogits = np.zeros_like(logits)
    dlogits[used] = np.exp(logits[used] - lse[used, None])
    dlogits[used, labels[used]] -= 1.0
    return dtotal * dlogits
