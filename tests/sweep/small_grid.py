"""A grid whose trials take a moment: tiny models, with everything in them that draws random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

#: Fields of all runs, but for the data.
BASE: dict[str, Any] = {
    "preset": "demo", "vocab_size": 64, "n_positions": 16, "n_embd": 16, "n_head": 2, "router_dim": 8,
    "router_type": "gru-softmax-random", "resid_pdrop": 0.1, "steps": 12, "batch_size": 2, "sequence_length": 16,
    "eval_every": 4, "eval_batches": 2, "save_every": 5, "lr": 1e-2, "warmup": 2,
}  # fmt: skip


def write_data(folder: Path) -> Path:
    """A folder with ``train.bin`` and ``val.bin``, in which each token is mostly the one before it plus one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train.bin", 3000, 0), ("val.bin", 300, 1)):
        rng = np.random.default_rng(seed)
        steps = np.where(rng.random(count) < 0.9, 1, rng.integers(64, size=count))
        (folder / name).write_bytes((np.cumsum(steps) % 64).astype("<u2").tobytes())
    return folder


def grid(data: Path, axes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A grid over two seeds, or over other axes. `more` are fields of the base and further parts of the grid."""
    names = ("variant", "keep_models", "measure", "sampler", "trials")
    parts = {name: more.pop(name) for name in names if name in more}
    return {"base": {**BASE, "data": str(data), **more}, "grid": {"seed": [0, 1]} if axes is None else axes, **parts}
