"""Mutations of files: of bytes, of lines, and of the structure of JSON and safetensors.

Every function takes a generator of random numbers and content, and returns changed content. The same generator gives
the same change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Raw", "dumps", "loads", "mutate_bytes", "mutate_cells", "mutate_json", "mutate_lines", "mutate_weights"]

Random = np.random.Generator

#: Pieces of text and bytes that readers stumble over.
PIECES = [
    b"", b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b":", b"=", b"#",
    b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3\x28", b"\xf0\x9f\x98\x80", b"\xe2\x80\xa8", b"\x85",
    b"\\ud800", b"\\u0000", b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"1e999", b"-1", b"-0.0", b"0.5",
    b"1e-400", b"18446744073709551616", b"9223372036854775807", b"4294967296", b"65536", b"9" * 150, b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b"/", b"..", b"\x1f\x8b\x08", b"PK\x03\x04", b"PAR1", b"\x93NUMPY", b"\x80\x04\x95",
]  # fmt: skip
#: Values that take the place of a value of a JSON file.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e300, 2**15, 2**31 - 1, 2**31, 2**32, 2**53 + 1,
    2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**99, 10**400, -(10**400), "", "x", "0", "1", "true", "NaN",
    "Infinity", "null", "/", "..", "../x", "a\0b", "x" * 300, "x" * 20_000, "\ud800", "\udfff\ud800", "\U0001f600",
    "\u2028", [], {}, [[]], [None], [0], [1, 2], ["x"], [{}], {"": None}, {"content": "x"}, {"x": 1}, [1] * 1000,
]  # fmt: skip


class Raw(str):
    """Text that `dumps` writes as it stands, which need not be JSON."""


#: As `VALUES`, but in words that `json.dumps` does not write.
RAW = [Raw(text) for text in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E5", "1.0", "07", "+1", ".5",
                              "9" * 5000, "[" * 2000 + "]" * 2000, '{"a":' * 1500 + "1" + "}" * 1500,
                              '"\\ud83d"', '"\x01"', "undefined")]  # fmt: skip


class Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, in order; a name may occur twice."""


def loads(text: str) -> Any:
    """A JSON value whose objects are `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def dumps(value: Any) -> str:
    """JSON text of a value that may hold `Pairs` and `Raw`."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{dumps(item)}" for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    if type(value) is int and value.bit_length() > 1000:  # Python does not write such an integer in decimal digits
        return ("-" if value < 0 else "") + "9" * (abs(value).bit_length() * 3 // 10)
    return json.dumps(value)


def pick(rng: Random, items: Any) -> Any:
    """One of the items."""
    return items[int(rng.integers(len(items)))]


# ---------------------------------------------------------------------- bytes
def mutate_bytes(rng: Random, content: bytes) -> bytes:
    """Change a few places."""
    data = bytearray(content)
    for _ in range(int(pick(rng, (1, 1, 1, 2, 3, 6)))):
        place = int(rng.integers(len(data) + 1))
        length = int(pick(rng, (1, 1, 2, 4, 8, 30, 300)))
        match int(rng.integers(9)):
            case 0 if data:
                data[min(place, len(data) - 1)] ^= 1 << int(rng.integers(8))
            case 1 if data:
                data[min(place, len(data) - 1)] = int(rng.integers(256))
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = rng.bytes(length)
            case 4:
                data[place:place] = data[place : place + length] * int(pick(rng, (1, 1, 2, 50)))
            case 5:
                del data[place:]
            case 6:
                data += pick(rng, PIECES) * int(pick(rng, (1, 1, 3)))
            case 7:
                data[place : place + length * int(rng.integers(2))] = pick(rng, PIECES)
            case _:
                data = bytearray(_other_number(rng, bytes(data)))
    return bytes(data)


def _other_number(rng: Random, data: bytes) -> bytes:
    """The content with one of its decimal numbers replaced."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:100_000]))
    if not found:
        return data
    chosen = pick(rng, found)
    return data[: chosen.start()] + pick(rng, PIECES) + data[chosen.end() :]


def mutate_lines(rng: Random, content: bytes) -> bytes:
    """Remove, repeat, swap, join or cut lines."""
    lines = content.split(b"\n")
    for _ in range(int(pick(rng, (1, 1, 2, 4)))):
        i, j = (int(rng.integers(len(lines))) for _ in range(2))
        match int(rng.integers(6)):
            case 0 if len(lines) > 1:
                del lines[i]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3:
                lines[i] = lines[i][: int(rng.integers(len(lines[i]) + 1))]
            case 4:
                lines[i] += pick(rng, PIECES)
            case _:
                lines[i] = mutate_bytes(rng, lines[i])
    return pick(rng, (b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def mutate_cells(rng: Random, content: bytes, mark: bytes = b"\t") -> bytes:
    """Change cells of a table, whole columns too."""
    rows = [line.split(mark) for line in content.split(b"\n")]
    column = int(rng.integers(max(map(len, rows))))
    cell = pick(rng, PIECES)
    whole = rng.random() < 0.3
    for row in rows if whole else [pick(rng, rows)]:
        if column < len(row):
            match int(rng.integers(4)):
                case 0:
                    row[column] = cell
                case 1:
                    row[column : column + 1] = []
                case 2:
                    row[column:column] = [cell]
                case _:
                    row[column] += cell
    return b"\n".join(mark.join(row) for row in rows)


# ---------------------------------------------------------------------- JSON
def _places(value: Any, found: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Every container of a value with every index into it."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            found.append((value, index))
            _places(item[1] if isinstance(value, Pairs) else item, found)
    return found


def _near(rng: Random, value: Any) -> Any:
    """A value of the same type that is another one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + int(pick(rng, (-1, 1, -value, value, 2**16, 2**31, -(2**31), 2**62)))
    if isinstance(value, float):
        return value * float(pick(rng, (-1.0, 0.0, 1e-300, 1e300, 1.5)))
    if isinstance(value, str):
        return pick(rng, (value + "x", value[:-1], value.upper(), value * 200, value + "\ud800", value + "\0", ""))
    return pick(rng, VALUES)


def mutate_json(rng: Random, content: bytes) -> bytes:
    """Change a few values or names of a JSON file."""
    top = [loads(content.decode())]
    for _ in range(int(pick(rng, (1, 1, 1, 2, 4)))):
        container, index = pick(rng, _shallow(rng, top))
        old = container[index]
        name, value = old if isinstance(container, Pairs) else ("", old)
        match int(rng.integers(9)):
            case 0 | 1:
                value = pick(rng, VALUES)
            case 2:
                value = pick(rng, RAW)
            case 3 | 4:
                value = _near(rng, value)
            case 5:
                name = pick(rng, ("x", "", name + "x", "\ud800", "a\0", pick(rng, container)[0]
                                  if isinstance(container, Pairs) else ""))  # fmt: skip
            case 6 if container is not top:
                del container[index]
                continue
            case 7 if container is not top:
                container.insert(index, old)
                continue
            case _:
                value = pick(rng, (Pairs([("x", value)]), [value], [value, value]))
        container[index] = (name, value) if isinstance(container, Pairs) else value
    return dumps(top[0]).encode("utf-8", "surrogatepass")


def _shallow(rng: Random, top: list[Any]) -> list[tuple[Any, int]]:
    """Places of a value; often only those near the top, which a long list would hide."""
    places = _places(top, [])
    if rng.random() < 0.5:
        first = [(c, i) for c, i in places if c is top or c is top[0]]
        return first or places
    return places


# ---------------------------------------------------------------------- safetensors
def mutate_weights(rng: Random, content: bytes) -> bytes:
    """Change the header of a safetensors file; its length is usually set right."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    change: Callable[[Random, bytes], bytes] = pick(rng, (mutate_json, mutate_json, _other_entry, mutate_bytes))
    header = change(rng, header)
    length = len(header)
    match int(rng.integers(8)):
        case 0:
            length = int(pick(rng, (0, 1, length - 1, length + 1, length + len(data), 2**31, 2**63, 2**64 - 1)))
        case 1:
            data = mutate_bytes(rng, data)
    return max(0, length).to_bytes(8, "little") + header + data


def _other_entry(rng: Random, header: bytes) -> bytes:
    """A header in which shape, offsets and dtype of a tensor are others, but perhaps agree with each other."""
    values = json.loads(header)
    name = pick(rng, [name for name in values if name != "__metadata__"])
    entry = values[name]
    begin, end = entry["data_offsets"]
    match int(rng.integers(5)):
        case 0:
            entry["shape"] = pick(rng, ([], [0], [-1], [end - begin], [1, *entry["shape"]], entry["shape"][::-1]))
        case 1:
            entry["shape"] = pick(rng, ([2**62, 4], [2**31, 2**31, 4], [1] * 40, [0, 2**63], [2**63 - 1]))
        case 2:
            entry["dtype"] = pick(rng, ("F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "f32", ""))
        case 3:
            entry["data_offsets"] = pick(rng, ([begin, end + 4], [end, begin], [0, 2**63 - 1], [begin], [-4, end]))
        case _:
            size = int(pick(rng, (1, 2, 4, 8)))
            entry["dtype"] = {1: "U8", 2: "F16", 4: "I32", 8: "F64"}[size]
            entry["shape"] = [(end - begin) // size]
    return json.dumps(values).encode()
