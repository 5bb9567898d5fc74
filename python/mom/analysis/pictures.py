"""Pictures of routes and of what depends on them: matplotlib figures that read well in greyscale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._extras import need
from ..model import Routes
from .choices import halves_of, modules_of, modules_of_row, texts_of_row
from .module_use import module_use
from .paths import coactivation

if TYPE_CHECKING:
    import pandas

    from .audit import Audit

__all__ = ["plot_audit", "plot_coactivation", "plot_drift", "plot_flow", "plot_module_use", "plot_routes"]

_TITLES = {"attn": "attention", "ffn": "feed-forward"}
_MARKERS = {"attn": "o", "ffn": "s"}
_FILLS = {"attn": "white", "ffn": "black"}
_INK, _PALE = "0.15", "0.75"
#: Up to so many tokens, cells of `plot_routes` are labelled.
_MOST_LABELLED = 48


def _panels(ax: Any, count: int, width: float, height: float, down: bool = False) -> tuple[Any, list[Any]]:
    """A figure and its axes: the given one, or new ones beside or below each other."""
    if ax is not None:
        if count > 1:
            raise ValueError(f"ax: there are {count} panels; name one half, or leave ax out")
        return ax.figure, [ax]
    Figure = need("matplotlib.figure", "a picture", "matplotlib").Figure
    size = (width, height * count) if down else (width * count, height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*((count, 1) if down else (1, count)), squeeze=False)
    return figure, list(axes.ravel())


def _need_halves(routes: Routes, half: str | None) -> list[str]:
    halves = halves_of(routes, half)
    if not halves:
        raise ValueError("routes: the model has no routers, so there is nothing to show")
    return halves


def _round_names(routes: Routes) -> list[str]:
    several = any(block for block, _ in routes.rounds)
    return [f"{block}.{round}" if several else str(round) for block, round in routes.rounds]


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
    halves, use = _need_halves(routes, half), module_use(routes)
    figure, axes = _panels(ax, len(halves), 4.0, 1.4 + 0.4 * len(routes.rounds))
    top = max(float(use[h].share.max()) for h in halves)
    for axis, h in zip(axes, halves, strict=True):
        share = use[h].share
        image = axis.imshow(share, vmin=0.0, vmax=top, cmap="Greys", aspect="auto")
        modules = share.shape[1] - 1
        axis.set_xticks(range(modules + 1), [str(m) for m in range(modules)] + ["SKIP"])
        axis.set_yticks(range(len(share)), _round_names(routes))
        axis.set_xlabel("module")
        axis.set_title(_TITLES[h], fontsize=10)
        axis.tick_params(length=0)
        for (y, x), value in np.ndenumerate(share):
            color = "white" if value > 0.55 * top else "black"
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes[0].set_ylabel("round")
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
        Text of each token of the row, padding included; by default the ids.
    half : {"attn", "ffn"}, optional
        By default a panel for each half with a router.
    ax : matplotlib axes, optional
        To draw into; then there must be one panel.

    Returns
    -------
    matplotlib.figure.Figure
        Rounds stand from top to bottom. A round has a stripe for each choice, the best at the top. Shade and number
        name the module; SKIP is a dash.
    """
    halves = _need_halves(routes, half)
    texts = texts_of_row(routes, row, names)
    stripes = len(routes.rounds) * routes.index[halves[0]].shape[-1]
    width, height = max(4.0, 1.2 + 0.28 * min(len(texts), 120)), 1.1 + max(0.9, 0.2 * stripes)
    figure, axes = _panels(ax, len(halves), width, height, down=True)
    for axis, h in zip(axes, halves, strict=True):
        chosen = modules_of_row(routes, h, row)
        _stripes(axis, chosen, routes.num_modules[h])
        K = chosen.shape[-1]
        axis.set_yticks(np.arange(len(chosen)) * K + (K - 1) / 2, _round_names(routes))
        rotation = 90 if max(map(len, texts), default=0) > 2 else 0
        axis.set_xticks(range(len(texts)), texts, rotation=rotation, fontsize=8, parse_math=False)  # "$" is text
        axis.set_ylabel("round")
        axis.set_title(f"{_TITLES[h]} module of each token", fontsize=10)
    return figure


def _stripes(axis: Any, chosen: npt.NDArray[Any], modules: int) -> None:
    """Cells of choices (L, T, K): shaded by module, with its number."""
    L, T, K = chosen.shape
    cells = chosen.transpose(0, 2, 1).reshape(L * K, T)
    shade = np.where(cells < modules, 0.15 + 0.75 * cells / max(1, modules - 1), np.nan)
    axis.imshow(shade, vmin=0.0, vmax=1.0, cmap="Greys", aspect="auto", interpolation="nearest")
    for line in np.arange(1, L) * K - 0.5:
        axis.axhline(line, color="black", linewidth=1.4)
    axis.set_xticks(np.arange(1, T) - 0.5, minor=True)
    axis.grid(which="minor", axis="x", color="white", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    if T > _MOST_LABELLED:
        return
    for (y, x), module in np.ndenumerate(cells):
        runs = module < modules
        color = "0.5" if not runs else "white" if shade[y, x] > 0.5 else "black"
        axis.text(x, y, str(module) if runs else "–", ha="center", va="center", fontsize=7, color=color)


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
        band is as high as the share that goes from one box to the next. White boxes are SKIP.
    """
    halves = _need_halves(routes, half)
    rounds = [number for number, (b, _) in enumerate(routes.rounds) if b == block]
    if not rounds:
        raise ValueError(f"block: there is no block {block}; rounds are {routes.rounds}")
    best = {h: _best(routes, h) for h in halves}
    columns = [(h, routes.rounds[n][1], best[h][n]) for n in rounds for h in halves]
    figure, (axis,) = _panels(ax, 1, 1.6 + 1.25 * len(columns), 4.2)
    gap = 0.02
    sizes = [routes.num_modules[h] + 1 for h, _, _ in columns]
    below = [_box_starts(values, size, gap) for (_, _, values), size in zip(columns, sizes, strict=True)]
    for x in range(len(columns) - 1):
        _bands(axis, x, columns[x][2], columns[x + 1][2], below[x], below[x + 1])
    for x, (h, _, values) in enumerate(columns):
        _boxes(axis, x, values, below[x], h)
    axis.set_xlim(-0.3, len(columns) - 0.7)
    axis.set_ylim(-0.02, 1.0 + gap * max(sizes))
    axis.set_xticks(range(len(columns)), [f"{_TITLES[h]}\nround {r}" for h, r, _ in columns], fontsize=8)
    axis.set_yticks([])
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_title("Best choice of each token", fontsize=10)
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
    for module, share in enumerate(np.bincount(values, minlength=len(starts)) / len(values)):
        if share == 0:
            continue
        skip = module == modules
        axis.add_patch(Rectangle((x - 0.09, starts[module]), 0.18, share, facecolor="white" if skip else _INK,
                                 edgecolor=_INK, linewidth=1.0, zorder=3))  # fmt: skip
        if share > 0.03:
            name = "–" if skip else f"{half[0].upper()}{module}"
            axis.text(x, starts[module] + share / 2, name, ha="center", va="center", fontsize=7, zorder=4,
                      color=_INK if skip else "white")  # fmt: skip


def _bands(axis: Any, x: int, left: Any, right: Any, below_left: Any, below_right: Any) -> None:
    """Bands from the boxes of one column to those of the next, stacked in the order of the boxes."""
    patches, path = need("matplotlib.patches", "a picture", "matplotlib"), need("matplotlib.path", "a picture").Path
    start, end = below_left.copy(), below_right.copy()
    flow = np.zeros((len(start), len(end)))
    np.add.at(flow, (left, right), 1.0 / len(left))
    curve = [path.MOVETO, path.CURVE4, path.CURVE4, path.CURVE4, path.LINETO, path.CURVE4, path.CURVE4, path.CURVE4,
             path.CLOSEPOLY]  # fmt: skip
    a, b, middle = x + 0.09, x + 0.91, x + 0.5
    # Boxes are stacked from the last module at the bottom to the first at the top, and so are bands within a box.
    for i in reversed(range(len(start))):
        for j in reversed(range(len(end))):
            if flow[i, j] == 0:
                continue
            low, high, share = start[i], end[j], flow[i, j]
            points = [(a, low), (middle, low), (middle, high), (b, high), (b, high + share), (middle, high + share),
                      (middle, low + share), (a, low + share), (a, low)]  # fmt: skip
            shade = f"{0.86 - 0.42 * i / max(1, len(start) - 1):.2f}"
            edge = "white" if share > 0.02 else shade
            axis.add_patch(patches.PathPatch(path(points, curve), facecolor=shade, edgecolor=edge, linewidth=0.4))
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
    _need_halves(routes, half)
    table = coactivation(routes, half, block, over, lift)
    size = 1.6 + 0.48 * len(table)
    figure, (axis,) = _panels(ax, 1, size + 0.5, size)
    values = table.to_numpy()
    top = float(np.nanmax(values, initial=0.0)) or 1.0
    image = axis.imshow(values, vmin=0.0, vmax=top, cmap="Greys")
    axis.set_xticks(range(len(table)), table.columns, fontsize=8)
    axis.set_yticks(range(len(table)), table.index, fontsize=8)
    axis.tick_params(length=0)
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value > 0.55 * top else "black"
            axis.text(x, y, f"{value:.2f}".lstrip("0") or "0", ha="center", va="center", fontsize=7, color=color)
    what = "times the share of independent modules" if lift else "share"
    figure.colorbar(image, ax=axis, label=what, fraction=0.046)
    where = "in the same round" if over == "round" else "on the same path"
    axis.set_title(f"Modules that run for a token {where}", fontsize=10)
    return figure


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
    figure, axes = _panels(ax, len(halves), 3.6, 3.0)
    several = bool((table["block"] > 0).any())
    for axis, half in zip(axes, halves, strict=True):
        own = table[table["half"] == half]
        x, value = np.arange(len(own)), own["matched"].to_numpy()
        reach = np.nan_to_num([value - own["low"].to_numpy(), own["high"].to_numpy() - value])
        axis.errorbar(x, value, reach, color=_INK, marker="o", capsize=3, linewidth=1.4, label="matched")
        axis.plot(x, own["agreement"], color="0.45", marker="o", markersize=9, markerfacecolor="white", linewidth=1.0,
                  label="before matching")  # fmt: skip
        axis.plot(x, own["chance"], color="0.45", linestyle="--", linewidth=1.0, label="chance")
        names = [f"{b}.{r}" if several else str(r) for b, r in zip(own["block"], own["round"], strict=True)]
        axis.set_xticks(x, names)
        axis.set_ylim(0.0, 1.03)
        axis.set_xlabel("round")
        axis.set_title(_TITLES[half], fontsize=10)
        _plain_frame(axis)
    axes[0].set_ylabel("share of equal choices")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _plain_frame(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


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
    Figure = need("matplotlib.figure", "a picture", "matplotlib").Figure
    across = min(4, count)
    down = -(-count // across)
    figure = Figure(figsize=(2.9 * across, 2.7 * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
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
        axis.errorbar(x, y, bars[1], bars[0], linestyle="none", marker=_MARKERS[half], markersize=5, color=_INK,
                      markerfacecolor=_FILLS[half], elinewidth=0.7, label=_TITLES[half])  # fmt: skip
    axis.axhline(0.0, color=_PALE, linewidth=0.8, zorder=0)
    try:
        shown = f"rank correlation {result.correlation(measure, against):.2f}"
    except ValueError:
        shown = "too few modules"
    axis.set_title(shown, fontsize=9)
    axis.set_xlabel(measure)
    axis.set_ylabel(f"{against} (nats)" if against in ("drop_one", "taylor") else against)
    _plain_frame(axis)


def _bars(axis: Any, result: Audit, half: str, measures: Sequence[str]) -> None:
    own = result.table[result.table["round"].notna() & (result.table["half"] == half)]
    several = bool((own["block"] > 0).any())
    width = 0.8 / len(measures)
    shades = ["0.15", "0.55", "0.85"]
    for number, measure in enumerate(measures):
        value = own[measure].to_numpy(float)
        ends = [np.nan_to_num(np.maximum(0, value - own[f"{measure}_low"].to_numpy(float))),
                np.nan_to_num(np.maximum(0, own[f"{measure}_high"].to_numpy(float) - value))]  # fmt: skip
        x = np.arange(len(own)) + (number - (len(measures) - 1) / 2) * width
        axis.bar(x, np.nan_to_num(value), width, yerr=ends, color=shades[number % 3], edgecolor="black", linewidth=0.6,
                 error_kw={"linewidth": 0.7, "capsize": 2}, label=measure.replace("_", " "))  # fmt: skip
    names = [f"{b}.{r}" if several else str(r) for b, r in zip(own["block"], own["round"], strict=True)]
    axis.set_xticks(range(len(own)), names)
    axis.axhline(0.0, color="black", linewidth=0.8)
    axis.set_xlabel("round")
    axis.set_ylabel("loss increase (nats)")
    axis.set_title(_TITLES[half], fontsize=9)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.11 * len(measures) * (high - low))  # the legend stands above all bars
    axis.legend(frameon=False, fontsize=7, loc="upper left")
    _plain_frame(axis)
