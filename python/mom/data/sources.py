"""Documents out of text files, streamed.

`Documents` walks files and folders and yields `Piece` objects: texts of bounded length, the last one of
a document marked. Memory is bounded by a few pieces whatever the size of a file, but for JSON lines
(one line at a time, at most `MAX_LINE_BYTES`) and Parquet (one row group). `TextDocuments` does the
same for strings in memory.

A long document is cut where GPT-2's pre-tokenizer has a boundary anyway (at the end of a line or word,
before the white space), so that the pieces' tokens joined are the document's tokens. Only text without
any such place in a whole piece is cut anywhere.

Bytes that are no text, lines that are no JSON and records without the key are errors that name file
and line; with ``on_error="skip"`` they are left out, counted in ``report`` and announced by one warning
per pass.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import DataError

__all__ = ["MAX_LINE_BYTES", "SUFFIXES", "Documents", "Piece", "ReadReport", "TextDocuments", "standard_library_text"]

PathLike = str | os.PathLike[str]

#: What a folder is searched for.
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
#: Files that are read as text too when they are named one by one.
_TEXT_SUFFIXES = (".txt", ".txt.gz", ".md", ".rst", ".py")
#: A longer line in a JSON-lines file is an error.
MAX_LINE_BYTES = 64 * 1024 * 1024
#: Problems that a report spells out; the rest is only counted.
MAX_PROBLEMS = 20

_BLOCK = 1 << 18
_LONGEST_UNBROKEN = 4 * _BLOCK
_BOM = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """Part of a document; the concatenated pieces up to and including one with `end` are the document."""

    text: str
    end: bool


@dataclass
class ReadReport:
    """What one pass over some documents has met so far.

    Attributes
    ----------
    files, documents, bytes_read : int
        Files opened, documents ended, bytes taken from the disk (compressed where the file is).
    empty : int
        Documents without any text, which are left out.
    skipped : int
        Lines, records or rests of files left out because of an error.
    ignored_files : int
        Files in searched folders that are of no known kind.
    problems : list of str
        The first few reasons for `skipped`, each naming file and line.
    """

    files: int = 0
    documents: int = 0
    bytes_read: int = 0
    empty: int = 0
    skipped: int = 0
    ignored_files: int = 0
    problems: list[str] = field(default_factory=list)


class _DocumentStream:
    """What file-backed and in-memory documents share: passes, pieces and the report.

    A subclass yields events: a string continues the current document, None ends it.
    """

    def __init__(self, names: Sequence[str], on_error: str, max_chars: int) -> None:
        if on_error not in ("raise", "skip"):
            raise DataError(f"on_error: {on_error!r} is not one of 'raise', 'skip'")
        if max_chars < 16:
            raise DataError(f"max_chars: {max_chars} is less than 16")
        self.names, self.on_error, self.max_chars = list(names), on_error, max_chars
        self.total_bytes = 0
        self.report = ReadReport()

    def __iter__(self) -> Iterator[Piece]:
        self.report = report = self._new_report()
        for piece in _bounded_pieces(self._events(report), self.max_chars, report):
            report.documents += piece.end
            yield piece
        if report.skipped:
            warnings.warn(
                f"{report.skipped} unreadable records left out; the first: {report.problems[0]}",
                UserWarning,
                stacklevel=2,
            )

    def texts(self) -> Iterator[str]:
        """The texts of one pass, without document ends (for training a tokenizer)."""
        return (piece.text for piece in self)

    def _new_report(self) -> ReadReport:
        return ReadReport()

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        raise NotImplementedError

    def _problem(self, report: ReadReport, message: str) -> None:
        if self.on_error == "raise":
            raise DataError(message)
        report.skipped += 1
        if len(report.problems) < MAX_PROBLEMS:
            report.problems.append(message)


class TextDocuments(_DocumentStream):
    """Documents from strings in memory, or from any iterable of strings.

    Parameters
    ----------
    texts : iterable of str
        One document each. To be iterated more than once (as `prepare` does to train a tokenizer) it
        has to be a collection, not an iterator.
    name : str
        What ``meta.json`` shall call them.
    on_error, max_chars
        As for `Documents`.
    """

    def __init__(
        self, texts: Iterable[str], *, name: str = "texts in memory", on_error: str = "raise", max_chars: int = 1 << 16
    ) -> None:
        if isinstance(texts, (str, bytes)):
            raise DataError("texts: a single string; expected an iterable of strings")
        super().__init__([name], on_error, max_chars)
        self._texts = texts

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        for number, text in enumerate(self._texts):
            if (reason := not_text(text)) is not None:
                self._problem(report, f"{self.names[0]}: document {number}: {reason}")
                continue
            yield text
            yield None


class Documents(_DocumentStream):
    """Documents of files and folders, to be iterated any number of times.

    Parameters
    ----------
    sources : path or sequence of paths
        Files (``.txt``, ``.jsonl``, both also ``.gz``, or ``.parquet``) and folders, which are searched
        through in sorted order for such files (hidden ones are passed by). A byte-order mark at the
        start of a text is dropped; line ends are left as they are.
    key : str
        Field of a JSON object, or column of a Parquet file, that holds the text.
    split : {"file", "blank_line"}
        Whether a text file is one document, or one per run of lines between blank ones.
    on_error : {"raise", "skip"}
        What to do about unreadable records. Missing files are always an error.
    max_chars : int
        Longest piece.
    name : str, optional
        What ``meta.json`` shall call them, instead of the paths.

    Attributes
    ----------
    files : list of Path
        All files, in the order in which they are read.
    total_bytes : int
        Their size on the disk.
    report : ReadReport
        Of the current or latest pass.

    Raises
    ------
    DataError
        On construction for a missing file, an unknown kind of file or a folder without any; while
        iterating, for unreadable records.
    """

    def __init__(
        self,
        sources: PathLike | Sequence[PathLike],
        *,
        key: str = "text",
        split: str = "file",
        on_error: str = "raise",
        max_chars: int = 1 << 16,
        name: str | None = None,
    ) -> None:
        paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
        super().__init__([name] if name is not None else [os.fspath(path) for path in paths], on_error, max_chars)
        if split not in ("file", "blank_line"):
            raise DataError(f"split: {split!r} is not one of 'file', 'blank_line'")
        if not paths:
            raise DataError("sources: no file or folder given")
        self.key, self.split = key, split
        self._ignored_files = 0
        self.files = [file for path in paths for file in self._find(Path(path))]
        self.total_bytes = sum(file.stat().st_size for file in self.files)

    def _find(self, path: Path) -> list[Path]:
        if path.is_file():
            if not path.name.endswith(SUFFIXES + _TEXT_SUFFIXES):
                raise DataError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
            return [path]
        if not path.is_dir():
            raise DataError(f"{path}: no such file or folder")
        found = []
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    found.append(Path(folder, name))
                else:
                    self._ignored_files += 1
        if not found:
            raise DataError(f"{path}: holds no file of a known kind ({', '.join(SUFFIXES)})")
        return found

    def _new_report(self) -> ReadReport:
        return ReadReport(ignored_files=self._ignored_files)

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        for path in self.files:
            before = report.bytes_read
            try:
                with open(path, "rb") as raw:
                    report.files += 1
                    for event in self._file_events(path, raw, report):
                        report.bytes_read = before + raw.tell()
                        yield event
                    report.bytes_read = before + raw.seek(0, os.SEEK_END)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._problem(report, f"{path}: truncated or corrupted gzip file ({error})")
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
            yield None

    def _file_events(self, path: Path, raw: BinaryIO, report: ReadReport) -> Iterator[str | None]:
        name = path.name
        if name.endswith(".parquet"):
            yield from self._parquet_events(path, raw, report)
            return
        stream: BinaryIO = gzip.GzipFile(fileobj=raw, mode="rb") if name.endswith(".gz") else raw  # type: ignore[assignment]
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from self._json_events(path, stream, report)
        elif self.split == "file":
            yield ""  # so that an empty file counts as an empty document
            yield from self._blocks(path, stream, report)
        else:
            yield from _paragraph_events(self._blocks(path, stream, report))

    def _blocks(self, path: Path, stream: BinaryIO, report: ReadReport) -> Iterator[str]:
        """Decode a text in blocks that end at a line end, or where a line is very long, at a character's end."""
        carry, line, offset = b"", 1, 0
        while True:
            block = stream.read(_BLOCK)
            data = carry + block
            if offset == 0 and data.startswith(_BOM):
                data, offset = data[len(_BOM) :], len(_BOM)
            if not block:
                cut = len(data)
            elif not (cut := data.rfind(b"\n") + 1) and len(data) >= _LONGEST_UNBROKEN:
                cut = _last_character_end(data)
            head, carry = data[:cut], data[cut:]
            if head:
                yield from self._decoded(path, head, line, offset, report)
            line += head.count(b"\n")
            offset += len(head)
            if not block:
                return

    def _decoded(self, path: Path, data: bytes, line: int, offset: int, report: ReadReport) -> Iterator[str]:
        try:
            yield data.decode("utf-8")
            return
        except UnicodeDecodeError:
            pass
        *whole, rest = data.split(b"\n")
        for number, part in enumerate([part + b"\n" for part in whole] + [rest], line):
            try:
                text = part.decode("utf-8")
            except UnicodeDecodeError as error:
                self._problem(report, f"{path}: line {number}: not UTF-8 (byte {offset + error.start})")
            else:
                yield text
            offset += len(part)

    def _json_events(self, path: Path, stream: BinaryIO, report: ReadReport) -> Iterator[str | None]:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}: line {number}"
            if len(raw) > MAX_LINE_BYTES:
                self._problem(report, f"{where}: longer than {MAX_LINE_BYTES} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(_BLOCK)
                continue
            raw = raw.removeprefix(_BOM) if number == 1 else raw
            if raw.isspace() or not raw:
                continue
            try:
                record = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                self._problem(report, f"{where}: not UTF-8 (byte {error.start} of the line)")
                continue
            except (ValueError, RecursionError) as error:
                self._problem(report, f"{where}: not valid JSON ({error})")
                continue
            if not isinstance(record, dict):
                self._problem(report, f"{where}: a {type(record).__name__}, expected an object with key {self.key!r}")
            elif self.key not in record:
                keys = ", ".join(map(repr, list(record)[:8]))
                self._problem(report, f"{where}: no key {self.key!r}; there are {keys or 'none'}")
            elif (reason := not_text(record[self.key])) is not None:
                self._problem(report, f"{where}: key {self.key!r}: {reason}")
            else:
                yield record[self.key]
                yield None

    def _parquet_events(self, path: Path, raw: BinaryIO, report: ReadReport) -> Iterator[str | None]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from None
        row = 0
        try:
            file = pyarrow.parquet.ParquetFile(raw)
            if self.key not in file.schema_arrow.names:
                columns = ", ".join(map(repr, file.schema_arrow.names[:8]))
                raise DataError(f"{path}: no column {self.key!r}; there are {columns or 'none'}")
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[self.key]):
                    for text in batch.column(0).to_pylist():
                        if (reason := not_text(text)) is not None:
                            self._problem(report, f"{path}: row {row}: column {self.key!r}: {reason}")
                        else:
                            yield text
                            yield None
                        row += 1
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            self._problem(report, f"{path}: row {row}: not a readable Parquet file ({error})")


def not_text(value: object) -> str | None:
    """Why a value is not a text, None if it is one."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}, expected a string"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"lone surrogate at character {error.start}"
    return None


def _last_character_end(data: bytes) -> int:
    """Where the last complete UTF-8 character of `data` ends (for bytes that are no UTF-8: the end)."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < length else len(data)
    return len(data)


def _paragraph_events(blocks: Iterator[str]) -> Iterator[str | None]:
    at_line_start = True
    for block in blocks:
        for line in _lines(block):
            if at_line_start and not line.strip(" \t\r\n"):
                yield None
            else:
                yield line
            at_line_start = line.endswith("\n")


def _lines(text: str) -> Iterator[str]:
    """Lines that end with a line feed alone (``str.splitlines`` knows many more ends)."""
    start = 0
    while (end := text.find("\n", start) + 1) > 0:
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _bounded_pieces(events: Iterator[str | None], max_chars: int, report: ReadReport) -> Iterator[Piece]:
    """Join the events of each document and cut it into pieces of at most `max_chars`."""
    parts: list[str] = []
    held = 0
    seen_event = started = False
    for event in events:
        if event is not None:
            seen_event = True
            parts.append(event)
            held += len(event)
            if held <= max_chars:
                continue
            text, start = "".join(parts), 0
            while len(text) - start > max_chars:
                cut = _safe_cut(text, start, start + max_chars)
                yield Piece(text[start:cut], False)
                started, start = True, cut
            parts, held = [text[start:]], len(text) - start
        else:
            if held or started:
                yield Piece("".join(parts), True)
            elif seen_event:
                report.empty += 1
            parts, held, seen_event, started = [], 0, False, False


def _safe_cut(text: str, start: int, limit: int) -> int:
    """A late place in (start, limit] where a cut changes no token of GPT-2's pre-tokenizer, else `limit`.

    Its tokens hold white space at their beginning only, or nothing else: before white space that
    follows something else there is always a boundary, and no token looks back across it.
    """
    for mark in ("\n", " "):
        found = text.rfind(mark, start + 1, limit + 1)
        cut = start + len(text[start:found].rstrip(" \t\r\n")) if found > start else start
        if cut > start and not text[cut - 1].isspace():
            return cut
    return limit


def standard_library_text(*, max_chars: int = 1 << 16) -> Documents:
    """The source code of the running Python's standard library: real text that every machine has.

    Every ``.py`` file in sorted order is a document, but for tests, installed packages and files that
    are made when Python is built. The same Python version gives the same text.

    Raises
    ------
    DataError
        If the standard library is not installed as source files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not _is_left_out(name))
        files += [Path(folder, name) for name in sorted(names) if name.endswith(".py") and not _is_left_out(name)]
    if not files:
        raise DataError(f"{root}: the standard library's source files are not there")
    name = f"Python {platform.python_version()} standard library"
    # A few files of some versions declare another encoding; they are left out, and said to be.
    return Documents(files, on_error="skip", max_chars=max_chars, name=name)


def _is_left_out(name: str) -> bool:
    return name in {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"} or name.startswith(
        (".", "config-", "_sysconfigdata", "_bundled")
    )
