"""Kinds of routers: all that the package needs to know about each, in one place.

`KINDS` is the counterpart of the table in ``mom_c/ops/router.c``, in the same order. Its NumPy twin is
`mom.reference.router_cells`. A test compares all three.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import MoMConfig

__all__ = ["KINDS", "LAST_MAPS", "RouterKind", "parameter_shapes", "router_kind", "spelling_problem"]

#: Words of a `MoMConfig.router_type` beside those of its kind.
SUFFIXES = ("softmax", "random")


#: Parameters of the map to the outputs. A router may have one for each round, in the rows of the same parameters.
LAST_MAPS = ("router.weight", "router.bias", "router.2.weight", "router.2.bias")


@dataclass(frozen=True)
class RouterKind:
    """One kind of router.

    Attributes
    ----------
    name : str
        Its words are those that a `MoMConfig.router_type` of this kind has.
    scored : bool
        Whether the outputs are scores: they weigh the choices, and the balance loss counts them. Otherwise all kept
        choices have the same weight, there is no balance loss, and ``softmax`` and ``random`` have no effect.
    recurrent : bool
        Whether a state is passed from round to round. A recurrent router may have a fourth gate that mixes in noise.
    sized_by_ffn : bool
        With ``router_choices = "reference"``: if True, both halves have as many outputs as the feed-forward pool needs;
        otherwise as many as the larger pool needs.
    parameters : callable
        Shapes by name, from the numbers of inputs C, of hidden units R, of outputs S and of gates G. The names follow
        ``router.`` in a state dict.
    """

    name: str
    scored: bool
    recurrent: bool
    sized_by_ffn: bool
    parameters: Callable[[int, int, int, int], dict[str, tuple[int, ...]]]


def _two_layers(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {"router.0.weight": (r, c), "router.0.bias": (r,), "router.2.weight": (s, r), "router.2.bias": (s,)}


def _recurrent(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {
        "router.weight": (s, r), "router.bias": (s,), "h2h.weight": (g * r, r), "h2h.bias": (g * r,),
        "x2h.weight": (g * r, c), "x2h.bias": (g * r,),
    }  # fmt: skip


def _linear(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {"router.weight": (s, c), "router.bias": (s,)}


def _norm(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {"router.0.weight": (r, c), "router.bias": (s,)}


def _none(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {}


KINDS: dict[str, RouterKind] = {
    kind.name: kind
    for kind in (
        RouterKind("naive", scored=True, recurrent=False, sized_by_ffn=True, parameters=_two_layers),
        RouterKind("gru-dev", scored=True, recurrent=True, sized_by_ffn=True, parameters=_recurrent),
        RouterKind("gru", scored=True, recurrent=True, sized_by_ffn=False, parameters=_recurrent),
        RouterKind("hash", scored=False, recurrent=False, sized_by_ffn=False, parameters=_none),
        RouterKind("linear", scored=True, recurrent=False, sized_by_ffn=False, parameters=_linear),
        RouterKind("norm", scored=True, recurrent=False, sized_by_ffn=False, parameters=_norm),
    )
}


#: All accepted spellings of `MoMConfig.router_type`: each word once, in any order, as the published code reads them.
_SPELLINGS = {
    "-".join(words): kind
    for kind in KINDS.values()
    for n in range(len(SUFFIXES) + 1)
    for suffixes in itertools.combinations(SUFFIXES, n)
    for words in itertools.permutations((*kind.name.split("-"), *suffixes))
}


def router_kind(router_type: str) -> RouterKind | None:
    """The kind that a `MoMConfig.router_type` names, or None if the type is not in `_SPELLINGS`."""
    return _SPELLINGS.get(router_type)


def spelling_problem(router_type: str) -> str | None:
    """What is wrong with a `MoMConfig.router_type`, or None."""
    if router_type in _SPELLINGS:
        return None
    close = difflib.get_close_matches(router_type.lower(), _SPELLINGS, n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"{router_type!r} names no kind of router, expected one of {', '.join(map(repr, KINDS))}, with "
        f"{' and '.join(repr('-' + word) for word in SUFFIXES)} after it as needed{hint}"
    )


def parameter_shapes(config: MoMConfig, half: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of one router of ``half`` (``"attn"`` or ``"ffn"``), by name after ``router.``."""
    gates = 4 if config.router_random else 3
    choices = config.num_choices(half)
    outputs = choices * config.rounds if config.router_rounds == "projection" else choices
    shapes = KINDS[config.router_kind].parameters(config.n_embd, config.router_dim, outputs, gates)
    if config.router_layernorm:
        shapes |= {"layernorm.weight": (config.n_embd,), "layernorm.bias": (config.n_embd,)}
    if config.router_rounds == "embedding":
        shapes["round_embedding.weight"] = (config.rounds, config.n_embd)
    if config.router_bias_rate:
        shapes["balance_bias"] = (choices,)
    return shapes
