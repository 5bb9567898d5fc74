"""Each allocation of the C core fails once, in training, fine-tuning, generation, saving and loading.

The call raises `MemoryError` and changes nothing that was given to it. A second try succeeds, with the result of an
undisturbed call.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from children import in_child
from injection import new_home
from works import CONFIG, Finetune, Train, digest, need, tokenizer

import mom
from mom import _core


class Allocations(NamedTuple):
    """How failing allocations went: by work, how many failed and whether these are all; and what was wrong."""

    failed: dict[str, tuple[int, bool]]
    problems: list[str]
    longest: float


class Piece(NamedTuple):
    """A call in which allocations fail, the next try, and what must be unchanged after a failure."""

    call: Callable[[], Any]
    again: Callable[[], Any]
    kept: Callable[[], Any]


def _pieces(home: Path) -> Iterator[tuple[str, Callable[[], Piece]]]:
    """Makers of pieces; each is made anew in a child."""

    def training() -> Piece:
        work = Train(resumed=False)
        return Piece(lambda: work.run(home, False), lambda: work.run(home, True), lambda: None)

    def model() -> mom.MoM:
        made = mom.MoM(CONFIG, seed=3)
        made.tokenizer = tokenizer()
        return made

    def generation(temperature: float) -> Piece:
        made, prompts = model(), [np.arange(3), np.arange(5)]

        def call() -> Any:
            return [np.asarray(row).tolist() for row in made.generate(prompts, 6, temperature=temperature, seed=1)]

        return Piece(call, call, lambda: (digest(made), made.random_state))

    def saving() -> Piece:
        made = model()

        def call() -> Any:
            made.save_pretrained(home / "saved")
            return digest(mom.MoM.from_pretrained(home / "saved"))

        return Piece(call, call, lambda: digest(made))

    def loading() -> Piece:
        def call() -> Any:
            return digest(mom.MoM.from_pretrained(home / "model"))

        return Piece(call, call, lambda: sorted(path.name for path in home.iterdir()))

    def finetuning() -> Piece:
        work, body = Finetune(resumed=False), mom.MoM.from_pretrained(home / "model")

        def run(resume: bool) -> Any:
            return work.result(work.run(home, resume, body=body))

        return Piece(lambda: run(False), lambda: run(True), lambda: digest(body))

    pieces = {"train": training, "finetune": finetuning, "generate": lambda: generation(0.8),
              "generate greedily": lambda: generation(0.0), "save": saving, "load": loading}  # fmt: skip
    yield from pieces.items()


def _fail(make: Callable[[], Piece], number: int, expected: Any) -> bool:
    """Let one allocation fail. Returns False if the call makes fewer."""
    piece = make()
    kept = piece.kept()
    _core.memory_fail_at(number)
    try:
        piece.call()
    except MemoryError as error:
        _core.memory_fail_at(0)
        need("cannot allocate" in str(error), f"MemoryError without words: {error}")
    else:
        return False
    finally:
        _core.memory_fail_at(0)
    need(piece.kept() == kept, "something else has changed")
    need(piece.again() == expected, "the next try gives another result")
    return True


def failing_allocations(seconds: float, limit: int | None = None) -> Allocations:
    """Fail each allocation of each piece, the first of all pieces first, as long as there is time."""
    problems: list[str] = []
    end, longest = time.monotonic() + seconds, 0.0
    template = new_home(False)
    try:
        Finetune(resumed=False).begin(template)
        Train(resumed=False).begin(template)
        expected = {name: _in_copy(name, template, lambda make: make().call()) for name, _ in _pieces(template)}
        problems += [f"allocations, {name}: {ended.problem}" for name, ended in expected.items() if ended.problem]
        failed = dict.fromkeys(expected, 0)
        unfinished = [name for name, ended in expected.items() if not ended.problem]
        for number, name in _turns(unfinished, limit):
            began = time.monotonic()
            if began > end:
                break
            ended = _in_copy(name, template, lambda make, n=number, e=expected[name]: _fail(make, n, e.value))
            longest = max(longest, time.monotonic() - began)
            if ended.problem or ended.killed:
                words = (ended.problem or "killed").strip().splitlines()[-1]
                problems.append(f"allocations, {name}, allocation {number}: {words} (--part allocations)")
            elif not ended.value:
                unfinished.remove(name)
                continue
            failed[name] = number
    finally:
        shutil.rmtree(template, ignore_errors=True)
    return Allocations({name: (count, name not in unfinished) for name, count in failed.items()}, problems, longest)


def _turns(unfinished: list[str], limit: int | None) -> Iterator[tuple[int, str]]:
    """Numbers of allocations, each for all pieces that are not finished, up to `limit` in all."""
    turns = ((number, name) for number in itertools.count(1) for name in list(unfinished) or [""])
    return itertools.islice(itertools.takewhile(lambda turn: turn[1], turns), limit)


def _in_copy(name: str, template: Path, work: Callable[[Callable[[], Piece]], Any]) -> Any:
    """Run a piece in a child, in a copy of the template."""
    home = new_home(False)
    try:
        shutil.copytree(template, home, dirs_exist_ok=True)
        return in_child(lambda: work(dict(_pieces(home))[name]))
    finally:
        shutil.rmtree(home, ignore_errors=True)
