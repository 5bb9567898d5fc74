"""Lets a signal end a run where nothing is left half done: Ctrl-C, SIGTERM, SIGHUP (a terminal that closes) or SIGUSR1
(sent by batch systems before they end a job)."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import _core
from ..distributed import current

__all__ = ["BrokenOff", "StopSignals", "stop_signals"]


#: Seconds in which further signals count as the same one, on several ranks.
_REPEATED = 2.0
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


class BrokenOff(KeyboardInterrupt):
    """A signal ends a computation that can be begun again; see `StopSignals.at_once`."""


class StopSignals(list[str]):
    """Names of the received signals, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.handled = False  #: whether the program has acted on them: a run was ended early, or was already at its end
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which a signal raises `BrokenOff` at once; so does a signal that came before the block."""
        self._at_once = True
        try:
            if self:
                raise BrokenOff
            yield
        finally:
            self._at_once = False

    def _arrived(self, name: str) -> None:
        self.append(name)
        if self._at_once:
            raise BrokenOff


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """In the main thread, collect signals (`_NAMES`) instead of ending the process. The next signal acts as usual.

    On several ranks, signals within the next seconds are ignored: the terminal and the launcher both send Ctrl-C.

    If the program has not acted on a signal when the block ends (see ``handled``), the signal is sent again.
    """
    received = StopSignals()
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, old in previous.items():
            signal.signal(number, old)

    several = current().size > 1
    first = math.inf  # when the first signal came

    def handler(number: int, _frame: Any) -> None:
        nonlocal first
        if several and received and time.monotonic() < first + _REPEATED:
            return
        if received or not several:
            restore()
        if received:
            signal.raise_signal(number)
            return
        first = time.monotonic()
        received._arrived(signal.Signals(number).name)

    try:
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                old = signal.getsignal(number)
                if old is signal.SIG_DFL and _core.has_signal_handler(number):
                    continue  # of another library, such as faulthandler
                # A signal that is ignored (as in a background job) stays ignored. None means a handler not set by
                # Python.
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
