"""The ledger's formulas against the counters of the core, and against sums by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mom
from kinds import ROUTERS
from mom.model.counting import PARTS

IDS = np.random.default_rng(0).integers(0, 60, (2, 20)).astype(np.int32)
MASK = np.ones((2, 20), np.int32)
MASK[0, :5] = MASK[1, 12:] = 0
FEW = np.full((2, 20), -100)
FEW[0, 7], FEW[1, 2:5] = 3, 4


def config_of(**changes: Any) -> mom.MoMConfig:
    small = {"vocab_size": 60, "n_positions": 400, "n_embd": 16, "n_head": 2, "router_dim": 8}
    return mom.MoMConfig.preset("demo", **{**small, **changes})


VANILLA = mom.MoMConfig.vanilla(3, vocab_size=60, n_positions=400, n_embd=16, n_head=2)


def compare(
    model: Any,
    tokens: Any = IDS,
    labels: Any = IDS,
    told: Any = None,
    interventions: Any = (),
    backward: bool = True,
    logits: bool | None = None,
    **call: Any,
) -> tuple[mom.accounting.Ledger, Any]:
    """Run a pass that counts, and compare it with the ledger of its routes. `told` are the labels that it hears of."""
    asked = {} if logits is None else {"return_logits": logits}
    with model.counting() as counts:
        out = model(tokens, labels=labels, return_routes=True, interventions=interventions, **asked, **call)
        if backward:
            model.backward()
    found = mom.ledger(
        model, routes=out.routes, training=backward, labels=told, labelled=labels is not None, logits=bool(logits)
    )
    assert found.by_part("forward") == counts.forward
    assert found.by_part("backward") == counts.backward
    assert found.by_part("recomputed") == counts.recomputed
    assert not found.expected and counts.forward["qkv"] > 0
    return found, counts


# ------------------------------------------------------------------ the counters of the core
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("router_type", ROUTERS)
def test_every_router_counts_what_the_ledger_says(router_type: str, checkpointing: bool, dtype: str) -> None:
    model = mom.MoM(config_of(router_type=router_type, depth_per_chunk=3), seed=0, dtype=dtype)
    model.activation_checkpointing = checkpointing
    found, counts = compare(model)
    assert (counts.recomputed["up"] > 0) is checkpointing and counts.recomputed["scores"] > 0
    assert (counts.forward["state"] > 0) is router_type.startswith("gru")
    assert (counts.forward["router"] == 0) is router_type.startswith("hash")


@pytest.mark.parametrize(
    "changes",
    [
        {"routing_top_k": 1}, {"routing_top_k": 3, "num_attn": 5, "num_ffn": 3}, {"enable_pause": False},
        {"router_type": "naive", "routing_all_possible_path": True}, {"routing_top_k": 9, "weighted_qkv": True},
        {"num_ffn": 1, "num_attn": 5, "num_top_layers": 0}, {"num_attn": 1, "num_ffn": 6, "num_top_layers": 0},
        {"chunks": 3, "require_anchor_layer": True, "n_inner": 24}, {"router_choices": "own", "surplus_ffn": 2},
        {"use_ste": True, "depth_per_chunk": 0}, {"masked_query_attention": "reference"},
        {"router_rounds": "projection", "router_layernorm": True, "chunks": 2}, {"router_rounds": "embedding"},
        {"router_state": "detached", "depth_per_chunk": 3}, {"router_state": "reset", "depth_per_chunk": 3},
        {"shared_pools": "both", "chunks": 3}, {"route_single": True, "num_attn": 1, "num_ffn": 1, "chunks": 2},
        {"skip_is_final": True, "routing_top_k": 1, "depth_per_chunk": 6}, {"router_bias_rate": 0.1},
        {"router_type": "linear", "router_coupling_loss_coef": 0.5, "chunks": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_every_shape_counts_what_the_ledger_says(changes: dict[str, Any], masked: bool) -> None:
    model = mom.MoM(config_of(**changes), seed=0)
    labels = np.where(MASK, IDS, -100) if masked else IDS
    compare(model, labels=labels, **({"attention_mask": MASK, "told": labels} if masked else {}))


def test_rounds_that_are_left_out_do_not_count() -> None:
    for changes in ({"round_pdrop": 0.5, "depth_per_chunk": 5}, {"round_pdrop": 0.5, "num_ffn": 1, "chunks": 3}):
        model = mom.MoM(config_of(**changes), seed=0).train()
        whole = mom.ledger(model, batch=2, length=20).forward
        assert min(compare(model)[0].forward for _ in range(6)) < 0.9 * whole


def test_expected_routes_know_a_skip_that_is_final() -> None:
    """A fresh router is nearly even, so about half of the tokens go on after each round."""
    fields = {"skip_is_final": True, "route_single": True, "num_attn": 1, "num_ffn": 1, "routing_top_k": 1}
    config = config_of(**fields, depth_per_chunk=4, router_type="linear-softmax")
    ledger = mom.ledger(config, batch=2, length=20, training=False)
    rows = ledger.to_pandas()
    up = rows[(rows["part"] == "up") & (rows["block"] == 0)]["tokens"].tolist()
    assert up == pytest.approx([20.0, 10.0, 5.0, 2.5])


def test_a_plain_gpt2_counts_what_the_ledger_says() -> None:
    for labels in (IDS, FEW):
        for checkpointing in (False, True):
            model = mom.MoM(VANILLA, seed=0)
            model.activation_checkpointing = checkpointing
            compare(model, labels=labels, told=labels)


def test_packed_rows_count_what_the_ledger_says() -> None:
    lengths = [3, 9, 300, 1]  # more rows than the routers take in a block
    ids = np.arange(sum(lengths)) % 60
    for config in (config_of(), VANILLA):
        compare(mom.MoM(config, seed=0), ids, ids, lengths=lengths)


def test_long_padded_rows_count_what_the_ledger_says() -> None:
    ids = np.random.default_rng(1).integers(0, 60, (2, 300))
    mask = np.ones((2, 300), np.int32)
    mask[1, 77:] = 0
    found, _ = compare(mom.MoM(config_of(), seed=0), ids, np.where(mask, ids, -100), attention_mask=mask)
    assert found.tokens == 377


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_skipped_rows_of_the_last_round_do_not_count(masked: bool, logits: bool) -> None:
    for changes in ({}, {"num_ffn": 1, "num_attn": 5, "num_top_layers": 0}):
        model = mom.MoM(config_of(**changes), seed=0)
        call = {"attention_mask": MASK} if masked else {}
        few, _ = compare(model, labels=FEW, told=FEW, logits=logits, **call)
        all_rows, _ = compare(model, labels=IDS, told=IDS, logits=logits, **call)
        assert (few.by_part()["down"] < all_rows.by_part()["down"]) is not logits


def test_a_pass_without_labels_has_no_head() -> None:
    model = mom.MoM(config_of(), seed=0)
    found, _ = compare(model, labels=None, backward=False)
    assert found.by_part()["head"] == 0 and found.backward == found.recomputed == 0
    found, _ = compare(model, labels=None, backward=False, logits=True, attention_mask=MASK)
    assert found.by_part()["head"] == MASK.sum() * 60 * 16


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "patterns",
    [
        ["*.router.*"], ["transformer.h.2.*"], ["transformer.ln_f.*"], ["transformer.h.1.mot_ffn.c_fc.*"],
        ["transformer.wte.weight"], ["transformer.h.1.mot_attn.router.*", "transformer.h.2.mot_ffn*"],
    ],
    ids=str,
)  # fmt: skip
def test_backward_of_frozen_parameters_does_not_count(patterns: list[str], checkpointing: bool) -> None:
    model = mom.MoM(config_of(chunks=2, depth_per_chunk=2), seed=0)
    whole, _ = compare(model)
    model.activation_checkpointing = checkpointing
    model.train_only(*patterns)
    part, _ = compare(model)
    assert part.forward == whole.forward and part.backward < whole.backward
    told = mom.ledger(model.config, 2, 20, trainable=patterns, activation_checkpointing=checkpointing)
    assert told.backward / told.forward == pytest.approx(part.backward / part.forward, rel=0.05)


@pytest.mark.parametrize("patterns", [["*"], ["score.weight"], ["score.weight", "*ln_f*"], ["*.mot_ffn.*"]], ids=str)
def test_a_classifier_counts_what_the_ledger_says(patterns: list[str]) -> None:
    model = mom.MoMForSequenceClassification(config_of(num_labels=3), seed=0)
    model.train_only(*patterns)
    compare(model, labels=np.array([0, 2]), attention_mask=MASK)
    compare(model, IDS.ravel(), np.array([0, 2, 1]), lengths=[4, 7, 29])


def test_interventions_count_as_the_routes_that_they_make() -> None:
    model = mom.MoM(config_of(depth_per_chunk=3), seed=0)
    rules = [mom.Force("ffn", to=["SKIP"], rounds=[0]), mom.Force("attn", to="SKIP", rounds=[1], tokens=[4, 5]),
             mom.Forbid("attn", modules=[2]), mom.TopK(3)]  # fmt: skip
    found, _ = compare(model, interventions=rules)
    table = [row for row in found.rows if row.block == 0 and row.round == 0 and row.half == "ffn" and row.part == "up"]
    assert table and all(row.tokens == row.forward == row.bytes == 0 for row in table)


def test_two_steps_add_up_and_a_copy_does_not_count() -> None:
    model = mom.MoM(config_of(), seed=0)
    with model.counting() as one:
        model(IDS, labels=IDS)
    with model.counting() as two:
        model(IDS, labels=IDS)
        model.copy()(IDS, labels=IDS)
        assert two.forward == one.forward
        model(IDS, labels=IDS)
        with pytest.raises(RuntimeError, match="blocks cannot be nested"), model.counting():
            pass
    model(IDS, labels=IDS)
    assert two.forward == {part: 2 * n for part, n in one.forward.items()}
    assert repr(two).startswith("<Counts of multiply-adds: forward ")


def test_counting_changes_no_bit() -> None:
    for dtype in ("float32", "bfloat16"):
        plain, counted = (mom.MoM(config_of(), seed=3, dtype=dtype) for _ in range(2))
        plain_loss = plain(IDS, labels=IDS, attention_mask=MASK).loss
        plain.backward()
        with counted.counting():
            assert counted(IDS, labels=IDS, attention_mask=MASK).loss == plain_loss
            counted.backward()
        for name, gradient in plain.gradients.items():
            assert np.array_equal(gradient, counted.gradients[name]), name


def test_reading_token_by_token_counts_as_the_whole_pass() -> None:
    """The same products, but the head, of which a decoder reads one row for each call."""
    for config in (config_of(), config_of(router_type="naive"), VANILLA):
        model = mom.MoM(config, seed=0)
        decoder = mom.Decoder(model)
        with model.counting() as steps:
            decoder.prefill(IDS[:, :1])
            for t in range(1, IDS.shape[1]):
                decoder.step(IDS[:, t])
        with model.counting() as whole:
            found = model(IDS, return_routes=True).routes
        ledger = mom.ledger(model, routes=found, labelled=False, training=False)
        assert ledger.by_part() == whole.forward
        assert steps.forward == {**whole.forward, "head": IDS.size * 60 * 16}


# ------------------------------------------------------------------ by hand
def test_a_plain_gpt2_by_hand() -> None:
    C, F, V, B, T, layers = 16, 64, 60, 3, 11, 3
    found = mom.ledger(VANILLA, B, T)
    N, pairs = B * T, B * T * (T + 1) // 2
    forward = [3 * N * C * C, 2 * pairs * C, N * C * C, N * C * F, N * F * C]  # qkv, scores, projection, up, down
    head = B * (T - 1) * V * C
    assert found.forward == layers * sum(forward) + head
    assert found.backward == 2 * found.forward and found.recomputed == layers * pairs * C
    assert found.flops() == 6 * found.forward
    assert found.flops("full", head=False) == 6 * layers * (sum(forward) + 2 * C * (B * T * T - pairs))
    assert found.flops(recomputed=True) == found.flops() + 2 * found.recomputed
    assert found.active_parameters == found.unique_parameters - (400 - 1) * C
    assert not found.expected and found.bytes == 4 * (found.parameters(embeddings=False) - 2 * C + V * C)


def test_active_parameters_by_hand() -> None:
    """One round: what a token uses are its own choices."""
    model = mom.MoM(config_of(depth_per_chunk=1), seed=0)
    routes = model(IDS, attention_mask=MASK, return_routes=True).routes
    assert routes is not None
    found = mom.ledger(model, routes=routes)
    C, F = 16, 64
    sizes = {"attn": 2 * C + C * 3 * C + 3 * C + C * C + C, "ffn": 2 * C + C * F + F + F * C + C}
    used = sum(
        size * (routes.module[half][0][MASK == 1] < 4).sum() / MASK.sum() for half, size in sizes.items()
    )  # fmt: skip
    routers = sum(a.size for name, a in model.parameters.items() if ".router." in name)
    anchors = 2 * sum(sizes.values())
    assert found.parameters(active=True, embeddings=False) == pytest.approx(used + routers + anchors + 2 * C)
    assert found.unique_parameters == model.num_parameters


@pytest.mark.parametrize(
    "config",
    [
        config_of(), config_of(num_ffn=1, router_type="naive"), VANILLA,
        config_of(router_type="gru-random", surplus_attn=2, chunks=2, num_labels=4),
    ],
)  # fmt: skip
def test_unique_parameters_are_those_of_the_model(config: mom.MoMConfig) -> None:
    kind = mom.MoM if config.num_labels is None else mom.MoMForSequenceClassification
    assert mom.ledger(config).unique_parameters == kind(config).num_parameters


@pytest.mark.parametrize(
    "changes", [{}, {"routing_top_k": 1}, {"num_attn": 2, "num_ffn": 5, "routing_top_k": 3}], ids=str
)
def test_expected_routes_are_means_over_random_ones(changes: dict[str, Any]) -> None:
    model = mom.MoM(config_of(**changes), seed=0)
    expected = mom.ledger(model, 2, 20)
    sums: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    active, tries = 0.0, 200
    for seed in range(tries):
        rules = [mom.RandomRoutes(half, seed=seed) for half in ("attn", "ffn")]
        ids = np.random.default_rng(seed).integers(0, 60, IDS.shape)  # equal tokens have equal random routes
        routes = model(ids, interventions=rules, return_routes=True).routes
        found = mom.ledger(model, routes=routes)
        active += found.active_parameters / tries
        for part, value in found.by_part().items():
            sums[part] += value / tries
    assert expected.expected
    for part, value in expected.by_part().items():
        assert sums[part] == pytest.approx(value, rel=0.02), part
    assert active == pytest.approx(expected.active_parameters, rel=0.02)


# ------------------------------------------------------------------ tables and errors
def test_the_table_has_a_row_for_each_part_and_adds_up() -> None:
    pandas = pytest.importorskip("pandas")
    model = mom.MoM(config_of(depth_per_chunk=2), seed=0)
    found, counts = compare(model)
    table = found.to_pandas()
    assert list(table.columns) == ["place", "block", "round", "half", "module", "part", "tokens", "forward", "backward",
                                   "recomputed", "bytes"]  # fmt: skip
    assert not table.duplicated(["place", "round", "half", "module", "part"]).any()
    assert table["forward"].dtype == np.int64 and table["forward"].sum() == sum(counts.forward.values())
    chosen = table[(table.block == 0) & (table["round"] == 1) & (table.half == "ffn") & (table.part == "down")]
    assert list(chosen.module) == [0, 1, 2, 3]
    head = table[table.part == "head"].iloc[0]
    assert head.place is pandas.NA and pandas.isna(head.half) and head.tokens == 2 * 19
    means = mom.ledger(model.config, 2, 20).to_pandas()
    assert means["forward"].dtype == np.float64 and len(means) == len(table)


def test_it_shows_itself() -> None:
    found = mom.ledger(config_of(), 2, 20)
    assert "training, 40 tokens in 2 sequences, expected routes" in repr(found) and "FLOPs" in repr(found)
    assert all(len(line) <= 80 for line in str(found).splitlines())
    assert all(f"\n{part} " in str(found) for part in PARTS)
    html = found._repr_html_()
    assert html.count("<table>") == 2 and "active parameters" in html
    totals = found.totals()
    assert totals["FLOPs"] == found.flops() and totals["bytes of weights read"] == found.bytes
    assert totals["FLOPs, full attention"] > totals["FLOPs"] > totals["FLOPs without head"]


def test_errors_say_what_to_do() -> None:
    model = mom.MoM(config_of(), seed=0)
    routes = model(IDS, return_routes=True).routes
    assert routes is not None
    for match, arguments in {
        "batch: 3, but the routes have 2": {"batch": 3, "routes": routes},
        "length: 401, n_positions is 400": {"length": 401},
        "labels: shape \\(3,\\)": {"labels": [1, 2, 3]},
        "routes: some entries are free": {"routes": routes.edit(half="ffn", to="free")},
        "trainable: 'nothing' fits no parameter": {"trainable": "nothing"},
        "batch: 0 is less than 1": {"batch": 0},
    }.items():
        with pytest.raises(ValueError, match=match):
            mom.ledger(model, **arguments)
    with pytest.raises(ValueError, match="routes: have 4 rounds"):
        mom.ledger(config_of(depth_per_chunk=2), routes=routes)
    with pytest.raises(ValueError, match="routes: are of 4 attn modules"):
        mom.ledger(config_of(num_attn=3), routes=routes)
    with pytest.raises(TypeError, match="preset"):
        mom.ledger("demo")
    with pytest.raises(TypeError, match="routes: expected mom.Routes"):
        mom.ledger(model, routes=3)
    with pytest.raises(ValueError, match="attention: 'none' is not one of"):
        mom.ledger(model).flops("none")
    with pytest.raises(ValueError, match="column: 'tokens' is not one of"):
        mom.ledger(model).by_part("tokens")
