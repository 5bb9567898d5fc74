"""JSON as the standard has it: UTF-8, without NaN and infinity, which other programs cannot read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["from_words", "sha256_of", "to_json"]

#: How `to_json` can write numbers that JSON does not have.
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(value: Any, indent: int | None = 2, *, words: bool = False, ascii: bool = False) -> str:
    """JSON text of a value, with a line feed at its end.

    Numbers and arrays of NumPy are written as Python's. A number that is not finite becomes null. With `words` it
    becomes one of the strings "NaN", "Infinity" and "-Infinity", and `from_words` reads these as numbers. A character
    that UTF-8 cannot hold (names of files can have such characters) is escaped; with `ascii`, every character beyond
    ASCII is.
    """
    text = json.dumps(_plain(value, words), indent=indent, ensure_ascii=ascii, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def from_words(value: Any) -> Any:
    """A value read from JSON, with the strings that stand for numbers replaced by the numbers; see `to_json`."""
    if isinstance(value, dict):
        return {name: from_words(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_words(item) for item in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value


def sha256_of(value: Any) -> str:
    """SHA-256 sum of the JSON text of a value. The order of a mapping's names does not matter."""
    return hashlib.sha256(to_json(_sorted(value), indent=None, words=True, ascii=True).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any, words: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item, words) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, words) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist(), words)
    if isinstance(value, float) and not math.isfinite(value):
        return ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity") if words else None
    return value
