"""The order of sums over ranks does not depend on the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from mom import _core
from mom.distributed import Tree


def written(leaves: range) -> str:
    """The sum over leaves, with brackets, in which each node splits in the middle."""
    if len(leaves) == 1:
        return str(leaves.start)
    middle = len(leaves) // 2
    return f"({written(leaves[:middle])}+{written(leaves[middle:])})"


def first_leaf(text: str) -> int:
    return int(text.replace("(", "").partition("+")[0].rstrip(")"))


@pytest.mark.parametrize("ranks", range(1, 10))
@pytest.mark.parametrize("leaves", [1, 2, 3, 4, 7, 8, 13, 32])
def test_every_rank_gets_the_sum_of_one_process(leaves: int, ranks: int) -> None:
    tree = Tree(leaves, ranks)
    assert [leaf for run in tree.runs for leaf in run] == list(range(leaves))
    for rank in range(ranks):
        pieces = {owner: written(run) for owner, run in enumerate(tree.runs) if run}
        for to, source in tree.additions(rank):
            left, right = sorted((pieces[to], pieces[source]), key=first_leaf)
            pieces[to] = f"({left}+{right})"
        assert pieces[tree.result(rank)] == written(range(leaves))
        assert tree.result(rank) == rank or not tree.runs[rank]


@pytest.mark.parametrize("power", range(4))
def test_powers_of_two_share_evenly(power: int) -> None:
    assert {len(run) for run in Tree(16, 2**power).runs} == {16 // 2**power}


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 10_001])
@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_are_added_in_order(size: int, threads: int) -> None:
    rng = np.random.default_rng(size)
    pieces = [rng.normal(size=size).astype(np.float32) for _ in range(5)]
    expected = (pieces[0] + pieces[1]) + (pieces[2] + (pieces[3] + pieces[4]))
    before = _core.get_num_threads()
    try:
        _core.set_num_threads(threads)
        _core.add_pieces(tuple(pieces), Tree(5, 5).additions(0))
    finally:
        _core.set_num_threads(before)
    np.testing.assert_array_equal(pieces[0], expected)


@pytest.mark.parametrize(
    "pieces, additions, error, message",
    [
        ((np.zeros(2, np.float32), np.zeros(3, np.float32)), ((0, 1),), ValueError, "entry 1 has 3 elements"),
        ((np.zeros(2, np.float32), np.zeros(2)), ((0, 1),), TypeError, "pieces: .*float64"),
        ((np.zeros(2, np.float32),) * 2, ((0, 2),), ValueError, r"\(0, 2\) are not two of 2 pieces"),
        ((np.zeros(2, np.float32),) * 2, ((1, 1),), ValueError, r"\(1, 1\)"),
        ((np.zeros(2, np.float32),) * 2, ((0, -1),), ValueError, r"\(0, -1\)"),
        ((np.zeros(2, np.float32),) * 2, ((0, "a"),), TypeError, "additions: expected pairs|interpreted"),
        ((np.zeros(2, np.float32),) * 2, (0,), TypeError, "additions: expected pairs"),
        (([0.0], [1.0]), ((0, 1),), TypeError, "pieces"),
    ],
)
def test_arguments_of_add_pieces(pieces: tuple, additions: tuple, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        _core.add_pieces(pieces, additions)
