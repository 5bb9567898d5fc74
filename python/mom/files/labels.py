"""Names of a classifier's labels in ``config.json``, as transformers keeps them: ``id2label`` and ``label2id``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._reading import shown
from ..errors import CheckpointError

__all__ = ["check_labels", "label_fields", "read_labels"]

#: What transformers calls labels that have no names.
_UNNAMED = re.compile(r"LABEL_\d+")


def check_labels(names: Sequence[Any], count: int, what: str) -> tuple[str, ...]:
    """Names of `count` labels, checked; `what` begins the message.

    Raises
    ------
    CheckpointError
        If there are more or fewer, or they are not distinct texts.
    """
    if len(names) != count:
        raise CheckpointError(f"{what}: {len(names)} names, but the model has {count} labels")
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != count:
        raise CheckpointError(f"{what}: expected distinct names, got {', '.join(map(shown, names[:16]))}")
    return tuple(names)


def read_labels(fields: Mapping[str, Any], count: int, source: str) -> tuple[str, ...] | None:
    """Names of the labels in the order of the model's outputs; None if they have none.

    Parameters
    ----------
    fields : mapping
        Of ``config.json``.
    count : int
        Outputs of the model.
    source : str
        Path of the file, for messages.

    Raises
    ------
    CheckpointError
        If the names do not fit the model, or ``id2label`` and ``label2id`` contradict each other.
    """
    by_number = {str(number): name for number, name in _mapping(fields, "id2label", source).items()}
    by_name = _mapping(fields, "label2id", source)
    names = _named(_in_order(by_number, source, "id2label"))
    others = _named(_in_order({str(number): name for name, number in by_name.items()}, source, "label2id"))
    if names and others and names != others:
        raise CheckpointError(
            f"{source}: id2label says {_listing(names)}, but label2id says {_listing(others)}; make them agree"
        )
    found = names or others
    return check_labels(found, count, f"{source}: id2label") if found else None


def _mapping(fields: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    values = fields.get(name)
    if values is not None and not isinstance(values, Mapping):
        raise CheckpointError(f"{source}: {name}: expected an object, got {type(values).__name__}")
    return values or {}


def _in_order(names: Mapping[str, Any], source: str, field: str) -> list[Any]:
    """The names in the order of their numbers, which must be 0, 1, 2, ..."""
    wanted = [str(number) for number in range(len(names))]
    if set(names) != set(wanted):
        found = _listing([*names])
        raise CheckpointError(f"{source}: {field}: the numbers are {found}, expected 0 to {len(names) - 1}")
    return [names[number] for number in wanted]


def _named(names: list[Any]) -> list[Any]:
    """The names, or none if they are only numbered."""
    return [] if all(isinstance(name, str) and _UNNAMED.fullmatch(name) for name in names) else names


def _listing(names: Sequence[Any]) -> str:
    """The first few names, shortened; they may be no texts."""
    return ", ".join(str(name)[:80] for name in names[:16])


def label_fields(names: Sequence[str] | None, count: int) -> dict[str, Any]:
    """The fields of ``config.json`` for labels with these names, or without names."""
    names = [f"LABEL_{i}" for i in range(count)] if names is None else names
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }  # fmt: skip
