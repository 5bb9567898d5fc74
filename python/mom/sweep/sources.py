"""Where a sweep's trials come from: a list, or a sampler that looks at the results so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from .trial import Trial

__all__ = ["Listed", "Source"]


class Source(Protocol):
    """Gives trials, and hears how they ended."""

    @property
    def total(self) -> int:
        """How many trials there are in all, as far as it is known."""

    def next(self) -> Trial | None:
        """The next trial; None if there is none now."""

    def ended(self, trial: Trial, done: dict[str, Any] | None) -> None:
        """A trial has ended: the content of its ``done.json``, or None if it failed."""

    @property
    def is_over(self) -> bool:
        """Whether there will be no more trials."""


class Listed:
    """The trials of a list, in its order."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.total = len(trials)
        self._left = deque(trials)

    def next(self) -> Trial | None:
        return self._left.popleft() if self._left else None

    def ended(self, trial: Trial, done: dict[str, Any] | None) -> None:
        """Nothing follows from a result."""

    @property
    def is_over(self) -> bool:
        return not self._left
