"""A run that was stopped and resumed ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import kill_resume
import numpy as np
import pytest
import small_run

import mom
from mom.files import folders

LAST = "step-00000020"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 20 steps that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    mom.train(small_run.model(), data, run_dir=folder, progress=False, **small_run.SETTINGS)
    return folder


def train(data: Path, run_dir: Path, *, resume: bool = False, callbacks: Any = (), **changes: Any) -> mom.MoM:
    """Train a model. With a checkpoint to resume from, its own weights are others: they do not matter."""
    model = small_run.model(seed=1000 if resume and any(run_dir.glob("step-*")) else 0)
    settings = {**small_run.SETTINGS, **changes}
    model.last_result = mom.train(  # type: ignore[attr-defined]
        model, data, run_dir=run_dir, resume=resume, callbacks=callbacks, progress=False, **settings
    )
    return model


def states(run_dir: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    folder = run_dir / LAST
    progress = json.loads((folder / "training.json").read_text())
    del progress["seconds"]
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes(), progress


def log(run_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    timed = {"time", "seconds", "tokens_per_second", "peak_memory_bytes", "path"}
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("step", [1, 3, 8, 13, 19])
def test_crashed_run_resumes_to_the_same_bits(data: Path, whole: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(small_run.Crash):
        train(data, tmp_path, callbacks=[small_run.crash_at(step)])
    model = train(data, tmp_path, resume=True)
    assert states(tmp_path) == states(whole)
    assert small_run.parameter_bytes(model) == b"".join(
        array.tobytes() for array in mom.MoM.from_pretrained(whole / LAST).parameters.values()
    )
    for kind in ("train", "eval"):
        assert log(tmp_path, kind) == log(whole, kind)


@pytest.mark.parametrize("before", [False, True])
def test_activation_checkpointing_may_come_and_go_between_runs(
    data: Path, whole: Path, tmp_path: Path, before: bool
) -> None:
    with pytest.raises(small_run.Crash):
        train(data, tmp_path, callbacks=[small_run.crash_at(9)], activation_checkpointing=before)
    model = train(data, tmp_path, resume=True, activation_checkpointing=not before)
    assert model.activation_checkpointing is False, "as it was before the run"
    assert states(tmp_path)[:2] == states(whole)[:2]
    assert log(tmp_path) == log(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_run_resumes_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for stop in (2, 9, 10, 17):
        end = small_run.Call(lambda record, stop=stop: record["step"] == stop and os.kill(os.getpid(), number))
        with pytest.raises(mom.TrainingInterrupted) as caught:
            train(data, tmp_path, resume=stop != 2, callbacks=[end])
        result = caught.value.result
        assert (caught.value.signal, result.interrupted, result.step) == (number.name, number.name, stop)
        assert str(caught.value) == f"train: step {stop}/20; resume goes on from {result.checkpoint}"
        assert result.checkpoint == tmp_path / f"step-{stop:08d}"
    assert train(data, tmp_path, resume=True).last_result.interrupted is None  # type: ignore[attr-defined]
    assert states(tmp_path) == states(whole)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("call", ["forward", "backward"])
def test_a_signal_within_a_step_leaves_no_trace_of_the_step(
    data: Path, whole: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seventh pass is the first of the fourth step; forward passes draw random numbers."""
    name = "backward" if call == "backward" else "__call__"
    real, calls = getattr(mom.MoM, name), []

    def broken_off(self: mom.MoM, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        out = real(self, *args, **kwargs)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return out

    monkeypatch.setattr(mom.MoM, name, broken_off)
    with pytest.raises(mom.TrainingInterrupted) as caught:
        train(data, tmp_path)
    assert caught.value.result.step == 3 and len(calls) == 7
    train(data, tmp_path, resume=True)
    assert states(tmp_path) == states(whole)


def test_an_interruption_ends_a_loop_over_runs(data: Path) -> None:
    """`except Exception` does not catch it."""
    end, steps = small_run.Call(lambda record: os.kill(os.getpid(), signal.SIGINT)), []
    with pytest.raises(KeyboardInterrupt, match="^train: step 1/20; without a run_dir, nothing is saved$"):
        for seed in range(3):
            with contextlib.suppress(Exception):
                steps.append(seed)
                mom.train(small_run.model(seed), data, callbacks=[end], progress=False, **small_run.SETTINGS)
    assert steps == [0]


def test_signal_in_the_last_step_breaks_its_evaluation_off(data: Path, whole: Path, tmp_path: Path) -> None:
    def end() -> small_run.Call:
        return small_run.Call(lambda record: record["step"] == 20 and os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(mom.TrainingInterrupted) as caught:
        train(data, tmp_path / "run", callbacks=[end()])
    assert caught.value.result.step == 20 and caught.value.result.history[-1][0] == 15
    train(data, tmp_path / "run", resume=True)
    assert states(tmp_path / "run") == states(whole)
    # Without an evaluation the run is over, so nothing is interrupted.
    model = mom.train(small_run.model(), data / "train.bin", callbacks=[end()], progress=False, **small_run.SETTINGS)
    assert model.interrupted is None and model.step == 20


def test_ignored_signal_stays_ignored(data: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        send = small_run.Call(lambda record: os.kill(os.getpid(), signal.SIGINT))
        assert train(data, tmp_path, callbacks=[send], steps=3).last_result.step == 3  # type: ignore[attr-defined]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    digests = kill_resume.kill_and_resume(tmp_path, steps=40, repeats=1, seed=seed)
    assert len(set(digests)) == 1


def test_terminated_process_saves_leaves_and_resumes(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    kill_resume.finish(kill_resume.start(data, tmp_path / "whole", 40, resume=False))
    process = kill_resume.start(data, tmp_path / "run", 40, resume=False)
    last = kill_resume.stop(process, 11, 0.0, signal.SIGTERM)
    assert process.returncode == 0 and (tmp_path / "run" / f"step-{last:08d}").is_dir()
    assert kill_resume.finish(kill_resume.start(data, tmp_path / "run", 40, resume=True)) == 40 - last
    assert kill_resume.digest(tmp_path / "run", 40) == kill_resume.digest(tmp_path / "whole", 40)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damaged_newest_checkpoint_is_passed_over_with_the_reason(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    with pytest.raises(small_run.Crash):
        train(data, tmp_path, callbacks=[small_run.crash_at(10)])
    newest = tmp_path / "step-00000008"
    file = newest / ("manifest.json" if damage == "manifest" else "optimizer.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:-5] if damage in ("truncate", "manifest") else content)
    result = train(data, tmp_path, resume=True).last_result  # type: ignore[attr-defined]
    [(path, reason)] = result.passed_over
    assert path == newest and file.name in reason
    assert f"passed over {newest}: {reason}" in capsys.readouterr().err
    assert states(tmp_path) == states(whole)
    assert not newest.exists()  # replaced by a good one, which gave way to newer ones


def test_resume_without_checkpoint_starts_from_the_beginning(data: Path, whole: Path, tmp_path: Path) -> None:
    train(data, tmp_path, resume=True)
    assert states(tmp_path) == states(whole)


def test_resume_of_a_finished_run_changes_nothing(data: Path, whole: Path) -> None:
    before = states(whole), (whole / "log.jsonl").read_text()
    result = train(data, whole, resume=True).last_result  # type: ignore[attr-defined]
    assert result.step == 20 and result.lm_loss == log(whole)[-1]["lm_loss"]
    assert (states(whole), (whole / "log.jsonl").read_text()) == before


def test_used_run_dir_is_refused_and_left_alone(data: Path, whole: Path) -> None:
    before = states(whole), (whole / "log.jsonl").read_text()
    with pytest.raises(mom.TrainingError, match="run_dir: .* already holds checkpoints"):
        train(data, whole)
    assert (states(whole), (whole / "log.jsonl").read_text()) == before


def test_resume_needs_a_run_dir(data: Path) -> None:
    with pytest.raises(mom.ConfigError, match="resume: needs a run_dir"):
        mom.train(small_run.model(), data, resume=True, progress=False, **small_run.SETTINGS)


def test_a_checkpoint_that_says_less_of_its_run_resumes_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """As written before runs kept their history."""
    with pytest.raises(small_run.Crash):
        train(data, tmp_path, callbacks=[small_run.crash_at(9)])
    folder = tmp_path / "step-00000008"
    kept = ("step", "random_state", "dtype", "config", "sampler", "skipped", "bad_in_a_row", "lm_loss", "val_loss")
    progress = json.loads((folder / "training.json").read_text())
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    files["training.json"] = json.dumps({name: progress[name] for name in kept})
    folders.write_folder(folder, files)
    result = train(data, tmp_path, resume=True).last_result  # type: ignore[attr-defined]
    assert states(tmp_path)[:2] == states(whole)[:2] and log(tmp_path) == log(whole)
    assert [step for step, _ in result.history] == [10, 15, 20]


def test_only_the_newest_checkpoints_are_kept(whole: Path) -> None:
    assert sorted(p.name for p in whole.glob("step-*")) == [f"step-{s:08d}" for s in (12, 16, 20)]


def test_checkpoint_is_a_model(whole: Path) -> None:
    model = mom.MoM.from_pretrained(whole / LAST)
    assert model.config == small_run.config()
    assert len(model.generate(np.array([1, 2]), 3)) == 5
