"""Figures of a step for the records of a run."""

from __future__ import annotations

import math
import resource
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model import Network

__all__ = ["module_use", "peak_memory_bytes", "perplexity_of"]


def peak_memory_bytes() -> int:
    """Largest resident memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def module_use(model: Network) -> tuple[dict[str, Any], float | None]:
    """Share of the last pass's choices per module (SKIP last) by half, block and round, and of SKIP in all."""
    counts = model.route_counts()
    routed = [rounds for half in counts.values() for block in half for rounds in block if rounds is not None]
    total, skipped = sum(int(c.sum()) for c in routed), sum(int(c[-1]) for c in routed)
    use = {half: [[_shares(c) for c in block] for block in blocks] for half, blocks in counts.items()}
    return use, (skipped / total if total else None)


def _shares(counts: NDArray[np.int64] | None) -> list[float] | None:
    return None if counts is None else [round(int(c) / max(1, int(counts.sum())), 5) for c in counts]


def perplexity_of(loss: float) -> float:
    """Perplexity of a loss in nats per token. It is finite for every loss."""
    return math.exp(min(loss, 700.0))
