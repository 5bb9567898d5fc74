"""Multiply-adds that the core counts while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import _core

__all__ = ["PARTS", "Counting", "Counts"]

#: Parts of a model whose products are counted, see `Counts`.
PARTS = ("qkv", "scores", "projection", "up", "down", "router", "state", "head")


class Counts:
    """Multiply-adds of useful work by part, see `MoM.counting`. While counting goes on, they rise.

    The parts are ``qkv``; ``scores`` (attention: queries times keys, and probabilities times values); ``projection``;
    ``up`` and ``down`` of feed-forward modules; ``router``, without a recurrent router's products with its state, which
    are ``state``; and ``head``. The page ``docs/counting.md`` says what counts as useful.

    Attributes
    ----------
    forward, backward, recomputed : dict of str to int
        By part. `recomputed` is what backward computes a second time: the scores of attention and, with activation
        checkpointing, the forward pass.
    """

    def __init__(self, core: _core.Network) -> None:
        self._core: _core.Network | None = core
        self._last: tuple[dict[str, int], dict[str, int], dict[str, int]] | None = None

    def _read(self, work: int) -> dict[str, int]:
        found = self._last if self._core is None else self._core.counts
        assert found is not None
        return {part: found[work][part] for part in PARTS}

    def stop(self) -> None:
        """Keep the counts of this moment."""
        if self._core is not None:
            self._last, self._core = self._core.counts, None

    @property
    def forward(self) -> dict[str, int]:
        return self._read(0)

    @property
    def backward(self) -> dict[str, int]:
        return self._read(1)

    @property
    def recomputed(self) -> dict[str, int]:
        return self._read(2)

    def __repr__(self) -> str:
        sums = (f"{name} {sum(getattr(self, name).values()):,}" for name in ("forward", "backward", "recomputed"))
        return f"<Counts of multiply-adds: {', '.join(sums)}>"


class Counting:
    """The part of `Network` that is about counting."""

    _counting = False

    @property
    def core(self) -> _core.Network:
        raise NotImplementedError

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count the multiply-adds of every call within the block: forward, backward, generation.

        Results do not change. `mom.ledger` has the formulas of the same numbers.

        Yields
        ------
        Counts

        Raises
        ------
        RuntimeError
            If another block of this model is open.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
        >>> with model.counting() as counts:
        ...     out = model([[1, 2, 3, 4]], return_routes=True)
        >>> counts.forward["head"], counts.forward["qkv"] > 0
        (0, True)
        """
        if self._counting:
            raise RuntimeError("counting: another block of this model counts already; blocks cannot be nested")
        self._counting = True
        self.core.count(True)
        counts = Counts(self.core)
        try:
            yield counts
        finally:
            counts.stop()
            self.core.count(False)
            self._counting = False
