"""What a run tells: log.jsonl and the progress display."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from kinds import LOSSES
from mom.training.callbacks import JsonLines, Progress


def lines(path: Path) -> list[dict[str, Any]]:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=no_constants) for line in path.read_text().splitlines()]


def test_log_tells_each_step(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    run_dir = tmp_path / "run"
    result = mom.train(small_run.model(), data, run_dir=run_dir, progress=False, **small_run.SETTINGS)
    log = lines(run_dir / "log.jsonl")
    steps = [entry for entry in log if entry["kind"] == "train"]
    assert [entry["step"] for entry in steps] == list(range(1, 21))
    weights = small_run.config().loss_weights
    for entry in steps:
        assert entry["loss"] == pytest.approx(sum(weights[term] * (entry[f"{term}_loss"] or 0.0) for term in LOSSES))
        assert entry["grad_norm"] > 0 and entry["tokens_per_second"] > 0 and entry["seconds"] > 0
        assert entry["peak_memory_bytes"] > 10_000_000
        assert 0 <= entry["skip_share"] <= 1
        for half in ("attn", "ffn"):
            use = np.array(entry["module_use"][half])
            assert use.shape == (1, 2, 4)  # block, round, three modules and SKIP
            np.testing.assert_allclose(use.sum(axis=-1), 1.0, atol=1e-4)
        both = np.array([entry["module_use"][half] for half in ("attn", "ffn")])
        assert entry["skip_share"] == pytest.approx(both[..., -1].mean(), abs=1e-4)
    assert steps[0]["lr"] == 0.0 and steps[3]["lr"] == 1e-2
    # 187 windows an epoch, 8 a step
    assert [entry["epoch"] for entry in steps] == [0] * 20
    evaluations = [entry for entry in log if entry["kind"] == "eval"]
    assert [entry["step"] for entry in evaluations] == [5, 10, 15, 20]
    assert all(entry["perplexity"] == pytest.approx(math.exp(entry["val_loss"])) for entry in evaluations)
    assert result.val_loss == evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]
    assert result.lm_loss == steps[-1]["lm_loss"]
    assert [e["step"] for e in log if e["kind"] == "checkpoint"] == [4, 8, 12, 16, 20]


def test_log_every_thins_the_log(tmp_path: Path) -> None:
    settings = {**small_run.SETTINGS, "log_every": 7, "save_every": 0}
    mom.train(
        small_run.model(), small_run.tokens(tmp_path / "t.bin"), run_dir=tmp_path / "run", progress=False, **settings
    )
    log = lines(tmp_path / "run" / "log.jsonl")
    assert [(e["kind"], e["step"]) for e in log] == [("train", 7), ("train", 14), ("train", 20), ("checkpoint", 20)]


def test_plain_model_has_no_routing_figures(tmp_path: Path) -> None:
    model = mom.MoM(small_run.config().vanilla_config())
    found: list[dict[str, Any]] = []
    mom.train(
        model, small_run.tokens(tmp_path / "t.bin"), steps=1, batch_size=1, sequence_length=16, progress=False,
        callbacks=[small_run.Call(found.append)],
    )  # fmt: skip
    assert found[0]["balance_loss"] is None and found[0]["skip_share"] is None
    assert found[0]["loss"] == found[0]["lm_loss"]


def test_resumed_log_drops_undone_steps_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    log = JsonLines(path, resume_step=2)
    log.record({"step": 3, "loss": float("nan")})
    log.close()
    assert lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": None}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_names_the_log(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    log._file.close()
    log._file = open("/dev/full", "a", encoding="utf-8")
    with pytest.raises(OSError, match=r"No space left on device: .*log\.jsonl"):
        log.record({"step": 1})
    with pytest.raises(OSError, match=r"No space left on device: .*log\.jsonl"):
        log.close()


def test_progress_without_a_terminal_is_a_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(100, 0, "run")
    for step in range(1, 101):
        progress.record(
            {"kind": "train", "step": step, "lm_loss": 2.5, "balance_loss": 1.0, "tokens_per_second": 1234.5}
        )
    progress.record({"kind": "skip", "step": 100, "reason": "loss is nan"})
    progress.close()
    said = capsys.readouterr().err.splitlines()
    assert 10 <= len(said) <= 13
    assert said[0] == "run: step 1/100 loss 2.5000 balance 1.000 tok/s 1,234"
    assert said[-2].startswith("run: step 100/100 ") and said[-1] == "run: step 100 skipped: loss is nan"


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(4, 1, "run")
    progress.record({"kind": "eval", "step": 1, "val_loss": 3.25})
    progress.record({"kind": "train", "step": 4, "lm_loss": 2.5, "balance_loss": None, "tokens_per_second": 10.0})
    progress.record({"kind": "eval", "step": 4, "val_loss": 3.0})
    progress.close()
    shown = terminal.getvalue()
    assert "run" in shown and "4/4" in shown and "val=3.2500" in shown and "balance" not in shown
    assert "loss=2.5000, val=3.0000, tok/s=10" in shown.splitlines()[-1].split("\r")[-1], "the last values stay"
