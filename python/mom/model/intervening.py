"""Which interventions are active in a model, what a call gives to the core, and the probabilities of attention."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._arguments import flags
from ..config import MoMConfig
from ..interventions.layout import Layout, layout_of
from ..interventions.places import places_of
from ..interventions.resolve import check_rules
from ..interventions.rules import Intervention, as_interventions
from ..interventions.scope import Call, Scope, capture_bytes, capture_names, make_call
from ..interventions.selection import numbers
from .routes import Routes

__all__ = ["Intervening"]


class Intervening:
    """The part of `Network` that is about interventions."""

    #: Whether the model answers with labels instead of next tokens.
    is_classifier = False
    training: bool
    activation_checkpointing: bool
    _scopes: list[Scope]

    # ------------------------------------------------------------------ what a network has
    @property
    def config(self) -> MoMConfig:
        raise NotImplementedError

    @property
    def core(self) -> _core.Network:
        raise NotImplementedError

    @property
    def memory_limit(self) -> int | None:
        raise NotImplementedError

    def inputs(
        self, tokens: ArrayLike, lengths: ArrayLike | None, mask: ArrayLike | None, positions: ArrayLike | None
    ) -> dict[str, Any]:
        raise NotImplementedError

    # ------------------------------------------------------------------ interventions
    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """Interventions that every call uses now, see `intervene`."""
        return tuple(rule for scope in self.scopes for rule in scope.rules)

    @contextlib.contextmanager
    def intervene(
        self, interventions: Intervention | Sequence[Intervention], untouched: str = "raise"
    ) -> Iterator[None]:
        """Change what the model computes, in every call within the block: forward, backward, generation, evaluation.

        Blocks may be nested; all their interventions apply. A call may lack the rows and positions that a rule names.
        Fine-tuning within the block trains copies of the model with the same interventions.

        Parameters
        ----------
        interventions : sequence of Intervention
        untouched : {"raise", "warn"}
            What to do at the end of the block if an intervention has touched nothing. Functions that train warn, so
            that their results are not lost.

        Raises
        ------
        ValueError
            At the beginning, for a module, a place or a round that the model does not have, and for interventions that
            contradict each other. At the end of the block, if an intervention has touched nothing.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
        >>> with model.intervene([mom.Forbid("attn", modules=[2])]):
        ...     routes = model([[1, 2, 3]], return_routes=True).routes
        >>> bool((routes.index["attn"] == 2).any())
        False
        """
        if untouched not in ("raise", "warn"):
            raise ValueError(f"untouched: {untouched!r} is not one of 'raise', 'warn'")
        scope = Scope(as_interventions(interventions))
        check_rules(self.config, [*self.interventions, *scope.rules])
        self._scopes = [*self.scopes, scope]
        try:
            yield
            if untouched == "raise":
                scope.check()
            else:
                scope.warn()
        finally:
            scope.is_open = False

    @property
    def scopes(self) -> Sequence[Scope]:
        """The blocks of `intervene` that are open and not empty; decoders read them."""
        return [scope for scope in self._scopes if scope.is_open and scope.rules]

    def share_scopes(self, other: Intervening) -> None:
        """Take over the interventions that are active in another model, until the end of their blocks."""
        self._scopes = [*self.scopes, *other.scopes]

    def call_of(
        self,
        given: Mapping[str, Any],
        interventions: Any = (),
        routes: Routes | None = None,
        capture: str | Sequence[str] = (),
        keep: bool = False,
        token_losses: bool = False,
        attention: tuple[Any, ...] | None = None,
    ) -> Call | None:
        """What these `inputs` give to the core beside the batch; None if nothing applies."""
        keep, token_losses = flags(keep=keep, token_losses=token_losses)
        own = as_interventions(interventions)
        names = capture_names(capture)
        if not (own or names or self.scopes or token_losses or attention or routes is not None):
            return None
        if routes is not None and not isinstance(routes, Routes):
            raise TypeError(f"routes: expected mom.Routes, got {type(routes).__name__}")
        layout = layout_of(given["tokens"], given.get("mask"), given.get("lengths"))
        if names:
            self._check_capture(names, layout, keep)
        always = token_losses or attention is not None
        call = make_call(self.config, layout, self.scopes, own, routes, names, keep, always)
        if call is not None:
            call.attention = attention
            call.token_losses = np.full(len(layout.tokens), np.nan, np.float32) if token_losses else None
        return call

    def _check_capture(self, names: Sequence[str], layout: Layout, keep: bool) -> None:
        """Raise unless the copies fit beside what the pass itself needs. A dry run tells how much that is."""
        needed, limit = capture_bytes(self.config, names, len(layout.tokens), keep), self.memory_limit
        if limit is None:
            return
        length = int(np.bincount(layout.row).max())
        checkpoint = keep and self.activation_checkpointing
        plan = self.core.plan(layout.rows, length, len(layout.tokens), keep, checkpoint, self.training, True)
        beside = sum(plan.values()) - plan["moments"]  # which may not exist
        self._check_room("capture: the copies", needed, "Capture fewer places or use a smaller batch", beside)

    def _check_room(self, what: str, needed: int, way_out: str, beside: int = 0) -> None:
        limit = self.memory_limit
        if limit is not None and needed + beside > limit:
            more = f" beside the {beside:,} bytes of the model and the pass" if beside else ""
            raise MemoryError(
                f"{what} need {needed:,} bytes{more}, more than the model's memory_limit of {limit:,}. {way_out}"
            )

    # ------------------------------------------------------------------ attention
    def attention(
        self,
        tokens: ArrayLike,
        place: str,
        rows: Sequence[int] | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> NDArray[np.float32]:
        """Probabilities with which queries attend to keys in one half-round, without dropout.

        Parameters
        ----------
        tokens, attention_mask, lengths, interventions
            As for a forward pass.
        place : str
            Such as ``"block0.round1.attn"`` or ``"anchor0.attn"``.
        rows : sequence of int, optional
            Sequences of the batch; by default all. Only theirs are computed and held.

        Returns
        -------
        ndarray of float32, shape (rows, H, T, T)
            Of each head, query by key. A query whose token chose no module has zeros. In packed rows T is the longest
            length, and what lies beyond a sequence's own is zero.

        Raises
        ------
        ValueError
            For an unknown place or row.
        MemoryError
            If the result would exceed `memory_limit`; the message has the figures.
        """
        given = self.inputs(tokens, lengths, attention_mask, None)
        known = places_of(self.config)
        names = [name.removesuffix(".input") for name in known if name.endswith(".attn.input")]
        if place not in names:
            near = difflib.get_close_matches(str(place), names, n=3, cutoff=0.4)
            raise ValueError(f"place: no attention at {place!r}; there is {', '.join(map(repr, near or names))}")
        _, number, round, _, _ = known[f"{place}.input"].site
        count = len(given["tokens"]) if lengths is None else len(given["lengths"])
        longest = given["tokens"].shape[1] if lengths is None else int(given["lengths"].max())
        chosen = np.arange(count, dtype=np.int32) if rows is None else np.array(numbers(rows, "rows"), np.int32)
        if chosen.max(initial=-1) >= count:
            raise ValueError(f"rows: there is no row {chosen.max()}; the batch has {count}")
        shape = (len(chosen), self.config.n_head, longest, longest)
        self._check_room("rows: the probabilities", 4 * math.prod(shape), "Ask for fewer rows")
        out = np.zeros(shape, np.float32)
        call = self.call_of(given, interventions, attention=(number, round, chosen, out))
        assert call is not None
        if self.is_classifier and lengths is None:
            given["pooled"] = np.zeros(count, np.int32)
        self.core.forward(**given, training=False, interventions=call.core)
        call.finish()
        return out
