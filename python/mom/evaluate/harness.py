"""The model ``mom`` of lm-evaluation-harness: log-likelihoods, rolling ones, and generation up to a stop string.

Importing this module registers the model with the harness's decorator. ``mom lm_eval run --model mom --model_args
pretrained=FOLDER --tasks ...`` imports it and then runs the harness's own command in the same process.

Notes
-----
Importing this module also imports ``lm_eval`` and its dependencies. No other module of the package imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm.auto import tqdm

from .. import ops
from ..data.batches import bucketed, pack_rows
from ..errors import ConfigError, DataError
from ..model import Decoder, MoM
from ..runtime import set_num_threads

__all__ = ["MomLM"]

#: New tokens between two searches for stop strings.
_CHUNK = 16


@register_model("mom")  # type: ignore[untyped-decorator, unused-ignore]
class MomLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """A `MoM` with the interface of lm-evaluation-harness.

    Parameters
    ----------
    pretrained : str or MoM
        Folder of a model with its tokenizer; from Python also the model itself.
    batch_size : int or str
        Requests computed together; ``"auto"`` is 8.
    max_length : int, optional
        Tokens that a request may have; by default the model's ``n_positions``. The beginning of longer ones is cut off.
    max_gen_toks : int
        Tokens to generate if a task does not say how many.
    dtype : {"float32", "bfloat16"}
        See `MoM.from_pretrained`.
    threads : int, optional
    seed : int
        Seed of the sampling, for tasks that sample.
    max_batch_size, device
        The harness passes these to every model. They have no effect, as the CPU computes.
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
    ) -> None:
        super().__init__()
        if threads is not None:
            set_num_threads(int(threads))
        self.model = MoM.resolve(pretrained, dtype, name="pretrained")
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
        self.seed = int(seed)
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

    # ------------------------------------------------------------------ log-likelihoods
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows, counts = [], []
        for _pair, context, continuation in requests:
            # The last token is predicted but not read. Tokens that do not fit are cut off at the beginning.
            whole = np.array([*context, *continuation], np.int32)[-(self.max_length + 1) :]
            rows.append(whole)
            counts.append(min(len(continuation), len(whole) - 1))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        scored = np.flatnonzero(np.array(counts) > 0)
        batches = bucketed([len(rows[i]) for i in scored], self.batch_size)
        for batch in tqdm(batches, disable=disable_tqdm, desc="log-likelihoods", leave=False):
            chosen = scored[batch]
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

    # ------------------------------------------------------------------ generation
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a stop string, the end-of-text token or the limit of tokens."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        results = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generation", leave=False) as bar:
            for numbers in groups.values():
                options = _Options(requests[numbers[0]].args[1], self.max_gen_toks)
                room = self.max_length - min(options.tokens, self.max_length - 1)
                contexts = []
                for number in numbers:
                    ids = self.tok_encode(requests[number].args[0])[-room:]
                    contexts.append(np.array(ids or [self.eot_token_id], np.int32))
                for chosen in bucketed([len(ids) for ids in contexts], self.batch_size):
                    texts = self._continue([contexts[i] for i in chosen], options)
                    for i, text in zip(chosen, texts, strict=True):
                        results[numbers[i]] = text
                    bar.update(len(chosen))
        return results

    def _continue(self, contexts: list[np.ndarray], options: _Options) -> list[str]:
        decoder = Decoder(self.model)
        decoder.prefill(contexts)
        left = min(options.tokens, self.max_length - max(len(ids) for ids in contexts))
        made: list[list[int]] = [[] for _ in contexts]
        texts = [""] * len(contexts)
        running = list(range(len(contexts)))
        while left > 0 and running:
            new = decoder.generate(min(_CHUNK, left), seed=self.seed, stop_token=self.eot_token_id, **options.sampling)
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


class _Options:
    """Generation settings of a request."""

    def __init__(self, given: dict[str, Any], default_tokens: int) -> None:
        values = dict(given)
        until = values.pop("until", None) or []
        self.until: list[str] = [until] if isinstance(until, str) else list(until)
        names = ("max_gen_toks", "max_new_tokens", "max_tokens")
        self.tokens = int(next((values[name] for name in names if values.get(name)), default_tokens))
        temperature = float(values.get("temperature") or 0.0)
        if not values.get("do_sample", temperature > 0.0):
            temperature = 0.0
        self.sampling: dict[str, Any] = {"temperature": temperature}
        if temperature > 0.0:
            self.sampling |= {name: values[name] for name in ("top_k", "top_p") if values.get(name)}
