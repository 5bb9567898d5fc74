"""The benchmark scripts run, on sizes that say nothing, and their results have what the plots need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, timeout=300, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scaling_is_measured_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = (
        "--preset",
        "demo",
        "--tokens",
        "32",
        "--steps",
        "1",
        "--lengths",
        "16,32",
        "--pools",
        "2,3",
        "--rounds",
        "1,2",
    )
    out = run("bench_scaling.py", *small, "--output", "found.json", cwd=tmp_path)
    sweeps = json.loads((tmp_path / "found.json").read_text())["sweeps"]
    assert {name: len(rows) for name, rows in sweeps.items()} == {
        "length": 2, "pool": 2, "rounds": 2, "skip": 5, "threads": 2,
    }  # fmt: skip
    assert sweeps["skip"][0]["forced"] == {"attn": 0.0, "ffn": 0.0}
    assert sweeps["skip"][-1]["forced"] == {"attn": 1.0, "ffn": 1.0}
    flop = [row["flop"] for row in sweeps["skip"]]
    assert flop == sorted(flop, reverse=True) and flop[0] > flop[-1]
    assert "SKIP in reality" in out
    run("plot_scaling.py", "found.json", "--out_dir", "images", cwd=tmp_path)
    assert {path.stem for path in (tmp_path / "images").iterdir()} == {f"scaling_{name}" for name in sweeps}


def test_overheads_are_measured(tmp_path: Path) -> None:
    run("bench_overheads.py", "--repeats", "1", "--passes", "2", "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"import", "sentence", "python", "machine"} <= set(found)


def test_optimizer_is_measured(tmp_path: Path) -> None:
    run("bench_optimizer.py", "--presets", "mini", "--rounds", "1", "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())["presets"]["mini"]
    assert len(found["ways"]) == 4 and all(way["gb_per_second"][0] > 0 for way in found["ways"].values())


def test_decoding_is_measured(tmp_path: Path) -> None:
    small = ("--models", "demo", "--weights", "float32,int8", "--batches", "1,2", "--prompt", "4", "--new", "2")
    out = run("bench_decode.py", *small, "--rounds", "1", "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["weights"], row["batch"]) for row in found["rows"]] == [
        ("float32", 1), ("float32", 2), ("int8", 1), ("int8", 2),
    ]  # fmt: skip
    assert len(found["triad"]) == 2 and all(row["best"] > 0 and row["bound"] > 0 for row in found["rows"])
    assert "1 rounds; triad: best" in out


def test_train_step_is_measured(tmp_path: Path) -> None:
    run(
        "bench_train_step.py", "--configs", "mini", "--implementations", "mom", "--runs", "1", "--warmup", "0",
        "--steps", "1", "--output", "found.json", cwd=tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())["configs"]["mini"]["results"]["mom"]
    assert found["share_of_peak"] > 0 and found["share_of_matmul"] > 0


def test_finetuning_is_measured(tmp_path: Path) -> None:
    small = ("--tasks", "cola", "--batch-size", "4", "--output", "found.json")
    out = run("bench_finetune.py", *small, "--steps", "2", "--runs", "2", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())["measured"]["cola mini"]
    assert set(found["results"]) == {f"{c} {d}" for c in ("mom", "mom-vanilla") for d in ("float32", "bfloat16")}
    assert found["data"]["examples"] == 8 and found["data"]["padded_tokens"] >= found["data"]["tokens"] > 8
    assert all(row["best"] >= row["median"] > 0 for row in found["results"].values())
    assert "examples/s" in out and "made-up, log-normal" in out
