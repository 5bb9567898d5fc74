"""The scripts behind docs/evidence.md: from a small sweep to tables, and the numbers in them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.glue import TASKS
from mom.sweep import read_grid
from mom.sweep.trial import read_records

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sweeps need POSIX signals and locks"),
]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", EVIDENCE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EVIDENCE / f"{name}.py"), *map(str, words)], capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence") / "data"
    texts = [f"Document {i} says what number {i * i} is, again and again." for i in range(90)]
    prepare(TextDocuments(texts), folder, vocab_size=300, val_fraction=0.5, progress=False)
    return folder


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with the names of the real ones, collected as central comparison, as ablations, and as sharing."""
    for package in ("pandas", "scipy"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("evidence")
    base = {
        "preset": "demo", "n_embd": 16, "n_head": 2, "router_dim": 8, "n_positions": 64, "depth_per_chunk": 2,
        "steps": 4, "batch_size": 2, "eval_every": 2, "eval_batches": 2, "data": str(data),
    }  # fmt: skip
    variants = [
        {"name": "GPT-2", "vanilla": True}, {"name": "one choice", "routing_top_k": 1}, {"name": "MoM"},
        {"name": "nothing shared", "vanilla": True, "n_embd": 32}, {"name": "both shared", "num_ffn": 3},
    ]  # fmt: skip
    grid = {
        "base": base, "grid": {"seed": [0, 1]}, "variant": variants, "measure": ["whole_val_loss", "routes"],
        "keep_models": True,
    }  # fmt: skip
    result = mom.sweep.run(grid, folder / "runs", progress=False)
    assert len(result.done) == 10 and not result.failed
    for name in ("central", "levers", "sharing"):
        assert command("collect", folder / "runs", folder / name) == "10 trials\n"
    return folder


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_grids_are_possible(data: Path) -> None:
    """All trials of the real grids, with another text."""
    counts = {}
    for path in EVIDENCE.glob("*.toml"):
        grid = read_grid(path)
        grid.base.update(data=str(data), vocab_size=8192)
        found = grid.trials()
        counts[path.stem] = len(found)
        sizes = {
            trial.name: mom.ledger(mom.MoMConfig(**trial.settings["model"])).parameters()
            for trial in found if path.stem != "levers"
        }  # fmt: skip
        assert not sizes or max(sizes.values()) / min(sizes.values()) < 1.003
    assert counts["central"] == 3 * len(script("tables").variants("central"))
    assert counts["sharing"] == 12 and counts["levers"] >= 30


def test_a_copy_is_a_sweep_without_paths_and_weights(results: Path, data: Path) -> None:
    both = [mom.sweep.table(results / name) for name in ("runs", "central")]
    assert both[0].equals(both[1])
    text = "".join(path.read_text() for path in (results / "central").rglob("*.json*"))
    assert str(results) not in text and str(data) not in text and not list((results / "central").rglob("model"))


def test_losses_and_differences(results: Path) -> None:
    tables, losses = script("tables"), dict[tuple[str, int], float]()
    for record in read_records(results / "central"):
        for name in record.names:
            assert record.done is not None
            losses[name, record.flat["seed"]] = record.done["whole_val_loss"]
    rows = {row[0]: row for row in cells(tables.central(results))}
    assert list(rows) == ["GPT-2", "one choice"]
    mean = np.mean([losses["one choice", seed] for seed in (0, 1)])
    spread = np.std([losses["one choice", seed] for seed in (0, 1)], ddof=1)
    assert rows["one choice"][-2] == f"{mean:.3f} ± {spread:.3f}"
    less = np.mean([losses["one choice", seed] - losses["GPT-2", seed] for seed in (0, 1)])
    assert rows["one choice"][-1].startswith(f"{less:+.3f} (") and rows["GPT-2"][-1] == ""
    assert rows["GPT-2"][3:5] == ["6.0", "6.0"], "layers of the plain model"
    kept = {row[0]: row for row in cells(tables.levers(results))}
    assert [len(kept[name]) for name in ("GPT-2", "MoM")] == [12, 12] and kept["GPT-2"][6:] == [""] * 6
    sizes = {record.done["parameters"] for record in read_records(results / "levers") if "MoM" in record.names}
    assert kept["MoM"][1] == f"{sizes.pop() / 1e6:.2f}" and not sizes
    assert [row[0] for row in cells(tables.sharing(results))] == ["nothing shared", "both shared"]


def test_tasks_are_done_once_and_shown(results: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "scipy", "rouge_score", "pandas"):
        pytest.importorskip(package)
    tasks, tables = script("tasks"), script("tables")
    monkeypatch.setattr(tasks, "GLUE", {"sst2": {"epochs": 1}, "rte": {"epochs": 1}})
    monkeypatch.setitem(tasks._COMMON, "max_length", 40)
    monkeypatch.setitem(tasks.XSUM, "max_summary", 8)
    monkeypatch.setattr(tasks, "TUNED", ("GPT-2", "one choice"))
    words = {"glue": GOLDEN / "glue", "xsum": GOLDEN / "xsum", "data": data / "val.bin", "out_dir": results / "tasks"}
    flags = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["tasks.py", str(results / "runs"), *flags])
    tasks.main()
    before = {path: path.stat().st_mtime_ns for path in (results / "tasks").rglob("*.json")}
    assert {path.name for path in before} == {"flops.json", "prune.json", "sst2.json", "rte.json", "xsum.json"}
    tasks.main()
    assert before == {path: path.stat().st_mtime_ns for path in (results / "tasks").rglob("*.json")}
    scores = {row[0]: row for row in cells(tables.glue(results))}
    assert list(scores) == ["SST-2", "RTE"] and all("to" in cell for cell in scores["RTE"][3:5])
    assert [row[0] for row in cells(tables.xsum(results))] == ["LEAD-1", "LEAD-3", "GPT-2", "one choice"]
    pruned = cells(tables.pruning(results))
    assert pruned[0][:2] == ["one choice", "4 + 4"] and pruned[0][2].startswith("0.000")
    (mega,) = (row[2] for row in cells(tables.central(results)) if row[0] == "GPT-2")
    config = next(r for r in read_records(results / "central") if "GPT-2" in r.names).settings["model"]
    counted = mom.ledger(mom.MoMConfig(**config), 8, 64, training=False).flops() / 8 / 64
    assert float(mega) == pytest.approx(counted / 1e6, abs=0.051)


def test_margin_is_two_standard_errors() -> None:
    tables = script("tables")
    rng = np.random.default_rng(0)
    shares = (rng.random((4000, 400)) < 0.8).mean(axis=1)  # of a model that is as good as the baseline
    assert tables.margin(TASKS["sst2"], 0.8, 400) == pytest.approx(2 * shares.std(), rel=0.05)
    a, b = rng.standard_normal((2, 2000, 400))
    correlations = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1) / (a.std(1) * b.std(1))
    assert tables.margin(TASKS["stsb"], 0.0, 400) == pytest.approx(2 * correlations.std(), rel=0.05)


def test_routes_by_round(results: Path, data: Path) -> None:
    tables = script("tables")
    (record,) = (r for r in read_records(results / "runs") if "MoM" in r.names and r.flat["seed"] == 0)
    path = results / "travel" / f"{record.folder.name}.json"
    path.parent.mkdir()
    small = ("--sequences", 2, "--searched", 2, "--samples", 40, "--changed", 3)
    command("travel", record.folder / "model", "--data", data / "val.bin", "--output", path, *small)
    found = json.loads(path.read_text())
    model = mom.MoM.from_pretrained(record.folder / "model").eval()
    ids = mom.data.TokenFile(data / "val.bin").windows(np.arange(2) * 64, 64)
    routes: Any = model(ids, return_routes=True, keep=False).routes
    for half in ("attn", "ffn"):
        first = routes.module[half][..., 0]
        assert [row["stay"] for row in found[half]] == [None, pytest.approx((first[1] == first[0]).mean())]
        assert all(0 < row["added"] and 0 < row["gradient"] for row in found[half])
        assert -1 <= found[half][1]["input"] <= 1
    assert found["oracle"]["regret"] >= 0
    assert [row[:2] for row in cells(tables.rounds(results))] == [
        ["MoM, 4 steps", "attention"], ["MoM, 4 steps", "feed-forward"],
    ]  # fmt: skip
    assert cells(tables.oracles(results))[0][0] == "MoM, 4 steps"
    path = results / "distil.json"
    small = ("--sequences", 3, "--length", 6, "--samples", 20, "--steps", 3)
    both = ("--train", data / "train.bin", "--data", data / "val.bin")
    command("distil", record.folder / "model", *both, "--output", path, *small)
    found = json.loads(path.read_text())
    assert found["regret"] >= 0 and found["receipt"]["after"]["route_loss"] < found["receipt"]["before"]["route_loss"]
    assert all(np.isfinite(found[name][when]) for name in ("taught", "unseen") for when in ("before", "after"))


def test_tables_go_into_the_document(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    tables = script("tables")
    marks = "".join(f"before\n<!-- {name}:begin -->\nold\n<!-- {name}:end -->\nafter\n" for name in tables.TABLES)
    page = (EVIDENCE.parents[1] / "docs" / "evidence.md").read_text()
    assert {"central", "levers"} <= set(re.findall(r"<!-- (\w+):begin -->", page)) <= tables.TABLES.keys()
    document = tmp_path / "evidence.md"
    document.write_text(marks)
    command("tables", "--results", results, "--output", document, "--images", tmp_path)
    expected = marks
    for name, made in tables.TABLES.items():  # without results there is no table
        old, end = f"<!-- {name}:begin -->\nold", f"\n<!-- {name}:end -->"
        expected = expected.replace(old + end, f"<!-- {name}:begin -->\n{made(results) or 'old'}{end}")
    assert document.read_text() == expected != marks
    assert tables.central(results) in expected and (tmp_path / "evidence_losses.png").stat().st_size > 1000
    document.write_text("no marks")
    with pytest.raises(SystemExit, match="the document has no <!-- central:begin -->"):
        monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(results), "--output", str(document)])
        tables.main()
    assert document.read_text() == "no marks"
