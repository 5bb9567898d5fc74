"""What the command ``mom`` and the readers print: strict JSON, any character, and all that was left out."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli, glue, xsum
from mom.data import Documents, TextDocuments, TokenFile, WindowSampler
from mom.data.encode import encode_texts
from mom.data.prepare import prepare
from mom.errors import DataError
from mom.evaluate import text_losses, token_file_loss
from mom.xsum.rows import PROMPT, make_rows

TEXT = "a fox and a dog ran "


def strict(text: str) -> Any:
    """The value, read by a reader that knows no NaN and no infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` and ``data``, whose name has characters beyond ASCII."""
    folder = tmp_path_factory.mktemp("out") / "caf\u00e9 \u6771 \U0001f98a"
    tokenizer = mom.Tokenizer.train([TEXT * 4, "\u6771\u4eac"], 300)
    model = mom.MoM(
        mom.MoMConfig.vanilla(1, vocab_size=tokenizer.vocab_size, n_positions=16, n_embd=16, n_head=1), seed=0
    )
    model.tokenizer = tokenizer
    model.save_pretrained(folder / "model")
    prepare(TextDocuments([TEXT * 20]), folder / "data", tokenizer=tokenizer, val_fraction=0, progress=False)
    return folder


def command(encoding: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run ``mom`` in a process with this encoding of standard output."""
    words = [sys.executable, "-m", "mom", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}
    return subprocess.run(words, capture_output=True, env=environment, timeout=120)


# ---------------------------------------------------------------------- JSON
def test_a_run_without_clipping_writes_strict_json_and_resumes(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 2, "sequence_length": 8, "progress": False, "clip": float("inf")}
    whole = mom.MoM.from_pretrained(folder / "model")
    mom.train(whole, folder / "data", steps=4, run_dir=tmp_path / "whole", **settings)
    model = mom.MoM.from_pretrained(folder / "model")
    mom.train(model, folder / "data", steps=2, run_dir=tmp_path / "run", schedule="constant", **settings)
    progress = strict((tmp_path / "run/step-00000002/training.json").read_text())
    assert progress["config"]["clip"] == "Infinity" == progress["fingerprint"]["settings"]["clip"]
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        strict(line)
    again = mom.MoM.from_pretrained(folder / "model")
    done = mom.train(
        again, folder / "data", steps=4, run_dir=tmp_path / "run", schedule="constant", resume=True, **settings
    )
    assert done.step == 4


def test_a_checkpoint_with_bare_infinity_is_still_read(folder: Path, tmp_path: Path) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    settings: dict[str, Any] = {"batch_size": 2, "sequence_length": 8, "progress": False, "clip": float("inf")}
    mom.train(model, folder / "data", steps=1, run_dir=tmp_path / "run", schedule="constant", **settings)
    from mom.training.checkpoint import read_progress

    file = tmp_path / "run/step-00000001/training.json"
    now = read_progress(file.parent)
    assert now["config"]["clip"] == float("inf")
    file.write_text(file.read_text().replace('"Infinity"', "Infinity"))
    assert read_progress(file.parent) == now


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("what", ["--data", "--text"])
def test_json_on_standard_output_is_json_in_every_encoding(
    encoding: str, what: str, folder: Path, tmp_path: Path
) -> None:
    text = folder / "\U0001f98a.txt"
    text.write_text(TEXT)
    model = mom.MoM.from_pretrained(folder / "model")
    model.parameters["transformer.ln_f.weight"][:] = np.nan
    model.save_pretrained(tmp_path / "nan")
    source = folder / "data" if what == "--data" else text
    done = command(encoding, "evaluate", "--model", tmp_path / "nan", what, source, "--json")
    assert done.returncode == 0, done.stderr
    found = strict(done.stdout.decode(encoding))
    found = found[0] if what == "--text" else found
    assert found["loss"] is None and found["data" if what == "--data" else "name"].startswith(str(folder))


# ---------------------------------------------------------------------- characters
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_characters_that_the_output_lacks_are_replaced(encoding: str, folder: Path) -> None:
    done = command(encoding, "evaluate", "--model", folder / "model", "--data", folder / "data")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"data {folder / 'data' / 'train.bin'},".encode(encoding, "backslashreplace"))
    failed = command(encoding, "evaluate", "--model", folder / "none", "--data", folder / "data")
    assert failed.returncode == 1 and failed.stderr.startswith(b"mom: error:") and b"Traceback" not in failed.stderr


def test_names_that_are_not_utf8_are_shown(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text(TEXT)
    done = command("utf-8", "evaluate", "--model", folder / "model", "--text", file)
    assert done.returncode == 0 and b"caf\xe9.txt" in done.stdout


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_every_character_is_shown_whatever_the_stream_did_before(errors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(cli, "_run", lambda arguments: print("caf\u00e9 \udce9 \u6771 \U0001f98a \ud800") or 0)
    assert cli.main(["info"]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"caf\\xe9 \xe9 \\u6771 \\U0001f98a \\ud800\n"  # type: ignore[attr-defined]
    assert stream.errors == errors


def test_streams_are_left_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout.errors
    assert cli.main(["info"]) == 0
    assert sys.stdout.errors == before


def test_messages_do_not_mix_with_results_if_standard_error_is_closed(folder: Path) -> None:
    text = folder / "mixed"
    text.mkdir()
    (text / "a.txt").write_text(TEXT)
    (text / "b.csv").write_text("a file to be passed over")
    words = [sys.executable, "-m", "mom", "evaluate", "--model", str(folder / "model"), "--text", str(text), "--json"]
    whole = subprocess.run(words, capture_output=True, timeout=120)
    assert b"passed over 1 files" in whole.stderr and strict(whole.stdout.decode())[0]["tokens"] > 0
    done = subprocess.run(f"{shlex.join(words)} 2>&-", shell=True, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout == whole.stdout


def test_a_closed_standard_output_is_no_traceback() -> None:
    done = subprocess.run(f"{sys.executable} -m mom info >&-", shell=True, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stderr == b""


# ---------------------------------------------------------------------- what was left out
def test_the_terminal_says_how_many_rows_were_cut(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = mom.MoM.from_pretrained(folder / "model").tokenizer
    with caplog.at_level(logging.INFO, "mom"):
        encode_texts(tokenizer, [(TEXT,), ("a",)], 64, "short")
        rows, cut = encode_texts(tokenizer, [(TEXT,), ("a",), (TEXT * 2,)], 4, "long")
    assert cut == 2 and max(map(len, rows)) == 4
    assert [r.getMessage() for r in caplog.records] == ["long: 2 of 3 rows were cut to max_length = 4 tokens"]


def test_files_and_linked_folders_that_are_passed_over_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "more").mkdir()
    for name in ("texts/a.txt", "texts/b.csv", "texts/.c.txt", "more/d.txt"):
        (tmp_path / name).write_text(TEXT)
    os.mkfifo(tmp_path / "texts/pipe.txt")
    os.symlink(tmp_path / "more", tmp_path / "texts/linked")
    os.symlink(tmp_path / "more/d.txt", tmp_path / "texts/e.txt")
    with (
        caplog.at_level(logging.INFO, "mom"),
        pytest.warns(UserWarning, match="links to folders are not followed: 1 of them, the first .*linked"),
    ):
        found = Documents(tmp_path / "texts")
    assert [file.name for file in found.files] == ["a.txt", "e.txt"] and found.ignored_files == 3
    assert "passed over 3 files" in caplog.text and ".c.txt" in caplog.text
    os.symlink(tmp_path / "nowhere", tmp_path / "texts/f.txt")
    with pytest.raises(DataError, match="f.txt: a link to a file that does not exist"):
        Documents(tmp_path / "texts")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_cannot_be_searched_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="closed: cannot be read"):
        Documents(tmp_path)


def test_documents_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mom"):
        assert len(list(TextDocuments(["", TEXT, ""], name="three"))) == 1
    assert "three: 2 documents without any text left out" in caplog.text


def test_the_tail_of_a_token_file_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    count = len(TokenFile(folder / "data/train.bin"))
    found = token_file_loss(model, folder / "data", sequence_length=7)
    assert found.tokens == count // 7 * 7 and found.left_out == count % 7 > 0
    assert token_file_loss(model, folder / "data", sequence_length=7, batch_size=1, batches=2).left_out == count - 14
    done = command("utf-8", "evaluate", "--model", folder / "model", "--data", folder / "data", "--sequence_length", 7)
    assert f"tokens left out at the end of the file {count % 7}\n" in done.stdout.decode()
    with caplog.at_level(logging.INFO, "mom"):
        WindowSampler(TokenFile(folder / "data/train.bin"), 1, 7, mode="random")
        assert not caplog.records
        WindowSampler(TokenFile(folder / "data/train.bin"), 1, 7, mode="consecutive")
    assert f"the last {count % 7} tokens fill no window of 7" in caplog.text


def test_documents_in_which_nothing_is_predicted_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    bare = mom.Tokenizer.train([TEXT * 4], 300, special_tokens=("<pad>",))
    bare = mom.Tokenizer(bare._with_special, eos_token="<none>")
    assert bare.eos_id is None, "no token is put before a text"
    with caplog.at_level(logging.INFO, "mom"):
        text_losses(model, TextDocuments(["a", TEXT], name="two"), tokenizer=bare)
    assert "two: 1 of 2 documents have a single token" in caplog.text


def test_the_tail_that_becomes_validation_data_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mom"):
        meta = prepare(TextDocuments([TEXT * 50]), tmp_path / "data", vocab_size=300, val_fraction=0.1, progress=False)
    count = meta["files"]["val.bin"]["tokens"]
    assert f"val.bin: the last {count} tokens of the text" in caplog.text


def test_the_terminal_says_how_many_documents_and_summaries_were_cut(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    room = 16 - len(model.tokenizer.encode(PROMPT)) - 3
    assert room > 0
    rows = [{"document": "a", "summary": "a"}, {"document": TEXT * 3, "summary": TEXT}]
    with caplog.at_level(logging.INFO, "mom.xsum"):
        found, cut, cut_summaries = make_rows(model, xsum.read_xsum(rows), 16, 3)
    assert (cut, cut_summaries) == (1, 1) and max(len(row.tokens) for row in found) == 16
    assert [r.getMessage() for r in caplog.records] == [
        f"1 of 2 documents were cut to {room} tokens", "1 of 2 summaries were cut to 3 tokens",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["", "data"])
def test_missing_parts_of_a_set_are_an_error(where: str, tmp_path: Path) -> None:
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    for number in (0, 2):
        (folder / f"train-{number:05}-of-00003.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="2 of 3 files ..-of-00003 are there; number 1 is missing"):
        xsum.read_xsum(tmp_path, "train")
    if not where:
        with pytest.raises(DataError, match="number 1 is missing"):
            glue.read_glue(tmp_path, "cola", "train")


def test_the_part_of_the_validation_data_that_is_used_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = TokenFile(folder / "data/train.bin")
    settings: dict[str, Any] = {"steps": 1, "batch_size": 2, "sequence_length": 8, "progress": False}
    with caplog.at_level(logging.INFO, "mom.training"):
        mom.train(mom.MoM.from_pretrained(folder / "model"), tokens, val_data=tokens, eval_batches=3, **settings)
        assert [r.getMessage() for r in caplog.records] == [
            f"validation: the first 48 of {len(tokens)} tokens of {tokens.path}"
        ]
        caplog.clear()
        whole = {**settings, "sequence_length": 2}
        assert len(tokens) % 2 == 0
        mom.train(mom.MoM.from_pretrained(folder / "model"), tokens, val_data=tokens, eval_batches=10**6, **whole)
        assert not caplog.records
