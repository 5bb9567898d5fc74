"""The arithmetic of the benchmark scripts: what they count, divide and print equals a count one by one."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mom
from mom.glue import TASKS, finetuning
from route_entries import entry

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

BASE = mom.MoMConfig(
    vocab_size=60, n_positions=24, n_embd=12, n_head=3, n_inner=20, chunks=2, num_attn=3, num_ffn=3, depth_per_chunk=3,
    num_bottom_layers=1, num_top_layers=1, require_anchor_layer=True, router_type="gru-softmax", router_dim=5,
    routing_top_k=2,
)  # fmt: skip
COUNTED = {
    "recurrent, top-2": BASE,
    "recurrent with noise, top-1": BASE.replace(router_type="gru-random-softmax", routing_top_k=1),
    "naive, no anchors": BASE.replace(
        router_type="naive", num_bottom_layers=0, num_top_layers=0, require_anchor_layer=False
    ),
    "no SKIP": BASE.replace(enable_pause=False),
    "single attention": BASE.replace(num_attn=1),
    "single feed-forward": BASE.replace(num_ffn=1, router_type="naive-softmax"),
    "fewer attention modules": BASE.replace(num_attn=2, num_ffn=4, depth_per_chunk=1),
    "own choices": BASE.replace(num_attn=4, num_ffn=2, router_choices="own"),
    "all paths": BASE.replace(routing_all_possible_path=True),
    "plain": mom.MoMConfig.vanilla(3, vocab_size=60, n_positions=24, n_embd=12, n_head=3, n_inner=20),
}


def script(name: str) -> Any:
    """A benchmark as a module; they find each other by their folder."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


def moved(model: mom.MoM) -> mom.MoM:
    """The model with parameters well away from their fresh values, so that tokens go different ways."""
    rng = np.random.default_rng(0)
    for value in model.parameters.values():
        value += 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    return model


# ---------------------------------------------------------------------- multiplications
def count_one_by_one(model: mom.MoM, shape: tuple[int, int], routes: Any) -> dict[str, int]:
    """Multiplications of a forward pass: tokens go through the model's matrices one by one."""
    config = model.config
    size = {name: value.size for name, value in model.parameters.items() if value.ndim == 2}
    total = dict.fromkeys(("anchors", "modules", "routers", "attention", "head"), 0)

    def of(*parts: str) -> int:
        found = [size[name] for name in size if all(part in f"{name}." for part in parts) and ".router." not in name]
        assert len(found) == 1, parts
        return found[0]

    block = -1
    for place, kind in enumerate(config.places()):
        block += kind == "block"
        prefix = f"transformer.h.{place}."
        for round in range(config.rounds if kind == "block" else 1):
            for half, names in (("attn", ("c_attn", "c_proj")), ("ffn", ("c_fc", "c_proj"))):
                folder = {"attn": ".attn." if config.is_vanilla else ".mot_attn.",
                          "ffn": ".mlp." if config.is_vanilla else ".mot_ffn."}[half]  # fmt: skip
                modules = getattr(config, f"num_{half}") if kind == "block" else 1
                route = entry(routes, half, block, round) if kind == "block" else None
                for b in range(shape[0]):
                    earlier = 0  # tokens with a key and a value
                    for t in range(shape[1]):
                        chosen: list[str] = [".weight."]
                        if route is not None:
                            every = config.routing_all_possible_path
                            kept = range(modules) if every else [m for m in route["index"][b, t] if m < modules]
                            chosen = [f".{m}.weight." for m in kept]
                            matrices = [n for n in size if n.startswith(f"{prefix}mot_{half}.router.")]
                            # The state of the first round is zero and is not multiplied.
                            total["routers"] += sum(size[n] for n in matrices if round or "h2h" not in n)
                        for name in names:
                            for m in chosen:
                                total["anchors" if kind == "anchor" else "modules"] += of(prefix, folder, f".{name}", m)
                        if half == "attn" and chosen:
                            earlier += 1
                            total["attention"] += 2 * earlier * config.n_embd  # scores, then values
    total["head"] = shape[0] * (shape[1] - 1) * size["transformer.wte.weight"]
    return total


@pytest.mark.parametrize("name", COUNTED)
def test_multiplications_are_those_of_every_single_token(name: str) -> None:
    config, shape = COUNTED[name], (2, 17)
    model = moved(mom.MoM(config, seed=3))
    tokens = np.random.default_rng(0).integers(0, 60, shape)
    state = model.random_state  # of noise
    found = model(tokens, return_routes=True, keep=False).routes
    model.random_state = state
    chosen = script("bench_scaling").routes(model, tokens) if not config.is_vanilla else None
    counted = script("bench_train_step").multiplications(config, *shape, chosen)
    assert counted == {part: 6.0 * count for part, count in count_one_by_one(model, shape, found).items()}
    skips = sum(int((index >= getattr(config, f"num_{half}")).sum())
                for half, rounds in (chosen or {}).items() for index in rounds)  # fmt: skip
    assert (skips > 0) is (config.enable_pause and not config.is_vanilla), "the test says something"


def test_tokens_that_skip_attention_are_left_out_of_it() -> None:
    config = BASE.replace(
        chunks=1, depth_per_chunk=1, num_bottom_layers=0, num_top_layers=0, require_anchor_layer=False
    )
    skip, shape = 3, (1, 4)
    index = np.array([[[0, skip], [skip, skip], [2, 1], [skip, 0]]])  # tokens 0, 2 and 3 see 1, 2 and 3 of each other
    chosen = {"attn": [index], "ffn": [np.full_like(index, 9)]}
    counted = script("bench_train_step").multiplications(config, *shape, chosen)
    assert counted["attention"] == 6.0 * 2 * (1 + 2 + 3) * 12
    assert counted["modules"] == 6.0 * 4 * (4 * 12 * 12)
    assert counted["anchors"] == 0.0 and counted["head"] == 6.0 * 3 * 12 * 60


def test_choices_that_are_missing_are_named() -> None:
    count = script("bench_train_step").multiplications
    with pytest.raises(ValueError, match="chosen: no choices for half 'attn', which has 3 modules"):
        count(BASE, 1, 4, {})
    index = np.zeros((1, 4, 2), int)
    with pytest.raises(ValueError, match="chosen: 5 rounds for half 'attn', expected 6"):
        count(BASE, 1, 4, {"attn": [index] * 5, "ffn": [index] * 6})


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_skip_is_forced_as_far_as_wanted(share: float) -> None:
    scaling = script("bench_scaling")
    model = moved(mom.MoM(BASE.replace(routing_top_k=1), seed=3))
    tokens = np.random.default_rng(1).integers(0, 60, (8, 24))
    told = scaling.force_skip(model, tokens, share)
    for half, modules in (("attn", 3), ("ffn", 3)):
        index = model(tokens, return_routes=True).routes.index[half]
        assert told[half] == pytest.approx((index >= modules).mean())
        assert told[half] == pytest.approx(share, abs=0.0 if share in (0.0, 1.0) else 0.05)


# ---------------------------------------------------------------------- train steps
def a_sample(speed: float, peak: int) -> dict[str, Any]:
    return {"tokens_per_second": speed, "step_seconds": [200 / speed] * 2, "peak_bytes": peak, "losses": [3.0, 2.0],
            "flop": {"modules": 3e9, "head": 1e9}, "versions": {"mom": "0"}}  # fmt: skip


def test_train_steps_are_summed_up_and_compared() -> None:
    bench = script("bench_train_step")
    name = next(n for n, i in bench.IMPLEMENTATIONS.items() if len(i.yardsticks) > 1)
    slow, fast = bench.IMPLEMENTATIONS[name].yardsticks[:2]
    samples = {
        name: [a_sample(s, p) for s, p in ((100.0, 10), (400.0, 12), (200.0, 11))],
        slow: [a_sample(10.0, 5)] * 3,
        fast: [a_sample(s, 24) for s in (50.0, 80.0, 160.0)],
    }
    results = {n: bench.summarise(found, 40.0, None) for n, found in samples.items()}
    row = results[name]
    assert (row["tokens_per_second_best"], row["tokens_per_second_median"], row["peak_bytes"]) == (400.0, 200.0, 12)
    # 200 tokens and 4 GFLOP in a step: the best run has two steps per second.
    assert row["flop_per_step"] == 4e9 and row["gflops_best"] == pytest.approx(8.0)
    assert row["share_of_matmul"] == pytest.approx(0.2) and row["share_of_peak"] is None
    ratio = bench.compare(name, results, samples)
    assert ratio == {"against": fast, "speed_best": 2.5, "speed_median_of_rounds": 2.0, "memory": 0.5}
    assert bench.compare(name, {name: row}, samples) is None


def test_table_of_train_steps(capsys: pytest.CaptureFixture[str]) -> None:
    bench = script("bench_train_step")
    results = {"mom": bench.summarise([a_sample(100.0, 2_500_000_000)], 40.0, 16.0)}
    ratios = {"mom": {"against": "x", "speed_best": 1.5, "speed_median_of_rounds": 1.25, "memory": 0.5}}
    bench.print_table("mini", results, ratios, {"y": "no torch"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "mini: B {}, T {}".format(*bench.WORKLOADS["mini"])
    assert lines[3].split() == ["mom", "100", "100", "2.50", "4.0", "2.0", "5", "%", "12", "%", "2.0000"]
    assert lines[4].split() == ["y", "unavailable:", "no", "torch"]
    assert lines[5] == "mom / x: speed 1.50x best to best, 1.25x median over rounds; memory 0.50x"


# ---------------------------------------------------------------------- scaling
def test_table_of_scaling(capsys: pytest.CaptureFixture[str]) -> None:
    def point(value: float, shape: tuple[int, int], seconds: list[float], flop: float) -> dict[str, Any]:
        return {"value": value, "shape": shape, "threads": 2, "parameters": 1_500_000, "flop": flop, "forced": None,
                "peak_gflops": 10.0 * value, "step_seconds": seconds,
                "part_seconds": {"forward": [0.1, 0.3, 0.2], "backward": [0.4], "optimizer": [0.05]}}  # fmt: skip

    rows = [point(1, (2, 50), [0.2, 0.1, 0.4], 1e9), point(2, (1, 200), [0.8, 0.6, 0.9], 4e9)]
    script("bench_scaling").print_table("rounds", rows)
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[2:])
    assert first == ["1", "2", "50", "1.5", "100.0", "200.0", "1000.0", "1.00", "1.0", "1.00", "10.0", "50", "%",
                     "200.0", "400.0", "50.0"]  # fmt: skip
    # 3 ms per token against 1, 20 MFLOP per token against 10, 4 GFLOP in 0.6 s of the 20 GFLOP/s measured in any round
    assert second[2:] == ["200", "1.5", "600.0", "800.0", "3000.0", "3.00", "4.0", "2.00", "6.7", "33", "%",
                          "200.0", "400.0", "50.0"]  # fmt: skip


# ---------------------------------------------------------------------- fine-tuning
class Clock:
    """A clock that advances only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def slow(self, function: Any, seconds: float) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return run


def test_share_of_fine_tuning_counts_every_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, clock = script("bench_finetune"), Clock()
    calls: dict[str, int] = {}

    def counted(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return function(*args, **kwargs)

        return run

    cost = {"read_glue": 3.0, "encode_texts": 5.0, "baseline_metrics": 2.0, "glue_metrics": 7.0, "fit_classifier": 11.0,
            "classify": 13.0}  # fmt: skip
    originals = {}
    for name, seconds in cost.items():
        slowed = counted(name, clock.slow(getattr(finetuning, name), seconds))
        monkeypatch.setattr(finetuning, name, slowed)
        originals[name] = slowed
    monkeypatch.setattr(bench, "time", clock)
    monkeypatch.setattr(bench, "PRESETS", {"tiny": ("demo", "demo")})
    monkeypatch.setattr(bench, "MADE_UP_ROWS", {"train": 24, "dev": 8})
    options = argparse.Namespace(data=None, seed=0, threads=1, epochs=2, batch_size=8)
    before = mom.get_num_threads()
    try:
        found = bench.share("cola", "tiny", "mom", "float32", options)
    finally:
        mom.set_num_threads(before)
    calls["read_glue"] -= 1  # of the texts for the tokenizer, before the clock starts
    assert calls["read_glue"] == calls["encode_texts"] == 2 and calls["glue_metrics"] >= 4
    assert calls["fit_classifier"] == calls["baseline_metrics"] == 1
    expected = {"reading": 3.0 * 2, "tokenising": 5.0 * 2, "metrics": 2.0 + 7.0 * calls["glue_metrics"]}
    assert {part: found[part] for part in expected} == expected
    assert found["total"] == sum(cost[name] * count for name, count in calls.items())
    assert found["share"] == pytest.approx(sum(expected.values()) / found["total"])
    assert 0.0 < found["training_steps"] < 60.0, "by the real clock"
    assert all(getattr(finetuning, name) is function for name, function in originals.items()), "put back"


def test_speeds_of_fine_tuning_are_compared_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench_finetune")
    about = {"examples": 12, "folders": {}, "batches": "", "tokens": 60, "padded_tokens": 75}
    monkeypatch.setattr(bench, "prepare", lambda *_: dict(about))
    seconds = {"mom float32": [9.0, 3.0, 2.0, 4.0], "hf-eager float32": [9.0, 12.0, 12.0, 12.0],
               "hf-sdpa float32": [9.0, 6.0, 8.0, 4.0]}  # fmt: skip; the first of each is not counted

    class Fake:
        def __init__(self) -> None:
            self.left: dict[str, Iterator[float]] = {key: iter(values) for key, values in seconds.items()}

        def ask(self, what: str, about: Any = None) -> Any:
            return {"seconds": next(self.left[about]), "cpus": 1.0, "losses": [0.5]} if what == "sample" else None

    fake = Fake()
    options = SimpleNamespace(contestants=["mom", "hf-eager", "hf-sdpa"], dtypes=["float32"], runs=3)
    results = bench.measure("cola", "mini", {"mom": fake, "torch": fake}, options)["results"]
    assert results["mom float32"] == {
        "best": 6.0, "median": 4.0, "first_loss": 0.5, "against": "hf-sdpa float32", "times_best": 2.0,
        "times_median": 2.0,
    }  # fmt: skip
    assert results["hf-eager float32"] == {"best": 1.0, "median": 1.0, "first_loss": 0.5}


def test_batches_of_fine_tuning_are_spread_over_all_lengths() -> None:
    bench = script("bench_finetune")
    rng = np.random.default_rng(0)
    rows = [np.zeros(n, np.int32) for n in rng.integers(1, 60, 401)]
    options = argparse.Namespace(batch_size=8, steps=5, seed=0)
    chosen = bench.choose_batches(rows, options)
    sums = [sum(len(rows[i]) for i in batch) for batch in chosen]
    assert [len(batch) for batch in chosen] == [8] * 5 and sums == sorted(sums)
    assert len({int(i) for batch in chosen for i in batch}) == 40
    assert sums[2] == pytest.approx(8 * statistics.median(len(row) for row in rows), rel=0.2)


def test_made_up_rows_have_the_columns_and_lengths_of_the_task() -> None:
    bench = script("bench_finetune")
    data = bench.made_up(TASKS["rte"], seed=1)
    assert {split: len(rows) for split, rows in data.items()} == bench.MADE_UP_ROWS
    assert all(set(row) == {*TASKS["rte"].hub_texts, "label"} for row in data["train"])
    for column, (median, _) in zip(TASKS["rte"].hub_texts, bench.WORDS["rte"], strict=True):
        assert statistics.median(len(row[column].split()) for row in data["train"]) == pytest.approx(median, rel=0.1)
    assert {row["label"] for row in data["train"]} == {0, 1}


# ---------------------------------------------------------------------- decoding
def test_bytes_of_a_step_are_those_of_the_matrices_it_reads() -> None:
    bench = script("bench_decode")
    own = bench.MomWorker({"threads": mom.get_num_threads(), "prompt": 4, "new": 3})
    config = BASE.replace(n_positions=24)
    own.models["tiny"] = mom.MoM(config, seed=3)
    for weights, width in (("float32", 4), ("int8", 1)):
        found = own.bytes_per_step(bench.Contestant("mom", "tiny", weights, 2))
        decoder = mom.Decoder(own.models["tiny"], weights)
        decoder.prefill(bench.prompts(2, 4, 60))
        size = {n: v.size * (width if bench.is_converted(n) else 4) for n, v in own.models["tiny"].parameters.items()}
        executed, distinct = [], []
        for _ in range(3):
            decoder.generate(1)
            read: list[str] = [n for n in size if "wte" in n or "ln_f" in n]
            for place, kind in enumerate(config.places()):
                inside = [n for n in size if n.startswith(f"transformer.h.{place}.")]
                if kind == "anchor":
                    read += inside
                    continue
                for half in ("attn", "ffn"):
                    for round in range(config.rounds):
                        route = decoder.route(place, round, half)
                        assert route is not None
                        modules = {int(m) for m in route["index"].ravel() if m < 3}
                        own_half = [n for n in inside if f"mot_{half}." in n]
                        read += [n for m in modules for n in own_half if n.endswith((f".{m}.weight", f".{m}.bias"))
                                 and ".router." not in n]  # fmt: skip
                        read += [n for n in own_half if ".router." in n and (round or "h2h.weight" not in n)]
            executed.append(sum(size[n] for n in read))
            distinct.append(sum(size[n] for n in set(read)))
        assert found["executed"] == pytest.approx(statistics.mean(executed))
        assert found["distinct"] == pytest.approx(statistics.mean(distinct))
        assert found["distinct"] < found["executed"]


# ---------------------------------------------------------------------- optimizer, results, arguments
def test_table_of_the_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    way = {"bytes_per_parameter": 28, "seconds": [0.004, 0.002, 0.001], "gb_per_second": [10.0, 20.0, 40.0]}
    found = {"parameters": 2_000_000, "triad": [20.0, 10.0, 50.0], "stream": [40.0, 40.0, 40.0], "ways": {"w": way}}
    script("bench_optimizer").print_table("mini", found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["mini: 2.0 M parameters", "memory, triad: best 50.0, median 20.0 GB/s",
                          "memory, stream: best 40.0, median 40.0 GB/s"]  # fmt: skip
    # 10/20, 20/10 and 40/50 of triad, 10/40, 20/40 and 40/40 of stream
    assert lines[5].split() == ["w", "28", "1.00", "2.00", "40.0", "20.0", "80", "%", "50", "%"]


def test_margin_of_results_is_two_standard_errors() -> None:
    results = script("results_table")
    rng = np.random.default_rng(0)
    shares = (rng.random((4000, 400)) < 0.8).mean(axis=1)  # of a model that is as good as the baseline
    assert results.margin(TASKS["sst2"], 0.8, 400) == pytest.approx(2 * shares.std(), rel=0.05)
    a, b = rng.standard_normal((2, 2000, 400))
    correlations = ((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))).mean(1) / (a.std(1) * b.std(1))
    for task in ("cola", "stsb"):
        assert results.margin(TASKS[task], 0.0, 400) == pytest.approx(2 * correlations.std(), rel=0.05)
    assert {t: results.deciding(TASKS[t]) for t in ("cola", "mrpc", "stsb", "qnli")} == {
        "cola": "matthews", "mrpc": "accuracy", "stsb": "pearson", "qnli": "accuracy",
    }  # fmt: skip
    assert results.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | --: |\n| x | 1 |"


def test_arguments_are_read() -> None:
    common = script("common")
    assert common.integers("16,32,") == [16, 32] and common.at_least(0)("0") == 0
    assert common.some_of(["a", "b"])("b,a,b") == ["b", "a"]
    assert common.best_and_median([3.0, 1.0, 2.0]) == (1.0, 2.0)
    for parse, text, message in (
        (common.at_least(2), "1", "1 is less than 2"), (common.at_least(2), "x", "'x' is not an integer"),
        (common.integers, "0", "0 is less than 1"), (common.some_of(["a"]), "c", "'c' is not one of a"),
        (common.some_of(["a"]), ",", "expected some of a"),
    ):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            parse(text)


# ---------------------------------------------------------------------- matrix products
def test_matrix_products_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    bench = script("bench_gemm")
    small = [
        bench.Product("mini", "square", "forward", "plain", (32,), 32, 32, 32),
        bench.Product("mini", "flat", "to weights", "gathered", (5, 9), 16, 64, 16, out_in=True),
    ]
    monkeypatch.setattr(bench, "gemm_products", lambda preset: small)
    for precision in ("float32", "bfloat16"):
        file = tmp_path / "gemm.json"
        flags = ["--presets", "mini", "--repeats", "2", "--precision", precision, "--output", str(file)]
        assert bench.main(flags) == 0
        names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[-3:-1]]
        assert names == ["mini square", "mini flat"]
        rows = json.loads(file.read_text())["products"]
        assert [(row["m"], row["k"], row["n"], row["groups"]) for row in rows] == [(32, 32, 32, 1), (16, 5, 64, 2)]
        assert all(row[name] > 0 for row in rows for name in ("peak", "mom", "mom_median", "numpy", "numpy_median"))


@pytest.mark.parametrize("direction", ["forward", "to inputs", "to weights"])
@pytest.mark.parametrize("kind", ["plain", "gathered"])
@pytest.mark.parametrize("out_in", [False, True])
def test_compared_matrix_products_are_equal(direction: str, kind: str, out_in: bool) -> None:
    rows = (24,) if kind == "plain" else (7, 11)
    product = script("bench_gemm").Product("mini", "x", direction, kind, rows, 24, 10, 13, out_in)
    arrays = product.arrays()
    compute, results = arrays.numpy()
    compute()
    ours = mom.ops.gemm_grouped(arrays.ours())
    for mine, numpys in zip(ours, results, strict=True):
        assert mine.shape == numpys.shape and np.allclose(mine, numpys, rtol=1e-4, atol=1e-4)
    m, k, n = product.shape
    assert ours[0].shape == (m, n) and (k == product.rows[0]) == (direction == "to weights")
    assert product.flop == 2.0 * sum(rows) * 10 * 13


def test_every_kind_of_matrix_product_is_listed() -> None:
    for preset in ("mini", "base"):
        found = {(p.direction, p.kind) for p in script("bench_gemm").gemm_products(preset)}
        assert {d for d, _ in found} == {"forward", "to inputs", "to weights"}
        assert {k for _, k in found} == {"plain", "grouped", "gathered"}
