"""Two settings of a sweep, compared in pairs with equal seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import PathLike
from .._extras import need
from .._html import html_table
from .._reading import shown
from ..errors import ConfigError
from ..familiar import field_hint
from .tables import numbers_of, varying
from .trial import Record, read_records

if TYPE_CHECKING:
    import pandas

__all__ = ["Comparison", "chosen", "compare", "t_interval"]

_LEVEL = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True, repr=False)
class Comparison:
    """How much two settings differ.

    Attributes
    ----------
    a, b : str
        The settings in words.
    value : str
        What is compared.
    n : int
        Number of pairs.
    difference : float
        Mean of `a` minus `b`.
    low, high : float
        The 95 % interval of the difference; NaN for a single pair.
    table : DataFrame
        A row for each pair: what the two have in common, ``a``, ``b`` and ``difference``.
    """

    a: str
    b: str
    value: str
    n: int
    difference: float
    low: float
    high: float
    table: pandas.DataFrame = field(compare=False)

    def __repr__(self) -> str:
        between = "one pair, so no interval" if self.n == 1 else f"95 % from {self.low:+.4f} to {self.high:+.4f}"
        pairs = f", {self.n} pairs" if self.n > 1 else ""
        return f"<Comparison: {self.value} of {self.a} minus {self.b}: {self.difference:+.4f} ({between}{pairs})>"

    def _repr_html_(self) -> str:
        rows = self.table.itertuples(index=False)
        return html_table(repr(self).strip("<>"), list(self.table.columns), rows, text_columns=0)


def compare(
    dir: PathLike,
    a: str | Mapping[str, Any],
    b: str | Mapping[str, Any],
    *,
    value: str = "val_loss",
    interval: str = "t",
) -> Comparison:
    """Compare two settings of a sweep. Trials with the same seed form pairs.

    Runs with the same seed see the same data in the same order. So their differences spread less than their losses do.

    Parameters
    ----------
    dir : path
        Folder of the sweep.
    a, b : str or mapping
        The name of a variant, or values of fields, such as ``{"routing_top_k": 1}``. If other fields vary within both,
        pairs agree in them, too.
    value : str
        A number in ``done.json``; see `table`.
    interval : {"t", "bootstrap"}
        Student's t, or percentiles of 10,000 means of resampled pairs.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError
        If a setting has no trials, or several with one seed, or if no seed is common to both.
    """
    if interval not in ("t", "bootstrap"):
        raise ConfigError(f"interval: {shown(interval)} is not one of 't', 'bootstrap'")
    pandas = need("pandas", "a comparison", "pandas")
    records = [record for record in read_records(Path(dir)) if record.done]
    sides = [chosen(records, choice, name) for choice, name in ((a, "a"), (b, "b"))]
    fixed = {name for choice in (a, b) if isinstance(choice, Mapping) for name in choice}
    within = dict.fromkeys(["seed", *(name for side in sides for name in varying(side) if name not in fixed)])
    first, second = (_by_key(side, list(within), value, name) for side, name in zip(sides, "ab", strict=True))
    common = sorted(first.keys() & second.keys(), key=repr)
    if not common:
        raise ConfigError(f"a, b: no trial of {_words(a)} has the {' and '.join(within)} of one of {_words(b)}")
    differences = np.array([first[key] - second[key] for key in common])
    low, high = _interval(differences, interval)
    pairs = [(*key, first[key], second[key], first[key] - second[key]) for key in common]
    table = pandas.DataFrame(pairs, columns=[*within, "a", "b", "difference"])
    return Comparison(_words(a), _words(b), value, len(common), float(differences.mean()), low, high, table)


def _words(choice: str | Mapping[str, Any]) -> str:
    return choice if isinstance(choice, str) else " ".join(f"{name}={value}" for name, value in choice.items())


def chosen(records: Sequence[Record], choice: Any, argument: str) -> list[Record]:
    """The trials of a variant, or those whose fields have the values."""
    if isinstance(choice, str):
        names = sorted({name for record in records for name in record.names})
        found = [record for record in records if choice in record.names]
        if not found:
            has = f"has {', '.join(names)}" if names else "has no variants"
            raise ConfigError(f"{argument}: no trial that is done has the name {choice!r}; the folder {has}")
        return found
    if not isinstance(choice, Mapping):
        raise TypeError(f"{argument}: expected a name or a mapping of fields, got {type(choice).__name__}")
    known = list(dict.fromkeys(name for record in records for name in record.flat))
    for name in choice:
        if name not in known:
            raise ConfigError(f"{argument}: {name}: unknown field{field_hint('run', str(name), known)}")
    found = [record for record in records if all(record.flat.get(name) == choice[name] for name in choice)]
    if not found:
        raise ConfigError(f"{argument}: no trial that is done has {_words(choice)}")
    return found


def _by_key(records: Sequence[Record], names: list[str], value: str, argument: str) -> dict[tuple[Any, ...], float]:
    found: dict[tuple[Any, ...], float] = {}
    for record in records:
        key = tuple(record.flat.get(name) for name in names)
        numbers = numbers_of(record.done)
        if value not in numbers:
            hint = field_hint("value", value, list(numbers))
            raise ConfigError(f"value: {record.folder.name} has no {value!r}{hint}")
        if key in found:
            both = " ".join(f"{name}={part}" for name, part in zip(names, key, strict=True))
            raise ConfigError(f"{argument}: two trials have {both}; name further fields to choose one of them")
        found[key] = numbers[value]
    return found


def t_interval(values: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """Student's interval at 95% for the mean of at least two values."""
    stats = need("scipy.stats", "an interval of Student's t", "scipy")
    n = np.size(values)
    reach = float(stats.t.ppf(0.5 + _LEVEL / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def _interval(differences: np.ndarray[Any, Any], kind: str) -> tuple[float, float]:
    n = len(differences)
    if n < 2:
        return math.nan, math.nan
    if kind == "t":
        return t_interval(differences)
    drawn = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2])
    return float(low), float(high)
