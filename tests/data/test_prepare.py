"""`mom.data.prepare`: the files it writes, bounded memory, repeatable results, and no files left after a failure."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import mom.data.prepare as prepare_module
import mom.files.atomic as atomic
from mom.data import Documents, TextDocuments, TokenFile
from mom.data.prepare import prepare
from mom.data.tokenizer import Tokenizer
from mom.data.tokenizer_files import TOKENIZER_FILES
from mom.errors import DataError

TEXTS = [f"Document number {i} says something about {i * i} things.\n" * 3 for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 400)


def test_a_description_of_another_format_is_refused(tokenizer, tmp_path):
    prepare(TextDocuments(TEXTS), tmp_path, tokenizer=tokenizer, progress=False)
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 2}))
    with pytest.raises(DataError, match="meta.json: format: 2 is not supported, only 1"):
        prepare_module.read_meta(tmp_path)


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_in(path, tokenizer):
    ids = np.fromfile(path, "<u2")
    assert ids[-1] == tokenizer.eos_id
    return [tokenizer.decode(part) for part in np.split(ids, np.flatnonzero(ids == tokenizer.eos_id) + 1)[:-1]]


def test_writes_every_document_once(tmp_path, tokenizer):
    meta = prepare(TextDocuments(TEXTS), tmp_path, tokenizer=tokenizer, val_fraction=0.1, progress=False)
    parts = {name: documents_in(tmp_path / f"{name}.bin", tokenizer) for name in ("train", "val")}
    end = "<|endoftext|>"
    assert sorted(parts["train"] + parts["val"]) == sorted(text + end for text in TEXTS)
    assert parts["train"] == [text + end for text in TEXTS if text + end not in parts["val"]]
    assert 10 < len(parts["val"]) < 60
    assert meta == json.loads((tmp_path / "meta.json").read_text())
    assert meta["dtype"] == "uint16" and meta["vocab_size"] == 400 and meta["val_split"] == "documents"
    for name, values in meta["files"].items():
        data = (tmp_path / name).read_bytes()
        assert values["tokens"] * 2 == len(data) and values["documents"] == len(parts[name[:-4]])
        assert values["sha256"] == hashlib.sha256(data).hexdigest()
    assert Tokenizer.load(tmp_path).sha256 == meta["tokenizer_sha256"] == tokenizer.sha256
    names = ["meta.json", "train.bin", "train.bin.json", "val.bin", "val.bin.json", *TOKENIZER_FILES]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_same_seed_same_bytes_other_seed_other_split(tmp_path, tokenizer):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(TextDocuments(TEXTS), tmp_path / name, tokenizer=tokenizer, val_fraction=0.1, seed=seed, progress=False)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    assert (tmp_path / "a" / "val.bin").read_bytes() != (tmp_path / "c" / "val.bin").read_bytes()


def test_a_single_document_gives_its_tail_to_validation(tmp_path, tokenizer):
    source = tmp_path / "a.txt"
    source.write_text("".join(TEXTS))
    for seed in range(8):
        meta = prepare(source, tmp_path / "out", tokenizer=tokenizer, val_fraction=0.5, seed=seed, progress=False)
        assert meta["val_split"] == "tail"
        joined = np.concatenate([np.fromfile(tmp_path / "out" / f"{name}.bin", "<u2") for name in ("train", "val")])
        assert tokenizer.decode(joined) == "".join(TEXTS) + "<|endoftext|>"
        assert abs(meta["files"]["train.bin"]["tokens"] - meta["files"]["val.bin"]["tokens"]) <= 1


def test_no_validation_part_removes_an_earlier_one(tmp_path, tokenizer):
    prepare(TextDocuments(TEXTS), tmp_path, tokenizer=tokenizer, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    meta = prepare(TextDocuments(TEXTS), tmp_path, tokenizer=tokenizer, val_fraction=0.0, progress=False)
    names = ["meta.json", "notes.txt", "train.bin", "train.bin.json", *TOKENIZER_FILES]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert meta["files"]["train.bin"]["documents"] == 300 and meta["val_split"] == "none"


def test_large_vocabulary_takes_uint32(tmp_path, tokenizer):
    class Shifted(Tokenizer):
        vocab_size = 70_000

        def encode_batch(self, texts, special=False):
            return [ids + 69_000 for ids in super().encode_batch(texts, special)]

    shifted = Shifted(tokenizer._with_special)
    meta = prepare(TextDocuments(TEXTS), tmp_path, tokenizer=shifted, append_eos=False, progress=False)
    assert meta["dtype"] == "uint32"
    tokens = TokenFile(tmp_path)
    assert tokens.dtype == np.uint32 and tokens.read(0, len(tokens)).min() >= 69_000


def test_trains_a_tokenizer_and_reads_one_from_a_path(tmp_path):
    first = prepare(TextDocuments(TEXTS), tmp_path / "a", vocab_size=300, progress=True)
    assert first["vocab_size"] == 300
    second = prepare(TextDocuments(TEXTS), tmp_path / "b", tokenizer=tmp_path / "a", progress=False)
    assert second["tokenizer_sha256"] == first["tokenizer_sha256"]


class FullDisk:
    """A file that takes so many bytes and then is full."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_everything_as_it_was(tmp_path, tokenizer, monkeypatch, existing):
    out = tmp_path / "deep" / "out"
    if existing:
        prepare(TextDocuments(TEXTS[:100]), out, tokenizer=tokenizer, progress=False)
        (out / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    monkeypatch.setattr(prepare_module, "open", lambda *a: FullDisk(open(*a), 5000), raising=False)
    with pytest.raises(OSError) as caught:
        prepare(TextDocuments(TEXTS), out, tokenizer=tokenizer, progress=False)
    assert caught.value.errno == errno.ENOSPC and Path(caught.value.filename).name in ("train.part", "val.part")
    assert snapshot(tmp_path) == before
    assert (tmp_path / "deep").exists() == existing


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("exchange", [False, True])
def test_failing_rename_is_undone(tmp_path, tokenizer, monkeypatch, others, exchange):
    """Alone, the folder is replaced as a whole; beside other files, eight files are renamed."""
    out = tmp_path / "out"
    prepare(TextDocuments(TEXTS[:100]), out, tokenizer=tokenizer, progress=False)
    if others:
        (out / "mine.txt").write_text("mine")
    before, listing = snapshot(tmp_path), sorted(os.listdir(tmp_path))
    real_rename, real_put, calls = os.rename, atomic._exchange, []

    def counted(real):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) == failing + 1 and "train.part" not in str(arguments) and "val.part" not in str(arguments):
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments)

        return call

    monkeypatch.setattr(os, "rename", counted(real_rename))
    monkeypatch.setattr(atomic, "_exchange", counted(real_put) if exchange else lambda one, two: False)
    seen = 0
    for failing in range(2, 40):  # noqa: B007  (the first two renames finish the token files)
        calls.clear()
        try:
            prepare(TextDocuments(TEXTS), out, tokenizer=tokenizer, progress=False)
        except OSError as error:
            assert error.errno == errno.EIO
            assert (snapshot(tmp_path), sorted(os.listdir(tmp_path))) == (before, listing)
            seen += 1
        else:
            break
    assert seen == (16 if others else 1 if exchange else 2)
    assert sorted(os.listdir(tmp_path)) == listing and (out / "mine.txt").exists() == others


class Broken:
    """A file of which one function fails."""

    def __init__(self, file, name):
        self._file, self._name = file, name

    def __getattr__(self, name):
        if name == self._name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return getattr(self._file, name)


@pytest.mark.parametrize("name", ["seek", "read", "flush", "truncate", "write"])
def test_an_error_of_a_token_file_names_the_file(tmp_path, name):
    writers = [prepare_module._TokenWriter(tmp_path / part, np.dtype("<u2")) for part in ("train.part", "val.part")]
    for writer in writers:
        writer.add(np.arange(10))
    broken = writers[name == "write"]
    broken.file = Broken(broken.file, name)
    with pytest.raises(OSError, match="Input/output error.*(train|val).part") as caught:
        prepare_module._move_tail(*writers, 2)
        writers[0].finish(tmp_path / "train.bin")
    assert caught.value.filename == str(broken.path)
    for writer in writers:
        writer.close()


def test_unreadable_text_leaves_everything_as_it_was(tmp_path, tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "' + "fine " * 1000 + '"}\nnot json\n')
    with pytest.raises(DataError, match="line 2"):
        prepare(source, tmp_path / "out", tokenizer=tokenizer, progress=False)
    assert os.listdir(tmp_path) == ["a.jsonl"]
    with pytest.warns(UserWarning, match="1 unreadable"):
        meta = prepare(source, tmp_path / "out", tokenizer=tokenizer, on_error="skip", progress=False)
    assert meta["skipped"] == 1 and "line 2" in meta["problems"][0]


def test_arguments_and_empty_text_are_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match="val_fraction: 1.0"):
        prepare(TextDocuments(TEXTS), tmp_path, tokenizer=tokenizer, val_fraction=1.0)
    with pytest.raises(DataError, match="holds no text"):
        prepare(TextDocuments([""]), tmp_path, tokenizer=tokenizer, progress=False)
    without_end = Tokenizer(tokenizer._with_special, eos_token="<absent>")
    with pytest.raises(DataError, match="no end-of-text token"):
        prepare(TextDocuments(TEXTS), tmp_path, tokenizer=without_end, progress=False)
    assert os.listdir(tmp_path) == []


def test_memory_is_bounded(tmp_path, tokenizer):
    source = tmp_path / "big.txt"
    source.write_text("".join(TEXTS) * 130)
    assert source.stat().st_size > 5_000_000
    tracemalloc.start()
    prepare(Documents(source), tmp_path / "out", tokenizer=tokenizer, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One batch of a million characters and its ids, however long the text.
    assert peak < 16_000_000
