"""Sizes of 1, random sizes and random arguments: a result of the right shape, or an exception that names the argument.

`make test-asan` runs these tests under AddressSanitizer, which would report a read or a write outside of an array.
"""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import numpy as np
import pytest
from operators import _wide, make

from cases import CASES, Case, cases_of
from mom import ops

#: Every set of options of every operator, at small sizes.
OPTIONS = {
    f"{name}-{case.options}": case
    for name in sorted(set(CASES) - {"adamw"})  # its sizes are those of a list of tensors
    for case in cases_of(name, "small", "odd")
}


def fitting(case: Case, sizes: dict[str, int]) -> Case:
    """The case with these sizes, where heads divide the width and there are no more choices than modules."""
    sizes = dict(sizes)
    if case.operator in ("attention", "attention_probabilities"):
        sizes["C"] *= max(sizes["H"], 1)
    if case.operator == "embedding":
        sizes["P"] = max(sizes["P"], sizes["T"])
    if case.operator == "forced_choices":  # outputs from M on mean SKIP
        sizes["S"] = max(sizes["S"], sizes["M"])
        sizes["K"] = min(sizes["K"], sizes["S"])
    elif "K" in sizes:
        most = sizes["M"] if "M" in sizes else sizes["S"]
        sizes["K"] = most if case.options.get("dense") else min(sizes["K"], most)
    return Case(case.operator, "drawn", sizes, case.options)


def run(case: Case, rng: np.random.Generator) -> bool:
    """Compare an operator's shapes with its twin's. Returns False if it refuses the sizes.

    Values are compared in `test_operators`. At these sizes some results are 0 but for rounding.
    """
    try:
        operator = make(case, rng)
        got = operator.run(**operator.inputs)
    except ValueError as error:
        assert 0 in case.sizes.values(), str(case)
        assert str(error).split(":")[0].isidentifier(), f"{case}: {error}"
        return False
    if any(value is not None and value.size for value in got.values()):  # else there is nothing to compare
        for key, want in operator.expected(**_wide(operator.inputs)).items():
            assert (got[key] is None) == (want is None), f"{case}: {key}"
            if want is not None:
                assert got[key].shape == want.shape and np.isfinite(got[key]).all(), f"{case}: {key}"
    return True


@pytest.mark.parametrize("name", OPTIONS)
def test_sizes_of_one(name: str, rng: np.random.Generator) -> None:
    case = OPTIONS[name]
    for letter in case.sizes:
        assert run(fitting(case, {**{k: min(n, 5) for k, n in case.sizes.items()}, letter: 1}), rng)
    assert run(fitting(case, dict.fromkeys(case.sizes, 1)), rng)


@pytest.mark.parametrize("name", OPTIONS)
def test_random_sizes(name: str, rng: np.random.Generator) -> None:
    case, done = OPTIONS[name], 0
    for _ in range(40):
        done += run(fitting(case, {letter: int(rng.choice([0, 1, 1, 2, 3, 5, 17])) for letter in case.sizes}), rng)
    assert done


def drawn(rng: np.random.Generator) -> Any:
    """Something to pass as an argument: mostly small arrays and numbers, sometimes anything else."""
    kind = rng.integers(0, 12)
    shape = tuple(rng.choice([0, 1, 2, 3, 6], int(rng.integers(0, 4))))
    if kind < 5:
        return rng.standard_normal(shape, dtype=np.float32)
    if kind < 8:
        return rng.integers(-1, 4, shape)
    if kind == 8:
        return int(rng.integers(-2, 5))
    if kind == 9:
        return ops.routing_plan(rng.permuted(np.tile(np.arange(3), (int(rng.integers(0, 4)), 1)), axis=1)[:, :2], 3)
    others = (
        None, True, 0.5, -1.0, float("nan"), 2**70, "naive", "float32", b"x", [], [[]], [0], [1, [2]], {}, object(),
        np.zeros((2, 3)), np.zeros((3, 2), np.float32).T, np.array([2**40]), np.array(["a"]), np.float32(1.0), (1, 2),
    )  # fmt: skip
    return others[int(rng.integers(0, len(others)))]


FUNCTIONS = sorted({name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))} - {"use_level"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_arguments_end_in_a_result_or_a_clear_exception(name: str) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    function = getattr(ops, name)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    refused = 0
    for _ in range(400):
        call = {p.name: drawn(rng) for p in parameters if p.default is p.empty or rng.random() < 0.5}
        try:
            function(**call)
        except (ValueError, TypeError, OverflowError) as error:
            refused += 1
            assert str(error), f"{name}({call})"
    assert refused or not parameters
