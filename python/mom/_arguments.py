"""Types and checks of arguments that several modules share. Messages name the argument, what came and what to pass."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from .config import MoMConfig

#: A path.
PathLike = str | os.PathLike[str]
#: Largest finite float32.
LARGEST = float(np.finfo(np.float32).max)


def as_array(value: ArrayLike, name: str) -> NDArray[Any]:
    """`value` as an ndarray. If its rows have unequal lengths, the message has the argument's name."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: not an array ({error})") from None


def number(value: Any, name: str, low: float, wanted: str) -> float:
    """A finite real number of at least `low` that float32 can hold."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= LARGEST:  # this also refuses NaN
        raise ValueError(f"{name}: {value} is not {wanted}")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """True or False, of Python or NumPy. Any other value is refused, since the word ``"no"`` counts as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__} {value!r}")
    return bool(value)


def flags(**values: Any) -> tuple[bool, ...]:
    """The same for several arguments, given and returned in one order."""
    return tuple([flag(value, name) for name, value in values.items()])


def seed(value: Any, name: str = "seed") -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= int(value) < 2**63:
        raise ValueError(f"{name}: expected an integer in [0, 2**63), got {value!r}")
    return int(value)


def _as_integers(value: ArrayLike, name: str) -> NDArray[Any]:
    """An array that is not empty and whose numbers all fit int32."""
    array = as_array(value, name)
    if array.size == 0:
        raise ValueError(f"{name}: shape {array.shape} is empty")
    if array.dtype == object or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: dtype {array.dtype}, expected an integer dtype")
    if array.dtype != np.int32:
        low, high = int(array.min()), int(array.max())
        if low < -(2**31) or high >= 2**31:
            raise ValueError(f"{name}: value {low if low < -(2**31) else high} does not fit 32 bits")
    return array


def as_ids(value: ArrayLike, name: str) -> NDArray[np.int32]:
    """Token ids (B, T) as int32, from (B, T) or a single row (T,).

    The result is a copy, as other threads may change the original while the core reads.
    """
    array = _as_integers(value, name)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2:
        raise ValueError(f"{name}: shape {array.shape}, expected (B, T)")
    return np.array(array, dtype=np.int32, order="C")


def as_packed(value: ArrayLike, name: str, letter: str = "N") -> NDArray[np.int32]:
    """A one-dimensional array as int32. It is a copy, as in `as_ids`."""
    array = _as_integers(value, name)
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}, expected ({letter},)")
    return np.array(array, dtype=np.int32, order="C")


def as_mask(value: ArrayLike, shape: tuple[int, int], name: str = "attention_mask") -> NDArray[np.uint8]:
    array = as_array(value, name)
    if array.ndim == 1:
        array = array[None, :]
    if array.shape != shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {shape} like tokens")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: dtype {array.dtype}, expected bool, integer or float")
    binary = (array != 0).astype(np.uint8)
    if not np.array_equal(binary, array):
        raise ValueError(f"{name}: values other than 0 and 1")
    return np.ascontiguousarray(binary)


def count(value: Any, name: str, least: int = 0) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: {value} is {f'less than {least}' if least else 'negative'}")
    return int(value)


def prompts(prompt: Any, name: str = "prompt") -> tuple[list[NDArray[np.int32]], bool]:
    """Rows of ids, and whether the argument was a single prompt."""
    if isinstance(prompt, (list, tuple)) and prompt and not isinstance(prompt[0], (int, float, np.generic)):
        rows = []
        for i, row in enumerate(prompt):
            ids = as_array(row, f"{name}: row {i}")
            if ids.ndim != 1:
                raise ValueError(f"{name}: row {i} has shape {ids.shape}, expected (T,)")
            rows.append(as_ids(ids, f"{name}: row {i}")[0])
        return rows, False
    array = as_array(prompt, name)
    return list(as_ids(array, name)), array.ndim == 1


def sampling(
    config: MoMConfig,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    seed_value: Any,
    stop_token: Any,
    longest: int,
) -> tuple[int, float, int, float, int, list[int]]:
    """Settings of a generation, checked, with a list of stop tokens; `longest` is that of the longest sequence."""
    new = count(max_new_tokens, "max_new_tokens")
    if longest + new > config.n_positions:
        raise ValueError(
            f"max_new_tokens: prompt and {new} new tokens need {longest + new} positions, "
            f"the model has {config.n_positions}"
        )
    temperature = number(temperature, "temperature", 0.0, "a non-negative finite number")
    kept = config.vocab_size if top_k is None else min(count(top_k, "top_k"), config.vocab_size)
    if kept < 1:
        raise ValueError(f"top_k: {top_k} is less than 1")
    mass = 1.0 if top_p is None else number(top_p, "top_p", 0.0, "in (0, 1]")
    if not 0 < mass <= 1:
        raise ValueError(f"top_p: {top_p} is not in (0, 1]")
    mass = max(mass, float(np.finfo(np.float32).tiny))  # not 0 in float32; either way one token is left
    several = isinstance(stop_token, (list, tuple, np.ndarray))
    stops = [count(stop, "stop_token") for stop in (stop_token if several else [stop_token]) if stop is not None]
    for stop in stops:
        if stop >= config.vocab_size:
            raise ValueError(f"stop_token: {stop} is not in [0, {config.vocab_size})")
    return new, temperature, kept, mass, seed(seed_value), list(dict.fromkeys(stops))


def like(array: NDArray[np.int32], shape: tuple[int, ...], name: str) -> NDArray[np.int32]:
    if array.shape != shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {shape} like tokens")
    return array
