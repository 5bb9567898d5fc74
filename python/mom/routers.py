"""Kinds of routers: all that the package needs to know about each, in one place.

`KINDS` is the counterpart of the table in ``mom_c/ops/router.c``, in the same order. Its NumPy twin is
`mom.reference.router_cells`. A test compares all three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import MoMConfig

__all__ = ["KINDS", "RouterKind", "parameter_shapes", "router_kind"]


@dataclass(frozen=True)
class RouterKind:
    """One kind of router.

    Attributes
    ----------
    name : str
    words : tuple of str
        A `MoMConfig.router_type` that contains all of these words is of this kind. The first kind in `KINDS` that fits
        is used, as in the reference.
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
    words: tuple[str, ...]
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


def _none(c: int, r: int, s: int, g: int) -> dict[str, tuple[int, ...]]:
    return {}


KINDS: dict[str, RouterKind] = {
    kind.name: kind
    for kind in (
        RouterKind("naive", ("naive",), scored=True, recurrent=False, sized_by_ffn=True, parameters=_two_layers),
        RouterKind("gru-dev", ("gru", "dev"), scored=True, recurrent=True, sized_by_ffn=True, parameters=_recurrent),
        RouterKind("gru", ("gru",), scored=True, recurrent=True, sized_by_ffn=False, parameters=_recurrent),
        RouterKind("hash", ("hash",), scored=False, recurrent=False, sized_by_ffn=False, parameters=_none),
    )
}


def router_kind(router_type: str) -> RouterKind | None:
    """The kind that a `MoMConfig.router_type` names, or None."""
    return next((kind for kind in KINDS.values() if all(word in router_type for word in kind.words)), None)


def parameter_shapes(config: MoMConfig, half: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of one router of ``half`` (``"attn"`` or ``"ffn"``), by name after ``router.``."""
    gates = 4 if config.router_random else 3
    kind = KINDS[config.router_kind]
    return kind.parameters(config.n_embd, config.router_dim, config.num_choices(half), gates)
