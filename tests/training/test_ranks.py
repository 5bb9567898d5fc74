"""Training on several ranks, over shared memory: the numbers are those of one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom import _core
from mom.distributed import current
from mom.distributed.shared_memory import run
from mom.errors import RankError
from mom.training import FinetuneConfig, together
from mom.training.finetune import RunOptions, fit_classifier, train_seeds
from mom.training.optimizer import AdamW
from mom.training.signals import StopSignals

STEPS = {"steps": 4, "warmup": 0, "eval_every": 2, "save_every": 0, "progress": False}
#: Kinds of models: noise and dropout, a plain GPT-2, bfloat16, a hash router with modules that no token reaches, a
#: coupling loss.
KINDS: dict[str, Callable[[], mom.MoM]] = {
    "noisy": small_run.model,
    "plain": lambda: mom.MoM(small_run.config().vanilla_config()),
    "bfloat16": lambda: mom.MoM(small_run.config(), dtype="bfloat16"),
    "unused": lambda: small_run.model(num_attn=8, num_ffn=8, routing_top_k=1, router_type="hash"),
    "coupled": lambda: small_run.model(router_type="linear", router_coupling_loss_coef=0.5, routing_top_k=1),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_run.write_data(tmp_path / "data")


def trained(make: Callable[[], mom.MoM], data: Path, **changes: Any) -> tuple[bytes, list[dict[str, Any]], Any]:
    """Parameters, records and the state of the random numbers after a run."""
    model = make()
    result = mom.train(model, data, **{**small_run.SETTINGS, **STEPS, **changes})
    timed = ("time", "seconds", "tokens_per_second", "peak_memory_bytes", "skip_share")
    records = [{name: value for name, value in record.items() if name not in timed} for record in result.records]
    return small_run.parameter_bytes(model), records, model.random_state


# ---------------------------------------------------------------------- the numbers of one process
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_one_process_with_the_same_micro_batches(data: Path, kind: str, size: int) -> None:
    settings = {"steps": 1, "eval_every": 0, "clip": 0.5}
    alone, (first, *_), drawn = trained(KINDS[kind], data, batch_size=2, accumulation=8, **settings)
    together = run(size, lambda: trained(KINDS[kind], data, batch_size=2 * size, accumulation=8 // size, **settings))
    assert all(parameters == together[0][0] for parameters, _, _ in together)
    for parameters, (record, *_), drawn_here in together:
        assert record["loss"] == first["loss"] and drawn_here == drawn
        assert record["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-6)
        np.testing.assert_allclose(np.frombuffer(parameters, np.float32), np.frombuffer(alone, np.float32), atol=1e-6)


def test_the_same_number_of_ranks_gives_the_same_bits(data: Path) -> None:
    runs = [run(3, lambda: trained(small_run.model, data, batch_size=5)[:2]) for _ in range(2)]
    assert runs[0][0][0] == runs[1][0][0] == runs[0][2][0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"tree_rows": 2}, {"clip": 0.01}, {"accumulation": 1, "batch_size": 3}, {"trainable": ("*.router.*",)},
     {"activation_checkpointing": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_gives_the_same_bits(data: Path, kind: str, changes: dict[str, Any]) -> None:
    if kind != "noisy" and "trainable" in changes:
        pytest.skip("these have no router")
    settings = {"reproducible": "ranks", **changes}
    alone = trained(KINDS[kind], data, **settings)
    for size in (1, 2, 3, 8):
        for rank, (parameters, records, drawn) in enumerate(run(size, lambda: trained(KINDS[kind], data, **settings))):
            assert parameters == alone[0] and drawn == alone[2], f"rank {rank} of {size}"
            if not rank:
                assert without_use(records) == without_use(alone[1])


def without_use(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what is counted of the last micro-batch of a rank."""
    return [{name: value for name, value in record.items() if name != "module_use"} for record in records]


def test_rows_of_unequal_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(small_run.VOCABULARY, size=length).astype(np.int32) for length in rng.integers(2, 16, 22)]
    labels = rng.integers(2, size=len(rows))
    config = FinetuneConfig(epochs=2, batch_size=4, accumulation=2, lr=1e-2, reproducible="ranks", tree_rows=2)

    def tune() -> bytes:
        model = mom.MoMForSequenceClassification(small_run.config(num_labels=2))
        fit_classifier(model, rows, labels, config, seed=3, evaluate=lambda: float(labels.mean()))
        return small_run.parameter_bytes(model)

    alone = tune()
    for size in (2, 3):
        assert run(size, tune) == [alone] * size


def test_evaluation_is_shared_and_the_same(data: Path) -> None:
    model = small_run.model()
    tokens = mom.data.TokenFile(data / "train.bin", vocab_size=small_run.VOCABULARY)

    def loss() -> float:
        return mom.training.evaluate_loss(model, tokens, 3, small_run.LENGTH, 11)

    assert run(4, loss) == [loss()] * 4


# ---------------------------------------------------------------------- shards
def test_ranks_hold_their_share_of_the_moments() -> None:
    model = small_run.model()
    whole = sum(tensor.size for tensor in model.parameters.values())
    for size in (1, 2, 5):
        bounds = _core.shard_bounds(model.core, size)
        assert bounds[0] == 0 and bounds[-1] == len(_core.parameter_block(model.core)) and (np.diff(bounds) >= 0).all()
        held = [_core.AdamW(model.core, rank, size) for rank in range(size)]
        parts = [sum(core.exp_avg(i).size for i in range(len(model.parameters))) for core in held]
        assert sum(parts) == whole
    with pytest.raises(ValueError, match=r"rank: 2 is not in \[0, 2\)"):
        _core.AdamW(model.core, 2, 2)
    with pytest.raises(ValueError, match="ranks: 0 is less than 1"):
        _core.shard_bounds(model.core, 0)


@pytest.mark.parametrize("preset", ["demo", "mini"])
def test_the_memory_plan_counts_the_share(preset: str) -> None:
    model = mom.MoM(mom.MoMConfig.preset(preset, vocab_size=2000))
    whole = model.memory_plan(2, 16).moments
    shares = []
    for rank in range(4):
        core = _core.AdamW(model.core, rank, 4)
        shares.append(model.memory_plan(2, 16).moments)
        del core
    assert sum(shares) <= whole and max(shares) < 0.27 * whole
    AdamW(model)
    assert model.memory_plan(2, 16).moments == whole


# ---------------------------------------------------------------------- checkpoints
def test_a_run_goes_on_with_another_number_of_ranks(data: Path, tmp_path: Path) -> None:
    settings = {**small_run.SETTINGS, **STEPS, "reproducible": "ranks", "save_every": 2, "steps": 8}
    alone = small_run.model()
    mom.train(alone, data, run_dir=tmp_path / "alone", **settings)

    def part(model: mom.MoM, last: int) -> bytes:
        result = mom.train(
            model, data, run_dir=tmp_path / "run", resume=True, callbacks=[StopAt(last)] if last < 8 else [], **settings
        )
        assert result.step == last
        return small_run.parameter_bytes(model)

    for size, last in ((4, 2), (2, 4), (1, 6), (4, 8)):
        parameters = set(run(size, lambda last=last: part(small_run.model(seed=0 if last == 2 else 9), last)))
        assert len(parameters) == 1
    assert parameters == {small_run.parameter_bytes(alone)}
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [tmp_path / folder / "step-00000008" / name for folder in ("alone", "run")]
        assert files[0].read_bytes() == files[1].read_bytes()


class StopAt:
    """A callback that ends the run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def record(self, record: dict[str, Any]) -> bool:
        return record["kind"] == "train" and record["step"] == self.step


def test_another_number_of_ranks_is_said_where_it_matters(data: Path, tmp_path: Path) -> None:
    settings = {**small_run.SETTINGS, **STEPS, "run_dir": tmp_path / "run"}
    run(2, lambda: mom.train(small_run.model(), data, **settings).step)
    with pytest.warns(UserWarning, match="resume: ranks was 2 and is now 1. From here on, numbers can differ"):
        mom.train(small_run.model(), data, resume=True, **{**settings, "steps": 6})


# ---------------------------------------------------------------------- ends
def test_only_the_first_rank_speaks_and_saves(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def work() -> Path | None:
        record = small_run.Call(lambda record: (seen / str(current().rank)).touch())
        result = mom.train(
            small_run.model(), data, run_dir=tmp_path / "run", callbacks=[record],
            **{**small_run.SETTINGS, **STEPS, "progress": True},
        )  # fmt: skip
        return result.checkpoint

    checkpoints = run(3, work)
    assert set(checkpoints) == {tmp_path / "run" / "step-00000004"}
    assert [path.name for path in seen.iterdir()] == ["0"]
    assert capfd.readouterr().err.count("train: step 4/4") == 1
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_one_rank_ends_all_after_the_step(data: Path, tmp_path: Path, name: str) -> None:
    settings = {**small_run.SETTINGS, **STEPS, "reproducible": "ranks"}
    whole = small_run.model()
    mom.train(whole, data, **settings)

    def work(resume: bool) -> tuple[str | None, bytes]:
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # nohup ignores SIGHUP
        model = small_run.model()
        send = small_run.Call(lambda record: record["step"] == 2 and os.kill(os.getpid(), getattr(signal, name)))
        try:
            callbacks = [] if resume else [send]
            mom.train(model, data, run_dir=tmp_path / "run", resume=resume, callbacks=callbacks, **settings)
        except mom.TrainingInterrupted as stop:
            assert stop.result.step == 2 and stop.result.checkpoint == tmp_path / "run" / "step-00000002"
            return stop.signal, b""
        return None, small_run.parameter_bytes(model)

    assert run(3, lambda: work(False)) == [(name, b"")] * 3
    assert run(3, lambda: work(True)) == [(None, small_run.parameter_bytes(whole))] * 3


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(data: Path) -> None:
    def work() -> tuple[list[str], bytes]:
        model = small_run.model()
        call = type(model).__call__

        class Broken(mom.MoM):
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                out = call(self, *args, **kwargs)
                if self.core.random_state[1] == 3 and self.training:  # the third micro-batch
                    out.losses["lm"] = float("nan")
                return out

        model.__class__ = Broken
        result = mom.train(model, data, **{**small_run.SETTINGS, **STEPS, "reproducible": "ranks"})
        assert result.skipped == 1
        reasons = [record["reason"] for record in result.records if record["kind"] == "skip"]
        return reasons, small_run.parameter_bytes(model)

    alone = work()
    assert run(2, work) == [alone] * 2 and alone[0][0].startswith("lm loss is nan, balance loss is 2")


def test_the_failure_of_a_rank_ends_all(data: Path, tmp_path: Path) -> None:
    class Full(mom.MoM):
        def backward(self, *args: Any, **kwargs: Any) -> None:
            raise MemoryError("no memory is left")

    def work() -> str:
        model = small_run.model()
        if current().rank == 2:
            model.__class__ = Full
        with pytest.raises((RankError, MemoryError)) as caught:
            mom.train(model, data, run_dir=tmp_path / "run", **{**small_run.SETTINGS, **STEPS})
        return f"{type(caught.value).__name__}: {caught.value}"

    said = run(3, work)
    assert said[2] == "MemoryError: no memory is left" and said[0] == said[1] == f"RankError: rank 2: {said[2]}"


@pytest.mark.parametrize("difference", ["model", "lr", "data", "seed"])
def test_ranks_that_differ_do_not_begin(data: Path, tmp_path: Path, difference: str) -> None:
    small_run.write_tokens(tmp_path / "other.bin", 3000, seed=7)

    def work() -> str:
        other = current().rank == 1
        model = small_run.model(seed=1 if other and difference == "seed" else 0)
        if other and difference == "model":
            model = small_run.model(resid_pdrop=0.2)
        settings = {**small_run.SETTINGS, **STEPS, "val_data": data / "val.bin"}
        source = tmp_path / "other.bin" if other and difference == "data" else data / "train.bin"
        if other and difference == "lr":
            settings["lr"] = 0.5
        with pytest.raises(mom.ConfigError) as caught:
            mom.train(model, source, **settings)
        return str(caught.value)

    said = run(2, work)
    field = {"model": "resid_pdrop: 0.2 (rank 0: 0.1)", "lr": "lr: 0.5 (rank 0: 0.01)", "data": "data: "}
    field["seed"] = "weights: "
    assert said[0] == said[1] and said[0].startswith("rank 1 has another run than rank 0: ")
    assert field[difference] in said[0]


def test_all_ranks_use_the_lowest_level(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    levels = mom.cpu_info()["levels"]
    if len(levels) < 2:
        pytest.skip("this processor has one level")

    def work() -> tuple[str, bytes]:
        mom.set_cpu_level(levels[-1] if current().rank else levels[0])
        model = small_run.model()
        mom.train(model, data, **{**small_run.SETTINGS, **STEPS, "reproducible": "ranks"})
        return mom.cpu_info()["level"], small_run.parameter_bytes(model)

    said = run(2, work)
    assert said[0] == said[1] and said[0][0] == levels[0]
    expected = f"all ranks use level {levels[0]}, the lowest of rank 0: {levels[0]}, rank 1: {levels[-1]}\n"
    assert capfd.readouterr().err.count(expected) == 1


def test_a_rank_whose_parameters_change_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_STEPS_BETWEEN_COMPARISONS", 2)
    agree = together.Together.agree

    def agree_with_fault(self: together.Together, *args: Any) -> None:
        if current().rank == 1 and args[-1] == 2:
            self.model.parameters["transformer.ln_f.bias"][3] += 1e-3
        agree(self, *args)

    monkeypatch.setattr(together.Together, "agree", agree_with_fault)

    def work() -> str:
        with pytest.raises(RankError) as caught:
            mom.train(small_run.model(), data, **{**small_run.SETTINGS, **STEPS, "reproducible": "ranks"})
        assert caught.value.ranks == [1]
        return str(caught.value)

    said = run(3, work)
    assert all("after step 2, the parameters of rank 1 differ from those of the other" in text for text in said)


def test_step_counts_of_the_balance_loss_are_refused(data: Path) -> None:
    with pytest.raises(mom.ConfigError, match="reproducible: 'ranks' is not possible with balance_counts='step'"):
        mom.train(small_run.model(balance_counts="step"), data, reproducible="ranks", **{**small_run.SETTINGS, **STEPS})


def test_the_plan_of_a_rank() -> None:
    model = small_run.model()
    alone = model.memory_plan(2, 16)
    assert (alone.ranks, alone.received, alone.sums) == (1, 0, 0) and "received" not in str(alone)
    for ranks in (2, 4):
        plan = model.memory_plan(2, 16, ranks=ranks, leaves=5)
        shard = int(np.diff(_core.shard_bounds(model.core, ranks)).max())
        assert plan.moments == 8 * shard and plan.received == 4 * ranks * shard
        assert plan.sums == 3 * 4 * len(_core.parameter_block(model.core))
        assert plan.total == alone.total - alone.moments + plan.moments + plan.received + plan.sums
        forward = model.memory_plan(2, 16, ranks=ranks, training=False)
        assert forward.total == model.memory_plan(2, 16, training=False).total
    for name in ("ranks", "leaves"):
        with pytest.raises(ValueError, match=name):
            model.memory_plan(2, 16, **{name: 0})


# ---------------------------------------------------------------------- bfloat16 between ranks
def test_gradients_sent_in_bfloat16_change_little(data: Path) -> None:
    plain = run(2, lambda: trained(small_run.model, data))[0]
    rounded = [run(2, lambda: trained(small_run.model, data, transport="bfloat16"))[0] for _ in range(2)]
    assert rounded[0][0] == rounded[1][0] != plain[0]
    exact, near = ([record for record in records if record["kind"] == "train"] for _, records, _ in (plain, rounded[0]))
    np.testing.assert_allclose([r["loss"] for r in near], [r["loss"] for r in exact], rtol=2e-3)
    norms = [records[0]["grad_norm"] for records in (exact, near)]
    assert norms[0] != norms[1] and norms[1] == pytest.approx(norms[0], rel=2**-8)


def test_which_is_refused_where_ranks_must_not_matter(data: Path) -> None:
    with pytest.raises(mom.ConfigError, match="transport: 'bfloat16' rounds"):
        mom.train(
            small_run.model(), data, **{**small_run.SETTINGS, **STEPS, "reproducible": "ranks", "transport": "bfloat16"}
        )


@pytest.mark.parametrize("size", [0, 1, 33, 20_000])
def test_numbers_in_bfloat16(size: int) -> None:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    bits, back = np.empty(size, np.uint16), np.empty(size, np.float32)
    _core.to_bfloat16(bits, values)
    _core.from_bfloat16(back, bits)
    np.testing.assert_array_equal(back.view(np.uint32) >> 16, bits)
    np.testing.assert_allclose(back, values, rtol=2**-8)
    with pytest.raises(ValueError, match=f"out: has {size + 1} elements, values {size}"):
        _core.to_bfloat16(np.empty(size + 1, np.uint16), values)
    with pytest.raises(TypeError, match="out"):
        _core.from_bfloat16(bits, bits)
    with pytest.raises(TypeError, match="values"):
        _core.to_bfloat16(bits, bits)


def test_a_signal_to_one_rank_between_two_seeds_ends_those_of_all() -> None:
    def seeds_trained() -> list[int]:
        signals = StopSignals()

        def fit(*_: Any) -> Any:
            if current().rank == 1:
                signals.append("SIGTERM")
            return SimpleNamespace(best_score=0.5)

        runs = train_seeds((3, 4), lambda seed: small_run.model(seed), fit, RunOptions(signals=signals), None)
        return list(runs.loops)

    assert run(2, seeds_trained) == [[3], [3]]


def test_all_ranks_must_have_a_run_dir_or_none(data: Path, tmp_path: Path) -> None:
    def train() -> str:
        with pytest.raises(mom.ConfigError) as caught:
            mom.train(small_run.model(), data, run_dir=None if current().rank else tmp_path / "run", **STEPS)
        return str(caught.value)

    assert run(2, train) == ["rank 1 has another run than rank 0: with run_dir: False (rank 0: True)"] * 2
