"""Points of a grid that Optuna chooses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import small_grid

import mom
from mom.sweep import read_grid, run, table

AXES: dict[str, Any] = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "routing_top_k": [1, 2], "seed": [0, 1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_grid.write_data(tmp_path_factory.mktemp("sampling") / "data")


def test_without_the_package_the_message_names_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="sampler='optuna' needs the package optuna: pip install optuna"):
        run(small_grid.grid(data, AXES, sampler="optuna", trials=2), tmp_path / "runs")


def test_points_are_tried_with_all_seeds_and_the_folder_is_the_memory(data: Path, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    grid = small_grid.grid(data, AXES, sampler="optuna", trials=3)
    result = run(grid, tmp_path / "runs", progress=False)
    assert len(result.done) == 6 and not result.failed
    found = table(tmp_path / "runs")
    assert list(found["n"]) == [2, 2, 2] and found["lr"].between(1e-4, 1e-1).all()

    before = {path.name for path in (tmp_path / "runs").iterdir()}
    assert len(run(grid, tmp_path / "runs", progress=False).done) == 6
    assert {path.name for path in (tmp_path / "runs").iterdir()} == before, "all points are known"
    told: list[Any] = []
    real = optuna.study.Study.add_trial
    optuna.study.Study.add_trial = lambda study, trial: (told.append((trial.params, trial.value)), real(study, trial))
    try:
        more = run({**grid, "trials": 4}, tmp_path / "runs", progress=False)
    finally:
        optuna.study.Study.add_trial = real
    assert len(more.done) == 8 and len({path.name for path in (tmp_path / "runs").iterdir()} - before) == 2
    by_lr = {row["lr"]: row["val_loss"] for _, row in found.iterrows()}
    assert {point["lr"]: value for point, value in told} == pytest.approx(by_lr), "means over seeds"


def test_a_point_that_fails_is_told(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    axes = {"trainable": ["nothing.*"], "lr": {"low": 0.1, "high": 0.2}}
    result = run(small_grid.grid(data, axes, sampler="optuna", trials=2), tmp_path / "runs", progress=False)
    assert len(result.failed) == 2 and not result.done


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "trials: missing; say how many points"),
        ({"trials": 0}, "trials: 0 is not a number of at least 1"),
        ({"trials": 1, "variant": [{"name": "a"}]}, "variant: has no meaning with the sampler 'optuna'"),
        ({"trials": 1, "axes": {"seed": [1]}}, "needs an axis beside seed"),
        ({"trials": 1, "axes": {"lr": {"low": 1}}}, "a range has low and high"),
        ({"trials": 1, "axes": {"lr": {"low": 2, "high": 1}}}, "grid: lr: "),
        ({"trials": 1, "axes": {"steps": {"low": 0, "high": 1}}}, "grid: steps=0: steps: 0 is less than 1"),
    ],
    ids=str,
)  # fmt: skip
def test_spaces_that_are_refused(data: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    pytest.importorskip("optuna")
    more = dict(more)
    with pytest.raises(mom.ConfigError, match=message):
        run(small_grid.grid(data, more.pop("axes", AXES), sampler="optuna", **more), tmp_path / "runs")


def test_an_interrupted_sweep_of_optuna_is_a_grid_of_its_points(data: Path, tmp_path: Path) -> None:
    """What it has run are ordinary trials, which a list of values finds again."""
    pytest.importorskip("optuna")
    run(small_grid.grid(data, {"lr": {"low": 0.01, "high": 0.02}}, sampler="optuna", trials=1), tmp_path / "runs",
        progress=False)  # fmt: skip
    (config,) = (tmp_path / "runs").glob("*/config.json")
    point = json.loads(config.read_text())["point"]
    (trial,) = read_grid(small_grid.grid(data, {"lr": [point["lr"]]})).trials()
    assert trial.hash == config.parent.name
