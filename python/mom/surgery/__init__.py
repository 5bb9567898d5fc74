"""Changes of a trained model's modules: each gives an ordinary new model, and a receipt of what was done."""

from .curves import PAPER, PruneCurve, prune_curve
from .distilling import distil_routes
from .growing import grow, wake
from .merging import merge
from .permuting import permute
from .pruning import CRITERIA, prune
from .result import SurgeryResult

__all__ = [
    "CRITERIA", "PAPER", "PruneCurve", "SurgeryResult", "distil_routes", "grow", "merge", "permute", "prune",
    "prune_curve", "wake",
]  # fmt: skip
