"""What a run says about the claims of the paper, by rules that the report prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..sweep.comparing import t_interval

__all__ = [
    "CANNOT", "CONTRADICTS", "LEAST_ROUGE", "LOSS_MARGIN", "RULES", "SCORE_MARGIN", "SUPPORTS", "Interval", "better",
    "comparable", "equal", "fewer", "interval",
]  # fmt: skip

SUPPORTS, CONTRADICTS, CANNOT = "supports", "contradicts", "cannot decide"
#: Losses up to this share higher, and scores up to so many points lower, count as comparable.
LOSS_MARGIN, SCORE_MARGIN = 0.02, 1.0
#: Mean ROUGE in percent below which summaries say nothing.
LEAST_ROUGE = 1.0
#: Largest difference of losses between a GPT-2 and the same GPT-2 written as a MoM.
ROUNDING = 1e-4

RULES = (
    "Models with the same seed form a pair. The interval is that of Student's t for the mean of their differences, at "
    "95 %. A single seed has no interval, so it cannot decide.",
    "Better: the run supports the claim if the whole interval is on the better side of zero. It contradicts the claim "
    "if the whole interval is on the worse side. Otherwise it cannot decide.",
    f"Comparable: a loss may be up to {100 * LOSS_MARGIN:g} % higher, a score up to {SCORE_MARGIN:g} point lower. The "
    "run supports the claim if the whole interval is within this margin, and contradicts it if the whole interval is "
    "beyond the margin.",
    "A comparison needs models that have learned something. On unseen text, one of the two must have a lower loss than "
    "the frequencies of tokens give, and for pruning the whole model must. On GLUE, one of the two must have a higher "
    f"mean score than the majority class, and on XSUM a mean ROUGE of at least {LEAST_ROUGE:g}. Otherwise the run "
    "cannot decide.",
    "Fewer FLOPs or less memory: the run supports the claim if the whole interval is below zero, and contradicts it if "
    "the whole interval is above zero. The size of the saving stands beside that of the paper, whose models are "
    "larger. Memory follows from the shapes alone, so one seed decides.",
    f"One framework: the run supports the claim if each GPT-2, written as a MoM, has its own loss within {ROUNDING:g}, "
    "and contradicts it otherwise. This follows for each model alone, so one seed decides.",
)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes
    ----------
    mean, low, high : float
        The mean and its 95 % interval; the ends are NaN for one seed.
    n : int
        Number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interval(values: Sequence[float]) -> Interval:
    """The mean of values, one for each seed, and its interval."""
    n = len(values)
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    return Interval(mean, *t_interval(values), n)


def _decide(low: float, high: float, bound: float) -> str:
    """Whether all of an interval is below a bound: that supports the claim."""
    if high < bound:
        return SUPPORTS
    return CONTRADICTS if low > bound else CANNOT


def better(found: Interval, lower_is_better: bool) -> str:
    """A difference of the new model minus the old one, which should be on the better side of zero."""
    if not found.is_known:
        return CANNOT
    return _decide(found.low, found.high, 0.0) if lower_is_better else _decide(-found.high, -found.low, 0.0)


def comparable(found: Interval, margin: float, lower_is_better: bool) -> str:
    """A difference of the new model minus the old one, which should be worse by less than a margin."""
    if not found.is_known:
        return CANNOT
    return _decide(found.low, found.high, margin) if lower_is_better else _decide(-found.high, -found.low, margin)


def fewer(found: Interval, exact: bool = False) -> str:
    """A difference of work or memory, which should be below zero. `exact`: it does not depend on the seed."""
    if exact and found.n:
        return _decide(found.mean, found.mean, 0.0)
    return _decide(found.low, found.high, 0.0) if found.is_known else CANNOT


def equal(differences: Sequence[float]) -> str:
    """Differences that should be no more than rounding."""
    if not differences:
        return CANNOT
    return SUPPORTS if max(map(abs, differences)) <= ROUNDING else CONTRADICTS
