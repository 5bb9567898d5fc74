"""The PyTorch yardsticks of the benchmarks compute what the published model computes.

A speed ratio means something only if both sides do the same work, so the yardsticks are held to
the recorded cases in float64, gradients included.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared_data import shared_path  # noqa: E402

torch = pytest.importorskip("torch", reason="the yardsticks need PyTorch")
load_file = pytest.importorskip("safetensors.numpy").load_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

ROUTED_CASES = [
    "all_paths_naive_softmax", "all_paths_ste_naive", "all_paths_weighted_gru", "anchor_chunks2_naive_softmax_top2",
    "depth1_naive_top1", "depth6_pool3_gru_softmax_top1", "depthwise_bal_gru_softmax_top1",
    "gru_softmax_t02_top2_depth4", "gru_top1_depth4", "grudev_softmax_top2", "grudev_top1", "ignore_index_batch1",
    "moe_num_attn1_top2", "naive_softmax_t02_top1", "naive_softmax_t02_top2", "naive_softmax_t02_top3", "naive_top1",
    "naive_top2", "no_pause_gru_top1", "no_pause_naive_softmax_top2", "num_ffn1_gru",
    "odd_size_pool5_naive_softmax_top2", "pad_left_depthwise_gru_top1", "pad_right_naive_softmax_top2",
    "pooled_bal_coef_half_naive_top1", "ste_large_grad_top2", "ste_naive_top1", "ste_weighted_qkv_gru_softmax_top2",
    "topk_over_modules_softmax", "unequal_attn2_ffn4_naive", "unequal_attn4_ffn2_gru", "weighted_qkv_gru_top1",
    "weighted_qkv_naive_softmax_top2",
]  # fmt: skip

# Loss and logits were stored in float64; gradients mostly as float32, hence rounded once.
VALUE_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-6


def _load(name: str) -> ModuleType:
    qualified = f"benchmarks_{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified]


def _config(folder: Path):
    return _load("bench_train_step").load_config_class().from_json(folder / "config.json")


def _relative_error(got, expected) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))


def _routed_model(folder: Path, fused: bool):
    model = _load("torch_mom").TorchMoM(_config(folder), fused=fused)
    model.load_parameters(load_file(folder / "model.safetensors"))
    return model.double()


def _inputs(folder: Path) -> dict:
    with np.load(folder / "inputs.npz") as values:
        return {name: torch.from_numpy(values[name]) for name in values.files}


@pytest.mark.parametrize("fused", [False, True], ids=["composed", "fused"])
@pytest.mark.parametrize("case", ROUTED_CASES)
def test_routed_model_matches_recorded_case(case: str, fused: bool) -> None:
    folder = shared_path("parity", case)
    model, inputs = _routed_model(folder, fused), _inputs(folder)
    mask = inputs.get("attention_mask")
    out = model(inputs["input_ids"], labels=inputs["labels"], attention_mask=mask)
    out.loss.backward()
    with np.load(folder / "expected_f64.npz") as expected:
        visible = np.ones(inputs["input_ids"].shape, bool) if mask is None else mask.numpy().astype(bool)
        assert _relative_error(out.logits.detach()[visible], expected["logits"][visible]) < VALUE_TOLERANCE
        assert _relative_error(out.lm_loss.detach(), expected["lm_loss"]) < VALUE_TOLERANCE
        assert _relative_error(out.loss.detach(), expected["total_loss"]) < VALUE_TOLERANCE
        assert (out.balance_loss is None) == ("aux_loss" not in expected.files)
        if out.balance_loss is not None:
            assert _relative_error(out.balance_loss.detach(), expected["aux_loss"]) < VALUE_TOLERANCE
        without_gradient = {name for name, value in model.named_parameters() if value.grad is None}
        recorded = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        # A module that no token reaches has no gradient at all, so AdamW leaves it alone.
        assert without_gradient == set(recorded["grad_none"])
        squares = [np.sum(expected[k].astype(np.float64) ** 2) for k in expected.files if k.startswith("grad/")]
        norm = np.sqrt(sum(squares))
        for name, value in model.named_parameters():
            if value.grad is not None:
                # Gradients that vanish analytically are compared on the scale of the whole gradient.
                want = expected[f"grad/{name}"].astype(np.float64)
                error = np.linalg.norm(value.grad.numpy() - want)
                assert error < GRADIENT_TOLERANCE * max(np.linalg.norm(want), 1e-6 * norm), name


@pytest.mark.parametrize("case", ["gru_softmax_t02_top2_depth4", "unequal_attn4_ffn2_gru"])
def test_routes_match_recorded_case(case: str) -> None:
    folder = shared_path("parity", case)
    model, inputs = _routed_model(folder, fused=False), _inputs(folder)
    with torch.no_grad():
        routes = model(inputs["input_ids"]).routes
    blocks = [place for place, kind in enumerate(model.config.places()) if kind == "block"]
    with np.load(folder / "expected_f64.npz") as expected:
        for half in ("attn", "ffn"):
            assert len(routes[half]) == len(blocks)
            for place, rounds in zip(blocks, routes[half], strict=True):
                for r, route in enumerate(rounds):
                    key = f"block{place}/round{r}/{half}"
                    index, weight = expected[f"topk_index/{key}"], expected[f"topk_weight/{key}"]
                    assert np.array_equal(route.index.view(index.shape), index)
                    assert _relative_error(route.weight.view(weight.shape), weight) < VALUE_TOLERANCE


def test_plain_gpt2_matches_recorded_case() -> None:
    folder = shared_path("parity", "vanilla_gpt2")
    model = _load("torch_nanogpt").TorchGPT(_config(folder))
    model.load_parameters(load_file(folder / "model.safetensors"))
    model, inputs = model.double(), _inputs(folder)
    labels = inputs["labels"]
    targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    logits, loss = model(inputs["input_ids"], targets)
    loss.backward()
    with np.load(folder / "expected_f64.npz") as expected:
        assert _relative_error(logits.detach(), expected["logits"]) < VALUE_TOLERANCE
        assert _relative_error(loss.detach(), expected["lm_loss"]) < VALUE_TOLERANCE
        gradients = model.gradients()
        assert {f"grad/{name}" for name in gradients} == {k for k in expected.files if k.startswith("grad/")}
        for name, value in gradients.items():
            assert _relative_error(value, expected[f"grad/{name}"]) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("router_type", ["naive-softmax", "gru-softmax"])
def test_counted_multiplications_are_those_that_run(router_type: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    bench = _load("bench_train_step")
    config = bench.load_config_class().preset("demo", router_type=router_type)
    batch, length = 3, 20
    tokens = torch.from_numpy(bench.random_batches(config.vocab_size, 1, batch, length, seed=1)[0]).long()
    with FlopCounterMode(display=False) as counter:
        routes = _load("torch_mom").TorchMoM(config)(tokens).routes
    chosen = {half: [route.index.numpy() for rounds in blocks for route in rounds] for half, blocks in routes.items()}
    counted = bench.multiplications(config, batch, length, chosen)
    by_operator = counter.get_flop_counts()["Global"]
    ran = sum(value for operator, value in by_operator.items() if operator is not torch.ops.aten.bmm)
    # PyTorch also multiplies the zero state of the first round and scores each sequence's last position.
    head = 2 * batch * config.n_embd * config.vocab_size
    zero_state = 0 if "naive" in router_type else 2 * 2 * batch * length * 3 * config.router_dim**2
    assert ran == sum(value for part, value in counted.items() if part != "attention") / 3 + head + zero_state
    # Of the full square of attention that PyTorch computes, at most the lower triangle is needed.
    assert 0 < counted["attention"] / 3 <= by_operator[torch.ops.aten.bmm] * (length + 1) / (2 * length)


def test_initial_values_agree_between_workers() -> None:
    bench = _load("bench_train_step")
    config = bench.load_config_class().preset("demo")
    name, shape = "transformer.h.1.mot_ffn.c_fc.2.weight", (config.n_embd, config.inner_size)
    first, again = (bench.initial_value(name, shape, config, seed=3) for _ in range(2))
    assert first.dtype == np.float32 and np.array_equal(first, again)
    assert not np.array_equal(first, bench.initial_value(name.replace("2", "3"), shape, config, seed=3))
    assert abs(first.std() - config.initializer_range) < 1e-3


def test_missing_implementation_is_reported_not_raised(tmp_path: Path) -> None:
    bench = _load("bench_train_step")
    request = {"implementation": "mom", "config": "mini", "threads": 1, "seed": 0, "warmup": 0, "steps": 1}
    answer = bench.ask(str(tmp_path / "no-such-python"), request, timeout=60.0)
    assert list(answer) == ["unavailable"] and "no-such-python" in answer["unavailable"]
