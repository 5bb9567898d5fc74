"""`mom.xsum.reader`: every form of the data, and damaged rows counted and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mom.data.records import RecordError
from mom.errors import DataError
from mom.xsum.reader import SPLITS, read_xsum
from shared_data import shared_path

GOLDEN = Path(__file__).parent / "golden" / "xsum"
ROWS = [json.loads(line) for line in (GOLDEN / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def test_golden_files() -> None:
    data = read_xsum(GOLDEN)
    assert data.ids == ["100", "101", "102"] and data.summaries[0] == "Waves kept a ferry in its harbour for a day."
    assert data.documents[1].startswith("A school in the hills") and data.documents[1].count("\n") == 1
    assert [len(read_xsum(GOLDEN, split)) for split in SPLITS] == [3, 1, 2]
    assert read_xsum(GOLDEN, "dev").ids == ["103"] and read_xsum(GOLDEN, "test").documents[1].startswith("The café")
    assert len(data[1:]) == 2 and data[1:].ids == ["101", "102"]
    with pytest.raises(TypeError, match="item: expected a slice, got int"):
        data[0]  # type: ignore[index]


@pytest.mark.parametrize("form", ["list", "splits", "generator", "file", "gz", "json", "parquet", "shards", "data/"])
def test_all_forms_say_the_same(form: str, tmp_path: Path) -> None:
    source: Any = {"list": ROWS, "splits": {"train": ROWS}, "generator": (row for row in ROWS),
                   "file": GOLDEN / "train.jsonl"}.get(form)  # fmt: skip
    if form == "gz":
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress((GOLDEN / "train.jsonl").read_bytes()))
    elif form == "json":
        (tmp_path / "train.json").write_bytes((GOLDEN / "train.jsonl").read_bytes())
    elif source is None:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        folder = tmp_path / ("data" if form == "data/" else "")
        folder.mkdir(exist_ok=True)
        parts = {"train.parquet": ROWS} if form == "parquet" else {
            "train-00000-of-00002.parquet": ROWS[:1], "train-00001-of-00002.parquet": ROWS[1:]
        }  # fmt: skip
        for name, rows in parts.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    data = read_xsum(tmp_path if source is None else source)
    expected = read_xsum(GOLDEN)
    assert (data.documents, data.summaries, data.ids) == (expected.documents, expected.summaries, expected.ids)


@pytest.mark.parametrize(("split", "rows"), [("train", 1000), ("validation", 463), ("test", 500)])
def test_real_files(split: str, rows: int) -> None:
    data = read_xsum(shared_path("data", "xsum"), split)
    assert len(data) == rows and not data.report.errors


BAD: dict[str, tuple[bytes, str, str]] = {
    "bad JSON": (b'{"document": "a", "summary": ', "not JSON", "line 2: not valid JSON"),
    "list": (b'["a", "b"]', "not a record", "line 2: a list, expected an object"),
    "no summary": (b'{"document": "a"}', "missing column", "line 2: no column 'summary'; there are 'document'"),
    "number": (b'{"document": 3, "summary": "b"}', "not text", "column 'document': a int, expected a string"),
    "null": (b'{"document": "a", "summary": null}', "not text", "column 'summary': a NoneType"),
    "empty": (b'{"document": " ", "summary": "b"}', "empty text", "line 2: 'document' is empty"),
    "not UTF-8": (b'{"document": "caf\xe9", "summary": "b"}', "not UTF-8", "line 2: not UTF-8 (byte 17 of the line)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_counted_and_named(name: str, tmp_path: Path) -> None:
    line, kind, message = BAD[name]
    good = (GOLDEN / "train.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good[0].replace(b"\n", b"\r\n") + line + b"\n\n" + good[1])
    with pytest.raises(RecordError) as caught:
        read_xsum(path)
    assert message in str(caught.value) and caught.value.report.errors == {kind: 1}
    with pytest.warns(UserWarning, match="1 of 3 rows cannot be used"):
        data = read_xsum(tmp_path, on_error="skip")
    assert data.ids == ["100", "101"] and data.report.rows == 3 == data.report.kept + 1
    assert data.report.notes == {"byte-order mark": 1, "CRLF": 1, "blank line": 1}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no test.jsonl, .jsonl.gz or .parquet; it holds none"):
        read_xsum(tmp_path, "test")
    (tmp_path / "train.csv").write_text("")
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"document": "a"}' * 99)[:-9])
    for source, split, message in (
        (tmp_path / "none" / "x", "train", "no such file or folder"), (tmp_path / "train.csv", "train", "unknown kind"),
        (tmp_path, "train", "truncated or corrupted gzip file"), (ROWS, "valid", "split: 'valid' is not one of"),
        ({"train": ROWS}, "test", "source: no split 'test'; there are 'train'"), (3, "train", "got int"),
        ([], "train", "XSUM train: no rows"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_xsum(source, split)  # type: ignore[arg-type]
