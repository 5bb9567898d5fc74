"""Interventions in the C model against the twin: outputs, routes, captured activations, and every gradient.

Each kind of intervention occurs with several kinds of routing. The twin applies the same resolved arrays in a way of
its own, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from twin import SMALL, Case, Comparison, relative_error

import mom
from kinds import NOISELESS_ROUTERS, ROUTERS
from mom import Bias, Forbid, Force, Patch, RandomRoutes, Scale, TopK, Zero

EVERYTHING = ("*",)
WIDTH = SMALL["n_embd"]


def values(*shape: int) -> np.ndarray:
    """Numbers to put in place of activations."""
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


#: A bit of everything, for two rounds of one block.
MIXTURE = (
    Force("ffn", to=1, rounds=[1], tokens=[2, 3]),
    Force("attn", to="SKIP", rounds=[0], tokens=[4]),
    Forbid("attn", modules=[2], rounds=[1]),
    Bias("ffn", {0: 1.5, "SKIP": -2.0}),
    Scale("block0.round1.ffn.output", 0.5),
    Scale("block0.round0.*.module0.output", -1.25),
    Patch("block0.round0.ffn.output", values(WIDTH), tokens=[5]),
    Zero("embedding", tokens=[1]),
)
PATCHES = (
    Scale("embedding", 0.9),
    Scale("block0.*.input", 0.75),
    Scale("block0.*.module?.output", 1.5),
    Patch("block0.round1.*.module[03].output", values(WIDTH), tokens=[0, 1, 2]),
    Scale("block0.round0.*.output", -0.5),
    Zero("block0.round1.attn.output", rows=[0], tokens=[3]),
    Patch("block0.round1.attn.output", 0.25, tokens=[2]),
    Scale("final", 1.25),
    Patch("final", values(2, WIDTH), tokens=[1, 4]),
    Scale("hidden", 0.5),
    Zero("hidden", tokens=[0]),
)
STATE = (Scale("block0.*.state", 0.5), Patch("block0.round0.attn.state", values(SMALL["router_dim"]), tokens=[1, 2]))


def of_kind(router: str) -> tuple[Any, ...]:
    return (*MIXTURE, *STATE) if mom.routers.router_kind(router).recurrent else MIXTURE


def case(fields: dict[str, Any], *interventions: Any, **more: Any) -> Case:
    return Case(fields, interventions=interventions, capture=EVERYTHING, **more)


CASES: dict[str, Case] = {
    **{
        f"mixture, {router} top-{1 + i % 2}": case(
            {"router_type": router, "routing_top_k": 1 + i % 2}, *of_kind(router)
        )
        for i, router in enumerate(ROUTERS)
    },
    **{
        f"mixture, {router}, weighted qkv{', sign' * sign}": case(
            {"router_type": router, "weighted_qkv": True, "use_ste": sign, "router_z_loss_coef": 0.3}, *of_kind(router),
            lm_scale=30.0 if sign else 1.0, mask="left", steps=9,
        )
        for router, sign in (("naive", True), ("naive-softmax", True), ("gru", False), ("gru-softmax", True))
    },
    "mixture, packed, two blocks": case({"chunks": 2, "router_z_loss_coef": 0.3}, *MIXTURE, lengths=(7, 2, 9)),
    "mixture, dropout": case(
        {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "num_ffn": 1, "router_type": "gru-random-softmax"},
        *(rule for rule in MIXTURE if getattr(rule, "half", "attn") == "attn"), training=True,
    ),
    # Two choices in an order that the scores do not have; one choice; none but SKIP.
    **{
        f"lists, {router}{', no SKIP' * (not skip)}{', sign' * sign}": case(
            {"router_type": router, "enable_pause": skip, "use_ste": sign, "routing_top_k": 3},
            Force("ffn", to=[2, 0], rounds=[0]), Force("ffn", to=[0, "SKIP", 2], rounds=[1], tokens=[0, 3]),
            Force("attn", to="SKIP", rounds=[(0, 0)], rows=[1]), Force("attn", to=[1], rounds=[(0, 1)]),
        )
        for router, skip, sign in (
            ("naive", True, True), ("gru-softmax", True, False), ("gru-softmax", False, False), ("hash", False, False),
            ("naive", False, False), ("hash", True, False), ("naive-softmax", False, True),
        )
    },
    # A SKIP without a score is the only choice: the kept scores sum to 0.
    "nothing but a SKIP without a score": case({"enable_pause": False}, Force("ffn", "SKIP"), Force("attn", "SKIP")),
    **{
        f"random routes, {router}": case(
            {"router_type": router, "routing_top_k": 2, "chunks": 2}, RandomRoutes("attn", seed=3),
            RandomRoutes("ffn", rounds=[0, (1, 1)], seed=4), mask="left", steps=9,
        )
        for router in ("gru", "naive-softmax", "hash")
    },
    "random routes, packed": case({"weighted_qkv": True}, RandomRoutes("ffn"), RandomRoutes("attn"), lengths=(4, 1, 8)),
    **{
        f"another top-k, {router}": case(
            {"router_type": router, "routing_top_k": 1, "chunks": 2}, TopK(1, rounds=[0], tokens=[0, 2]), TopK(2),
            TopK(3, half="ffn", rounds=[1]), TopK(3, half="ffn", rounds=[1, 2], rows=[0]),
        )
        for router in ("gru-softmax", "naive", "hash")
    },
    "random routes, fewer choices": case({}, TopK(1, tokens=[0, 3]), RandomRoutes("ffn"), RandomRoutes("attn", [0])),
    "fewer choices": case({"routing_top_k": 3}, TopK(1), Force("attn", 1, tokens=[1])),
    # Fewer choices are left than are kept.
    **{
        f"one choice left, {router}, {balance}": case(
            {
                "router_type": router, "routing_top_k": 2, "balance_loss": balance, "router_z_loss_coef": 0.5,
                "depthwise_bal_loss": balance == "switch",
            },
            Forbid("ffn", [0, 2, "SKIP"]), Forbid("attn", [0, "SKIP"], rounds=[1], tokens=[0]),
            Bias("attn", {1: -3.0}, rows=[0]), mask="right",
        )
        for router in ("gru", "naive-softmax", "hash")
        for balance in ("switch", "reference")
    },
    **{
        f"all paths, {router}{' weighted' * weighted}{' sign' * sign}": case(
            {
                "router_type": router, "routing_all_possible_path": True, "weighted_qkv": weighted, "use_ste": sign,
                "router_z_loss_coef": 0.2,
            },
            Forbid("attn", [1]), Bias("ffn", {0: 0.5}), Forbid("ffn", [2], rounds=[1], tokens=[0, 3]),
            Scale("block0.round0.*.module2.output", 0.5), Zero("block0.round1.ffn.module1.output", tokens=[2]),
        )
        for router, weighted, sign in (
            ("naive", False, False), ("gru-softmax", True, True), ("naive-softmax", True, False), ("gru", False, True),
        )
    },
    **{
        f"patches, {router} top-{k}": case(
            {"router_type": router, "routing_top_k": k, "weighted_qkv": k == 2}, *PATCHES, batch=3,
        )
        for router, k in (("naive", 2), ("gru-softmax", 1), ("hash", 2))
    },
    "patches, sign, clamp active": case({"router_type": "naive", "use_ste": True}, *PATCHES, lm_scale=50.0),
    "patches, dropout, masked": case(
        {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "router_type": "gru"}, *PATCHES, *STATE,
        training=True, mask="left", steps=12, seed=1,
    ),
    "patches, packed": case({"router_type": "gru"}, *PATCHES, *STATE, lengths=(5, 8, 6)),
    "patches of whole arrays": case(
        {"n_inner": 31}, Patch("block0.round0.attn.output", values(2, 7, WIDTH), tokens=[1, 5]),
        Patch("block0.round1.ffn.input", values(14, WIDTH), rows=[1]), Patch("block0.*.ffn.module?.output", 0.5),
    ),
    "wide patches": case(
        {"n_embd": 96, "n_head": 3, "n_inner": 150, "n_positions": 70}, Scale("block0.*.output", 0.5),
        Scale("block0.round1.*.module*.output", 1.5), Zero("block0.round0.ffn.output", tokens=list(range(40, 60))),
        batch=2, steps=70,
    ),
    "plain GPT-2": case(
        {"chunks": 0, "n_layer": 2}, Scale("anchor0.*.output", 0.5), Zero("anchor1.attn.input", tokens=[2]),
        Patch("anchor1.ffn.output", 1.0, rows=[0]), mask="left",
    ),
    "anchors and blocks": case(
        {"chunks": 2, "num_bottom_layers": 1, "num_top_layers": 1}, Force("ffn", 2, rounds=[2]),
        Scale("anchor*.ffn.output", 0.5), Zero("block1.round0.attn.output", tokens=[1]),
    ),
    "single modules": case(
        {"num_attn": 1, "num_ffn": 1}, Scale("block0.*.module0.output", 0.5), Zero("block0.round1.ffn.output", rows=[1])
    ),
    "no choice kept": case({"routing_top_k": 0, "balance_routes": "used"}, Scale("block0.*.output", 0.5)),
    **{
        f"balance of used routes, {name}": case(
            {"balance_routes": "used", **fields}, Force("ffn", 1, rounds=[1]), Force("attn", "SKIP", tokens=[1, 2]),
            RandomRoutes("ffn", rounds=[0]), mask="left", steps=9, micro_batches=2,
        )
        for name, fields in (
            ("softmax", {}), ("naive", {"router_type": "naive", "depthwise_bal_loss": True}),
            ("SKIP without a score", {"enable_pause": False, "balance_loss": "reference"}),
            ("counts of the step", {"balance_counts": "step", "enable_pause": False, "router_aux_loss_coef": 3.0}),
        )
    },
    "balance of used routes, nothing forced": Case(
        {"balance_routes": "used", "balance_counts": "step"}, micro_batches=2
    ),
    "balance of used routes, no choice kept": Case({"balance_routes": "used", "routing_top_k": 0}),
    "classifier": case(
        {"num_labels": 3, "pad_token_id": 0}, Force("ffn", 0), Scale("hidden", 0.5), Zero("final", tokens=[0]),
        Patch("block0.round1.attn.output", 1.0, tokens=[1]), mask="left",
    ),
    "classifier, packed": case(
        {"num_labels": 3}, Forbid("attn", [0]), Scale("block0.*.output", 2.0), lengths=(3, 9, 5)
    ),
    "only captured": case({"router_type": "gru", "weighted_qkv": True}, mask="holes", labels="some"),
    "nothing labelled": case({}, Scale("hidden", 0.5), labels="none"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """These models are far too small to divide."""
    mom.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, kernel_level: str) -> None:
    Comparison(CASES[name]).check()


@pytest.mark.parametrize("router", [*NOISELESS_ROUTERS, "gru-random-softmax"])
def test_edited_routes(router: str, kernel_level: str) -> None:
    """A model's own routes with entries that are free, none, SKIP, and in another order."""
    comparison = Comparison(case({"router_type": router, "routing_top_k": 2, "chunks": 2}, batch=3))
    call = comparison.batches[0]
    model = comparison.new_model()
    routes = model(**call, return_routes=True).routes
    routes = routes.edit("ffn", to="free", round=1, tokens=[0, 1]).edit("attn", to=[2, 0], round=2)
    routes = routes.edit("attn", to="SKIP", round=0, tokens=3).edit("ffn", to=["SKIP", "free"], round=3, tokens=[2])
    routes.index["ffn"][0, 0, 0] = (-2, 1)
    routes.index["attn"][3, 1] = (-1, 0)
    edited = Comparison(comparison.case, routes)
    edited.check()
    index = edited.expected.outputs[0].routes["ffn"][0][0].index
    assert tuple(index[0, 0]) == (-2, 1)


@pytest.mark.parametrize(
    ("fields", "rules", "message"),
    [
        ({}, [TopK(1, tokens=[2]), Force("ffn", [0, 1])], "choose differently for row 0, position 2"),
        ({"router_choices": "max", "num_attn": 2, "num_ffn": 4}, [Force("attn", "SKIP"), Forbid("attn", ["SKIP"])],
         "forced and forbidden at once"),
        ({}, [TopK(1, tokens=[2]), TopK(2, rounds=[1])], "another TopK contradict each other for row 0, position 2"),
        ({}, [Force("attn", 1), Forbid("attn", [1], rounds=[1])], "forced and forbidden at once"),
    ],
)  # fmt: skip
def test_contradictions(fields: dict[str, Any], rules: list[Any], message: str) -> None:
    ids, config = [[1, 2, 3, 4]], Case(fields).config
    for model in (mom.MoM(config, seed=0), mom.reference.Model(config, Comparison(Case(fields)).values)):
        with pytest.raises(ValueError, match=message):
            model(ids, interventions=rules)


def attention_places(config: mom.MoMConfig) -> list[tuple[str, str]]:
    """Names of attention half-rounds for users, and of their probabilities in the twin's trace."""
    found, blocks, anchors = [], 0, 0
    for place, kind in enumerate(config.places()):
        if kind == "block":
            found += [(f"block{blocks}.round{r}.attn", f"block{place}/round{r}") for r in range(config.rounds)]
            blocks += 1
        else:
            found.append((f"anchor{anchors}.attn", f"block{place}"))
            anchors += 1
    return found


@pytest.mark.parametrize(
    "case",
    [
        Case({"num_bottom_layers": 1}, interventions=(Force("attn", "SKIP", rounds=[1], tokens=[2, 4]),)),
        Case({"weighted_qkv": True, "routing_top_k": 1}, mask="left", steps=9, batch=3),
        Case({"masked_query_attention": "reference", "scale_attn_weights": False}, mask="holes", steps=9, batch=3),
        Case({"routing_top_k": 1, "router_type": "naive"}, lengths=(5, 1, 8), interventions=(Scale("embedding", 2.0),)),
        Case({"chunks": 0, "n_layer": 2}, steps=12),
    ],
    ids=["anchor and SKIP", "left padding", "reference's masked queries", "packed", "plain GPT-2"],
)  # fmt: skip
def test_probabilities_of_attention(case: Case, kernel_level: str) -> None:
    comparison = Comparison(case)
    model, want = comparison.new_model(), comparison.expected.outputs[0]
    call = {name: value for name, value in comparison.batches[0].items() if name != "labels"}
    for place, site in attention_places(comparison.config):
        rows = [1, 0]
        have = model.attention(**call, place=place, rows=rows, interventions=case.interventions)
        probs = want.trace[f"attn_probs/{site}"][rows].copy()
        index = want.trace.get(f"topk_index/{site}/attn")
        if index is not None:  # a query whose token chose no module has zeros
            runs = ((index >= 0) & (index < comparison.config.num_attn)).any(-1)
            starts = np.cumsum([0, *case.lengths])
            for i, row in enumerate(rows):
                own = runs[starts[row] : starts[row + 1]] if case.lengths else runs[row]
                probs[i, :, : len(own)][:, ~own] = 0.0
        assert relative_error(have, probs) < 1e-5, place


def everything(model: Any, call: dict[str, Any], case: Case) -> list[bytes]:
    model.zero_grad()
    model.random_state = (3, 0)
    out = model(
        **call, interventions=case.interventions, capture=case.capture, return_logits=True, return_routes=True,
        return_token_losses=True,
    )  # fmt: skip
    model.backward()
    arrays = [out.logits, out.token_losses, *out.routes.index.values(), *out.routes.weight.values()]
    arrays += [*out.captured.values(), *out.captured.gradients.values(), *model.gradients.values()]
    return [np.array(out.loss).tobytes(), *(array.tobytes() for array in arrays)]


@pytest.mark.parametrize("router", ["gru-random-softmax", "naive"])
def test_same_bits_for_any_number_of_threads_and_with_checkpoints(router: str, kernel_level: str) -> None:
    fields = {
        "router_type": router, "n_embd": 48, "n_inner": 100, "n_positions": 80, "resid_pdrop": 0.1, "attn_pdrop": 0.1,
        "router_z_loss_coef": 0.3,
    }  # fmt: skip
    state = [Scale("block0.*.state", 0.5)] if router != "naive" else []
    rules = [
        RandomRoutes("ffn", rounds=[0]), Forbid("attn", [1]), Bias("ffn", {"SKIP": 1.0}), Force("attn", 2, tokens=[70]),
        Scale("block0.*.output", 0.5), Zero("block0.round1.*.module2.output"), Patch("final", 1.0, tokens=[3]), *state,
    ]  # fmt: skip
    case = Case(fields, interventions=tuple(rules), capture=EVERYTHING, training=True)
    model = mom.MoM(case.config, seed=5)
    model.train()
    ids = np.random.default_rng(1).integers(0, 29, (3, 80))
    found = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        for checkpoint in (False, True):
            model.activation_checkpointing = checkpoint
            found.append(everything(model, {"tokens": ids, "labels": ids}, case))
    assert all(other == found[0] for other in found[1:])
