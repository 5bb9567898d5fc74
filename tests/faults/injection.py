"""A work with faults at chosen calls to the system: how a case is named, run and judged.

After a kill, the newest state must be there, and going on must give the files and the results of a work that was never
disturbed, with nothing left over. A call that fails must raise an error of the system, or of this package, that names
the file. Then the state from before must be there, no file may stay open, and a second try must succeed. A failing call
may pass in silence only where `HARMLESS` lists it, and the files are then those of an undisturbed work.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import shim
from children import Board, Ended, finish, in_child, open_files, start
from works import Lost, Work, contents, need

from mom.errors import MomError

MEMORY_DISK = "/dev/shm"


# ---------------------------------------------------------------------- cases
class Fault(NamedTuple):
    """What happens at the calls `first` to `last`: ``error-ENOSPC@12`` is one call, ``error-ENOSPC@12+`` all later."""

    mode: str
    first: int
    error: str = ""
    stays: bool = False

    def __str__(self) -> str:
        return f"{self.mode}{self.error and '-' + self.error}@{self.first}{'+' * self.stays}"

    @property
    def kinds(self) -> int:
        """A disk that stays full or read-only refuses changes alone; a broken one refuses everything."""
        if not self.stays:
            return shim.EVERY
        return {"ENOSPC": shim.WRITES | shim.SYNCS | shim.MAKES, "EROFS": shim.CHANGES}.get(self.error, shim.EVERY)


@dataclass(frozen=True)
class Case:
    """A work and its faults. As text: ``save/over kill-before@17 no-exchange-EINVAL on-disk``."""

    work: str
    faults: tuple[Fault, ...]
    no_exchange: str = ""
    on_disk: bool = False

    @property
    def kills(self) -> bool:
        return any(fault.mode.startswith("kill") for fault in self.faults)

    def __str__(self) -> str:
        words = [self.work, *map(str, self.faults)]
        words += [f"no-exchange-{self.no_exchange}"] if self.no_exchange else []
        return " ".join([*words, *(["on-disk"] if self.on_disk else [])])


def parse_case(text: str) -> Case:
    """The case that a line names."""
    work, *words = text.split()
    faults, no_exchange, on_disk = [], "", False
    for word in words:
        found = re.fullmatch(r"(kill-before|kill-after|kill-within|short|error)(?:-(E\w+))?@(\d+)(\+?)", word)
        if found:
            faults.append(Fault(found[1], int(found[3]), found[2] or "", bool(found[4])))
        elif word.startswith("no-exchange-"):
            no_exchange = word.removeprefix("no-exchange-")
        elif word == "on-disk":
            on_disk = True
        else:
            raise SystemExit(f"--case: {word!r} is no fault")
    return Case(work, tuple(faults), no_exchange, on_disk)


# ---------------------------------------------------------------------- an undisturbed work
class Expected(NamedTuple):
    """What an undisturbed work begins with, leaves and returns, and the calls that it makes."""

    before: dict[str, Any]
    after: dict[str, Any]
    result: Any
    calls: list[shim.Call]


def new_home(on_disk: bool) -> Path:
    """A folder for one case: in memory where that is possible, since flushing to a disk takes time."""
    usable = not on_disk and os.access(MEMORY_DISK, os.W_OK)
    return Path(os.path.realpath(tempfile.mkdtemp(prefix="mom-faults-", dir=MEMORY_DISK if usable else None)))


def undisturbed(work: Work, template: Path, no_exchange: str = "") -> Expected:
    """Run a work twice without a fault, in children, and check that it does the same both times."""

    def once() -> Expected:
        home = new_home(False)
        try:
            return in_place(home)
        finally:
            shutil.rmtree(home, ignore_errors=True)

    def in_place(home: Path) -> Expected:
        shutil.copytree(template, home, dirs_exist_ok=True)
        before = contents(home)
        counting = shim.Shim()
        counting.watch(home)
        if no_exchange:
            counting.no_exchange(no_exchange)
        result = work.act(home, Board())
        calls = [call._replace(path=call.path[len(str(home)) + 1 :]) for call in counting.calls()]
        counting.disarm()
        return Expected(before, contents(home), result, calls)

    children = [start(once) for _ in range(2)]
    first, second = (value_of(finish(*child)) for child in children)
    need(first[:3] == second[:3], f"{work.name}: two undisturbed works differ")
    need(len(first.calls) == len(second.calls), f"{work.name}: two undisturbed works make different calls")
    return first  # type: ignore[no-any-return]


def value_of(ended: Ended) -> Any:
    if ended.problem or ended.killed:
        raise RuntimeError(ended.problem or "a child was killed")
    return ended.value


# ---------------------------------------------------------------------- judging
#: Functions that must all be at work, which calls of theirs may then fail in silence, and why that does no harm.
HARMLESS = [
    ("shutil.rmtree", "", "a leftover stays; the next writer removes it"),
    ("atomic.clean_before", "", "leftovers stay; the next writer removes them"),
    ("atomic.clean_leftovers", "", "leftovers stay; the next writer removes them"),
    ("locks.lock_folder folders.latest_valid", "", "leftovers stay; the next writer removes them"),
    ("locks.lock_folder", "unlink|close", "the lock is released; the next run removes its file"),
    ("locks._lock", "flock", "the system has no locks, and a warning says so"),
    ("atomic.mention_of", "", "a message says less about leftovers"),
    ("folders.rotate", "", "a checkpoint that cannot be read is neither counted nor deleted"),
    ("posixpath.realpath", "lstat", "the path is taken as it is named"),
    ("posixpath.ismount", "lstat", "the path is taken for no mount point"),
    ("atomic._may_be_replaced", "access|lstat", "the files are replaced one by one"),
    ("pathlib.mkdir", "mkdir", "the folder is there"),
    ("token_files._close", "close", "the file was only read"),
    ("finetune.results_folder", "rmdir", "an empty folder stays"),
    ("", "fstat", "Python's open asks for the size of a block; without it, there is a usual one"),
]


def reason_for_silence(call: shim.Met, stack: list[str]) -> str | None:
    """Why a call that failed may go unnoticed, or None."""
    if call.error in ("", "EINTR"):
        return "the call was made again"
    at_work = {*stack, ""}
    found = (
        why for functions, names, why in HARMLESS if {*functions.split()} <= at_work and re.search(names, call.name)
    )
    return next(found, None)


@dataclass
class Outcome:
    """How a case went. Without `problem`, all was well; `injected` is 0 where the faults met no call."""

    case: Case
    problem: str = ""
    injected: int = 0
    left: str = ""
    silent: list[str] = field(default_factory=list)
    seconds: float = 0.0
    details: str = field(default="", repr=False)


def run_case(case: Case, work: Work, template: Path, expected: Expected) -> Outcome:
    """Run a case in children of this process."""
    home, began = new_home(case.on_disk), time.monotonic()
    outcome = Outcome(case)
    try:
        shutil.copytree(template, home, dirs_exist_ok=True)
        if case.kills:
            _killed(outcome, work, home, expected)
        else:
            ended = in_child(lambda: _failed(Outcome(case), work, home, expected))
            outcome = ended.value if ended.value else Outcome(case, "the process did not live: " + str(ended.problem))
    except Lost as error:
        outcome.problem = str(error)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    outcome.seconds = time.monotonic() - began
    return outcome


def _armed(case: Case, home: Path) -> shim.Shim:
    arming = shim.Shim()
    arming.watch(home)
    for fault in case.faults:
        arming.arm(fault.mode, fault.first, 2**60 if fault.stays else fault.first, fault.error, fault.kinds)
    if case.no_exchange:
        arming.no_exchange(case.no_exchange)
    return arming


def _killed(outcome: Outcome, work: Work, home: Path, expected: Expected) -> None:
    """Kill a work, look at what it has left, and go on."""
    board, case = Board(), outcome.case

    def act() -> None:
        _armed(case, home)
        work.act(home, board)

    ended = in_child(act)
    if not ended.killed:
        if ended.problem and len(case.faults) == 1:
            outcome.problem = ended.problem
        return
    outcome.injected = 1

    def after() -> str:
        left = work.look(home, board, expected.before, expected.after, not case.no_exchange)
        _go_on(work, home, expected)
        return left

    ended = in_child(after)
    outcome.left = ended.value or ""
    if ended.problem:
        outcome.problem, outcome.details = ended.problem.strip().splitlines()[-1], ended.problem


def _go_on(work: Work, home: Path, expected: Expected) -> None:
    """The next try gives what an undisturbed work gives, and leaves nothing over."""
    result = work.again(home, Board())
    need(result == expected.result, "the next try gives another result")
    found = contents(home)
    need(set(found) <= set(expected.after), f"left over: {sorted(set(found) - set(expected.after))}")
    need(set(found) == set(expected.after), f"missing: {sorted(set(expected.after) - set(found))}")
    other = [name for name in found if found[name] != expected.after[name]]
    need(not other, f"other contents: {other}")


def _failed(outcome: Outcome, work: Work, home: Path, expected: Expected) -> Outcome:
    """Let calls of a work fail in this process, judge the error, and try again in the same process."""
    ignored: list[str] = []
    sys.unraisablehook = lambda found: ignored.append(f"{found.exc_value!r} in {found.object!r}")
    case, board, error, result = outcome.case, Board(), None, None
    gc.collect()
    before = open_files()
    arming = _armed(case, home)
    with warnings.catch_warnings(), arming.telling() as stack:
        warnings.simplefilter("ignore")
        try:
            result = work.act(home, board)
        except BaseException as caught:
            error = caught
        functions = stack()
    arming.disarm()
    outcome.injected, met = arming.injected, arming.met()
    try:
        if error is not None:
            outcome.details = "".join(traceback.format_exception(error))
            _check_error(error, home, met)
            outcome.left = f"{type(error).__name__}"
        elif outcome.injected:
            _check_silence(outcome, met, functions)
            need(result == expected.result, "silence, and another result")
        error = result = None
        gc.collect()
        need(not ignored, f"errors in destructors: {ignored}")
        need(open_files() == before, f"files stay open: {sorted(open_files() - before)}")
        left = work.look(home, board, expected.before, expected.after, not case.no_exchange)
        if outcome.left and len(case.faults) == 1 and not case.faults[0].stays:
            need(left != "new" or not work.whole, "an error was raised, but the new state is there")
        _go_on(work, home, expected)
    except BaseException as found:
        at = f" (at {met[0].name} {met[0].path.replace(f'{home}/', '')})" if met else ""
        outcome.problem = f"{type(found).__name__}: {found}{at}"
        outcome.details += traceback.format_exc()
    return outcome


def _check_error(error: BaseException, home: Path, met: list[shim.Met]) -> None:
    """An error of the system, or of this package, that names a file. (Nobody hears why `os.access` said no.)"""
    need(isinstance(error, (OSError, MomError)), f"raised {type(error).__name__}: {error}")
    names = str(getattr(error, "filename", None) or "") + str(error)
    need(str(home) in names, f"the error names no file: {type(error).__name__}: {error}")
    if isinstance(error, MomError):
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        silent_access = any("access" in call.name for call in met)
        need(cause is not None or silent_access, f"the cause is not kept: {error}")


def _check_silence(outcome: Outcome, met: list[shim.Met], stacks: list[list[str]]) -> None:
    reasons = set()
    for call, stack in zip(met, stacks, strict=True):
        why = reason_for_silence(call, stack)
        need(why is not None, f"silence in {' < '.join(stack[:8])}")
        reasons.add(f"{call.name}: {why}")
    outcome.silent = sorted(reasons)


# ---------------------------------------------------------------------- all cases
def kill_cases(work: Work, expected: Expected) -> Iterator[Case]:
    """Killed before each call; after each call that changes something; and within each call that writes bytes."""
    for number, call in enumerate(expected.calls, 1):
        yield Case(work.name, (Fault("kill-before", number),))
        if call.kind & shim.CHANGES:
            yield Case(work.name, (Fault("kill-after", number),))
        if "write" in call.name:
            yield Case(work.name, (Fault("kill-within", number),))


def error_cases(work: Work, expected: Expected) -> Iterator[Case]:
    """Each call fails with each error that the system can answer it with; bytes are moved in part."""
    for number, call in enumerate(expected.calls, 1):
        for error in call.errors():
            yield Case(work.name, (Fault("error", number, error),))
        if "write" in call.name or call.name in shim.READING:
            yield Case(work.name, (Fault("short", number),))
