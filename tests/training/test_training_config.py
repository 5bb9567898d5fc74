"""Settings: TOML there and back, numbers of NumPy's types, and errors that name the field and what was meant."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom import FinetuneConfig, MoMConfig, TrainingConfig
from mom.settings import Settings

EVERY = pytest.mark.parametrize("kind", [MoMConfig, TrainingConfig, FinetuneConfig])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 7, "warmup": 3, "lr": 3e-4, "schedule": "linear", "sampling": "consecutive", "tensorboard": True,
         "wandb": True},
        {"clip": math.inf, "warmup": 0, "eps": 1e-12, "seed": 2**40},
    ],
)
def test_toml_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = TrainingConfig(**changes)
    file = tmp_path / "run.toml"
    file.write_text(config.to_toml())
    assert TrainingConfig.from_toml(file) == config
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_toml_may_have_fields_at_top_level(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 12\nlr = 1\n")
    assert TrainingConfig.from_toml(file) == TrainingConfig(steps=12, lr=1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("steps = = 3", "run.toml: not valid TOML"),
        ("stepz = 3", "run.toml: stepz: unknown training field; did you mean 'steps'"),
        ("[training]\nstepz = 3", "run.toml: stepz: unknown training field; did you mean 'steps'"),
        ("training = 3", "run.toml: training is not a table"),
        ("steps = 1.5", "run.toml: steps: expected int, got float 1.5"),
        ("tensorboard = 1", "run.toml: tensorboard: expected bool"),
        ("wandb = 1", "run.toml: wandb: expected bool"),
        ("lr = true", "run.toml: lr: expected float"),
        ("lr = nan", "run.toml: lr: nan is not in"),
    ],
)
def test_bad_toml_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(mom.ConfigError, match=message):
        TrainingConfig.from_toml(file)


def test_toml_that_is_no_text_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(mom.ConfigError, match="not valid TOML"):
        TrainingConfig.from_toml(tmp_path / "run.toml")
    with pytest.raises(FileNotFoundError):
        TrainingConfig.from_toml(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "field, value",
    [
        ("steps", 0), ("batch_size", 0), ("sequence_length", 1), ("accumulation", 0), ("lr", -1.0), ("lr", math.inf),
        ("schedule", "step"), ("warmup", -1), ("warmup", 5001), ("final_lr", 1.5), ("beta1", 1.0), ("beta2", -0.1),
        ("eps", 0.0), ("weight_decay", math.nan), ("clip", 0.0), ("clip", math.nan), ("sampling", "all"), ("seed", -1),
        ("eval_every", -1), ("eval_batches", 0), ("save_every", -1), ("keep_last", 0), ("log_every", 0),
        ("max_bad_steps", 0), ("batch_size", 2**21), ("steps", "many"), ("steps", True), ("seed", None),
    ],
)  # fmt: skip
def test_values_out_of_range_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(mom.ConfigError, match=f"^{field}: "):
        TrainingConfig(**{field: value})


def test_derived_values() -> None:
    assert TrainingConfig(steps=250).warmup_steps == 25
    assert TrainingConfig(steps=250, warmup=0).warmup_steps == 0
    assert TrainingConfig(batch_size=3, sequence_length=5, accumulation=7).tokens_per_step == 105
    with pytest.raises(mom.ConfigError, match="^step: unknown training field; did you mean 'steps'"):
        TrainingConfig().replace(step=1)


# ---------------------------------------------------------------------- what all settings share
@EVERY
def test_all_settings_survive_a_mapping_and_a_file(kind: type[Settings], tmp_path: Path) -> None:
    changed: dict[type[Settings], dict[str, Any]] = {
        MoMConfig: {"n_embd": 24, "router_type": "gru", "use_ste": True, "resid_pdrop": 0.25},
        TrainingConfig: {"warmup": 0.25, "clip": math.inf, "tensorboard": True},
        FinetuneConfig: {"warmup": 7, "train": "head", "dropout": 0.0},
    }
    for config in (kind(), kind(**changed[kind])):
        assert kind.from_dict(config.to_dict()) == config
        file = tmp_path / "settings.toml"
        file.write_text(config.to_toml())
        assert kind.from_toml(file) == config and config.to_toml().startswith(f"[{kind.table}]\n")
        assert config.replace() == config


@EVERY
def test_numbers_of_numpy_become_pythons(kind: type[Settings]) -> None:
    numpys = {"int": np.int64, "float": np.float64, "bool": np.bool_}
    given, plain = {}, kind()
    for field in kind.fields():
        value = getattr(plain, field.name)
        if type(value).__name__ in numpys:
            given[field.name] = numpys[type(value).__name__](value)
    config = kind(**given)
    assert config == plain and len(given) > 10
    for name in given:
        assert type(getattr(config, name)) is type(getattr(plain, name)), name


@EVERY
def test_a_slip_is_answered_with_what_was_meant(kind: type[Settings]) -> None:
    for field in kind.fields():
        slip = f"{field.name}s"
        message = f"{slip}: unknown {kind.noun} field; did you mean '"
        with pytest.raises(mom.ConfigError, match=f"^{message}"):
            kind().replace(**{slip: 1})
        with pytest.raises(mom.ConfigError, match=f"^file: {message}"):
            kind.from_dict({slip: 1}, "file")
    with pytest.raises(mom.ConfigError, match="^qqqqq: unknown .* field$"):
        kind().replace(qqqqq=1)
    with pytest.raises(mom.ConfigError, match="^file: expected a mapping of fields, got list"):
        kind.from_dict([], "file")  # type: ignore[arg-type]


@EVERY
def test_booleans_are_no_numbers_and_numbers_no_booleans(kind: type[Settings]) -> None:
    for field in kind.fields():
        kinds = str(field.type).split(" | ")
        wrong = {"bool": 1, "str": 1}.get(kinds[0], True)
        with pytest.raises(mom.ConfigError, match=f"^{field.name}: expected {re.escape(str(field.type))}, got "):
            kind(**{field.name: wrong})
        if "None" not in kinds:
            with pytest.raises(mom.ConfigError, match=f"^{field.name}: expected .* got NoneType"):
                kind(**{field.name: None})


@pytest.mark.parametrize("kind", [TrainingConfig, FinetuneConfig])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "warmup: -1 is negative"), (1.5, r"warmup: 1.5 is no share in \[0, 1\]; a number of steps is an integer"),
        (-0.5, "warmup: -0.5 is no share"), (math.nan, "warmup: nan is no share"),
        ("3", r"warmup: expected int \| float"),
        (True, r"warmup: expected int \| float"),
    ],
)  # fmt: skip
def test_warmup_means_the_same_everywhere(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(mom.ConfigError, match=f"^{message}"):
        kind(warmup=value)
    assert type(kind(warmup=np.int32(3)).warmup) is int and type(kind(warmup=np.float64(0.5)).warmup) is float


def test_warmup_steps() -> None:
    found = [TrainingConfig(steps=25, warmup=w).warmup_steps for w in (None, 0, 25, 0.0, 0.1, 0.5, 1.0, 1)]
    assert found == [2, 0, 25, 0, 2, 12, 25, 1]


# ---------------------------------------------------------------------- what a run says and does by default
def test_the_length_of_sequences_is_by_default_that_of_the_model(tmp_path: Path) -> None:
    tokens = small_run.write_tokens(tmp_path / "tokens.bin", 400)
    short = small_run.model()
    result = mom.train(short, tokens, steps=2, batch_size=3, progress=False)
    assert result.tokens == 2 * 3 * short.config.n_positions
    assert result.seconds > 0 and result.tokens_per_second == result.tokens / result.seconds
    with pytest.raises(mom.ConfigError, match="sequence_length: 1024 is more than the model's n_positions"):
        mom.train(short, tokens, mom.TrainingConfig(steps=2), progress=False)


def test_patience_ends_a_run_whose_validation_loss_rises(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    settings = {"steps": 40, "eval_every": 1, "batch_size": 2, "lr": 1.0, "clip": 1e9, "schedule": "constant",
                "warmup": 0, "progress": False}  # fmt: skip
    result = mom.train(small_run.model(), data, patience=3, **settings)
    losses = [loss for _, loss in result.history]
    assert result.stopped_early and result.step < 40 and len(losses) == result.step
    assert losses.index(min(losses)) == len(losses) - 4
    whole = mom.train(small_run.model(), data, **settings)
    assert whole.step == 40 and whole.history[: result.step] == result.history
    with pytest.raises(mom.ConfigError, match="patience: needs validation data"):
        mom.train(small_run.model(), data / "train.bin", patience=3, **settings)


def test_a_finished_run_can_be_kept_without_the_optimizer(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    settings: dict[str, Any] = {"batch_size": 2, "save_every": 2, "progress": False, "run_dir": tmp_path / "run"}
    model = small_run.model()
    mom.train(model, data, steps=4, save_optimizer=False, **settings)
    kept = {path.name: (path / "optimizer.safetensors").exists() for path in (tmp_path / "run").glob("step-*")}
    assert kept == {"step-00000002": True, "step-00000004": False}
    again = small_run.model(seed=1)
    assert mom.train(again, data, steps=4, resume=True, save_optimizer=False, **settings).step == 4
    assert small_run.parameter_bytes(again) == small_run.parameter_bytes(model)
    with pytest.raises(mom.CheckpointError, match="has no optimizer state .* begin a new run"):
        mom.train(small_run.model(), data, steps=6, resume=True, **settings)


def test_a_run_that_stopped_early_keeps_its_optimizer(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    settings: dict[str, Any] = {"steps": 40, "eval_every": 1, "batch_size": 2, "lr": 1.0, "clip": 1e9, "warmup": 0,
                                "progress": False, "run_dir": tmp_path / "run", "save_optimizer": False}  # fmt: skip
    stopped = mom.train(small_run.model(), data, patience=3, **settings)
    again = mom.train(small_run.model(seed=1), data, patience=3, resume=True, **settings)
    assert stopped.stopped_early and again.step == stopped.step < 40
    assert mom.train(small_run.model(seed=1), data, resume=True, **settings).step == 40
