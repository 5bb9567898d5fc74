"""Grids: which trials a sweep has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._arguments import PathLike
from .._reading import read_toml_file, shown
from ..errors import ConfigError, DataError, MomError
from ..familiar import field_hint
from .fields import check_names, merged, resolve
from .measures import MEASURES
from .trial import Trial

__all__ = ["Grid", "read_grid"]

_TABLES = ("base", "grid", "variant", "keep_models", "measure", "sampler", "trials")
SAMPLERS = ("grid", "optuna")


@dataclass(frozen=True)
class Grid:
    """What a sweep runs: every variant with every combination of the axes.

    Attributes
    ----------
    base : dict
        Fields of all runs.
    axes : dict of str to list
        Values of each axis. With the sampler ``"optuna"``, an axis may also be a range: a mapping with ``low``,
        ``high`` and, optionally, ``log``.
    variants : list of dict
        Fields of each variant, with its ``name``. Without variants there is one, the base.
    keep_models : bool
        Keep the trained model of every trial, in the folder ``model`` of the trial.
    measure : tuple of str
        What is measured at the end of every trial, beside the validation loss: names in `mom.sweep.MEASURES`.
    sampler : {"grid", "optuna"}
        All combinations, or points that Optuna chooses.
    number : int or None
        Number of Optuna's points.
    """

    base: dict[str, Any]
    axes: dict[str, Any] = field(default_factory=dict)
    variants: list[dict[str, Any]] = field(default_factory=list)
    keep_models: bool = False
    measure: tuple[str, ...] = ()
    sampler: str = "grid"
    number: int | None = None
    digests: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def trials(self) -> list[Trial]:
        """All trials, each configuration once.

        Raises
        ------
        ConfigError, DataError
            If one of them is not possible. The message says which.
        """
        found: dict[str, Trial] = {}
        for variant in self.variants or [{}]:
            for values in itertools.product(*self.axes.values()):
                trial = self.trial(dict(zip(self.axes, values, strict=True)), variant)
                found.setdefault(trial.hash, trial)
        return list(found.values())

    def trial(self, point: Mapping[str, Any], variant: Mapping[str, Any] | None = None) -> Trial:
        """The trial at a point of the axes."""
        variant = variant or {}
        name = variant.get("name")
        words = [*([] if name is None else [name]), *(f"{axis}={value}" for axis, value in point.items())]
        fields = {key: value for key, value in variant.items() if key != "name"}
        try:
            settings, plan, where = resolve(merged(self.base, fields, point), self.digests)
        except MomError as error:
            kind = DataError if isinstance(error, DataError) else ConfigError
            raise kind(f"grid: {' '.join(words) or 'base'}: {error}") from None
        return Trial(settings, plan, where, name, " ".join(words) or "base", dict(point))


def read_grid(grid: PathLike | Mapping[str, Any] | Grid) -> Grid:
    """Read a grid.

    Parameters
    ----------
    grid : path, mapping or Grid
        A TOML file, or a mapping of the same form: the tables ``base``, ``grid`` and ``variant`` (a list), and at top
        level ``keep_models``, ``measure``, ``sampler`` and ``trials``.

    Raises
    ------
    ConfigError
        For a name that is not known, or a value of another form.
    """
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, (str, os.PathLike)):
        source, values = str(grid), read_toml_file(grid, ConfigError)
    elif isinstance(grid, Mapping):
        source, values = "grid", dict(grid)
    else:
        raise TypeError(f"grid: expected a path or a mapping, got {type(grid).__name__}")
    for name in values:
        if name not in _TABLES:
            raise ConfigError(
                f"{source}: {name}: unknown part of a grid{field_hint('grid', str(name), _TABLES)}; fields of runs "
                "belong into the table [base]"
            )
    axes = _fields(values.get("grid", {}), f"{source}: [grid]")
    variants = [_variant(entry, f"{source}: [[variant]] {number}", axes)
                for number, entry in enumerate(_list(values.get("variant", []), f"{source}: variant"))]  # fmt: skip
    names = [entry["name"] for entry in variants]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{source}: two variants have the name {twice[0]!r}")
    sampler = values.get("sampler", "grid")
    if sampler not in SAMPLERS:
        raise ConfigError(f"{source}: sampler: {shown(sampler)} is not one of {', '.join(map(repr, SAMPLERS))}")
    number = values.get("trials")
    if number is not None and (type(number) is not int or number < 1):
        raise ConfigError(f"{source}: trials: {shown(number)} is not a number of at least 1")
    for name, axis in axes.items():
        _check_axis(axis, f"{source}: [grid] {name}", sampler)
    keep = values.get("keep_models", False)
    if not isinstance(keep, bool):
        raise ConfigError(f"{source}: keep_models: expected true or false, got {shown(keep)}")
    base = _fields(values.get("base", {}), f"{source}: [base]")
    measure = _measures(values.get("measure", []), source)
    return Grid(base, axes, variants, keep, measure, sampler, number)


def _list(value: Any, source: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{source}: expected a list, got {type(value).__name__} {shown(value)}")
    return value


def _fields(values: Any, source: str) -> dict[str, Any]:
    """The fields in a table. Those of the table ``set`` are fields like the others."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: expected a table of fields, got {type(values).__name__} {shown(values)}")
    fields = {name: value for name, value in values.items() if name != "set"}
    more = _fields(values["set"], f"{source}: set") if "set" in values else {}
    if both := fields.keys() & more.keys():
        raise ConfigError(f"{source}: {sorted(both)[0]}: stands in the table 'set', too")
    fields |= more
    check_names({name: value for name, value in fields.items() if name != "name"}, source)
    return fields


def _variant(entry: Any, source: str, axes: Mapping[str, Any]) -> dict[str, Any]:
    fields = _fields(entry, source)
    if not isinstance(fields.get("name"), str) or not fields["name"]:
        raise ConfigError(f"{source}: name: missing; give every variant a name")
    if both := fields.keys() & axes.keys():
        name = sorted(both)[0]
        raise ConfigError(f"{source}: {name}: is an axis of [grid], too; it can be one of the two")
    return fields


def _check_axis(axis: Any, source: str, sampler: str) -> None:
    if sampler == "optuna" and isinstance(axis, Mapping):
        if not {"low", "high"} <= axis.keys() <= {"low", "high", "log", "step"}:
            raise ConfigError(f"{source}: a range has low and high, and may have log and step; got {', '.join(axis)}")
        return
    if isinstance(axis, Mapping):
        raise ConfigError(f"{source}: a range needs sampler = \"optuna\"; otherwise give a list of values")
    if not _list(axis, source):
        raise ConfigError(f"{source}: has no values")


def _measures(value: Any, source: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else _list(value, f"{source}: measure")
    for name in names:
        if name not in MEASURES:
            raise ConfigError(
                f"{source}: measure: {shown(name)} is not one of {', '.join(map(repr, MEASURES))}"
                f"{field_hint('measure', str(name), list(MEASURES))}"
            )
    return tuple(names)
