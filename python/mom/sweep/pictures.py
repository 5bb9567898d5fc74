"""Curves of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import PathLike
from .._extras import need
from .._reading import shown
from ..analysis.pictures.canvas import module_colors, panels, plain_frame
from ..errors import ConfigError
from .comparing import chosen
from .tables import settings_of, varying
from .trial import Record, evaluations_in, read_records

__all__ = ["curve", "plot"]

_LINES = ("-", "--", ":", "-.")
_SPREADS = ("sd", "range")


def plot(
    dir: PathLike,
    settings: Sequence[str | Mapping[str, Any]] | None = None,
    *,
    value: str = "val_loss",
    x: str = "tokens",
    band: str = "sd",
    ax: Any = None,
) -> Any:
    """Curves of the validation loss, a line for each setting, with a band over its seeds.

    Parameters
    ----------
    dir : path
        Folder of the sweep. Trials that are still running are shown as far as they are.
    settings : sequence of str or mapping, optional
        Which settings, in this order: names of variants, or values of fields as for `compare`. By default all, in the
        order in which their lines end.
    value : str
        A number in the records of evaluations in ``log.jsonl``.
    x : {"tokens", "steps"}
        What the horizontal axis counts.
    band : {"sd", "range"}
        One standard deviation about the mean, or from the lowest to the highest seed.
    ax : matplotlib axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib figure

    Raises
    ------
    ConfigError
        If there is nothing to show.
    """
    for name, given, allowed in (("x", x, ("tokens", "steps")), ("band", band, _SPREADS)):
        if given not in allowed:
            raise ConfigError(f"{name}: {shown(given)} is not one of {', '.join(map(repr, allowed))}")
    records = list(read_records(Path(dir)))
    groups = settings_of(records) if settings is None else [
        group for choice in settings for group in settings_of(chosen(records, choice, "settings"))
    ]  # fmt: skip
    read = [(group, [one for record in group if (one := curve(record, value, x))]) for group in groups]
    curves = [(group, found) for group, found in read if found]
    if not curves:
        raise ConfigError(f"dir: no trial in {dir} has an evaluation with {value!r}")
    if settings is None:
        curves.sort(key=lambda pair: -_last(pair[1]))
    fields = [name for name in varying([record for group, _ in curves for record in group]) if name != "seed"]
    figure, (axis,) = panels(ax, 1, 5.5, 3.4)
    colors = module_colors(len(curves) + 1)  # the last one is too pale for a line
    for number, (group, found) in enumerate(curves):
        _draw(axis, found, _label(group, fields), colors[number], _LINES[number % len(_LINES)], band)
    axis.set_xlabel(x)
    axis.xaxis.set_major_formatter(need("matplotlib.ticker", "a picture", "matplotlib").EngFormatter(sep=""))
    axis.set_ylabel("validation loss (nats per token)" if value == "val_loss" else value)
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize="small")
    plain_frame(axis)
    return figure


def curve(record: Record, value: str = "val_loss", x: str = "tokens") -> dict[int, float]:
    """A number of a trial's evaluations, by tokens or steps. Half a line at the end of the log is left out."""
    training = record.settings["training"]
    scale = training["batch_size"] * training["sequence_length"] * training["accumulation"] if x == "tokens" else 1
    return {
        entry["step"] * scale: entry[value]
        for entry in evaluations_in(record.folder)
        if isinstance(entry.get(value), (int, float))
    }


def _last(found: Sequence[Mapping[int, float]]) -> float:
    """The mean at the end."""
    return float(np.mean([values[max(values)] for values in found]))


def _label(group: Sequence[Record], fields: Sequence[str]) -> str:
    names = sorted({name for record in group for name in record.names})
    flat = group[0].flat
    return ", ".join(names) or " ".join(f"{name}={flat[name]}" for name in fields if name in flat)


def _draw(axis: Any, found: Sequence[Mapping[int, float]], label: str, color: Any, line: str, band: str) -> None:
    places = sorted({place for values in found for place in values})
    values = [np.array([v[place] for v in found if place in v]) for place in places]
    mean = np.array([v.mean() for v in values])
    if band == "sd":
        spread = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
        low, high = mean - spread, mean + spread
    else:
        low, high = np.array([v.min() for v in values]), np.array([v.max() for v in values])
    axis.plot(places, mean, line, color=color, label=f"{label} (n={len(found)})" if label else None)
    axis.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)
