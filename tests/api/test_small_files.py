"""Files that are read whole come through one door: whatever lies there, the error comes soon and names the file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import _reading
from mom.data.prepare import read_meta
from mom.errors import CheckpointError, ConfigError, DataError, MomError
from mom.files import weights
from mom.files.folders import read_manifest, write_folder
from mom.training.callbacks import JsonLines
from mom.training.checkpoint import read_progress

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes and signals")
CONFIG = mom.MoMConfig.preset("demo", vocab_size=300, n_embd=16, n_head=2, router_dim=8, n_positions=16)


def model_files(folder: Path) -> None:
    made = mom.MoM(CONFIG)
    made.tokenizer = mom.Tokenizer.train(["some words"], 257)
    made.save_pretrained(folder)
    (folder / "manifest.json").unlink()  # so that the files themselves are judged
    (folder / "merges.txt").write_text("")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(sorted(alphabet()))}))


def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return list(pre_tokenizers.ByteLevel.alphabet())


#: A file, who reads it, and the exception that tells that it is no good.
READERS: dict[str, tuple[Callable[[Path], Any], type[MomError]]] = {
    "config.json": (mom.MoMConfig.from_json, ConfigError),
    "training.toml": (mom.TrainingConfig.from_toml, ConfigError),
    "finetune.toml": (mom.FinetuneConfig.from_toml, ConfigError),
    "manifest.json": (lambda file: read_manifest(file.parent), CheckpointError),
    "model.safetensors": (weights.read_safetensors, CheckpointError),
    "model.safetensors.index.json": (weights.read_weights, CheckpointError),
    "tokenizer.json": (mom.Tokenizer.load, DataError),
    "vocab.json": (mom.Tokenizer.load, DataError),
    "merges.txt": (mom.Tokenizer.load, DataError),
    "meta.json": (lambda file: read_meta(file.parent), DataError),
    "training.json": (lambda file: read_progress(file.parent), CheckpointError),
}
JSON_FILES = [name for name in READERS if name.endswith(".json")]
EVERY = pytest.mark.parametrize("name", READERS)


@contextlib.contextmanager
def soon(seconds: int = 5) -> Iterator[None]:
    """Raise if the block does not end in time."""

    def alarm(*_: Any) -> None:
        raise AssertionError("hangs")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(name: str, folder: Path, *words: str) -> None:
    read, kind = READERS[name]
    with soon(), pytest.raises(kind) as caught:
        read(folder / name)
    assert type(caught.value) is kind and str(folder / name) in str(caught.value)
    assert any(word in str(caught.value) for word in words), caught.value


# ---------------------------------------------------------------------- what lies there
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model_files(tmp_path)
    return tmp_path


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@EVERY
@pytest.mark.parametrize(
    ("make", "word"),
    [(os.mkfifo, "is a pipe, expected a file"), (lambda path: os.symlink("/dev/zero", path), "is a device"),
     (lambda path: os.symlink("/dev/tty", path), "is a device"), (os.mkdir, "is a folder")],
    ids=["pipe", "endless", "terminal", "folder"],
)  # fmt: skip
def test_what_is_no_regular_file(folder: Path, name: str, make: Callable[[Path], None], word: str) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    words = [word, *(["holds no tokenizer", "holds neither"] if make is os.mkdir else [])]  # a folder may be given
    try:
        refused(name, folder, *words)
    except FileNotFoundError:
        assert name == "config.json" and make is os.mkdir


@EVERY
def test_files_that_are_too_large_are_refused_unread(folder: Path, name: str) -> None:
    if name == "model.safetensors":
        pytest.skip("weights have any size; their header does not")
    with open(folder / name, "wb") as file:
        file.truncate(600 * 1024 * 1024)  # takes no room on the disk
    started = time.monotonic()
    refused(name, folder, "more than the limit of")
    assert time.monotonic() - started < 1


@EVERY
def test_what_is_no_text(folder: Path, name: str) -> None:
    content = b'{"a": "\xff"}'
    if name == "model.safetensors":
        content = struct.pack("<Q", len(content)) + content
    put(folder / name, content)
    refused(name, folder, "not UTF-8 text (byte 7)")


BAD_JSON = {
    "cut": b'{"a": [1, 2', "empty": b"", "nested": b'{"a":' + b"[" * 200_000,
    "digits": b'{"a": ' + b"7" * 10_000 + b"}", "fewer digits": b'{"a": -' + b"7" * 4_000 + b"}",
    "words": b'{"a": seven}', "two": b"{}{}",
}  # fmt: skip


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
@pytest.mark.parametrize("bad", BAD_JSON)
def test_what_is_no_json(folder: Path, name: str, bad: str) -> None:
    content = BAD_JSON[bad]
    if name == "model.safetensors":
        content = struct.pack("<Q", len(content)) + content
    put(folder / name, content)
    refused(name, folder, "not valid JSON", *(["does not begin with '{'"] if bad == "empty" else []))


@pytest.mark.parametrize("name", ["training.toml", "finetune.toml"])
@pytest.mark.parametrize("text", ["lr = ", "a = " + "[" * 200_000, "batch_size = " + "7" * 10_000, "a = seven"])
def test_what_is_no_toml(folder: Path, name: str, text: str) -> None:
    put(folder / name, text.encode())
    refused(name, folder, "not valid TOML")


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b'"text"'])
def test_json_that_is_no_object(folder: Path, name: str, content: bytes) -> None:
    put(folder / name, content)
    refused(name, folder, "expected", "not a manifest", "no 'weight_map'", "not written by")


@EVERY
@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, bad: str) -> None:
    read, _ = READERS[name]
    with pytest.raises(MomError, match="cannot be the name of a file"):
        read(tmp_path / bad / name)


@EVERY
def test_a_read_error_names_the_file_and_stays_one(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_bytes(b"{}" + b" " * 100)
    real = _reading.open_file

    class Failing:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: Any) -> None:
            self._file.close()

        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

        def readinto(self, buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    for module in (_reading, weights):
        monkeypatch.setattr(module, "open_file", lambda *arguments: Failing(real(*arguments)))
    with pytest.raises(OSError, match="Input/output error") as caught:
        READERS[name][0](folder / name)
    assert caught.value.errno == 5 and Path(caught.value.filename).parent == folder
    assert Path(caught.value.filename).name in (name, "vocab.json")  # which is read before merges.txt


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As files do whose size the system does not know."""
    (tmp_path / "config.json").write_bytes(b" " * 1000)
    monkeypatch.setattr(_reading, "_check_kind", lambda *arguments: None)
    with pytest.raises(ConfigError, match="config.json: more than the limit of 999 bytes"):
        _reading.read_bytes(tmp_path / "config.json", ConfigError, limit=999)


def test_the_log_of_a_run_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with soon(), pytest.raises(MomError, match="log.jsonl: is a pipe"):
        JsonLines(tmp_path / "log.jsonl", 3)
    (tmp_path / "log.jsonl").unlink()
    lines = ['{"step": 1}', "[1]", '{"step": "two"}', "[" * 100_000, '{"step": 3}', '{"step": 4}', '{"step": 2']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    JsonLines(tmp_path / "log.jsonl", 3).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize("name", ["train.bin", "meta.json"])
def test_token_files_and_their_description(tmp_path: Path, name: str) -> None:
    (tmp_path / "train.bin").write_bytes(bytes(100))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with soon(), pytest.raises(DataError, match=f"{name}: is a pipe, expected a "):
        mom.data.TokenFile(tmp_path)


# ---------------------------------------------------------------------- what they say
PROGRESS = {"step": 3, "random_state": [1, 2], "config": {}, "sampler": {}}
WRONG: dict[str, list[Any]] = {
    "step": ["3", "three", -1, 3.5, True, None, [3]], "random_state": [["a", "b"], [1], 7, [1, -2], [1.5, 2]],
    "config": [[], "x", None], "sampler": [[], None], "skipped": ["0"], "bad_in_a_row": [None], "seconds": ["x", True],
    "losses": [{}, ["x"], [None]], "history": [{}, [[1]], [["x", 1.0]], [[1, "x"]]], "best_score": ["x"],
    "val_loss": [[]], "dtype": ["float64", 32], "fingerprint": [[], {"run": 7}], "best_values": [[]], "waited": [1.0],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_word_where_a_number_belongs_in_the_state_of_a_run(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "training.json"
    file.write_text(json.dumps(PROGRESS))
    assert read_progress(tmp_path) == PROGRESS
    file.write_text(json.dumps({**PROGRESS, name: value}))
    with pytest.raises(CheckpointError, match=f"training.json: {name}: .* is not usable"):
        read_progress(tmp_path)


def test_what_the_state_of_a_run_needs(tmp_path: Path) -> None:
    for name in PROGRESS:
        (tmp_path / "training.json").write_text(json.dumps({k: v for k, v in PROGRESS.items() if k != name}))
        with pytest.raises(CheckpointError, match=f"training.json: {name}: None is not usable"):
            read_progress(tmp_path)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(CheckpointError, match="nothing/training.json: no such file"):
        read_progress(tmp_path / "nothing")


@pytest.mark.parametrize(
    "entry",
    [{"size": "5", "sha256": "0" * 64}, {"size": True, "sha256": "0" * 64}, {"size": -1, "sha256": "0" * 64},
     {"size": 2**70, "sha256": "0" * 64}, {"size": 1.0, "sha256": "0" * 64}, {"size": 1, "sha256": 7},
     {"size": 1, "sha256": "0" * 63}, {"size": 1, "sha256": ["0" * 64]}, {"size": 1}, 7],
)  # fmt: skip
def test_entries_of_a_manifest(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": {"a": entry}}))
    with pytest.raises(CheckpointError, match="manifest.json: entry of 'a' lacks a size or a SHA-256 sum"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "../a", "", ".", "a/b"])
def test_names_in_manifests_and_indexes(tmp_path: Path, name: str) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: entry}}))
    with pytest.raises(CheckpointError, match="is not the name of a file in the same folder"):
        read_manifest(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is not the name of a file in the same folder"):
        weights.read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be the name of a file"):
        write_folder(tmp_path / "x", {name: b""})


@pytest.mark.parametrize("name", ["tensor\ud800", "__metadata__"])
def test_names_of_tensors_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="tensors: "):
        weights.write_safetensors(tmp_path / "x", {name: np.zeros(1, np.float32)})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- headers of weights
def header_file(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize("count", [200_000])
def test_checks_of_a_header_are_linear_in_its_size(tmp_path: Path, count: int) -> None:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = [b'"t%d":' % i + entry for i in range(count)]
    with soon(60):
        found = weights.read_safetensors(header_file(tmp_path / "a", b"{" + b",".join(names) + b"}"))
        assert len(found) == count
    twice = b"{" + b",".join([*names, b'"t%d":' % (count - 1) + entry]) + b"}"
    started = time.monotonic()
    with soon(60), pytest.raises(CheckpointError, match=f"key 't{count - 1}' occurs twice"):
        weights.read_safetensors(header_file(tmp_path / "b", twice))
    assert time.monotonic() - started < 20, "comparing each name with all others takes minutes"


@pytest.mark.parametrize(
    "shape", [[2**62] * 30, [10**60] * 3, [1] * 100_000, [2**63], [10**99] * 1000, [0, 2**62, 2**62]], ids=range(6)
)
def test_shapes_that_no_tensor_has(tmp_path: Path, shape: list[int]) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 if 0 not in shape else 0]}
    path = header_file(tmp_path / "x", {"a" * 10_000: entry}, b"\0" * (4 if 0 not in shape else 0))
    with soon(), pytest.raises(CheckpointError, match="x: tensor 'aaa") as caught:
        weights.read_safetensors(path)
    assert type(caught.value) is CheckpointError and len(str(caught.value)) < 2_000


def test_a_message_does_not_repeat_a_whole_file(tmp_path: Path) -> None:
    fields = {"mom_format": 1, "router_type": "x" * 1_000_000, "n_embd": "y" * 1_000_000}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="config.json: ") as caught:
        mom.MoMConfig.from_json(tmp_path)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize("call", ["fstat", "read"])
def test_an_error_of_an_open_file_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    (tmp_path / "small.json").write_text("{}")

    def refuse(*arguments: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Unreadable(io.FileIO):
        read = refuse

    with monkeypatch.context() as patch:
        if call == "fstat":
            patch.setattr(os, "fstat", refuse)
        else:
            patch.setattr(_reading, "open", lambda path, *more, **others: Unreadable(path), raising=False)
        with pytest.raises(OSError, match="Input/output error.*small.json") as caught:
            _reading.read_bytes(tmp_path / "small.json", DataError)
    assert caught.value.filename == str(tmp_path / "small.json")
