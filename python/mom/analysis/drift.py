"""Routes of two models, or of two parts of a text, against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._extras import need
from ..interventions.selection import numbers
from ..model import Routes
from .choices import Floats, Integers, counts_of, halves_of, interval, modules_of, tokens_of

if TYPE_CHECKING:
    import pandas

__all__ = ["drift", "match_modules", "prefill_against_decode"]


def _check_pair(a: Routes, b: Routes, half: str | None) -> list[str]:
    halves = halves_of(a, half, "a")
    if halves != halves_of(b, half, "b"):
        raise ValueError(f"b: has routers in {list(b.index)}, a in {list(a.index)}")
    if not np.array_equal(a.tokens, b.tokens) or not np.array_equal(tokens_of(a).row, tokens_of(b).row):
        raise ValueError("b: is of other tokens than a; compare routes of the same batch")
    if a.rounds != b.rounds:
        raise ValueError(f"b: has rounds {b.rounds}, a has {a.rounds}")
    return halves


def _in_block(routes: Routes, block: int) -> list[int]:
    found = [number for number, (b, _) in enumerate(routes.rounds) if b == block]
    if not found:
        raise ValueError(f"block: there is no block {block}; rounds are {routes.rounds}")
    return found


def _runs(modules: Integers, count: int) -> Integers:
    """How often each token runs each module, SKIP last, shape (L, N, count + 1)."""
    found: Integers = (modules[..., None] == np.arange(count + 1)).sum(axis=2)
    return found


def match_modules(a: Routes, b: Routes, half: str, block: int = 0) -> Integers:
    """For each module of `a`, the module of `b` that the same tokens use.

    The Hungarian method finds the matching with the most common choices, over all rounds of the block.

    Parameters
    ----------
    a, b : Routes
        Of the same tokens.
    half : {"attn", "ffn"}
    block : int
        Each block has its own modules.

    Returns
    -------
    ndarray of int64, shape (modules of a,)
        -1 for a module without a partner, if `b` has fewer modules.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3, 4, 5, 6]], return_routes=True).routes
    >>> len(mom.analysis.match_modules(routes, routes, "ffn"))
    4
    """
    _check_pair(a, b, half)
    assign = need("scipy.optimize", "the matching of modules", "scipy").linear_sum_assignment
    rounds, mine, yours = _in_block(a, block), modules_of(a, half), modules_of(b, half)
    common = np.zeros((a.num_modules[half], b.num_modules[half]))
    for number in rounds:
        left = _runs(mine[number][None], a.num_modules[half])[0, :, :-1]
        common += left.T.astype(np.float64) @ _runs(yours[number][None], b.num_modules[half])[0, :, :-1]
    partner = np.full(len(common), -1, np.int64)
    rows, columns = assign(common, maximize=True)
    partner[rows] = columns
    return partner


def drift(a: Routes, b: Routes, half: str | None = None) -> pandas.DataFrame:
    """How far the routes of two checkpoints or of two seeds agree, before and after matching their modules.

    Modules of other seeds have other numbers, so the modules of each block are matched first, see `match_modules`.

    Parameters
    ----------
    a, b : Routes
        Of the same tokens.
    half : {"attn", "ffn"}, optional
        By default both.

    Returns
    -------
    pandas.DataFrame
        A row per half and round, with columns ``half, block, round, agreement, matched, low, high, chance``.
        `agreement` is the share of a token's choices, SKIP included, that both make. `matched` is the same after
        matching, with its 95 % interval from leaving out groups of sequences. `chance` is what matched modules would
        agree in if the two chose independently, each with its own frequencies.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> float(mom.analysis.drift(routes, routes)["matched"].min())
    1.0
    """
    pandas = need("pandas", "a table of drift", "pandas")
    halves, rows = _check_pair(a, b, half), []
    tokens = tokens_of(a)
    for h in halves:
        M, partners = a.num_modules[h], {}
        size = max(M, b.num_modules[h])
        left, right = modules_of(a, h), modules_of(b, h)
        for number, (block, round) in enumerate(a.rounds):
            if block not in partners:
                partners[block] = match_modules(a, b, h, block)
            mine = _padded(_runs(left[number][None], M)[0], size)
            yours = _padded(_runs(right[number][None], b.num_modules[h])[0], size)
            partner = _with_skip(partners[block], size)
            moved = np.where(partner >= 0, yours[:, partner], 0)
            kept = max(left.shape[-1], right.shape[-1])
            value, without = _mean(np.minimum(mine, moved).sum(axis=1) / kept, tokens.group, tokens.groups)
            plain = float(np.minimum(mine, yours).sum(axis=1).mean() / kept)
            chance = float((mine.mean(axis=0) * moved.mean(axis=0)).sum() / kept)
            rows.append((h, block, round, plain, value, *interval(value, without), chance))
    columns = ["half", "block", "round", "agreement", "matched", "low", "high", "chance"]
    table = pandas.DataFrame(rows, columns=columns)
    table.attrs["tokens"] = len(tokens.ids)
    return table


def _padded(runs: Integers, size: int) -> Integers:
    """Columns for `size` modules, SKIP last."""
    return np.concatenate(
        [runs[:, :-1], np.zeros((len(runs), size + 1 - runs.shape[1]), np.int64), runs[:, -1:]], axis=1
    )


def _with_skip(partner: Integers, size: int) -> Integers:
    """A partner for each of `size` modules and SKIP; SKIP's is SKIP."""
    return np.concatenate([partner, np.full(size - len(partner), -1, np.int64), [size]])


def _mean(values: Floats, group: Integers, groups: int) -> tuple[float, Floats]:
    """The mean over all tokens, and the means without each group."""
    sums = np.bincount(group, weights=values, minlength=groups)
    counts = np.bincount(group, minlength=groups)
    total, number = sums.sum(), counts.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(total / number), (total - sums) / (number - counts)


def prefill_against_decode(routes: Routes, prompt: int | Sequence[int], half: str | None = None) -> pandas.DataFrame:
    """Whether generated tokens use other modules than the tokens of their prompts.

    Parameters
    ----------
    routes : Routes
        Of prompts and the tokens after them, such as those of a forward pass over what `generate` has returned.
    prompt : int or sequence of int
        Tokens of the prompts: one number for all sequences, or one for each. Padding does not count.
    half : {"attn", "ffn"}, optional
        By default both.

    Returns
    -------
    pandas.DataFrame
        A row per half, round and module, with columns ``half, block, round, module, prefill, decode, difference, low,
        high``: shares of the choices of the two parts, and the difference with its 95 % interval from leaving out
        groups of sequences. The last `module` of a round is ``"SKIP"``.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> ids = model.generate([1, 2, 3], max_new_tokens=4)
    >>> routes = model(ids[None], return_routes=True).routes
    >>> len(mom.analysis.prefill_against_decode(routes, prompt=3, half="ffn"))
    20
    """
    pandas = need("pandas", "a table of shares", "pandas")
    halves, tokens = halves_of(routes, half), tokens_of(routes)
    lengths = np.array(numbers(prompt, "prompt", 1), np.int64)
    if lengths.size not in (1, routes.rows):
        raise ValueError(f"prompt: {lengths.size} lengths for {routes.rows} sequences")
    lengths = np.broadcast_to(lengths, (routes.rows,))
    later = tokens.position >= lengths[tokens.row]
    if later.all() or not later.any():
        raise ValueError("prompt: one of the two parts, prompt and generated tokens, is empty")
    rows = []
    for h in halves:
        M = routes.num_modules[h]
        for number, chosen in enumerate(modules_of(routes, h)):
            parts = [counts_of(chosen[part], tokens.group[part], M + 1, tokens.groups) for part in (~later, later)]
            shares, without = [], []
            for counts in parts:
                total = counts.sum(axis=0)
                shares.append(total / total.sum())
                left = total - counts
                with np.errstate(invalid="ignore", divide="ignore"):
                    without.append(left / left.sum(axis=1, keepdims=True))
            low, high = interval(shares[1] - shares[0], without[1] - without[0])
            for m in range(M + 1):
                rows.append((h, *routes.rounds[number], m if m < M else "SKIP", shares[0][m], shares[1][m],
                             shares[1][m] - shares[0][m], low[m], high[m]))  # fmt: skip
    columns = ["half", "block", "round", "module", "prefill", "decode", "difference", "low", "high"]
    return pandas.DataFrame(rows, columns=columns)
