"""Pictures of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._extras import need
from ...model import Routes
from ..choices import modules_of, modules_of_row, texts_of_row, tokens_of
from ..module_use import module_use
from ..paths import coactivation
from .canvas import (
    INK,
    TITLES,
    heat_map,
    ink_on,
    module_colors,
    module_names,
    name_rounds,
    need_halves,
    panels,
    part_blocks,
    plain_frame,
    shortened,
    tokens_shown,
)

__all__ = ["plot_coactivation", "plot_flow", "plot_module_use", "plot_routes"]

#: Up to so many tokens, cells of `plot_routes` are labelled and parted.
_MOST_LABELLED = 48
#: Inches of a labelled cell, and the least room for a token's name.
_CELL, _NAME = 0.3, 0.15


def plot_module_use(routes: Routes, half: str | None = None, title: str | None = None, ax: Any = None) -> Any:
    """Heat map of the share of choices that fall on each module, one panel per half. Padding is left out.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        By default a panel for each half with a router.
    title : str, optional
    ax : matplotlib axes, optional
        To draw into; then there must be one panel.

    Returns
    -------
    matplotlib.figure.Figure
        A row per round. The last column is SKIP.
    """
    halves, use = need_halves(routes, half), module_use(routes)
    columns = max(use[h].share.shape[1] for h in halves)
    figure, axes = panels(ax, len(halves), 1.4 + 0.48 * columns, 1.5 + 0.36 * len(routes.rounds))
    top = max(float(use[h].share.max()) for h in halves)
    for axis, h in zip(axes, halves, strict=True):
        share, modules = use[h].share, routes.num_modules[h]
        image = heat_map(axis, share, top)
        axis.set_xticks(range(modules + 1), module_names(h, modules))
        axis.axvline(modules - 0.5, color="white", linewidth=5.0)
        part_blocks(axis, routes.rounds)
        name_rounds(axis, routes.rounds, range(len(share)), "y")
        axis.set_title(f"{TITLES[h]}, {tokens_shown(len(tokens_of(routes).ids))}", fontsize=10)
        plain_frame(axis)
    figure.colorbar(image, ax=axes, label="share of choices")
    if title:
        figure.suptitle(title)
    return figure


def plot_routes(
    routes: Routes, row: int = 0, names: Sequence[str] | None = None, half: str | None = None, ax: Any = None
) -> Any:
    """The modules of each token of one sequence, round by round.

    Parameters
    ----------
    routes : Routes
    row : int
        Which sequence.
    names : sequence of str, optional
        Text of each token of the row, padding included; by default the ids. Long ones are cut.
    half : {"attn", "ffn"}, optional
        By default a panel for each half with a router.
    ax : matplotlib axes, optional
        To draw into; then there must be one panel.

    Returns
    -------
    matplotlib.figure.Figure
        Rounds stand from top to bottom, black lines between them and white ones between blocks. A round has a stripe
        for each choice, the best at the top. Colour and name tell the module; SKIP is a dash.
    """
    halves = need_halves(routes, half)
    texts = [shortened(text) for text in texts_of_row(routes, row, names)]
    stripes = len(routes.rounds) * max(routes.index[h].shape[-1] for h in halves)
    width, height = max(2.0, _CELL * min(len(texts), _MOST_LABELLED)), max(0.9, 0.2 * stripes)
    figure, axes = panels(ax, len(halves), width + 2.0, height + 0.9, down=True)
    for axis, h in zip(axes, halves, strict=True):
        chosen, modules = modules_of_row(routes, h, row), routes.num_modules[h]
        K = chosen.shape[-1]
        _stripes(axis, chosen, h, modules)
        part_blocks(axis, routes.rounds, K)
        name_rounds(axis, routes.rounds, np.arange(len(chosen)) * K + (K - 1) / 2, "y")
        _legend(axis, h, modules, height)
        axis.set_title(f"{TITLES[h]} modules, {tokens_shown(len(texts))}", fontsize=10)
        axis.set_xticks([])
    step = max(1, int(np.ceil(len(texts) * _NAME / width)))
    rotation = 90 if max(map(len, texts), default=0) > 2 else 0
    axes[-1].set_xticks(  # "$" is text
        range(0, len(texts), step), texts[::step], rotation=rotation, fontsize=8, parse_math=False
    )
    return figure


def _stripes(axis: Any, chosen: npt.NDArray[Any], half: str, modules: int) -> None:
    """Cells of choices (L, T, K): coloured by module, with its name."""
    L, T, K = chosen.shape
    cells = chosen.transpose(0, 2, 1).reshape(L * K, T)
    colors = module_colors(modules)
    shown = need("matplotlib.colors", "a picture", "matplotlib").ListedColormap(colors)
    axis.imshow(np.ma.masked_equal(cells, modules), vmin=-0.5, vmax=modules - 0.5, cmap=shown, aspect="auto",
                interpolation="nearest")  # fmt: skip
    for line in np.arange(1, L) * K - 0.5:
        axis.axhline(line, color="black", linewidth=1.0)
    axis.tick_params(length=0)
    if T > _MOST_LABELLED:
        return
    for line in np.arange(1, T) - 0.5:
        axis.axvline(line, color="white", linewidth=0.8)
    names = [*module_names(half, modules)[:-1], "–"]
    ink = [*map(ink_on, colors), "0.4"]
    for (y, x), module in np.ndenumerate(cells):
        axis.text(x, y, names[module], ha="center", va="center", fontsize=6.5, color=ink[module])


def _legend(axis: Any, half: str, modules: int, height: float) -> None:
    """The colours of the modules to the right of cells that are some inches high."""
    Patch = need("matplotlib.patches", "a picture", "matplotlib").Patch
    colors = [*module_colors(modules), "white"]
    patches = [Patch(facecolor=color, edgecolor="0.5", linewidth=0.6, label=name)
               for color, name in zip(colors, module_names(half, modules), strict=True)]  # fmt: skip
    columns = -(-len(patches) // max(2, int(height / 0.19)))
    axis.legend(handles=patches, loc="upper left", bbox_to_anchor=(1.0, 1.03), fontsize=7, frameon=False, ncols=columns,
                labelspacing=0.3, handlelength=1.2, columnspacing=1.0)  # fmt: skip


def plot_flow(routes: Routes, half: str | None = None, block: int = 0, ax: Any = None) -> Any:
    """How tokens flow from module to module: a Sankey diagram of the best choices of a block's half-rounds.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        Only this half of each round; by default both in the order of the computation.
    block : int
    ax : matplotlib axes, optional
        To draw into.

    Returns
    -------
    matplotlib.figure.Figure
        A column is a half-round. The height of a box is the share of the tokens whose best choice is that module; a
        band is as high as the share that goes from one box to the next, and has the colour of the first. White boxes
        are SKIP.
    """
    halves = need_halves(routes, half)
    rounds = [number for number, (b, _) in enumerate(routes.rounds) if b == block]
    if not rounds:
        raise ValueError(f"block: there is no block {block}; rounds are {routes.rounds}")
    best = {h: _best(routes, h) for h in halves}
    columns = [(h, routes.rounds[n][1], best[h][n]) for n in rounds for h in halves]
    figure, (axis,) = panels(ax, 1, 1.6 + 1.25 * len(columns), 4.2)
    gap = 0.02
    sizes = [routes.num_modules[h] + 1 for h, _, _ in columns]
    below = [_box_starts(values, size, gap) for (_, _, values), size in zip(columns, sizes, strict=True)]
    for x in range(len(columns) - 1):
        _bands(axis, x, columns[x][2], columns[x + 1][2], below[x], below[x + 1])
    for x, (h, _, values) in enumerate(columns):
        _boxes(axis, x, values, below[x], h)
    axis.set_xlim(-0.3, len(columns) - 0.7)
    axis.set_ylim(-0.02, 1.0 + gap * max(sizes))
    axis.set_xticks(range(len(columns)), [f"{TITLES[h]}\nround {r}" for h, r, _ in columns], fontsize=8)
    axis.set_yticks([])
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    of_block = f", block {block}" if any(b for b, _ in routes.rounds) else ""
    axis.set_title(f"Best choice of each token{of_block}, {tokens_shown(columns[0][2].size)}", fontsize=10)
    return figure


def _best(routes: Routes, half: str) -> npt.NDArray[np.int64]:
    """The best choice of each real token, shape (L, N)."""
    modules_of(routes, half)  # refuses free choices
    first = routes.module[half][..., 0].reshape(len(routes.rounds), -1)
    real = slice(None) if routes.mask is None else routes.mask.ravel()
    found: npt.NDArray[np.int64] = first[:, real].astype(np.int64)
    return found


def _box_starts(values: npt.NDArray[np.int64], size: int, gap: float) -> npt.NDArray[np.float64]:
    """Lower ends of the boxes: SKIP at the bottom, module 0 at the top."""
    share = np.bincount(values, minlength=size) / len(values)
    upwards = share[::-1]
    starts = np.concatenate([[0.0], np.cumsum(upwards + gap * (upwards > 0))[:-1]])
    return starts[::-1]


def _boxes(axis: Any, x: int, values: npt.NDArray[np.int64], starts: npt.NDArray[np.float64], half: str) -> None:
    Rectangle = need("matplotlib.patches", "a picture", "matplotlib").Rectangle
    modules = len(starts) - 1
    names, colors = module_names(half, modules), [*module_colors(modules), (1.0, 1.0, 1.0)]
    for module, share in enumerate(np.bincount(values, minlength=len(starts)) / len(values)):
        if share == 0:
            continue
        axis.add_patch(Rectangle((x - 0.13, starts[module]), 0.26, share, facecolor=colors[module], edgecolor=INK,
                                 linewidth=1.0, zorder=3))  # fmt: skip
        if share > 0.035:
            axis.text(x, starts[module] + share / 2, names[module], ha="center", va="center", fontsize=7, zorder=4,
                      color=ink_on(colors[module]))  # fmt: skip


def _bands(axis: Any, x: int, left: Any, right: Any, below_left: Any, below_right: Any) -> None:
    """Bands from the boxes of one column to those of the next, stacked in the order of the boxes."""
    patches, path = need("matplotlib.patches", "a picture", "matplotlib"), need("matplotlib.path", "a picture").Path
    start, end = below_left.copy(), below_right.copy()
    flow = np.zeros((len(start), len(end)))
    np.add.at(flow, (left, right), 1.0 / len(left))
    curve = [path.MOVETO, path.CURVE4, path.CURVE4, path.CURVE4, path.LINETO, path.CURVE4, path.CURVE4, path.CURVE4,
             path.CLOSEPOLY]  # fmt: skip
    a, b, middle = x + 0.13, x + 0.87, x + 0.5
    colors = [*module_colors(len(start) - 1), (0.8, 0.8, 0.8, 1.0)]
    # Boxes are stacked from the last module at the bottom to the first at the top, and so are bands within a box.
    for i in reversed(range(len(start))):
        for j in reversed(range(len(end))):
            if flow[i, j] == 0:
                continue
            low, high, share = start[i], end[j], flow[i, j]
            points = [(a, low), (middle, low), (middle, high), (b, high), (b, high + share), (middle, high + share),
                      (middle, low + share), (a, low + share), (a, low)]  # fmt: skip
            axis.add_patch(patches.PathPatch(path(points, curve), facecolor=(*colors[i][:3], 0.45),
                                             edgecolor="white" if share > 0.02 else "none", linewidth=0.4))  # fmt: skip
            start[i] += share
            end[j] += share


def plot_coactivation(
    routes: Routes, half: str | None = None, block: int = 0, over: str = "round", lift: bool = False, ax: Any = None
) -> Any:
    """Heat map of `coactivation`, with the numbers in the cells. The arguments are those of `coactivation`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    need_halves(routes, half)
    table = coactivation(routes, half, block, over, lift)
    size = 1.6 + 0.42 * len(table)
    figure, (axis,) = panels(ax, 1, size + 0.9, size)
    values = table.to_numpy()
    image = heat_map(axis, values, float(np.nanmax(values, initial=0.0)) or 1.0, aspect="equal")
    axis.set_xticks(range(len(table)), table.columns, fontsize=8)
    axis.set_yticks(range(len(table)), table.index, fontsize=8)
    for line in (axis.axvline, axis.axhline):  # between the halves
        line(sum(name[0] == table.columns[0][0] for name in table.columns) - 0.5, color="white", linewidth=5.0)
    plain_frame(axis)
    what = "times the share of independent modules" if lift else "share"
    figure.colorbar(image, ax=axis, label=what, shrink=0.85)
    where = "in the same round" if over == "round" else "on the same path"
    axis.set_title(f"Modules that run for a token {where}, {tokens_shown(len(tokens_of(routes).ids))}", fontsize=10)
    return figure
