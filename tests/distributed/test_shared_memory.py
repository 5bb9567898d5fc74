"""Ranks over shared memory: what each gets from the others, and what happens when one fails."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from mom import MomError
from mom.distributed import Serial, current, is_first
from mom.distributed.shared_memory import run
from mom.errors import RankError


@pytest.mark.parametrize("size", [1, 2, 5])
def test_exchange(size: int) -> None:
    def talk() -> tuple[list[object], list[int]]:
        ranks = current()
        said = ranks.exchange({"rank": ranks.rank, "process": os.getpid()})
        large = ranks.exchange(b"x" * (3_000_000 * ranks.rank))  # more than a mailbox holds
        return said, [len(data) for data in large]

    answers = run(size, talk)
    assert all(answer == answers[0] for answer in answers)
    assert [said["rank"] for said in answers[0][0]] == list(range(size))
    assert len({said["process"] for said in answers[0][0]} | {os.getpid()}) == size + 1
    assert answers[0][1] == [3_000_000 * rank for rank in range(size)]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("bounds", [(0, 3, 3, 10), (0, 0, 0, 10), (0, 2_000_000, 2_000_001, 4_500_000)])
def test_swap_and_share(bounds: tuple[int, ...], dtype: type) -> None:
    def talk() -> tuple[bool, bool]:
        ranks = current()
        values = [np.random.default_rng(rank).integers(1000, size=bounds[-1]).astype(dtype) for rank in range(3)]
        block = values[ranks.rank].copy()
        parts = [slice(begin, min(end, begin + 4)) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
        pieces = [np.zeros_like(block[parts[ranks.rank]]) for _ in range(3)]
        ranks.swap([block[part] for part in parts], pieces)
        received = [np.array_equal(pieces[q], values[q][parts[ranks.rank]]) for q in range(3) if q != ranks.rank]
        if dtype is not np.float32:
            return all(received), True
        ranks.share(block, bounds)
        whole = np.concatenate([values[q][bounds[q] : bounds[q + 1]] for q in range(3)])
        return all(received) and not pieces[ranks.rank].any(), np.array_equal(block, whole)

    assert run(3, talk) == [(True, True)] * 3


def test_from_first() -> None:
    answers = run(3, lambda: (os.getpid(), current().from_first(os.getpid)))
    assert {made for _, made in answers} == {answers[0][0]}


def test_the_failure_of_one_is_that_of_all() -> None:
    def talk() -> str:
        ranks = current()
        try:
            with ranks.failing_together(), ranks.failing_together():
                ranks.exchange(1)
                if ranks.rank == 1:
                    raise MemoryError("no room")
                ranks.exchange(2)
        except RankError as error:
            assert error.ranks == [1] and "in talk" in error.traceback and isinstance(error, MomError)
            return str(error)
        except MemoryError as error:
            return f"own: {error}"
        return "nothing"

    assert run(3, talk) == ["rank 1: MemoryError: no room", "own: no room", "rank 1: MemoryError: no room"]


def test_a_failure_at_the_very_end_is_that_of_all() -> None:
    def talk() -> str:
        try:
            with current().failing_together():
                if current().rank == 0:
                    raise OSError("full")
        except RankError as error:
            return str(error)
        except OSError:
            return "own"
        return "nothing"

    assert run(3, talk) == ["own", "rank 0: OSError: full", "rank 0: OSError: full"]


def test_a_failure_of_all_is_told_by_the_first() -> None:
    def talk() -> bool:
        ranks = current()
        with pytest.raises(ValueError, match="bad"), ranks.failing_together():
            raise ValueError("bad" if ranks.rank < 2 else "bad, too")
        return ranks.told is not None

    assert run(3, talk) == [False, True, False]


def test_an_exception_outside_comes_to_the_caller() -> None:
    def talk() -> None:
        if current().rank == 1:
            raise KeyError("lost")
        current().exchange(0)

    with pytest.raises(KeyError, match="lost"):
        run(3, talk)


def test_a_killed_rank_ends_the_run() -> None:
    def talk() -> None:
        current().exchange(0)
        if current().rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        current().exchange(1)

    with pytest.raises(RankError, match="rank 2 ended with status -9") as caught:
        run(3, talk)
    assert caught.value.ranks == [2]


def test_a_rank_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOM_RANK_TIMEOUT", "0.5")

    def talk() -> str:
        ranks = current()
        ranks.doing = "in step 7"
        if ranks.rank == 1:
            time.sleep(1.5)
            return "late"
        with pytest.raises(RankError) as caught:
            ranks.exchange(0)
        return str(caught.value)

    said = run(3, talk)
    assert said[0] == "rank 1 did not answer in step 7" and said[1] == "late"


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_the_time_to_wait_is_checked(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MOM_RANK_TIMEOUT", text)

    with pytest.raises(MomError, match=f"MOM_RANK_TIMEOUT: '{text}' is not a positive number"):
        run(2, lambda: current().exchange(0))


def test_a_process_by_itself() -> None:
    assert isinstance(current(), Serial) and is_first()
    assert current().exchange("a") == ["a"] and current().from_first(lambda: 3) == 3
    with pytest.raises(ValueError, match="own"), current().failing_together():
        raise ValueError("own")
    assert not current().told
