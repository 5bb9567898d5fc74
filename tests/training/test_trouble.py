"""Runs that go wrong: numbers that are not finite, full disks, settings that do not fit."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.files import folders

SETTINGS = {**small_run.SETTINGS, "eval_every": 0, "accumulation": 1}


@pytest.fixture
def data(tmp_path: Path) -> Any:
    return small_run.tokens(tmp_path / "tokens.bin")


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


class Poison:
    """Makes a weight NaN when `step` is over, and heals it after some skipped steps."""

    def __init__(self, model: mom.MoM, step: int, heal_after: int | None = None) -> None:
        self.weight = model.parameters["transformer.wte.weight"]
        self.step, self.heal_after, self.skips = step, heal_after, 0

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train" and record["step"] == self.step:
            self.good = self.weight.copy()
            self.weight[...] = np.nan
        if record["kind"] == "skip":
            self.skips += 1
            if self.skips == self.heal_after:
                self.weight[...] = self.good


def test_bad_steps_are_skipped_counted_and_change_nothing(data: Any, tmp_path: Path) -> None:
    model = small_run.model()
    result = mom.train(
        model, data, run_dir=tmp_path / "run", callbacks=[Poison(model, 6, heal_after=3)], progress=False, **SETTINGS
    )
    assert (result.step, result.skipped) == (20, 3)
    skips = records(tmp_path / "run", "skip")
    assert [(r["step"], r["skipped_steps"]) for r in skips] == [(7, 1), (8, 2), (9, 3)]
    assert all(r["reason"].startswith("lm loss is nan") for r in skips)
    assert [r["step"] for r in records(tmp_path / "run", "train")] == [*range(1, 7), *range(10, 21)]
    # The save of step 8 waits for the next good step.
    assert [r["step"] for r in records(tmp_path / "run", "checkpoint")] == [4, 10, 12, 16, 20]
    assert all(np.isfinite(array).all() for array in model.parameters.values())
    assert result.lm_loss is not None and result.lm_loss < 4.3


def test_run_stops_after_several_bad_steps_and_keeps_good_checkpoints(data: Any, tmp_path: Path) -> None:
    model = small_run.model()
    settings = {**SETTINGS, "save_every": 1, "keep_last": 1, "max_bad_steps": 4}
    with pytest.raises(
        mom.TrainingError, match=r"4 steps in a row were not finite \(the last: lm loss is nan.*at step 11"
    ):
        mom.train(
            model, data, run_dir=tmp_path, callbacks=[Poison(model, 7)], progress=False, **{**settings, "save_every": 6}
        )
    newest, _ = folders.latest_valid(tmp_path)
    assert newest == tmp_path / "step-00000006"
    assert all(np.isfinite(array).all() for array in mom.MoM.from_pretrained(newest).parameters.values())


def test_gradient_that_is_not_finite_is_skipped(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    step = mom.AdamW.step

    def poisoned(optimizer: mom.AdamW, clip: float, *, zero_grad: bool) -> float:
        calls.append(1)
        if len(calls) == 2:
            optimizer.model.gradients["transformer.ln_f.bias"][0] = np.inf
        return step(optimizer, clip, zero_grad=zero_grad)

    monkeypatch.setattr(mom.AdamW, "step", poisoned)
    skipped: list[dict[str, Any]] = []
    result = mom.train(
        small_run.model(), data, steps=4, batch_size=2, sequence_length=16, progress=False,
        callbacks=[small_run.Call(skipped.append, "skip")],
    )  # fmt: skip
    assert result.skipped == 1 and skipped[0]["step"] == 2 and skipped[0]["reason"] == "gradient norm is inf"


def test_skips_in_a_row_survive_a_resume(data: Any, tmp_path: Path) -> None:
    model = small_run.model()
    stop = small_run.Call(lambda record: record["step"] == 9 and (_ for _ in ()).throw(small_run.Crash))
    with pytest.raises(small_run.Crash):
        mom.train(
            model,
            data,
            run_dir=tmp_path / "run",
            callbacks=[Poison(model, 5, heal_after=2), stop],
            progress=False,
            **SETTINGS,
        )
    result = mom.train(small_run.model(), data, run_dir=tmp_path / "run", resume=True, progress=False, **SETTINGS)
    assert (result.step, result.skipped) == (20, 2)


def test_full_disk_leaves_checkpoints_and_model_usable(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_run.model()
    mom.train(whole, data, run_dir=tmp_path / "whole", progress=False, **SETTINGS)

    def full(path: Path, content: Any) -> Any:
        if path.name == "optimizer.safetensors" and "step-00000012" in str(path):
            path.write_bytes(b"part")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    write = folders._write_and_sync
    run_dir = tmp_path / "run"
    model = small_run.model()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write_and_sync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*optimizer\.safetensors"):
            mom.train(model, data, run_dir=run_dir, progress=False, **SETTINGS)
    assert sorted(path.name for path in run_dir.iterdir()) == ["log.jsonl", "step-00000004", "step-00000008"]
    for name in ("step-00000004", "step-00000008"):
        folders.verify_folder(run_dir / name)
    model.save_pretrained(tmp_path / "saved")
    losses = []
    for usable in (model, mom.MoM.from_pretrained(tmp_path / "saved")):
        usable.random_state = (0, 0)
        losses.append(usable(np.arange(16), labels=np.arange(16)).loss)
    assert losses[0] == losses[1]
    resumed = small_run.model(seed=9)
    mom.train(resumed, data, run_dir=run_dir, resume=True, progress=False, **SETTINGS)
    assert small_run.parameter_bytes(resumed) == small_run.parameter_bytes(whole)


def test_callbacks_are_closed_whatever_happens(data: Any) -> None:
    closed = []

    class Closing(small_run.Call):
        def close(self) -> None:
            closed.append(self)

    def fail(record: dict[str, Any]) -> None:
        raise small_run.Crash

    with pytest.raises(small_run.Crash):
        mom.train(
            small_run.model(), data, steps=2, batch_size=1, sequence_length=16, progress=False,
            callbacks=[Closing(fail), Closing(fail)],
        )  # fmt: skip
    assert len(closed) == 2


def test_sequence_longer_than_the_model_or_the_data_is_refused(data: Any, tmp_path: Path) -> None:
    with pytest.raises(mom.ConfigError, match="sequence_length: 17 is more than the model's n_positions = 16"):
        mom.train(small_run.model(), data, steps=1, sequence_length=17, progress=False)
    short = small_run.tokens(tmp_path / "short.bin", count=10)
    with pytest.raises(mom.DataError, match="10 tokens, fewer than one window"):
        mom.train(small_run.model(), short, steps=1, sequence_length=16, progress=False)


def test_short_validation_data_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run.write_data(tmp_path / "data")
    small_run.write_tokens(folder / "val.bin", 10)
    settings = {"steps": 1, "batch_size": 1, "sequence_length": 16, "progress": False}
    with pytest.raises(mom.DataError, match="val_data: .*val.bin holds 10 tokens, fewer than sequence_length = 16"):
        mom.train(small_run.model(), folder, val_data=folder / "val.bin", **settings)
    assert mom.train(small_run.model(), folder, **settings).val_loss is None
    assert "no validation: " in capsys.readouterr().err
    (folder / "val.bin").write_bytes(b"")
    assert mom.train(small_run.model(), folder, **settings).val_loss is None
    assert f"no validation: {folder / 'val.bin'} is empty" in capsys.readouterr().err
    with pytest.raises(mom.DataError, match="val.bin: empty"):
        mom.train(small_run.model(), folder, val_data=folder / "val.bin", **settings)


def test_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    large = small_run.write_tokens(tmp_path / "large.bin", 500, vocabulary=100)
    with pytest.raises(mom.DataError, match=r"id \d+ at position \d+ is not less than vocab_size = 64"):
        mom.train(
            small_run.model(), large, steps=30, batch_size=4, sequence_length=16, sampling="consecutive", progress=False
        )


@pytest.mark.parametrize("setting", ["tensorboard", "wandb"])
def test_some_callbacks_need_a_run_dir(data: Any, setting: str) -> None:
    with pytest.raises(mom.ConfigError, match=f"{setting}: needs a run_dir"):
        mom.train(small_run.model(), data, steps=1, sequence_length=16, progress=False, **{setting: True})


def test_other_models_and_settings_are_refused(tmp_path: Path) -> None:
    classifier = mom.MoMForSequenceClassification(mom.MoMConfig.preset("demo", num_labels=2))
    with pytest.raises(TypeError, match="^model: expected MoM, got MoMForSequenceClassification$"):
        mom.train(classifier, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^config: expected TrainingConfig, got dict$"):
        mom.train(mom.MoM(mom.MoMConfig.preset("demo")), tmp_path, {"steps": 1})  # type: ignore[arg-type]
