"""Which ranks this process belongs to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from .communicator import Communicator, Serial

__all__ = ["current", "is_first", "launched_rank", "launched_ranks", "using"]

_active: list[Communicator] = []

# A process that a rank forks is no rank.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _active.append(Serial()))

#: Variables in which launchers tell a process how many there are: MPICH and its relatives, Open MPI, SLURM's srun.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def launched_ranks() -> int:
    """How many processes the launcher says it has started; 1 without one, or with ``MOM_DISTRIBUTED=0``."""
    return 1 if os.environ.get("MOM_DISTRIBUTED") == "0" else max(1, _from_launcher(_SIZES))


def launched_rank() -> int:
    """The number of this process among those of the launcher; 0 without one."""
    return _from_launcher(_RANKS)


def _from_launcher(names: Sequence[str]) -> int:
    values = [os.environ.get(name, "") for name in names]
    return max((int(value) for value in values if value.isdecimal()), default=0)


def current() -> Communicator:
    """The ranks that train together with this process; `Serial` if it is alone.

    Under ``mpiexec`` or ``srun`` they are all processes that it has started. The package mpi4py is imported only then.

    Raises
    ------
    ImportError
        Under a launcher, without mpi4py.
    RankError
        If the launcher belongs to another MPI than mpi4py.
    """
    if not _active:
        if launched_ranks() > 1:
            from .mpi import connect

            _active.append(connect(launched_ranks()))
        else:
            _active.append(Serial())
    return _active[-1]


def is_first() -> bool:
    """Whether this process writes files: on several ranks, rank 0 alone does."""
    return current().rank == 0


@contextlib.contextmanager
def using(communicator: Communicator) -> Iterator[Communicator]:
    """A block in which `communicator` is the `current` one."""
    _active.append(communicator)
    try:
        yield communicator
    finally:
        _active.remove(communicator)
