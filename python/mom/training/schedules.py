"""Learning-rate schedules: functions that map the number of a step to a factor of the highest learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["cosine_schedule", "exploration_schedule", "learning_rate_factor", "linear_schedule"]


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


def exploration_schedule(
    temperature: tuple[float, float], jitter: tuple[float, float], steps: float
) -> Callable[[int], tuple[float, float]]:
    """Temperature and jitter of routers at each step, counted from 0: from the first value of each to the second.

    They arrive after `steps` steps, the temperature by equal factors and the jitter by equal differences.
    """

    def at(step: int) -> tuple[float, float]:
        left = max(0.0, 1.0 - step / steps) if steps else 0.0
        return temperature[1] * (temperature[0] / temperature[1]) ** left, jitter[1] + (jitter[0] - jitter[1]) * left

    return at


def cosine_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then half a cosine down to `final` at `total`."""
    return learning_rate_factor("cosine", warmup, total, final)


def linear_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then a straight line down to `final` at `total`."""
    return learning_rate_factor("linear", warmup, total, final)
