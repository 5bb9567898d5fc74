"""Which paths tokens take, and how many modules do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._arguments import flag
from .._extras import need
from .._json import to_json
from ..data.tokenizer import Tokenizer
from ..errors import DataError
from ..model import Network, Routes
from .choices import (
    Floats,
    Integers,
    counts_of,
    halves_of,
    interval,
    modules_of,
    modules_of_row,
    real_of_row,
    routes_of,
    texts_of_row,
    tokens_of,
)
from .module_use import round_labels

if TYPE_CHECKING:
    import pandas

__all__ = [
    "coactivation", "dead_modules", "effective_modules", "entropy", "format_paths", "module_names", "path_entropy",
    "paths", "token_names", "token_paths",
]  # fmt: skip


def entropy(counts: npt.ArrayLike) -> Any:
    """Entropy in nats of the shares of counts, along the last axis; 0 without counts."""
    n = np.asarray(counts, np.float64)
    total = n.sum(axis=-1)
    safe = np.where(total > 0, total, 1.0)
    return np.where(total > 0, np.log(safe) - (n * np.log(np.where(n > 0, n, 1.0))).sum(axis=-1) / safe, 0.0)


def _paths(routes: Routes, half: str | None) -> tuple[list[str], Integers, Integers]:
    """Halves, the distinct paths (P, sum over halves of L * K), and the number of each real token's path."""
    halves = halves_of(routes, half)
    if not halves:
        return [], np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
    table = np.concatenate([modules_of(routes, h).transpose(1, 0, 2).reshape(-1, _width(routes, h)) for h in halves], 1)
    found, number = np.unique(table, axis=0, return_inverse=True)
    return halves, found, number.reshape(-1)


def _width(routes: Routes, half: str) -> int:
    return len(routes.rounds) * int(routes.index[half].shape[-1])


def _written(routes: Routes, halves: list[str], path: Integers) -> str:
    """A path with its modules, such as ``"A0+A2 F1 > A1 -"``."""
    parts, begin = [], 0
    for half in halves:
        chosen = path[begin : begin + _width(routes, half)].reshape(len(routes.rounds), -1)
        begin += chosen.size
        parts.append([_named(routes, half, c) for c in chosen])
    return " > ".join(" ".join(cell) for cell in zip(*parts, strict=True))


def _named(routes: Routes, half: str, chosen: npt.NDArray[Any]) -> str:
    """The modules of one half-round, such as ``"A0+A2"``; ``"-"`` if none of them runs."""
    return "+".join(f"{half[0].upper()}{m}" for m in chosen if m < routes.num_modules[half]) or "-"


def paths(routes: Routes, half: str | None = None) -> pandas.DataFrame:
    """Whole paths through all rounds, with the number of tokens that took each.

    Two tokens have the same path if they run the same modules in every round. Padding is left out.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        Only this half of each round; by default both.

    Returns
    -------
    pandas.DataFrame
        Columns ``path, count, share``, the most frequent first. A round is written ``A0+A2 F1``, and ``-`` where no
        module runs. ``>`` separates the rounds.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> int(mom.analysis.paths(routes)["count"].sum())
    3
    """
    pandas = need("pandas", "a table of paths", "pandas")
    halves, found, number = _paths(routes, half)
    counts = np.bincount(number, minlength=len(found))
    table = pandas.DataFrame({
        "path": [_written(routes, halves, path) for path in found], "count": counts,
        "share": counts / max(1, counts.sum()),
    })  # fmt: skip
    return table.sort_values(["count", "path"], ascending=[False, True], ignore_index=True)


def token_paths(routes: Routes, row: int = 0, *, weights: bool = False) -> list[list[str]]:
    """The path of every token of one sequence. Padding is left out.

    Parameters
    ----------
    routes : Routes
    row : int
        Which sequence.
    weights : bool
        Write the weight of each choice after it, and SKIP, too: ``"A2(.71)+SKIP(.29) F1(1.00)"``.

    Returns
    -------
    list of list of str
        A list per token, with an entry such as ``"A2+A0 F1"`` per round, block after block. The best choice stands
        first. ``-`` means that no module runs. A half without a router is written ``A`` or ``F``.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> [len(path) for path in mom.analysis.token_paths(routes)]
    [4, 4, 4]
    """
    with_router = halves_of(routes, None)
    chosen = {half: modules_of_row(routes, half, row) for half in with_router}

    flag(weights, "weights")
    real = real_of_row(routes, row)

    def written(half: str, number: int, t: int) -> str:
        if half not in chosen:
            return half[0].upper()
        if not weights:
            return _named(routes, half, chosen[half][number, t])
        of_token = routes.of_row(routes.weight[half], row)[number, real][t]
        names = [f"{half[0].upper()}{m}" if m < routes.num_modules[half] else "SKIP" for m in chosen[half][number, t]]
        return "+".join(f"{name}({_two_digits(w)})" for name, w in zip(names, of_token, strict=True))

    tokens = range(chosen[with_router[0]].shape[1] if with_router else 0)
    return [[f"{written('attn', n, t)} {written('ffn', n, t)}" for n in range(len(routes.rounds))] for t in tokens]


def _two_digits(weight: float) -> str:
    return f"{weight:.2f}".replace("0.", ".", 1)


def token_names(tokenizer: Tokenizer | Network, tokens: npt.ArrayLike) -> list[str]:
    """A readable name for each token: its text in quotes, with line ends and tabs as escapes.

    Parameters
    ----------
    tokenizer : Tokenizer, or a model with one
    tokens : array of int, shape (T,) or (1, T)

    Returns
    -------
    list of str
        For `format_paths` and `plot_routes`. An id without a token is ``<id 5>``.

    Examples
    --------
    >>> import mom
    >>> tokenizer = mom.Tokenizer.train(["a b"], 257)
    >>> mom.analysis.token_names(tokenizer, tokenizer.encode("a\\n"))
    ['"a"', '"\\\\n"']
    """
    found: Tokenizer | None = tokenizer.tokenizer if isinstance(tokenizer, Network) else tokenizer
    if found is None:
        raise DataError("tokenizer: the model has none")
    ids = np.asarray(tokens).ravel().tolist()
    return [f"<id {i}>" if found.token(i) is None else to_json(found.decode([i]), indent=None).strip() for i in ids]


def format_paths(
    routes: Routes, names: Sequence[str] | None = None, row: int = 0, *, weights: bool = False
) -> str:
    """A table of the tokens of one sequence with their paths, a line per token and a column per round.

    Parameters
    ----------
    routes : Routes
    names : sequence of str, optional
        Text of each token of the row, padding included, such as those of `token_names`; by default the ids.
    row : int
        Which sequence.
    weights : bool
        With the weights of the choices.

    Returns
    -------
    str
        See `token_paths`.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> len(mom.analysis.format_paths(model([[1, 2]], return_routes=True).routes).splitlines())
    3
    """
    table, texts = token_paths(routes, row, weights=weights), texts_of_row(routes, row, names)
    if not table:
        return "The model has no routers."
    heads = round_labels(routes)
    width = max(map(len, ["token", *texts]))
    cell = max(len(c) for line in [heads, *table] for c in line)
    lines = [[name.ljust(width), *(c.ljust(cell) for c in line)] for name, line in
             zip(["token", *texts], [heads, *table], strict=True)]  # fmt: skip
    return "\n".join("  ".join(line).rstrip() for line in lines)


def path_entropy(routes: Routes, half: str | None = None, corrected: bool = False) -> float:
    """Entropy of the paths in nats. Its exponential is the effective number of paths.

    Parameters
    ----------
    routes, half
        As for `paths`.
    corrected : bool
        Add (paths - 1) / (2 tokens), the correction of Miller and Madow for small samples.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 1, 1, 1]], return_routes=True).routes
    >>> mom.analysis.path_entropy(routes) >= 0.0
    True
    """
    corrected = flag(corrected, "corrected")
    _, found, number = _paths(routes, half)
    counts = np.bincount(number, minlength=len(found))
    added = (len(found) - 1) / (2 * len(number)) if corrected and len(number) else 0.0
    return float(entropy(counts)) + added


def _by_round(routes: Routes, half: str | None) -> Iterator[tuple[str, int, Integers]]:
    """Half, number of the round, and counts of its modules and SKIP by group of sequences, shape (G, M + 1)."""
    tokens = tokens_of(routes)
    for h in halves_of(routes, half):
        for number, chosen in enumerate(modules_of(routes, h)):
            yield h, number, counts_of(chosen, tokens.group, routes.num_modules[h] + 1, tokens.groups)


def effective_modules(routes: Routes, half: str | None = None) -> pandas.DataFrame:
    """How many modules a round uses: the exponential of the entropy of its module use, without SKIP.

    Equal use of all M modules gives M, and use of a single one gives 1.

    Returns
    -------
    pandas.DataFrame
        Columns ``half, block, round, effective, low, high, skip``. `low` and `high` are the 95 % interval from leaving
        out groups of sequences. `skip` is the share of choices that run nothing. A round that only skips has 0.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> table = mom.analysis.effective_modules(model([[1, 2, 3]], return_routes=True).routes)
    >>> bool((table["effective"] <= 4.000001).all())
    True
    """
    pandas = need("pandas", "a table of modules", "pandas")

    def effective(counts: Any) -> Any:
        return np.where(counts[..., :-1].sum(axis=-1) > 0, np.exp(entropy(counts[..., :-1])), 0.0)

    rows = []
    for h, number, counts in _by_round(routes, half):
        total = counts.sum(axis=0)
        value = float(effective(total))
        low, high = interval(value, effective(total - counts))
        block, round = routes.rounds[number]
        rows.append((h, block, round, value, low, high, total[-1] / max(1, total.sum())))
    return pandas.DataFrame(rows, columns=["half", "block", "round", "effective", "low", "high", "skip"])


def dead_modules(routes: Routes, threshold: float = 0.0, half: str | None = None) -> pandas.DataFrame:
    """Modules whose share of all choices of their block is at most `threshold`.

    Returns
    -------
    pandas.DataFrame
        Columns ``half, block, module, share``; empty if there are none.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True, interventions=[mom.Forbid("ffn", [2])]).routes
    >>> 2 in set(mom.analysis.dead_modules(routes, half="ffn")["module"])
    True
    """
    pandas = need("pandas", "a table of modules", "pandas")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold: {threshold} is no share between 0 and 1")
    totals: dict[tuple[str, int], Integers] = {}
    for h, number, counts in _by_round(routes, half):
        key = (h, routes.rounds[number][0])
        totals[key] = totals.get(key, 0) + counts.sum(axis=0)
    rows = [
        (h, block, module, share)
        for (h, block), counts in totals.items()
        for module, share in enumerate(counts[:-1] / counts.sum())
        if share <= threshold
    ]
    return pandas.DataFrame(rows, columns=["half", "block", "module", "share"])


def module_names(routes: Routes, half: str | None = None) -> list[str]:
    """Names of the modules of a block, such as ``A0`` and ``F2``."""
    return [f"{h[0].upper()}{m}" for h in halves_of(routes, half) for m in range(routes.num_modules[h])]


def coactivation(
    routes: Routes, half: str | None = None, block: int = 0, over: str = "round", lift: bool = False
) -> pandas.DataFrame:
    """How often two modules run for the same token.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        Only modules of this half; by default all.
    block : int
        Each block has its own modules.
    over : {"round", "path"}
        Count pairs that run in the same round, or anywhere on the token's way through the block.
    lift : bool
        Divide each share by the product of the two modules' own shares: 1 means independent. It is NaN for a module
        that never runs.

    Returns
    -------
    pandas.DataFrame, shape (modules, modules)
        Share of all pairs of a token and a round (or of all tokens) in which both run. The diagonal has each module's
        own share.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> mom.analysis.coactivation(model([[1, 2, 3]], return_routes=True).routes).shape
    (8, 8)
    """
    lift, routes = flag(lift, "lift"), routes_of(routes)
    pandas = need("pandas", "a table of modules", "pandas")
    if over not in ("round", "path"):
        raise ValueError(f"over: expected 'round' or 'path', got {over!r}")
    chosen = [number for number, (b, _) in enumerate(routes.rounds) if b == block]
    halves = halves_of(routes, half)
    if not chosen:
        raise ValueError(f"block: there is no block {block}; rounds are {routes.rounds}")
    runs = []
    for h in halves:
        modules = modules_of(routes, h)[chosen]
        found = (modules[..., None] == np.arange(routes.num_modules[h])).any(axis=2)  # (rounds, N, M)
        runs.append(found.any(axis=0) if over == "path" else found.reshape(-1, found.shape[-1]))
    names = module_names(routes, half)
    ran = np.concatenate(runs, axis=1).astype(np.float64) if runs else np.zeros((1, 0))
    share: Floats = ran.T @ ran / len(ran)
    if lift:
        own = np.diag(share)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = share / np.outer(own, own)
        share[:, own == 0] = share[own == 0] = np.nan
    return pandas.DataFrame(share, index=names, columns=names)
