"""Lists of interventions in JSON files, and as JSON values in results and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arguments import PathLike
from .._reading import read_json
from ..errors import ConfigError
from ..files.folders import write_json
from .rules import Intervention, as_interventions

__all__ = ["described", "interventions_from", "read_interventions", "write_interventions"]


def described(interventions: Sequence[Intervention]) -> list[dict[str, Any]]:
    """JSON values, for `interventions_from`."""
    return [rule.to_dict() for rule in interventions]


def interventions_from(values: Any, source: str) -> tuple[Intervention, ...]:
    """The interventions that JSON values describe.

    Raises
    ------
    ConfigError
        If they describe none. The message begins with `source` and the number of the entry.
    """
    if not isinstance(values, list):
        raise ConfigError(f"{source}: expected a JSON list of interventions, got {type(values).__name__}")
    found = []
    for number, value in enumerate(values):
        try:
            found.append(Intervention.from_dict(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{source}: entry {number}: {error}") from None
    return tuple(found)


def read_interventions(path: PathLike) -> tuple[Intervention, ...]:
    """Read a JSON file with a list of interventions, each as `Intervention.to_dict` gives it.

    Parameters
    ----------
    path : path

    Raises
    ------
    ConfigError
        If the file holds something else.
    """
    return interventions_from(read_json(path, ConfigError, _without_repeats), str(path))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a name that occurs twice is an error."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return values


def write_interventions(path: PathLike, interventions: Sequence[Intervention]) -> None:
    """Write a list of interventions to a JSON file, for `read_interventions` and for the flag ``--interventions``.

    Parameters
    ----------
    path : path
    interventions : sequence of Intervention
    """
    write_json(path, described(as_interventions(interventions)))
