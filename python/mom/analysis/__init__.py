"""Looks at routes: which paths tokens take, what routes depend on, and what they do to the loss.

Tables are pandas DataFrames and pictures are matplotlib figures. Padding is left out everywhere. Intervals are of 95 %.
"""

from .dependence import dependence, mutual_information
from .drift import drift, match_modules, prefill_against_decode
from .paths import coactivation, dead_modules, effective_modules, path_entropy, paths

__all__ = [
    "coactivation", "dead_modules", "dependence", "drift", "effective_modules", "match_modules", "mutual_information",
    "path_entropy", "paths", "prefill_against_decode",
]  # fmt: skip
