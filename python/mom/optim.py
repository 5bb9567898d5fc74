"""AdamW and gradient clipping (the steps are C), and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._arguments import number as _number
from .model import _Network

__all__ = ["AdamW", "clip_grad_norm", "cosine_schedule", "linear_schedule"]

_NON_NEGATIVE = "a non-negative finite number"
_POSITIVE = "a positive finite number"


class AdamW:
    """AdamW with the reference's parameter groups, over all parameters of a model.

    Weight decay applies to every tensor but LayerNorms and biases (embeddings and routers are
    decayed). A parameter without a gradient since ``zero_grad`` (a module that no token reached) is
    left alone entirely: no decay, no change of its moments, no step counted.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    lr : float
        Learning rate; set ``optimizer.lr`` before a step to follow a schedule.
    betas : tuple of float
        Decay of the two moments, in [0, 1).
    eps : float
        Added to the square root of the second moment; positive.
    weight_decay : float
        Decoupled: ``param -= lr * weight_decay * param``.

    Raises
    ------
    ValueError
        Naming the argument that is out of range.

    Notes
    -----
    Source: Loshchilov and Hutter, arXiv:1711.05101; defaults of the published recipe.
    """

    def __init__(
        self,
        model: _Network,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
    ) -> None:
        if not isinstance(model, _Network):
            raise TypeError(f"model: expected a mom model, got {type(model).__name__}")
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ValueError(f"betas: {betas!r} are not two numbers in [0, 1)")
        first, second = (_number(b, "betas", 0.0, "in [0, 1)") for b in betas)
        if first >= 1.0 or second >= 1.0:
            raise ValueError(f"betas: {betas!r} are not two numbers in [0, 1)")
        if _number(eps, "eps", 0.0, _POSITIVE) == 0.0:
            raise ValueError(f"eps: {eps} is not {_POSITIVE}")
        self.model = model
        self.lr = _number(lr, "lr", 0.0, _NON_NEGATIVE)
        self.betas = (first, second)
        self.eps = float(eps)
        self.weight_decay = _number(weight_decay, "weight_decay", 0.0, _NON_NEGATIVE)
        self._core = _core.AdamW(model._core)

    def step(self) -> None:
        """Update every parameter that has a gradient. Gradients are left as they are."""
        lr = _number(self.lr, "lr", 0.0, _NON_NEGATIVE)
        self._core.step(lr, self.betas[0], self.betas[1], self.eps, self.weight_decay)

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """Writable views: ``exp_avg.NAME``, ``exp_avg_sq.NAME`` (float32), ``steps`` (float64, one per parameter)."""
        views: dict[str, NDArray[Any]] = {"steps": self._core.steps}
        for i, name in enumerate(self.model.parameters):
            views[f"exp_avg.{name}"] = self._core.exp_avg(i)
            views[f"exp_avg_sq.{name}"] = self._core.exp_avg_sq(i)
        return views

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Copy a complete `state` back; nothing changes if a name or shape does not fit."""
        own = self.state
        for name, view in own.items():
            if name not in state:
                raise ValueError(f"state: {name!r} is missing")
            given = np.asarray(state[name])
            if given.shape != view.shape:
                raise ValueError(f"state: {name!r} has shape {given.shape}, expected {view.shape}")
            if given.dtype.kind != "f":
                raise ValueError(f"state: {name!r} has dtype {given.dtype}, expected a floating one")
        for name, view in own.items():
            view[...] = state[name]


def clip_grad_norm(model: _Network, max_norm: float) -> float:
    """Scale all gradients by ``max_norm / (norm + 1e-6)`` if that is below 1.

    Parameters without a gradient (`has_gradient` of the model) do not count.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    max_norm : float
        Positive; infinity only measures.

    Returns
    -------
    float
        Norm over all gradients before clipping. Gradients are left alone when it is not finite.
    """
    if not isinstance(model, _Network):
        raise TypeError(f"model: expected a mom model, got {type(model).__name__}")
    if isinstance(max_norm, bool) or not isinstance(max_norm, (int, float, np.integer, np.floating)):
        raise TypeError(f"max_norm: expected a number, got {type(max_norm).__name__}")
    if not max_norm > 0:
        raise ValueError(f"max_norm: {max_norm} is not positive")
    return float(_core.clip_grad_norm(model._core, float(max_norm)))


def _warmed(step: int, warmup: int) -> float | None:
    return step / warmup if step < warmup else None


def cosine_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then half a cosine down to `final` at `total`."""
    return _schedule(warmup, total, final, lambda p: 0.5 * (1.0 + math.cos(math.pi * p)))


def linear_schedule(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Factor of the learning rate at step s (from 0): s/warmup, then a straight line down to `final` at `total`."""
    return _schedule(warmup, total, final, lambda p: 1.0 - p)


def _schedule(warmup: int, total: int, final: float, shape: Callable[[float], float]) -> Callable[[int], float]:
    if warmup < 0 or total < 1 or warmup > total:
        raise ValueError(f"warmup: {warmup} of {total} steps in all")
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final: {final} is not in [0, 1]")

    def factor(step: int) -> float:
        warmed = _warmed(step, warmup)
        if warmed is not None:
            return warmed
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1.0 - final) * shape(progress)

    return factor
