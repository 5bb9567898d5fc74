"""The model ``mom`` in lm-evaluation-harness: requests by hand, and local tasks through the harness's command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_arguments_are_checked(model: mom.MoM, tmp_path: Path) -> None:
    lm = harness().MomLM
    assert lm(model, device="cuda:0", max_batch_size=4).max_length == 32, "the harness's defaults"
    bare = mom.MoM(model.config)
    for changes, kind, message in (
        ({"batch_size": 0}, ConfigError, "batch_size: 0 is less than 1"),
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
    done = subprocess.run(
        [sys.executable, "-m", "mom", "lm_eval", "run", "--model", "mom",
         "--model_args", f"pretrained={tmp_path / 'model'}", "--tasks", "local_choice,local_rolling,local_until",
         "--include_path", str(tasks), "--output_path", str(tmp_path / "out"),
         "--batch_size", "2"],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"),
             "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
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
