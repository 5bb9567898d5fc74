"""Gradients of the whole float64 twin against finite differences, over the ways of routing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finite_differences import directional_derivative

from kinds import NOISELESS_ROUTERS, ROUTERS
from mom.config import MoMConfig
from mom.reference import Model, Output, parameter_shapes

SCORED = [kind for kind in NOISELESS_ROUTERS if "hash" not in kind]

BASE: dict[str, Any] = {
    "vocab_size": 11, "n_positions": 6, "n_embd": 6, "n_head": 2, "n_inner": 7, "n_layer": 2, "chunks": 1,
    "num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 0, "num_top_layers": 0,
    "require_anchor_layer": False, "router_dim": 5, "router_type": "gru", "routing_top_k": 2,
    "router_aux_loss_coef": 0.5,
}  # fmt: skip

CASES: dict[str, dict[str, Any]] = {
    **{f"{kind} top-{k}": {"router_type": kind, "routing_top_k": k} for kind in ROUTERS for k in (1, 2)},
    **{f"{kind} weighted qkv": {"router_type": kind, "weighted_qkv": True} for kind in NOISELESS_ROUTERS},
    **{f"{kind} no SKIP": {"router_type": kind, "enable_pause": False} for kind in ("naive-softmax", "gru")},
    **{
        f"{kind} all paths": {"router_type": kind, "routing_all_possible_path": True, "weighted_qkv": kind != "naive"}
        for kind in ("naive", "gru-softmax")
    },
    **{f"{kind} z-loss": {"router_type": kind, "router_z_loss_coef": 0.3} for kind in ROUTERS},
    "z-loss and no balance loss": {"router_z_loss_coef": 0.3, "output_router_logits": False, "num_ffn": 1, "chunks": 2},
    "no choice kept": {"routing_top_k": 0},
    "every choice kept": {"router_type": "naive-softmax", "routing_top_k": 9},
    "temperature": {"router_type": "gru-softmax", "router_softmax_temperature": 0.4, "depth_per_chunk": 3},
    "more attention than ffn": {"num_attn": 4, "num_ffn": 2},
    "more ffn than attention": {"num_attn": 2, "num_ffn": 4, "router_type": "naive-softmax"},
    "each half its own choices": {"num_attn": 4, "num_ffn": 2, "router_type": "naive", "router_choices": "own"},
    "single attention": {"num_attn": 1},
    "single attention, reference's balance loss": {"num_attn": 1, "balance_loss": "reference"},
    "single ffn": {"num_ffn": 1, "router_type": "gru-softmax"},
    "both single": {"num_attn": 1, "num_ffn": 1, "depth_per_chunk": 3},
    "reference's balance loss by depth": {
        "router_type": "gru-softmax", "balance_loss": "reference", "depthwise_bal_loss": True,
    },
    "two chunks with anchors": {
        "chunks": 2, "require_anchor_layer": True, "num_bottom_layers": 1, "depthwise_bal_loss": True,
    },
    "plain GPT-2": {"chunks": 0},
    "classifier": {"num_labels": 3, "pad_token_id": 0},
    "regression": {"num_labels": 1, "router_type": "naive-softmax"},
    "multi-label": {"num_labels": 2, "problem_type": "multi_label_classification"},
    **{f"{kind} reads a LayerNorm": {"router_type": kind, "router_layernorm": True} for kind in SCORED},
    **{
        f"{kind} with a {what} for each round": {"router_type": kind, "router_rounds": what}
        for kind in SCORED
        for what in ("embedding", "projection")
        if "norm" not in kind or what == "embedding"
    },
    **{
        f"{kind}, state reset": {"router_type": kind, "router_state": "reset"}
        for kind in NOISELESS_ROUTERS
        if "gru" in kind
    },
    "weights not renormalised": {"router_type": "gru-softmax", "router_renormalise": False, "routing_top_k": 1},
    "jitter": {"router_jitter": 0.5},
    "a bias that balances": {"router_type": "linear-softmax", "router_bias_rate": 0.1},
    "path loss": {"router_type": "naive-softmax", "router_path_loss_coef": 0.8, "num_ffn": 4, "chunks": 2},
    "route loss": {"router_type": "gru-softmax", "router_route_loss_coef": 0.8, "router_softmax_temperature": 0.5},
    "coupling loss": {"router_type": "linear-softmax", "router_coupling_loss_coef": 3.0, "num_ffn": 4, "chunks": 2},
    "coupling loss of shared pools with maps of rounds": {
        "router_type": "linear", "router_coupling_loss_coef": 3.0, "router_rounds": "projection", "chunks": 2,
        "shared_pools": "both", "routing_top_k": 1, "num_attn": 1, "surplus_ffn": 1,
    },
    "a SKIP that is final": {
        "router_type": "gru-softmax", "skip_is_final": True, "depth_per_chunk": 4, "routing_top_k": 1,
        "router_renormalise": False,
    },
    "routers for single modules": {
        "router_type": "linear", "route_single": True, "num_attn": 1, "num_ffn": 1, "routing_top_k": 1,
        "depth_per_chunk": 3, "skip_is_final": True,
    },
    "rounds left out": {
        "round_pdrop": 0.2, "depth_per_chunk": 6, "router_z_loss_coef": 0.2, "depthwise_bal_loss": True,
    },
    "blocks share both pools": {"shared_pools": "both", "chunks": 3, "num_ffn": 4},
    "dropout": {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "num_bottom_layers": 1},
}  # fmt: skip


def random_parameters(config: MoMConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values large enough that every part of the model matters."""
    return {
        name: rng.standard_normal(shape) * 0.4 + (1.0 if "norm.weight" in name or "ln_" in name else 0.0)
        for name, shape in parameter_shapes(config).items()
    }


def frozen(seed: int, threshold: float | None = None):
    """A source of random arrays that gives a site the same draw in every call (with a threshold: of 0/1)."""

    def draw(site: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng([seed, *site.encode()]).random(shape)
        return values if threshold is None else (values >= threshold).astype(float)

    return draw


def inputs(config: MoMConfig, rng: np.random.Generator) -> dict[str, Any]:
    tokens = rng.integers(1, config.vocab_size, (2, 5))
    mask = np.ones((2, 5), dtype=int)
    mask[1, :2] = 0
    labels = tokens.copy()
    labels[1, :3] = -100
    if config.num_labels == 3:
        labels = rng.integers(0, 3, 2)
    elif config.num_labels is not None:
        labels = rng.random((2, config.num_labels))
    call = {"tokens": tokens, "labels": labels, "attention_mask": mask, "noise": frozen(1), "dropout": frozen(2, 0.2)}
    if config.router_coupling_loss_coef:  # in training its factors depend on the rows, which counts as no dependence
        del call["dropout"]
    return call


def choices(out: Output) -> list[np.ndarray]:
    """All routing decisions, those counted by the balance loss included."""
    routes = [r for half in out.routes.values() for rounds in half.values() for r in rounds]
    return [a for r in routes for a in (np.sort(r.index, -1), r.scores.argmax(-1))]


class Flipped(Exception):
    """A routing decision is another one a small step away, so differences say nothing about the gradient."""


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_finite_differences(name: str) -> None:
    for seed in range(3, 40):
        try:
            return check_gradients(MoMConfig(**{**BASE, **CASES[name]}), np.random.default_rng(seed))
        except Flipped:
            continue
    raise AssertionError("no draw in which all routing decisions hold")


def check_gradients(config: MoMConfig, rng: np.random.Generator) -> None:
    model = Model(config, random_parameters(config, rng))
    call = inputs(config, rng)
    decided = choices(model(**call))
    gradients = model.backward()
    assert list(gradients) == list(parameter_shapes(config))
    for parameter, gradient in gradients.items():
        if parameter.endswith("balance_bias"):  # a count, which is no gradient
            continue
        value = model.parameters[parameter]
        along = rng.standard_normal(value.shape)

        def loss(at: np.ndarray, parameter: str = parameter) -> float:
            model.parameters[parameter] = at
            out = model(**call)
            if not all(map(np.array_equal, choices(out), decided)):
                raise Flipped
            return out.loss

        want = directional_derivative(loss, value, along, 1e-4)
        model.parameters[parameter] = value
        have = float((gradient * along).sum())
        assert abs(have - want) <= 1e-6 * max(abs(want), 1e-4), (
            f"{parameter}: {have} by backward, {want} by differences"
        )
        if parameter in gradients.unused:
            assert not gradient.any() and want == 0.0


def test_backward_scales_both_losses() -> None:
    config = MoMConfig(**BASE)
    rng = np.random.default_rng(5)
    model = Model(config, random_parameters(config, rng))
    model(**inputs(config, rng))
    whole, task, balance = model.backward(), model.backward(2.0, 0.0), model.backward(0.0, 3.0)
    for name in whole:
        assert np.allclose(whole[name], task[name] / 2.0 + balance[name] * 0.5 / 3.0, rtol=1e-10, atol=1e-13)


def test_modules_without_tokens_are_unused() -> None:
    config = MoMConfig(**{**BASE, "routing_top_k": 1, "num_labels": 2, "depth_per_chunk": 1})
    rng = np.random.default_rng(5)
    parameters = random_parameters(config, rng)
    for half in ("attn", "ffn"):
        parameters[f"transformer.h.0.mot_{half}.router.router.bias"][:] = (
            (0.0, 0.0, 50.0, 0.0) if half == "attn" else (0, 0, 0, 50)
        )
    model = Model(config, parameters)
    model([[1, 2, 3]], labels=[1])
    unused = model.backward().unused
    used = set(parameters) - unused
    assert "transformer.h.0.mot_attn.c_attn.2.weight" in used and "transformer.h.0.mot_attn.router.x2h.weight" in used
    assert {n for n in unused if ".mot_attn." in n} == {
        n for n in parameters if ".mot_attn." in n and (".0." in n[14:] or ".1." in n[14:])
    }
    # Every token skips the feed-forward half and no balance loss reaches its router.
    assert {n for n in unused if ".mot_ffn." in n} == {n for n in parameters if ".mot_ffn." in n}


def test_step_counts_are_summed_until_reset() -> None:
    rng = np.random.default_rng(9)
    config = MoMConfig(**{**BASE, "balance_counts": "step"})
    parameters = random_parameters(config, rng)
    first, second = (rng.integers(0, 11, (1, 6)) for _ in range(2))
    model = Model(config, parameters)
    micro = Model(config.replace(balance_counts="micro"), parameters)
    alone = model(first, labels=first).balance_loss
    assert alone == micro(first, labels=first).balance_loss
    model(second, labels=second)
    rounds = config.rounds * first.size
    assert model.counts["attn"].sum() == model.counts["ffn"].sum() == 2 * rounds
    model.reset_counts()
    assert model(second, labels=second).balance_loss == micro(second, labels=second).balance_loss


def test_switch_loss_takes_probabilities_once() -> None:
    rng = np.random.default_rng(11)
    config = MoMConfig(**{**BASE, "router_type": "gru-softmax", "num_attn": 1})
    parameters = random_parameters(config, rng)
    tokens = rng.integers(0, 11, (2, 6))
    out = Model(config, parameters)(tokens, labels=tokens)
    scores = np.stack([r.scores.reshape(12, -1) for r in out.routes["ffn"][0]]).reshape(-1, 4)
    share = np.bincount(scores.argmax(-1), minlength=4) / len(scores)
    assert out.balance_loss == pytest.approx(4 * (share * scores.mean(0)).sum())
    assert Model(config.replace(balance_loss="reference"), parameters)(tokens, labels=tokens).balance_loss is None


def test_pooling_takes_the_last_real_token() -> None:
    rng = np.random.default_rng(13)
    config = MoMConfig(**{**BASE, "num_labels": 2, "pad_token_id": 0})
    parameters = random_parameters(config, rng)
    tokens = np.array([[3, 0, 4, 0, 0], [0, 0, 5, 6, 7]])
    mask = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    out = Model(config, parameters)(tokens, attention_mask=mask)
    head = parameters["score.weight"].T
    assert np.allclose(out.logits, out.trace["hidden/ln_f"][[0, 1], [2, 4]] @ head)
    out = Model(config.replace(pooling="reference"), parameters)(tokens, attention_mask=mask)
    assert np.allclose(out.logits, out.trace["hidden/ln_f"][[0, 1], [0, 4]] @ head)


def test_one_batch_is_learnt() -> None:
    from mom.reference import AdamW

    rng = np.random.default_rng(17)
    config = MoMConfig(**BASE)
    model = Model(config, random_parameters(config, rng))
    tokens = rng.integers(0, 11, (2, 6))
    optimizer = AdamW(lr=2e-2)
    for _ in range(60):
        model(tokens, labels=tokens)
        gradients = model.backward()
        optimizer.step(model.parameters, gradients, gradients.unused)
    assert model(tokens, labels=tokens).lm_loss < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"tokens": [1, 2]}, r"tokens: shape \(2,\), expected \(B, T\)"),
        ({"tokens": [[1.5]]}, "tokens: dtype float64"),
        ({"tokens": [[11]]}, r"tokens: id outside \[0, 11\)"),
        ({"tokens": [[1] * 7]}, "tokens: 7 positions, at most 6"),
        ({"tokens": [[1, 2]], "labels": [[1]]}, r"labels: shape \(1, 1\), expected \(1, 2\)"),
        ({"tokens": [[1, 2]], "labels": [[1, 11]]}, "labels: value outside"),
        ({"tokens": [[1, 2]], "attention_mask": [1, 1]}, r"attention_mask: shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(call: dict[str, Any], message: str) -> None:
    config = MoMConfig(**BASE)
    model = Model(config, random_parameters(config, np.random.default_rng(0)))
    with pytest.raises((ValueError, TypeError), match=message):
        model(**call)


def test_backward_needs_labels_and_random_routers_noise() -> None:
    config = MoMConfig(**BASE)
    model = Model(config, random_parameters(config, np.random.default_rng(0)))
    model([[1, 2]])
    with pytest.raises(RuntimeError, match="labels"):
        model.backward()
    config = config.replace(router_type="gru-random")
    with pytest.raises(ValueError, match="noise"):
        Model(config, random_parameters(config, np.random.default_rng(0)))([[1, 2]])


def test_parameters_must_be_complete() -> None:
    config = MoMConfig(**BASE)
    parameters = random_parameters(config, np.random.default_rng(0))
    parameters["transformer.surplus"] = parameters.pop("transformer.ln_f.bias")
    with pytest.raises(ValueError, match="missing .*ln_f.bias.* unexpected .*surplus"):
        Model(config, parameters)
