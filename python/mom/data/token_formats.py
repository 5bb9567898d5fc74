"""How the ids lie in a token file: told by its description, by its own header, or by the bytes themselves.

`layout_of` decides, in this order:

1. A description beside the file: ``NAME.json`` for a file ``NAME``, or an entry for ``NAME`` in ``meta.json``.
2. The header of NumPy's ``.npy`` format or of llm.c's token files. The name of the file does not matter.
3. Nothing else: ids of two bytes each, as nanoGPT writes them. The bytes are searched for signs of something else.
   Text, other formats, wider or narrower ids, and ids outside the vocabulary are errors.
"""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from .._reading import shown
from ..errors import DataError
from ..file_fields import read_object

__all__ = ["DTYPES", "Layout", "description_file", "layout_of", "read_description"]

#: Types of ids that a description or an argument can name; little-endian.
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

_NPY = b"\x93NUMPY"
#: llm.c's files begin with 256 int32: a number for the kind of file, a version, and the number of tokens.
_LLMC_HEADER_BYTES = 1024
_LLMC_TOKENS = {(20240520, 1): DTYPES["uint16"], (20240801, 7): DTYPES["uint32"]}
_LLMC_OTHERS = {20240326: "a model", 20240327: "an optimizer state", 20240522: "an evaluation file"}
#: Beginnings of files of other kinds.
_FOREIGN: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        ("a zip archive (as .npz files and PyTorch's are)", rb"PK\x03\x04"),
        ("a pickle (which PyTorch's older files are, too)", rb"\x80([\x04\x05]\x95.{6}\x00\x00|[\x02\x03][\x8a}\](c])"),
        ("a Parquet file", rb"PAR1"),
        ("an Arrow file", rb"ARROW1\x00|\xff\xff\xff\xff.{3}\x00\x10\x00\x00\x00"),
        ("a safetensors file", rb".{5}\x00\x00\x00\{[\"}\s]"),
        ("an HDF5 file", rb"\x89HDF\r\n\x1a\n"),
        ("a gzip file", rb"\x1f\x8b\x08[\x00-\x1f]"),
        ("a Zstandard file", rb"\x28\xb5\x2f\xfd"),
        ("an xz file", rb"\xfd7zXZ\x00"),
        ("a bzip2 file", rb"BZh[1-9]1AY&SY"),
        ("an lz4 file", rb"\x04\x22\x4d\x18"),
        ("the index of a Megatron data set", rb"(MMIDIDX|TNTIDX)\x00\x00"),
        ("a GGUF file", rb"GGUF[\x01-\x0f]\x00"),
        ("an SQLite file", rb"SQLite format 3\x00"),
        ("an Avro file", rb"Obj\x01"),
        ("text in UTF-16", rb"\xff\xfe.\x00.\x00|\xfe\xff\x00.\x00."),
    )
)
#: Bytes at the beginning of a file, and in its middle and at its end, that are searched for signs.
_SAMPLE_BYTES = 1 << 18
#: So few ids cannot be told from text.
_FEWEST_IDS_OF_TEXT = 8
_FEWEST_IDS_OF_BYTES = 64
#: No known vocabulary has ids of 2**20 or more, so the upper half of an id of four bytes is less than this.
_UPPER_HALF = 16


class Layout(NamedTuple):
    """Where the ids of a token file lie.

    Attributes
    ----------
    dtype : dtype
        Type of an id.
    offset : int
        Bytes before the first id.
    tokens : int
        Number of ids, which fill the rest of the file.
    vocab_size : int or None
        What the description says.
    """

    dtype: np.dtype[Any]
    offset: int
    tokens: int
    vocab_size: int | None


def description_file(path: Path) -> Path:
    """The description of a token file under its own name: ``train.bin.json`` for ``train.bin``."""
    return path.with_name(f"{path.name}.json")


def read_description(path: Path) -> tuple[dict[str, Any], Path]:
    """What the file's own description, or else ``meta.json``, says of a token file; empty if neither knows the file.

    Returns
    -------
    description : dict
        ``dtype``, and where they are known ``vocab_size`` and ``tokens``, checked; and all other values of the file.
    source : Path
        The file that says so.

    Raises
    ------
    DataError
        If a description is malformed.
    """
    own, shared = description_file(path), path.with_name("meta.json")
    described, others = _said_of(path, own), _said_of(path, shared)
    for name in ("dtype", "vocab_size", "tokens"):
        if name in described and name in others and described[name] != others[name]:
            raise DataError(f"{shared}: {name} is {shown(others[name])}, but {own.name} says {shown(described[name])}")
    return (described, own) if described else (others, shared)


def _said_of(path: Path, source: Path) -> dict[str, Any]:
    """What one description says of a token file: nothing if it is a ``meta.json`` without an entry for the file."""
    values = read_object(source, DataError)
    files = values.get("files")
    entry = files.get(path.name) if isinstance(files, dict) else None
    if not values or (entry is None and source.name == "meta.json"):
        return {}
    found = {**values, **(entry if isinstance(entry, dict) else {})}
    if source.name == "meta.json" and None in (found.get("tokens"), found.get("vocab_size")):
        raise DataError(f"{source}: expected dtype, vocab_size, and the number of tokens of {path.name}")
    _check_description(found, source)
    return found


def _check_description(found: dict[str, Any], source: Path) -> None:
    dtype = found.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DataError(f"{source}: dtype is {shown(dtype)}, expected 'uint16' or 'uint32'")
    for name in ("vocab_size", "tokens"):
        value = found.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise DataError(f"{source}: {name} is {shown(value)}, expected a positive integer")


def layout_of(path: Path, file: int, dtype: str | None, vocab_size: int | None) -> Layout:
    """The layout of an open token file.

    Parameters
    ----------
    path : Path
        Its name, for the description and for messages.
    file : int
        Its descriptor.
    dtype : {None, "uint16", "uint32"}
        What the caller says the ids are. A description or a header must agree.
    vocab_size : int or None
        Bound on the ids, for a file that nothing describes.

    Raises
    ------
    DataError
        If the file is empty, cut, of another kind or not as described, or if nothing tells the width of its ids.
    """
    size = os.fstat(file).st_size
    if size == 0:
        raise DataError(f"{path}: empty")
    description, source = read_description(path)
    if description:
        said = description["dtype"]
        if dtype is not None and said != dtype:
            raise DataError(f"dtype: {dtype}, but {source} says {said}")
        tokens = _count(path, size, DTYPES[said])
        wanted = description.get("tokens")
        if wanted is not None and tokens != wanted:
            raise DataError(f"{path}: {tokens} tokens, but {source.name} says {wanted}")
        return Layout(DTYPES[said], 0, tokens, description.get("vocab_size"))
    head = os.pread(file, _SAMPLE_BYTES, 0)
    layout = _npy_layout(path, head, size) if head.startswith(_NPY) else _llmc_layout(path, head, size)
    if layout is not None:
        if dtype is not None and layout.dtype.newbyteorder("<") != DTYPES[dtype]:
            raise DataError(f"dtype: {dtype}, but the header of {path} says {layout.dtype.name}")
        return layout
    for kind, pattern in _FOREIGN:
        if pattern.match(head):
            raise DataError(f"{path}: {kind}, not token ids. 'mom prepare' makes token files from text")
    if dtype is None:
        _check_narrow(path, file, head, size, vocab_size)
    found = DTYPES[dtype or "uint16"]
    return Layout(found, 0, _count(path, size, found), None)


def _count(path: Path, size: int, dtype: np.dtype[Any]) -> int:
    if size % dtype.itemsize:
        raise DataError(f"{path}: truncated: {size} bytes are not a multiple of {dtype.itemsize}")
    return size // dtype.itemsize


# ------------------------------------------------------------------ headers
def _npy_layout(path: Path, head: bytes, size: int) -> Layout:
    stream = io.BytesIO(head)
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, _, dtype = read_header(stream)
    except Exception as error:  # NumPy parses the header as Python code, so a damaged one raises all kinds
        raise DataError(f"{path}: begins like a .npy file, but its header is not readable ({error!r})") from None
    if len(shape) != 1 or shape[0] < 1 or dtype.kind not in "iu":
        raise DataError(
            f"{path}: a .npy file of {dtype} and shape {shape}, expected integers of shape (N,): "
            "numpy.save(path, ids.astype(numpy.uint32).ravel())"
        )
    wanted = stream.tell() + shape[0] * dtype.itemsize
    if wanted != size:
        raise DataError(f"{path}: {size} bytes, but the header of this .npy file says {wanted}")
    return Layout(dtype, stream.tell(), shape[0], None)


def _llmc_layout(path: Path, head: bytes, size: int) -> Layout | None:
    if len(head) < 12:
        return None
    kind, version, tokens = struct.unpack("<3i", head[:12])
    if kind in _LLMC_OTHERS:
        raise DataError(f"{path}: {_LLMC_OTHERS[kind]} of llm.c, not token ids")
    if kind not in {known for known, _ in _LLMC_TOKENS}:
        return None
    dtype = _LLMC_TOKENS.get((kind, version))
    if dtype is None:
        raise DataError(f"{path}: a token file of llm.c of version {version}, which is not known")
    if tokens < 1 or _LLMC_HEADER_BYTES + tokens * dtype.itemsize != size:
        raise DataError(f"{path}: {size} bytes do not hold the {tokens} tokens that its header (of llm.c) says")
    return Layout(dtype, _LLMC_HEADER_BYTES, tokens, None)


# ------------------------------------------------------------------ without a description
def _check_narrow(path: Path, file: int, head: bytes, size: int, vocab_size: int | None) -> None:
    """Raise if there are signs that a file without description and header does not hold ids of two bytes."""
    _check_not_text(path, head)
    if size % 2:
        return  # the caller says that an id is cut
    starts = sorted({max(0, start) // 8 * 8 for start in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES)})
    parts = {start: np.frombuffer(os.pread(file, _SAMPLE_BYTES + 8, start), "<u2") for start in starts}
    ids = np.concatenate(list(parts.values()))
    if size % 4 == 0 and (wider := _looks_wider(ids, path)):
        raise DataError(f"{path}: nothing tells the width of its ids; they may be {wider}")
    if size >= 2 * _FEWEST_IDS_OF_BYTES and _looks_like_bytes(ids):
        raise DataError(
            f"{path}: looks like text or ids of one byte, not uint16. 'mom prepare' makes token files from text; "
            f"for ids, {_ways_out(path, 'uint16')}"
        )
    for start, found in parts.items():
        if vocab_size is not None and int(found.max()) >= vocab_size:
            where = int(np.argmax(found >= vocab_size))
            raise DataError(
                f"{path}: id {found[where]} at position {start // 2 + where} is not less than vocab_size = "
                f"{vocab_size}. Nothing describes the file, so it was read as uint16. {_ways_out(path, 'uint32')}"
            )


def _check_not_text(path: Path, head: bytes) -> None:
    if len(head) < 2 * _FEWEST_IDS_OF_TEXT or b"\0" in head:
        return
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:  # else the sample ends within a character
            return
    raise DataError(f"{path}: text, not token ids. 'mom prepare' makes token files from text")


def _looks_wider(ids: npt.NDArray[np.uint16], path: Path) -> str | None:
    """What the numbers may be if they are parts of wider ids: then every second number is very small."""
    lower, upper = ids[0::2], ids[1::2]
    if upper.max() >= _UPPER_HALF or (lower.max() < _UPPER_HALF and upper.max() > 0):
        return None
    if len(ids) % 4 == 0 and not upper.any() and not ids[2::4].any() and ids.any():
        return f"int64, which numpy.fromfile({path.name!r}, 'int64').astype('uint32') makes narrower"
    return f"uint32 or uint16. {_ways_out(path, 'uint32')}"


def _looks_like_bytes(ids: npt.NDArray[np.uint16]) -> bool:
    """Whether all bytes are below 128 though ids exceed one byte. Half of all ids of two bytes have a larger byte."""
    return bool(ids.max() >= 256 and not (ids & 0x8080).any())


def _ways_out(path: Path, dtype: str) -> str:
    beside = f'{description_file(path).name} beside it with {{"dtype": "{dtype}"}}'
    return f"Say what it holds: TokenFile(path, dtype='{dtype}'), or a file {beside}"
