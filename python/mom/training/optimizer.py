"""AdamW and gradient clipping, both computed by the C core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._arguments import flag
from .._arguments import number as _number
from ..distributed import Communicator, Serial
from ..familiar import Familiar
from ..model import Network
from ..model.memory_plan import check_optimizer_fits

__all__ = ["AdamW", "clip_grad_norm"]

_NON_NEGATIVE = "a non-negative finite number"
_POSITIVE = "a positive finite number of type float32"
#: Smallest normal float32. The core treats smaller numbers as zero.
_TINY = float(np.finfo(np.float32).tiny)


#: Rate, betas, eps, weight decay, limit of the norm, and whether gradients are zeroed.
_StepArguments = tuple[float, float, float, float, float, float | None, bool]


class AdamW(Familiar):
    """AdamW with the reference's parameter groups, over all parameters of a model.

    Weight decay applies to every tensor but LayerNorms and biases (embeddings and routers are
    decayed). A parameter without a gradient since ``zero_grad`` (such as a module that no token reached) does not
    change at all: no decay, no change of its moments, no step counted.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    lr : float
        Learning rate; set ``optimizer.lr`` before a step to follow a schedule.
    betas : tuple of float
        Decay of the two moments, in [0, 1).
    eps : float
        Added to the square root of the second moment; at least 1.2e-38, the smallest normal float32.
    weight_decay : float
        Decoupled: ``param -= lr * weight_decay * param``.

    Raises
    ------
    ValueError
        Naming the argument that is out of range.
    MemoryError
        If gradients and moments do not fit (`MoM.memory_limit`, `mom.runtime.memory_limit`). Nothing is allocated then.

    Notes
    -----
    Source: Loshchilov and Hutter, arXiv:1711.05101; defaults of the published recipe.
    """

    #: Those that share the work of an update; see `ShardedAdamW`.
    _ranks: Communicator = Serial()

    def __init__(
        self,
        model: Network,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-5,
        weight_decay: float = 0.1,
    ) -> None:
        if not isinstance(model, Network):
            raise TypeError(f"model: expected a mom model, got {type(model).__name__}")
        self.model = model
        self.lr = _number(lr, "lr", 0.0, _NON_NEGATIVE)
        self.betas = _checked_betas(betas)
        self.eps = _number(eps, "eps", _TINY, _POSITIVE)
        self.weight_decay = _number(weight_decay, "weight_decay", 0.0, _NON_NEGATIVE)
        trainable = model.trainable
        trained = sum(tensor.size for name, tensor in model.parameters.items() if trainable[name])
        check_optimizer_fits(model.num_parameters, trained, model.memory_limit, self._ranks.size)
        self._core = _core.AdamW(model.core, self._ranks.rank, self._ranks.size)

    @overload
    def step(self, max_norm: None = None, *, zero_grad: bool = False) -> None: ...
    @overload
    def step(self, max_norm: float, *, zero_grad: bool = False) -> float: ...
    def step(self, max_norm: float | None = None, *, zero_grad: bool = False) -> float | None:
        """Update every parameter that has a gradient; on request clip before and zero the gradients after.

        ``optimizer.step(1.0, zero_grad=True)`` does the work of ``clip_grad_norm(model, 1.0)``, ``optimizer.step()``
        and ``model.zero_grad()``. Parameters and moments get the same bits, but memory is read less often. The update
        multiplies each gradient by the clipping factor as it reads the gradient, and zeroes it while it is in a cache.

        Parameters
        ----------
        max_norm : float, optional
            Clip all gradients together to this norm, as `clip_grad_norm` does; positive. The gradients themselves
            are not rewritten. If their norm is not finite, nothing at all changes: no parameter, moment, step count
            or gradient.
        zero_grad : bool
            Also do what the model's ``zero_grad`` does. Otherwise gradients are left as they are.

        Returns
        -------
        float or None
            Norm over all gradients before clipping; None without `max_norm`.
        """
        zero_grad = flag(zero_grad, "zero_grad")
        lr = _number(self.lr, "lr", 0.0, _NON_NEGATIVE)
        limit = None if max_norm is None else _max_norm(max_norm)
        return self._step((lr, *self.betas, self.eps, self.weight_decay, limit, zero_grad))

    def _step(self, arguments: _StepArguments) -> float | None:
        return self._core.step(*arguments)

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """Writable views: ``exp_avg.NAME``, ``exp_avg_sq.NAME`` (float32), ``steps`` (float64, one per parameter)."""
        views: dict[str, NDArray[Any]] = {"steps": self._core.steps}
        for i, name in enumerate(self.model.parameters):
            views[f"exp_avg.{name}"] = self._core.exp_avg(i)
            views[f"exp_avg_sq.{name}"] = self._core.exp_avg_sq(i)
        return views

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Copy a complete `state` back. If a name or shape does not fit, nothing changes."""
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping of names to arrays, got {type(state).__name__}")
        own = self.state
        for name, view in own.items():
            if name not in state:
                raise ValueError(f"state: {name!r} is missing")
            given = np.asarray(state[name])
            if given.shape != view.shape:
                raise ValueError(f"state: {name!r} has shape {given.shape}, expected {view.shape}")
            if given.dtype.kind != "f":
                raise ValueError(f"state: {name!r} has dtype {given.dtype}, expected a floating one")
        self._take(state)

    def _take(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name, view in self.state.items():
            view[...] = state[name]


def _checked_betas(betas: Any) -> tuple[float, float]:
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas: {betas!r} are not two numbers in [0, 1)")
    first, second = (_number(beta, "betas", 0.0, "in [0, 1)") for beta in betas)
    # The core computes in float32. A value that rounds to 1 there would never take in a gradient.
    if np.float32(first) >= 1.0 or np.float32(second) >= 1.0:
        raise ValueError(f"betas: {betas!r} are not two numbers of type float32 in [0, 1)")
    return first, second


def clip_grad_norm(model: Network, max_norm: float) -> float:
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
        Norm over all gradients before clipping. If it is not finite, the gradients do not change.

    See Also
    --------
    AdamW.step : clips during the update, if you do not need the scaled gradients.
    """
    if not isinstance(model, Network):
        raise TypeError(f"model: expected a mom model, got {type(model).__name__}")
    return float(_core.clip_grad_norm(model.core, _max_norm(max_norm)))


def _max_norm(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"max_norm: expected a number, got {type(value).__name__}")
    if not value > 0:
        raise ValueError(f"max_norm: {value} is not positive")
    return float(value)
