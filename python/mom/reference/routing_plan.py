"""Which rows each module works on: the selected (token, choice) pairs sorted by module, then by token.

A *slot* is one selected pair whose choice is a module; choices of SKIP (an index of at least the
number of modules) get no slot. Everything routed is computed on slots: module m owns the
contiguous range ``offsets[m]:offsets[m + 1]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Int, as_int


@dataclass(frozen=True)
class RoutingPlan:
    """Dispatch of N tokens with K choices each to M modules.

    Parameters
    ----------
    offsets : ndarray of int64, shape (M + 1,)
        Slot ranges of the modules; ``offsets[M]`` is the number of slots P.
    token : ndarray of int64, shape (P,)
        Token of each slot, increasing within a module.
    choice : ndarray of int64, shape (P,)
        Position k in the token's list of choices.
    num_tokens, num_choices : int
        N and K.
    """

    offsets: Int
    token: Int
    choice: Int
    num_tokens: int
    num_choices: int

    @property
    def counts(self) -> Int:
        """Tokens per module, shape (M,)."""
        return np.diff(self.offsets)

    @property
    def num_slots(self) -> int:
        """P, the number of slots."""
        return len(self.token)

    def modules(self) -> Iterator[tuple[int, slice]]:
        """Modules that have slots, with their slot range."""
        for m in np.flatnonzero(self.counts):
            yield int(m), slice(int(self.offsets[m]), int(self.offsets[m + 1]))


def build(index: ArrayLike, num_modules: int) -> RoutingPlan:
    """Sort the selected choices by module.

    Parameters
    ----------
    index : ndarray of int, shape (N, K)
        Choices of every token, none twice; at least `num_modules` means SKIP.
    num_modules : int
        M.
    """
    index = as_int("index", index, ("N", "K"))
    if index.size and index.min() < 0:
        raise ValueError(f"index: {index.min()} is negative")
    token, choice = np.nonzero(index < num_modules)
    module = index[token, choice]
    order = np.argsort(module, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(module, minlength=num_modules))]).astype(np.int64)
    return RoutingPlan(offsets, token[order], choice[order], *index.shape)
