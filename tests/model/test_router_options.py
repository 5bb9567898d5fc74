"""What a router may have beside its kind: what training does with it, and that generation agrees with a whole pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import reference
from mom.errors import ConfigError
from mom.training.adapt import parameters_selected_by, routers_are_idle
from mom.training.schedules import exploration_schedule

CONFIG = mom.MoMConfig(
    vocab_size=31, n_positions=24, n_embd=16, n_head=2, chunks=2, num_attn=3, num_ffn=4, depth_per_chunk=3,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=8,
    routing_top_k=2,
)  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 31, (3, 12), dtype=np.int32)
OPTIONS: dict[str, dict[str, Any]] = {
    "LayerNorm": {"router_layernorm": True},
    "embedding": {"router_rounds": "embedding"},
    "projection": {"router_rounds": "projection"},
    "detached": {"router_state": "detached"},
    "reset": {"router_state": "reset"},
    "linear": {"router_type": "linear-softmax"},
    "norm": {"router_type": "norm"},
    "bias": {"router_bias_rate": 0.1},
    "final skip": {"skip_is_final": True, "routing_top_k": 1, "router_renormalise": False},
    "single": {"route_single": True, "num_attn": 1, "num_ffn": 1, "routing_top_k": 1, "skip_is_final": True},
    "shared": {"shared_pools": "both"},
}


def trained(**changes: Any) -> mom.MoM:
    """A model after a few steps, so that its choices differ."""
    model = mom.MoM(CONFIG.replace(**changes), seed=1)
    optimizer = mom.AdamW(model, lr=2e-2)
    for _ in range(4):
        model(IDS, labels=IDS)
        model.backward()
        optimizer.step(1.0, zero_grad=True)
    return model


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation_agrees_with_a_whole_pass(name: str, dtype: str, tmp_path: Path) -> None:
    model = trained(**OPTIONS[name])
    if dtype == "bfloat16":
        model.save_pretrained(tmp_path / "model")
        model = mom.MoM.from_pretrained(tmp_path / "model", dtype=dtype)
    whole = model(IDS, return_logits=True, return_routes=True, keep=False)
    decoder = mom.Decoder(model)
    for first in (5, 3):  # several tokens at once, then one by one
        decoder = mom.Decoder(model)
        decoder.prefill(IDS[:, :first])
        for t in range(first, IDS.shape[1]):
            decoder.step(IDS[:, t])
        difference = np.abs(decoder.logits - whole.logits[:, -1]).max()
        assert difference <= (2e-5 if dtype == "float32" else 0.1), difference


@pytest.mark.parametrize("name", OPTIONS)
def test_a_saved_model_is_the_same(name: str, tmp_path: Path) -> None:
    model = trained(**OPTIONS[name])
    model.save_pretrained(tmp_path / "model")
    again = mom.MoM.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    before, after = (each(IDS, labels=IDS, keep=False) for each in (model, again))
    assert before.losses == after.losses
    first, second = ({n: v.tobytes() for n, v in each.parameters.items()} for each in (model, again))
    assert first == second


@pytest.mark.parametrize("name", OPTIONS)
def test_the_audit_and_the_oracle_work(name: str) -> None:
    pytest.importorskip("pandas")
    model = trained(**OPTIONS[name])
    found = mom.analysis.audit(model, IDS, ["usage", "drop_one", "skip_round"])
    assert np.isfinite(found.table[["drop_one", "skip_round"]].to_numpy(float)).any()
    best = mom.analysis.oracle(model, IDS[:1], search="greedy", samples=1)
    assert best.regret >= -1e-6


def test_checkpointing_gives_the_same_bits_with_everything() -> None:
    fields = {
        "router_layernorm": True, "router_rounds": "projection", "router_jitter": 0.3, "router_bias_rate": 0.1,
        "router_path_loss_coef": 0.2, "round_pdrop": 0.4, "skip_is_final": True, "shared_pools": "ffn",
    }  # fmt: skip
    found = []
    for checkpointing, threads in ((False, 1), (True, 1), (False, 2)):
        mom.set_num_threads(threads)
        model = mom.MoM(CONFIG.replace(**fields), seed=3).train()
        model.activation_checkpointing = checkpointing
        losses = []
        for _ in range(3):
            losses.append(model(IDS, labels=IDS).losses)
            model.backward()
        found.append((losses, [g.tobytes() for g in model.gradients.values()]))
    assert found[0] == found[1] == found[2]


# ---------------------------------------------------------------------- training
def test_frozen_routers_keep_their_weights_and_pass_gradients() -> None:
    free, frozen = (mom.MoM(CONFIG.replace(router_frozen=value), seed=2) for value in (False, True))
    for model in (free, frozen):
        model(IDS, labels=IDS)
        model.backward()
    routers = [name for name in frozen.parameters if ".router." in name]
    assert not any(frozen.has_gradient[name] for name in routers)
    for name in set(frozen.parameters) - set(routers):
        assert frozen.gradients[name].tobytes() == free.gradients[name].tobytes()
    before = {name: value.copy() for name, value in frozen.parameters.items()}
    mom.AdamW(frozen, lr=0.1).step(1.0)
    changed = {name for name, value in frozen.parameters.items() if value.tobytes() != before[name].tobytes()}
    assert changed and not changed & set(routers)


def test_a_bias_falls_where_a_choice_is_made_too_often() -> None:
    config = CONFIG.replace(router_bias_rate=0.25, router_aux_loss_coef=0.0)
    model = mom.MoM(config, seed=2)
    twin = reference.Model(config, model.parameters)
    optimizer, steps = mom.AdamW(model, lr=0.0, weight_decay=0.0), reference.AdamW(lr=0.0, bias_rate=0.25)
    names = [name for name in model.parameters if name.endswith("balance_bias")]
    assert len(names) == 4
    for _ in range(5):
        routes = model(IDS, labels=IDS, return_routes=True).routes
        before = {name: model.parameters[name].copy() for name in names}
        model.backward()
        squares = [float((g.astype(np.float64) ** 2).sum()) for n, g in model.gradients.items() if n not in names]
        assert optimizer.step(1e9, zero_grad=True) == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
        assert routes is not None
        counts = np.bincount(routes.index["ffn"][:3].reshape(-1), minlength=5)
        name = names[1]
        np.testing.assert_array_equal(model.parameters[name], before[name] - 0.25 * np.sign(counts - counts.mean()))
        twin(IDS, IDS)
        gradients = twin.backward()
        steps.step(twin.parameters, gradients, gradients.unused)
    for name in names:
        np.testing.assert_array_equal(twin.parameters[name].astype(np.float32), model.parameters[name])


def test_a_bias_makes_use_more_even() -> None:
    ids = np.random.default_rng(1).integers(0, 31, (16, 24), dtype=np.int32)
    model = mom.MoM(CONFIG.replace(router_bias_rate=0.005, chunks=1, initializer_range=0.3), seed=5)

    def spread() -> float:
        routes = model(ids, return_routes=True).routes
        assert routes is not None
        counts = np.bincount(routes.index["ffn"].reshape(-1), minlength=5)
        return float(counts.std() / counts.mean())

    before, optimizer = spread(), mom.AdamW(model, lr=0.0)
    for _ in range(60):  # the biases alone
        model(ids, labels=ids)
        model.backward()
        optimizer.step(zero_grad=True)
    assert before > 0.2 and spread() < 0.3 * before


def test_the_path_loss_sends_tokens_on() -> None:
    def stay(coef: float) -> float:
        config = CONFIG.replace(router_path_loss_coef=coef, chunks=1, routing_top_k=1, router_rounds="projection")
        model = mom.MoM(config, seed=4)
        optimizer = mom.AdamW(model, lr=1e-2)
        for _ in range(60):
            model(IDS, labels=IDS)
            model.backward()
            optimizer.step(1.0, zero_grad=True)
        routes = model(IDS, return_routes=True).routes
        assert routes is not None
        first = routes.module["ffn"][..., 0]
        return float((first[1:] == first[:-1]).mean())

    assert stay(3.0) < 0.5 * stay(0.0)


def test_the_path_loss_of_even_routers_is_one_for_each_half() -> None:
    model = mom.MoM(CONFIG.replace(router_path_loss_coef=0.5, enable_pause=False, router_choices="own"))
    for name, value in model.parameters.items():
        if ".router.router." in name:
            value[:] = 0.0
    out = model(IDS, labels=IDS)
    assert out.losses["path"] == pytest.approx(2.0, rel=1e-6)
    weights = {"lm": 1.0, "balance": 0.01, "path": 0.5}
    assert out.loss == pytest.approx(sum(weights[name] * value for name, value in out.losses.items()), rel=1e-12)


def test_rounds_are_left_out_in_training_only() -> None:
    model = mom.MoM(CONFIG.replace(round_pdrop=0.5), seed=0)
    assert model(IDS, labels=IDS).losses == mom.MoM(CONFIG, seed=0)(IDS, labels=IDS).losses
    model.train()
    left_out = set()
    for _ in range(8):
        routes = model(IDS, return_routes=True).routes
        assert routes is not None
        gone = [bool((routes.index["ffn"][r] == -2).all()) for r in range(6)]
        assert gone == [bool((routes.index["attn"][r] == -2).all()) for r in range(6)]
        left_out.add(tuple(gone))
    assert len(left_out) > 3


def test_who_says_that_routers_learn_nothing() -> None:
    top1 = CONFIG.replace(routing_top_k=1, router_aux_loss_coef=0.0)
    assert routers_are_idle(top1, language_model=True)
    for changes in (
        {"router_renormalise": False}, {"router_path_loss_coef": 0.1}, {"router_route_loss_coef": 0.1},
        {"router_z_loss_coef": 0.1}, {"routing_top_k": 2}, {"router_aux_loss_coef": 0.1},
        {"router_type": "linear-softmax", "router_coupling_loss_coef": 0.1},
    ):  # fmt: skip
        assert not routers_are_idle(top1.replace(**changes), language_model=True), changes
    assert routers_are_idle(top1.replace(router_path_loss_coef=0.1), language_model=False)
    single = {"num_attn": 1, "num_ffn": 1}
    assert not routers_are_idle(top1.replace(**single), language_model=True)
    assert routers_are_idle(top1.replace(**single, route_single=True), language_model=True)
    with pytest.raises(ConfigError, match="train: 'routers', but router_frozen keeps their weights"):
        parameters_selected_by(mom.MoM(top1.replace(router_frozen=True)), "routers")


# ---------------------------------------------------------------------- exploration
def test_exploration_goes_from_the_first_value_to_the_second() -> None:
    at = exploration_schedule((4.0, 1.0), (1.0, 0.0), 10.0)
    assert at(0) == (4.0, 1.0) and at(10) == at(99) == (1.0, 0.0)
    assert at(5) == (pytest.approx(2.0), pytest.approx(0.5))
    assert exploration_schedule((4.0, 1.0), (1.0, 0.0), 0.0)(0) == (1.0, 0.0)


def test_exploration_ends_with_the_models_own_values(tmp_path: Path) -> None:
    np.tile(IDS.reshape(-1), 20).astype(np.uint16).tofile(tmp_path / "train.bin")
    config = CONFIG.replace(router_softmax_temperature=0.5)
    found = {}
    for name, changes in {
        "plain": {}, "cool": {"router_temperature_start": 0.5}, "hot": {"router_temperature_start": 5.0},
        "noisy": {"router_jitter_start": 2.0},
    }.items():  # fmt: skip
        model = mom.MoM(config, seed=0)
        settings = {"steps": 6, "batch_size": 2, "sequence_length": 12, "progress": False, **changes}
        mom.train(model, tmp_path / "train.bin", **settings)
        assert model.core.exploration == (0.5, 0.0)
        found[name] = b"".join(value.tobytes() for value in model.parameters.values())
    assert found["plain"] == found["cool"]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("changes", [{"router_temperature_start": 2.0}, {"router_jitter_start": 1.0}], ids=str)
@pytest.mark.parametrize("router", ["hash", "naive"])
def test_exploration_without_effect_is_refused(changes: dict[str, Any], router: str, tmp_path: Path) -> None:
    np.tile(IDS.reshape(-1), 20).astype(np.uint16).tofile(tmp_path / "train.bin")
    model, name = mom.MoM(CONFIG.replace(router_type=router)), next(iter(changes))
    settings = {"steps": 1, "batch_size": 2, "sequence_length": 12, "progress": False, **changes}
    if router == "naive" and name == "router_jitter_start":
        mom.train(model, tmp_path / "train.bin", **settings)
        return
    with pytest.raises(ConfigError, match=f"{name}: needs a router with"):
        mom.train(model, tmp_path / "train.bin", **settings)


def test_the_path_of_the_plain_model() -> None:
    config = CONFIG.replace(router_rounds="projection", vanilla_path_bias=5.0, num_ffn=3, chunks=1)
    model = mom.MoM.from_vanilla(mom.MoM(config.vanilla_config(), seed=0), config)
    routes = model(IDS, return_routes=True).routes
    assert routes is not None
    for half in ("attn", "ffn"):
        assert all((routes.index[half][r, ..., 0] == r).all() for r in range(3))


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"router_rounds": "projection", "router_type": "norm"}, "router_rounds: a 'norm' router has no last map"),
        ({"router_type": "hash", "router_layernorm": True}, "router_layernorm: a router of the type 'hash'"),
        ({"router_type": "hash", "router_rounds": "embedding"}, "router_rounds: a router of the type 'hash'"),
        ({"router_type": "naive", "router_state": "reset"}, "router_state: .*has no state"),
        ({"router_type": "naive", "router_path_loss_coef": 1.0}, "router_path_loss_coef: needs probabilities"),
        ({"router_coupling_loss_coef": 0.1}, "router_coupling_loss_coef: .*'gru-softmax' has no such rows"),
        ({"route_single": True, "enable_pause": False}, "route_single: .*set enable_pause"),
        ({"skip_is_final": True, "enable_pause": False}, "skip_is_final: needs SKIP"),
        ({"router_type": "norm", "router_dim": 3}, "router_dim: 3 units are too few"),
        ({"vanilla_path_bias": 1.0}, "vanilla_path_bias: .*router_rounds='projection'"),
        ({"router_bias_rate": 0.1, "routing_all_possible_path": True}, "router_bias_rate: is about choices"),
        ({"skip_is_final": True, "routing_all_possible_path": True}, "skip_is_final: is about choices"),
    ],
    ids=str,
)  # fmt: skip
def test_a_contradiction_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONFIG.replace(**changes)


def test_exploration_of_the_core_is_checked() -> None:
    core = mom.MoM(CONFIG).core
    for value in ((0.0, 0.0), (1.0, -1.0), (float("nan"), 0.0)):
        with pytest.raises(ValueError, match="exploration"):
            core.exploration = value
    with pytest.raises(TypeError, match="exploration"):
        core.exploration = 1.0
    assert core.exploration == (1.0, 0.0)
