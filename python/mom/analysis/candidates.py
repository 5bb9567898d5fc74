"""What a search over routes may change: places, the choices there, and the budget of a token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..interventions.selection import ANY_SKIP, HALVES, NONE, numbers, rounds_of
from .restart import rounds_of_config, routed_halves

__all__ = ["Index", "Site", "Space", "space_of"]

#: By half: choices of one sequence, shape (L, T, K).
Index = dict[str, npt.NDArray[np.int16]]


class Site(NamedTuple):
    """The choice of one token in one half-round. Sites are ordered as they are computed."""

    token: int
    number: int
    half: str


@dataclass(frozen=True)
class Space:
    """All routes that a search may take.

    Attributes
    ----------
    sites : list of Site
        What may change, token by token.
    entries : dict of str to ndarray of int16, shape (C, K)
        By half: the candidates, as `mom.Routes.index` writes them.
    runs : dict of str to ndarray of int64, shape (C,)
        How many modules each candidate runs.
    modules : dict of str to int
    budget : int or None
        Most modules that a token of these sites may run, over all half-rounds.
    """

    sites: list[Site]
    entries: dict[str, npt.NDArray[np.int16]]
    runs: dict[str, npt.NDArray[np.int64]]
    modules: dict[str, int]
    budget: int | None

    @property
    def tokens(self) -> list[int]:
        """The tokens whose choices may change."""
        return sorted({site.token for site in self.sites})

    def used(self, index: Index) -> npt.NDArray[np.int64]:
        """How many modules each token runs, shape (T,)."""
        ran = [((i >= 0) & (i < self.modules[half])).sum(axis=(0, 2)) for half, i in index.items()]
        total: npt.NDArray[np.int64] = np.sum(ran, axis=0)
        return total

    def affordable(self, index: Index, site: Site) -> list[int]:
        """Candidates of a site that fit the budget and run other choices than `index` does."""
        own = index[site.half][site.number, site.token]
        now = int(((own >= 0) & (own < self.modules[site.half])).sum())
        left = None if self.budget is None else self.budget - int(self.used(index)[site.token]) + now
        entries, runs = self.entries[site.half], self.runs[site.half]
        same = set(own.tolist())
        return [
            c for c in range(len(entries)) if (left is None or runs[c] <= left) and set(entries[c].tolist()) != same
        ]

    def within_budget(self, index: Index, weight: dict[str, npt.NDArray[np.float32]]) -> Index:
        """The same routes without the modules of least weight, where a token runs more than the budget.

        Raises
        ------
        ValueError
            If the sites that may change cannot save enough.
        """
        found = {half: i.copy() for half, i in index.items()}
        if self.budget is None:
            return found
        for token in [t for t in self.tokens if self.used(found)[t] > self.budget]:
            sites = [site for site in self.sites if site.token == token]
            while self.used(found)[token] > self.budget:
                place, entry = self._lightest(found, weight, sites, token)
                kept = [m for m in found[place.half][place.number, token] if 0 <= m < self.modules[place.half]]
                kept.remove(entry)
                found[place.half][place.number, token] = self._just(place.half, kept)
        return found

    def _lightest(
        self, index: Index, weight: dict[str, npt.NDArray[np.float32]], sites: list[Site], token: int
    ) -> tuple[Site, int]:
        """The site and the module to give up first."""
        running = [
            (float(weight[site.half][site.number, token, k]), place, int(m))
            for place, site in enumerate(sites)
            for k, m in enumerate(index[site.half][site.number, token])
            if 0 <= m < self.modules[site.half]
        ]
        if not running:
            raise ValueError(
                f"budget: token {token} runs more than {self.budget} modules where nothing may change; raise the "
                "budget or let more rounds and halves change"
            )
        _, place, module = min(running)
        return sites[place], module

    def _just(self, half: str, modules: list[int]) -> npt.NDArray[np.int16]:
        """The first candidate that runs exactly these modules."""
        wanted = set(modules)
        for entry in self.entries[half]:
            if {int(m) for m in entry if 0 <= m < self.modules[half]} == wanted:
                found: npt.NDArray[np.int16] = entry
                return found
        raise AssertionError("every set of modules has a candidate")

    @property
    def size(self) -> int:
        """Number of all routes, without regard to the budget."""
        total = 1
        for site in self.sites:
            total *= len(self.entries[site.half])
        return total

    def random(self, index: Index, count: int, random: np.random.Generator) -> list[Index]:
        """Routes with a random candidate at each site; sites of a token take turns at random while its budget lasts."""
        tokens, half_rounds = np.array(self.tokens), list(dict.fromkeys((s.number, s.half) for s in self.sites))
        drawn = {half: np.repeat(i[None], count, axis=0) for half, i in index.items()}
        room = np.repeat(self._left_without_sites(index)[None, tokens], count, axis=0)
        orders = {half: np.argsort(runs, kind="stable") for half, runs in self.runs.items()}
        turns = random.permuted(np.tile(np.arange(len(half_rounds)), (*room.shape, 1)), axis=-1)
        for turn in np.moveaxis(turns, -1, 0):
            numbers = random.random(room.shape)
            for place, (number, half) in enumerate(half_rounds):
                route, token = np.nonzero(turn == place)
                order, runs = orders[half], self.runs[half]
                possible = np.searchsorted(runs[order], room[route, token], side="right")
                chosen = order[(numbers[route, token] * possible).astype(np.intp)]
                drawn[half][route, number, tokens[token]] = self.entries[half][chosen]
                room[route, token] -= runs[chosen]
        return [{half: routes[i] for half, routes in drawn.items()} for i in range(count)]

    def _left_without_sites(self, index: Index) -> npt.NDArray[np.int64]:
        """What the budget of each token leaves for the sites that may change."""
        total = sum(len(i) * i.shape[-1] for i in index.values())
        empty = {half: i.copy() for half, i in index.items()}
        for site in self.sites:
            empty[site.half][site.number, site.token] = NONE
        return (total if self.budget is None else self.budget) - self.used(empty)

    def all_routes(self, index: Index) -> list[Index]:
        """Every route within the budget, by enumeration."""
        found = []
        for chosen in itertools.product(*(range(len(self.entries[site.half])) for site in self.sites)):
            one = {half: i.copy() for half, i in index.items()}
            for site, c in zip(self.sites, chosen, strict=True):
                one[site.half][site.number, site.token] = self.entries[site.half][c]
            if self.budget is None or (self.used(one)[self.tokens] <= self.budget).all():
                found.append(one)
        return found


def space_of(
    config: MoMConfig,
    length: int,
    kept: dict[str, int],
    budget: int | None,
    tokens: Sequence[int] | None,
    rounds: Sequence[Any] | None,
    half: str | None,
) -> Space:
    """The space of a sequence of `length` tokens; `kept` are the choices per token by half."""
    halves = routed_halves(config)
    if half is not None and half not in halves:
        raise ValueError(f"half: {half!r} has no router here; those with one are {halves}")
    positions = numbers(tokens, "tokens")
    if positions is not None and max(positions) >= length:
        raise ValueError(f"tokens: there is no position {max(positions)}; sequences have {length} tokens")
    chosen = sorted(set(rounds_of(rounds, rounds_of_config(config))))
    wanted = [h for h in HALVES if h in halves and half in (None, h)]
    sites = [
        Site(t, n, h) for t in (range(length) if positions is None else sorted(set(positions))) for n in chosen
        for h in wanted
    ]  # fmt: skip
    modules = {"attn": config.num_attn, "ffn": config.num_ffn}
    entries = {h: _candidates(modules[h], config.num_choices(h), kept[h]) for h in halves}
    runs = {h: ((e >= 0) & (e < modules[h])).sum(axis=1) for h, e in entries.items()}
    return Space(sites, entries, runs, {h: modules[h] for h in halves}, budget)


def _candidates(modules: int, choices: int, kept: int) -> npt.NDArray[np.int16]:
    """All sets of at most `kept` modules. Choices that mean SKIP fill a set up, in all ways, where there are enough."""
    skips = range(modules, choices)
    found: list[tuple[int, ...]] = []
    for count in range(min(kept, modules) + 1):
        for some in itertools.combinations(range(modules), count):
            if len(skips) >= kept - count:
                found += [(*some, *fill) for fill in itertools.combinations(skips, kept - count)]
            else:
                own = some or (ANY_SKIP if len(skips) > 1 else modules,)
                found.append((*own, *(NONE,) * (kept - len(own))))
    return np.array(found, np.int16)
