"""The order in which ranks add up what they have computed: a binary tree that splits in the middle."""

from __future__ import annotations

__all__ = ["Tree"]


class Tree:
    """A binary tree over the parts of a step, the leaves, and the node of each rank in it.

    A node with several leaves splits them in the middle, and its ranks, too. A rank owns the node at which it is left
    alone: a run of neighbouring leaves, which it adds up in the order of the same tree. So sums do not depend on the
    number of ranks. With a power of two for both numbers, all ranks own equally many leaves.

    Parameters
    ----------
    leaves, ranks : int
        At least 1.

    Attributes
    ----------
    runs : list of range
        The leaves of each rank; empty where there are more ranks than leaves.
    """

    def __init__(self, leaves: int, ranks: int) -> None:
        self.runs = [range(0)] * ranks
        self._sums: list[tuple[range, int, range, int]] = []
        self._root = self._grow(range(leaves), range(ranks))

    def _grow(self, leaves: range, ranks: range) -> int:
        """Plan the sum of a node. Returns the first rank that owns leaves of it."""
        if len(ranks) == 1 or len(leaves) == 1:
            self.runs[ranks.start] = leaves
            return ranks.start
        left, right = ranks[: len(ranks) // 2], ranks[len(ranks) // 2 :]
        first = self._grow(leaves[: len(leaves) // 2], left)
        second = self._grow(leaves[len(leaves) // 2 :], right)
        self._sums.append((left, first, right, second))
        return first

    def additions(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Pairs (to, from) of ranks: adding the piece of one to that of the other, in order, gives the sum.

        The sum is then in the place of `result`: with `rank`, if it owns leaves.
        """
        place = {owner: owner for owner in range(len(self.runs))}
        pairs = []
        for _, first, right, second in self._sums:
            to, source = place[first], place[second]
            if rank in right and self.runs[rank]:
                to, source = source, to
            pairs.append((to, source))
            place[first] = to
        return tuple(pairs)

    def result(self, rank: int) -> int:
        """Where `additions` leaves the sum."""
        return rank if self.runs[rank] else self._root
