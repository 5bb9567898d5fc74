"""How the tokens of a batch were routed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..config import MoMConfig

__all__ = ["Routes", "of_rounds", "read_routes"]

_HALVES = ("attn", "ffn")
Value = TypeVar("Value")


class Routes(Mapping[str, list[list[dict[str, NDArray[Any]] | None]]]):
    """How the tokens of a batch were routed: ``routes[half][block][round]``.

    ``half`` is ``"attn"`` or ``"ffn"``. The entry of a half without a router is None. Others are dicts of arrays:

    ``scores``  (B, T, S) float32
    ``index``   (B, T, K) int16, the choices in falling order of score; from ``num_modules[half]`` on they mean SKIP
    ``weight``  (B, T, K) float32, the kept scores, renormalised with softmax, before any straight-through sign

    For packed rows the first axis is N, all tokens, instead of B, T. Arrays are copies.
    """

    def __init__(
        self,
        halves: dict[str, list[list[dict[str, NDArray[Any]] | None]]],
        num_modules: dict[str, int],
        lengths: NDArray[np.int32] | None = None,
    ) -> None:
        self._halves = halves
        self.num_modules = num_modules
        #: Lengths of packed rows, (B,); else None.
        self.lengths = lengths

    def of_row(self, array: NDArray[Any], row: int) -> NDArray[Any]:
        """The part of an entry's array that belongs to one sequence, (T, S) or (T, K)."""
        if self.lengths is None:
            part: NDArray[Any] = array[row]
            return part
        ends = np.cumsum(self.lengths)
        part = array[ends[row] - self.lengths[row] : ends[row]]
        return part

    def __getitem__(self, half: str) -> list[list[dict[str, NDArray[Any]] | None]]:
        return self._halves[half]

    def __iter__(self) -> Iterator[str]:
        return iter(self._halves)

    def __len__(self) -> int:
        return len(self._halves)


def of_rounds(config: MoMConfig, read: Callable[[int, int, int], Value]) -> dict[str, list[list[Value]]]:
    """``read(place, round, half)`` for every round of every block, as lists ``[half][block][round]``."""
    blocks = [place for place, kind in enumerate(config.places()) if kind == "block"]
    return {
        half: [[read(place, r, number) for r in range(config.rounds)] for place in blocks]
        for number, half in enumerate(_HALVES)
    }


def read_routes(
    found: Mapping[tuple[int, int, int], dict[str, NDArray[Any]]],
    config: MoMConfig,
    shape: tuple[int, ...],
    lengths: NDArray[np.int32] | None,
) -> Routes:
    """Routes as the core returns them. `shape` is that of the tokens, `lengths` those of packed rows."""

    def entry(place: int, round: int, half: int) -> dict[str, NDArray[Any]] | None:
        arrays = found.get((place, round, half))
        return None if arrays is None else {k: v.reshape(*shape, v.shape[1]) for k, v in arrays.items()}

    return Routes(of_rounds(config, entry), {"attn": config.num_attn, "ffn": config.num_ffn}, lengths)
