"""Rows of unequal length as one padded array, which packed rows are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["padded"]


def padded(
    rows: Sequence[NDArray[Any]], side: str = "right", fill: int = 0, longest: int | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Tokens, mask (0 at padding) and positions (which count real tokens, 0 at padding), each (B, T)."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max()) if longest is None else longest
    columns = np.arange(longest) - (longest - lengths[:, None] if side == "left" else 0)
    real = (columns >= 0) & (columns < lengths[:, None])
    tokens = np.full(real.shape, fill)
    tokens[real] = np.concatenate(rows)
    return tokens, real.astype(np.uint8), np.where(real, columns, 0)
