"""A training step does no work in Python that grows with its tokens: the same calls whatever the batch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mom

CONFIG: dict[str, Any] = {
    "vocab_size": 61, "n_positions": 64, "n_embd": 24, "n_head": 2, "n_inner": 32, "n_layer": 2, "chunks": 1,
    "num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 0,
    "require_anchor_layer": False, "router_dim": 8, "router_type": "gru-softmax", "routing_top_k": 2,
}  # fmt: skip
SMALL = (2, 16)
SHAPES = [(2, 16), (16, 16), (4, 64), (16, 64)]  # 1, 8, 8 and 32 times the tokens


class Step:
    """Forward, backward and the optimizer on a batch of a shape."""

    def __init__(self, shape: tuple[int, int], packed: bool, dtype: str) -> None:
        self.model = mom.MoM(mom.MoMConfig(**CONFIG), seed=0, dtype=dtype)
        self.model.train()
        self.optimizer = mom.AdamW(self.model)
        tokens = np.random.default_rng(0).integers(0, 61, shape)
        self.call: dict[str, Any] = {"tokens": tokens, "labels": tokens, "attention_mask": np.ones(shape, np.uint8)}
        if packed:
            flat = tokens.ravel()
            self.call = {"tokens": flat, "labels": flat, "lengths": np.full(shape[0], shape[1])}
        for _ in range(2):
            self()

    def __call__(self) -> None:
        self.model(**self.call)
        self.model.backward()
        self.optimizer.step(max_norm=1.0, zero_grad=True)


def run_hooked(step: Step, hook: Any, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
    """The step with a hook of the interpreter in place of the one that is there."""
    before = get()
    put(hook)
    try:
        step()
    finally:
        put(before)



def calls(step: Step) -> Counter[str]:
    """Functions that a step calls, Python's and built-in ones, by name."""
    seen: Counter[str] = Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen[frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name] += 1
        elif event == "c_call":
            seen[argument.__qualname__] += 1

    run_hooked(step, note, sys.getprofile, sys.setprofile)
    return seen - Counter(["setprofile"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_makes_the_same_calls_for_any_number_of_tokens(packed: bool, dtype: str) -> None:
    want = calls(Step(SMALL, packed, dtype))
    assert any("backward" in name for name in want)
    for shape in SHAPES[1:]:
        assert calls(Step(shape, packed, dtype)) == want, shape


def lines(step: Step) -> int:
    """Lines of Python that a step runs: loops within a function count, too."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    run_hooked(step, trace, sys.gettrace, sys.settrace)
    return count


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_runs_the_same_lines_for_any_number_of_tokens(packed: bool) -> None:
    want = lines(Step(SMALL, packed, "float32"))
    assert want > 20
    for shape in SHAPES[1:]:
        assert lines(Step(shape, packed, "float32")) == want, shape
