"""The C model against the recorded runs of the published reference.

Errors are norms of differences over norms of what is expected, against the float64 recording: at most 1e-5 for
outputs and 1e-4 for every gradient tensor, or ten times the reference's own float32 error where that is larger.
"""

from __future__ import annotations

import numpy as np
import pytest

import mom
from parity_cases import Case, case_names, load_case
from route_entries import entry as entry_of

OUTPUT, GRADIENT = 1e-5, 1e-4


def relative_error(have, want) -> float:
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    assert have.shape == want.shape
    return float(np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30))


def build(case: Case) -> mom.MoM | mom.MoMForSequenceClassification:
    kind = mom.MoMForSequenceClassification if case.kind == "seqcls" else mom.MoM
    model = kind(case.config)
    model.load_state(case.parameters, case.name)
    return model


def output_tolerance(case: Case) -> float:
    return max(OUTPUT, 10 * case.meta.get("fp32_vs_f64", {}).get("logits_rel", 0.0))


def check_gradients(case: Case, model) -> float:
    expected = case.expected_gradients()
    own = case.meta.get("fp32_grad_rel_per_tensor", {})
    assert {n for n, has in model.has_gradient.items() if not has} == set(case.meta.get("grad_none", []))
    worst = 0.0
    for name, want in expected.items():
        error = relative_error(model.gradients[name], want)
        tolerance = max(GRADIENT, 10 * own.get(name, 0.0))
        assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.2e}"
        if tolerance == GRADIENT:
            worst = max(worst, error)
    return worst


def check_routes(case: Case, out, real) -> None:
    """Choices exactly, scores and kept weights within the output tolerance, at the real tokens."""
    blocks = [i for i, kind in enumerate(case.config.places()) if kind == "block"]
    checked = 0
    for half in ("attn", "ffn"):
        for b, place in enumerate(blocks):
            for r in range(case.config.rounds):
                key, entry = f"block{place}/round{r}/{half}", entry_of(out.routes, half, b, r)
                assert (entry is None) == (f"score/{key}" not in case.expected)
                if entry is None:
                    continue
                assert relative_error(entry["scores"][real], case.expected[f"score/{key}"][real]) <= OUTPUT, key
                assert np.array_equal(entry["index"][real], case.expected[f"topk_index/{key}"][real]), key
                if f"topk_weight/{key}" in case.expected:
                    assert relative_error(entry["weight"][real], case.expected[f"topk_weight/{key}"][real]) <= OUTPUT
                checked += 1
    assert checked or case.config.is_vanilla or not blocks


def check_language_model(case: Case, model) -> None:
    mask = case.inputs.get("attention_mask")
    real = np.ones(case.inputs["input_ids"].shape, bool) if mask is None else mask != 0
    out = model(
        case.inputs["input_ids"], case.inputs.get("labels"), mask, return_logits=True, return_routes=True
    )
    assert relative_error(out.logits[real], case.expected["logits"][real]) <= output_tolerance(case)
    if "lm_loss" in case.expected:
        assert out.lm_loss == pytest.approx(float(case.expected["lm_loss"]), rel=OUTPUT)
    if "aux_loss" in case.expected:
        assert out.balance_loss == pytest.approx(float(case.expected["aux_loss"]), rel=OUTPUT)
    else:
        assert out.balance_loss is None
    if "total_loss" in case.expected:
        assert out.loss == pytest.approx(float(case.expected["total_loss"]), rel=OUTPUT)
    check_routes(case, out, real)
    if case.expected_gradients():
        model.backward()
        check_gradients(case, model)


@pytest.mark.parametrize("name", case_names("lm", "vanilla"))
def test_language_model_case(name: str, kernel_level: str) -> None:
    case = load_case(name)
    check_language_model(case, build(case))


@pytest.mark.parametrize("name", case_names("seqcls"))
def test_classification_case(name: str, kernel_level: str) -> None:
    case = load_case(name)
    model = build(case)
    out = model(case.inputs["input_ids"], case.inputs["labels"], case.inputs.get("attention_mask"), return_routes=True)
    assert relative_error(out.logits, case.expected["logits"]) <= output_tolerance(case)
    assert out.loss == pytest.approx(float(case.expected["loss"]), rel=OUTPUT)
    check_routes(case, out, np.ones(case.inputs["input_ids"].shape, bool))
    model.backward()
    check_gradients(case, model)


@pytest.mark.parametrize("name", case_names("train_trace", "vanilla_train_trace"))
def test_training_trace(name: str, kernel_level: str) -> None:
    case = load_case(name)
    model = build(case)
    settings = case.meta["optimizer"]
    optimizer = mom.AdamW(
        model, lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )  # fmt: skip
    unused = case.meta.get("params_without_grad_per_step")
    labels = case.inputs.get("labels", case.inputs["input_ids"])
    for step, ids in enumerate(case.inputs["input_ids"]):
        out = model(ids, labels=labels[step])
        assert out.lm_loss == pytest.approx(float(case.expected["lm_loss"][step]), rel=OUTPUT)
        if "aux_loss" in case.expected:
            assert out.balance_loss == pytest.approx(float(case.expected["aux_loss"][step]), rel=OUTPUT)
        model.zero_grad()
        model.backward()
        if unused is not None:
            assert {n for n, has in model.has_gradient.items() if not has} == set(unused[step])
        norm = mom.clip_grad_norm(model, settings["clip_grad_norm"])
        assert norm == pytest.approx(float(case.expected["grad_norm"][step]), rel=GRADIENT)
        optimizer.step()
    for name, value in model.parameters.items():
        assert relative_error(value, case.expected[f"final/{name}"]) <= OUTPUT, name


@pytest.mark.parametrize("name", case_names("vanilla_generate", "mom_generate"))
def test_generation_case(name: str, kernel_level: str) -> None:
    case = load_case(name)
    model = build(case)
    tokens = case.expected32["tokens"]
    new = case.expected32["new_tokens"].shape[1]
    prompt = tokens[:, : tokens.shape[1] - new]
    assert np.array_equal(model.generate(prompt, max_new_tokens=new), tokens)
    out = model(tokens, return_logits=True)
    assert relative_error(out.logits, case.expected["logits_full"]) <= output_tolerance(case)


@pytest.mark.parametrize("name", case_names("init_from_vanilla"))
def test_start_from_vanilla_case(name: str, kernel_level: str) -> None:
    case = load_case(name)
    vanilla = mom.MoM(case.vanilla_config)
    vanilla.load_state(case.vanilla, name)
    model = mom.MoM.from_vanilla(vanilla, case.config)
    copied = case.meta["copied"]
    for target, source in copied.items():
        assert np.array_equal(model.parameters[target], vanilla.parameters[source]), target
    for target, value in case.parameters.items():
        model.parameters[target] = value
    assert set(copied) | set(case.parameters) == set(model.parameters)
    check_language_model(case, model)
