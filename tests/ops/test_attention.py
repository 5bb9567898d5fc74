"""Attention beyond what holds for every operator."""

from __future__ import annotations

import numpy as np
import pytest

import mom
from mom import ops
from mom.reference import attention


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
        assert np.array_equal(got_lse[:, :end], lse[:, :end])


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
    assert np.array_equal(got_lse[mask], lse[mask])


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


@pytest.mark.parametrize("width", [1, 9, 16, 64, 80])
@pytest.mark.parametrize("steps", [1, 2, 31, 32, 33, 119, 121, 128, 129, 260])
def test_lengths_and_widths_around_those_of_tiles(
    kernel_level: str, steps: int, width: int, rng: np.random.Generator
) -> None:
    qkv = rng.standard_normal((1, steps, 3 * width), dtype=np.float32)
    dout = rng.standard_normal((1, steps, width), dtype=np.float32)
    out, lse = ops.attention_forward(qkv, 1)
    dqkv = ops.attention_backward(dout, qkv, out, lse, 1)
    expected, probs = attention.forward(qkv, 1)
    assert np.linalg.norm(out - expected) <= 2e-6 * np.linalg.norm(expected)
    expected = attention.backward(dout.astype(np.float64), qkv.astype(np.float64), probs, 1)
    assert np.linalg.norm(dqkv - expected) <= 4e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [9, 16, 64])
@pytest.mark.parametrize("steps", [7, 20, 45, 150])
def test_bits_of_a_query_do_not_depend_on_the_others(
    kernel_level: str, steps: int, width: int, precision: str, rng: np.random.Generator
) -> None:
    # A few queries and whole panels of them take their products in different shapes.
    qkv = rng.standard_normal((1, steps, 3 * width), dtype=np.float32)
    dout = rng.standard_normal((1, steps, width), dtype=np.float32)
    out, lse = ops.attention_forward(qkv, 1, precision=precision)
    dq = ops.attention_backward(dout, qkv, out, lse, 1, precision=precision)[0, :, :width]
    for count in (1, 2, 5):
        some = np.zeros((1, steps), bool)
        some[0, rng.permutation(steps)[:count]] = True
        few, few_lse = ops.attention_forward(qkv, 1, queries=some, precision=precision)
        assert few[some].tobytes() == out[some].tobytes()
        assert few_lse[some].tobytes() == lse[some].tobytes()
        few_dq = ops.attention_backward(dout, qkv, out, lse, 1, queries=some, precision=precision)[0, :, :width]
        assert few_dq[some[0]].tobytes() == dq[some[0]].tobytes()


def partly_seen(rng: np.random.Generator, batch: int, share: float) -> tuple[np.ndarray, ...]:
    """q, k and v, a gradient, a mask (its first row is full, its second row begins masked) and active tokens."""
    steps, channels = 140, 24
    qkv = rng.standard_normal((batch, steps, 3 * channels), dtype=np.float32)
    dout = rng.standard_normal((batch, steps, channels), dtype=np.float32)
    mask = rng.random((batch, steps)) < 0.7
    mask[0], mask[1, :9] = True, False
    return qkv, dout, mask, rng.random((batch, steps)) < share


@pytest.mark.parametrize("masked_query", ["causal", "reference"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_inactive_tokens_are_as_rows_of_zeros(
    kernel_level: str, masked_query: str, dropout: float, rng: np.random.Generator
) -> None:
    qkv, dout, mask, active = partly_seen(rng, 3, 0.5)
    active[2, :120] = False  # the first queries see skipped tokens only
    options = {"masked_query": masked_query, "dropout": dropout}
    poisoned, poisoned_dout = qkv.copy(), dout.copy()
    poisoned[~active] = poisoned_dout[~active] = np.nan
    qkv[~active] = dout[~active] = 0.0
    plain_out, plain_lse = ops.attention_forward(qkv, 2, mask, **options)
    plain_dqkv = ops.attention_backward(dout, qkv, plain_out, plain_lse, 2, mask, **options)
    options["active"] = active
    out, lse = ops.attention_forward(poisoned, 2, mask, **options)
    dqkv = ops.attention_backward(poisoned_dout, poisoned, out, lse, 2, mask, **options)
    assert np.allclose(out[active], plain_out[active], rtol=1e-5, atol=1e-6)
    assert np.allclose(lse[active], plain_lse[active], rtol=1e-5, atol=1e-6)
    assert np.allclose(dqkv[active], plain_dqkv[active], rtol=1e-4, atol=1e-5)
    assert not out[~active].any() and not dqkv[~active].any() and np.isfinite(lse).all()


@pytest.mark.parametrize("masked_query", ["causal", "reference"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_tokens_whose_output_is_not_wanted_are_keys_alone(
    kernel_level: str, masked_query: str, share: float, dropout: float, rng: np.random.Generator
) -> None:
    qkv, dout, mask, active = partly_seen(rng, 4, 0.8)
    channels = dout.shape[-1]
    wanted = rng.random(mask.shape) < share
    wanted[1, 3], wanted[2] = True, False  # one that sees no real key; none at all
    options = {"masked_query": masked_query, "dropout": dropout, "active": active}
    whole_out, whole_lse = ops.attention_forward(qkv, 2, mask, **options)
    dout[~wanted] = 0.0
    whole = ops.attention_backward(dout, qkv, whole_out, whole_lse, 2, mask, **options)
    qkv[~wanted, :channels] = dout[~wanted] = np.nan  # not to be read
    options["queries"] = wanted
    results = []
    for threads in (1, 2, 5):  # heads whole, or cut
        mom.set_num_threads(threads)
        out, lse = ops.attention_forward(qkv, 2, mask, **options)
        out[~wanted] = lse[~wanted] = np.nan
        results.append((out, lse, ops.attention_backward(dout, qkv, out, lse, 2, mask, **options)))
    for other in results[1:]:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(results[0], other, strict=True))
    out, lse, dqkv = results[0]
    assert np.array_equal(out[wanted], whole_out[wanted]) and np.array_equal(lse[wanted], whole_lse[wanted])
    assert np.allclose(dqkv, whole, rtol=1e-4, atol=2e-5)
    assert not dqkv[~wanted, :channels].any()


def test_sequences_of_unequal_length_are_as_each_by_itself(kernel_level: str, rng: np.random.Generator) -> None:
    lengths = np.array([7, 0, 190, 1, 33, 64])
    rows = int(lengths.sum())
    qkv = rng.standard_normal((rows, 48), dtype=np.float32)
    dout = rng.standard_normal((rows, 16), dtype=np.float32)
    mask = rng.random(rows) < 0.8
    active = rng.random(rows) < 0.8
    results = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        out, lse = ops.attention_forward(qkv, 2, mask, active=active, lengths=lengths)
        dqkv = ops.attention_backward(dout, qkv, out, lse, 2, mask, active=active, lengths=lengths)
        results.append((out, lse, dqkv))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    out, lse, dqkv = results[0]
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        own = slice(end - length, end)
        options = {"mask": mask[None, own], "active": active[None, own]}
        one_out, one_lse = ops.attention_forward(qkv[None, own], 2, **options)
        one_dqkv = ops.attention_backward(dout[None, own], qkv[None, own], one_out, one_lse, 2, **options)
        assert np.array_equal(one_out[0], out[own])
        assert np.array_equal(one_lse[0], lse[own])
        assert np.array_equal(one_dqkv[0], dqkv[own])


@pytest.mark.parametrize("heads", [1, 3])
def test_same_bits_when_threads_share_a_head(kernel_level: str, heads: int, rng: np.random.Generator) -> None:
    """With few heads the gradients of queries and keys are computed apart, in parts."""
    qkv = rng.standard_normal((1, 700, 3 * 18 * heads), dtype=np.float32)
    dout = rng.standard_normal((1, 700, 18 * heads), dtype=np.float32)
    mask = np.arange(700)[None] >= 11
    results = []
    for threads in (1, 2, 7):
        mom.set_num_threads(threads)
        out, lse = ops.attention_forward(qkv, heads, mask, masked_query="reference")
        dqkv = ops.attention_backward(dout, qkv, out, lse, heads, mask, masked_query="reference")
        results.append(out.tobytes() + lse.tobytes() + dqkv.tobytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("length", [121, 127, 128, 129, 250])
def test_more_tiles_of_keys_than_blocks_of_queries(kernel_level: str, length: int, rng: np.random.Generator) -> None:
    """A tile holds fewer keys than a block holds queries: a head falls into more parts by keys than by queries."""
    qkv = rng.standard_normal((2, length, 6), dtype=np.float32)
    dout = rng.standard_normal((2, length, 2), dtype=np.float32)
    results = []
    for threads in (1, 16):
        mom.set_num_threads(threads)
        out, lse = ops.attention_forward(qkv, 2)
        results.append(out.tobytes() + ops.attention_backward(dout, qkv, out, lse, 2).tobytes())
    assert results[0] == results[1]


def test_wrong_lengths_are_named() -> None:
    qkv = np.zeros((5, 12), dtype=np.float32)
    with pytest.raises(ValueError, match="^lengths: sum 4, expected 5 like the rows of qkv$"):
        ops.attention_forward(qkv, 1, lengths=[3, 1])
    with pytest.raises(ValueError, match="^lengths: sum of at least 6, expected 5 like the rows of qkv$"):
        ops.attention_forward(qkv, 1, lengths=[2, 4, 9])
    with pytest.raises(ValueError, match=r"^qkv: shape \(1, 5, 12\), expected \(N, 3C\)$"):
        ops.attention_forward(qkv[None], 1, lengths=[5])
    with pytest.raises(ValueError, match=r"^active: shape \(4,\), expected \(5,\)$"):
        ops.attention_forward(qkv, 1, lengths=[5], active=[1, 1, 1, 1])
    with pytest.raises(ValueError, match="^precision: 'half', "):
        ops.attention_forward(qkv, 1, lengths=[5], precision="half")
