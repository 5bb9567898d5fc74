"""What users name: choices of a router, rounds, positions and rows; checked, and as arrays."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .layout import Layout

__all__ = [
    "ANY_SKIP", "FREE", "HALVES", "NONE", "choices_to_keep", "numbers", "round_numbers", "rounds_of", "selected",
]  # fmt: skip

HALVES = ("attn", "ffn")
#: Entries of `mom.Routes.index` that name no choice. Free: the router's best choice that is not in the row yet.
FREE = -1
#: No choice: weight 0, and nothing runs.
NONE = -2
#: SKIP, where a router has several choices that mean SKIP: the one with the best score.
ANY_SKIP = -3


def numbers(value: Any, name: str, least: int = 0) -> tuple[int, ...] | None:
    """A number or a sequence of them as a tuple; None stays None, and means all."""
    if value is None:
        return None
    items = [value] if np.ndim(value) == 0 and not isinstance(value, (set, frozenset)) else list(value)
    try:
        found = tuple(operator.index(item) for item in items)
    except TypeError:
        raise TypeError(f"{name}: expected integers or None, got {value!r}") from None
    if any(isinstance(item, (bool, np.bool_)) for item in items):
        raise TypeError(f"{name}: expected integers or None, got {value!r}")
    if not found:
        raise ValueError(f"{name}: is empty; None means all")
    if min(found) < least:
        raise ValueError(f"{name}: {min(found)} is below {least}")
    if max(found) >= 2**31:
        raise ValueError(f"{name}: {max(found)} is too large")
    return found


def round_numbers(value: Any, name: str = "rounds") -> tuple[int | tuple[int, int], ...] | None:
    """A number, or a sequence of numbers and (block, round) pairs, as a tuple; None stays None, and means all."""
    if value is None:
        return None
    wrong = f"{name}: expected numbers or (block, round) pairs, or None for all rounds, got {value!r}"
    value = value.tolist() if isinstance(value, np.ndarray) else value
    items = list(value) if isinstance(value, (list, tuple, range, set, frozenset)) else [value]
    if not items:
        raise ValueError(f"{name}: is empty; None means all")
    found: list[int | tuple[int, int]] = []
    for item in items:
        pair = isinstance(item, (tuple, list)) or (isinstance(item, np.ndarray) and item.ndim > 0)
        try:
            whole = numbers(list(item) if pair else item, name)
        except TypeError:
            raise TypeError(wrong) from None
        if whole is None or len(whole) != 1 + pair:
            raise (ValueError if pair else TypeError)(wrong)
        found.append((whole[0], whole[1]) if pair else whole[0])
    return tuple(found)


def rounds_of(value: Any, rounds: Sequence[tuple[int, int]], name: str = "rounds") -> list[int]:
    """Numbers of rounds, counted over the blocks, from what `round_numbers` takes; None means all."""
    value = round_numbers(value, name)
    if value is None:
        return list(range(len(rounds)))
    found = []
    for item in value:
        if isinstance(item, tuple):
            if item not in rounds:
                raise ValueError(f"{name}: there is no (block, round) {item}; {_rounds_there_are(rounds)}")
            found.append(rounds.index(item))
        else:
            if item >= len(rounds):
                raise ValueError(f"{name}: there is no round {item}; {_rounds_there_are(rounds)}")
            found.append(item)
    return found


def _rounds_there_are(rounds: Sequence[tuple[int, int]]) -> str:
    if not rounds:
        return "this model has no blocks"
    return f"rounds are 0 to {len(rounds) - 1}, or pairs up to {rounds[-1]}"


def selected(
    layout: Layout, tokens: Any, rows: Any, strict: bool = True
) -> npt.NDArray[np.intp]:
    """Flat numbers of the tokens at these positions of these rows. Padding never counts where positions are named.

    With `strict`, a row that does not exist and a position that is outside of all the rows are errors.
    """
    positions, wanted = numbers(tokens, "tokens"), numbers(rows, "rows")
    chosen = np.ones(len(layout.tokens), bool)
    if wanted is not None:
        if strict and max(wanted) >= layout.rows:
            raise ValueError(f"rows: there is no row {max(wanted)}; the batch has {layout.rows}")
        chosen &= np.isin(layout.row, wanted)
    if positions is not None:
        chosen &= layout.real
        missing = sorted(set(positions) - set(layout.position[chosen].tolist()))
        if strict and missing:
            longest = int(layout.position[chosen].max(initial=-1)) + 1
            raise ValueError(f"tokens: position {missing[0]} is outside of every row; the longest has {longest} tokens")
        chosen &= np.isin(layout.position, positions)
    return np.flatnonzero(chosen)


def choices_to_keep(
    to: Any, modules: int, choices: int, kept: int, free: bool = False, name: str = "to"
) -> npt.NDArray[np.int16]:
    """The entries that force a token's choices, shape (kept,).

    Parameters
    ----------
    to : int, "SKIP", or a list of them; with `free` also "free"
    modules, choices : int
        Of the router: numbers from `modules` on mean SKIP.
    kept : int
        Choices per token.
    name : str
        Of the argument, for messages.
    """
    items = list(to) if isinstance(to, (list, tuple, np.ndarray)) else [to]
    if not 1 <= len(items) <= kept:
        raise ValueError(f"{name}: {len(items)} choices, the router keeps {kept}")
    entries = [_choice(item, modules, choices, free, name) for item in items]
    fixed = [entry for entry in entries if entry != FREE]
    if len(set(fixed)) < len(fixed):
        raise ValueError(f"{name}: {to!r} names a choice twice")
    return np.array(entries + [NONE] * (kept - len(entries)), np.int16)


def _choice(item: Any, modules: int, choices: int, free: bool, name: str) -> int:
    names = "a module's number or 'SKIP'" + (" or 'free'" if free else "")
    if isinstance(item, str):
        if item == "SKIP":
            return ANY_SKIP if choices > modules + 1 else modules
        if item == "free" and free:
            return FREE
        raise ValueError(f"{name}: expected {names}, got {item!r}")
    if isinstance(item, (bool, np.bool_)) or not hasattr(item, "__index__"):
        raise TypeError(f"{name}: expected {names}, got {item!r}")
    number = operator.index(item)
    if not 0 <= number < modules:
        raise ValueError(f"{name}: there is no module {number}; there are {modules}, and 'SKIP'")
    return number
