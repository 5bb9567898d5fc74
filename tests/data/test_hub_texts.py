"""Texts of data sets on the Hub, with a stand-in for the library that would fetch them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mom.cli import main
from mom.data import hub_documents
from mom.data.prepare import prepare
from mom.errors import DataError

ROWS = [{"text": f"document {number}, with some words", "title": number} for number in range(40)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the library was asked for; it has one data set."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
        calls.append((name, config, split, streaming))
        if name != "owner/name":
            raise ConnectionError("no connection")
        return iter(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def texts(documents: Any) -> list[str]:
    return [piece.text for piece in documents]


def test_documents_are_read_as_a_stream_in_every_pass(asked: list[tuple[Any, ...]]) -> None:
    documents = hub_documents("owner/name:raw", split="validation")
    for _ in range(2):
        assert texts(documents) == [row["text"] for row in ROWS]
    assert asked == [("owner/name", "raw", "validation", True)] * 2
    assert documents.names == ["hub:owner/name:raw"] and documents.report.documents == 40


def test_prepare_takes_a_name(asked: list[tuple[Any, ...]], tmp_path: Path) -> None:
    meta = prepare("hub:owner/name", tmp_path / "data", vocab_size=300, val_fraction=0.2, progress=False)
    assert meta["documents"] == 40 and set(asked) == {("owner/name", None, "train", True)}
    words = ["--out_dir", str(tmp_path / "cli"), "--vocab_size", "300", "--val_fraction", "0.2"]
    assert main(["prepare", "hub:owner/name", *words]) == 0
    files = [tmp_path / folder / "train.bin" for folder in ("data", "cli")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(DataError, match="'hub:owner/name' is a data set on the Hub and must be the only source"):
        prepare(["hub:owner/name", tmp_path / "data"], tmp_path / "both")


def test_what_is_missing_is_named(
    asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="owner/name: row 0: no key 'body'; there are 'text', 'title'"):
        texts(hub_documents("owner/name", key="body"))
    with pytest.raises(DataError, match="document 0: a int"):
        texts(hub_documents("owner/name", key="title"))
    with pytest.raises(DataError, match="owner/other: .*the Hub did not give it .ConnectionError: no connection."):
        texts(hub_documents("hub:owner/other"))
    with pytest.raises(DataError, match="name: 'hub:' names no data set"):
        hub_documents("hub:")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["prepare", "hub:owner/name", "--out_dir", str(tmp_path / "data")]) == 1
    assert "pip install datasets" in capsys.readouterr().err and not (tmp_path / "data").exists()
