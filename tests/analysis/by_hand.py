"""Routes made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from mom import Routes


def routes(
    half_choices: dict[str, Any],
    modules: int | dict[str, int] = 4,
    tokens: Any = None,
    mask: Any = None,
    rounds: list[tuple[int, int]] | None = None,
    lengths: Any = None,
) -> Routes:
    """Routes from choices (L, B, T, K), or (L, N, K) with `lengths`; numbers from `modules` on mean SKIP."""
    index = {half: np.array(choices, np.int16) for half, choices in half_choices.items()}
    some = next(iter(index.values()))
    counts = {half: modules if isinstance(modules, int) else modules[half] for half in ("attn", "ffn")}
    return Routes(
        np.arange(some[0, ..., 0].size, dtype=np.int32).reshape(some.shape[1:-1]) if tokens is None
        else np.array(tokens, np.int32),
        index,
        {half: np.zeros((*i.shape[:-1], counts[half] + 1), np.float32) for half, i in index.items()},
        {half: np.full(i.shape, 1.0 / i.shape[-1], np.float32) for half, i in index.items()},
        [(0, r) for r in range(len(some))] if rounds is None else rounds,
        counts,
        None if lengths is None else np.array(lengths, np.int32),
        None if mask is None else np.array(mask, bool),
    )  # fmt: skip
