"""Grids: which trials they have, what is one configuration, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_grid

import mom
from mom.sweep import read_grid
from mom.sweep.fields import NO_EFFECT, RUN, defaults_of
from mom.sweep.running import part_of
from mom.sweep.trial import Trial, flat


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_grid.write_data(tmp_path_factory.mktemp("grid") / "data")


def trials(data: Path, axes: dict[str, Any] | None = None, **more: Any) -> list[Any]:
    return read_grid(small_grid.grid(data, axes, **more)).trials()


def one(data: Path, **more: Any) -> Any:
    (trial,) = trials(data, {}, **more)
    return trial


def test_variants_times_axes(data: Path) -> None:
    variant = [{"name": "one", "routing_top_k": 1}, {"name": "two", "set": {"routing_top_k": 2}}]
    found = trials(data, {"seed": [0, 1], "lr": [0.1, 0.2]}, variant=variant)
    assert [trial.label for trial in found[:3]] == ["one seed=0 lr=0.1", "one seed=0 lr=0.2", "one seed=1 lr=0.1"]
    assert len(found) == len({trial.hash for trial in found}) == 8
    assert {(trial.name, trial.settings["model"]["routing_top_k"]) for trial in found} == {("one", 1), ("two", 2)}
    assert {trial.settings["training"]["lr"] for trial in found} == {0.1, 0.2}


def test_kinds_of_fields_share_no_name() -> None:
    names = [*mom.MoMConfig.names(), *mom.TrainingConfig.names(), *RUN, "set", "name"]
    assert len(names) == len(set(names))


def test_settings_without_effect() -> None:
    """A new setting is sorted here: does it change what is trained or measured?"""
    assert set(mom.TrainingConfig.names()) - set(NO_EFFECT) == {
        "steps", "batch_size", "sequence_length", "accumulation", "lr", "schedule", "warmup", "final_lr", "beta1",
        "beta2", "eps", "weight_decay", "clip", "sampling", "seed", "eval_every", "eval_batches", "patience",
        "trainable", "reproducible", "tree_rows", "router_temperature_start", "router_jitter_start", "router_anneal",
    }  # fmt: skip


@pytest.mark.parametrize(
    "same",
    [
        {"lr": 0.01}, {"save_every": 7}, {"keep_last": 4}, {"log_every": 3}, {"num_ffn": 4}, {"clip": 1},
        {"depth_per_chunk": None, "depth_multiplier": 1}, {"n_inner": 64}, {"variant": [{"name": "a name"}]},
        {"dtype": "float32"}, {"phase_one_steps": 0},
    ],
    ids=str,
)  # fmt: skip
def test_the_same_configuration_in_other_words(data: Path, same: dict[str, Any]) -> None:
    assert one(data, **same).hash == one(data).hash


@pytest.mark.parametrize(
    "other",
    [
        {"lr": 0.02}, {"seed": 1}, {"num_ffn": 3}, {"dtype": "bfloat16"}, {"phase_one_steps": 3}, {"vanilla": True},
        {"eval_every": 5}, {"interventions": [mom.Forbid("ffn", modules=[0]).to_dict()]}, {"trainable": ["*.wte.*"]},
        {"warmup": 2.0 / 12}, {"patience": 2}, {"clip": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_another_configuration(data: Path, other: dict[str, Any]) -> None:
    assert one(data, **other).hash != one(data).hash


def test_a_field_of_a_later_version_changes_no_name(data: Path) -> None:
    trial = one(data)
    values = json.loads(json.dumps(trial.to_dict()))
    del values["settings"]["model"]["router_jitter"], values["settings"]["training"]["router_anneal"]
    older = Trial.from_dict(values)
    assert older.hash == trial.hash and flat(older.settings).keys() == flat(trial.settings).keys()
    assert not set(NO_EFFECT) & flat(trial.settings).keys(), "not recorded among the settings"
    values["settings"]["model"]["of_a_later_version"] = 1
    assert Trial.from_dict(values).hash != trial.hash


def test_defaults_are_those_that_names_of_trials_leave_out(data: Path) -> None:
    """A changed default would give the name of an old trial to another configuration."""
    known = json.loads((Path(__file__).parents[1] / "data" / "sweep_defaults.json").read_text())
    kinds: dict[str, Any] = {"model": mom.MoMConfig, "training": mom.TrainingConfig}
    for part, kind in kinds.items():
        now = defaults_of(kind)
        assert known[part].keys() == now.keys(), "add a new field to the file"
        changed = [name for name, value in known[part].items() if value != now[name]]
        assert not changed, 'raise "format" in mom.sweep.fields.resolve, and change the file'


def test_data_count_by_content_and_not_by_path(data: Path, tmp_path: Path) -> None:
    copy = small_grid.write_data(tmp_path / "copy")
    assert one(copy).hash == one(data).hash
    raw = bytearray((copy / "val.bin").read_bytes())
    raw[10] ^= 1
    (copy / "val.bin").write_bytes(raw)
    assert one(copy).hash != one(data).hash
    assert one(copy, val_data=str(data / "val.bin")).hash == one(data).hash


def test_fields_of_routing_make_no_difference_for_a_plain_model(data: Path) -> None:
    found = trials(data, {"routing_top_k": [1, 2], "router_dim": [4, 8]}, variant=[{"name": "gpt2", "vanilla": True}])
    assert len(found) == 1 and found[0].settings["model"]["n_layer"] == 6


def test_phase_one_is_the_plain_twin(data: Path) -> None:
    first = [one(data, phase_one_steps=5, routing_top_k=k).phase_one() for k in (1, 2)]
    assert first[0].hash == first[1].hash == one(data, vanilla=True, steps=5).hash


def test_a_file_is_read_as_a_mapping_is(data: Path, tmp_path: Path) -> None:
    text = f"""
    measure = ["routes"]
    keep_models = true
    [base]
    preset = "demo"
    data = '{data}'
    lr = 1e-2
    steps = 12
    [base.set]
    vocab_size = 64
    n_positions = 16
    [grid]
    seed = [0, 1]
    [[variant]]
    name = "one"
    routing_top_k = 1
    """
    (tmp_path / "grid.toml").write_text(text)
    found = read_grid(tmp_path / "grid.toml")
    assert found.keep_models and found.measure == ("routes",) and len(found.trials()) == 2
    same = read_grid({
        "base": {"preset": "demo", "data": data, "lr": 1e-2, "steps": 12, "vocab_size": 64, "n_positions": 16},
        "grid": {"seed": (0, 1), "routing_top_k": [1]},
    })  # fmt: skip
    assert [trial.hash for trial in same.trials()] == [trial.hash for trial in found.trials()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {"routing_topk": 1}}, r"\[base\]: routing_topk: unknown field of a run; did you mean 'routing_to"),
        ({"base": {"learning_rate": 1}}, "learning_rate: unknown field of a run; did you mean 'lr'"),
        ({"base": {"hidden_size": 1}}, "hidden_size: unknown field of a run; did you mean 'n_embd'"),
        ({"base": {"set": {"n_head": 1}, "n_head": 2}}, "n_head: stands in the table 'set', too"),
        ({"grids": {}}, "grids: unknown part of a grid; did you mean 'grid'"),
        ({"grid": {"sed": [1]}}, r"\[grid\]: sed: unknown field of a run; did you mean 'seed'"),
        ({"grid": {"seed": 1}}, r"\[grid\] seed: expected a list, got int 1"),
        ({"grid": {"seed": []}}, r"\[grid\] seed: has no values"),
        ({"grid": {"lr": {"low": 1, "high": 2}}}, "a range needs sampler = \"optuna\""),
        ({"variant": [{"lr": 1}]}, r"\[\[variant\]\] 0: name: missing"),
        ({"variant": [{"name": "a"}, {"name": "a"}]}, "two variants have the name 'a'"),
        ({"grid": {"lr": [1]}, "variant": [{"name": "a", "lr": 1}]}, "lr: is an axis of"),
        ({"measure": ["route"]}, "measure: 'route' is not one of 'whole_val_loss', 'routes'; did you mean 'routes'"),
        ({"sampler": "random"}, "sampler: 'random' is not one of 'grid', 'optuna'"),
        ({"keep_models": 1}, "keep_models: expected true or false, got 1"),
    ],
)  # fmt: skip
def test_forms_that_are_refused(data: Path, change: dict[str, Any], message: str) -> None:
    whole = {**change, "base": {**small_grid.BASE, "data": str(data), **change.get("base", {})}}
    if "set" in change.get("base", {}):
        whole["base"] = change["base"]
    with pytest.raises(mom.ConfigError, match=message):
        read_grid(whole)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "dem"}, "grid: base: name: no preset 'dem'"),
        ({"preset": None}, "preset: missing"),
        ({"steps": 0}, "grid: base: steps: 0 is less than 1"),
        ({"n_head": 3}, "n_head: 3 does not divide n_embd = 16"),
        ({"sequence_length": 17}, "sequence_length: 17 is more than the model's n_positions = 16"),
        ({"dtype": "float16"}, "dtype: 'float16' is not one of 'float32', 'bfloat16'"),
        ({"vanilla": 1}, "vanilla: expected bool, got int 1"),
        ({"vanilla": True, "phase_one_steps": 3}, "phase_one_steps: a plain GPT-2 has no second phase"),
        ({"phase_one_steps": 1}, "phase_one_steps: 1 steps do not fit the other settings: warmup: 2 of 1 steps"),
        ({"interventions": [{"rule": "no"}]}, "interventions: entry 0"),
    ],
)  # fmt: skip
def test_runs_that_are_not_possible_are_named_before_anything_runs(
    data: Path, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(mom.ConfigError, match=message):
        mom.sweep.run(small_grid.grid(data, {}, **fields), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_data_for_training_and_validation_are_needed(data: Path) -> None:
    with pytest.raises(mom.ConfigError, match="grid: base: data: missing; name a folder"):
        read_grid({"base": {"preset": "demo"}}).trials()
    with pytest.raises(mom.ConfigError, match="val_data: a sweep compares losses on unseen text"):
        trials(data / "train.bin")


def test_parts(data: Path) -> None:
    found = trials(data, {"seed": [0, 1, 2, 3, 4]})
    parts = [part_of(found, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(t.seed for part in parts for t in part) == [0, 1, 2, 3, 4] and [len(p) for p in parts] == [2, 2, 1]
    for wrong in ("0/3", "4/3", "1", "a/b", ""):
        with pytest.raises(mom.ConfigError, match="is not of the form '1/3'"):
            part_of(found, wrong)
