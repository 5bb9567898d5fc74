"""The model ``mom`` in lm-evaluation-harness: requests by hand, and local tasks through the harness's command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli
from mom.errors import ConfigError, DataError

TEXTS = ["The cat sat on the mat, and the dog sat on the cat. ", "A river runs to the sea; the sea runs nowhere. "]


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    tokenizer = mom.Tokenizer.train(TEXTS * 2, 300)
    config = mom.MoMConfig.preset("demo", vocab_size=tokenizer.vocab_size, n_positions=32, n_embd=32, router_dim=8)
    made = mom.MoM(config, seed=2)
    rng = np.random.default_rng(5)
    for value in made.parameters.values():
        value += 0.15 * rng.standard_normal(value.shape).astype(np.float32)
    made.tokenizer = tokenizer
    return made


def harness() -> Any:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from mom.evaluate import harness as module

    return module


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=a, arguments=a) for a in arguments]


def log_probabilities(model: mom.MoM, ids: list[int]) -> np.ndarray:
    logits = model(np.array(ids), return_logits=True).logits[0].astype(np.float64)  # type: ignore[index]
    return (
        logits
        - logits.max(-1, keepdims=True)
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


# ---------------------------------------------------------------------- requests
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_loglikelihoods_equal_sums_over_tokens(model: mom.MoM, batch_size: Any) -> None:
    lm = harness().MomLM(model, batch_size=batch_size)
    pairs = [("The cat", " sat on"), ("", "The dog"), ("The cat sat on the mat ", "and"), (TEXTS[0] * 3, " runs to")]
    encode, eos = model.tokenizer.encode, model.tokenizer.eos_id
    expected = []
    for context, continuation in pairs:
        if context:
            whole = encode(context + continuation).tolist()
            count = len(whole) - len(encode(context.rstrip()).tolist())
        else:
            whole = [eos, *encode(continuation).tolist()]
            count = len(whole) - 1
        whole = whole[-33:]
        logs = log_probabilities(model, whole[:-1])[-count:]
        tokens = np.array(whole[-count:])
        expected.append((logs[np.arange(count), tokens].sum(), bool((logs.argmax(-1) == tokens).all())))
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [hit for _, hit in found] == [hit for _, hit in expected]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], rtol=1e-4)
    # What the model itself would say is greedy.
    context = encode("The cat")
    greedy = model.generate(context, 3)[len(context) :]
    ((_, hit),) = lm._loglikelihood_tokens([(None, context.tolist(), greedy.tolist())], disable_tqdm=True)
    assert hit


def test_rolling_covers_every_token_once(model: mom.MoM) -> None:
    lm = harness().MomLM(model)
    short, long = "The river", TEXTS[1] * 6
    found = lm.loglikelihood_rolling(requests((short,), (long,)), disable_tqdm=True)
    ids = [model.tokenizer.eos_id, *model.tokenizer.encode(short).tolist()]
    logs = log_probabilities(model, ids[:-1])
    assert found[0] == pytest.approx(logs[np.arange(len(ids) - 1), ids[1:]].sum(), rel=1e-4)
    (alone,) = lm.loglikelihood_rolling(requests((long,)), disable_tqdm=True)
    assert found[1] == pytest.approx(alone, rel=1e-5)
    count = len(model.tokenizer.encode(long))
    assert count > 64 and -12 * count < alone < 0


def test_generation_stops_at_strings_tokens_and_limits(model: mom.MoM) -> None:
    lm = harness().MomLM(model, batch_size=2)
    encode, decode = model.tokenizer.encode, model.tokenizer.decode
    contexts = ["The cat", "A river runs to", "The dog sat on the mat, and"]

    def expected(context: str, tokens: int) -> str:
        ids = encode(context)[-(32 - tokens) :]
        row = model.generate(ids, tokens, stop_token=model.tokenizer.eos_id)[len(ids) :].tolist()
        return str(decode(row[:-1] if row[-1] == model.tokenizer.eos_id else row))

    free = lm.generate_until(requests(*((c, {"until": [], "max_gen_toks": 12}) for c in contexts)), disable_tqdm=True)
    assert free == [expected(c, 12) for c in contexts]
    stop = free[0][3:5]
    (cut,) = lm.generate_until(
        requests((contexts[0], {"until": ["\x00", stop], "max_gen_toks": 12})), disable_tqdm=True
    )
    assert cut == free[0][: free[0].index(stop)]
    mixed = lm.generate_until(
        requests((contexts[0], {"until": stop, "max_gen_toks": 12}), (contexts[1], {"max_gen_toks": 3}),
                 (TEXTS[0] * 5, {"max_gen_toks": 8}), ("", {"max_gen_toks": 2}),
                 (contexts[0], {"max_gen_toks": 6, "do_sample": True, "temperature": 1.5, "top_k": 20})),
        disable_tqdm=True,
    )  # fmt: skip
    assert mixed[0] == cut and mixed[1] == expected(contexts[1], 3) and mixed[2] == expected(TEXTS[0] * 5, 8)
    assert all(isinstance(text, str) for text in mixed)


# ---------------------------------------------------------------------- what the harness's own model asserts
def own_value(model: mom.MoM, ids: list[int], count: int) -> float:
    """Log-likelihood of the last `count` ids, one pass for each."""
    return sum(
        float(log_probabilities(model, ids[max(0, i - 32) : i])[-1, ids[i]]) for i in range(len(ids) - count, len(ids))
    )


@pytest.mark.parametrize("context", [" ", "  ", "\n", "\t \n"])
def test_a_context_of_white_space_counts_with_the_answer(model: mom.MoM, context: str) -> None:
    lm = harness().MomLM(model)
    ids = model.tokenizer.encode(context + "The dog").tolist()
    ((found, _),) = lm.loglikelihood(requests((context, "The dog")), disable_tqdm=True)
    assert found == pytest.approx(own_value(model, [model.tokenizer.eos_id, *ids], len(ids)), rel=1e-4)


def test_answers_fill_the_model_and_longer_ones_are_refused(model: mom.MoM) -> None:
    lm = harness().MomLM(model)
    ids = model.tokenizer.encode(TEXTS[1] * 6).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one token of context and 32 of the answer fit
        ((found, _),) = lm._loglikelihood_tokens([(None, ids[:1], ids[1:33])], disable_tqdm=True)
    assert found == pytest.approx(own_value(model, ids[:33], 32), rel=1e-4)
    with pytest.raises(DataError, match="the answer has 33 tokens, more than max_length = 32"):
        lm._loglikelihood_tokens([(None, ids[:1], ids[1:34])], disable_tqdm=True)
    with pytest.warns(UserWarning, match="1 of 2 requests do not fit into max_length = 32"):
        cut = lm._loglikelihood_tokens([(None, ids[:9], ids[9:40]), (None, ids[:1], ids[1:3])], disable_tqdm=True)
    assert cut[0][0] == pytest.approx(own_value(model, ids[:40][-33:], 31), rel=1e-4)


@pytest.mark.parametrize("context", ["", "The cat", " "])
def test_an_empty_answer_is_refused(model: mom.MoM, context: str) -> None:
    with pytest.raises(DataError, match="the answer is empty"):
        harness().MomLM(model).loglikelihood(requests(("a", "b"), (context, "")), disable_tqdm=True)
    with pytest.raises(DataError, match="no token is left for the answer"):
        harness().MomLM(model)._loglikelihood_tokens([(("a", "b"), [1, 2], [])], disable_tqdm=True)


def test_everything_is_computed_in_evaluation_mode(model: mom.MoM) -> None:
    noisy = mom.MoM(model.config.replace(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5), seed=2)
    for name, value in model.parameters.items():
        noisy.parameters[name] = value
    noisy.tokenizer = model.tokenizer
    noisy.train()
    state = noisy.random_state
    found, expected = [], []
    for where, lm in ((found, harness().MomLM(noisy)), (expected, harness().MomLM(model))):
        where += lm.loglikelihood(requests(("The cat", " sat on")), disable_tqdm=True)
        where += lm.loglikelihood_rolling(requests(("The river runs",)), disable_tqdm=True)
        where += lm.generate_until(requests(("The cat", {"max_gen_toks": 9})), disable_tqdm=True)
    assert found == expected
    assert noisy.training and noisy.random_state == state, "the model is left as it was"


def generated(lm: Any, context: str, **settings: Any) -> str:
    (text,) = lm.generate_until(requests((context, settings)), disable_tqdm=True)
    return str(text)


def test_every_name_of_the_budget_counts(model: mom.MoM) -> None:
    lm = harness().MomLM(model, max_gen_toks=20)
    whole, expected = generated(lm, "The cat"), generated(lm, "The cat", max_gen_toks=6)
    assert whole.startswith(expected) and len(whole) > len(expected) > 0
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert generated(lm, "The cat", **{name: 6}) == expected
        assert generated(lm, "The cat", max_gen_toks=6, **{name: 9}) == expected, "the harness's order of names"
    count = len(model.tokenizer.encode("The cat"))
    assert generated(lm, "The cat", max_length=count + 6) == expected
    assert generated(lm, "The cat", max_length=count + 9, max_gen_toks=6) == expected
    both = lm.generate_until(
        requests(("The cat", {"max_length": count + 6}), (TEXTS[0], {"max_length": 32})), disable_tqdm=True
    )
    assert both == [expected, generated(lm, TEXTS[0], max_gen_toks=32 - len(model.tokenizer.encode(TEXTS[0])))]


def test_the_budget_must_leave_room_for_a_context(model: mom.MoM) -> None:
    lm = harness().MomLM(model)
    for settings, message in (
        ({}, "max_gen_toks: 256 new tokens; expected at least 1, and less than the model's max_length = 32"),
        ({"max_new_tokens": 32}, "max_new_tokens: 32 new tokens"), ({"max_tokens": 0}, "max_tokens: 0 new tokens"),
        ({"max_length": 1}, "max_length: 1 tokens for a context of"), ({"max_length": 33}, "max_length: 33 tokens"),
        ({"max_gen_toks": 4, "do_sample": True}, "do_sample: needs a temperature above 0"),
        ({"max_gen_toks": 4, "until": 5}, "until: expected a string or a list of strings, got 5"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            lm.generate_until(requests(("The cat", {"max_gen_toks": 3}), ("The cat", settings)), disable_tqdm=True)
    with pytest.raises(ConfigError, match="expected a mapping, got list"):
        lm.generate_until(requests(("The cat", ["."])), disable_tqdm=True)
    with pytest.warns(UserWarning, match="1 of 1 requests do not fit"):
        text = generated(lm, TEXTS[0] * 5, max_gen_toks=31)
    assert text == generated(lm, model.tokenizer.decode(model.tokenizer.encode(TEXTS[0] * 5)[-1:]), max_gen_toks=31)


@pytest.mark.parametrize("until", ["", [""], ["", "\x00"], None, []])
def test_an_empty_stop_string_stops_nothing(model: mom.MoM, until: Any) -> None:
    lm = harness().MomLM(model)
    assert generated(lm, "The cat", until=until, max_gen_toks=12) == generated(lm, "The cat", max_gen_toks=12) != ""


@pytest.mark.parametrize("batch_size", [1, 8])
def test_repeats_of_a_sampled_request_are_independent(model: mom.MoM, batch_size: int) -> None:
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    asked = [("The cat", settings)] * 24
    lm = harness().MomLM(model, batch_size=batch_size)
    first = lm.generate_until(requests(*asked), disable_tqdm=True)
    assert len(set(first)) == 24
    assert not set(first) & set(lm.generate_until(requests(*asked), disable_tqdm=True)), "other samples"
    again = harness().MomLM(model, batch_size=batch_size)
    assert again.generate_until(requests(*asked), disable_tqdm=True) == first, "the seed repeats them"
    other = harness().MomLM(model, batch_size=batch_size, seed=1)
    assert not set(first) & set(other.generate_until(requests(*asked), disable_tqdm=True))


def test_settings_without_effect_are_told(model: mom.MoM) -> None:
    lm = harness().MomLM(model)
    with pytest.warns(UserWarning, match="without effect on this model: num_beams, repetition_penalty"):
        text = generated(lm, "The cat", max_gen_toks=5, repetition_penalty=2.0, num_beams=4, top_p=None)
    assert text == generated(lm, "The cat", max_gen_toks=5)


def test_a_chat_template_is_refused_with_a_sentence(model: mom.MoM) -> None:
    lm = harness().MomLM(model)
    assert lm.chat_template(False) == ""
    for ask in (lambda: lm.chat_template(True), lambda: lm.chat_template("x"), lambda: lm.apply_chat_template([])):
        with pytest.raises(ConfigError, match="has no chat template; run the harness without --apply_chat_template"):
            ask()


def test_arguments_are_checked(model: mom.MoM, tmp_path: Path) -> None:
    lm = harness().MomLM
    assert lm(model, device="cuda:0", max_batch_size=4).max_length == 32, "the harness's defaults"
    bare = mom.MoM(model.config)
    for changes, kind, message in (
        ({"batch_size": 0}, ConfigError, "batch_size: 0 is less than 1"),
        ({"max_gen_toks": 0}, ConfigError, "max_gen_toks: 0 is less than 1"),
        ({"max_length": 33}, ConfigError, r"max_length: 33 is not in \[2, 32\]"),
        ({"pretrained": bare}, DataError, "holds no tokenizer"),
        ({"pretrained": str(tmp_path / "none")}, mom.CheckpointError, "is not a folder"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            lm(**{"pretrained": model, **changes})


# ---------------------------------------------------------------------- the harness's command
@pytest.fixture
def tasks(model: mom.MoM, tmp_path: Path) -> Path:
    """Three local tasks, one for each kind of request; the model's own words are the right ones in one row of four."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    question = "The cat sat on the"
    ids = model.tokenizer.encode(question)
    words = model.tokenizer.decode(model.generate(ids, 8, stop_token=model.tokenizer.eos_id)[len(ids) :]).split(".")[0]
    rows = [{"text": TEXTS[i % 2], "question": question, "choices": [" mat", " sea"], "answer": i % 2,
             "words": words if i == 2 else f"{words}!"} for i in range(4)]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "test_split": "test", "num_fewshot": 0,
    }  # fmt: skip
    kinds = {
        "local_choice": {"output_type": "multiple_choice", "doc_to_text": "{{question}}",
                         "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
                         "metric_list": [{"metric": "acc"}]},
        "local_rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                          "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}]},
        "local_until": {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{words}}",
                        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
                        "metric_list": [{"metric": "exact_match"}]},
    }  # fmt: skip
    for name, fields in kinds.items():  # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **fields}))
    return folder


@pytest.mark.slow
def test_local_tasks_run(model: mom.MoM, tasks: Path, tmp_path: Path) -> None:
    harness()
    pytest.importorskip("datasets", reason="datasets is not installed")
    model.save_pretrained(tmp_path / "model")
    words = [sys.executable, "-m", "mom", "lm_eval", "run", "--model", "mom",
             "--model_args", f"pretrained={tmp_path / 'model'}", "--tasks", "local_choice,local_rolling,local_until",
             "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--batch_size", "2"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"),
                   "HF_HOME": str(tmp_path / "home")}  # fmt: skip
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600, "env": environment}
    refused = subprocess.run([*words, "--apply_chat_template"], **options)
    assert refused.returncode == 1 and refused.stderr.endswith("run the harness without --apply_chat_template\n")
    assert "mom: error: apply_chat_template: this model continues texts" in refused.stderr
    done = subprocess.run(words, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    assert set(results) == {"local_choice", "local_rolling", "local_until"}
    total = mom.evaluate.text_losses(model, mom.data.TextDocuments([*TEXTS, *TEXTS]), stride=31)[-1]
    assert results["local_rolling"]["bits_per_byte,none"] == pytest.approx(total.bits_per_byte, rel=0.02)
    assert results["local_choice"]["acc,none"] == 0.5 and results["local_until"]["exact_match,none"] == 0.25


def test_command_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["lm_eval"]) == 1 and "arguments: none" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    assert cli.main(["lm_eval", "run", "--model", "mom"]) == 1
    assert "needs the package lm-eval: pip install lm-eval" in capsys.readouterr().err
    assert cli.with_underscores(["lm_eval", "run", "--gen-kwargs", "a"]) == ["lm_eval", "run", "--gen-kwargs", "a"]
