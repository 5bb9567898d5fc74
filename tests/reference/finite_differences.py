"""Directional derivatives by central differences, for tests in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np


def directional_derivative(loss: Callable[[np.ndarray], float], at: np.ndarray, along: np.ndarray, h: float) -> float:
    """Fourth-order central difference of `loss` at `at` in the direction `along`."""
    near = loss(at + h * along) - loss(at - h * along)
    far = loss(at + 2 * h * along) - loss(at - 2 * h * along)
    return (8.0 * near - far) / (12.0 * h)


def assert_operator_gradients(
    loss: Callable[[Mapping[str, np.ndarray]], float],
    arguments: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    h: float = 1e-4,
    tolerance: float = 1e-7,
) -> None:
    """Check the gradient of a scalar function of several arrays along a random direction in each.

    `gradients` names the arguments to be checked.
    """
    rng = np.random.default_rng(7)
    for name, gradient in gradients.items():
        at = np.asarray(arguments[name], dtype=np.float64)
        assert gradient.shape == at.shape, name
        along = rng.standard_normal(at.shape)
        want = directional_derivative(lambda value, name=name: loss({**arguments, name: value}), at, along, h)
        have = float((gradient * along).sum())
        assert abs(have - want) <= tolerance * max(abs(want), 1e-3), (
            f"{name}: {have} by backward, {want} by differences"
        )
