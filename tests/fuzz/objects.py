"""Objects of the extension and of the package, each with valid calls of its methods."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

import mom
from mom import _core, ops
from mom.interventions.layout import layout_of
from mom.interventions.scope import make_call, records_for

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


def _rules(config: mom.MoMConfig) -> list[mom.Intervention]:
    """One of each kind."""
    rules: list[mom.Intervention] = [mom.Zero("hidden", rows=[0]), mom.Patch("embedding", 0.5, tokens=[2])]
    if not config.is_vanilla:
        rules += [
            mom.Force("ffn", to=[1], tokens=[1]), mom.Forbid("ffn", modules=[0]), mom.Bias("ffn", {0: 0.5}, rows=[1]),
            mom.RandomRoutes("attn", tokens=[3]), mom.TopK(2), mom.Scale("block0.round0.ffn.*", 0.5),
        ]  # fmt: skip
    return rules


def _changes(model: mom.MoM, tokens: np.ndarray, records: bool = False) -> tuple[Any, ...]:
    """What the extension gets as interventions."""
    call = make_call(model.config, layout_of(tokens), (), _rules(model.config), None, ["hidden"], gradients=not records)
    assert call is not None
    call.records = records_for(model.config, call, tokens.size) if records else []
    return call.core


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
        ("forward", forward), ("forward", packed), ("forward", (*forward, _changes(model, TOKENS))), (".used", ()),
        ("=used", (used,)),
        ("=random_state", ((1, 2),)), (".random_state", ()), ("=memory_limit", (2**31,)), (".memory_limit", ()),
        (".region", ()), (".region_parts", ()), ("plan", (2, 6, 12, True, False, True)), ("backward", ({"lm": 1.0},)),
        ("backward", ({"lm": 1.0, "balance": 0.1},)), ("zero_grad", ()), ("randomize", (3,)),
        ("logits", (np.arange(3, dtype=np.int32),)), ("logits", (None,)), ("parameter_table", ()), ("parameter", (1,)),
        ("gradient", (2,)), ("set_trained", (np.ones_like(used),)), *(("route", p) for p in places[:4]),
        *(("route_counts", p) for p in places[4:8]),
    ]  # fmt: skip


def decoder(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    model = _model(rng)
    made = _core.Decoder(model.core, pick(rng, ("float32", "bfloat16", "int8")))
    if rng.random() < 0.7:
        made.prefill(TOKENS)
    rows = np.array([1, 0], np.int32)
    generate = (3, 0.8, 5, 0.9, 1, 0, -1, np.zeros(2, np.uint8), 0, None)
    return made, [
        ("prefill", (TOKENS,)), ("prefill", (TOKENS, np.array([3, 6], np.int32))), ("step", (rows,)),
        ("prefill", (TOKENS, None, _changes(model, TOKENS, records=True))), ("step", (rows,)), ("generate", generate),
        ("generate", (*generate[:8], 30, np.array([5, 6], np.int32))), ("reorder", (rows,)),
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


def interventions(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = _model(rng)
    routes = made(TOKENS, return_routes=True).routes
    assert routes is not None

    def active(rules: Any, untouched: Any) -> None:
        with made.intervene(rules, untouched):
            made(TOKENS, TOKENS)
            made.backward()

    thing = SimpleNamespace(
        call=lambda rules, capture, losses: made(
            TOKENS, TOKENS, interventions=rules, capture=capture, return_token_losses=losses
        ),
        replay=lambda tokens, given: made(tokens, routes=given), active=active, attention=made.attention,
        read=mom.Intervention.from_dict, edit=routes.edit, agreement=routes.agreement, force=mom.Force,
        forbid=mom.Forbid, bias=mom.Bias, top_k=mom.TopK, random=mom.RandomRoutes, patch=mom.Patch, scale=mom.Scale,
    )  # fmt: skip
    rules = _rules(made.config)
    return thing, [
        ("call", (rules, ["hidden", "*.round0.*"], True)), ("call", (rules, "final", False)),
        ("active", (rules, "warn")), ("replay", (TOKENS, routes)), ("attention", (TOKENS, "block0.round1.attn", [1])),
        ("agreement", (routes,)), ("edit", ("ffn", [1], 0, [2], [0])), ("read", (pick(rng, rules).to_dict(),)),
        ("scale", ("final", 0.5, [1], [0])), ("force", ("ffn", [1], [(0, 1)], [2], [0])), ("top_k", (1, "attn", [0])),
        ("forbid", ("attn", [1], [0], [2], [1])),
        ("bias", ("ffn", {0: 0.5, "SKIP": -1.0}, [0])), ("random", ("attn", [0], [2], [1], 3)),
        ("patch", ("embedding", np.zeros(4, np.float32), [1], [0])),
    ]  # fmt: skip


def python_decoder(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = mom.Decoder(_model(rng), pick(rng, (None, "int8", "bfloat16")), keep_routes=bool(rng.random() < 0.3))
    if rng.random() < 0.7:
        made.prefill(TOKENS)
    return made, [
        ("prefill", (TOKENS,)), ("prefill", ([[1, 2], [3]],)), ("step", ([1, 2],)), ("generate", (2,)),
        ("generate", (3, 0.5, 5, 0.9, 1, 7)), ("reorder", ([1, 0],)), ("clear", ()), ("route", (1, 0, "attn")),
        ("__repr__", ()),
    ]  # fmt: skip


def classifier(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    made = mom.MoMForSequenceClassification(pick(rng, CONFIGS).replace(num_labels=3), seed=1)
    mask = np.ones((2, 6), int)
    return made, [
        ("__call__", (TOKENS, [0, 2], mask)), ("__call__", (TOKENS, np.zeros((2, 3)), mask)), ("backward", ()),
        ("__call__", (TOKENS, None, mask, True)), ("=label_names", (("a", "b", "c"),)), ("zero_grad", ()),
    ]  # fmt: skip


@functools.cache
def _tokenizer() -> Any:
    return mom.Tokenizer.train(["The cat sat on the mat.", "A second text."], 270)


def tokenizer(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    return _tokenizer(), [
        ("encode", ("The cat<|endoftext|>", True)), ("encode_batch", (["The cat", "sat"], False)), ("token", (5,)),
        ("decode", ([84, 104, 101],)), ("decode", (np.array([84, 104]),)), ("unused_ids", (100,)), ("files", (16,)),
    ]  # fmt: skip


@functools.cache
def _token_folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="mom-fuzz-")
    (np.arange(500) * 7 % 40).astype("<u2").tofile(f"{folder.name}/train.bin")
    return folder


def tokens(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    file = mom.data.TokenFile(f"{_token_folder().name}/train.bin", "uint16", 40)
    sampler = mom.data.WindowSampler(file, 2, 8, 3)
    thing = SimpleNamespace(
        read=file.read, windows=file.windows, starts=sampler.starts, load_state_dict=sampler.load_state_dict,
        next_batch=sampler.next_batch, make=lambda *given: mom.data.WindowSampler(file, *given).next_batch(),
        open=lambda *given: mom.data.TokenFile(file.path, *given),
    )  # fmt: skip
    return thing, [
        ("read", (3, 5)), ("windows", (np.array([0, 7]), 4)), ("starts", (np.arange(3),)), ("next_batch", ()),
        ("load_state_dict", (sampler.state_dict(),)), ("make", (2, 8, 1, "random", 0, 1)), ("open", ("uint16", 40)),
    ]  # fmt: skip


def settings(rng: np.random.Generator) -> tuple[Any, list[Method]]:
    thing = SimpleNamespace(
        model=lambda fields: mom.MoMConfig(**fields), model_of=mom.MoMConfig.from_dict,
        training=lambda fields: mom.TrainingConfig(**fields), training_of=mom.TrainingConfig.from_dict,
        tuning=lambda fields: mom.FinetuneConfig(**fields), preset=mom.MoMConfig.preset,
        optimizer=lambda *given: mom.AdamW(mom.MoM(CONFIGS[0]), *given),
    )  # fmt: skip
    model_fields, training = pick(rng, CONFIGS).to_dict(), mom.TrainingConfig().to_dict()
    return thing, [
        ("model", ({name: model_fields[name] for name in mom.MoMConfig.names()},)), ("model_of", (model_fields,)),
        ("training", (training,)), ("training_of", (training, "here")), ("preset", ("demo",)),
        ("tuning", (mom.FinetuneConfig().to_dict(),)), ("optimizer", (1e-3, (0.9, 0.95), 1e-5, 0.1)),
    ]  # fmt: skip


#: Makers of an object and of valid calls of its methods.
OBJECTS: dict[str, Callable[[np.random.Generator], tuple[Any, list[Method]]]] = {
    "Network": network, "_core.Decoder": decoder, "_core.AdamW": optimizer, "RoutingPlan": plan, "MoM": model,
    "classifier": classifier, "Tokenizer": tokenizer, "tokens": tokens, "settings": settings,
    "Decoder": python_decoder, "interventions": interventions,
}  # fmt: skip
