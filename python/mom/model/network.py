"""The language model and the sequence classifier: thin objects over the C core.

Every forward, backward and sampling step is one call into C; what is here checks arguments,
names tensors and keeps files.
"""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._arguments import LARGEST as _LARGEST
from .._arguments import as_array as _as_array
from .._arguments import as_ids as _as_ids
from .._arguments import as_mask as _as_mask
from .._arguments import as_packed as _as_packed
from .._arguments import number as _number
from .._arguments import prompts as _prompts
from .._arguments import sampling as _sampling
from .._arguments import seed as _seed
from ..config import MoMConfig
from ..errors import CheckpointError, ConfigError
from ..files import folders, weights
from ..files.hub import model_folder
from ..runtime import memory_limit as _machine_limit
from .decoder import Decoder
from .memory_plan import MemoryPlan

__all__ = [
    "Block", "MoM", "MoMForSequenceClassification", "Module", "ModelOutput", "Pool", "Router", "Routes", "TensorMap",
]  # fmt: skip

_DTYPES = ("float32", "bfloat16")

def _rms(a: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


class TensorMap(Mapping[str, NDArray[np.float32]]):
    """Read-only mapping from names to writable ndarray views of C memory.

    The arrays are views: what is written through them is what the core computes with, and a view
    keeps the memory alive. Assigning to a key copies into the memory.
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
        array = _as_array(value, name)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: dtype {array.dtype}, expected real numbers")
        if array.shape != target.shape:
            raise ValueError(f"{name}: shape {array.shape}, expected {target.shape}")
        target[...] = array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        count = sum(a.size for a in self._arrays.values())
        return f"<{self._title}: {len(self)} tensors, {count:,} numbers>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'><code>{html.escape(name)}</code></td>"
            f"<td>{'x'.join(map(str, a.shape))}</td><td>{_rms(a):.4g}</td></tr>"
            for name, a in self._arrays.items()
        )
        return (
            f"<b>{html.escape(self._title)}</b><table><tr><th>tensor</th><th>shape</th><th>rms</th></tr>{rows}</table>"
        )


@dataclass(frozen=True)
class _Tensors:
    """Named tensors of one part of a model, with the gradients beside them."""

    name: str
    _model: Network
    _names: dict[str, str]  # short name -> state-dict name

    @property
    def parameters(self) -> TensorMap:
        """Short names to writable views, shapes as in the state dict."""
        return TensorMap(self.name, {k: self._model.parameters[v] for k, v in self._names.items()})

    @property
    def gradients(self) -> TensorMap:
        """As `parameters`, for the gradients."""
        return TensorMap(f"{self.name} gradients", {k: self._model.gradients[v] for k, v in self._names.items()})

    def __getattr__(self, key: str) -> NDArray[np.float32]:
        names: dict[str, str] = object.__getattribute__(self, "_names")
        attribute = key.replace("__", ".")
        if attribute in names:
            return self._model.parameters[names[attribute]]
        raise AttributeError(f"{self.name} has no tensor {key!r}; it has {', '.join(names)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(k.replace(".", "__") for k in self._names)]

    def _repr_html_(self) -> str:
        return self.parameters._repr_html_()


class Module(_Tensors):
    """One attention or feed-forward module.

    Its tensors are ``ln.weight``, ``ln.bias``, then ``c_attn.*`` (attention) or ``c_fc.*``, and ``c_proj.*``. As
    attributes the dots become two underscores: ``module.c_proj__weight``.
    """


class Router(_Tensors):
    """A router's tensors under the reference's names (``router.0.weight``, ``x2h.weight``, ...), [out, in]."""


class Pool(Sequence[Module]):
    """The modules of one half of a block, ``pool[j]`` is a `Module`."""

    def __init__(self, name: str, kind: str, modules: list[Module]) -> None:
        self.name = name
        #: ``"attn"`` or ``"ffn"``
        self.kind = kind
        self._modules = modules

    def __getitem__(self, index: Any) -> Any:
        return self._modules[index]

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self)} {self.kind} modules>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(n)}</th>" for n in self._modules[0].parameters)
        rows = "".join(
            f"<tr><td>{j}</td>"
            + "".join(
                f"<td>{'x'.join(map(str, a.shape))}<br>rms {_rms(a):.3g}</td>"
                for a in module.parameters.values()
            )
            + "</tr>"
            for j, module in enumerate(self._modules)
        )
        return f"<b>{html.escape(self.name)}</b><table><tr><th>module</th>{head}</tr>{rows}</table>"


@dataclass(frozen=True)
class Block:
    """One MoM block: its place in ``transformer.h``, pools, and routers (None for a half with a single module)."""

    place: int
    attention_pool: Pool
    ffn_pool: Pool
    attention_router: Router | None
    ffn_router: Router | None


class Routes(Mapping[str, list[list[dict[str, NDArray[Any]] | None]]]):
    """How the tokens of a batch were routed: ``routes[half][block][round]``.

    ``half`` is ``"attn"`` or ``"ffn"``; the entry is None for a half without a router, else a dict of
    ``scores`` (B, T, S) float32, ``index`` (B, T, K) int16 in falling order of score and ``weight``
    (B, T, K) float32: the kept scores, renormalised with softmax, before any straight-through sign.
    Of packed rows the first axis is N, all tokens, instead of B, T.
    An index of at least ``num_modules[half]`` means SKIP. Arrays are copies.
    """

    def __init__(
        self,
        halves: dict[str, list[list[dict[str, NDArray[Any]] | None]]],
        num_modules: dict[str, int],
        lengths: NDArray[np.int32] | None = None,
    ) -> None:
        self._halves = halves
        self.num_modules = num_modules
        #: Of packed rows, (B,); else None.
        self.lengths = lengths

    def of_row(self, array: NDArray[Any], row: int) -> NDArray[Any]:
        """The part of an array of an entry that belongs to one sequence: (T, S) or (T, K)."""
        if self.lengths is None:
            part: NDArray[Any] = array[row]
            return part
        ends = np.cumsum(self.lengths)
        part = array[ends[row] - self.lengths[row] : ends[row]]
        return part

    def __getitem__(self, half: str) -> list[list[dict[str, NDArray[Any]] | None]]:
        return self._halves[half]

    def __iter__(self) -> Iterator[str]:
        return iter(self._halves)

    def __len__(self) -> int:
        return len(self._halves)


@dataclass(frozen=True)
class ModelOutput:
    """What a forward pass returns; absent values are None.

    Attributes
    ----------
    loss : float or None
        ``lm_loss + router_aux_loss_coef * balance_loss``; without a balance loss, `lm_loss`.
    lm_loss : float or None
        Mean cross entropy over the labelled positions (for a classifier: its own loss).
    balance_loss : float or None
    logits : ndarray of float32 or None
        (B, T, V), of packed rows (N, V); for a classifier (B, num_labels).
    routes : Routes or None
    num_labelled : int
        Positions that were scored.
    """

    loss: float | None
    lm_loss: float | None
    balance_loss: float | None
    logits: NDArray[np.float32] | None
    routes: Routes | None
    num_labelled: int


def _dtype(value: Any) -> str:
    if value not in _DTYPES:
        raise ValueError(f"dtype: {value!r} is not one of {', '.join(map(repr, _DTYPES))}")
    return str(value)


class Network:
    """What the language model and the classifier share."""

    _classifier = False

    def __init__(self, config: MoMConfig, seed: int = 0, dtype: str = "float32") -> None:
        if not isinstance(config, MoMConfig):
            raise TypeError(f"config: expected MoMConfig, got {type(config).__name__}")
        self._set_up(self._check_config(config), _seed(seed), _dtype(dtype), fresh=True)

    def _set_up(self, config: MoMConfig, seed: int, dtype: str, fresh: bool) -> None:
        """Allocate the network; without `fresh` its weights are zero, for whoever fills them next."""
        #: The model's configuration.
        self.config = config
        #: Number format of activations and of the factors of products; weights are float32 in any case.
        self.dtype = dtype
        #: Whether dropout is active in forward passes; see `train` and `eval`.
        self.training = False
        #: Whether forward passes keep just the input of every round (an anchor layer is one), from which `backward`
        #: computes the rest again: less memory, more time, the same gradients.
        self.activation_checkpointing = False
        #: The tokenizer read with the model, or None; saved with it.
        self.tokenizer: Any = None
        #: The task that the model was fine-tuned for, or None; saved with it.
        self.finetuning_task: str | None = None
        #: Lengths in tokens that it was fine-tuned with, by argument of `mom.glue` or `mom.xsum`; saved with it.
        self.finetuning_lengths: dict[str, int] = {}
        self._core = _core.Network({**_core_config(self.config), "bf16": dtype == "bfloat16"})
        self._core.random_state = (seed, 0)
        self.memory_limit = None
        if fresh:
            self._core.randomize(seed)
        table = self._core.parameter_table()
        self._parameters = TensorMap("parameters", {row[0]: self._core.parameter(i) for i, row in enumerate(table)})
        self._gradients: TensorMap | None = None
        # The reference's classification loss has no balance term.
        self._balance_scale = 0.0 if self._classifier else self.config.router_aux_loss_coef

    @classmethod
    def _outline(cls, config: MoMConfig, dtype: str) -> Any:
        """A model whose weights are zero and, on Linux, take no memory before they are touched."""
        model = cls.__new__(cls)
        model._set_up(model._check_config(config), 0, _dtype(dtype), fresh=False)
        return model

    def _check_config(self, config: MoMConfig) -> MoMConfig:
        raise NotImplementedError

    # ------------------------------------------------------------------ tensors
    @property
    def parameters(self) -> TensorMap:
        """State-dict name to writable view of the weights (float32). The tied head is ``transformer.wte.weight``."""
        return self._parameters

    @property
    def gradients(self) -> TensorMap:
        """State-dict name to writable view of the gradients; allocated on first use."""
        if self._gradients is None:
            arrays = {name: self._core.gradient(i) for i, name in enumerate(self._parameters)}
            self._gradients = TensorMap("gradients", arrays)
        return self._gradients

    @property
    def has_gradient(self) -> dict[str, bool]:
        """Which parameters took part in a backward pass since `zero_grad`.

        A module that no token reached has none; the optimizer leaves its parameters, moments and
        step count alone, as the reference does.
        """
        return dict(zip(self._parameters, (bool(u) for u in self._core.used), strict=True))

    def mark_gradient(self, name: str, has: bool = True) -> None:
        """Say that a gradient written by hand counts (or does not) in the next optimizer step."""
        names = list(self._parameters)
        if name not in self._parameters:
            raise KeyError(f"name: no parameter {name!r}")
        used = self._core.used
        used[names.index(name)] = has
        self._core.used = used

    @property
    def num_parameters(self) -> int:
        """Numbers in all parameters, the tied head counted once."""
        return sum(a.size for a in self._parameters.values())

    @property
    def blocks(self) -> list[Block]:
        """The MoM blocks with their pools and routers (empty for a plain GPT-2)."""
        return [self._block(i) for i, kind in enumerate(self.config.places()) if kind == "block"]

    def _block(self, place: int) -> Block:
        parts: dict[str, Any] = {}
        for half, norm, first, count in (
            ("attn", "attention_layernorm", "c_attn", self.config.num_attn),
            ("ffn", "ffn_layernorm", "c_fc", self.config.num_ffn),
        ):
            prefix = f"transformer.h.{place}.mot_{half}"
            modules = []
            for j in range(count):
                index = f".{j}" if count > 1 else ""
                names = {
                    f"{short}.{kind}": f"{prefix}.{long}{index}.{kind}"
                    for short, long in (("ln", norm), (first, first), ("c_proj", "c_proj"))
                    for kind in ("weight", "bias")
                }
                modules.append(Module(f"block {place} {half} module {j}", self, names))
            parts[half] = Pool(f"block {place} {half} pool", half, modules)
            router_prefix = f"{prefix}.router."
            names = {n[len(router_prefix) :]: n for n in self._parameters if n.startswith(router_prefix)}
            parts[f"{half}_router"] = Router(f"block {place} {half} router", self, names) if names else None
        return Block(place, parts["attn"], parts["ffn"], parts["attn_router"], parts["ffn_router"])

    # ------------------------------------------------------------------ memory
    @property
    def memory_limit(self) -> int | None:
        """Largest number of bytes that a forward pass may plan for, or None where nothing is known of the machine.

        A pass that would need more, with parameters, gradients and the optimizer's moments, raises `MemoryError`
        before anything is allocated. Setting None takes the machine's limit, `mom.runtime.memory_limit`.
        """
        return self._core.memory_limit or None

    @memory_limit.setter
    def memory_limit(self, value: int | None) -> None:
        limit = (_machine_limit() or 0) if value is None else _seed(value, "memory_limit")
        if value is not None and limit < 1:
            raise ValueError(f"memory_limit: {value} is not positive")
        self._core.memory_limit = limit

    def memory_plan(
        self,
        batch: int,
        length: int,
        *,
        tokens: int | None = None,
        training: bool = True,
        activation_checkpointing: bool | None = None,
    ) -> MemoryPlan:
        """How many bytes batches of this shape need, worked out by the code that allocates them; nothing is computed.

        Parameters
        ----------
        batch, length : int
            Sequences and tokens per sequence; all of them labelled, with a mask.
        tokens : int, optional
            Of packed rows, the sum of their lengths, of which `length` is the greatest.
        training : bool
            A training step with AdamW; otherwise a forward pass that keeps nothing.
        activation_checkpointing : bool, optional
            None: as the model's attribute says.

        Returns
        -------
        MemoryPlan
            For as many threads as calls use now.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"))
        >>> plan = model.memory_plan(8, 64)
        >>> plan.parameters <= plan.total
        True
        """
        counts = {"batch": batch, "length": length} | ({} if tokens is None else {"tokens": tokens})
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}: {value} is less than 1")
        if length > self.config.n_positions:
            raise ValueError(f"length: {length}, n_positions is {self.config.n_positions}")
        if batch * length >= 2**31:
            raise ValueError(f"batch: {batch} sequences of {length} tokens are 2**31 tokens or more")
        tokens = int(batch) * int(length) if tokens is None else int(tokens)
        if not length + batch - 1 <= tokens <= batch * length:
            raise ValueError(
                f"tokens: {tokens}, expected {length + batch - 1} to {batch * length} "
                f"in {batch} sequences, the longest of {length}"
            )
        checkpoint = self.activation_checkpointing if activation_checkpointing is None else activation_checkpointing
        checkpoint = bool(checkpoint and training)
        try:
            sizes = self._core.plan(int(batch), int(length), tokens, training, checkpoint, training)
        except ValueError as error:  # sizes are all that can be wrong
            raise ValueError(f"batch: {batch} sequences of {length} tokens are too many ({error})") from None
        return MemoryPlan(int(batch), int(length), tokens, training, checkpoint, **sizes)

    # ------------------------------------------------------------------ modes and random numbers
    def train(self) -> None:
        """Switch dropout on (where the configuration has any)."""
        self.training = True

    def eval(self) -> None:
        """Switch dropout off."""
        self.training = False

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block dropout is off; afterwards the training mode and `random_state` are as before."""
        training, random_state = self.training, self.random_state
        self.eval()
        try:
            yield
        finally:
            self.training, self.random_state = training, random_state

    @property
    def random_state(self) -> tuple[int, int]:
        """(seed, counter) of the random streams of dropout and of the ``random`` routers' noise.

        The counter rises by one with every forward pass that draws; set both to repeat a pass.
        """
        seed, counter = self._core.random_state
        return int(seed), int(counter)

    @random_state.setter
    def random_state(self, value: tuple[int, int]) -> None:
        if not isinstance(value, Sequence) or len(value) != 2:
            raise ValueError(f"random_state: expected (seed, counter), got {value!r}")
        self._core.random_state = (_seed(value[0], "random_state"), _seed(value[1], "random_state"))

    # ------------------------------------------------------------------ gradients
    def zero_grad(self) -> None:
        """Set all gradients to zero and forget which parameters had one."""
        self._core.zero_grad()

    def backward(self, lm_scale: float = 1.0, balance_scale: float | None = None) -> None:
        """Add the gradients of ``lm_scale * lm_loss + balance_scale * balance_loss`` of the last forward pass.

        Parameters
        ----------
        lm_scale : float
            With gradient accumulation: this micro-batch's share of the step's labelled positions.
        balance_scale : float or None
            None: ``router_aux_loss_coef``.

        Raises
        ------
        RuntimeError
            Without a forward pass that had labels, or when called twice for one forward pass.
        MemoryError
            The gradients then hold a part of the sum: call `zero_grad` and repeat the forward pass.
        """
        balance_scale = self._balance_scale if balance_scale is None else balance_scale
        self._core.backward(
            _number(lm_scale, "lm_scale", -_LARGEST, "a finite float32"),
            _number(balance_scale, "balance_scale", -_LARGEST, "a finite float32"),
        )

    def _inputs(
        self, tokens: ArrayLike, lengths: ArrayLike | None, mask: ArrayLike | None, positions: ArrayLike | None
    ) -> dict[str, Any]:
        """What is computed, (B, T) or with `lengths` (N,), as the core's arguments."""
        as_tokens = _as_ids if lengths is None else _as_packed
        ids = as_tokens(tokens, "tokens")
        given: dict[str, Any] = {"tokens": ids}
        if lengths is not None:
            given["lengths"] = _as_packed(lengths, "lengths", "B")
        if mask is not None:
            if lengths is not None:
                raise ValueError("attention_mask: packed rows have no padding to hide; give it or lengths, not both")
            given["mask"] = _as_mask(mask, ids.shape)
        if positions is not None:
            given["positions"] = _like(as_tokens(positions, "positions"), ids.shape, "positions")
        return given

    def _routes(self, given: Mapping[str, Any]) -> Routes:
        """Of the last forward pass, which had these `_inputs`."""
        shape = given["tokens"].shape
        counts = {"attn": self.config.num_attn, "ffn": self.config.num_ffn}
        halves: dict[str, list[list[dict[str, NDArray[Any]] | None]]] = {"attn": [], "ffn": []}
        for place, kind in enumerate(self.config.places()):
            if kind != "block":
                continue
            for number, half in enumerate(("attn", "ffn")):
                rounds: list[dict[str, NDArray[Any]] | None] = []
                for r in range(self.config.rounds):
                    entry = self._core.route(place, r, number)
                    if entry is not None:
                        entry = {k: v.reshape(*shape, v.shape[1]) for k, v in entry.items()}
                    rounds.append(entry)
                halves[half].append(rounds)
        return Routes(halves, counts, given.get("lengths"))

    # ------------------------------------------------------------------ copies
    def __getstate__(self) -> dict[str, Any]:
        """Configuration, weights, modes and tokenizer: for `copy.deepcopy` and for other processes (joblib).

        Gradients and what `backward` needs are left behind. To keep a model, use `save_pretrained`.
        """
        return {
            "config": self.config, "dtype": self.dtype, "training": self.training, "tokenizer": self.tokenizer,
            "finetuning_task": self.finetuning_task, "finetuning_lengths": dict(self.finetuning_lengths),
            "activation_checkpointing": self.activation_checkpointing,
            "memory_limit": self.memory_limit, "random_state": self.random_state,
            "weights": {n: v.copy() for n, v in self._parameters.items()},
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["config"], 0, state["dtype"], fresh=False)
        for name, value in state["weights"].items():
            self._parameters[name] = value
        self.training, self.tokenizer, self.random_state = state["training"], state["tokenizer"], state["random_state"]
        self.finetuning_task, self.finetuning_lengths = state["finetuning_task"], state["finetuning_lengths"]
        self.activation_checkpointing, self.memory_limit = state["activation_checkpointing"], state["memory_limit"]

    # ------------------------------------------------------------------ files
    def save_pretrained(
        self, folder: str | os.PathLike[str], naming: str = "canonical", dtype: str | None = None
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and, if there is one, ``tokenizer.json``.

        The folder is written beside its final place, flushed and renamed, with a manifest of sizes
        and hashes; an existing folder is replaced only after that. A plain GPT-2 in its own or Hugging Face's names
        is a folder that `transformers` reads.

        Parameters
        ----------
        folder : path
        naming : {"canonical", "reference", "huggingface", "bare"}
            Names of the tensors; see `mom.files.weights`.
        dtype : {"float32", "bfloat16", "float16"}, optional
            What the file holds; float32 by default.
        """
        tensors = weights.rename(dict(self._parameters), self.config, to=naming)
        folders.write_folder(folder, self._files(tensors, dtype))

    def _files(self, tensors: dict[str, NDArray[np.float32]], dtype: str | None = None) -> dict[str, Any]:
        fields = self.config.to_dict()
        if self.config.is_vanilla:  # for transformers
            kind = "GPT2ForSequenceClassification" if self._classifier else "GPT2LMHeadModel"
            fields |= {"architectures": [kind], "torch_dtype": dtype or "float32"}
            if self._classifier:
                fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(self.config.num_labels or 0)}
            else:
                del fields["num_labels"]
        if self.finetuning_task is not None:  # under transformers' name
            fields["finetuning_task"] = self.finetuning_task
        if self.finetuning_lengths:
            fields["finetuning_lengths"] = self.finetuning_lengths
        config_text = json.dumps(fields, indent=2) + "\n"
        files: dict[str, Any] = {
            "config.json": config_text.encode(),
            "model.safetensors": lambda file: weights.write_safetensors(file, tensors, {"format": "pt"}, dtype=dtype),
        }
        if self.tokenizer is not None:
            files["tokenizer.json"] = self.tokenizer.to_json().encode()
        return files

    def load_state(self, tensors: Mapping[str, ArrayLike], source: str = "tensors") -> None:
        """Copy a complete set of weights, under any of the known namings, into the model.

        Raises
        ------
        CheckpointError
            Listing missing, unexpected and wrongly shaped names; the model is then unchanged.
        """
        arrays = {name: _as_array(tensor, name) for name, tensor in tensors.items()}
        canonical = weights.detect_and_canonicalise(arrays, self.config, source)
        for name, target in self._parameters.items():
            target[...] = canonical[name]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], dtype: str = "float32", **config_changes: Any) -> Any:
        """Read a folder written by `save_pretrained`, by the reference, or by Hugging Face's GPT-2.

        Parameters
        ----------
        folder : path or str
            Holds ``config.json`` and ``model.safetensors`` (or a sharded index); a tokenizer is read
            if there is one. A language model leaves a classifier's head behind; a classifier gets a fresh
            head where the folder has none. Or a name on the Hugging Face Hub, ``"owner/name"`` or ``"hub:name"``,
            with the package huggingface_hub.
        dtype : {"float32", "bfloat16"}
            As for a new model, whatever the format of the file.
        **config_changes
            Configuration fields to override.

        Raises
        ------
        CheckpointError
            If a file is missing, truncated, corrupted or does not fit the configuration.
        """
        _dtype(dtype)
        folder = model_folder(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json")
        if (folder / folders.MANIFEST).is_file():
            folders.verify_folder(folder)
        config = MoMConfig.from_json(folder)
        tensors = weights.read_weights(folder)
        config = cls._adapt_config(config, tensors).replace(**config_changes)
        # Checked before any memory is asked for: a configuration can promise tensors of any size.
        head = () if cls._classifier else ("score.weight",)
        own = {name: tensor for name, tensor in tensors.items() if name not in head}
        canonical = weights.detect_and_canonicalise(own, config, str(folder), allow_missing=("score.weight",))
        model = cls.__new__(cls)
        model._set_up(
            model._check_config(config), 0, dtype, fresh=cls._classifier and "score.weight" not in canonical
        )
        for name, tensor in canonical.items():
            model._parameters[name] = tensor
        model.tokenizer = _load_tokenizer(folder)
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        task, lengths = fields.get("finetuning_task"), fields.get("finetuning_lengths")
        model.finetuning_task = task if isinstance(task, str) else None
        if isinstance(lengths, dict):
            model.finetuning_lengths = {name: n for name, n in lengths.items() if type(n) is int and n > 0}
        return model

    @classmethod
    def _adapt_config(cls, config: MoMConfig, tensors: Mapping[str, Any]) -> MoMConfig:
        raise NotImplementedError

    # ------------------------------------------------------------------ display
    def _summary(self) -> list[tuple[str, str]]:
        c = self.config
        rows = [
            ("parameters", f"{self.num_parameters:,} {self.dtype}"),
            ("width, heads, inner", f"{c.n_embd}, {c.n_head}, {c.inner_size}"),
            ("vocabulary, positions", f"{c.vocab_size}, {c.n_positions}"),
        ]
        if c.is_vanilla:
            rows.append(("layers", str(c.n_layer)))
        else:
            rows += [
                ("body", " - ".join(c.places())),
                ("pool", f"{c.num_attn} attention + {c.num_ffn} feed-forward" + (" + SKIP" if c.enable_pause else "")),
                ("rounds per block", str(c.rounds)),
                ("router", f"{c.router_type}, width {c.router_dim}, top-{c.routing_top_k}"),
            ]
        return rows

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: " + "; ".join(f"{k} {v}" for k, v in self._summary()) + ">"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(k)}</td>"
            f"<td style='text-align:left'>{html.escape(v)}</td></tr>"
            for k, v in self._summary()
        )
        return f"<b>{type(self).__name__}</b><table>{rows}</table>"


def _load_tokenizer(folder: Path) -> Any:
    from ..data.tokenizer import Tokenizer

    names = ("tokenizer.json", "vocab.json", "encoder.json")
    return Tokenizer.load(folder) if any((folder / n).is_file() for n in names) else None


def _core_config(c: MoMConfig) -> dict[str, Any]:
    """The configuration as the core reads it: derived sizes worked out, words turned into numbers."""
    return {
        "V": c.vocab_size, "P": c.n_positions, "C": c.n_embd, "H": c.n_head, "F": c.inner_size,
        "bottom": c.n_layer if c.is_vanilla else c.num_bottom_layers,
        "chunks": c.chunks,
        "top": 0 if c.is_vanilla else c.num_top_layers,
        "anchor_between": bool(c.require_anchor_layer and c.chunks),
        "vanilla": c.is_vanilla,
        "num_attn": c.num_attn, "num_ffn": c.num_ffn, "rounds": c.rounds if c.chunks else 0,
        "choices_attn": c.num_choices("attn"), "choices_ffn": c.num_choices("ffn"),
        "top_k": min(c.routing_top_k, max(c.num_choices("attn"), c.num_choices("ffn"))),
        "router_kind": ("naive", "gru", "gru-dev").index(c.router_kind) if c.chunks else 0,
        "router_softmax": c.router_softmax, "router_random": c.router_random, "R": c.router_dim,
        "temperature": float(c.router_softmax_temperature),
        "use_ste": c.use_ste, "weighted_qkv": c.weighted_qkv, "all_paths": c.routing_all_possible_path,
        "balance_enabled": c.output_router_logits, "balance_reference": c.balance_loss == "reference",
        "balance_depthwise": c.depthwise_bal_loss, "balance_step_counts": c.balance_counts == "step",
        "masked_query_reference": c.masked_query_attention == "reference",
        "embd_pdrop": float(c.embd_pdrop), "attn_pdrop": float(c.attn_pdrop), "resid_pdrop": float(c.resid_pdrop),
        "ln_eps": float(c.layer_norm_epsilon), "scale_attention": c.scale_attn_weights,
        "init_range": float(c.initializer_range),
        "anchor_proj_range": float(c.initializer_range) / math.sqrt(2 * c.n_layer),
        "num_labels": c.num_labels or 0,
    }  # fmt: skip


class MoM(Network):
    """A Mixture-of-Modules (or plain GPT-2) language model.

    Parameters
    ----------
    config : MoMConfig
    seed : int
        Of the initial weights and of the random streams.
    dtype : {"float32", "bfloat16"}
        Number format of stored activations and of the factors of products. Weights, gradients, optimizer state, sums,
        the residual stream, router scores, softmaxes, LayerNorm statistics and losses are float32 in both.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> out = model([[1, 2, 3, 4]], labels=[[1, 2, 3, 4]])
    >>> model.backward()
    >>> out.num_labelled
    3
    """

    def _check_config(self, config: MoMConfig) -> MoMConfig:
        if config.num_labels is not None:
            raise ConfigError("num_labels: a language model has none; use MoMForSequenceClassification")
        return config

    @classmethod
    def _adapt_config(cls, config: MoMConfig, tensors: Mapping[str, Any]) -> MoMConfig:
        return config.replace(num_labels=None, problem_type=None)

    def __call__(
        self,
        tokens: ArrayLike,
        labels: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        return_logits: bool = False,
        return_routes: bool = False,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        keep: bool | None = None,
    ) -> ModelOutput:
        """Forward pass.

        Parameters
        ----------
        tokens : array of int, shape (B, T), or (N,) with `lengths`
            Ids below ``vocab_size``; T at most ``n_positions``.
        labels : array of int, as `tokens`, optional
            Position t is scored against label t + 1 of the same sequence; -100 is ignored. Usually the tokens
            themselves.
        attention_mask : array of 0/1, shape (B, T), optional
            0 hides a token from all queries and leaves it out of the balance loss. Positions and routing ignore it. A
            hidden token may have an embedding that is no number, unless hidden tokens of its row are scored.
        return_logits, return_routes : bool
            Also return logits (B, T, V) or (N, V), or how the tokens were routed.
        lengths : array of int, shape (B,), optional
            The tokens are B sequences of these lengths one after the other, packed: N tokens and no padding. Not
            together with `attention_mask`.
        positions : array of int, as `tokens`, optional
            Position ids; by default 0, 1, 2, ... in every sequence.
        keep : bool, optional
            Keep what `backward` needs; by default exactly when there are labels.

        Returns
        -------
        ModelOutput

        Raises
        ------
        ValueError, TypeError
            Naming the argument, what came and what was wanted; the model stays usable.
        MemoryError
            If the batch needs more than `memory_limit`, with both figures; nothing has changed then.

        Notes
        -----
        Packed rows cost what their own tokens cost, and give what the same rows give in a padded batch with an
        `attention_mask`, where padding has label -100 and positions count real tokens: the same losses, gradients,
        logits and routes. The balance loss is a mean over real tokens in both. Three things do depend on padding:
        padding is routed, so a module that nothing but padding has chosen counts in `has_gradient`; and random numbers
        (dropout, ``random`` routers) are drawn by place in the batch.

        With labels at less than three quarters of the tokens, the others cost less in the last round, unless it is
        routed or `return_logits` asks for all; results are the same up to rounding.
        """
        given = self._inputs(tokens, lengths, attention_mask, positions)
        shape = given["tokens"].shape
        as_labels = _as_ids if lengths is None else _as_packed
        result = self._core.forward(
            **given,
            labels=None if labels is None else _like(as_labels(labels, "labels"), shape, "labels"),
            keep=bool(labels is not None if keep is None else keep),
            training=self.training,
            checkpoint=bool(self.activation_checkpointing),
            all_rows=bool(return_logits),
        )
        lm_loss, balance_loss, labelled = result
        loss = lm_loss
        if loss is not None and balance_loss is not None:
            loss += self.config.router_aux_loss_coef * balance_loss
        logits = self._core.logits(None).reshape(*shape, self.config.vocab_size) if return_logits else None
        return ModelOutput(
            loss, lm_loss, balance_loss, logits, self._routes(given) if return_routes else None, labelled
        )

    def generate(
        self,
        prompt: ArrayLike | Sequence[ArrayLike],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_token: int | None = None,
        weights: str | None = None,
    ) -> Any:
        """Continue one prompt or a batch of prompts of possibly unequal length.

        Parameters
        ----------
        prompt : array of int, shape (T,) or (B, T), or a list of 1-D arrays
            Token ids; each prompt has at least one token, and prompt plus new tokens must fit ``n_positions``.
        max_new_tokens : int
        temperature : float
            0 is greedy; otherwise logits are divided by it before sampling.
        top_k, top_p : optional
            Sample among the `top_k` most probable tokens; among the smallest set whose probability reaches `top_p`.
        seed : int
            Of the sampling.
        stop_token : int, optional
            A row ends after producing this token.
        weights : {"float32", "bfloat16", "int8"}, optional
            Number format in which single tokens read the weights, see `Decoder`; None: the model's dtype.

        Returns
        -------
        ndarray of int32 or list of them
            Prompt and continuation: 1-D for one prompt, (B, T + new) for an array of prompts without
            `stop_token`, else a list.

        Notes
        -----
        Keys and values of earlier tokens are cached: see `Decoder`, which also takes single steps.

        Vocabularies are often rounded up, and some have holes. Where the model has a tokenizer, ids of which it has no
        token are never chosen, and sampling is among the others as if these were not there.
        """
        rows, single = _prompts(prompt)
        settings = _sampling(
            self.config, max_new_tokens, temperature, top_k, top_p, seed, stop_token, max(len(r) for r in rows)
        )
        added: list[NDArray[np.int32]] = [np.zeros(0, np.int32)] * len(rows)
        if settings[0]:
            decoder = Decoder(self, weights)
            decoder.prefill(rows)
            added = decoder._generate(*settings)
        result = [np.concatenate([row, tokens]) for row, tokens in zip(rows, added, strict=True)]
        if single:
            return result[0]
        return np.stack(result) if isinstance(prompt, np.ndarray) and stop_token is None else result

    @classmethod
    def from_vanilla(
        cls,
        gpt2: MoM | str | os.PathLike[str],
        config: MoMConfig,
        seed: int = 0,
        copy_final_norm: bool | None = None,
        copy_single_modules: bool | None = None,
        dtype: str | None = None,
    ) -> MoM:
        """Phase two of the recipe: a plain GPT-2's layers become modules and anchor layers.

        Layer j of a chunk becomes attention module j and feed-forward module j, as far as the pools
        go; embeddings and anchor layers are copied; routers start fresh from `seed`. A plain model of
        another number of layers than ``config.vanilla_layers()`` is used as far as it goes, with a warning.

        Parameters
        ----------
        gpt2 : MoM or path
            A plain GPT-2 (model or folder) of the same width.
        config : MoMConfig
            Of the new model.
        copy_final_norm, copy_single_modules : bool, optional
            Also copy the final LayerNorm; fill halves with a single module. None: as `config` says
            (True by default; the reference does neither).
        dtype : str, optional
            As for a new model; None: that of `gpt2`.

        Raises
        ------
        ConfigError
            If the two do not fit together.
        """
        if not isinstance(config, MoMConfig):
            raise TypeError(f"config: expected MoMConfig, got {type(config).__name__}")
        source = gpt2 if isinstance(gpt2, MoM) else cls.from_pretrained(gpt2)
        if not source.config.is_vanilla:
            raise ConfigError("gpt2: expected a plain GPT-2 (chunks = 0)")
        for name in ("vocab_size", "n_positions", "n_embd", "n_head", "inner_size"):
            if getattr(source.config, name) != getattr(config, name):
                raise ConfigError(
                    f"config: {name} = {getattr(config, name)}, the plain model has {getattr(source.config, name)}"
                )
        model = cls(config, seed=seed, dtype=source.dtype if dtype is None else dtype)
        mapping = weights.vanilla_mapping(
            config,
            config.copy_final_norm if copy_final_norm is None else copy_final_norm,
            config.copy_single_modules if copy_single_modules is None else copy_single_modules,
        )
        if source.config.n_layer != config.vanilla_layers():
            warnings.warn(
                f"gpt2: has {source.config.n_layer} layers, the model has places for {config.vanilla_layers()}; "
                + (
                    "surplus layers are left out"
                    if source.config.n_layer > config.vanilla_layers()
                    else "the rest is fresh"
                ),
                stacklevel=2,
            )
        for target, name in mapping:
            if name in source.parameters:
                model.parameters[target] = source.parameters[name]
        model.tokenizer = source.tokenizer
        return model


def _like(array: NDArray[np.int32], shape: tuple[int, ...], name: str) -> NDArray[np.int32]:
    if array.shape != shape:
        raise ValueError(f"{name}: shape {array.shape}, expected {shape} like tokens")
    return array


class MoMForSequenceClassification(Network):
    """A Mixture-of-Modules (or plain GPT-2) with a linear head on the last real token.

    Parameters
    ----------
    config : MoMConfig
        With ``num_labels`` set. ``problem_type`` None means regression for one label, otherwise
        single-label classification for integer labels and multi-label for float ones.
    seed : int
    dtype : {"float32", "bfloat16"}
        Number format of stored activations and of the factors of products. Weights, gradients, optimizer state, sums,
        the residual stream, router scores, softmaxes, LayerNorm statistics and losses are float32 in both.
    """

    _classifier = True

    def _check_config(self, config: MoMConfig) -> MoMConfig:
        return config.replace(num_labels=2) if config.num_labels is None else config

    @classmethod
    def _adapt_config(cls, config: MoMConfig, tensors: Mapping[str, Any]) -> MoMConfig:
        if "score.weight" in tensors:
            return config.replace(num_labels=int(np.shape(tensors["score.weight"])[0]))
        return config

    def pooled_positions(
        self, tokens: NDArray[np.int32], attention_mask: NDArray[np.uint8] | None
    ) -> NDArray[np.int32]:
        """Position of the token whose state is classified, (B,) int32; see ``MoMConfig.pooling``."""
        batch, length = tokens.shape
        if self.config.pooling == "mask" and attention_mask is not None:
            if not attention_mask.any(axis=1).all():
                row = int(np.flatnonzero(~attention_mask.any(axis=1))[0])
                raise ValueError(f"attention_mask: row {row} masks every token")
            last: NDArray[np.int32] = (length - 1 - np.argmax(attention_mask[:, ::-1] != 0, axis=1)).astype(np.int32)
            return last
        pad = self.config.pad_token_id
        if pad is None:
            if batch > 1:
                raise ValueError(
                    "tokens: more than one row needs an attention_mask or, in the configuration, a pad_token_id"
                )
            return np.full(batch, length - 1, dtype=np.int32)
        # The reference's rule: before the first pad; no pad, or a pad in front, gives the last position.
        before: NDArray[np.int32] = ((np.argmax(tokens == pad, axis=1) - 1) % length).astype(np.int32)
        return before

    def _targets(self, labels: ArrayLike, batch: int) -> dict[str, Any]:
        count = self.config.num_labels or 1
        array = _as_array(labels, "labels")
        integer = np.issubdtype(array.dtype, np.integer)
        if not integer and not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"labels: dtype {array.dtype}, expected integer or float")
        problem = self.config.problem_type
        if problem is None:
            problem = "regression" if count == 1 else "single_label_classification"
            if count > 1 and not integer:
                problem = "multi_label_classification"
        if problem == "single_label_classification":
            if not integer:
                raise TypeError(f"labels: dtype {array.dtype}, expected an integer dtype for classification")
            if array.shape != (batch,):
                raise ValueError(f"labels: shape {array.shape}, expected ({batch},)")
            bad = (array != -100) & ((array < 0) | (array >= count))
            if bad.any():
                raise ValueError(f"labels: {int(array[bad][0])} is not in [0, {count})")
            return {"classes": np.array(array, dtype=np.int32), "label_loss": 1}
        if array.shape not in ((batch, count), *(((batch,),) if count == 1 else ())):
            raise ValueError(f"labels: shape {array.shape}, expected ({batch}, {count})")
        if not (np.abs(array) <= _LARGEST).all():
            raise ValueError("labels: not all are finite float32 numbers")
        values = np.array(array.reshape(batch, count), dtype=np.float32, order="C")
        return {"values": values, "label_loss": 0 if problem == "regression" else 2}

    def __call__(
        self,
        tokens: ArrayLike,
        labels: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        return_logits: bool = True,
        return_routes: bool = False,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        keep: bool | None = None,
    ) -> ModelOutput:
        """Forward pass.

        Parameters
        ----------
        tokens : array of int, shape (B, T), or (N,) with `lengths`
        labels : array, optional
            (B,) of int for classification; (B,) or (B, num_labels) of float for regression; (B, num_labels) of
            float for multi-label classification.
        attention_mask : array of 0/1, shape (B, T), optional
        return_logits, return_routes : bool
        lengths : array of int, shape (B,), optional
            The tokens are B sequences of these lengths one after the other, packed, each classified at its last token;
            see `MoM`. Not together with `attention_mask`, nor with ``pooling = "reference"``, which looks for padding.
        positions : array of int, as `tokens`, optional
            Position ids; by default 0, 1, 2, ... in every sequence, with ``pooling = "mask"`` from its first token that
            is not masked: padding on either side, with its mask, does not change a prediction. With ``"reference"``
            padding on the left takes up positions, as in the published code.
        keep : bool, optional
            Keep what `backward` needs; by default exactly when there are labels.

        Returns
        -------
        ModelOutput
            With logits (B, num_labels) at the pooled position and the loss as ``lm_loss`` and ``loss``.
        """
        given = self._inputs(tokens, lengths, attention_mask, positions)
        ids = given["tokens"]
        if lengths is None:
            mask = given.get("mask")
            given["pooled"] = self.pooled_positions(ids, mask)
            if positions is None and mask is not None and self.config.pooling == "mask" and not mask[:, 0].all():
                first = np.argmax(mask, axis=1)[:, None]
                given["positions"] = np.maximum(np.arange(ids.shape[1]) - first, 0).astype(np.int32)
        elif self.config.pooling != "mask":
            raise ConfigError(f"pooling: {self.config.pooling!r} looks for padding; packed rows need 'mask'")
        targets = {} if labels is None else self._targets(labels, len(ids if lengths is None else given["lengths"]))
        lm_loss, _, labelled = self._core.forward(
            **given,
            keep=bool(labels is not None if keep is None else keep),
            training=self.training,
            checkpoint=bool(self.activation_checkpointing),
            **targets,
        )
        logits = self._core.pooled_logits() if return_logits else None
        return ModelOutput(
            lm_loss, lm_loss, None, logits, self._routes(given) if return_routes else None, labelled
        )
