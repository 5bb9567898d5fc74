"""The float64 twin against the recorded runs of the published reference."""

from __future__ import annotations

import numpy as np
import pytest

from mom.reference import AdamW, Model, adamw, grad_norm, init_from_vanilla, parameter_shapes
from parity_cases import Case, case_names, load_case

CLOSE = 1e-9  # of values stored in float64
ROUNDED = 1e-6  # of values stored in float32


def relative_error(have: np.ndarray, want: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected."""
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    assert have.shape == want.shape
    return float(np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30))


def tolerance(want: np.ndarray) -> float:
    return CLOSE if want.dtype == np.float64 else ROUNDED


def assert_gradients(case: Case, gradients: dict[str, np.ndarray]) -> None:
    expected = case.expected_gradients()
    total = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in expected.values()))
    assert set(expected) == set(gradients) - gradients.unused
    for name, want in expected.items():
        # Gradients that are zero in exact arithmetic are recorded as rounding noise: compare them with the whole.
        error = np.linalg.norm(gradients[name] - want) / max(np.linalg.norm(want), 1e-7 * total)
        assert error < tolerance(want), f"{name}: relative error {error:.1e}"


def check_trace(case: Case, out, real: np.ndarray) -> int:
    """Compare every recorded intermediate value at the real tokens; returns how many were compared."""
    compared = 0
    for name, want in case.expected.items():
        if name.split("/")[0] in ("grad", "logits", "lm_loss", "aux_loss", "total_loss", "loss"):
            continue
        if name.startswith("topk_index/"):
            assert np.array_equal(out.trace[name][real], want[real]), name
        else:
            assert relative_error(out.trace[name][real], want[real]) < tolerance(want), name
        compared += 1
    return compared


@pytest.mark.parametrize("name", case_names("lm"))
def test_language_model_case(name: str) -> None:
    case = load_case(name)
    model = Model(case.config, case.parameters)
    out = model(**case.call_inputs)
    mask = case.inputs.get("attention_mask", np.ones_like(case.inputs["input_ids"]))
    real = mask != 0
    assert relative_error(out.logits[real], case.expected["logits"][real]) < CLOSE
    assert out.lm_loss == pytest.approx(float(case.expected["lm_loss"]), rel=CLOSE)
    assert out.loss == pytest.approx(float(case.expected["total_loss"]), rel=CLOSE)
    if "aux_loss" in case.expected:
        assert out.balance_loss == pytest.approx(float(case.expected["aux_loss"]), rel=CLOSE)
    else:
        assert out.balance_loss is None
    assert check_trace(case, out, real) > 4
    gradients = model.backward()
    assert gradients.unused == set(case.meta["grad_none"])
    assert_gradients(case, gradients)


def test_masked_queries_of_the_reference_look_ahead() -> None:
    """The recorded rows of left padding, real and masked, in the reference's way; only masked rows depend on it."""
    case = load_case("pad_left_depthwise_gru_top1")
    as_reference = Model(case.config, case.parameters)(**case.call_inputs)
    assert relative_error(as_reference.logits, case.expected["logits"]) < CLOSE
    causal = Model(case.config.replace(masked_query_attention="causal"), case.parameters)(**case.call_inputs)
    real = case.inputs["attention_mask"] != 0
    # Not to the bit: a BLAS may round a row of a product otherwise when other rows differ.
    assert relative_error(causal.logits[real], as_reference.logits[real]) < 1e-13
    assert causal.loss == pytest.approx(as_reference.loss, rel=1e-13)
    assert not np.allclose(causal.logits[~real], as_reference.logits[~real])


@pytest.mark.parametrize("name", case_names("seqcls"))
def test_sequence_classification_case(name: str) -> None:
    case = load_case(name)
    model = Model(case.config, case.parameters)
    out = model(**case.call_inputs)
    assert relative_error(out.logits, case.expected["logits"]) < CLOSE
    assert out.loss == pytest.approx(float(case.expected["loss"]), rel=CLOSE)
    assert out.balance_loss is None
    # Hidden values of masked queries do not reach the result and are compared at real tokens only.
    assert check_trace(case, out, case.inputs["attention_mask"] != 0) > 4
    gradients = model.backward()
    assert gradients.unused == set(case.meta["grad_none"])
    assert_gradients(case, gradients)


@pytest.mark.parametrize("name", case_names("vanilla"))
def test_plain_gpt2_case(name: str) -> None:
    case = load_case(name)
    model = Model(case.config, case.parameters)
    out = model(**case.call_inputs)
    layers = case.config.n_layer
    hidden = ["hidden/embed", *(f"hidden/block{i}" for i in range(layers - 1)), "hidden/ln_f"]
    for i, key in enumerate(hidden):
        assert relative_error(out.trace[key], case.expected[f"hidden/{i}"]) < ROUNDED
    assert relative_error(out.logits, case.expected["logits"]) < CLOSE
    assert out.loss == out.lm_loss == pytest.approx(float(case.expected["lm_loss"]), rel=CLOSE)
    gradients = model.backward()
    assert not gradients.unused
    assert_gradients(case, gradients)


@pytest.mark.parametrize("name", case_names("vanilla_generate", "mom_generate"))
def test_greedy_generation_case(name: str) -> None:
    case = load_case(name)
    model = Model(case.config, case.parameters)
    new = case.expected32["new_tokens"].shape[1]
    tokens = model.generate_greedy(case.inputs["input_ids"], new)
    assert np.array_equal(tokens, case.expected32["tokens"])
    assert relative_error(model(tokens).logits, case.expected["logits_full"]) < CLOSE


@pytest.mark.parametrize("name", case_names("init_from_vanilla"))
def test_start_from_plain_gpt2_case(name: str) -> None:
    case = load_case(name)
    parameters = init_from_vanilla(case.config, case.vanilla, case.parameters)
    for target, source in case.meta["copied"].items():
        assert np.array_equal(parameters[target], case.vanilla[source])
    out = Model(case.config, parameters)(**case.call_inputs)
    assert relative_error(out.logits, case.expected["logits"]) < CLOSE
    assert out.loss == pytest.approx(float(case.expected["total_loss"]), rel=CLOSE)


@pytest.mark.parametrize("name", case_names("train_trace", "vanilla_train_trace"))
def test_training_case(name: str) -> None:
    """Five steps of clipping and AdamW; unused parameters are left alone in their step."""
    case = load_case(name)
    settings = case.meta["optimizer"]
    optimizer = AdamW(settings["lr"], tuple(settings["betas"]), settings["eps"], settings["weight_decay"])
    model = Model(case.config, case.parameters)
    if "decayed" in settings:
        assert {n for n in model.parameters if adamw.decays(n)} == set(settings["decayed"])
    for t, tokens in enumerate(case.inputs["input_ids"]):
        out = model(tokens, labels=case.inputs["labels"][t])
        gradients = model.backward()
        clipped, norm = grad_norm.clip(gradients, settings["clip_grad_norm"])
        assert out.lm_loss == pytest.approx(case.expected["lm_loss"][t], rel=1e-8)
        if "aux_loss" in case.expected:
            assert out.balance_loss == pytest.approx(case.expected["aux_loss"][t], rel=1e-8)
        assert norm == pytest.approx(case.expected["grad_norm"][t], rel=1e-8)
        if "params_without_grad_per_step" in case.meta:
            assert gradients.unused == set(case.meta["params_without_grad_per_step"][t])
        optimizer.step(model.parameters, clipped, gradients.unused)
    for parameter, value in model.parameters.items():
        want = case.expected[f"final/{parameter}"]
        assert relative_error(value, want) < tolerance(want), parameter


@pytest.mark.parametrize("name", case_names())
def test_parameter_names_and_shapes_are_those_recorded(name: str) -> None:
    case = load_case(name)
    if case.vanilla is not None:
        assert parameter_shapes(case.vanilla_config) == {
            k: case.vanilla[k].shape for k in parameter_shapes(case.vanilla_config)
        }
        return
    shapes = parameter_shapes(case.config)
    assert {k: v.shape for k, v in case.parameters.items()} == shapes
    recorded = [k for k in case.expected_gradients()]
    assert recorded == [k for k in shapes if k in recorded]
