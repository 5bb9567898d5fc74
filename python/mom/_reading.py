"""The one door for files that are read whole: configurations, descriptions, settings, tokenizers, the state of a run.

A file comes through this door only if it is a regular file of a bounded size: no pipe, no device, nothing endless. Then
it must be UTF-8 text and, as asked for, JSON or TOML. Every error names the file. What is wrong with a file is raised
as the exception that the caller gives. What the system refuses (no permission, a bad disk) stays an `OSError`, since it
does not mean that the file is damaged; a missing file is a `FileNotFoundError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from .errors import CheckpointError, MomError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "MAX_BYTES", "check_name", "decode", "is_name", "is_size", "kind_of", "naming_file", "open_file", "parse_json",
    "read_bytes", "read_json", "read_object", "read_text", "read_toml_file", "shown",
]  # fmt: skip

PathLike = str | os.PathLike[str]
Pairs = Callable[[list[tuple[str, Any]]], Any]

#: Largest file that is read, unless the caller says otherwise.
MAX_BYTES = 64 * 1024 * 1024
#: Longest integer in a JSON file, in characters. The state of a random generator has 39 digits.
_LONGEST_INTEGER = 100


# ---------------------------------------------------------------------- values
def shown(value: Any, limit: int = 80) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def is_size(value: Any) -> bool:
    """Whether a value of a JSON file is a number of bytes, elements or tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_name(value: Any) -> bool:
    """Whether a value of a JSON file is the name of a file in the same folder, which the system can have."""
    if not isinstance(value, str) or not value or value in (".", "..") or set(value) & set("/\\\0"):
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


# ---------------------------------------------------------------------- opening
@contextlib.contextmanager
def naming_file(path: PathLike) -> Iterator[None]:
    """Put the file's name into an OSError that has none, such as writing to an open file on a full disk raises."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def check_name(path: PathLike, error: type[MomError] = CheckpointError) -> None:
    """Raise if no file can have this name: it holds a NUL, or a character that the system cannot encode."""
    try:
        if b"\0" not in os.fsencode(path):
            return
        reason = "it holds a NUL"
    except UnicodeEncodeError:
        reason = "it holds half of a surrogate pair"
    raise error(f"{os.fspath(path)!r}: cannot be the name of a file: {reason}")


def kind_of(path: PathLike) -> str | None:
    """``"file"``, ``"folder"``, ``"pipe"``, ``"device"`` or ``"socket"``, after links; None if nothing is there.

    Raises
    ------
    OSError
        If the system cannot tell, as in a folder that may not be read. (`Path.is_file` may answer False then.)
    CheckpointError
        If no file can have this name.
    """
    check_name(path)
    try:
        return _kind(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def open_file(path: PathLike, error: type[MomError], limit: int | None = None, what: str = "") -> BinaryIO:
    """Open a regular file for reading.

    Parameters
    ----------
    path : path
    error : type
        Raised if it is no regular file, or too large.
    limit : int, optional
        Largest number of bytes.
    what : str
        What the limit is for, in words.
    """
    check_name(path, error)
    _check_kind(path, os.stat(path), error, limit, what)
    # A pipe that has taken the file's place in between must not block.
    file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    try:
        with naming_file(path):
            found = os.fstat(file.fileno())
        _check_kind(path, found, error, limit, what)
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(path: PathLike, found: os.stat_result, error: type[MomError], limit: int | None, what: str) -> None:
    if (kind := _kind(found.st_mode)) != "file":
        raise error(f"{path}: is a {kind}, expected a file")
    if limit is not None and found.st_size > limit:
        raise error(f"{path}: {found.st_size} bytes, more than the limit of {limit}{what and f' for {what}'}")


# ---------------------------------------------------------------------- reading
def read_bytes(path: PathLike, error: type[MomError], limit: int = MAX_BYTES, what: str = "") -> bytes:
    """The content of a regular file of at most `limit` bytes; see `open_file`."""
    parts, size = [], 0
    with naming_file(path), open_file(path, error, limit, what) as file:
        while part := file.read(1 << 20):
            parts.append(part)
            size += len(part)
            if size > limit:  # it grows, or the system does not know its size
                raise error(f"{path}: more than the limit of {limit} bytes{what and f' for {what}'}")
    return b"".join(parts)


def read_text(path: PathLike, error: type[MomError], limit: int = MAX_BYTES, what: str = "") -> str:
    """The content of a UTF-8 file; see `open_file`."""
    return decode(read_bytes(path, error, limit, what), str(path), error)


def decode(raw: bytes, source: str, error: type[MomError]) -> str:
    """UTF-8 text. The message begins with `source`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{source}: not UTF-8 text (byte {problem.start})") from None


def read_json(path: PathLike, error: type[MomError], pairs: Pairs | None = None) -> Any:
    """The value in a JSON file; see `open_file` and `parse_json`."""
    return parse_json(read_text(path, error), str(path), error, pairs)


def read_object(path: PathLike, error: type[MomError], pairs: Pairs | None = None) -> dict[str, Any]:
    """The object in a JSON file; see `read_json`."""
    values = read_json(path, error, pairs)
    if not isinstance(values, dict):
        raise error(f"{path}: expected a JSON object, got a {type(values).__name__}")
    return values


def parse_json(
    text: str, source: str, error: type[MomError], pairs: Pairs | None = None, flaw: str = "not valid JSON"
) -> Any:
    """The value of a JSON text. Non-finite numbers are allowed.

    Parameters
    ----------
    text : str
    source : str
        Begins the message.
    error : type
        Raised if the text is not JSON, is nested too deeply, or holds an integer of more than 100 characters.
    pairs : callable, optional
        Makes the value of an object from its pairs; see `json.loads`.
    flaw : str
        What the message calls the problem.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=_integer)
    except RecursionError:
        raise error(f"{source}: {flaw} (nested too deeply)") from None
    except ValueError as problem:
        raise error(f"{source}: {flaw} ({problem})") from None


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_toml_file(path: PathLike, error: type[MomError]) -> dict[str, Any]:
    """The table in a TOML file; see `open_file`."""
    text = decode(read_bytes(path, error), f"{path}: not valid TOML", error)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{path}: not valid TOML (nested too deeply)") from None
    except ValueError as problem:  # also a number of too many digits, which is no TOMLDecodeError
        raise error(f"{path}: not valid TOML ({problem})") from None
