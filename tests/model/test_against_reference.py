"""The C model against the float64 twin: losses, logits, choices, every gradient, and which parameters have one.

A fixed list in which each way of routing and each option occurs, at every instruction-set level, and random
combinations of all of them. ``MOM_TEST_SEED`` chooses other combinations, ``MOM_TEST_SAMPLES`` their number.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from twin import Case, Comparison

import mom
from kinds import NOISELESS_ROUTERS, ROUTERS
from mom.errors import ConfigError
from mom.routers import KINDS

ALL = 9
SCORED = [r for r in NOISELESS_ROUTERS if KINDS[mom.MoMConfig(router_type=r).router_kind].scored]
RECURRENT = [r for r in ROUTERS if KINDS[mom.MoMConfig(router_type=r).router_kind].recurrent]

#: Shapes of models with a coupling loss.
COUPLED: dict[str, dict[str, Any]] = {
    "3 + 3 modules": {},
    "raw scores": {"router_type": "linear"},
    "1 + 4 modules": {"num_attn": 1, "num_ffn": 4},
    "5 + 2 modules": {"num_attn": 5, "num_ffn": 2},
    "single modules": {"num_attn": 1, "num_ffn": 1},
    "routers of single modules": {"num_attn": 1, "num_ffn": 2, "route_single": True},
    "a map for each round": {"router_rounds": "projection", "depth_per_chunk": 3},
    "maps of rounds that are left out": {"router_rounds": "projection", "round_pdrop": 0.5, "depth_per_chunk": 4},
    "shared pools": {"shared_pools": "both", "num_ffn": 4, "chunks": 3},
    "shared attention": {"shared_pools": "attn", "require_anchor_layer": True, "num_bottom_layers": 1},
    "all rounds left out": {"round_pdrop": 0.999},
    "one choice": {"routing_top_k": 1, "router_layernorm": True},
    "all paths": {"routing_all_possible_path": True},
    "no rounds": {"depth_per_chunk": 0, "num_bottom_layers": 1},
    "surplus outputs": {"surplus_attn": 2, "surplus_ffn": 1, "router_choices": "own", "router_bias_rate": 0.01},
    "no choice kept": {"routing_top_k": 0, "output_router_logits": False},
    "wide": {"n_embd": 520, "n_head": 8, "n_inner": 1030, "num_attn": 2, "num_ffn": 2, "chunks": 1},
    "dropout and jitter": {"resid_pdrop": 0.2, "router_jitter": 0.2},
}  # fmt: skip

FIXED: dict[str, Case] = {
    **{f"{router} top-{k}": Case({"router_type": router, "routing_top_k": k}) for router in ROUTERS for k in (1, 2)},
    **{f"{router} weighted qkv": Case({"router_type": router, "weighted_qkv": True}) for router in ROUTERS[::2]},
    **{
        f"{router} sign": Case({"router_type": router, "use_ste": True}, lm_scale=30.0)
        for router in NOISELESS_ROUTERS[::2]
    },
    **{
        f"{router} all paths{' weighted' * weighted}{' sign' * sign}": Case(
            {
                "router_type": router, "routing_all_possible_path": True, "weighted_qkv": weighted, "use_ste": sign,
                "num_attn": 2 + sign,
            }
        )
        for router in ("naive", "gru-softmax")
        for weighted in (False, True)
        for sign in (False, True)
    },
    "sign and weighted qkv, clamp active": Case(
        {"router_type": "gru", "use_ste": True, "weighted_qkv": True, "num_attn": 4}, lm_scale=50.0
    ),
    "one channel": Case({"n_embd": 1, "n_head": 1, "n_inner": 3}),
    "one channel, single modules": Case({"n_embd": 1, "n_head": 1, "n_inner": 1, "num_attn": 1, "num_ffn": 1}),
    "no choice kept": Case({"routing_top_k": 0}),
    "every choice kept": Case({"routing_top_k": 4}),
    "more choices wanted than there are": Case({"routing_top_k": ALL, "router_type": "gru"}),
    "no SKIP": Case({"enable_pause": False, "router_type": "naive"}),
    "no SKIP, all kept": Case({"enable_pause": False, "routing_top_k": 3}),
    "single attention module": Case({"num_attn": 1}),
    "single attention module, reference's balance loss": Case({"num_attn": 1, "balance_loss": "reference"}),
    "single attention module, all paths": Case({"num_attn": 1, "routing_all_possible_path": True}),
    "single feed-forward module": Case({"num_ffn": 1, "router_type": "gru"}),
    "both single": Case({"num_attn": 1, "num_ffn": 1, "depth_per_chunk": 3}),
    "two attention modules, reference's choices": Case(
        {"num_attn": 2, "num_ffn": 1, "router_type": "naive-softmax", "router_choices": "reference"}
    ),
    **{
        f"{a} + {f} modules, {choices}": Case(
            {"num_attn": a, "num_ffn": f, "router_choices": choices, "router_type": router, "routing_top_k": 3}
        )
        for a, f, router in ((2, 5, "naive-softmax"), (5, 2, "gru-softmax"), (4, 2, "gru"))
        for choices in ("max", "own", "reference")
    },
    **{
        f"balance {definition}, {router}{', by depth' * depthwise}": Case(
            {
                "balance_loss": definition, "router_type": router, "depthwise_bal_loss": depthwise, "chunks": 2,
                "router_aux_loss_coef": 3.0,
            },
            mask="left",
        )
        for definition in ("switch", "reference")
        for router in ("naive", "gru-softmax")
        for depthwise in (False, True)
    },
    "counts of the step": Case({"balance_counts": "step", "chunks": 2}, micro_batches=3, labels="some"),
    "counts of the step, by depth, masked": Case(
        {"balance_counts": "step", "depthwise_bal_loss": True, "num_attn": 2}, micro_batches=3, mask="right"
    ),
    "micro-batches": Case({"router_type": "naive"}, micro_batches=2, lm_scale=0.5, balance_scale=0.25),
    "no balance loss": Case({"output_router_logits": False, "routing_top_k": 1}),
    "balance loss weighted by zero": Case({"routing_top_k": 1}, balance_scale=0.0),
    "only the balance loss": Case({"router_type": "gru-random-softmax"}, lm_scale=0.0, balance_scale=1.0),
    **{
        f"z-loss, {router}": Case(
            {"router_type": router, "router_z_loss_coef": 0.3, "chunks": 2}, mask=("left", "holes", None, "row")[i % 4]
        )
        for i, router in enumerate(ROUTERS)
    },
    "z-loss, packed, micro-batches, by depth": Case(
        {"router_z_loss_coef": 2.0, "depthwise_bal_loss": True}, lengths=(5, 1, 9), micro_batches=2, labels="some"
    ),
    "z-loss alone, everything skipped": Case(
        {"router_z_loss_coef": 0.3, "output_router_logits": False, "routing_top_k": 1}, forced=(-9.0, -9.0, -9.0, 9.0)
    ),
    "z-loss, everything masked": Case({"router_type": "naive", "router_z_loss_coef": 0.3}, mask="row", batch=1),
    "z-loss, single feed-forward module": Case({"num_ffn": 1, "router_z_loss_coef": 0.3, "balance_loss": "reference"}),
    "z-loss, single modules": Case({"num_attn": 1, "num_ffn": 1, "router_z_loss_coef": 0.3}),
    "z-loss of 69 and 66 choices": Case(
        {"num_attn": 68, "num_ffn": 65, "router_z_loss_coef": 0.3, "router_choices": "own"}, steps=3
    ),
    "z-loss, which a classifier does not have": Case({"num_labels": 3, "router_z_loss_coef": 5.0}, mask="left"),
    **{
        f"{mask} padding, {query}": Case(
            {"masked_query_attention": query, "router_type": "gru"}, mask=mask, steps=9, batch=3
        )
        for mask in ("left", "right", "holes")
        for query in ("causal", "reference")
    },
    "a row masked throughout": Case({}, mask="row"),
    **{
        f"router reads a LayerNorm, {router}": Case({"router_type": router, "router_layernorm": True, "chunks": 2})
        for router in SCORED
    },
    **{
        f"a {kind} for each round, {router}": Case(
            {"router_type": router, "router_rounds": kind, "depth_per_chunk": 3}, micro_batches=2
        )
        for router in SCORED
        for kind in ("embedding", "projection")
        if "norm" not in router or kind == "embedding"
    },
    **{
        f"state {state}, {router}": Case({"router_type": router, "router_state": state, "depth_per_chunk": 3})
        for router in RECURRENT
        for state in ("detached", "reset")
    },
    **{
        f"weights not renormalised, top-{k}": Case(
            {"router_renormalise": False, "routing_top_k": k, "weighted_qkv": k > 1}
        )
        for k in (1, 2)
    },
    **{
        f"jitter, {router}": Case({"router_type": router, "router_jitter": 0.7}, training=True, micro_batches=2)
        for router in SCORED[::2]
    },
    **{
        f"a bias that balances, {router}": Case(
            {"router_type": router, "router_bias_rate": 0.001, "chunks": 2}, mask="left", micro_batches=2
        )
        for router in SCORED
    },
    "a bias that balances, which a classifier does not": Case({"num_labels": 3, "router_bias_rate": 0.1}, mask="left"),
    **{
        f"path loss, {a} + {f} modules{', masked' * (mask is not None)}": Case(
            {"router_path_loss_coef": 0.7, "num_attn": a, "num_ffn": f, "depth_per_chunk": 3, "chunks": 2}, mask=mask
        )
        for a, f, mask in ((3, 3, None), (1, 4, "left"), (4, 2, "holes"))
    },
    **{
        f"route loss, {router}": Case(
            {"router_type": router, "router_route_loss_coef": 0.6, "chunks": 2, "router_softmax_temperature": 0.5},
            mask=("left", None)[i % 2],
        )
        for i, router in enumerate(SCORED)
    },
    "route loss, skipping for good": Case(
        {"router_route_loss_coef": 0.6, "skip_is_final": True, "routing_top_k": 1, "depth_per_chunk": 4}
    ),
    **{
        f"coupling loss, {name}": Case(
            {"router_type": "linear-softmax", "router_coupling_loss_coef": 0.7, "chunks": 2, **changes},
            training=i % 2 == 0, mask=("left", None, "holes")[i % 3], micro_batches=1 + (i % 2 == 0),
        )
        for i, (name, changes) in enumerate(COUPLED.items())
    },
    "coupling loss, packed": Case(
        {"router_type": "linear", "router_coupling_loss_coef": 2.0, "router_aux_loss_coef": 0.0}, lengths=(5, 1, 9),
        micro_batches=2, labels="some", training=True,
    ),
    "coupling loss, without labels": Case(
        {"router_type": "linear", "router_coupling_loss_coef": 2.0, "routing_top_k": 1}, labels="none", training=True
    ),
    "coupling loss, everything to one module": Case(
        {"router_type": "linear", "router_coupling_loss_coef": 2.0, "routing_top_k": 1}, forced=(0.0, 9.0, -9.0, -9.0)
    ),
    "coupling loss, which a classifier does not have": Case(
        {"num_labels": 3, "router_type": "linear", "router_coupling_loss_coef": 5.0}, mask="left", training=True
    ),
    "path loss alone, no SKIP": Case(
        {"router_path_loss_coef": 2.0, "output_router_logits": False, "enable_pause": False, "routing_top_k": 1}
    ),
    **{
        f"a SKIP that is final, {router} top-{k}": Case(
            {"router_type": router, "skip_is_final": True, "depth_per_chunk": 4, "routing_top_k": k, "chunks": 2}
        )
        for router in ("linear", "gru-softmax", "naive-softmax")
        for k in (1, 2)
    },
    **{
        f"routers for single modules, {router}": Case(
            {"router_type": router, "route_single": True, "num_attn": 1, "num_ffn": f, "routing_top_k": 1,
             "router_renormalise": False, "skip_is_final": f == 1, "depth_per_chunk": 3}
        )
        for router in SCORED
        for f in (1, 3)
    },
    **{
        f"rounds left out, {router}": Case(
            {"router_type": router, "round_pdrop": 0.5, "depth_per_chunk": 6, "chunks": 2, "router_z_loss_coef": 0.3,
             "skip_is_final": router == "linear"}, training=True, micro_batches=2,
        )
        for router in (*SCORED, "gru-random-softmax")
    },
    "rounds left out, path loss, single attention": Case(
        {"round_pdrop": 0.5, "depth_per_chunk": 5, "num_attn": 1, "router_path_loss_coef": 0.4}, training=True
    ),
    "all rounds left out, by depth": Case(
        {"round_pdrop": 0.999, "depthwise_bal_loss": True, "num_bottom_layers": 1}, training=True
    ),
    **{
        f"blocks share {what}, {router}": Case(
            {"router_type": router, "shared_pools": what, "chunks": 3, "num_ffn": 4, "require_anchor_layer": True},
            micro_batches=2,
        )
        for router in ("linear", "gru-softmax")
        for what in ("attn", "ffn", "both")
    },
    "blocks share single modules": Case({"shared_pools": "both", "chunks": 3, "num_attn": 1, "num_ffn": 1}),
    "everything masked": Case({"router_type": "naive"}, mask="row", batch=1),
    "chunks and anchors": Case(
        {
            "chunks": 2, "require_anchor_layer": True, "num_bottom_layers": 1, "num_top_layers": 1,
            "depthwise_bal_loss": True,
        }
    ),
    "no rounds": Case({"depth_per_chunk": 0, "num_bottom_layers": 1}),
    "one round": Case({"depth_per_chunk": 1, "router_type": "gru-dev-random"}),
    "six rounds": Case({"depth_per_chunk": 6, "router_softmax_temperature": 0.5}),
    "depth from the multiplier": Case(
        {"depth_per_chunk": None, "depth_multiplier": 1.4, "router_type": "naive-softmax"}
    ),
    "low temperature": Case({"router_softmax_temperature": 0.2}),
    "plain GPT-2": Case({"chunks": 0, "n_layer": 3}, mask="left"),
    "plain GPT-2, no layers' worth of heads": Case({"chunks": 0, "n_layer": 1, "n_head": 18}),
    "one token": Case({}, steps=1),
    "one token, one row, plain": Case({"chunks": 0}, steps=1, batch=1),
    "nothing labelled": Case({"router_type": "gru"}, labels="none"),
    "some labelled": Case({"router_type": "gru"}, labels="some", lm_scale=0.3),
    "unscaled attention": Case({"scale_attn_weights": False, "router_type": "naive"}),
    "large epsilon": Case({"layer_norm_epsilon": 0.1}),
    "heads of 9": Case({"n_embd": 27, "n_head": 3, "n_inner": 31}),
    "heads of 16": Case({"n_embd": 48, "n_head": 3, "n_inner": None, "router_dim": 16}),
    "heads of 80": Case({"n_embd": 160, "n_head": 2, "n_inner": 97, "n_positions": 40}, steps=33),
    "heads of 64": Case({"n_embd": 128, "n_head": 2}, steps=16),
    **{
        f"{router} top-1 weighted qkv{' sign' * sign}": Case(
            {"router_type": router, "routing_top_k": 1, "weighted_qkv": True, "use_ste": sign}
        )
        for router in ("naive", "gru-softmax")
        for sign in (False, True)
    },
    # One module has everything, the others nothing: 12, 32, 48, 96 and 192 are edges of tiles and blocks.
    **{
        f"{steps} tokens to one module, top-{k}": Case(
            {"n_positions": 200, "routing_top_k": k, "router_type": "naive-softmax"}, batch=1, steps=steps,
            forced=(0.0, 9.0, -9.0, -9.0),
        )
        for steps, k in ((1, 1), (1, 2), (12, 1), (13, 1), (31, 2), (32, 1), (33, 1), (49, 1), (97, 2), (127, 1),
                         (128, 1), (129, 1), (193, 1))
    },
    **{
        f"everything skipped{', masked' * masked}": Case(
            {"routing_top_k": 1, "weighted_qkv": masked}, mask="left" if masked else None,
            forced=(-9.0, -9.0, -9.0, 9.0),
        )
        for masked in (False, True)
    },
    "one choice of two is always SKIP": Case({"router_type": "naive-softmax"}, forced=(0.0, 0.0, 0.0, 9.0)),
    "more modules than tokens": Case(
        {"num_attn": 8, "num_ffn": 8, "routing_top_k": 1, "weighted_qkv": True}, batch=1, steps=3
    ),
    # 3 n_embd, n_inner and n_embd each fall into several blocks of a product's finished columns.
    **{
        f"wide, {router} top-{k}{' weighted qkv' * weighted}": Case(
            {
                "n_embd": 520, "n_head": 8, "n_inner": 1030, "num_attn": 2, "num_ffn": 2, "routing_top_k": k,
                "router_type": router, "weighted_qkv": weighted,
            },
            steps=5,
        )
        for router, k, weighted in (("naive-softmax", 1, True), ("gru", 2, True), ("naive", 1, False))
    },
    "packed weights, top-1": Case(
        {"n_positions": 70, "router_type": "naive-softmax", "routing_top_k": 1, "weighted_qkv": True}, steps=70
    ),
    "widths of 1": Case(
        {"n_embd": 2, "n_head": 2, "n_inner": 1, "router_dim": 1, "vocab_size": 2, "router_type": "gru"}
    ),
    "long rows": Case({"n_positions": 70, "router_type": "naive-softmax"}, steps=70, mask="holes"),
    "dropout": Case(
        {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "num_bottom_layers": 1, "num_ffn": 1}, training=True
    ),
    "dropout, masked, random router, micro-batches": Case(
        {"attn_pdrop": 0.1, "resid_pdrop": 0.4, "chunks": 2, "router_type": "gru-random"},
        training=True, mask="left", micro_batches=2,
    ),
    "dropout of the reference's masked queries": Case(
        {"attn_pdrop": 0.2, "masked_query_attention": "reference", "num_attn": 1}, training=True, mask="left", steps=9
    ),
    "dropout of a plain GPT-2": Case(
        {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "chunks": 0, "n_layer": 2}, training=True
    ),
    "dropout switched off in evaluation": Case({"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1}),
    **{
        f"{problem} of {labels}, pooled by {pooling}": Case(
            {"num_labels": labels, "problem_type": problem, "pooling": pooling, "pad_token_id": 0, "chunks": chunks},
            mask=mask, lm_scale=0.7,
        )
        for problem, labels, chunks in (
            ("regression", 1, 1), ("regression", 3, 0), ("single_label_classification", 4, 1),
            ("multi_label_classification", 3, 1), (None, 1, 1), (None, 2, 0),
        )
        for pooling, mask in (("mask", "left"), ("mask", "right"), ("reference", "right"))
    },
    **{
        f"packed, {router} top-{k}, {rounds} rounds": Case(
            {"router_type": router, "routing_top_k": k, "depth_per_chunk": rounds}, lengths=(5, 1, 9, 2)
        )
        for router in ROUTERS
        for k, rounds in ((1, 1), (2, 3))
    },
    "packed, plain GPT-2": Case({"chunks": 0, "n_layer": 2}, lengths=(1, 8, 3)),
    "packed, one sequence": Case({}, lengths=(11,)),
    "packed, one token": Case({}, lengths=(1,)),
    "packed, single tokens": Case({"router_type": "gru"}, lengths=(1, 1, 1)),
    # Around tiles of 12, 32, 48, 96 and 128 rows, of all tokens together and of single sequences.
    **{
        f"packed, lengths {lengths}": Case(
            {"n_positions": 140, "routing_top_k": 1, "router_type": "naive-softmax"}, lengths=lengths,
        )
        for lengths in ((11, 12, 13), (31, 1), (33, 32, 31), (47, 48, 49), (97, 95, 96), (127, 128, 129), (128, 1))
    },
    "packed, everything to one module": Case(
        {"routing_top_k": 1}, lengths=(6, 1, 7), forced=(0.0, 9.0, -9.0, -9.0)
    ),
    "packed, everything skipped": Case({"routing_top_k": 1}, lengths=(6, 1, 7), forced=(-9.0, -9.0, -9.0, 9.0)),
    "packed, some labelled, micro-batches": Case({}, lengths=(4, 7, 1), labels="some", micro_batches=2, lm_scale=0.5),
    "packed, counts of the step": Case(
        {"balance_counts": "step", "depthwise_bal_loss": True, "balance_loss": "switch"}, lengths=(4, 7, 1),
        micro_batches=2,
    ),
    "packed, all paths": Case({"routing_all_possible_path": True, "num_attn": 2}, lengths=(3, 8)),
    "packed, masked queries of the reference": Case({"masked_query_attention": "reference"}, lengths=(3, 8)),
    "packed, dropout": Case(
        {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1, "num_bottom_layers": 1, "num_ffn": 1},
        lengths=(7, 2, 5), training=True,
    ),
    **{
        f"packed, {problem} of {labels}": Case(
            {"num_labels": labels, "problem_type": problem, "chunks": chunks, "router_type": "gru-softmax"},
            lengths=(3, 9, 1, 6), lm_scale=0.7,
        )
        for problem, labels, chunks in (
            ("regression", 1, 1), ("single_label_classification", 4, 1), ("multi_label_classification", 3, 0),
        )
    },
    # One more and one less than the columns of a product's tiles and of the head's chunks.
    **{
        f"vocabulary of {size}": Case({"vocab_size": size}, lengths=(5, 2))
        for size in (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 511, 512, 513)
    },
    "classifier with dropout": Case(
        {"num_labels": 3, "resid_pdrop": 0.3, "router_type": "gru-random-softmax"}, mask="right", training=True
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """These models are far too small to divide."""
    mom.set_num_threads(1)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_case(name: str, kernel_level: str) -> None:
    Comparison(FIXED[name]).check()


def one_token_per_module(lengths: tuple[int, ...] = ()) -> Comparison:
    fields = {"num_attn": 4, "num_ffn": 4, "routing_top_k": 1, "router_type": "naive-softmax", "depth_per_chunk": 1}
    comparison = Comparison(Case(fields, batch=1, steps=4, lengths=lengths))
    for name, value in comparison.values.items():  # token t has a large channel t, and module t is chosen by that
        if name.endswith("wte.weight"):
            value[:4] += 10 * np.eye(*value[:4].shape, dtype=np.float32)
        elif name.endswith((".router.router.0.weight", ".router.router.2.weight")):
            value[:] = np.eye(*value.shape)
    tokens = np.array([2, 0, 3, 1])
    for call in comparison.batches:
        call["tokens"] = call["labels"] = tokens if lengths else tokens[None]
    comparison.expected = comparison._run_twin(comparison.values)
    for half in ("attn", "ffn"):
        assert np.array_equal(comparison.expected.outputs[0].routes[half][0][0].index.ravel(), tokens)
    return comparison


@pytest.mark.parametrize("lengths", [(), (1, 2, 1)])
def test_one_token_per_module(lengths: tuple[int, ...], kernel_level: str) -> None:
    one_token_per_module(lengths).check()


SEED = int(os.environ.get("MOM_TEST_SEED", "20240709"))
SAMPLES = int(os.environ.get("MOM_TEST_SAMPLES", "400"))


def sample(rng: np.random.Generator) -> Case:
    """A random combination of everything; fields that a configuration rejects are drawn again."""

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    n_head = pick(1, 2, 3)
    width = pick(3, 9, 16)
    steps = pick(1, 2, 5, 8, 17)
    fields = {
        "vocab_size": pick(2, 17, 61), "n_positions": steps + pick(0, 3), "n_embd": n_head * width, "n_head": n_head,
        "n_inner": pick(None, 7, 33), "chunks": pick(0, 1, 1, 1, 2), "num_attn": pick(1, 2, 3, 4, 6),
        "num_ffn": pick(1, 2, 3, 4, 6), "depth_per_chunk": pick(0, 1, 2, 3, 5), "num_bottom_layers": pick(0, 1),
        "num_top_layers": pick(0, 0, 1), "require_anchor_layer": pick(False, True), "router_dim": pick(1, 8, 19),
        "router_type": pick(*ROUTERS), "routing_top_k": pick(0, 1, 1, 2, 2, 3, ALL),
        "enable_pause": pick(True, True, False), "use_ste": pick(False, False, True),
        "weighted_qkv": pick(False, True), "routing_all_possible_path": pick(False, False, False, True),
        "router_choices": pick("max", "own", "reference"), "balance_loss": pick("reference", "switch"),
        "balance_counts": pick("micro", "step"), "depthwise_bal_loss": pick(False, True),
        "output_router_logits": pick(True, True, True, False), "masked_query_attention": pick("causal", "reference"),
        "router_softmax_temperature": pick(1.0, 0.5), "scale_attn_weights": pick(True, True, False),
    }  # fmt: skip
    training = bool(pick(False, False, True))
    if training:
        fields |= {"attn_pdrop": pick(0.0, 0.2), "resid_pdrop": pick(0.0, 0.3), "embd_pdrop": pick(0.0, 0.1)}
    labels = pick(None, None, None, None, 1, 3)
    if labels is not None:
        problem = pick(
            None, "regression", "multi_label_classification", *(["single_label_classification"] * (labels > 1))
        )
        fields |= {
            "num_labels": labels,
            "problem_type": problem,
            "pooling": pick("mask", "reference"),
            "pad_token_id": 0,
        }
    packed = bool(pick(False, False, True)) and fields.get("pooling") != "reference"
    lengths = tuple(int(n) for n in rng.integers(1, steps + 1, pick(1, 2, 3))) if packed else ()
    case = Case(
        fields, batch=pick(1, 2, 3), steps=steps, mask=None if packed else pick(None, "left", "right", "holes"),
        lengths=lengths, labels=pick("tokens", "some"), training=training, lm_scale=pick(1.0, 0.5, 20.0),
        balance_scale=pick(None, 0.0, 2.0), micro_batches=pick(1, 1, 2), seed=int(rng.integers(2**31)),
    )  # fmt: skip
    case.fields["router_z_loss_coef"] = pick(0.0, 0.5)
    if case.fields["router_type"].startswith("linear"):
        case.fields["router_coupling_loss_coef"] = pick(0.0, 0.5)
    if case.fields["router_type"] == "norm":  # raw lengths multiply the stream by itself, round after round
        case.fields["depth_per_chunk"] = min(case.fields["depth_per_chunk"], 1)
    try:
        case.config  # noqa: B018
    except ConfigError:
        return sample(rng)
    return case


@pytest.mark.parametrize("number", range(SAMPLES))
def test_random_combination(number: int) -> None:
    case = sample(np.random.default_rng([SEED, number]))
    print(f"MOM_TEST_SEED={SEED}, sample {number}: {case}")
    Comparison(case).check()
