"""Fewer modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arguments import seed as seed_of
from ..analysis import Audit, audit
from ..analysis.measures import OF_MODULES
from ..config import MoMConfig
from ..model import MoM
from .exhaustive import best_subsets
from .modules import checked_half, facts_of, numbers_of, outputs_beyond, with_modules
from .result import SurgeryResult

__all__ = ["CRITERIA", "number_that_stays", "prune", "smaller"]

#: By half, the value of each module of each block.
Values = dict[str, list[NDArray[np.float64]]]

#: What can decide which modules stay: chance, a measure of `mom.analysis.audit`, or all subsets tried.
CRITERIA = ("random", *OF_MODULES, "exhaustive")


def prune(
    model: MoM,
    *,
    attn: float | Sequence[int] = 0.0,
    ffn: float | Sequence[int] = 0.0,
    by: str = "drop_one",
    data: Any = None,
    reroute: str = "next",
    seed: int = 0,
    **options: Any,
) -> SurgeryResult:
    """Leave out a share of the modules, equally many in every block.

    A token whose choice is gone takes the next best one, as under `mom.Forbid`, or skips.

    Parameters
    ----------
    model : MoM
    attn, ffn : float or sequence of int
        Share of the modules of this half to leave out, from 0 to below 1. It is rounded to whole modules, and at least
        two stay, since a single module has no router. Or the numbers of the modules to leave out, in every block.
    by : {"drop_one", "usage", "weight", "norm", "reap", "taylor", "random", "exhaustive"}
        Those with the lowest values are left out; see `mom.analysis.audit`. ``"random"`` is the yardstick.
        ``"exhaustive"`` tries all subsets of so many modules, block by block with the others as they are, and leaves
        out the one without which the loss is lowest. It is for small pools.
    data : array of int, shape (B, T), TokenFile or path, optional
        What the criterion is measured on, see `mom.analysis.audit`. Needed unless `by` is ``"random"`` or all modules
        are given as numbers.
    reroute : {"next", "skip"}
        What a token does whose choice is gone. With ``"next"`` it takes its next best choice, as if the module were
        forbidden. With ``"skip"`` the outputs of the routers stay and mean SKIP, as if the module's tensors were 0.
    seed : int
        Of ``"random"``, and of what `audit` draws.
    **options
        Further arguments of `audit`, such as ``sequence_length`` and ``batches``.

    Returns
    -------
    SurgeryResult
        With data, the receipt has the loss before and after, in nats per token, and the criterion's value of each
        module.

    Raises
    ------
    ValueError
        If an argument is out of range, or the criterion needs data.
    TypeError
        If an argument is unknown, or needs data to have an effect.
    """
    asked = {half: _share_or_numbers(value, half) for half, value in (("attn", attn), ("ffn", ffn))}
    given = {half: value for half, value in asked.items() if isinstance(value, list) and value}
    shares = {half: value for half, value in asked.items() if isinstance(value, float) and value}
    _check_arguments(by, reroute, data, options, needed=bool(shares))
    stay = {half: _number_that_stays(model, half, value) for half, value in asked.items() if value}
    config = smaller(model.config, stay, reroute)
    measure = "usage" if by in ("random", "exhaustive") else by  # also gives the loss
    found = None if data is None else audit(model, data, [measure], seed=seed, **options)
    values = _together(model.config, _values(model, by, found, seed))
    kept = {
        half: [sorted(np.argsort(-scores, kind="stable")[:number].tolist()) for scores in values[half]]
        for half, number in stay.items()
    }
    for half, gone in given.items():
        kept[half] = [[m for m in range(checked_half(model, half)) if m not in gone]] * len(model.blocks)
    tried: dict[str, Any] = {}
    for half in shares if by == "exhaustive" else ():
        kept[half], tried[half] = best_subsets(model, half, stay[half], data, {"seed": seed, **options})
    changed = with_modules(model, config, kept)
    receipt: dict[str, Any] = {
        "surgery": "prune", "by": by, "reroute": reroute, "seed": seed, "before": facts_of(model),
        "after": facts_of(changed), "kept": kept,
    }  # fmt: skip
    if found is not None:
        receipt["before"]["loss"] = found.loss
        receipt["after"]["loss"] = audit(changed, data, ["usage"], seed=seed, **options).loss
        receipt["tokens"] = found.tokens
    if tried:
        receipt["tried"] = tried
    elif by != "random" and shares:
        receipt["values"] = {half: [_as_json(scores) for scores in values[half]] for half in shares}
    return SurgeryResult(changed, receipt)


def _share_or_numbers(value: Any, half: str) -> float | list[int]:
    if isinstance(value, (int, float, np.integer, np.floating)):
        return float(value)
    return numbers_of(value, half)


def _check_arguments(by: str, reroute: str, data: Any, options: dict[str, Any], needed: bool) -> None:
    if by not in CRITERIA:
        raise ValueError(f"by: {by!r} is not one of {', '.join(map(repr, CRITERIA))}")
    if reroute not in ("next", "skip"):
        raise ValueError(f"reroute: {reroute!r} is not one of 'next', 'skip'")
    if data is None and by != "random" and needed:
        raise ValueError(f"data: needed to measure {by!r}; by='random' needs none")
    if data is None and options:
        raise TypeError(f"{next(iter(options))}: is no argument of prune, or has no effect without data")


def _together(config: MoMConfig, values: Values) -> Values:
    """The same values for all blocks, the means of the blocks', in halves of which they share the modules."""
    shared = [half for half in values if config.shared_pools in (half, "both")]
    return values | {half: [_mean_of_known(values[half])] * len(values[half]) for half in shared}


def _mean_of_known(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over blocks; NaN, no value, only where no block has one."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _as_json(scores: NDArray[np.float64]) -> list[float | None]:
    """Numbers, and None for a module that no token ran, which has no value."""
    return [None if np.isnan(score) else float(score) for score in scores]


def number_that_stays(count: int, share: float) -> int:
    """How many of so many modules stay if a share of them goes."""
    return count - int(share * count + 0.5)


def _number_that_stays(model: MoM, half: str, value: float | list[int]) -> int:
    count = checked_half(model, half)
    if model.config.router_kind == "norm":
        raise ValueError(f"{half}: the projections of a 'norm' router are as wide as their number allows")
    if isinstance(value, float):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{half}: {value} is not in [0, 1)")
        number = number_that_stays(count, value)
    else:
        if len(set(value)) < len(value) or not set(value) <= set(range(count)):
            raise ValueError(f"{half}: {value} are not different numbers of the modules 0 to {count - 1}")
        number = count - len(value)
    if number < 2:
        raise ValueError(f"{half}: {value} leaves {number} of {count} modules; a router needs two")
    return number


def smaller(config: MoMConfig, stay: dict[str, int], reroute: str) -> MoMConfig:
    """The configuration of the pruned model. Outputs of its routers that mean SKIP stay as they are."""
    fields: dict[str, Any] = {"router_choices": "own"} if stay else {}
    for half, count in (("attn", config.num_attn), ("ffn", config.num_ffn)):
        number = stay.get(half, count)
        left_out = count - number if reroute == "skip" else 0
        surplus = outputs_beyond(config, half) + left_out
        fields.update({f"num_{half}": number, f"surplus_{half}": surplus} if stay else {})
    return config.replace(**fields)


def _values(model: MoM, by: str, found: Audit | None, seed: int) -> dict[str, list[NDArray[np.float64]]]:
    """By half, the value of each module of each block."""
    counts = {"attn": model.config.num_attn, "ffn": model.config.num_ffn}
    blocks = range(len(model.blocks))
    if by in ("random", "exhaustive") or found is None:
        rng = np.random.default_rng(seed_of(seed))
        return {half: [rng.random(count) for _ in blocks] for half, count in counts.items()}
    rows = found.table[found.table["module"].notna()]
    return {
        half: [rows[(rows["half"] == half) & (rows["block"] == block)][by].to_numpy(np.float64) for block in blocks]
        for half in counts
    }
