"""The oracle against enumeration, and what it may and may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from mom.analysis import oracle
from mom.analysis.candidates import Site, space_of
from mom.analysis.trials import Trials
from mom.interventions.selection import ANY_SKIP, NONE

pytest.importorskip("pandas")
SHORT = IDS[:2, :6]


def loss_with(model: mom.MoM, ids: Any, routes: mom.Routes | None = None) -> float:
    out = model(ids, labels=ids, routes=routes, keep=False)
    assert out.lm_loss is not None
    return out.lm_loss


def own_routes(model: mom.MoM, ids: Any) -> mom.Routes:
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    return routes


def runs_of(routes: mom.Routes) -> Any:
    """Modules that each token runs, shape (B, T)."""
    return sum((m < routes.num_modules[half]).sum(axis=(0, 3)) for half, m in routes.module.items())


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    return model_of()


@pytest.mark.parametrize(
    "changes",
    [{}, {"router_type": "naive-softmax", "chunks": 2}, {"num_attn": 1}, {"num_ffn": 1}, {"router_type": "hash"},
     {"routing_top_k": 1, "use_ste": True}, {"enable_pause": False}],
    ids=str,
)  # fmt: skip
def test_losses_are_those_of_whole_passes(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    trials, random = Trials(model, IDS[0], batch_size=5), np.random.default_rng(0)
    halves = list(trials.own.index)
    space = space_of(model.config, 12, {h: model.config.routing_top_k for h in halves}, None, None, None, None)
    state = trials.state({h: i[:, 0] for h, i in trials.own.index.items()})
    for site in [space.sites[i] for i in random.integers(0, len(space.sites), 12)] + [space.sites[0], space.sites[-1]]:
        # Everything from the site on may differ: later half-rounds, of this token and of later ones.
        rows = space.random(state.index, 7, random)
        for row in rows:
            for half, index in row.items():
                index[:, : site.token] = state.index[half][:, : site.token]
                before = site.number + (half == "attn" and site.half == "ffn")
                index[:before] = state.index[half][:before]
        expected = [
            np.nansum(model(IDS[:1], labels=IDS[:1], routes=trials.routes([row]),
                            return_token_losses=True).token_losses)
            for row in rows
        ]  # fmt: skip
        np.testing.assert_allclose(trials.losses(state, rows, site), expected, rtol=2e-6, err_msg=str(site))
    assert trials.evaluated == 14 * 7


def test_an_exhaustive_search_is_a_loop_over_edits(model: mom.MoM) -> None:
    own, best = own_routes(model, SHORT[:1]), np.inf
    for first in range(5):
        for second in range(first + 1, 5):
            changed = own.edit("ffn", to=[first, second if second < 4 else "SKIP"], round=1, tokens=2)
            best = min(best, loss_with(model, SHORT[:1], changed))
    # No module at all is a candidate, too.
    best = min(best, loss_with(model, SHORT[:1], own.edit("ffn", to="SKIP", round=1, tokens=2)))
    for search in ("exhaustive", "greedy", "beam"):
        found = oracle(model, SHORT[:1], search=search, tokens=[2], rounds=[1], half="ffn")
        assert found.table["oracle"][0] == pytest.approx(best, abs=1e-6)
        assert found.table["router"][0] == pytest.approx(loss_with(model, SHORT[:1]), abs=1e-6)
        assert found.regret == pytest.approx(loss_with(model, SHORT[:1]) - best, abs=2e-6)
    two = oracle(model, SHORT[:1], search="exhaustive", tokens=[2, 4], rounds=[1], half="ffn")
    assert two.table["evaluated"][0] == 121 and two.table["oracle"][0] <= best + 1e-6


def test_it_is_never_worse_and_its_routes_have_its_loss(model: mom.MoM) -> None:
    found = oracle(model, SHORT, samples=400)
    assert found.table["evaluated"].tolist() == [400, 400]
    assert (found.table["oracle"] <= found.table["start"]).all() and found.regret > 0
    np.testing.assert_allclose(found.table["start"], found.table["router"], rtol=1e-6)
    assert loss_with(model, SHORT, found.routes) == pytest.approx(found.table["oracle"].mean(), abs=1e-6)
    assert found.random_regret == pytest.approx((found.table["router"] - found.table["random"]).mean())
    assert found.regret_low <= found.regret <= found.regret_high
    assert "2 sequences, 800 routes tried" in repr(found) and "<th>evaluated</th>" in found._repr_html_()


def test_only_what_may_change_changes(model: mom.MoM) -> None:
    own, found = own_routes(model, SHORT), oracle(model, SHORT, tokens=[1, 3], rounds=[(0, 1), 2], half="attn")
    different = {h: (found.routes.module[h] != own.module[h]).any(axis=(1, 3)) for h in ("attn", "ffn")}
    assert different["attn"].any() and not different["ffn"].any()
    allowed = np.zeros_like(different["attn"])
    allowed[np.ix_([1, 2], [1, 3])] = True
    assert not (different["attn"] & ~allowed).any()


def test_the_budget_holds_for_every_token(model: mom.MoM) -> None:
    assert runs_of(own_routes(model, SHORT)).max() > 6
    found = oracle(model, SHORT, budget=6, samples=200)
    assert runs_of(found.routes).max() <= 6
    assert (found.table["oracle"] <= found.table["start"]).all()
    nothing = oracle(model, SHORT, budget=0)
    assert runs_of(nothing.routes).max() == 0
    skip = [mom.Force("attn", "SKIP"), mom.Force("ffn", "SKIP")]
    skipped = model(SHORT, labels=SHORT, interventions=skip).lm_loss
    assert nothing.table["oracle"].mean() == pytest.approx(skipped, abs=1e-6)
    with pytest.raises(ValueError, match="budget: token 0 runs more than 3 modules where nothing may change"):
        oracle(model, SHORT, budget=3, half="ffn", rounds=[0])


def test_a_budget_starts_without_the_modules_of_least_weight(model: mom.MoM) -> None:
    own = own_routes(model, SHORT[:1])
    space = space_of(model.config, 6, {"attn": 2, "ffn": 2}, 9, None, None, None)
    index = {h: i[:, 0] for h, i in own.index.items()}
    weight = {h: w[:, 0] for h, w in own.weight.items()}
    found = space.within_budget(index, weight)
    for token in range(6):
        run = [(weight[h][n, token, k], h, n, int(index[h][n, token, k])) for h in index for n in range(4)
               for k in range(2) if index[h][n, token, k] < 4]  # fmt: skip
        gone = sorted(run)[: max(0, len(run) - 9)]
        left = {(h, n, int(m)) for h in index for n in range(4) for m in found[h][n, token] if 0 <= m < 4}
        assert left == {item[1:] for item in run} - {item[1:] for item in gone}


def test_random_routes_keep_the_budget_and_depend_on_the_seed(model: mom.MoM) -> None:
    space = space_of(model.config, 6, {"attn": 2, "ffn": 2}, 5, [1, 2], None, None)
    own = own_routes(model, SHORT[:1])
    index = space.within_budget({h: i[:, 0] for h, i in own.index.items()}, {h: w[:, 0] for h, w in own.weight.items()})
    drawn = space.random(index, 50, np.random.default_rng(0))
    assert max(int(space.used(one)[[1, 2]].max()) for one in drawn) <= 5
    assert all(np.array_equal(one[h][:, [0, 3, 4, 5]], index[h][:, [0, 3, 4, 5]]) for one in drawn for h in one)
    first, second, other = (oracle(model, SHORT[:1], samples=50, seed=s).table for s in (0, 0, 1))
    assert first.equals(second) and first["random"][0] != other["random"][0]
    assert first["oracle"][0] == other["oracle"][0]


def test_candidates_are_all_sets_of_modules() -> None:
    def entries(**changes: Any) -> list[list[int]]:
        config = model_of(num_ffn=2, num_attn=2, **changes).config
        kept = min(config.routing_top_k, config.num_choices("ffn"))
        return space_of(config, 3, {"attn": kept, "ffn": kept}, None, None, None, None).entries["ffn"].tolist()

    assert entries() == [[2, NONE], [0, 2], [1, 2], [0, 1]]
    assert entries(routing_top_k=1) == [[2], [0], [1]]
    assert entries(enable_pause=False) == [[2, NONE], [0, NONE], [1, NONE], [0, 1]]
    config = model_of(num_ffn=1, num_attn=2).config
    assert list(space_of(config, 3, {"attn": 2}, None, None, None, None).entries) == ["attn"]
    more = model_of(num_ffn=4, num_attn=2, router_choices="max").config
    found = space_of(more, 3, {"attn": 1, "ffn": 1}, None, None, None, None)
    assert found.entries["attn"].tolist() == [[2], [3], [4], [0], [1]] and ANY_SKIP not in found.entries["attn"]
    assert found.sites[:3] == [Site(0, 0, "attn"), Site(0, 0, "ffn"), Site(0, 1, "attn")]
    assert found.size == 5 ** len(found.sites)


def test_it_works_inside_intervene_and_leaves_the_model_alone(model: mom.MoM) -> None:
    state = model.random_state
    with model.intervene([mom.Zero("block0.round3.ffn.output")]):
        found = oracle(model, SHORT[:1], rounds=[3], half="ffn")
    # What is zeroed does not change the loss.
    assert found.regret == pytest.approx(0.0, abs=1e-6) and model.random_state == state


@pytest.mark.parametrize("rule", [mom.TopK(1), mom.TopK(3), mom.TopK(1, half="ffn")], ids=repr)
def test_an_active_top_k_is_the_number_of_choices(model: mom.MoM, rule: mom.TopK) -> None:
    with model.intervene([rule]):
        found = oracle(model, SHORT[:1], tokens=[1, 2], samples=60)
        assert loss_with(model, SHORT[:1], found.routes) == pytest.approx(found.table["oracle"][0], abs=1e-6)
    assert found.routes.index["ffn"].shape[-1] == rule.k and found.regret >= 0.0


def test_a_contradiction_names_the_active_interventions(model: mom.MoM) -> None:
    with pytest.raises(ValueError, match="model: the search forces choices that contradict interventions.*module 0 of"):
        with model.intervene([mom.Forbid("ffn", [0])]):
            oracle(model, SHORT[:1], samples=500)
    with pytest.raises(ValueError, match=r"model: the search forces choices.*Force\(half='ffn', to=1\)"):
        with model.intervene([mom.Force("ffn", to=1)]):
            oracle(model, SHORT[:1], samples=500)


def test_no_regret_is_zero(model: mom.MoM) -> None:
    # Nothing follows the last token, so its routes change no loss.
    assert oracle(model, SHORT, tokens=[5], samples=20).regret == 0.0


def test_what_cannot_be_searched_is_refused(model: mom.MoM) -> None:
    with pytest.raises(ValueError, match="search: 'best' is not one of 'exhaustive', 'greedy', 'beam'"):
        oracle(model, SHORT, search="best")
    with pytest.raises(ValueError, match=r"samples: an exhaustive search has [\d,]+ routes, more than 4,096"):
        oracle(model, SHORT, search="exhaustive", tokens=[1])
    with pytest.raises(ValueError, match="tokens: there is no position 6; sequences have 6 tokens"):
        oracle(model, SHORT, tokens=[6])
    with pytest.raises(ValueError, match="half: 'up' has no router here"):
        oracle(model, SHORT, half="up")
    with pytest.raises(ValueError, match="rounds: there is no round 9"):
        oracle(model, SHORT, rounds=[9])
    with pytest.raises(ValueError, match="rounds: there is no round 9"):
        oracle(model, SHORT, rounds=9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget: -1"):
        oracle(model, SHORT, budget=-1)
    with pytest.raises(ValueError, match="model: uses all modules for every token"):
        oracle(model_of(routing_all_possible_path=True), SHORT)
    with pytest.raises(ValueError, match="model: its routers draw noise"):
        oracle(model_of(router_type="gru-dev-random-softmax"), SHORT)
    with pytest.raises(ValueError, match="model: has no routers"):
        oracle(mom.MoM(model.config.vanilla_config()), SHORT)
    with pytest.raises(ValueError, match="sequences of at least 2 tokens"):
        oracle(model, [[3]])


def test_random_routes_are_uniform_within_the_budget(model: mom.MoM) -> None:
    own = {half: i[:, 0] for half, i in own_routes(model, SHORT[:1]).index.items()}
    sizes = {"attn": 2, "ffn": 2}
    space = space_of(model.config, 6, sizes, None, [1, 4], [0, 3], None)
    rows = space.random(own, 6000, np.random.default_rng(0))
    for half in ("attn", "ffn"):
        drawn = np.stack([row[half] for row in rows])
        for number, token in ((0, 1), (3, 4)):
            found = (drawn[:, number, token, None] == space.entries[half]).all(axis=-1).mean(axis=0)
            assert len(found) == 11 and found.sum() == pytest.approx(1.0)
            np.testing.assert_allclose(found, 1 / 11, atol=0.016)  # four standard deviations
        same = drawn == own[half]
        assert same[:, 1:3].all() and same[:, :, [0, 2, 3, 5]].all() and not same[:, 0, 1].all()
    tight = space_of(model.config, 6, sizes, 5, [1, 4], None, None)
    rows = tight.random(own, 500, np.random.default_rng(1))
    used = np.stack([tight.used(row)[[1, 4]] for row in rows])
    assert used.max() == 5 and used.min() >= 0 and (used == 5).mean() > 0.5
    # Half-rounds take turns at random, so that none of them comes first.
    runs = np.stack([(row["attn"][:, 1] < 4).sum(axis=-1) - (row["attn"][:, 1] < 0).sum(axis=-1) for row in rows])
    assert np.ptp(runs.mean(axis=0)) < 0.25
