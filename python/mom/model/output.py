"""What a forward pass returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..familiar import Familiar
from ..interventions.scope import Captured
from .routes import Routes

__all__ = ["Loss", "ModelOutput"]


class Loss(float, Familiar):
    """A number that says how the gradients of a loss are computed here."""

    __slots__ = ()


@dataclass(frozen=True)
class ModelOutput(Familiar):
    """What a forward pass returns; absent values are None.

    Attributes
    ----------
    loss : float or None
        Sum of all terms, each times its weight (`MoMConfig.loss_weights`); None without labels.
    losses : dict of str to float
        The terms that the pass has, by name: ``"lm"``, ``"balance"``, ``"z"``, and so on for every name in
        `MoMConfig.loss_weights`.
    lm_loss : float or None
        Mean cross entropy over the labelled positions (for a classifier: its own loss).
    balance_loss : float or None
    logits : ndarray of float32 or None
        (B, T, V), or (N, V) for packed rows; for a classifier (B, num_labels).
    routes : Routes or None
    num_labelled : int
        How many positions were scored.
    captured : Captured or None
        Activations by name of the place, if the call asked for some.
    token_losses : ndarray of float32 or None
        (B, T), or (N,) for packed rows: at each position the loss of its prediction of the next token; NaN where that
        has no label. Their mean is `lm_loss`.
    """

    loss: float | None
    losses: dict[str, float]
    logits: NDArray[np.float32] | None
    routes: Routes | None
    num_labelled: int
    captured: Captured | None = None
    token_losses: NDArray[np.float32] | None = None

    @property
    def lm_loss(self) -> float | None:
        return self.losses.get("lm")

    @property
    def balance_loss(self) -> float | None:
        return self.losses.get("balance")

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("an output is no tuple; its parts have names: .loss, .logits, .routes")
