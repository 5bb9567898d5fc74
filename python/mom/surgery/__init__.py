"""Changes of a trained model's modules: each gives an ordinary new model, and a receipt of what was done."""

from .growing import grow, wake
from .merging import merge
from .permuting import permute
from .pruning import CRITERIA, prune
from .result import SurgeryResult

__all__ = ["CRITERIA", "SurgeryResult", "grow", "merge", "permute", "prune", "wake"]
