"""How long ranks wait for each other."""

from __future__ import annotations

import os

from ..errors import ConfigError

__all__ = ["patience"]


def patience() -> float:
    """Seconds that a rank waits for the others: ``MOM_RANK_TIMEOUT``, or 1800.

    Rank 0 saves checkpoints while the others wait, and ranks on slow machines come late to every meeting, so it must be
    longer than either takes.
    """
    text = os.environ.get("MOM_RANK_TIMEOUT", "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"MOM_RANK_TIMEOUT: {text!r} is not a positive number of seconds")
    return seconds
