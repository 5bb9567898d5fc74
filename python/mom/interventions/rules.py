"""Interventions as data: what to force, forbid, prefer, draw, or replace in a model's computation."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .._arguments import LARGEST, count, number
from .._arguments import seed as seed_of
from .selection import HALVES, numbers, round_numbers

__all__ = ["Bias", "Forbid", "Force", "Intervention", "Patch", "RandomRoutes", "Scale", "TopK", "Zero",
           "as_interventions", "from_dict"]


def _half(half: Any) -> str:
    if not isinstance(half, str) or half not in HALVES:
        raise ValueError(f"half: expected 'attn' or 'ffn', got {half!r}")
    return str(half)


def _choice(value: Any, name: str) -> int | str:
    """A module's number or ``"SKIP"``."""
    if isinstance(value, str) and value == "SKIP":
        return "SKIP"
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__index__"):
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{name}: expected a module's number or 'SKIP', got {value!r}"
        )
    return operator.index(value)


def _number(value: Any, choice: Any) -> float:
    if isinstance(value, (bool, np.bool_, str)):
        raise TypeError(f"values: expected a number for {choice!r}, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"values: expected a number for {choice!r}, got {value!r}") from None
    if not abs(number) <= LARGEST:  # this also refuses NaN
        raise ValueError(f"values: {number} for {choice!r} is not a finite float32; Forbid takes choices away")
    return number


class Intervention:
    """The base of all interventions. They are frozen: a changed one is a new one."""

    _kinds: ClassVar[dict[str, type[Intervention]]] = {}

    def __init_subclass__(cls) -> None:
        Intervention._kinds[cls.__name__] = cls

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes: plain values that JSON can hold. Values left at None are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **{k: _plain(v) for k, v in values.items() if v is not None}}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Intervention:
        """The intervention that `to_dict` has described.

        Raises
        ------
        ValueError, TypeError
            For an unknown kind or field, or a wrong value.
        """
        return from_dict(values)

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and value.ndim:
                shown.append(f"{field.name}=<array {value.shape}>")
            elif isinstance(value, Mapping):
                shown.append(f"{field.name}={dict(sorted(value.items(), key=_order))!r}")
            elif value is not None:
                shown.append(f"{field.name}={_plain(value)!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self))


def _order(item: tuple[Any, Any]) -> tuple[bool, Any]:
    """Modules by number, then SKIP."""
    return isinstance(item[0], str), item[0]


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def from_dict(values: Mapping[str, Any]) -> Intervention:
    """See `Intervention.from_dict`."""
    if not isinstance(values, Mapping):
        raise TypeError(f"interventions: expected a mapping, got {type(values).__name__}")
    given = dict(values)
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in Intervention._kinds:
        raise ValueError(f"kind: {kind!r} is not one of {', '.join(map(repr, Intervention._kinds))}")
    cls = Intervention._kinds[kind]
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{kind}: has no {unknown[0]!r}; it has {', '.join(known)}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.default is MISSING and field.name not in given:
            raise ValueError(f"{kind}: needs {field.name!r}")
    if kind == "Bias" and isinstance(given["values"], Mapping):
        values_of = {_choice_of(key): value for key, value in given["values"].items()}
        if len(values_of) < len(given["values"]):
            raise ValueError(f"values: a choice occurs twice in {', '.join(map(repr, given['values']))}")
        given["values"] = values_of
    return cls(**given)


def _choice_of(key: Any) -> Any:
    """A choice from a key of a JSON object, which is always a string."""
    if key == "SKIP" or not isinstance(key, str):
        return key
    if not key.isdecimal():
        raise ValueError(f"values: {key!r} is no module's number and not 'SKIP'")
    return int(key)


@dataclass(frozen=True, eq=False, repr=False)
class Force(Intervention):
    """Choose modules for tokens in place of the router. Their weights still come from the router's scores.

    Parameters
    ----------
    half : {"attn", "ffn"}
    to : int, "SKIP", or a list of at most K of them
        What the tokens do; other choices are left out.
    rounds : sequence of int or (block, round), optional
        By default all; numbers count over the blocks.
    tokens : sequence of int, optional
        Positions, counted from each row's first real token; by default all.
    rows : sequence of int, optional
        Sequences of the batch (in a beam search: prompts); by default all.
    """

    half: str
    to: Any
    rounds: Any = None
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        several = isinstance(self.to, (list, tuple, np.ndarray)) and np.ndim(self.to) > 0
        to = tuple(_choice(item, "to") for item in self.to) if several else _choice(self.to, "to")
        if to == ():
            raise ValueError("to: is empty; name a module, or 'SKIP' to run none")
        self._set(half=_half(self.half), to=to, rounds=round_numbers(self.rounds),
                  tokens=numbers(self.tokens, "tokens"), rows=numbers(self.rows, "rows"))  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Forbid(Intervention):
    """Take modules away from the router: their outputs become minus infinity, before softmax and top-k.

    Parameters
    ----------
    half : {"attn", "ffn"}
    modules : sequence of int or "SKIP"
    rounds, tokens, rows : optional
        As for `Force`.
    """

    half: str
    modules: Any
    rounds: Any = None
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        given = [self.modules] if isinstance(self.modules, str) or np.ndim(self.modules) == 0 else list(self.modules)
        if not given:
            raise ValueError("modules: is empty")
        self._set(half=_half(self.half), modules=tuple(_choice(item, "modules") for item in given),
                  rounds=round_numbers(self.rounds),
                  tokens=numbers(self.tokens, "tokens"), rows=numbers(self.rows, "rows"))  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Bias(Intervention):
    """Add numbers to a router's outputs, before softmax and top-k.

    Parameters
    ----------
    half : {"attn", "ffn"}
    values : dict of int or "SKIP" to float
        What is added to the outputs of these choices.
    rounds, tokens, rows : optional
        As for `Force`.
    """

    half: str
    values: Any
    rounds: Any = None
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping) or not self.values:
            raise TypeError(f"values: expected a dict of choices to numbers, got {self.values!r}")
        values = {_choice(key, "values"): _number(value, key) for key, value in self.values.items()}
        self._set(half=_half(self.half), values=values, rounds=round_numbers(self.rounds),
                  tokens=numbers(self.tokens, "tokens"), rows=numbers(self.rows, "rows"))  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class RandomRoutes(Intervention):
    """Choose uniformly at random among all choices of a router.

    The choices are a function of seed, half, round, position and the tokens up to this one. So they are the same in a
    full pass and in decoding, and for any composition of the batch.

    Parameters
    ----------
    half : {"attn", "ffn"}
    rounds, tokens, rows : optional
        As for `Force`.
    seed : int
    """

    half: str
    rounds: Any = None
    tokens: Any = None
    rows: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._set(half=_half(self.half), rounds=round_numbers(self.rounds), tokens=numbers(self.tokens, "tokens"),
                  rows=numbers(self.rows, "rows"), seed=seed_of(self.seed))  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class TopK(Intervention):
    """Keep another number of choices per token.

    Parameters
    ----------
    k : int
        At most the number of the router's outputs.
    half : {"attn", "ffn"}, optional
        By default both.
    rounds, tokens, rows : optional
        As for `Force`.
    """

    k: int
    half: str | None = None
    rounds: Any = None
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        self._set(k=count(self.k, "k", 1), half=None if self.half is None else _half(self.half),
                  rounds=round_numbers(self.rounds), tokens=numbers(self.tokens, "tokens"),
                  rows=numbers(self.rows, "rows"))  # fmt: skip


class PlaceIntervention(Intervention):
    """The base of interventions on activations at a place, or at all places that a pattern fits."""

    place: str
    tokens: Any
    rows: Any

    def _check(self) -> None:
        if not isinstance(self.place, str):
            raise TypeError(f"place: expected the name of a place or a pattern, got {self.place!r}")
        self._set(tokens=numbers(self.tokens, "tokens"), rows=numbers(self.rows, "rows"))

    @property
    def multiplier(self) -> float:
        """What the activation is multiplied by."""
        return 0.0

    @property
    def constant(self) -> npt.NDArray[np.float32] | None:
        """What is added to it."""
        return None


# The base is no intervention of its own.
del Intervention._kinds["PlaceIntervention"]


@dataclass(frozen=True, eq=False, repr=False)
class Patch(PlaceIntervention):
    """Replace an activation by a constant. No gradient passes through it.

    Parameters
    ----------
    place : str
        Name of a place, such as ``"block0.round2.ffn.output"``, or a shell pattern.
    value : float, or array of float
        Shape (width,) for all chosen tokens; (number of `tokens`, width), a row for each position; or that of a
        captured array, (B, T, width) or (N, width), of which the chosen tokens take their own rows.
    tokens, rows : optional
        As for `Force`. In places of single modules only tokens that chose the module count.
    """

    place: str
    value: Any
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        self._check()
        try:
            with np.errstate(over="ignore"):  # what overflows is refused below
                value = np.array(self.value, np.float32)
        except (TypeError, ValueError):
            raise TypeError(f"value: expected numbers, got {type(self.value).__name__}") from None
        if not np.isfinite(value).all():
            raise ValueError("value: has numbers that are not finite")
        value.flags.writeable = False
        self._set(value=value)

    @property
    def constant(self) -> npt.NDArray[np.float32] | None:  # noqa: D102
        value: npt.NDArray[np.float32] = self.value
        return value


@dataclass(frozen=True, eq=False, repr=False)
class Zero(PlaceIntervention):
    """Replace an activation by zeros. The arguments are those of `Patch`."""

    place: str
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True, eq=False, repr=False)
class Scale(PlaceIntervention):
    """Multiply an activation by a factor. The other arguments are those of `Patch`."""

    place: str
    factor: float
    tokens: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        self._check()
        self._set(factor=number(self.factor, "factor", -LARGEST, "a finite float32"))

    @property
    def multiplier(self) -> float:  # noqa: D102
        return self.factor


def as_interventions(given: Any, name: str = "interventions") -> tuple[Intervention, ...]:
    """A list of interventions as a tuple.

    Raises
    ------
    TypeError
        If it is none.
    """
    items = (given,) if isinstance(given, Intervention) else given
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, (Sequence, frozenset, set)):
        raise TypeError(f"{name}: expected a list of interventions, got {type(given).__name__}")
    for item in items:
        if not isinstance(item, Intervention):
            way_out = "; mom.Intervention.from_dict reads what to_dict has written" if isinstance(item, Mapping) else ""
            raise TypeError(f"{name}: expected interventions such as mom.Force, got {item!r}{way_out}")
    return tuple(items)
