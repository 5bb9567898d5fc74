"""What the ranks of a run say to each other. A `Communicator` moves bytes; it computes nothing.

Three kinds: `Serial` for a single process, `SharedMemory` for processes made by ``fork``, and `Mpi`.

When a rank fails, it sends the reason in place of its next value. So the others fail, too, and do not wait for it. For
this, all ranks make the same calls in the same order. Nothing that can fail may stand between an `exchange` and the
`swap` or `share` after it.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from ..errors import RankError

__all__ = ["Communicator", "Serial"]

Value = TypeVar("Value")
Array = NDArray[Any]


class _Failure(NamedTuple):
    """What a rank says in place of a value when it has failed."""

    rank: int
    message: str
    traceback: str


class Communicator:
    """One of the ranks of a run. Calls of the same kind on all ranks belong together.

    Attributes
    ----------
    rank, size : int
        Number of this rank, from 0, and number of ranks.
    slab : int
        Numbers of 4 bytes that `swap` sends to one rank at most.
    doing : str
        What this rank does at present, for messages about ranks that do not answer.
    told : BaseException or None
        The last exception of this rank that an earlier rank has raised, too. So this rank need not show it.
    """

    rank: int = 0
    size: int = 1
    slab: int = 1 << 20
    doing: str = "at the beginning"
    told: BaseException | None = None
    _depth: int = 0

    def exchange(self, value: Value) -> list[Value]:
        """The values of all ranks, in the order of the ranks. A value is any small object that can be pickled.

        Raises
        ------
        RankError
            If another rank has failed, or does not answer.
        """
        replies = [pickle.loads(data) for data in self.gather_bytes(pickle.dumps(value))]
        failures = [reply for reply in replies if isinstance(reply, _Failure)]
        if failures and not isinstance(value, _Failure):
            first = failures[0]
            raise RankError(f"rank {first.rank}: {first.message}", [first.rank], first.traceback)
        return replies

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all ranks, in the order of the ranks."""
        raise NotImplementedError

    def swap(self, parts: Sequence[Array], pieces: Sequence[Array]) -> None:
        """Send an array to each rank, and receive one from each.

        Parameters
        ----------
        parts : sequence of ndarray
            By rank what it gets. All ranks send equally many numbers to the same rank, at most `slab`.
        pieces : sequence of ndarray
            By rank what receives its array. The entries of this rank are not used.
        """
        raise NotImplementedError

    def share(self, block: Array, bounds: Sequence[int]) -> None:
        """Fill an array with the parts of all ranks: that of rank q is ``block[bounds[q] : bounds[q + 1]]``."""
        raise NotImplementedError

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on rank 0, on all ranks. The others do not call it."""
        with self.failing_together():
            made: Any = None if self.rank else make()
            return self.exchange(made)[0]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """A block that fails on all ranks when it fails on one. Of nested blocks, only the outermost counts.

        No rank leaves the block before all have come to its end, so files that rank 0 writes in it are there.
        """
        self._depth += 1
        try:
            yield
            if self.size > 1 and self._depth == 1:
                self.exchange(None)
        except RankError:  # another rank has said so
            raise
        except BaseException as error:
            if self.size > 1 and self._depth == 1:
                self._tell(error)
            raise
        finally:
            self._depth -= 1

    def _tell(self, error: BaseException) -> None:
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        with contextlib.suppress(RankError):
            own = _Failure(self.rank, message, "".join(traceback.format_exception(error)))
            said: list[Any] = self.exchange(own)
            failures = [other for other in said if isinstance(other, _Failure)]
            if any(other.message == message and other.rank < self.rank for other in failures):
                self.told = error


class Serial(Communicator):
    """The only rank of a run."""

    def exchange(self, value: Value) -> list[Value]:
        return [value]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def swap(self, parts: Sequence[Array], pieces: Sequence[Array]) -> None:
        """There is nobody to swap with."""

    def share(self, block: Array, bounds: Sequence[int]) -> None:
        """There is nobody to share with."""
