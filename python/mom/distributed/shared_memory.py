"""Ranks that are processes made by ``fork``, and talk over memory that they share. No MPI is needed."""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.connection
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import numpy as np

from ..errors import RankError
from .communicator import Array, Communicator
from .patience import patience
from .world import using

__all__ = ["SharedMemory", "run"]

#: Bytes that a rank can hand to the others at a time.
_MAILBOX = 1 << 22


class _Shared(NamedTuple):
    """What all ranks see: by rank two numbers of type int64, then by rank a mailbox."""

    memory: mmap.mmap
    barrier: Barrier

    @classmethod
    def new(cls, size: int) -> _Shared:
        return cls(mmap.mmap(-1, size * (16 + _MAILBOX)), multiprocessing.get_context("fork").Barrier(size))


class SharedMemory(Communicator):
    """A rank among processes that were forked from one; see `run`."""

    def __init__(self, rank: int, size: int, shared: _Shared) -> None:
        self.rank, self.size = rank, size
        self.slab = _MAILBOX // 4 // size
        self._barrier = shared.barrier
        counts = np.frombuffer(shared.memory, np.int64, 2 * size)
        self._lengths, self._arrived = counts[:size], counts[size:]
        self._mail = np.frombuffer(shared.memory, np.uint8, size * _MAILBOX, 16 * size).reshape(size, _MAILBOX)

    def _wait(self) -> None:
        """Wait until all ranks have come here."""
        self._arrived[self.rank] += 1
        try:
            self._barrier.wait(patience())
        except threading.BrokenBarrierError:
            late = [rank for rank in range(self.size) if self._arrived[rank] < self._arrived[self.rank]]
            names = " and ".join(f"rank {rank}" for rank in late) or "another rank"
            raise RankError(f"{names} did not answer {self.doing}", late) from None

    def gather_bytes(self, data: bytes) -> list[bytes]:
        self._lengths[self.rank] = len(data)
        self._wait()
        lengths = self._lengths.tolist()
        parts: list[list[bytes]] = [[] for _ in range(self.size)]
        for begin in range(0, max(lengths), _MAILBOX):
            own = data[begin : begin + _MAILBOX]
            self._mail[self.rank, : len(own)] = np.frombuffer(own, np.uint8)
            self._wait()
            for rank, length in enumerate(lengths):
                parts[rank].append(self._mail[rank, : max(0, min(_MAILBOX, length - begin))].tobytes())
            self._wait()
        return [b"".join(part) for part in parts]

    def swap(self, parts: Sequence[Array], pieces: Sequence[Array]) -> None:
        letters = self._mail.reshape(self.size, -1)[:, : self.size * 4 * self.slab].reshape(self.size, self.size, -1)
        for rank, part in enumerate(parts):
            if rank != self.rank:
                letters[self.rank, rank, : part.nbytes] = part.view(np.uint8)
        self._wait()
        for rank, piece in enumerate(pieces):
            if rank != self.rank:
                piece.view(np.uint8)[:] = letters[rank, self.rank, : piece.nbytes]
        self._wait()

    def share(self, block: Array, bounds: Sequence[int]) -> None:
        mail = self._mail.view(np.float32)
        slab = mail.shape[1]
        longest = max(end - begin for begin, end in zip(bounds[:-1], bounds[1:], strict=True))
        for done in range(0, longest, slab):
            parts = [
                slice(begin + done, max(begin + done, min(begin + done + slab, end)))
                for begin, end in zip(bounds[:-1], bounds[1:], strict=True)
            ]
            own = block[parts[self.rank]]
            mail[self.rank, : len(own)] = own
            self._wait()
            for rank, part in enumerate(parts):
                if rank != self.rank:
                    block[part] = mail[rank, : len(block[part])]
            self._wait()


def run(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function on several ranks, each a process with one thread.

    Parameters
    ----------
    size : int
        Number of ranks.
    function : callable
        In it, `current` gives the rank.
    *arguments

    Returns
    -------
    list
        What the function returned on each rank. It must be possible to pickle it.

    Raises
    ------
    Exception
        If a rank fails: the first rank's exception that is not about another rank.
    """
    context = multiprocessing.get_context("fork")
    shared = _Shared.new(size)
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    workers = [
        context.Process(target=_work, args=(rank, size, shared, pipes[rank][1], function, arguments), daemon=True)
        for rank in range(size)
    ]
    with warnings.catch_warnings():  # that a thread of this process might hold a lock; the core's threads do not
        warnings.simplefilter("ignore", DeprecationWarning)
        for worker in workers:
            worker.start()
    for _, end in pipes:
        end.close()
    results = _results(workers, [begin for begin, _ in pipes])
    for worker in workers:
        worker.join()
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise next((error for error in failures if not isinstance(error, RankError)), failures[0])
    return [result[0] for result in results]


def _work(
    rank: int, size: int, shared: _Shared, pipe: multiprocessing.connection.Connection, function: Any, arguments: Any
) -> None:
    with using(SharedMemory(rank, size, shared)):
        try:
            answer: Any = (function(*arguments),)
        except BaseException as error:
            answer = _sendable(error)
            # A rank that has ended cannot answer any more.
            shared.barrier.abort()
    pipe.send(answer)
    pipe.close()


def _sendable(error: BaseException) -> BaseException:
    """The exception itself, or one with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _results(workers: Sequence[Any], pipes: Sequence[Any]) -> list[Any]:
    """What each worker has sent. When one ends without, the others are ended, too."""
    results: list[Any] = [None] * len(workers)
    ranks = {pipe: rank for rank, pipe in enumerate(pipes)}
    ends = {worker.sentinel: rank for rank, worker in enumerate(workers)}
    while ranks:
        ready: Any = multiprocessing.connection.wait([*ranks, *ends])
        for pipe in [pipe for pipe in ready if pipe in ranks]:
            results[ranks.pop(pipe)] = pipe.recv()
        for sentinel in [sentinel for sentinel in ready if sentinel in ends]:
            rank = ends.pop(sentinel)
            if rank not in ranks.values() or pipes[rank].poll():
                continue
            workers[rank].join()
            for worker in workers:
                worker.kill()
            raise RankError(f"rank {rank} ended with status {workers[rank].exitcode}", [rank])
    return results
