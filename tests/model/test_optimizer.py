"""AdamW and clipping of whole models against the float64 twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from twin import Case, Comparison, norm

import mom
from mom import reference


def model_and_twin(case: Case) -> tuple[Any, reference.Model, Comparison]:
    comparison = Comparison(case)
    return comparison.new_model(), reference.Model(comparison.config, comparison.values), comparison


def write_gradients(model: Any, gradients: dict[str, np.ndarray]) -> None:
    for name, gradient in gradients.items():
        model.gradients[name] = gradient
        model.mark_gradient(name)


CASES = {
    "modules without tokens": Case({"num_attn": 6, "num_ffn": 6, "routing_top_k": 1}, batch=1, steps=3, seed=4),
    "several choices": Case({"router_type": "naive"}),
    "plain": Case({"chunks": 0}),
    "classifier": Case({"num_labels": 3}, mask="left"),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_follow_the_twin(name: str, kernel_level: str) -> None:
    model, twin, comparison = model_and_twin(CASES[name])
    optimizer = mom.AdamW(model, lr=1e-3, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    other = reference.AdamW(lr=1e-3, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.3)
    fixed = comparison.batches[0]
    skipped = set()
    for step in range(6):
        # The batch changes, so that a module has tokens in one step and none in another.
        call = {**fixed, "tokens": (fixed["tokens"] + step) % comparison.config.vocab_size}
        optimizer.lr = other.lr = 1e-3 * (step + 1)
        model.zero_grad()
        out, want = model(**call), twin(**call)
        assert out.loss == pytest.approx(want.loss, rel=2e-4)
        model.backward()
        gradients = twin.backward(balance_scale=None if comparison.config.num_labels is None else 0.0)
        assert {n for n, has in model.has_gradient.items() if not has} == gradients.unused
        skipped |= gradients.unused
        clipped, total = reference.grad_norm.clip(gradients, 0.5)
        assert mom.clip_grad_norm(model, 0.5) == pytest.approx(total, rel=1e-3)
        optimizer.step()
        other.step(twin.parameters, clipped, gradients.unused)
    for n, value in twin.parameters.items():
        moved = norm(value - comparison.values[n])
        assert norm(model.parameters[n] - value) <= 1e-2 * moved + 1e-6, n
        assert optimizer.state["steps"][list(twin.parameters).index(n)] == other.counts.get(n, 0)
    if name == "modules without tokens":
        assert skipped and any(0 < count < 6 for count in other.counts.values())


def test_one_step_from_given_gradients_exactly(rng: np.random.Generator) -> None:
    """Hand-written gradients separate the optimizer's arithmetic from the network's rounding."""
    model, twin, _ = model_and_twin(Case({}))
    optimizer, other = mom.AdamW(model, lr=0.02), reference.AdamW(lr=0.02)
    for step in range(4):
        used = {n: bool(rng.random() < 0.7) for n in model.parameters}
        gradients = {n: rng.standard_normal(a.shape) * 10.0 ** rng.integers(-3, 2) for n, a in model.parameters.items()}
        for n, gradient in gradients.items():
            model.gradients[n] = gradient
            model.mark_gradient(n, used[n])
        optimizer.step()
        other.step(twin.parameters, gradients, {n for n, u in used.items() if not u})
        for i, (n, value) in enumerate(twin.parameters.items()):
            assert np.allclose(model.parameters[n], value, rtol=2e-6, atol=2e-6), (step, n)
            assert optimizer.state["steps"][i] == other.counts.get(n, 0)


def test_weight_decay_spares_norms_and_biases() -> None:
    model, _, _ = model_and_twin(Case({"num_bottom_layers": 1}))
    before = {n: a.copy() for n, a in model.parameters.items()}
    for n in before:
        model.gradients[n] = np.zeros(before[n].shape)
        model.mark_gradient(n)
    mom.AdamW(model, lr=0.1, weight_decay=0.5).step()
    for n, value in before.items():
        factor = 0.95 if reference.adamw.decays(n) else 1.0
        assert np.allclose(model.parameters[n], factor * value, rtol=1e-6, atol=0), n
    undecayed = {
        n.rsplit(".", 1)[0].split(".")[-1] for n in before if not reference.adamw.decays(n) and "bias" not in n
    }
    assert undecayed <= {"ln_1", "ln_2", "ln_f", "attention_layernorm", "ffn_layernorm", "0", "1", "2"}


def test_without_gradients_nothing_happens() -> None:
    model, _, _ = model_and_twin(Case({}))
    before = {n: a.copy() for n, a in model.parameters.items()}
    optimizer = mom.AdamW(model)
    optimizer.step()
    assert optimizer.step(1.0, zero_grad=True) == 0.0
    assert mom.clip_grad_norm(model, 1.0) == 0.0
    assert all(np.array_equal(a, before[n]) for n, a in model.parameters.items())
    assert not optimizer.state["steps"].any()


def test_state_moves_to_another_optimizer() -> None:
    model, _, comparison = model_and_twin(Case({}))
    twin_model = comparison.new_model()
    first, second = mom.AdamW(model), mom.AdamW(twin_model)
    call = comparison.batches[0]
    for m, o in ((model, first), (twin_model, second)):
        m(**call)
        m.backward()
        o.step()
    third = mom.AdamW(twin_model)
    third.load_state({n: a.copy() for n, a in second.state.items()})
    first.step()
    third.step()
    assert all(np.array_equal(a, twin_model.parameters[n]) for n, a in model.parameters.items())


def test_state_that_does_not_fit_changes_nothing() -> None:
    model, _, comparison = model_and_twin(Case({}))
    model(**comparison.batches[0])
    model.backward()
    optimizer = mom.AdamW(model)
    optimizer.step()
    good = {n: a.copy() for n, a in optimizer.state.items()}
    last = list(good)[-1]
    zeros = {n: np.zeros_like(a) for n, a in good.items()}
    for bad, message in (
        ({n: a for n, a in zeros.items() if n != last}, "is missing"),
        ({**zeros, last: np.zeros(3, np.float32)}, r"has shape \(3,\)"),
        ({**zeros, last: np.full(good[last].shape, "x")}, "has dtype"),
    ):
        with pytest.raises(ValueError, match=f"state: '{last}' {message}"):
            optimizer.load_state(bad)
        assert all(np.array_equal(a, good[n]) for n, a in optimizer.state.items())
    with pytest.raises(TypeError, match="state: expected a mapping of names to arrays, got list"):
        optimizer.load_state([*zeros])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- clipping, step and zeroing in one
def trained_pair(case: Case, max_norm: float, threads: tuple[int, int]) -> tuple[Any, Any]:
    """Two models after the same steps: by separate calls and by the one that does it all."""
    models = []
    for fused, n in zip((False, True), threads, strict=True):
        mom.set_num_threads(n)
        model, _, comparison = model_and_twin(case)
        optimizer = mom.AdamW(model, lr=1e-2, weight_decay=0.3)
        norms = []
        for step in range(4):
            call = comparison.batches[0]
            model(**{**call, "tokens": (call["tokens"] + step) % comparison.config.vocab_size})
            model.backward()
            model.gradients["transformer.wte.weight"][0] += 0.1  # and something that the views have changed
            if fused:
                norms.append(optimizer.step(max_norm, zero_grad=True))
            else:
                norms.append(mom.clip_grad_norm(model, max_norm))
                optimizer.step()
                model.zero_grad()
            assert not any(model.has_gradient.values())
            assert not any(g.any() for g in model.gradients.values())
        models.append((model, optimizer, norms))
    return models[0], models[1]


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6, float("inf")])
@pytest.mark.parametrize("name", CASES)
def test_fused_step_gives_the_bits_of_separate_calls(name: str, max_norm: float, kernel_level: str) -> None:
    separate, fused = trained_pair(CASES[name], max_norm, (1, 3))
    assert separate[2] == fused[2]
    for n, value in separate[0].parameters.items():
        assert np.array_equal(value, fused[0].parameters[n]), n
    for n, value in separate[1].state.items():
        assert np.array_equal(value, fused[1].state[n]), n


def test_fused_clipping_leaves_gradients_unless_told_to_zero_them(rng: np.random.Generator) -> None:
    model, _, _ = model_and_twin(Case({}))
    unused = "transformer.wpe.weight"
    gradients = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in model.parameters.items()}
    write_gradients(model, gradients)
    model.mark_gradient(unused, False)
    before = model.parameters[unused].copy()
    optimizer = mom.AdamW(model)
    assert optimizer.step() is None
    norm = optimizer.step(0.5)
    assert norm == mom.clip_grad_norm(model, float("inf"))
    assert all(np.array_equal(model.gradients[n], g) for n, g in gradients.items())
    optimizer.step(zero_grad=True)
    assert not any(g.any() for g in model.gradients.values()) and not any(model.has_gradient.values())
    assert np.array_equal(model.parameters[unused], before)


def test_step_longer_than_a_chunk_is_zeroed_to_the_last_element() -> None:
    """Tensors of several chunks (16384 elements) and blocks, of odd sizes."""
    model = mom.MoM(mom.MoMConfig.preset("mini-vanilla", vocab_size=331, n_embd=72, n_head=2), seed=1)
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        for n, gradient in model.gradients.items():
            gradient[...] = 1.0
            model.mark_gradient(n)
        before = {n: a.copy() for n, a in model.parameters.items()}
        mom.AdamW(model, lr=1e-3, weight_decay=0.0).step(1.0, zero_grad=True)
        for n, value in model.parameters.items():
            assert (value < before[n]).all() and not model.gradients[n].any(), n


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("zero_grad", [False, True])
def test_fused_step_changes_nothing_when_the_norm_is_not_finite(value: float, zero_grad: bool) -> None:
    model, _, _ = model_and_twin(Case({}))
    optimizer = mom.AdamW(model)
    write_gradients(model, {n: np.full(a.shape, 3.0) for n, a in model.parameters.items()})
    optimizer.step()
    model.gradients["transformer.ln_f.bias"][1] = value
    watched = {**model.parameters, **{f"d{n}": g for n, g in model.gradients.items()}, **optimizer.state}
    before = {n: a.copy() for n, a in watched.items()}
    assert not np.isfinite(optimizer.step(1.0, zero_grad=zero_grad))
    assert all(np.array_equal(a, before[n], equal_nan=True) for n, a in watched.items())
    assert all(model.has_gradient.values())


# ---------------------------------------------------------------------- clipping
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6, float("inf")])
def test_clipping_follows_the_twin(max_norm: float, rng: np.random.Generator) -> None:
    model, _, _ = model_and_twin(Case({}))
    gradients = {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in model.parameters.items()}
    write_gradients(model, gradients)
    model.gradients["transformer.wpe.weight"] = np.full(model.gradients["transformer.wpe.weight"].shape, np.nan)
    model.mark_gradient("transformer.wpe.weight", False)
    del gradients["transformer.wpe.weight"]
    want, total = reference.grad_norm.clip({n: g.astype(np.float64) for n, g in gradients.items()}, max_norm)
    assert mom.clip_grad_norm(model, max_norm) == pytest.approx(total, rel=1e-6)
    for n, gradient in want.items():
        assert np.allclose(model.gradients[n], gradient, rtol=1e-6, atol=0)
    if max_norm > 1e5:
        assert all(np.array_equal(model.gradients[n], g) for n, g in gradients.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_not_finite_are_left_alone(value: float) -> None:
    model, _, _ = model_and_twin(Case({}))
    write_gradients(model, {n: np.full(a.shape, 3.0) for n, a in model.parameters.items()})
    model.gradients["transformer.ln_f.bias"][1] = value
    before = {n: g.copy() for n, g in model.gradients.items()}
    assert not np.isfinite(mom.clip_grad_norm(model, 1.0))
    assert all(np.array_equal(g, before[n], equal_nan=True) for n, g in model.gradients.items())


def test_norm_of_huge_and_tiny_gradients() -> None:
    model, _, _ = model_and_twin(Case({}))
    for scale in (1e30, 1e-30):
        write_gradients(model, {n: np.full(a.shape, scale) for n, a in model.parameters.items()})
        assert mom.clip_grad_norm(model, float("inf")) == pytest.approx(scale * np.sqrt(model.num_parameters), rel=1e-5)
    assert mom.clip_grad_norm(model, 1e-25) <= 1e-25


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr: -1.0 is not a non-negative finite number"),
        ({"lr": float("nan")}, ValueError, "lr: nan"),
        ({"lr": "fast"}, TypeError, "lr: expected a number, got str"),
        ({"betas": (0.9,)}, ValueError, "betas"),
        ({"betas": 0.9}, ValueError, "betas"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"betas": (-0.1, 0.9)}, ValueError, "betas"),
        ({"betas": (0.9, 1.0 - 1e-9)}, ValueError, "betas: .* type float32"),
        ({"eps": 0.0}, ValueError, "eps: 0.0"),
        ({"eps": 1e-40}, ValueError, "eps: 1e-40 is not a positive finite number of type float32"),
        ({"eps": float("inf")}, ValueError, "eps: inf"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: -0.1"),
    ],
)
def test_bad_settings(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, _, _ = model_and_twin(Case({}))
    with pytest.raises(error, match=message):
        mom.AdamW(model, **options)


def test_bad_arguments_of_steps_and_clipping() -> None:
    model, _, _ = model_and_twin(Case({}))
    with pytest.raises(TypeError, match="model: expected a mom model, got str"):
        mom.AdamW("model")  # type: ignore[arg-type]
    optimizer = mom.AdamW(model)
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="lr: nan"):
        optimizer.step()
    optimizer.lr = 0.1
    for value, error in ((0.0, ValueError), (-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)):
        with pytest.raises(error, match="max_norm"):
            mom.clip_grad_norm(model, value)  # type: ignore[arg-type]
        with pytest.raises(error, match="max_norm"):
            optimizer.step(value)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="model: expected a mom model"):
        mom.clip_grad_norm(None, 1.0)  # type: ignore[arg-type]


def test_schedules() -> None:
    cosine, linear = mom.training.cosine_schedule(10, 110), mom.training.linear_schedule(10, 110, final=0.1)
    assert [cosine(s) for s in (0, 5, 10, 60, 110, 1000)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert [linear(s) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])
    assert mom.training.cosine_schedule(0, 1)(0) == 1.0 and mom.training.linear_schedule(5, 5)(5) in (0.0, 1.0)
    for bad in ((-1, 5, 0.0), (0, 0, 0.0), (6, 5, 0.0), (0, 5, 1.5)):
        with pytest.raises(ValueError, match="warmup|final"):
            mom.training.cosine_schedule(*bad)


# ---------------------------------------------------------------------- gradients that no caller has looked at
def trained(config: mom.MoMConfig, shown: bool, separate: bool, threads: int) -> tuple[Any, Any, list[float]]:
    """A model after steps of one and of two micro-batches; `shown`: views exist from the beginning."""
    mom.set_num_threads(threads)
    classifier = config.num_labels is not None
    model = (mom.MoMForSequenceClassification if classifier else mom.MoM)(config, seed=1)
    optimizer = mom.AdamW(model, lr=1e-2, weight_decay=0.3)
    norms = []
    if shown:
        assert not any(g.any() for g in model.gradients.values())
        assert not any(m.any() for m in optimizer.state.values())
    rng = np.random.default_rng(0)
    for step in range(6):
        for _ in range(1 + step % 2):
            tokens = rng.integers(0, 40 + 20 * step, (3, 10))
            model(tokens, labels=np.arange(3) % 2 if classifier else tokens, attention_mask=np.ones((3, 10), int))
            model.backward()
        if step == 3:
            model.mark_gradient("transformer.wte.weight", False)
        if step == 4:  # of modules that no token has reached, too
            for name in model.parameters:
                model.mark_gradient(name, True)
        if separate:
            norms.append(mom.clip_grad_norm(model, 0.5))
            optimizer.step()
            model.zero_grad()
        else:
            norms.append(optimizer.step(0.5, zero_grad=True))
    return model, optimizer, norms


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("width", [24, 128])  # 128: gradients are mapped apart from the heap
@pytest.mark.parametrize("kind", ["classifier", "language model", "plain classifier"])
def test_looking_at_gradients_and_moments_changes_no_bit(kind: str, width: int, separate: bool) -> None:
    config = mom.MoMConfig(
        vocab_size=4000, n_positions=32, n_embd=width, n_head=2, chunks=1, num_attn=3, num_ffn=4, depth_per_chunk=2,
        num_bottom_layers=1, require_anchor_layer=True, router_type="gru-softmax", router_dim=8, routing_top_k=1,
        num_labels=None if kind == "language model" else 2,
    )  # fmt: skip
    if kind == "plain classifier":
        config = config.replace(chunks=0, n_layer=3)
    model, optimizer, norms = trained(config, True, False, 1)
    other, other_optimizer, other_norms = trained(config, False, separate, 2)
    assert norms == other_norms
    assert not any(g.any() for g in other.gradients.values()), "the first look finds zeros"
    for name, value in model.parameters.items():
        assert np.array_equal(value, other.parameters[name]), name
    for name, value in optimizer.state.items():
        assert np.array_equal(value, other_optimizer.state[name]), name
    rows = model.parameters["transformer.wte.weight"].shape[0]
    if kind != "language model":
        never = ~optimizer.state["exp_avg_sq.transformer.wte.weight"].any(axis=1)
        assert rows // 2 < never.sum() < rows - 40, "some rows have had gradients, most have not"


def test_first_look_finds_the_gradients_of_backward() -> None:
    config = mom.MoMConfig.preset("demo", vocab_size=300, n_positions=16)
    tokens = np.arange(32).reshape(2, 16)
    models = [mom.MoM(config, seed=0) for _ in range(2)]
    assert not any(g.any() for g in models[0].gradients.values())
    for batch in (tokens, tokens[:1, :2]):
        for model in models:
            model.zero_grad()
            model(batch, labels=batch)
            model.backward()
    assert any(not has for has in models[0].has_gradient.values()), "a module that no token reached"
    for name, gradient in models[0].gradients.items():
        assert np.array_equal(gradient, models[1].gradients[name]), name
        assert models[0].has_gradient[name] or not gradient.any(), name


def test_moments_written_by_hand_count_in_rows_without_gradients() -> None:
    model = mom.MoMForSequenceClassification(mom.MoMConfig.preset("demo", vocab_size=300, num_labels=2), seed=0)
    optimizer = mom.AdamW(model, lr=1e-2, weight_decay=0.0)
    moments = optimizer.state["exp_avg.transformer.wte.weight"]
    table = model.parameters["transformer.wte.weight"]
    before = table.copy()
    moments[299] = 1.0
    model(np.arange(8)[None], labels=[1])
    model.backward()
    optimizer.step()
    assert np.all(table[299] < before[299]) and np.all(table[:8] != before[:8])
    assert np.array_equal(table[8:299], before[8:299])
    np.testing.assert_allclose(moments[299], 0.9, rtol=1e-6)


def test_a_gradient_marked_before_there_is_any_is_zero() -> None:
    changed = []
    for look in (False, True):
        model = Comparison(CASES["plain"]).new_model()
        optimizer = mom.AdamW(model, lr=0.1, weight_decay=0.5)
        if look:
            assert not model.gradients["transformer.wte.weight"].any()
        before = model.parameters["transformer.wte.weight"].copy()
        model.mark_gradient("transformer.wte.weight")
        optimizer.step()
        changed.append(model.parameters["transformer.wte.weight"].copy())
        assert np.allclose(changed[-1], before * 0.95)
    assert np.array_equal(*changed)
