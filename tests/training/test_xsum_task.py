"""`mom.xsum` and ``mom finetune --task xsum``: what is learnt, cut and generated, and the table."""

from __future__ import annotations

import copy
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli, xsum
from mom.data.batches import pack_labelled
from mom.errors import ConfigError, DataError, TrainingError
from mom.evaluate import lead, rouge
from mom.files.locks import lock_folder
from mom.training.adapt import copy_of
from mom.training.finetune import FinetuneInterrupted
from mom.xsum.rows import make_rows, prompts_of, rows_loss
from vocabularies import renumbered

pytest.importorskip("rouge_score", reason="rouge-score is not installed")

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "xsum"
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 2, "max_summary": 16, "progress": False}


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    tokenizer = mom.Tokenizer.train(xsum.read_xsum(GOLDEN).documents * 2, 400)
    config = mom.MoMConfig.preset(
        "demo", vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_head=2, router_dim=8, depth_per_chunk=2
    )
    made = mom.MoM(config, seed=0)
    made.tokenizer = tokenizer
    return made


def test_a_second_run_into_the_same_folder_is_refused(model: mom.MoM, tmp_path: Path) -> None:
    (tmp_path / "xsum").mkdir()
    refused = rf"out_dir: \S*xsum is in use by process {os.getpid()} on \S+; wait"
    with lock_folder(tmp_path / "xsum"), pytest.raises(TrainingError, match=refused):
        xsum.finetune(model, GOLDEN, out_dir=tmp_path, **QUICK)
    assert list((tmp_path / "xsum").iterdir()) == []
    assert xsum.finetune(model, GOLDEN, out_dir=tmp_path, **QUICK).folder == tmp_path / "xsum" / "model"


def test_what_train_only_froze_is_said_to_be_trained(model: mom.MoM) -> None:
    frozen = copy.deepcopy(model)
    frozen.train_only("*.router.*")
    with pytest.warns(UserWarning, match="train_only has frozen .* pass train='routers'"):
        xsum.finetune(frozen, GOLDEN, **QUICK)


def test_rows_fit_and_only_summaries_are_scored(model: mom.MoM) -> None:
    data = xsum.read_xsum(GOLDEN)
    rows, cut, cut_summaries = make_rows(model, data, 64, 16)
    decode = model.tokenizer.decode
    for row, document, summary in zip(rows, data.documents, data.summaries, strict=True):
        head, tail = decode(row.tokens[: row.prompt]), row.tokens[row.prompt :]
        assert len(row.tokens) <= 64 and len(tail) <= 16 and head.endswith(xsum.PROMPT)
        assert document.startswith(head.removesuffix(xsum.PROMPT))
        text = decode(tail)
        assert f" {summary}<|endoftext|>".startswith(text) and (tail[-1] == model.tokenizer.eos_id or len(tail) == 16)
    assert cut == 3 and cut_summaries == sum(len(model.tokenizer.encode(f" {s}")) > 15 for s in data.summaries)

    tokens, labels, lengths = pack_labelled(rows)
    out = model(tokens, labels=labels, lengths=lengths)
    assert out.num_labelled == sum(len(row.tokens) - row.prompt for row in rows)
    total = 0.0
    for row in rows:
        logits = model(row.tokens, return_logits=True).logits[0].astype(np.float64)  # type: ignore[index]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total -= sum(logs[t - 1, row.tokens[t]] for t in range(row.prompt, len(row.tokens)))
    assert out.lm_loss == pytest.approx(total / out.num_labelled, rel=1e-5)
    assert rows_loss(model, rows) == pytest.approx(out.lm_loss, rel=1e-5)


def test_a_few_summaries_are_learnt_by_heart(model: mom.MoM, tmp_path: Path) -> None:
    rows = [
        {"document": f"Something about a {word} happened today. It was big.", "summary": f"The {word} was here."}
        for word in ("ferry", "school", "museum", "station")
    ]
    data = {"train": rows, "validation": rows, "test": rows}
    before = {n: v.copy() for n, v in model.parameters.items()}
    result = xsum.finetune(model, data, out_dir=tmp_path, **{**QUICK, "epochs": 90, "batch_size": 4, "lr": 0.01})
    assert all(np.array_equal(v, before[n]) for n, v in model.parameters.items()), "the model given is left as it is"
    assert result.val_loss is not None and result.val_loss < 0.1 and result.train_rows == 4
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "batch_size": 1, "no_repeat_ngram_size": 3}):
        scores = xsum.evaluate(result.model, data, max_summary=16, **options)  # type: ignore[arg-type]
        assert scores.summaries == [row["summary"] for row in rows] and scores.rouge["rougeL"] == 100
    assert scores.loss == pytest.approx(result.val_loss, rel=1e-4)
    assert scores.lead["LEAD-1"] == rouge([lead(r["document"], 1) for r in rows], [r["summary"] for r in rows])
    saved = mom.MoM.from_pretrained(tmp_path / "xsum" / "model")
    assert saved.finetuning_lengths == {"max_length": 64, "max_summary": 16}
    assert xsum.summarize(saved, [rows[0]["document"]]) == [rows[0]["summary"]]
    assert xsum.evaluate(saved, data).loss == scores.loss
    assert json.loads((tmp_path / "xsum" / "results.json").read_text())["val_loss"] == result.val_loss


def test_accumulation_weighs_by_scored_tokens(model: mom.MoM) -> None:
    """Summaries of unequal length: a mean of the batches' means would be another gradient."""
    rows = [{"document": "Rain all day.", "summary": "Rain" * n} for n in (1, 2, 4, 7, 9)]
    data, losses, ends = {"train": rows, "validation": rows}, [], []
    plain = mom.MoM(model.config.replace(router_aux_loss_coef=0.0), seed=0)
    plain.tokenizer = model.tokenizer
    for batch_size, accumulation in ((6, 1), (2, 3), (1, 6)):
        settings = {**QUICK, "epochs": 2, "lr": 1e-3, "eps": 1e-3, "batch_size": batch_size}
        found = xsum.finetune(plain, data, accumulation=accumulation, **settings)
        assert found.loop.steps == 2 and found.loop.examples == 10
        losses.append(found.loop.loss)
        ends.append({name: value.copy() for name, value in found.model.parameters.items()})
    for loss, end in zip(losses[1:], ends[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        for name, value in ends[0].items():
            np.testing.assert_allclose(end[name], value, rtol=0, atol=1e-5, err_msg=name)


class CtrlC:
    """At the so many-th record."""

    def __init__(self, at: int) -> None:
        self.left = at

    def record(self, record: dict[str, Any]) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_an_interrupted_run_keeps_its_best_weights(model: mom.MoM, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 4, "lr": 0.01, "patience": 0, "eval_every": 1}
    with pytest.raises(FinetuneInterrupted, match="^xsum: step 1/8, before any evaluation$"):
        xsum.finetune(model, GOLDEN, out_dir=tmp_path, callbacks=[CtrlC(1)], **settings)
    assert not (tmp_path / "xsum").exists()
    with pytest.raises(FinetuneInterrupted, match=f"at step [123]; kept in {tmp_path}") as caught:
        xsum.finetune(model, GOLDEN, out_dir=tmp_path, callbacks=[CtrlC(7)], **settings)
    loop = caught.value.loop
    written = json.loads((tmp_path / "xsum" / "results.json").read_text())
    assert written["interrupted"] == "SIGINT" and written["steps"] == 4 and written["best_step"] == loop.best_step
    found = xsum.evaluate(tmp_path / "xsum" / "model", GOLDEN, "validation", max_summary=16)
    assert found.loss == pytest.approx(written["val_loss"], rel=1e-5) and written["val_loss"] == -loop.best_score


def test_batches_do_not_matter(model: mom.MoM) -> None:
    documents = xsum.read_xsum(GOLDEN).documents
    found = [xsum.summarize(model, documents, max_summary=8, num_beams=2, batch_size=b) for b in (1, 2, 3)]
    assert found[0] == found[1] == found[2]


def test_summaries_have_no_ids_that_the_tokenizer_lacks(model: mom.MoM, tmp_path: Path) -> None:
    holes = 3 + 5 * np.arange(40)
    used = np.setdiff1d(np.arange(model.config.vocab_size + 40), holes)
    wide = mom.MoM(model.config.replace(vocab_size=int(used[-1]) + 1), seed=0)
    for name, value in model.parameters.items():
        if name == "transformer.wte.weight":
            wide.parameters[name][holes] = 9.0 * value[:40]
            wide.parameters[name][used] = value
        else:
            wide.parameters[name] = value
    documents = xsum.read_xsum(GOLDEN).documents[:3]
    prompt = used[prompts_of(model, documents, 64, 8)[0][0]]
    assert np.isin(wide.generate(prompt, 8)[len(prompt) :], holes).any(), "the test says something"
    wide.tokenizer = renumbered(model.tokenizer, used, tmp_path)
    for beams in (1, 2):
        found = xsum.summarize(wide, documents, max_summary=8, num_beams=beams)
        assert found == xsum.summarize(model, documents, max_summary=8, num_beams=beams) and any(found)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_routers_that_cannot_learn_are_said(model: mom.MoM, coefficient: float) -> None:
    single = copy_of(model, mom.MoM, routing_top_k=1, router_aux_loss_coef=coefficient)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        xsum.finetune(single, GOLDEN, **QUICK, max_steps=1, train="routers")
    assert ["train: 'routers' trains nothing" in str(w.message) for w in caught] == [True] * (coefficient == 0.0)


def test_examples_stand_side_by_side(model: mom.MoM) -> None:
    scores = xsum.evaluate(model, GOLDEN, max_summary=8)
    lines = xsum.format_examples(scores, 2, width=60).splitlines()
    assert [line[:10].strip() for line in lines] == [*("document", "reference", "model", "LEAD-1"), "",
                                                     *("document", "reference", "model", "LEAD-1")]  # fmt: skip
    assert all(len(line) <= 60 for line in lines) and lines[1] == "reference A cow is missing from its field."
    table = scores.table().splitlines()
    assert table[0].split() == ["ROUGE-1", "ROUGE-2", "ROUGE-L"] and [t.split()[0] for t in table[1:]] == [
        "model", "LEAD-1", "LEAD-3",
    ]  # fmt: skip


def test_errors(model: mom.MoM, tmp_path: Path) -> None:
    for changes, kind, message in (
        ({"max_summary": 62}, ConfigError, "max_summary: 62 of 64 tokens leaves no room"),
        ({"max_summary": 1}, ConfigError, "max_summary: 1 of 64"),
        ({"train": "head"}, ConfigError, "train: 'head', but"),
        ({"val_rows": 0}, ConfigError, "val_rows: 0 is less than 1"),
        ({"val_rows": -1}, ConfigError, "val_rows: -1 is less than 1"),
        ({"data": {"train": []}}, DataError, "no rows"), ({"data": tmp_path}, DataError, "holds no train.jsonl"),
        ({"model": mom.MoM(model.config)}, DataError, "tokenizer: the model has none"),
        ({"model": mom.MoMForSequenceClassification(model.config)}, TypeError, "model: expected MoM"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            xsum.finetune(**{"model": model, "data": GOLDEN, **QUICK, **changes})
    with pytest.raises(ValueError, match="rows: 0 is less than 1"):
        xsum.evaluate(model, GOLDEN, rows=0)
    with pytest.raises(ValueError, match="batch_size: 0 is less than 1"):
        xsum.summarize(model, ["a"], batch_size=0)
    for documents, message in (
        ("abc", "documents: expected texts, got a str"), (b"abc", "documents: expected texts, got a bytes"),
        ({"document": "a"}, "documents: expected texts, got a dict"),
        (["a", 3], "documents: item 1: expected a string, got int"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            xsum.summarize(model, documents)  # type: ignore[arg-type]


def test_the_commands(model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "lm")
    flags = ["--data", str(GOLDEN), "--max_summary", "8", "--max-length", "48"]
    command = ["finetune", "--task", "xsum", "--model", str(tmp_path / "lm"), "--out_dir", str(tmp_path / "out"),
               "--epochs", "1", "--batch_size", "2", "--num_beams", "2", "--examples", "1"]  # fmt: skip
    assert cli.main([*command, *flags]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("document  Police are looking") and "LEAD-3" in out and "xsum: step 2/2 loss" in err
    assert out.endswith(f"model {tmp_path / 'out' / 'xsum' / 'model'}\n")

    evaluate = ["evaluate", "--task", "xsum", "--model", str(tmp_path / "out" / "xsum" / "model"), *flags]
    assert cli.main([*evaluate, "--num_beams", "2", "--examples", "1"]) == 0
    assert capsys.readouterr().out == out.rsplit("model ", 1)[0]
    assert cli.main([*evaluate, "--json", "--rows", "1", "--task_split", "dev"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"rouge", "LEAD-1", "LEAD-3", "loss", "rows"} and found["rows"] == 1
    assert cli.main([*command, *flags, "--predict"]) == 1
    assert "task: xsum goes with no other task" in capsys.readouterr().err


def test_the_command_says_before_training_what_it_lacks_after(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "lm")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_bytes((GOLDEN / f"{split}.jsonl").read_bytes())
    command = ["finetune", "--task", "xsum", "--model", str(tmp_path / "lm"), "--out_dir", str(tmp_path / "out")]
    for changes, message in (
        (["--data", str(data)], "holds no test.jsonl"),
        (["--data", str(GOLDEN), "--rows", "0"], "rows: 0 is less than 1"),
    ):
        assert cli.main([*command, *changes]) == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_signal_while_results_are_written_waits_for_them(
    model: mom.MoM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    results = tmp_path / "xsum" / "results.json"
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(results.is_file()))
    save = mom.MoM.save_pretrained

    def save_and_be_stopped(self: mom.MoM, *args: Any, **keywords: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, *args, **keywords)

    monkeypatch.setattr(mom.MoM, "save_pretrained", save_and_be_stopped)
    try:
        found = xsum.finetune(model, GOLDEN, out_dir=tmp_path, **{**QUICK, "epochs": 1})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [True] and json.loads(results.read_text())["interrupted"] is None and found.folder is not None
