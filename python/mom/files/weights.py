"""Weight files and the names of weights.

Files
    `read_weights` takes a safetensors file, or a folder with ``model.safetensors`` or with the
    shards that ``model.safetensors.index.json`` lists. `read_safetensors` and `write_safetensors`
    do one file. The format is an 8-byte little-endian length, a JSON header and the tensors'
    bytes; it is read here rather than through the ``safetensors`` package because NumPy has no
    bfloat16 and because every malformed header has to end in a message that says what is wrong.
    Each tensor is read straight into its own array, so a file costs its own size once. Files that
    need ``pickle`` are never opened.

Names
    ``"reference"``    the published Mixture-of-Modules: ``transformer.h.1.mot_ffn.c_fc.0.weight``
    ``"huggingface"``  GPT-2: ``transformer.h.1.mlp.c_fc.weight`` (models without blocks only)
    ``"canonical"``    what this package uses: GPT-2's names for a plain GPT-2, else the reference's
    ``"bare"``         canonical names without the leading ``transformer.``

    `canonical_names` lists names and shapes in order, `rename` goes from canonical names to
    another naming, `detect_and_canonicalise` accepts all of them, and `vanilla_mapping` says which
    tensor of a plain GPT-2 becomes which tensor of a Mixture-of-Modules.

References
----------
Gong et al., Mixture-of-Modules, arXiv:2407.06677. The format: huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..errors import CheckpointError
from .folders import write_file

__all__ = [
    "canonical_names",
    "detect_and_canonicalise",
    "read_safetensors",
    "read_weights",
    "rename",
    "vanilla_mapping",
    "write_safetensors",
]

PathLike = str | os.PathLike[str]
Value = TypeVar("Value")

#: The format's own limit on the JSON header.
MAX_HEADER_BYTES = 100_000_000

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
#: Beginnings of the names of pickles beside weights: settings of a run, its optimizer, schedule and random state.
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
        In the file's order. F32, F16, BF16 and F64 tensors as float32 (the first three exactly);
        integer and boolean tensors in their own type. Every array owns its memory.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, malformed, of an unsupported type, needs ``pickle``, or
        holds an F64 number beyond the range of float32.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, data_start = _read_header(file, size, path)
            entries = _check_entries(header, size - data_start, path)
            tensors = {}
            for name, (code, shape, begin, _) in entries.items():
                file.seek(data_start + begin)
                tensors[name] = _read_tensor(file, code, shape, keep_float64, f"{path}: tensor {name!r}")
            return tensors
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder, expected a safetensors file") from None


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    prefix = file.read(8)
    # The first bytes of a pickle can also be the length of a header: what follows a header's length is a brace.
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
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: header is not UTF-8 ({error})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not valid JSON ({error})") from None
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
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_entries(
    header: Mapping[str, Any], data_bytes: int, path: Path
) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Check the header: name -> (type code, shape, begin, end); the tensors must tile the data part."""
    entries = {}
    for name, entry in header.items():
        where = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict):
            raise CheckpointError(f"{where}: header entry is a {type(entry).__name__}, expected an object")
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(code, str) or code not in _DTYPES:
            raise CheckpointError(f"{where}: dtype {code!r} is not supported")
        if not isinstance(shape, list) or not all(map(_is_size, shape)):
            raise CheckpointError(f"{where}: shape {shape!r} is not a list of sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            raise CheckpointError(f"{where}: data_offsets {offsets!r} are not two byte positions")
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
            raise CheckpointError(f"{path}: tensor {name!r}: {what} (begins at byte {begin}, expected {position})")
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
        As `read_safetensors` gives them, with the names of the file.

    Raises
    ------
    CheckpointError
        If there are no readable weights, a shard is missing, or index and shards disagree.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("model.safetensors", "model.safetensors.index.json"):
            if (path / name).is_file():
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
        values = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except FileNotFoundError:
        raise CheckpointError(f"{index}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: not valid JSON ({error})") from None
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no 'weight_map' from names to files")
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or shard != os.path.basename(shard) or shard in (".", ".."):
            raise CheckpointError(f"{index}: tensor {name!r}: {shard!r} is not the name of a file in the same folder")
        expected.setdefault(shard, set()).add(name)
    tensors: dict[str, np.ndarray] = {}
    for shard, names in sorted(expected.items()):
        part = read_safetensors(index.parent / shard)
        if missing := sorted(names - part.keys()):
            raise CheckpointError(
                f"{index.parent / shard}: lacks tensor {missing[0]!r} that {index.name} says it holds"
            )
        if extra := sorted(part.keys() - names):
            raise CheckpointError(f"{index.parent / shard}: holds tensor {extra[0]!r} that {index.name} does not list")
        tensors.update(part)
    return {name: tensors[name] for name in weight_map}


def is_pickle_name(path: Path) -> bool:
    """Whether a file has a name that pickled weights go by."""
    return path.suffix in _PICKLE_SUFFIXES and not path.name.startswith(_OTHER_PICKLES)


def pickle_error(path: Path) -> CheckpointError:
    """That pickled weights are not read, with the command that converts them: of a shard (or index), all of them."""
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
        f"Convert it where PyTorch is installed:\n    python -c {shlex.quote(code)}"
    )


def _pickled_shards(path: Path) -> list[str]:
    """Names of all files that belong together, as the index or a shard's own name says; a whole file stands alone."""
    numbered = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})(\.\w+)", path.name)
    index = path if numbered is None else path.with_name(f"{numbered[1]}{numbered[3]}.index.json")
    if not index.name.endswith(".index.json"):
        return [path.name]
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({name for name in listed if name == os.path.basename(name)})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        shards = []
    if not shards and numbered is not None:
        shards = [f"{numbered[1]}-{i:05}-of-{numbered[2]}{numbered[3]}" for i in range(1, int(numbered[2]) + 1)]
    return shards


# ---------------------------------------------------------------------- writing
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
        Written front to back; a file object needs ``write`` only, so that this function can be the
        content of a file in `mom.files.folders.write_folder`. A path is replaced atomically.
    tensors : mapping of str to array_like
        Of a float, integer or boolean type. One tensor at a time is copied, if at all.
    metadata : mapping of str to str, optional
        Stored under ``__metadata__``.
    dtype : {None, "float32", "bfloat16", "float16"}
        What floating tensors are stored as; None keeps their own type. The short ones round to nearest even.

    Raises
    ------
    CheckpointError
        If a name or type cannot be stored, or a number is beyond the range of float16.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise CheckpointError(f"dtype: {dtype!r} is not one of None, 'float32', 'bfloat16', 'float16'")
    arrays = {name: np.asarray(value) for name, value in tensors.items()}
    codes = {name: _storage_code(name, array, dtype) for name, array in arrays.items()}
    # Wider types first keeps every tensor aligned to its own size, as the format's readers like it.
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
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER_BYTES:
        raise CheckpointError(f"tensors: the names take {len(raw)} bytes, more than {MAX_HEADER_BYTES}")
    parts = [(arrays[name], codes[name]) for name in order]
    if isinstance(file, (str, os.PathLike)):
        write_file(file, lambda stream: _write_parts(stream, raw, parts))
    else:
        _write_parts(file, raw, parts)


def _storage_code(name: str, array: np.ndarray, dtype: str | None) -> str:
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


def _write_parts(file: BinaryIO, header: bytes, parts: list[tuple[np.ndarray, str]]) -> None:
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for array, code in parts:
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


# ---------------------------------------------------------------------- names
#: Tensors of one layer: GPT-2's name, the reference's name.
_LAYER_NAMES = (
    ("ln_1", "mot_attn.attention_layernorm"),
    ("attn.c_attn", "mot_attn.c_attn"),
    ("attn.c_proj", "mot_attn.c_proj"),
    ("ln_2", "mot_ffn.ffn_layernorm"),
    ("mlp.c_fc", "mot_ffn.c_fc"),
    ("mlp.c_proj", "mot_ffn.c_proj"),
)
_BUFFER = re.compile(r"h\.\d+\.(attn|mot_attn)\.(\d+\.)?(bias|masked_bias)")


def canonical_names(config: MoMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters of a model, in the order in which this package keeps them.

    Embeddings, then each place of the body (attention half, then feed-forward half; a routed half
    ends with its router), then the final LayerNorm, then the classification head if there is one.
    The language-model head is tied to ``transformer.wte.weight``. ``c_attn``, ``c_fc`` and ``c_proj``
    are stored [in, out], router and ``score`` weights [out, in].

    Examples
    --------
    >>> from mom.config import MoMConfig
    >>> names = canonical_names(MoMConfig.vanilla(1, vocab_size=10, n_positions=8, n_embd=4, n_head=2))
    >>> list(names)[2], names["transformer.h.0.attn.c_attn.weight"]
    ('transformer.h.0.ln_1.weight', (4, 12))
    """
    width, inner = config.n_embd, config.inner_size
    linear = {
        "c_attn": (width, 3 * width), "attn_proj": (width, width), "c_fc": (width, inner), "ffn_proj": (inner, width),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, width),
        "transformer.wpe.weight": (config.n_positions, width),
    }
    for place, kind in enumerate(config.places()):
        for half, tensors in (("attn", _LAYER_NAMES[:3]), ("ffn", _LAYER_NAMES[3:])):
            modules = _modules(config, kind, half)
            for gpt2, reference in tensors:
                base = f"transformer.h.{place}.{gpt2 if config.is_vanilla else reference}"
                last = gpt2.rsplit(".", 1)[-1]
                shape = linear.get(f"{half}_proj" if last == "c_proj" else last)
                for module in [""] if modules == 1 else [f".{m}" for m in range(modules)]:
                    shapes[f"{base}{module}.weight"] = shape or (width,)
                    shapes[f"{base}{module}.bias"] = shape[1:] if shape else (width,)
            if modules > 1:
                router = _router_shapes(config, half)
                shapes.update({f"transformer.h.{place}.mot_{half}.router.{k}": v for k, v in router.items()})
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (width,)
    if config.num_labels is not None:
        shapes["score.weight"] = (config.num_labels, width)
    return shapes


def _modules(config: MoMConfig, kind: str, half: str) -> int:
    if kind == "anchor":
        return 1
    return config.num_attn if half == "attn" else config.num_ffn


def _router_shapes(config: MoMConfig, half: str) -> dict[str, tuple[int, ...]]:
    choices, hidden, width = config.num_choices(half), config.router_dim, config.n_embd
    if config.router_kind == "naive":
        return {
            "router.0.weight": (hidden, width), "router.0.bias": (hidden,),
            "router.2.weight": (choices, hidden), "router.2.bias": (choices,),
        }  # fmt: skip
    gates = 4 if config.router_random else 3
    return {
        "router.weight": (choices, hidden), "router.bias": (choices,),
        "h2h.weight": (gates * hidden, hidden), "h2h.bias": (gates * hidden,),
        "x2h.weight": (gates * hidden, width), "x2h.bias": (gates * hidden,),
    }  # fmt: skip


def _gpt2_to_reference(name: str) -> str:
    """The reference's name of a plain GPT-2's tensor (only the part after ``h.<i>.`` differs)."""
    match = re.fullmatch(r"(transformer\.h\.\d+\.)(.+)\.(weight|bias)", name)
    if match is None:
        return name
    return f"{match[1]}{dict(_LAYER_NAMES)[match[2]]}.{match[3]}"


def _names_in(config: MoMConfig, naming: str) -> dict[str, str]:
    """Canonical name -> name in `naming`, in canonical order."""
    names = canonical_names(config)
    if naming == "canonical" or (naming == "huggingface" and config.is_vanilla):
        return {name: name for name in names}
    if naming == "reference":
        return {name: _gpt2_to_reference(name) if config.is_vanilla else name for name in names}
    if naming == "bare":
        return {name: name.removeprefix("transformer.") for name in names}
    if naming == "huggingface":
        raise CheckpointError("to: 'huggingface' names exist only for a plain GPT-2; this model has blocks")
    raise CheckpointError(f"to: {naming!r} is not one of 'canonical', 'reference', 'huggingface', 'bare'")


def rename(tensors: Mapping[str, Value], config: MoMConfig, to: str = "canonical") -> dict[str, Value]:
    """Go from canonical names to another naming.

    Parameters
    ----------
    tensors : mapping
        Canonical name to anything (weights, gradients, shapes); need not be complete.
    config : MoMConfig
        The model.
    to : {"canonical", "reference", "huggingface", "bare"}
        The naming wanted, see the module's description.

    Returns
    -------
    dict
        The same values in the same order under the other names.

    Raises
    ------
    CheckpointError
        For an unknown name or naming, or ``"huggingface"`` and a model with blocks.
    """
    table = _names_in(config, to)
    if unknown := [name for name in tensors if name not in table]:
        raise CheckpointError(f"tensors: {unknown[0]!r} is not a canonical name of this model")
    return {table[name]: value for name, value in tensors.items()}


def detect_and_canonicalise(
    tensors: Mapping[str, np.ndarray],
    config: MoMConfig,
    source: str = "weights",
    *,
    allow_missing: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Bring weights under any known naming to canonical names, types and order.

    Accepts the reference's and Hugging Face's names, each with or without ``transformer.``. Attention
    mask buffers are dropped, and so is ``lm_head.weight`` after a check that it equals the embedding.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As read from a file.
    config : MoMConfig
        The model the weights are meant for.
    source : str
        File or folder for messages.
    allow_missing : collection of str
        Canonical names that may be absent, such as ``"score.weight"`` when fine-tuning begins.

    Returns
    -------
    dict of str to ndarray of float32
        C-contiguous, in the order of `canonical_names`. Arrays that already are so are not copied.

    Raises
    ------
    CheckpointError
        Listing missing, unexpected and wrongly shaped tensors, or for a head that is not tied.
    """
    shapes = canonical_names(config)
    canonical_of = {name.removeprefix("transformer."): name for name in shapes}
    canonical_of.update({v.removeprefix("transformer."): k for k, v in _names_in(config, "reference").items()})

    found: dict[str, np.ndarray] = {}
    found_as: dict[str, str] = {}
    head: np.ndarray | None = None
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        bare = name.removeprefix("transformer.")
        if _BUFFER.fullmatch(bare):
            continue
        if bare == "lm_head.weight":
            head = tensor
        elif (canonical := canonical_of.get(bare)) is None:
            unexpected.append(name)
        elif canonical in found:
            raise CheckpointError(f"{source}: {found_as[canonical]!r} and {name!r} are the same tensor")
        else:
            found[canonical], found_as[canonical] = tensor, name

    problems = []
    missing = [name for name in shapes if name not in found and name not in allow_missing]
    for label, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{len(names)} {label}: {_listing(names)}")
    wrong = []
    for name, tensor in found.items():
        if tensor.shape != shapes[name]:
            hint = " (transposed?)" if tensor.shape == shapes[name][::-1] else ""
            wrong.append(f"{found_as[name]} has shape {tensor.shape}, expected {shapes[name]}{hint}")
        elif tensor.dtype.kind != "f":
            wrong.append(f"{found_as[name]} has type {tensor.dtype}, expected a floating type")
    if wrong:
        problems.append(f"{len(wrong)} wrong: {_listing(wrong)}")
    if problems:
        if not config.is_vanilla and any(re.search(r"\bh\.\d+\.(ln_1|attn|mlp)\.", name) for name in unexpected):
            problems.append("these are the names of a plain GPT-2, which MoM.from_vanilla takes")
        raise CheckpointError(f"{source}: does not fit the configuration; " + "; ".join(problems))
    embedding = found.get("transformer.wte.weight")
    if head is not None and embedding is not None and not np.array_equal(head, embedding, equal_nan=True):
        raise CheckpointError(f"{source}: lm_head.weight differs from wte.weight; only a tied head is supported")
    return {name: np.ascontiguousarray(found[name], np.float32) for name in shapes if name in found}


def _listing(items: list[str], limit: int = 8) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


# ---------------------------------------------------------------------- phase two
def vanilla_mapping(
    config: MoMConfig, copy_final_norm: bool | None = None, copy_single_modules: bool | None = None
) -> list[tuple[str, str]]:
    """Which tensor of a plain GPT-2 starts which tensor of a Mixture-of-Modules.

    Layer j of the layers that belong to a block becomes its attention module j and its feed-forward
    module j, as far as the pools go; anchor layers and embeddings are copied; routers start fresh.

    Parameters
    ----------
    config : MoMConfig
        The Mixture-of-Modules; the plain GPT-2 is ``config.vanilla_config()``.
    copy_final_norm : bool, optional
        Whether ``ln_f`` is copied; by default ``config.copy_final_norm``.
    copy_single_modules : bool, optional
        Whether a half with one module gets the block's first layer; by default
        ``config.copy_single_modules``.

    Returns
    -------
    list of (str, str)
        Canonical name in the Mixture-of-Modules, canonical name in the plain GPT-2; in the order of
        `canonical_names`.

    Notes
    -----
    The published reference copies neither ``ln_f`` nor halves with a single module.
    """
    copy_final_norm = config.copy_final_norm if copy_final_norm is None else copy_final_norm
    copy_single_modules = config.copy_single_modules if copy_single_modules is None else copy_single_modules
    pairs = [(name, name) for name in ("transformer.wte.weight", "transformer.wpe.weight")]
    layer = 0
    for place, kind in enumerate(config.places()):
        for half, tensors in (("attn", _LAYER_NAMES[:3]), ("ffn", _LAYER_NAMES[3:])):
            modules = _modules(config, kind, half)
            if kind == "block" and modules == 1 and not copy_single_modules:
                continue
            for gpt2, reference in tensors:
                target = f"transformer.h.{place}.{gpt2 if config.is_vanilla else reference}"
                for module in range(modules):
                    index = "" if modules == 1 else f".{module}"
                    for part in ("weight", "bias"):
                        pairs.append((f"{target}{index}.{part}", f"transformer.h.{layer + module}.{gpt2}.{part}"))
        layer += max(config.num_attn, config.num_ffn) if kind == "block" else 1
    if copy_final_norm:
        pairs += [(f"transformer.ln_f.{part}",) * 2 for part in ("weight", "bias")]
    return pairs
