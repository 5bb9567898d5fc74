"""TrainingConfig: TOML there and back, and errors that name the field."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import mom
from mom import TrainingConfig


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 7, "warmup": 3, "lr": 3e-4, "schedule": "linear", "sampling": "consecutive", "tensorboard": True},
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
