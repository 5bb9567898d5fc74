"""The models of a reproduction: a plain GPT-2, a deeper and a shallower MoM with as many parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..accounting import match
from ..config import MoMConfig

__all__ = ["LABELS", "MODELS", "SIZES", "VARIANTS", "Size", "configs_of", "label_of", "sizes_for"]

#: Layers of the plain GPT-2. A MoM has as many parameters, so its modules are about as many.
_LAYERS = 10
#: The deep MoM has two ordinary layers and these rounds of modules: 14 layers, 40 % more than the GPT-2.
_DEEP_MODULES, _DEEP_ROUNDS, _DEEP_CHOICES = 8, 12, 2
#: The shallow MoM has one ordinary layer and two rounds with more choices each: 3 layers, 70 % fewer.
_SHALLOW_MODULES, _SHALLOW_ROUNDS, _SHALLOW_CHOICES = 9, 2, 4


@dataclass(frozen=True)
class Size:
    """How large the models are.

    Attributes
    ----------
    name : str
    width, heads, positions, vocab_size : int
        As in `MoMConfig`. The data may have a smaller vocabulary.
    rows : int
        Sequences of a training step.
    router : int
        Width of the routers.
    """

    name: str
    width: int
    heads: int
    positions: int
    vocab_size: int
    rows: int
    router: int

    @property
    def tokens(self) -> int:
        """Tokens of a training step."""
        return self.rows * self.positions


SIZES = (
    Size("tiny", 64, 2, 128, 1024, 8, 32),
    Size("demo", 128, 4, 128, 2048, 8, 64),
    Size("mini", 256, 4, 256, 8192, 8, 128),
    Size("base", 512, 8, 512, 16384, 8, 256),
)


def sizes_for(vocab_size: int | None) -> tuple[Size, ...]:
    """The sizes, with the vocabulary of data that are prepared already."""
    return SIZES if vocab_size is None else tuple(replace(size, vocab_size=vocab_size) for size in SIZES)


#: Shapes, by the names that files have.
MODELS = ("gpt2", "deep", "shallow")
#: What is trained: its name, its shape, and whether it begins with phase one.
VARIANTS = (
    ("gpt2", "gpt2", False), ("deep", "deep", True), ("shallow", "shallow", True), ("deep-direct", "deep", False),
    ("shallow-direct", "shallow", False),
)  # fmt: skip
LABELS = {
    "gpt2": "GPT-2", "deep": "deep MoM", "shallow": "shallow MoM", "deep-direct": "deep MoM without phase one",
    "shallow-direct": "shallow MoM without phase one",
}  # fmt: skip


def label_of(unit: str) -> str:
    """A variant, or a variant with a seed such as ``deep-seed0``, in words."""
    variant, _, seed = unit.partition("-seed")
    return LABELS[variant] + (f", seed {seed}" if seed else "")


def configs_of(size: Size, vocab_size: int) -> dict[str, MoMConfig]:
    """The configurations, by their names in `MODELS`. The inner width of a MoM makes all parameters equally many."""
    same: dict[str, Any] = {
        "n_embd": size.width, "n_head": size.heads, "n_positions": size.positions, "vocab_size": vocab_size,
    }  # fmt: skip
    gpt2 = MoMConfig.vanilla(n_layer=_LAYERS, **same)

    def mom(modules: int, rounds: int, choices: int, top: int) -> MoMConfig:
        form = MoMConfig(
            **same, n_layer=_LAYERS, chunks=1, num_attn=modules, num_ffn=modules, depth_per_chunk=rounds,
            num_bottom_layers=1, num_top_layers=top, require_anchor_layer=False, router_type="gru-softmax",
            router_softmax_temperature=0.2, router_dim=size.router, routing_top_k=choices,
        )  # fmt: skip
        return match(form, like=gpt2, on="params", by="n_inner").config

    return {
        "gpt2": gpt2, "deep": mom(_DEEP_MODULES, _DEEP_ROUNDS, _DEEP_CHOICES, 1),
        "shallow": mom(_SHALLOW_MODULES, _SHALLOW_ROUNDS, _SHALLOW_CHOICES, 0),
    }  # fmt: skip
