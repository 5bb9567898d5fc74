"""Every allocation from an arena is made to fail once: MemoryError, nothing else, and the model works on.

Arenas keep their memory and seldom ask the system, so `test_memory_failures` reaches few failure paths. Here nearly
every function of the core is left once at each of its allocations.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_decoding import build, texts
from test_memory_failures import BASE, CONFIGS, Work, every_failure, same

import mom
from mom import _core

ALL_CONFIGS = {
    "recurrent, z-loss": BASE.replace(router_z_loss_coef=0.1),
    "naive, signs, weighted": CONFIGS["naive, signs, weighted"],
    "all paths, counts of the step": CONFIGS["all paths, counts of the step"],
    "plain": CONFIGS["plain"],
    "classifier, hash": BASE.replace(num_labels=3, router_type="hash"),
    "coupling loss": BASE.replace(router_type="linear", router_coupling_loss_coef=0.5),
    "checkpointing, bfloat16": BASE.replace(router_type="gru-dev-random"),
}


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_a_training_step(name: str) -> None:
    """Creation, memory plan, forward, logits, routes, backward and optimizer: the model that is left repeats them."""
    gc.collect()
    live = _core.memory_live_bytes()
    dtype = "bfloat16" if "bfloat16" in name else "float32"
    fail_in_training(Work(ALL_CONFIGS[name], "checkpointing" in name, (3, 6), dtype))
    gc.collect()
    assert _core.memory_live_bytes() == live, "memory was lost"


def fail_in_training(work: Work) -> None:
    out, expected = work.expected()
    state: dict[str, Any] = {"failures": 0}

    def step() -> None:
        state["model"] = None
        state["model"] = model = work.new_model()
        state["out"] = work.forward(model)
        model.backward()
        mom.AdamW(model).step(1.0)

    def usable() -> None:
        state["failures"] += 1
        if state["failures"] % 5:  # it takes longer than the step itself
            return
        model = state["model"] or work.new_model()
        model.zero_grad()
        assert same(work.forward(model), out)
        model.backward()
        assert all(np.array_equal(g, expected[n]) for n, g in model.gradients.items())

    assert every_failure(step, usable, _core.arena_fail_at) > 100
    assert same(state["out"], out)


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-1", "vanilla", "weighted"])
def test_decoding(name: str, weights: str) -> None:
    gc.collect()
    live = _core.memory_live_bytes()
    fail_in_decoding(name, weights)
    gc.collect()
    assert _core.memory_live_bytes() == live, "memory was lost"


def fail_in_decoding(name: str, weights: str) -> None:
    model = build(name)
    prompts, more = texts(name, 3, 20), texts(name + "more", 5, 2)
    want, state = mom.Decoder(model, weights), {"decoder": mom.Decoder(model, weights)}
    sampling: dict[str, Any] = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 2}

    def create() -> None:
        state["decoder"] = mom.Decoder(model, weights)

    every_failure(create, lambda: None, _core.arena_fail_at)
    decoder = state["decoder"]

    def both(call: Callable[[mom.Decoder], Any], before: list[int]) -> None:
        expected = call(want)

        def unchanged() -> None:
            assert decoder.lengths.tolist() == before

        assert every_failure(lambda: state.update(result=call(decoder)), unchanged, _core.arena_fail_at) >= 5
        assert np.array_equal(decoder.logits, want.logits)
        assert np.array_equal(state["result"], expected)

    both(lambda d: d.prefill(prompts), [])
    both(lambda d: d.prefill(more), [3, 20])
    both(lambda d: d.step([1, 2]), [8, 22])
    both(lambda d: d.reorder([1, 1, 0]), [9, 23])
    for new in range(2):
        both(lambda d: d.generate(1, **sampling), [23 + new, 23 + new, 9 + new])
