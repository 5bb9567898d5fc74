"""More modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arguments import count as count_of
from .._arguments import number as number_of
from .._arguments import seed as seed_of
from ..config import MoMConfig
from ..model import MoM
from ..model.tensors import Router
from .modules import bias_of, checked_half, facts_of, numbers_of, outputs_beyond, with_modules
from .result import SurgeryResult

__all__ = ["ASLEEP", "grow", "wake"]

#: How far the outputs of new modules lie below those of the modules that they are copies of, times the temperature. The
#: exponential of so low a number is 0 in float32, so the scores of all other choices keep their bits.
ASLEEP = -1024.0


def grow(
    model: MoM, *, attn: int | None = None, ffn: int | None = None, noise: float = 0.0, seed: int = 0
) -> SurgeryResult:
    """Add modules to every block, as copies of those that are there. The model computes the same as before.

    New module j is a copy of module ``j % modules``, with a copy of its output of the router. This output begins
    asleep: its bias is so low that the module is never chosen and no score changes. So nothing trains it either.
    `wake` brings new modules to life.

    Parameters
    ----------
    model : MoM
    attn, ffn : int, optional
        Modules that the half has afterwards, in every block.
    noise : float
        Standard deviation of what is added to the weight matrices of new modules, as a share of that of each matrix.
        With 0, copies that are chosen together train alike.
    seed : int
        Of the noise.

    Returns
    -------
    SurgeryResult
        The receipt has the new modules by half under ``grown``, and under ``copies`` what each is a copy of.

    Raises
    ------
    ValueError
        If a number is not above that of the modules, the half has no router with outputs, or tokens use all choices
        with raw scores.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> grown, receipt = mom.surgery.grow(model, ffn=6)
    >>> receipt["grown"]
    {'ffn': [4, 5]}
    >>> awake, _ = mom.surgery.wake(grown, ffn=[4, 5])
    """
    seed_of(seed)
    noise = number_of(noise, "noise", 0.0, "a share of at least 0")
    wanted = {half: count_of(number, half) for half, number in (("attn", attn), ("ffn", ffn)) if number is not None}
    for half in wanted:
        _check_that_sleep_is_possible(model.config, half)
    kept, grown, copies = {}, {}, {}
    for half, number in wanted.items():
        count = checked_half(model, half)
        if model.config.router_kind == "norm":
            raise ValueError(f"{half}: the projections of a 'norm' router are as wide as their number allows")
        if number <= count:
            raise ValueError(f"{half}: {number} is not more than the {count} modules that are there")
        grown[half] = list(range(count, number))
        copies[half] = [m % count for m in grown[half]]
        kept[half] = [[*range(count), *copies[half]]] * len(model.blocks)
    changed = with_modules(model, _larger(model.config, wanted), kept)
    _move_outputs(changed, grown, _depth(changed.config))
    if noise:
        _add_noise(changed, grown, noise, np.random.default_rng(seed))
    receipt: dict[str, Any] = {
        "surgery": "grow", "before": facts_of(model), "after": facts_of(changed), "kept": kept, "grown": grown,
        "copies": copies, "noise": noise, "seed": seed,
    }  # fmt: skip
    return SurgeryResult(changed, receipt)


def wake(
    model: MoM, *, attn: list[int] | None = None, ffn: list[int] | None = None, below: float = 0.0
) -> SurgeryResult:
    """Let routers choose modules that `grow` has added. This changes what the model computes.

    Parameters
    ----------
    model : MoM
    attn, ffn : list of int, optional
        Numbers of the modules, in every block.
    below : float
        How far the output of the router stays below that of the module it is a copy of. With 0 it is as good a choice.

    Returns
    -------
    SurgeryResult

    Raises
    ------
    ValueError
        If a module does not exist or is not asleep.
    """
    below = number_of(below, "below", 0.0, "a number of at least 0")
    given = {"attn": attn, "ffn": ffn}
    wanted = {half: numbers_of(numbers, half) for half, numbers in given.items() if numbers is not None}
    depth = _depth(model.config)
    for half, numbers in wanted.items():
        count = checked_half(model, half)
        for number in numbers:
            if not 0 <= number < count:
                raise ValueError(f"{half}: there is no module {number}; there are 0 to {count - 1}")
            for router in _routers(model, half):
                if (bias_of(router, model.config)[:, number] > depth / 2).any():
                    raise ValueError(f"{half}: module {number} is awake")
    changed = model.copy()
    _move_outputs(changed, wanted, -depth, below)
    receipt: dict[str, Any] = {"surgery": "wake", "before": facts_of(model), "after": facts_of(changed)}
    return SurgeryResult(changed, {**receipt, "woken": wanted, "below": below})


def _routers(model: MoM, half: str) -> list[Router]:
    routers = [block.attention_router if half == "attn" else block.ffn_router for block in model.blocks]
    return [router for router in routers if router is not None]


def _larger(config: MoMConfig, wanted: dict[str, int]) -> MoMConfig:
    """The configuration with more modules. Outputs of routers that mean SKIP stay as they are."""
    fields: dict[str, Any] = {"router_choices": "own"} if wanted else {}
    for half, count in (("attn", config.num_attn), ("ffn", config.num_ffn)):
        if wanted:
            fields.update({f"num_{half}": wanted.get(half, count), f"surplus_{half}": outputs_beyond(config, half)})
    return config.replace(**fields)


def _depth(config: MoMConfig) -> float:
    return ASLEEP * max(1.0, config.router_softmax_temperature)


def _check_that_sleep_is_possible(config: MoMConfig, half: str) -> None:
    """Raise if the lowest score of all would be used all the same."""
    if config.router_softmax:
        return
    if config.routing_all_possible_path or config.routing_top_k >= config.num_choices(half):
        raise ValueError(f"{half}: every token uses all choices with their raw scores, so no module can be asleep")


def _move_outputs(model: MoM, numbers: dict[str, list[int]], by: float, below: float = 0.0) -> None:
    """Add to the biases of these modules' outputs, in every block and round, and to those that balance."""
    for half, modules in numbers.items():
        for router in _routers(model, half):
            bias_of(router, model.config)[:, modules] += np.float32(by - below)
            if "balance_bias" in router.parameters:
                router.parameters["balance_bias"][modules] += np.float32(by)


def _add_noise(model: MoM, grown: dict[str, list[int]], noise: float, random: np.random.Generator) -> None:
    for half, numbers in grown.items():
        pools = [block.attention_pool if half == "attn" else block.ffn_pool for block in model.blocks]
        names = dict.fromkeys(name for pool in pools for number in numbers for name in pool[number].names.values())
        for tensor in (model.parameters[name] for name in names):  # each once, also if blocks share it
            if tensor.ndim == 2:
                tensor += (noise * tensor.std() * random.standard_normal(tensor.shape)).astype(np.float32)

