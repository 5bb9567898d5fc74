"""Documents out of text files, streamed.

`Documents` walks through files and folders and yields `Piece` objects. A piece is a text of bounded length; the last
piece of a document is marked. Memory does not grow with the size of a file: a few pieces are held, of JSON lines one
line at a time, and of Parquet one row group. `TextDocuments` does the same for strings in memory.

A long document is cut where GPT-2's pre-tokenizer has a boundary anyway, at the end of a line or word, before the white
space. So the tokens of the pieces, joined, are the tokens of the document. Only a piece without any such place is cut
anywhere, and says so. `pieces_for` joins what must not be cut: at such places, and for other tokenizers everywhere.

Bytes that are no text, lines that are no JSON, and records without the key are errors. Messages name file and line.
With ``on_error="skip"`` such records are left out and counted in ``report``, and one warning per pass says so.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .._arguments import PathLike
from .._reading import kind_of
from ..errors import DataError
from .columns import checked_texts
from .cuts import safe_cut
from .packed import ARCHIVES, COMPRESSED, files_in, is_archive_in_xz
from .records import (
    DamagedFileError,
    RecordReport,
    check_on_error,
    json_rows,
    not_text,
    opened_as_it_is,
    parquet_rows,
    text_of,
)

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["SUFFIXES", "Documents", "Piece", "ReadReport", "TextDocuments", "pieces_for", "standard_library_text"]


#: Kinds of files that a folder is searched for.
SUFFIXES = (*(kind + end for kind in (".txt", ".jsonl") for end in ("", *COMPRESSED)), ".parquet", *ARCHIVES)
#: The same for messages.
_KNOWN = ".txt, .jsonl, both also .gz, .xz or .zst, .parquet, .tar, .tgz, .tar.gz, .tar.xz, .tar.zst"
#: Kinds of files that are read as text if the caller names the file itself.
_TEXT_SUFFIXES = (".md", ".rst", ".py")
_BLOCK = 1 << 18
_LOG = logging.getLogger(__name__)
#: A longer rest of a line is cut, so that memory is bounded.
_LONGEST_REST = 4 * _BLOCK
_BOM = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """Part of a document. A document is all its pieces joined; the last of them has `end` set.

    If `safe` is not set, GPT-2's tokens may go on beyond the end of this piece.
    """

    text: str
    end: bool
    safe: bool = True


@dataclass
class ReadReport(RecordReport):
    """What one pass over some documents has met so far; see `mom.data.records.RecordReport`.

    Attributes
    ----------
    files, bytes_read : int
        Files opened; bytes taken from the disk (compressed where the file is).
    empty : int
        Documents without any text, which are left out.
    ignored_files : int
        Files in searched folders that are of no known kind.
    """

    files: int = 0
    bytes_read: int = 0
    empty: int = 0
    ignored_files: int = 0

    @property
    def documents(self) -> int:
        """Documents ended."""
        return self.kept

    @property
    def skipped(self) -> int:
        """Lines, records or rests of files left out because of an error."""
        return self.num_errors


class _DocumentStream:
    """The base of documents in files and in memory: passes, pieces and the report.

    A subclass yields events. A string continues the current document, and None ends it.
    """

    def __init__(self, names: Sequence[str], on_error: str, max_chars: int) -> None:
        check_on_error(on_error)
        if max_chars < 16:
            raise DataError(f"max_chars: {max_chars} is less than 16")
        self.names, self.on_error, self.max_chars = list(names), on_error, max_chars
        self.total_bytes = 0
        self.ignored_files = 0
        self.report = self._new_report()

    def __iter__(self) -> Iterator[Piece]:
        self.report = report = self._new_report()
        for piece in _bounded_pieces(self._events(report), self.max_chars, report):
            report.kept += piece.end
            yield piece
        if report.empty:
            _LOG.info("%s: %s documents without any text left out", report.source, f"{report.empty:,}")
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
        source = ", ".join(self.names)
        return ReadReport(source, raises=self.on_error == "raise", ignored_files=self.ignored_files)

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        raise NotImplementedError


class TextDocuments(_DocumentStream):
    """Documents from strings in memory, or from any iterable of strings.

    Parameters
    ----------
    texts : iterable of str
        One string per document. To be read more than once, as `prepare` does to train a tokenizer, this must be a
        collection, not an iterator.
    name : str
        What ``meta.json`` calls them.
    on_error, max_chars
        As for `Documents`.
    """

    def __init__(
        self, texts: Iterable[str], *, name: str = "texts in memory", on_error: str = "raise", max_chars: int = 1 << 16
    ) -> None:
        super().__init__([name], on_error, max_chars)
        self._texts: Iterable[str] = checked_texts(texts)

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        for number, text in enumerate(self._texts):
            if (reason := not_text(text)) is not None:
                report.error("not text", f"{self.names[0]}: document {number}: {reason}")
                continue
            yield text
            yield None


class Documents(_DocumentStream):
    """Documents of files and folders, to be iterated any number of times.

    Parameters
    ----------
    sources : path or sequence of paths
        Files and folders. Files are ``.txt`` or ``.jsonl``, both also compressed (``.gz``, ``.xz``, and ``.zst`` with
        the package zstandard), ``.parquet``, and archives of texts: ``.tar``, also compressed, and ``.xz`` as in
        OpenWebText. Folders are searched for such files in sorted order; archives keep their own. Hidden files and
        folders are passed by. Links to folders are not followed, and a warning says so. A byte-order mark at the start
        of a text is dropped. Line ends are left as they are.
    key : str
        Field of a JSON object, or column of a Parquet file, that holds the text.
    split : {"file", "blank_line"}
        Whether a text file is one document, or whether every run of lines between blank lines is a document.
    on_error : {"raise", "skip"}
        What to do about records that cannot be read. Missing files are always an error.
    max_chars : int
        Longest piece.
    name : str, optional
        What ``meta.json`` calls the documents, instead of the paths.

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
        On construction, for a missing file, an unknown kind of file, or a folder without known files. While iterating,
        for records that cannot be read.
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
        given = (sources,) if isinstance(sources, (str, os.PathLike)) else checked_texts(sources, "sources", "paths")
        paths: list[PathLike] = list(given)
        for path in paths:
            if not isinstance(path, (str, os.PathLike)):
                raise DataError(f"sources: expected paths, got a {type(path).__name__} among them")
        super().__init__([name] if name is not None else [os.fspath(path) for path in paths], on_error, max_chars)
        if split not in ("file", "blank_line"):
            raise DataError(f"split: {split!r} is not one of 'file', 'blank_line'")
        if not paths:
            raise DataError("sources: no file or folder given")
        self.key, self.split = key, split
        self.files = [file for path in paths for file in self._find(Path(path))]
        self.total_bytes = sum(file.stat().st_size for file in self.files)

    def _find(self, path: Path) -> list[Path]:
        if path.is_file():
            if not path.name.endswith(SUFFIXES + _TEXT_SUFFIXES) and not _is_archive(path):
                raise DataError(f"{path}: unknown kind of file; known are {_KNOWN}")
            return [path]
        if not path.is_dir():
            raise DataError(f"{path}: no such file or folder")
        found: list[Path] = []
        passed: list[Path] = []
        linked: list[Path] = []
        for folder, subfolders, names in os.walk(path, onerror=_refuse_folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            linked += (Path(folder, name) for name in subfolders if os.path.islink(os.path.join(folder, name)))
            for file in (Path(folder, name) for name in sorted(names)):
                known = file.name.endswith(SUFFIXES) or _is_archive(file)
                wanted = known and not file.name.startswith(".")
                if wanted and kind_of(file) is None:
                    raise DataError(f"{file}: a link to a file that does not exist; mend or remove the link")
                (found if wanted and file.is_file() else passed).append(file)
        self.ignored_files += len(passed)
        if passed:
            _LOG.info(
                "%s: passed over %s files that are hidden, of no known kind, or not regular; the first: %s",
                path, f"{len(passed):,}", passed[0],
            )  # fmt: skip
        if linked:
            warnings.warn(
                f"{path}: links to folders are not followed: {len(linked)} of them, the first {linked[0]}; "
                "name such folders among the sources",
                stacklevel=4,
            )
        if not found:
            raise DataError(f"{path}: holds no file of a known kind ({_KNOWN})")
        return found

    def _events(self, report: ReadReport) -> Iterator[str | None]:
        for path in self.files:
            before = report.bytes_read
            try:
                with opened_as_it_is(path) as file:
                    report.files += 1
                    for event in self._events_of(path, file, report):
                        report.bytes_read = before + file.tell()
                        yield event
                    report.bytes_read = before + file.seek(0, os.SEEK_END)
            except DamagedFileError as error:
                report.error("damaged file", str(error))
            yield None

    def _events_of(self, path: Path, file: BinaryIO, report: ReadReport) -> Iterator[str | None]:
        if path.name.endswith(".parquet"):
            yield from self._record_events(parquet_rows(file, path, report, [self.key]), "column", report)
            return
        passed: list[str] = []
        for name, stream in files_in(path.name, file):
            inside = "/" in name
            if inside and not name.endswith((".txt", ".jsonl")):
                passed.append(name)
                continue
            yield from self._text_events(f"{path.parent / name}" if inside else str(path), name, stream, report)
            yield None
        if passed:
            report.ignored_files += len(passed)
            _LOG.info("%s: passed over %s files that are neither .txt nor .jsonl; the first: %s",
                      path, f"{len(passed):,}", passed[0])  # fmt: skip

    def _text_events(
        self, path: str, name: str, stream: BinaryIO, report: ReadReport
    ) -> Iterator[str | None]:
        if name.endswith(".jsonl"):
            yield from self._record_events(json_rows(stream, path, report), "key", report)
        elif self.split == "file":
            yield ""  # so that an empty file counts as an empty document
            yield from self._blocks(path, stream, report)
        else:
            yield from _paragraph_events(self._blocks(path, stream, report))

    def _record_events(
        self, rows: Iterator[tuple[str, dict[str, Any]]], word: str, report: ReadReport
    ) -> Iterator[str | None]:
        for where, values in rows:
            text = text_of(values, self.key, where, report, word)
            if text is not None:
                yield text
                yield None

    def _blocks(self, path: str, stream: BinaryIO, report: ReadReport) -> Iterator[str]:
        """Decode a text in blocks that end at a line end or, in a very long line, at the end of a character."""
        carry, line, offset = b"", 1, 0
        while data := carry + stream.read(_BLOCK) + (rest := stream.readline(_LONGEST_REST)):
            if offset == 0 and data.startswith(_BOM):
                data, offset = data[len(_BOM) :], len(_BOM)
            carry = b"" if len(rest) < _LONGEST_REST else _incomplete_character(data)
            data = data.removesuffix(carry)
            yield from self._decoded(path, data, line, offset, report)
            line += data.count(b"\n")
            offset += len(data)

    def _decoded(self, path: str, data: bytes, line: int, offset: int, report: ReadReport) -> Iterator[str]:
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
                report.error("not UTF-8", f"{path}: line {number}: not UTF-8 (byte {offset + error.start})")
            else:
                yield text
            offset += len(part)


def _is_archive(path: Path) -> bool:
    """Whether a file is one of OpenWebText's: it ends in ``.xz`` alone and holds an archive."""
    if not path.name.endswith(".xz") or kind_of(path) != "file":
        return False
    with opened_as_it_is(path) as file:
        return is_archive_in_xz(file)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _incomplete_character(data: bytes) -> bytes:
    """The bytes at the end of `data` that only begin a UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]


def _paragraph_events(blocks: Iterator[str]) -> Iterator[str | None]:
    at_line_start = True
    for block in blocks:
        for line in io.StringIO(block, newline="\n"):  # `str.splitlines` would also split at other characters
            if at_line_start and not line.strip(" \t\r\n"):
                yield None
            else:
                yield line
            at_line_start = line.endswith("\n")


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
                cut = safe_cut(text, start, start + max_chars)
                safe = cut is not None
                cut = start + max_chars if cut is None else cut
                yield Piece(text[start:cut], False, safe)
                started, start = True, cut
            parts, held = [text[start:]], len(text) - start
        else:
            if held or started:
                yield Piece("".join(parts), True)
            elif seen_event:
                report.empty += 1
            parts, held, seen_event, started = [], 0, False, False


def pieces_for(documents: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Pieces whose tokens, joined, are the tokens of the document, whatever the tokenizer.

    Memory then grows with the longest document, unless the tokenizer cuts texts as GPT-2's does.
    """
    parts: list[str] = []
    for piece in documents:
        parts.append(piece.text)
        if piece.end or (piece.safe and tokenizer.pieces_are_safe):
            yield Piece("".join(parts), piece.end)
            parts = []


def standard_library_text(*, max_chars: int = 1 << 16) -> Documents:
    """The source code of the running Python's standard library: real text that every machine has.

    Every ``.py`` file is a document, in sorted order. Tests, installed packages, and files that are made when Python is
    built are left out. The same Python version gives the same text.

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
    # In some versions a few files declare another encoding. They are left out, and a warning says so.
    return Documents(files, on_error="skip", max_chars=max_chars, name=name)


def _is_left_out(name: str) -> bool:
    return name in {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"} or name.startswith(
        (".", "config-", "_sysconfigdata", "_bundled")
    )
