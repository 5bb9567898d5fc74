"""`mom.data.token_formats`: a token file is read as what it is, under any name, or refused."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest

import mom.data.token_formats as token_formats
from mom.data import TextDocuments, TokenFile
from mom.data.prepare import prepare, read_meta
from mom.data.tokenizer import Tokenizer
from mom.errors import DataError
from vocabularies import renumbered

IDS = np.random.default_rng(0).integers(0, 50257, 5000)


def read_all(path, **arguments):
    tokens = TokenFile(path, **arguments)
    return tokens.read(0, len(tokens))


def npy(array, version=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version, allow_pickle=False)
    return stream.getvalue()


def llmc(ids, kind=20240520, version=1, count=None):
    header = np.zeros(256, "<i4")
    header[:3] = kind, version, len(ids) if count is None else count
    return header.tobytes() + ids.tobytes()


@pytest.fixture
def file_of(tmp_path):
    """A file of some bytes, under a name that tells nothing."""

    def make(content):
        path = tmp_path / "some.bin"
        path.write_bytes(content)
        return path

    return make


# ------------------------------------------------------------------ descriptions
@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Prepared data of a vocabulary that needs four bytes per id."""
    folder = tmp_path_factory.mktemp("large")
    small = Tokenizer.train(["the cat sat on the mat"] * 5, 280)
    tokenizer = renumbered(small, np.arange(small.vocab_size) + 69_000, folder)
    prepare(TextDocuments(["the cat sat"] * 500), folder, tokenizer=tokenizer, val_fraction=0.2, progress=False)
    return folder


def test_description_travels_with_a_copy_under_any_name(large, tmp_path):
    assert json.loads((large / "train.bin.json").read_text())["dtype"] == "uint32"
    for name in ("train.bin", "val.bin"):
        for new in ("train.bin", "other.bin", "odd name"):
            shutil.copy(large / name, tmp_path / new)
            shutil.copy(large / f"{name}.json", tmp_path / f"{new}.json")
            tokens = TokenFile(tmp_path / new)
            assert tokens.dtype == np.uint32 and tokens.vocab_size == 69_269
            np.testing.assert_array_equal(tokens.read(0, len(tokens)), read_all(large / name))
            assert read_meta(tmp_path / new)["tokenizer_sha256"] == read_meta(large)["tokenizer_sha256"]
    os.truncate(tmp_path / "other.bin", 400)
    with pytest.raises(DataError, match=r"other\.bin: 100 tokens, but other\.bin\.json says \d+"):
        TokenFile(tmp_path / "other.bin")


@pytest.mark.parametrize("vocab_size", [None, 50257, 65536, 69_269, 128_256])
def test_a_copy_without_description_is_refused(large, tmp_path, vocab_size):
    copied = shutil.copy(large / "train.bin", tmp_path)
    with pytest.raises(DataError, match="nothing tells the width of its ids; they may be uint32 .* train.bin.json"):
        TokenFile(copied, vocab_size=vocab_size)
    expected = read_all(large)
    np.testing.assert_array_equal(read_all(copied, dtype="uint32"), expected)
    (tmp_path / "train.bin.json").write_text('{"dtype": "uint32"}')  # as the message says
    np.testing.assert_array_equal(read_all(copied), expected)


def test_descriptions_that_contradict_each_other_are_refused(large, tmp_path):
    for name in ("train.bin", "train.bin.json", "meta.json"):
        shutil.copy(large / name, tmp_path)
    own = json.loads((tmp_path / "train.bin.json").read_text())
    for name, value in (("dtype", "uint16"), ("vocab_size", 70), ("tokens", own["tokens"] - 1)):
        (tmp_path / "train.bin.json").write_text(json.dumps({**own, name: value}))
        with pytest.raises(DataError, match=rf"meta\.json: {name} is .*, but train\.bin\.json says"):
            TokenFile(tmp_path)
    (tmp_path / "train.bin.json").unlink()
    assert TokenFile(tmp_path).vocab_size == 69_269


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"vocab_size": 5}', "dtype is None"),
        ('{"dtype": "int64"}', "dtype is 'int64'"),
        ('{"dtype": ["uint16"]}', "dtype is"),
        ('{"dtype": "uint16", "vocab_size": true}', "vocab_size is True"),
        ('{"dtype": "uint16", "tokens": -3}', "tokens is -3"),
    ],
)
def test_damaged_descriptions_are_named(file_of, description, message):
    path = file_of(IDS.astype("<u2").tobytes())
    path.with_name("some.bin.json").write_text(description)
    with pytest.raises(DataError, match=rf"some\.bin\.json: {message}"):
        TokenFile(path)


def test_bound_on_ids_is_the_smaller_one(file_of):
    path = file_of(IDS.astype("<u2").tobytes())
    path.with_name("some.bin.json").write_text('{"dtype": "uint16", "vocab_size": 30000}')
    assert TokenFile(path).vocab_size == TokenFile(path, vocab_size=50304).vocab_size == 30000
    assert TokenFile(path, vocab_size=100).vocab_size == 100
    with pytest.raises(DataError, match="not less than vocab_size = 30000"):
        read_all(path, vocab_size=50304)


# ------------------------------------------------------------------ headers
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<u4", "<i4", "<i8", ">i8", "<u8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_files_are_read(file_of, dtype, version):
    path = file_of(npy(IDS.astype(dtype), version))
    np.testing.assert_array_equal(read_all(path, vocab_size=50257), IDS)
    with pytest.raises(DataError, match="is not less than vocab_size = 50000"):
        read_all(path, vocab_size=50000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(IDS.astype("<u2").reshape(50, 100)), r"uint16 and shape \(50, 100\), expected integers of shape \(N,\)"),
        (npy(IDS.astype("f4")), "float32"),
        (npy(np.array(5)), r"shape \(\)"),
        (npy(np.zeros(0, "<u2")), r"shape \(0,\)"),
        (npy(IDS.astype("<u2"))[:-10], "10118 bytes, but the header of this .npy file says 10128"),
        (npy(IDS.astype("<u2")) + b"xx", "10130 bytes"),
        (npy(IDS.astype("<u2"))[:40], "its header is not readable"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 200, "its header is not readable"),
        (b"\x93NUMPY\x09\x00" + b" " * 200, "its header is not readable"),
    ],
)
def test_npy_files_that_hold_no_ids_are_refused(file_of, content, message):
    with pytest.raises(DataError, match=message):
        TokenFile(file_of(content))


def test_header_and_dtype_must_agree(file_of):
    path = file_of(npy(IDS.astype("<u2")))
    np.testing.assert_array_equal(read_all(path, dtype="uint16"), IDS)
    with pytest.raises(DataError, match=r"dtype: uint32, but the header of .* says uint16"):
        TokenFile(path, dtype="uint32")


def test_negative_ids_are_refused(file_of):
    ids = IDS.astype("<i4")
    ids[77] = -5
    with pytest.raises(DataError, match="id -5 at position 77 is negative"):
        read_all(file_of(npy(ids)))


@pytest.mark.parametrize(("kind", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_llmc_files_are_read(file_of, kind, version, dtype):
    for vocab_size in (None, 50257, 65536, 128_256):
        path = file_of(llmc(IDS.astype(dtype), kind, version))
        np.testing.assert_array_equal(read_all(path, vocab_size=vocab_size), IDS)
    for content, message in (
        (llmc(IDS.astype(dtype), kind, 2), "version 2"),
        (llmc(IDS.astype(dtype), kind, version)[:-2], "do not hold the 5000 tokens"),
        (llmc(IDS.astype(dtype), kind, version, -1), "do not hold the -1 tokens"),
        (llmc(IDS.astype(dtype), 20240326, 3), "a model of llm.c"),
    ):
        with pytest.raises(DataError, match=message):
            TokenFile(file_of(content))


def foreign_files():
    yield "zip", b"PK\x03\x04" + IDS.tobytes()
    stream = io.BytesIO()
    np.savez(stream, ids=IDS.astype("<u2"))
    yield "npz", stream.getvalue()
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 500)
    yield "torch", stream.getvalue()
    for protocol in (2, 3, 4, 5):
        yield f"pickle {protocol}", pickle.dumps({"vocab_size": 65, "itos": list(range(300))}, protocol=protocol)
    yield "gzip", gzip.compress(IDS.astype("<u2").tobytes())
    header = json.dumps({"x": {"dtype": "U16", "shape": [5000], "data_offsets": [0, 10000]}}).encode()
    yield "safetensors", struct.pack("<Q", len(header)) + header + IDS.astype("<u2").tobytes()
    yield "megatron index", b"MMIDIDX\0\0" + struct.pack("<QB", 1, 8) + bytes(100)
    yield "text", ("A line of text, as somebody names it by mistake.\n" * 100).encode()
    yield "short text", b"just a few words."
    yield "umlauts", ("Größe und Länge, 東京, naïve café\n" * 20_000).encode()
    yield "UTF-16", "\ufeffsome text\n".encode("utf-16-le") * 100
    yield "JSON lines", b'{"text": "abc"}\n' * 50
    yield "bytes", np.random.default_rng(1).integers(0, 65, 5000).astype(np.uint8).tobytes()
    yield "int64", IDS.astype("<i8").tobytes()
    yield "int32", IDS.astype("<i4").tobytes()
    yield "zeros", bytes(4000)


@pytest.mark.parametrize(("kind", "content"), list(foreign_files()), ids=[kind for kind, _ in foreign_files()])
@pytest.mark.parametrize("vocab_size", [None, 65536])
def test_files_of_other_kinds_are_refused(file_of, kind, content, vocab_size):
    path = file_of(content + b"\n" * (len(content) % 2))
    with pytest.raises(DataError, match=r"some\.bin: ") as caught:
        TokenFile(path, vocab_size=vocab_size)
    assert "position" not in str(caught.value), "not for its ids, but for what it is"


def test_parquet_and_arrow_are_refused(file_of):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"ids": IDS.astype("<u2")})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    with pytest.raises(DataError, match="a Parquet file"):
        TokenFile(file_of(stream.getvalue()))
    for writer in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        stream = io.BytesIO()
        with writer(stream, table.schema) as sink:
            sink.write_table(table)
        with pytest.raises(DataError, match="an Arrow file"):
            TokenFile(file_of(stream.getvalue()))


# ------------------------------------------------------------------ ids alone
@pytest.mark.parametrize("high", [2, 5, 16, 65, 128, 257, 300, 8192, 50257, 65536])
@pytest.mark.parametrize("bound", [False, True])
def test_plain_ids_of_two_bytes_are_read(file_of, high, bound):
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(0, high, 1000 + seed)
        np.testing.assert_array_equal(
            read_all(file_of(ids.astype("<u2").tobytes()), vocab_size=high if bound else None), ids
        )


@pytest.mark.parametrize("high", [2, 16, 300, 50257, 65537, 131_072, 262_144, 1 << 20])
@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8"])
def test_plain_wider_ids_are_refused(file_of, high, dtype):
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(0, high, 1000 + seed)
        path = file_of(ids.astype(dtype).tobytes())
        for vocab_size in (None, high):
            with pytest.raises(DataError, match="nothing tells the width of its ids"):
                TokenFile(path, vocab_size=vocab_size)


@pytest.mark.parametrize("place", [0, 100_000, 1_234_567, 2_999_999])
def test_ids_beyond_the_vocabulary_are_found_when_the_file_is_opened(file_of, place, monkeypatch):
    monkeypatch.setattr(token_formats, "_SAMPLE_BYTES", 1 << 22)
    ids = np.random.default_rng(0).integers(0, 300, 3_000_000).astype("<u2")
    ids[place] = 301
    with pytest.raises(DataError, match=f"id 301 at position {place} is not less than vocab_size = 300"):
        TokenFile(file_of(ids.tobytes()), vocab_size=300)


def test_a_sample_is_read_of_a_large_file(file_of, monkeypatch):
    """Beginning, middle and end, whatever the size."""
    ids = np.random.default_rng(0).integers(0, 300, 1_000_003).astype("<u2")
    ids[[499_999, -1]] = 301
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, n, offset: read.append(n) or real(file, n, offset))
    with pytest.raises(DataError, match="id 301 at position 499999"):
        TokenFile(file_of(ids.tobytes()), vocab_size=300)
    ids[499_999] = 1
    with pytest.raises(DataError, match="id 301 at position 1000002"):
        TokenFile(file_of(ids.tobytes()), vocab_size=300)
    assert sum(read) < 9 * token_formats._SAMPLE_BYTES  # of two files


# ------------------------------------------------------------------ while it is read
def test_a_file_that_shrinks_between_check_and_reading_is_an_error(file_of, monkeypatch):
    path = file_of(IDS.astype("<u2").tobytes())
    tokens = TokenFile(path)
    real = os.fstat

    def cut_after(file):
        found = real(file)
        os.truncate(path, 4096)
        return found

    monkeypatch.setattr(os, "fstat", cut_after)
    with pytest.raises(DataError, match="became shorter while in use"):
        tokens.read(4000, 1000)


def test_a_replaced_file_is_read_as_it_was(file_of, tmp_path):
    path = file_of(IDS.astype("<u2").tobytes())
    tokens = TokenFile(path)
    (tmp_path / "new").write_bytes(bytes(20_000))
    os.replace(tmp_path / "new", path)
    np.testing.assert_array_equal(tokens.read(0, 5000), IDS)


def test_copies_open_the_file_again(file_of):
    path = file_of(IDS.astype("<u2").tobytes())
    tokens = TokenFile(path, vocab_size=50257)
    copies = [copy.deepcopy(tokens), pickle.loads(pickle.dumps(tokens))]
    del tokens
    for again in copies:
        assert again.vocab_size == 50257
        np.testing.assert_array_equal(again.read(10, 4000), IDS[10:4010])


def test_files_are_closed(file_of):
    path = file_of(IDS.astype("<u2").tobytes())
    before = len(os.listdir("/dev/fd"))
    for _ in range(50):
        TokenFile(path).read(0, 10)
    path.write_bytes(b"")
    for _ in range(50):
        with pytest.raises(DataError, match="empty"):
            TokenFile(path)
    assert len(os.listdir("/dev/fd")) <= before + 2
