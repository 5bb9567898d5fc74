"""Long calls of the ``tokenizers`` library, and how a signal ends them.

Python runs the handlers of signals in the main thread, between its own steps. The library does not return before its
call is done, so Ctrl-C would wait for the end of the call. There are two ways out. Many texts are cut into calls of a
few hundredths of a second, see `groups`. What cannot be cut runs in a thread of its own while the main thread waits for
it, see `interruptible`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["LONGEST_CALL", "Stopped", "groups", "interruptible"]

Result = TypeVar("Result")


def _workers() -> int:
    """Threads of the library, which reads the same variables."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("off", "false", "f", "no", "n", "0"):
        return 1
    number = os.environ.get("RAYON_NUM_THREADS", "")
    return int(number) if number.isdecimal() and int(number) else os.cpu_count() or 1


#: Characters of one call. A thread of the library encodes more than a million characters per second, so a call takes
#: about 0.05 s. Every thread gets a piece of `mom.data.Documents`.
LONGEST_CALL = (1 << 16) * min(16, _workers())
#: How long the main thread sleeps between two looks for signals, and waits for a call that shall end.
_INTERVAL, _PATIENCE = 0.05, 0.1


class Stopped(Exception):
    """Raised within a call of `interruptible` because nobody waits for its result any more."""


def groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of at most `LONGEST_CALL` characters together. A longer text is alone in its list."""
    group: list[str] = []
    held = 0
    for text in texts:
        if group and held + len(text) > LONGEST_CALL:
            yield group
            group, held = [], 0
        group.append(text)
        held += len(text)
    if group:
        yield group


def interruptible(call: Callable[[Callable[[], None]], Result]) -> Result:
    """Run a long call so that a signal can end the waiting for it.

    Parameters
    ----------
    call : callable
        Gets a function that raises `Stopped` when nobody waits any more. What the call runs in Python should call it
        now and then. The part that runs in the library cannot be stopped: it goes on in the background, and its result
        is dropped.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads do not handle signals
        return call(lambda: None)
    done, stopped = threading.Event(), threading.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    def run() -> None:
        try:
            results.append(call(check))
        except BaseException as error:  # a panic of the library is no Exception; the main thread raises it again
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="mom-tokenizer", daemon=True).start()
    try:
        while not done.wait(_INTERVAL):
            pass
    except BaseException:
        stopped.set()
        done.wait(_PATIENCE)
        raise
    if errors:
        raise errors[0]
    return results[0]
