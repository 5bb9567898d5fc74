"""Routes of two models and of two parts of a text, made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import routes

from mom import analysis

pytest.importorskip("pandas")
pytest.importorskip("scipy")

FIRST = np.random.default_rng(0).integers(0, 4, (3, 6, 20, 1))  # 3 is SKIP
ORDER = np.array([2, 0, 1, 3])


def test_renumbered_modules_are_found_again() -> None:
    a, b = routes({"ffn": FIRST}, 3), routes({"ffn": ORDER[FIRST]}, 3)
    assert list(analysis.match_modules(a, b, "ffn")) == [2, 0, 1]
    assert list(analysis.match_modules(b, a, "ffn")) == [1, 2, 0]
    table = analysis.drift(a, b)
    assert (table["matched"] == 1.0).all() and (table["low"] == 1.0).all() and (table["high"] == 1.0).all()
    same = (FIRST == ORDER[FIRST]).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(table["agreement"], same)
    share = np.array([[(FIRST[r] == m).mean() for m in range(4)] for r in range(3)])
    np.testing.assert_allclose(table["chance"], np.square(share).sum(axis=1))


def test_half_of_the_choices_of_one_round_drift() -> None:
    other = FIRST.copy()
    other[1, 3:] = (other[1, 3:] + 1) % 3
    table = analysis.drift(routes({"ffn": FIRST}, 3), routes({"ffn": other}, 3))
    kept = (FIRST == other).reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(table["matched"], kept)
    assert table["low"][1] < kept[1] < table["high"][1] and kept[1] < 0.7


def test_blocks_are_matched_apart_and_order_within_a_choice_does_not_count() -> None:
    a = routes({"attn": [[[[0, 1], [2, 3]]], [[[0, 1], [0, 2]]]]}, 3, rounds=[(0, 0), (1, 0)])
    b = routes({"attn": [[[[1, 0], [3, 2]]], [[[1, 2], [1, 0]]]]}, 3, rounds=[(0, 0), (1, 0)])
    assert list(analysis.match_modules(a, b, "attn", block=1)) == [1, 2, 0]
    assert list(analysis.drift(a, b)["matched"]) == [1.0, 1.0]


def test_models_with_other_numbers_of_modules() -> None:
    a = routes({"ffn": FIRST}, 3)
    fewer = np.where(FIRST == 2, 2, np.where(FIRST == 3, 2, FIRST))  # module 2 became SKIP, which is 2 there
    assert list(analysis.match_modules(a, routes({"ffn": fewer}, 2), "ffn")) == [0, 1, -1]
    table = analysis.drift(a, routes({"ffn": fewer}, 2))
    np.testing.assert_allclose(table["matched"], (FIRST != 2).reshape(3, -1).mean(axis=1))


def test_other_tokens_and_rounds_are_refused() -> None:
    a = routes({"ffn": FIRST}, 3)
    with pytest.raises(ValueError, match="b: is of other tokens than a"):
        analysis.drift(a, routes({"ffn": FIRST}, 3, tokens=np.ones((6, 20))))
    with pytest.raises(ValueError, match="b: has rounds"):
        analysis.drift(a, routes({"ffn": FIRST[:2]}, 3))
    with pytest.raises(ValueError, match=r"b: has routers in \['attn'\], a in \['ffn'\]"):
        analysis.drift(a, routes({"attn": FIRST}, 3))
    with pytest.raises(ValueError, match="block: there is no block 7"):
        analysis.match_modules(a, a, "ffn", block=7)


def test_prompt_and_generated_tokens() -> None:
    made = routes({"ffn": [[[[0], [1], [2], [2]], [[0], [0], [0], [2]]]]}, 2)
    table = analysis.prefill_against_decode(made, prompt=[2, 3])
    assert list(table["module"]) == [0, 1, "SKIP"]
    np.testing.assert_allclose(table["prefill"], [4 / 5, 1 / 5, 0])
    np.testing.assert_allclose(table["decode"], [0, 0, 1])
    np.testing.assert_allclose(table["difference"], [-4 / 5, -1 / 5, 1])
    # Without the first sequence the difference is -1, 0, 1; without the second -1/2, -1/2, 1.
    error = np.sqrt(0.5 * 2 * 0.25**2)
    np.testing.assert_allclose(table["low"][:2], table["difference"][:2] - 1.96 * error)
    with pytest.raises(ValueError, match="prompt: 3 lengths for 2 sequences"):
        analysis.prefill_against_decode(made, prompt=[1, 2, 3])
    with pytest.raises(ValueError, match="prompt: one of the two parts"):
        analysis.prefill_against_decode(made, prompt=4)
