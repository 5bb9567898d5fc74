"""Information between rounds and with tokens, where the right answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from by_hand import routes

import mom
from mom import analysis

pytest.importorskip("pandas")


def shares(made: mom.Routes, **options: int) -> dict[str, float]:
    table = analysis.dependence(made, half="ffn", **options)
    return dict(zip(table["factor"], table["share"], strict=True))


def test_a_round_that_repeats_another_tells_all_of_it() -> None:
    first = np.arange(80).reshape(1, 8, 10, 1) % 4
    made = routes({"ffn": np.concatenate([first, 3 - first, np.ones_like(first)])})
    table = analysis.mutual_information(made).set_index(["first", "second"])
    assert table.loc[(0, 1), "information"] == pytest.approx(math.log(4))
    assert table.loc[(0, 2), "information"] == pytest.approx(0.0, abs=1e-12)
    assert table.loc[(0, 1), "adjusted"] == table.loc[(0, 1), "information"] - table.loc[(0, 1), "chance"]


def test_independent_rounds_tell_nothing_once_chance_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        table = analysis.mutual_information(routes({"ffn": rng.integers(0, 4, (2, 10, 6, 1))})).iloc[0]
        found.append((table["information"], table["adjusted"], table["low"] <= 0.0 <= table["high"]))
    information, adjusted, inside = np.array(found).T
    # (4 - 1)^2 / (2 * 60) is what chance gives on average.
    assert information.mean() == pytest.approx(9 / 120, rel=0.3)
    assert abs(adjusted.mean()) < 0.02 and inside.mean() >= 0.8


def test_known_information_of_two_rounds() -> None:
    """Of 8 tokens, 6 agree in both rounds: I = log 2 - H(3/4)."""
    first, second = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0]
    made = routes({"ffn": np.array([first, second]).reshape(2, 2, 4, 1)}, 2)
    rest = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert analysis.mutual_information(made)["information"][0] == pytest.approx(math.log(2) - rest)


def test_routes_by_token_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 12, (10, 16))
    made = routes({"ffn": (ids % 4)[None, ..., None]}, tokens=ids)
    assert shares(made) == pytest.approx({"token": 1.0, "position": 0.0, "context": 0.0, "previous": 0.0})
    table = analysis.dependence(made, half="ffn")
    for end in ("low", "high"):
        np.testing.assert_allclose(table[end], table["share"], atol=1e-12)


def test_routes_by_position_alone() -> None:
    ids = np.random.default_rng(1).integers(0, 3, (60, 8))
    made = routes({"ffn": np.broadcast_to(np.arange(8) % 4, (60, 8))[None, ..., None]}, tokens=ids)
    found = shares(made)
    assert abs(found["token"]) < 0.02 and found["position"] > 0.98 and abs(found["context"]) < 0.02


def test_routes_by_the_token_before_are_context() -> None:
    ids = np.random.default_rng(2).integers(0, 4, (200, 8))
    before = np.concatenate([np.zeros((200, 1), int), ids[:, :-1]], axis=1)
    found = shares(routes({"ffn": before[None, ..., None]}, tokens=ids))
    assert abs(found["token"]) < 0.02 and found["previous"] > 0.98
    # The first position has no token before it, so the position explains a little.
    assert found["context"] > 0.8 and found["position"] < 0.15


def test_random_routes_are_not_explained_by_chance() -> None:
    rng = np.random.default_rng(3)
    made = routes({"ffn": rng.integers(0, 4, (1, 30, 16, 1))}, tokens=rng.integers(0, 100, (30, 16)))
    table = analysis.dependence(made, half="ffn").set_index("factor")
    assert abs(table.loc["token", "share"]) < 0.1 and abs(table.loc["position", "share"]) < 0.1
    assert table.loc["token", "low"] <= 0.0 <= table.loc["token", "high"]
    # Without the adjustment nearly a third of the entropy would seem to come from the token.
    ids, route = made.tokens.ravel(), made.index["ffn"].ravel()
    joint = np.zeros((100, 4))
    np.add.at(joint, (ids, route), 1)
    p = joint / joint.sum()
    known = p[p > 0] @ np.log(p[p > 0]) - sum(q @ np.log(q) for q in (p.sum(0), p.sum(1)[p.sum(1) > 0]))
    assert known / table["entropy"].iloc[0] > 0.2


def test_shares_add_up_and_constant_routes_have_none() -> None:
    ids = np.random.default_rng(4).integers(0, 9, (6, 10))
    model = mom.MoM(mom.MoMConfig.preset("demo", vocab_size=16, n_positions=16, n_embd=16, n_head=2, router_dim=8))
    found = model(ids, return_routes=True).routes
    assert found is not None
    table = analysis.dependence(found).pivot_table(index=["half", "round"], columns="factor", values="share")
    total = table["token"] + table["position"] + table["context"]
    np.testing.assert_allclose(total, 1.0)
    constant = analysis.dependence(routes({"ffn": np.ones((1, 3, 4, 1))}))
    assert constant["share"].isna().all() and (constant["entropy"] == 0).all()


def test_padding_is_left_out() -> None:
    ids = np.random.default_rng(5).integers(0, 5, (8, 10))
    choices = (ids % 4)[None, ..., None]
    wide = np.concatenate([choices, np.random.default_rng(6).integers(0, 4, (1, 8, 3, 1))], axis=2)
    padded = routes(
        {"ffn": wide}, tokens=np.pad(ids, ((0, 0), (0, 3))), mask=np.pad(np.ones((8, 10)), ((0, 0), (0, 3)))
    )
    assert shares(padded) == shares(routes({"ffn": choices}, tokens=ids))


def test_bad_arguments() -> None:
    made = routes({"ffn": np.zeros((2, 1, 3, 1))})
    with pytest.raises(ValueError, match="permutations: 0"):
        analysis.dependence(made, permutations=0)
    with pytest.raises(ValueError, match="permutations: 0"):
        analysis.mutual_information(made, permutations=0)
