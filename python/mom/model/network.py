"""The base of the language model and the classifier: a thin object over a network of the C core.

Every forward, backward and sampling step is one call into C. This module checks arguments, names tensors, and reads and
writes files.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core, runtime
from .._arguments import LARGEST, PathLike, as_array, as_ids, as_mask, as_packed, flag, like, number
from .._arguments import seed as seed_of
from .._html import html_table
from .._reading import kind_of, shown
from ..config import MoMConfig
from ..distributed import current
from ..errors import CheckpointError, ConfigError, DataError
from ..familiar import Familiar, takes_familiar_arguments
from ..files import folders, names, weights
from ..files.atomic import mention_of
from ..files.generation import GenerationDefaults
from ..files.hub import hint_of_name, model_folder
from ..files.labels import check_labels
from ..interventions.scope import Call, Captured, Scope
from .beside import as_tokenizer, files_beside, read_beside, with_token_ids
from .core_config import check_dtype, core_config
from .counting import Counting
from .intervening import Intervening
from .memory_plan import MemoryPlan, check_model_fits, plan
from .output import Loss, ModelOutput
from .routes import of_rounds, read_routes
from .tensors import Block, TensorMap, blocks_of

__all__ = ["Network"]

Self = TypeVar("Self", bound="Network")
#: Attributes that live in the core. Copies of a model get their own.
_OF_CORE = ("_core", "_parameters", "_gradients", "_scopes", "_captured", "_counting")


class Network(Intervening, Counting, Familiar):
    """What the language model and the classifier share."""

    def __init__(self, config: MoMConfig, seed: int = 0, dtype: str = "float32") -> None:
        if not isinstance(config, MoMConfig):
            hint = hint_of_name(config) if isinstance(config, str) else ""
            raise TypeError(f"config: expected MoMConfig, got {type(config).__name__} {shown(config)}{hint}")
        self._set_up(self._check_config(config), seed_of(seed), dtype, fresh=True)

    def _set_up(self, config: MoMConfig, seed: int, dtype: str, fresh: bool) -> None:
        """Allocate the network. Without `fresh`, its weights are zero until the caller fills them."""
        check_dtype(dtype)
        check_model_fits(config)
        self._config, self._dtype = config, dtype
        #: Whether dropout is active in forward passes; see `train` and `eval`.
        self.training = False
        #: Whether a forward pass keeps only the input of every round; an anchor layer counts as a round. `backward`
        #: then computes the rest again. This takes less memory and more time, and gives the same gradients.
        self.activation_checkpointing = False
        self._tokenizer: Any = None
        self._label_names: tuple[str, ...] | None = None
        #: Defaults of `MoM.generate`; saved with the model.
        self.generation = GenerationDefaults()
        #: The task that the model was fine-tuned for, or None; saved with it.
        self.finetuning_task: str | None = None
        #: Lengths in tokens that the model was fine-tuned with, by argument of `mom.glue` or `mom.xsum`; saved with it.
        self.finetuning_lengths: dict[str, int] = {}
        self._core = _core.Network(core_config(config, dtype))
        self._core.random_state = (seed, 0)
        self.memory_limit = None
        if fresh:
            self._core.randomize(seed)
        table = self._core.parameter_table()
        self._parameters = TensorMap("parameters", {row[0]: self._core.parameter(i) for i, row in enumerate(table)})
        self._gradients: TensorMap | None = None
        self._scopes: list[Scope] = []
        self._captured: Captured | None = None  # of the last forward pass
        self._trained = np.ones(len(table), np.uint8)

    def _check_config(self, config: MoMConfig) -> MoMConfig:
        raise NotImplementedError

    @property
    def config(self) -> MoMConfig:
        """The model's configuration. It cannot be replaced: a model with another one is another model."""
        return self._config

    @property
    def dtype(self) -> str:
        """Number format of activations and of the factors of products. Weights are always float32."""
        return self._dtype

    @property
    def tokenizer(self) -> Any:
        """The tokenizer read with the model, or None; saved with it. Its ids of special tokens are the model's.

        One of the library ``tokenizers``, or a fast one of transformers, may be assigned, too.
        """
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        tokenizer = as_tokenizer(tokenizer)
        self._config, self._tokenizer = with_token_ids(self.config, tokenizer), tokenizer

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of a classifier's labels in the order of its logits, or None; saved with it."""
        return self._label_names

    @label_names.setter
    def label_names(self, names: Sequence[str] | None) -> None:
        count = self.config.num_labels or 0
        self._label_names = None if names is None else check_labels(names, count, "label_names")

    # ------------------------------------------------------------------ tensors
    @property
    def core(self) -> _core.Network:
        """The network in the C core, which optimizers and decoders work on."""
        return self._core

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
    def has_gradient(self) -> Mapping[str, bool]:
        """Which parameters took part in a backward pass since `zero_grad`. It is read-only; see `mark_gradient`.

        A module that no token reached has no gradient. The optimizer then leaves the module's parameters, moments and
        step count alone, as the reference does.
        """
        return MappingProxyType(dict(zip(self._parameters, map(bool, self._core.used), strict=True)))

    def mark_gradient(self, name: str, has: bool = True) -> None:
        """Say whether a gradient counts in the next optimizer step, for gradients that are written by hand."""
        has = flag(has, "has")
        names = list(self._parameters)
        if name not in self._parameters:
            raise KeyError(f"name: no parameter {name!r}")
        used = self._core.used
        used[names.index(name)] = has
        self._core.used = used

    @property
    def trainable(self) -> Mapping[str, bool]:
        """Which parameters get gradients. It is read-only; see `train_only`."""
        return MappingProxyType(dict(zip(self._parameters, map(bool, self._trained), strict=True)))

    def train_only(self, *patterns: str) -> None:
        """Choose the parameters that get gradients; the others are frozen.

        Gradients of frozen parameters are not computed where that saves work. They do not count in `has_gradient`, so
        clipping and the optimizer skip them. A forward pass made before this call has no backward pass.

        Parameters
        ----------
        *patterns : str
            Names of parameters, or shell patterns such as ``"*.router.*"``; ``"*"`` chooses all of them.

        Raises
        ------
        TypeError
            If a pattern is not a string.
        ValueError
            If a pattern fits no parameter.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"))
        >>> model.train_only("*.router.*")
        >>> model.trainable["transformer.wte.weight"]
        False
        """
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(
                    f"patterns: expected str, got {type(pattern).__name__} {pattern!r}. Each pattern is an argument of "
                    "its own: train_only('*.router.*', 'transformer.ln_f.*')"
                )
        self._select(self.parameters_fitting(patterns, "patterns"))

    def parameters_fitting(self, patterns: Sequence[str], argument: str) -> NDArray[np.uint8]:
        """1 for each parameter that a pattern fits, in the model's order.

        Raises
        ------
        ValueError
            If a pattern fits no parameter; the message begins with the name of the `argument`.
        """
        for pattern in patterns:
            if not fnmatch.filter(self._parameters, pattern):
                raise ValueError(f"{argument}: {pattern!r} fits no parameter of this model")
        chosen = [any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in self._parameters]
        return np.array(chosen, np.uint8)

    def _select(self, trained: NDArray[np.uint8]) -> None:
        self._core.set_trained(trained)
        self._trained = trained

    @property
    def num_parameters(self) -> int:
        """Numbers in all parameters, the tied head counted once."""
        return sum(a.size for a in self._parameters.values())

    @property
    def blocks(self) -> list[Block]:
        """The MoM blocks with their pools and routers (empty for a plain GPT-2)."""
        return blocks_of(self, self.config)

    # ------------------------------------------------------------------ memory
    @property
    def memory_limit(self) -> int | None:
        """Largest number of bytes that a forward pass may plan for; None if the machine's limit is not known.

        Parameters, gradients and the optimizer's moments count, and copies of captured activations. A pass that would
        need more raises `MemoryError` before anything is allocated. Setting None takes the machine's limit,
        `mom.runtime.memory_limit`.
        """
        return self._core.memory_limit or None

    @memory_limit.setter
    def memory_limit(self, value: int | None) -> None:
        limit = (runtime.memory_limit() or 0) if value is None else seed_of(value, "memory_limit")
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
        capture: str | Sequence[str] = (),
        ranks: int = 1,
        leaves: int = 1,
    ) -> MemoryPlan:
        """Bytes that batches of this shape need. A dry run of the code that allocates memory measures them.

        Parameters
        ----------
        batch, length : int
            Sequences and tokens per sequence; all of them labelled, with a mask.
        tokens : int, optional
            For packed rows: the sum of their lengths. `length` is then the greatest of them.
        training : bool
            A training step with AdamW; otherwise a forward pass that keeps nothing.
        activation_checkpointing : bool, optional
            By default, the model's attribute decides.
        capture : str or sequence of str
            Names or patterns of places that the pass captures, as for a call.
        ranks : int
            Ranks that train together; the plan is that of one of them. `batch` counts the sequences that it computes at
            once, its part of the batch of all ranks.
        leaves : int
            With ``reproducible="ranks"``: the micro-batches that a rank has in a step, each of `batch` sequences.

        Returns
        -------
        MemoryPlan
            For the number of threads that calls use now.

        Raises
        ------
        ValueError
            If a number is out of range, or no place fits a pattern of `capture`.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"))
        >>> plan = model.memory_plan(8, 64)
        >>> plan.parameters <= plan.total
        True
        """
        checkpoint = self.activation_checkpointing if activation_checkpointing is None else activation_checkpointing
        return plan(
            self._core, self.config, batch, length, tokens=tokens, training=training,
            activation_checkpointing=checkpoint, capture=capture, ranks=ranks, leaves=leaves,
        )  # fmt: skip

    # ------------------------------------------------------------------ modes and random numbers
    def train(self: Self, mode: bool = True) -> Self:
        """Switch dropout on (where the configuration has any), or off if `mode` is False. Returns the model."""
        self.training = flag(mode, "mode")
        return self

    def eval(self: Self) -> Self:
        """Switch dropout off. Returns the model."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off within the block; afterwards training mode and `random_state` are as before."""
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
        self._core.random_state = (seed_of(value[0], "random_state"), seed_of(value[1], "random_state"))

    # ------------------------------------------------------------------ gradients
    def zero_grad(self) -> None:
        """Set all gradients to zero and forget which parameters had one."""
        self._core.zero_grad()

    def joint_loss(self, losses: Mapping[str, float]) -> float | None:
        """Sum of the terms of a pass, each times its weight; None without labels."""
        if "lm" not in losses:
            return None
        weights = self.config.loss_weights
        return sum(weights[name] * value for name, value in losses.items())

    def backward(
        self,
        lm_scale: float | None = None,
        balance_scale: float | None = None,
        *,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        """Add the gradients of the last forward pass: those of the sum of its loss terms, each times a scale.

        Parameters
        ----------
        lm_scale : float, optional
            With gradient accumulation: this micro-batch's share of the step's labelled positions. By default 1.
        balance_scale : float, optional
            By default the weight of the balance loss (`MoMConfig.loss_weights`).
        scales : mapping of str to float, optional
            A scale for each term by name, instead of the two above. Terms that it does not name get 0.

        Raises
        ------
        TypeError, ValueError
            If `scales` is no mapping, names an unknown term or comes together with another scale, or if a scale is no
            finite number.
        RuntimeError
            Without a forward pass that had labels, or when called twice for one forward pass.
        MemoryError, KeyboardInterrupt
            All gradients are then zero, those of earlier passes, too. Repeat the forward pass.
        """
        self._core.backward(self._all_scales({"lm": lm_scale, "balance": balance_scale}, scales))
        if self._captured is not None:
            self._captured.has_gradients = True

    def _all_scales(self, single: Mapping[str, float | None], scales: Any) -> dict[str, float]:
        """The scale of each term: from the arguments of `backward` for a `single` term, or from `scales`."""
        weights, given = self.config.loss_weights, {term: scale for term, scale in single.items() if scale is not None}
        if scales is None:
            return {
                term: number(scale, f"{term}_scale", -LARGEST, "a finite float32")
                for term, scale in (weights | given).items()
            }
        terms = "the terms are " + ", ".join(map(repr, weights))
        if given:
            raise ValueError(f"scales: cannot be combined with {next(iter(given))}_scale. Give all in scales; {terms}")
        if not isinstance(scales, Mapping):
            raise TypeError(f"scales: expected a mapping from terms to numbers, got {type(scales).__name__}; {terms}")
        for term in scales:
            if term not in weights:
                raise ValueError(f"scales: unknown term {term!r}; {terms}")
        return {
            term: number(scale, f"scales[{term!r}]", -LARGEST, "a finite float32") for term, scale in scales.items()
        }

    def inputs(
        self, tokens: ArrayLike, lengths: ArrayLike | None, mask: ArrayLike | None, positions: ArrayLike | None
    ) -> dict[str, Any]:
        """Arguments of the core for these tokens, which are (B, T), or (N,) with `lengths`."""
        as_tokens = as_ids if lengths is None else as_packed
        ids = as_tokens(self.ids_of(tokens, "tokens"), "tokens")
        given: dict[str, Any] = {"tokens": ids}
        if lengths is not None:
            given["lengths"] = as_packed(lengths, "lengths", "B")
        if mask is not None:
            if lengths is not None:
                raise ValueError("attention_mask: packed rows have no padding to hide; give it or lengths, not both")
            given["mask"] = as_mask(mask, ids.shape)
        if positions is not None:
            given["positions"] = like(as_tokens(positions, "positions"), ids.shape, "positions")
        return given

    def ids_of(self, tokens: ArrayLike, name: str) -> ArrayLike:
        """Ids of a text by the model's tokenizer, in which special tokens count as such; ids stay as they are."""
        if not isinstance(tokens, str):
            return tokens
        if self.tokenizer is None:
            raise DataError(f"{name}: a text, and the model has no tokenizer; set model.tokenizer, or encode it")
        ids: NDArray[np.int32] = self.tokenizer.encode(tokens, special=True)
        return ids

    def output(
        self,
        given: Mapping[str, Any],
        losses: Mapping[str, float],
        labelled: int,
        logits: NDArray[np.float32] | None,
        routes: Mapping[tuple[int, int, int], dict[str, NDArray[Any]]] | None,
        call: Call | None = None,
    ) -> ModelOutput:
        """What a call returns, from what the core returned for these `inputs`."""
        self._captured = None if call is None else call.finish()
        tokens, lengths, mask = given["tokens"], given.get("lengths"), given.get("mask")
        read = None if routes is None else read_routes(routes, self.config, tokens, lengths, mask)
        by_token = None if call is None or call.token_losses is None else call.token_losses.reshape(tokens.shape)
        joint = self.joint_loss(losses)
        loss = None if joint is None else Loss(joint)
        return ModelOutput(loss, dict(losses), logits, read, labelled, self._captured, by_token)

    def route_counts(self) -> dict[str, list[list[NDArray[np.int64] | None]]]:
        """How many choices of the last forward pass fell on each module, SKIP last: ``counts[half][block][round]``.

        The entry of a half without a router is None.
        """
        return of_rounds(self.config, self._core.route_counts)

    # ------------------------------------------------------------------ copies
    def copy(self: Self) -> Self:
        """A model with copies of the weights and of everything else but gradients and activations.

        Interventions of an open `intervene` stay with the original.
        """
        return copy.deepcopy(self)

    def with_config(self: Self, **changes: Any) -> Self:
        """A model with copies of these weights under another configuration, as `copy` makes them.

        Parameters
        ----------
        **changes
            Fields of the configuration, such as ``routing_top_k=1`` or ``depth_per_chunk=6``.

        Raises
        ------
        ConfigError
            If a field changes the name or the shape of a parameter, or is not valid.

        Examples
        --------
        >>> import mom
        >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
        >>> model.with_config(routing_top_k=1).config.routing_top_k
        1
        """
        config = self.config.replace(**changes)
        before, after = names.canonical_names(self.config), names.canonical_names(config)
        if before != after:
            other = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            raise ConfigError(
                f"{', '.join(changes)}: the weights do not fit; {other[0]} is {before.get(other[0], 'absent')} now and "
                f"would be {after.get(other[0], 'absent')}"
            )
        state = self.__getstate__()
        state["attributes"] = {**state["attributes"], "_config": config}
        model = type(self).__new__(type(self))
        model.__setstate__(state)
        return model

    def with_tensors(self: Self, config: MoMConfig, tensors: Mapping[str, ArrayLike]) -> Self:
        """A model of another configuration with these weights, and with copies of everything else.

        Parameters
        ----------
        config : MoMConfig
        tensors : mapping of str to array
            A complete set of weights under the names of `parameters`. All of them are trained in the new model.
        """
        state = self.__getstate__()
        trained = np.ones(len(tensors), np.uint8)
        state["attributes"] = {**state["attributes"], "_config": config, "_trained": trained}
        state["weights"] = dict(tensors)
        model = type(self).__new__(type(self))
        model.__setstate__(state)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """All attributes, with copies of the weights, for `copy.deepcopy` and for other processes (joblib).

        Attributes that a program or a subclass has added are among them. Gradients and the activations that `backward`
        needs are not copied. To keep a model, use `save_pretrained`.
        """
        return {
            "attributes": {name: value for name, value in vars(self).items() if name not in _OF_CORE},
            "memory_limit": self.memory_limit, "random_state": self.random_state,
            "weights": {n: v.copy() for n, v in self._parameters.items()},
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = state["attributes"]
        self._set_up(attributes["_config"], 0, attributes["_dtype"], fresh=False)
        for name, value in state["weights"].items():
            self._parameters[name] = value
        vars(self).update(attributes)
        self.random_state, self.memory_limit = state["random_state"], state["memory_limit"]
        self._select(self._trained.copy())

    # ------------------------------------------------------------------ files
    def save_pretrained(self, folder: PathLike, naming: str = "canonical", dtype: str | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and what else there is: tokenizer, defaults of `generate`.

        The folder is written beside its final place, with a manifest of sizes and hashes, then flushed and renamed.
        An existing folder is replaced only after that. `transformers` can read the folder of a plain GPT-2 with
        canonical or Hugging Face names. On several ranks, all must call this method; rank 0 writes, and the others
        wait until the folder is there.

        Parameters
        ----------
        folder : path
        naming : {"canonical", "reference", "huggingface", "bare"}
            Names of the tensors; see `mom.files.names`.
        dtype : {"float32", "bfloat16", "float16"}, optional
            What the file holds; float32 by default.
        """
        with current().failing_together():
            folders.write_folder(folder, self.pretrained_files(naming, dtype))

    def pretrained_files(self, naming: str = "canonical", dtype: str | None = None) -> dict[str, folders.Content]:
        """What `save_pretrained` writes: file names and contents, for `mom.files.folders.write_folder`."""
        tensors = names.rename(dict(self._parameters), self.config, to=naming)
        return {
            **files_beside(self, dtype),
            "model.safetensors": lambda file: weights.write_safetensors(file, tensors, {"format": "pt"}, dtype=dtype),
        }

    def load_state(self, tensors: Mapping[str, ArrayLike], source: str = "tensors") -> None:
        """Copy a complete set of weights, under any of the known namings, into the model.

        Raises
        ------
        CheckpointError
            Listing missing, unexpected and wrongly shaped names; the model is then unchanged.
        TypeError
            If `tensors` is no mapping.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors: expected a mapping of names to arrays, got {type(tensors).__name__}")
        arrays = {name: as_array(tensor, name) for name, tensor in tensors.items()}
        canonical = names.detect_and_canonicalise(arrays, self.config, source)
        for name, target in self._parameters.items():
            target[...] = canonical[name]

    @classmethod
    @takes_familiar_arguments
    def from_pretrained(cls: type[Self], folder: PathLike, dtype: str = "float32", **config_changes: Any) -> Self:
        """Read a folder written by `save_pretrained`, by the reference, or by Hugging Face's GPT-2.

        Parameters
        ----------
        folder : path or str
            Holds ``config.json`` and ``model.safetensors`` (or a sharded index), and perhaps a tokenizer. A language
            model does not read a classifier's head. A classifier gets a fresh head if the folder has none. A name on
            the Hugging Face Hub, ``"owner/name"`` or ``"hub:name"``, needs the package huggingface_hub.
        dtype : {"float32", "bfloat16"}
            As for a new model, whatever the format of the file.
        **config_changes
            Configuration fields to override.

        Raises
        ------
        CheckpointError
            If a file is missing, truncated, corrupted or does not fit the configuration.
        """
        check_dtype(dtype)
        folder = model_folder(folder)
        if kind_of(folder / "config.json") is None:
            raise CheckpointError(f"{folder}: no config.json{mention_of(folder) or folders.model_inside(folder)}")
        if kind_of(folder / folders.MANIFEST) is not None:
            folders.verify_folder(folder)
        config = MoMConfig.from_json(folder)
        tensors = weights.read_weights(folder)
        config = cls._adapt_config(config, tensors).replace(**config_changes)
        # This check comes before any memory is allocated: a configuration can promise tensors of any size.
        head = () if cls.is_classifier else ("score.weight",)
        own = {name: tensor for name, tensor in tensors.items() if name not in head}
        canonical = names.detect_and_canonicalise(own, config, str(folder), allow_missing=("score.weight",))
        model = cls.__new__(cls)
        model._set_up(
            model._check_config(config), 0, dtype, fresh=cls.is_classifier and "score.weight" not in canonical
        )
        for name, tensor in canonical.items():
            model._parameters[name] = tensor
        read_beside(model, folder, fresh_head="score.weight" not in canonical)
        return model

    @classmethod
    def resolve(cls: type[Self], model: Network | PathLike, dtype: str = "float32", *, name: str = "model") -> Self:
        """A model itself, or the one in a folder or on the Hub; `name` is that of the argument, for the message."""
        found: Any = model
        if isinstance(model, (str, os.PathLike)):
            found = cls.from_pretrained(model_folder(model, name), dtype)
        if not isinstance(found, cls):
            raise TypeError(f"{name}: expected {cls.__name__} or a path, got {type(found).__name__}")
        return found

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
        return html_table(type(self).__name__, [], self._summary(), text_columns=2)
