"""The base of all settings: frozen dataclasses that check their fields and are read from mappings, TOML and flags.

A field is declared once, with its type, its default and the rule for its values::

    steps: int = setting(5000, at_least(1))
    schedule: str = setting("cosine", one_of("cosine", "linear", "constant"))

The command line takes names, types and defaults from the same declaration.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from ._arguments import PathLike
from ._html import html_table
from ._reading import read_toml_file, shown
from .errors import ConfigError
from .familiar import field_hint

__all__ = ["Settings", "at_least", "between", "one_of", "positive", "read_toml", "setting", "type_names_of"]

Self = TypeVar("Self", bound="Settings")
#: Returns what is wrong with a value, or None.
Rule = Callable[[Any], "str | None"]

#: Accepted types of a value for each type of field. NumPy's types are included because searches over arrays produce
#: them.
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "int": (int, np.integer), "float": (int, float, np.integer, np.floating), "bool": (bool, np.bool_), "str": (str,),
}  # fmt: skip


def setting(default: Any, rule: Rule | None = None) -> Any:
    """A field of a `Settings` class: its default and the rule that its values obey."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def at_least(low: int, most: float = math.inf) -> Rule:
    """Rule: the value is at least `low` and at most `most`."""

    def problem(value: Any) -> str | None:
        if value < low:
            return f"is less than {low}"
        return f"is larger than the supported maximum {most}" if value > most else None

    return problem


def between(low: float, high: float, words: str = "", open_end: bool = False) -> Rule:
    """Rule: the value is from `low` to `high`, and below `high` if `open_end`. Messages describe that by `words`."""
    words = words or f"in [{low}, {high}{')' if open_end else ']'}"

    def problem(value: Any) -> str | None:
        inside = low <= value < high if open_end else low <= value <= high  # NaN is in no range
        return None if inside else f"is not {words}"

    return problem


def positive(value: Any) -> str | None:
    """Rule: the value is above zero. It may be infinite."""
    return None if value > 0 else "is not positive"


def one_of(*choices: str) -> Rule:
    """Rule: the value is one of `choices`."""
    return lambda value: None if value in choices else f"is not one of {', '.join(map(repr, choices))}"


def type_names_of(field: dataclasses.Field[Any]) -> list[str]:
    """Names of the types that a field may have. ``"None"`` is among them if the field is optional."""
    return str(field.type).split(" | ")


class Settings:
    """Base of frozen dataclasses whose fields are declared with `setting`."""

    #: What the fields are called in messages, and the table that holds them in a TOML file.
    noun: ClassVar[str] = "settings"
    table: ClassVar[str] = "settings"

    if not TYPE_CHECKING:  # a type checker would take every name for a field

        def __new__(cls, *args: Any, **values: Any) -> Settings:
            try:
                cls._check_known(values)
            except ConfigError as error:
                raise TypeError(str(error)) from None  # as for the arguments of any call
            return super().__new__(cls)

        def __getattr__(self, name: str) -> Any:
            hint = "" if name.startswith("_") else field_hint(self.noun, name, self.names())
            raise AttributeError(f"{name}: unknown {self.noun} field{hint}")

    def __post_init__(self) -> None:
        for field in self.fields():
            value = _plain(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            rule = field.metadata.get("rule")
            problem = None if value is None or rule is None else rule(value)
            if problem is not None:
                raise ConfigError(f"{field.name}: {shown(value)} {problem}")
        self._check()

    def _check(self) -> None:
        """Raise if fields contradict each other."""

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        """Declarations of all fields."""
        return dataclasses.fields(cls)  # type: ignore[arg-type]

    @classmethod
    def names(cls) -> list[str]:
        """Names of all fields."""
        return [field.name for field in cls.fields()]

    @classmethod
    def _check_known(cls, values: Mapping[str, Any]) -> None:
        unknown = sorted(set(values) - set(cls.names()), key=str)
        if unknown:
            name = str(unknown[0])[:80]
            raise ConfigError(f"{name}: unknown {cls.noun} field{field_hint(cls.noun, name, cls.names())}")

    def replace(self: Self, **changes: Any) -> Self:
        """A copy with some fields changed (and checked)."""
        self._check_known(changes)
        copy: Self = dataclasses.replace(self, **changes)  # type: ignore[type-var]
        return copy

    @classmethod
    def from_dict(cls: type[Self], values: Mapping[str, Any], source: str = "configuration") -> Self:
        """Build from a mapping of field names to values.

        Raises
        ------
        ConfigError
            For an unknown field or an invalid value; the message begins with `source`.
        """
        return cls._build(values, source)

    @classmethod
    def _build(cls: type[Self], values: Mapping[str, Any], source: str) -> Self:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected a mapping of fields, got {type(values).__name__}")
        try:
            cls._check_known(values)
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    def __repr__(self) -> str:
        """The fields that differ from their defaults. Evaluated, it gives equal settings."""
        changed = {f.name: getattr(self, f.name) for f in self.fields() if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def _repr_html_(self) -> str:
        rows = []
        for field in self.fields():
            value = getattr(self, field.name)
            rows.append([field.name, repr(value), "" if value == field.default else f"default {field.default!r}"])
        return html_table(type(self).__name__, [], rows, text_columns=3)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_toml(cls: type[Self], path: PathLike) -> Self:
        """Read a TOML file: the fields at top level or in the table of these settings."""
        return cls._build(read_toml(path, cls.table), str(path))

    def to_toml(self) -> str:
        """All fields as TOML text, in a table; fields that are None are left out."""
        lines = [f"[{self.table}]"]
        for name in self.names():
            value = getattr(self, name)
            if value is not None:
                lines.append(f"{name} = {'inf' if value == math.inf else json.dumps(value)}")
        return "\n".join(lines) + "\n"


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value, checked against the field's type. Numbers of NumPy's types become Python's, and lists tuples."""
    for kind in type_names_of(field):
        if kind == "None":
            if value is None:
                return None
        elif kind == "tuple[str, ...]":
            items = [value] if isinstance(value, str) else value
            if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
                return tuple(items)
        elif isinstance(value, _ACCEPTED[kind]) and (kind == "bool" or not isinstance(value, bool)):
            return value.item() if isinstance(value, np.generic) else value
    raise ConfigError(f"{field.name}: expected {field.type}, got {type(value).__name__} {shown(value)}")


def read_toml(path: PathLike, table: str) -> dict[str, Any]:
    """Fields that a TOML file sets, in the given table or else at top level; names are not checked."""
    values = read_toml_file(path, ConfigError)
    section = values.get(table, values)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {table} is not a table")
    return section
