"""Interventions in fine-tuning, evaluation, estimators and commands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli, glue, xsum
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import ConfigError
from mom.evaluate import text_losses, token_file_loss
from mom.interventions import write_interventions
from mom.model.answers import classify
from mom.training.adapt import classifier_from
from mom.training.checkpoint import interventions_of_checkpoint, newest_checkpoint

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TEXTS = ["The cat sat on the mat, and the dog sat on the cat. ", "A river runs to the sea; the sea runs nowhere. "]
RULES = [mom.Forbid("attn", modules=[1]), mom.Scale("final", 0.5)]


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    tokenizer = mom.Tokenizer.train(TEXTS * 2, 300)
    config = mom.MoMConfig.preset(
        "demo", vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_head=2, router_dim=8, depth_per_chunk=2
    )
    made = mom.MoM(config, seed=0)
    rng = np.random.default_rng(5)
    for value in made.parameters.values():
        value += 0.15 * rng.standard_normal(value.shape).astype(np.float32)
    made.tokenizer = tokenizer
    return made


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    write_interventions(tmp_path / "rules.json", RULES)
    return tmp_path / "rules.json"


# ---------------------------------------------------------------------- copies for fine-tuning
def test_copies_take_over_what_is_active_and_lose_it_with_the_block(model: mom.MoM) -> None:
    rows = [np.arange(5, dtype=np.int32), np.arange(9, dtype=np.int32)]
    with model.intervene(RULES):
        made = classifier_from(model, 2, "single_label_classification", seed=1)
        assert made.interventions == tuple(RULES)
        inside = classify(made, rows)  # the copy's calls count: the block ends without a complaint
    assert made.interventions == ()
    outside = classify(made, rows)
    assert not np.array_equal(inside, outside)
    with made.intervene(RULES):
        assert np.array_equal(classify(made, rows), inside)


# ---------------------------------------------------------------------- GLUE
def test_a_glue_task(model: mom.MoM, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "progress": False}
    runs = {"run_dir": tmp_path / "runs", "out_dir": tmp_path / "out"}
    data = GOLDEN / "glue"
    plain = glue.finetune(model, "rte", data, **settings)
    changed = glue.finetune(model, "rte", data, interventions=RULES, **runs, **settings)
    with model.intervene(RULES):
        inside = glue.finetune(model, "rte", data, **settings)
    weights = [b"".join(v.tobytes() for v in r.model.parameters.values()) for r in (plain, changed, inside)]
    assert weights[1] == weights[2] != weights[0] and changed.model.interventions == ()
    written = json.loads((tmp_path / "out" / "rte" / "results.json").read_text())
    assert written["interventions"] == [rule.to_dict() for rule in RULES]
    latest, _ = newest_checkpoint(tmp_path / "runs" / "rte" / "seed-0")
    assert latest is not None and list(interventions_of_checkpoint(latest)) == RULES
    with pytest.raises(ConfigError, match="interventions was"):
        glue.finetune(model, "rte", data, resume=True, **runs, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the run is over and calls nothing, which is no reason to complain
        glue.finetune(model, "rte", data, resume=True, interventions=RULES, **runs, **settings)

    answers = glue.predict(changed.model, "rte", data, "dev", interventions=RULES)
    with changed.model.intervene(RULES):
        assert np.array_equal(answers, glue.predict(changed.model, "rte", data, "dev"))
        within = glue.evaluate(changed.model, "rte", data)
    assert glue.evaluate(changed.model, "rte", data, interventions=RULES) == within
    assert within == pytest.approx(changed.best.metrics)
    with pytest.raises(ValueError, match="rows=.99.. touched nothing"):
        glue.evaluate(changed.model, "rte", data, interventions=[mom.Zero("hidden", rows=[99])])
    with pytest.warns(UserWarning, match="rows=.99.. touched nothing"):
        glue.finetune(model, "rte", data, interventions=[mom.Zero("hidden", rows=[99])], **settings)


# ---------------------------------------------------------------------- XSUM
def test_summaries(model: mom.MoM, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score", reason="rouge-score is not installed")
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 2, "max_summary": 16, "progress": False}
    data = GOLDEN / "xsum"
    changed = xsum.finetune(model, data, interventions=RULES, out_dir=tmp_path, **settings)
    plain = xsum.finetune(model, data, **settings)
    assert changed.val_loss != plain.val_loss
    written = json.loads((tmp_path / "xsum" / "results.json").read_text())
    assert written["interventions"] == [rule.to_dict() for rule in RULES]
    options: dict[str, Any] = {"rows": 2, "num_beams": 2}
    scores = xsum.evaluate(changed.model, data, "validation", interventions=RULES, **options)
    with changed.model.intervene(RULES):
        inside = xsum.evaluate(changed.model, data, "validation", **options)
    assert scores.to_dict() == inside.to_dict()
    assert scores.loss != xsum.evaluate(changed.model, data, "validation", **options).loss
    documents = scores.documents
    assert xsum.summarize(changed.model, documents, num_beams=2, interventions=RULES) == scores.summaries


# ---------------------------------------------------------------------- estimators
def test_an_estimator_trains_and_predicts_with_them(model: mom.MoM) -> None:
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    texts, labels = ["good film", "a bad film", "good", "really bad"] * 4, ["yes", "no", "yes", "no"] * 4
    settings: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "batch_size": 8}
    plain = mom.TextClassifier(model, **settings).fit(texts, labels)
    changed = base.clone(mom.TextClassifier(model, interventions=RULES, **settings)).fit(texts, labels)
    assert changed.get_params()["interventions"] == RULES and changed.model_.interventions == ()
    assert not np.array_equal(plain.predict_proba(texts), changed.predict_proba(texts))
    with changed.model_.intervene(RULES):
        inside = base.clone(changed).set_params(interventions=None)
        inside.__dict__.update({**vars(changed), "interventions": None})
        assert np.array_equal(inside.predict_proba(texts), changed.set_params(interventions=None).predict_proba(texts))
    with pytest.raises(ValueError, match="there is no module 9"):
        mom.TextRegressor(model, interventions=[mom.Force("ffn", to=9)], **settings).fit(texts, range(16))


# ---------------------------------------------------------------------- perplexity
def test_losses_of_texts_and_token_files(model: mom.MoM, tmp_path: Path) -> None:
    documents = TextDocuments(TEXTS * 3)
    changed = text_losses(model, documents, interventions=RULES, window=16)
    with model.intervene(RULES):
        inside = text_losses(model, documents, window=16)
    assert changed == inside != text_losses(model, documents, window=16)
    prepare(TextDocuments(TEXTS * 30), tmp_path / "data", tokenizer=model.tokenizer, progress=False)
    file = tmp_path / "data" / "train.bin"
    loss = token_file_loss(model, file, sequence_length=16, interventions=RULES).loss
    with model.intervene(RULES):
        assert token_file_loss(model, file, sequence_length=16).loss == loss
    assert token_file_loss(model, file, sequence_length=16).loss != loss


# ---------------------------------------------------------------------- the harness
def test_the_harness_adapter(model: mom.MoM, rules: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from types import SimpleNamespace

    from mom.evaluate.harness import MomLM

    def answers(lm: Any) -> Any:
        pair, context = (TEXTS[0], " a cat"), ("The cat", {"until": ["."], "max_gen_toks": 8})
        asked = [[SimpleNamespace(args=a, arguments=a)] for a in (pair, context)]
        return lm.loglikelihood(asked[0], disable_tqdm=True), lm.generate_until(asked[1], disable_tqdm=True)

    changed = answers(MomLM(model, interventions=RULES))
    assert changed == answers(MomLM(model, interventions=str(rules))) != answers(MomLM(model))
    with model.intervene(RULES):
        assert answers(MomLM(model)) == changed
    with pytest.raises(ValueError, match="no place fits 'hiden'"):
        MomLM(model, interventions=[mom.Zero("hiden")])


# ---------------------------------------------------------------------- commands
def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(word) for word in words])
    return status, *capsys.readouterr()


def test_generate_and_evaluate(
    model: mom.MoM, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", "--interventions", rules)
    words = ("generate", "--prompt", "The cat", "--max_new_tokens", "8")
    head = model.parameters["transformer.wte.weight"]
    letter = int(np.argmax(head[: model.tokenizer.vocab_size] @ head[model.tokenizer.encode("c")[0]]))
    constant = [mom.Patch("hidden", head[model.tokenizer.encode("c")[0]])]
    write_interventions(rules, constant)
    status, changed, _ = run(capsys, *words, *flags)
    with model.intervene(constant):
        assert (status, changed) == (0, model.generate_text("The cat", 8) + "\n")
    assert changed == "The cat" + model.tokenizer.decode([letter]) * 8 + "\n"
    assert run(capsys, *words, *flags[:2])[1] != changed
    write_interventions(rules, RULES)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(TEXTS))
    status, out, _ = run(capsys, "evaluate", "--text", text, "--json", *flags)
    row = json.loads(out)[0]
    assert status == 0 and row["interventions"] == [rule.to_dict() for rule in RULES]
    assert row["loss"] == text_losses(model, text, interventions=RULES)[0].loss
    assert "interventions" not in json.loads(run(capsys, "evaluate", "--text", text, "--json", *flags[:2])[1])[0]
    rules.write_text('[{"kind": "Zreo"}]')
    status, _, err = run(capsys, *words, *flags)
    assert status != 0 and "rules.json: entry 0: kind: 'Zreo' is not one of" in err
    write_interventions(rules, [mom.Force("ffn", to=1, rounds=[7])])
    status, _, err = run(capsys, *words, *flags)
    assert status != 0 and "rounds: there is no round 7; rounds are 0 to 1" in err


def test_train_and_resume(model: mom.MoM, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(TextDocuments(TEXTS * 30), tmp_path / "data", tokenizer=model.tokenizer, progress=False)
    model.save_pretrained(tmp_path / "model")
    words = ["train", "--data", tmp_path / "data", "--init_from", tmp_path / "model", "--batch_size", 2]
    words += ["--sequence_length", 16, "--lr", 0.01, "--run_dir"]
    assert run(capsys, *words, tmp_path / "whole", "--steps", 4, "--interventions", rules)[0] == 0
    first = (*words, tmp_path / "run", "--steps", 2, "--schedule", "constant", "--trainable", "*.router.*", "*.wpe.*")
    assert run(capsys, *first, "--interventions", rules)[0] == 0
    latest, _ = newest_checkpoint(tmp_path / "run")
    assert latest is not None and list(interventions_of_checkpoint(latest)) == RULES
    resumed = ["train", "--data", tmp_path / "data", "--run_dir", tmp_path / "run", "--resume", "--steps", 4]
    assert run(capsys, *resumed)[0] == 0  # with the checkpoint's interventions and patterns
    latest, _ = newest_checkpoint(tmp_path / "run")
    assert latest is not None and latest.name == "step-00000004" and list(interventions_of_checkpoint(latest)) == RULES
    settings = json.loads((latest / "training.json").read_text())["fingerprint"]["settings"]
    assert settings["trainable"] == ["*.router.*", "*.wpe.*"]
    trained = mom.MoM.from_pretrained(tmp_path / "run" / "model")
    changed = [n for n, v in trained.parameters.items() if not np.array_equal(v, model.parameters[n])]
    assert changed and all(".router." in name or ".wpe." in name for name in changed)
    write_interventions(rules, RULES[:1])
    status, _, err = run(capsys, *resumed, "--interventions", rules)
    assert status != 0 and "interventions was" in err


def test_finetune_and_evaluate_a_task(
    model: mom.MoM, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    model.save_pretrained(tmp_path / "model")
    data = GOLDEN / "glue"
    words = ["finetune", "--task", "rte", "--model", tmp_path / "model", "--data", data, "--out_dir", tmp_path / "out"]
    assert run(capsys, *words, "--epochs", 1, "--progress", "false", "--interventions", rules)[0] == 0
    written = json.loads((tmp_path / "out" / "rte" / "results.json").read_text())
    assert written["interventions"] == [rule.to_dict() for rule in RULES]
    words = ["evaluate", "--task", "rte", "--model", tmp_path / "out" / "rte" / "model", "--data", data, "--json"]
    status, out, _ = run(capsys, *words, "--interventions", rules)
    found = json.loads(out)
    assert status == 0 and found.pop("interventions") == written["interventions"]
    assert found == pytest.approx(written["metrics"])


def test_lm_eval_hands_the_file_to_the_model(rules: Path) -> None:
    from mom.cli.lm_eval import _with_interventions as joined

    words = ["run", "--model", "mom", "--model_args", "pretrained=x", "--tasks", "t"]
    assert joined(words, None) == words
    assert joined(words, str(rules))[4] == f"pretrained=x,interventions={rules}"
    assert joined(["--model_args=pretrained=x"], str(rules)) == [f"--model_args=pretrained=x,interventions={rules}"]
    for bad, message in ((["run"], "name no --model_args"), (["--model_args"], "--model_args is empty")):
        with pytest.raises(ConfigError, match=f"interventions: .*{message}"):
            joined(bad, str(rules))
    comma = rules.with_name("a,b.json")
    comma.write_bytes(rules.read_bytes())
    with pytest.raises(ConfigError, match="has a comma or an equals sign"):
        joined(words, str(comma))
