"""The plan: from hours and speeds to sizes, steps and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mom.accounting import ledger
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import ConfigError
from mom.report.plan import Plan, choose, read_plan, shares_of
from mom.report.shapes import MODELS, SIZES, VARIANTS, configs_of, sizes_for
from mom.report.training import vocabulary_of

#: Seconds of a step on one thread of a fast machine.
SPEEDS = {
    "tiny": {"gpt2": 0.02, "deep": 0.06, "shallow": 0.02},
    "demo": {"gpt2": 0.1, "deep": 0.24, "shallow": 0.1},
    "mini": {"gpt2": 1.0, "deep": 2.4, "shallow": 1.0},
}


def test_more_time_gives_larger_models_and_more_seeds() -> None:
    plans = [choose(SPEEDS, 3600 * hours, 2) for hours in (0.005, 0.5, 4, 24, 96)]
    sizes = [[size.name for size in SIZES].index(plan.size.name) for plan in plans]
    assert sizes == sorted(sizes) and sizes[0] == 0 and sizes[-1] == 2
    assert plans[0].seeds < 3 <= plans[-1].seeds
    assert all(plan.glue_tasks == [] and plan.xsum_steps == 0 for plan in plans)


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_steps_fit_into_the_time(processes: int) -> None:
    """Trials side by side, with both phases."""
    seconds = 3600.0
    plan = choose(SPEEDS, seconds, processes, ["sst2", "rte"], True)
    speed = SPEEDS[plan.size.name]
    one = sum(
        (speed["gpt2"] + speed[model]) / 2 if two_phases else speed[model]
        for _, model, two_phases in VARIANTS
    )
    work = plan.steps * plan.seeds * one
    assert work / processes < shares_of(True, True)["training"] * seconds
    longest = max((speed["gpt2"] + speed[m]) / 2 if two else speed[m] for _, m, two in VARIANTS)
    assert plan.steps * plan.seeds * longest < shares_of(True, True)["training"] * seconds  # seeds follow one another
    tasks = plan.glue_steps * len(plan.glue_tasks) * plan.seeds * sum(speed.values()) * 16 * 40 / plan.size.tokens
    assert 0 < tasks < shares_of(True, True)["glue"] * seconds
    assert plan.xsum_steps > 0


def test_too_little_time_says_how_much_is_needed() -> None:
    with pytest.raises(ConfigError, match="hours: 0.000278 are too few on this machine; give at least"):
        choose(SPEEDS, 1.0, 1)


def test_shares_add_up() -> None:
    sums = [sum(shares_of(glue, xsum).values()) for glue in (False, True) for xsum in (False, True)]
    assert sums == pytest.approx([sums[0]] * 4) and sums[0] < 0.9


@pytest.mark.parametrize("size", SIZES[:3], ids=lambda size: size.name)
def test_models_have_equal_parameters_and_other_depths(size: object) -> None:
    found = configs_of(size, size.vocab_size)  # type: ignore[attr-defined, arg-type]
    tables = {name: ledger(found[name]) for name in MODELS}
    parameters = {name: table.parameters() for name, table in tables.items()}
    assert all(abs(parameters[name] / parameters["gpt2"] - 1) < 0.005 for name in MODELS)
    assert tables["shallow"].flops() < tables["gpt2"].flops() < tables["deep"].flops()


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    plan = choose(SPEEDS, 3600, 2, ["sst2"], True)
    assert Plan.from_dict(plan.to_dict()) == plan
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not the plan.json of a reproduction"):
        read_plan(tmp_path)


def test_a_plan_has_the_vocabulary_of_prepared_data(tmp_path: Path) -> None:
    documents = TextDocuments([f"Number {i} and number {i * i}." for i in range(50)])
    prepare(documents, tmp_path / "data", vocab_size=280, val_fraction=0.1, progress=False)
    assert [vocabulary_of(path) for path in (tmp_path / "data", tmp_path, None)] == [280, None, None]
    plan = choose(SPEEDS, 3600, 2, sizes=sizes_for(280))
    assert plan.size.vocab_size == 280 and plan.size.name == choose(SPEEDS, 3600, 2).size.name
    assert sizes_for(None) == SIZES
