"""Captured activations and gradients: what they are, and that reading them changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from intervened import SMALL, gradients_of, made, moved, same_gradients, tokens_of

import mom

#: Fields of the configuration, dtype, and whether activations are computed again in backward.
SETTINGS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "recurrent": ({}, "float32", False),
    "recurrent, checkpointing": ({"chunks": 2}, "float32", True),
    "bf16": ({"routing_top_k": 1, "use_ste": True}, "bfloat16", False),
    "bf16, checkpointing": ({"router_type": "gru-dev-random-softmax"}, "bfloat16", True),
    "weighted": ({"weighted_qkv": True, "router_type": "naive"}, "float32", False),
    "all paths": ({"routing_all_possible_path": True}, "float32", True),
    "hash": ({"router_type": "hash"}, "float32", False),
    "dropout": ({"resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}, "float32", True),
    "plain": ({"chunks": 0, "n_layer": 2}, "float32", False),
}


def setting(name: str) -> Any:
    fields, dtype, checkpointing = SETTINGS[name]
    model = made(dtype=dtype, **fields)
    model.activation_checkpointing = checkpointing
    model.train()
    return model


def reached(captured: Any) -> list[str]:
    """Places with something to change: a module that no token chose has none."""
    return [name for name, value in captured.items() if "module" not in name or value.any()]


@pytest.mark.parametrize("name", SETTINGS)
def test_capturing_changes_no_bit(name: str) -> None:
    model, tokens = setting(name), tokens_of()
    state = model.random_state
    plain = model(tokens, labels=tokens, return_logits=True)
    model.backward()
    gradients = gradients_of(model)
    model.random_state = state
    out = model(tokens, labels=tokens, return_logits=True, capture="*")
    model.backward()
    assert plain.losses == out.losses and np.array_equal(plain.logits, out.logits)
    assert same_gradients(gradients, gradients_of(model))
    assert all(value.dtype == np.float32 and value.shape[:2] == tokens.shape for value in out.captured.values())
    assert all(np.isfinite(value).all() for value in out.captured.gradients.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_patching_a_place_with_its_own_value_changes_no_bit(name: str) -> None:
    model, tokens = setting(name), tokens_of(2, 6)
    state = model.random_state
    plain = model(tokens, return_logits=True, capture=["*"])
    for place in reached(plain.captured):
        model.random_state = state
        patched = model(tokens, return_logits=True, interventions=[mom.Patch(place, plain.captured[place])])
        assert np.array_equal(patched.logits, plain.logits), place


@pytest.mark.parametrize("name", ["recurrent, checkpointing", "bf16, checkpointing", "weighted", "all paths", "plain"])
def test_scaling_everything_by_one_changes_no_bit_of_a_gradient(name: str) -> None:
    model, tokens = setting(name), tokens_of()
    state = model.random_state
    plain = model(tokens, labels=tokens, capture="*")
    model.backward()
    gradients, at_places = gradients_of(model), dict(plain.captured.gradients)
    model.random_state = state
    rules = [mom.Scale(place, 1.0) for place in reached(plain.captured)]
    out = model(tokens, labels=tokens, interventions=rules, capture="*")
    model.backward()
    assert same_gradients(gradients, gradients_of(model))
    assert all(np.array_equal(value, at_places[place]) for place, value in out.captured.gradients.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", ["gru-softmax", "naive"])
def test_recomputed_passes_change_the_same_things(router: str, dtype: str) -> None:
    rules = [
        mom.Scale("block0.*.input", 0.9), mom.Scale("block0.*.output", 0.7), mom.Scale("final", 1.5),
        mom.Zero("block0.round1.*.output", tokens=[3]), mom.Force("ffn", to=1, rounds=[1], tokens=[2]),
    ]  # fmt: skip
    results = []
    for checkpointing in (False, True):
        model = made(dtype=dtype, router_type=router)
        model.activation_checkpointing = checkpointing
        out = model(tokens_of(), labels=tokens_of(), return_logits=True, interventions=rules, capture="*")
        model.backward()
        results.append((out, gradients_of(model)))
    (kept, a), (again, b) = results
    assert np.array_equal(kept.logits, again.logits) and same_gradients(a, b)
    assert all(np.array_equal(kept.captured[place], again.captured[place]) for place in kept.captured)
    assert all(np.array_equal(g, again.captured.gradients[place]) for place, g in kept.captured.gradients.items())


def test_places_are_parts_of_the_computation() -> None:
    model, tokens = made(), tokens_of()
    out = model(tokens, capture=["*"], return_logits=True)
    at = out.captured
    close = {"rtol": 1e-4, "atol": 1e-5}
    wte, wpe = (model.parameters[f"transformer.{name}.weight"] for name in ("wte", "wpe"))
    np.testing.assert_allclose(at["embedding"], wte[tokens] + wpe[: tokens.shape[1]], **close)
    np.testing.assert_allclose(at["hidden"] @ wte.T, out.logits, **close)
    order = [name.removesuffix(".input") for name in at if name.endswith(".input")]
    assert order[0] == "anchor0.attn" and order[-1] == "anchor2.ffn" and len(order) == 2 * (3 + 3)
    for place, after in zip(order, [f"{place}.input" for place in order[1:]] + ["final"], strict=True):
        np.testing.assert_allclose(at[f"{place}.input"] + at[f"{place}.output"], at[after], **close)
    for half, modules in (("attn", 3), ("ffn", 4)):
        place = f"block0.round1.{half}"
        parts = [at[f"{place}.module{m}.output"] for m in range(modules)]
        np.testing.assert_allclose(sum(parts), at[f"{place}.output"], **close)
    assert at["block0.round1.ffn.state"].shape == (2, 10, SMALL.router_dim)


def test_a_modules_output_is_what_the_module_computes_times_its_weight() -> None:
    model, tokens = made(), tokens_of()
    out = model(tokens, capture="block0.round0.ffn.*", return_routes=True)
    stream = out.captured["block0.round0.ffn.input"]
    for m in range(4):
        alone = model.blocks[0].ffn_pool[m](stream.reshape(-1, 16)).reshape(stream.shape)
        chosen = out.routes.index["ffn"][0] == m
        weight = (out.routes.weight["ffn"][0] * chosen).sum(-1, keepdims=True)
        have = out.captured[f"block0.round0.ffn.module{m}.output"]
        np.testing.assert_allclose(have, alone * weight, rtol=1e-4, atol=1e-6)
        assert not have[~chosen.any(-1)].any()


@pytest.mark.parametrize("router", ["gru-softmax", "naive"])
def test_captured_gradients_are_those_of_the_loss(router: str) -> None:
    """Central differences along a random direction, with all choices kept so that no route can change."""
    model, tokens = made(router_type=router, routing_top_k=5, num_ffn=4, num_attn=4), tokens_of()
    out = model(tokens, labels=tokens, capture="*")
    model.backward()
    rng = np.random.default_rng(5)
    for place in reached(out.captured):
        value, gradient = out.captured[place], out.captured.gradients[place]
        direction = gradient / np.linalg.norm(gradient) + rng.normal(0.0, 0.02, value.shape)
        step = 0.02 / np.abs(direction).max()
        losses = [
            model(tokens, labels=tokens, interventions=[mom.Patch(place, value + sign * step * direction)]).loss
            for sign in (1, -1)
        ]
        want = float((gradient * direction).sum())
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(want, rel=0.03), place


def test_no_gradient_passes_through_a_patch() -> None:
    model, tokens = made(), tokens_of()
    model(
        tokens, labels=tokens, interventions=[mom.Patch("block0.round0.attn.input", np.ones(16))], capture="embedding"
    )
    model.backward()
    lower = [name for name in model.gradients if name.startswith(("transformer.wpe", "transformer.h.0."))]
    assert lower and not any(model.gradients[name].any() for name in lower)
    partly = model(
        tokens, labels=tokens, interventions=[mom.Zero("anchor0.ffn.input", tokens=[4])], capture="anchor0.*"
    )
    model.backward()
    gradient = partly.captured.gradients
    assert not partly.captured["anchor0.ffn.input"][:, 4].any()
    assert gradient["anchor0.ffn.input"][:, 4].any() and gradient["anchor0.ffn.input"][:, 3].any()


def test_values_are_copies_after_patches() -> None:
    model, tokens = made(), tokens_of()
    rules = [mom.Scale("block0.round0.ffn.output", 2.0), mom.Patch("hidden", 0.25, tokens=[1])]
    plain = model(tokens, capture=["block0.round0.ffn.output"]).captured
    changed = model(tokens, capture=["block0.round0.ffn.output", "hidden"], interventions=rules).captured
    assert np.array_equal(changed["block0.round0.ffn.output"], 2 * plain["block0.round0.ffn.output"])
    assert (changed["hidden"][:, 1] == 0.25).all() and (changed["hidden"][:, 2] != 0.25).all()
    before = changed["hidden"].copy()
    model(tokens[:, ::-1], capture="hidden")
    assert np.array_equal(before, changed["hidden"])


def test_packed_rows_are_captured_flat_and_padding_too() -> None:
    model, tokens = made(), tokens_of()
    whole = model(tokens, capture=["block0.*", "hidden"]).captured
    flat = model(tokens.ravel(), lengths=[10, 10], capture=["block0.*", "hidden"]).captured
    for place, value in flat.items():
        assert value.shape == (20, whole[place].shape[-1])
        np.testing.assert_allclose(value.reshape(whole[place].shape), whole[place], rtol=1e-4, atol=1e-5)


def test_capturing_computes_rows_that_no_loss_needs() -> None:
    model, tokens = made(), tokens_of()
    labels = np.full_like(tokens, -100)
    labels[:, 3] = tokens[:, 3]
    out = model(tokens, labels=labels, capture=["final", "hidden"])
    want = model(tokens, capture=["final", "hidden"]).captured
    np.testing.assert_allclose(out.captured["hidden"], want["hidden"], rtol=1e-4, atol=1e-5)


def test_there_are_no_gradients_before_backward() -> None:
    model, tokens = made(), tokens_of()
    captured = model(tokens, labels=tokens, capture="hidden").captured
    with pytest.raises(RuntimeError, match="gradients: there are none before model.backward"):
        captured.gradients  # noqa: B018
    model.backward()
    assert captured.gradients["hidden"].any()
    with pytest.raises(KeyError, match="captured: no 'final'; there are hidden"):
        captured["final"]
    assert repr(captured) == "<Captured: hidden (2, 10, 16)>"


def test_a_capture_beyond_the_limit_is_refused_with_the_figures() -> None:
    model, tokens = made(), tokens_of(20, 24)
    needed = 20 * 24 * 16 * 4
    model.memory_limit = needed - 1
    with pytest.raises(MemoryError, match=rf"capture: the copies need {needed:,} bytes beside .* {needed - 1:,}"):
        model(tokens, capture="hidden")
    with pytest.raises(MemoryError, match=rf"capture: the copies need {2 * needed:,} bytes"):
        model(tokens, labels=tokens, capture="hidden")
    with pytest.raises(MemoryError, match="rows: the probabilities need"):
        model.attention(tokens, "block0.round0.attn")
    model.memory_limit = None
    assert model(tokens, capture="hidden").captured["hidden"].nbytes == needed


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_copies_must_fit_beside_the_pass(labelled: bool, packed: bool) -> None:
    model, tokens = made(), tokens_of(4, 16)
    ids = tokens.ravel() if packed else tokens
    call = {"tokens": ids, "labels": ids if labelled else None, "lengths": [16] * 4 if packed else None}
    plan = model.memory_plan(4, 16, training=labelled, capture="*")
    needed = plan.total - plan.moments
    model.memory_limit = needed - 1
    with pytest.raises(MemoryError, match=rf"need {plan.captured:,} bytes beside the {needed - plan.captured:,} bytes"):
        model(**call, capture="*")
    model.memory_limit = needed
    assert model(**call, capture="*").captured is not None


@pytest.mark.parametrize("lengths", [[3, 3], [30, -10], [20, 0], [40]])
def test_lengths_that_do_not_fit_are_named(lengths: list[int]) -> None:
    model, tokens = made(), tokens_of().ravel()
    for more in ({"capture": "hidden"}, {"interventions": [mom.Zero("hidden")]}, {"return_token_losses": True}):
        with pytest.raises(ValueError, match="^lengths: "):
            model(tokens, labels=tokens, lengths=lengths, **more)


def test_unknown_places_are_named_with_the_nearest() -> None:
    model, tokens = made(), tokens_of()
    with pytest.raises(ValueError, match=r"capture: no place fits 'block0.rond1.ffn.output'; the nearest are 'block0"):
        model(tokens, capture=["block0.rond1.ffn.output"])
    with pytest.raises(ValueError, match="place: no place fits 'block0.round3.ffn.input'; the nearest are"):
        model(tokens, interventions=[mom.Zero("block0.round3.ffn.input")])
    with pytest.raises(ValueError, match="capture: no place fits 'qqq'; there are embedding, anchor{i}.attn.input"):
        model(tokens, capture="qqq")
    with pytest.raises(TypeError, match="capture: expected the name of a place or a pattern, got 3"):
        model(tokens, capture=[3])
    for bad in (None, 3, b"hidden", {"hidden": 1}):
        for ask in (lambda: model(tokens, capture=bad), lambda: model.memory_plan(2, 10, capture=bad)):  # noqa: B023
            with pytest.raises(TypeError, match="capture: expected names of places or patterns, got"):
                ask()


def test_a_plan_tells_the_bytes_of_copies() -> None:
    model = made()
    plain, plan = (model.memory_plan(3, 8, capture=places) for places in ([], ["hidden", "block0.round*.ffn.state"]))
    assert plan.captured == 2 * 4 * 24 * (16 + 3 * 8) and plain.captured == 0
    assert plan.total - plan.arena == plain.total - plain.arena + plan.captured
    assert model.memory_plan(3, 8, training=False, capture="hidden").captured == 4 * 24 * 16
    assert ("captured", plan.captured) in plan.rows() and "captured" in str(plan) and "captured" not in str(plain)
    with pytest.raises(ValueError, match="capture: no place fits 'hiden'; the nearest are 'hidden'"):
        model.memory_plan(3, 8, capture="hiden")


# ---------------------------------------------------------------------- other ways to look
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_of_tokens(dtype: str) -> None:
    model, tokens = made(dtype=dtype), tokens_of()
    labels = tokens.copy()
    labels[0, 4] = -100
    out = model(tokens, labels=labels, return_token_losses=True, return_logits=True)
    logits = out.logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    want = -np.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    want[0, 3] = np.nan
    assert np.isnan(out.token_losses[:, -1]).all()
    np.testing.assert_allclose(out.token_losses[:, :-1], want, rtol=1e-4 if dtype == "float32" else 1e-2)
    assert np.nanmean(out.token_losses.astype(np.float64)) == pytest.approx(out.lm_loss, rel=1e-5)
    with pytest.raises(ValueError, match="return_token_losses: needs labels"):
        model(tokens, return_token_losses=True)


def test_attention_probabilities() -> None:
    model, tokens = made(routing_top_k=1), tokens_of(3, 9)
    routes = model(tokens, return_routes=True).routes
    found = model.attention(tokens, "block0.round1.attn", rows=[0, 2])
    assert found.shape == (2, 2, 9, 9) and not np.triu(found[0, 0], 1).any()
    asks = (routes.module["attn"][1][[0, 2]] < 3).any(-1)
    np.testing.assert_allclose(found.sum(-1), np.repeat(asks[:, None], 2, 1), atol=1e-5)
    anchor = model.attention(tokens, "anchor0.attn")
    np.testing.assert_allclose(anchor.sum(-1), 1.0, rtol=1e-5)
    assert np.array_equal(anchor[1:2], model.attention(tokens, "anchor0.attn", rows=[1]))
    packed = model.attention(tokens.ravel(), "anchor0.attn", lengths=[9, 9, 9])
    np.testing.assert_allclose(packed, anchor, atol=1e-6)
    with pytest.raises(ValueError, match="place: no attention at 'block0.round9.attn'; there is 'block0"):
        model.attention(tokens, "block0.round9.attn")
    with pytest.raises(ValueError, match="rows: there is no row 3; the batch has 3"):
        model.attention(tokens, "anchor0.attn", rows=[3])


def test_attention_outputs_are_the_probabilities_times_the_values() -> None:
    """An anchor's attention, computed again from the probabilities."""
    model, tokens = made(), tokens_of()
    at = model(tokens, capture="anchor0.attn.*").captured
    probabilities = model.attention(tokens, "anchor0.attn").astype(np.float64)
    p = {
        name: value.astype(np.float64) for name, value in model.parameters.items() if name.startswith("transformer.h.0")
    }
    prefix = {name.rsplit(".", 2)[-2]: name for name in p if "c_attn" in name or "c_proj" in name}
    assert {"c_attn", "c_proj"} <= set(prefix)
    x = at["anchor0.attn.input"].astype(np.float64)
    names = sorted(p)
    norm = next(n for n in names if n.endswith("attention_layernorm.weight") or n.endswith("ln_1.weight"))
    attn = next(n for n in names if n.endswith("c_attn.weight"))
    proj = next(n for n in names if n.endswith("c_proj.weight") and ("attn" in n))
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt(x.var(-1, keepdims=True) + model.config.layer_norm_epsilon)
    normed = normed * p[norm] + p[norm.replace("weight", "bias")]
    qkv = normed @ p[attn] + p[attn.replace("weight", "bias")]
    values = qkv[..., 32:].reshape(2, 10, 2, 8).transpose(0, 2, 1, 3)
    mixed = (probabilities @ values).transpose(0, 2, 1, 3).reshape(2, 10, 16)
    want = mixed @ p[proj] + p[proj.replace("weight", "bias")]
    np.testing.assert_allclose(at["anchor0.attn.output"], want, rtol=1e-4, atol=1e-5)


def test_classifiers_are_captured_too() -> None:
    model = moved(mom.MoMForSequenceClassification(SMALL.replace(num_labels=3, pooling="mask"), seed=0))
    tokens = tokens_of(3)
    plain = model(tokens, labels=[0, 1, 2], attention_mask=np.ones(tokens.shape, int))
    rule = [mom.Forbid("attn", [1])]
    out = model(tokens, [0, 1, 2], np.ones(tokens.shape, int), interventions=rule, capture="hidden", return_routes=True)
    model.backward()
    assert out.captured["hidden"].shape == (3, 10, 16) and out.loss != plain.loss
    assert not (out.routes.index["attn"] == 1).any()
    assert out.captured.gradients["hidden"][:, -1].any() and not out.captured.gradients["hidden"][:, :-1].any()
