"""Turns interventions into what the core reads: arrays with an entry for each token of one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from .layout import Layout, find, layout_of
from .places import Place, matching_places, places_of
from .random_routes import random_choices
from .rules import Bias, Forbid, Force, Intervention, PlaceIntervention, RandomRoutes, Scale, TopK
from .selection import ANY_SKIP, FREE, HALVES, NONE, choices_to_keep, rounds_of, selected

if TYPE_CHECKING:
    from ..model.routes import Routes

__all__ = ["ContradictionError", "Resolved", "check_rules", "resolve"]


class ContradictionError(ValueError):
    """Interventions that hold at the same place exclude each other."""


#: A half-round with a router: place in ``transformer.h``, round, half.
Key = tuple[int, int, int]


@dataclass
class Resolved:
    """What the core reads, and which interventions have touched something.

    Attributes
    ----------
    core : tuple
        For ``_core.Network.forward`` and ``_core.Decoder``.
    captured : dict of str to ndarray of float32, shape (N, width)
        Filled by the forward pass.
    gradients : dict of str to ndarray of float32, shape (N, width)
        Filled by the backward pass.
    """

    core: tuple[Any, ...]
    captured: dict[str, npt.NDArray[np.float32]]
    gradients: dict[str, npt.NDArray[np.float32]]
    _used: dict[int, bool]
    _patches: list[int]  # the intervention that each patch of the core came from

    def touched(self) -> dict[int, bool]:
        """By number in the list: whether an intervention has touched anything in this call."""
        used = dict(self._used)
        for number, count in zip(self._patches, self.core[4], strict=True):
            used[number] = used.get(number, False) or bool(count)
        return used


@dataclass
class _Resolver:
    config: MoMConfig
    layout: Layout
    ambient: int  # the first so many may name rows and positions that this call does not have
    alone: bool = False  # without a call: arrays with a row per token cannot be compared with it
    rounds: list[tuple[int, int]] = field(init=False)  # (block, round)
    places: list[int] = field(init=False)  # of each round in transformer.h
    kept: list[int] = field(init=False)  # by half
    forced: dict[Key, npt.NDArray[np.int16]] = field(default_factory=dict)
    fixed: dict[Key, npt.NDArray[np.int32]] = field(default_factory=dict)  # by token: number in `fixers`, or -1
    fixers: list[object] = field(default_factory=list)
    bias: dict[Key, npt.NDArray[np.float32]] = field(default_factory=dict)
    patches: list[tuple[Any, ...]] = field(default_factory=list)
    patch_owner: list[int] = field(default_factory=list)
    replaced: dict[tuple[int, ...], list[tuple[Any, npt.NDArray[np.int32], Any]]] = field(default_factory=dict)
    used: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = [place for place, kind in enumerate(self.config.places()) if kind == "block"]
        self.rounds = [(b, r) for b in range(len(blocks)) for r in range(self.config.rounds)]
        self.places = [blocks[b] for b, _ in self.rounds]
        self.kept = [0, 0]

    # ------------------------------------------------------------------ what the model has
    def modules(self, half: str) -> int:
        return self.config.num_attn if half == "attn" else self.config.num_ffn

    def choices(self, half: str) -> int:
        return self.config.num_choices(half)

    def has_router(self, half: str) -> bool:
        return bool(self.rounds) and self.config.is_routed(half)

    def own_kept(self, half: str) -> int:
        return min(self.config.routing_top_k, self.choices(half))

    def kept_by(self, half: str) -> int:
        return self.kept[HALVES.index(half)] or self.own_kept(half)

    def need_router(self, half: str) -> None:
        if not self.has_router(half):
            why = f"it has {self.modules(half)} module" if self.rounds else "this model has no blocks"
            raise ValueError(f"half: the {half} half has no router here; {why}")

    def keys(self, half: str, rounds: Any) -> list[Key]:
        number = HALVES.index(half)
        return [(self.places[n], self.rounds[n][1], number) for n in rounds_of(rounds, self.rounds)]

    def choose(self, number: int, rule: Any) -> npt.NDArray[np.intp]:
        return selected(self.layout, rule.tokens, rule.rows, strict=number >= self.ambient)

    # ------------------------------------------------------------------ choices
    def force(self, key: Key, chosen: npt.NDArray[np.intp], entries: npt.NDArray[np.int16], by: object) -> None:
        """Fix the entries (K,) or (chosen, K) of these tokens; entries that are all free fix nothing."""
        if self.config.routing_all_possible_path:
            raise ValueError(
                f"{by}: choices cannot be forced where every token uses all modules; Forbid removes a module"
            )
        K = self.kept_by(HALVES[key[2]])
        if key not in self.forced:
            self.forced[key] = np.full((len(self.layout.tokens), K), FREE, np.int16)
            self.fixed[key] = np.full(len(self.layout.tokens), -1, np.int32)
        wanted = np.broadcast_to(entries, (len(chosen), K))
        fixing = (wanted != FREE).any(axis=1)
        before = self.fixed[key][chosen] >= 0
        beyond = (self.forced[key][chosen] == NONE) & ~before[:, None]  # what TopK leaves out
        if isinstance(by, RandomRoutes):
            wanted = np.where(beyond, NONE, wanted)
        clash = fixing & np.where(before, (self.forced[key][chosen] != wanted).any(axis=1),
                                  (beyond & (wanted != NONE)).any(axis=1))  # fmt: skip
        if clash.any():
            token = int(chosen[np.argmax(clash)])
            first = int(self.fixed[key][token])
            other = "TopK" if first < 0 else self.fixers[first]
            raise ContradictionError(
                f"interventions: {by} and {other} choose differently for row {self.layout.row[token]}, position "
                f"{self.layout.position[token]}"
            )
        write = chosen[fixing & ~before]
        self.forced[key][write] = wanted[fixing & ~before]
        self.fixed[key][write] = len(self.fixers)
        self.fixers.append(by)

    def biased(self, key: Key) -> npt.NDArray[np.float32]:
        if key not in self.bias:
            self.bias[key] = np.zeros((len(self.layout.tokens), self.choices(HALVES[key[2]])), np.float32)
        return self.bias[key]

    def outputs_of(self, half: str, names: Iterable[Any], argument: str) -> list[list[int]]:
        """The router's outputs that each name of an argument stands for."""
        modules, choices, found = self.modules(half), self.choices(half), []
        for name in names:
            entry = int(choices_to_keep(name, modules, choices, 1, name=argument)[0])
            outputs = list(range(modules, choices)) if name == "SKIP" else [entry]
            if not outputs:
                raise ValueError(f"{argument}: the {half} router has no choice that means SKIP")
            found.append(outputs)
        return found

    # ------------------------------------------------------------------ rules
    def top_k(self, rules: Sequence[tuple[int, TopK]]) -> None:
        for _, rule in rules:
            if rule.half is not None or not any(map(self.has_router, HALVES)):
                self.need_router(rule.half or "attn")
        for half in HALVES:
            mine = [(n, rule) for n, rule in rules if rule.half in (None, half)]
            if not mine or not self.has_router(half):
                continue
            if self.config.routing_all_possible_path:
                raise ValueError("TopK: has no effect where every token uses all modules")
            for _, rule in mine:
                if rule.k > self.choices(half):
                    raise ValueError(f"k: {rule.k} choices, the {half} router has {self.choices(half)}")
            whole = [rule.k for _, rule in mine if rule.rounds is None and rule.tokens is None and rule.rows is None]
            if len(set(whole)) > 1:
                raise ContradictionError(f"interventions: TopK({whole[0]}) and TopK({whole[1]}) contradict each other")
            base = whole[0] if whole else self.own_kept(half)
            self.kept[HALVES.index(half)] = max([base, *(rule.k for _, rule in mine)])
            self._limit(half, mine, base)

    def _limit(self, half: str, rules: Sequence[tuple[int, TopK]], base: int) -> None:
        """Entries beyond a token's own number become none. Rules for some tokens or rounds go before `base`."""
        K = self.kept_by(half)
        for key in self.keys(half, None):
            limit, narrow = np.full(len(self.layout.tokens), base), np.zeros(len(self.layout.tokens), bool)
            for number, rule in rules:
                if key not in self.keys(half, rule.rounds):
                    continue
                chosen = self.choose(number, rule)
                self.used[number] = self.used.get(number, False) or len(chosen) > 0
                if rule.rounds is None and rule.tokens is None and rule.rows is None:
                    continue
                clash = chosen[narrow[chosen] & (limit[chosen] != rule.k)]
                if len(clash):
                    raise ContradictionError(
                        f"interventions: {rule} and another TopK contradict each other for row "
                        f"{self.layout.row[clash[0]]}, position {self.layout.position[clash[0]]}"
                    )
                limit[chosen], narrow[chosen] = rule.k, True
            if (limit < K).any():
                self.forced[key] = np.where(np.arange(K) < limit[:, None], FREE, NONE).astype(np.int16)
                self.fixed[key] = np.full(len(limit), -1, np.int32)

    def rule(self, number: int, rule: Intervention) -> None:
        """Apply one rule, after all TopK."""
        if isinstance(rule, PlaceIntervention):
            self.patch(number, rule)
            return
        half: str = rule.half  # type: ignore[attr-defined]
        self.need_router(half)
        chosen, keys = self.choose(number, rule), self.keys(half, rule.rounds)  # type: ignore[attr-defined]
        self.used[number] = self.used.get(number, False) or bool(len(chosen) and keys)
        for key in keys:
            self._of_router(rule, half, key, chosen)

    def _of_router(self, rule: Intervention, half: str, key: Key, chosen: npt.NDArray[np.intp]) -> None:
        modules, choices, K = self.modules(half), self.choices(half), self.kept_by(half)
        if isinstance(rule, Force):
            self.force(key, chosen, choices_to_keep(rule.to, modules, choices, K), rule)
        elif isinstance(rule, RandomRoutes):
            drawn = random_choices(self.layout, rule.seed, key, choices, K)
            if key in self.forced:  # a token keeps as many as TopK allows it
                drawn[(self.forced[key] == NONE) & (self.fixed[key][:, None] < 0)] = NONE
            self.force(key, chosen, drawn[chosen], rule)
        elif isinstance(rule, Forbid):
            for outputs in self.outputs_of(half, rule.modules, "modules"):
                self.biased(key)[chosen[:, None], outputs] = -np.inf
        elif isinstance(rule, Bias):
            for outputs, value in zip(self.outputs_of(half, rule.values, "values"), rule.values.values(), strict=True):
                with np.errstate(over="ignore"):  # the core refuses a sum that is not finite
                    self.biased(key)[chosen[:, None], outputs] += np.float32(value)

    def replay(self, routes: Routes) -> None:
        """Force every choice of `routes`; in a decoder, of the tokens that they have."""
        if routes.rounds != self.rounds or any(
            routes.num_modules[half] != self.modules(half) for half in routes.index
        ):
            raise ValueError("routes: are of a model with other rounds or modules")
        source = self._tokens_of(routes)
        chosen = np.flatnonzero(source >= 0)
        for half, index in routes.index.items():
            if not self.has_router(half):
                raise ValueError(f"routes: have choices of the {half} half, which has no router here")
            if index.shape[-1] > self.choices(half) or index.max(initial=0) >= max(
                self.choices(half), self.modules(half) + 1
            ):
                raise ValueError(f"routes: have choices that the {half} router of this model does not have")
            number = HALVES.index(half)
            if self.kept[number] and self.kept[number] != index.shape[-1]:
                raise ValueError(
                    f"routes: keep {index.shape[-1]} choices of the {half} half, and TopK asks for {self.kept[number]}"
                )
            if index.shape[-1] != self.kept_by(half):
                self.kept[number] = index.shape[-1]
            for choices, key in zip(index, self.keys(half, None), strict=True):
                entries = choices.reshape(-1, index.shape[-1])[source[chosen]]
                self.force(key, chosen, np.ascontiguousarray(entries, np.int16), "routes")

    def _tokens_of(self, routes: Routes) -> npt.NDArray[np.intp]:
        """Which token of `routes` each token of the call is; -1: none, which only a decoder may have."""
        layout = self.layout
        if layout.grows:
            return find(layout, layout_of(routes.tokens, routes.mask, routes.lengths))
        if routes.tokens.shape != layout.shape:
            raise ValueError(f"routes: are of tokens of shape {routes.tokens.shape}, these have {layout.shape}")
        lengths = np.bincount(layout.row, minlength=layout.rows).tolist()
        if routes.lengths is not None and routes.lengths.tolist() != lengths:
            raise ValueError(f"routes: are of rows of lengths {routes.lengths.tolist()}, these have {lengths}")
        return np.arange(len(layout.tokens))

    def check_forbidden(self) -> None:
        """Refuse choices that are both forced and forbidden, and tokens that may choose nothing."""
        for key, bias in self.bias.items():
            half = HALVES[key[2]]
            nothing = np.isneginf(bias).all(axis=1)
            if nothing.any():
                raise ContradictionError(f"interventions: every choice of the {half} router is forbidden, SKIP too")
            forced = self.forced.get(key)
            if forced is None:
                continue
            known = (forced >= 0) & (forced < bias.shape[1])
            skips = bias[:, self.modules(half) :]
            no_skip = np.isneginf(skips).all(axis=1) & (skips.shape[1] > 0)
            taken = np.take_along_axis(bias, np.where(known, forced, 0).astype(np.int64), axis=1)
            clash = known & np.isneginf(taken)
            clash |= no_skip[:, None] & (forced == ANY_SKIP)
            if clash.any():
                token, entry = np.argwhere(clash)[0]
                self._raise_forbidden(key, int(token), int(forced[token, entry]))

    def _raise_forbidden(self, key: Key, token: int, entry: int) -> NoReturn:
        half, block = HALVES[key[2]], sorted(set(self.places)).index(key[0])
        choice = f"module {entry}" if 0 <= entry < self.modules(half) else "SKIP"
        raise ContradictionError(
            f"interventions: {choice} of the {half} half is forced and forbidden at once, in block {block}, round "
            f"{key[1]}, for row {self.layout.row[token]}, position {self.layout.position[token]}"
        )

    # ------------------------------------------------------------------ places
    def patch(self, number: int, rule: PlaceIntervention) -> None:
        chosen = self.choose(number, rule)
        for place in matching_places(rule.place, places_of(self.config), "place"):
            value_row = np.full(len(self.layout.tokens), -1, np.int32)
            values = None
            if rule.constant is None:
                value_row[chosen] = 0
            else:
                values, rows = self._values(rule, place, rule.constant, chosen)
                value_row[chosen] = rows
            if not isinstance(rule, Scale):
                self._check_replaced(rule, place, value_row, values)
            self.patches.append((*place.site, value_row, values, rule.multiplier))
            self.patch_owner.append(number)
            if not place.is_module:
                self.used[number] = self.used.get(number, False) or len(chosen) > 0
            self.used.setdefault(number, False)

    def _check_replaced(
        self, rule: PlaceIntervention, place: Place, value_row: npt.NDArray[np.int32], values: Any
    ) -> None:
        """Raise if another rule replaces the same row of this place by something else."""
        for by, other_row, other in self.replaced.setdefault(place.site, []):
            both = np.flatnonzero((value_row >= 0) & (other_row >= 0))
            mine = 0.0 if values is None else values[value_row[both]]
            theirs = 0.0 if other is None else other[other_row[both]]
            clash = both[np.broadcast_to(mine != theirs, (len(both), place.width)).any(axis=1)]
            if len(clash):
                raise ContradictionError(
                    f"interventions: {rule} and {by} replace {place.name!r} for row "
                    f"{self.layout.row[clash[0]]}, position {self.layout.position[clash[0]]}, by different values"
                )
        self.replaced[place.site].append((rule, value_row, values))

    def _values(
        self, rule: PlaceIntervention, place: Place, value: npt.NDArray[np.float32], chosen: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Values (any, width), and which of them each chosen token takes."""
        N, width = len(self.layout.tokens), place.width
        if value.ndim == 0 or value.shape == (width,):
            return np.broadcast_to(value, (1, width)).astype(np.float32), np.zeros(len(chosen), np.int32)
        by_position = rule.tokens is not None and value.shape == (len(rule.tokens), width)
        if not by_position and value.shape in ((*self.layout.shape, width), (N, width)):
            return np.ascontiguousarray(value.reshape(N, width)), chosen.astype(np.int32)
        if self.alone and value.ndim > 1 and value.shape[-1] == width:
            return np.zeros((1, width), np.float32), np.zeros(len(chosen), np.int32)
        if by_position:
            order = np.argsort(np.array(rule.tokens), kind="stable")
            where = np.searchsorted(np.array(rule.tokens)[order], self.layout.position[chosen])
            return np.ascontiguousarray(value), order[where].astype(np.int32)
        accepted = [(width,), (*self.layout.shape, width)]
        accepted += [] if rule.tokens is None else [(len(rule.tokens), width)]
        raise ValueError(
            f"value: shape {value.shape} at {place.name!r}, expected {' or '.join(map(str, accepted))}"
        )

    # ------------------------------------------------------------------ the result
    def result(self, captures: list[tuple[Any, ...]], **arrays: Any) -> Resolved:
        keys = sorted(set(self.forced) | set(self.bias))
        routes = [(*key, self.forced.get(key), self.bias.get(key)) for key in keys]
        touched = np.zeros(len(self.patches), np.int64)
        core = (tuple(self.kept), routes, self.patches, captures, touched)
        return Resolved(core, _used=self.used, _patches=self.patch_owner, **arrays)


def check_rules(config: MoMConfig, interventions: Sequence[Intervention]) -> None:
    """Raise for what a model with this configuration does not have, and for rules that contradict each other anywhere.

    Rows and positions are compared with each call later on.
    """
    layout = layout_of(np.zeros((1, 1), np.int32))
    r = _Resolver(config, layout, len(interventions), alone=True)
    r.top_k([(n, rule) for n, rule in enumerate(interventions) if isinstance(rule, TopK)])
    for n, rule in enumerate(interventions):
        if not isinstance(rule, TopK):
            r.rule(n, rule)
    r.check_forbidden()


def resolve(
    config: MoMConfig,
    layout: Layout,
    interventions: Sequence[Intervention] = (),
    routes: Routes | None = None,
    capture: Sequence[str] = (),
    gradients: bool = False,
    ambient: Sequence[Intervention] = (),
) -> Resolved:
    """Arrays for one call.

    Parameters
    ----------
    config : MoMConfig
    layout : Layout
        Of the call's tokens.
    interventions : sequence of Intervention
    routes : Routes, optional
        Choices to force.
    capture : sequence of str
        Names of places, or patterns.
    gradients : bool
        Whether a backward pass may follow, which captures gradients.
    ambient : sequence of Intervention
        Further ones, which come first. They may name rows and positions that this call does not have.

    Raises
    ------
    ValueError, TypeError
        If something does not exist or contradicts something else. The message names it.
    """
    r = _Resolver(config, layout, len(ambient))
    numbered = list(enumerate([*ambient, *interventions]))
    r.top_k([(n, rule) for n, rule in numbered if isinstance(rule, TopK)])
    if routes is not None:
        r.replay(routes)
    for n, rule in numbered:
        if not isinstance(rule, TopK):
            r.rule(n, rule)
    r.check_forbidden()
    captured: dict[str, npt.NDArray[np.float32]] = {}
    changes: dict[str, npt.NDArray[np.float32]] = {}
    entries: list[tuple[Any, ...]] = []
    known = places_of(config) if capture else {}
    for pattern in capture:
        for place in matching_places(pattern, known, "capture"):
            if place.name in captured:
                continue
            shape = (len(layout.tokens), place.width)
            captured[place.name] = np.zeros(shape, np.float32)
            if gradients:
                changes[place.name] = np.full(shape, np.nan, np.float32)
            entries.append((*place.site, captured[place.name], changes.get(place.name)))
    return r.result(entries, captured=captured, gradients=changes)
