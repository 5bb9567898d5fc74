"""Learning-rate schedules: their values at the corners and in between, and that the loop follows them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import small_run

import mom
from mom.training import cosine_schedule, linear_schedule


@pytest.mark.parametrize("make", [cosine_schedule, linear_schedule])
def test_factor_rises_to_one_and_falls_to_final(make: Any) -> None:
    factor = make(10, 110, 0.1)
    assert [factor(step) for step in range(10)] == pytest.approx([step / 10 for step in range(10)])
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1)
    assert factor(1000) == pytest.approx(0.1)
    values = [factor(step) for step in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_cosine_is_half_a_cosine() -> None:
    factor = cosine_schedule(0, 100)
    assert [factor(s) for s in (0, 25, 75)] == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5 - math.sqrt(0.125)])


def test_warmup_may_be_the_whole_run() -> None:
    factor = linear_schedule(5, 5)
    assert [factor(s) for s in range(6)] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("make", [cosine_schedule, linear_schedule])
@pytest.mark.parametrize("arguments", [(-1, 10, 0.0), (11, 10, 0.0), (0, 0, 0.0), (1, 10, 1.5), (1, 10, -0.1)])
def test_impossible_schedules_are_refused(make: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="warmup|final"):
        make(*arguments)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.775, 0.55, 0.325]),
        ("cosine", [0.0, 0.5, 1.0, 1 - 0.45 * (1 - math.sqrt(0.5)), 0.55, 1 - 0.45 * (1 + math.sqrt(0.5))]),
    ],
)
def test_run_follows_its_schedule(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    rates: list[float] = []
    mom.train(
        small_run.model(), small_run.tokens(tmp_path / "tokens.bin"), steps=6, batch_size=2, sequence_length=16,
        lr=2e-3, schedule=schedule, warmup=2, final_lr=0.1, progress=False,
        callbacks=[small_run.Call(lambda record: rates.append(record["lr"]))],
    )  # fmt: skip
    assert rates == pytest.approx([2e-3 * factor for factor in expected])
