"""Sweeps in processes of their own: what runs, what is kept of failures, kills and signals, and who runs what."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kill_sweep
import pytest
import small_grid

import mom
from mom.files.locks import lock_folder
from mom.sweep import read_grid, run, table
from mom.sweep.trial import LOCK, Trial

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and locks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_grid.write_data(tmp_path_factory.mktemp("sweep") / "data")


@pytest.fixture(scope="module")
def grid(data: Path) -> dict[str, Any]:
    """Two variants of two seeds, one of them with two phases."""
    variant = [{"name": "one", "routing_top_k": 1}, {"name": "phases", "phase_one_steps": 4}]
    return small_grid.grid(data, variant=variant, measure=["whole_val_loss", "routes"])


@pytest.fixture(scope="module")
def whole(grid: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    result = run(grid, folder, processes=2, threads=2, progress=False)
    assert len(result.done) == 4 and not result.failed and not result.left
    return folder


def dones(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``done.json`` says of each trial, without times and threads."""
    timed = ("time", "seconds", "tokens_per_second", "threads")
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}
    return {name: {k: v for k, v in values.items() if k not in timed} for name, values in found.items()}


def trials(grid: dict[str, Any]) -> list[Trial]:
    return read_grid(grid).trials()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


# ------------------------------------------------------------------ what a trial leaves
def test_a_trial_is_what_its_configuration_says(whole: Path, grid: dict[str, Any], data: Path) -> None:
    """The same models, trained by hand, have the same bits."""
    one, _, phases, _ = trials(grid)
    config = mom.MoMConfig(**one.settings["model"])
    settings = {**one.settings["training"], **one.plan}
    model = mom.MoM(config, seed=0)
    result = mom.train(model, data, progress=False, **settings)
    done = dones(whole)[one.hash]
    assert done["val_loss"] == result.val_loss and done["history"] == [list(entry) for entry in result.history]
    assert done["best_val_loss"] == min(loss for _, loss in result.history)
    assert done["parameters_sha256"] == mom.training.fingerprint.digest_of_weights(model)
    whole_loss = mom.evaluate.token_file_loss(model, data, sequence_length=16, batch_size=2).loss
    assert done["whole_val_loss"] == whole_loss
    assert 0 <= done["routes"]["ffn"]["kept"] <= 1 <= done["routes"]["ffn"]["effective"] <= 4

    first = mom.MoM(config.vanilla_config(), seed=0)
    mom.train(first, data, progress=False, **{**settings, "steps": 4})
    second = mom.MoM.from_vanilla(first, mom.MoMConfig(**phases.settings["model"]), seed=0)
    mom.train(second, data, progress=False, **settings)
    assert dones(whole)[phases.hash]["parameters_sha256"] == mom.training.fingerprint.digest_of_weights(second)


def test_weights_are_removed_unless_they_are_to_be_kept(whole: Path, data: Path, tmp_path: Path) -> None:
    for folder in whole.glob("*/config.json"):
        assert sorted(path.name for path in folder.parent.iterdir()) == ["config.json", "done.json", "log.jsonl"]
    assert len(list(whole.glob("phase-one/*/model"))) == 2 and not list(whole.rglob("step-*"))
    kept = small_grid.grid(data, {})
    run(kept, tmp_path / "runs", keep_models=True, progress=False)
    (trial,) = trials(kept)
    model = mom.MoM.from_pretrained(tmp_path / "runs" / trial.hash / "model")
    assert dones(tmp_path / "runs")[trial.hash]["parameters_sha256"] == (
        mom.training.fingerprint.digest_of_weights(model)
    )


def test_a_sweep_is_one_process(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mom.sweep.running, "current", lambda: SimpleNamespace(size=2))
    with pytest.raises(mom.ConfigError, match="start it as a single process, without 'mom launch'"):
        run(small_grid.grid(data), tmp_path / "runs")


def test_threads_are_divided_before_python_starts(data: Path, tmp_path: Path) -> None:
    result = run(small_grid.grid(data), tmp_path / "runs", processes=2, threads=4, progress=False)
    assert len(result.done) == 2
    found = [json.loads(path.read_text())["threads"] for path in (tmp_path / "runs").glob("*/done.json")]
    assert found == [2, 2]


def test_nothing_runs_twice(whole: Path, grid: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    result = run(grid, whole, processes=2)
    assert len(result.done) == 4 and {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert capsys.readouterr().err.splitlines() == ["sweep: 4 trials, 2 at a time"]


def test_a_second_name_of_a_trial_is_kept(data: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run(small_grid.grid(data, {}, variant=[{"name": name}]), tmp_path / "runs", progress=False)
    assert list(table(tmp_path / "runs")["name"]) == ["first, second"]


# ------------------------------------------------------------------ failures
def test_a_failure_is_kept_and_does_not_stop_the_rest(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = [{"name": "bad", "trainable": ["nothing.*"]}, {"name": "good"}]
    grid, folder = small_grid.grid(data, {}, variant=variant), tmp_path / "runs"
    result = run(grid, folder)
    assert (result.done, result.failed) == (["good"], ["bad"])
    assert "bad: failed: ConfigError: trainable: 'nothing.*' fits no parameter" in capsys.readouterr().err
    bad = folder / trials(grid)[0].hash / "failed.json"
    failure = json.loads(bad.read_text())
    assert "run_trial" in failure["traceback"] and "trainable" in failure["error"]
    found = table(folder)
    assert list(found["n"]) == [1, 0] and list(found["failed"]) == [0, 1] and list(found["name"]) == ["good", "bad"]

    time_before = failure["time"]
    assert run(grid, folder, progress=False).failed == ["bad"]
    assert json.loads(bad.read_text())["time"] == time_before, "it is not run again by itself"
    assert run(grid, folder, progress=False, retry_failed=True).failed == ["bad"]
    assert json.loads(bad.read_text())["time"] > time_before


def test_a_failed_phase_one_fails_its_trials(data: Path, tmp_path: Path) -> None:
    grid = small_grid.grid(data, {}, phase_one_steps=3, trainable=["*.router.*"])
    result = run(grid, tmp_path / "runs", progress=False)
    (trial,) = trials(grid)
    failure = json.loads((tmp_path / "runs" / trial.hash / "failed.json").read_text())
    assert result.failed and failure["error"].startswith("ConfigError: phase one has failed: ConfigError: trainable")


def test_alarms_of_routing_are_in_the_table(data: Path, tmp_path: Path) -> None:
    rules = [mom.Force("ffn", to=2).to_dict()]
    variant = [{"name": "collapsed", "interventions": rules}, {"name": "hash", "router_type": "hash"}]
    run(small_grid.grid(data, {}, variant=variant), tmp_path / "runs", progress=False)
    found = table(tmp_path / "runs").set_index("name")["alarms"]
    assert "collapse" in found["collapsed"] and found["hash"] == ""


def test_changed_data_are_a_failure(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = small_grid.write_data(tmp_path / "data")
    plan = read_grid(small_grid.grid(copy, {}))
    plan.trials()  # reads the digests
    (copy / "train.bin").write_bytes((copy / "train.bin").read_bytes()[:-2])
    result = run(plan, tmp_path / "runs", progress=False)
    (failed,) = (tmp_path / "runs").glob("*/failed.json")
    assert result.failed and "train.bin has changed since the sweep began" in json.loads(failed.read_text())["error"]


def test_what_a_process_says_is_kept_even_if_it_cannot_begin(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'a library is missing' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    result = run(small_grid.grid(data, {}), tmp_path / "runs", progress=False)
    (failed,) = (tmp_path / "runs").glob("*/failed.json")
    failure = json.loads(failed.read_text())
    assert result.failed and failure["error"] == "its process ended with exit status 3"
    assert failure["traceback"] == "a library is missing\n"
    with pytest.raises(mom.errors.ConfigError, match="1 failed, one of them with its process ended with exit status 3"):
        table(tmp_path / "runs")
    monkeypatch.undo()
    assert run(small_grid.grid(data, {}), tmp_path / "runs", retry_failed=True, progress=False).done
    assert not list((tmp_path / "runs").glob("*/messages.txt")), "those of the failed try are gone"


# ------------------------------------------------------------------ kills and signals
def start(grid: dict[str, Any], folder: Path, *flags: str) -> subprocess.Popen[str]:
    """``mom sweep`` in a process."""
    folder.parent.mkdir(exist_ok=True, parents=True)
    file = folder.parent / "grid.toml"
    base = "\n".join(f"{name} = {json.dumps(value)}" for name, value in grid["base"].items())
    axes = "\n".join(f"{name} = {json.dumps(value)}" for name, value in grid["grid"].items())
    file.write_text(f"[base]\n{base}\n[grid]\n{axes}\n")
    command = [sys.executable, "-m", "mom", "sweep", str(file), "--dir", str(folder), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def long(data: Path) -> dict[str, Any]:
    """Two trials that take a while."""
    return small_grid.grid(data, steps=600, save_every=20, eval_every=100)


@pytest.fixture(scope="module")
def long_whole(long: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("long") / "runs"
    run(long, folder, processes=2, threads=2, progress=False)
    return dones(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_trials_with_a_checkpoint(
    long: dict[str, Any], long_whole: Any, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "runs"
    process = start(long, folder, "--processes", "2", "--threads", "2")
    wait_for(lambda: len({path.parent for path in folder.glob("*/step-*")}) == 2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the same command goes on with the others" in err
    for trial in folder.iterdir():
        steps = [json.loads(line)["step"] for line in (trial / "log.jsonl").read_text().splitlines()]
        assert max(int(path.name[5:]) for path in trial.glob("step-*")) == steps[-1], "no step is lost"
    assert run(long, folder, processes=2, threads=2, progress=False).failed == []
    assert dones(folder) == long_whole


@pytest.mark.slow
def test_trials_end_with_a_killed_sweep_and_the_next_one_goes_on(
    long: dict[str, Any], long_whole: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    process = start(long, folder, "--processes", "2", "--threads", "2")
    wait_for(lambda: len({path.parent for path in folder.glob("*/step-*")}) == 2)
    assert kill_sweep.kill(process, trials_too=False) == 1
    assert len(run(long, folder, processes=2, threads=2, progress=False).done) == 2, "it waits for the old processes"
    assert dones(folder) == long_whole


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_trial_goes_on_and_one_that_is_killed_again_and_again_has_failed(
    long: dict[str, Any], long_whole: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    process = start(long, folder, "--threads", "1")
    wait_for(lambda: list(folder.glob("*/step-*")))
    killed = 0
    while killed < 3:  # always the first of the two trials
        wait_for(lambda: kill_sweep.children_of(process.pid))
        (trial,) = kill_sweep.children_of(process.pid)
        os.kill(trial, signal.SIGKILL)
        killed += 1
        wait_for(lambda trial=trial: trial not in kill_sweep.children_of(process.pid))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert err.count("its process was killed; it goes on from its checkpoint") == 2
    assert "seed=0: failed: its process ended by SIGKILL (0/2 done, 1 failed)" in err and "seed=1" in err
    assert len(run(long, folder, progress=False, retry_failed=True).done) == 2
    assert dones(folder) == long_whole


# ------------------------------------------------------------------ several sweeps
@pytest.mark.slow
def test_two_sweeps_in_one_folder_share_the_trials(data: Path, tmp_path: Path) -> None:
    grid = small_grid.grid(data, {"seed": list(range(6))}, steps=40)
    results: list[Any] = []

    def sweep() -> None:
        results.append(run(grid, tmp_path / "runs", progress=False, threads=1))

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert [len(result.done) for result in results] == [6, 6]
    for log in (tmp_path / "runs").glob("*/log.jsonl"):
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"train"' in line]
        assert steps == list(range(1, 41)), "each step was made once"


def test_trials_share_a_first_phase(data: Path, tmp_path: Path) -> None:
    """The second trial waits until the first one has trained the plain model, and takes it."""
    grid = small_grid.grid(data, {"routing_top_k": [1, 2]}, phase_one_steps=40)
    assert len(run(grid, tmp_path / "runs", processes=2, threads=2, progress=False).done) == 2
    (log,) = (tmp_path / "runs" / "phase-one").glob("*/log.jsonl")
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"train"' in line]
    assert steps == list(range(1, 41))


def test_a_locked_trial_waits_and_is_not_run_here(data: Path, tmp_path: Path) -> None:
    grid, folder = small_grid.grid(data, {}), tmp_path / "runs"
    (trial,) = trials(grid)
    own = folder / trial.hash
    own.mkdir(parents=True)
    results: list[Any] = []
    with lock_folder(own, "dir", LOCK):
        thread = threading.Thread(target=lambda: results.append(run(grid, folder, progress=False)))
        thread.start()
        time.sleep(1.0)
        assert thread.is_alive() and not (own / "config.json").exists()
    thread.join(300)
    assert not thread.is_alive()
    assert results[0].done == ["base"]


@pytest.mark.slow
def test_folders_of_two_machines_are_merged_by_copying(whole: Path, grid: dict[str, Any], tmp_path: Path) -> None:
    for part in ("1/2", "2/2"):
        result = run(grid, tmp_path / part[0], part=part, progress=False)
        assert len(result.done) == 2
        shutil.copytree(tmp_path / part[0], tmp_path / "merged", dirs_exist_ok=True)
    assert table(tmp_path / "merged").equals(table(whole)) and dones(tmp_path / "merged") == dones(whole)
    assert len(run(grid, tmp_path / "merged", progress=False).done) == 4


def test_other_paths_of_the_data(whole: Path, grid: dict[str, Any], tmp_path: Path) -> None:
    """On another machine the data lie elsewhere; the trials are the same."""
    elsewhere = small_grid.write_data(tmp_path / "elsewhere")
    moved = {**grid, "base": {**grid["base"], "data": "nowhere"}}
    assert len(run(moved, whole, data=elsewhere, progress=False).done) == 4
