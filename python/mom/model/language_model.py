"""The language model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import PathLike, as_ids, as_packed, count, flag, flags, like, prompts, sampling
from ..config import MoMConfig
from ..errors import ConfigError, DataError
from ..familiar import takes_familiar_arguments
from ..files import names
from ..interventions.rules import Intervention
from .beam import beam_search
from .decoder import Decoder
from .network import Network
from .output import ModelOutput
from .routes import Routes

__all__ = ["MoM"]

#: Ids of one prompt or of several.
Prompts = NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]] | Sequence[NDArray[np.integer[Any]]]
#: Prompts and their continuations.
Continued = NDArray[np.int32] | list[NDArray[np.int32]]


class MoM(Network):
    """A Mixture-of-Modules (or plain GPT-2) language model.

    Parameters
    ----------
    config : MoMConfig
    seed : int
        Of the initial weights and of the random streams.
    dtype : {"float32", "bfloat16"}
        Number format of stored activations and of the factors of products. All else is float32: weights, gradients,
        optimizer state, sums, the residual stream, router scores, softmaxes, LayerNorm statistics and losses.

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

    @takes_familiar_arguments
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
        routes: Routes | None = None,
        interventions: Sequence[Intervention] = (),
        capture: str | Sequence[str] = (),
        return_token_losses: bool = False,
    ) -> ModelOutput:
        """Forward pass.

        Parameters
        ----------
        tokens : array of int, shape (B, T), or (N,) with `lengths`; or str
            Ids below ``vocab_size``; T at most ``n_positions``. A text is encoded by the model's tokenizer.
        labels : array of int, as `tokens`, or str, optional
            Usually the tokens themselves. Position t is scored against label t + 1 of the same sequence; -100 is
            ignored.
        attention_mask : array of 0/1, shape (B, T), optional
            0 hides a token from all queries and leaves it out of the balance loss. Positions and routing ignore the
            mask. The embedding of a hidden token may be NaN, unless hidden tokens of its row are scored.
        return_logits, return_routes : bool
            Also return logits (B, T, V) or (N, V), or how the tokens were routed. Logits of a text are returned anyway
            if it has no labels.
        lengths : array of int, shape (B,), optional
            The tokens are packed: B sequences of these lengths, one after the other, N tokens without padding. Not
            together with `attention_mask`.
        positions : array of int, as `tokens`, optional
            Position ids; by default 0, 1, 2, ... in every sequence.
        keep : bool, optional
            Keep what `backward` needs; by default exactly when there are labels.
        routes : Routes, optional
            Choices to force, of the same tokens. Weights are computed anew from the live scores, so that gradients
            reach the routers. A model's own routes give the same bits.
        interventions : sequence of Intervention
            What to change in this call, see `mom.interventions`; beside those of `intervene`.
        capture : str or sequence of str
            Names of places, or shell patterns, whose activations `ModelOutput.captured` shall have. All rows are
            computed then.
        return_token_losses : bool
            Also return the loss of every prediction, `ModelOutput.token_losses`.

        Returns
        -------
        ModelOutput

        Raises
        ------
        ValueError, TypeError
            The message names the argument, what came and what was expected. The model stays usable.
        MemoryError
            If the batch needs more than `memory_limit`. The message has both figures, and nothing has changed.

        Notes
        -----
        Packed rows cost no more than their own tokens. Compare them with the same rows in a padded batch with an
        `attention_mask`, where padding has label -100 and positions count real tokens. Losses, gradients, logits and
        routes are the same, and the balance loss is a mean over real tokens in both. Two things do depend on padding.
        Padding is routed, so a module that only padding has chosen counts in `has_gradient`. And random numbers (of
        dropout and ``random`` routers) are drawn by place in the batch.

        If less than three quarters of the tokens have labels, the other tokens cost less in the last round, unless
        that round is routed or `return_logits` asks for all logits. Results are the same up to rounding.
        """
        return_logits, return_routes = flags(return_logits=return_logits, return_routes=return_routes)
        return_token_losses = flag(return_token_losses, "return_token_losses")
        return_logits = return_logits or (isinstance(tokens, str) and labels is None)
        given = self.inputs(tokens, lengths, attention_mask, positions)
        keep = labels is not None if keep is None else flag(keep, "keep")
        if return_token_losses and labels is None:
            raise ValueError("return_token_losses: needs labels")
        call = self.call_of(given, interventions, routes, capture, keep, return_token_losses)
        shape = given["tokens"].shape
        losses, labelled, logits, found = self._core.forward(
            **given,
            labels=None if labels is None else self._labels(labels, given),
            keep=keep,
            training=flag(self.training, "training"),
            checkpoint=flag(self.activation_checkpointing, "activation_checkpointing"),
            logits=return_logits,
            routes=return_routes,
            interventions=None if call is None else call.core,
        )
        if logits is not None:
            logits = logits.reshape(*shape, self.config.vocab_size)
        return self.output(given, losses, labelled, logits, found, call)

    def _labels(self, labels: ArrayLike, given: Mapping[str, Any]) -> NDArray[np.int32]:
        """Labels of the tokens in `given`, checked. A warning says if they seem to be shifted already."""
        as_labels, tokens = as_packed if "lengths" in given else as_ids, given["tokens"]
        found = like(as_labels(self.ids_of(labels, "labels"), "labels"), tokens.shape, "labels")
        next_tokens = tokens[0, 1:] if tokens.ndim == 2 else tokens[1:]
        scored = found[0, :-1] if tokens.ndim == 2 else found[:-1]
        if len(scored) > 3 and np.array_equal(scored, next_tokens) and not np.array_equal(found, tokens):
            warnings.warn(
                "labels: are shifted already, and the model shifts them once more, so that it learns the token after "
                "the next; for the next token, give labels=tokens",
                stacklevel=4,
            )
        return found

    def logits_at(
        self,
        tokens: ArrayLike,
        rows: ArrayLike,
        attention_mask: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> NDArray[np.float32]:
        """Logits at some tokens only, which costs less than logits at all of them.

        Parameters
        ----------
        tokens, attention_mask, lengths, positions, interventions
            As for a forward pass.
        rows : array of int, shape (R,)
            Numbers of tokens, counted through the batch row by row.

        Returns
        -------
        ndarray of float32, shape (R, V)
        """
        wanted = as_packed(rows, "rows", "R")
        given = self.inputs(tokens, lengths, attention_mask, positions)
        call = self.call_of(given, interventions)
        logits = self._core.forward(
            **given, training=flag(self.training, "training"), rows=wanted, logits=True,
            interventions=None if call is None else call.core,
        )[2]  # fmt: skip
        assert logits is not None
        if call is not None:
            call.finish()
        return logits

    @overload
    def generate(self, prompt: str, max_new_tokens: int | None = None, **settings: Any) -> str: ...

    @overload
    def generate(self, prompt: list[str], max_new_tokens: int | None = None, **settings: Any) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Prompts, max_new_tokens: int | None = None, *, return_routes: Literal[True], **settings: Any
    ) -> tuple[Continued, Routes]: ...

    @overload
    def generate(
        self,
        prompt: Prompts,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_token: int | Sequence[int] | None = None,
        weights: str | None = None,
        return_routes: Literal[False] = False,
        routes: Routes | None = None,
        num_beams: int = 1,
        interventions: Sequence[Intervention] = (),
    ) -> Continued: ...

    @takes_familiar_arguments  # type: ignore[misc]  # settings that the overloads leave open are checked here
    def generate(
        self,
        prompt: Prompts | str | list[str],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_token: int | Sequence[int] | None = None,
        weights: str | None = None,
        return_routes: bool = False,
        routes: Routes | None = None,
        num_beams: int = 1,
        interventions: Sequence[Intervention] = (),
    ) -> Any:
        """Continue one prompt or a batch of prompts of possibly unequal length.

        Parameters
        ----------
        prompt : array of int, shape (T,) or (B, T), or a list of 1-D arrays; or str, or list of str
            Token ids; each prompt has at least one token, and prompt plus new tokens must fit ``n_positions``. Texts
            are continued one by one as by `generate_text`.
        max_new_tokens : int, optional
            May only be left out if the model has a default.
        temperature : float, optional
            0 is greedy. Otherwise logits are divided by the temperature before sampling.
        top_k, top_p : optional
            Sample among the `top_k` most probable tokens, or among the fewest tokens that together reach probability
            `top_p`.
        seed : int
            Of the sampling.
        stop_token : int or sequence of int, optional
            A row ends after producing this token, or one of these.
        weights : {"float32", "bfloat16", "int8"}, optional
            Number format in which single tokens read the weights, see `Decoder`; by default the model's dtype.
        return_routes : bool
            Also return how prompts and new tokens were routed while they were read.
        routes : Routes, optional
            Choices to force, such as those that an earlier call has returned. They count by prompt and position; tokens
            that they do not have choose freely.
        num_beams : int
            Above 1, the best continuation by beam search, which is not sampled and takes one `stop_token` at most; see
            `mom.model.beam_search`.
        interventions : sequence of Intervention
            What to change in this call, see `mom.interventions`; beside those of `intervene`.

        Returns
        -------
        ndarray of int32 or list of them
            Prompt and continuation: 1-D for one prompt, (B, T + new) for an array of prompts without
            `stop_token`, else a list. Texts for texts.
        Routes
            With `return_routes`: of packed rows, one for each prompt. The last token of a row is chosen but not read by
            any pass, so it has no routes, and each row is one token shorter than the continuation.

        Notes
        -----
        Arguments that are left out have the values of ``model.generation``, which come from the model's
        ``generation_config.json``. Without such a file, `temperature` is 0 and there is no other default.

        Keys and values of earlier tokens are cached: see `Decoder`, which also takes single steps.

        A model can have more ids than its tokenizer has tokens, as vocabularies are often rounded up and some have
        holes. Such ids are never chosen. Sampling is among the other ids, as if these did not exist.
        """
        settings: dict[str, Any] = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "stop_token": stop_token,
        }  # fmt: skip
        texts = [prompt] if isinstance(prompt, str) else prompt
        with self.intervene(interventions) if interventions else contextlib.nullcontext():
            if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
                if self.tokenizer is None:
                    raise DataError("prompt: a text, and the model has no tokenizer; set model.tokenizer, or encode it")
                settings |= {"weights": weights, "routes": routes, "num_beams": num_beams}
                given = {name: value for name, value in settings.items() if value is not None}
                made = [self.generate_text(t, max_new_tokens, return_routes=return_routes, **given) for t in texts]
                return made[0] if isinstance(prompt, str) else made
            return_routes = flag(return_routes, "return_routes")
            rows, single = prompts(prompt)
            added, decoder = self._continue(rows, max_new_tokens, settings, weights, return_routes, routes, num_beams)
        joined = [np.concatenate([row, tokens]) for row, tokens in zip(rows, added, strict=True)]
        stacked = isinstance(prompt, np.ndarray) and stop_token is None
        result = joined[0] if single else np.stack(joined) if stacked else joined
        return result if decoder is None or not return_routes else (result, decoder.routes)

    def _continue(
        self, rows: list[NDArray[np.int32]], new: int | None, settings: dict[str, Any], weights: str | None,
        return_routes: bool, routes: Routes | None, num_beams: int,
    ) -> tuple[list[NDArray[np.int32]], Decoder | None]:  # fmt: skip
        """New tokens of each prompt, and the decoder if one was needed. `settings` are those of the sampling."""
        longest, defaults = max(len(row) for row in rows), self.generation
        new = defaults.new_tokens(longest) if new is None else new
        if new is None:
            raise TypeError("max_new_tokens: missing, and the model has no default for it")
        by_beams = count(num_beams, "num_beams", 1) > 1
        if by_beams and (return_routes or any(settings[name] for name in ("temperature", "top_k", "top_p"))):
            raise ValueError("num_beams: above 1, nothing is sampled (temperature, top_k, top_p), nor are routes kept")
        if not by_beams:
            drawn = {name: getattr(defaults, name) for name in ("temperature", "top_k", "top_p")}
            settings |= {name: value for name, value in drawn.items() if settings[name] is None}
        stops = sampling(  # checked before any work
            self.config, new, 0.0 if settings["temperature"] is None else settings["temperature"], settings["top_k"],
            settings["top_p"], settings["seed"], settings["stop_token"], longest,
        )[-1]  # fmt: skip
        if not new and not return_routes:
            return [np.zeros(0, np.int32)] * len(rows), None
        decoder = Decoder(self, weights, keep_routes=return_routes, routes=routes)
        if by_beams:
            return self._by_beams(decoder, rows, new, num_beams, stops), decoder
        decoder.prefill(rows)
        return decoder.generate(new, **settings), decoder

    def _by_beams(
        self, decoder: Decoder, rows: list[NDArray[np.int32]], new: int, num_beams: int, stops: list[int]
    ) -> list[NDArray[np.int32]]:
        """The best continuation of each prompt."""
        if len(stops) > 1:
            raise ValueError(f"stop_token: {stops}; with num_beams above 1, there can be one")
        excluded = () if self.tokenizer is None else self.tokenizer.unused_ids(self.config.vocab_size)
        stop = stops[0] if stops else None
        found = beam_search(decoder, rows, new, num_beams=num_beams, stop_token=stop, excluded=excluded)
        return [np.asarray(hypothesis.tokens, np.int32) for hypothesis in found]

    def generate_text(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> str:
        """Continue a text with the model's tokenizer.

        Parameters
        ----------
        prompt : str
            An empty one begins a document.
        max_new_tokens : int, optional
            By default as ``model.generation`` says, or else 100; fewer if no more fit. The end-of-text token ends the
            text, and so do the ``stop_tokens`` of ``model.generation``.
        **sampling
            As for `generate`.

        Returns
        -------
        str
            Prompt and continuation.

        Raises
        ------
        DataError
            If there is no tokenizer, or the prompt is empty and the tokenizer has no end-of-text token to begin with.
        """
        if self.tokenizer is None:
            raise DataError("tokenizer: the model has none")
        if sampling.get("return_routes"):
            raise TypeError("return_routes: a text has none; use generate with the tokenizer's ids")
        end, begin = self.tokenizer.eos_id, self.tokenizer.bos_id
        ids = self.tokenizer.encode(prompt, special=True)
        begun = len(ids)
        if begun == 0 and begin is None:
            raise DataError("prompt: is empty, and the tokenizer has no end-of-text token to begin with")
        if begun == 0 or (self.tokenizer.settings.add_bos and ids[0] != begin):
            ids = np.concatenate([[begin], ids]).astype(np.int32)
        if max_new_tokens is None:
            most = self.generation.new_tokens(len(ids))
            max_new_tokens = max(1, min(100 if most is None else most, self.config.n_positions - len(ids)))
        stops = [*([] if end is None else [end]), *self.generation.stop_tokens]
        tokens = self.generate(ids, max_new_tokens, **{"stop_token": stops or None, **sampling})
        text: str = self.tokenizer.decode(tokens[len(ids) - begun :])
        return text

    @classmethod
    def from_vanilla(
        cls,
        gpt2: MoM | PathLike,
        config: MoMConfig,
        seed: int = 0,
        copy_final_norm: bool | None = None,
        copy_single_modules: bool | None = None,
        dtype: str | None = None,
    ) -> MoM:
        """Phase two of the recipe: a plain GPT-2's layers become modules and anchor layers.

        Layer j of a chunk becomes attention module j and feed-forward module j, as far as the pools go. Embeddings and
        anchor layers are copied. Routers start fresh from `seed`. A warning says if the plain model does not have
        ``config.vanilla_layers()`` layers; surplus layers are left out, and missing ones start fresh.

        Parameters
        ----------
        gpt2 : MoM or path
            A plain GPT-2 (model or folder) of the same width.
        config : MoMConfig
            Of the new model.
        copy_final_norm, copy_single_modules : bool, optional
            Whether to copy the final LayerNorm, and whether to fill halves that have a single module. By default
            `config` decides; its own default is True. The reference does neither.
        dtype : str, optional
            As for a new model; by default that of `gpt2`.

        Raises
        ------
        ConfigError
            If the two do not fit together.
        """
        if not isinstance(config, MoMConfig):
            raise TypeError(f"config: expected MoMConfig, got {type(config).__name__}")
        source = MoM.resolve(gpt2, name="gpt2")
        if not source.config.is_vanilla:
            raise ConfigError("gpt2: expected a plain GPT-2 (chunks = 0)")
        for name in ("vocab_size", "n_positions", "n_embd", "n_head", "inner_size"):
            if getattr(source.config, name) != getattr(config, name):
                raise ConfigError(
                    f"config: {name} = {getattr(config, name)}, the plain model has {getattr(source.config, name)}"
                )
        model = cls(config, seed=seed, dtype=source.dtype if dtype is None else dtype)
        mapping = names.vanilla_mapping(config, copy_final_norm, copy_single_modules)
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
        model._prefer_vanilla_path()
        model.tokenizer, model.generation = source.tokenizer, source.generation
        return model

    def _prefer_vanilla_path(self) -> None:
        """Raise the bias with which round r prefers module r, as the plain model's layers follow one another."""
        bias, rounds = self.config.vanilla_path_bias, self.config.rounds
        for block in self.blocks if bias else []:
            for pool, router in ((block.attention_pool, block.attention_router), (block.ffn_pool, block.ffn_router)):
                if router is not None:
                    name = next(name for name in router.parameters if name in ("router.bias", "router.2.bias"))
                    by_round = router.parameters[name].reshape(rounds, -1)
                    by_round[np.arange(rounds), np.arange(rounds) % len(pool)] += np.float32(bias)
