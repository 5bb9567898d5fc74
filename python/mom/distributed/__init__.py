"""Data-parallel runs: several processes, the ranks, train one model together, on one machine or on many.

`current` gives the rank of this process. `docs/clusters.md` says how ranks are started.
"""

from .communicator import Communicator, Serial
from .tree import Tree
from .world import current, is_first, launched_rank, launched_ranks, using

__all__ = [
    "Communicator", "Serial", "Tree", "current", "is_first", "launched_rank", "launched_ranks", "using",
]  # fmt: skip
