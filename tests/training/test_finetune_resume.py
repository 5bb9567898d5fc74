"""Fine-tuning that was stopped and resumed ends with the bits of fine-tuning that was not; callbacks may stop it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.training import FinetuneConfig
from mom.training.batches import MicroBatch, Rows
from mom.training.finetune import FinetuneInterrupted

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

#: Dropout and noisy routers draw random numbers, and the last batch of an epoch is smaller than the others.
CONFIG = mom.MoMConfig.preset(
    "demo", vocab_size=300, n_positions=32, n_embd=16, n_head=2, router_dim=8, depth_per_chunk=2,
    router_type="gru-softmax-random", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 4, "accumulation": 2, "lr": 0.01, "warmup": 2, "patience": 0, "progress": False,
}  # fmt: skip
WORDS = "a the red old lamp door cat river runs falls sings near".split()


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(3, 9)))


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    rng = np.random.default_rng(1)
    made = mom.MoM(CONFIG, seed=0)
    made.tokenizer = mom.Tokenizer.train([sentence(rng) for _ in range(50)], 300)
    return made


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {
        split: [{"sentence": sentence(rng), "label": i % 2} for i in range(count)]
        for split, count in (("train", 45), ("dev", 20))
    }


def finetune(model: mom.MoM, data: Any, **changes: Any) -> mom.glue.GlueResult:
    return mom.glue.finetune(model, "sst2", data, seeds=(3, 4), **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def whole(model: mom.MoM, data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return finetune(model, data, run_dir=folder), folder


def log(run_dir: Path, seed: int) -> list[dict[str, Any]]:
    lines = (run_dir / "sst2" / f"seed-{seed}" / "log.jsonl").read_text().splitlines()
    timed = {"time", "seconds", "tokens_per_second", "peak_memory_bytes"}
    entries = [json.loads(line) for line in lines]
    return [{k: v for k, v in entry.items() if k not in timed} for entry in entries if entry["kind"] != "checkpoint"]


def assert_same(found: Any, expected: Any) -> None:
    """Everything but times."""
    a, b = found.to_dict(), expected.to_dict()
    for run in (*a["seeds"], *b["seeds"]):
        del run["seconds"]
    assert a == b
    assert [seed.loop.history for seed in found.seeds] == [seed.loop.history for seed in expected.seeds]
    for name, value in expected.model.parameters.items():
        assert np.array_equal(found.model.parameters[name], value), name


class At:
    """Calls a function at the so many-th record of a kind."""

    def __init__(self, count: int, function: Any, kind: str = "train") -> None:
        self.left, self.function, self.kind = count, function, kind

    def record(self, record: dict[str, Any]) -> Any:
        self.left -= record["kind"] == self.kind
        if self.left == 0 and record["kind"] == self.kind:
            return self.function()
        return None


def crash() -> None:
    raise small_run.Crash


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------------- the same bits
def test_checkpoints_change_nothing(model: mom.MoM, data: Any, whole: Any) -> None:
    assert_same(finetune(model, data), whole[0])


@pytest.mark.parametrize("step", [1, 4, 8, 17, 20, 31])  # 18 steps a seed, evaluated after every third
def test_a_crashed_run_resumes_to_the_same_bits(
    model: mom.MoM, data: Any, whole: Any, tmp_path: Path, step: int
) -> None:
    with pytest.raises(small_run.Crash):
        finetune(model, data, run_dir=tmp_path, callbacks=[At(step, crash)])
    assert_same(finetune(model, data, run_dir=tmp_path, resume=True), whole[0])
    for seed in (3, 4):
        assert log(tmp_path, seed) == log(whole[1], seed)


@pytest.mark.parametrize("step", [2, 3, 18, 25])  # also steps that would have been evaluated
def test_a_signal_saves_and_the_run_resumes_to_the_same_bits(
    model: mom.MoM, data: Any, whole: Any, tmp_path: Path, step: int
) -> None:
    with pytest.raises(FinetuneInterrupted, match="resume goes on from ") as caught:
        finetune(model, data, run_dir=tmp_path, callbacks=[At(step, terminate)])
    done = (step - 1) % 18 + 1
    assert caught.value.loop.steps == done
    assert (tmp_path / "sst2" / f"seed-{3 if step <= 18 else 4}" / f"step-{done:08d}").is_dir()
    assert_same(finetune(model, data, run_dir=tmp_path, resume=True), whole[0])
    for seed in (3, 4):
        assert log(tmp_path, seed) == log(whole[1], seed)


def test_a_finished_run_is_not_trained_again(model: mom.MoM, data: Any, whole: Any) -> None:
    before = [log(whole[1], seed) for seed in (3, 4)]
    heard: list[Any] = []
    again = finetune(model, data, run_dir=whole[1], resume=True, callbacks=[At(-1, heard.append)])
    assert_same(again, whole[0])
    assert again.examples_per_second == whole[0].examples_per_second, "times are kept, too"
    assert [log(whole[1], seed) for seed in (3, 4)] == before


@pytest.mark.parametrize("train", ["routers", "head"])
def test_parts_of_a_model_resume_too(model: mom.MoM, data: Any, tmp_path: Path, train: str) -> None:
    expected = finetune(model, data, train=train)
    with pytest.raises(small_run.Crash):
        finetune(model, data, train=train, run_dir=tmp_path, callbacks=[At(22, crash)])
    assert_same(finetune(model, data, train=train, run_dir=tmp_path, resume=True), expected)


def test_patience_is_remembered(model: mom.MoM, data: Any, tmp_path: Path) -> None:
    settings = {"patience": 2, "eval_every": 1, "lr": 0.0}
    expected = finetune(model, data, **settings)
    assert all(seed.loop.stopped_early and 3 <= seed.loop.steps < 18 for seed in expected.seeds)
    with pytest.raises(small_run.Crash):
        finetune(model, data, run_dir=tmp_path, callbacks=[At(3, crash)], **settings)
    assert_same(finetune(model, data, run_dir=tmp_path, resume=True, **settings), expected)


def test_summaries_resume_too(model: mom.MoM, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rows = [{"document": sentence(rng), "summary": sentence(rng)} for _ in range(14)]
    data = {"train": rows, "validation": rows[:4]}
    settings = {**SETTINGS, "max_summary": 12}
    expected = mom.xsum.finetune(model, data, **settings)
    with pytest.raises(small_run.Crash):
        mom.xsum.finetune(model, data, run_dir=tmp_path, callbacks=[At(4, crash)], **settings)
    found = mom.xsum.finetune(model, data, run_dir=tmp_path, resume=True, **settings)
    assert found.to_dict() == expected.to_dict() and found.loop.history == expected.loop.history
    for name, value in expected.model.parameters.items():
        assert np.array_equal(found.model.parameters[name], value), name


# ---------------------------------------------------------------------- what does not fit
def test_a_used_folder_is_refused_before_anything_is_trained(model: mom.MoM, data: Any, whole: Any) -> None:
    heard: list[Any] = []
    with pytest.raises(mom.TrainingError, match="run_dir: .*seed-3 already holds checkpoints; use resume"):
        finetune(model, data, run_dir=whole[1], callbacks=[At(1, lambda: heard.append(1))])
    assert not heard
    with pytest.raises(mom.ConfigError, match="resume: needs a run_dir"):
        finetune(model, data, resume=True)


# ---------------------------------------------------------------------- stopping and records
def test_a_callback_may_stop_a_seed_with_its_last_evaluation(model: mom.MoM, data: Any) -> None:
    result = finetune(model, data, callbacks=[At(4, lambda: True)])
    first, second = (seed.loop for seed in result.seeds)
    assert (first.steps, first.stopped_early, [step for step, _ in first.history]) == (4, True, [3, 4])
    assert (second.steps, second.stopped_early) == (18, False)


def test_a_callback_may_stop_training_which_goes_on_later(tmp_path: Path) -> None:
    tokens = small_run.write_data(tmp_path / "data")
    whole, stopped = small_run.model(), small_run.model()
    settings = {**small_run.SETTINGS, "progress": False}
    mom.train(whole, tokens, **settings)
    for kind, count, step in (("train", 7, 7), ("eval", 1, 10)):
        found = mom.train(
            stopped, tokens, run_dir=tmp_path / "run", resume=step > 7, callbacks=[At(count, lambda: True, kind)],
            **settings,
        )  # fmt: skip
        assert (found.step, found.stopped_early, found.interrupted) == (step, True, None)
        assert found.checkpoint == tmp_path / "run" / f"step-{step:08d}" and found.history[-1][0] == step
    last = mom.train(stopped, tokens, run_dir=tmp_path / "run", resume=True, **settings)
    assert (last.step, last.stopped_early) == (20, False)
    assert [step for step, _ in last.history] == [5, 7, 10, 15, 20] and last.history[-1][1] == last.val_loss
    assert small_run.parameter_bytes(stopped) == small_run.parameter_bytes(whole)


def test_only_true_stops(model: mom.MoM, data: Any) -> None:
    result = finetune(model, data, max_steps=2, callbacks=[At(1, lambda: "yes"), At(1, lambda: 1)])
    assert [seed.loop.steps for seed in result.seeds] == [2, 2]


def test_records_have_one_schema(model: mom.MoM, data: Any, whole: Any, tmp_path: Path) -> None:
    tokens = small_run.write_data(tmp_path / "data")
    trained = mom.train(
        small_run.model(), tokens, run_dir=tmp_path / "run", **{**small_run.SETTINGS, "progress": False}
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for kind in ("train", "checkpoint"):
        ours = [line for line in map(json.loads, lines_of(whole[1])) if line["kind"] == kind]
        theirs = [line for line in lines if line["kind"] == kind]
        assert set(ours[0]) == {*theirs[0], "seed"}
    evaluated = next(line for line in log(whole[1], 3) if line["kind"] == "eval")
    assert set(evaluated) == {"kind", "step", "seed", "score", "accuracy", "best", "health", "alarms"}
    shown = [{k: v for k, v in line.items() if k != "module_use"} for line in lines]
    assert trained.records == shown
    steps = [record for record in whole[0].seeds[0].loop.records if record["kind"] == "train"]
    assert [record["step"] for record in steps] == list(range(1, 19)) and "module_use" not in steps[0]
    assert {record["epoch"] for record in steps} == {0, 1, 2}
    assert steps[0]["balance_loss"] is None and steps[0]["loss"] == pytest.approx(steps[0]["lm_loss"])


def lines_of(run_dir: Path) -> list[str]:
    return (run_dir / "sst2" / "seed-3" / "log.jsonl").read_text().splitlines()


# ---------------------------------------------------------------------- the order of rows
@pytest.mark.parametrize("done", [0, 1, 3, 6, 7])
def test_rows_go_on_where_they_were(done: int) -> None:
    lengths = [1 + i % 5 for i in range(11)]

    def make(rows: np.ndarray) -> MicroBatch:
        return MicroBatch({"rows": rows.tolist()}, len(rows), len(rows), len(rows))

    def source() -> Rows:
        return Rows(lengths, 2, 2, 9, make)

    def steps(rows: Rows, count: int) -> list[Any]:
        return [([batch.inputs["rows"] for batch in rows.next_step()], rows.epoch) for _ in range(count)]

    first, second = source(), source()
    expected = steps(first, 9)
    assert first.steps_per_epoch == 3 and [epoch for _, epoch in expected] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    steps(second, done)
    third = source()
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    assert steps(third, 9 - done) == expected[done:]


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows", "x" * 9999), ("rows", 4), ("epochs", -1), ("epochs", "1"), ("done", 9), ("done", True),
     ("random", None), ("random", {"bit_generator": "PCG64"}), ("random", {"bit_generator": "MT19937"})],
)  # fmt: skip
def test_a_malformed_position_is_an_error_that_names_the_field(name: str, value: Any) -> None:
    def made() -> Rows:
        return Rows([3, 5, 4], 2, 1, 0, lambda rows: MicroBatch({"rows": rows}, 0, 0, 0))

    state = made().state_dict()
    with pytest.raises(mom.DataError, match=f"^state: {name} is ") as caught:
        made().load_state_dict({**state, name: value})
    assert len(str(caught.value)) < 300
    with pytest.raises(mom.DataError, match="^state: expected the keys"):
        made().load_state_dict({key: item for key, item in state.items() if key != name})


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [(4, [0.25, 0.5, 0.75, 1.0]), (0.25, [0.5, 1.0]), (0.5, [0.25, 0.5, 0.75, 1.0]), (0, [1.0]), (1, [1.0])],
)
def test_warmup_is_steps_or_a_share_in_training_and_fine_tuning(
    model: mom.MoM, data: Any, tmp_path: Path, warmup: Any, rates: list[float]
) -> None:
    """Of 8 steps. Fine-tuning is a step ahead, so that its first step has a learning rate."""
    tuned = mom.glue.finetune(model, "sst2", data, **{**SETTINGS, "warmup": warmup, "lr": 1.0, "max_steps": 8})
    found = [record["lr"] for record in tuned.seeds[0].loop.records if record["kind"] == "train"]
    assert found[: len(rates)] == pytest.approx(rates) and found[len(rates)] <= 1.0
    tokens = small_run.tokens(tmp_path / "t.bin")
    settings = {"steps": 8, "batch_size": 1, "sequence_length": 16, "schedule": "linear", "lr": 0.5, "warmup": warmup}
    trained = mom.train(small_run.model(), tokens, progress=False, **settings)
    count = round(8 * warmup) if isinstance(warmup, float) else warmup
    rising = [0.5 * step / count for step in range(count)] + [0.5]
    assert [record["lr"] for record in trained.records[: count + 1]] == pytest.approx(rising)


def test_more_warmup_than_steps_is_refused(model: mom.MoM, data: Any) -> None:
    with pytest.raises(mom.ConfigError, match="warmup: 9 of 8 steps; a share of the steps is a float"):
        mom.glue.finetune(model, "sst2", data, **{**SETTINGS, "warmup": 9, "max_steps": 8})
    with pytest.raises(mom.ConfigError, match="warmup: 9 of 8 steps"):
        mom.TrainingConfig(steps=8, warmup=9)
    assert FinetuneConfig(warmup=1.0).warmup == 1.0 and mom.TrainingConfig(steps=8, warmup=1.0).warmup_steps == 8
