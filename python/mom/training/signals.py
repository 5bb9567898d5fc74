"""Ending a run by SIGTERM or Ctrl-C between two steps rather than within one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopSignals", "stop_signals"]


class StopSignals(list[str]):
    """Names of the signals that came, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block to be left anywhere: a signal is a `KeyboardInterrupt` in it, and so is one that came before."""
        self._at_once = True
        try:
            if self:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _arrived(self, name: str) -> None:
        self.append(name)
        if self._at_once:
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Collects SIGTERM and SIGINT instead of dying, in the main thread; a second signal acts as usual."""
    received = StopSignals()
    previous: dict[int, Any] = {}

    def handler(number: int, _frame: Any) -> None:
        signal.signal(number, previous[number])
        received._arrived(signal.Signals(number).name)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # A signal that is ignored (as in a background job) stays ignored; None is a handler not set by Python.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: signals are somebody else's business
        pass
    try:
        yield received
    finally:
        for changed, old in previous.items():
            signal.signal(changed, old)
