"""The loop: runs parts in child processes, keeps what fails, and sums up.

``python tests/fuzz --seconds 60`` runs all parts, ``--part readers`` one of them. A case follows from three things: the
seed, the part and the number of the case. What fails is written into a file, and ``--replay FILE`` repeats it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import re
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .case import PARTS, Case, load, store

__all__ = ["main"]

HERE = Path(__file__).resolve().parent
#: Seconds without a sign of life after which a child is ended.
PATIENCE = 60.0
#: Address space of a child beyond what it has after its start.
ROOM = 1 << 30
#: Cases until memory must no longer grow, and bytes that it may grow all the same: in all, and for each case. (The
#: library tokenizers keeps about 2 kB for each text that a new tokenizer encodes.)
WARM, GROWTH, GROWTH_PER_CASE = 1000, 24 << 20, 3000


@dataclass
class Tally:
    """What the cases of one part came to."""

    part: str
    accepted: collections.Counter[str] = field(default_factory=collections.Counter)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: tuple[float, str, int] = (0.0, "-", 0)
    begin: int = 0
    end: int = 0

    @property
    def cases(self) -> int:
        return self.accepted.total() + self.refused.total()

    def lines(self) -> Iterator[str]:
        """The summary."""
        seconds, kind, number = self.slowest
        yield (
            f"{self.part}: {self.cases} cases, {self.accepted.total()} accepted, {self.refused.total()} refused; "
            f"slowest {seconds:.2f} s ({kind}, number {number}); "
            f"memory {self.begin >> 20} MB, at the end {self.end >> 20} MB"
        )
        for kind in sorted(self.accepted | self.refused):
            yield f"    {kind}: {self.accepted[kind]} accepted, {self.refused[kind]} refused"
        for problem, count in self.problems.items():
            yield f"  FAULT ({count} times): {problem}"


# ---------------------------------------------------------------------- the child
def part_named(part: str, folder: Path) -> Any:
    """What draws and runs the cases of a part, such as a ``Readers`` of the module ``readers``."""
    return getattr(importlib.import_module(f".{part}", __package__), part.capitalize())(folder)


def memory() -> int:
    """Bytes of this process in the machine's memory; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


def limit_memory() -> None:
    """Allocations beyond some room fail from now on."""
    with contextlib.suppress(OSError, ValueError):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def work(part: str, seed: int, first: int, seconds: float, most: int | None, folder: Path, answers: Any) -> None:
    """Run cases, at most so many, until the time is over, and write one line about each of them."""
    faulthandler.enable()
    cases = part_named(part, folder / "work")
    gc.collect()
    gc.freeze()  # so that a collection does not look at all modules again
    limit_memory()
    end, number, used = time.monotonic() + seconds, first, memory()
    while time.monotonic() < end and (most is None or number - first < most):
        case = cases.draw(seed, number)
        (folder / "current.json").write_text(json.dumps(case))
        outcome = cases.run(case)
        if (number - first) % 100 == 0:
            used = memory()
        said = {
            "number": number, "kind": outcome.kind, "accepted": outcome.accepted, "seconds": outcome.seconds,
            "memory": used, "problem": outcome.problem, "case": outcome.case if outcome.problem else None,
        }  # fmt: skip
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        number += 1


# ---------------------------------------------------------------------- the parent
class Parent:
    """Runs children and keeps what fails.

    Parameters
    ----------
    seed : int
    failures : Path
        The folder for what fails.
    most : int, optional
        Cases of each part; by default as many as the time allows.
    command : sequence of str
        Begins a child's command line.
    """

    def __init__(
        self, seed: int, failures: Path, most: int | None = None, command: Sequence[str] = (sys.executable, str(HERE))
    ) -> None:
        self.seed, self.failures, self.most, self.command = seed, failures, most, command

    def run(self, part: str, seconds: float) -> Tally:
        """Run a part for some time, in as many children as it takes."""
        tally, end, first = Tally(part), time.monotonic() + seconds, 0
        while self._goes_on(tally, left := end - time.monotonic()):
            first = self._child(tally, first, max(left, 1.0))
        return tally

    def _goes_on(self, tally: Tally, left: float) -> bool:
        return (left > 0.5 or tally.cases == 0) and (self.most is None or tally.cases < self.most)

    def _child(self, tally: Tally, first: int, seconds: float) -> int:
        """Run one child until it ends. Returns the number to go on with."""
        with tempfile.TemporaryDirectory(prefix="mom-fuzz-") as name:
            folder = Path(name)
            (folder / "work").mkdir()
            command = [*self.command, "--worker", tally.part, "--seed", str(self.seed), "--first", str(first),
                       "--seconds", str(seconds), "--folder", name]  # fmt: skip
            if self.most is not None:
                command[-2:-2] = ["--cases", str(self.most - tally.cases)]
            with open(folder / "errors", "wb") as errors:
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
            number, memories = first, []
            try:
                for said in answers_of(child):
                    number = said["number"] + 1
                    memories.append(said["memory"])
                    self._book(tally, said)
                code = child.wait()
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                assert child.stdout is not None
                child.stdout.close()
            self._memory(tally, first, memories)
            if code == 0:
                return number
            ending = (folder / "errors").read_text(errors="replace")[-4000:]
            if not (folder / "current.json").exists():
                raise SystemExit(f"{tally.part}: the child did not begin:\n{ending}")
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            what += " (no sign of life)" if code == -signal.SIGKILL else ""
            case = json.loads((folder / "current.json").read_text())
            self._keep(tally, number, case.get("format", case["part"]), case, f"{ending}\nthe process ended: {what}")
            tally.refused["(ended the process)"] += 1
            return number + 1

    def _book(self, tally: Tally, said: dict[str, Any]) -> None:
        (tally.accepted if said["accepted"] else tally.refused)[said["kind"]] += 1
        tally.slowest = max(tally.slowest, (said["seconds"], said["kind"], said["number"]))
        if said["problem"] is not None:
            self._keep(tally, said["number"], said["kind"], said["case"], said["problem"])

    def _keep(self, tally: Tally, number: int, kind: str, case: Case, problem: str) -> None:
        """Write a case that failed into a file. Of failures that look alike, the first is kept."""
        short = problem.strip().rsplit("\n", 1)[-1][:300]
        place = [line.strip() for line in problem.split("\n") if line.strip().startswith("File ")][-1:]
        short = f"{kind}: {short} {place[0] if place else ''}"
        alike = re.sub(r"\d+", "#", short)[:100] + (place[0] if place else "")
        tally.problems[alike] += 1
        if tally.problems[alike] == 1:
            safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in kind)
            path = store(self.failures, f"{tally.part}-{safe}-{self.seed}-{number}", case, problem)
            print(f"FAULT {short}\n  replay: {sys.executable} {os.path.relpath(HERE)} --replay {path}", flush=True)

    def _memory(self, tally: Tally, first: int, memories: list[int]) -> None:
        """Compare a child's memory after its first cases and at its end."""
        if not memories:
            return
        warm = memories[min(WARM, len(memories) - 1)]
        tally.begin, tally.end = tally.begin or memories[0], memories[-1]
        more, cases = memories[-1] - warm, len(memories) - WARM
        if cases > 0 and more > GROWTH + GROWTH_PER_CASE * cases:
            case = {"part": tally.part, "seed": self.seed, "numbers": [first, first + len(memories)]}
            self._keep(tally, first, "memory", case, f"memory grows: {more >> 20} MB more after {cases} cases")


def answers_of(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What a child says, line by line. A child that is silent for too long is ended."""
    assert child.stdout is not None
    rest = b""
    while True:
        if not select.select([child.stdout], [], [], PATIENCE)[0]:
            os.killpg(child.pid, signal.SIGKILL)
            return
        if not (read := os.read(child.stdout.fileno(), 1 << 16)):
            return
        *lines, rest = (rest + read).split(b"\n")
        yield from map(json.loads, lines)


def replay(path: Path) -> int:
    """Run a case of a file in this process. Returns 1 if it fails."""
    case = load(path)
    with tempfile.TemporaryDirectory(prefix="mom-fuzz-") as folder:
        cases = part_named(case["part"], Path(folder))
        faulthandler.enable()
        limit_memory()
        tried = [case]
        if "numbers" in case:
            tried = [cases.draw(case["seed"], number) for number in range(*case["numbers"])]
        before, failed = memory(), 0
        for each in tried:
            outcome = cases.run(each)
            failed |= outcome.problem is not None
            if outcome.problem or len(tried) == 1:
                print(json.dumps(outcome.case)[:2000])
                print(outcome.problem or f"{'accepted' if outcome.accepted else 'refused'}, no fault")
        if len(tried) > 1:
            print(f"memory: {before >> 20} MB before, {memory() >> 20} MB after {len(tried)} cases")
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for all parts together")
    parser.add_argument("--cases", type=int, help="at most so many cases of each part")
    parser.add_argument("--seed", type=int, help="of all cases (default: another one each time)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="repeat the case of a file")
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz-failures"), help="folder for what fails")
    for name, kind in (("--worker", str), ("--first", int), ("--folder", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.worker:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        work(a.worker, a.seed, a.first, a.seconds, a.cases, a.folder, answers)
        return 0
    if a.replay:
        return replay(a.replay)
    seed = secrets.randbelow(2**31) if a.seed is None else a.seed
    print(f"seed {seed}", flush=True)
    parent, parts = Parent(seed, a.failures, a.cases), a.part or PARTS
    tallies = [parent.run(part, a.seconds / len(parts)) for part in parts]
    print(f"\nseed {seed}")
    for tally in tallies:
        print("\n".join(tally.lines()))
    faults = sum(len(tally.problems) for tally in tallies)
    print(f"{faults} kinds of faults" + (f"; see {a.failures}" if faults else ""))
    return int(faults > 0)
