"""Building a model out of another one's modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arguments import count
from ..analysis.restart import routed_halves
from ..config import MoMConfig
from ..model import MoM
from ..model.tensors import Block, Pool, Router
from ..routers import KINDS, LAST_MAPS
from ..training.fingerprint import digest_of_weights

__all__ = ["Kept", "bias_of", "checked_half", "facts_of", "numbers_of", "outputs_beyond", "outputs_of", "with_modules"]

#: By half and block: numbers of modules of the old model, in the order of the new one.
Kept = Mapping[str, Sequence[Sequence[int]]]


def checked_half(model: MoM, half: str) -> int:
    """The number of modules of a half, in each block.

    Raises
    ------
    ValueError
        If the half has no router, so that its modules cannot be exchanged or left out.
    """
    if half not in routed_halves(model.config):
        raise ValueError(f"{half}: this model has no router for this half")
    if not KINDS[model.config.router_kind].parameters(1, 1, 1, 1):
        raise ValueError(f"{half}: a router of kind {model.config.router_kind!r} has no outputs to go with the modules")
    return model.config.num_attn if half == "attn" else model.config.num_ffn


def numbers_of(values: Any, name: str) -> list[int]:
    """Numbers of modules from an argument."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list of numbers of modules, got {type(values).__name__} {values!r}")
    return [count(value, name) for value in values]


def facts_of(model: MoM) -> dict[str, Any]:
    """What a receipt says of a model."""
    return {"sha256": digest_of_weights(model), "parameters": model.num_parameters}


def outputs_beyond(config: MoMConfig, half: str) -> int:
    """Outputs of a router that mean SKIP, beside that of `enable_pause`."""
    modules = config.num_attn if half == "attn" else config.num_ffn
    return config.num_choices(half) - modules - config.enable_pause if config.is_routed(half) else 0


def bias_of(router: Router, config: MoMConfig) -> NDArray[np.float32]:
    """A writable view of the biases of a router's outputs, one row for each last map."""
    return router.parameters[_a_bias(router)].reshape(_maps(config), -1)


def outputs_of(router: Router, config: MoMConfig) -> list[NDArray[np.float32]]:
    """Writable views of all tensors that have a row for each output of a router."""
    shorts = [short for short in router.names if short in (*LAST_MAPS, "balance_bias")]
    views = []
    for short in shorts:
        tensor = router.parameters[short]
        views += [tensor] if short == "balance_bias" else list(tensor.reshape(_maps(config), -1, *tensor.shape[1:]))
    return views


def with_modules(model: MoM, config: MoMConfig, kept: Kept) -> MoM:
    """A model of `config` with the given modules of `model`, their outputs of the routers, and everything else.

    Outputs of routers beyond the modules, which mean SKIP, stay. If the new routers have more of these, they are the
    outputs of modules that were left out.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    shapes = MoM(config, seed=0)
    for name in shapes.parameters:
        if name in model.parameters:
            tensors[name] = model.parameters[name].copy()
    for block, (old, new) in enumerate(zip(model.blocks, shapes.blocks, strict=True)):
        for half in ("attn", "ffn"):
            numbers = kept[half][block] if half in kept else range(len(_pool(old, half)))
            _take_modules(tensors, _pool(old, half), _pool(new, half), numbers)
            _take_outputs(tensors, model.config, _router(old, half), _router(new, half), len(_pool(old, half)), numbers)
    return model.with_tensors(config, {name: tensors[name] for name in shapes.parameters})


def _pool(block: Block, half: str) -> Pool:
    return block.attention_pool if half == "attn" else block.ffn_pool


def _router(block: Block, half: str) -> Router | None:
    return block.attention_router if half == "attn" else block.ffn_router


def _take_modules(tensors: dict[str, NDArray[np.float32]], old: Pool, new: Pool, numbers: Sequence[int]) -> None:
    for module, number in zip(new, numbers, strict=True):
        for short, name in module.names.items():
            tensors[name] = old[number].parameters[short].copy()


def _take_outputs(
    tensors: dict[str, NDArray[np.float32]], config: MoMConfig, old: Router | None, new: Router | None, modules: int,
    numbers: Sequence[int],
) -> None:  # fmt: skip
    if old is None or new is None:
        return
    left_out = [number for number in range(modules) if number not in numbers]
    choices, new_choices = (len(router.parameters[_a_bias(router)]) // _maps(config) for router in (old, new))
    surplus = new_choices - len(numbers) - (choices - modules)
    outputs = np.array([*numbers, *left_out[:surplus], *range(modules, choices)])
    for short, name in new.names.items():
        tensors[name] = old.parameters[short][_rows(config, short, outputs, choices, modules)].copy()


def _a_bias(router: Router) -> str:
    """The bias of the last map."""
    return next(short for short in router.names if short in LAST_MAPS and short.endswith("bias"))


def _maps(config: MoMConfig) -> int:
    """Last maps of a router."""
    return config.rounds if config.router_rounds == "projection" else 1


def _rows(
    config: MoMConfig, short: str, outputs: NDArray[np.int_], choices: int, modules: int
) -> slice | NDArray[np.int_]:
    """The rows of a tensor of a router that go with these outputs."""
    if short in LAST_MAPS:
        return (np.arange(_maps(config))[:, None] * choices + outputs).reshape(-1)
    if short == "balance_bias":
        return outputs
    if short == "router.0.weight" and config.router_kind == "norm":
        width = config.router_dim // modules
        of_modules = outputs[outputs < modules][:, None] * width + np.arange(width)
        return np.concatenate([of_modules.reshape(-1), np.arange(modules * width, config.router_dim)])
    return slice(None)
