"""Learning-rate schedules: functions that map the number of a step to a factor of the highest learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["cosine_schedule", "learning_rate_factor", "linear_schedule"]


def learning_rate_factor(
    kind: str, warmup: int, total: int, final: float = 0.0, ahead: int = 0
) -> Callable[[int], float]:
    """Factor of the learning rate at each step, counted from 0.

    Parameters
    ----------
    kind : {"cosine", "linear", "constant"}
        After the warm-up: half a cosine or a straight line to `final` at step `total`; or 1.
    warmup, total : int
        Steps of linear warm-up, and steps in all.
    final : float
        In [0, 1].
    ahead : int
        During the warm-up, use the learning rate of so many steps later. With 1, no step has a learning rate of 0.
    """
    if warmup < 0 or total < 1 or warmup > total:
        raise ValueError(f"warmup: {warmup} of {total} steps in all")
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final: {final} is not in [0, 1]")
    constant = kind == "constant"
    rise = warmup + (ahead if constant else 0)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + ahead) / rise
        if constant:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        shape = 0.5 * (1.0 + math.cos(math.pi * progress)) if kind == "cosine" else 1.0 - progress
        return final + (1.0 - final) * shape

    return factor


def cosine_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then half a cosine down to `final` at `total`."""
    return learning_rate_factor("cosine", warmup, total, final)


def linear_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then a straight line down to `final` at `total`."""
    return learning_rate_factor("linear", warmup, total, final)
