"""Objects of the extension and of the package, each with valid calls of its methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import mom
from mom import _core, ops

from .mutate import pick

__all__ = ["OBJECTS"]

Method = tuple[str, tuple[Any, ...]]
CONFIGS = [
    mom.MoMConfig.preset("demo", vocab_size=40, n_embd=16, n_head=2, router_dim=8, n_positions=12, resid_pdrop=0.1),
    mom.MoMConfig.preset("demo", vocab_size=40, n_embd=8, n_head=1, router_dim=4, n_positions=12, router_type="naive"),
    mom.MoMConfig(vocab_size=40, n_embd=8, n_head=2, n_positions=12, chunks=0, n_layer=2),
]
TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6) * 7 % 40
LENGTHS = np.array([5, 7], np.int32)
ROWS = np.arange(4, dtype=np.int32)


def _model(rng: np.random.Generator) -> mom.MoM:
    model = mom.MoM(pick(rng, CONFIGS), seed=1, dtype=pick(rng, ("float32", "float32", "bfloat16")))
    if rng.random() < 0.5:
        model(TOKENS, labels=TOKENS)
        if rng.random() < 0.4:
            model.backward()
    return model


def network(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    model = _model(rng)
    core = model.core
    used = np.zeros(len(model.parameters), np.uint8)
    mask = np.ones((2, 6), np.uint8)
    places = [(p, r, h) for p in range(3) for r in range(2) for h in range(2)]
    forward = (TOKENS, None, TOKENS, mask, TOKENS % 12, None, None, None, 0, True, True, False, ROWS,
               False, True)  # fmt: skip
    packed = (
        TOKENS.ravel(),
        LENGTHS,
        TOKENS.ravel(),
        None,
        None,
        None,
        None,
        None,
        0,
        True,
        False,
        True,
        None,
        True,
        False,
    )
    return core, [
        ("forward", forward), ("forward", packed), ("forward", forward), (".used", ()), ("=used", (used,)),
        ("=random_state", ((1, 2),)), (".random_state", ()), ("=memory_limit", (2**31,)), (".memory_limit", ()),
        (".region", ()), (".region_parts", ()), ("plan", (2, 6, 12, True, False, True)), ("backward", ({"lm": 1.0},)),
        ("backward", ({"lm": 1.0, "balance": 0.1},)), ("zero_grad", ()), ("randomize", (3,)),
        ("logits", (np.arange(3, dtype=np.int32),)), ("logits", (None,)), ("parameter_table", ()), ("parameter", (1,)),
        ("gradient", (2,)), ("set_trained", (np.ones_like(used),)), *(("route", p) for p in places[:4]),
        *(("route_counts", p) for p in places[4:8]),
    ]  # fmt: skip


def decoder(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = _core.Decoder(_model(rng).core, pick(rng, ("float32", "bfloat16", "int8")))
    if rng.random() < 0.7:
        made.prefill(TOKENS)
    rows = np.array([1, 0], np.int32)
    generate = (3, 0.8, 5, 0.9, 1, 0, -1, np.zeros(2, np.uint8), 0, None)
    return made, [
        ("prefill", (TOKENS,)), ("prefill", (TOKENS, np.array([3, 6], np.int32))), ("step", (rows,)), ("step", (rows,)),
        ("generate", generate), ("generate", (*generate[:8], 30, np.array([5, 6], np.int32))), ("reorder", (rows,)),
        ("reserve", (8,)), ("clear", ()), ("route", (0, 0, 0)), ("route", (1, 0, 1)), (".logits", ()), (".lengths", ()),
        (".bytes", ()), (".weights", ()),
    ]  # fmt: skip


def optimizer(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    model = _model(rng)
    made = _core.AdamW(model.core)
    step = (1e-3, 0.9, 0.95, 1e-5, 0.1, 1.0, True)
    return made, [("step", step), ("step", step), (".steps", ()), ("exp_avg", (1,)), ("exp_avg_sq", (2,))]


def plan(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = ops.routing_plan([[0, 1], [2, 3], [1, 3]], 3)
    names = ("offsets", "counts", "token", "choice", "slot", "num_tokens", "num_choices", "num_modules", "num_slots")
    return made, [*((f".{name}", ()) for name in names), ("__repr__", ())]


def model(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = _model(rng)
    mask = np.ones((2, 6), int)
    return made, [
        ("__call__", (TOKENS, TOKENS, mask, True, True)), ("__call__", (TOKENS,)), ("logits_at", (TOKENS, [1, 3])),
        ("generate", (TOKENS, 3, 0.7, 5, 0.9, 1, [3])), ("generate", ([1, 2, 3], 4)), ("backward", (1.0, 0.5)),
        ("zero_grad", ()), ("=random_state", ((1, 2),)), ("=memory_limit", (2**31,)), ("memory_plan", (2, 6)),
        ("train_only", ("*.router.*",)), ("=label_names", (None,)), ("load_state", (dict(made.parameters),)),
        ("joint_loss", ({"lm": 1.0, "balance": 0.5},)), ("route_counts", ()), (".gradients", ()), ("__repr__", ()),
    ]  # fmt: skip


def python_decoder(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = mom.Decoder(_model(rng), pick(rng, (None, "int8", "bfloat16")))
    if rng.random() < 0.7:
        made.prefill(TOKENS)
    return made, [
        ("prefill", (TOKENS,)), ("prefill", ([[1, 2], [3]],)), ("step", ([1, 2],)), ("generate", (2,)),
        ("generate", (3, 0.5, 5, 0.9, 1, 7)), ("reorder", ([1, 0],)), ("clear", ()), ("route", (1, 0, "attn")),
        ("__repr__", ()),
    ]  # fmt: skip


#: Makers of an object and of valid calls of its methods.
OBJECTS: dict[str, Callable[[np.random.Generator], tuple[Any, list[Method]]]] = {
    "Network": network, "_core.Decoder": decoder, "_core.AdamW": optimizer, "RoutingPlan": plan, "MoM": model,
    "Decoder": python_decoder,
}  # fmt: skip
