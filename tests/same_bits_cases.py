"""The training runs and generations whose results `same_bits.py` hashes, as two tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mom

ROUTERS = (
    "naive", "naive-softmax", "gru", "gru-softmax", "gru-dev", "gru-dev-softmax", "gru-random", "gru-random-softmax",
    "gru-dev-random", "gru-dev-random-softmax", "linear", "linear-softmax", "norm", "norm-softmax",
)  # fmt: skip

#: Odd sizes: no width is a multiple of 8 numbers, so every loop over vectors has a rest.
SMALL: dict[str, Any] = {
    "vocab_size": 67, "n_positions": 24, "n_embd": 30, "n_head": 2, "n_inner": 52, "initializer_range": 0.1,
    "chunks": 1, "num_bottom_layers": 1, "num_top_layers": 1, "require_anchor_layer": False, "num_attn": 3,
    "num_ffn": 3, "depth_per_chunk": 3, "router_dim": 12, "router_type": "gru-softmax", "routing_top_k": 2,
    "router_softmax_temperature": 0.5,
}  # fmt: skip

#: Large enough that products have several blocks and loops are shared between threads.
LARGE: dict[str, Any] = {
    **SMALL, "vocab_size": 1100, "n_positions": 64, "n_embd": 96, "n_head": 3, "n_inner": None, "router_dim": 40,
    "depth_per_chunk": 2,
}  # fmt: skip

#: What makes a configuration a plain GPT-2.
PLAIN: dict[str, Any] = {"chunks": 0, "num_bottom_layers": 0, "num_top_layers": 0, "n_layer": 2}
DROPOUT: dict[str, Any] = {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.15}


@dataclass(frozen=True)
class Training:
    """A short training run with a loop of its own.

    Attributes
    ----------
    name : str
        Also decides the seed.
    config : MoMConfig
        With ``num_labels`` for a classifier.
    dtype : str
    rows : str
        ``"full"``; ``"packed"`` (rows of unequal length, one after the other); ``"left"``, ``"right"`` or ``"holes"``
        (where a mask hides tokens); ``"pads"`` (padding tokens on the right without a mask); ``"positions"`` (position
        ids in any order).
    batch, length : int
        Rows, and tokens of the longest row.
    micro_batches : int
        Backward passes per step.
    labelled : float
        Share of the tokens that have a label.
    checkpointing : bool
        Activation checkpointing.
    from_vanilla : bool
        Begin with the layers of a plain GPT-2.
    """

    name: str
    config: mom.MoMConfig
    dtype: str = "float32"
    rows: str = "full"
    batch: int = 3
    length: int = 19
    micro_batches: int = 1
    labelled: float = 1.0
    checkpointing: bool = False
    from_vanilla: bool = False


_OPTIONS = frozenset(Training.__dataclass_fields__) - {"name", "config"}


def small(name: str, **given: Any) -> Training:
    """A run with `SMALL` and the fields given, which are those of `Training` and of the configuration."""
    options = {key: value for key, value in given.items() if key in _OPTIONS}
    fields = {key: value for key, value in given.items() if key not in _OPTIONS}
    return Training(name, mom.MoMConfig(**{**SMALL, **fields}), **options)


def large(name: str, **given: Any) -> Training:
    """The same with `LARGE`, and a batch that fits it."""
    return small(f"large {name}", **{**LARGE, "batch": 4, "length": 61, **given})


def router_runs() -> list[Training]:
    """Every router with one, two and three choices, with and without SKIP.

    The other options change from run to run, each with a period of its own.
    """
    runs = []
    for i, (router, top_k, skip) in enumerate(itertools.product(ROUTERS, (1, 2, 3), (True, False))):
        runs.append(
            small(
                f"router {router} top-{top_k} {'with' if skip else 'without'} SKIP",
                router_type=router, routing_top_k=top_k, enable_pause=skip,
                dtype="bfloat16" if i % 5 in (1, 3) else "float32", use_ste=i % 7 in (2, 5),
                weighted_qkv=i % 11 in (1, 4, 8), rows=("full", "packed", "full", "left", "full")[i // 2 % 5],
                micro_batches=1 + (i % 13 % 2), num_attn=3 + i // 6 % 3, num_ffn=3 + i // 3 % 2,
            )  # fmt: skip
        )
    return runs


TRAINING: list[Training] = [
    *router_runs(),
    # What the scores do.
    small("straight-through naive-softmax top-1", use_ste=True, router_type="naive-softmax", routing_top_k=1),
    small("straight-through naive top-2", use_ste=True, router_type="naive"),
    small("straight-through gru-dev top-3 without SKIP", use_ste=True, router_type="gru-dev", routing_top_k=3,
          enable_pause=False),
    small("weighted qkv naive top-2", weighted_qkv=True, router_type="naive"),
    small("weighted qkv straight-through gru top-3", weighted_qkv=True, use_ste=True, router_type="gru",
          routing_top_k=3),
    small("weighted qkv bf16 packed", weighted_qkv=True, dtype="bfloat16", rows="packed"),
    small("all paths naive-softmax", routing_all_possible_path=True, router_type="naive-softmax"),
    small("all paths gru without SKIP", routing_all_possible_path=True, router_type="gru", enable_pause=False),
    small("all paths weighted qkv bf16", routing_all_possible_path=True, weighted_qkv=True, dtype="bfloat16"),
    small("no choice at all", routing_top_k=0),
    small("low temperature", router_softmax_temperature=0.05),
    # Balance losses.
    small("balance reference", balance_loss="reference"),
    small("balance reference naive", balance_loss="reference", router_type="naive"),
    small("balance by depth", depthwise_bal_loss=True, chunks=2),
    small("balance by depth reference", depthwise_bal_loss=True, balance_loss="reference", num_attn=1),
    small("balance step counts", balance_counts="step", micro_batches=3, router_aux_loss_coef=0.3),
    small("balance step counts by depth packed", balance_counts="step", micro_batches=2, depthwise_bal_loss=True,
          rows="packed"),
    small("balance step counts all paths masked", balance_counts="step", micro_batches=2, rows="right",
          routing_all_possible_path=True),
    small("balance off", output_router_logits=False),
    small("balance weight zero", router_aux_loss_coef=0.0),
    # The body.
    small("two chunks", chunks=2, depth_per_chunk=2),
    small("two chunks with anchors between", chunks=2, require_anchor_layer=True, depth_per_chunk=2),
    small("no anchors at all", num_bottom_layers=0, num_top_layers=0),
    small("routed last round, few labels", num_top_layers=0, labelled=0.3),
    small("anchored last round, few labels", labelled=0.3, checkpointing=True),
    small("few labels packed bf16", labelled=0.3, rows="packed", dtype="bfloat16"),
    small("pools of 2 and 5, own choices", num_attn=2, num_ffn=5, router_choices="own", routing_top_k=3),
    small("pools of 5 and 2, larger pool's choices", num_attn=5, num_ffn=2, routing_top_k=3),
    small("pools of 2 and 5, reference's choices", num_attn=2, num_ffn=5, router_choices="reference",
          router_type="naive"),
    small("pools of 5 and 2, reference's choices", num_attn=5, num_ffn=2, router_choices="reference"),
    small("single attention module", num_attn=1),
    small("single feed-forward module bf16", num_ffn=1, dtype="bfloat16"),
    small("single modules in both halves", num_attn=1, num_ffn=1),
    small("unscaled attention", scale_attn_weights=False),
    small("started from a plain GPT-2", from_vanilla=True),
    # Rows.
    small("packed", rows="packed", batch=5),
    small("packed dropout random checkpointed", rows="packed", batch=5, checkpointing=True,
          router_type="gru-random", **DROPOUT),
    small("mask left", rows="left"),
    small("mask left reference", rows="left", masked_query_attention="reference"),
    small("mask right bf16", rows="right", dtype="bfloat16"),
    small("mask with holes", rows="holes", router_type="gru-dev-softmax"),
    small("positions given", rows="positions"),
    small("one token a row", length=1, batch=4, num_labels=2, rows="right"),
    # Dropout and activation checkpointing.
    small("dropout embeddings", embd_pdrop=0.2),
    small("dropout attention masked", attn_pdrop=0.2, rows="left"),
    small("dropout residual", resid_pdrop=0.2, micro_batches=2),
    small("dropout bf16", dtype="bfloat16", **DROPOUT),
    small("checkpointed", checkpointing=True, chunks=2, depth_per_chunk=2),
    small("checkpointed dropout random routers", checkpointing=True, router_type="gru-dev-random-softmax",
          **DROPOUT),
    small("checkpointed bf16 all paths", checkpointing=True, dtype="bfloat16", routing_all_possible_path=True),
    small("checkpointed step counts weighted qkv", checkpointing=True, balance_counts="step", micro_batches=2,
          weighted_qkv=True),
    # Plain GPT-2.
    small("plain", **PLAIN),
    small("plain bf16 few labels", dtype="bfloat16", labelled=0.2, **PLAIN),
    small("plain packed dropout checkpointed", rows="packed", checkpointing=True, **PLAIN, **DROPOUT),
    small("plain mask left", rows="left", **PLAIN),
    # Classifiers.
    small("classes masked left", num_labels=3, rows="left", batch=6),
    small("classes packed bf16", num_labels=3, rows="packed", batch=6, dtype="bfloat16", micro_batches=2),
    small("classes reference pooling", num_labels=2, rows="pads", batch=6, pad_token_id=0, pooling="reference"),
    small("classes dropout checkpointed", num_labels=2, rows="packed", batch=6, checkpointing=True, **DROPOUT),
    small("regression packed", num_labels=1, rows="packed", batch=6, router_type="naive"),
    small("regression of two masked right", num_labels=2, problem_type="regression", rows="right", batch=6),
    small("many classes at once", num_labels=4, problem_type="multi_label_classification", rows="packed", batch=6),
    small("plain classes", num_labels=3, rows="packed", batch=6, **PLAIN),
    # What routers may have beside their kind.
    small("router LayerNorm", router_layernorm=True),
    small("router LayerNorm linear bf16", router_layernorm=True, router_type="linear-softmax", dtype="bfloat16"),
    small("vector of each round, two chunks", router_rounds="embedding", chunks=2, micro_batches=2),
    small("map of each round, naive packed", router_rounds="projection", router_type="naive", rows="packed"),
    small("state detached", router_state="detached"),
    small("state reset bf16", router_state="reset", dtype="bfloat16"),
    small("not renormalised top-1", router_renormalise=False, routing_top_k=1),
    small("jitter checkpointed", router_jitter=0.3, checkpointing=True),
    small("frozen routers", router_frozen=True),
    small("bias that balances, masked", router_bias_rate=0.02, rows="left", micro_batches=2),
    small("path loss masked", router_path_loss_coef=0.3, rows="holes", chunks=2),
    small("coupling loss, maps of rounds, dropout", router_coupling_loss_coef=0.5, router_type="linear-softmax",
          chunks=2, router_rounds="projection", micro_batches=2, **DROPOUT),
    small("coupling loss bf16 shared checkpointed", router_coupling_loss_coef=0.5, router_type="linear", chunks=2,
          shared_pools="both", routing_top_k=1, dtype="bfloat16", checkpointing=True),
    small("final SKIP top-1 naive", skip_is_final=True, router_type="naive-softmax", routing_top_k=1),
    small("final SKIP packed bf16 checkpointed", skip_is_final=True, rows="packed", dtype="bfloat16",
          checkpointing=True),
    small("routers of single modules", route_single=True, num_attn=1, num_ffn=1, routing_top_k=1,
          router_renormalise=False, skip_is_final=True, balance_routes="used"),
    small("shared feed-forward modules", shared_pools="ffn", chunks=2),
    small("shared modules, anchors between, packed", shared_pools="both", chunks=3, require_anchor_layer=True,
          depth_per_chunk=2, rows="packed"),
    small("rounds left out", round_pdrop=0.4, chunks=2, micro_batches=2),
    small("rounds left out, single modules, checkpointed", round_pdrop=0.4, num_attn=1, num_ffn=1, checkpointing=True,
          **DROPOUT),
    small("started from a plain GPT-2 along its path", from_vanilla=True, router_rounds="projection",
          vanilla_path_bias=3.0),
    # Larger shapes.
    large("gru-softmax top-2"),
    large("gru-softmax top-2 bf16", dtype="bfloat16"),
    large("naive top-1 packed", router_type="naive", routing_top_k=1, rows="packed", batch=7),
    large("gru-dev top-3 masked checkpointed", router_type="gru-dev", routing_top_k=3, rows="holes",
          checkpointing=True),
    large("two micro-batches bf16 dropout", dtype="bfloat16", micro_batches=2, **DROPOUT),
    large("weighted qkv few labels", weighted_qkv=True, labelled=0.2),
    large("all paths", routing_all_possible_path=True, n_embd=64, n_head=2),
    large("plain wide head", n_embd=128, n_head=1, **PLAIN),
    large("plain bf16", n_embd=128, n_head=4, dtype="bfloat16", **PLAIN),
    large("long rows", n_positions=200, length=190, batch=2, n_embd=64, n_head=1),
    large("long rows packed bf16", n_positions=200, length=190, n_embd=128, n_head=2, rows="packed", dtype="bfloat16"),
    large("wide modules", n_embd=160, n_head=2, batch=8, chunks=2, depth_per_chunk=1),
    large("classes packed", num_labels=3, rows="packed", batch=9),
    large("norm top-1 LayerNorm", router_type="norm-softmax", routing_top_k=1, router_renormalise=False,
          router_layernorm=True),
    large("linear, everything shared, final SKIP", router_type="linear-softmax", shared_pools="both", chunks=2,
          skip_is_final=True, router_rounds="projection", router_path_loss_coef=0.1),
]  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """A continuation of prompts.

    Attributes
    ----------
    name : str
    config : MoMConfig
    dtype : str
    weights : str or None
        Number format in which single tokens read the weights; None: the model's.
    lengths : tuple of int
        Of the prompts.
    sampling : dict
        Arguments of `mom.MoM.generate`.
    """

    name: str
    config: mom.MoMConfig
    dtype: str
    weights: str | None
    lengths: tuple[int, ...]
    sampling: dict[str, Any]


def generation(
    name: str, *, dtype: str = "float32", weights: str | None = None, lengths: tuple[int, ...] = (5, 1, 12),
    sampling: Mapping[str, Any] | None = None, **fields: Any,
) -> Generation:  # fmt: skip
    """A case with `SMALL` and the fields of the configuration given; greedy by default."""
    config = mom.MoMConfig(**{**SMALL, "n_positions": 80, "initializer_range": 0.3, **fields})
    return Generation(name, config, dtype, weights, lengths, dict(sampling or {}))


GENERATION: list[Generation] = [
    *(generation(f"greedy {router}", router_type=router, routing_top_k=1 + i % 3, enable_pause=i % 4 != 3)
      for i, router in enumerate(ROUTERS)),
    generation("greedy one long prompt", lengths=(60,)),
    generation("greedy all paths", routing_all_possible_path=True),
    generation("greedy straight-through weighted qkv", use_ste=True, weighted_qkv=True),
    generation("greedy pools of 2 and 5, two chunks", num_attn=2, num_ffn=5, chunks=2, require_anchor_layer=True),
    generation("greedy single modules", num_attn=1, num_ffn=1),
    generation("greedy plain", lengths=(7, 7), **PLAIN),
    generation("greedy no choice at all", routing_top_k=0),
    generation("greedy final SKIP, map of each round", skip_is_final=True, router_rounds="projection", routing_top_k=1),
    generation("greedy routers of single modules", route_single=True, num_attn=1, num_ffn=1, routing_top_k=1,
               router_layernorm=True, router_type="linear-softmax", router_renormalise=False),
    generation("greedy shared modules, vector of each round", shared_pools="both", chunks=2, router_rounds="embedding"),
    generation("greedy bias that balances", router_bias_rate=0.02, router_state="reset"),
    generation("temperature", sampling={"temperature": 1.3, "seed": 4}),
    generation("top-k", sampling={"temperature": 0.8, "top_k": 5, "seed": 5}),
    generation("top-p", sampling={"temperature": 1.1, "top_p": 0.7, "seed": 6}, router_type="gru-random-softmax"),
    generation("top-k and top-p until a stop token", lengths=(3,) * 6,
               sampling={"temperature": 2.0, "top_k": 40, "top_p": 0.9, "seed": 7, "stop_token": 2}),
    generation("model in bf16", dtype="bfloat16", lengths=(9, 33)),
    generation("weights in bf16", weights="bfloat16"),
    generation("weights in int8", weights="int8", sampling={"temperature": 0.7, "seed": 8}),
    generation("plain weights in int8", weights="int8", **PLAIN),
    generation("large", **{**LARGE, "n_positions": 80}, lengths=(40, 3, 17, 60)),
    generation("large bf16", **{**LARGE, "n_positions": 80}, lengths=(40, 3), dtype="bfloat16"),
    generation("large int8", **{**LARGE, "n_positions": 80}, lengths=(5,), weights="int8"),
]  # fmt: skip
