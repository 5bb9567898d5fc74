"""The configuration as the core reads it."""

from __future__ import annotations

import math
from typing import Any

from ..config import MoMConfig
from ..routers import KINDS

__all__ = ["check_dtype", "core_config"]

_DTYPES = ("float32", "bfloat16")


def check_dtype(dtype: Any) -> None:
    """Raise unless `dtype` names a number format that models compute in."""
    if dtype not in _DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(map(repr, _DTYPES))}")


def core_config(c: MoMConfig, dtype: str) -> dict[str, Any]:
    """The configuration as the core reads it, with derived sizes worked out and words turned into numbers."""
    check_dtype(dtype)
    return {
        "V": c.vocab_size, "P": c.n_positions, "C": c.n_embd, "H": c.n_head, "F": c.inner_size,
        "bottom": c.n_layer if c.is_vanilla else c.num_bottom_layers,
        "chunks": c.chunks,
        "top": 0 if c.is_vanilla else c.num_top_layers,
        "anchor_between": bool(c.require_anchor_layer and c.chunks),
        "vanilla": c.is_vanilla,
        "num_attn": c.num_attn, "num_ffn": c.num_ffn, "rounds": c.rounds if c.chunks else 0,
        "choices_attn": c.num_choices("attn"), "choices_ffn": c.num_choices("ffn"),
        "top_k": min(c.routing_top_k, max(c.num_choices("attn"), c.num_choices("ffn"))),
        "router_kind": list(KINDS).index(c.router_kind),
        "router_softmax": c.router_softmax, "router_random": c.router_random, "R": c.router_dim,
        "temperature": float(c.router_softmax_temperature),
        "renormalise": c.router_renormalise, "jitter": float(c.router_jitter),
        "router_state": ("kept", "detached", "reset").index(c.router_state),
        "router_normed": c.router_layernorm, "router_embedded": c.router_rounds == "embedding",
        "router_own_maps": c.router_rounds == "projection", "router_frozen": c.router_frozen,
        "bias_rate": float(c.router_bias_rate), "final_skip": c.skip_is_final, "route_single": c.route_single,
        "share_attn": c.shared_pools in ("attn", "both"), "share_ffn": c.shared_pools in ("ffn", "both"),
        "round_pdrop": float(c.round_pdrop),
        "use_ste": c.use_ste, "weighted_qkv": c.weighted_qkv, "all_paths": c.routing_all_possible_path,
        "balance_enabled": c.output_router_logits, "balance_reference": c.balance_loss == "reference",
        "balance_depthwise": c.depthwise_bal_loss, "balance_step_counts": c.balance_counts == "step",
        "balance_used": c.balance_routes == "used", "z_loss": c.loss_weights["z"] > 0.0,
        "path_loss": c.loss_weights["path"] > 0.0, "route_loss": c.loss_weights["route"] > 0.0,
        "coupling_loss": c.loss_weights["coupling"] > 0.0,
        "masked_query_reference": c.masked_query_attention == "reference",
        "embd_pdrop": float(c.embd_pdrop), "attn_pdrop": float(c.attn_pdrop), "resid_pdrop": float(c.resid_pdrop),
        "ln_eps": float(c.layer_norm_epsilon), "scale_attention": c.scale_attn_weights,
        "init_range": float(c.initializer_range),
        "anchor_proj_range": float(c.initializer_range) / math.sqrt(2 * c.n_layer),
        "num_labels": c.num_labels or 0,
        "bf16": dtype == "bfloat16",
    }  # fmt: skip
