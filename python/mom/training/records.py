"""Figures of a step for the records of a run."""

from __future__ import annotations

import math
import resource
import sys
from typing import Any

from ..model import Network

__all__ = ["module_use", "peak_memory_bytes", "perplexity_of"]


def peak_memory_bytes() -> int:
    """Largest resident memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def module_use(model: Network) -> tuple[dict[str, Any], float | None]:
    """Share of the last pass's choices per module (SKIP last) by half, block and round, and of SKIP in all."""
    use: dict[str, Any] = {"attn": [], "ffn": []}
    skipped, total = 0, 0
    for place, kind in enumerate(model.config.places()):
        if kind != "block":
            continue
        for number, half in enumerate(("attn", "ffn")):
            rounds: list[list[float] | None] = []
            for r in range(model.config.rounds):
                counts = model.core.route_counts(place, r, number)
                if counts is None:
                    rounds.append(None)
                    continue
                everything = int(counts.sum())
                skipped += int(counts[-1])
                total += everything
                rounds.append([round(float(c) / everything, 5) if everything else 0.0 for c in counts])
            use[half].append(rounds)
    return use, (skipped / total if total else None)


def perplexity_of(loss: float) -> float:
    """Perplexity of a loss in nats per token. It is finite for every loss."""
    return math.exp(min(loss, 700.0))
