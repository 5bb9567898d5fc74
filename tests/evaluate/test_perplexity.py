"""`mom.evaluate.perplexity`: every token counts once, whatever the windows, and the sums are those of the logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli
from mom.data import TextDocuments, TokenFile
from mom.errors import ConfigError, DataError
from mom.evaluate import text_losses, token_file_loss
from mom.evaluate.perplexity import windows_of

TEXTS = ["A first text, which is longer than a window of the model. " * 2, "b", "Ein kürzerer Text: 東京 🦊."]


@pytest.fixture(scope="module")
def model() -> Any:
    tokenizer = mom.Tokenizer.train(TEXTS * 3, 300)
    made = mom.MoM(mom.MoMConfig.preset("demo", vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=32), seed=3)
    for value in made.parameters.values():
        value *= 1.5
    made.tokenizer = tokenizer
    return made


def expected_loss(model: Any, texts: list[str], window: int, stride: int) -> tuple[float, int]:
    """The same sum, one token after the other."""
    nats, count = 0.0, 0
    for text in texts:
        ids = np.concatenate([[model.tokenizer.eos_id], model.tokenizer.encode(text)])
        for t in range(1, len(ids)):
            number = 0 if t < window else -(-(t - window + 1) // stride)  # of the first window that reaches t
            context = ids[number * stride : t]
            logits = model(context, return_logits=True).logits[0, -1].astype(np.float64)
            nats += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ids[t]]
            count += 1
    return nats, count


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 1), (16, 15), (7, 3)])
def test_equals_a_sum_over_single_tokens(model: Any, window: int, stride: int) -> None:
    total = text_losses(model, TextDocuments(TEXTS), window=window, stride=stride)[-1]
    nats, count = expected_loss(model, TEXTS, window, stride)
    assert total.nats == pytest.approx(nats, rel=1e-5) and total.tokens == count
    assert total.bytes == sum(len(text.encode()) for text in TEXTS) and total.documents == 3
    assert total.loss == pytest.approx(nats / count) and total.perplexity == pytest.approx(math.exp(nats / count))
    assert total.bits_per_byte == pytest.approx(nats / math.log(2) / total.bytes)


def test_batches_do_not_matter(model: Any) -> None:
    values = [text_losses(model, TextDocuments(TEXTS), batch_size=b)[-1].nats for b in (1, 2, 5, 100)]
    assert np.ptp(values) < 1e-4
    model.train()
    text_losses(model, TextDocuments(TEXTS))
    assert model.training
    model.eval()


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 23])
@pytest.mark.parametrize(("window", "stride"), [(6, 1), (6, 3), (6, 5), (2, 1)])
def test_windows_score_each_token_once(length: int, window: int, stride: int) -> None:
    ids = np.arange(length, dtype=np.int32)
    scored = [row[first:] for row, first in windows_of(ids, window, stride)]
    np.testing.assert_array_equal(np.concatenate([ids[:1], *scored]), ids)
    assert all(len(row) <= window and first >= 1 for row, first in windows_of(ids, window, stride))


def test_files_are_reported_one_by_one(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[1:]))
    (tmp_path / "c.txt").write_text("")
    a, b, c, total = text_losses(model, tmp_path)
    assert [Path(r.name).name for r in (a, b, c)] == ["a.txt", "b.jsonl", "c.txt"] and total.name == "total"
    assert (a.documents, b.documents, c.documents) == (1, 2, 0) and math.isnan(c.loss) and math.isnan(c.bits_per_byte)
    assert total.nats == pytest.approx(a.nats + b.nats) and total.tokens == a.tokens + b.tokens
    assert total.nats == pytest.approx(text_losses(model, TextDocuments(TEXTS))[-1].nats, rel=1e-6)


def test_errors(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for changes, kind, message in (
        ({"window": 17}, ValueError, r"window: 17 is not in \[2, 16\]"), ({"stride": 16}, ValueError, "stride: 16 is"),
        ({"stride": 0}, ValueError, "stride: 0"), ({"batch_size": 0}, ValueError, "batch_size: 0 is less than 1"),
        ({}, DataError, "a.txt: no text to score"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            text_losses(model, tmp_path, **changes)
    bare = mom.MoM(model.config.replace(vocab_size=17))
    with pytest.raises(DataError, match="tokenizer: the model has none"):
        text_losses(bare, tmp_path)
    with pytest.raises(DataError, match="tokenizer: .* tokens, more than the model's vocab_size = 17"):
        text_losses(bare, tmp_path, tokenizer=model.tokenizer)


def test_the_command_prints_a_table_or_json(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text(TEXTS[0])
    command = ["evaluate", "--model", str(tmp_path / "model"), "--text", str(tmp_path / "a.txt"), "--stride", "4"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = text_losses(model, tmp_path / "a.txt", stride=4)[0]
    assert lines[0].split() == ["text", "tokens", "bytes", "loss", "perplexity", "bits", "per", "byte"]
    assert lines[1].split()[1:] == [
        str(expected.tokens), str(expected.bytes), f"{expected.loss:.4f}", f"{expected.perplexity:.3f}",
        f"{expected.bits_per_byte:.4f}",
    ]  # fmt: skip
    assert lines[2].startswith("total")
    assert cli.main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1]["name"] == "total" and rows[0]["perplexity"] == pytest.approx(expected.perplexity)


def test_loss_of_a_token_file(model: Any, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 100).astype("<u2")
    ids.tofile(tmp_path / "train.bin")
    found = token_file_loss(model, tmp_path)
    assert found.path == tmp_path / "train.bin" and found.sequence_length == 16 and found.tokens == 96
    windows = TokenFile(tmp_path / "train.bin").windows(np.arange(6) * 16, 16)
    assert found.loss == pytest.approx(model(windows, labels=windows).lm_loss, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss)) and found.seconds > 0
    ids[:50].tofile(tmp_path / "val.bin")
    part = token_file_loss(model, tmp_path, sequence_length=8, batch_size=2, batches=2)
    assert part.path == tmp_path / "val.bin" and part.tokens == 32
    for argument, message in (
        ({"sequence_length": 17}, r"sequence_length: 17 is not in \[2, 16\]"),
        ({"batch_size": 0}, "batch_size: 0 is less"), ({"batches": 0}, "batches: 0 is less"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            token_file_loss(model, tmp_path, **argument)
