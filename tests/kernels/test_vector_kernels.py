"""Element-wise kernels and reductions of every level against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mom import _core

LENGTHS = [0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1023]


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units of the last place of the correctly rounded result."""
    rounded = exact.astype(np.float32)
    return np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(rounded)).astype(np.float64)


def test_exp_is_accurate_over_its_whole_range(kernel_level: str) -> None:
    x = np.linspace(-87.0, 88.7, 400_001).astype(np.float32)
    assert ulps(_core.kernel_map("exp", x), np.exp(x.astype(np.float64))).max() < 3.0


def test_exp_of_special_values(kernel_level: str) -> None:
    x = np.array([0.0, -0.0, -np.inf, -200.0, -104.0, np.inf, 89.0, 1e30, np.nan, -95.0], dtype=np.float32)
    y = _core.kernel_map("exp", x)
    assert y[:5].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert y[5:8].tolist() == [np.inf] * 3
    assert np.isnan(y[8])
    assert y[9] == pytest.approx(np.exp(-95.0), rel=1e-2)


@pytest.mark.parametrize("n", range(1, 35))
def test_exp_of_nan_is_nan_in_every_lane(kernel_level: str, n: int) -> None:
    """Computed without the undefined conversion of a NaN to an integer, which a sanitizer build reports."""
    for position in range(n):
        for sign in (1.0, -1.0):
            x = np.zeros(n, dtype=np.float32)
            x[position] = np.copysign(np.float32(np.nan), np.float32(sign))
            y = _core.kernel_map("exp", x)
            assert np.isnan(y[position])
            assert np.delete(y, position).tolist() == [1.0] * (n - 1)


def test_tanh_is_accurate_and_odd(kernel_level: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), np.logspace(-30, 0, 1000)]).astype(np.float32)
    y = _core.kernel_map("tanh", x)
    assert ulps(y, np.tanh(x.astype(np.float64))).max() < 4.0
    assert np.array_equal(_core.kernel_map("tanh", -x), -y)
    assert _core.kernel_map("tanh", np.array([np.inf, -np.inf, 0.0], dtype=np.float32)).tolist() == [1.0, -1.0, 0.0]
    assert np.isnan(_core.kernel_map("tanh", np.array([np.nan], dtype=np.float32))[0])


def test_gelu_far_from_zero(kernel_level: str) -> None:
    x = np.array([-1e4, -30.0, 30.0, 1e4, 0.0], dtype=np.float32)
    assert _core.kernel_map("gelu_forward", x).tolist() == [0.0, 0.0, 30.0, 1e4, 0.0]


@pytest.mark.parametrize("n", LENGTHS)
def test_reductions_of_any_length(kernel_level: str, n: int, rng: np.random.Generator) -> None:
    a, b = rng.standard_normal(n, dtype=np.float32), rng.standard_normal(n, dtype=np.float32)
    wide = a.astype(np.float64)
    bound = 2e-6 + 2e-7 * n  # a build that is not optimised adds one after the other
    assert _core.kernel_reduce("sum", a, None) == pytest.approx(wide.sum(), abs=bound)
    assert _core.kernel_reduce("dot", a, b) == pytest.approx(wide @ b, abs=bound)
    assert _core.kernel_reduce("sum_squares", a, None) == pytest.approx(wide @ wide, rel=1e-12)
    assert _core.kernel_reduce("max", a, None) == (a.max() if n else -np.inf)


@pytest.mark.parametrize("n", LENGTHS)
def test_exp_sum_writes_and_sums(kernel_level: str, n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal(n, dtype=np.float32)
    values, total = _core.kernel_exp_sum(x, 2.0, 1.5)
    exact = np.exp(2.0 * x.astype(np.float64) - 1.5)
    assert np.allclose(values, exact, rtol=1e-6)
    assert total == pytest.approx(exact.sum(), rel=1e-6)


def test_max_of_infinities(kernel_level: str) -> None:
    x = np.full(37, -np.inf, dtype=np.float32)
    assert _core.kernel_reduce("max", x, None) == -np.inf
    x[35] = np.inf
    assert _core.kernel_reduce("max", x, None) == np.inf


@pytest.mark.parametrize("kernel", [_core.kernel_map, _core.kernel_reduce])
def test_the_name_of_a_kernel_is_a_text(kernel: Any) -> None:
    x = np.ones(3, np.float32)
    for name in (5, None, b"sum", "\ud800"):
        with pytest.raises((TypeError, ValueError)):
            kernel(name, x, *([None] if kernel is _core.kernel_reduce else []))
