"""Callbacks that a setting switches on: what TensorBoard and Weights & Biases get to see of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_run

import mom

SETTINGS = {**small_run.SETTINGS, "steps": 6, "eval_every": 3, "save_every": 0}


def numbers_of(run_dir: Path) -> dict[str, dict[int, float]]:
    """The numbers in ``log.jsonl`` by ``<kind>/<field>`` and step, and the means of the figures of health."""
    found: dict[str, dict[int, float]] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            if key != "step" and isinstance(value, (int, float)):
                found.setdefault(f"{entry['kind']}/{key}", {})[entry["step"]] = value
        for half, figures in entry.get("health", {}).items():
            for key in ("effective_modules", "skip_share", "router_entropy", "flips"):
                if (values := [value for value in figures[key] if value is not None]):
                    found.setdefault(f"eval/{half}/{key}", {})[entry["step"]] = sum(values) / len(values)
    return found


def train(run_dir: Path, **settings: Any) -> mom.MoM:
    data = small_run.write_data(run_dir.parent / "data")
    model = small_run.model()
    mom.train(model, data, run_dir=run_dir, progress=False, **{**SETTINGS, **settings})
    return model


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path / "run", tensorboard=True)
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={reader.SCALARS: 0})
    events.Reload()
    expected = numbers_of(tmp_path / "run")
    assert set(events.Tags()["scalars"]) == set(expected)
    assert {"train/loss", "train/balance_loss", "eval/val_loss", "checkpoint/time"} <= set(expected)
    for tag, values in expected.items():
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == list(values), tag
        assert [scalar.value for scalar in scalars] == pytest.approx(list(values.values()), rel=1e-6), tag


class FakeRun:
    """Stands for a run of Weights & Biases: keeps what it is given."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.finished = arguments, 0
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that the stand-in for the package has begun."""
    begun: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        begun.append(FakeRun(**arguments))
        return begun[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[misc]
    return begun


def test_wandb_gets_every_number_and_the_settings(tmp_path: Path, runs: list[FakeRun]) -> None:
    rules = [mom.Forbid("ffn", modules=[1])]
    model = train(tmp_path / "my-run", wandb=True, interventions=rules)
    (run,) = runs
    assert run.finished == 1 and run.arguments["config"]["interventions"] == [rules[0].to_dict()]
    assert run.arguments["name"] == "my-run" and run.arguments["dir"] == str(tmp_path / "my-run")
    config = run.arguments["config"]
    assert mom.TrainingConfig(**{name: config[name] for name in mom.TrainingConfig.names()}).lr == SETTINGS["lr"]
    assert config["model"] == {**model.config.to_dict(), "dtype": "float32"}
    steps = [step for step, _ in run.logged]
    assert steps == sorted(steps)
    found: dict[str, dict[int, float]] = {}
    for step, values in run.logged:
        for tag, value in values.items():
            found.setdefault(tag, {})[step] = value
    assert found == numbers_of(tmp_path / "my-run")


def test_wandb_is_finished_when_a_run_breaks_off_and_begun_anew_when_it_is_resumed(
    tmp_path: Path, runs: list[FakeRun]
) -> None:
    data, run_dir = small_run.write_data(tmp_path / "data"), tmp_path / "run"
    settings = {**SETTINGS, "save_every": 2, "wandb": True, "progress": False}
    with pytest.raises(small_run.Crash):
        mom.train(small_run.model(), data, run_dir=run_dir, callbacks=[small_run.crash_at(5)], **settings)
    mom.train(small_run.model(), data, run_dir=run_dir, resume=True, **settings)
    assert [run.finished for run in runs] == [1, 1]
    assert [{step for step, _ in run.logged} for run in runs] == [{1, 2, 3, 4}, {5, 6}]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=rf"^{package}=True needs the package {package}: pip install {package}"):
        train(tmp_path / "run", **{package: True})
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    train(tmp_path / "run")  # the folder is as good as new


def test_wandb_itself_works_offline(tmp_path: Path) -> None:
    """In a process of its own, since the package starts a service."""
    pytest.importorskip("wandb")
    code = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
import test_callbacks
test_callbacks.train(pathlib.Path(sys.argv[1]), wandb=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    offline = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(command, env=offline, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"train/grad_norm" in content and b"eval/val_loss" in content and b"router_type" in content
