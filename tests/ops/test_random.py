"""Random numbers: the documented formula, and uniformity."""

from __future__ import annotations

import numpy as np
import pytest

from mom import ops

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64 - 1


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def draw(seed: int, counter: int, site: int, index: int) -> float:
    key = mix(seed + GOLDEN & WORD)
    key = mix(key + counter * GOLDEN + 1 & WORD)
    key = mix(key + site * GOLDEN + 2 & WORD)
    return float((mix(mix(key + index * GOLDEN & WORD) ^ key) >> 40) * 2.0**-24)


@pytest.mark.parametrize("stream", [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**63, 77)])
def test_draws_follow_the_formula(stream: tuple[int, int, int]) -> None:
    got = ops.random_uniform(*stream, 20)
    assert got.dtype == np.float32
    assert got.tolist() == [draw(*stream, i) for i in range(20)]


def test_draws_are_uniform() -> None:
    values = ops.random_uniform(42, 0, 0, 200_000).astype(np.float64)
    assert values.min() >= 0.0 and values.max() < 1.0
    assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * values.size)
    counts = np.histogram(values, bins=64, range=(0, 1))[0]
    expected = values.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(values.size)


def test_streams_differ() -> None:
    streams = [ops.random_uniform(*s, 8).tobytes() for s in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(streams)) == 4


def test_dropout_keeps_the_mean_and_is_linear() -> None:
    ones = np.ones(100_000, dtype=np.float32)
    kept = ops.dropout(ones, 0.3, 1, 2, 3)
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1) / (np.float32(1) - np.float32(0.3))}
    assert kept.mean() == pytest.approx(1.0, abs=0.02)
    assert np.array_equal(ops.dropout(ones, 0.0), ones)


@pytest.mark.parametrize("drawn", [0, 1, 500, 999])
def test_dropout_decides_on_the_last_bit_of_a_draw(kernel_level: str, drawn: int) -> None:
    """An element whose draw is exactly p is kept, and one whose draw is the number below p is dropped."""
    draws = ops.random_uniform(1, 2, 3, 1000)
    exact = float(draws[drawn])
    for p in (exact, float(np.nextafter(np.float32(exact), np.float32(1))), 1e-30, float(np.float32(1) - 2**-24)):
        factor = np.float32(1) / (np.float32(1) - np.float32(p))
        expected = np.where(draws >= np.float32(p), factor, np.float32(0))
        assert np.array_equal(ops.dropout(np.ones(1000, dtype=np.float32), p, 1, 2, 3), expected), p
