"""`mom.data.batches`: rows come exactly once, with little padding, and padding is marked."""

from __future__ import annotations

import numpy as np
import pytest

from mom.data.batches import bucketed, iter_batches, pad_labelled, pad_rows


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("rows", "size"), [(1, 4), (7, 3), (1000, 8), (64, 64), (0, 3)])
def test_every_row_comes_once(rows: int, size: int, seed: int | None) -> None:
    lengths = np.random.default_rng(5).integers(1, 60, rows)
    batches = bucketed(lengths, size, None if seed is None else np.random.default_rng(seed))
    assert all(1 <= len(batch) <= size for batch in batches)
    np.testing.assert_array_equal(np.sort(np.concatenate([np.zeros(0, int), *batches])), np.arange(rows))


def test_batches_hold_similar_lengths_in_random_order() -> None:
    lengths = np.random.default_rng(5).integers(1, 200, 4000)
    batches = bucketed(lengths, 16, np.random.default_rng(0))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.06 * lengths.sum()
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2
    again = bucketed(lengths, 16, np.random.default_rng(0))
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    longest_first = bucketed(lengths, 16)
    assert lengths[longest_first[0]].min() >= lengths[longest_first[1]].max()
    with pytest.raises(ValueError, match="batch_size: 0 is less than 1"):
        bucketed(lengths, 0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_marked(side: str) -> None:
    rows = [np.array([5, 6, 7]), np.array([8]), np.array([9, 1])]
    tokens, mask = pad_rows(rows, fill=3, side=side)
    assert tokens.dtype == np.int32 and mask is not None and mask.dtype == np.uint8
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(tokens[i][mask[i] == 1], row)
        assert (tokens[i][mask[i] == 0] == 3).all()
        assert (mask[i, 0] == 1) == (side == "right" or len(row) == 3)
    assert pad_rows([np.array([1, 2]), np.array([3, 4])], side=side)[1] is None
    with pytest.raises(ValueError, match="side: 'middle' is not one of"):
        pad_rows(rows, side="middle")


def test_labels_begin_where_scoring_does() -> None:
    rows = [(np.array([5, 6, 7], np.int32), 2), (np.array([8, 9], np.int32), 0)]
    tokens, labels, mask = pad_labelled(rows)
    np.testing.assert_array_equal(tokens, [[5, 6, 7], [8, 9, 0]])
    np.testing.assert_array_equal(labels, [[-100, -100, 7], [8, 9, -100]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 0]])
    assert rows[0][0].tolist() == [5, 6, 7]


def test_positions_count_real_tokens() -> None:
    rows = [np.array([5, 6, 7]), np.array([8]), np.array([9, 1])]
    (batch,) = iter_batches(rows, 4, side="left")
    assert batch.positions is not None
    np.testing.assert_array_equal(batch.rows, [0, 2, 1])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch.lengths, [3, 2, 1])
    (batch,) = iter_batches(rows[:1] * 2, 4, side="left")
    assert batch.positions is None and batch.attention_mask is None and list(batch.lengths) == [3, 3]
