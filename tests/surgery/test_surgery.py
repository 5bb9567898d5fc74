"""Operations on modules: what they compute, what they keep, and what the receipt says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.routers import KINDS
from mom.surgery import CRITERIA, distil_routes, grow, merge, permute, prune, prune_curve, wake

pytest.importorskip("pandas")

IDS = np.random.default_rng(0).integers(0, 64, (4, 16), dtype=np.int32)
#: Kinds of routers with outputs for modules, with a softmax, and with noise where they have any.
ROUTERS = [f"{name}-softmax" for name, kind in KINDS.items() if kind.parameters(1, 1, 1, 1)]
ROUTERS += [f"{name}-random" for name, kind in KINDS.items() if kind.recurrent]
#: The routers of which modules can be left out.
PRUNED = [router for router in ROUTERS if "norm" not in router]
#: What a router may have beside its kind.
OPTIONS: list[dict[str, Any]] = [
    {"router_rounds": "projection", "router_bias_rate": 0.01}, {"router_rounds": "embedding", "router_layernorm": True},
    {"shared_pools": "both"}, {"shared_pools": "ffn", "router_type": "linear-softmax", "router_bias_rate": 0.01},
]  # fmt: skip


def model_of(**changes: Any) -> mom.MoM:
    """Two blocks of 5 + 4 modules and SKIP, trained for a few steps so that routers differ."""
    fields: dict[str, Any] = {
        "vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_head": 2, "chunks": 2, "num_attn": 5, "num_ffn": 4,
        "depth_per_chunk": 3, "router_dim": 8, "routing_top_k": 2, "router_choices": "own",
    }  # fmt: skip
    model = mom.MoM(mom.MoMConfig(**{**fields, **changes}), seed=0)
    optimizer = mom.AdamW(model, lr=2e-2)
    for _ in range(3):
        model(IDS, labels=IDS)
        model.backward()
        optimizer.step(1.0, zero_grad=True)
    return model


def loss_of(model: mom.MoM, **options: Any) -> float:
    out = model(IDS, labels=IDS, keep=False, **options)
    assert out.lm_loss is not None
    return out.lm_loss


def weights_of(model: mom.MoM) -> bytes:
    return b"".join(tensor.tobytes() for tensor in model.parameters.values())


# ---------------------------------------------------------------------- permute
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_order_computes_the_same(router: str, dtype: str) -> None:
    model = model_of(router_type=router)
    model = model.with_config() if dtype == "float32" else mom.MoM.from_pretrained(saved(model), dtype=dtype)
    changed, receipt = permute(model, attn=[4, 2, 0, 1, 3], ffn=[1, 3, 2, 0])
    model.random_state = changed.random_state = (3, 0)
    before, after = (each(IDS, labels=IDS, return_logits=True, keep=False) for each in (model, changed))
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(after.logits, before.logits, atol=tolerance)
    assert after.lm_loss == pytest.approx(before.lm_loss, abs=tolerance)
    back = permute(changed, attn=[2, 3, 1, 4, 0], ffn=[3, 0, 2, 1]).model
    assert weights_of(back) == weights_of(model) != weights_of(changed)
    assert receipt["kept"] == {"attn": [[4, 2, 0, 1, 3]] * 2, "ffn": [[1, 3, 2, 0]] * 2}
    assert receipt["before"]["parameters"] == receipt["after"]["parameters"] == model.num_parameters


def saved(model: mom.MoM) -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp()) / "model"
    model.save_pretrained(folder)
    return folder


def test_routes_are_permuted() -> None:
    model = model_of()
    order = [1, 3, 2, 0]
    changed = permute(model, ffn=order).model
    before, after = (each(IDS, return_routes=True).routes for each in (model, changed))
    assert before is not None and after is not None
    new_number = np.array([order.index(old) for old in range(4)] + [4])  # SKIP stays the last one
    np.testing.assert_array_equal(after.index["ffn"], new_number[before.index["ffn"]])
    np.testing.assert_array_equal(after.index["attn"], before.index["attn"])


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4]])
def test_what_is_no_order_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="ffn: .* is no order of the 4 modules 0 to 3"):
        permute(model_of(), ffn=order)


def test_halves_without_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="attn: a router of kind 'hash' has no outputs"):
        permute(model_of(router_type="hash"), attn=[0, 1, 2, 4, 3])
    with pytest.raises(ValueError, match="attn: this model has no router for this half"):
        prune(model_of(num_attn=1), attn=0.5, by="random")


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_another_order_with_what_a_router_may_have(changes: dict[str, Any]) -> None:
    model = model_of(**{"router_type": "gru-softmax", **changes})
    changed = permute(model, attn=[4, 2, 0, 1, 3], ffn=[1, 3, 2, 0]).model
    before, after = (each(IDS, labels=IDS, return_logits=True, keep=False) for each in (model, changed))
    np.testing.assert_allclose(after.logits, before.logits, atol=1e-6)
    assert weights_of(permute(changed, attn=[2, 3, 1, 4, 0], ffn=[3, 0, 2, 1]).model) == weights_of(model)


# ---------------------------------------------------------------------- prune
@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_fewer_modules_with_what_a_router_may_have(changes: dict[str, Any]) -> None:
    model = model_of(**{"router_type": "gru-softmax", **changes})
    changed, receipt = prune(model, attn=0.4, ffn=0.25, by="usage", data=IDS)
    kept = receipt["kept"]
    counts = {"attn": 5, "ffn": 4}
    gone = {half: [sorted(set(range(n)) - set(numbers)) for numbers in kept[half]] for half, n in counts.items()}
    shared = changes.get("shared_pools", "none")
    assert (kept["ffn"][0] == kept["ffn"][1]) or shared not in ("ffn", "both")
    rules = [
        mom.Forbid(half, modules=numbers, rounds=[(block, r) for r in range(3)])
        for half, blocks in gone.items()
        for block, numbers in enumerate(blocks)
    ]
    assert loss_of(changed) == pytest.approx(loss_of(model, interventions=rules), abs=1e-6)


def test_a_module_without_a_value_in_one_block_is_judged_by_the_others() -> None:
    """Of shared modules, block 0 runs only the first and block 1 only the last."""
    model = model_of(router_type="linear-softmax", shared_pools="ffn", routing_top_k=1)
    for block, chosen in zip(model.blocks, (0, 3), strict=True):
        block.ffn_router.parameters["router.bias"][chosen] = 50.0
    kept = prune(model, ffn=0.25, by="norm", data=IDS, progress=False).receipt["kept"]["ffn"]
    assert {0, 3} <= set(kept[0]) and kept[0] == kept[1]


def test_modules_of_a_norm_router_stay() -> None:
    with pytest.raises(ValueError, match="ffn: the projections of a 'norm' router"):
        prune(model_of(router_type="norm-softmax"), ffn=0.25, by="random")


@pytest.mark.parametrize("router", PRUNED)
@pytest.mark.parametrize("half, module", [("attn", 0), ("attn", 4), ("ffn", 2)])
def test_one_module_less_is_a_model_that_may_not_choose_it(router: str, half: str, module: int) -> None:
    model = model_of(router_type=router, chunks=1)
    count = {"attn": 5, "ffn": 4}[half]
    seed = next(
        seed for seed in range(500)
        if module not in prune(model, by="random", seed=seed, **{half: 1 / count}).receipt["kept"][half][0]
    )  # fmt: skip
    changed, receipt = prune(model, by="random", seed=seed, **{half: 1 / count})
    assert receipt["kept"][half] == [[number for number in range(count) if number != module]]
    model.random_state = changed.random_state = (3, 0)
    expected = loss_of(model, interventions=[mom.Forbid(half, modules=[module])])
    assert loss_of(changed) == pytest.approx(expected, abs=1e-6)
    assert changed.config.num_choices(half) == count - 1 + 1


@pytest.mark.parametrize("by", CRITERIA)
def test_the_modules_with_the_lowest_values_go(by: str) -> None:
    model = model_of()
    before = weights_of(model)
    changed, receipt = prune(model, attn=0.4, ffn=0.5, by=by, data=IDS, progress=False)
    assert (changed.config.num_attn, changed.config.num_ffn) == (3, 2) and weights_of(model) == before
    assert receipt["before"]["loss"] == pytest.approx(loss_of(model), abs=1e-6)
    assert receipt["after"]["loss"] == pytest.approx(loss_of(changed), abs=1e-6)
    if by == "exhaustive":
        return check_subsets(model, receipt)
    if by != "random":
        found = mom.analysis.audit(model, IDS, [by], progress=False).table
        for half, number in (("attn", 3), ("ffn", 2)):
            for block in range(2):
                rows = found[(found["half"] == half) & (found["block"] == block) & found["module"].notna()]
                values = rows[by].to_numpy()
                shown = [np.nan if value is None else value for value in receipt["values"][half][block]]
                assert shown == pytest.approx(values.tolist(), nan_ok=True)
                assert sorted(np.argsort(-values, kind="stable")[:number]) == receipt["kept"][half][block]
    for block, (old, new) in enumerate(zip(model.blocks, changed.blocks, strict=True)):
        for number, module in zip(receipt["kept"]["attn"][block], new.attention_pool, strict=True):
            for name, tensor in module.parameters.items():
                np.testing.assert_array_equal(tensor, old.attention_pool[number].parameters[name])
    assert json.loads(json.dumps(receipt)) == receipt


def check_subsets(model: mom.MoM, receipt: dict[str, Any]) -> None:
    """All subsets are there with their losses, and the best one is left out."""
    for half, count, subsets in (("attn", 5, 10), ("ffn", 4, 6)):
        for block in range(2):
            tried = receipt["tried"][half][block]
            assert len({tuple(entry["left_out"]) for entry in tried}) == len(tried) == subsets
            assert [e["loss"] for e in tried] == sorted(e["loss"] for e in tried)
            assert set(receipt["kept"][half][block]) == set(range(count)) - set(tried[0]["left_out"])
            rule = mom.Forbid(half, tried[3]["left_out"], rounds=[(block, r) for r in range(3)])
            assert loss_of(model, interventions=[rule]) == pytest.approx(tried[3]["loss"], abs=1e-6)


def test_modules_to_leave_out_may_be_named() -> None:
    model = model_of()
    changed, receipt = prune(model, attn=[1, 4], ffn=[2])
    assert receipt["kept"] == {"attn": [[0, 2, 3]] * 2, "ffn": [[0, 1, 3]] * 2}
    rules = [mom.Forbid("attn", [1, 4]), mom.Forbid("ffn", [2])]
    assert loss_of(changed) == pytest.approx(loss_of(model, interventions=rules), abs=1e-6)
    for wrong in ([7], [1, 1], [0, 1, 2]):
        with pytest.raises(ValueError, match="ffn: "):
            prune(model, ffn=wrong)


def test_too_many_subsets_are_refused() -> None:
    model = mom.MoM(model_of().config.replace(num_ffn=14), seed=0)
    with pytest.raises(ValueError, match="'exhaustive' would try 3,432 subsets of 14 ffn modules"):
        prune(model, ffn=0.5, by="exhaustive", data=IDS)


# ---------------------------------------------------------------------- grow
ALL: list[dict[str, Any]] = [{"router_type": router} for router in PRUNED] + [
    *({"router_type": "gru-softmax", **changes} for changes in OPTIONS), {"router_choices": "max", "num_attn": 4},
    {"routing_top_k": 1, "router_type": "gru-softmax", "router_softmax_temperature": 0.2}, {"enable_pause": False},
]  # fmt: skip


@pytest.mark.parametrize("changes", ALL, ids=str)
def test_a_grown_model_computes_the_same_and_shrinks_to_the_same_bits(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    modules = model.config.num_attn
    grown, receipt = grow(model, attn=7, ffn=6)
    assert receipt["grown"] == {"attn": list(range(modules, 7)), "ffn": [4, 5]}
    assert receipt["copies"] == {"attn": [m % modules for m in range(modules, 7)], "ffn": [0, 1]}
    model.random_state = grown.random_state = (3, 0)
    before, after = (each(IDS, return_logits=True, return_routes=True, keep=False) for each in (model, grown))
    np.testing.assert_array_equal(after.logits, before.logits)
    assert np.array_equal(after.routes.index["ffn"] == 6, before.routes.index["ffn"] == 4)
    back = prune(grown, attn=list(range(modules, 7)), ffn=[4, 5]).model
    assert weights_of(back) == weights_of(model) != weights_of(grown)


def test_new_modules_come_to_life(tmp_path: Path) -> None:
    model = model_of(router_type="gru-softmax")
    grown = grow(model, ffn=8, noise=0.1).model
    new = [4, 5, 6, 7]
    names = [name for block in grown.blocks for m in new for name in block.ffn_pool[m].names.values()]
    for block in grown.blocks:
        old, copy = (block.ffn_pool[m].parameters for m in (1, 5))
        assert old["c_fc.weight"].tobytes() != copy["c_fc.weight"].tobytes()
        assert old["ln.weight"].tobytes() == copy["ln.weight"].tobytes()
    grown(IDS, labels=IDS)
    grown.backward()
    assert not any(grown.has_gradient[name] for name in names)
    awake, receipt = wake(grown, ffn=new)
    assert receipt["woken"] == {"ffn": new}
    routes = awake(IDS, labels=IDS, return_routes=True).routes
    assert routes is not None
    chosen = set(np.unique(routes.module["ffn"])) & set(new)
    awake.backward()
    assert chosen and any(awake.has_gradient[name] for name in names)
    awake.save_pretrained(tmp_path / "model")
    assert weights_of(mom.MoM.from_pretrained(tmp_path / "model")) == weights_of(awake)
    with pytest.raises(ValueError, match="ffn: module 4 is awake"):
        wake(awake, ffn=[4])
    with pytest.raises(ValueError, match="ffn: there is no module 8"):
        wake(grown, ffn=[8])
    for wrong in (4, 3):
        with pytest.raises(ValueError, match="ffn: .* is not more than the 4 modules"):
            grow(model, ffn=wrong)


def test_what_is_asleep_stays_asleep() -> None:
    model = model_of(router_type="gru-softmax", router_bias_rate=0.5)
    model.blocks[0].ffn_router.parameters["balance_bias"][1] = 0.6
    grown = grow(model, ffn=6).model
    np.testing.assert_array_equal(grown(IDS, return_logits=True).logits, model(IDS, return_logits=True).logits)
    optimizer = mom.AdamW(grown, lr=0.0)
    for _ in range(20):  # the balance does not wake them
        routes = grown(IDS, labels=IDS, return_routes=True).routes
        assert routes is not None and not np.isin(routes.module["ffn"], [4, 5]).any()
        grown.backward()
        optimizer.step(zero_grad=True)
    awake = wake(grown, ffn=[4, 5]).model
    assert abs(float(awake.blocks[0].ffn_router.parameters["balance_bias"][5])) < 20
    hot = model_of(router_type="gru-softmax", router_softmax_temperature=200.0)
    np.testing.assert_array_equal(
        grow(hot, ffn=6).model(IDS, return_logits=True).logits, hot(IDS, return_logits=True).logits
    )


@pytest.mark.parametrize("changes", [{"routing_all_possible_path": True}, {"routing_top_k": 9}], ids=str)
def test_sleep_is_impossible_where_all_raw_scores_count(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ffn: every token uses all choices with their raw scores"):
        grow(model_of(router_type="naive", **changes), ffn=6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: grow(m, ffn=6.0), "ffn: expected an integer, got float"),
        (lambda m: grow(m, ffn=6, noise="a"), "noise: expected a number, got str"),
        (lambda m: wake(m, ffn=4), "ffn: expected a list of numbers of modules, got int 4"),
        (lambda m: permute(m, ffn=3), "ffn: expected a list of numbers of modules, got int 3"),
        (lambda m: merge(m, ffn=(0, 3)), "ffn: expected a list of numbers of modules, got int 0"),
        (lambda m: prune(m, ffn="half"), "ffn: expected a list of numbers of modules, got str 'half'"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(model_of())


# ---------------------------------------------------------------------- merge
def shuffled(model: mom.MoM, seed: int) -> mom.MoM:
    """Modules 3 become copies of modules 0 whose neurons or heads have changed places."""
    changed, rng = model.copy(), np.random.default_rng(seed)
    heads, width = rng.permutation(2), model.config.n_embd // 2
    rows = (heads[:, None] * width + np.arange(width)).reshape(-1)
    columns = (np.arange(3)[:, None] * 2 * width + rows).reshape(-1)
    neurons = rng.permutation(model.config.inner_size)
    for block in changed.blocks:
        for pool, inner, order in ((block.attention_pool, "c_attn", columns), (block.ffn_pool, "c_fc", neurons)):
            first, third = pool[0].parameters, pool[3].parameters
            for short in first:
                third[short][...] = first[short]
            third[f"{inner}.weight"][...] = first[f"{inner}.weight"][:, order]
            third[f"{inner}.bias"][...] = first[f"{inner}.bias"][order]
            third["c_proj.weight"][...] = first["c_proj.weight"][rows if inner == "c_attn" else neurons]
    return changed


@pytest.mark.parametrize("data", [None, IDS], ids=["equally", "by use"])
@pytest.mark.parametrize("changes", [{}, *OPTIONS], ids=str)
def test_equal_modules_merge_into_their_own_bits(changes: dict[str, Any], data: Any) -> None:
    model = shuffled(model_of(**{"router_type": "gru-softmax", **changes}), seed=3)
    changed, receipt = merge(model, attn=[(0, 3)], ffn=[(3, 0)], data=data)
    assert receipt["kept"] == {"attn": [[0, 1, 2, 4]] * 2, "ffn": [[0, 1, 2]] * 2}
    for half in ("attn", "ffn"):
        for block in receipt["distance"][half]:
            assert all(entry["after"] == 0.0 < entry["before"] for entry in block)
    for old, new in zip(model.blocks, changed.blocks, strict=True):
        for before, after in ((old.attention_pool, new.attention_pool), (old.ffn_pool, new.ffn_pool)):
            for short, tensor in after[0].parameters.items():
                np.testing.assert_array_equal(tensor, before[0].parameters[short])
    assert ("loss" in receipt["after"]) == (data is not None)
    if data is None:
        for old, new in zip(model.blocks, changed.blocks, strict=True):
            before, after = (block.ffn_router.parameters for block in (old, new))
            bias = next(short for short in before if short in ("router.bias", "router.2.bias"))
            rows, merged = (values[bias].reshape(-1, n) for values, n in ((before, 5), (after, 4)))
            np.testing.assert_allclose(merged[:, 0], (rows[:, 0] + rows[:, 3]) / 2, atol=1e-7)


def test_different_modules_merge_into_their_mean(tmp_path: Path) -> None:
    model = model_of(router_type="gru-softmax")
    changed, receipt = merge(model, ffn=[(1, 2, 3)], align=False)
    for old, new in zip(model.blocks, changed.blocks, strict=True):
        for short, tensor in new.ffn_pool[1].parameters.items():
            mean = np.mean([old.ffn_pool[m].parameters[short].astype(float) for m in (1, 2, 3)], axis=0)
            np.testing.assert_allclose(tensor, mean, rtol=1e-6, atol=1e-9)
        rows = [old.ffn_router.parameters["router.weight"][m].astype(float) for m in (1, 2, 3)]
        np.testing.assert_allclose(new.ffn_router.parameters["router.weight"][1], np.mean(rows, axis=0), rtol=1e-5)
    entries = receipt["distance"]["ffn"][0]
    aligned = merge(model, ffn=[(1, 2, 3)]).receipt["distance"]["ffn"][0]
    assert aligned[0]["after"] < entries[0]["after"] == entries[0]["before"]
    changed(IDS, labels=IDS)
    changed.backward()
    mom.AdamW(changed).step(1.0)
    changed.save_pretrained(tmp_path / "model")
    assert weights_of(mom.MoM.from_pretrained(tmp_path / "model")) == weights_of(changed)


@pytest.mark.parametrize(
    "groups, message",
    [
        ([(0,)], "no groups of at least two"), ([(0, 1), (1, 2)], "no groups of at least two"),
        ([(0, 4)], "beyond the 4"), ([(0, 1, 2, 3)], "leaves fewer than two"), ([(1, 1)], "no groups of at least two"),
    ],
)  # fmt: skip
def test_wrong_groups(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(model_of(), ffn=groups)


def test_what_remains_trains_saves_and_loads(tmp_path: Path) -> None:
    model = model_of()
    changed = prune(model, attn=0.6, by="random").model
    optimizer = mom.AdamW(changed, lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(changed(IDS, labels=IDS).lm_loss)
        changed.backward()
        optimizer.step(1.0, zero_grad=True)
    assert losses[-1] < losses[0]
    changed.save_pretrained(tmp_path / "model")
    loaded = mom.MoM.from_pretrained(tmp_path / "model")
    assert weights_of(loaded) == weights_of(changed) and loss_of(loaded) == loss_of(changed)
    again = prune(loaded, ffn=0.25, by="random").model
    assert (again.config.num_attn, again.config.num_ffn) == (2, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"by": "drop_one", "attn": 0.5}, "data: needed to measure 'drop_one'; by='random' needs none"),
        ({"by": "size"}, "by: 'size' is not one of 'random', 'usage'"),
        ({"by": "random", "reroute": "else"}, "reroute: 'else' is not one of 'next', 'skip'"),
        ({"by": "random", "attn": 1.0}, r"attn: 1.0 is not in \[0, 1\)"),
        ({"by": "random", "ffn": -0.1}, r"ffn: -0.1 is not in \[0, 1\)"),
        ({"by": "random", "ffn": 0.75}, "ffn: 0.75 leaves 1 of 4 modules; a router needs two"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(model_of(), **arguments)


@pytest.mark.parametrize("router", PRUNED)
@pytest.mark.parametrize("changes", [{}, {"router_choices": "max"}, {"enable_pause": False}], ids=str)
def test_choices_that_become_skip_are_modules_that_compute_zeros(router: str, changes: dict[str, Any]) -> None:
    model = model_of(router_type=router, **changes)
    changed, receipt = prune(model, attn=0.4, ffn=0.25, by="random", reroute="skip")
    for half in ("attn", "ffn"):
        assert changed.config.num_choices(half) == model.config.num_choices(half)
    silent = model.copy()
    for block, of_block in enumerate(silent.blocks):
        for half, pool in (("attn", of_block.attention_pool), ("ffn", of_block.ffn_pool)):
            for number in set(range(len(pool))) - set(receipt["kept"][half][block]):
                for tensor in pool[number].parameters.values():
                    tensor[...] = 0.0
    silent.random_state = changed.random_state = (3, 0)
    assert loss_of(changed) == pytest.approx(loss_of(silent), abs=1e-6)
    model.random_state = (3, 0)
    assert loss_of(model) != loss_of(silent)


@pytest.mark.parametrize("data", [None, IDS])
def test_a_misspelt_share_is_not_passed_over(data: Any) -> None:
    with pytest.raises(TypeError, match="fnn"):
        prune(model_of(), fnn=0.5, by="random", data=data)


def test_surplus_outputs_of_unequal_pools_stay() -> None:
    """The feed-forward routers have an output for a fifth module that is not there."""
    model = model_of(router_choices="max")
    changed, receipt = prune(model, attn=0.2, by="random")
    assert (changed.config.surplus_attn, changed.config.surplus_ffn) == (0, 1)
    assert changed.config.num_choices("ffn") == model.config.num_choices("ffn") == 6
    kept = receipt["kept"]["attn"]
    rules = [
        mom.Forbid("attn", sorted({0, 1, 2, 3, 4} - set(kept[block])), rounds=[(block, r) for r in range(3)])
        for block in range(2)
    ]
    assert loss_of(changed) == pytest.approx(loss_of(model, interventions=rules), abs=1e-6)


def test_a_result_shows_itself() -> None:
    result = prune(model_of(), attn=0.4, by="random")
    assert "prune" in repr(result) and f"{result.model.num_parameters:,} after" in repr(result)
    assert "kept" in result._repr_html_()


# ---------------------------------------------------------------------- curves
def test_a_curve_has_every_number_of_modules(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    np.tile(IDS.reshape(-1), 20).astype(np.uint16).tofile(tmp_path / "train.bin")
    model = model_of()
    before = weights_of(model)
    settings = {"batch_size": 2, "sequence_length": 16, "lr": 5e-3}
    found = prune_curve(
        model, IDS, by="usage", recovery_steps=4, train_data=tmp_path / "train.bin", training=settings
    )
    table = found.table
    assert weights_of(model) == before and len(found.receipts) == len(table) - 1
    assert table["half"].tolist() == ["whole", "attn", "attn", "attn", "ffn", "ffn", "paper"]
    assert table["attn"].tolist() == [5, 4, 3, 2, 5, 5, 2] and table["ffn"].tolist() == [4, 4, 4, 4, 3, 2, 3]
    assert table["loss"][0] == pytest.approx(loss_of(model), abs=1e-6) and table["rise"][0] == 0.0
    changed, receipt = prune(model, ffn=0.25, by="usage", data=IDS)
    assert receipt["after"]["loss"] == table["loss"][4] and table["parameters"][4] == changed.num_parameters
    mom.train(changed, tmp_path / "train.bin", steps=4, progress=False, seed=0, **settings)
    assert loss_of(changed) == pytest.approx(table["recovered"][4], abs=1e-6)
    assert (table["recovered"] < table["loss"]).all()
    ax = found.plot()
    assert len(ax.lines) == 5
    pyplot.close(ax.figure)


def test_a_curve_leaves_the_claim_out_where_pools_are_too_small() -> None:
    found = prune_curve(model_of(num_attn=3), IDS, by="usage", progress=False)
    assert found.table["half"].tolist() == ["whole", "attn", "ffn", "ffn"]


def test_a_curve_needs_data_to_recover() -> None:
    with pytest.raises(ValueError, match="train_data: needed for recovery_steps"):
        prune_curve(model_of(), IDS, recovery_steps=3)
    with pytest.raises(ValueError, match=r"halves: \['mlp'\]; the halves with a router are \['attn', 'ffn'\]"):
        prune_curve(model_of(), IDS, halves=["mlp"])


# ---------------------------------------------------------------------- routes distilled into routers
@pytest.mark.parametrize("router", ["linear-softmax", "gru-softmax", "naive"])
def test_routers_learn_the_routes_of_another_model(router: str) -> None:
    config = model_of(router_type=router).config.replace(initializer_range=0.3)
    model, teacher = (mom.MoM(config, seed=seed) for seed in (0, 1))
    before = weights_of(model)
    changed, receipt = distil_routes(model, teacher, IDS, steps=150, lr=0.05, batch_size=4, progress=False)
    assert weights_of(model) == before and changed.config == model.config
    least = np.log(2.0)  # of two choices that are equally probable
    assert receipt["after"]["route_loss"] - least < 0.6 * (receipt["before"]["route_loss"] - least)
    assert receipt["after"]["agreement"] > receipt["before"]["agreement"] + 0.08
    for name, tensor in changed.parameters.items():
        assert (tensor.tobytes() == model.parameters[name].tobytes()) is (".router." not in name)
    assert json.loads(json.dumps(receipt)) == receipt


def test_what_is_trained_afterwards_is_as_before() -> None:
    model, teacher = (model_of(router_type="gru-softmax", router_bias_rate=0.1) for _ in range(2))
    model.train_only("*.c_fc*", "*.router.*")
    changed = distil_routes(model, teacher, IDS, steps=2, progress=False).model
    assert dict(changed.trainable) == dict(model.trainable)
    for name in model.parameters:
        if name.endswith("balance_bias"):
            assert changed.parameters[name].tobytes() == model.parameters[name].tobytes()
    with pytest.raises(ValueError, match="model: router_frozen"):
        distil_routes(model_of(router_type="gru-softmax", router_frozen=True), teacher, IDS)


def test_padding_is_not_taught() -> None:
    model = model_of(router_type="gru-softmax")
    mask = np.ones(IDS.shape, bool)
    mask[:, :6] = False
    taught = model(IDS, attention_mask=mask, return_routes=True).routes
    result = distil_routes(model, taught, steps=1, progress=False)
    want = model(IDS, labels=np.where(mask, IDS, -100), attention_mask=mask, keep=False).lm_loss
    assert result.receipt["before"]["loss"] == pytest.approx(want, abs=1e-6)


def test_a_teacher_may_be_routes_or_a_function() -> None:
    model = model_of(router_type="gru-softmax")
    taught = model_of(router_type="gru-softmax")(IDS, return_routes=True).routes
    assert taught is not None
    other = mom.MoM(model.config, seed=7)
    by_routes = distil_routes(other, taught, steps=5, batch_size=2, progress=False)
    by_function = distil_routes(other, lambda ids: taught_of(model, ids), IDS, steps=5, batch_size=2, progress=False)
    assert weights_of(by_routes.model) == weights_of(by_function.model) != weights_of(other)
    with pytest.raises(ValueError, match="data: routes have tokens of their own"):
        distil_routes(other, taught, IDS)
    with pytest.raises(ValueError, match="data: needed"):
        distil_routes(other, model)
    with pytest.raises(TypeError, match="teacher: expected MoM, Routes or a function, got int"):
        distil_routes(other, 3, IDS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model: has no routers that learn"):
        distil_routes(model_of(router_type="hash"), model, IDS)


def taught_of(model: mom.MoM, ids: Any) -> mom.Routes:
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    return routes
