"""Weight files.

`read_weights` takes a safetensors file, or a folder with ``model.safetensors`` or with the shards that
``model.safetensors.index.json`` lists. `read_safetensors` and `write_safetensors` do one file. The format is an 8-byte
little-endian length, a JSON header and the tensors' bytes. Each tensor is read straight into its own array, so a file
costs its own size once. Files that need ``pickle`` are never opened.

The package ``safetensors`` checks this reader and writer in the tests, but is not used here. Its NumPy side cannot read
bfloat16, accepts a name that occurs twice, and does not say which tensor is wrong. It writes to a path only, while
model folders are hashed as they are written; and what its writer takes differs from version to version.

References
----------
huggingface/safetensors, "Format".
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .._arguments import flag
from .._reading import decode, is_name, is_size, kind_of, open_file, parse_json, read_json, read_object, shown
from ..errors import CheckpointError
from .atomic import naming_file
from .folders import write_file

__all__ = ["LateArray", "is_pickle_name", "pickle_error", "read_safetensors", "read_weights", "write_safetensors"]

PathLike = str | os.PathLike[str]

#: The format's own limit on the JSON header.
MAX_HEADER_BYTES = 100_000_000
#: Most axes of a tensor. Arrays of NumPy have no more in any version.
_MOST_AXES = 32

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
#: How the names of other pickles begin that lie beside weights: a run's settings, optimizer, schedule, random state.
_OTHER_PICKLES = ("training_args", "optimizer", "scheduler", "rng_state", "random_states", "scaler", "sampler")
#: First bytes of a torch zip archive, of a pickle of protocol 2 to 5, and of a legacy tar file.
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items() if code != "BF16"}


# ---------------------------------------------------------------------- reading
def read_safetensors(path: PathLike, *, keep_float64: bool = False) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file.

    Parameters
    ----------
    path : path
        The file.
    keep_float64 : bool
        Leave F64 tensors in float64 instead of rounding them to float32.

    Returns
    -------
    dict of str to ndarray
        In the file's order. F32, F16, BF16 and F64 tensors become float32, the first three exactly. Integer and boolean
        tensors keep their type. Every array owns its memory.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, malformed, of an unsupported type, needs ``pickle``, or
        holds an F64 number beyond the range of float32.
    """
    keep_float64 = flag(keep_float64, "keep_float64")
    path = Path(path)
    try:
        with naming_file(path), open_file(path, CheckpointError) as raw:
            file, size = io.BufferedReader(raw), os.fstat(raw.fileno()).st_size  # type: ignore[type-var]
            header, data_start = _read_header(file, size, path)
            entries = _check_entries(header, size - data_start, path)
            tensors = {}
            for name, (code, shape, begin, _) in entries.items():
                file.seek(data_start + begin)
                tensors[name] = _read_tensor(file, code, shape, keep_float64, f"{path}: tensor {shown(name)}")
            return tensors
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    # The first bytes of a pickle can also be the length of a header. After the length of a header comes a brace.
    if path.suffix in _PICKLE_SUFFIXES or (prefix.startswith(_PICKLE_MAGIC) and not _brace_follows(file)):
        raise pickle_error(path)
    if len(prefix) < 8:
        raise CheckpointError(f"{path}: truncated: {size} bytes, too short for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header of {length} bytes, more than {MAX_HEADER_BYTES}; not a safetensors file?"
        )
    if 8 + length > size:
        raise CheckpointError(f"{path}: truncated: header of {length} bytes in a file of {size} bytes")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: header does not begin with '{{'; not a safetensors file?")
    source = f"{path}: header"
    header: dict[str, Any] = parse_json(decode(raw, source, CheckpointError), source, CheckpointError, _no_duplicates)
    header.pop("__metadata__", None)
    return header, 8 + length


def _brace_follows(file: BinaryIO) -> bool:
    position = file.tell()
    following = file.read(1)
    file.seek(position)
    return following == b"{"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {shown(name)} occurs twice")
            seen.add(name)
    return result


def _check_entries(
    header: Mapping[str, Any], data_bytes: int, path: Path
) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Check the header: the tensors must cover the data part without gaps. Name -> (type code, shape, begin, end)."""
    entries = {}
    for name, entry in header.items():
        where = f"{path}: tensor {shown(name)}"
        if not isinstance(entry, dict):
            raise CheckpointError(f"{where}: header entry is a {type(entry).__name__}, expected an object")
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(code, str) or code not in _DTYPES:
            raise CheckpointError(f"{where}: dtype {shown(code)} is not supported")
        if not isinstance(shape, list) or not all(map(is_size, shape)):
            raise CheckpointError(f"{where}: shape {shown(shape)} is not a list of sizes")
        if len(shape) > _MOST_AXES:
            raise CheckpointError(f"{where}: a shape of {len(shape)} axes is not possible; {_MOST_AXES} are the most")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
            raise CheckpointError(f"{where}: data_offsets {shown(offsets)} are not two byte positions")
        begin, end = offsets
        wanted = math.prod(shape) * _DTYPES[code].itemsize
        if end - begin != wanted:
            raise CheckpointError(f"{where}: {end - begin} bytes, expected {wanted} for shape {tuple(shape)} of {code}")
        if end > data_bytes:
            raise CheckpointError(f"{where}: truncated: ends at byte {end} of {data_bytes} present")
        entries[name] = (code, tuple(shape), begin, end)
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {shown(name)}: {what} (begins at byte {begin}, expected {position})")
        position = end
    if position != data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - position} bytes after the last tensor")
    return entries


def _read_tensor(file: BinaryIO, code: str, shape: tuple[int, ...], keep_float64: bool, where: str) -> np.ndarray:
    try:
        raw = np.empty(shape, _DTYPES[code])
    except ValueError as error:
        raise CheckpointError(f"{where}: shape {shape} is not possible ({error})") from None
    if raw.size and file.readinto(raw.reshape(-1).view(np.uint8)) != raw.nbytes:  # type: ignore[attr-defined]
        raise CheckpointError(f"{where}: truncated while being read")
    if code == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if code == "F16":
        return raw.astype(np.float32)
    if code == "F64" and not keep_float64:
        with np.errstate(over="ignore"):
            rounded = raw.astype(np.float32)
        if np.any(np.isinf(rounded) & np.isfinite(raw)):
            raise CheckpointError(f"{where}: holds a number beyond the range of float32")
        return rounded
    return raw.astype(raw.dtype.newbyteorder("="), copy=False)


def read_weights(path: PathLike) -> dict[str, np.ndarray]:
    """Read the weights at `path`: a safetensors file, a shard index, or a folder with either.

    Parameters
    ----------
    path : path
        ``model.safetensors``, ``model.safetensors.index.json`` or the folder that holds one of them.

    Returns
    -------
    dict of str to ndarray
        Tensors as `read_safetensors` returns them, under the names in the file.

    Raises
    ------
    CheckpointError
        If there are no readable weights, a shard is missing, or index and shards disagree.
    """
    path = Path(path)
    if kind_of(path) == "folder":
        for name in ("model.safetensors", "model.safetensors.index.json"):
            if kind_of(path / name) is not None:
                return read_weights(path / name)
        if pickled := [file for file in sorted(path.iterdir()) if is_pickle_name(file)]:
            raise pickle_error(pickled[0])
        raise CheckpointError(f"{path}: holds neither model.safetensors nor model.safetensors.index.json")
    if path.name.endswith(".bin.index.json") and _pickled_shards(path):
        raise pickle_error(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return read_safetensors(path)


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        values = read_json(index, CheckpointError, _no_duplicates)
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file") from None
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no 'weight_map' from names to files")
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not is_name(shard):
            where = f"{index}: tensor {shown(name)}"
            raise CheckpointError(f"{where}: {shown(shard)} is not the name of a file in the same folder")
        expected.setdefault(shard, set()).add(name)
    tensors: dict[str, np.ndarray] = {}
    for shard, names in sorted(expected.items()):
        part = read_safetensors(index.parent / shard)
        if missing := sorted(names - part.keys()):
            raise CheckpointError(
                f"{index.parent / shard}: lacks tensor {shown(missing[0])} that {index.name} says it holds"
            )
        if extra := sorted(part.keys() - names):
            where = f"{index.parent / shard}"
            raise CheckpointError(f"{where}: holds tensor {shown(extra[0])} that {index.name} does not list")
        tensors.update(part)
    return {name: tensors[name] for name in weight_map}


def is_pickle_name(path: Path) -> bool:
    """Whether a file's name is one that pickled weights have."""
    return path.suffix in _PICKLE_SUFFIXES and not path.name.startswith(_OTHER_PICKLES)


def pickle_error(path: Path) -> CheckpointError:
    """An error with the command that converts pickled weights. For a shard or an index, it converts all shards."""
    folder, shards = path.parent, _pickled_shards(path)
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        return CheckpointError(f"{folder / missing[0]}: missing; it is one of {len(shards)} shards of pickled weights")
    target = folder / "model.safetensors"
    files = [str(folder / shard) for shard in shards]
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"parts = [torch.load(file, map_location='cpu', weights_only=True) for file in {files}]; "
        "state = {k: v.clone().contiguous() for part in parts for k, v in part.items()}; "
        f"save_file(state, {str(target)!r}, {{'format': 'pt'}})"
    )
    what = "a pickled PyTorch file" if shards == [path.name] else f"pickled PyTorch files ({len(shards)} shards)"
    return CheckpointError(
        f"{path}: {what}, which can run any code when opened and is not read here. "
        f"Convert it where PyTorch and safetensors are installed:\n    python -c {shlex.quote(code)}"
    )


def _pickled_shards(path: Path) -> list[str]:
    """Names of all files that belong together, by the index or by a shard's own name; or just the name of a file."""
    numbered = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    index = path if numbered is None else path.with_name(f"{numbered[1]}{numbered[3]}.index.json")
    if not index.name.endswith(".index.json"):
        return [path.name]
    try:
        listed = read_object(index, CheckpointError)["weight_map"].values()
        shards = sorted({name for name in listed if is_name(name)})
    except (OSError, CheckpointError, KeyError, AttributeError):
        shards = []
    if not shards and numbered is not None:
        shards = [f"{numbered[1]}-{i:05}-of-{numbered[2]}{numbered[3]}" for i in range(1, int(numbered[2]) + 1)]
    return shards


# ---------------------------------------------------------------------- writing
class LateArray:
    """A tensor for `write_safetensors` that exists only while it is written.

    Parameters
    ----------
    shape : tuple of int
    dtype : data type
    read : callable
        Returns the tensor in this shape, or flat.
    """

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, read: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self.size = shape, np.dtype(dtype), math.prod(shape)
        self._read = read

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self._read().reshape(self.shape), dtype)


def write_safetensors(
    file: PathLike | BinaryIO,
    tensors: Mapping[str, npt.ArrayLike],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: str | None = None,
) -> None:
    """Write tensors as a safetensors file.

    Parameters
    ----------
    file : path or binary file object
        A path is replaced atomically. A file object is written front to back and only needs ``write``, so this function
        can be the content of a file in `mom.files.folders.write_folder`.
    tensors : mapping of str to array_like
        Of a float, integer or boolean type. At most one tensor at a time is copied. A `LateArray` is
        read when its turn comes.
    metadata : mapping of str to str, optional
        Stored under ``__metadata__``.
    dtype : {None, "float32", "bfloat16", "float16"}
        How floating tensors are stored; None keeps their own type. The short types round to nearest even.

    Raises
    ------
    CheckpointError
        If a name or type cannot be stored, or a number is beyond the range of float16.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise CheckpointError(f"dtype: {dtype!r} is not one of None, 'float32', 'bfloat16', 'float16'")
    arrays = {name: value if isinstance(value, LateArray) else np.asarray(value) for name, value in tensors.items()}
    codes = {name: _storage_code(name, array, dtype) for name, array in arrays.items()}
    # With wider types first, every tensor is aligned to the size of its numbers, which helps other readers.
    order = sorted(arrays, key=lambda name: -_DTYPES[codes[name]].itemsize)
    header: dict[str, Any] = {}
    if metadata:
        if bad := [key for key, value in metadata.items() if not isinstance(key, str) or not isinstance(value, str)]:
            raise CheckpointError(f"metadata: key {bad[0]!r} and its value must both be str")
        header["__metadata__"] = dict(metadata)
    position = 0
    for name in order:
        end = position + arrays[name].size * _DTYPES[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": list(arrays[name].shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = shown(text[max(0, error.start - 20) : error.end + 20])
        raise CheckpointError(f"tensors: a name or the metadata hold half of a surrogate pair, near {near}") from None
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER_BYTES:
        raise CheckpointError(f"tensors: the names take {len(raw)} bytes, more than {MAX_HEADER_BYTES}")
    parts = [(arrays[name], codes[name]) for name in order]
    if isinstance(file, (str, os.PathLike)):
        write_file(file, lambda stream: _write_parts(stream, raw, parts))
    else:
        _write_parts(file, raw, parts)


def _storage_code(name: str, array: np.ndarray | LateArray, dtype: str | None) -> str:
    if not isinstance(name, str) or name == "__metadata__":
        raise CheckpointError(f"tensors: {name!r} cannot be the name of a tensor")
    if array.dtype.kind == "f" and dtype is not None:
        if dtype == "float16" and (np.isfinite(array) & (np.abs(array) > np.finfo(np.float16).max)).any():
            raise CheckpointError(f"tensors: {name!r} holds a number beyond the range of float16")
        return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]
    code = _CODES.get(array.dtype.newbyteorder("<"))
    if code is None:
        raise CheckpointError(f"tensors: {name!r} has type {array.dtype}, which safetensors cannot hold")
    return code


def _write_parts(file: BinaryIO, header: bytes, parts: list[tuple[np.ndarray | LateArray, str]]) -> None:
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for value, code in parts:
        array = np.asarray(value)
        stored = _to_bfloat16(array) if code == "BF16" else np.ascontiguousarray(array, _DTYPES[code])
        if stored.size:
            file.write(stored.reshape(-1).view(np.uint8).data)


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Upper halves of float32 numbers, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = ((bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, (upper | np.uint32(0x40)).astype("<u2"), rounded).reshape(array.shape)
