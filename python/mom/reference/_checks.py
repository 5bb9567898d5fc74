"""Argument checks shared by the operators: every message names the argument, what was passed and what was expected."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Array = NDArray[Any]


def as_float(name: str, value: ArrayLike, shape: tuple[int | str, ...]) -> Float:
    """`value` as float64, checked against `shape`; a string in `shape` stands for any size."""
    array = np.asarray(value, dtype=np.float64)
    check_shape(name, array.shape, shape)
    return array


def as_int(name: str, value: ArrayLike, shape: tuple[int | str, ...]) -> Int:
    """`value` as int64, checked against `shape`; rejects floating point arrays."""
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {array.dtype}, expected integers")
    check_shape(name, array.shape, shape)
    return array.astype(np.int64)


def check_shape(name: str, have: tuple[int, ...], want: tuple[int | str, ...]) -> None:
    """Raise ValueError unless `have` fits `want`; a leading ``"..."`` stands for any dimensions."""
    tail = want[1:] if want[:1] == ("...",) else want
    ok = len(have) == len(want) or (tail is not want and len(have) >= len(tail))
    if ok and tail:
        ok = all(isinstance(size, str) or size == got for got, size in zip(have[-len(tail) :], tail, strict=True))
    if not ok:
        raise ValueError(f"{name}: shape {have}, expected ({', '.join(map(str, want))})")
