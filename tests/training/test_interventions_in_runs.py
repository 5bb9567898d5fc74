"""Interventions and patterns of trained parameters in training: fixed for a run, saved with it, and resumed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import ConfigError
from mom.interventions import read_interventions, write_interventions
from mom.training import pretrain
from mom.training.checkpoint import interventions_of_checkpoint

RULES = [mom.Forbid("attn", modules=[1]), mom.RandomRoutes("ffn", rounds=[0], seed=3), mom.Scale("final", 0.5)]
STEPS: dict[str, Any] = {"steps": 6, "eval_every": 3, "save_every": 2, "keep_last": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_data(tmp_path_factory.mktemp("data"))


def train(data: Path, run_dir: Path | None = None, model: mom.MoM | None = None, **changes: Any) -> Any:
    model = model or small_run.model()
    settings = {**small_run.SETTINGS, **STEPS, "progress": False, **changes}
    return model, mom.train(model, data, run_dir=run_dir, **settings)


# ---------------------------------------------------------------------- mom.train
def test_every_step_and_evaluation_has_them(data: Path) -> None:
    plain, _ = train(data)
    by_argument, result = train(data, interventions=RULES)
    inside = small_run.model()
    with inside.intervene(RULES):
        _, same = train(data, model=inside)
    assert small_run.parameter_bytes(by_argument) == small_run.parameter_bytes(inside)
    assert small_run.parameter_bytes(by_argument) != small_run.parameter_bytes(plain)
    assert result.history == same.history and by_argument.interventions == ()
    ids = np.fromfile(data / "val.bin", "<u2")[:64].astype(np.int32).reshape(4, 16)
    with by_argument.evaluating():
        routes = by_argument(ids, return_routes=True, interventions=RULES).routes
    assert not (routes.index["attn"] == 1).any()


def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(data: Path, tmp_path: Path) -> None:
    whole, _ = train(data, tmp_path / "whole", interventions=RULES)
    with pytest.raises(small_run.Crash):
        train(data, tmp_path / "run", interventions=RULES, callbacks=[small_run.crash_at(5)])
    resumed, _ = train(data, tmp_path / "run", small_run.model(seed=8), resume=True, interventions=RULES)
    assert small_run.parameter_bytes(resumed) == small_run.parameter_bytes(whole)


def test_checkpoints_hold_them_and_others_are_refused(data: Path, tmp_path: Path) -> None:
    value = np.linspace(0, 1, 16).astype(np.float32) / 3
    rules = [*RULES, mom.Patch("block0.round0.ffn.output", value, tokens=[5])]
    with pytest.raises(small_run.Crash):
        train(data, tmp_path / "run", interventions=rules, callbacks=[small_run.crash_at(5)])
    assert list(interventions_of_checkpoint(tmp_path / "run" / "step-00000004")) == rules
    for others in ((), RULES, [*rules[1:], rules[0]]):
        with pytest.raises(ConfigError, match=r"belongs to another run: interventions was \[{'kind': 'Forbid'"):
            train(data, tmp_path / "run", resume=True, interventions=others)
    train(data, tmp_path / "run", resume=True, allow_changes=True)
    assert interventions_of_checkpoint(tmp_path / "run" / "step-00000006") == ()


def test_a_run_of_an_earlier_version_had_none(data: Path, tmp_path: Path) -> None:
    with pytest.raises(small_run.Crash):
        train(data, tmp_path / "run", callbacks=[small_run.crash_at(5)])
    path = tmp_path / "run" / "step-00000004"
    files: dict[str, Any] = {f.name: f.read_bytes() for f in path.iterdir() if f.name != "manifest.json"}
    progress = json.loads(files["training.json"])
    assert progress["fingerprint"]["run"].pop("interventions") == []
    assert progress["fingerprint"]["settings"].pop("trainable") is None
    mom.files.folders.write_folder(path, {**files, "training.json": json.dumps(progress)})
    with pytest.raises(ConfigError, match=r"interventions was \[\] and is now \[{'kind': 'Forbid'"):
        train(data, tmp_path / "run", resume=True, interventions=RULES)
    train(data, tmp_path / "run", resume=True)


def test_what_touches_nothing_is_warned_of_after_a_run_and_what_is_wrong_refused_before(data: Path) -> None:
    with pytest.warns(UserWarning, match=r"interventions: Zero\(place='hidden', rows=\[9\]\) touched nothing"):
        _, result = train(data, interventions=[mom.Zero("hidden", rows=[9]), *RULES])
    assert result.step == 6
    model = small_run.model()
    before = small_run.parameter_bytes(model)
    for rule, message in (
        (mom.Zero("hiden"), "place: no place fits 'hiden'; the nearest are 'hidden'"),
        (mom.Force("ffn", to=7), "to: there is no module 7"),
        (mom.Force("ffn", to=1, rounds=[2]), "rounds: there is no round 2"),
        (mom.Patch("hidden", np.ones(3)), r"value: shape \(3,\) at 'hidden'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(data, model=model, interventions=[rule])
    with pytest.raises(TypeError, match="interventions: expected a list of interventions, got str"):
        train(data, model=model, interventions="rules.json")
    assert small_run.parameter_bytes(model) == before and model.interventions == ()


# ---------------------------------------------------------------------- trainable
def test_only_parameters_that_a_pattern_fits_are_trained(data: Path) -> None:
    before = small_run.model()
    trained, _ = train(data, trainable=["*.router.*", "transformer.ln_f.*"])
    changed = {
        name for name, value in trained.parameters.items() if not np.array_equal(value, before.parameters[name])
    }
    wanted = {name for name in before.parameters if ".router." in name or name.startswith("transformer.ln_f.")}
    assert changed and changed <= wanted and any(".router." in name for name in changed)
    assert all(trained.trainable.values()), "the model's own choice is as before"
    one, _ = train(data, trainable="*.router.*")
    frozen = small_run.model()
    frozen.train_only("*.router.*")
    train(data, model=frozen)
    assert small_run.parameter_bytes(one) == small_run.parameter_bytes(frozen)


def test_what_is_frozen_already_stays_frozen(data: Path) -> None:
    model = small_run.model()
    model.train_only("*.mot_attn.*")
    before = {name: value.copy() for name, value in model.parameters.items()}
    train(data, model=model, trainable=["*.router.*"])
    changed = [name for name, value in model.parameters.items() if not np.array_equal(value, before[name])]
    assert changed and all("mot_attn.router." in name for name in changed)


def test_patterns_are_saved_and_resumed(data: Path, tmp_path: Path) -> None:
    whole, _ = train(data, tmp_path / "whole", trainable=["*.router.*"])
    with pytest.raises(small_run.Crash):
        train(data, tmp_path / "run", trainable=["*.router.*"], callbacks=[small_run.crash_at(5)])
    with pytest.raises(ConfigError, match=r"trainable was \['\*.router.\*'\] and is now None; frozen was"):
        train(data, tmp_path / "run", resume=True)
    resumed, _ = train(data, tmp_path / "run", small_run.model(seed=8), resume=True, trainable=["*.router.*"])
    assert small_run.parameter_bytes(resumed) == small_run.parameter_bytes(whole)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*.ruoter.*"], "trainable: '.*ruoter.*' fits no parameter of this model"),
        ([], "trainable: .* is empty; None trains all"),
        ([3], "trainable: expected tuple"),
        (3, "trainable: expected tuple"),
    ],
)
def test_wrong_patterns_are_refused(data: Path, patterns: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, trainable=patterns)


def test_patterns_in_toml(tmp_path: Path) -> None:
    config = mom.TrainingConfig(trainable=["*.router.*", "x"])
    assert config.trainable == ("*.router.*", "x") and config.to_dict()["trainable"] == ["*.router.*", "x"]
    (tmp_path / "a.toml").write_text(config.to_toml())
    assert mom.TrainingConfig.from_toml(tmp_path / "a.toml") == config
    assert mom.TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert mom.TrainingConfig(trainable="*.router.*").trainable == ("*.router.*",)


# ---------------------------------------------------------------------- mom.pretrain
def test_a_phase_of_the_recipe(tmp_path: Path) -> None:
    prepare(TextDocuments(["some words again and again " * 400]), tmp_path / "data", vocab_size=300, progress=False)
    config = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=32, router_dim=8, depth_per_chunk=2)
    rules = [mom.Forbid("ffn", modules=[0])]
    settings: dict[str, Any] = {"phase": "mom", "progress": False, "tokens": 4000}
    whole = pretrain(config, tmp_path / "data", tmp_path / "whole", interventions=rules, **settings)
    written = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert written["interventions"] == [rule.to_dict() for rule in rules]
    with pytest.raises(small_run.Crash):
        crash = {"callbacks": [small_run.crash_at(2)], "save_every": 1, **settings}
        pretrain(config, tmp_path / "data", tmp_path / "run", interventions=rules, **crash)
    resumed = pretrain(config, tmp_path / "data", tmp_path / "run", resume=True, save_every=1, **settings)
    assert small_run.parameter_bytes(resumed.model) == small_run.parameter_bytes(whole.model)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["interventions"] == written["interventions"]
    with pytest.raises(ConfigError, match="interventions was"):
        pretrain(config, tmp_path / "data", tmp_path / "run", resume=True, interventions=(), save_every=1, **settings)


# ---------------------------------------------------------------------- files
def test_a_file_of_interventions(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    rules = (*RULES, mom.Patch("hidden", np.linspace(0, 1, 16) / 7), mom.Bias("ffn", {0: 1.5, "SKIP": -0.1}))
    write_interventions(path, rules)
    assert read_interventions(path) == rules
    write_interventions(path, [])
    assert read_interventions(path) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"kind": "Zero", "place": "hidden"}', "expected a JSON list of interventions, got dict"),
        ('["Zero"]', "entry 0: interventions: expected a mapping, got str"),
        ('[{"kind": "Zero", "place": "final"}, {"kind": "Zreo"}]', "entry 1: kind: 'Zreo' is not one of 'Force'"),
        ('[{"kind": "Zero", "place": "final", "place": "hidden"}]', "'place' occurs twice in an object"),
        ('[{"kind": "Zero"}]', "entry 0: Zero: needs 'place'"),
        ('[{"kind": "Force", "half": ["ffn"], "to": 1}]', "entry 0: half: expected 'attn' or 'ffn'"),
        ('[{"kind": "Force", "half": "ffn", "to": {"a": 1}}]', "entry 0: to: expected"),
        ('[{"kind": "Force", "half": "ffn", "to": 1.5}]', "entry 0: to: expected"),
        ('[{"kind": "Forbid", "half": "ffn", "modules": [[1]]}]', "entry 0: modules: expected"),
        ('[{"kind": "Patch", "place": "hidden", "value": [1, [2]]}]', "entry 0: value: expected numbers"),
        ('[{"kind": "Patch", "place": "hidden", "value": NaN}]', "entry 0: value: has numbers that are not finite"),
        ('[{"kind": "Scale", "place": "hidden", "factor": "2"}]', "entry 0: factor: "),
        ('[{"kind": "TopK", "k": true}]', "entry 0: k: "),
        ('[{"kind": ["Zero"]}]', "entry 0: kind: "),
        ('[{"kind": "Bias", "half": "ffn", "values": {"0": "a"}}]', "entry 0: values: "),
        ('[{"kind": "Zero", "place": "hidden", "tokens": "5"}]', "entry 0: tokens: expected integers or None"),
        ('[{"kind": "Zero", "place": "hidden", "tokens": [99999999999999999999999]}]', "entry 0: tokens: "),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(text)
    with warnings.catch_warnings(), pytest.raises(ConfigError, match=f"rules.json: .*{message}"):
        warnings.simplefilter("error")
        read_interventions(path)
