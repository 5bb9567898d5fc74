"""The benchmark scripts run, on sizes that say nothing, and their results have what the plots need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.training import pretrain

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


def test_laboratory_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    small = ("--batch", "2", "--pairs", "2", "--audit", "2", "--length", "8", "--lengths", "6", "--samples", "20")
    out = run("bench_laboratory.py", *small, "--threads", "1", "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["step"] for row in found["steps"]][:2] == ["plain", "own routes replayed"]
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in found["steps"])
    assert [(row["what"], row["tokens"]) for row in found["searches"]] == [
        ("audit", 16), ("oracle", 6), ("oracle, last round", 6), ("oracle, middle token", 6),
    ]  # fmt: skip
    assert all(row["ours"] > 0 and row["whole"] > 0 for row in found["searches"])
    assert "oracle, last round" in out


def test_ranks_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    small = ("--preset", "demo", "--rows", "4", "--length", "16", "--turns", "2", "--warmup", "0", "--steps", "2")
    out = run("bench_ranks.py", *small, "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [len(turn["ranks"]["seconds"]) for turn in found["turns"]] == [2, 2]
    assert found["ratios"] == sorted(found["ratios"]) and found["ratios"][0] > 0
    assert found["sent"] == 2 * 4 * (mom.MoM(mom.MoMConfig.preset("demo")).num_parameters // 2)
    assert "planned per process" in out and "ratio " in out


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


def test_share_of_finetuning_that_is_no_model_work(tmp_path: Path) -> None:
    chosen = ("--tasks", "cola", "--contestants", "mom-vanilla,hf-sdpa", "--dtypes", "bfloat16")
    out = run("bench_finetune.py", *chosen, "--share", "--output", "found.json", cwd=tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())["share"]
    assert list(found) == ["cola mini mom-vanilla bfloat16"]
    row = found["cola mini mom-vanilla bfloat16"]
    assert 0 < row["share"] < 1 and row["training_steps"] < row["total"]
    assert out.startswith("cola mini mom-vanilla bfloat16: reading ")


GOLDEN = BENCHMARKS.parent / "tests" / "data" / "golden"


def test_tables_of_results(tmp_path: Path) -> None:
    """A small run of everything in docs/results.md, and its numbers in the document."""
    for package in ("sklearn", "scipy", "rouge_score"):
        pytest.importorskip(package)
    texts = [f"Document {i} says what number {i * i} is, again and again." for i in range(40)]
    prepare(TextDocuments(texts), tmp_path / "data", vocab_size=300, val_fraction=0.1, progress=False)
    config = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=64, router_dim=8, depth_per_chunk=2)
    plain, routed = tmp_path / "runs" / "gpt2", tmp_path / "runs" / "mom"
    settings: dict[str, Any] = {"progress": False, "batch_size": 4, "accumulation": 1}
    data = tmp_path / "data"
    pretrain(config, data, plain / "all", phase="vanilla", tokens=9999, steps=8, **settings)
    pretrain(config, data, routed / "one", phase="vanilla", tokens=9999, steps=4, **settings)
    first = routed / "one" / "model"
    last = pretrain(config, data, routed / "two", phase="mom", vanilla=first, tokens=9999, steps=4, **settings).model
    quick: dict[str, Any] = {"epochs": 1, "progress": False, "max_length": 40}
    found = {
        task: mom.glue.finetune(last, task, GOLDEN / "glue", seeds=(0, 1, 2), out_dir=routed / "glue", **quick)
        for task in ("cola", "rte", "mrpc")
    }
    more = mom.glue.finetune(last, "cola", GOLDEN / "glue", seeds=(3,), out_dir=routed / "glue-more", **quick)
    scores = mom.xsum.evaluate(last, GOLDEN / "xsum", max_summary=8)
    (routed / "xsum").mkdir()
    (routed / "xsum" / "rouge.json").write_text(json.dumps(scores.to_dict()))
    whole = {"loss": 5.4321, "perplexity": 228.6, "bits_per_byte": 1.987}
    (routed / "valid.json").write_text(json.dumps([whole]))
    # A result clearly above its baseline, independent of how well such small models learn:
    written = json.loads((routed / "glue" / "rte" / "results.json").read_text())
    written["seeds"] = [{**seed, "accuracy": 0.9} for seed in written["seeds"]]
    written.update(baseline={"accuracy": 0.5}, dev_rows=100)
    (routed / "glue" / "rte" / "results.json").write_text(json.dumps(written))

    document = tmp_path / "results.md"
    document.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    run("results_table.py", str(plain), str(routed), "--output", str(document), cwd=tmp_path)
    text = document.read_text()
    assert text.startswith("before\n<!-- results:begin -->\n###") and text.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = {(row[0], row[1]): row for row in cells}
    tokens = {"gpt2": 2048, "mom, phase 1": 1024, "mom, phase 2": 1024}
    for name, count in tokens.items():
        (row,) = (row for row in cells if row[0] == name and len(row) == 8)
        assert row[2:4] == [f"{count:,}", f"{count if name != 'mom, phase 2' else 2 * count:,}"]
    assert rows["mom, phase 2", f"{last.num_parameters:,}"][5:] == ["5.432", "228.6", "1.987"]
    matthews = [100 * seed.metrics["matthews"] for seed in [*found["cola"].seeds, *more.seeds]]
    spread = f"{np.median(matthews):.1f} ({min(matthews):.1f} to {max(matthews):.1f})"
    assert rows["CoLA", "matthews"][2:5] == ["0.0", "", spread] and rows["CoLA", "matthews"][5] == "4"
    assert rows["RTE", "accuracy"][2:5] == ["50.0", "", "**90.0 (90.0 to 90.0)**"]
    accuracy = 100 * found["mrpc"].metrics["accuracy"]
    assert rows["", "accuracy"][4].startswith(f"{accuracy:.1f} (") and rows["MRPC", "f1"][6:] == [
        f"{found['mrpc'].train_rows:,}", "1", "16", f"{found['mrpc'].dev_rows:,}",
    ]  # fmt: skip
    assert rows["LEAD-1", f"{scores.lead['LEAD-1']['rouge1']:.2f}"][3] == f"{scores.lead['LEAD-1']['rougeL']:.2f}"
    assert rows["mom", f"{scores.rouge['rouge1']:.2f}"][4] == f"{scores.loss:.3f}"
    document.write_text("no marks")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "results_table.py"), str(routed), "--output", str(document)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "results.md: no <!-- results:begin -->" in done.stderr
    assert document.read_text() == "no marks"
