"""What all pictures share: figures, names, colours and lines between blocks.

Shares are shades of one blue. Modules have the colours of a map that is as readable in greyscale and for colour-blind
people as in colour: darker modules have lower numbers. SKIP is white.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._extras import need
from ...model import Routes
from ..choices import halves_of

__all__ = [
    "INK", "PALE", "SHARES", "TITLES", "heat_map", "ink_on", "module_colors", "module_names", "name_rounds",
    "need_halves", "new_figure", "panels", "part_blocks", "plain_frame", "shortened", "tokens_shown",
]  # fmt: skip

TITLES = {"attn": "attention", "ffn": "feed-forward"}
INK, PALE = "0.15", "0.75"
#: Colour map of shares.
SHARES = "Blues"
_MOST_LETTERS = 18
#: The method that IPython calls to show a value.
_SHOW = "_ipython_display_"


# ---------------------------------------------------------------------- figures
def new_figure(width: float, height: float) -> Any:
    """A figure of a size in inches.

    Where pyplot is in use, and in notebooks, it is one of pyplot's. So ``plt.show()`` shows it, and a notebook shows
    every figure of a cell once.
    """
    plain = need("matplotlib.figure", "a picture", "matplotlib").Figure
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None and "ipykernel" in sys.modules:
        pyplot = need("matplotlib.pyplot", "a picture", "matplotlib")
    if pyplot is None:
        return plain(figsize=(width, height), layout="constrained")
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    if "inline" in pyplot.get_backend():
        setattr(figure, _SHOW, functools.partial(_display_once, figure))
    return figure


def _display_once(figure: Any) -> None:
    """Show a figure in a notebook and close it. Otherwise the last value of a cell would be shown again at its end."""
    need("matplotlib.pyplot", "a picture", "matplotlib").close(figure)
    delattr(figure, _SHOW)
    try:
        need("IPython.display", "a picture", "ipython").display(figure)
    finally:
        setattr(figure, _SHOW, functools.partial(_display_once, figure))


def panels(ax: Any, count: int, width: float, height: float, down: bool = False) -> tuple[Any, list[Any]]:
    """A figure and its axes: the given one, or new ones beside or below each other."""
    if ax is not None:
        if count > 1:
            raise ValueError(f"ax: there are {count} panels; name one half, or leave ax out")
        return ax.figure, [ax]
    figure = new_figure(*((width, height * count) if down else (width * count, height)))
    axes = figure.subplots(*((count, 1) if down else (1, count)), squeeze=False)
    return figure, list(axes.ravel())


def plain_frame(axis: Any) -> None:
    """Leave out the frame's upper and right side."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


# ---------------------------------------------------------------------- names
def need_halves(routes: Routes, half: str | None) -> list[str]:
    """The halves to show."""
    halves = halves_of(routes, half)
    if not halves:
        raise ValueError("routes: the model has no routers, so there is nothing to show")
    return halves


def module_names(half: str, modules: int) -> list[str]:
    """``A0, A1, ..., SKIP`` or ``F0, ..., SKIP``."""
    return [*(f"{half[0].upper()}{module}" for module in range(modules)), "SKIP"]


def shortened(text: str) -> str:
    """A text that fits beside an axis."""
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"


def tokens_shown(count: int) -> str:
    """How many tokens a picture is about."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def name_rounds(axis: Any, rounds: Sequence[tuple[int, int]], at: Any, along: str) -> None:
    """Label the rounds ``(block, round)`` at some places along "x" or "y". The first round of each block names it."""
    several = any(block for block, _ in rounds)
    first = {block: number for number, (block, _) in reversed(list(enumerate(rounds)))}
    form = "block {0}   {1}" if along == "y" else "{1}\nblock {0}"
    labels = [form.format(block, round) if several and first[block] == number else str(round)
              for number, (block, round) in enumerate(rounds)]  # fmt: skip
    getattr(axis, f"set_{along}ticks")(at, labels)
    getattr(axis, f"set_{along}label")("round")


# ---------------------------------------------------------------------- colours and cells
def module_colors(modules: int) -> npt.NDArray[np.float64]:
    """A colour for each module, shape (modules, 4)."""
    shades = need("matplotlib", "a picture").colormaps["cividis"]
    colors: npt.NDArray[np.float64] = shades(np.linspace(0.05, 0.97, max(2, modules)))[:modules]
    return colors


def ink_on(color: Sequence[float]) -> str:
    """Black or white, whichever is read better on a colour."""
    return "black" if np.dot(color[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"


def heat_map(axis: Any, values: npt.NDArray[np.float64], top: float, aspect: str = "auto") -> Any:
    """Cells shaded from 0 to `top`, with their numbers."""
    image = axis.imshow(values, vmin=0.0, vmax=top, cmap=SHARES, aspect=aspect)
    axis.tick_params(length=0)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.2f}".lstrip("0") if value < 1 else f"{value:.2f}"
            color = "white" if value > 0.55 * top else "black"
            axis.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    return image


def part_blocks(axis: Any, rounds: Sequence[tuple[int, int]], stripes: int = 1) -> None:
    """White lines between the blocks, where each round has some rows of cells."""
    for number in range(1, len(rounds)):
        if rounds[number][0] != rounds[number - 1][0]:
            axis.axhline(number * stripes - 0.5, color="white", linewidth=5.0)
