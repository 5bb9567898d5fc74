"""Names of the places where activations can be read and changed."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..config import MoMConfig
from ..routers import KINDS

__all__ = ["Place", "matching_places", "places_of"]

# Kinds of sites, as mom_site_kind in mom_c/model/interventions.h numbers them.
_EMBEDDING, _INPUT, _STATE, _MODULE, _OUTPUT, _FINAL, _HIDDEN = range(7)


@dataclass(frozen=True)
class Place:
    """A place: what the core calls a site.

    Attributes
    ----------
    name : str
    site : tuple of five int
        Kind, place in ``transformer.h``, round, half, module.
    width : int
        Of its rows.
    """

    name: str
    site: tuple[int, int, int, int, int]
    width: int

    @property
    def is_module(self) -> bool:
        """Whether it is the output of a single module."""
        return self.site[0] == _MODULE


@functools.lru_cache(maxsize=64)
def places_of(config: MoMConfig) -> Mapping[str, Place]:
    """All places of a model with this configuration, by name, in the order of the computation."""
    found: list[Place] = [Place("embedding", (_EMBEDDING, 0, 0, 0, 0), config.n_embd)]
    anchors = blocks = 0
    for number, kind in enumerate(config.places()):
        if kind == "block":
            for r in range(config.rounds):
                found += _half_round(config, f"block{blocks}.round{r}", number, r)
            blocks += 1
        else:
            for half, name in enumerate(("attn", "ffn")):
                found += [
                    Place(f"anchor{anchors}.{name}.input", (_INPUT, number, 0, half, 0), config.n_embd),
                    Place(f"anchor{anchors}.{name}.output", (_OUTPUT, number, 0, half, 0), config.n_embd),
                ]
            anchors += 1
    found += [
        Place("final", (_FINAL, 0, 0, 0, 0), config.n_embd),
        Place("hidden", (_HIDDEN, 0, 0, 0, 0), config.n_embd),
    ]
    return MappingProxyType({place.name: place for place in found})


def _half_round(config: MoMConfig, prefix: str, number: int, r: int) -> list[Place]:
    found = []
    for half, (name, modules) in enumerate((("attn", config.num_attn), ("ffn", config.num_ffn))):
        start, width = f"{prefix}.{name}", config.n_embd
        found.append(Place(f"{start}.input", (_INPUT, number, r, half, 0), width))
        if config.is_routed(name) and KINDS[config.router_kind].recurrent and config.router_state != "reset":
            found.append(Place(f"{start}.state", (_STATE, number, r, half, 0), config.router_dim))
        found += [Place(f"{start}.module{m}.output", (_MODULE, number, r, half, m), width) for m in range(modules)]
        found.append(Place(f"{start}.output", (_OUTPUT, number, r, half, 0), width))
    return found


def matching_places(pattern: str, places: Mapping[str, Place], name: str) -> list[Place]:
    """The places that a name or a shell pattern fits.

    Raises
    ------
    ValueError
        If there are none; the message has the nearest names. `name` is that of the argument.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: expected the name of a place or a pattern, got {pattern!r}")
    if pattern in places:
        return [places[pattern]]
    found = [place for key, place in places.items() if fnmatch.fnmatchcase(key, pattern)]
    if found:
        return found
    raise ValueError(f"{name}: no place fits {pattern!r}; {_hint(pattern, places)}")


def _hint(pattern: str, places: Mapping[str, Place]) -> str:
    if "hook" in pattern:  # a name of TransformerLens
        first = next((key for key in places if key.endswith(".ffn.output")), "hidden")
        return f"a layer or round has places such as {first!r}, and model.attention has probabilities"
    near = difflib.get_close_matches(pattern, places, n=3, cutoff=0.4)
    return f"the nearest are {', '.join(map(repr, near))}" if near else f"there are {', '.join(_forms(places))}"


def _forms(places: Mapping[str, Place]) -> list[str]:
    """The names of places with letters for their numbers, each once."""
    letters = {"anchor": "i", "block": "b", "round": "r", "module": "m"}
    return list(dict.fromkeys(
        re.sub(r"([a-z]+)\d+", lambda found: f"{found[1]}{{{letters[found[1]]}}}", name) for name in places
    ))  # fmt: skip
