"""What holds for every operator: it agrees with the float64 twin at every level, and threads do not change its bits.

Inputs do not change and gradients add up. Failed allocations have no side effects, and nothing leaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operators import Operator, _wide, make

import mom
from cases import CASES, Case, cases_of, parameters
from mom import _core


def relative_error(got: Any, expected: Any) -> float:
    """Norm of the difference over the norm of the expected (the difference itself when zeros are expected)."""
    difference = np.linalg.norm(np.asarray(got, dtype=np.float64) - expected)
    return float(difference / (np.linalg.norm(expected) or 1.0))


def compare(operator: Operator, got: dict[str, Any]) -> None:
    for name, want in operator.expected(**_wide(operator.inputs)).items():
        if want is None:
            assert got[name] is None, name
            continue
        assert got[name].shape == want.shape, name
        if want.dtype.kind in "iu":
            assert np.array_equal(got[name], want), name
            continue
        assert relative_error(got[name], want) <= operator.tolerance, name


def flat(results: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in results.items() if value is not None}


@pytest.mark.parametrize("case", parameters())
def test_matches_reference_at_every_level(case: Case, kernel_level: str, rng: np.random.Generator) -> None:
    operator = make(case, rng)
    compare(operator, operator.run(**operator.inputs))


#: Sizes that may not be 0, by operator: a mean, a maximum or a softmax over nothing, an id below 0, or a sum over rows
#: that comes out of a product over columns.
NEVER_EMPTY = {
    "layernorm": "C", "linear": "I", "embedding": "VP", "attention": "H", "cross_entropy": "V", "lm_head": "C",
    "lm_head_gradient": "C", "label_loss": "BL", "scores": "S", "topk": "S", "forced_choices": "S",
    "attention_probabilities": "BH", "routed_linear": "I",
    "routed_layernorm": "C", "routed_scores": "I", "balance_loss": "S",
}  # fmt: skip


def with_empty_sizes() -> list[Any]:
    """Every operator with each of its sizes 0 in turn, once for each set of options."""
    cases: dict[str, Case] = {}
    for name in set(CASES) - {"adamw"}:  # its sizes are those of a list of tensors, one of which is empty
        for case in cases_of(name, "small", "odd"):
            for letter in case.sizes:
                if letter == "K" and case.options.get("dense"):
                    continue  # every token has every module
                empty = Case(name, f"no {letter}", {**case.sizes, letter: 0}, case.options)
                cases.setdefault(f"{name}-{letter}0-{case.options}", empty)
    return [pytest.param(case, id=key) for key, case in sorted(cases.items())]


@pytest.mark.parametrize("case", with_empty_sizes())
def test_sizes_of_zero_give_the_empty_result_or_name_the_argument(
    case: Case, kernel_level: str, rng: np.random.Generator
) -> None:
    letter = case.kind.removeprefix("no ")
    single = case.options.get("loss") == "single_label_classification"  # no rows, no labels: a loss of 0
    if letter in NEVER_EMPTY.get(case.operator, "") and not (letter == "B" and single):
        with pytest.raises(ValueError, match=r"^\w+: "):
            operator = make(case, rng)
            operator.run(**operator.inputs)
        return
    operator = make(case, rng)
    got = operator.run(**operator.inputs)
    if any(value is not None and value.size for value in got.values()):  # else there is nothing to compare
        compare(operator, got)


@pytest.mark.parametrize("case", parameters("odd", "realistic"))
def test_same_bits_for_any_number_of_threads(case: Case, kernel_level: str, rng: np.random.Generator) -> None:
    operator = make(case, rng)
    mom.set_num_threads(1)
    once = flat(operator.run(**operator.inputs))
    for threads in (2, 3):
        mom.set_num_threads(threads)
        assert flat(operator.run(**operator.inputs)) == once, f"{threads} threads"


@pytest.mark.parametrize("case", parameters("small", "odd"))
def test_inputs_are_not_modified(case: Case, rng: np.random.Generator) -> None:
    operator = make(case, rng)
    before = {name: array.tobytes() for name, array in operator.inputs.items()}
    for array in operator.inputs.values():
        array.flags.writeable = False
    operator.run(**operator.inputs)
    assert {name: array.tobytes() for name, array in operator.inputs.items()} == before


ACCUMULATING = [
    pytest.param(case, id=str(case))
    for name in CASES
    for case in cases_of(name, "small", "odd")
    if make(case, np.random.default_rng(0)).add is not None
]


@pytest.mark.parametrize("case", ACCUMULATING)
def test_gradients_are_added_to_those_given(case: Case, rng: np.random.Generator) -> None:
    operator = make(case, rng)
    assert operator.add is not None
    alone = operator.add(**operator.inputs, add_to=None)
    before = tuple(rng.standard_normal(a.shape, dtype=np.float32) for a in alone)
    copies = [b.copy() for b in before]
    both = operator.add(**operator.inputs, add_to=before)
    for a, b, copy, total in zip(alone, before, copies, both, strict=True):
        assert relative_error(total, a.astype(np.float64) + b) < 1e-5
        assert np.array_equal(b, copy)


def run_with_failing_allocations(operator: Operator, fail_at: Callable[[int], None]) -> int:
    """Let the first, second, ... allocation fail until there are no more; how many failed."""
    for n in range(1, 1000):
        held = _core.memory_live_bytes()
        fail_at(n)
        try:
            operator.run(**operator.inputs)
        except MemoryError as error:
            assert "cannot allocate" in str(error)
            assert _core.memory_live_bytes() == held
        else:
            return n - 1
        finally:
            fail_at(0)
    raise AssertionError("allocations do not end")


@pytest.mark.parametrize("fail_at", [_core.memory_fail_at, _core.arena_fail_at], ids=["system", "arena"])
@pytest.mark.parametrize("name", CASES)
def test_nth_allocation_fails_cleanly(name: str, fail_at: Callable[[int], None], rng: np.random.Generator) -> None:
    operator = make(cases_of(name, "odd", "small")[-1], rng)
    before = flat(operator.run(**operator.inputs))
    run_with_failing_allocations(operator, fail_at)
    assert flat(operator.run(**operator.inputs)) == before


@pytest.mark.parametrize("name", CASES)
def test_reference_counts_are_stable(name: str, rng: np.random.Generator) -> None:
    mom.set_num_threads(1)
    operator = make(cases_of(name, "small")[0], rng)
    operator.run(**operator.inputs)
    held = _core.memory_live_bytes()
    counts = {key: sys.getrefcount(array) for key, array in operator.inputs.items()}
    blocks = []
    for _ in range(6):
        for _ in range(20):
            operator.run(**operator.inputs)
        blocks.append(sys.getallocatedblocks())
    assert {key: sys.getrefcount(array) for key, array in operator.inputs.items()} == counts
    assert _core.memory_live_bytes() == held
    assert blocks[-1] - blocks[-2] < 20, "objects are left behind by every call"


def test_every_operator_has_cases_of_every_needed_kind() -> None:
    for name in CASES:
        assert cases_of(name, "small"), name
        assert all(case.flops >= 0 for case in cases_of(name))
