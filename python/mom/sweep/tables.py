"""The table of a sweep: a pure function of its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._arguments import PathLike
from .._extras import need
from ..errors import ConfigError
from ..familiar import field_hint
from .trial import Record, read_records

if TYPE_CHECKING:
    import pandas

__all__ = ["VALUES", "numbers_of", "settings_of", "table", "varying"]

#: Values that a table has if nobody asks for others; measurements come after them.
VALUES = ("val_loss", "best_val_loss")
#: Numbers in ``done.json`` that are no results.
_OTHER = ("time", "threads")


def table(dir: PathLike, values: Sequence[str] | None = None) -> pandas.DataFrame:
    """Results of a sweep: a row for each setting, with mean and spread over seeds.

    The table depends on the trials' folders in `dir` alone. So folders of several machines can be copied into one, and
    seeds can be added later.

    Parameters
    ----------
    dir : path
        Folder of the sweep.
    values : sequence of str, optional
        Numbers in ``done.json``, such as ``"val_loss"``, ``"seconds"`` or ``"routes.ffn.distinct"``. By default
        ``val_loss``, ``best_val_loss`` and all measurements.

    Returns
    -------
    pandas.DataFrame
        First the names of variants and the fields that are not the same in all trials. Then ``n``, the number of seeds.
        Then for each value its mean and, under the name with ``_sd``, its standard deviation. If trials have failed,
        ``failed`` has their number. If evaluations have raised alarms of routing, ``alarms`` has their names, see
        ``docs/runs.md``. The best setting is first.

    Raises
    ------
    ConfigError
        If no trial of the folder is done, or there is no such value.
    """
    pandas = need("pandas", "a table of trials", "pandas")
    records = [record for record in read_records(Path(dir)) if record.done or record.failed]
    if not any(record.done for record in records):
        raise ConfigError(f"dir: no trial in {dir} is done{_why(records)}")
    fields = [name for name in varying(records) if name != "seed"]
    wanted = _wanted(records, values)
    rows = []
    for group in settings_of(records):
        done = [numbers_of(record.done) for record in group if record.done]
        names = sorted({name for record in group for name in record.names})
        row: dict[str, Any] = {"name": ", ".join(names), **{name: group[0].flat.get(name) for name in fields}}
        row["n"] = len(done)
        for name in wanted:
            row[name], row[f"{name}_sd"] = _mean_and_sd([numbers[name] for numbers in done if name in numbers])
        row["alarms"] = ", ".join(sorted({name for r in group if r.done for name in r.done.get("alarms", [])}))
        row["failed"] = len(group) - len(done)
        rows.append(row)
    first = wanted[0] if wanted else "n"
    rows.sort(key=lambda row: (math.isnan(row[first]), row[first]))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    # As objects, whole numbers stay whole numbers where a setting does not have the field.
    found = pandas.DataFrame({name: pandas.Series(values, dtype=object if None in values else None)
                              for name, values in columns.items()})  # fmt: skip
    return found.drop(columns=[name for name in ("name", "alarms", "failed") if not any(row[name] for row in rows)])


def _why(records: Sequence[Record]) -> str:
    failed = [record.failed for record in records if record.failed]
    return f"; {len(failed)} failed, one of them with {failed[0].get('error')}" if failed else ""


def numbers_of(values: Mapping[str, Any] | None, prefix: str = "") -> dict[str, float]:
    """All numbers in the content of ``done.json``; names of nested ones are joined by dots."""
    found: dict[str, float] = {}
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            found.update(numbers_of(value, f"{prefix}{name}."))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def _wanted(records: Iterable[Record], values: Sequence[str] | None) -> list[str]:
    known: dict[str, None] = {}
    for record in records:
        known.update(dict.fromkeys(numbers_of(record.done)))
    if values is None:
        own = ("lm_loss", "best_step", "steps", "skipped_steps", "tokens", "seconds", "tokens_per_second", "parameters")
        return [*VALUES, *(name for name in known if name not in (*VALUES, *own, *_OTHER))]
    names = [values] if isinstance(values, str) else list(values)
    for name in names:
        if name not in known:
            hint = field_hint("value", str(name), list(known))
            raise ConfigError(f"values: no trial has {name!r}{hint}")
    return names


def varying(records: Sequence[Record]) -> list[str]:
    """Names of the fields that are not the same in all trials that have them."""
    flat = [record.flat for record in records]
    names = dict.fromkeys(name for values in flat for name in values)
    return [name for name in names if len({repr(values[name]) for values in flat if name in values}) > 1]


def settings_of(records: Sequence[Record]) -> list[list[Record]]:
    """The trials, grouped by everything but their seeds."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = repr(sorted((name, value) for name, value in record.flat.items() if name != "seed"))
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
