"""A second bench: interventions on the twin, each applied as plainly as it is defined.

`mom.interventions` turns rules into arrays with an entry per token. The C core applies these arrays in its own way, and
this file in another: in float64, by the names of places, step by step. So the two can be compared. See
docs/derivations/routing_interventions.md.

The network calls a `Bench` at every place: `Bench.forward` with the rows there, `Bench.backward` with their gradient. A
bench without interventions gives back what it gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import MoMConfig
from ..interventions.layout import Layout
from ..interventions.places import matching_places, places_of
from ..interventions.rules import as_interventions
from ..interventions.scope import Call, make_call
from . import forced_choices
from ._checks import Bool, Float, Int
from .router import top_k_forward
from .routing_plan import RoutingPlan

if TYPE_CHECKING:
    from ..model.routes import Routes

__all__ = ["Bench", "Captured"]


class Captured(dict[str, Float]):
    """Activations by name of the place, (B, T, width) or (N, width): copies taken after patches.

    Attributes
    ----------
    gradients : dict of str to ndarray of float64
        Gradients of the loss at the same places. Empty before `Model.backward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gradients: dict[str, Float] = {}


@dataclass(frozen=True)
class _Patch:
    """``row = factor * row + value`` in the rows with an entry of `value_row` that is not negative."""

    value_row: Int
    values: Float | None
    factor: float
    number: int  # among all patches of the call

    def forward(self, rows: Float, tokens: Int) -> Float:
        value = 0.0 if self.values is None else self.values[self.value_row[tokens]]
        changed = self.factor * rows + value if self.factor else np.zeros_like(rows) + value
        return np.where(self._applies(tokens), changed, rows)

    def backward(self, drows: Float, tokens: Int) -> Float:
        return np.where(self._applies(tokens), self.factor * drows, drows)

    def _applies(self, tokens: Int) -> Any:
        return self.value_row[tokens, None] >= 0


class Bench:
    """What one call changes and captures.

    Parameters
    ----------
    config : MoMConfig, optional
    layout : Layout, optional
        Of the call's tokens. Without it there are no interventions.
    routes : Routes, optional
    interventions : sequence of Intervention
    capture : sequence of str
    """

    def __init__(
        self,
        config: MoMConfig | None = None,
        layout: Layout | None = None,
        routes: Routes | None = None,
        interventions: Any = (),
        capture: str | Sequence[str] = (),
    ) -> None:
        self.captured = Captured()
        self._call: Call | None = None
        self._wanted: set[str] = set()
        self._patches: dict[str, list[_Patch]] = {}
        self._forced: dict[str, Int | None] = {}
        self._bias: dict[str, Float | None] = {}
        self._kept = (0, 0)
        if config is None or layout is None:
            return
        self._shape, self._tokens = layout.shape, np.arange(len(layout.tokens))
        known = places_of(config)
        for pattern in [capture] if isinstance(capture, str) else capture:
            self._wanted |= {place.name for place in matching_places(pattern, known, "capture")}
        self._call = make_call(config, layout, [], as_interventions(interventions), routes)
        if self._call is None:
            return
        names = {place.site: name for name, place in known.items()}
        self._kept, changes, patches, *_ = self._call.resolved.core
        for place, round, half, forced, bias in changes:
            where = names[_input_site(place, round, half)].removesuffix(".input")
            self._forced[where], self._bias[where] = forced, bias
        for number, (*site, value_row, values, factor) in enumerate(patches):
            wide = None if values is None else values.astype(np.float64)
            self._patches.setdefault(names[tuple(site)], []).append(_Patch(value_row, wide, factor, number))

    # ------------------------------------------------------------------ places
    def forward(self, name: str, rows: Float) -> Float:
        """The rows (N, width) of a place after its patches; captures them."""
        for patch in self._patches.get(name, ()):
            rows = patch.forward(rows, self._tokens)
        if name in self._wanted:
            self.captured[name] = rows.reshape(*self._shape, -1).copy()
        return rows

    def backward(self, name: str, drows: Float) -> Float:
        """The gradient before the patches of a place, from the one after them; captures the latter."""
        if name in self._wanted:
            self.captured.gradients[name] = drows.reshape(*self._shape, -1).copy()
        for patch in reversed(self._patches.get(name, ())):
            drows = patch.backward(drows, self._tokens)
        return drows

    def modules_forward(self, where: str, parts: Float, plan: RoutingPlan) -> Float:
        """`forward` for the outputs of a half's modules: a row for each slot (P, width)."""
        parts = parts.copy()
        for m in range(len(plan.offsets) - 1):
            name, slots = f"{where}.module{m}.output", slice(plan.offsets[m], plan.offsets[m + 1])
            tokens = plan.token[slots]
            for patch in self._patches.get(name, ()):
                parts[slots] = patch.forward(parts[slots], tokens)
                self._count(patch, tokens)
            if name in self._wanted:
                self.captured[name] = self._spread(tokens, parts[slots])
        return parts

    def modules_backward(self, where: str, dparts: Float, plan: RoutingPlan) -> Float:
        """`backward` for the outputs of a half's modules."""
        dparts = dparts.copy()
        for m in range(len(plan.offsets) - 1):
            name, slots = f"{where}.module{m}.output", slice(plan.offsets[m], plan.offsets[m + 1])
            if name in self._wanted:
                self.captured.gradients[name] = self._spread(plan.token[slots], dparts[slots])
            for patch in reversed(self._patches.get(name, ())):
                dparts[slots] = patch.backward(dparts[slots], plan.token[slots])
        return dparts

    def _spread(self, tokens: Int, rows: Float) -> Float:
        """Rows of some tokens among those of all; the others are 0."""
        wide = np.zeros((len(self._tokens), rows.shape[1]))
        wide[tokens] = rows
        return wide.reshape(*self._shape, -1)

    def _count(self, patch: _Patch, tokens: Int) -> None:
        if self._call is not None:
            self._call.resolved.core[4][patch.number] += int((patch.value_row[tokens] >= 0).sum())

    # ------------------------------------------------------------------ routes
    def bias(self, where: str, outputs: Float) -> Float:
        """The router's outputs (N, S) after Bias and Forbid."""
        bias = self._bias.get(where)
        return outputs if bias is None else outputs + bias

    def choose(
        self, where: str, half: int, scores: Float, outputs: Float, top_k: int, modules: int, renormalise: bool,
        bias: Float | None = None,
    ) -> tuple[Int, Float]:  # fmt: skip
        """Choices and weights (N, K): the router's own, or those that are forced. `bias` (S,) changes choices only."""
        top_k = self._kept[half] or min(top_k, scores.shape[1])
        if where not in self._forced and bias is None:
            return top_k_forward(scores, top_k, renormalise)
        ranking = scores if bias is None else scores + bias
        forced = self._forced.get(where)
        return forced_choices.forward(scores, outputs, forced, top_k, modules, renormalise, ranking=ranking)

    def is_free(self, where: str, tokens: int) -> Bool:
        """Which tokens make all their choices themselves, (N,)."""
        forced = self._forced.get(where)
        return np.ones(tokens, bool) if forced is None else (forced == forced_choices.FREE).all(-1)

    # ------------------------------------------------------------------ the call
    def finish(self) -> None:
        """After the forward pass: raise for an intervention that touched nothing."""
        if self._call is not None:
            self._call.finish()

    def begin_backward(self) -> None:
        """No gradient has arrived anywhere."""
        self.captured.gradients = {name: np.zeros_like(value) for name, value in self.captured.items()}


def _input_site(place: int, round: int, half: int) -> tuple[int, int, int, int, int]:
    """The site of the stream before a half-round."""
    return (1, place, round, half, 0)
