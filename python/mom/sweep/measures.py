"""What can be measured at the end of a trial, beside the validation loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data import TokenFile
from ..evaluate import token_file_loss
from ..model import MoM, Routes
from ..training import TrainingConfig

__all__ = ["MEASURES", "route_figures"]

#: Routes are read from so many sequences.
_SEQUENCES = 64


def _whole_val_loss(model: MoM, validation: Path, config: TrainingConfig) -> Any:
    return token_file_loss(
        model, validation, sequence_length=config.sequence_length, batch_size=config.batch_size
    ).loss  # fmt: skip


def _routes(model: MoM, validation: Path, config: TrainingConfig) -> Any:
    tokens = TokenFile(validation, vocab_size=model.config.vocab_size)
    length = config.sequence_length
    rows = min(_SEQUENCES, len(tokens) // length)
    sums: dict[str, dict[str, float]] = {}
    with model.evaluating():
        for begin in range(0, rows, config.batch_size):
            numbers = np.arange(begin, min(begin + config.batch_size, rows))
            routes = model(tokens.windows(numbers * length, length), return_routes=True, keep=False).routes
            assert routes is not None
            for half, figures in route_figures(routes).items():
                mine = sums.setdefault(half, dict.fromkeys(figures, 0.0))
                for name, value in figures.items():
                    mine[name] += value * len(numbers) / rows
    return sums


def route_figures(routes: Routes) -> dict[str, dict[str, float]]:
    """Figures of routes, by half.

    Returns
    -------
    dict
        ``kept``: share of tokens whose first choice in a round is that of the round before, over all rounds of a block
        but the first. ``distinct``: different modules that a token runs in all its rounds, in all blocks.
        ``effective``: the exponential of the entropy of the modules' loads in a block, the mean over blocks; SKIP does
        not count. ``skip``: share of choices that are SKIP.
    """
    blocks: dict[int, list[int]] = {}
    for number, (block, _) in enumerate(routes.rounds):
        blocks.setdefault(block, []).append(number)
    return {half: _of_half(routes, half, blocks) for half in routes.index}


def _of_half(routes: Routes, half: str, blocks: dict[int, list[int]]) -> dict[str, float]:
    modules = routes.num_modules[half]
    chosen = routes.module[half].reshape(len(routes.rounds), -1, routes.index[half].shape[-1])
    kept, distinct, effective = list[float](), 0.0, list[float]()
    for numbers in blocks.values():
        own = chosen[numbers]  # (rounds, tokens, choices)
        if len(numbers) > 1 and own.shape[-1]:
            kept.append(float((own[1:, :, 0] == own[:-1, :, 0]).mean()))
        runs = np.stack([(own == module).any(axis=(0, 2)) for module in range(modules)])
        distinct += float(runs.sum(axis=0).mean())
        effective.append(_effective(np.bincount(own.ravel(), minlength=modules + 1)[:modules]))
    figures = {"distinct": distinct, "effective": float(np.mean(effective)), "skip": float((chosen == modules).mean())}
    return figures if not kept else {"kept": float(np.mean(kept)), **figures}


def _effective(counts: npt.NDArray[np.int64]) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(np.exp(-np.sum(shares * np.log(shares)))) if shares.size else 0.0


#: By name: a function of model, path of the validation data and settings, with a number or numbers by name as result.
MEASURES: dict[str, Callable[[MoM, Path, TrainingConfig], Any]] = {
    "whole_val_loss": _whole_val_loss,  # nats per token over the whole validation file
    "routes": _routes,  # see `route_figures`
}
