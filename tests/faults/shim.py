"""The library `shim.c`: builds it, starts a process under it, and arms faults in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")

#: Kinds of calls, as `shim.c` numbers them.
READS, WRITES, SYNCS, MAKES, DELETES, LOCKS, CLOSES = (1 << i for i in range(7))
EVERY = 127
#: Calls that a disk without space refuses, and those that a disk mounted read-only refuses.
CHANGES = WRITES | SYNCS | MAKES | DELETES

#: What a fault does to a call, as `shim.c` numbers it.
MODES = {"kill-before": 1, "kill-after": 2, "error": 3, "short": 4, "kill-within": 5}

#: Errors that the calls of a kind can answer with, and one that only calls which open a file or folder can.
ERRORS = {
    READS: ("EIO", "EACCES"),
    WRITES: ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
    SYNCS: ("EIO", "ENOSPC", "EINTR"),
    MAKES: ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EROFS"),
    DELETES: ("EIO", "EACCES", "EROFS"),
    LOCKS: ("EIO", "EINTR", "ENOLCK"),
    CLOSES: ("EIO", "EINTR"),
}
OPENS = ("EMFILE", "EINTR")
READING = ("read", "readv", "pread", "pread64", "preadv", "preadv64", "preadv2", "preadv64v2")
OF_OPEN_FILES = ("fstat", "fstat64", "fdopendir", "readdir", "readdir64", "mmap", "mmap64")


class Unusable(Exception):
    """This machine cannot run the shim."""


class Call(NamedTuple):
    """A call to the system that touched the watched folder."""

    kind: int
    name: str
    path: str

    def errors(self) -> tuple[str, ...]:
        """Names of the errors that the system can answer it with."""
        found = ERRORS[self.kind]
        if self.name.startswith("open"):
            found += OPENS
        if self.name in READING:
            found = ("EIO", "EINTR")
        if self.name in OF_OPEN_FILES:
            found = ("EIO",)
        return found


class Met(NamedTuple):
    """A call that a fault met, and the error that it got; empty if it was not to fail."""

    name: str
    path: str
    error: str


def why_not() -> str | None:
    """Why this machine cannot run the shim, or None if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux: faults are injected by a library in LD_PRELOAD that reads /proc/self/fd"
    if compiler() is None:
        return "needs a C compiler: cc, gcc, clang or $CC"
    if re.search("lib[a-z]+san", os.environ.get("LD_PRELOAD", "")):
        return "needs a build without a sanitizer, which replaces the same functions of the C library"
    if not os.path.isdir("/proc/self/fd"):
        return "needs /proc"
    return None


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "cc", "gcc", "clang"))), None)


def build(folder: Path) -> Path:
    """Compile the shim into a folder."""
    library = folder / "shim.so"
    command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unusable(f"the shim cannot be compiled: {done.stderr.strip().splitlines()[-1:]}")
    return library


def run_under_shim(arguments: list[str]) -> int:
    """Run this interpreter again with the shim before the C library. Returns its status."""
    if os.environ.get("MOM_FAULTS") == "started":
        raise Unusable("LD_PRELOAD has no effect on this interpreter")
    with tempfile.TemporaryDirectory() as folder:
        preload = ":".join(filter(None, (os.environ.get("LD_PRELOAD"), str(build(Path(folder))))))
        ours = {"MOM_FAULTS": "started", "LD_PRELOAD": preload, "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **ours}
        return subprocess.run([sys.executable, *arguments], env=environment).returncode


def _functions(report: str) -> list[list[str]]:
    """Names of functions in the stacks that `faulthandler` reports."""
    parts = report.split("most recent call first")[1:]
    return [[_function(*found) for found in re.findall(r'File "(.*)", line \d+ in (.*)', part)] for part in parts]


def _function(file: str, name: str) -> str:
    return f"{Path(file.strip('<>').removeprefix('frozen ')).stem}.{name}"


class Shim:
    """The shim in this process. A fork has the same one with a counter of its own."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.faults_trace.restype = self._library.faults_met.restype = ctypes.c_char_p
        self._library.faults_count.restype = self._library.faults_injected.restype = ctypes.c_long
        self._slots = 0

    @staticmethod
    def is_loaded() -> bool:
        return hasattr(ctypes.CDLL(None), "faults_watch")

    def watch(self, folder: Path) -> None:
        """Count the calls that touch a folder, from now on and from 1."""
        self._slots = 0
        self._library.faults_watch(os.fsencode(folder))

    def arm(self, mode: str, first: int, last: int, error: str = "", kinds: int = EVERY) -> None:
        """Meet the calls `first` to `last` with a fault, if they are of one of these kinds."""
        number = getattr(errno, error) if error else 0
        last = min(last, 2**62)
        self._library.faults_arm(self._slots, ctypes.c_long(first), ctypes.c_long(last), MODES[mode], number, kinds)
        self._slots += 1

    def no_exchange(self, error: str) -> None:
        """Refuse to exchange two folders, as a system or a file system does that does not know how."""
        self._library.faults_no_exchange(getattr(errno, error))

    @contextlib.contextmanager
    def telling(self) -> Iterator[Callable[[], list[list[str]]]]:
        """Yields a function that says which functions of Python were at work whenever a call failed.

        They are named like ``atomic.clean_before``, innermost first. There is a list for each of the calls in `met`.
        """
        report = os.memfd_create("stack")
        faulthandler.register(signal.SIGUSR1, report, all_threads=False)
        self._library.faults_tell(signal.SIGUSR1)
        try:
            yield lambda: _functions(os.pread(report, 1 << 22, 0).decode())
        finally:
            self._library.faults_tell(0)
            faulthandler.unregister(signal.SIGUSR1)
            os.close(report)

    def disarm(self) -> None:
        """Neither count nor fail anything more."""
        self._library.faults_disarm()

    @property
    def injected(self) -> int:
        """How many calls faults have met."""
        return int(self._library.faults_injected())

    def calls(self) -> list[Call]:
        """The calls that were counted."""
        lines = os.fsdecode(self._library.faults_trace()).splitlines()
        return [Call(int(kind), name, path) for kind, name, path in (line.split("\t") for line in lines)]

    def met(self) -> list[Met]:
        """The first calls that faults met."""
        lines = [line.split("\t") for line in os.fsdecode(self._library.faults_met()).splitlines()]
        return [Met(name, path, errno.errorcode.get(int(number), "")) for name, path, number in lines]
