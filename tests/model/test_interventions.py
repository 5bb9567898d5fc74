"""Changes of what a model computes: answers that are known, causality, and what is refused before any work."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from intervened import SMALL, gradients_of, made, moved, same_gradients, tokens_of

import mom
from kinds import ROUTERS
from padding import padded


def bias_of_outputs(model: mom.MoM, half: str) -> list[np.ndarray]:
    """The biases of a half's router outputs, of every block."""
    shape = (model.config.num_choices(half),)
    found = [
        value for name, value in model.parameters.items()
        if f"mot_{half}.router." in name and name.endswith("bias") and value.shape == shape
    ]  # fmt: skip
    assert len(found) == model.config.chunks
    return found


# ---------------------------------------------------------------------- answers that are known
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("router", ["gru-softmax", "naive-softmax", "naive"])
@pytest.mark.parametrize("half", ["attn", "ffn"])
def test_forbidding_a_module_is_an_output_bias_of_minus_ten_thousand(half: str, router: str, packed: bool) -> None:
    model, biased, tokens = (*(made(router_type=router, chunks=2) for _ in range(2)), tokens_of())
    for bias in bias_of_outputs(biased, half):
        bias[2] = -1e4
    call = {"tokens": tokens.ravel(), "labels": tokens.ravel(), "lengths": [13, 7]} if packed else {
        "tokens": tokens, "labels": tokens}  # fmt: skip
    have = model(**call, return_routes=True, interventions=[mom.Forbid(half, modules=[2])])
    want = biased(**call, return_routes=True)
    assert have.routes == want.routes and not (have.routes.index[half] == 2).any()
    assert have.lm_loss == pytest.approx(want.lm_loss, abs=1e-6)


def test_a_bias_is_added_to_the_router_outputs() -> None:
    model, biased, tokens = made(), made(), tokens_of()
    (bias,) = bias_of_outputs(biased, "ffn")
    bias[0] += 1.5
    bias[-1] -= 2.0
    have = model(tokens, labels=tokens, return_routes=True, interventions=[mom.Bias("ffn", {0: 1.5, "SKIP": -2.0})])
    want = biased(tokens, labels=tokens, return_routes=True)
    assert have.routes == want.routes and have.loss == pytest.approx(want.loss, abs=1e-6)
    twice = [mom.Bias("ffn", {0: 0.5}), mom.Bias("ffn", {0: 1.0, "SKIP": -2.0})]
    assert model(tokens, labels=tokens, interventions=twice).loss == pytest.approx(want.loss, abs=1e-6)


def test_skipping_a_whole_block_is_the_model_without_its_block() -> None:
    model, without, tokens = made(chunks=2), made(chunks=2), tokens_of()
    for pool in (without.blocks[1].attention_pool, without.blocks[1].ffn_pool):
        for module in pool:
            module.c_proj__weight, module.c_proj__bias = 0.0, 0.0
    rounds = [(1, 0), (1, 1), (1, 2)]
    rules = [mom.Force(half, to="SKIP", rounds=rounds) for half in ("attn", "ffn")]
    have = model(tokens, labels=tokens, return_logits=True, interventions=rules, capture="block1.*.output")
    want = without(tokens, labels=tokens, return_logits=True)
    np.testing.assert_allclose(have.logits, want.logits, rtol=1e-6, atol=1e-6)
    assert not any(value.any() for value in have.captured.values())
    assert not np.allclose(have.logits, model(tokens, return_logits=True).logits, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("half", "module"), [("attn", 1), ("ffn", 2)])  # modules that tokens choose
def test_scaling_a_modules_output_by_zero_is_zeroing_its_projection(half: str, module: int, weighted: bool) -> None:
    model, zeroed, tokens = made(weighted_qkv=weighted), made(weighted_qkv=weighted), tokens_of()
    pool = {"attn": zeroed.blocks[0].attention_pool, "ffn": zeroed.blocks[0].ffn_pool}[half]
    pool[module].c_proj__weight, pool[module].c_proj__bias = 0.0, 0.0
    place = f"block0.*.{half}.module{module}.output"
    have = model(tokens, labels=tokens, return_logits=True, interventions=[mom.Scale(place, 0.0)])
    model.backward()
    want = zeroed(tokens, labels=tokens, return_logits=True)
    zeroed.backward()
    np.testing.assert_allclose(have.logits, want.logits, rtol=1e-6, atol=1e-6)
    assert have.loss == pytest.approx(want.loss, abs=1e-6)
    own = f"mot_{half}.c_proj.{module}."
    # These gradients differ: none passes a factor of zero, but one reaches weights that are zero.
    for name, gradient in model.gradients.items():
        if own in name:
            assert not gradient.any() and zeroed.gradients[name].any()
        else:
            np.testing.assert_allclose(gradient, zeroed.gradients[name], rtol=1e-4, atol=1e-6)
    assert np.array_equal(have.logits, model(tokens, return_logits=True, interventions=[mom.Zero(place)]).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_another_number_of_choices_is_another_configuration(k: int, dtype: str) -> None:
    model, tokens = made(dtype=dtype), tokens_of()
    other = model.with_config(routing_top_k=k)
    have = model(tokens, labels=tokens, return_routes=True, interventions=[mom.TopK(k)])
    model.backward()
    want = other(tokens, labels=tokens, return_routes=True)
    other.backward()
    assert have.losses == want.losses and have.routes == want.routes
    assert same_gradients(gradients_of(model), gradients_of(other))


def test_another_number_of_choices_in_one_round_and_half() -> None:
    model, tokens = made(), tokens_of()
    rule = mom.TopK(3, half="ffn", rounds=[1], tokens=[2, 5])
    routes = model(tokens, return_routes=True, interventions=[rule]).routes
    assert routes.index["attn"].shape[-1] == 2 and routes.index["ffn"].shape[-1] == 3
    ran = routes.weight["ffn"] > 0
    assert ran[1, :, [2, 5], 2].all() and ran[1].sum() == ran[1, ..., :2].sum() + 4 and not ran[[0, 2], ..., 2].any()
    own = model(tokens, return_routes=True).routes
    assert np.array_equal(routes.index["ffn"][0, ..., :2], own.index["ffn"][0])


def test_patching_hidden_gives_the_heads_logits() -> None:
    model, tokens = made(), tokens_of()
    value = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    out = model(tokens, return_logits=True, interventions=[mom.Patch("hidden", value, tokens=[4], rows=[1])])
    want = model.parameters["transformer.wte.weight"] @ value
    np.testing.assert_allclose(out.logits[1, 4], want, rtol=1e-5, atol=1e-5)
    assert np.array_equal(out.logits[0], model(tokens, return_logits=True).logits[0])


def test_values_of_every_documented_shape() -> None:
    model, tokens = made(), tokens_of()
    rng = np.random.default_rng(2)
    whole = rng.standard_normal((2, 10, 16)).astype(np.float32)

    def at_hidden(*rules: mom.Intervention) -> np.ndarray:
        return model(tokens, interventions=rules, capture="hidden").captured["hidden"]

    plain = model(tokens, capture="hidden").captured["hidden"]
    assert (at_hidden(mom.Patch("hidden", 0.5)) == 0.5).all()
    assert np.array_equal(at_hidden(mom.Patch("hidden", whole)), whole)
    part = at_hidden(mom.Patch("hidden", whole, tokens=[7, 2], rows=[1]))
    assert np.array_equal(part[1, [2, 7]], whole[1, [2, 7]]) and np.array_equal(part[0], plain[0])
    by_position = at_hidden(mom.Patch("hidden", whole[0, :2], tokens=[7, 2]))
    assert (by_position[:, 7] == whole[0, 0]).all() and (by_position[:, 2] == whole[0, 1]).all()
    assert np.array_equal(by_position[:, 3], plain[:, 3])


# ---------------------------------------------------------------------- causality
CHANGES: dict[str, mom.Intervention] = {
    "force": mom.Force("attn", to=1, rounds=[1], tokens=[5]),
    "skip": mom.Force("ffn", to="SKIP", rounds=[1], tokens=[5]),
    "forbid": mom.Forbid("ffn", modules=[2, "SKIP"], rounds=[1], tokens=[5]),
    "bias": mom.Bias("attn", {0: 9.0, 2: -9.0}, rounds=[1], tokens=[5]),
    "random": mom.RandomRoutes("ffn", rounds=[1], tokens=[5], seed=3),
    "top-k": mom.TopK(4, half="ffn", rounds=[1], tokens=[5]),
    "patch": mom.Patch("block0.round1.attn.output", np.linspace(-1, 1, 16), tokens=[5]),
    "scale": mom.Scale("block0.round1.ffn.input", 3.0, tokens=[5]),
    "state": mom.Zero("block0.round1.attn.state", tokens=[5]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_reaches_nothing_before_it(name: str) -> None:
    model, tokens = made(), tokens_of()
    plain = model(tokens, return_logits=True, return_routes=True, capture="*")
    out = model(tokens, return_logits=True, return_routes=True, capture="*", interventions=[CHANGES[name]])
    for place, value in out.captured.items():
        assert np.array_equal(value[:, :5], plain.captured[place][:, :5]), place
        if place.startswith(("embedding", "anchor0", "block0.round0")):
            assert np.array_equal(value, plain.captured[place]), place
    for half, index in out.routes.index.items():
        K = plain.routes.index[half].shape[-1]
        assert np.array_equal(index[0, ..., :K], plain.routes.index[half][0])
        assert np.array_equal(out.routes.scores[half][:, :, :5], plain.routes.scores[half][:, :, :5])
    assert np.array_equal(out.logits[:, :5], plain.logits[:, :5])
    assert not np.array_equal(out.logits[:, 5], plain.logits[:, 5])


def test_a_change_of_one_row_reaches_no_other() -> None:
    model, tokens = made(), tokens_of(3)
    plain = model(tokens, return_logits=True).logits
    for rule in (mom.Force("ffn", to=0, rows=[1]), mom.Scale("embedding", 2.0, rows=[1])):
        logits = model(tokens, return_logits=True, interventions=[rule]).logits
        assert np.array_equal(logits[[0, 2]], plain[[0, 2]]) and not np.array_equal(logits[1], plain[1])


# ---------------------------------------------------------------------- rows of unequal length
RULES = [
    mom.Force("ffn", to=1, rounds=[1], tokens=[2]), mom.Forbid("attn", modules=[2]),
    mom.Bias("ffn", {0: 1.5, "SKIP": -2.0}), mom.RandomRoutes("ffn", rounds=[2], seed=3),
    mom.Scale("block0.round1.ffn.output", 0.5), mom.Patch("block0.round0.ffn.output", np.full(16, 0.1), tokens=[3]),
    mom.Zero("embedding", tokens=[1]),
]  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_from_each_rows_first_real_token(side: str) -> None:
    model = made()
    rows = [tokens_of(1, n, seed=n)[0] for n in (4, 9, 6)]
    tokens, mask, positions = padded(rows, side)
    out = model(tokens, attention_mask=mask, positions=positions, return_logits=True, interventions=RULES)
    packed = model(np.concatenate(rows), lengths=[4, 9, 6], return_logits=True, interventions=RULES)
    np.testing.assert_allclose(out.logits[mask == 1], packed.logits, rtol=1e-4, atol=2e-5)
    for row, length, start in zip(rows, (4, 9, 6), (0, 4, 13), strict=True):
        alone = model(row[None], return_logits=True, interventions=RULES).logits[0]
        np.testing.assert_allclose(packed.logits[start : start + length], alone, rtol=1e-4, atol=2e-5)


def test_random_routes_are_a_function_of_the_tokens_so_far() -> None:
    model, tokens = made(), tokens_of(2, 12)
    tokens[1, :6] = tokens[0, :6]
    rule = mom.RandomRoutes("ffn", seed=4)
    routes = model(tokens, return_routes=True, interventions=[rule]).routes.index["ffn"]
    assert np.array_equal(routes[:, 0, :6], routes[:, 1, :6]) and not np.array_equal(routes[:, 0, 6:], routes[:, 1, 6:])
    again = model(tokens[:1, :8], return_routes=True, interventions=[rule]).routes.index["ffn"]
    assert np.array_equal(again[:, 0], routes[:, 0, :8])
    other = model(tokens, return_routes=True, interventions=[mom.RandomRoutes("ffn", seed=5)]).routes.index["ffn"]
    assert not np.array_equal(routes, other)
    many = np.arange(20 * 24).reshape(20, 24) % 37
    drawn = model(many, return_routes=True, interventions=[rule]).routes.index["ffn"]
    share = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert (np.abs(share - 0.2) < 0.03).all(), "all choices, SKIP too, are equally likely"
    assert (drawn[..., 0] != drawn[..., 1]).all()


# ---------------------------------------------------------------------- as data
EVERY = [
    mom.Force("ffn", to=3, rounds=[(0, 2)], tokens=[5]), mom.Force("attn", to=[1, "SKIP"]),
    mom.Force("attn", to=np.array([1, 0])), mom.Forbid("attn", [2]), mom.Forbid("ffn", np.array([0, 1])),
    mom.Bias("ffn", {0: 1.5, "SKIP": -2.0}), mom.RandomRoutes("attn", [0], seed=7), mom.TopK(1),
    mom.TopK(np.int64(2), half="ffn", rounds=[1]), mom.Patch("hidden", np.linspace(0, 1, 16)),
    mom.Patch("final", 0.1, rows=[1]), mom.Zero("final"), mom.Scale("embedding", 0.3, tokens=range(3)),
]  # fmt: skip


@pytest.mark.parametrize("rule", EVERY, ids=repr)
def test_an_intervention_survives_json(rule: mom.Intervention) -> None:
    again = mom.Intervention.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert again == rule and hash(again) == hash(rule) and repr(again) == repr(rule)
    tokens, model = tokens_of(), made()
    assert model(tokens, labels=tokens, interventions=[rule]).loss == model(
        tokens, labels=tokens, interventions=[again]
    ).loss  # fmt: skip
    with pytest.raises(AttributeError):
        rule.rows = [1]  # type: ignore[misc]


def test_an_intervention_reads_well() -> None:
    assert repr(EVERY[0]) == "Force(half='ffn', to=3, rounds=[[0, 2]], tokens=[5])"
    assert repr(mom.Patch("hidden", np.ones(16))) == "Patch(place='hidden', value=<array (16,)>)"
    assert mom.Force("ffn", to=1) != mom.Force("ffn", to=2) and mom.Zero("final") != mom.Scale("final", 0.0)


def test_a_bias_reads_as_it_is_written_in_any_order() -> None:
    rule, same = mom.Bias("ffn", {"SKIP": -2.0, 1: 0.5, 0: 1.5}), mom.Bias("ffn", {0: 1.5, 1: 0.5, "SKIP": -2.0})
    assert repr(rule) == repr(same) == "Bias(half='ffn', values={0: 1.5, 1: 0.5, 'SKIP': -2.0})"
    assert rule == same and hash(rule) == hash(same) and eval(repr(rule), {"Bias": mom.Bias}) == rule


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "Forec"}, "kind: 'Forec' is not one of 'Force', 'Forbid', 'Bias'"),
        ({"kind": "Force", "half": "ffn", "to": 1, "round": [0]}, "Force: has no 'round'; it has half, to, rounds"),
        ({"kind": "Force", "half": "mlp", "to": 1}, "half: expected 'attn' or 'ffn', got 'mlp'"),
        ({"kind": "Force", "half": "ffn"}, "Force: needs 'to'"),
        ({"kind": "Bias", "half": "ffn", "values": {"one": 1.0}}, "values: 'one' is no module's number and not 'SKIP'"),
        ({"kind": "Bias", "half": "ffn", "values": {"1": 1.0, "01": 2.0}}, "values: a choice occurs twice in"),
        ({"kind": "Force", "half": "ffn", "to": []}, "to: is empty; name a module, or 'SKIP' to run none"),
        ({"kind": "Force", "half": ["ffn"], "to": 1}, "half: expected 'attn' or 'ffn', got"),
        ({"kind": "Zero", "place": "hidden", "tokens": []}, "tokens: is empty; None means all"),
    ],
)
def test_wrong_descriptions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mom.Intervention.from_dict(values)


@pytest.mark.parametrize("rounds", [[None], [0, None], ["0"], [True], 1.0, "all", [range(2)], [{0, 1}], [[[0, 1]]]])
def test_rounds_are_numbers_or_pairs(rounds: Any) -> None:
    with pytest.raises(TypeError, match="^rounds: expected"):
        mom.Forbid("attn", modules=[1], rounds=rounds)


def test_rounds_may_be_an_array_of_pairs() -> None:
    pairs = [(0, 1), (0, 2)]
    assert mom.Force("ffn", to=1, rounds=np.array(pairs)) == mom.Force("ffn", to=1, rounds=pairs)
    assert mom.Force("ffn", to=1, rounds=np.array(2)) == mom.Force("ffn", to=1, rounds=2)
    assert mom.Force("ffn", to=1, rounds={0, 2}) == mom.Force("ffn", to=1, rounds=[0, 2])
    assert mom.Force("ffn", to=1, rounds=[0, (0, 1)]).rounds == (0, (0, 1))
    for bad in ([(0, 1, 2)], np.zeros((2, 3), int), [[]]):
        with pytest.raises(ValueError, match="^rounds: "):
            mom.Force("ffn", to=1, rounds=bad)


# ---------------------------------------------------------------------- bad input
BAD: list[tuple[list[Any], str]] = [
    ([mom.Force("ffn", to=9)], "to: there is no module 9; there are 4, and 'SKIP'"),
    ([mom.Force("ffn", to=[0, 1, 2])], "to: 3 choices, the router keeps 2"),
    ([mom.Force("ffn", to=[1, 1])], "names a choice twice"),
    ([mom.Force("ffn", to=1, rounds=[3])], r"rounds: there is no round 3; rounds are 0 to 2, or pairs up to \(0, 2\)"),
    ([mom.Force("ffn", to=1, rounds=[(1, 0)])], r"rounds: there is no \(block, round\) \(1, 0\)"),
    ([mom.Force("ffn", to=1, tokens=[10])], "tokens: position 10 is outside of every row; the longest has 10 tokens"),
    ([mom.Force("ffn", to=1, rows=[2])], "rows: there is no row 2; the batch has 2"),
    ([mom.Zero("hidden", tokens=[11])], "tokens: position 11 is outside of every row"),
    ([mom.Forbid("attn", modules=[3])], "modules: there is no module 3; there are 3, and 'SKIP'"),
    ([mom.Forbid("attn", modules=[0, 1, 2, "SKIP"])], "every choice of the attn router is forbidden, SKIP too"),
    ([mom.Bias("ffn", {7: 1.0})], "values: there is no module 7"),
    ([mom.Force("ffn", to=1), mom.Force("ffn", to=2, tokens=[4])],
     r"Force\(half='ffn', to=2, tokens=\[4\]\) and Force\(half='ffn', to=1\) choose differently for row 0, position 4"),
    ([mom.Force("ffn", to=1), mom.RandomRoutes("ffn")],
     r"RandomRoutes\(half='ffn', seed=0\) and Force\(half='ffn', to=1\) choose differently"),
    ([mom.TopK(1, tokens=[3]), mom.Force("ffn", to=[1, 2])], "and TopK choose differently for row 0, position 3"),
    ([mom.Force("attn", to=1), mom.Forbid("attn", modules=[1], rounds=[2], tokens=[4])],
     "module 1 of the attn half is forced and forbidden at once, in block 0, round 2, for row 0, position 4"),
    ([mom.TopK(1), mom.TopK(2)], r"TopK\(1\) and TopK\(2\) contradict each other"),
    ([mom.TopK(9)], "k: 9 choices, the attn router has 5"),
    ([mom.Patch("hidden", 0.0), mom.Patch("hidden", 1.0, tokens=[3])],
     r"value=1.0, tokens=\[3\]\) and Patch\(place='hidden', value=0.0\) replace 'hidden' for row 0, position 3"),
    ([mom.Patch("hidden", 0.5), mom.Zero("h*")], "replace 'hidden' for row 0, position 0, by different values"),
    ([mom.Patch("hidden", np.ones(3))], r"value: shape \(3,\) at 'hidden', expected \(16,\) or \(2, 10, 16\)"),
    ([mom.Patch("hidden", np.ones((3, 16)), tokens=[1, 2])], r"value: shape \(3, 16\) at 'hidden'"),
    ([mom.Patch("block0.*.state", np.ones(16))],
     r"value: shape \(16,\) at 'block0.round0.attn.state', expected \(8,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_exist_or_contradicts_itself_is_refused(rules: list[Any], message: str) -> None:
    model, tokens = made(), tokens_of()
    want, state = model(tokens, labels=tokens).loss, model.random_state
    with pytest.raises(ValueError, match=message):
        model(tokens, labels=tokens, interventions=rules)
    assert model(tokens, labels=tokens).loss == want and model.random_state == state


@pytest.mark.parametrize("bad", [np.nan, np.inf, [0.0, -np.inf]])
def test_a_patch_is_finite(bad: Any) -> None:
    with pytest.raises(ValueError, match="value: has numbers that are not finite"):
        mom.Patch("hidden", bad)
    with pytest.raises(ValueError, match="factor: "):
        mom.Scale("hidden", np.nan)
    with pytest.raises(ValueError, match="values: inf for 0 is not a finite float32; Forbid takes choices away"):
        mom.Bias("ffn", {0: np.inf})
    with pytest.raises(ValueError, match="values: 1e[+]300 for 0 is not a finite float32"):
        mom.Bias("ffn", {0: 1e300})
    with pytest.raises(ValueError, match="value: has numbers that are not finite"):
        mom.Patch("hidden", 1e300)


def test_arguments_of_the_wrong_type_are_refused() -> None:
    model, tokens = made(), tokens_of()
    for bad, name in (("Force", "str"), ({"kind": "Zero"}, "dict"), (3, "int")):
        with pytest.raises(TypeError, match=f"interventions: expected a list of interventions, got {name}"):
            model(tokens, interventions=bad)
    with pytest.raises(TypeError, match="interventions: expected interventions such as mom.Force, got 'x'"):
        model(tokens, interventions=["x"])
    with pytest.raises(TypeError, match="got {'kind': 'TopK', 'k': 1}; mom.Intervention.from_dict reads"):
        model(tokens, interventions=[mom.TopK(1).to_dict()])
    with pytest.raises(TypeError, match="tokens: expected integers or None"):
        mom.Force("ffn", to=1, tokens=[1.5])
    with pytest.raises(ValueError, match="to: expected a module's number or 'SKIP', got 'skip'"):
        mom.Force("ffn", to="skip")
    with pytest.raises(TypeError, match="modules: expected a module's number or 'SKIP', got 1.5"):
        mom.Forbid("ffn", modules=[1.5])
    with pytest.raises(ValueError, match="rows: -1 is below 0"):
        mom.Force("ffn", to=1, rows=[-1])


def test_halves_and_models_without_a_router() -> None:
    tokens = tokens_of()
    with pytest.raises(ValueError, match="half: the attn half has no router here; it has 1 module"):
        made(num_attn=1)(tokens, interventions=[mom.Forbid("attn", [0])])
    plain = made(chunks=0, n_layer=2)
    with pytest.raises(ValueError, match="half: the ffn half has no router here; this model has no blocks"):
        plain(tokens, interventions=[mom.Force("ffn", to=0)])
    with pytest.raises(ValueError, match="half: the attn half has no router here; this model has no blocks"):
        plain(tokens, interventions=[mom.TopK(1)])
    with pytest.raises(ValueError, match="half: the attn half has no router here; it has 1 module"):
        made(num_attn=1)(tokens, interventions=[mom.TopK(1, half="attn")])
    scaled = plain(tokens, labels=tokens, interventions=[mom.Scale("anchor1.ffn.output", 0.0)])
    assert scaled.loss != plain(tokens, labels=tokens).loss
    everything = made(routing_all_possible_path=True)
    with pytest.raises(ValueError, match="choices cannot be forced where every token uses all modules"):
        everything(tokens, interventions=[mom.Force("ffn", to=1)])
    out = everything(tokens, interventions=[mom.Forbid("ffn", [1])], capture="block0.*.ffn.module1.output")
    assert not any(value.any() for value in out.captured.values())
    with pytest.raises(ValueError, match="modules: the ffn router has no choice that means SKIP"):
        made(enable_pause=False, num_attn=4)(tokens, interventions=[mom.Forbid("ffn", ["SKIP"])])
    with pytest.raises(ValueError, match="no place fits 'block0.round0.attn.state'"):
        made(router_type="naive")(tokens, interventions=[mom.Zero("block0.round0.attn.state")])


# ---------------------------------------------------------------------- what touched nothing
def test_an_intervention_that_touches_nothing_raises_at_the_end_of_the_call() -> None:
    model, tokens = made(routing_top_k=1), tokens_of()
    unused = mom.Zero("block0.round0.ffn.module1.output")
    with pytest.raises(
        ValueError, match=r"interventions: Zero\(place='block0.round0.ffn.module1.output'\) touched nothing"
    ):
        model(tokens, interventions=[mom.Forbid("ffn", [1]), unused])
    model(tokens, interventions=[mom.Force("ffn", to=1, tokens=[3]), unused])


def test_within_intervene_it_raises_at_the_exit() -> None:
    model, tokens = made(), tokens_of()
    late = mom.Force("ffn", to=1, tokens=[9])
    with model.intervene([late]):
        model(tokens[:, :5])
        model(tokens)
    with pytest.raises(ValueError, match=r"interventions: Force\(half='ffn', to=1, tokens=\[9\]\) touched nothing"):
        with model.intervene([late]):
            model(tokens[:, :5])
    with pytest.raises(ValueError, match="rows=.3.. touched nothing"), model.intervene(mom.Zero("hidden", rows=[3])):
        model(tokens)
    with pytest.raises(ValueError, match="touched nothing"), model.intervene([mom.TopK(1)]):
        pass
    assert model.interventions == ()


# ---------------------------------------------------------------------- intervene
def test_blocks_nest_and_end() -> None:
    model, tokens = made(), tokens_of()
    a, b, c = mom.Forbid("attn", [2]), mom.Scale("final", 0.5), mom.Bias("ffn", {1: 0.7})
    plain = model(tokens, labels=tokens).loss
    with model.intervene([a]):
        outer = model(tokens, labels=tokens).loss
        with model.intervene(b):
            assert model.interventions == (a, b)
            assert model(tokens, labels=tokens, interventions=[c]).loss == made()(
                tokens, labels=tokens, interventions=[a, b, c]
            ).loss  # fmt: skip
            assert model(tokens, labels=tokens).loss != outer
        assert model(tokens, labels=tokens).loss == outer
    assert model.interventions == () and model(tokens, labels=tokens).loss == plain != outer


def test_an_exception_leaves_a_clean_model() -> None:
    model, tokens = made(), tokens_of()
    plain = model(tokens, labels=tokens).loss
    with (
        pytest.raises(KeyError, match="mine"),
        model.intervene([mom.Scale("final", 0.5), mom.Zero("hidden", rows=[9])]),
    ):
        model(tokens)
        raise KeyError("mine")  # not replaced by the complaint that something touched nothing
    with pytest.raises(ValueError, match="no place fits"), model.intervene([mom.Zero("hiden")]):
        model(tokens)
    with pytest.raises(TypeError, match="interventions: "), model.intervene("hidden"):
        pass
    assert model.interventions == () and model(tokens, labels=tokens).loss == plain


def test_interventions_belong_to_one_model() -> None:
    model, other, tokens = made(), made(), tokens_of()
    plain = other(tokens, labels=tokens).loss
    with model.intervene([mom.Scale("final", 0.5)]):
        copied = model.copy()
        assert model(tokens, labels=tokens).loss != plain
        assert other(tokens, labels=tokens).loss == copied(tokens, labels=tokens).loss == plain
        assert other.interventions == copied.interventions == ()


def test_backward_after_the_block_is_of_the_pass_within() -> None:
    model, tokens = made(), tokens_of()
    rules = [mom.Force("ffn", to=2, rounds=[1]), mom.Scale("block0.round0.attn.output", 0.3)]
    model(tokens, labels=tokens, interventions=rules)
    model.backward()
    want = gradients_of(model)
    with model.intervene(rules):
        model(tokens, labels=tokens)
    model.backward()
    assert same_gradients(want, gradients_of(model))


def test_a_failed_call_in_between_leaves_the_earlier_pass_without_backward_or_intact() -> None:
    model, tokens = made(), tokens_of()
    model(tokens, labels=tokens, interventions=[mom.Zero("hidden", tokens=[1])])
    with pytest.raises(ValueError, match="no place fits"):
        model(tokens, interventions=[mom.Zero("hiden")])
    model.backward()
    own = gradients_of(model)
    model(tokens, labels=tokens, interventions=[mom.Zero("hidden", tokens=[1])])
    model.backward()
    assert same_gradients(own, gradients_of(model))


def test_other_questions_see_the_interventions() -> None:
    model, tokens = made(), tokens_of()
    rule = mom.Forbid("attn", [2])
    want = model(tokens, return_logits=True, interventions=[rule]).logits
    with model.intervene([rule]):
        np.testing.assert_allclose(
            model.logits_at(tokens, [3, 12]), want.reshape(20, -1)[[3, 12]], rtol=1e-5, atol=1e-6
        )
        assert all(counts[2] == 0 for counts in model.route_counts()["attn"][0])
        inside = model.attention(tokens, "block0.round2.attn")
    assert np.array_equal(inside, model.attention(tokens, "block0.round2.attn", interventions=[rule]))
    assert not np.array_equal(inside, model.attention(tokens, "block0.round2.attn"))


def test_the_number_of_threads_changes_no_bit() -> None:
    tokens = tokens_of(4, 20)
    results = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        model = made()
        out = model(tokens, labels=tokens, return_logits=True, interventions=RULES, capture="block0.round1.*")
        model.backward()
        results.append((out, gradients_of(model)))
    for out, gradients in results[1:]:
        assert np.array_equal(out.logits, results[0][0].logits) and same_gradients(gradients, results[0][1])
        assert all(np.array_equal(value, results[0][0].captured[place]) for place, value in out.captured.items())


# ---------------------------------------------------------------------- copies
def test_with_config_has_copies_of_the_weights() -> None:
    model, tokens = made(), tokens_of()
    deeper = model.with_config(depth_per_chunk=5, routing_top_k=1)
    assert deeper.config.depth_per_chunk == 5 and deeper(tokens, return_routes=True).routes.index["ffn"].shape == (
        5,
        2,
        10,
        1,
    )
    deeper.parameters["transformer.wte.weight"][...] = 0.0
    assert model.parameters["transformer.wte.weight"].any()
    with pytest.raises(mom.ConfigError, match="n_embd: the weights do not fit; transformer.wte.weight is"):
        model.with_config(n_embd=32)
    with pytest.raises(mom.ConfigError, match="num_ffn: the weights do not fit"):
        model.with_config(num_ffn=5)
    with pytest.raises(mom.ConfigError, match="routing_top_q: unknown"):
        model.with_config(routing_top_q=1)


def test_a_copy_computes_the_same_and_is_apart() -> None:
    model, tokens = moved(mom.MoM(SMALL, seed=4)), tokens_of()
    model.train_only("*.router.*")
    copied = model.copy()
    assert copied(tokens, labels=tokens).losses == model(tokens, labels=tokens).losses
    assert dict(copied.trainable) == dict(model.trainable) and copied.random_state == model.random_state
    copied.parameters["transformer.wpe.weight"][...] = 0.0
    assert model.parameters["transformer.wpe.weight"].any()


@pytest.mark.parametrize("half", ["attn", "ffn"])
def test_a_single_module_as_a_function(half: str) -> None:
    model = made()
    pool = {"attn": model.blocks[0].attention_pool, "ffn": model.blocks[0].ffn_pool}[half]
    x = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    assert pool[1](x).shape == (7, 16) and not np.array_equal(pool[1](x), pool[0](x))
    shorter = pool[1](x[:4])
    np.testing.assert_allclose(pool[1](x)[:4], shorter, rtol=1e-5, atol=1e-6)  # no row sees later ones
    with pytest.raises(ValueError, match=r"x: shape \(7, 15\), expected \(N, 16\)"):
        pool[1](x[:, :15])


# ---------------------------------------------------------------------- rows that no loss needs
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fields", [{}, {"chunks": 0, "n_layer": 2}, {"num_attn": 1, "num_ffn": 1}], ids=str)
def test_few_labels_see_the_same_changes(fields: dict[str, Any], packed: bool) -> None:
    """Rows that no loss needs are skipped in the last round; a change at the other rows is the same."""
    model, tokens = made(**fields), tokens_of(3, 12)
    labels = np.full_like(tokens, -100)
    labels[:, [4, 9]] = tokens[:, [4, 9]]
    rng = np.random.default_rng(3)
    last = "anchor1" if "n_layer" in fields else "anchor2"
    rules = [
        mom.Patch(f"{last}.attn.output", rng.normal(0, 0.3, (3, 12, 16))), mom.Scale(f"{last}.ffn.output", 0.4),
        mom.Scale(f"{last}.ffn.input", 1.3, tokens=[3, 8]), mom.Patch("final", 0.2, tokens=[8], rows=[1]),
        mom.Scale("hidden", 1.5), mom.Zero(f"{last}.attn.input", tokens=[2]),
    ]  # fmt: skip
    call: dict[str, Any] = {"tokens": tokens, "labels": labels}
    if packed:
        rules[0] = mom.Patch(rules[0].place, rules[0].value.reshape(36, 16))
        call = {"tokens": tokens.ravel(), "labels": labels.ravel(), "lengths": [12, 12, 12]}
    few = model(**call, interventions=rules)
    model.backward()
    gradients = gradients_of(model)
    every = model(**call, interventions=rules, return_logits=True)  # computes all rows
    model.backward()
    assert few.lm_loss == pytest.approx(every.lm_loss, rel=1e-6) and few.lm_loss != model(**call).lm_loss
    for name, gradient in gradients_of(model).items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("pooling", ["mask", "reference"])
def test_a_classifier_sees_the_same_changes_at_its_pooled_rows(pooling: str) -> None:
    config = SMALL.replace(num_labels=3, pooling=pooling, pad_token_id=0)
    model, tokens = moved(mom.MoMForSequenceClassification(config, seed=0)), tokens_of(3, 9) % 36 + 1
    value = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    rules = [mom.Patch("hidden", value, tokens=[8]), mom.Force("ffn", to=2, rounds=[1])]
    out = model(tokens, labels=[0, 1, 2], attention_mask=np.ones(tokens.shape, int), interventions=rules)
    want = np.tile(model.parameters["score.weight"] @ value, (3, 1))
    np.testing.assert_allclose(out.logits, want, rtol=1e-5, atol=1e-6)
    model.backward()
    assert model.gradients["score.weight"].any()
    assert not any(g.any() for name, g in model.gradients.items() if not name.startswith("score."))


# ---------------------------------------------------------------------- the edges of routing
@pytest.mark.parametrize(
    ("fields", "dtype"),
    [({}, "bfloat16"), ({"use_ste": True}, "float32"), ({"weighted_qkv": True}, "float32")],
    ids=str,
)
@pytest.mark.parametrize("router", ROUTERS)
def test_a_single_choice_is_left(router: str, fields: dict[str, Any], dtype: str) -> None:
    """Two choices are kept and only one is allowed: the forbidden one is not done."""
    model, tokens = made(router_type=router, dtype=dtype, **fields), tokens_of()
    rules = [mom.Forbid("ffn", modules=[0, 1, 3, "SKIP"]), mom.Forbid("attn", modules=[0, 1, 2])]
    out = model(tokens, labels=tokens, return_logits=True, return_routes=True, interventions=rules, capture="block0.*")
    model.backward()
    assert np.isfinite(out.loss) and np.isfinite(out.logits).all()
    assert all(np.isfinite(g).all() for g in model.gradients.values())
    assert all(np.isfinite(value).all() for value in out.captured.gradients.values())
    ran = [m for m in range(4) if any(out.captured[f"block0.round{r}.ffn.module{m}.output"].any() for r in range(3))]
    assert ran == [2] and not any(out.captured[f"block0.round{r}.attn.output"].any() for r in range(3))
    if dtype == "bfloat16" or "random" in router:
        return
    with model.intervene(rules):
        decoder = mom.Decoder(model)
        decoder.prefill(tokens[:, :4])
        for t in range(4, 10):
            logits = decoder.step(tokens[:, t])
    np.testing.assert_allclose(logits, out.logits[:, -1], rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("router", ["gru-softmax", "gru", "naive-softmax"])
def test_skip_where_the_router_has_none(router: str) -> None:
    model, tokens = made(router_type=router, enable_pause=False, num_attn=4), tokens_of()
    rules = [mom.Force(half, to="SKIP", tokens=[4, 7]) for half in ("attn", "ffn")]
    out = model(tokens, labels=tokens, interventions=rules, return_routes=True, capture="block0.*.output")
    model.backward()
    assert all(not value[:, [4, 7]].any() for value in out.captured.values())
    assert (out.routes.module["ffn"][:, :, [4, 7]] == 4).all()
    assert all(np.isfinite(g).all() for g in model.gradients.values())
    assert all(np.isfinite(weight).all() for weight in out.routes.weight.values())


def test_skip_is_the_best_of_several_choices_that_mean_it() -> None:
    model, tokens = made(num_attn=2, num_ffn=5), tokens_of()  # choices 2 to 5 of the attention router mean SKIP
    out = model(tokens, return_routes=True, interventions=[mom.Force("attn", to="SKIP")])
    scores, index = out.routes.scores["attn"], out.routes.index["attn"]
    assert np.array_equal(index[..., 0], 2 + scores[..., 2:].argmax(-1)) and (index[..., 1] == -2).all()
    np.testing.assert_allclose(out.routes.weight["attn"][..., 0], 1.0, rtol=1e-6)
    rules = [mom.Force("attn", to="SKIP"), mom.Forbid("attn", modules=["SKIP"])]
    with pytest.raises(ValueError, match="SKIP of the attn half is forced and forbidden at once"):
        model(tokens, interventions=rules)


def test_random_routes_keep_as_many_choices_as_the_token() -> None:
    model, tokens = made(), tokens_of()
    rules = [mom.RandomRoutes("ffn", seed=3), mom.TopK(3, half="ffn", tokens=[5])]
    routes = model(tokens, return_routes=True, interventions=rules).routes
    ran = routes.index["ffn"] >= 0
    assert ran[:, :, 5].all() and (ran.sum(-1)[:, :, [0, 4, 9]] == 2).all()
    alone = model(tokens, return_routes=True, interventions=rules[:1]).routes
    assert np.array_equal(alone.index["ffn"][0, :, :5], routes.index["ffn"][0, :, :5, :2])
