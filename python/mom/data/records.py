"""Reads records from files and iterables: code that the readers of texts, GLUE and XSUM share.

A reader counts every record of a source in a report: as kept, or as skipped for a named reason. No record is skipped
silently. The readers of GLUE and XSUM first read all rows. If any row has an error, ``on_error="raise"`` raises a
`RecordError`. Its message says how many rows have which error and where the first one is. With ``"skip"`` these rows
are skipped, and a warning says the same. A summary in one line goes to the logger of this module; the command ``mom``
shows it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from .._reading import shown
from ..errors import DataError
from .packed import DAMAGED, unpacked

__all__ = ["MAX_LINE_BYTES", "DamagedFileError", "MissingSplitError", "RecordError", "RecordReport", "check_on_error"]

#: A longer line of a file of records is an error.
MAX_LINE_BYTES = 64 * 1024 * 1024
#: A set of files with more parts is not checked beyond this number.
MAX_SHARDS = 100_000
#: Problems that a report spells out; the rest is only counted.
MAX_PROBLEMS = 20

_LOG = logging.getLogger(__name__)
_BOM = b"\xef\xbb\xbf"


@dataclass
class RecordReport:
    """What reading one source met.

    Attributes
    ----------
    source : str
        File, or description of what was iterated over.
    rows : int
        Rows seen; ``rows == kept + sum(errors.values())``.
    kept : int
        Rows that became examples.
    unlabelled : int
        Kept rows without a label (of test sets, where that is as it should be).
    errors : Counter of str
        Rows left out, by kind: ``"columns"`` (missing or surplus tabs), ``"missing column"``, ``"not text"``,
        ``"not UTF-8"``, ``"not JSON"``, ``"not a record"``, ``"empty label"``, ``"unlabelled"``, ``"unknown label"``,
        ``"empty text"``, ``"too long"``.
    notes : Counter of str
        Rows that are odd but complete. They were read as they are: ``"byte-order mark"``, ``"CRLF"``,
        ``"carriage return"``, ``"lone quote"``, ``"empty text"``, ``"blank line"``.
    problems : list of str
        The first few errors in words, each naming file and line.
    raises : bool
        Whether the first error raises a `DataError` at once.
    """

    source: str
    rows: int = 0
    kept: int = 0
    unlabelled: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    raises: bool = False

    def error(self, kind: str, message: str) -> None:
        """Book one row as left out."""
        if self.raises:
            raise DataError(message)
        self.errors[kind] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(message)

    @property
    def num_errors(self) -> int:
        """Rows left out."""
        return sum(self.errors.values())

    def summary(self) -> str:
        """One line: how many rows there were, which were left out and why, and what was odd."""
        text = f"{self.source}: {self.rows:,} rows, {self.kept:,} kept"
        if self.unlabelled:
            text += f", {self.unlabelled:,} of them unlabelled"
        if self.errors:
            text += f"; left out: {_counts(self.errors)}"
        if self.notes:
            text += f"; read as they are: {_counts(self.notes)}"
        return text

    def finish(self, on_error: str) -> None:
        """Raise or warn if rows had errors, and raise if no row is left. Otherwise log the summary."""
        if self.kept and (on_error != "raise" or not self.num_errors):
            _LOG.info("%s", self.summary())
        if not self.num_errors and self.kept:
            return
        if not self.rows:
            raise RecordError(f"{self.source}: no rows", self)
        problem = (
            f"{self.source}: {self.num_errors} of {self.rows} rows cannot be used ({_counts(self.errors)}); "
            f"the first: {self.problems[0]}"
        )
        if on_error == "raise" or not self.kept:
            raise RecordError(problem, self)
        warnings.warn(problem, UserWarning, stacklevel=3)


class RecordError(DataError):
    """Rows of a source cannot be used; ``report`` has the counts."""

    def __init__(self, message: str, report: RecordReport) -> None:
        super().__init__(message)
        #: The report of the source.
        self.report = report


class DamagedFileError(DataError):
    """The rest of a file cannot be read."""


class MissingSplitError(DataError):
    """The source exists, but does not have the split that was asked for."""


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def check_on_error(on_error: str) -> None:
    """Raise unless it is one of the two words."""
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error: {on_error!r} is not one of 'raise', 'skip'")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A file, and the stream of its content, which is unpacked if the name ends in ``.gz``, ``.xz`` or ``.zst``."""
    with opened_as_it_is(path) as file:
        yield file, unpacked(path.name, file)[1]


@contextlib.contextmanager
def opened_as_it_is(path: Path) -> Iterator[BinaryIO]:
    """A file. Faults of the file within the block, also of archives and compressed streams in it, are named."""
    try:
        with open(path, "rb") as file:
            yield file
    except DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise DamagedFileError(f"{path}: truncated or corrupted {_packed_kind(path)} file ({reason})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _packed_kind(path: Path) -> str:
    return "gzip" if path.suffix in (".gz", ".tgz") else path.suffix.removeprefix(".")


def raw_lines(stream: BinaryIO, path: Path | str, report: RecordReport) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, without their ends. A line that is no UTF-8 is booked as an error.

    Only a line feed ends a line. A byte-order mark, and carriage returns before line feeds, are dropped and noted.
    """
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1 and raw.startswith(_BOM):
            report.notes["byte-order mark"] += 1
            raw = raw.removeprefix(_BOM)
        if len(raw) > MAX_LINE_BYTES:
            report.rows += 1
            report.error("too long", f"{path}: line {number}: longer than {MAX_LINE_BYTES} bytes")
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(1 << 18)
            continue
        raw = raw.removesuffix(b"\n")
        if raw.endswith(b"\r"):
            report.notes["CRLF"] += 1
            raw = raw.removesuffix(b"\r")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            report.rows += 1
            report.error("not UTF-8", f"{path}: line {number}: not UTF-8 (byte {error.start} of the line)")
            continue
        if "\r" in text:
            report.notes["carriage return"] += 1
        yield number, text


def json_rows(stream: BinaryIO, path: Path | str, report: RecordReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, with the place of each. Lines that are no objects are booked as errors."""
    for number, line in raw_lines(stream, path, report):
        where = f"{path}: line {number}"
        if not line.strip():
            report.notes["blank line"] += 1
            continue
        report.rows += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.error("not JSON", f"{where}: not valid JSON ({error})")
            continue
        if not isinstance(value, dict):
            report.error("not a record", f"{where}: a {type(value).__name__}, expected an object")
            continue
        yield where, value


def parquet_rows(
    file: BinaryIO, path: Path, report: RecordReport, columns: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet file as dicts of all or some columns, with the place of each."""
    pyarrow = import_pyarrow(path)
    row = 0
    try:
        table = pyarrow.parquet.ParquetFile(file)
        there = table.schema_arrow.names
        if missing := [name for name in columns or () if name not in there]:
            raise DataError(f"{path}: no column {missing[0]!r}; there are {listing(there)}")
        for group in range(table.num_row_groups):
            for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                for values in batch.to_pylist():
                    report.rows += 1
                    yield f"{path}: row {row}", values
                    row += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path}: row {row}: not a readable Parquet file ({error})") from None


def file_rows(paths: Iterable[Path], report: RecordReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of Parquet and JSON-lines files, with the place of each."""
    for path in paths:
        with opened(path) as (file, stream):
            is_parquet = path.suffix == ".parquet"
            yield from parquet_rows(file, path, report) if is_parquet else json_rows(stream, path, report)


def parquet_label_names(path: Path, column: str) -> list[str] | None:
    """Names of the classes of an integer column, if the `datasets` library wrote the file."""
    pyarrow = import_pyarrow(path)
    try:
        metadata = pyarrow.parquet.ParquetFile(path).schema_arrow.metadata or {}
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError, OSError, pyarrow.ArrowException):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def import_pyarrow(path: Path) -> Any:
    """The package pyarrow, or a message that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from None
    return pyarrow


def dict_rows(source: Iterable[Any], name: str, report: RecordReport) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Mappings out of any iterable. Items that are no mappings are booked as errors."""
    if hasattr(type(source), "columns") and hasattr(type(source), "shape"):  # a table yields names of columns
        ways = {"iloc": "to_dict('records')", "to_dicts": "to_dicts()", "to_pylist": "to_pylist()"}
        way_out = next((way for method, way in ways.items() if hasattr(type(source), method)), "to_dicts()")
        raise DataError(f"{name}: expected rows, got a {type(source).__name__}; its rows are table.{way_out}")
    for number, values in enumerate(source):
        report.rows += 1
        where = f"{name}: row {number}"
        if isinstance(values, Mapping):
            yield where, values
        else:
            report.error("not a record", f"{where}: a {type(values).__name__}, expected a mapping of column to value")
    if not report.rows and isinstance(source, Iterator):
        raise RecordError(f"{name}: no rows; an iterator gives its rows once: was it used before?", report)


def check_iterators(splits: Any) -> None:
    """Raise if two splits of a mapping share one iterator: the second would get no rows."""
    seen: dict[int, Any] = {}
    for name, rows in splits.items() if isinstance(splits, Mapping) else ():
        if isinstance(rows, Iterator) and seen.setdefault(id(rows), name) != name:
            both = f"{seen[id(rows)]!r} and {name!r}"
            raise DataError(f"data: {both} are one iterator, which gives its rows once; use a list")


def text_of(
    values: Mapping[str, Any], column: str, where: str, report: RecordReport, word: str = "column"
) -> str | None:
    """The text in a column (or what `word` calls it); None, and an error booked, if there is none."""
    if column not in values:
        report.error("missing column", f"{where}: no {word} {column!r}; there are {listing(values)}")
        return None
    text = values[column]
    if (reason := not_text(text)) is not None:
        report.error("not text", f"{where}: {word} {column!r}: {reason}")
        return None
    return str(text)


def not_text(value: object) -> str | None:
    """Why a value is not a text, None if it is one."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}, expected a string"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"lone surrogate at character {error.start}"
    return None


def listing(names: Iterable[Any]) -> str:
    """The first few names in quotes."""
    return ", ".join(map(shown, list(names)[:16])) or "none"


def complete_shards(paths: Iterable[Path]) -> list[Path]:
    """The paths in order. If names such as ``train-00000-of-00003.parquet`` tell of files that are missing, raise."""
    found = sorted(paths)
    parts = [match for path in found if (match := re.search(r"-(\d+)-of-(\d+)\.", path.name))]
    for total in {match[2] for match in parts}:
        there = {int(match[1]) for match in parts if match[2] == total}
        missing = sorted(set(range(min(int(total), MAX_SHARDS))) - there)
        if missing:
            raise DataError(
                f"{found[0].parent}: {len(there)} of {int(total)} files ..-of-{total} are there; "
                f"number {missing[0]} is missing"
            )
    return found


def looks_like_hub_name(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a string may be the name of a data set on the Hub: there is no such path."""
    if Path(name).exists() or name.endswith(suffixes):
        return False
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) is not None


def load_from_hub(name: str, config: str | None, split: str, streaming: bool = False) -> Iterable[Any]:
    """A split of a data set on the Hub, through the library `datasets`; with `streaming`, rows as they come.

    Raises
    ------
    DataError
        If `name` is no folder here and the library is not installed, or the Hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: no such file or folder; for names on the Hub: pip install datasets"
        ) from None
    try:
        options = {"streaming": True} if streaming else {}
        loaded: Iterable[Any] = datasets.load_dataset(name, config, split=split, **options)
    except Exception as error:  # the library and the network raise all kinds
        raise DataError(
            f"{name}: no such file or folder, and the Hub did not give it ({type(error).__name__}: {error}); "
            "without a connection, name a folder with the files"
        ) from None
    return loaded
