"""A model, data and settings small enough to train in a moment, with everything in them that draws random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import mom
from mom.data import TokenFile

VOCABULARY, LENGTH = 64, 16

SETTINGS: dict[str, Any] = {
    "steps": 20, "batch_size": 4, "sequence_length": LENGTH, "accumulation": 2, "lr": 1e-2, "warmup": 3,
    "eval_every": 5, "eval_batches": 2, "save_every": 4, "keep_last": 3, "seed": 5,
}  # fmt: skip


def config(**changes: Any) -> mom.MoMConfig:
    """A block of 3 + 3 modules and SKIP, 2 rounds, noisy routers, dropout, 1 + 1 anchor layers."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_head": 2, "chunks": 1, "num_attn": 3,
        "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 1, "require_anchor_layer": False,
        "router_dim": 8, "router_type": "gru-softmax-random", "routing_top_k": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
        "attn_pdrop": 0.1, "router_z_loss_coef": 0.01,
    }  # fmt: skip
    return mom.MoMConfig(**{**fields, **changes})


def model(seed: int = 0, **changes: Any) -> mom.MoM:
    return mom.MoM(config(**changes), seed=seed)


def write_tokens(path: Path, count: int, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """A token file with something to learn: each token is mostly the one before it plus one."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(count) < 0.9, 1, rng.integers(vocabulary, size=count))
    path.write_bytes((np.cumsum(steps) % vocabulary).astype("<u2").tobytes())
    return path


def write_data(folder: Path) -> Path:
    """A folder with ``train.bin`` and ``val.bin``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder / "train.bin", 3000)
    write_tokens(folder / "val.bin", 300, seed=1)
    return folder


def tokens(path: Path, count: int = 3000, **kwargs: Any) -> TokenFile:
    """A token file without validation beside it."""
    return TokenFile(write_tokens(path, count, **kwargs), vocab_size=kwargs.get("vocabulary", VOCABULARY))


def parameter_bytes(trained: mom.MoM) -> bytes:
    return b"".join(array.tobytes() for array in trained.parameters.values())


class Call:
    """A callback that calls a function with each record of a kind."""

    def __init__(self, function: Any, kind: str = "train") -> None:
        self.function, self.kind = function, kind

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == self.kind:
            self.function(record)


class Crash(Exception):
    """Stands for whatever ends a run without a chance to save."""


def crash_at(step: int) -> Call:
    """A callback that ends the run when `step` is over, before anything of it is saved."""

    def crash(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Crash

    return Call(crash)
