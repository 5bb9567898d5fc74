"""Load balancing loss of the routers, after the Switch Transformer (Fedus et al., arXiv:2101.03961).

See docs/derivations/balance_loss.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Float, as_float, as_int
from .router import scores_backward, scores_forward


@dataclass(frozen=True)
class Saved:
    """What `forward` saves: probabilities (L, N, S), shares f (S,) or (L, S), token weights (N,)."""

    probabilities: Float
    share: Float
    token_weight: Float


def count(scores: ArrayLike, mask: ArrayLike | None = None, used: ArrayLike | None = None) -> Float:
    """How many tokens have each choice as their best one: (L, N, S) to (L, S); masked tokens are left out.

    With `used` (L, N), which are the choices that were made, these are counted instead. Numbers outside [0, S) count
    for no choice.
    """
    scores = as_float("scores", scores, ("L", "N", "S"))
    best = scores.argmax(-1) if used is None else as_int("used", used, scores.shape[:2])
    counted = np.arange(scores.shape[2]) == best[..., None]
    counts: Float = np.einsum("lns,n->ls", counted, _real(mask, scores.shape[1]))
    return counts


def forward(
    scores: ArrayLike,
    softmax: bool,
    depthwise: bool = False,
    mask: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    counted: float | None = None,
) -> tuple[float, Saved]:
    """``S * sum over choices of f * P`` with P the mean probability and f the share of best choices.

    Parameters
    ----------
    scores : ndarray of float64, shape (L, N, S)
        Scores of one half in all rounds of all blocks.
    softmax : bool
        Put the scores through a softmax first. The published model always does
        (``balance_loss="reference"``); ``"switch"`` only when they are not probabilities already.
    depthwise : bool
        Compute the loss of every round and average them, instead of taking f and P over all rounds together.
    mask : ndarray, shape (N,), optional
        Nonzero for real tokens. Other tokens are left out of both means.
    counts : ndarray, shape (S,), or (L, S) with `depthwise`, optional
        Counts that define f instead of the counts of `scores`. With ``balance_counts="step"`` they are the sums over
        the micro-batches of an optimizer step.
    counted : float, optional
        How many tokens, each as often as there are rounds in the same count, stand behind `counts`. By default the sum
        of the counts. It is larger where choices that were made are counted and some tokens made none.

    Returns
    -------
    loss : float
    saved : Saved
        For `backward`.
    """
    scores = as_float("scores", scores, ("L", "N", "S"))
    rounds, _, choices = scores.shape
    probabilities = scores_forward(scores, 1.0 if softmax else None)
    real = _real(mask, scores.shape[1])
    token_weight = real / max(real.sum(), 1.0)
    if counts is None:
        counts = count(scores, mask) if depthwise else count(scores, mask).sum(0)
    counts = as_float("counts", counts, (rounds, choices) if depthwise else (choices,))
    share = counts / np.maximum(counts.sum(-1, keepdims=True) if counted is None else counted, 1.0)
    mean = np.einsum("lns,n->ls", probabilities, token_weight)
    loss = choices * (share * mean).sum() / rounds
    return float(loss), Saved(probabilities, share, token_weight)


def backward(dloss: float, saved: Saved, softmax: bool) -> Float:
    """Gradient with respect to the scores, shape (L, N, S); f is a constant."""
    rounds, _, choices = saved.probabilities.shape
    share = np.broadcast_to(saved.share, (rounds, choices))
    dprobabilities = dloss * choices / rounds * share[:, None, :] * saved.token_weight[:, None]
    return scores_backward(dprobabilities, saved.probabilities, 1.0 if softmax else None)


def _real(mask: ArrayLike | None, tokens: int) -> Float:
    return np.ones(tokens) if mask is None else (as_float("mask", mask, (tokens,)) != 0).astype(np.float64)
