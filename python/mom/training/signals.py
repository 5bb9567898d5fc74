"""Ending a run by SIGTERM or Ctrl-C between two steps rather than within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopSignals", "stop_signals"]


class StopSignals(list[str]):
    """Names of the signals that came, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.handled = False  #: whether somebody has acted on them: a run has been broken off, or was at its end
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
    """Collects SIGTERM and SIGINT instead of dying, in the main thread; the next signal acts as usual.

    One that nobody has acted on when the block ends (see ``handled``) is sent again.
    """
    received = StopSignals()
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, old in previous.items():
            signal.signal(number, old)

    def handler(number: int, _frame: Any) -> None:
        restore()
        received._arrived(signal.Signals(number).name)

    try:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals are somebody else's business
            for number in (signal.SIGTERM, signal.SIGINT):
                old = signal.getsignal(number)
                # One that is ignored (as in a background job) stays ignored; None is a handler not set by Python.
                if old not in (signal.SIG_IGN, None):
                    previous[number] = old
                    signal.signal(number, handler)
        yield received
    except BaseException:
        received.handled = True
        raise
    finally:
        restore()
    if received and not received.handled:
        signal.raise_signal(signal.Signals[received[0]])
