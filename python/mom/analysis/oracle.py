"""The oracle: the best routes that a search finds, against the router's own and as many random ones."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, as_ids, count, flag
from .._arguments import seed as seed_of
from .._extras import need
from .._progress import shown
from ..interventions.resolve import ContradictionError
from ..model import MoM, Routes
from .audit import own_copy
from .candidates import Index, Site, Space, space_of
from .restart import routed_halves
from .trials import State, Trials

if TYPE_CHECKING:
    import pandas

__all__ = ["Oracle", "oracle"]

SEARCHES = ("exhaustive", "greedy", "beam")


class Oracle:
    """What `oracle` has found.

    Attributes
    ----------
    routes : Routes
        The best routes, for ``model(ids, routes=...)``. Scores and weights are those under these routes.
    table : pandas.DataFrame
        A row per sequence, with columns ``router, start, oracle, random, evaluated``: the mean loss per token, in nats,
        with the router's own routes, with these within the budget, with the best found, and with the best of as many
        random routes; and how many routes were tried.
    regret, regret_low, regret_high : float
        How much lower the loss is with the best routes than with the router's own, on average over the sequences, and
        the 95 % interval of a bootstrap over sequences (NaN for a single sequence). It is negative only if the budget
        forbids the router's own routes.
    random_regret : float
        The same for the best random routes.
    """

    def __init__(self, routes: Routes, table: pandas.DataFrame, seed: int) -> None:
        self.routes, self.table = routes, table
        gain = (table["router"] - table["oracle"]).to_numpy()
        self.regret = float(gain.mean())
        self.random_regret = float((table["router"] - table["random"]).mean())
        self.regret_low = self.regret_high = float("nan")
        if len(gain) > 1:
            drawn = np.random.default_rng(seed).choice(gain, (1000, len(gain))).mean(axis=1)
            self.regret_low, self.regret_high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))

    def __repr__(self) -> str:
        return (
            f"<Oracle: {len(self.table)} sequences, {int(self.table['evaluated'].sum()):,} routes tried, regret "
            f"{self.regret:.4f} nats per token; the best of as many random routes: {self.random_regret:.4f}>"
        )

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self).strip('<>'))}</b>{self.table.to_html(float_format='{:.4f}'.format)}"


def oracle(
    model: MoM | PathLike,
    ids: npt.ArrayLike,
    budget: int | None = None,
    search: str = "greedy",
    samples: int = 4096,
    *,
    tokens: Sequence[int] | None = None,
    rounds: Sequence[Any] | None = None,
    half: str | None = None,
    width: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> Oracle:
    """Search for the routes with the lowest loss, sequence by sequence, beginning with the router's own.

    All choices of a sequence are forced; weights come from the live scores. A candidate of a token in a half-round is
    any set of at most K modules, where K is the number of choices that the model keeps (under an active `mom.TopK`,
    that number).

    Parameters
    ----------
    model : MoM or path
    ids : array of int, shape (T,) or (B, T)
    budget : int, optional
        Most modules that a token may run, over all half-rounds. By default there is no limit beside K. Where the
        router's own routes run more, the modules of least weight are left out at the start.
    search : {"exhaustive", "greedy", "beam"}
        ``"exhaustive"`` tries all routes. ``"beam"`` goes through tokens and half-rounds in the order of computation
        and keeps the `width` best routes; it repeats this as long as the loss falls. ``"greedy"`` keeps one.
    samples : int
        At most so many routes are tried for each sequence.
    tokens : sequence of int, optional
        Positions whose choices may change, and for which the budget holds; by default all.
    rounds : sequence of int or (block, round), optional
        Rounds in which choices may change; by default all.
    half : {"attn", "ffn"}, optional
        The half that may change; by default both.
    width : int
        Of the beam.
    seed : int
        Of the random routes.
    progress : bool
        Show a bar, in a terminal or a notebook.

    Returns
    -------
    Oracle

    Raises
    ------
    ValueError, TypeError
        If the model has no routers, draws noise or uses all modules for every token; if `samples` are too few for an
        exhaustive search; if the budget cannot be kept; if routes of the search contradict interventions that are
        active in the model.

    Notes
    -----
    The result is never worse than the router's own routes where these fit the budget. The control draws as many random
    routes as the search has tried, at the same places and within the same budget, and reports the best.

    A change at a token and a half-round reaches neither earlier half-rounds nor earlier tokens. So a batch holds the
    same sequence with many candidates and begins at that half-round. Earlier tokens run no feed-forward modules, and
    their logits are not computed again. They still give keys and values, and later routers and anchor layers run on all
    tokens.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> found = mom.analysis.oracle(model, [5, 6, 7, 8], tokens=[1], half="ffn")
    >>> found.regret >= 0.0
    True
    """
    model = MoM.resolve(model)
    given = as_ids(ids, "ids")
    _check(model, given, search)
    flag(progress, "progress")
    limit, width = count(samples, "samples", 1), count(width, "width", 1)
    most = None if budget is None else count(budget, "budget", 0)
    pandas = need("pandas", "a table of losses", "pandas")
    random = np.random.default_rng(seed_of(seed))
    rows, best = [], []
    with own_copy(model) as own, _contradictions_explained():
        space = space_of(model.config, given.shape[1], _kept(own, given), most, tokens, rounds, half)
        if search == "exhaustive" and space.size > limit:
            raise ValueError(
                f"samples: an exhaustive search has {space.size:,} routes, more than {limit:,}. Name fewer tokens, "
                "rounds or halves, or take search='greedy'"
            )
        for row in shown(given, "oracle", "sequence", progress, len(given)):
            trials = Trials(own, row, batch_size=max(1, 4096 // len(row)))
            result = _search(trials, space, search, limit, width, random)
            rows.append(result[0])
            best.append(result[1])
        routes = _final(own, given, best)
    table = pandas.DataFrame(rows, columns=["router", "start", "oracle", "random", "evaluated"])
    return Oracle(routes, table, seed)


def _kept(model: MoM, ids: npt.NDArray[np.int32]) -> dict[str, int]:
    """The number of choices that the model keeps, by half."""
    routes = model(ids[:1, :1], return_routes=True).routes
    assert routes is not None
    return {half: index.shape[-1] for half, index in routes.index.items()}


@contextlib.contextmanager
def _contradictions_explained() -> Iterator[None]:
    """Say which side a contradiction is between: the search gives nothing but routes, so the model has the rest."""
    try:
        yield
    except ContradictionError as error:
        raise ValueError(
            "model: the search forces choices that contradict interventions which are active in the model. Change "
            f"other tokens, rounds or halves, or end the block of intervene ({error})"
        ) from error


def _check(model: MoM, ids: npt.NDArray[np.int32], search: str) -> None:
    config = model.config
    if not routed_halves(config):
        raise ValueError("model: has no routers, so there are no routes to search")
    if config.routing_all_possible_path:
        raise ValueError("model: uses all modules for every token, so there are no routes to search")
    if "random" in config.router_type:
        raise ValueError("model: its routers draw noise, so that routes cannot be compared by their losses")
    if search not in SEARCHES:
        raise ValueError(f"search: {search!r} is not one of {', '.join(map(repr, SEARCHES))}")
    if ids.shape[1] < 2 or not len(ids):
        raise ValueError(f"ids: shape {ids.shape}; sequences of at least 2 tokens are needed")


def _search(
    trials: Trials, space: Space, search: str, limit: int, width: int, random: np.random.Generator
) -> tuple[tuple[float, float, float, float, int], Index]:
    """(router, start, oracle, random, evaluated) of a sequence, and the best routes."""
    predicted = len(trials.ids) - 1
    own = {h: i[:, 0] for h, i in trials.own.index.items()}
    start = trials.state(space.within_budget(own, {h: w[:, 0] for h, w in trials.own.weight.items()}))
    if search == "exhaustive":
        best = _exhaustive(trials, space, start)
    else:
        best = _beam(trials, space, start, limit, width if search == "beam" else 1)
    tried = trials.evaluated
    drawn = np.inf
    for first in range(0, tried, trials.batch_size):
        rows = space.random(start.index, min(trials.batch_size, tried - first), random)
        drawn = min(drawn, float(trials.losses(start, rows, _first(space)).min()))
    losses = (start.loss / predicted, best.loss / predicted, (drawn if tried else start.loss) / predicted)
    return (trials.loss, *losses, tried), best.index


def _first(space: Space) -> Site:
    """The site from which everything may differ: the first token, in the first half-round that may change."""
    number = min(site.number for site in space.sites)
    halves = {site.half for site in space.sites if site.number == number}
    return Site(space.sites[0].token, number, "attn" if "attn" in halves else "ffn")


def _better(trials: Trials, now: State, index: Index) -> State:
    """The state of these routes if a whole pass confirms that they are better."""
    found = trials.state(index)
    return found if found.loss < now.loss else now


def _exhaustive(trials: Trials, space: Space, start: State) -> State:
    rows = space.all_routes(start.index)
    losses = trials.losses(start, rows, _first(space))
    return _better(trials, start, rows[int(losses.argmin())])


def _beam(trials: Trials, space: Space, start: State, limit: int, width: int) -> State:
    """Sweeps over all sites that keep the `width` best routes, while the best one improves."""
    best = start
    while True:
        states, before = [best], best.loss
        for site in space.sites:
            tried: list[tuple[float, Index]] = []
            for state in states:
                entries = space.entries[site.half][space.affordable(state.index, site)]
                rows = [_changed(state.index, site, entry) for entry in entries[: max(0, limit - trials.evaluated)]]
                if rows:
                    tried += zip(trials.losses(state, rows, site).tolist(), rows, strict=True)
            states = _survivors(trials, states, tried, width)
        best = min([best, *states], key=lambda state: state.loss)
        if best.loss >= before or trials.evaluated >= limit:
            return best


def _survivors(trials: Trials, states: list[State], tried: list[tuple[float, Index]], width: int) -> list[State]:
    """The best `width` of the states and of the routes that were tried. No two of them are equal."""
    known: list[tuple[float, Index, State | None]] = [(state.loss, state.index, state) for state in states]
    ranked = sorted([*known, *((loss, index, None) for loss, index in tried)], key=lambda item: item[0])
    kept: list[State] = []
    for _, index, state in ranked:
        if len(kept) < width and not any(_equal(index, other.index) for other in kept):
            kept.append(trials.state(index) if state is None else state)
    return kept


def _equal(a: Index, b: Index) -> bool:
    return all(np.array_equal(a[half], b[half]) for half in a)


def _changed(index: Index, site: Site, entry: npt.NDArray[np.int16]) -> Index:
    changed = {**index, site.half: index[site.half].copy()}
    changed[site.half][site.number, site.token] = entry
    return changed


def _final(model: MoM, ids: npt.NDArray[np.int32], best: list[Index]) -> Routes:
    """The routes of the whole batch, as the model returns them."""
    own = model(ids, return_routes=True).routes
    assert own is not None
    index = {half: np.stack([one[half] for one in best], axis=1) for half in own.index}
    forced = Routes(own.tokens, index, own.scores, own.weight, own.rounds, own.num_modules)
    out = model(ids, routes=forced, return_routes=True).routes
    assert out is not None
    return out
