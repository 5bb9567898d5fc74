"""Changing what a model computes: rules as data, and how a call turns them into arrays for the core."""

from .files import read_interventions, write_interventions
from .rules import Bias, Forbid, Force, Intervention, Patch, RandomRoutes, Scale, TopK, Zero

__all__ = [
    "Bias", "Forbid", "Force", "Intervention", "Patch", "RandomRoutes", "Scale", "TopK", "Zero", "read_interventions",
    "write_interventions",
]  # fmt: skip
