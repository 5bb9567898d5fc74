"""Work in forks of this process. A fork returns a result, or is killed; meanwhile it can tell its parent numbers."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: A child that takes longer than this hangs.
PATIENCE = 60.0


class Ended(NamedTuple):
    """How a child ended: it was killed, or hung, or raised (`problem` is the traceback), or returned a value."""

    value: Any = None
    problem: str | None = None
    killed: bool = False


class Board:
    """Numbers that a child writes and its parent reads, even if the child was killed."""

    SLOTS = 16

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * self.SLOTS)

    def mark(self, slot: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * slot, value)

    def __getitem__(self, slot: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * slot)[0])


def start(work: Callable[[], Any]) -> tuple[int, int]:
    """Begin `work` in a fork. Returns its process id and a descriptor that its result comes from."""
    outcome, mine = os.pipe()
    child = os.fork()
    if child:
        os.close(mine)
        return child, outcome
    status = 1
    with contextlib.suppress(BaseException):
        os.close(outcome)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = open(os.devnull, "w")
        try:
            answer: Any = (work(), None)
        except BaseException:
            answer = (None, traceback.format_exc())
        with os.fdopen(mine, "wb") as pipe:
            pickle.dump(answer, pipe)
        status = 0
    os._exit(status)


def finish(child: int, outcome: int, patience: float = PATIENCE) -> Ended:
    """Wait for a child that was begun with `start`."""
    parts, end = [], time.monotonic() + patience
    hung = False
    while True:
        ready = select.select([outcome], [], [], max(0.0, end - time.monotonic()))[0]
        if not ready:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        part = os.read(outcome, 1 << 20)
        if not part:
            break
        parts.append(part)
    os.close(outcome)
    status = os.waitpid(child, 0)[1]
    if hung:
        return Ended(problem=f"hung for {patience:.0f} seconds")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            return Ended(killed=True)
        return Ended(problem=f"ended by signal {signal.Signals(number).name}")
    if not parts:
        return Ended(problem=f"ended with status {os.WEXITSTATUS(status)} and no result")
    value, problem = pickle.loads(b"".join(parts))
    return Ended(value, problem)


def in_child(work: Callable[[], Any], patience: float = PATIENCE) -> Ended:
    """Run `work` in a fork and wait for it."""
    return finish(*start(work), patience)


def open_files() -> set[str]:
    """The files that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {os.readlink(entry)}")
    return {name for name in found if "/proc/" not in name}
