"""Generates text token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._arguments import as_ids, count, flag, prompts, sampling
from ..interventions.layout import continued
from ..interventions.scope import Call, make_call, records_for
from .network import Network
from .routes import Routes, routes_of_rows

if TYPE_CHECKING:
    from .language_model import MoM

__all__ = ["Decoder"]

_WEIGHTS = ("float32", "bfloat16", "int8")
#: New tokens per call of the core. Ctrl-C takes effect between calls.
_CHUNK = 16


class Decoder:
    """A batch of sequences that a model continues. The work on earlier tokens is not repeated.

    Keys and values of earlier tokens are kept for every place and round. So a new token only reads the weights of its
    own modules, once. For tokens that chose no module only their number is stored.

    Parameters
    ----------
    model : MoM
        The decoder keeps it alive. It is in use while a method of the decoder runs.
    weights : {"float32", "bfloat16", "int8"}, optional
        Number format in which single tokens read the modules' matrices and the head; by default the model's dtype.
        Routers, biases, LayerNorms, embeddings, activations and the cache are always float32.
    capacity : int, optional
        Tokens per sequence to allocate for at once; the cache grows when needed.
    keep_routes : bool
        Keep how all tokens are routed, for `routes`.
    routes : Routes, optional
        Choices to force, by prompt and position. Tokens that it does not have choose freely.

    Attributes
    ----------
    lengths : ndarray of int32, shape (B,)
        Number of tokens of each sequence.
    logits : ndarray of float32, shape (B, V)
        Logits after the last token of each sequence that the model has read. The next call reads the last token that
        `generate` chose.
    bytes : int
        Memory of copied weights, cache and workspace.

    Raises
    ------
    TypeError
        For a classifier, which has no next token.
    MemoryError
        Here or in a later call, if copied weights or the cache would not fit in the model's ``memory_limit``.

    Notes
    -----
    With ``"float32"`` the model's weights are read in place. If an optimizer step or a write to
    ``model.parameters`` changes them, the next token uses the new weights. Keys and values in the cache still belong to
    the old weights; call `clear` to begin anew. With the other formats the decoder copies the weights when it is made
    and does not see later changes. int8 has one scale per output channel.

    The model's own forward pass reads a long first prompt, in the model's dtype. Shorter additions and single tokens go
    through steps. In float32, splitting a text into several calls changes results only by rounding.

    Routers of a ``random`` type draw noise for each token once, when it is added, from ``model.random_state``.

    Interventions of `MoM.intervene` apply to every call within the block. `rows` of a rule are prompts, also after
    `reorder`. Rules with `tokens` apply when that position is reached. A rule applies while a token is read: keys and
    values in the cache stay as they were computed. Activations cannot be captured here; a forward pass over the same
    tokens has them.

    Examples
    --------
    >>> import mom, numpy as np
    >>> model = mom.MoM(mom.MoMConfig.preset("demo", vocab_size=300, n_positions=32), seed=0)
    >>> decoder = mom.Decoder(model)
    >>> logits = decoder.prefill([[1, 2, 3], [4]])  # prompts of unequal length
    >>> logits = decoder.step(logits.argmax(-1))
    >>> decoder.lengths.tolist()
    [4, 2]
    >>> decoder.reorder([1, 1, 0])  # as a beam search does
    >>> [len(row) for row in decoder.generate(5)]
    [5, 5, 5]
    """

    def __init__(
        self,
        model: MoM,
        weights: str | None = None,
        capacity: int = 0,
        keep_routes: bool = False,
        routes: Routes | None = None,
    ) -> None:
        if not isinstance(model, Network) or model.is_classifier:
            raise TypeError(f"model: expected MoM, got {type(model).__name__}")
        weights = model.dtype if weights is None else weights
        if weights not in _WEIGHTS:
            raise ValueError(f"weights: {weights!r} is not one of {', '.join(map(repr, _WEIGHTS))}")
        self._capacity = count(capacity, "capacity")
        if self._capacity > model.config.n_positions:
            raise ValueError(f"capacity: {capacity} tokens, n_positions is {model.config.n_positions}")
        self._model = model
        self._core = _core.Decoder(model.core, weights)
        self._tokens: list[list[int]] = []  # of each sequence, also those that the core has not read yet
        self._prompt: list[int] = []  # the prompt that each sequence continues
        self._keep_routes = flag(keep_routes, "keep_routes")
        if routes is not None and not isinstance(routes, Routes):
            raise TypeError(f"routes: expected mom.Routes, got {type(routes).__name__}")
        self._replay = routes
        self._routes: list[list[list[tuple[NDArray[Any], ...]]]] = []  # of each sequence and call: see `Call.records`
        self._read: list[int] = []  # tokens of each sequence that the core reads in the call at hand
        self._draws = 0  # sampled tokens per sequence: later calls of generate draw other numbers

    @property
    def model(self) -> MoM:
        """The model."""
        return self._model

    @property
    def weights(self) -> str:
        """Number format of the weights."""
        return self._core.weights

    @property
    def lengths(self) -> NDArray[np.int32]:  # noqa: D102
        return self._core.lengths

    @property
    def logits(self) -> NDArray[np.float32]:  # noqa: D102
        return self._core.logits

    @property
    def bytes(self) -> int:  # noqa: D102
        return self._core.bytes

    def prefill(self, tokens: ArrayLike | Sequence[ArrayLike]) -> NDArray[np.float32]:
        """Begin with prompts, or append several tokens to every sequence.

        Parameters
        ----------
        tokens : array of int, shape (B, T), or a list of B 1-D arrays
            Of any length of at least 1; a single 1-D array is one sequence.

        Returns
        -------
        ndarray of float32, shape (B, V)
            Logits after the last token of each sequence.

        Raises
        ------
        ValueError
            If a sequence would have more than ``n_positions`` tokens; nothing is appended then.
        """
        rows, _ = prompts(tokens, "tokens")
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        padded = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
        for b, row in enumerate(rows):
            padded[b, : len(row)] = row
        if self._tokens and len(rows) != len(self._tokens):
            raise ValueError(f"tokens: {len(rows)} rows, expected {len(self._tokens)}, one per sequence")
        changes = self._changes(rows)
        logits = self._core.prefill(padded, lengths, None if changes is None else changes.core)
        self._appended(rows, changes)
        if self._capacity:
            self._core.reserve(self._capacity)
        return logits

    def step(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Append one token to every sequence.

        Parameters
        ----------
        tokens : array of int, shape (B,)

        Returns
        -------
        ndarray of float32, shape (B, V)
            Logits after these tokens.
        """
        ids = as_ids(tokens, "tokens")
        if ids.shape[0] != 1:
            raise ValueError(f"tokens: shape {np.shape(tokens)}, expected (B,)")
        if self._tokens and ids.shape[1] != len(self._tokens):
            raise ValueError(f"tokens: {ids.shape[1]} rows, expected {len(self._tokens)}, one per sequence")
        rows = list(ids[0][:, None])
        changes = self._changes(rows)
        logits = self._core.step(ids[0], None if changes is None else changes.core)
        self._appended(rows, changes)
        return logits

    @property
    def _follows(self) -> bool:
        """Whether every token has to be known before the core reads it."""
        return bool(self._model.scopes) or self._keep_routes or self._replay is not None

    def _changes(self, added: list[NDArray[np.int32]], finished: NDArray[np.uint8] | None = None) -> Call | None:
        """What the model's interventions give to the core when these tokens are added to each sequence.

        The core reads a chosen token, which is the last of `_tokens`, before the tokens that are added. With `finished`
        nothing is added, and only sequences that go on read theirs.
        """
        if not self._follows:
            return None
        if self._replay is not None and not self._tokens and self._replay.rows != len(added):
            raise ValueError(f"routes: are of {self._replay.rows} sequences, there are {len(added)} prompts")
        if self._tokens and [len(row) for row in self._tokens] != self.lengths.tolist():
            raise RuntimeError(
                "decoder: an interrupted generate has chosen tokens that rules and routes cannot know; call clear"
            )
        known = self._tokens or [[] for _ in added]
        pending = self._core.pending if self._tokens else np.full(len(added), -1)
        parts = []
        for b, new in enumerate(added):
            reads = int(pending[b]) >= 0 and (len(new) > 0 if finished is None else not finished[b])
            start = len(known[b]) - (1 if pending[b] >= 0 else 0)
            ids = np.array([*known[b][start : start + reads], *new], np.int32)
            parts.append((self._prompt[b] if self._tokens else b, start, ids, known[b][:start]))
        self._read = [len(ids) for _, _, ids, _ in parts]
        layout = continued(parts)
        if not len(layout.tokens):
            return None
        call = make_call(
            self._model.config, layout, self._model.scopes, routes=self._replay, always=self._keep_routes
        )
        if call is not None and self._keep_routes:
            call.records = records_for(self._model.config, call, len(layout.tokens))
        return call

    def _appended(self, rows: list[NDArray[np.int32]], changes: Call | None) -> None:
        if not self._tokens:
            self._tokens, self._prompt = [[] for _ in rows], list(range(len(rows)))
            self._routes = [[] for _ in rows]
        for tokens, new, length in zip(self._tokens, rows, self.lengths.tolist(), strict=True):
            tokens.extend(int(token) for token in new)
            del tokens[length:]  # stop tokens that fill up finished rows
        if changes is None:
            return
        if self._keep_routes:
            ends = np.cumsum(self._read)
            for own, count, end in zip(self._routes, self._read, ends, strict=True):
                if count:
                    own.append([tuple(a[end - count : end] for a in record[3:]) for record in changes.records])
        changes.finish()

    def generate(
        self,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_token: int | Sequence[int] | None = None,
    ) -> list[NDArray[np.int32]]:
        """Choose and append tokens; see `MoM.generate` for the parameters and which ids can be chosen.

        Returns
        -------
        list of ndarray of int32
            The new tokens of each sequence, a stop token included.
        """
        lengths = self.lengths
        if not lengths.size:
            raise RuntimeError("generate: there are no sequences yet; begin with prefill")
        longest = int(lengths.max())
        new, temperature, kept, mass, seed, stops = sampling(
            self._model.config, max_new_tokens, temperature, top_k, top_p, seed, stop_token, longest
        )
        stop = stops[0] if len(stops) == 1 else -1  # the core knows a single one
        self._core.reserve(longest + new)
        finished = np.zeros(lengths.size, dtype=np.uint8)
        tokenizer = self._model.tokenizer
        choices = 0 if tokenizer is None else tokenizer.vocab_size
        unused = None if tokenizer is None else tokenizer.unused_ids(self._model.config.vocab_size)
        banned = unused if unused is not None and len(unused) else None
        chunks = [np.zeros((0, lengths.size), np.int32)]
        made = 0
        step = _CHUNK if len(stops) < 2 and not self._follows else 1
        while made < new and not finished.all():
            changes = self._changes([np.zeros(0, np.int32)] * lengths.size, finished)
            chunk = self._core.generate(
                min(step, new - made), temperature, kept, mass, seed, self._draws, stop, finished, choices,
                banned, None if changes is None else changes.core,
            )  # fmt: skip
            self._appended(list(chunk.T), changes)
            chunks.append(chunk)
            made += len(chunk)
            self._draws += len(chunk)
            if len(stops) > 1:
                finished |= np.isin(chunk[-1], stops)
        rows = np.concatenate(chunks).T
        if not stops:
            return [row.copy() for row in rows]
        ends = [np.flatnonzero(np.isin(row, stops)) for row in rows]
        return [row[: end[0] + 1 if end.size else None].copy() for row, end in zip(rows, ends, strict=True)]

    def reorder(self, rows: ArrayLike) -> None:
        """Make sequence i what sequence ``rows[i]`` was, as a beam search needs.

        Parameters
        ----------
        rows : array of int, shape (B',)
            A row may occur more than once; its cache is then copied. The cache of a row that does not occur is freed.
        """
        order = as_ids(rows, "rows").reshape(-1)
        self._core.reorder(order)
        self._tokens = [list(self._tokens[row]) for row in order]
        self._prompt = [self._prompt[row] for row in order]
        self._routes = [list(self._routes[row]) for row in order]

    def clear(self) -> None:
        """Forget all sequences; the next `prefill` begins a new batch."""
        self._core.clear()
        self._draws = 0
        self._tokens, self._prompt, self._routes = [], [], []

    @property
    def routes(self) -> Routes:
        """How every token that was read has been routed, with `keep_routes`.

        Returns
        -------
        Routes
            Packed rows: a row for each sequence, with the tokens that the model has read. The token that `generate`
            chose last is missing, as no pass has read it yet. Arrays have as many choices as the call that kept most.

        Raises
        ------
        RuntimeError
            Without `keep_routes`, or if there are no sequences.
        """
        if not self._keep_routes:
            raise RuntimeError("routes: are not kept; use Decoder(model, keep_routes=True)")
        if not self._tokens:
            raise RuntimeError("routes: there are no sequences yet; begin with prefill")
        waiting = self._core.pending >= 0
        read = [row[: len(row) - pending] for row, pending in zip(self._tokens, waiting.tolist(), strict=True)]
        return routes_of_rows(self._model.config, read, self._routes)

    def route(self, place: int, round: int = 0, half: str = "attn") -> dict[str, NDArray[Any]] | None:
        """How the last token of every sequence was routed.

        Parameters
        ----------
        place : int
            Entry of ``transformer.h``, as ``model.blocks[i].place``.
        round : int
        half : {"attn", "ffn"}

        Returns
        -------
        dict of ndarray, or None for a half without a router
            ``scores`` (B, S), ``index`` (B, K) and ``weight`` (B, K), as in `Routes`.
        """
        if half not in ("attn", "ffn"):
            raise ValueError(f"half: expected 'attn' or 'ffn', got {half!r}")
        return self._core.route(place, round, ("attn", "ffn").index(half))

    def __repr__(self) -> str:
        return f"<Decoder: {self.lengths.size} sequences, {self.weights} weights>"
