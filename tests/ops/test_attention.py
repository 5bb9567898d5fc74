"""Attention beyond what holds for every operator."""

from __future__ import annotations

import numpy as np
import pytest

from mom import ops


def test_first_token_returns_its_own_value(kernel_level: str, rng: np.random.Generator) -> None:
    qkv = rng.standard_normal((2, 5, 12), dtype=np.float32)
    out, _ = ops.attention_forward(qkv, 2)
    assert np.allclose(out[:, 0], qkv[:, 0, 8:], atol=1e-6)


def test_future_does_not_change_the_past(kernel_level: str, rng: np.random.Generator) -> None:
    qkv = rng.standard_normal((1, 70, 24), dtype=np.float32)
    out, lse = ops.attention_forward(qkv, 2)
    for end in (1, 17, 33, 69):
        other = qkv.copy()
        other[:, end:] = 100.0 * rng.standard_normal((1, 70 - end, 24))
        got, got_lse = ops.attention_forward(other, 2)
        assert np.array_equal(got[:, :end], out[:, :end])
        assert np.array_equal(got_lse[..., :end], lse[..., :end])


def test_padding_filled_with_nan_does_not_reach_real_tokens(kernel_level: str, rng: np.random.Generator) -> None:
    qkv = rng.standard_normal((2, 40, 24), dtype=np.float32)
    dout = rng.standard_normal((2, 40, 8), dtype=np.float32)
    mask = np.ones((2, 40), dtype=bool)
    mask[0, 30:] = mask[1, 10:12] = False
    dout[~mask] = 0.0
    poisoned = qkv.copy()
    poisoned[~mask] = np.nan
    out, lse = ops.attention_forward(qkv, 2, mask)
    got, got_lse = ops.attention_forward(poisoned, 2, mask)
    assert np.array_equal(got[mask], out[mask])
    assert np.array_equal(got_lse.swapaxes(1, 2)[mask], lse.swapaxes(1, 2)[mask])


@pytest.mark.parametrize(
    "convert", [lambda m: m, lambda m: m.astype(np.int64), lambda m: m * 1.0, lambda m: m.tolist()]
)
def test_masks_of_any_type_give_the_same(convert, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    qkv = rng.standard_normal((2, 6, 12), dtype=np.float32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], dtype=bool)
    expected = ops.attention_forward(qkv, 2, mask)[0]
    assert np.array_equal(ops.attention_forward(qkv, 2, convert(mask))[0], expected)


def test_large_scores_do_not_overflow(kernel_level: str) -> None:
    qkv = np.zeros((1, 8, 12), dtype=np.float32)
    qkv[..., :8] = 300.0
    qkv[..., 8:] = np.arange(8, dtype=np.float32)[:, None]
    out, lse = ops.attention_forward(qkv, 1, scale=1.0)
    assert np.isfinite(out).all() and np.isfinite(lse).all()
    assert np.allclose(out[0, :, 0], np.arange(8) / 2, atol=1e-5)


def test_dropped_weights_are_those_of_the_stream(rng: np.random.Generator) -> None:
    """Values that are one-hot in position read the attention weights off the output."""
    steps = 6
    qkv = np.zeros((1, steps, 3 * steps), dtype=np.float32)
    qkv[0, :, 2 * steps :] = np.eye(steps)
    weights, _ = ops.attention_forward(qkv, 1, dropout=0.5, seed=3, counter=1, site=4)
    keep = ops.random_uniform(3, 1, 4, steps * steps).reshape(steps, steps) >= 0.5
    even = np.tril(np.ones((steps, steps))) / np.arange(1, steps + 1)[:, None]
    assert np.allclose(weights[0], 2.0 * even * keep, atol=1e-6)
