"""The interventions of one call, and those that a ``with`` block keeps for all calls inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from .layout import Layout
from .places import matching_places, places_of
from .resolve import Resolved, resolve
from .rules import Intervention

if TYPE_CHECKING:
    from ..model.routes import Routes

__all__ = ["Call", "Captured", "Scope", "capture_bytes", "make_call"]

Floats = npt.NDArray[np.float32]


@dataclass
class Scope:
    """A list of interventions that is active, and which of them have touched something so far."""

    rules: tuple[Intervention, ...]
    touched: set[int] = field(default_factory=set)

    def check(self) -> None:
        """Raise if an intervention has touched nothing."""
        for number, rule in enumerate(self.rules):
            if number not in self.touched:
                raise ValueError(f"interventions: {rule} touched nothing")


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

    @property
    def core(self) -> tuple[Any, ...]:
        """For the core's ``interventions``."""
        return (*self.resolved.core[:5], self.attention, self.token_losses)

    def finish(self) -> Captured | None:
        """After the call: note what was touched, raise for an own intervention that touched nothing."""
        start = 0
        touched = self.resolved.touched()
        for scope in [*self.scopes, self.own]:
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
    token_losses: bool = False,
    attention: tuple[Any, ...] | None = None,
) -> Call | None:
    """Resolve everything that applies to one call; None if nothing does."""
    ambient = [rule for scope in scopes for rule in scope.rules]
    if not (ambient or own or capture or token_losses or attention or routes is not None):
        return None
    resolved = resolve(config, layout, own, routes, capture, gradients, ambient=ambient)
    losses = np.full(len(layout.tokens), np.nan, np.float32) if token_losses else None
    return Call(scopes, Scope(tuple(own)), resolved, layout.shape, losses, attention)


def capture_bytes(config: MoMConfig, capture: Sequence[str], tokens: int, gradients: bool) -> int:
    """Bytes of the copies that these places need."""
    known = places_of(config)
    wanted = {place.name: place.width for pattern in capture for place in matching_places(pattern, known, "capture")}
    return sum(wanted.values()) * tokens * 4 * (2 if gradients else 1)
