"""Names and shapes of all parameters, and how a plain GPT-2 becomes a Mixture-of-Modules."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .. import routers
from ..config import MoMConfig
from ._checks import Float, as_float

#: From a tensor's role in a half to its name in a plain GPT-2 (after ``transformer.h.{i}.``) and in the published model
#: (after the same prefix and before the module's index).
_ROLES = {
    "attn": {"norm": ("ln_1", "mot_attn.attention_layernorm"), "c_attn": ("attn.c_attn", "mot_attn.c_attn"),
             "c_proj": ("attn.c_proj", "mot_attn.c_proj")},
    "ffn": {"norm": ("ln_2", "mot_ffn.ffn_layernorm"), "c_fc": ("mlp.c_fc", "mot_ffn.c_fc"),
            "c_proj": ("mlp.c_proj", "mot_ffn.c_proj")},
}  # fmt: skip


def num_modules(config: MoMConfig, place: int, half: str) -> int:
    """Modules in one half of an entry of ``transformer.h``; 1 for anchor layers."""
    if config.places()[place] == "anchor":
        return 1
    return config.num_attn if half == "attn" else config.num_ffn


def module_names(config: MoMConfig, place: int, half: str, role: str) -> list[str]:
    """Names, without ``.weight`` or ``.bias``, of one layer of all modules of a half.

    Parameters
    ----------
    config : MoMConfig
    place : int
        Index in ``transformer.h``.
    half : {"attn", "ffn"}
    role : str
        ``"norm"``, ``"c_attn"``, ``"c_fc"`` or ``"c_proj"``.

    Returns
    -------
    list of str
        A half with a single module has a name without index.
    """
    plain, pooled = _ROLES[half][role]
    base = f"transformer.h.{config.owner(place, half)}.{plain if config.is_vanilla else pooled}"
    modules = num_modules(config, place, half)
    return [base] if modules == 1 else [f"{base}.{m}" for m in range(modules)]


def is_routed(config: MoMConfig, place: int, half: str) -> bool:
    """Whether a half has a router; without one, its single module is used by every token in every round."""
    return config.places()[place] == "block" and config.is_routed(half)


def parameter_shapes(config: MoMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the published model's state dict.

    A plain GPT-2 has Hugging Face's names. The tied language-model head is not listed.
    """
    c, f = config.n_embd, config.inner_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, c),
        "transformer.wpe.weight": (config.n_positions, c),
    }
    layers = {
        "attn": {"norm": (c,), "c_attn": (c, 3 * c), "c_proj": (c, c)},
        "ffn": {"norm": (c,), "c_fc": (c, f), "c_proj": (f, c)},
    }
    for place in range(len(config.places())):
        for half in ("attn", "ffn"):
            for role, shape in layers[half].items():
                for name in module_names(config, place, half, role):
                    shapes[f"{name}.weight"] = shape
                    shapes[f"{name}.bias"] = shape[-1:]
            if is_routed(config, place, half):
                prefix = f"transformer.h.{place}.mot_{half}.router."
                shapes.update({prefix + name: shape for name, shape in routers.parameter_shapes(config, half).items()})
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (c,)
    if config.num_labels is not None:
        shapes["score.weight"] = (config.num_labels, c)
    return shapes


def vanilla_sources(
    config: MoMConfig, copy_final_norm: bool | None = None, copy_single_modules: bool | None = None
) -> dict[str, str]:
    """From each parameter to the tensor of a plain GPT-2 that it starts from. Parameters without a source are left out.

    Within a chunk, layer j of the plain model becomes attention module j and feed-forward module j, if the pools have
    so many modules. The layer after the larger pool becomes the anchor layer.

    Parameters
    ----------
    config : MoMConfig
    copy_final_norm, copy_single_modules : bool, optional
        Default: the configuration's fields of the same name.
    """
    final = config.copy_final_norm if copy_final_norm is None else copy_final_norm
    single = config.copy_single_modules if copy_single_modules is None else copy_single_modules
    sources = {name: name for name in ("transformer.wte.weight", "transformer.wpe.weight")}
    layer = 0
    for place, kind in enumerate(config.places()):
        for half, roles in _ROLES.items():
            if kind == "block" and num_modules(config, place, half) == 1 and not single:
                continue
            if config.owner(place, half) != place:
                continue
            for role, (plain, _) in roles.items():
                for m, name in enumerate(module_names(config, place, half, role)):
                    for part in (".weight", ".bias"):
                        sources[name + part] = f"transformer.h.{layer + m}.{plain}{part}"
        layer += max(config.num_attn, config.num_ffn) if kind == "block" else 1
    if final:
        sources.update({name: name for name in ("transformer.ln_f.weight", "transformer.ln_f.bias")})
    return sources


def init_from_vanilla(
    config: MoMConfig,
    vanilla_params: Mapping[str, ArrayLike],
    fresh_params: Mapping[str, ArrayLike],
    copy_final_norm: bool | None = None,
    copy_single_modules: bool | None = None,
) -> dict[str, Float]:
    """Parameters of a Mixture-of-Modules that starts from a plain GPT-2 (phase two of the recipe).

    Parameters
    ----------
    config : MoMConfig
        The model to be filled.
    vanilla_params : mapping of str to ndarray
        Tensors of the plain model, with or without the prefix ``transformer.``.
    fresh_params : mapping of str to ndarray
        Values for parameters that are not copied: all routers, and whatever the plain model lacks.
    copy_final_norm, copy_single_modules : bool, optional
        Default: the configuration's fields of the same name.

    Returns
    -------
    dict of str to ndarray of float64
        Copies, in the order of `parameter_shapes`.

    Raises
    ------
    ValueError
        If a tensor has the wrong shape, or is neither copied nor in `fresh_params`.
    """
    head = "transformer."
    plain = {n if n.startswith(head) else head + n: v for n, v in vanilla_params.items()}
    sources = vanilla_sources(config, copy_final_norm, copy_single_modules)
    result: dict[str, Float] = {}
    for name, shape in parameter_shapes(config).items():
        source = sources.get(name)
        if source in plain:
            result[name] = as_float(f"vanilla_params[{source!r}]", np.array(plain[source]), shape)
        elif name in fresh_params:
            result[name] = as_float(f"fresh_params[{name!r}]", np.array(fresh_params[name]), shape)
        else:
            raise ValueError(f"fresh_params: {name!r} is missing and not copied from the plain model")
    return result


def checked(config: MoMConfig, parameters: Mapping[str, ArrayLike]) -> dict[str, Float]:
    """Float64 copies of all parameters, in order. Their names and shapes must be exactly those of `config`."""
    shapes = parameter_shapes(config)
    missing = [name for name in shapes if name not in parameters]
    surplus = [name for name in parameters if name not in shapes]
    if missing or surplus:
        raise ValueError(f"parameters: missing {missing[:3]}, unexpected {surplus[:3]}")
    return {name: as_float(f"parameters[{name!r}]", np.array(parameters[name]), shapes[name]) for name in shapes}
