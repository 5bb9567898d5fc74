"""JSON as the standard has it: UTF-8, without NaN and infinity, which other programs cannot read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["to_json"]


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON text of a value, with a line feed at its end.

    Numbers and arrays of NumPy are written as Python's. A number that is not finite becomes null. A character that
    UTF-8 cannot hold (names of files can have such characters) is escaped.
    """
    text = json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
