"""Results have the same bits for any number of threads, at every instruction-set level."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import mom
from route_entries import entries

LARGE: dict[str, Any] = {
    "vocab_size": 331, "n_positions": 64, "n_embd": 96, "n_head": 4, "chunks": 1, "num_attn": 4, "num_ffn": 4,
    "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 0, "require_anchor_layer": False, "router_dim": 48,
    "router_type": "gru-softmax", "router_softmax_temperature": 0.2, "routing_top_k": 2, "router_aux_loss_coef": 0.1,
}  # fmt: skip

#: Changes of the configuration, batch, steps, masked.
CONFIGS: dict[str, tuple[dict[str, Any], int, int, bool]] = {
    "gru-softmax top-2": ({}, 4, 64, False),
    "naive top-1, weighted, masked": ({"router_type": "naive", "routing_top_k": 1, "weighted_qkv": True}, 4, 61, True),
    "all paths": ({"routing_all_possible_path": True, "num_attn": 2, "num_ffn": 3}, 2, 64, False),
    "dropout and noise": (
        {"router_type": "gru-dev-random", "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "num_ffn": 1},
        4, 64, True,
    ),
    "plain GPT-2": ({"chunks": 0, "n_layer": 2, "n_embd": 128, "vocab_size": 1031}, 4, 64, True),
    "small and odd": ({"n_embd": 27, "n_head": 3, "n_inner": 41, "router_dim": 9, "chunks": 2}, 3, 13, True),
    "wide, weighted, top-1": (
        {"n_embd": 520, "n_head": 8, "n_inner": 1030, "num_attn": 2, "num_ffn": 2, "routing_top_k": 1,
         "weighted_qkv": True},
        2, 17, False,
    ),
    "one token": ({}, 1, 1, False),
}  # fmt: skip


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def training_run(changes: dict[str, Any], batch: int, steps: int, masked: bool) -> dict[str, Any]:
    """Everything two optimizer steps of two micro-batches produce."""
    config = mom.MoMConfig(**{**LARGE, **changes})
    model = mom.MoM(config, seed=5)
    model.train()
    optimizer = mom.AdamW(model, lr=0.01)
    rng = np.random.default_rng(11)
    result: dict[str, Any] = {}
    for step in range(2):
        model.zero_grad()
        for micro in range(2):
            tokens = rng.integers(0, config.vocab_size, (batch, steps))
            mask = np.ones((batch, steps), int)
            if masked:
                mask[0, : steps // 3] = 0
                mask[-1, 2 * steps // 3 :] = 0
            out = model(tokens, tokens, mask, return_logits=True, return_routes=True)
            where = f"step {step} batch {micro}"
            result[f"{where}: losses"] = (out.losses, out.loss)
            result[f"{where}: logits"] = digest(out.logits)
            routes = entries(out.routes)
            result[f"{where}: routes"] = digest(*(a for r in routes for a in r.values()))
            if steps > 1:
                model.backward(0.5)
        result[f"step {step}: gradients"] = digest(*model.gradients.values())
        result[f"step {step}: norm"] = mom.clip_grad_norm(model, 1.0)
        optimizer.step()
        result[f"step {step}: parameters"] = digest(*model.parameters.values())
        result[f"step {step}: moments"] = digest(*optimizer.state.values())
    result["generated"] = model.generate(
        tokens[:2, : steps // 2 + 1], min(3, config.n_positions - steps), 0.8, seed=3
    ).tolist()
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_bits_do_not_depend_on_the_number_of_threads(name: str, kernel_level: str) -> None:
    if not mom.cpu_info()["openmp"]:
        pytest.skip("built without threads")
    results = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        results.append(training_run(*CONFIGS[name]))
    for key, value in results[0].items():
        assert repr(results[1][key]) == repr(value), f"{key}: 2 threads"
        assert repr(results[2][key]) == repr(value), f"{key}: 3 threads"


def test_runs_repeat_bit_for_bit() -> None:
    assert repr(training_run(*CONFIGS["dropout and noise"])) == repr(training_run(*CONFIGS["dropout and noise"]))


def test_results_do_not_depend_on_what_was_computed_before(rng: np.random.Generator) -> None:
    """Memory is reused between calls; a large batch before, or an abandoned forward pass, leaves no trace."""
    config = mom.MoMConfig(**LARGE)
    tokens = rng.integers(0, config.vocab_size, (2, 9))
    fresh, used = mom.MoM(config, seed=1), mom.MoM(config, seed=1)
    large = rng.integers(0, config.vocab_size, (4, 64))
    used(large, large)
    used.backward()
    used.zero_grad()
    used(large, large, keep=False, return_logits=True)
    used(large[:, :1])
    for model in (fresh, used):
        model(tokens, tokens)
        model.backward()
    for name, gradient in fresh.gradients.items():
        assert np.array_equal(gradient, used.gradients[name]), name


def test_forward_without_keeping_gives_the_same_bits(rng: np.random.Generator) -> None:
    for changes, batch, steps, _ in CONFIGS.values():
        config = mom.MoMConfig(**{**LARGE, **changes})
        model = mom.MoM(config, seed=1)
        tokens = rng.integers(0, config.vocab_size, (batch, steps))
        outputs = []
        for keep in (True, False):
            model.random_state = (1, 0)
            out = model(tokens, tokens, return_logits=True, return_routes=True, keep=keep)
            routes = entries(out.routes)
            outputs.append(
                (
                    repr(out.loss),
                    repr(out.losses),
                    digest(out.logits),
                    digest(*(a for r in routes for a in r.values())),
                )
            )
        assert outputs[0] == outputs[1]
