"""The interventions of one call, and those that a ``with`` block keeps for all calls inside it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from .layout import Layout
from .places import matching_places, places_of
from .resolve import Resolved, resolve
from .rules import Intervention
from .selection import HALVES, NONE

if TYPE_CHECKING:
    from ..model.routes import Routes

__all__ = ["Call", "Captured", "Scope", "capture_bytes", "capture_names", "make_call", "records_for"]

Floats = npt.NDArray[np.float32]


@dataclass
class Scope:
    """A list of interventions that is active, and which of them have touched something so far.

    A copy of a model that fine-tuning makes shares its scopes. They end for both when the block of `intervene` ends.
    """

    rules: tuple[Intervention, ...]
    touched: set[int] = field(default_factory=set)
    calls: int = 0
    is_open: bool = True

    @property
    def unused(self) -> list[Intervention]:
        """Interventions that have touched nothing so far."""
        return [rule for number, rule in enumerate(self.rules) if number not in self.touched]

    def check(self) -> None:
        """Raise if an intervention has touched nothing."""
        if self.unused:
            raise ValueError(f"interventions: {self.unused[0]} touched nothing")

    def warn(self) -> None:
        """Warn if an intervention has touched nothing, unless there were no calls (as in a run that was over)."""
        if self.unused and self.calls:
            warnings.warn(f"interventions: {', '.join(map(str, self.unused))} touched nothing", stacklevel=2)


class Captured(Mapping[str, Floats]):
    """Copies of activations by name of the place: (B, T, width), or (N, width) for packed rows.

    After ``model.backward()``, `gradients` has the gradients of the loss at the same places, with the scales of that
    call. A gradient is NaN where all trained parameters lie above the place, so that it is not computed.
    """

    def __init__(self, values: dict[str, Floats], gradients: dict[str, Floats]) -> None:
        self._values, self._gradients = values, gradients
        self.has_gradients = False

    def __getitem__(self, name: str) -> Floats:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"captured: no {name!r}; there are {', '.join(self._values)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def gradients(self) -> Mapping[str, Floats]:
        """Gradients by name of the place.

        Raises
        ------
        RuntimeError
            Before ``model.backward()`` of this forward pass.
        """
        if not self.has_gradients:
            raise RuntimeError("gradients: there are none before model.backward(), which needs labels")
        return self._gradients

    def __repr__(self) -> str:
        return f"<Captured: {', '.join(f'{name} {value.shape}' for name, value in self._values.items())}>"


@dataclass
class Call:
    """What one call of a model gives to the core beside its batch."""

    scopes: Sequence[Scope]
    own: Scope
    resolved: Resolved
    shape: tuple[int, ...]
    #: (N,) for the core to fill in, NaN elsewhere.
    token_losses: Floats | None = None
    #: (place, round, rows, out) for the core to fill in.
    attention: tuple[Any, ...] | None = None
    #: (place, round, half, index, weight, scores) of half-rounds, for a decoder to fill in.
    records: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def core(self) -> tuple[Any, ...]:
        """For the core's ``interventions``."""
        return (*self.resolved.core, self.attention, self.token_losses, self.records)

    def finish(self) -> Captured | None:
        """After the call: note what was touched, raise for an own intervention that touched nothing."""
        start = 0
        touched = self.resolved.touched()
        for scope in [*self.scopes, self.own]:
            scope.calls += 1
            scope.touched |= {n for n in range(len(scope.rules)) if touched.get(start + n)}
            start += len(scope.rules)
        self.own.check()
        if not self.resolved.captured:
            return None

        def shaped(arrays: dict[str, Floats]) -> dict[str, Floats]:
            return {name: array.reshape(*self.shape, array.shape[1]) for name, array in arrays.items()}

        return Captured(shaped(self.resolved.captured), shaped(self.resolved.gradients))


def make_call(
    config: MoMConfig,
    layout: Layout,
    scopes: Sequence[Scope],
    own: Sequence[Intervention] = (),
    routes: Routes | None = None,
    capture: Sequence[str] = (),
    gradients: bool = False,
    always: bool = False,
) -> Call | None:
    """Resolve everything that applies to one call; None if nothing does, unless `always` is set."""
    ambient = [rule for scope in scopes for rule in scope.rules]
    if not (ambient or own or capture or always or routes is not None):
        return None
    resolved = resolve(config, layout, own, routes, capture, gradients, ambient=ambient)
    return Call(scopes, Scope(tuple(own)), resolved, layout.shape)


def records_for(config: MoMConfig, call: Call, tokens: int) -> list[tuple[Any, ...]]:
    """`Call.records` of so many tokens: arrays for the routes of all half-rounds that have a router."""
    found: list[tuple[Any, ...]] = []
    kept = call.resolved.core[0]
    for place, kind in enumerate(config.places()):
        for r in range(config.rounds if kind == "block" else 0):
            for half, name in enumerate(HALVES):
                if (config.num_attn, config.num_ffn)[half] < 2:
                    continue
                choices = config.num_choices(name)
                shape = (tokens, kept[half] or min(config.routing_top_k, choices))
                found.append((place, r, half, np.full(shape, NONE, np.int16), np.zeros(shape, np.float32),
                              np.zeros((tokens, choices), np.float32)))  # fmt: skip
    return found


def capture_names(capture: Any) -> list[str]:
    """The argument `capture` as a list of names and patterns."""
    names = [capture] if isinstance(capture, str) else capture
    if not isinstance(names, Collection) or isinstance(names, (bytes, Mapping)):
        raise TypeError(f"capture: expected names of places or patterns, got {capture!r}; an empty list captures none")
    return list(names)


def capture_bytes(config: MoMConfig, capture: Sequence[str], tokens: int, gradients: bool) -> int:
    """Bytes of the copies that these places need."""
    known = places_of(config) if capture else {}
    wanted = {place.name: place.width for pattern in capture for place in matching_places(pattern, known, "capture")}
    return sum(wanted.values()) * tokens * 4 * (2 if gradients else 1)
