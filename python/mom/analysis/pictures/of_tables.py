"""Pictures of tables: of the drift between two models, and of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .canvas import INK, PALE, TITLES, name_rounds, new_figure, panels, plain_frame, tokens_shown

if TYPE_CHECKING:
    import pandas

    from ..audit import Audit

__all__ = ["plot_audit", "plot_drift"]

_MARKERS = {"attn": "o", "ffn": "s"}
_FILLS = {"attn": "white", "ffn": "black"}


def plot_drift(table: pandas.DataFrame, ax: Any = None) -> Any:
    """Agreement of two models round by round, from the table of `drift`: one panel per half.

    Returns
    -------
    matplotlib.figure.Figure
        Filled: after matching the modules, with 95 % intervals. Open: before it. Dashed: what chance gives.
    """
    wanted = {"half", "block", "round", "agreement", "matched", "low", "high", "chance"}
    if not wanted <= set(getattr(table, "columns", ())) or not len(table):
        raise ValueError(f"table: expected the table of mom.analysis.drift, with columns {', '.join(sorted(wanted))}")
    halves = list(dict.fromkeys(table["half"]))
    figure, axes = panels(ax, len(halves), 3.6, 3.0)
    for axis, half in zip(axes, halves, strict=True):
        own = table[table["half"] == half]
        x, value = np.arange(len(own)), own["matched"].to_numpy()
        reach = np.nan_to_num([value - own["low"].to_numpy(), own["high"].to_numpy() - value])
        axis.errorbar(x, value, reach, color=INK, marker="o", capsize=3, linewidth=1.4, label="matched")
        axis.plot(x, own["agreement"], color="0.45", marker="o", markersize=9, markerfacecolor="white", linewidth=1.0,
                  label="before matching")  # fmt: skip
        axis.plot(x, own["chance"], color="0.45", linestyle="--", linewidth=1.0, label="chance")
        name_rounds(axis, list(zip(own["block"], own["round"], strict=True)), x, "x")
        axis.set_ylim(0.0, 1.03)
        axis.set_title(TITLES[half], fontsize=10)
        plain_frame(axis)
    axes[0].set_ylabel("share of equal choices")
    if ax is None and "tokens" in table.attrs:
        figure.suptitle(tokens_shown(table.attrs["tokens"]), fontsize=10)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def plot_audit(result: Audit, against: str = "drop_one") -> Any:
    """See `Audit.plot`."""
    of_modules = [m for m in result.measures if result.table.loc[result.table["module"].notna(), m].notna().any()]
    of_rounds = [m for m in result.measures if m not in of_modules]
    if against not in of_modules and (of_modules or not of_rounds):
        raise ValueError(f"against: {against!r} is no measure of modules here; there are {', '.join(of_modules)}")
    cheap = [measure for measure in of_modules if measure != against]
    halves = list(dict.fromkeys(result.table["half"])) if of_rounds else []
    count = len(cheap) + len(halves)
    if not count:
        raise ValueError("measures: there is nothing to compare; audit at least two measures")
    across = min(4, count)
    down = -(-count // across)
    figure = new_figure(2.9 * across, 2.7 * down)
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    figure.suptitle(f"{tokens_shown(result.tokens)}, loss {result.loss:.3f} nats per token", fontsize=10)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, measure in zip(axes, cheap, strict=False):
        _scatter(axis, result, measure, against)
    if cheap:
        axes[0].legend(frameon=False, fontsize=7)
    for axis, half in zip(axes[len(cheap) :], halves, strict=False):
        _bars(axis, result, half, of_rounds)
    return figure


def _scatter(axis: Any, result: Audit, measure: str, against: str) -> None:
    table = result.table[result.table["module"].notna()]
    for half, own in table.groupby("half"):
        x, y = own[measure].to_numpy(), own[against].to_numpy()
        reach = [[own[f"{m}_{end}"].to_numpy() for end in ("low", "high")] for m in (measure, against)]
        bars = [np.nan_to_num([np.maximum(0, v - low), np.maximum(0, high - v)]) for v, (low, high) in
                zip((x, y), reach, strict=True)]  # fmt: skip
        axis.errorbar(x, y, bars[1], bars[0], linestyle="none", marker=_MARKERS[half], markersize=5, color=INK,
                      markerfacecolor=_FILLS[half], elinewidth=0.7, label=TITLES[half])  # fmt: skip
    axis.axhline(0.0, color=PALE, linewidth=0.8, zorder=0)
    try:
        shown = f"rank correlation {result.correlation(measure, against):.2f}"
    except ValueError:
        shown = "too few modules"
    axis.set_title(shown, fontsize=9)
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel(measure)
    axis.set_ylabel(f"{against} (nats)" if against in ("drop_one", "taylor") else against)
    plain_frame(axis)


def _bars(axis: Any, result: Audit, half: str, measures: Sequence[str]) -> None:
    own = result.table[result.table["round"].notna() & (result.table["half"] == half)]
    width = 0.8 / len(measures)
    shades = ["0.15", "0.55", "0.85"]
    for number, measure in enumerate(measures):
        value = own[measure].to_numpy(float)
        ends = [np.nan_to_num(np.maximum(0, value - own[f"{measure}_low"].to_numpy(float))),
                np.nan_to_num(np.maximum(0, own[f"{measure}_high"].to_numpy(float) - value))]  # fmt: skip
        x = np.arange(len(own)) + (number - (len(measures) - 1) / 2) * width
        axis.bar(x, np.nan_to_num(value), width, yerr=ends, color=shades[number % 3], edgecolor="black", linewidth=0.6,
                 error_kw={"linewidth": 0.7, "capsize": 2}, label=measure.replace("_", " "))  # fmt: skip
    name_rounds(axis, list(zip(own["block"].astype(int), own["round"].astype(int), strict=True)), range(len(own)), "x")
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set_ylabel("loss increase (nats)")
    axis.set_title(TITLES[half], fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.11 * len(measures) * (high - low))  # the legend stands above all bars
    axis.legend(frameon=False, fontsize=7, loc="upper left")
    plain_frame(axis)
