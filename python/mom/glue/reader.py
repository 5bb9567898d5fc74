"""Reads GLUE's files in the forms in which they are distributed.

`read_glue` takes the original TSV folders, Parquet files, or the name of a data set on the Hub. It also takes any
iterable of dicts, such as a list or a split of the library `datasets`. A mapping from split names to any of these
works, too.

The original TSV files have no quoting: a line is a row, a tab ends a column, and a quotation mark is a character
like any other. CoLA's train and dev files have no header, MRPC's begins with a byte-order mark, and test files lack the
label column. Every row is accounted for, see `mom.data.records`.

References
----------
Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike
from ..data.columns import is_missing
from ..data.records import (
    MissingSplitError,
    RecordError,
    RecordReport,
    check_on_error,
    complete_shards,
    dict_rows,
    file_rows,
    listing,
    load_from_hub,
    looks_like_hub_name,
    opened,
    parquet_label_names,
    raw_lines,
    text_of,
)  # fmt: skip
from ..errors import DataError
from .tasks import SPLITS, TASKS, GlueTask, find_task

__all__ = ["GlueData", "read_glue"]


_INDEX_COLUMNS = ("index", "id", "idx")
#: Columns of CoLA's train and dev files, which have no header.
_COLA_COLUMNS = ["source", "label", "mark", "sentence"]


@dataclass(frozen=True)
class GlueData:
    """One split of one task.

    Attributes
    ----------
    task : GlueTask
    split : str
    texts : list of tuple of str
        One or two texts per example.
    labels : ndarray or None
        (N,) int64 numbers of label words, or float32 scores. None if a row has no label, as in test sets.
    index : list of int
        The numbers of the rows for a submission: those in the source if it has any, else 0, 1, 2, ...
    report : RecordReport
        What was found while reading.
    """

    task: GlueTask
    split: str
    texts: list[tuple[str, ...]]
    labels: npt.NDArray[Any] | None
    index: list[int]
    report: RecordReport

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<GlueData {self.task.title} {self.split}: {self.report.summary()}>"

    def __getitem__(self, item: slice) -> GlueData:
        """A part of the split, with its rows in order."""
        if not isinstance(item, slice):
            raise TypeError(f"item: expected a slice, got {type(item).__name__}")
        labels = None if self.labels is None else self.labels[item]
        return GlueData(self.task, self.split, self.texts[item], labels, self.index[item], self.report)


def read_glue(
    source: PathLike | Mapping[str, Any] | Iterable[Mapping[str, Any]],
    task: str | GlueTask,
    split: str = "train",
    *,
    on_error: str = "raise",
) -> GlueData:
    """Read one split of one task.

    Parameters
    ----------
    source : path, iterable of mappings, mapping of splits, or str
        The folder that holds GLUE's task folders; a task's own folder; one ``.tsv`` or ``.parquet`` file; anything
        that iterates over mappings of column to value; a mapping from split names to any of these; or a name on
        the Hub such as ``"nyu-mll/glue"`` (with the library `datasets`). Columns have the names of the original
        files or those of the Hub; labels are words or their numbers.
    task : str or GlueTask
        One of `TASKS`.
    split : {"train", "dev", "test"}
    on_error : {"raise", "skip"}
        A row that cannot be used is an error, or is skipped with a warning.

    Returns
    -------
    GlueData

    Raises
    ------
    DataError
        If the file is missing, another task's, empty, or lacks a column.
    RecordError
        If rows cannot be used: it names the kinds, their counts, and the first file and line.

    Examples
    --------
    >>> rows = [{"sentence": "They left.", "label": 1}, {"sentence": "They leaves.", "label": 0}]
    >>> read_glue(rows, "cola").labels
    array([1, 0])
    """
    task = find_task(task)
    check_on_error(on_error)
    if split not in SPLITS:
        raise DataError(f"split: {split!r} is not one of {', '.join(map(repr, SPLITS))}")
    if split not in task.files:
        raise MissingSplitError(f"split: {task.title} has no {split} set")
    source = _resolve(source, task, split)
    names: list[str] | None = None
    original = False
    if isinstance(source, (str, os.PathLike)):
        paths = _find_files(Path(source), task, split)
        report = RecordReport(str(paths[0]))
        if paths[0].suffix == ".parquet":
            names = parquet_label_names(paths[0], "label")
            rows: Iterator[tuple[str, Mapping[str, Any]]] = file_rows(paths, report)
        else:
            rows, original = _tsv_rows(paths[0], task, split, report), True
    else:
        name = f"{task.title} {split}"
        report = RecordReport(name)
        features = getattr(source, "features", None)
        if isinstance(features, Mapping):
            names = getattr(features.get("label"), "names", None)
        rows = dict_rows(source, name, report)
    return _Collector(task, split, names, original, report).collect(rows, on_error)


def _resolve(source: Any, task: GlueTask, split: str) -> Any:
    """Take a split from a mapping of splits or from the Hub. Paths and iterables are returned as they are."""
    if isinstance(source, Mapping):
        for name in task.names_of(split):
            if name in source:
                return source[name]
        names = " or ".join(map(repr, task.names_of(split)))
        raise MissingSplitError(f"source: no split {names}; there are {listing(source)}")
    if isinstance(source, str) and looks_like_hub_name(source, (".tsv", ".parquet")):
        if split not in task.hub_splits:
            raise MissingSplitError(f"{source}: {task.title} has no {split} set on the Hub")
        return load_from_hub(source, task.hub_config, task.hub_splits[split])
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, (str, os.PathLike, Iterable)):
        raise DataError(f"source: expected a path or an iterable of mappings, got {type(source).__name__}")
    return source


def _find_files(path: Path, task: GlueTask, split: str) -> list[Path]:
    """The TSV file of a split, or its Parquet files."""
    if path.is_file():
        if path.suffix not in (".tsv", ".parquet"):
            raise DataError(f"{path}: unknown kind of file; known are .tsv, .parquet")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    below = [path / name for name in task.folders if (path / name).is_dir()]
    if not below:
        for other in TASKS.values():
            if path.name in other.folders and not set(other.folders) & set(task.folders):
                raise MissingSplitError(f"{path}: is the folder of {other.title}, expected one of {task.title}")
    for folder in [*below, path]:
        if (folder / task.files[split]).is_file():
            return [folder / task.files[split]]
        for name in task.names_of(split):
            if found := complete_shards(folder.glob(f"{name}-*.parquet")) or sorted(folder.glob(f"{name}.parquet")):
                return found
    wanted = f"{task.files[split]} or {task.names_of(split)[0]}*.parquet"
    where = below[0] if below else path
    there = sorted(entry.name for entry in where.iterdir())
    raise MissingSplitError(f"{where}: holds no {wanted} of {task.title}; it holds {listing(there)}")


# ------------------------------------------------------------------ TSV
def _tsv_rows(path: Path, task: GlueTask, split: str, report: RecordReport) -> Iterator[tuple[str, dict[str, str]]]:
    with opened(path) as (_, stream):
        header: list[str] | None = None
        for number, line in raw_lines(stream, path, report):
            if not line or (header is None and not line.strip(" \r")):
                report.notes["blank line"] += 1
                continue
            cells = line.split("\t")
            if header is None:
                if report.problems and not _is_headerless(task, split):  # the error is in the header
                    raise DataError(report.problems[0])
                header = _header(path, cells, task, split)
                if header is not _COLA_COLUMNS:
                    continue
            report.rows += 1
            if len(cells) != len(header):
                open_quote = any(cell.startswith('"') and cell.count('"') % 2 for cell in cells)
                hint = "; a quotation mark is open: written with quoting, which GLUE's files do not have?"
                report.error(
                    "columns",
                    f"{path}: line {number}: {len(cells)} columns, expected {len(header)} (a tab too "
                    f"{'few' if len(cells) < len(header) else 'many'}){hint if open_quote else ''}",
                )
                continue
            if line.count('"') % 2:
                report.notes["lone quote"] += 1
            yield f"{path}: line {number}", dict(zip(header, cells, strict=True))


def _is_headerless(task: GlueTask, split: str) -> bool:
    return task.name == "cola" and split != "test"


def _header(path: Path, cells: list[str], task: GlueTask, split: str) -> list[str]:
    """Column names of a file, from its first line. For CoLA's files without a header, the known names."""
    labelled = split != "test"
    missing = _missing_columns(cells, task, labelled)
    if _is_headerless(task, split):
        if len(cells) == len(_COLA_COLUMNS) and cells[1] in ("0", "1"):
            return _COLA_COLUMNS
        # The first row may be damaged like any other. Only the header of another task shows that this is not CoLA.
        if all(_missing_columns(cells, known, False) for known in TASKS.values()):
            return _COLA_COLUMNS
        missing = missing or ["source"]
    if not missing:
        return cells
    others = [o.title for o in TASKS.values() if o.name != task.name and not _missing_columns(cells, o, labelled)]
    hint = f"; this looks like a file of {' or '.join(others[:3])}" if others else ""
    if len(cells) == len(_COLA_COLUMNS) and cells[1] in ("0", "1"):
        hint = "; this looks like a file without header, of CoLA's train or dev set"
    raise DataError(f"{path}: no column {missing[0]!r} ({task.title}); the first line has {listing(cells)}{hint}")


def _missing_columns(cells: Sequence[str], task: GlueTask, labelled: bool) -> list[str]:
    wanted = [*task.texts, *([(task.label_column,)] if labelled else [])]
    return [names[0] for names in wanted if not set(names) & set(cells)]


# ------------------------------------------------------------------ rows to examples
class _Collector:
    """Turns rows into examples.

    In `original` files, only the original names of columns and labels are accepted, so that a file of another task is
    noticed.
    """

    def __init__(
        self, task: GlueTask, split: str, names: list[str] | None, original: bool, report: RecordReport
    ) -> None:
        self.task, self.split, self.report = task, split, report
        self.names = task.labels if names is None else names
        self.synonyms = {} if original else task.synonyms
        self.label_columns = (task.label_column,) if original else (task.label_column, "label")
        self.text_columns = task.texts
        if not original:
            self.text_columns = tuple((*own, hub) for own, hub in zip(task.texts, task.hub_texts, strict=True))

    def collect(self, rows: Iterator[tuple[str, Mapping[str, Any]]], on_error: str) -> GlueData:
        task, report = self.task, self.report
        texts: list[tuple[str, ...]] = []
        labels: list[Any] = []
        index: list[Any] = []
        for where, values in rows:
            found = self._texts(where, values)
            if found is None:
                continue
            label, problem = self._label(values)
            if problem is not None and not (self.split == "test" and problem[0] == "unlabelled"):
                report.error(problem[0], f"{where}: {problem[1]}")
                continue
            if not all(text.strip() for text in found):
                report.notes["empty text"] += 1
            report.kept += 1
            report.unlabelled += label is None
            texts.append(found)
            labels.append(label)
            index.append(next((values[c] for c in _INDEX_COLUMNS if c in values), None))
        if not texts and report.errors["unknown label"]:
            raise RecordError(
                f"{report.source}: none of {report.rows} rows has a label of {task.title}{self._whose_labels()}; "
                f"the first: {report.problems[0]}",
                report,
            )
        report.finish(on_error)
        array = None
        if report.unlabelled == 0:
            array = np.array(labels, np.float32 if task.is_regression else np.int64)
        return GlueData(task, self.split, texts, array, _row_numbers(index), report)

    def _texts(self, where: str, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        found = []
        for columns in self.text_columns:
            text = text_of(values, next((c for c in columns if c in values), columns[0]), where, self.report)
            if text is None:
                return None
            found.append(text)
        return tuple(found)

    def _label(self, values: Mapping[str, Any]) -> tuple[Any, tuple[str, str] | None]:
        """The label as a number; or None, the kind of error and its description."""
        column = next((c for c in self.label_columns if c in values), None)
        if column is None:
            return None, ("unlabelled", f"no column {self.label_columns[0]!r}; there are {listing(values)}")
        value = values[column]
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # NumPy's scalar, or a tensor
            value = value.item()
        if getattr(value, "shape", ()):
            return None, ("unknown label", f"column {column!r}: an array of shape {value.shape} is no label")
        if isinstance(value, str):
            value = value.strip()
            if not value:
                return None, ("empty label", f"column {column!r}: the label is empty")
        if is_missing(value) or value in (-1, "-", "hidden"):
            return None, ("unlabelled", f"column {column!r}: {_shown(value)} says that there is no label")
        labels = self.task.labels
        if labels is None:
            return _score(value, column)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names or ()):
            value = (self.names or ())[value]
        if isinstance(value, str) and (word := self.synonyms.get(value, value)) in labels:
            return labels.index(word), None
        return None, ("unknown label", f"column {column!r}: label {_shown(value)} is not one of {listing(labels)}")

    def _whose_labels(self) -> str:
        """Words for a message. If the unknown labels are those of a task with the same columns, they name that task."""
        words = {match[1] for problem in self.report.problems if (match := re.search(r"label '([^']*)'", problem))}
        for other in TASKS.values():
            if words and other.texts == self.task.texts and words <= set(other.labels or ()):
                return f" (they are labels of {other.title})"
        return ""


def _score(value: Any, column: str) -> tuple[float | None, tuple[str, str] | None]:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if 0.0 <= score <= 5.0:
        return score, None
    return None, ("unknown label", f"column {column!r}: label {_shown(value)} is not a number from 0 to 5")


def _shown(value: Any) -> str:
    """A value for a message; long values are cut."""
    try:
        text = repr(value)
    except ValueError:  # an integer with thousands of digits
        return f"an {type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _row_numbers(index: list[Any]) -> list[int]:
    """The rows' own numbers if all rows have one and they are distinct, else 0, 1, 2, ..."""
    try:
        numbers = [int(number) for number in index]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    return numbers if len(set(numbers)) == len(index) else list(range(len(index)))
