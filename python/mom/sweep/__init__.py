"""Many runs: a grid of trials, each in a folder of its own, and their table.

`run` trains what is not done yet; `table`, `compare` and `plot` read the folders. ``docs/ablations.md`` shows how.
"""

from .comparing import Comparison, compare
from .grid import Grid, read_grid
from .measures import MEASURES
from .pictures import plot
from .running import SweepResult, run
from .tables import table

__all__ = ["MEASURES", "Comparison", "Grid", "SweepResult", "compare", "plot", "read_grid", "run", "table"]
