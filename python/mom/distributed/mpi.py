"""Ranks that were started by an MPI launcher, over the package mpi4py.

Small values go to rank 0, which sends all of them back. So rank 0 knows which rank has not answered. Arrays go
directly from rank to rank.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from .._extras import need
from ..errors import RankError, TrainingInterrupted
from ..runtime import get_num_threads, set_num_threads
from .communicator import Array, Communicator
from .patience import patience

__all__ = ["Mpi", "connect"]

#: Kinds of messages.
_VALUE, _ALL_VALUES, _PIECE, _PART = range(4)

#: How long a rank waits for another one to show an exception that befell both.
_SECONDS_TO_BE_ENDED = 5.0


class Mpi(Communicator):
    """A rank of ``MPI.COMM_WORLD``."""

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._world = mpi.COMM_WORLD.Dup()  # apart from messages of the program
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self._others = [(self.rank + i) % self.size for i in range(1, self.size)]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        if self.rank:
            self._send(data, 0, _VALUE)
            whole = self._receive(0, _ALL_VALUES, lambda: [0])[1]
            values: list[bytes] = pickle.loads(whole)
            return values
        found = {0: data}
        while len(found) < self.size:
            rank, value = self._receive(
                self._mpi.ANY_SOURCE, _VALUE, lambda: [rank for rank in range(self.size) if rank not in found]
            )
            found[rank] = value
        values = [found[rank] for rank in range(self.size)]
        whole = pickle.dumps(values)
        for rank in range(1, self.size):
            self._send(whole, rank, _ALL_VALUES)
        return values

    def _send(self, data: bytes, rank: int, kind: int) -> None:
        self._finish({rank: [self._world.Isend([data, self._mpi.BYTE], rank, kind)]})

    def _receive(self, source: int, kind: int, late: Callable[[], list[int]]) -> tuple[int, bytes]:
        """A message and the rank that sent it. `late` gives the ranks to name if it does not come."""
        status = self._mpi.Status()
        self._wait(lambda: self._world.Iprobe(source, kind, status), late)
        data = bytearray(status.Get_count(self._mpi.BYTE))
        self._world.Recv([data, self._mpi.BYTE], status.Get_source(), kind)
        return status.Get_source(), bytes(data)

    def _wait(self, is_done: Callable[[], bool], late: Callable[[], list[int]], pause: float = 5e-5) -> None:
        """Wait until something is done. If that takes too long, name the ranks of `late` and end all."""
        begun = time.monotonic()
        wait = patience() * (1.5 if self.rank else 1.0)  # rank 0 knows best who is missing, so it shall say so
        while not is_done():
            waited = time.monotonic() - begun
            if waited > wait:
                names = " and ".join(f"rank {rank}" for rank in late())
                self._end(f"mom: error: {names} did not answer for {wait:g} s {self.doing}\n")
            if waited > 0.002:  # at first without sleep, since the ranks come here at about the same time
                time.sleep(pause)

    def _finish(self, requests: dict[int, list[Any]]) -> None:
        """Wait for the messages to and from each rank."""
        every = [request for of_rank in requests.values() for request in of_rank]
        self._wait(
            lambda: self._mpi.Request.Testall(every),
            lambda: [rank for rank, of_rank in requests.items() if not self._mpi.Request.Testall(of_rank)],
            pause=0.0,  # a large message moves on only while its ranks look at it
        )

    def swap(self, parts: Sequence[Array], pieces: Sequence[Array]) -> None:
        requests: dict[int, list[Any]] = {rank: [] for rank in self._others}
        for rank in self._others:
            if pieces[rank].size:
                requests[rank].append(self._world.Irecv(pieces[rank], rank, _PIECE))
        for rank in self._others:
            if parts[rank].size:
                requests[rank].append(self._world.Isend(parts[rank], rank, _PIECE))
        self._finish(requests)

    def share(self, block: Array, bounds: Sequence[int]) -> None:
        parts = [block[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
        requests: dict[int, list[Any]] = {rank: [] for rank in self._others}
        for rank in self._others:
            if len(parts[rank]):
                requests[rank].append(self._world.Irecv(parts[rank], rank, _PART))
        for rank in self._others:
            if len(parts[self.rank]):
                requests[rank].append(self._world.Isend(parts[self.rank], rank, _PART))
        self._finish(requests)

    def _end(self, text: str, status: int = 1) -> None:
        """Write a message, and end the processes of all ranks."""
        with contextlib.suppress(Exception):
            print(text, end="", file=sys.__stderr__, flush=True)
        time.sleep(0.2)  # a launcher that reads both at once ends the run and drops the message
        self._mpi.COMM_WORLD.Abort(status)

    def end_on_exceptions(self) -> None:
        """Let an exception that nothing catches show its rank and traceback, and end the processes of all ranks.

        Otherwise the process would wait for the others before it ends, and they for its next message.
        """

        def hook(kind: type[BaseException], error: BaseException, where: Any) -> None:
            if error is self.told or (isinstance(error, RankError) and error.traceback):
                # Another rank shows it, and ends this process, unless the program caught it there.
                time.sleep(_SECONDS_TO_BE_ENDED)
            shown = "".join(traceback.format_exception(kind, error, where))
            signal_name = error.signal if isinstance(error, TrainingInterrupted) else None
            self._end(f"rank {self.rank}: {shown}", 128 + signal.Signals[signal_name] if signal_name else 1)

        sys.excepthook = hook


def connect(launched: int) -> Communicator:
    """The ranks of the launcher that has started this process and `launched` - 1 others.

    Raises
    ------
    ImportError
        Without mpi4py or an MPI library.
    RankError
        If the launcher belongs to another MPI than mpi4py.
    """
    mpi4py = need("mpi4py", "A run on several ranks")
    mpi4py.rc.initialize = False  # an MPI that does not know its launcher can end the process as it begins
    try:
        mpi = need("mpi4py.MPI", "A run on several ranks")
    except RuntimeError as error:  # how mpi4py says that there is no library
        raise ImportError(f"mpi4py finds no MPI library: pip install mpich ({error})") from None
    library = mpi.Get_library_version().strip("\0\n ").splitlines()[0]
    if _of_other_family("Open MPI" in library):
        raise _other_launcher(launched, "nothing", library)
    if not mpi.Is_initialized():
        mpi.Init_thread(mpi.THREAD_SERIALIZED)
        atexit.register(lambda: mpi.Is_finalized() or mpi.Finalize())
    if (size := mpi.COMM_WORLD.Get_size()) != launched:
        raise _other_launcher(launched, str(size), library)
    communicator = Mpi(mpi)
    communicator.end_on_exceptions()
    _share_processors(communicator)
    return communicator


def _of_other_family(library_is_open_mpi: bool) -> bool:
    """Whether the launcher cannot be that of the library, by the variables that it sets."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return not library_is_open_mpi
    return library_is_open_mpi and "PMI_SIZE" in os.environ and "PMIX_RANK" not in os.environ


def _other_launcher(launched: int, seen: str, library: str) -> RankError:
    return RankError(
        f"this mpiexec belongs to another MPI: it has started {launched} processes, of which mpi4py sees {seen}. "
        f"mpi4py uses {library.partition(',')[0]}. Start the processes with the mpiexec of that library, or with "
        "'mom launch', which finds it"
    )


def _share_processors(communicator: Communicator) -> None:
    """Divide processors among the ranks that may run on the same ones, unless OMP_NUM_THREADS says how many threads."""
    own = (platform.node(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [])
    said = communicator.exchange(own)
    if "OMP_NUM_THREADS" not in os.environ:
        set_num_threads(max(1, get_num_threads() // said.count(own)))
