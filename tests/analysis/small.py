"""A small model that uses all of its modules, and tokens for it."""

from __future__ import annotations

from typing import Any

import numpy as np

import mom

IDS = np.random.default_rng(7).integers(0, 40, (6, 12)).astype(np.int32)


def model_of(**changes: Any) -> mom.MoM:
    """Random weights, large enough that routes and losses differ between tokens."""
    fields: dict[str, Any] = {
        "n_embd": 16,
        "n_head": 2,
        "vocab_size": 40,
        "n_positions": 16,
        "router_dim": 8,
        **changes,
    }
    model = mom.MoM(mom.MoMConfig.preset("demo", **fields), seed=0)
    random = np.random.default_rng(1)
    for name, parameter in model.parameters.items():
        scale = 0.5 if "router" in name else 0.2
        parameter[...] = parameter + scale * random.standard_normal(parameter.shape).astype(np.float32)
    return model
