"""Looks at routes: which paths tokens take, what routes depend on, and what they do to the loss.

Tables are pandas DataFrames, pictures are matplotlib figures, and pages are HTML that needs no network. `module_use`,
`token_paths`, `format_paths` and `view` need no other package. Padding is left out everywhere. Intervals are of 95 %.
"""

from .audit import Audit, audit
from .dependence import dependence, mutual_information
from .drift import drift, match_modules, prefill_against_decode
from .module_use import ModuleUse, module_use
from .oracle import Oracle, oracle
from .paths import (
    coactivation,
    dead_modules,
    effective_modules,
    format_paths,
    path_entropy,
    paths,
    token_names,
    token_paths,
)
from .pictures import plot_coactivation, plot_drift, plot_flow, plot_module_use, plot_routes
from .playground import Playground, playground
from .view import View, view

__all__ = [
    "Audit", "ModuleUse", "Oracle", "Playground", "View", "audit", "coactivation", "dead_modules", "dependence",
    "drift", "effective_modules", "format_paths", "match_modules", "module_use", "mutual_information", "oracle",
    "path_entropy", "paths", "playground", "plot_coactivation", "plot_drift", "plot_flow", "plot_module_use",
    "plot_routes", "prefill_against_decode", "token_names", "token_paths", "view",
]  # fmt: skip
