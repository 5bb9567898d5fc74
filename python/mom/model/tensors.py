"""Tensors of a model by name: the whole model as a mapping, and parts of it (modules, pools, routers, blocks)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_array
from .._html import html_table
from ..config import MoMConfig
from ..familiar import Familiar

__all__ = ["Block", "Module", "Pool", "Router", "TensorMap", "blocks_of"]


def _rms(a: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


class TensorMap(Mapping[str, NDArray[np.float32]]):
    """Read-only mapping from names to writable ndarray views of C memory.

    The arrays are views: the core computes with the numbers that are written into them. A view keeps the memory alive.
    Assigning to a key copies into the memory.
    """

    def __init__(self, title: str, arrays: dict[str, NDArray[np.float32]]) -> None:
        self._title = title
        self._arrays = arrays

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(f"{self._title}: no tensor {name!r}") from None

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        target = self[name]
        array = as_array(value, name)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: dtype {array.dtype}, expected real numbers")
        if array.shape != target.shape:
            raise ValueError(f"{name}: shape {array.shape}, expected {target.shape}")
        target[...] = array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __call__(self) -> None:
        raise TypeError(
            f"{self._title}: is a mapping from names to arrays, not a method, so leave the () out; "
            "model.num_parameters counts all numbers, and mom.AdamW(model, lr=...) takes the model"
        )

    def __repr__(self) -> str:
        count = sum(a.size for a in self._arrays.values())
        return f"<{self._title}: {len(self)} tensors, {count:,} numbers>"

    def _repr_html_(self) -> str:
        rows = ([name, shape_of(a), f"{_rms(a):.4g}"] for name, a in self._arrays.items())
        return html_table(self._title, ["tensor", "shape", "rms"], rows)


class HasTensors(Protocol):
    """What parts of a model need of the model."""

    @property
    def config(self) -> MoMConfig: ...
    @property
    def parameters(self) -> TensorMap: ...
    @property
    def gradients(self) -> TensorMap: ...


def shape_of(array: NDArray[Any]) -> str:
    """A shape as text, such as ``"768x64"``."""
    return "x".join(map(str, array.shape))


@dataclass(eq=False, repr=False)
class _Tensors:
    """Named tensors of one part of a model, with the gradients beside them.

    Assigning to a tensor's attribute copies into the model. A number sets all elements.
    """

    name: str
    _model: HasTensors
    _names: dict[str, str]  # short name -> state-dict name

    @property
    def names(self) -> Mapping[str, str]:
        """Short names to names in the state dict."""
        return MappingProxyType(self._names)

    @property
    def parameters(self) -> TensorMap:
        """Short names to writable views, shapes as in the state dict."""
        return TensorMap(self.name, {k: self._model.parameters[v] for k, v in self._names.items()})

    @property
    def gradients(self) -> TensorMap:
        """The gradients, with names and shapes as in `parameters`."""
        return TensorMap(f"{self.name} gradients", {k: self._model.gradients[v] for k, v in self._names.items()})

    def __getattr__(self, key: str) -> NDArray[np.float32]:
        names: dict[str, str] = object.__getattribute__(self, "_names")
        attribute = key.replace("__", ".")
        if attribute in names:
            return self._model.parameters[names[attribute]]
        raise AttributeError(f"{self.name} has no tensor {key!r}; it has {', '.join(names)}")

    def __setattr__(self, key: str, value: Any) -> None:
        names = self.__dict__.get("_names")
        if names is None:  # within the constructor, which sets `_names` last
            object.__setattr__(self, key, value)
            return
        target = getattr(self, key) if key.replace("__", ".") in names else None
        if target is None:
            raise AttributeError(f"{self.name} has no tensor {key!r} to assign to; it has {', '.join(names)}")
        number = np.ndim(value) == 0 and not isinstance(value, str)
        self.parameters[key.replace("__", ".")] = np.full(target.shape, value) if number else value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(k.replace(".", "__") for k in self._names)]

    def __repr__(self) -> str:
        return f"<{self.name}: {', '.join(f'{name} {shape_of(a)}' for name, a in self.parameters.items())}>"

    def _repr_html_(self) -> str:
        return self.parameters._repr_html_()


class Module(_Tensors):
    """One attention or feed-forward module.

    Its tensors are ``ln.weight``, ``ln.bias``, ``c_attn.*`` (attention) or ``c_fc.*``, and ``c_proj.*``. In the names
    of attributes, a dot is written as two underscores: ``module.c_proj__weight``.
    """

    def __call__(self, x: ArrayLike) -> NDArray[np.float32]:
        """What the module computes from rows of the residual stream, before its weight, in float32.

        Parameters
        ----------
        x : array of float, shape (N, C)
            For a feed-forward module, any rows. For an attention module they are the tokens of one sequence, each of
            which attends to itself and to those before it.

        Returns
        -------
        ndarray of float32, shape (N, C)

        Raises
        ------
        ValueError
            For another shape.
        """
        from .. import ops

        rows = np.ascontiguousarray(as_array(x, "x"), np.float32)
        config, tensors = self._model.config, self.parameters
        if rows.ndim != 2 or rows.shape[1] != config.n_embd:
            raise ValueError(f"x: shape {rows.shape}, expected (N, {config.n_embd})")
        first = "c_attn" if "c_attn.weight" in tensors else "c_fc"
        normed = ops.layernorm_forward(rows, tensors["ln.weight"], tensors["ln.bias"], config.layer_norm_epsilon)[0]
        inner = ops.linear_forward(normed, tensors[f"{first}.weight"], tensors[f"{first}.bias"])
        if first == "c_fc":
            mixed = ops.gelu_forward(inner)
        else:
            scale = None if config.scale_attn_weights else 1.0
            mixed = ops.attention_forward(inner[None], config.n_head, scale=scale)[0][0]
        return ops.linear_forward(mixed, tensors["c_proj.weight"], tensors["c_proj.bias"])


class Router(_Tensors):
    """A router's tensors under the reference's names (``router.0.weight``, ``x2h.weight``, ...), [out, in]."""


class Pool(Sequence[Module]):
    """The modules of one half of a block, ``pool[j]`` is a `Module`."""

    def __init__(self, name: str, kind: str, modules: list[Module]) -> None:
        self.name = name
        #: ``"attn"`` or ``"ffn"``
        self.kind = kind
        self._modules = modules

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[Module]: ...
    def __getitem__(self, index: int | slice) -> Module | list[Module]:
        return self._modules[index]

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} {self.kind} modules>"

    def _repr_html_(self) -> str:
        rows = ([j, *(f"{shape_of(a)}\nrms {_rms(a):.3g}" for a in module.parameters.values())]
                for j, module in enumerate(self._modules))  # fmt: skip
        return html_table(self.name, ["module", *self._modules[0].parameters], rows)


@dataclass(frozen=True, repr=False)
class Block(Familiar):
    """One MoM block: its place in ``transformer.h``, pools, and routers (None for a half with a single module).

    Blocks are numbered from 0 in names, routes and rules. `place` counts anchor layers, too.
    """

    place: int
    attention_pool: Pool
    ffn_pool: Pool
    attention_router: Router | None
    ffn_router: Router | None

    def __repr__(self) -> str:
        parts = (self.attention_pool, self.attention_router, self.ffn_pool, self.ffn_router)
        names = ", ".join(part.name if isinstance(part, Router) else repr(part)[1:-1] for part in parts if part)
        return f"<Block, transformer.h.{self.place}: {names}>"


def blocks_of(model: HasTensors, config: MoMConfig) -> list[Block]:
    """The MoM blocks with their pools and routers (empty for a plain GPT-2)."""
    places = [place for place, kind in enumerate(config.places()) if kind == "block"]
    return [_block(model, config, number, place) for number, place in enumerate(places)]


def _block(model: HasTensors, config: MoMConfig, number: int, place: int) -> Block:
    parts: dict[str, Any] = {}
    for half, norm, first, count in (
        ("attn", "attention_layernorm", "c_attn", config.num_attn),
        ("ffn", "ffn_layernorm", "c_fc", config.num_ffn),
    ):
        prefix = f"transformer.h.{config.owner(place, half)}.mot_{half}"
        modules = []
        for j in range(count):
            index = f".{j}" if count > 1 else ""
            names = {
                f"{short}.{kind}": f"{prefix}.{long}{index}.{kind}"
                for short, long in (("ln", norm), (first, first), ("c_proj", "c_proj"))
                for kind in ("weight", "bias")
            }
            modules.append(Module(f"block {number} {half} module {j}", model, names))
        parts[half] = Pool(f"block {number} {half} pool", half, modules)
        router_prefix = f"transformer.h.{place}.mot_{half}.router."
        names = {n[len(router_prefix) :]: n for n in model.parameters if n.startswith(router_prefix)}
        router = Router(f"block {number} {half} router", model, names) if config.is_routed(half) else None
        parts[f"{half}_router"] = router
    return Block(place, parts["attn"], parts["ffn"], parts["attn_router"], parts["ffn_router"])
