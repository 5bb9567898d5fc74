"""The arena: its size is what the plan says, nothing is allocated beside it, and recomputing changes no bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mom
from mom import _core
from mom.model import plan_for
from mom.training.adapt import parameters_selected_by

BASE = mom.MoMConfig(
    vocab_size=50, n_positions=32, n_embd=24, n_head=2, chunks=2, num_attn=2, num_ffn=3, depth_per_chunk=3,
    num_bottom_layers=1, num_top_layers=1, require_anchor_layer=True, router_type="gru-softmax", router_dim=8,
    routing_top_k=2,
)  # fmt: skip
CONFIGS = {
    "recurrent": BASE,
    "noise and dropout": BASE.replace(
        router_type="gru-random-softmax", resid_pdrop=0.1, attn_pdrop=0.1, embd_pdrop=0.1
    ),
    "naive, one choice": BASE.replace(router_type="naive", routing_top_k=1, use_ste=True, depthwise_bal_loss=True),
    "weighted": BASE.replace(weighted_qkv=True, balance_counts="step"),
    "all paths": BASE.replace(routing_all_possible_path=True),
    "single attention": BASE.replace(num_attn=1),
    "plain": BASE.replace(chunks=0, n_layer=3, resid_pdrop=0.1),
    "classifier": BASE.replace(num_labels=3),
}
SHAPE = (5, 31)


def tokens_of(shape: tuple[int, int], seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 50, shape)


def labels_of(config: mom.MoMConfig, tokens: Any) -> Any:
    return tokens if config.num_labels is None else np.arange(len(tokens)) % 3


def new_model(config: mom.MoMConfig, dtype: str = "float32", checkpointing: bool = False) -> Any:
    kind = mom.MoM if config.num_labels is None else mom.MoMForSequenceClassification
    model = kind(config, seed=2, dtype=dtype)
    model.train()
    model.activation_checkpointing = checkpointing
    return model


def run(model: Any, tokens: Any, keep: bool = True) -> Any:
    mask = np.ones(tokens.shape, int)
    mask[0, tokens.shape[1] // 2 :] = 0
    out = model(tokens, labels_of(model.config, tokens), mask, return_routes=True, keep=keep)
    if keep:
        model.backward()
    return out


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_plan_is_what_is_allocated(name: str, dtype: str, checkpointing: bool) -> None:
    model = new_model(CONFIGS[name], dtype, checkpointing)
    before = _core.memory_live_bytes()
    plan = model.memory_plan(*SHAPE)
    assert _core.memory_live_bytes() == before, "planning keeps nothing"
    values = {n: v.copy() for n, v in model.parameters.items()}
    run(model, tokens_of(SHAPE))
    mom.AdamW(model).step(1.0, zero_grad=True)
    size, most, beside, full = model._core.region
    assert (size, beside, full) == (plan.arena, 0, 0)
    assert most <= size
    assert plan.total == sum(size for part, size in plan.rows() if part != "total")
    assert 4 * model.num_parameters <= plan.parameters <= 4 * model.num_parameters + 64 * len(values)
    assert (plan.gradients, plan.moments) == (plan.parameters, 2 * plan.parameters)
    assert plan.activation_checkpointing is checkpointing


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_of_a_forward_pass(name: str) -> None:
    model = new_model(CONFIGS[name])
    model.eval()
    plan = model.memory_plan(*SHAPE, training=False)
    run(model, tokens_of(SHAPE), keep=False)
    assert model._core.region[0::2] == (plan.arena, 0)
    assert plan.gradients == plan.moments == 0
    assert plan.total < model.memory_plan(*SHAPE).total
    assert plan == plan_for(CONFIGS[name], *SHAPE, training=False)


@pytest.mark.parametrize("name", ["all paths", "plain"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_plan_holds_little_more_than_is_used(name: str, checkpointing: bool) -> None:
    # Nothing of these depends on routes, so what is in use at once is known but for the room for uneven routes; and the
    # rehearsal has a mask only as far as its memory goes.
    model = new_model(CONFIGS[name], checkpointing=checkpointing)
    run(model, tokens_of(SHAPE))
    size, most, _, _ = model._core.region
    assert 0 <= size - most <= size / 256 + 2**16 + 4096


WIDE = BASE.replace(n_embd=64, router_dim=32, routing_all_possible_path=True)


@pytest.mark.parametrize("lengths", [(), (30, 1, 1, 17, 16, 9), (2, 3, 1, 19)], ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("config", "packed"),
    [(WIDE, False), (WIDE.replace(vocab_size=3000), False), (WIDE.replace(vocab_size=3, chunks=1, n_inner=900), True),
     (BASE.replace(chunks=0, n_layer=3), False)],
    ids=["wide", "large head", "large modules", "plain"],
)  # fmt: skip
def test_parts_of_a_plan_are_those_of_the_fullest_moment(
    config: mom.MoMConfig, packed: bool, keep: bool, lengths: tuple[int, ...]
) -> None:
    # Nothing of these depends on routes, so that the arena's parts are known, but for its list of attention's tasks.
    model = new_model(config)
    model.training = keep
    count = sum(lengths) or 155
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, count)
    if lengths:
        plan = model.memory_plan(len(lengths), max(lengths), tokens=count, training=keep)
        model(tokens, labels=tokens, lengths=lengths, keep=keep)
    else:
        plan = model.memory_plan(*SHAPE, training=keep)
        model(tokens.reshape(SHAPE), labels=tokens.reshape(SHAPE), attention_mask=np.ones(SHAPE), keep=keep)
    if keep:
        model.backward()
    size, most, beside, full = model._core.region
    assert (size, beside, full) == (plan.arena, 0, 0)
    activations, held, workspace = model._core.region_parts
    assert activations + held + workspace == most
    room = size / 256 + 2**16 + 4096
    assert held == plan.packed and 0 <= plan.activations - activations <= 4096
    assert 0 <= plan.workspace - workspace <= room
    # The modules outweigh few tokens' activations; of more tokens the last round, packed for no other, needs the most.
    if packed:
        assert plan.packed == 0 if keep and count > 100 else plan.packed > 4 * 0.4 * model.num_parameters


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_of_many_shapes_fit_their_plans(checkpointing: bool) -> None:
    rng = np.random.default_rng(5)
    for config in (BASE, BASE.replace(num_labels=3), BASE.replace(chunks=0, n_layer=2)):
        used = new_model(config)
        used.activation_checkpointing = checkpointing
        for _ in range(12):
            lengths = rng.integers(1, rng.integers(2, 33), rng.integers(1, 60))
            tokens = rng.integers(0, 50, lengths.sum())
            plan = used.memory_plan(len(lengths), int(lengths.max()), tokens=len(tokens))
            for model in (used, new_model(config)):
                model.activation_checkpointing = checkpointing
                labels = tokens if config.num_labels is None else np.arange(len(lengths)) % 3
                model(tokens, labels, lengths=lengths)
                model.backward()
                assert model._core.region[2:] == (0, 0)
            assert model._core.region[0] == plan.arena <= used._core.region[0]


def send_tokens(model: mom.MoM, where: str) -> None:
    """Biases of the routers that send all tokens to the same modules."""
    for name, value in model.parameters.items():
        if name.endswith("router.router.bias") and where != "none":
            order = np.arange(len(value), dtype=np.float32)
            value[...] = 30.0 * {"first": -order, "last": order - 2.0 * len(value) * (order == len(value) - 1),
                                 "skip": order}[where]  # fmt: skip


@pytest.mark.parametrize("where", ["first", "last", "skip", "none"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arena_is_large_enough_for_uneven_routes(where: str, top_k: int, dtype: str) -> None:
    config = BASE.replace(num_ffn=5, num_attn=4, routing_top_k=top_k, n_embd=48)
    model = new_model(config, dtype)
    send_tokens(model, where)
    for step in range(3):
        run(model, tokens_of((9, 32), step))
    assert model._core.region[2:] == (0, 0)


@pytest.mark.parametrize("threads", [2, 16])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arena_is_large_enough_for_blocks_of_any_rows(
    threads: int, keep: bool, checkpointing: bool, dtype: str
) -> None:
    # Modules with more rows than an even share have larger blocks, and there is room for them for every thread.
    before = mom.get_num_threads()
    try:
        mom.set_num_threads(threads)
        for modules, top_k in ((4, 1), (8, 2)):
            config = mom.MoMConfig.preset("mini").replace(num_attn=modules, num_ffn=modules, routing_top_k=top_k)
            model = new_model(config, dtype)
            model.activation_checkpointing = checkpointing
            send_tokens(model, "last")
            for shape in ((1, 9), (1, 64), (4, 64)):
                tokens = np.random.default_rng(0).integers(0, 8192, shape)
                model(tokens, labels=tokens, keep=keep)
                if keep:
                    model.backward()
                assert model._core.region[2:] == (0, 0)
    finally:
        mom.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_recomputing_changes_no_bit(name: str, dtype: str, threads: int) -> None:
    before = mom.get_num_threads()
    models = [new_model(CONFIGS[name], dtype, checkpointing) for checkpointing in (False, True)]
    try:
        outs = []
        for model, n in zip(models, (before, threads), strict=True):
            mom.set_num_threads(n)
            run(model, tokens_of(SHAPE))  # gradients add up
            outs.append(run(model, tokens_of(SHAPE, 1)))
    finally:
        mom.set_num_threads(before)
    plain, checkpointed = outs
    assert plain.loss == checkpointed.loss
    assert models[0].has_gradient == models[1].has_gradient
    for tensor, gradient in models[0].gradients.items():
        np.testing.assert_array_equal(models[1].gradients[tensor], gradient, err_msg=tensor)
    assert models[1].random_state == models[0].random_state
    for i, kind in enumerate(CONFIGS[name].places()):
        for round_ in range(CONFIGS[name].rounds if kind == "block" else 1):
            for half in range(2):
                ours, theirs = (m._core.route(i, round_, half) for m in models)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_checkpointing_needs_less() -> None:
    deep = mom.MoMConfig.preset("mini")
    plain, less = (plan_for(deep, 8, 256, activation_checkpointing=c) for c in (False, True))
    assert less.activations < 0.5 * plain.activations
    assert less.arena < 0.6 * plain.arena
    # Each layer of a plain model adds just its input.
    layers = [plan_for(BASE.replace(chunks=0, n_layer=n), 64, 32, activation_checkpointing=True) for n in (3, 4)]
    assert 0 < layers[1].activations - layers[0].activations < 1.05 * 4 * 64 * 32 * BASE.n_embd + 4096


def test_too_large_a_plan_is_refused_before_anything_changes() -> None:
    model = new_model(CONFIGS["noise and dropout"])
    optimizer = mom.AdamW(model)
    small, large = model.memory_plan(2, 16), model.memory_plan(32, 32)
    assert small.total < large.total
    tokens = tokens_of((2, 16))
    model.memory_limit = large.total - 1
    model(tokens, labels=tokens)
    state, live = model.random_state, _core.memory_live_bytes()
    with pytest.raises(MemoryError, match=rf"32 sequences of 32 tokens need {large.total} bytes.*{large.total - 1}"):
        model(tokens_of((32, 32)), labels=tokens_of((32, 32)))
    assert (model.random_state, _core.memory_live_bytes()) == (state, live)
    model.backward()  # of the pass before: nothing was touched
    optimizer.step(1.0, zero_grad=True)
    model(tokens, labels=tokens)
    model.memory_limit = large.total
    model(tokens_of((32, 32)), labels=tokens_of((32, 32)))
    assert model._core.region[0] == large.arena


def test_limit_counts_moments_of_optimizers_that_are_there() -> None:
    model = new_model(BASE)
    plan = model.memory_plan(*SHAPE)
    model.memory_limit = plan.total - plan.moments
    run(model, tokens_of(SHAPE))
    optimizer = mom.AdamW(model)
    with pytest.raises(MemoryError, match="more than the limit"):
        run(model, tokens_of((6, 31)))
    del optimizer
    model.memory_limit = model.memory_plan(6, 31).total - plan.moments
    run(model, tokens_of((6, 31)))


def test_a_new_limit_or_optimizer_is_asked_of_shapes_that_fitted_before() -> None:
    model = new_model(BASE)
    run(model, tokens_of(SHAPE))
    plan = model.memory_plan(*SHAPE)
    model.memory_limit = plan.total - plan.moments - 1
    with pytest.raises(MemoryError, match="more than the limit"):
        run(model, tokens_of(SHAPE))
    model.memory_limit = plan.total - plan.moments
    run(model, tokens_of(SHAPE))
    optimizer = mom.AdamW(model)
    with pytest.raises(MemoryError, match="more than the limit"):
        run(model, tokens_of(SHAPE))
    del optimizer


def floats_of(model: mom.MoM | mom.MoMForSequenceClassification, chosen: Any) -> int:
    """Of the parameters that are chosen, each beginning on a cache line."""
    return sum(-(-v.size // 16) * 16 for v, wanted in zip(model.parameters.values(), chosen, strict=True) if wanted)


def chosen_of(model: mom.MoMForSequenceClassification, what: str) -> np.ndarray:
    if what in ("all", "routers", "head"):
        return parameters_selected_by(model, what)
    return np.array([what in name for name in model.parameters], np.uint8)


@pytest.mark.parametrize("what", ["all", "routers", "head", "mot_ffn.c_proj.", "h.0.mot_attn", "ln_f", "wpe"])
def test_plans_follow_what_is_trained(what: str) -> None:
    config = WIDE.replace(num_labels=3, pooling="mask")
    model = mom.MoMForSequenceClassification(config, seed=1)
    optimizer = mom.AdamW(model)  # made before anything is said about a part
    chosen = chosen_of(model, what)
    assert chosen.any()
    model._core.set_trained(chosen)
    plan = model.memory_plan(*SHAPE)
    assert plan.moments == 8 * floats_of(model, chosen)
    model.memory_limit = plan.total - 1
    with pytest.raises(MemoryError, match=f"need {plan.total} bytes"):
        model(tokens_of(SHAPE), np.arange(SHAPE[0]) % 3, np.ones(SHAPE))
    model.memory_limit = plan.total
    for _ in range(2):
        model(tokens_of(SHAPE), np.arange(SHAPE[0]) % 3, np.ones(SHAPE))
        model.backward()
        model._core.used = model._core.used * chosen  # as fine-tuning does
        optimizer.step(1.0)
    assert model.memory_plan(*SHAPE) == plan
    computed = [gradient.any() for gradient in model.gradients.values()]
    assert plan.gradients == 4 * floats_of(model, computed)
    assert model.memory_plan(*SHAPE).gradients == plan.parameters, "somebody has looked at all of them"


def test_moments_of_what_was_trained_before_still_count() -> None:
    model = mom.MoMForSequenceClassification(WIDE.replace(num_labels=3, pooling="mask"), seed=1)
    all_, head = parameters_selected_by(model, "all"), parameters_selected_by(model, "head")
    first, second = mom.AdamW(model), mom.AdamW(model)
    model(tokens_of(SHAPE), np.arange(SHAPE[0]) % 3, np.ones(SHAPE))
    model.backward()
    first.step(1.0, zero_grad=True)
    assert model.memory_plan(*SHAPE).moments == 16 * floats_of(model, all_)
    model._core.set_trained(head)
    small = 8 * floats_of(model, head)
    assert model.memory_plan(*SHAPE).moments == 8 * floats_of(model, all_) + small
    first.state["steps"][:] = 0.0
    del first
    assert model.memory_plan(*SHAPE).moments == small
    assert len(second.state) > 1  # whose memory may now be written to
    assert model.memory_plan(*SHAPE).moments == 8 * floats_of(model, all_)
    model._core.set_trained(all_)
    assert model.memory_plan(*SHAPE).moments == 8 * floats_of(model, all_)
    del second
    assert model.memory_plan(*SHAPE).moments == 8 * floats_of(model, all_), "of one that is still to be made"


def test_gradients_that_are_there_stay_when_something_else_is_trained() -> None:
    model = mom.MoMForSequenceClassification(WIDE.replace(num_labels=3, pooling="mask"), seed=1)
    tokens, labels = tokens_of(SHAPE), np.arange(SHAPE[0]) % 3
    grads = []
    for switched in (False, True):
        model.zero_grad()
        for _ in range(2):
            model(tokens, labels, np.ones(SHAPE))
            model.backward()
            if switched:
                model._core.set_trained(parameters_selected_by(model, "all"))
        grads.append({name: gradient.copy() for name, gradient in model.gradients.items()})
    for name, gradient in grads[0].items():
        np.testing.assert_array_equal(gradient, grads[1][name], err_msg=name)


def test_packed_rows_are_planned_by_their_tokens() -> None:
    model = new_model(BASE)
    lengths = np.array([30] + [1] * 31, np.int32)
    tokens = tokens_of((1, 61))[0]
    plan = model.memory_plan(32, 30, tokens=61)
    assert plan.arena < 0.9 * model.memory_plan(3, 30).arena
    model.memory_limit = plan.total - 1
    with pytest.raises(MemoryError, match=f"32 sequences of up to 30 tokens need {plan.total - plan.moments} bytes"):
        new = new_model(BASE)
        new.memory_limit = plan.total - plan.moments - 1
        new(tokens, lengths=lengths, labels=tokens)
    model.memory_limit = plan.total - plan.moments
    model(tokens, lengths=lengths, labels=tokens)
    model.backward()
    assert model._core.region[2] == 0, "nothing beside the arena"
    with pytest.raises(MemoryError, match="32 sequences of 30 tokens need"):
        model(tokens_of((32, 30)), labels=tokens_of((32, 30)))
    model.memory_limit = model.memory_plan(2, 30, training=False).parameters
    twice = np.tile(tokens, 2)
    with pytest.raises(MemoryError, match="64 sequences of up to 30 tokens need"):
        model(twice, lengths=np.tile(lengths, 2), labels=twice)


def test_limit_of_the_machine() -> None:
    limit = mom.runtime.memory_limit()
    model = new_model(BASE)
    assert model.memory_limit == limit
    if limit is None:
        pytest.skip("the system does not tell")
    wide = mom.MoM(mom.MoMConfig.preset("demo", n_positions=512))
    batch = 16 * (limit // wide.memory_plan(8, 512).arena + 2)
    assert wide.memory_plan(batch, 512).total > limit
    tokens = np.zeros((batch, 512), np.int32)
    with pytest.raises(MemoryError, match=f"more than the limit of {limit}"):
        wide(tokens, labels=tokens)


@pytest.mark.parametrize("value", [0, -1, 1.5, "1", True])
def test_memory_limit_is_checked(value: Any) -> None:
    model = new_model(BASE)
    with pytest.raises(ValueError, match="memory_limit"):
        model.memory_limit = value


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 4), ValueError, "batch: 0"),
        ((1, 0), ValueError, "length: 0"),
        ((1, 33), ValueError, "length: 33, n_positions is 32"),
        ((2**27, 32), ValueError, "batch: 134217728 sequences of 32 tokens are 2"),
        ((2**26, 16), ValueError, "^batch: 67108864 sequences of 16 tokens are too many"),
        ((1.0, 4), TypeError, "batch: expected an integer"),
        ((1, True), TypeError, "length: expected an integer"),
        ((4, 8, 10), ValueError, "tokens: 10, expected 11 to 32 in 4 sequences, the longest of 8"),
        ((4, 8, 33), ValueError, "tokens: 33, expected 11 to 32"),
        ((4, 8, 11.0), TypeError, "tokens: expected an integer, got float"),
    ],
)
def test_arguments_of_a_plan(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        new_model(BASE).memory_plan(*arguments[:2], **({"tokens": arguments[2]} if arguments[2:] else {}))


def test_arena_serves_smaller_batches_and_grows_for_larger_ones() -> None:
    shapes = [(2, 16), (7, 32), (1, 3), (7, 31), (2, 16)]
    model = new_model(BASE)
    sizes = []
    for shape in shapes:
        model.zero_grad()
        run(model, tokens_of(shape))
        fresh = new_model(BASE)
        run(fresh, tokens_of(shape))
        for name, gradient in fresh.gradients.items():
            np.testing.assert_array_equal(model.gradients[name], gradient, err_msg=name)
        sizes.append(model._core.region[0])
    assert sizes[0] < sizes[1] and sizes[1:] == sizes[1:2] * 4


def test_steps_allocate_nothing() -> None:
    model = new_model(BASE)
    optimizer = mom.AdamW(model)
    run(model, tokens_of(SHAPE))
    optimizer.step(1.0, zero_grad=True)
    live = _core.memory_live_bytes()
    _core.memory_reset_peak()
    for step in range(3):
        run(model, tokens_of(SHAPE, step))
        optimizer.step(1.0, zero_grad=True)
    assert _core.memory_live_bytes() == live
    # The optimizer's list of tensors comes and goes.
    assert _core.memory_peak_bytes() - live < 200 * len(model.parameters)


@pytest.fixture(scope="module")
def wide() -> Iterator[Any]:
    """Large enough that parameters and gradients are mapped apart from the heap."""
    yield BASE.replace(n_embd=128, n_head=4, vocab_size=4000, router_dim=64)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_zero_after_zero_grad_and_after_a_step_that_zeroes(wide: mom.MoMConfig, fused: bool) -> None:
    models = [new_model(wide) for _ in range(2)]
    optimizers = [mom.AdamW(m) for m in models]
    views = [dict(m.gradients) for m in models]
    for step in range(2):
        for model, optimizer, by_hand in zip(models, optimizers, (True, False), strict=True):
            run(model, tokens_of(SHAPE, step))
            optimizer.step(1.0, zero_grad=fused and not by_hand)
            for view in model.gradients.values() if by_hand else ():
                view[...] = 0.0
            if by_hand or not fused:
                model.zero_grad()
        assert all(not v.any() for view in views for v in view.values())
        for name, value in models[0].parameters.items():
            np.testing.assert_array_equal(models[1].parameters[name], value, err_msg=name)


def gradients_after_steps(config: mom.MoMConfig, dtype: str, batch: dict[str, Any], zeroed: str) -> dict[str, Any]:
    """Parameters after two steps, and the gradients of a third batch."""
    model = mom.MoM(config, seed=0, dtype=dtype)
    model.activation_checkpointing = batch.get("checkpointing", False)
    for name, value in model.parameters.items():
        if batch.get("one_module") and name.endswith("router.router.bias"):
            value[:] = np.where(np.arange(value.size) == 0, 9.0, -9.0)
    optimizer = mom.AdamW(model, lr=1e-3)
    rng = np.random.default_rng(0)
    for step in range(3):
        if zeroed == "by hand":
            for gradient in model.gradients.values():
                gradient[...] = 0.0
        tokens = tokens_of(SHAPE, step)
        model(tokens, labels=np.where(rng.random(tokens.shape) < batch.get("labelled", 1.0), tokens, -100))
        model.backward()
        if step < 2:
            optimizer.step(1.0, zero_grad=zeroed != "apart")
            if zeroed == "apart":
                model.zero_grad()
    return {**dict(model.parameters), **{f"gradient of {n}": g for n, g in model.gradients.items()}}


@pytest.mark.parametrize(
    ("dtype", "batch", "changes"),
    [
        ("float32", {}, {"routing_top_k": 2}),
        ("float32", {"checkpointing": True}, {}),
        ("bfloat16", {"one_module": True}, {}),
        ("float32", {"labelled": 0.0}, {}),
        ("bfloat16", {}, {"chunks": 0, "n_layer": 4, "num_bottom_layers": 0, "num_top_layers": 0}),
    ],
    ids=["top2", "checkpointing", "one-module", "no-labels", "vanilla"],
)
def test_how_gradients_were_zeroed_changes_nothing(dtype: str, batch: dict[str, Any], changes: dict[str, Any]) -> None:
    config = BASE.replace(**changes)
    fused, *others = (gradients_after_steps(config, dtype, batch, zeroed) for zeroed in ("fused", "apart", "by hand"))
    for other in others:
        for name, value in fused.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_logits_go_with_backward() -> None:
    model = new_model(BASE)
    tokens = tokens_of(SHAPE)
    model(tokens, labels=tokens)
    assert model._core.logits(None).shape == (tokens.size, 50)
    model.backward()
    with pytest.raises(RuntimeError, match="no forward pass"):
        model._core.logits(None)


def test_plan_reads_well() -> None:
    assert str(plan_for(BASE, 3, 8, tokens=20)).startswith("training, 20 tokens in 3 sequences of up to 8\n")
    text = str(plan_for(BASE, 2, 8, activation_checkpointing=True))
    assert text.splitlines()[0] == "training, activation checkpointing, 2 x 8 tokens"
    assert [line.split()[0] for line in text.splitlines()[1:]] == [
        "parameters", "gradients", "moments", "activations", "packed", "workspace", "total",
    ]  # fmt: skip


RESIDENT = """
import re, sys
from pathlib import Path
import numpy as np
import mom

def resident():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config = mom.MoMConfig.preset("mini")
model = mom.MoM(config)
model.activation_checkpointing = bool(int(sys.argv[1]))
optimizer = mom.AdamW(model)
plan = model.memory_plan(4, 256)
before = resident()
tokens = np.random.default_rng(0).integers(0, config.vocab_size, (4, 256))
for _ in range(2):
    model(tokens, labels=tokens)
    model.backward()
    optimizer.step(1.0, zero_grad=True)
print(resident() - before, plan.total - plan.parameters)
"""


PARTLY_TRAINED = """
import re, sys
from pathlib import Path
import numpy as np
import mom
from mom.training.adapt import parameters_selected_by

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

config = mom.MoMConfig.preset("mini", num_labels=3, pooling="mask")
model = mom.MoMForSequenceClassification(config)
optimizer = mom.AdamW(model)
tokens = np.random.default_rng(0).integers(0, config.vocab_size, (4, 32))

def step(chosen):
    model(tokens, [0, 1, 2, 0], np.ones_like(tokens))
    model.backward()
    model._core.used = model._core.used * chosen
    optimizer.step(1.0, zero_grad=True)

everything, chosen = parameters_selected_by(model, "all"), parameters_selected_by(model, sys.argv[1])
before = resident()
full = model.memory_plan(4, 32)
if int(sys.argv[2]):  # trained as a whole before, by another optimizer
    step(everything)
    del optimizer
    optimizer = mom.AdamW(model)
model._core.set_trained(chosen)
plan = model.memory_plan(4, 32)
for _ in range(2):
    step(chosen)
# The arena stays as large as it once was.
print(resident() - before, plan.gradients + plan.moments, model._core.region[0], full.gradients + full.moments)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer's own memory is resident, too")
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("what", ["routers", "head"])
def test_resident_memory_of_training_a_part_stays_below_the_plan(what: str, before: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARTLY_TRAINED, what, str(before)], capture_output=True, text=True, check=True
    )
    grown, planned, arena, full = map(int, done.stdout.split())
    # Code pages, and huge pages that are not full: of gradients and both moments, where the two routers begin and end,
    # and where gradients end.
    spare = 2**22 + {"head": 4, "routers": 10}[what] * 2**21
    assert grown < planned + arena + spare < 0.7 * full


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("checkpointing", [0, 1])
def test_resident_memory_stays_below_the_plan(checkpointing: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(checkpointing)], capture_output=True, text=True, check=True
    )
    grown, planned = map(int, done.stdout.split())
    assert grown < planned + 2**24  # code pages and huge ones that are not full


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["recurrent", "naive, one choice", "weighted", "all paths", "plain", "classifier"])
def test_the_plan_of_a_pass_with_captures_is_what_is_allocated(name: str, checkpointing: bool) -> None:
    model = new_model(CONFIGS[name], checkpointing=checkpointing)
    plan = model.memory_plan(*SHAPE, capture="*")
    tokens = tokens_of(SHAPE)
    mask = np.ones(SHAPE, int)
    mask[0, 15:] = 0
    out = model(tokens, labels_of(model.config, tokens), mask, capture="*")
    model.backward()
    size, most, beside, full = model._core.region
    assert (size, beside, full) == (plan.arena, 0, 0) and most <= size
    copies = [*out.captured.values(), *out.captured.gradients.values()]
    assert plan.captured == sum(array.nbytes for array in copies)
    assert plan.arena >= model.memory_plan(*SHAPE).arena


def test_a_plan_follows_interventions_and_goes_back() -> None:
    model, tokens = new_model(BASE), tokens_of(SHAPE)
    run(model, tokens)
    plain = model._core.region[0]
    rules = [mom.TopK(3), mom.Scale("block0.*.output", 0.5), mom.Forbid("ffn", [1])]
    rules += [mom.Force("attn", to=0, tokens=[2])]
    for _ in range(2):
        out = model(tokens, tokens, np.ones(SHAPE, int), interventions=rules, capture="block1.*")
        model.backward()
        size, most, beside, full = model._core.region
        assert plain <= size and most <= size and (beside, full) == (0, 0) and np.isfinite(out.loss)
        run(model, tokens)
        assert model._core.region[2:] == (0, 0)
