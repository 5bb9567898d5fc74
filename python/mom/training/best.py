"""The weights with the best score so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import Network

__all__ = ["BestWeights"]


class BestWeights:
    """Keeps copies of a model's parameters from the evaluation with the highest score.

    Parameters
    ----------
    model : Network
    names : iterable of str
        Parameters that change.

    Attributes
    ----------
    step : int
        Of the best evaluation.
    score : float or None
        Its score; None before the first evaluation.
    waited : int
        Evaluations since then.
    values : dict
        All that it gave.
    tensors : dict of str to ndarray
        The copies.
    """

    def __init__(self, model: Network, names: Iterable[str]) -> None:
        self._model, self._names = model, list(names)
        self.step, self.waited = 0, 0
        self.score: float | None = None
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, npt.NDArray[np.float32]] = {}

    def see(self, step: int, score: float, values: dict[str, Any]) -> bool:
        """Take note of an evaluation; gives whether it is better than all before. NaN is never better."""
        before = -math.inf if self.score is None else self.score
        better = score > before or (math.isnan(before) and not math.isnan(score))
        self.waited = 0 if better else self.waited + 1
        if better or self.score is None:
            self.step, self.score, self.values = step, score, values
            self.tensors = {name: self._model.parameters[name].copy() for name in self._names}
        return better

    def restore(self) -> None:
        """Put the best weights into the model."""
        for name, value in self.tensors.items():
            self._model.parameters[name] = value

    def state_dict(self) -> dict[str, Any]:
        """All but the tensors, fit for JSON."""
        return {"step": self.step, "score": self.score, "values": self.values, "waited": self.waited}

    def load_state(self, state: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]]) -> None:
        """Go on from a `state_dict` and its `tensors`."""
        self.step, self.score, self.values = state["step"], state["score"], state["values"]
        self.waited, self.tensors = state["waited"], tensors
