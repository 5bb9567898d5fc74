"""Reads XSUM, one-sentence summaries of news articles, from JSON lines, Parquet, or anything that iterates over dicts.

References
----------
Narayan et al., Don't Give Me the Details, Just the Summary! Topic-Aware Convolutional Neural Networks for Extreme
Summarization, EMNLP 2018.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._arguments import PathLike
from ..data.records import (
    MissingSplitError,
    RecordReport,
    check_on_error,
    complete_shards,
    dict_rows,
    file_rows,
    listing,
    load_from_hub,
    looks_like_hub_name,
    text_of,
)
from ..errors import DataError

__all__ = ["SPLITS", "XsumData", "read_xsum"]


SPLITS = ("train", "validation", "test")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")


@dataclass(frozen=True)
class XsumData:
    """One split.

    Attributes
    ----------
    split : str
    documents, summaries : list of str
    ids : list of str
        Names of the rows: those in the source if it has any, else the rows' numbers.
    report : RecordReport
        What was found while reading.
    """

    split: str
    documents: list[str]
    summaries: list[str]
    ids: list[str]
    report: RecordReport

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        return f"<XsumData {self.split}: {self.report.summary()}>"

    def __getitem__(self, item: slice) -> XsumData:
        """A part of the split, with its rows in order."""
        if not isinstance(item, slice):
            raise TypeError(f"item: expected a slice, got {type(item).__name__}")
        return XsumData(self.split, self.documents[item], self.summaries[item], self.ids[item], self.report)


def read_xsum(
    source: PathLike | Mapping[str, Any] | Iterable[Mapping[str, Any]], split: str = "train", *, on_error: str = "raise"
) -> XsumData:
    """Read one split of XSUM, or of any data in its form.

    Parameters
    ----------
    source : path, iterable of mappings, mapping of splits, or str
        A folder with ``<split>.jsonl``, ``.jsonl.gz`` or ``<split>*.parquet``; one such file; anything that iterates
        over mappings; a mapping from split names to any of these; or a name on the Hub such as
        ``"EdinburghNLP/xsum"`` (with the library `datasets`). Rows have the keys ``document`` and ``summary`` and
        perhaps ``id``.
    split : {"train", "validation", "test"}
        ``"dev"`` is another name of ``"validation"``.
    on_error : {"raise", "skip"}
        A row that cannot be used is an error, or is skipped with a warning.

    Returns
    -------
    XsumData

    Raises
    ------
    DataError
        If the file is missing or not readable.
    RecordError
        If rows cannot be used: they are not JSON or not UTF-8, lack a key, or have a value that is empty or no text.
        The message has the kinds of errors, their counts, and the first file and line.

    Examples
    --------
    >>> rows = [{"document": "It rained all day. Nobody left.", "summary": "It rained.", "id": "1"}]
    >>> read_xsum(rows).summaries
    ['It rained.']
    """
    check_on_error(on_error)
    split = "validation" if split == "dev" else split
    if split not in SPLITS:
        raise DataError(f"split: {split!r} is not one of {', '.join(map(repr, SPLITS))}")
    if isinstance(source, Mapping):
        name = next((n for n in (split, "dev") if n in source and (n == split or split == "validation")), None)
        if name is None:
            raise MissingSplitError(f"source: no split {split!r}; there are {listing(source)}")
        source = source[name]
    if isinstance(source, str) and looks_like_hub_name(source, _SUFFIXES):
        source = load_from_hub(source, None, split)
    if isinstance(source, (str, os.PathLike)):
        paths = _find_files(Path(source), split)
        report = RecordReport(str(paths[0]))
        rows: Iterator[tuple[str, Mapping[str, Any]]] = file_rows(paths, report)
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)):
        report = RecordReport(f"XSUM {split}")
        rows = dict_rows(source, report.source, report)
    else:
        raise DataError(f"source: expected a path or an iterable of mappings, got {type(source).__name__}")
    documents: list[str] = []
    summaries: list[str] = []
    ids: list[str] = []
    for where, values in rows:
        document = text_of(values, "document", where, report)
        summary = None if document is None else text_of(values, "summary", where, report)
        if document is None or summary is None:
            continue
        empty = [key for key, text in (("document", document), ("summary", summary)) if not text.strip()]
        if empty:
            report.error("empty text", f"{where}: {empty[0]!r} is empty")
            continue
        report.kept += 1
        documents.append(document)
        summaries.append(summary)
        ids.append(str(values.get("id", len(ids))))
    report.finish(on_error)
    return XsumData(split, documents, summaries, ids, report)


def _find_files(path: Path, split: str) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DataError(f"{path}: unknown kind of file; known are {', '.join(_SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    names = (split, "dev") if split == "validation" else (split,)
    for name in names:
        for suffix in _SUFFIXES[:3]:
            if (path / f"{name}{suffix}").is_file():
                return [path / f"{name}{suffix}"]
        if found := complete_shards(path.glob(f"{name}-*.parquet")) or sorted(path.glob(f"{name}.parquet")):
            return found
        if found := complete_shards((path / "data").glob(f"{name}-*.parquet")):
            return found
    there = sorted(entry.name for entry in path.iterdir())
    raise MissingSplitError(f"{path}: holds no {split}.jsonl, .jsonl.gz or .parquet; it holds {listing(there)}")
