"""What a running sweep shows: a line for each process and one for the whole."""

from __future__ import annotations

import sys
import time
from typing import Any

from .._progress import bar, can_draw_bars

__all__ = ["Display"]

#: Without bars, a running trial is told of after so many seconds.
_SECONDS = 60.0


class Display:
    """Shows the progress on standard error: bars in a terminal or notebook, plain lines elsewhere.

    Parameters
    ----------
    total : int
        Trials in all.
    processes : int
    wanted : bool
        Whether anything is shown.
    """

    def __init__(self, total: int, processes: int, wanted: bool) -> None:
        self._total, self._done, self._failed, self._wanted = total, 0, 0, wanted
        self._told = [0.0] * processes
        self._bars: list[Any] = []
        if wanted and can_draw_bars():
            self._whole = bar(total=total, desc="trials", unit="trial", position=0)
            self._bars = [
                bar(total=1, desc="waiting", unit="step", position=place + 1, leave=False) for place in range(processes)
            ]
        elif wanted:
            self._say(f"sweep: {total} trials, {processes} at a time")

    def heard(self, place: int, message: dict[str, Any]) -> None:
        """A process has told something."""
        if not self._wanted or "end" in message:
            return
        if self._bars:
            self._draw(self._bars[place], message)
        elif "step" in message and time.monotonic() > self._told[place] + _SECONDS:
            self._told[place] = time.monotonic()
            self._say(f"[{place}] {message['what']}: step {message['step']}/{message['steps']} {_numbers(message)}")

    def started(self, place: int, label: str) -> None:
        """A trial begins."""
        self._told[place] = time.monotonic()
        if self._wanted and not self._bars:
            self._say(f"[{place}] {label}")

    def ended(self, place: int | None, label: str, words: str, done: bool, failed: bool) -> None:
        """A trial has ended; `words` say how."""
        self._done += done
        self._failed += failed
        failures = f", {self._failed} failed" if self._failed else ""
        if not self._wanted:
            return
        if self._bars:
            self._whole.update(done)
            self._whole.set_postfix_str(failures.strip(", "))
            if place is not None:
                self._bars[place].set_description("waiting")
                self._say(f"{label}: {words}")
        elif place is not None or failed:
            self._say(f"{label}: {words} ({self._done}/{self._total} done{failures})")

    def say(self, text: str) -> None:
        """A line about the whole."""
        if self._wanted:
            self._say(text)

    def grow(self, total: int) -> None:
        """There are more trials than it seemed."""
        self._total = total
        if self._bars:
            self._whole.total = total
            self._whole.refresh()

    def close(self) -> None:
        for drawn in self._bars:
            drawn.close()
        if self._bars:
            self._whole.close()

    def _draw(self, drawn: Any, message: dict[str, Any]) -> None:
        drawn.set_description(message["what"], refresh=False)
        if "step" in message:
            drawn.total = message["steps"]
            drawn.n = message["step"]
            drawn.set_postfix_str(_numbers(message), refresh=False)
        drawn.refresh()

    def _say(self, text: str) -> None:
        if self._bars:
            self._whole.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def _numbers(message: dict[str, Any]) -> str:
    parts = [("loss", message.get("loss")), ("val", message.get("val_loss"))]
    return " ".join(f"{name} {value:.4f}" for name, value in parts if value is not None)
