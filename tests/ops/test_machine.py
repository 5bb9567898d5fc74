"""The yardsticks: what the machine can do at most, by level and number of threads."""

from __future__ import annotations

import math

import pytest

from mom import _core, runtime


def test_peaks_are_positive_numbers(kernel_level: str) -> None:
    for dtype in ("float32", "bfloat16"):
        for threads in (1, 2, 3):
            rate = runtime.machine_peak(dtype, threads, seconds=0.0)
            assert math.isfinite(rate) and rate > 0


def test_bandwidths_are_positive_and_the_memory_is_given_back(kernel_level: str) -> None:
    live = _core.memory_live_bytes()
    for size, threads in ((4, 1), (100, 3), (1 << 20, 2)):  # less than a line, less than a line per thread
        found = runtime.memory_bandwidth(size, threads, repeats=2)
        assert all(math.isfinite(rate) and rate > 0 for rate in found[:2]) and found.read > 0
    assert _core.memory_live_bytes() == live


def test_a_refused_allocation_is_a_memory_error() -> None:
    live = _core.memory_live_bytes()
    for n in (1, 2, 3):
        _core.memory_fail_at(n)
        with pytest.raises(MemoryError):
            runtime.memory_bandwidth(1 << 22, 1, 1)
    _core.memory_fail_at(0)
    assert _core.memory_live_bytes() == live


@pytest.mark.parametrize(
    ("modules", "message"),
    [(2**60, "cannot allocate"), (2**61, "are more than can be addressed"), (2**62, "are more than can be addressed")],
)
def test_sizes_beyond_all_memory_are_memory_errors(modules: int, message: str) -> None:
    with pytest.raises(MemoryError, match=f"^routing plan: .*{message}"):
        _core.routing_plan_dense(0, modules)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="^dtype: 'float16', expected 'float32' or 'bfloat16'$"):
        runtime.machine_peak("float16")
    with pytest.raises(ValueError, match="^seconds: expected 0 to 60$"):
        runtime.machine_peak(seconds=float("nan"))
    for call in (lambda n: runtime.machine_peak(threads=n), lambda n: runtime.memory_bandwidth(threads=n)):
        with pytest.raises(ValueError, match="^threads: 0 threads, expected 1 to 256$"):
            call(0)
    for size, repeats in ((0, 1), (1 << 41, 1), (64, 0)):
        with pytest.raises(ValueError, match="^bytes, repeats: "):
            runtime.memory_bandwidth(size, 1, repeats)
