"""A resumed run is the run that was begun: what it may change, what is refused, and what a checkpoint knows."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.files import folders
from mom.training import fingerprint
from mom.training.fingerprint import FREE, MAY_CHANGE, REFUSED, SAID, WARNED

#: Another value for every field of the configuration. Its own values are those of `small_run.config`.
OTHER_MODEL: dict[str, Any] = {
    "vocab_size": 65, "n_positions": 17, "n_embd": 18, "n_layer": 11, "n_head": 1, "n_inner": 32,
    "activation_function": "gelu_pytorch_tanh", "resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2,
    "layer_norm_epsilon": 1e-2, "initializer_range": 0.1, "scale_attn_weights": False, "bos_token_id": 1,
    "eos_token_id": 1, "pad_token_id": 1, "chunks": 2, "depth_multiplier": 3, "num_top_layers": 2,
    "num_bottom_layers": 2, "num_attn": 2, "num_ffn": 2, "bind_ffn_attn": True, "use_ste": True,
    "output_router_logits": False, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.7, "depth_per_chunk": 3,
    "router_type": "naive",
    "router_dim": 9, "router_softmax_temperature": 0.5, "enable_pause": False, "require_anchor_layer": True,
    "depthwise_bal_loss": True, "weighted_qkv": True, "routing_all_possible_path": True, "routing_top_k": 1,
    "num_labels": 2, "problem_type": "regression", "balance_loss": "reference", "balance_counts": "step",
    "router_choices": "own", "masked_query_attention": "reference", "pooling": "reference", "copy_final_norm": False,
    "copy_single_modules": False, "balance_routes": "used", "surplus_attn": 1, "surplus_ffn": 2,
    "router_path_loss_coef": 0.3, "router_route_loss_coef": 0.2, "router_coupling_loss_coef": 0.1,
    "router_renormalise": False, "router_layernorm": True, "router_rounds": "embedding",
    "router_state": "detached", "router_jitter": 0.1, "router_frozen": True, "router_bias_rate": 0.01,
    "route_single": True, "skip_is_final": True, "shared_pools": "ffn", "round_pdrop": 0.2, "vanilla_path_bias": 1.0,
}  # fmt: skip
#: Another value for every field of `TrainingConfig`. Its own values are those of `small_run.SETTINGS`.
OTHER_TRAINING: dict[str, Any] = {
    "steps": 8, "batch_size": 2, "sequence_length": 15, "accumulation": 1, "lr": 2e-3, "schedule": "linear",
    "warmup": 2, "final_lr": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.0, "clip": 0.1,
    "sampling": "consecutive", "seed": 6, "eval_every": 3, "eval_batches": 1, "save_every": 3, "keep_last": 1,
    "log_every": 2, "max_bad_steps": 9, "trainable": ["*.router.*"], "activation_checkpointing": True,
    "tensorboard": True, "wandb": True, "patience": 100, "save_optimizer": False,
    "reproducible": "ranks", "tree_rows": 2, "transport": "bfloat16",
    "router_temperature_start": 2.0, "router_jitter_start": 0.5, "router_anneal": 0.25,
}  # fmt: skip
#: Another value for every field of `FinetuneConfig`. Its own values are those of `TUNING`.
OTHER_TUNING: dict[str, Any] = {
    "epochs": 2, "max_steps": 5, "batch_size": 4, "accumulation": 1, "lr": 0.02, "schedule": "cosine", "warmup": 3,
    "weight_decay": 0.1, "beta1": 0.5, "beta2": 0.9, "eps": 1e-5, "clip": 0.1, "dropout": 0.2, "max_length": 30,
    "evals_per_epoch": 1, "eval_every": 1, "patience": 1, "train": "head", "activation_checkpointing": True,
    "reproducible": "ranks", "tree_rows": 2, "transport": "bfloat16",
}  # fmt: skip
TUNING: dict[str, Any] = {"epochs": 1, "batch_size": 2, "accumulation": 2, "lr": 0.01, "warmup": 2, "progress": False}
STEPS = {"steps": 6, "save_every": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that crashed at step 5, with a checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("runs") / "begun"
    with pytest.raises(small_run.Crash):
        train(data, folder, callbacks=[small_run.crash_at(5)])
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def train(data: Any, run_dir: Path, model: mom.MoM | None = None, **changes: Any) -> Any:
    settings = {**small_run.SETTINGS, **STEPS, "progress": False, **changes}
    return mom.train(model or small_run.model(), data, run_dir=run_dir, **settings)


def rewrite(checkpoint: Path, change: Any) -> None:
    """Change what a checkpoint says of its run."""
    files: dict[str, Any] = {
        file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != "manifest.json"
    }
    progress = json.loads(files["training.json"])
    change(progress)
    folders.write_folder(checkpoint, {**files, "training.json": json.dumps(progress)})


def state(run_dir: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run_dir)): file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}


# ---------------------------------------------------------------------- what a checkpoint knows
def test_a_checkpoint_knows_its_run(begun: Path) -> None:
    found = json.loads((begun / "step-00000004" / "training.json").read_text())["fingerprint"]
    assert found["model"] == small_run.config().to_dict()
    assert found["settings"] == mom.TrainingConfig(**small_run.SETTINGS).replace(**STEPS).to_dict()
    run = found["run"]
    assert run["data"]["tokens"] == 3000 and run["val_data"]["tokens"] == 300 and len(run["data"]["sample"]) == 64
    assert (run["dtype"], run["version"], run["tokenizer"]) == ("float32", mom.__version__, None)
    assert run["level"] == mom.cpu_info()["level"] and run["compiler"] == mom.cpu_info()["compiler"]


def test_every_field_has_a_verdict_and_every_fact_is_known() -> None:
    assert set(MAY_CHANGE["training"]) == set(mom.TrainingConfig.names()) == set(OTHER_TRAINING)
    assert set(MAY_CHANGE["fine-tuning"]) == set(mom.FinetuneConfig.names()) == set(OTHER_TUNING)
    assert set(OTHER_MODEL) == set(mom.MoMConfig.names())
    assert {verdict for table in MAY_CHANGE.values() for verdict in table.values()} == {REFUSED, WARNED, SAID, FREE}
    known = fingerprint.fingerprint_of(small_run.model(), mom.TrainingConfig(), {})["run"]
    assert set(known) | {"data", "val_data", "dev_data", "start", "seed", "ranks"} == set(MAY_CHANGE["run"])


# ---------------------------------------------------------------------- one test per field
@pytest.mark.parametrize("name", OTHER_MODEL)
def test_a_field_of_the_configuration(data: Path, run: Path, name: str) -> None:
    """The checkpoint is the one that says something else: not every value fits this model and these data."""
    rewrite(run / "step-00000004", lambda progress: progress["fingerprint"]["model"].update({name: OTHER_MODEL[name]}))
    files = state(run)
    changed = f"another run: {name} was {OTHER_MODEL[name]} and is now {getattr(small_run.config(), name)}. "
    with pytest.raises(mom.ConfigError, match=re.escape(changed)):
        train(data, run, resume=True)
    assert state(run) == files


@pytest.mark.parametrize("name", OTHER_TRAINING)
def test_a_setting_of_training(data: Path, run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    if name in ("tensorboard", "wandb"):
        pytest.importorskip(name)
    value, verdict = OTHER_TRAINING[name], MAY_CHANGE["training"][name]
    before = mom.TrainingConfig(**{**small_run.SETTINGS, **STEPS}).to_dict()[name]
    changed, files = f"{name} was {before} and is now {value}", state(run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if verdict == REFUSED:
            with pytest.raises(mom.ConfigError, match="allow_changes=True") as refused:
                train(data, run, resume=True, **{name: value})
            also = "; frozen was parameters 0 " if name == "trainable" else ". "
            assert f"another run: {changed}{also}" in str(refused.value) and state(run) == files
            train(data, run, resume=True, allow_changes=True, **{name: value})
        else:
            train(data, run, resume=True, **{name: value})
    warned = [str(w.message) for w in caught if "resume: " in str(w.message)]
    assert [changed in text for text in warned] == ([True] if verdict == WARNED else [])
    assert (f"resume: {changed}\n" in capsys.readouterr().err) == (verdict in (SAID, REFUSED))
    last = run / f"step-{8 if name == 'steps' else 6:08d}"
    assert json.loads((last / "training.json").read_text())["fingerprint"]["settings"][name] == value


@pytest.mark.parametrize("name", [n for n, verdict in MAY_CHANGE["training"].items() if verdict == FREE])
def test_a_setting_that_may_change_freely_changes_no_weight(data: Path, run: Path, tmp_path: Path, name: str) -> None:
    if name in ("tensorboard", "wandb"):
        pytest.importorskip(name)
    whole, changed = small_run.model(), small_run.model(seed=9)
    train(data, tmp_path / "whole", whole)
    train(data, run, changed, resume=True, **{name: OTHER_TRAINING[name]})
    assert small_run.parameter_bytes(changed) == small_run.parameter_bytes(whole)


# ---------------------------------------------------------------------- facts of a run
def test_other_training_data_of_equal_length(tmp_path: Path, run: Path, data: Path) -> None:
    other = small_run.write_tokens(tmp_path / "other.bin", 3000, seed=7)
    with pytest.raises(mom.ConfigError, match=r"data was tokens 3000 .* and is now tokens 3000 "):
        train(other, run, resume=True, val_data=data / "val.bin")
    result = train(other, run, resume=True, val_data=data / "val.bin", allow_changes=True)
    assert result.step == 6
    sampler = json.loads((run / "step-00000006" / "training.json").read_text())["sampler"]
    assert sampler["position"] == 2 * 4 * 2, "two steps from the beginning of the new data"


def test_meta_json_with_another_hash(tmp_path: Path) -> None:
    """As for a large file, of which only a sample is read."""
    prepare(TextDocuments(["some words again and again " * 50] * 5), tmp_path / "data", vocab_size=260, progress=False)
    config = mom.MoMConfig.preset("demo", vocab_size=260, n_embd=16, n_head=2, router_dim=8, n_positions=32)
    settings: dict[str, Any] = {"batch_size": 2, "sequence_length": 16, "progress": False, "run_dir": tmp_path / "run"}
    mom.train(mom.MoM(config), tmp_path / "data", steps=1, **settings)
    meta = tmp_path / "data" / "meta.json"
    entries = [file for file in (meta, tmp_path / "data" / "train.bin.json") if file.exists()]
    sha256 = json.loads(meta.read_text())["files"]["train.bin"]["sha256"]
    for file in entries:
        file.write_text(file.read_text().replace(sha256, "0" * 64))
    with pytest.raises(mom.ConfigError, match=f"sha256 {sha256[:12]} and is now .* sha256 {'0' * 12}"):
        mom.train(mom.MoM(config), tmp_path / "data", steps=2, resume=True, **settings)


def test_the_hash_of_a_large_file_is_taken_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", 256 * 4)
    monkeypatch.setattr(fingerprint, "_BLOCKS", 4)
    tokens = small_run.tokens(tmp_path / "t.bin", 1500)  # 3000 bytes, blocks of 256 at 0, 914, 1829 and 2744
    digest = fingerprint.digest_of_tokens(tokens)
    assert digest["bytes"] == 3000 and digest == fingerprint.digest_of_tokens(tokens)
    content = bytearray((tmp_path / "t.bin").read_bytes())
    for place, seen in ((0, True), (100, True), (2999, True), (1000, True), (500, False)):
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "t.bin").write_bytes(changed)
        assert (fingerprint.digest_of_tokens(tokens) != digest) == seen, place


def test_other_validation_data_are_warned_of(tmp_path: Path, run: Path, data: Path) -> None:
    other = small_run.write_tokens(tmp_path / "other.bin", 300, seed=7)
    with pytest.warns(UserWarning, match="resume: val_data was tokens 300 .* and is now tokens 300 "):
        train(data, run, resume=True, val_data=other)


def test_another_tokenizer(tmp_path: Path, data: Path) -> None:
    def model(words: str | None) -> mom.MoM:
        made = small_run.model(vocab_size=300)
        made.tokenizer = None if words is None else mom.Tokenizer.train([words], 260)
        return made

    with pytest.raises(small_run.Crash):
        train(data, tmp_path / "run", model("aa bb cc"), callbacks=[small_run.crash_at(5)])
    with pytest.raises(mom.ConfigError, match="another run: tokenizer was [0-9a-f]{12} and is now [0-9a-f]{12}. "):
        train(data, tmp_path / "run", model("xyxy zz"), resume=True)
    resumed = model(None)
    train(data, tmp_path / "run", resumed, resume=True)
    assert resumed.tokenizer.sha256 == model("aa bb cc").tokenizer.sha256, "that of the checkpoint"


def test_parameters_that_are_trained(run: Path, data: Path) -> None:
    model = small_run.model()
    model.train_only("transformer.h.0.*")
    with pytest.raises(mom.ConfigError, match=r"frozen was parameters 0 sha256 \w+ and is now parameters \d+ "):
        train(data, run, model, resume=True)


@pytest.mark.parametrize("name", ["dtype", "level", "compiler", "version"])
def test_another_rounding_is_warned_of(run: Path, data: Path, name: str) -> None:
    rewrite(run / "step-00000004", lambda progress: progress["fingerprint"]["run"].update({name: "another"}))
    with pytest.warns(UserWarning, match=f"resume: {name} was another and is now .*numbers can differ"):
        train(data, run, resume=True)


def test_the_number_of_threads_never_matters(run: Path, data: Path, tmp_path: Path) -> None:
    whole, resumed, before = small_run.model(), small_run.model(seed=9), mom.get_num_threads()
    train(data, tmp_path / "whole", whole)
    try:
        mom.set_num_threads(before + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(data, run, resumed, resume=True)
    finally:
        mom.set_num_threads(before)
    assert small_run.parameter_bytes(resumed) == small_run.parameter_bytes(whole)


def test_several_changes_are_all_named_and_nothing_is_touched(run: Path, data: Path) -> None:
    model = small_run.model(num_ffn=2, use_ste=True)
    weights, files = small_run.parameter_bytes(model), state(run)
    with pytest.raises(mom.ConfigError) as refused:
        train(data, run, model, resume=True, weight_decay=0.0, beta1=0.5)
    changes = {"num_ffn": (3, 2), "use_ste": (False, True), "weight_decay": (0.1, 0.0), "beta1": (0.9, 0.5)}
    for name, (before, now) in changes.items():
        assert f"{name} was {before} and is now {now}" in str(refused.value)
    assert small_run.parameter_bytes(model) == weights and state(run) == files


def test_insisting_needs_weights_that_fit(run: Path, data: Path) -> None:
    with pytest.raises(mom.CheckpointError, match="does not fit the configuration"):
        train(data, run, small_run.model(num_ffn=2), resume=True, allow_changes=True)
    train(data, run, small_run.model(use_ste=True), resume=True, allow_changes=True)
    with pytest.raises(mom.ConfigError, match="allow_changes: has a meaning only with resume"):
        train(data, run, allow_changes=True)


# ---------------------------------------------------------------------- pre-training
def test_pretraining_compares_the_arguments_that_are_given(tmp_path: Path) -> None:
    prepare(TextDocuments(["some words again and again " * 200] * 5), tmp_path / "data", vocab_size=260, progress=False)
    config = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, router_dim=8, n_positions=32)

    def pretrain(**changes: Any) -> Any:
        given = {"phase": "vanilla", "progress": False, "steps": 3, **changes}
        return mom.pretrain(config, tmp_path / "data", tmp_path / "run", **given)

    pretrain(tokens=30_000, seed=3, lr=0.002)
    again = pretrain(resume=True)
    assert (again.config.seed, again.config.lr) == (3, 0.002)
    pretrain(resume=True, tokens=30_000, seed=3)
    for changes, name in (({"seed": 0}, "seed"), ({"lr": 0.1}, "lr"), ({"phase": "mom"}, "chunks")):
        with pytest.raises(mom.ConfigError, match=f"belongs to another run: .*({name}) was "):
            pretrain(resume=True, **changes)
    pretrain(resume=True, lr=0.1, allow_changes=True)


# ---------------------------------------------------------------------- fine-tuning
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
WORDS = "a the red old lamp door cat river runs falls sings near".split()


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def body() -> mom.MoM:
    return fresh_body()


def fresh_body(seed: int = 0, vocab_size: int = 300) -> mom.MoM:
    config = mom.MoMConfig.preset(
        "demo", vocab_size=300, n_positions=32, n_embd=16, n_head=2, router_dim=8, depth_per_chunk=2
    )
    made = mom.MoM(config, seed=seed)
    made.tokenizer = mom.Tokenizer.train(sentences(50, 1), vocab_size)
    return made


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return {
        split: [{"sentence": text, "label": i % 2} for i, text in enumerate(sentences(count, seed))]
        for split, count, seed in (("train", 12, 2), ("dev", 6, 3))
    }


@pytest.fixture(scope="module")
def begun_tuning(body: mom.MoM, rows: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning") / "begun"
    with pytest.raises(small_run.Crash):
        tune(body, rows, folder, callbacks=[small_run.crash_at(3)])
    return folder


@pytest.fixture
def tuning(begun_tuning: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun_tuning, tmp_path / "run")
    return tmp_path / "run"


def tune(model: mom.MoM, rows: Any, run_dir: Path, **changes: Any) -> Any:
    return mom.glue.finetune(model, "sst2", rows, run_dir=run_dir, **{**TUNING, **changes})


@pytest.mark.parametrize("name", OTHER_TUNING)
def test_a_setting_of_fine_tuning(
    body: mom.MoM, rows: Any, tuning: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    value, verdict = OTHER_TUNING[name], MAY_CHANGE["fine-tuning"][name]
    before = mom.FinetuneConfig(**{k: v for k, v in TUNING.items() if k != "progress"}).to_dict()[name]
    changed = f"{name} was {before} and is now {value}"
    if verdict == REFUSED:
        with pytest.raises(mom.ConfigError, match="allow_changes=True") as refused:
            tune(body, rows, tuning, resume=True, **{name: value})
        assert changed in str(refused.value)
        tune(body, rows, tuning, resume=True, allow_changes=True, **{name: value})
    else:
        tune(body, rows, tuning, resume=True, **{name: value})
    assert (f"resume: {changed}\n" in capsys.readouterr().err) == (verdict in (SAID, REFUSED))


def test_rows_and_labels_of_fine_tuning(body: mom.MoM, rows: Any, tuning: Path) -> None:
    for split, name in (("train", "data"), ("dev", "dev_data")):
        text = [{**row, "sentence": "the cat"} if i == 4 else row for i, row in enumerate(rows[split])]
        label = [{**row, "label": 1 - row["label"]} if i == 4 else row for i, row in enumerate(rows[split])]
        for other in (text, label, rows[split][:-1], rows[split][::-1]):
            with pytest.raises(mom.ConfigError, match=f"another run: {name} was rows {len(rows[split])} sha256 "):
                tune(body, {**rows, split: other}, tuning, resume=True)
    other = {**rows, "train": rows["train"][::-1]}
    assert tune(body, other, tuning, resume=True, allow_changes=True).seeds[0].loop.steps == 3


def test_the_model_that_fine_tuning_starts_from(body: mom.MoM, rows: Any, tuning: Path) -> None:
    with pytest.raises(mom.ConfigError, match="another run: start was [0-9a-f]{12} and is now "):
        tune(fresh_body(seed=1), rows, tuning, resume=True)
    with pytest.raises(mom.ConfigError, match="another run: .*tokenizer was [0-9a-f]{12} and is now "):
        tune(fresh_body(vocab_size=270), rows, tuning, resume=True)
    tune(fresh_body(), rows, tuning, resume=True)


def test_summaries_compare_too(body: mom.MoM, tmp_path: Path) -> None:
    texts = sentences(16, 5)
    articles = [{"document": a, "summary": b} for a, b in zip(texts[:8], texts[8:], strict=True)]
    data = {"train": articles, "validation": articles[:4]}

    def run(data: Any = data, model: mom.MoM = body, **changes: Any) -> Any:
        given = {"run_dir": tmp_path, "max_summary": 12, **TUNING, **changes}
        return mom.xsum.finetune(model, data, **given)

    with pytest.raises(small_run.Crash):
        run(callbacks=[small_run.crash_at(2)])
    for changes, name in (({"data": {**data, "train": articles[::-1]}}, "data"), ({"max_summary": 22}, "data"),
                          ({"data": {**data, "validation": articles[4:]}}, "dev_data"), ({"lr": 0.5}, "lr"),
                          ({"model": fresh_body(seed=1)}, "start")):  # fmt: skip
        with pytest.raises(mom.ConfigError, match=f"belongs to another run: .*{name} was "):
            run(resume=True, **changes)
    assert run(resume=True, max_summary=22, allow_changes=True).loop.steps == 2
