"""Small models and batches for tests of interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import mom

__all__ = ["SMALL", "gradients_of", "made", "moved", "same_gradients", "tokens_of"]

SMALL = mom.MoMConfig(
    vocab_size=37, n_positions=24, n_embd=16, n_head=2, chunks=1, num_attn=3, num_ffn=4, depth_per_chunk=3,
    num_bottom_layers=1, num_top_layers=1, require_anchor_layer=True, router_type="gru-softmax", router_dim=8,
    routing_top_k=2,
)  # fmt: skip


def made(seed: int = 1, dtype: str = "float32", **changes: Any) -> mom.MoM:
    """A model whose parameters, biases included, are moved off their initial values, so that nothing is zero."""
    return moved(mom.MoM(SMALL.replace(**changes), seed=seed, dtype=dtype))


def moved(model: Any) -> Any:
    rng = np.random.default_rng(7)
    for value in model.parameters.values():
        value += rng.normal(0.0, 0.05, value.shape).astype(np.float32)
    return model


def tokens_of(rows: int = 2, length: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (rows, length)).astype(np.int32)


def gradients_of(model: Any) -> dict[str, np.ndarray]:
    """Copies of the gradients, which are then set to zero."""
    found = {name: value.copy() for name, value in model.gradients.items()}
    model.zero_grad()
    return found


def same_gradients(a: dict[str, np.ndarray], b: dict[str, np.ndarray], leave_out: Sequence[str] = ()) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a if name not in leave_out)
