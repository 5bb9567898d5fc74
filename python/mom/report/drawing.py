"""Figures as SVG: the same numbers give the same bytes. Words have the colour of the page's text, lines are grey."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .claims import Interval

__all__ = ["Line", "dots", "lines"]

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 62, 14, 12, 44
#: Mid-tones that are read on white and on black, with different lightness. Dashes and marks tell lines apart in grey.
_COLORS = ("#2f6fb2", "#d1781c", "#2c8a5b", "#9a6fc4", "#8a8a8a")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4")
#: Of frames and intervals: it is seen on white and on black.
_GREY = "#808080"
_STYLE = "font-family:system-ui,sans-serif;font-size:13px;color:inherit"


@dataclass(frozen=True)
class Line:
    """A line with a band.

    Attributes
    ----------
    label : str
    x, y : sequence of float
    low, high : sequence of float
        Ends of the intervals; NaN where there is none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = field(default_factory=list)
    high: Sequence[float] = field(default_factory=list)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two ends."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


class _Scale:
    """From values to places on the page."""

    def __init__(self, values: Sequence[float], begin: float, end: float, margin: float = 0.04) -> None:
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        room = margin * (high - low) or max(abs(high), 1.0) * 0.05
        self.low, self.high, self._begin, self._end = low - room, high + room, begin, end

    def __call__(self, value: float) -> float:
        return self._begin + (value - self.low) / (self.high - self.low) * (self._end - self._begin)


def _text(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{more}>{html.escape(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, opacity: float = 0.2) -> str:
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GREY}" '
            f'stroke-opacity="{opacity:g}"/>')  # fmt: skip


def _page(height: float, alt: str, parts: Sequence[str]) -> str:
    title = html.escape(alt, quote=True)
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
            f'aria-label="{title}" style="{_STYLE}"><title>{html.escape(alt)}</title>')  # fmt: skip
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _mark(number: int, x: float, y: float) -> str:
    """A mark of a line's own form."""
    color = _COLORS[number % len(_COLORS)]
    forms = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>',
        f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{color}"/>',
        f'<path d="M{x:.1f} {y - 5:.1f}L{x + 5:.1f} {y + 4:.1f}H{x - 5:.1f}Z" fill="{color}"/>',
        f'<path d="M{x:.1f} {y - 5:.1f}L{x + 5:.1f} {y:.1f}L{x:.1f} {y + 5:.1f}L{x - 5:.1f} {y:.1f}Z" fill="{color}"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{color}" stroke-width="2"/>',
    )  # fmt: skip
    return forms[number % len(forms)]


def lines(found: Sequence[Line], x_label: str, y_label: str, alt: str, level: float | None = None) -> str:
    """Lines with bands. `level`: a horizontal line, such as a margin."""
    legend = 20 * len(found)
    height = 300 + legend
    bottom = height - _BOTTOM - legend
    across = _Scale([x for line in found for x in line.x], _LEFT, _WIDTH - _RIGHT)
    up = _Scale([v for line in found for v in (*line.y, *line.low, *line.high)] + ([] if level is None else [level]),
                bottom, _TOP)  # fmt: skip
    parts = []
    for value in _ticks(up.low, up.high):
        parts += [
            _rule(_LEFT, up(value), _WIDTH - _RIGHT, up(value)),
            _text(_LEFT - 6, up(value) + 4, f"{value:g}", "end"),
        ]
    for value in _ticks(across.low, across.high):
        parts += [_rule(across(value), bottom, across(value), bottom + 4, 0.6),
                  _text(across(value), bottom + 18, _number(value))]  # fmt: skip
    parts.append(_rule(_LEFT, bottom, _WIDTH - _RIGHT, bottom, 0.6))
    if level is not None:
        parts.append(f'<line x1="{_LEFT}" y1="{up(level):.1f}" x2="{_WIDTH - _RIGHT}" y2="{up(level):.1f}" '
                     f'stroke="{_GREY}" stroke-dasharray="4 3"/>')  # fmt: skip
    middle = (_TOP + bottom) / 2
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, x_label))
    parts.append(_text(14, middle, y_label, more=f' transform="rotate(-90 14 {middle:.1f})"'))
    for number, line in enumerate(found):
        parts += _line(number, line, across, up)
        y = bottom + 54 + 20 * number
        color, dash = _COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)]
        parts.append(f'<line x1="{_LEFT}" y1="{y - 4:.1f}" x2="{_LEFT + 38}" y2="{y - 4:.1f}" stroke="{color}" '
                     f'stroke-width="2" stroke-dasharray="{dash}"/>')  # fmt: skip
        parts += [_mark(number, _LEFT + 19, y - 4), _text(_LEFT + 46, y, line.label, "start")]
    return _page(height, alt, parts)


def _line(number: int, line: Line, across: _Scale, up: _Scale) -> list[str]:
    color, dash = _COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)]
    parts = []
    banded = [i for i, (low, high) in enumerate(zip(line.low, line.high, strict=True))
              if math.isfinite(low) and math.isfinite(high)]  # fmt: skip
    if len(banded) > 1:
        edge = [(line.x[i], line.high[i]) for i in banded] + [(line.x[i], line.low[i]) for i in reversed(banded)]
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in edge)
        parts.append(f'<polygon points="{points}" fill="{color}" fill-opacity="0.18"/>')
    points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
    parts.append(
        f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dash}"/>'
    )
    return parts + [_mark(number, across(x), up(y)) for x, y in zip(line.x, line.y, strict=True)]


def dots(rows: Sequence[tuple[str, Interval, Sequence[float]]], x_label: str, alt: str) -> str:
    """For each row, the values of the seeds, their mean, and its interval. Zero has a line if it is in the range."""
    place, left = 46.0, 16
    height = _TOP + place * len(rows) + _BOTTOM
    bottom = height - _BOTTOM
    known = [v for _, found, values in rows for v in (found.mean, found.low, found.high, *values)]
    across = _Scale(known, left, _WIDTH - _RIGHT)
    parts = []
    for value in _ticks(across.low, across.high):
        parts += [_rule(across(value), _TOP, across(value), bottom), _text(across(value), bottom + 18, _number(value))]
    if across.low < 0 < across.high:
        parts.append(_rule(across(0), _TOP, across(0), bottom, 0.9))
    for number, (label, found, values) in enumerate(rows):
        y = _TOP + place * number + 32
        parts.append(_text(left, y - 16, label, "start"))
        if found.is_known:
            parts.append(f'<line x1="{across(found.low):.1f}" y1="{y:.1f}" x2="{across(found.high):.1f}" y2="{y:.1f}" '
                         f'stroke="{_GREY}" stroke-width="2"/>')  # fmt: skip
            parts += [_rule(across(end), y - 5, across(end), y + 5, 1) for end in (found.low, found.high)]
        parts += [f'<circle cx="{across(value):.1f}" cy="{y:.1f}" r="3" fill="none" stroke="{_GREY}"/>'
                  for value in values]  # fmt: skip
        parts.append(_mark(1, across(found.mean), y))
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, bottom + 36, x_label))
    return _page(height, alt, parts)
