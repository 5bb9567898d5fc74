"""The audit against loops over interventions, measure by measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from mom.analysis import Audit, audit

pytest.importorskip("pandas")


def loss_with(model: mom.MoM, **options: Any) -> float:
    out = model(IDS, labels=IDS, keep=False, **options)
    assert out.lm_loss is not None
    return out.lm_loss


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    return model_of(chunks=2)


@pytest.fixture(scope="module")
def found(model: mom.MoM) -> Audit:
    return audit(model, IDS, batch_size=4, samples=200)


def value(found: Audit, measure: str, **where: Any) -> float:
    rows = found.table
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return float(rows[measure].iloc[0])


def test_a_row_for_every_module_and_every_half_round(model: mom.MoM, found: Audit) -> None:
    modules = found.table[found.table["module"].notna()]
    rounds = found.table[found.table["round"].notna()]
    assert len(modules) == 2 * 2 * 4 and len(rounds) == 2 * 2 * model.config.rounds
    assert modules["drop_one"].notna().all() and modules["skip_round"].isna().all()
    assert rounds["skip_round"].notna().all() and rounds["usage"].isna().all()
    assert found.loss == pytest.approx(loss_with(model), abs=1e-6) and found.loss_low < found.loss < found.loss_high
    assert found.tokens == IDS.size and "16 modules, 16 half-rounds, 72 tokens" in repr(found)
    page = found._repr_html_()
    assert "72 tokens" in page and all(f"<th>{measure}_low</th>" in page for measure in found.measures)


def test_drop_one_is_a_loop_over_forbid(model: mom.MoM, found: Audit) -> None:
    base = loss_with(model)
    effects = []
    for half in ("attn", "ffn"):
        for block in range(2):
            rounds = [(block, r) for r in range(model.config.rounds)]
            for module in range(4):
                forbidden = [mom.Forbid(half, [module], rounds=rounds)]
                effects.append(loss_with(model, interventions=forbidden) - base)
                mine = value(found, "drop_one", half=half, block=block, module=module)
                assert mine == pytest.approx(effects[-1], abs=2e-6)
    assert np.ptp(effects) > 1e-3


def test_measures_of_rounds_are_loops_too(model: mom.MoM, found: Audit) -> None:
    base, own = loss_with(model), model(IDS, return_routes=True).routes
    assert own is not None
    for half in ("attn", "ffn"):
        for number, (block, r) in enumerate(own.rounds):
            where = {"half": half, "block": block, "round": r}
            skip = loss_with(model, interventions=[mom.Force(half, "SKIP", rounds=[number])]) - base
            assert value(found, "skip_round", **where) == pytest.approx(skip, abs=2e-6)
            drawn = loss_with(model, interventions=[mom.RandomRoutes(half, rounds=[number], seed=0)]) - base
            assert value(found, "random_router", **where) == pytest.approx(drawn, abs=2e-6)
            if r == 0:
                assert np.isnan(value(found, "frozen_router", **where))
                continue
            free = {h: np.full_like(i, -1) for h, i in own.index.items()}
            free[half][number] = own.index[half][number - r]
            routes = mom.Routes(own.tokens, free, own.scores, own.weight, own.rounds, own.num_modules)
            frozen = loss_with(model, routes=routes) - base
            assert value(found, "frozen_router", **where) == pytest.approx(frozen, abs=2e-6)


def test_cheap_measures_by_their_definitions(model: mom.MoM, found: Audit) -> None:
    own = model.copy()
    out = own(IDS, labels=IDS, return_routes=True, capture="block1.*.module*.output")
    own.backward(scales={"lm": 1.0})
    assert out.routes is not None and out.captured is not None
    index, weights = out.routes.index["ffn"][4:8], out.routes.weight["ffn"][4:8]
    for module in range(4):
        chosen = index == module
        runs = chosen.any(axis=-1)
        names = [f"block1.round{r}.ffn.module{module}.output" for r in range(4)]
        added = np.stack([out.captured[name] for name in names]).astype(float)
        size = np.linalg.norm(added, axis=-1)[runs]
        where = {"half": "ffn", "block": 1, "module": module}
        assert value(found, "usage", **where) == pytest.approx(runs.mean())
        assert value(found, "weight", **where) == pytest.approx((weights * chosen).sum() / runs.size, rel=1e-5)
        assert value(found, "reap", **where) == pytest.approx(size.mean(), rel=1e-5)
        assert value(found, "norm", **where) == pytest.approx((size / weights[chosen]).mean(), rel=1e-5)
        slope = np.stack([out.captured.gradients[name] for name in names])
        assert value(found, "taylor", **where) == pytest.approx(-(slope * added).sum(), rel=1e-4, abs=1e-7)


def test_taylor_is_the_slope_of_scaling_the_outputs(model: mom.MoM, found: Audit) -> None:
    step = 0.01
    own = model(IDS, return_routes=True).routes
    losses = [
        loss_with(model, interventions=[mom.Scale("block1.*.attn.module1.output", 1.0 + change)], routes=own)
        for change in (-step, step)
    ]
    expected = (losses[0] - losses[1]) / (2 * step)
    assert value(found, "taylor", half="attn", block=1, module=1) == pytest.approx(expected, rel=0.02)


def test_batches_do_not_matter(model: mom.MoM, found: Audit) -> None:
    whole = audit(model, IDS, batch_size=16, samples=200)
    # Random routers draw by place in the batch, but this model's routers draw nothing.
    for measure in found.measures:
        for column in (measure, f"{measure}_low", f"{measure}_high"):
            np.testing.assert_allclose(found.table[column], whole.table[column], rtol=1e-4, atol=3e-6)


def test_intervals_are_those_of_the_bootstrap(model: mom.MoM) -> None:
    """With many sequences the interval of usage is near that of the normal approximation."""
    ids = np.random.default_rng(0).integers(0, 40, (60, 8))
    table = audit(model, ids, ["usage"], batch_size=64, samples=2000).table
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    usage = (routes.index["attn"][:4] == 2).any(axis=-1).mean(axis=(0, 2))
    reach = 1.96 * usage.std(ddof=1) / np.sqrt(60)
    row = table[(table["half"] == "attn") & (table["block"] == 0) & (table["module"] == 2)].iloc[0]
    assert (row["usage"], row["usage_low"], row["usage_high"]) == pytest.approx(
        (usage.mean(), usage.mean() - reach, usage.mean() + reach), abs=0.15 * reach
    )


def test_rank_correlation(found: Audit) -> None:
    modules = found.table[found.table["module"].notna()]
    ranks = modules[["usage", "drop_one"]].rank()
    expected = float(np.corrcoef(ranks["usage"], ranks["drop_one"])[0, 1])
    assert found.correlation("usage", "drop_one") == pytest.approx(expected)
    assert found.correlation("usage", "usage") == pytest.approx(1.0)
    low, high = found.correlation_interval("usage", "drop_one")
    assert -1.0 <= low < expected < high <= 1.0
    ffn = modules[modules["half"] == "ffn"][["usage", "drop_one"]].rank()
    assert found.correlation("usage", "drop_one", half="ffn") == pytest.approx(
        float(np.corrcoef(ffn["usage"], ffn["drop_one"])[0, 1])
    )
    with pytest.raises(ValueError, match="b: 'speed' was not measured; there are 'usage'"):
        found.correlation("usage", "speed")
    with pytest.raises(ValueError, match="'usage' and 'skip_round' have 0 rows in common"):
        found.correlation("usage", "skip_round")


def test_the_model_stays_as_it_is() -> None:
    model = model_of(router_type="gru-dev-random-softmax")
    model.train()
    model(IDS, labels=IDS)
    model.backward()
    before = {name: gradient.copy() for name, gradient in model.gradients.items()}
    state = model.random_state
    first, second = audit(model, IDS, samples=20), audit(model, IDS, samples=20)
    assert model.random_state == state and model.training
    assert all(np.array_equal(before[name], gradient) for name, gradient in model.gradients.items())
    assert first.table.equals(second.table)


def test_a_token_file_and_an_array_agree(model: mom.MoM, tmp_path: Path) -> None:
    tokens = np.concatenate([IDS.ravel(), [1, 2, 3]])
    (tmp_path / "val.bin").write_bytes(tokens.astype(np.uint16).tobytes())
    expected = audit(model, IDS, ["usage", "drop_one"], samples=20).table
    for data in (tmp_path, tmp_path / "val.bin", str(tmp_path), mom.data.TokenFile(tmp_path / "val.bin")):
        assert audit(model, data, ["usage", "drop_one"], sequence_length=12, samples=20).table.equals(expected)
    few = audit(model, tmp_path, ["usage"], sequence_length=12, batch_size=2, batches=2, samples=20)
    assert few.tokens == 48
    with pytest.raises(ValueError, match="data: 75 tokens, fewer than one window of 100"):
        audit(model_of(n_positions=128), tmp_path, ["usage"], sequence_length=100)


def test_active_interventions_are_part_of_the_model(model: mom.MoM) -> None:
    with model.intervene([mom.Forbid("ffn", [3])]):
        table = audit(model, IDS, ["usage", "drop_one"], samples=20).table
    dropped = table[(table["half"] == "ffn") & (table["module"] == 3)]
    assert (dropped["usage"] == 0).all() and (dropped["drop_one"].abs() < 1e-6).all()


def test_a_contradiction_names_the_active_interventions(model: mom.MoM) -> None:
    with pytest.raises(ValueError, match="measures: leave out those that contradict interventions.*SKIP of the ffn"):
        with model.intervene([mom.Forbid("ffn", ["SKIP"])]):
            audit(model, IDS, ["usage", "skip_round"], samples=20)


def test_one_router_and_straight_through_models() -> None:
    one = audit(model_of(num_attn=1), IDS, samples=20).table
    assert set(one["half"]) == {"ffn"} and one.loc[one["module"].notna(), "reap"].notna().all()
    signs = audit(model_of(use_ste=True), IDS, ["norm", "reap", "weight", "usage"], samples=20).table
    # Outputs are multiplied by 1, and reap has the weight.
    rows = signs[signs["module"].notna()]
    assert (rows["reap"] < rows["norm"]).all()
    whole = model_of(routing_all_possible_path=True)
    table = audit(whole, IDS, [*mom.analysis.measures.OF_MODULES], samples=20).table.dropna(subset="usage")
    assert (table["usage"] == 1.0).all() and (table["norm"] > table["reap"]).all()
    scores = whole(IDS, return_routes=True).routes.scores["ffn"]  # type: ignore[union-attr]
    np.testing.assert_allclose(table["weight"][4:], scores.mean(axis=(0, 1, 2))[:4], rtol=1e-5)
    with pytest.raises(ValueError, match="measures: 'skip_round' forces choices, which this model does not make"):
        audit(whole, IDS, samples=20)


def test_bad_arguments(model: mom.MoM) -> None:
    with pytest.raises(ValueError, match="measures: 'use' is not one of 'usage'"):
        audit(model, IDS, ["use"])
    with pytest.raises(ValueError, match="measures: is empty"):
        audit(model, IDS, [])
    with pytest.raises(ValueError, match="model: has no routers"):
        audit(mom.MoM(model.config.vanilla_config()), IDS)
    with pytest.raises(ValueError, match="data: shape .*sequences of at least 2 tokens"):
        audit(model, IDS[:, :1])
    with pytest.raises(ValueError, match="sequence_length: is for token files"):
        audit(model, IDS, sequence_length=8)
    with pytest.raises(TypeError, match="model: expected MoM or a path"):
        audit(3, IDS)  # type: ignore[arg-type]
