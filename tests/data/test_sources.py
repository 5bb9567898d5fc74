"""`mom.data.sources`: every kind of file, every kind of damage, and bounded memory."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

from mom.data import records
from mom.data.sources import Documents, TextDocuments, standard_library_text
from mom.data.tokenizer import Tokenizer
from mom.errors import DataError


def read(documents):
    """The documents as whole strings."""
    found, parts = [], []
    for piece in documents:
        assert len(piece.text) <= documents.max_chars
        parts.append(piece.text)
        if piece.end:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def json_lines(*texts, key="text"):
    return "".join(json.dumps({key: text, "other": 1}) + "\n" for text in texts)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_file_is_one_document_byte_for_byte(tmp_path, name):
    text = "one\r\n\r\ntwo \x0b\x0c\x1c\x85\u2028 three\n\n\nlast line without end"
    assert read(Documents(write(tmp_path / name, text))) == [text]
    assert read(Documents(write(tmp_path / name, b"\xef\xbb\xbf" + text.encode()))) == [text]


def test_blank_lines_separate_documents(tmp_path):
    text = "\n\na\nb\n \t\r\n\n\nc\n\n\n\nd\x0b\n\x0c\nlast"
    assert read(Documents(write(tmp_path / "a.txt", text), split="blank_line")) == [
        "a\nb\n",
        "c\n",
        "d\x0b\n\x0c\nlast",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    texts = ["one\ntwo", "naïve 🦊", "x" * 500_000]
    documents = Documents(write(tmp_path / name, "\n" + json_lines(*texts) + "\n"))
    assert read(documents) == texts
    assert documents.report.documents == 3
    other = write(tmp_path / "b.jsonl", json_lines("body", key="document"))
    assert read(Documents(other, key="document")) == ["body"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = [f"document {i} 🦊" for i in range(1000)]
    parquet.write_table(pyarrow.table({"text": texts, "n": range(1000)}), path, row_group_size=300)
    assert read(Documents(path)) == texts
    with pytest.raises(DataError, match="no column 'body'; there are 'text', 'n'"):
        read(Documents(path, key="body"))
    with pytest.raises(DataError, match="row 0: column 'n': a int, expected a string"):
        read(Documents(path, key="n"))
    parquet.write_table(pyarrow.table({"text": ["a", None, "c"]}), path)
    with pytest.warns(UserWarning, match="1 unreadable"):
        assert read(Documents(path, on_error="skip")) == ["a", "c"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(Documents(path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="needs pyarrow"):
        read(Documents(write(tmp_path / "a.parquet", b"PAR1")))


def test_folders_are_walked_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y.jsonl", "c/deep/x.txt.gz", ".hidden/h.txt", ".h.txt", "notes.pdf"):
        content = json_lines(name) if name.endswith(".jsonl") else name
        write(tmp_path / name, content)
    documents = Documents(tmp_path)
    assert read(documents) == ["b.txt", "a/y.jsonl", "a/z.txt", "c/deep/x.txt.gz"]
    assert documents.report.ignored_files == 2
    assert documents.report.bytes_read == documents.total_bytes
    assert read(Documents([tmp_path / "a", tmp_path / "b.txt"])) == ["a/y.jsonl", "a/z.txt", "b.txt"]


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(DataError, match="absent: no such file or folder"):
        Documents(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no file of a known kind"):
        Documents(tmp_path)
    with pytest.raises(DataError, match=r"a\.pdf: unknown kind of file"):
        Documents(write(tmp_path / "a.pdf", "x"))
    with pytest.raises(DataError, match="sources: no file"):
        Documents([])
    for argument in ({"split": "page"}, {"on_error": "ignore"}, {"max_chars": 1}):
        with pytest.raises(DataError, match=next(iter(argument))):
            Documents(tmp_path / "a.pdf", **argument)


BAD_LINES = [
    (b'{"text": "cut', "not valid JSON"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"body": "x"}', "no key 'text'; there are 'body'"),
    (b'{"text": 3}', "key 'text': a int"),
    (b'{"text": null}', "key 'text': a NoneType"),
    (b'["text"]', "a list, expected an object"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b"[" * 50_000, "not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_json_line_is_named_and_can_be_skipped(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl: line 3: .*{message}"):
        read(Documents(path))
    documents = Documents(path, on_error="skip")
    with pytest.warns(UserWarning, match="1 unreadable records left out.*line 3"):
        assert read(documents) == ["one", "two"]
    assert documents.report.skipped == 1
    assert message in documents.report.problems[0]


def test_problems_are_all_counted_and_the_first_ones_spelt_out(tmp_path):
    documents = Documents(write(tmp_path / "a.jsonl", "no json\n" * 100), on_error="skip")
    with pytest.warns(UserWarning, match="100 unreadable"):
        assert read(documents) == []
    assert documents.report.skipped == 100
    assert len(documents.report.problems) == records.MAX_PROBLEMS


def test_overlong_json_line_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "a.jsonl", json_lines("a", "b" * 5000, "c"))
    with pytest.raises(DataError, match="line 2: longer than 1000 bytes"):
        read(Documents(path))
    with pytest.warns(UserWarning):
        assert read(Documents(path, on_error="skip")) == ["a", "c"]


def test_bad_utf8_in_text_names_line_and_byte(tmp_path):
    start = "ok\n" * 200_000
    path = write(tmp_path / "a.txt", start.encode() + b"bad \xff line\nlast\n")
    with pytest.raises(DataError, match=rf"a\.txt: line 200001: not UTF-8 \(byte {len(start) + 4}\)"):
        read(Documents(path))
    with pytest.warns(UserWarning, match="1 unreadable"):
        assert read(Documents(path, on_error="skip")) == [start + "last\n"]
    path = write(tmp_path / "b.txt", "café".encode()[:-1])
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read(Documents(path))


def test_damaged_gzip_is_named(tmp_path):
    random = np.random.default_rng(0).integers(97, 123, 3_000_000).astype(np.uint8).tobytes()
    whole = gzip.compress(random)
    for name, data in (("cut.txt.gz", whole[:-1000]), ("no.txt.gz", b"plain text"), ("bits.txt.gz", b"")):
        path = tmp_path / name
        path.write_bytes(data if data else whole[:5000] + bytes(200) + whole[5200:])
        with pytest.raises(DataError, match=rf"{name}: truncated or corrupted gzip"):
            read(Documents(path))
    with pytest.warns(UserWarning, match="1 unreadable"):
        (found,) = read(Documents(tmp_path / "cut.txt.gz", on_error="skip"))
    assert random.startswith(found.encode()) and len(found) > 1_000_000


def test_empty_documents_are_left_out_and_counted(tmp_path):
    write(tmp_path / "a.txt", "")
    write(tmp_path / "b.jsonl", json_lines("", "x"))
    documents = Documents(tmp_path)
    assert read(documents) == ["x"]
    assert documents.report.empty == 2


@pytest.mark.parametrize(
    "text", ["x" * 3_000_000, "é" * 1_500_000, "東" * 1_000_000, " " * 3_000_000, "\n" * 2_000_000]
)
def test_text_without_a_place_to_cut_survives(tmp_path, text):
    assert read(Documents(write(tmp_path / "a.txt", text))) == [text]


def test_cuts_do_not_change_the_tokens(tmp_path):
    documents = standard_library_text()
    text = (
        "".join(documents.files[i].read_text("utf-8") for i in range(0, 40, 4)) + "a  b\n\n\nc \n d\x1ce\u3000f g" * 50
    )
    tokenizer = Tokenizer.train([text[:100_000]], 600)
    whole = tokenizer.encode(text)
    pieces = list(Documents(write(tmp_path / "a.txt", text), max_chars=200))
    assert len(pieces) > len(text) / 200
    np.testing.assert_array_equal(np.concatenate(tokenizer.encode_batch([piece.text for piece in pieces])), whole)


def test_memory_is_bounded(tmp_path):
    line = "A line of perfectly ordinary text, " * 3 + "the end.\n"
    big = write(tmp_path / "big.txt", line * 150_000)
    write(tmp_path / "big.txt.gz", line * 150_000)
    write(tmp_path / "big.jsonl", json_lines(*[line * 100] * 1500))
    assert big.stat().st_size > 16_000_000
    for documents in (Documents(tmp_path), Documents(big, split="blank_line")):
        tracemalloc.start()
        characters = sum(len(piece.text) for piece in documents)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert characters > 16_000_000
        assert peak < 4_000_000


def test_documents_can_be_gone_through_again(tmp_path):
    documents = Documents(write(tmp_path / "a.jsonl", json_lines("a", "b")))
    assert read(documents) == read(documents) == ["a", "b"]
    assert documents.report.documents == 2
    assert list(documents.texts()) == ["a", "b"]


def test_texts_in_memory():
    documents = TextDocuments(["a", "", "b" * 200_000])
    assert read(documents) == ["a", "b" * 200_000]
    with pytest.raises(DataError, match="document 1: a bytes"):
        read(TextDocuments(["a", b"b"]))
    with pytest.raises(DataError, match="texts: expected texts, got a string"):
        TextDocuments("text")


def test_standard_library_is_there_and_deterministic():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        first, second = standard_library_text(), standard_library_text()
        assert first.files == second.files == sorted(first.files, key=first.files.index)
        assert len(first.files) > 200
        assert sum(len(piece.text) for piece in first) > 4_000_000
    names = {str(file) for file in first.files}
    assert not any("site-packages" in name or "/test/" in name or "/tests/" in name for name in names)
    assert any(name.endswith("argparse.py") for name in names)
