"""Losses of sequence classification: squared error, cross entropy, and binary cross entropy for several labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from . import cross_entropy
from ._checks import Float, as_float, as_int

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def problem_type(num_labels: int, labels: ArrayLike, stated: str | None = None) -> str:
    """`stated` if given; else regression for one output, single label for integers, multi-label otherwise."""
    if stated is not None:
        if stated not in PROBLEM_TYPES:
            raise ValueError(f"stated: {stated!r} is not one of {', '.join(map(repr, PROBLEM_TYPES))}")
        return stated
    if num_labels == 1:
        return "regression"
    return PROBLEM_TYPES[1] if np.asarray(labels).dtype.kind in "iu" else PROBLEM_TYPES[2]


def forward(logits: ArrayLike, labels: ArrayLike, kind: str) -> float:
    """Mean loss.

    Parameters
    ----------
    logits : ndarray of float64, shape (B, num_labels)
    labels : ndarray
        Regression: real, shape (B, num_labels), or (B,) for one output. Single label: int, shape
        (B,), -100 is left out. Multi-label: 0 to 1, shape (B, num_labels).
    kind : str
        One of `PROBLEM_TYPES`.
    """
    logits = as_float("logits", logits, ("B", "num_labels"))
    if kind == "single_label_classification":
        total, used, _ = cross_entropy.forward(logits, labels)
        return total / max(used, 1)
    target = _target(logits, labels)
    if kind == "regression":
        return float(((logits - target) ** 2).mean())
    return float((np.logaddexp(0.0, logits) - target * logits).mean())


def backward(dloss: float, logits: Float, labels: ArrayLike, kind: str) -> Float:
    """Gradient with respect to the logits, shape (B, num_labels)."""
    if kind == "single_label_classification":
        labels = as_int("labels", labels, (logits.shape[0],))
        _, used, lse = cross_entropy.forward(logits, labels)
        return cross_entropy.backward(dloss / max(used, 1), logits, labels, lse)
    target = _target(logits, labels)
    if kind == "regression":
        return dloss * 2.0 * (logits - target) / logits.size
    return dloss * (0.5 * (1.0 + np.tanh(0.5 * logits)) - target) / logits.size


def _target(logits: Float, labels: ArrayLike) -> Float:
    target = np.asarray(labels, dtype=np.float64)
    if logits.shape[1] == 1 and target.ndim == 1:
        target = target[:, None]
    return as_float("labels", target, logits.shape)
