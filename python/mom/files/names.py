"""Names of weights.

``"reference"``    the published Mixture-of-Modules: ``transformer.h.1.mot_ffn.c_fc.0.weight``
``"huggingface"``  GPT-2: ``transformer.h.1.mlp.c_fc.weight`` (models without blocks only)
``"canonical"``    what this package uses: GPT-2's names for a plain GPT-2, else the reference's
``"bare"``         canonical names without the leading ``transformer.``

`canonical_names` lists names and shapes in order. `rename` goes from canonical names to another naming, and
`detect_and_canonicalise` goes back from any of them. `vanilla_mapping` says which tensor of a plain GPT-2 becomes which
tensor of a Mixture-of-Modules.

References
----------
Gong et al., Mixture-of-Modules, arXiv:2407.06677.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np

from .._arguments import flag
from .._reading import shown
from ..config import MoMConfig
from ..errors import CheckpointError
from ..routers import parameter_shapes

__all__ = ["canonical_names", "detect_and_canonicalise", "rename", "vanilla_mapping"]

Value = TypeVar("Value")

#: Tensors of one layer: GPT-2's name, the reference's name.
_LAYER_NAMES = (
    ("ln_1", "mot_attn.attention_layernorm"),
    ("attn.c_attn", "mot_attn.c_attn"),
    ("attn.c_proj", "mot_attn.c_proj"),
    ("ln_2", "mot_ffn.ffn_layernorm"),
    ("mlp.c_fc", "mot_ffn.c_fc"),
    ("mlp.c_proj", "mot_ffn.c_proj"),
)
_BUFFER = re.compile(r"h\.\d+\.(attn|mot_attn)\.(\d+\.)?(bias|masked_bias)")


def canonical_names(config: MoMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all parameters of a model, in the order in which this package keeps them.

    The order: embeddings; the places of the body, each with its attention half and then its feed-forward half; the
    final LayerNorm; the classification head, if there is one. A routed half ends with its router. The language-model
    head is tied to ``transformer.wte.weight``. ``c_attn``, ``c_fc`` and ``c_proj`` are stored [in, out], router and
    ``score`` weights [out, in].

    Examples
    --------
    >>> from mom.config import MoMConfig
    >>> names = canonical_names(MoMConfig.vanilla(1, vocab_size=10, n_positions=8, n_embd=4, n_head=2))
    >>> list(names)[2], names["transformer.h.0.attn.c_attn.weight"]
    ('transformer.h.0.ln_1.weight', (4, 12))
    """
    width, inner = config.n_embd, config.inner_size
    linear = {
        "c_attn": (width, 3 * width), "attn_proj": (width, width), "c_fc": (width, inner), "ffn_proj": (inner, width),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, width),
        "transformer.wpe.weight": (config.n_positions, width),
    }
    for place, kind in enumerate(config.places()):
        for half, tensors in (("attn", _LAYER_NAMES[:3]), ("ffn", _LAYER_NAMES[3:])):
            modules = _modules(config, kind, half)
            for gpt2, reference in tensors:
                if config.owner(place, half) != place:
                    continue
                base = f"transformer.h.{place}.{gpt2 if config.is_vanilla else reference}"
                last = gpt2.rsplit(".", 1)[-1]
                shape = linear.get(f"{half}_proj" if last == "c_proj" else last)
                for module in [""] if modules == 1 else [f".{m}" for m in range(modules)]:
                    shapes[f"{base}{module}.weight"] = shape or (width,)
                    shapes[f"{base}{module}.bias"] = shape[1:] if shape else (width,)
            if kind == "block" and config.is_routed(half):
                prefix = f"transformer.h.{place}.mot_{half}.router."
                shapes.update({prefix + name: shape for name, shape in parameter_shapes(config, half).items()})
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (width,)
    if config.num_labels is not None:
        shapes["score.weight"] = (config.num_labels, width)
    return shapes


def _modules(config: MoMConfig, kind: str, half: str) -> int:
    if kind == "anchor":
        return 1
    return config.num_attn if half == "attn" else config.num_ffn


def _gpt2_to_reference(name: str) -> str:
    """The reference's name of a plain GPT-2's tensor. Only the part after ``h.<i>.`` differs."""
    match = re.fullmatch(r"(transformer\.h\.\d+\.)(.+)\.(weight|bias)", name)
    if match is None:
        return name
    return f"{match[1]}{dict(_LAYER_NAMES)[match[2]]}.{match[3]}"


def _names_in(config: MoMConfig, naming: str) -> dict[str, str]:
    """Canonical name -> name in `naming`, in canonical order."""
    names = canonical_names(config)
    if naming == "canonical" or (naming == "huggingface" and config.is_vanilla):
        return {name: name for name in names}
    if naming == "reference":
        return {name: _gpt2_to_reference(name) if config.is_vanilla else name for name in names}
    if naming == "bare":
        return {name: name.removeprefix("transformer.") for name in names}
    if naming == "huggingface":
        raise CheckpointError("to: 'huggingface' names exist only for a plain GPT-2; this model has blocks")
    raise CheckpointError(f"to: {naming!r} is not one of 'canonical', 'reference', 'huggingface', 'bare'")


def rename(tensors: Mapping[str, Value], config: MoMConfig, to: str = "canonical") -> dict[str, Value]:
    """Go from canonical names to another naming.

    Parameters
    ----------
    tensors : mapping
        Canonical name to anything (weights, gradients, shapes); need not be complete.
    config : MoMConfig
        The model.
    to : {"canonical", "reference", "huggingface", "bare"}
        The new naming; see the module's description.

    Returns
    -------
    dict
        The same values in the same order under the other names.

    Raises
    ------
    CheckpointError
        For an unknown name or naming, or ``"huggingface"`` and a model with blocks.
    """
    table = _names_in(config, to)
    if unknown := [name for name in tensors if name not in table]:
        raise CheckpointError(f"tensors: {unknown[0]!r} is not a canonical name of this model")
    return {table[name]: value for name, value in tensors.items()}


def detect_and_canonicalise(
    tensors: Mapping[str, np.ndarray],
    config: MoMConfig,
    source: str = "weights",
    *,
    allow_missing: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Bring weights under any known naming to canonical names, types and order.

    The reference's and Hugging Face's names are accepted, each with or without ``transformer.``. Buffers of attention
    masks are dropped. ``lm_head.weight`` is dropped, too, after a check that it equals the embedding; a file that holds
    the head alone gives the embedding by it.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As read from a file.
    config : MoMConfig
        The model the weights are meant for.
    source : str
        File or folder for messages.
    allow_missing : collection of str
        Canonical names that may be absent, such as ``"score.weight"`` when fine-tuning begins.

    Returns
    -------
    dict of str to ndarray of float32
        C-contiguous, in the order of `canonical_names`. Arrays that already are so are not copied.

    Raises
    ------
    CheckpointError
        Listing missing, unexpected and wrongly shaped tensors, or for a head that is not tied.
    """
    shapes = canonical_names(config)
    canonical_of = {name.removeprefix("transformer."): name for name in shapes}
    canonical_of.update({v.removeprefix("transformer."): k for k, v in _names_in(config, "reference").items()})

    found: dict[str, np.ndarray] = {}
    found_as: dict[str, str] = {}
    head: np.ndarray | None = None
    unexpected: list[str] = []
    for name, tensor in tensors.items():
        bare = name.removeprefix("transformer.")
        if _BUFFER.fullmatch(bare):
            continue
        if bare == "lm_head.weight":
            head = tensor
        elif (canonical := canonical_of.get(bare)) is None:
            unexpected.append(name)
        elif canonical in found:
            raise CheckpointError(f"{source}: {shown(found_as[canonical])} and {shown(name)} are the same tensor")
        else:
            found[canonical], found_as[canonical] = tensor, name

    if head is not None and "transformer.wte.weight" not in found:  # one tensor under two names, saved once
        found["transformer.wte.weight"], found_as["transformer.wte.weight"] = head, "lm_head.weight"
    problems = []
    missing = [name for name in shapes if name not in found and name not in allow_missing]
    for label, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            problems.append(f"{len(names)} {label}: {_listing(names)}")
    wrong = []
    for name, tensor in found.items():
        if tensor.shape != shapes[name]:
            hint = " (transposed?)" if tensor.shape == shapes[name][::-1] else ""
            wrong.append(f"{found_as[name]} has shape {tensor.shape}, expected {shapes[name]}{hint}")
        elif tensor.dtype.kind != "f":
            wrong.append(f"{found_as[name]} has type {tensor.dtype}, expected a floating type")
    if wrong:
        problems.append(f"{len(wrong)} wrong: {_listing(wrong)}")
    if problems:
        if not config.is_vanilla and any(re.search(r"\bh\.\d+\.(ln_1|attn|mlp)\.", name) for name in unexpected):
            problems.append("these are the names of a plain GPT-2, which MoM.from_vanilla takes")
        raise CheckpointError(f"{source}: does not fit the configuration; " + "; ".join(problems))
    if head is not None and not np.array_equal(head, found["transformer.wte.weight"], equal_nan=True):
        raise CheckpointError(f"{source}: lm_head.weight differs from wte.weight; only a tied head is supported")
    return {name: np.ascontiguousarray(found[name], np.float32) for name in shapes if name in found}


def _listing(items: list[str], limit: int = 8) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(item[:120] for item in items[:limit]) + rest


# ---------------------------------------------------------------------- phase two
def vanilla_mapping(
    config: MoMConfig, copy_final_norm: bool | None = None, copy_single_modules: bool | None = None
) -> list[tuple[str, str]]:
    """Which tensor of a plain GPT-2 starts which tensor of a Mixture-of-Modules.

    Of the layers that belong to a block, layer j becomes the block's attention module j and feed-forward module j, if
    the pools have so many modules. Anchor layers and embeddings are copied. Routers start fresh.

    Parameters
    ----------
    config : MoMConfig
        The Mixture-of-Modules; the plain GPT-2 is ``config.vanilla_config()``.
    copy_final_norm : bool, optional
        Whether ``ln_f`` is copied; by default ``config.copy_final_norm``.
    copy_single_modules : bool, optional
        Whether a half with one module gets the block's first layer; by default
        ``config.copy_single_modules``.

    Returns
    -------
    list of (str, str)
        Canonical name in the Mixture-of-Modules, canonical name in the plain GPT-2; in the order of
        `canonical_names`.

    Notes
    -----
    The published reference copies neither ``ln_f`` nor halves with a single module.
    """
    copy_final_norm = config.copy_final_norm if copy_final_norm is None else flag(copy_final_norm, "copy_final_norm")
    copy_single_modules = (
        config.copy_single_modules if copy_single_modules is None else flag(copy_single_modules, "copy_single_modules")
    )
    pairs = [(name, name) for name in ("transformer.wte.weight", "transformer.wpe.weight")]
    layer = 0
    for place, kind in enumerate(config.places()):
        for half, tensors in (("attn", _LAYER_NAMES[:3]), ("ffn", _LAYER_NAMES[3:])):
            modules = _modules(config, kind, half)
            if kind == "block" and modules == 1 and not copy_single_modules:
                continue
            if config.owner(place, half) != place:
                continue
            for gpt2, reference in tensors:
                target = f"transformer.h.{place}.{gpt2 if config.is_vanilla else reference}"
                for module in range(modules):
                    index = "" if modules == 1 else f".{module}"
                    for part in ("weight", "bias"):
                        pairs.append((f"{target}{index}.{part}", f"transformer.h.{layer + module}.{gpt2}.{part}"))
        layer += max(config.num_attn, config.num_ffn) if kind == "block" else 1
    if copy_final_norm:
        pairs += [(f"transformer.ln_f.{part}",) * 2 for part in ("weight", "bias")]
    return pairs
