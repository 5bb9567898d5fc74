"""A session of fault injection: runs cases at the same time, counts how they went, and prints a summary."""

from __future__ import annotations

import gc
import itertools
import random
import select
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import shim
from allocations import failing_allocations
from children import finish, start
from injection import (
    Case,
    Expected,
    Fault,
    Outcome,
    error_cases,
    kill_cases,
    parse_case,
    run_case,
    undisturbed,
)
from killed_saves import killed_saves
from works import Work, works

#: A case that takes longer than this hangs. It has up to two children, which have a limit of their own.
PATIENCE = 150.0
#: The number of failures that ends a part.
ENOUGH = 20


class Session:
    """All works, what they do undisturbed, and how the cases went.

    Parameters
    ----------
    folder : Path
        For what the works begin with.
    seed : int
    jobs : int
        Cases that run at the same time.
    family : str, optional
        Only the works of a family, or one work.
    """

    def __init__(self, folder: Path, seed: int, jobs: int, family: str | None = None) -> None:
        self._seed, self._jobs, self._rng = seed, jobs, random.Random(seed)
        self._works = {work.name: work for work in works() if family in (None, work.family, work.name)}
        self._folder, self._expected = folder, {}
        self._began = time.monotonic()
        self._problems: list[str] = []
        self._silent: Counter[str] = Counter()
        self._done: Counter[tuple[str, str]] = Counter()
        self._possible: Counter[tuple[str, str]] = Counter()
        self._left: Counter[tuple[str, str]] = Counter()
        self._lines: list[str] = []
        self._longest, self._slowest = 0.0, ""
        print(f"faults: seed {seed}", flush=True)

    def prepare(self) -> None:
        """Begin each work once, here, so that children find all imports done; and see what it does undisturbed."""
        for name, work in self._works.items():
            if name not in self._expected:
                template = self._template(name)
                template.mkdir(parents=True)
                work.begin(template)
                self._expected[name] = undisturbed(work, template)
        gc.collect()
        gc.freeze()  # children then copy fewer pages

    def _template(self, name: str) -> Path:
        return self._folder / name.replace("/", "-")

    # ------------------------------------------------------------------ parts
    def run(self, part: str, seconds: float, limit: int | None = None) -> None:
        """Run one part for so long, or so many cases of it."""
        if part == "saves":
            self._run_saves(seconds, limit)
        elif part == "allocations":
            self._run_allocations(seconds, limit)
        else:
            end = time.monotonic() + seconds
            self.prepare()
            self._run_cases(part, itertools.islice(self._cases(part), limit), end)

    def _cases(self, part: str) -> Iterator[Case]:
        if part == "random":
            return self._random_cases()
        make: Callable[[Work, Expected], Iterator[Case]] = kill_cases if part == "kills" else error_cases
        cases = [case for name, work in self._works.items() for case in make(work, self._expected[name])]
        self._possible.update((case.work, part) for case in cases)
        self._rng.shuffle(cases)
        if part == "kills":  # first where there is something else to find than at the call before
            cases.sort(key=self._only_reads)
        return iter(cases)

    def _only_reads(self, case: Case) -> bool:
        return not self._expected[case.work].calls[case.faults[0].first - 1].kind & shim.CHANGES

    def _random_cases(self) -> Iterator[Case]:
        """Two faults, faults that stay, systems that cannot exchange folders, and folders on the disk."""
        rng, names = self._rng, list(self._works)
        while True:
            name = rng.choice(names)
            calls = self._expected[name].calls
            first = rng.randint(1, len(calls))
            error = rng.choice(calls[first - 1].errors())
            later = first + rng.randint(1, 30)
            faults = rng.choice((
                (Fault("error", first, rng.choice(("ENOSPC", "EIO", "EROFS", "EDQUOT")), stays=True),),
                (Fault("error", first, error), Fault(rng.choice(("kill-before", "kill-after")), later)),
                (Fault("error", first, error), Fault("error", later, rng.choice(("EIO", "ENOSPC", "EACCES")))),
                (Fault("short", first), Fault("error", later, "EINTR")),
                (Fault(rng.choice(("kill-before", "kill-after", "kill-within")), first),),
            ))  # fmt: skip
            exchange = rng.choice(("", "", "ENOSYS", "EINVAL"))
            yield Case(name, faults, exchange, on_disk=rng.random() < 0.25)

    def _run_cases(self, part: str, cases: Iterable[Case], end: float) -> None:
        failures = 0
        for outcome in self._outcomes(cases, end):
            case = outcome.case
            if outcome.injected or outcome.problem:
                self._done[case.work, part] += 1
                self._left[part, outcome.left or "silence"] += 1
            self._silent.update(outcome.silent)
            self._time(outcome.seconds, str(case))
            if outcome.problem:
                failures += 1
                self._problem(f"{case}: {outcome.problem} (--case {str(case)!r})")
                if failures == ENOUGH:
                    self._problem(f"{part}: ended after {ENOUGH} failures")
                    break

    def _outcomes(self, cases: Iterable[Case], end: float) -> Iterator[Outcome]:
        """Run cases in children, some at the same time."""
        waiting: dict[int, tuple[int, Case]] = {}
        more = iter(cases)
        try:
            while True:
                while len(waiting) < self._jobs and time.monotonic() < end and (case := next(more, None)):
                    child, outcome = start(lambda case=case: self._run_one(case))  # type: ignore[misc]
                    waiting[outcome] = child, case
                if not waiting:
                    return
                for ready in select.select(list(waiting), [], [])[0]:
                    child, case = waiting.pop(ready)
                    ended = finish(child, ready, PATIENCE)
                    yield ended.value or Outcome(case, f"the case itself failed: {ended.problem}")
        finally:
            for ready, (child, _) in waiting.items():
                finish(child, ready, PATIENCE)

    def _run_one(self, case: Case) -> Outcome:
        return run_case(case, self._works[case.work], self._template(case.work), self._expected[case.work])

    def _run_saves(self, seconds: float, limit: int | None) -> None:
        done = killed_saves(seconds, self._rng.randrange(2**32), limit)
        self._lines.append(
            f"saves: {done.kills} killed at random moments; {done.kills - done.newer} left the save that was finished "
            f"before, {done.newer} the one under way; {done.leftovers} left something over, which the next save removed"
        )
        self._time(done.longest, "a killed save")
        for problem in done.problems:
            self._problem(problem)

    def _run_allocations(self, seconds: float, limit: int | None) -> None:
        done = failing_allocations(seconds, limit)
        words = ", ".join(f"{name} {count}{' (all)' * done_all}" for name, (count, done_all) in done.failed.items())
        self._lines.append(f"allocations that failed: {words}")
        self._time(done.longest, "a failed allocation")
        for problem in done.problems:
            self._problem(problem)

    # ------------------------------------------------------------------ reports
    def _time(self, seconds: float, what: str) -> None:
        if seconds > self._longest:
            self._longest, self._slowest = seconds, what

    def _problem(self, words: str) -> None:
        self._problems.append(words)
        print(f"FAILED {words} (seed {self._seed})", flush=True)

    def summary(self) -> int:
        """Print what was done. Returns the status of the process."""
        print(f"faults: {time.monotonic() - self._began:.0f} seconds, seed {self._seed}")
        if self._expected:
            print(f"  {'work':<18} {'calls':>6} {'kills':>13} {'errors':>13} {'random':>8}")
        for name, expected in self._expected.items():
            counts = [f"{self._done[name, part]}/{self._possible[name, part]}" for part in ("kills", "errors")]
            random_ones = self._done[name, "random"]
            print(f"  {name:<18} {len(expected.calls):>6} {counts[0]:>13} {counts[1]:>13} {random_ones:>8}")
        for part in ("kills", "errors", "random"):
            found = [(left, count) for (where, left), count in sorted(self._left.items()) if where == part]
            if found:
                print(f"  {part} left: " + ", ".join(f"{left} {count}" for left, count in found))
        for words, count in sorted(self._silent.items()):
            print(f"  silent {count}: {words}")
        for line in self._lines:
            print(f"  {line}")
        print(f"  longest case: {self._longest:.1f} seconds ({self._slowest})")
        print(f"  failed: {len(self._problems)}")
        return 1 if self._problems else 0

    def list_calls(self) -> None:
        """Print the calls of each work with their numbers."""
        self.prepare()
        for name, expected in self._expected.items():
            for number, call in enumerate(expected.calls, 1):
                print(f"{name} {number} {call.name} {call.path}")

    def repeat(self, text: str) -> int:
        """Run one case and print all that is known about it."""
        case = parse_case(text)
        if case.work not in self._works:
            raise SystemExit(f"--case: {case.work!r} is none of {', '.join(self._works)}")
        self._works = {case.work: self._works[case.work]}
        self.prepare()
        outcome = self._run_one(case)
        print(f"{case}: {outcome.injected} calls met; left: {outcome.left or 'silence'}", *outcome.silent)
        print(outcome.details, end="")
        print(f"FAILED {outcome.problem}" if outcome.problem else "no problem")
        return 1 if outcome.problem else 0
