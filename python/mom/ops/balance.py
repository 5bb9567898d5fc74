"""Balance losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._arguments import flags
from .shared import Float

__all__ = ["balance_loss", "balance_loss_backward"]


def balance_loss(
    scores: Sequence[Float],
    definition: str = "switch",
    depthwise: bool = False,
    *,
    probabilities: bool = True,
    mask: ArrayLike | None = None,
) -> float:
    """Load-balancing loss ``S * sum over choices of f * P`` over the score arrays of one half.

    For each choice, f is the share of tokens with this choice as their best one (it has no gradient), and P is the
    choice's mean probability.

    Parameters
    ----------
    scores : sequence of ndarray of float32, shape (N, S)
        One array per round.
    definition : {"switch", "reference"}
        ``"switch"``: P is the mean of the scores if they are probabilities, else of their softmax. ``"reference"``: P
        is the mean of their softmax in either case, as in the published model.
    depthwise : bool
        Compute the loss of every round and average them, instead of taking f and P over all rounds together.
    probabilities : bool
        Whether the scores are probabilities (a softmax has been applied).
    mask : array, shape (N,), optional
        Nonzero for real tokens. Other tokens are left out of both means.

    Returns
    -------
    float

    References
    ----------
    Fedus et al., arXiv:2101.03961, equations 4 to 6.
    """
    groups = _balance_groups(scores, definition, depthwise, probabilities, mask)
    losses = [_core.balance_loss(g.counts, g.tokens, g.prob_sums, g.tokens) for g in groups]
    return float(sum(losses) / len(losses)) if losses else 0.0


def balance_loss_backward(
    scores: Sequence[Float],
    definition: str = "switch",
    depthwise: bool = False,
    *,
    probabilities: bool = True,
    mask: ArrayLike | None = None,
    dloss: float = 1.0,
    add_to: Sequence[Float | None] | None = None,
) -> list[Float]:
    """Gradients of `balance_loss` with respect to the scores.

    Parameters
    ----------
    scores, definition, depthwise, probabilities, mask
        As in `balance_loss`.
    dloss : float
        Gradient of the loss.
    add_to : sequence of ndarray of float32, shape (N, S), optional
        Gradients so far.

    Returns
    -------
    list of ndarray of float32, shape (N, S)
    """
    groups = _balance_groups(scores, definition, depthwise, probabilities, mask)
    softmax = _balance_softmax(definition, probabilities)
    so_far: Sequence[Float | None] = [None] * len(scores) if add_to is None else add_to
    if len(so_far) != len(scores):
        raise ValueError(f"add_to: {len(so_far)} entries, expected {len(scores)}")
    out = []
    for i, (s, g) in enumerate(zip(scores, so_far, strict=True)):
        group = groups[i if depthwise else 0]
        out.append(
            _core.balance_backward(
                s, mask, group.counts, group.tokens, group.tokens, dloss / len(groups), softmax, (g,)
            )
        )
    return out


class _BalanceGroup(NamedTuple):
    counts: NDArray[np.float64]
    prob_sums: NDArray[np.float64]
    tokens: float


def _balance_softmax(definition: str, probabilities: bool) -> bool:
    if definition not in ("switch", "reference"):
        raise ValueError(f"definition: {definition!r}, expected 'switch' or 'reference'")
    return definition == "reference" or not probabilities


def _balance_groups(
    scores: Sequence[Float], definition: str, depthwise: bool, probabilities: bool, mask: ArrayLike | None
) -> list[_BalanceGroup]:
    depthwise, probabilities = flags(depthwise=depthwise, probabilities=probabilities)
    softmax = _balance_softmax(definition, probabilities)
    groups = [_BalanceGroup(*_core.balance_counts(s, mask, softmax)) for s in scores]
    if depthwise or len(groups) < 2:
        return groups
    if any(g.counts.shape != groups[0].counts.shape for g in groups):
        raise ValueError("scores: arrays differ in their number of choices, expected one number")
    counts, prob_sums, tokens = zip(*groups, strict=True)
    return [_BalanceGroup(np.sum(counts, axis=0), np.sum(prob_sums, axis=0), float(sum(tokens)))]
