"""What routes depend on: earlier rounds, the token, its position, and its context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arguments import count
from .._arguments import seed as seed_of
from .._extras import need
from ..model import Routes
from .choices import Floats, Integers, counts_of, halves_of, interval, modules_of, tokens_of

if TYPE_CHECKING:
    import pandas

__all__ = ["dependence", "mutual_information"]


def _symbols(modules: Integers) -> Integers:
    """A small number for each set of modules, by token, shape (N,)."""
    return np.unique(modules, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _dense(*values: Integers) -> Integers:
    """A small number for each combination of values."""
    combined = np.zeros(len(values[0]), np.int64)
    for value in values:
        number = np.unique(value, return_inverse=True)[1].reshape(-1)
        combined = np.unique(combined * (int(number.max(initial=0)) + 1) + number, return_inverse=True)[1].reshape(-1)
    return combined.astype(np.int64)


class _Samples:
    """Tokens in groups; information between their symbols, of all tokens and without each group.

    All results have an entry for all tokens, and one for the tokens without each of the groups.
    """

    def __init__(self, group: Integers, groups: int) -> None:
        self.group, self.groups = group, groups
        n = np.arange(len(group) + 1, dtype=np.float64)
        self._n_log_n = n * np.log(np.maximum(n, 1.0))

    def _counts(self, values: Integers) -> Integers:
        if int(values.max(initial=0)) >= len(values):  # most pairs of a route and a token do not occur
            values = np.unique(values, return_inverse=True)[1].reshape(-1)
        counts = counts_of(values, self.group, int(values.max(initial=0)) + 1, self.groups)
        total = counts.sum(axis=0)
        return np.concatenate([total[None], total - counts])

    def entropy(self, values: Integers) -> Floats:
        """Entropy in nats."""
        counts = self._counts(values)
        total = np.maximum(counts.sum(axis=1), 1)
        found: Floats = np.log(total) - self._n_log_n[counts].sum(axis=1) / total
        return found

    def joint(self, route: Integers, known: Integers) -> Floats:
        """Entropy of pairs of a route and what is known."""
        return self.entropy(route * (int(known.max(initial=0)) + 1) + known)

    def rest(self, route: Integers, known: Integers) -> Floats:
        """Entropy of the route when `known` is known."""
        return self.joint(route, known) - self.entropy(known)

    def explained(self, route: Integers, known: Integers, more: Integers, drawn: list[Integers]) -> Floats:
        """Share of the entropy given `known` that `more` explains, adjusted for chance.

        With the information I, its mean E over routes that are shuffled among tokens with the same `known`, and the
        entropy H that is left: (I - E) / (H - E). It is 0 where nothing is left to explain, or all of it is chance.
        """
        both = _dense(known, more)
        alone, together = self.entropy(known), self.entropy(both)

        def informs(route: Integers) -> Floats:
            return self.joint(route, known) - alone - (self.joint(route, both) - together)

        left, information = self.rest(route, known), informs(route)
        chance = np.mean([informs(other) for other in drawn], axis=0)
        room = left - chance
        possible = room > 1e-9
        return np.where(possible, (information - chance) / np.where(possible, room, 1.0), 0.0)


def _shuffled(route: Integers, known: Integers, random: np.random.Generator) -> Integers:
    """The routes, shuffled among tokens with the same `known`."""
    place = np.argsort(known, kind="stable")
    order = np.lexsort((random.random(len(known)), known))
    shuffled = np.empty_like(route)
    shuffled[place] = route[order]
    return shuffled


def mutual_information(
    routes: Routes, half: str | None = None, permutations: int = 20, seed: int = 0
) -> pandas.DataFrame:
    """How much the choice in one round tells about the choice in another.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        By default both, each with itself.
    permutations : int
        Shuffled copies for what chance would give.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row per half and pair of rounds, counted over the blocks, with columns ``half, first, second, information,
        chance, adjusted, low, high``. `information` is the estimate from counts, in nats. `chance` is its mean after
        shuffling the tokens of one round; it is above 0 in small samples. `adjusted` is their difference. `low` and
        `high` are its 95 % interval from leaving out groups of sequences; NaN for a single sequence.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3], [4, 5, 6]], return_routes=True).routes
    >>> len(mom.analysis.mutual_information(routes, half="ffn"))
    6
    """
    pandas = need("pandas", "a table of information", "pandas")
    copies, random = count(permutations, "permutations", 1), np.random.default_rng(seed_of(seed))
    rows = []
    for h in halves_of(routes, half):
        tokens, symbols = tokens_of(routes), [_symbols(chosen) for chosen in modules_of(routes, h)]
        samples = _Samples(tokens.group, tokens.groups)
        for first, a in enumerate(symbols):
            for second in range(first + 1, len(symbols)):
                b = symbols[second]
                information = samples.entropy(a) - samples.rest(a, b)
                drawn = [random.permutation(a) for _ in range(copies)]
                chance = np.mean([samples.entropy(other) - samples.rest(other, b) for other in drawn], axis=0)
                adjusted = information - chance
                rows.append((h, first, second, information[0], chance[0], adjusted[0],
                             *interval(adjusted[0], adjusted[1:])))  # fmt: skip
    columns = ["half", "first", "second", "information", "chance", "adjusted", "low", "high"]
    return pandas.DataFrame(rows, columns=columns)


def dependence(routes: Routes, half: str | None = None, permutations: int = 20, seed: int = 0) -> pandas.DataFrame:
    """How much of the routes the token, its position and its context explain.

    The shares of ``token``, ``position`` and ``context`` add up to 1. ``token`` is what the token's id explains.
    ``position`` is what the position explains beyond the id. ``context`` is the rest: a router without noise is a
    function of id, position and the tokens before, so what id and position leave open comes from those. ``previous``
    stands beside them: what the id of the token before explains beyond the token's own.

    Parameters
    ----------
    routes : Routes
    half : {"attn", "ffn"}, optional
        By default both.
    permutations : int
        Shuffled copies for what chance would give.
    seed : int

    Returns
    -------
    pandas.DataFrame
        A row per half, round and factor, with columns ``half, block, round, factor, share, low, high, entropy``.
        `entropy` is that of the round's choices, in nats; where it is 0, shares are NaN. `low` and `high` are the 95 %
        interval from leaving out groups of sequences; NaN for a single sequence.

    Notes
    -----
    Information is estimated from counts, which finds dependence in small samples where there is none. Shares are
    therefore adjusted for chance, as in the adjusted mutual information: (I - E) / (H - E). E is the mean of I after
    shuffling the routes; for ``position`` and ``previous`` they are shuffled among tokens of the same id. If nearly
    every token of the sample is unique, nothing can be told apart from chance, and the share goes to ``context``.

    Examples
    --------
    A hash router depends on the token alone.

    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo", router_type="hash"), seed=0)
    >>> routes = model([[1, 2, 3, 1], [4, 1, 2, 2]], return_routes=True).routes
    >>> table = mom.analysis.dependence(routes, half="ffn").query("factor == 'token'").dropna()
    >>> bool((table["share"] > 0.999).all())
    True
    """
    pandas = need("pandas", "a table of dependence", "pandas")
    copies, random = count(permutations, "permutations", 1), np.random.default_rng(seed_of(seed))
    tokens = tokens_of(routes)
    samples, ids = _Samples(tokens.group, tokens.groups), _dense(tokens.ids)
    before = np.concatenate([[-1], tokens.ids[:-1]])[: len(ids)]
    before[np.flatnonzero(np.diff(tokens.row)) + 1] = -1
    nothing = np.zeros_like(ids)
    rows = []
    for h in halves_of(routes, half):
        for number, chosen in enumerate(modules_of(routes, h)):
            route = _symbols(chosen)
            total = float(samples.entropy(route)[0])
            loose = [_shuffled(route, nothing, random) for _ in range(copies)]
            tied = [_shuffled(route, ids, random) for _ in range(copies)]
            token = samples.explained(route, nothing, ids, loose)
            position = (1.0 - token) * samples.explained(route, ids, tokens.position, tied)
            previous = (1.0 - token) * samples.explained(route, ids, before, tied)
            shares = {"token": token, "position": position, "context": 1.0 - token - position, "previous": previous}
            for factor, share in shares.items():
                found = (share[0], *interval(share[0], share[1:])) if total > 0 else (np.nan,) * 3
                rows.append((h, *routes.rounds[number], factor, *found, total))
    columns = ["half", "block", "round", "factor", "share", "low", "high", "entropy"]
    return pandas.DataFrame(rows, columns=columns)
