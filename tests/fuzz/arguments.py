"""Wrong arguments: variations of a right one, and objects that raise or change things when they are asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .mutate import pick

__all__ = ["Strange", "Surprise", "copied", "wrong"]

Random = np.random.Generator


class Surprise(Exception):
    """What the objects of this module raise. A call may let it through."""


class Strange:
    """An object that does something when it is asked for a number, a length, an array or an item.

    Parameters
    ----------
    kind : {"raises", "changes", "lies", "right"}
    value
        What it stands for.
    others : list
        Arguments of the same call, which ``"changes"`` changes.
    """

    def __init__(self, kind: str, value: Any, others: list[Any]) -> None:
        self.kind, self.value, self.others = kind, value, others

    def __repr__(self) -> str:
        return f"<an object that {self.kind}>"

    def _asked(self) -> Any:
        if self.kind == "raises":
            raise Surprise("asked")
        if self.kind == "changes":
            for other in self.others:
                spoil(other)
        return self.value

    def __index__(self) -> Any:
        value = self._asked()
        return "x" if self.kind == "lies" else int(value) if isinstance(value, (int, float)) else 1

    def __float__(self) -> Any:
        value = self._asked()
        return "x" if self.kind == "lies" else float(value) if isinstance(value, (int, float)) else 1.0

    def __bool__(self) -> Any:
        self._asked()
        return 2 if self.kind == "lies" else True

    def __len__(self) -> int:
        value = self._asked()
        return 10**6 if self.kind == "lies" else len(value) if hasattr(value, "__len__") and np.ndim(value) else 1

    def __getitem__(self, index: Any) -> Any:
        value = self._asked()
        if self.kind == "lies" or not isinstance(value, (list, tuple)):
            raise IndexError(index)
        return value[index]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        value = self._asked()
        return [1] if self.kind == "lies" else np.array(value, dtype)

    def __eq__(self, other: object) -> bool:
        self._asked()
        return False

    __hash__ = object.__hash__


def spoil(value: Any) -> None:
    """Put other contents into an argument in place."""
    if isinstance(value, np.ndarray) and value.flags.writeable and value.dtype.kind in "iuf":
        value.fill(100 if value.dtype.kind in "iu" else np.nan)
    elif isinstance(value, list):
        value.clear()


def copied(value: Any) -> Any:
    """A copy in which arrays, lists, tuples and dicts are new."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: copied(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        )
    return value


def wrong(rng: Random, value: Any, others: list[Any]) -> Any:
    """Another argument in the place of `value`."""
    if rng.random() < 0.15:
        return Strange(pick(rng, ("raises", "changes", "changes", "lies", "right")), value, others)
    if rng.random() < 0.12:
        return pick(rng, ANYTHING)
    if isinstance(value, np.ndarray):
        return _array(rng, value)
    if isinstance(value, (list, tuple)):
        return _sequence(rng, value, others)
    if isinstance(value, dict):
        changed = dict(value)
        for key in [pick(rng, [*changed]) for _ in range(int(rng.integers(3)))] if changed else []:
            changed[key] = wrong(rng, changed[key], others)
        return changed
    if isinstance(value, (bool, int, float, np.number)) or value is None:
        return _number(rng, value)
    if isinstance(value, str):
        return pick(
            rng, ("", value + "\0", value.upper(), "\ud800", "x" * 5000, value.encode("utf-8", "replace"), None, 1)
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        field = pick(rng, [f.name for f in dataclasses.fields(value) if f.init])
        try:
            return dataclasses.replace(value, **{field: wrong(rng, getattr(value, field), others)})
        except (TypeError, ValueError, OverflowError, Surprise) as error:  # it looks at its fields when it is made
            assert str(error)
            return value
    return pick(rng, ANYTHING)


def _array(rng: Random, a: np.ndarray) -> Any:
    """An array that differs in type, shape, layout, rights or values."""
    match int(rng.integers(16)):
        case 0 if a.dtype.kind in "iuf":
            return a.astype(pick(rng, ("f2", "f8", "i1", "i4", "i8", "u1", "u8", "?", "c8", "O", "S3", "M8[s]")))
        case 1:
            return a.astype(a.dtype.newbyteorder())
        case 2:
            return a[None]
        case 3:
            return a[..., None]
        case 4:
            return a[:-1].copy() if a.ndim else a
        case 5:
            return np.concatenate([a, a]) if a.ndim else a
        case 6:
            return np.zeros((0, *a.shape[1:]), a.dtype)
        case 7:
            return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a
        case 8:
            return np.asfortranarray(a)
        case 9:
            return np.moveaxis(a, 0, -1)[::-1] if a.ndim > 1 else a[::-1] if a.ndim else a
        case 10:
            frozen = a.copy()
            frozen.flags.writeable = False
            return frozen
        case 11 if a.dtype != object:
            raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
            raw[:] = np.frombuffer(a.tobytes(), np.uint8)
            return raw.view(a.dtype).reshape(a.shape)
        case 12:
            return np.broadcast_to(a.reshape(-1)[:1], a.shape) if a.ndim and a.size else a
        case 13:
            buffer = a.tobytes() if a.dtype.kind in "Mm" else memoryview(np.ascontiguousarray(a))  # dates are no buffer
            return pick(rng, (a.tolist(), buffer, a.view(Odd), np.ma.array(a), a.ravel()))
        case 14:
            return _pushed(rng, a)
        case _:
            shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 5], int(rng.integers(0, 5))))
            return np.ones(shape, a.dtype)


class Odd(np.ndarray):
    """An array of a type of its own."""


def _pushed(rng: Random, a: np.ndarray) -> np.ndarray:
    """Some values are extreme ones."""
    changed = a.copy()
    if changed.size and changed.dtype.kind in "iuf":
        extremes = np.array(
            [np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0]
            if changed.dtype.kind == "f"
            else [-1, -100, 100, 127, 2**31 - 1],
            np.float64,
        )
        with np.errstate(all="ignore"):
            values = rng.choice(extremes, changed.size).astype(changed.dtype)
        where = rng.random(changed.size) < pick(rng, (0.02, 0.3, 1.0))
        changed.reshape(-1)[where] = values[where]
    return changed


def _sequence(rng: Random, value: Any, others: list[Any]) -> Any:
    items = list(value)
    match int(rng.integers(7)):
        case 0 if items:
            del items[int(rng.integers(len(items)))]
        case 1:
            items.append(pick(rng, ANYTHING))
        case 2 if items:
            items *= 2
        case 3 | 4 if items:
            place = int(rng.integers(len(items)))
            items[place] = wrong(rng, items[place], [*others, value])
        case 5:
            return iter(items)
        case _:
            return tuple(items) if isinstance(value, list) else items
    if hasattr(value, "_fields"):
        return type(value)(*items) if len(items) == len(value._fields) else tuple(items)
    return type(value)(items)


def _number(rng: Random, value: Any) -> Any:
    return pick(rng, (
        None, True, False, 0, 1, -1, 2, 7, 255, -(2**31), 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64,
        -(2**63), 10**30, 0.0, -0.0, 0.5, -1.0, 1.0, 1e-45, 1e-320, 3.5e38, 1e308, float("nan"), float("inf"),
        -float("inf"), np.int8(-1), np.uint64(2**64 - 1), np.float32(0.5), np.float16(1), np.bool_(True), np.array(1),
        np.array([1]), np.longdouble(1), 1j, "1", b"1", [], Whole(3),
    ))  # fmt: skip


class Whole(int):
    """An integer of a type of its own."""


#: Arguments of no particular kind.
ANYTHING: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**70, float("nan"), "x", "", b"x", "\ud800", [], [[]], [1, [2]], (), {}, set(), object(),
    object, len, Ellipsis, slice(1), range(3), range(2**16), np.zeros(0), np.zeros((2, 3)), np.array(["a"]),
    np.array(None), np.array([2**40]), np.float32(1), np.datetime64("2020-01-01"),
    np.zeros(3, [("a", "f4"), ("b", "i4")]), memoryview(b"abc"),
    bytearray(b"abc"), iter([1, 2]), np.dtype("f4"), complex(1, 2), NotImplemented,
)  # fmt: skip
