"""Global norm of the gradients and clipping to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ._checks import Float


def norm(gradients: Mapping[str, Float]) -> float:
    """Euclidean norm over the elements of all gradients."""
    return float(np.sqrt(sum(float((g * g).sum()) for g in gradients.values())))


def clip(gradients: Mapping[str, Float], max_norm: float) -> tuple[dict[str, Float], float]:
    """Scale all gradients by ``min(1, max_norm / (norm + 1e-6))``.

    Returns
    -------
    clipped : dict of ndarray
    norm : float
        Before clipping.
    """
    total = norm(gradients)
    coefficient = min(1.0, max_norm / (total + 1e-6))
    return {name: coefficient * g for name, g in gradients.items()}, total
