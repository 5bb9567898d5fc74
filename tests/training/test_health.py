"""The health of routing in the records of evaluations, and its alarms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.files.folders import write_folder
from mom.training.callbacks import Progress
from mom.training.health import ALARMS, Health

SETTINGS: dict[str, Any] = {
    "steps": 6, "batch_size": 8, "sequence_length": 16, "eval_every": 2, "eval_batches": 2, "lr": 1e-2, "warmup": 1,
    "progress": False,
}  # fmt: skip


def evaluations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "eval"]


def test_figures_are_those_of_the_passes_since_the_last_evaluation(tmp_path: Path) -> None:
    counted: dict[int, Any] = {}
    model = small_run.model()
    look = small_run.Call(lambda record: counted.update({record["step"]: model.route_counts()}))
    data = small_run.write_data(tmp_path / "data")
    records = evaluations(mom.train(model, data, callbacks=[look], **SETTINGS).records)
    assert [record["step"] for record in records] == [2, 4, 6]
    for record, steps in zip(records, [(1, 2), (3, 4), (5, 6)], strict=True):
        for half in ("attn", "ffn"):
            own = {name: values[0] for name, values in record["health"][half].items()}
            total = sum(counts for step in steps for counts in counted[step][half][0])
            np.testing.assert_allclose(own["load"], total / total.sum(), atol=1e-5)
            assert own["choices"] == total.sum() == 2 * 8 * 16 * 2 * 2  # steps, rows, tokens, choices, rounds
            shares = total[:-1] / total[:-1].sum()
            assert own["effective_modules"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-4)
            assert own["skip_share"] == pytest.approx(total[-1] / total.sum(), abs=1e-5)
            assert own["dead_modules"] == []
    assert records[0]["health"]["ffn"]["flips"] == [None], "there is nothing to compare with"
    assert 0 < records[1]["health"]["ffn"]["flips"][0] < 1


def test_entropy_and_flips_are_those_of_the_first_validation_batch(tmp_path: Path) -> None:
    seen: list[mom.Routes] = []
    model = small_run.model()
    data = small_run.write_data(tmp_path / "data")
    tokens = mom.data.TokenFile(data / "val.bin", vocab_size=small_run.VOCABULARY)
    batch = tokens.windows(np.arange(8) * 16, 16)

    def look(_: dict[str, Any]) -> None:
        with model.evaluating():
            routes = model(batch, return_routes=True, keep=False).routes
        assert routes is not None
        seen.append(routes)

    records = evaluations(mom.train(model, data, callbacks=[small_run.Call(look, "eval")], **SETTINGS).records)
    for record, before, now in zip(records[1:], seen, seen[1:], strict=False):
        for half, scores in now.scores.items():
            entropy = -(scores * np.log(scores)).sum(axis=-1).mean() / np.log(scores.shape[-1])
            assert record["health"][half]["router_entropy"][0] == pytest.approx(entropy, rel=1e-4)
            flips = (before.module[half][..., 0] != now.module[half][..., 0]).mean()
            assert record["health"][half]["flips"][0] == pytest.approx(flips)


def test_watching_changes_no_bit_and_nothing_is_counted_without_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_run.write_data(tmp_path / "data")
    watched, alone = small_run.model(), small_run.model()
    with_losses = mom.train(watched, data, **SETTINGS)

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Health, "count", never)
    mom.train(alone, data / "train.bin", **SETTINGS)
    assert small_run.parameter_bytes(watched) == small_run.parameter_bytes(alone)
    monkeypatch.undo()
    monkeypatch.setattr(Health, "count", lambda *_: None)
    monkeypatch.setattr(Health, "report", lambda *_: {})
    without = small_run.model()
    assert mom.train(without, data, **SETTINGS).history == with_losses.history


def test_plain_models_and_hash_routers(tmp_path: Path) -> None:
    data = small_run.write_data(tmp_path / "data")
    plain = mom.MoM(small_run.config().vanilla_config())
    assert all("health" not in record for record in mom.train(plain, data, **SETTINGS).records)
    hashed = evaluations(mom.train(small_run.model(router_type="hash"), data, **SETTINGS).records)[-1]
    assert hashed["health"]["ffn"]["router_entropy"] == [None] and hashed["health"]["ffn"]["flips"] == [0.0]
    assert hashed["alarms"] == {}


@pytest.mark.parametrize(
    ("rules", "changes", "alarm", "words"),
    [
        ([mom.Forbid("ffn", modules=[2])], {}, "dead_modules", "block 0 ffn: no token chose module 2"),
        ([mom.Force("attn", to=1)], {}, "collapse", "block 0 attn: 1.00 effective modules of 3"),
        ([mom.Force("attn", to="SKIP")], {}, "all_skip", "block 0 attn: 100.0% of the choices are SKIP"),
        ([mom.Bias("ffn", {0: 60.0})], {}, "router_entropy_low", "block 0 ffn: entropy is 0.0% of the largest"),
    ],
)
def test_alarms(tmp_path: Path, rules: Any, changes: Any, alarm: str, words: str) -> None:
    data = small_run.write_data(tmp_path / "data")
    result = mom.train(small_run.model(**changes), data, interventions=rules, **SETTINGS)
    last = evaluations(result.records)[-1]
    assert alarm in ALARMS and last["alarms"][alarm].startswith(words)


def test_flips_are_an_alarm() -> None:
    config, state = small_run.config(), dict[str, Any]()
    model = mom.MoM(config)
    ids = np.arange(64).reshape(4, 16)
    for module, late, alarms in ((0, True, False), (1, True, True), (1, True, False), (0, False, False)):
        routes = model(ids, return_routes=True, interventions=[mom.Force("ffn", to=module)]).routes
        report = Health(config, state).report(routes, late)
        assert ("flips_high" in report["alarms"]) == alarms
    assert json.loads(json.dumps(state)) == state, "checkpoints hold it"


def test_an_alarm_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(100, 0, "run")
    for step in (10, 20):
        alarms = {"collapse": f"words {step}", **({"all_skip": "more"} if step == 20 else {})}
        progress.record({"kind": "eval", "step": step, "val_loss": 3.0, "alarms": alarms})
    progress.close()
    said = capsys.readouterr().err.splitlines()
    assert said == ["run: step 10: collapse: words 10", "run: step 20: all_skip: more"]


def test_a_checkpoint_without_health_is_resumed(tmp_path: Path) -> None:
    """Earlier versions had no such field."""
    data = small_run.write_data(tmp_path / "data")
    settings = {**SETTINGS, "run_dir": tmp_path / "run", "steps": 3, "save_every": 3}
    mom.train(small_run.model(), data, **settings)
    folder = tmp_path / "run" / "step-00000003"
    values = json.loads((folder / "training.json").read_text())
    assert set(values.pop("health")) == {"first"}
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    write_folder(folder, {**files, "training.json": json.dumps(values)})
    result = mom.train(small_run.model(), data, resume=True, **{**settings, "steps": 4})
    assert result.passed_over == [] and [r["step"] for r in result.records if r["kind"] == "train"] == [4]
