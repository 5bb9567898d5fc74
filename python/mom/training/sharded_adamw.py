"""AdamW of a run on several ranks: each updates its shard of the parameters, and holds the moments of that alone.

A step adds up the gradients of all ranks, shard by shard. A rank receives the other ranks' gradients of its shard and
adds the pieces in the order of a `Tree`. It updates the parameters of the shard and sends them to all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..distributed import Communicator, Tree
from ..files.weights import LateArray
from ..model import Network
from .optimizer import AdamW

__all__ = ["ShardedAdamW"]


class ShardedAdamW(AdamW):
    """See `AdamW`. All ranks call the same methods at the same time.

    Parameters
    ----------
    model : Network
    communicator : Communicator
    *settings
        The further parameters of `AdamW`.
    transport : {"float32", "bfloat16"}
        Format in which gradients go to other ranks.
    """

    def __init__(self, model: Network, communicator: Communicator, *settings: Any, transport: str = "float32") -> None:
        self._ranks = communicator
        super().__init__(model, *settings)
        self._bounds: list[int] = _core.shard_bounds(model.core, communicator.size).tolist()
        shape = (communicator.size, min(communicator.slab, self._longest))
        self._pieces = np.empty(shape, np.float32)
        self._letters: NDArray[np.uint16] | None = None  # what is sent, then what is received
        if transport == "bfloat16":
            self._letters = np.empty((2, *shape), np.uint16)

    @property
    def _longest(self) -> int:
        return max(self._bounds[rank + 1] - self._bounds[rank] for rank in range(self._ranks.size))

    def reduce(self, tree: Tree, used: NDArray[np.uint8]) -> None:
        """Replace the gradients of this rank's shard by the sums over all ranks.

        Parameters
        ----------
        tree : Tree
            Order of the sums. Ranks without leaves take no part in them.
        used : ndarray of uint8, shape (parameters,)
            Which parameters have a gradient on any rank.
        """
        block = _core.gradient_block(self.model.core)
        rank, slab = self._ranks.rank, self._pieces.shape[1]
        additions, result = tree.additions(rank), tree.result(rank)
        for done in range(0, self._longest, slab):
            bounds = zip(self._bounds[:-1], self._bounds[1:], strict=True)
            parts = [block[min(begin + done, end) : min(begin + done + slab, end)] for begin, end in bounds]
            pieces = [piece[: parts[rank].size] for piece in self._pieces]
            self._swap(parts, pieces)
            if tree.runs[rank]:
                pieces[rank] = parts[rank]
            _core.add_pieces(tuple(pieces), additions)
            if not tree.runs[rank]:
                parts[rank][:] = pieces[result]
        _core.take_gradients(self.model.core, used)

    def _swap(self, parts: list[NDArray[np.float32]], pieces: list[NDArray[np.float32]]) -> None:
        if self._letters is None:
            self._ranks.swap(parts, pieces)
            return
        sent, received = self._letters
        letters = [letter[: part.size] for letter, part in zip(sent, parts, strict=True)]
        answers = [letter[: piece.size] for letter, piece in zip(received, pieces, strict=True)]
        for letter, part in zip(letters, parts, strict=True):
            _core.to_bfloat16(letter, part)
        self._ranks.swap(letters, answers)
        for rank, (piece, answer) in enumerate(zip(pieces, answers, strict=True)):
            if rank != self._ranks.rank:
                _core.from_bfloat16(piece, answer)

    def _step(self, arguments: tuple[float, float, float, float, float, float | None, bool]) -> float | None:
        squares = np.concatenate(self._ranks.exchange(self._core.squares()))
        norm: float | None = self._core.step(*arguments, squares)
        if norm is None or np.isfinite(norm):
            self._ranks.share(_core.parameter_block(self.model.core), self._bounds)
        return norm

    # ------------------------------------------------------------------ checkpoints
    @property
    def state(self) -> dict[str, Any]:
        """As `AdamW.state`, for rank 0: moments are gathered when they are read, while the others are in `lend`."""
        state: dict[str, Any] = {"steps": self._core.steps}
        for i, (name, parameter) in enumerate(self.model.parameters.items()):
            for moment in ("exp_avg", "exp_avg_sq"):
                state[f"{moment}.{name}"] = LateArray(parameter.shape, np.float32, partial(self._gather, i, moment))
        return state

    def lend(self) -> None:
        """On the other ranks: take part in the reading of `state` by rank 0, until it calls `lent`."""
        while (wanted := self._ranks.exchange(None)[0]) is not None:
            self._whole(*wanted)

    def lent(self) -> None:
        """On rank 0: let the other ranks return from `lend`."""
        self._ranks.exchange(None)

    def _gather(self, i: int, moment: str) -> NDArray[np.float32]:
        self._ranks.exchange((i, moment))
        return self._whole(i, moment)

    def _parts(self, i: int) -> list[int]:
        """Where the part of parameter i, flat, that each rank holds begins and, in the next entry, ends."""
        parameter = list(self.model.parameters.values())[i]
        offset = (parameter.ctypes.data - _core.parameter_block(self.model.core).ctypes.data) // parameter.itemsize
        return [min(max(bound - offset, 0), parameter.size) for bound in self._bounds]

    def _whole(self, i: int, moment: str) -> NDArray[np.float32]:
        """A moment of parameter i, flat, with the parts of all ranks."""
        parts = self._parts(i)
        whole = np.empty(list(self.model.parameters.values())[i].size, np.float32)
        whole[parts[self._ranks.rank] : parts[self._ranks.rank + 1]] = getattr(self._core, moment)(i)
        self._ranks.share(whole, parts)
        return whole

    def _take(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._core.steps[...] = state["steps"]
        for i, name in enumerate(self.model.parameters):
            begin, end = self._parts(i)[self._ranks.rank :][:2]
            for moment in ("exp_avg", "exp_avg_sq"):
                getattr(self._core, moment)(i)[...] = np.asarray(state[f"{moment}.{name}"]).reshape(-1)[begin:end]
