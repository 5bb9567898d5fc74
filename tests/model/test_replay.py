"""Replaying a model's own routes gives the same bits, forward and backward; replaying others gives those routes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from intervened import SMALL, gradients_of, made, same_gradients, tokens_of

import mom

#: A covering set: each row has fields of the configuration, then dtype, packed rows, activation checkpointing.
SETTINGS: dict[str, tuple[dict[str, Any], str, bool, bool]] = {
    "recurrent": ({}, "float32", False, False),
    "recurrent, checkpointing, packed": ({"chunks": 2}, "float32", True, True),
    "bf16": ({"routing_top_k": 1, "use_ste": True}, "bfloat16", False, True),
    "noise": ({"router_type": "gru-dev-random-softmax", "weighted_qkv": True}, "float32", False, True),
    "naive, one choice": ({"router_type": "naive", "routing_top_k": 1, "use_ste": True}, "float32", True, False),
    "naive, probabilities": ({"router_type": "naive-softmax", "weighted_qkv": True}, "bfloat16", True, False),
    "no softmax, no SKIP": ({"router_type": "gru", "enable_pause": False, "use_ste": True}, "float32", False, False),
    "hash": ({"router_type": "hash", "chunks": 2, "routing_top_k": 3}, "float32", False, True),
    "dropout": ({"resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}, "float32", False, True),
    "surplus choices": ({"num_attn": 2, "num_ffn": 5, "routing_top_k": 6}, "bfloat16", False, False),
    "single attention": ({"num_attn": 1, "router_z_loss_coef": 0.01}, "float32", True, True),
}


class Setting:
    def __init__(self, name: str) -> None:
        self.fields, self.dtype, self.packed, self.checkpointing = SETTINGS[name]

    def model(self) -> Any:
        model = made(dtype=self.dtype, **self.fields)
        model.activation_checkpointing = self.checkpointing
        model.train()
        return model

    def call(self, seed: int = 0) -> dict[str, Any]:
        tokens = tokens_of(2, 9, seed)
        if self.packed:
            return {"tokens": tokens.ravel(), "labels": tokens.ravel(), "lengths": [11, 7]}
        return {"tokens": tokens, "labels": tokens}


@pytest.mark.parametrize("name", SETTINGS)
def test_own_routes_give_the_same_bits(name: str) -> None:
    setting = Setting(name)
    model, call = setting.model(), setting.call()
    state = model.random_state
    own = model(**call, return_logits=True, return_routes=True)
    model.backward()
    gradients = gradients_of(model)
    model.random_state = state
    again = model(**call, return_logits=True, return_routes=True, routes=own.routes)
    model.backward()
    assert np.array_equal(own.logits, again.logits) and own.losses == again.losses and own.routes == again.routes
    assert all(np.array_equal(own.routes.weight[half], again.routes.weight[half]) for half in own.routes.index)
    assert same_gradients(gradients, gradients_of(model))


@pytest.mark.parametrize("name", SETTINGS)
def test_ten_training_steps_with_replayed_routes_give_the_same_parameters(name: str) -> None:
    setting = Setting(name)
    free, replaying = setting.model(), setting.model()
    optimizers = [mom.AdamW(model, lr=1e-2) for model in (free, replaying)]
    for step in range(10):
        call = setting.call(step)
        out = free(**call, return_routes=True)
        assert replaying(**call, routes=out.routes).losses == out.losses
        for model, optimizer in zip((free, replaying), optimizers, strict=True):
            model.backward()
            optimizer.step(1.0, zero_grad=True)
    assert free.random_state == replaying.random_state
    assert all(np.array_equal(value, replaying.parameters[key]) for key, value in free.parameters.items())


def test_gradients_reach_the_router_through_replayed_routes() -> None:
    model, tokens = made(), tokens_of()
    routes = model(tokens, return_routes=True).routes
    model(tokens, labels=tokens, routes=routes.edit("ffn", to=[1, 0]))
    model.backward()
    assert any(np.any(g) for name, g in model.gradients.items() if "mot_ffn.router" in name)


def test_another_models_routes_are_what_runs() -> None:
    tokens = tokens_of()
    model, other = made(), made(seed=9)
    wanted = other(tokens, return_routes=True).routes
    own = model(tokens, return_routes=True, return_logits=True)
    out = model(tokens, return_routes=True, return_logits=True, routes=wanted)
    assert out.routes == wanted != own.routes
    assert not np.array_equal(out.logits, own.logits)
    # The weights are the model's own scores of these choices, renormalised.
    kept = np.take_along_axis(out.routes.scores["ffn"], out.routes.index["ffn"].astype(int), -1)
    np.testing.assert_allclose(out.routes.weight["ffn"], kept / kept.sum(-1, keepdims=True), rtol=1e-5)


def test_edited_entries_are_done_and_free_entries_are_the_routers() -> None:
    model, tokens = made(), tokens_of()
    own = model(tokens, return_routes=True).routes
    edited = own.edit("ffn", to="SKIP", round=2, tokens=5).edit("attn", to=[2, 0], round=(0, 1), rows=[1])
    done = model(tokens, routes=edited, return_routes=True).routes
    assert (done.module["ffn"][2, :, 5] == 4).all() and (done.weight["ffn"][2, :, 5, 1:] == 0).all()
    assert (done.index["attn"][1, 1] == [2, 0]).all()
    assert np.array_equal(done.index["ffn"][:2, 0], own.index["ffn"][:2, 0])
    free = own.edit("attn", to=["free", "free"], round=1, tokens=[1, 2])
    assert model(tokens, routes=free, return_routes=True).routes == own
    # A named choice, then the router's best other one.
    first = model(tokens, routes=own.edit("ffn", to=[3, "free"], round=0), return_routes=True).routes
    scores = first.scores["ffn"][0].copy()
    scores[..., 3] = -1.0
    assert (first.index["ffn"][0, ..., 0] == 3).all()
    assert np.array_equal(first.index["ffn"][0, ..., 1], scores.argmax(-1))


@pytest.mark.parametrize("count", [1, 2])
def test_a_list_of_choices_leaves_out_the_others(count: int) -> None:
    model, tokens = made(routing_top_k=3), tokens_of()
    routes = model(tokens, return_routes=True).routes.edit("ffn", to=[2, 1][:count])
    done = model(tokens, routes=routes, return_routes=True).routes
    assert (done.module["ffn"][..., :count] == [2, 1][:count]).all() and (done.module["ffn"][..., count:] == 4).all()
    np.testing.assert_allclose(done.weight["ffn"][..., :count].sum(-1), 1.0, rtol=1e-6)
    assert (done.weight["ffn"][..., count:] == 0).all()


def test_choices_cannot_be_forced_where_all_modules_run() -> None:
    model, tokens = made(routing_all_possible_path=True), tokens_of()
    routes = made()(tokens, return_routes=True).routes
    with pytest.raises(ValueError, match="choices cannot be forced where every token uses all modules; Forbid removes"):
        model(tokens, routes=routes)


def test_routes_of_something_else_are_refused() -> None:
    model, tokens = made(), tokens_of()
    routes = model(tokens, return_routes=True).routes
    with pytest.raises(ValueError, match="routes: are of a model with other rounds or modules"):
        made(depth_per_chunk=2)(tokens, routes=routes)
    with pytest.raises(ValueError, match="routes: are of a model with other rounds or modules"):
        made(num_ffn=5)(tokens, routes=routes)
    with pytest.raises(ValueError, match=r"routes: are of tokens of shape \(2, 10\), these have \(2, 9\)"):
        model(tokens[:, :9], routes=routes)
    with pytest.raises(ValueError, match=r"routes: are of tokens of shape \(2, 10\), these have \(1, 10\)"):
        model(tokens[:1], routes=routes)
    packed = model(tokens.ravel(), lengths=[12, 8], return_routes=True).routes
    with pytest.raises(ValueError, match=r"routes: are of rows of lengths \[12, 8\], these have \[10, 10\]"):
        model(tokens.ravel(), lengths=[10, 10], routes=packed)
    with pytest.raises(TypeError, match="routes: expected mom.Routes, got dict"):
        model(tokens, routes={})
    with pytest.raises(ValueError, match="routes: keep 2 choices of the ffn half, and TopK asks for 3"):
        model(tokens, routes=routes, interventions=[mom.TopK(3, half="ffn")])
    broken = made()(tokens, return_routes=True).routes
    broken.index["ffn"][0, 1, 2] = [3, 3]
    with pytest.raises(ValueError, match="token 12 has choice 3 twice"):
        model(tokens, routes=broken)
    # The model still works.
    assert model(tokens, routes=routes, return_routes=True).routes == routes


def test_more_choices_than_the_configuration_keeps_can_be_replayed() -> None:
    tokens = tokens_of()
    wide, narrow = made(routing_top_k=3), made(routing_top_k=1)
    want = wide(tokens, return_routes=True, return_logits=True)
    have = narrow(tokens, routes=want.routes, return_routes=True, return_logits=True)
    assert have.routes == want.routes and np.array_equal(have.logits, want.logits)


def test_the_balance_loss_counts_what_the_router_prefers_or_what_ran() -> None:
    tokens = tokens_of()
    rule = [mom.Force("ffn", to=1)]
    preferred, used = made(), made(balance_routes="used")
    free = preferred(tokens, labels=tokens)
    assert free.balance_loss == used(tokens, labels=tokens).balance_loss
    # The scores of later rounds change with what runs, those of round 0 do not; so one round shows it.
    one = SMALL.replace(depth_per_chunk=1)
    models = {kind: mom.MoM(one.replace(balance_routes=kind), seed=1) for kind in ("preferred", "used")}
    plain = {kind: model(tokens, labels=tokens).balance_loss for kind, model in models.items()}
    forced = {kind: model(tokens, labels=tokens, interventions=rule).balance_loss for kind, model in models.items()}
    assert plain["preferred"] == plain["used"] == forced["preferred"] != forced["used"]
