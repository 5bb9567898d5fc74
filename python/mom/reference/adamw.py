"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) with the published recipe's parameter groups.

See docs/derivations/adamw.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from ._checks import Float, check_shape

_NOT_DECAYED = re.compile(r"bias|layernorm|(^|\.)ln_(1|2|f)\.")


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter: all but LayerNorms and names with "bias"."""
    return _NOT_DECAYED.search(name) is None


def step(
    parameter: Float,
    gradient: Float,
    first: Float,
    second: Float,
    count: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Float, Float, Float]:
    """One step for one tensor.

    Parameters
    ----------
    parameter, gradient, first, second : ndarray of float64, one shape
        `first` and `second` are the moments before the step.
    count : int
        Steps this tensor has taken, this one included.
    lr, betas, eps, weight_decay : float
        `weight_decay` is 0 for parameters that are not decayed.

    Returns
    -------
    parameter, first, second : ndarray of float64
        After the step.
    """
    first = betas[0] * first + (1.0 - betas[0]) * gradient
    second = betas[1] * second + (1.0 - betas[1]) * gradient**2
    denominator = np.sqrt(second / (1.0 - betas[1] ** count)) + eps
    parameter = parameter * (1.0 - lr * weight_decay) - lr / (1.0 - betas[0] ** count) * first / denominator
    return parameter, first, second


@dataclass
class AdamW:
    """Optimizer state of a dictionary of parameters.

    Parameters
    ----------
    lr, betas, eps, weight_decay
        Defaults are those of the published recipe.
    bias_rate : float
        What a bias that balances a router (``balance_bias``) changes by, against the sign of its count.

    Notes
    -----
    A parameter in `unused` (no token reached its module) does not change at all: no decay, no change of its moments, no
    step counted.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    bias_rate: float = 0.0
    first: dict[str, Float] = field(default_factory=dict)
    second: dict[str, Float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def step(
        self, parameters: dict[str, Float], gradients: Mapping[str, Float], unused: Collection[str] = frozenset()
    ) -> None:
        """Replace the entries of `parameters` by their values after one step."""
        for name in parameters:
            if name in unused:
                continue
            check_shape(f"gradients[{name!r}]", gradients[name].shape, parameters[name].shape)
            if name.endswith(".balance_bias"):
                parameters[name] = parameters[name] - self.bias_rate * np.sign(gradients[name])
                continue
            self.counts[name] = self.counts.get(name, 0) + 1
            parameters[name], self.first[name], self.second[name] = step(
                parameters[name],
                gradients[name],
                self.first.get(name, np.zeros_like(parameters[name])),
                self.second.get(name, np.zeros_like(parameters[name])),
                self.counts[name],
                self.lr,
                self.betas,
                self.eps,
                self.weight_decay if decays(name) else 0.0,
            )
