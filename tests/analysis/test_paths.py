"""Paths and numbers of modules of routes whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from by_hand import routes

from mom import analysis

pytest.importorskip("pandas")

#: Two rounds, one sequence of four tokens and a padding token; two attention and three feed-forward modules.
SMALL = routes(
    {
        "attn": [[[[1, 0], [0, 1], [2, 2], [0, 2], [1, 1]]], [[[0, 2], [2, 0], [2, 2], [1, 2], [1, 1]]]],
        "ffn": [[[[2], [2], [3], [0], [1]]], [[[1], [1], [3], [1], [1]]]],
    },
    {"attn": 2, "ffn": 3},
    mask=[[1, 1, 1, 1, 0]],
)


def test_paths_are_sets_of_modules_with_counts() -> None:
    table = analysis.paths(SMALL)
    assert list(table["path"]) == ["A0+A1 F2 > A0 F1", "- - > - -", "A0 F0 > A1 F1"]
    assert list(table["count"]) == [2, 1, 1] and list(table["share"]) == [0.5, 0.25, 0.25]
    ffn = analysis.paths(SMALL, half="ffn")
    assert list(ffn["path"]) == ["F2 > F1", "- > -", "F0 > F1"]


def test_packed_rows_have_the_same_paths() -> None:
    packed = routes({half: i[:, 0, :4] for half, i in SMALL.index.items()}, SMALL.num_modules, lengths=[3, 1])
    assert analysis.paths(packed).equals(analysis.paths(SMALL))


def test_entropy_of_paths() -> None:
    expected = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert analysis.path_entropy(SMALL) == pytest.approx(expected)
    assert analysis.path_entropy(SMALL, corrected=True) == pytest.approx(expected + 2 / 8)
    same = routes({"ffn": np.ones((3, 2, 5, 1))})
    assert analysis.path_entropy(same) == 0.0 and len(analysis.paths(same)) == 1


def test_effective_modules_are_the_exponential_of_entropy() -> None:
    table = analysis.effective_modules(SMALL).set_index(["half", "round"])
    # Round 0, attention: choices 1 0, 0 1, SKIP SKIP, 0 SKIP, so A0 three times and A1 twice.
    shares = np.array([3, 2]) / 5
    assert table.loc[("attn", 0), "effective"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert table.loc[("attn", 0), "skip"] == pytest.approx(3 / 8)
    assert table.loc[("ffn", 1), "effective"] == pytest.approx(1.0)
    equal = routes({"ffn": np.arange(12).reshape(1, 3, 4, 1) % 4})
    row = analysis.effective_modules(equal).iloc[0]
    assert (row["effective"], row["low"], row["high"]) == (pytest.approx(4.0),) * 3
    skips = analysis.effective_modules(routes({"ffn": np.full((1, 1, 3, 1), 4)})).iloc[0]
    assert skips["effective"] == 0.0 and skips["skip"] == 1.0 and np.isnan(skips["low"])


def test_interval_of_effective_modules_is_that_of_the_jackknife() -> None:
    table = analysis.effective_modules(routes({"ffn": [[[[0], [1]], [[0], [0]], [[1], [1]]]]}, 2)).iloc[0]

    def effective(zeros: int, ones: int) -> float:
        share = np.array([zeros, ones]) / (zeros + ones)
        return float(np.exp(-(share * np.log(share)).sum()))

    without = np.array([effective(2, 2), effective(1, 3), effective(3, 1)])
    error = math.sqrt(2 / 3 * np.square(without - without.mean()).sum())
    assert table["effective"] == pytest.approx(effective(3, 3))
    assert (table["low"], table["high"]) == pytest.approx((2.0 - 1.96 * error, 2.0 + 1.96 * error))


def test_dead_modules_of_each_block() -> None:
    two = routes({"ffn": [[[[0], [1]]], [[[0], [3]]], [[[2], [2]]]]}, 3, rounds=[(0, 0), (0, 1), (1, 0)])
    table = analysis.dead_modules(two)
    assert list(zip(table["block"], table["module"], strict=True)) == [(0, 2), (1, 0), (1, 1)]
    assert list(analysis.dead_modules(two, threshold=0.25)["module"]) == [1, 2, 0, 1]
    with pytest.raises(ValueError, match="threshold: 2.0 is no share"):
        analysis.dead_modules(two, threshold=2.0)


@pytest.mark.parametrize("function", [
    analysis.coactivation, analysis.dead_modules, analysis.dependence, analysis.effective_modules, analysis.module_use,
    analysis.mutual_information, analysis.path_entropy, analysis.paths,
])  # fmt: skip
def test_statistics_take_routes_alone(function: Any) -> None:
    for bad in (None, [], {"ffn": 1}, "routes.npz"):
        with pytest.raises(TypeError, match=f"routes: expected mom.Routes, got {type(bad).__name__}"):
            function(bad)


def test_coactivation_counts_pairs() -> None:
    table = analysis.coactivation(SMALL)
    assert list(table) == ["A0", "A1", "F0", "F1", "F2"]
    # Eight pairs of a token and a round. A0 runs with A1 in two, with F2 in two, with F1 in two, with F0 in one.
    assert list(table.loc["A0"] * 8) == [5, 2, 1, 2, 2]
    assert (table.values == table.values.T).all()
    over = analysis.coactivation(SMALL, over="path") * 4
    assert list(over.loc["A0"]) == [3, 3, 1, 3, 2] and over.loc["F0", "F2"] == 0
    lift = analysis.coactivation(SMALL, lift=True)
    assert lift.loc["A0", "A1"] == pytest.approx((2 / 8) / (5 / 8 * 3 / 8))
    dead = analysis.coactivation(routes({"ffn": np.zeros((1, 1, 3, 1))}, 2), lift=True)
    assert dead.iloc[0, 0] == 1.0 and np.isnan(dead.iloc[1]).all() and np.isnan(dead.iloc[:, 1]).all()


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(TypeError, match=r"routes: expected mom.Routes, got list; model\(ids, return_routes=True\)"):
        analysis.paths([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="half: 'up' has no router here; those with one are"):
        analysis.paths(SMALL, half="up")
    with pytest.raises(ValueError, match="routes: there are no tokens to count"):
        analysis.path_entropy(routes({"ffn": np.zeros((1, 1, 2, 1))}, mask=[[0, 0]]))
    with pytest.raises(ValueError, match="routes: some choices are free"):
        analysis.paths(SMALL.edit("ffn", to="free"))
    with pytest.raises(ValueError, match="over: expected 'round' or 'path', got 'way'"):
        analysis.coactivation(SMALL, over="way")
    with pytest.raises(ValueError, match="block: there is no block 3"):
        analysis.coactivation(SMALL, block=3)
