"""Sizes of the parts of a model: which products there are, how many numbers their weights have, and what is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..config import MoMConfig
from ..interventions.selection import HALVES
from ..routers import LAST_MAPS, parameter_shapes

__all__ = ["Half", "Place", "Trained", "all_parameters", "fixed_parameters", "places_of", "trained_parts"]

_NAME = re.compile(r"transformer\.h\.(\d+)\.(ln_1|attn|ln_2|mlp|mot_attn|mot_ffn)\.(router\.)?")


@dataclass(frozen=True)
class Half:
    """One half of a place: a pool of modules and its router, if it has one.

    Attributes
    ----------
    name : str
        ``"attn"`` or ``"ffn"``.
    modules : int
    choices, outputs : int
        Kept choices K, and outputs S of the router; 1 if there is none.
    width, inner : int
        C, and F of a feed-forward module.
    router_products : tuple of (int, int)
        Multiply-adds of a token forward: of a round, and of the state in all rounds but the first.
    router_parameters, state_parameters : int
        Numbers in the router's weights that a round reads, and of these in a recurrent router's map of its state.
    other_parameters : int
        Numbers in the router's weights that only other rounds read.
    all_paths, routed : bool
    final_skip : bool
        Rows that skip make no choice any more.
    detached : bool
        No gradient goes from a round to the state of the round before.
    """

    name: str
    modules: int
    choices: int
    outputs: int
    width: int
    inner: int
    router_products: tuple[int, int]
    router_parameters: int
    state_parameters: int
    other_parameters: int
    all_paths: bool
    routed: bool
    final_skip: bool
    detached: bool

    @property
    def first_parameters(self) -> int:
        """Numbers in a module's LayerNorm and first layer."""
        out = 3 * self.width if self.name == "attn" else self.inner
        return 2 * self.width + (self.width + 1) * out

    @property
    def last_parameters(self) -> int:
        """Numbers in a module's last layer."""
        inputs = self.width if self.name == "attn" else self.inner
        return (inputs + 1) * self.width

    @property
    def module_parameters(self) -> int:
        return self.first_parameters + self.last_parameters

    @property
    def all_router_parameters(self) -> int:
        return self.router_parameters + self.other_parameters

    @property
    def all_module_parameters(self) -> int:
        return self.modules * self.module_parameters


@dataclass(frozen=True)
class Place:
    """An anchor layer, or a block with its number."""

    number: int
    block: int | None
    rounds: int
    halves: tuple[Half, Half]


def _half(config: MoMConfig, name: str, block: bool) -> Half:
    modules = (config.num_attn if name == "attn" else config.num_ffn) if block else 1
    routed = block and config.is_routed(name)
    outputs = config.num_choices(name) if routed else 1
    shapes = parameter_shapes(config, name) if routed else {}
    sizes = {key: math.prod(shape) for key, shape in shapes.items()}
    state = {key: shape for key, shape in shapes.items() if key.startswith("h2h.")}
    own_rounds = {"projection": LAST_MAPS, "embedding": ("round_embedding.weight",), "shared": ()}[config.router_rounds]
    read = sum(n // config.rounds if key in own_rounds and config.rounds else n for key, n in sizes.items())
    # Every matrix of a router but those of other rounds is a factor of a product.
    matrices = sum(math.prod(shape) // (config.rounds if key in own_rounds else 1)
                   for key, shape in shapes.items()
                   if len(shape) == 2 and key not in state and key != "round_embedding.weight")  # fmt: skip
    of_state = sum(math.prod(shape) for shape in state.values() if len(shape) == 2)
    return Half(
        name, modules, min(config.routing_top_k, outputs) if routed else 1, outputs, config.n_embd, config.inner_size,
        (matrices, of_state if config.router_state != "reset" else 0), read, sum(sizes[key] for key in state),
        sum(sizes.values()) - read, routed and config.routing_all_possible_path, routed,
        config.skip_is_final, config.router_state == "detached",
    )  # fmt: skip


def places_of(config: MoMConfig) -> Iterator[Place]:
    """The places of the body in order."""
    kinds = {block: tuple(_half(config, name, block) for name in HALVES) for block in (False, True)}
    block = 0
    for number, kind in enumerate(config.places()):
        is_block = kind == "block"
        attn, ffn = kinds[is_block]
        yield Place(number, block if is_block else None, config.rounds if is_block else 1, (attn, ffn))
        block += is_block


def all_parameters(config: MoMConfig) -> int:
    """Numbers in the parameters of the body. Modules that blocks share count once."""
    total = 0
    for place in places_of(config):
        for half in place.halves:
            owned = config.owner(place.number, half.name) == place.number
            total += half.all_router_parameters + half.all_module_parameters * owned
    return total


def fixed_parameters(config: MoMConfig) -> dict[str, int]:
    """Numbers in the parameters outside the body."""
    sizes = {"wte": config.vocab_size * config.n_embd, "wpe": config.n_positions * config.n_embd}
    return {**sizes, "ln_f": 2 * config.n_embd, "score": (config.num_labels or 0) * config.n_embd}


@dataclass(frozen=True)
class Trained:
    """What backward computes.

    Attributes
    ----------
    lowest : int
        The lowest place that it goes through; 0: the embeddings, too.
    frozen : frozenset of (int, str)
        Places and halves in which no module is trained: gradients of their weights are left out.
    """

    lowest: int = 0
    frozen: frozenset[tuple[int, str]] = frozenset()


def trained_parts(config: MoMConfig, trained: Mapping[str, bool]) -> Trained:
    """The same for a choice of parameters, as the core makes it."""
    places = len(config.places())
    active: set[tuple[int, str]] = set()
    routers: set[int] = set()
    for name, chosen in trained.items():
        found = _NAME.match(name) if chosen else None
        if found is None:
            continue
        if found[3]:
            routers.add(int(found[1]))
        else:
            active.add((int(found[1]), "attn" if found[2] in ("ln_1", "attn", "mot_attn") else "ffn"))
    blocks = [place for place, kind in enumerate(config.places()) if kind == "block"]
    active |= {(place, half) for place in blocks for half in HALVES if (config.owner(place, half), half) in active}
    norm = trained["transformer.ln_f.weight"] or trained["transformer.ln_f.bias"]
    above = places + (not norm and "score.weight" in trained)  # only the final LayerNorm, or only a classifier's head
    lowest = min([place for place, _ in active] + sorted(routers), default=above)
    if trained["transformer.wte.weight"] or trained["transformer.wpe.weight"]:
        lowest = 0
    every = {(place, half) for place in range(places) for half in HALVES}
    return Trained(lowest, frozenset(every - active))
