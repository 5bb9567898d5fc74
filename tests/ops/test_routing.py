"""Tests of routing, beyond the tests that every operator has: equal scores, plans, and properties on random choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mom import ops, reference


@pytest.mark.parametrize("s", [1, 2, 3, 4, 5, 9, 33, 64, 65, 200])
def test_equal_scores_are_kept_once_each(s: int, rng: np.random.Generator) -> None:
    scores = rng.integers(0, 3, (40, s)).astype(np.float32)
    for k in {1, 2, s // 2, s} - {0}:
        if k > s:
            continue
        index, weight = ops.topk_forward(scores, k)
        assert all(len(set(row)) == k for row in index.tolist())
        assert np.array_equal(weight, -np.sort(-scores, axis=1)[:, :k])
        assert np.array_equal(weight, np.take_along_axis(scores, index.astype(np.int64), 1))
        if s > 64:
            assert np.array_equal(index, np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_infinite_scores_are_ordered(kernel_level: str) -> None:
    scores = np.array([[-np.inf, 0, np.inf]], dtype=np.float32)
    assert ops.topk_forward(scores, 3)[0].tolist() == [[2, 1, 0]]
    scores[0, 1] = np.nan
    assert ops.topk_forward(scores, 2)[0].tolist() == [[1, 2]]
    assert ops.router_scores_forward(np.array([[1e30, 0.0]], dtype=np.float32), 0.1).tolist() == [[1.0, 0.0]]


def test_renormalised_top_1_is_exactly_one(kernel_level: str, rng: np.random.Generator) -> None:
    scores = ops.router_scores_forward(rng.standard_normal((50, 5), dtype=np.float32), 0.2)
    _, weight = ops.topk_forward(scores, 1, renormalise=True)
    assert (weight == 1.0).all()


@st.composite
def choices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    n, modules, skips = draw(st.integers(0, 12)), draw(st.integers(0, 5)), draw(st.integers(1, 2))
    k = draw(st.integers(0, modules + skips))
    rows = [draw(st.permutations(range(modules + skips)))[:k] for _ in range(n)]
    return np.array(rows, dtype=np.int16).reshape(n, k), modules


@settings(max_examples=150, deadline=None)
@given(choices())
def test_plan_matches_reference(example: tuple[np.ndarray, int]) -> None:
    index, modules = example
    plan, twin = ops.routing_plan(index, modules), reference.routing_plan.build(index, modules)
    assert np.array_equal(plan.offsets, twin.offsets)
    assert np.array_equal(plan.counts, twin.counts)
    assert np.array_equal(plan.token, twin.token)
    assert np.array_equal(plan.choice, twin.choice)
    assert (plan.num_tokens, plan.num_choices, plan.num_modules, plan.num_slots) == (
        *index.shape, modules, twin.num_slots,
    )  # fmt: skip
    slot = np.full(index.shape, -1)
    slot[twin.token, twin.choice] = np.arange(twin.num_slots)
    assert np.array_equal(plan.slot, slot)


def test_arrays_keep_their_plan_alive() -> None:
    token = ops.routing_plan([[1], [0], [1]], 2).token
    ops.routing_plan(np.zeros((1000, 1), dtype=np.int16), 2)
    assert token.tolist() == [1, 0, 2]


def test_dense_plan_is_the_plan_of_all_choices() -> None:
    dense, plan = ops.routing_plan_dense(5, 3), ops.routing_plan(np.tile(np.arange(3), (5, 1)), 3)
    for name in ("offsets", "token", "choice", "slot"):
        assert np.array_equal(getattr(dense, name), getattr(plan, name)), name


def test_module_without_tokens_leaves_its_gradient_alone(kernel_level: str, rng: np.random.Generator) -> None:
    plan = ops.routing_plan(np.array([[0], [2], [3], [0]]), 3)
    weights = rng.standard_normal((3, 4, 5), dtype=np.float32)
    before = rng.standard_normal((3, 4, 5), dtype=np.float32)
    dout, inp = rng.standard_normal((3, 5), dtype=np.float32), rng.standard_normal((4, 4), dtype=np.float32)
    _, dweights, dbiases = ops.routed_linear_backward(dout, inp, weights, plan, add_to=(before, None))
    assert np.array_equal(dweights[1], before[1]) and not dbiases[1].any()
    assert not np.array_equal(dweights[0], before[0])


def test_rows_do_not_depend_on_their_company(kernel_level: str, rng: np.random.Generator) -> None:
    """The bits of a token's output do not depend on the other tokens of its module."""
    weights, biases = rng.standard_normal((2, 30, 40), dtype=np.float32), rng.standard_normal((2, 40), dtype=np.float32)
    inp = rng.standard_normal((50, 30), dtype=np.float32)
    index = rng.integers(0, 2, (50, 1))
    plan = ops.routing_plan(index, 2)
    out = ops.routed_linear_forward(inp, weights, biases, plan)
    for slot in (0, 20, 49):
        token = int(plan.token[slot])
        alone = ops.routing_plan(index[token : token + 1], 2)
        assert np.array_equal(ops.routed_linear_forward(inp[token : token + 1], weights, biases, alone)[0], out[slot])


def test_balance_loss_is_one_for_even_routing() -> None:
    scores = np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    assert ops.balance_loss([scores]) == pytest.approx(1.0)
    assert ops.balance_loss([scores[:1].repeat(10, axis=0)]) == pytest.approx(4.0)
