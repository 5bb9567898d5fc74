"""The paper in a box: the workflow of Mixture-of-Modules at the scale that a machine allows, and its report.

`reproduce` does it; ``docs/reproducing.md`` shows how. A reproduction has a folder. Its stages are folders in there.
Each finished piece of work has a ``done.json`` with its numbers and their hash.
"""

from .claims import Interval, interval
from .findings import Claim
from .plan import Plan, read_plan
from .workflow import ReproduceResult, reproduce

__all__ = ["Claim", "Interval", "Plan", "ReproduceResult", "interval", "read_plan", "reproduce"]
