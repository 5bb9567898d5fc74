"""Operators of the float64 twin: gradients against finite differences, and values that can be stated exactly."""

from __future__ import annotations

import numpy as np
import pytest
from finite_differences import assert_operator_gradients

from mom.reference import (
    AdamW,
    adamw,
    attention,
    balance_loss,
    classification_loss,
    coupling_loss,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    grad_norm,
    layernorm,
    linear,
    routed_linear,
    router,
    routing_plan,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(21)


# ------------------------------------------------------------------ layers of GPT-2
def test_embedding(rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 4, (2, 5))
    values = {"wte": rng.standard_normal((4, 3)), "wpe": rng.standard_normal((7, 3))}
    dout = rng.standard_normal((2, 5, 3))
    dwte, dwpe = embedding.backward(dout, tokens, 4, 7)
    assert not dwpe[5:].any()
    assert_operator_gradients(
        lambda v: (embedding.forward(tokens, **v) * dout).sum(), values, {"wte": dwte, "wpe": dwpe}
    )


def test_layernorm(rng: np.random.Generator) -> None:
    values = {"inp": rng.standard_normal((2, 3, 5)), "weight": rng.standard_normal(5), "bias": rng.standard_normal(5)}
    dout = rng.standard_normal((2, 3, 5))
    out, mean, rstd = layernorm.forward(**values)
    xhat = (out - values["bias"]) / values["weight"]
    assert np.allclose(xhat.mean(-1), 0.0) and np.allclose(xhat.var(-1), 1.0, atol=1e-3)
    gradients = layernorm.backward(dout, values["inp"], values["weight"], mean, rstd)
    assert_operator_gradients(
        lambda v: (layernorm.forward(**v)[0] * dout).sum(),
        values,
        dict(zip(("inp", "weight", "bias"), gradients, strict=True)),
    )


def test_linear(rng: np.random.Generator) -> None:
    values = {
        "inp": rng.standard_normal((2, 3, 4)),
        "weight": rng.standard_normal((4, 5)),
        "bias": rng.standard_normal(5),
    }
    dout = rng.standard_normal((2, 3, 5))
    gradients = linear.backward(dout, values["inp"], values["weight"])
    assert_operator_gradients(
        lambda v: (linear.forward(**v) * dout).sum(),
        values,
        dict(zip(("inp", "weight", "bias"), gradients, strict=True)),
    )


def test_gelu(rng: np.random.Generator) -> None:
    x = np.array([-1e4, -40.0, -2.0, 0.0, 0.7, 1e4])
    assert np.allclose(gelu.forward(x)[[0, 1, 3, 5]], [0.0, 0.0, 0.0, 1e4])
    assert np.array_equal(gelu.backward(np.ones(6), x)[[0, 3, 5]], [0.0, 0.5, 1.0])
    inp, dout = rng.standard_normal((2, 9))
    assert_operator_gradients(
        lambda v: (gelu.forward(v["inp"]) * dout).sum(), {"inp": inp}, {"inp": gelu.backward(dout, inp)}
    )


def test_dropout_scales_what_it_keeps() -> None:
    keep = np.array([True, False, True])
    assert np.array_equal(dropout.forward([1.0, 2.0, 3.0], keep, 0.5), [2.0, 0.0, 6.0])
    assert np.array_equal(dropout.backward(np.ones(3), keep, 0.75), [4.0, 0.0, 4.0])
    assert np.array_equal(dropout.forward([1.0, 2.0], None, 0.5), [1.0, 2.0])
    with pytest.raises(ValueError, match="p: 1.0"):
        dropout.forward([1.0], [1], 1.0)


@pytest.mark.parametrize("masked_query", ["causal", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_attention(rng: np.random.Generator, masked: bool, masked_query: str, scaled: bool) -> None:
    mask = np.array([[0, 0, 1, 1, 0], [1, 1, 0, 1, 0]]) if masked else None
    options = {"n_head": 2, "key_mask": mask, "masked_query": masked_query, "scaled": scaled}
    options |= {"keep": rng.random((2, 2, 5, 5)) > 0.3, "p": 0.3}
    values, dout = {"qkv": rng.standard_normal((2, 5, 18))}, rng.standard_normal((2, 5, 6))
    if masked and masked_query == "reference":
        dout[0, :2] = 0.0  # rows without a real key: the reference's gradient is not the derivative, see below
    _, probs = attention.forward(values["qkv"], **options)
    dqkv = attention.backward(dout, values["qkv"], probs, **options)
    assert_operator_gradients(lambda v: (attention.forward(v["qkv"], **options)[0] * dout).sum(), values, {"qkv": dqkv})


@pytest.mark.parametrize("masked_query", ["causal", "reference"])
def test_attention_of_active_tokens_and_unequal_lengths(rng: np.random.Generator, masked_query: str) -> None:
    lengths, rows = [3, 0, 5, 1], 9
    mask = np.array([1, 0, 1, 0, 0, 1, 1, 0, 1])
    active = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1])
    options = {"n_head": 2, "key_mask": mask, "masked_query": masked_query, "active": active, "lengths": lengths}
    options |= {"keep": rng.random((4, 2, 5, 5)) > 0.3, "p": 0.3}
    values, dout = {"qkv": rng.standard_normal((rows, 18))}, rng.standard_normal((rows, 6))
    if masked_query == "reference":
        dout[3:5] = 0.0  # see above
    out, probs = attention.forward(values["qkv"], **options)
    dqkv = attention.backward(dout, values["qkv"], probs, **options)
    assert_operator_gradients(lambda v: (attention.forward(v["qkv"], **options)[0] * dout).sum(), values, {"qkv": dqkv})
    assert not out[active == 0].any() and not dqkv[active == 0].any()
    silent = np.where(active[:, None], values["qkv"], 0.0)
    alone = attention.forward(silent[None, 3:8], 2, mask[None, 3:8], masked_query, keep=options["keep"][2:3], p=0.3)
    assert np.allclose(np.where(active[3:8, None], alone[0][0], 0.0), out[3:8])
    assert np.allclose(alone[1][0], probs[2])


def test_attention_gradient_of_masked_queries_passes_to_past_scores_as_in_the_reference(
    rng: np.random.Generator,
) -> None:
    """The reference adds a constant that drowns the score; its autograd still hands the gradient on."""
    qkv, dout, mask = rng.standard_normal((1, 3, 6)), np.zeros((1, 3, 2)), np.array([[0, 0, 1]])
    dout[0, 1] = 1.0
    _, probs = attention.forward(qkv, 1, mask, "reference")
    dqkv = attention.backward(dout, qkv, probs, 1, mask, "reference")
    q, k, v = np.split(qkv[0], 3, axis=-1)
    dprobs = v.sum(-1)
    dscores = (dprobs - dprobs.mean()) / 3 / np.sqrt(2)
    assert np.allclose(dqkv[0, 1, :2], dscores[:2] @ k[:2])
    assert np.allclose(dqkv[0, :2, 2:4], np.outer(dscores[:2], q[1])) and not dqkv[0, 2, 2:4].any()
    _, probs = attention.forward(qkv, 1, mask, "causal")
    assert not attention.backward(dout, qkv, probs, 1, mask, "causal")[..., :4].any()


def test_attention_of_masked_queries(rng: np.random.Generator) -> None:
    qkv, mask = rng.standard_normal((1, 4, 6)), np.array([[0, 0, 1, 1]])
    causal = attention.forward(qkv, 1, mask, "causal")[1][0, 0]
    reference = attention.forward(qkv, 1, mask, "reference")[1][0, 0]
    assert np.allclose(causal[:2], [[1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert np.allclose(reference[:2], [[1 / 3, 0, 1 / 3, 1 / 3], [0.25] * 4])
    assert np.array_equal(causal[2:], reference[2:]) and not causal[2:, :2].any()
    with pytest.raises(ValueError, match="masked_query: 'none'"):
        attention.forward(qkv, 1, mask, "none")


def test_attention_of_skipped_tokens_keeps_their_share() -> None:
    """q = k = v = 0 stands in the softmax with score 0 and adds no value."""
    qkv = np.zeros((1, 2, 6))
    qkv[0, 1] = (2.0, 0.0, 0.5, 0.0, 4.0, 0.0)
    out, _ = attention.forward(qkv, 1, scaled=False)
    assert np.allclose(out[0, 1], [4.0 * np.e / (1.0 + np.e), 0.0])


def test_cross_entropy(rng: np.random.Generator) -> None:
    logits, labels = rng.standard_normal((5, 4)), np.array([1, -100, 0, 3, -100])
    total, count, lse = cross_entropy.forward(logits, labels)
    assert count == 3
    assert np.isclose(total, -sum(np.log(np.exp(logits[n]) / np.exp(logits[n]).sum())[labels[n]] for n in (0, 2, 3)))
    dlogits = cross_entropy.backward(0.5, logits, labels, lse)
    assert not dlogits[[1, 4]].any()
    assert_operator_gradients(
        lambda v: 0.5 * cross_entropy.forward(v["logits"], labels)[0], {"logits": logits}, {"logits": dlogits}
    )
    assert cross_entropy.forward([[1e5, -1e5]], [1])[0] == 2e5
    assert cross_entropy.forward(logits, np.full(5, -100))[:2] == (0.0, 0)


@pytest.mark.parametrize(
    ("num_labels", "kind"),
    [(1, "regression"), (3, "regression"), (3, "single_label_classification"), (3, "multi_label_classification")],
)
def test_classification_loss(rng: np.random.Generator, num_labels: int, kind: str) -> None:
    logits = rng.standard_normal((4, num_labels))
    labels = rng.random((4, num_labels))
    if kind == "single_label_classification":
        labels = np.array([0, 2, -100, 1])
    gradient = classification_loss.backward(1.5, logits, labels, kind)
    assert_operator_gradients(
        lambda v: 1.5 * classification_loss.forward(v["logits"], labels, kind), {"logits": logits}, {"logits": gradient}
    )


def test_classification_loss_is_chosen_from_the_labels() -> None:
    assert classification_loss.problem_type(1, [1, 2]) == "regression"
    assert classification_loss.problem_type(2, [1, 0]) == "single_label_classification"
    assert classification_loss.problem_type(2, [[1.0, 0.0]]) == "multi_label_classification"
    assert classification_loss.problem_type(2, [1, 0], "regression") == "regression"
    assert classification_loss.forward([[1.0], [3.0]], [0.0, 1.0], "regression") == 2.5


# ------------------------------------------------------------------ coupling loss
@pytest.mark.parametrize("modules", [2, 5])
def test_coupling_loss(rng: np.random.Generator, modules: int) -> None:
    shapes = {"rows": (5,), "norm": (5,), "norm_bias": (5,), "layer": (5, 7), "layer_bias": (7,)}
    values = {name: rng.standard_normal((modules, *shape)) for name, shape in shapes.items()}
    delta = 1 + coupling_loss.spread(values["rows"])[:, None] * rng.uniform(-1, 1, (modules, 5))

    def pairs(v):
        return [list(zip(v[name], v[f"{name}_bias"], strict=True)) for name in ("norm", "layer")]

    loss, saved = coupling_loss.forward(values["rows"], delta, *pairs(values))
    own = saved.lengths.diagonal()
    both = [(i, j) for i in range(modules) for j in range(modules) if i != j]
    parts = [max(saved.lengths[at] - own[i], 0) for i, j in both for at in ((i, j), (j, i))]
    assert loss == pytest.approx(sum(parts) / modules**2, rel=1e-12) and loss > 0
    drows, *of_modules = coupling_loss.backward(1.7, saved, *pairs(values))
    gradients = {"rows": drows}
    for name, of_module in zip(("norm", "layer"), of_modules, strict=True):
        gradients[name], gradients[f"{name}_bias"] = map(np.stack, zip(*of_module, strict=True))
    assert_operator_gradients(
        lambda v: 1.7 * coupling_loss.forward(v["rows"], delta, *pairs(v))[0], values, gradients, tolerance=1e-6
    )


# ------------------------------------------------------------------ routers
def test_naive_router(rng: np.random.Generator) -> None:
    names = ("inp", "weight_0", "bias_0", "weight_2", "bias_2")
    values = dict(zip(names, map(rng.standard_normal, [(6, 4), (5, 4), (5,), (3, 5), (3,)]), strict=True))
    dlogits = rng.standard_normal((6, 3))
    _, hidden = router.naive_forward(**values)
    gradients = router.naive_backward(dlogits, values["inp"], hidden, values["weight_0"], values["weight_2"])
    assert_operator_gradients(
        lambda v: (router.naive_forward(**v)[0] * dlogits).sum(),
        values,
        dict(zip(names, gradients, strict=True)),
        h=1e-5,
    )


@pytest.mark.parametrize("dev", [False, True])
@pytest.mark.parametrize("random", [False, True])
def test_recurrent_router(rng: np.random.Generator, dev: bool, random: bool) -> None:
    rows = 20 if random else 15
    shapes = [(rows, 4), (rows,), (rows, 5), (rows,), (3, 5), (3,)]
    names = router.GruWeights._fields
    values = {"inp": rng.standard_normal((6, 4)), "state": rng.standard_normal((6, 5))}
    values |= dict(zip(names, map(rng.standard_normal, shapes), strict=True))
    noise = rng.random((6, 5)) if random else None
    dlogits, dstate = rng.standard_normal((6, 3)), rng.standard_normal((6, 5))

    def run(v):
        return router.gru_forward(v["inp"], v["state"], router.GruWeights(*(v[n] for n in names)), dev, noise)

    weights = router.GruWeights(*(values[n] for n in names))
    dinp, dbefore, dweights = router.gru_backward(
        dlogits, dstate, values["inp"], values["state"], run(values)[2], weights, dev, noise
    )
    gradients = {"inp": dinp, "state": dbefore, **dict(zip(names, dweights, strict=True))}
    assert_operator_gradients(lambda v: (run(v)[0] * dlogits).sum() + (run(v)[1] * dstate).sum(), values, gradients)
    if dev:
        assert not dweights.x2h_weight[:5].any() and not dweights.h2h_weight[:5].any()
        assert not dweights.h2h_weight[10:15].any()


def test_recurrent_router_keeps_its_state_when_i_is_one() -> None:
    weights = router.GruWeights(
        np.zeros((6, 3)), np.array([0, 0, 50.0, 50.0, 0, 0]), np.zeros((6, 2)), np.zeros(6), np.eye(2), np.zeros(2)
    )
    logits, state, _ = router.gru_forward(np.ones((1, 3)), [[0.3, -0.7]], weights)
    assert np.allclose(state, [[0.3, -0.7]]) and np.array_equal(logits, state)


@pytest.mark.parametrize("temperature", [None, 0.2, 1.0])
def test_scores(rng: np.random.Generator, temperature: float | None) -> None:
    logits, dscores = rng.standard_normal((2, 6, 4))
    scores = router.scores_forward(logits, temperature)
    assert temperature is None or np.allclose(scores.sum(-1), 1.0)
    assert_operator_gradients(
        lambda v: (router.scores_forward(v["logits"], temperature) * dscores).sum(),
        {"logits": logits},
        {"logits": router.scores_backward(dscores, scores, temperature)},
    )


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 9])
def test_top_k(rng: np.random.Generator, top_k: int, renormalise: bool) -> None:
    scores = rng.random((6, 5)) + 0.1
    index, weight = router.top_k_forward(scores, top_k, renormalise)
    assert index.shape == weight.shape == (6, min(top_k, 5))
    if renormalise and top_k == 1:
        assert np.array_equal(weight, np.ones((6, 1)))
    dweight = rng.standard_normal(weight.shape)
    assert_operator_gradients(
        lambda v: (router.top_k_forward(v["scores"], top_k, renormalise)[1] * dweight).sum(),
        {"scores": scores},
        {"scores": router.top_k_backward(dweight, scores, index, weight, renormalise)},
    )


def test_top_k_order_and_ties() -> None:
    index, weight = router.top_k_forward([[1.0, 3.0, 3.0, -2.0, 1.0]], 4, False)
    assert index.tolist() == [[1, 2, 0, 4]] and weight.tolist() == [[3.0, 3.0, 1.0, 1.0]]


def test_straight_through_sign() -> None:
    assert router.sign_forward([-0.1, 0.0, 7.0]).tolist() == [-1.0, 0.0, 1.0]
    assert router.sign_backward(np.array([-3.0, 0.5, 1.5])).tolist() == [-1.0, 0.5, 1.0]


# ------------------------------------------------------------------ dispatch and combine
def test_routing_plan_sorts_by_module_then_token() -> None:
    plan = routing_plan.build([[2, 0], [3, 2], [0, 3], [9, 4]], num_modules=3)
    assert plan.offsets.tolist() == [0, 2, 2, 4]
    assert plan.token.tolist() == [0, 2, 0, 1]
    assert plan.choice.tolist() == [1, 0, 0, 1]
    assert plan.counts.tolist() == [2, 0, 2] and [m for m, _ in plan.modules()] == [0, 2]


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_routing_plan_may_be_empty(shape: tuple[int, int]) -> None:
    plan = routing_plan.build(np.zeros(shape, dtype=int), 4)
    assert plan.num_slots == 0 and plan.offsets.tolist() == [0] * 5


def _pool(rng: np.random.Generator) -> tuple[routing_plan.RoutingPlan, list[np.ndarray], list[np.ndarray]]:
    index = np.array([[0, 3], [2, 0], [3, 4], [2, 3], [0, 2]])
    return (
        routing_plan.build(index, 3),
        list(rng.standard_normal((3, 4, 6))),
        list(rng.standard_normal((3, 6))),
    )


def test_routed_linear(rng: np.random.Generator) -> None:
    plan, weight, bias = _pool(rng)
    values = {"inp": rng.standard_normal((5, 4)), "weight": np.array(weight), "bias": np.array(bias)}
    dout = rng.standard_normal((plan.num_slots, 6))

    def run(v):
        return routed_linear.forward(routed_linear.gather_forward(v["inp"], plan), v["weight"], v["bias"], plan)

    dslots, dweight, dbias = routed_linear.backward(
        dout, routed_linear.gather_forward(values["inp"], plan), weight, plan
    )
    assert not dweight[1].any() and not dbias[1].any()
    gradients = {
        "inp": routed_linear.gather_backward(dslots, plan),
        "weight": np.array(dweight),
        "bias": np.array(dbias),
    }
    assert_operator_gradients(lambda v: (run(v) * dout).sum(), values, gradients)


@pytest.mark.parametrize("scored", [False, True])
def test_routed_combine(rng: np.random.Generator, scored: bool) -> None:
    plan, weight, bias = _pool(rng)
    values = {"slots": rng.standard_normal((plan.num_slots, 4)), "weight": np.array(weight), "bias": np.array(bias)}
    values["score"] = rng.standard_normal((5, 2)) if scored else np.ones((5, 2))
    dout = rng.standard_normal((5, 6))
    score = values["score"] if scored else None
    out = routed_linear.combine_forward(values["slots"], weight, bias, score, plan)
    assert not out[2].any(), "a token that only skips gets nothing"
    slow = np.zeros((5, 6))
    for s in range(plan.num_slots):
        m = int(np.searchsorted(plan.offsets, s, side="right")) - 1
        n, k = plan.token[s], plan.choice[s]
        slow[n] += values["score"][n, k] * (values["slots"][s] @ weight[m] + bias[m])
    assert np.allclose(out, slow)
    dslots, dweight, dbias, dscore = routed_linear.combine_backward(dout, values["slots"], weight, bias, score, plan)
    gradients = {"slots": dslots, "weight": np.array(dweight), "bias": np.array(dbias), "score": dscore}
    assert_operator_gradients(lambda v: (routed_linear.combine_forward(**v, plan=plan) * dout).sum(), values, gradients)


# ------------------------------------------------------------------ balance loss
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_balance_loss(rng: np.random.Generator, softmax: bool, depthwise: bool, masked: bool, counted: bool) -> None:
    scores = router.scores_forward(rng.standard_normal((3, 6, 4)), 1.0)
    mask = np.array([1, 1, 0, 1, 0, 1]) if masked else None
    counts = rng.integers(0, 9, (3, 4) if depthwise else (4,)) if counted else None
    loss, saved = balance_loss.forward(scores, softmax, depthwise, mask, counts)
    real = np.flatnonzero(mask) if masked else np.arange(6)
    groups = [s[real] for s in scores] if depthwise else [scores[:, real].reshape(-1, 4)]
    slow = 0.0
    for i, group in enumerate(groups):
        p = np.exp(group) / np.exp(group).sum(-1, keepdims=True) if softmax else group
        hits = np.bincount(group.argmax(-1), minlength=4)
        if counted:
            hits = counts[i] if depthwise else counts
        slow += 4 * (hits / hits.sum() * p.mean(0)).sum() / len(groups)
    assert np.isclose(loss, slow)
    assert_operator_gradients(
        lambda v: 0.7 * balance_loss.forward(v["scores"], softmax, depthwise, mask, counts)[0],
        {"scores": scores},
        {"scores": balance_loss.backward(0.7, saved, softmax)},
        h=1e-5,
    )


def test_balance_loss_of_even_use_is_one() -> None:
    scores = 0.2 + 0.2 * np.eye(4)[None]
    assert np.isclose(balance_loss.forward(scores, softmax=False)[0], 1.0)
    assert balance_loss.forward(scores, softmax=False, mask=np.zeros(4))[0] == 0.0


# ------------------------------------------------------------------ optimizer
def test_decay_leaves_out_norms_and_biases() -> None:
    decayed = (
        "transformer.wte.weight",
        "transformer.h.1.mot_attn.router.x2h.weight",
        "score.weight",
        "transformer.h.0.mlp.c_fc.weight",
    )
    spared = ("transformer.ln_f.weight", "transformer.h.0.ln_1.weight", "transformer.h.0.ln_2.bias",
              "transformer.h.3.mot_ffn.ffn_layernorm.2.weight", "transformer.h.0.mot_attn.c_attn.1.bias")  # fmt: skip
    assert all(map(adamw.decays, decayed)) and not any(map(adamw.decays, spared))


def test_adamw_first_step_has_the_size_of_the_learning_rate() -> None:
    parameters = {"wte.weight": np.array([1.0, -2.0]), "ln_f.weight": np.array([1.0]), "idle": np.array([3.0])}
    gradients = {"wte.weight": np.array([5.0, -0.1]), "ln_f.weight": np.array([1e-3]), "idle": np.array([0.0])}
    optimizer = AdamW(lr=0.1, eps=1e-12, weight_decay=0.5)
    optimizer.step(parameters, gradients, unused={"idle"})
    assert np.allclose(parameters["wte.weight"], [0.95 - 0.1, -1.9 + 0.1])
    assert np.allclose(parameters["ln_f.weight"], [0.9])
    assert parameters["idle"] == [3.0] and "idle" not in optimizer.counts


def test_adamw_corrects_the_bias_by_the_tensors_own_steps() -> None:
    parameters = {"a": np.array([1.0]), "b": np.array([1.0])}
    gradients = {"a": np.array([2.0]), "b": np.array([2.0])}
    optimizer = AdamW(weight_decay=0.0)
    optimizer.step(parameters, gradients, unused={"b"})
    after_one = float(parameters["a"][0])
    optimizer.step(parameters, gradients)
    assert parameters["b"][0] == after_one and optimizer.counts == {"a": 2, "b": 1}


def test_clipping() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped, norm = grad_norm.clip(gradients, 1.0)
    assert norm == grad_norm.norm(gradients) == 5.0
    assert grad_norm.norm(clipped) == pytest.approx(5.0 / (5.0 + 1e-6))
    assert grad_norm.clip(gradients, 10.0)[0]["a"] == gradients["a"]
