"""Compressed files and archives of files, read as streams. Nothing is unpacked on the disk.

The kind of a file is told by the end of its name: ``.gz``, ``.xz`` or ``.zst`` for a compressed one, ``.tar`` before it
for an archive. OpenWebText is an archive of files that end in ``.xz`` and are archives themselves, so what comes out of
``.xz`` is looked at, too.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from .._extras import need
from ..errors import DataError

__all__ = ["ARCHIVES", "COMPRESSED", "DAMAGED", "files_in", "is_archive_in_xz", "unpacked"]

#: Exceptions of the libraries for a stream that ends too early or is not what its name says.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError)


class _Zstd(io.RawIOBase):
    """The content of a Zstandard stream. The package's own reader does not notice that a stream ends too early."""

    def __init__(self, stream: BinaryIO) -> None:
        self._library = need("zstandard", "A file that ends in .zst")
        self._stream, self._unread, self._ready = stream, b"", b""
        self._frame: Any = None  # what is left of it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not (data := self._unread or self._stream.read(1 << 16)):
                if self._frame is not None:
                    raise EOFError("the stream ends too early")
                return 0
            self._unpack(data)
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _unpack(self, data: bytes) -> None:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(data)
        except self._library.ZstdError as error:
            raise EOFError(str(error)) from None
        self._unread = self._frame.unused_data
        if self._frame.eof:
            self._frame = None


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    ".xz": lzma.LZMAFile,
    ".zst": _Zstd,
}
COMPRESSED = tuple(_OPENERS)
ARCHIVES = (".tar", ".tgz", *(f".tar{suffix}" for suffix in COMPRESSED))

#: Archives within archives beyond this depth are an error: they are damaged, or meant to fill memory.
_DEEPEST = 4
#: Where a header of a tar archive says that it is one.
_MAGIC = slice(257, 262)


def unpacked(name: str, stream: BinaryIO) -> tuple[str, BinaryIO]:
    """The content of a file that may be compressed, and the name without the ending that said so."""
    if name.endswith(".tgz"):
        name = f"{name.removesuffix('.tgz')}.tar.gz"
    for suffix, opener in _OPENERS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), cast(BinaryIO, io.BufferedReader(opener(stream)))
    return name, stream


def files_in(name: str, stream: BinaryIO, depth: int = 0) -> Iterator[tuple[str, BinaryIO]]:
    """Names and contents of the files in a stream: of an archive all that are in it, of any other file itself.

    A content must be read before the next one is asked for.

    Raises
    ------
    DataError
        If archives lie within archives many times over.
    One of `DAMAGED`
        If a stream is truncated or corrupted.
    """
    inner, content = unpacked(name, stream)
    is_archive = inner.endswith(".tar") or (name.endswith(".xz") and _is_archive(content))
    if not is_archive:
        yield inner, content
        return
    if depth == _DEEPEST:
        raise DataError(f"{name}: more than {_DEEPEST} archives within each other")
    with tarfile.open(fileobj=content, mode="r|") as archive:
        for member in archive:
            if member.isfile():
                found = archive.extractfile(member)
                assert found is not None
                yield from files_in(f"{inner}/{member.name}", cast(BinaryIO, found), depth + 1)


def is_archive_in_xz(file: BinaryIO) -> bool:
    """Whether a file that ends in ``.xz`` holds an archive."""
    try:
        return _is_archive(io.BufferedReader(lzma.LZMAFile(file)))
    except (EOFError, lzma.LZMAError):
        return False


def _is_archive(content: Any) -> bool:
    return bool(content.peek(512)[_MAGIC] == b"ustar")
