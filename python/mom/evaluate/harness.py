"""The model ``mom`` of lm-evaluation-harness: log-likelihoods, rolling ones, and generation up to a stop string.

Importing this module registers the model with the harness's decorator. ``mom lm_eval run --model mom --model_args
pretrained=FOLDER --tasks ...`` imports it and then runs the harness's own command in the same process.

Notes
-----
Importing this module also imports ``lm_eval`` and its dependencies. No other module of the package imports it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from .. import ops
from ..data.batches import bucketed, pack_rows
from ..errors import ConfigError, DataError
from ..interventions import Intervention, read_interventions
from ..interventions.resolve import check_rules
from ..interventions.rules import as_interventions
from ..model import Decoder, MoM
from ..runtime import set_num_threads

__all__ = ["MomLM"]

#: New tokens between two searches for stop strings.
_CHUNK = 16
#: The harness's names for the number of new tokens, the first that is given counts.
_BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
#: All generation settings that have an effect. "max_length" counts context and new tokens together.
_SETTINGS = ("until", *_BUDGETS, "max_length", "do_sample", "temperature", "top_k", "top_p")


@register_model("mom")  # type: ignore[untyped-decorator, unused-ignore]
class MomLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A `MoM` with the interface of lm-evaluation-harness.

    It computes in evaluation mode, and refuses what the harness's own Hugging Face model refuses: an answer that is
    empty or longer than the model, and a generation that leaves no room for a context. All requests are checked before
    the first is computed. If the beginning of a context is cut off, a warning says so.

    Parameters
    ----------
    pretrained : str or MoM
        Folder of a model with its tokenizer; from Python also the model itself.
    batch_size : int or str
        Requests computed together; ``"auto"`` is 8.
    max_length : int, optional
        Tokens that a request may have; by default the model's ``n_positions``. The beginning of longer ones is cut off.
    max_gen_toks : int
        Tokens to generate if a task does not say how many; less than `max_length`.
    dtype : {"float32", "bfloat16"}
        See `MoM.from_pretrained`.
    threads : int, optional
    seed : int
        Seed of the sampling, for tasks that sample. Requests are sampled independently, repeats of one request too.
    max_batch_size, device
        The harness passes these to every model. They have no effect, as the CPU computes.
    interventions : str or sequence of Intervention
        Active in all requests, see `MoM.intervene`; or the JSON file that holds them. `rows` are those of a batch. A
        warning says if one of them touched nothing.
    """

    def __init__(
        self,
        pretrained: str | MoM,
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
        threads: int | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
        interventions: str | Sequence[Intervention] = (),
    ) -> None:
        super().__init__()
        if threads is not None:
            set_num_threads(int(threads))
        self.model = MoM.resolve(pretrained, dtype, name="pretrained")
        if isinstance(interventions, str):
            interventions = read_interventions(interventions)
        self.interventions = as_interventions(interventions)
        check_rules(self.model.config, self.interventions)
        if self.model.tokenizer is None:
            raise DataError(f"pretrained: {pretrained} holds no tokenizer")
        if self.model.tokenizer.eos_id is None:
            raise DataError(f"pretrained: the tokenizer of {pretrained} has no end-of-text token")
        self.batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: {batch_size} is less than 1")
        positions = self.model.config.n_positions
        self.max_length = positions if max_length is None else int(max_length)
        if not 2 <= self.max_length <= positions:
            raise ConfigError(f"max_length: {max_length} is not in [2, {positions}], the model's n_positions")
        self.max_gen_toks = int(max_gen_toks)
        if self.max_gen_toks < 1:
            raise ConfigError(f"max_gen_toks: {max_gen_toks} is less than 1")
        self.seed = int(seed)
        self._batches_sampled = 0
        self._device = "cpu"

    # ------------------------------------------------------------------ tokens
    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token."""
        return int(self.model.tokenizer.eos_id)

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness caches requests."""
        return f"mom-{self.model.tokenizer.sha256[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, nothing added."""
        ids: list[int] = self.model.tokenizer.encode(string).tolist()
        return ids

    def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Text of ids."""
        text: str = self.model.tokenizer.decode(np.asarray(tokens, np.int64))
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The empty string: there is no chat template. If one is asked for, this raises."""
        return "" if not chat_template else self.apply_chat_template([])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raise, as no model of this package has a chat template."""
        raise ConfigError(
            "apply_chat_template: this model continues texts and has no chat template; run the harness without "
            "--apply_chat_template"
        )

    # ------------------------------------------------------------------ log-likelihoods
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer after its context, and whether the model would choose it greedily."""
        for request in requests:
            if not request.args[1]:
                raise DataError(f"{_shown(request.args)}: the answer is empty, so it has no log-likelihood")
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows, counts, cut = [], [], 0
        for pair, context, continuation in requests:
            if not continuation:
                raise DataError(
                    f"{_shown(pair)}: no token is left for the answer; its characters belong to the context's"
                )
            if len(continuation) > self.max_length:
                raise DataError(
                    f"{_shown(pair)}: the answer has {len(continuation)} tokens, "
                    f"more than max_length = {self.max_length}"
                )
            # A context of nothing but white space has no tokens, as the harness moves the white space to the answer.
            whole = np.array([*(context or [self.prefix_token_id]), *continuation], np.int32)
            # The last token is predicted but not read. Tokens that do not fit are cut off at the beginning.
            cut += len(whole) > self.max_length + 1
            rows.append(whole[-(self.max_length + 1) :])
            counts.append(len(continuation))
        self._warn_of_cuts(cut, len(rows))
        with self.model.evaluating(), self.model.intervene(self.interventions, untouched="warn"):
            return self._scores(rows, counts, disable_tqdm)

    def _scores(self, rows: list[np.ndarray], counts: list[int], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """Sum of the log-probabilities of the last `counts` tokens of each row, and whether all are greedy choices."""
        results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        batches = bucketed([len(row) for row in rows], self.batch_size)
        for chosen in tqdm(batches, disable=disable_tqdm, desc="log-likelihoods", leave=False):
            tokens, lengths = pack_rows([rows[i][:-1] for i in chosen])
            ends = np.cumsum(lengths)
            places = np.concatenate([np.arange(end - counts[i], end) for i, end in zip(chosen, ends, strict=True)])
            wanted = np.concatenate([rows[i][-counts[i] :] for i in chosen])
            logits = self.model.logits_at(tokens, places, lengths=lengths)
            losses, _lse = ops.cross_entropy_forward(logits, wanted)
            greedy = logits.argmax(axis=1) == wanted
            cuts = np.cumsum([counts[i] for i in chosen])[:-1]
            for i, loss, hit in zip(chosen, np.split(losses, cuts), np.split(greedy, cuts), strict=True):
                results[i] = (-float(loss.sum(dtype=np.float64)), bool(hit.all()))
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in the harness's windows, which overlap by one token."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            ):  # fmt: skip
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        return totals

    def _warn_of_cuts(self, cut: int, requests: int) -> None:
        if cut:
            warnings.warn(
                f"{cut} of {requests} requests do not fit into max_length = {self.max_length}: the beginnings of their "
                "contexts were cut off",
                stacklevel=3,
            )

    # ------------------------------------------------------------------ generation
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a stop string, the end-of-text token or the limit of tokens."""
        groups: dict[tuple[str, int], list[int]] = {}
        contexts: list[np.ndarray] = []
        settings: list[_Options] = []
        cut = 0
        for number, request in enumerate(requests):
            text, given = request.args
            ids = np.array(self.tok_encode(text) or [self.eot_token_id], np.int32)
            options = _Options(given, self.max_gen_toks, self.max_length, len(ids))
            room = self.max_length - options.tokens
            cut += len(ids) > room
            contexts.append(ids[-room:])
            settings.append(options)
            groups.setdefault((repr(given), options.tokens), []).append(number)
        unused = sorted({name for options in settings for name in options.unused})
        if unused:
            warnings.warn(f"generation settings without effect on this model: {', '.join(unused)}", stacklevel=2)
        self._warn_of_cuts(cut, len(requests))
        results = [""] * len(requests)
        with (
            self.model.evaluating(),
            self.model.intervene(self.interventions, untouched="warn"),
            tqdm(total=len(requests), disable=disable_tqdm, desc="generation", leave=False) as bar,
        ):
            for numbers in groups.values():
                for batch in bucketed([len(contexts[i]) for i in numbers], self.batch_size):
                    chosen = [numbers[i] for i in batch]
                    texts = self._continue([contexts[i] for i in chosen], settings[chosen[0]])
                    for i, text in zip(chosen, texts, strict=True):
                        results[i] = text
                    bar.update(len(chosen))
        return results

    def _continue(self, contexts: list[np.ndarray], options: _Options) -> list[str]:
        decoder = Decoder(self.model)
        decoder.prefill(contexts)
        left, seed = options.tokens, self._next_seed()
        made: list[list[int]] = [[] for _ in contexts]
        texts = [""] * len(contexts)
        running = list(range(len(contexts)))
        while left > 0 and running:
            new = decoder.generate(min(_CHUNK, left), seed=seed, stop_token=self.eot_token_id, **options.sampling)
            left -= _CHUNK
            going = []
            for place, number in enumerate(running):
                tokens = new[place].tolist()
                ended = tokens[-1] == self.eot_token_id
                made[number] += tokens[:-1] if ended else tokens
                text = self.tok_decode(made[number])
                cuts = [at for stop in options.until if (at := text.find(stop)) >= 0]
                texts[number] = text[: min(cuts)] if cuts else text
                if not ended and not cuts:
                    going.append(place)
            running = [running[place] for place in going]
            if running and len(going) < decoder.lengths.size:
                decoder.reorder(np.array(going))
        return texts

    def _next_seed(self) -> int:
        """A seed for each batch, so that requests in different batches are independent."""
        self._batches_sampled += 1
        digest = hashlib.blake2b(f"{self.seed}:{self._batches_sampled}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "little")


class _Options:
    """Generation settings of a request, checked against the model's length and the length of the context."""

    def __init__(self, given: Mapping[str, Any], default_tokens: int, max_length: int, context: int) -> None:
        if not isinstance(given, Mapping):
            raise ConfigError(f"generation settings: expected a mapping, got {type(given).__name__} {given!r}")
        values = {name: value for name, value in given.items() if value is not None}
        self.unused = [name for name in values if name not in _SETTINGS]
        self.until = _stop_strings(values.get("until", []))
        self.tokens = _budget(values, default_tokens, max_length, context)
        temperature = float(values.get("temperature", 0.0))
        if values.get("do_sample") and temperature <= 0.0:
            raise ConfigError(f"do_sample: needs a temperature above 0, got {temperature}; set both, or neither")
        if not values.get("do_sample", True):
            temperature = 0.0
        self.sampling: dict[str, Any] = {"temperature": temperature}
        if temperature > 0.0:
            self.sampling |= {name: values[name] for name in ("top_k", "top_p") if values.get(name)}


def _stop_strings(until: Any) -> list[str]:
    """The stop strings. Every text contains the empty string, so it stops nothing."""
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) for stop in stops):
        raise ConfigError(f"until: expected a string or a list of strings, got {until!r}")
    return [stop for stop in stops if stop]


def _budget(values: Mapping[str, Any], default: int, max_length: int, context: int) -> int:
    """How many tokens to generate: what the request says under one of its names, or else the default."""
    name = next((name for name in _BUDGETS if name in values), "max_gen_toks")
    tokens = int(values.get(name, default))
    if "max_length" in values:
        whole = int(values["max_length"])
        if not context < whole <= max_length:
            raise ConfigError(
                f"max_length: {whole} tokens for a context of {context} and its continuation; expected more than the "
                f"context and at most the model's {max_length}; use max_gen_toks instead"
            )
        tokens = min(tokens, whole - context) if name in values else whole - context
    if not 1 <= tokens < max_length:
        raise ConfigError(
            f"{name}: {tokens} new tokens; expected at least 1, and less than the model's max_length = {max_length}, "
            "so that a context fits; set it with --gen_kwargs max_gen_toks=N"
        )
    return tokens


def _shown(pair: Any) -> str:
    """A request for a message; long texts are cut."""
    text = "a window" if pair is None else " + ".join(map(repr, pair))
    return text if len(text) <= 120 else f"{text[:117]}..."
