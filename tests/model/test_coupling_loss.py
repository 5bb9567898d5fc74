"""The coupling loss: its value, its random factors, its bits in every mode, and what training on it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.errors import ConfigError
from mom.reference import coupling_loss

CONFIG = mom.MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, chunks=2, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="linear-softmax", routing_top_k=1,
    router_aux_loss_coef=0.1, router_coupling_loss_coef=0.2, initializer_range=0.2,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 7))


def excess(model: mom.MoM, half: str, first: str, place: int = 1) -> float:
    """The loss of one half in evaluation, straight from its definition."""
    names = f"transformer.h.{place}.mot_{half}."
    values = {name.removeprefix(names): value for name, value in model.parameters.items() if name.startswith(names)}
    norm = {"attn": "attention_layernorm", "ffn": "ffn_layernorm"}[half]
    modules = {"attn": model.config.num_attn, "ffn": model.config.num_ffn}[half]
    lengths = np.zeros((modules, modules))
    for i, row in enumerate(values["router.router.weight"][:modules].astype(np.float64)):
        xhat = (row - row.mean()) / np.sqrt(row.var() + model.config.layer_norm_epsilon)
        for j in range(modules):
            inp = xhat * values[f"{norm}.{j}.weight"] + values[f"{norm}.{j}.bias"]
            lengths[i, j] = np.linalg.norm(inp @ values[f"{first}.{j}.weight"] + values[f"{first}.{j}.bias"])
    own = lengths.diagonal()
    parts = np.maximum(lengths - own[:, None], 0) + np.maximum(lengths.T - own[:, None], 0)
    return float(parts.sum() / modules**2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_is_the_mean_over_halves(dtype: str) -> None:
    model = mom.MoM(CONFIG, seed=1, dtype=dtype)
    out = model(TOKENS, TOKENS)
    halves = [excess(model, *half, place) for place in (1, 2) for half in (("attn", "c_attn"), ("ffn", "c_fc"))]
    assert min(halves) > 0.0 and out.losses["coupling"] == pytest.approx(np.mean(halves), rel=1e-5)
    weights = {"lm": 1.0, "balance": 0.1, "coupling": 0.2}
    assert out.loss == pytest.approx(sum(weights[name] * value for name, value in out.losses.items()), rel=1e-12)
    assert "coupling" not in model(TOKENS).losses


@pytest.mark.parametrize(
    "changes",
    [{"router_coupling_loss_coef": 0.0}, {"num_attn": 1, "num_ffn": 1}, {"depth_per_chunk": 0}, {"num_labels": 2},
     {"chunks": 0}, {"num_attn": 1, "num_ffn": 1, "route_single": True}],
    ids=str,
)  # fmt: skip
def test_who_has_no_coupling_loss(changes: dict[str, Any]) -> None:
    config = CONFIG.replace(**changes)
    model = (mom.MoM if config.num_labels is None else mom.MoMForSequenceClassification)(config)
    assert "coupling" not in model(TOKENS[:1], TOKENS[:1] if config.num_labels is None else [1]).losses


def test_single_modules_are_no_part_of_the_mean() -> None:
    model = mom.MoM(CONFIG.replace(num_attn=1, chunks=1), seed=1)
    assert model(TOKENS, TOKENS).losses["coupling"] == pytest.approx(excess(model, "ffn", "c_fc"), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rounds", ["shared", "projection"])
def test_the_bits_are_the_same_in_every_mode(rounds: str, dtype: str, kernel_level: str) -> None:
    config = CONFIG.replace(router_rounds=rounds, shared_pools="ffn", num_ffn=5)

    def run(threads: int = 1, checkpointing: bool = False, scales: Any = None, coef: float = 0.2) -> Any:
        model = mom.MoM(config.replace(router_coupling_loss_coef=coef), seed=1, dtype=dtype).train()
        model.activation_checkpointing = checkpointing
        mom.set_num_threads(threads)
        losses = [model(TOKENS, TOKENS).losses]
        model.backward(scales=scales)
        losses.append(model(TOKENS, TOKENS).losses)
        return losses, [g.tobytes() for g in model.gradients.values()]

    first = run()
    assert first == run(2) == run(3) == run(checkpointing=True)
    assert first[0][0]["coupling"] != first[0][1]["coupling"]  # each pass draws random numbers of its own
    others = {"lm": 1.0, "balance": 0.1}
    without = run(scales=others, coef=0.0)
    assert without[0] == [{name: losses[name] for name in others} for losses in first[0]]
    assert without[1] == run(scales=others)[1] != first[1]


def test_random_factors_are_drawn_in_training_only() -> None:
    model = mom.MoM(CONFIG, seed=1)
    calm = model(TOKENS, TOKENS).losses["coupling"]
    assert calm == model(TOKENS[:1], TOKENS[:1]).losses["coupling"] and model.random_state == (1, 0)
    model.train()
    drawn = [model(TOKENS, TOKENS).losses["coupling"] for _ in range(4)]
    assert len({calm, *drawn}) == 5 and model.random_state == (1, 4)
    model.random_state = (1, 2)
    assert model(TOKENS, TOKENS).losses["coupling"] == drawn[2]


def test_the_spread_is_half_of_the_way_to_the_nearest_row() -> None:
    rows = np.array([[3.0, 4.0], [3.0, 1.0], [-5.0, 0.0], [0.0, 0.0]])
    assert coupling_loss.spread(rows) == pytest.approx([3 / 2 / 5, 3 / 2 / np.sqrt(10), 5 / 2 / 5, 0.0])
    assert coupling_loss.spread(np.ones((3, 2))).tolist() == [0.0] * 3


def test_the_length_of_rows_hardly_matters() -> None:
    model = mom.MoM(CONFIG, seed=1)
    before = model(TOKENS, TOKENS).losses["coupling"]
    for name, value in model.parameters.items():
        if name.endswith("router.router.weight"):
            value *= 5.0
    assert model(TOKENS, TOKENS).losses["coupling"] == pytest.approx(before, rel=1e-3)


def test_equal_rows_and_zero_rows_have_finite_gradients() -> None:
    for value in (0.0, 0.3):
        model = mom.MoM(CONFIG, seed=1).train()
        for name, weights in model.parameters.items():
            if name.endswith("router.router.weight"):
                weights[:] = value
        assert np.isfinite(model(TOKENS, TOKENS).loss)
        model.backward()
        assert all(np.isfinite(gradient).all() for gradient in model.gradients.values())


def test_which_parameters_have_a_gradient() -> None:
    """The first layers of all modules, and rows of modules; no SKIP, no last layer."""
    model = mom.MoM(CONFIG.replace(router_aux_loss_coef=0.0), seed=1)
    model(TOKENS[:1, :1], TOKENS[:1, :1])  # one token, so that most modules are not reached
    model.backward(scales={"coupling": 1.0})
    coupled = ("layernorm", "c_attn", "c_fc")
    for name, gradient in model.gradients.items():
        in_pool = ".h.1." in name or ".h.2." in name
        if in_pool and any(part in name for part in coupled):
            assert model.has_gradient[name]
        if in_pool and name.endswith("router.router.weight"):
            assert model.has_gradient[name] and gradient[:-1].any() and not gradient[-1].any()
        elif not in_pool or not any(part in name for part in coupled):
            assert not gradient.any(), name
    assert not all(model.has_gradient[name] for name in model.parameters if "c_proj" in name)


def test_a_frozen_router_keeps_its_map_and_the_modules_learn() -> None:
    model = mom.MoM(CONFIG.replace(router_frozen=True), seed=1)
    model(TOKENS, TOKENS)
    model.backward(scales={"coupling": 1.0})
    assert not any(model.has_gradient[name] for name in model.parameters if ".router." in name)
    assert model.gradients["transformer.h.1.mot_ffn.c_fc.0.weight"].any()


def test_frozen_modules_keep_theirs_and_the_router_learns() -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.train_only("*.router.*")
    model(TOKENS, TOKENS)
    model.backward(scales={"coupling": 1.0})
    assert {name for name in model.parameters if model.has_gradient[name]} <= {
        name for name in model.parameters if ".router." in name
    }
    assert model.gradients["transformer.h.1.mot_ffn.router.router.weight"].any()


def test_micro_batches_have_the_loss_of_one_batch() -> None:
    whole, parts = mom.MoM(CONFIG, seed=1), mom.MoM(CONFIG, seed=1)
    want = whole(TOKENS, TOKENS).losses["coupling"]
    whole.backward(scales={"coupling": 0.2})
    for tokens in (TOKENS[:1], TOKENS[1:]):  # of unequal size
        assert parts(tokens, tokens).losses["coupling"] == want
        parts.backward(scales={"coupling": 0.1})
    for name, gradient in whole.gradients.items():
        np.testing.assert_allclose(parts.gradients[name], gradient, rtol=1e-5, atol=1e-8)


def test_the_record_of_a_step_has_the_mean_of_its_micro_batches(tmp_path: Path) -> None:
    np.tile(TOKENS.reshape(-1), 20).astype(np.uint16).tofile(tmp_path / "train.bin")
    calm = mom.MoM(CONFIG, seed=1)(TOKENS, TOKENS).losses["coupling"]
    model = mom.MoM(CONFIG, seed=1).train()
    drawn = [model(TOKENS, TOKENS).losses["coupling"] for _ in range(3)]
    settings = {"steps": 1, "batch_size": 2, "sequence_length": 7, "accumulation": 3, "progress": False}
    model = mom.MoM(CONFIG, seed=1)
    model.random_state = (1, 0)
    run = mom.train(model, tmp_path / "train.bin", seed=1, **settings)
    found = [record["coupling_loss"] for record in run.records if record["kind"] == "train"]
    assert found == [pytest.approx(np.mean(drawn), rel=1e-12)] and found[0] != calm


def test_training_on_it_alone_ties_rows_to_modules() -> None:
    model = mom.MoM(CONFIG, seed=1)
    optimizer, found = mom.AdamW(model, lr=0.01), []
    for _ in range(40):
        found.append(model(TOKENS, TOKENS).losses["coupling"])
        model.backward(scales={"coupling": 1.0})
        optimizer.step(zero_grad=True)
    assert found[-1] < 0.1 * found[0]


@pytest.mark.parametrize("router", ["naive", "gru-softmax", "hash", "norm"])
def test_other_routers_are_refused(router: str) -> None:
    with pytest.raises(ConfigError, match=f"router_coupling_loss_coef: .*type '{router}'.* use router_type='linear'"):
        CONFIG.replace(router_type=router)
    assert CONFIG.replace(router_type=router, router_coupling_loss_coef=0.0).loss_weights["coupling"] == 0.0
    assert CONFIG.replace(router_type=router, chunks=0).is_vanilla


def test_what_is_no_number_shows_in_the_loss() -> None:
    """Also in a module that no token reaches."""
    model = mom.MoM(CONFIG, seed=1)
    model.parameters["transformer.h.1.mot_ffn.c_fc.2.weight"][0, 0] = np.nan
    forced = mom.Force("ffn", to=0)
    out = model(TOKENS, TOKENS, interventions=[forced])
    assert np.isfinite(out.lm_loss) and np.isnan(out.losses["coupling"])
