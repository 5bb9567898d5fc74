"""What is measured on the trained models: that one framework holds a GPT-2, work and memory, and pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..accounting import ledger
from ..analysis import audit
from ..config import MoMConfig
from ..data import TokenFile
from ..evaluate import token_file_loss
from ..interventions import Force
from ..model import MoM
from ..surgery import PAPER, prune
from .box import Box, Unit
from .shapes import MODELS
from .training import config_of, load, trained

__all__ = ["counting", "framework", "pruning", "pruning_curve"]

_HALVES = ("attn", "ffn")


def seeds_of(box: Box, variant: str) -> list[int]:
    """Seeds with which a variant is trained."""
    there = trained(box.out / "models")
    return [seed for seed in box.seeds if f"{variant}-seed{seed}" in there]


def _windows(model: MoM, tokens: TokenFile, rows: int) -> npt.NDArray[np.int32]:
    length = model.config.n_positions
    found: npt.NDArray[np.int32] = tokens.windows(np.arange(min(rows, len(tokens) // length)) * length, length)
    return found


def _validation(data: Path, config: MoMConfig) -> TokenFile:
    return TokenFile(data / "val.bin", vocab_size=config.vocab_size)


# ---------------------------------------------------------------------- one framework
def framework(box: Box, data: Path) -> list[Unit]:
    """Units that write each trained GPT-2 as a MoM, with routes that are the order of its layers."""

    def unit(seed: int) -> Unit:
        return Unit("framework", f"gpt2-seed{seed}", lambda _: _as_mom(load(box, f"gpt2-seed{seed}"), data))

    return [unit(seed) for seed in seeds_of(box, "gpt2")]


def _as_mom(gpt2: MoM, data: Path) -> dict[str, Any]:
    layers = gpt2.config.n_layer - 2
    config = gpt2.config.replace(
        chunks=1, num_attn=layers, num_ffn=layers, depth_per_chunk=layers, num_bottom_layers=1, num_top_layers=1,
        require_anchor_layer=False, router_type="gru-softmax", router_dim=8, routing_top_k=1,
    )  # fmt: skip
    mom = MoM.from_vanilla(gpt2, config, seed=0)
    routes = [Force(half, to=layer, rounds=[layer]) for half in _HALVES for layer in range(layers)]
    ids = _windows(gpt2, _validation(data, gpt2.config), 8)
    outputs = [
        model.eval()(ids, labels=ids, return_logits=True, keep=False, interventions=rules)
        for model, rules in ((gpt2, []), (mom, routes), (mom, []))
    ]
    logits = [np.asarray(out.logits) for out in outputs[:2]]
    return {
        **{name: float(out.lm_loss or 0.0) for name, out in zip(("loss", "as_mom", "free"), outputs, strict=True)},
        "difference": float(np.abs(logits[0] - logits[1]).max()), "layers": layers, "tokens": int(ids.size),
    }  # fmt: skip


# ---------------------------------------------------------------------- work and memory
def counting(box: Box, data: Path) -> list[Unit]:
    """Units that count FLOPs with the routes of each trained model, and bytes of a training step."""

    def unit(model: str, seed: int) -> Unit:
        return Unit("ledger", f"{model}-seed{seed}", lambda _: _count(box, load(box, f"{model}-seed{seed}"), data))

    return [unit(model, seed) for model in MODELS for seed in seeds_of(box, model)]


def _count(box: Box, model: MoM, data: Path) -> dict[str, Any]:
    size = box.plan.size
    ids = _windows(model, _validation(data, model.config), size.rows)
    routes = None
    if not model.config.is_vanilla:
        routes = model.eval()(ids, return_routes=True, keep=False).routes
    table = ledger(model, routes=routes) if routes is not None else ledger(model, *ids.shape)
    plan = MoM(model.config).memory_plan(size.rows, size.positions)
    tokens = ids.size
    return {
        "flops": table.flops() / tokens, "flops_full": table.flops("full", head=False) / tokens,
        "parameters": int(table.parameters()), "active": float(table.parameters(active=True)),
        "layers": layers_of(model.config), "memory": plan.total,
        "activations": plan.total - plan.parameters - plan.gradients - plan.moments,
    }  # fmt: skip


def layers_of(config: MoMConfig) -> int:
    """Layers that a token goes through."""
    if config.is_vanilla:
        return config.n_layer
    per_chunk = config.rounds + int(config.require_anchor_layer)
    return config.num_bottom_layers + config.chunks * per_chunk + config.num_top_layers


# ---------------------------------------------------------------------- pruning
def pruning(box: Box, data: Path) -> list[Unit]:
    """Units that take modules out of each deep MoM."""
    count = config_of(box, "deep").num_attn
    removed = sorted({round(count * share) for share in (0.125, *PAPER.values(), 0.75)} - {0})

    def unit(seed: int) -> Unit:
        def work(_: Path) -> dict[str, Any]:
            return pruning_curve(load(box, f"deep-seed{seed}"), data, removed, box.plan.measured_batches)

        return Unit("pruning", f"deep-seed{seed}", work)

    return [unit(seed) for seed in seeds_of(box, "deep")]


def pruning_curve(model: MoM, data: Path, removed: Sequence[int], batches: int) -> dict[str, Any]:
    """The loss without so many modules of a half.

    Which modules go is measured on text for training, one module at a time (`mom.analysis.audit`). The loss is that on
    text for validation. Tokens take their next best choice. Nothing is trained afterwards.

    Returns
    -------
    dict
        ``loss`` of the whole model, and by half a list of ``[removed, modules, loss]``.
    """
    table = audit(model, data / "train.bin", ["drop_one"], batches=batches, samples=2, progress=False).table
    whole = _loss(model, data, batches)
    found: dict[str, Any] = {"loss": whole}
    for half in _HALVES:
        modules = table[(table["half"] == half) & table["module"].notna()].groupby("module")["drop_one"].mean()
        order = [int(module) for module in modules.sort_values(kind="stable").index]
        found[half] = [[0, len(order), whole]]
        for count in removed:
            gone = {name: sorted(order[:count]) if name == half else 0.0 for name in _HALVES}
            smaller = prune(model, attn=gone["attn"], ffn=gone["ffn"]).model
            found[half].append([count, len(order), _loss(smaller, data, batches)])
    return found


def _loss(model: MoM, data: Path, batches: int) -> float:
    return float(token_file_loss(model, data / "val.bin", batches=4 * batches).loss)
