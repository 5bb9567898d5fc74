"""`mom.data.batches`: rows come exactly once, with others of similar length, one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from mom.data.batches import bucketed, pack_labelled, pack_rows


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


def test_rows_lie_one_after_the_other() -> None:
    rows = [np.array([5, 6, 7]), np.array([8]), np.array([9, 1])]
    tokens, lengths = pack_rows(rows)
    assert tokens.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(tokens, [5, 6, 7, 8, 9, 1])
    np.testing.assert_array_equal(lengths, [3, 1, 2])
    (chosen,) = bucketed(lengths, 4)
    np.testing.assert_array_equal(chosen, [0, 2, 1])


def test_labels_begin_where_scoring_does() -> None:
    rows = [(np.array([5, 6, 7], np.int32), 2), (np.array([8, 9], np.int32), 0), (np.array([4], np.int32), 1)]
    tokens, labels, lengths = pack_labelled(rows)
    np.testing.assert_array_equal(tokens, [5, 6, 7, 8, 9, 4])
    np.testing.assert_array_equal(labels, [-100, -100, 7, 8, 9, -100])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(lengths, [3, 2, 1])
    assert rows[0][0].tolist() == [5, 6, 7]
