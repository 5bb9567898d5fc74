"""Perplexity and bits per byte of texts, file by file, with overlapping windows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike
from ..data import TokenFile
from ..data.same_tokenizer import warn_of_other_tokenizer
from ..data.sources import Documents, Piece, TextDocuments, pieces_for
from ..distributed import current
from ..errors import ConfigError, DataError
from ..interventions.rules import Intervention
from ..model import MoM
from ..model.token_loss import token_loss
from ..training import evaluate_loss
from ..training.records import perplexity_of

__all__ = ["TextLoss", "TokenFileLoss", "text_losses", "token_file_loss"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts a text.

    Attributes
    ----------
    name : str
        File, or ``"total"``.
    nats : float
        Sum of the negative log probabilities of all scored tokens.
    tokens, bytes, documents : int
        Scored tokens, the bytes of their text in UTF-8, and the number of documents.
    """

    name: str
    nats: float
    tokens: int
    bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """``exp(loss)``. It only compares models with the same tokenizer."""
        return perplexity_of(self.loss) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text. It compares any models."""
        return self.nats / math.log(2.0) / self.bytes if self.bytes else math.nan


def text_losses(
    model: MoM,
    sources: PathLike | Sequence[PathLike] | Documents | TextDocuments,
    *,
    tokenizer: Any = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    key: str = "text",
    split: str = "file",
    on_error: str = "raise",
    interventions: Sequence[Intervention] = (),
) -> list[TextLoss]:
    """Perplexity and bits per byte of texts.

    Every document is scored on its own, after an end-of-text token if the tokenizer has one, or after its ``bos_token``
    if texts begin with that. Each of its tokens counts exactly once. Long documents are covered by windows that
    overlap. A window scores only the tokens that the window before did not reach; its other tokens are context.

    Parameters
    ----------
    model : MoM
    sources : path, sequence of paths, Documents or TextDocuments
    tokenizer : Tokenizer, optional
        By default the model's.
    window : int, optional
        Tokens the model sees at once; by default its ``n_positions``.
    stride : int, optional
        Tokens from one window to the next, at most ``window - 1``; by default half a window. A smaller stride is slower
        and gives more context.
    batch_size : int
        Windows computed together; without effect on the result.
    key, split, on_error
        See `mom.data.Documents`.
    interventions : sequence of Intervention
        Active throughout, see `MoM.intervene`. Positions are those within a window.

    Returns
    -------
    list of TextLoss
        One per file, in the order of reading, and at the end their sum, named ``"total"``.

    Raises
    ------
    DataError
        If a text cannot be read, nothing can be scored, or there is no tokenizer.
    ValueError
        If `window` or `stride` is out of range.
    """
    tokenizer = model.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise DataError("tokenizer: the model has none; name one")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"tokenizer: {tokenizer.vocab_size} tokens, more than the model's vocab_size = {model.config.vocab_size}"
        )
    window, stride = _window_and_stride(model, window, stride)
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    parts: list[tuple[str, Documents | TextDocuments]]
    if isinstance(sources, (Documents, TextDocuments)):
        parts = [(", ".join(sources.names), sources)]
    else:
        files = Documents(sources, key=key, split=split, on_error=on_error).files
        parts = [(str(file), Documents(file, key=key, split=split, on_error=on_error)) for file in files]
    with current().failing_together(), model.intervene(interventions):
        results = [_one_part(model, tokenizer, name, docs, window, stride, batch_size) for name, docs in parts]
    sums = {name: sum(getattr(result, name) for result in results) for name in ("nats", "tokens", "bytes", "documents")}
    if not sums["tokens"]:
        raise DataError(f"{results[0].name}: no text to score")
    return [*results, TextLoss("total", **sums)]


@dataclass(frozen=True)
class TokenFileLoss:
    """How well a model predicts a token file.

    Attributes
    ----------
    path : Path
    tokens, sequence_length : int
        Tokens in all windows; tokens of a window.
    left_out : int
        Tokens of the file after the last window: its tail, which fills no window, and what `batches` excludes.
    loss : float
        Nats per predicted token.
    seconds : float
        What it took.
    """

    path: Path
    tokens: int
    sequence_length: int
    loss: float
    seconds: float
    left_out: int = 0

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return perplexity_of(self.loss)


def token_file_loss(
    model: MoM,
    data: PathLike,
    *,
    sequence_length: int | None = None,
    batch_size: int = 8,
    batches: int | None = None,
    interventions: Sequence[Intervention] = (),
) -> TokenFileLoss:
    """Loss and perplexity on a token file, in windows that do not overlap.

    Parameters
    ----------
    model : MoM
    data : path
        A token file, or a folder made by `mom.data.prepare`: its ``val.bin``, or ``train.bin`` if there is none.
    sequence_length : int, optional
        Tokens of a window; by default the model's ``n_positions``, at most 1024.
    batch_size : int
        Windows computed together.
    batches : int, optional
        At most so many batches; by default the whole file.
    interventions : sequence of Intervention
        Active throughout, see `MoM.intervene`.
    """
    for name, value in (("batch_size", batch_size), ("batches", batches)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: {value} is less than 1")
    positions = model.config.n_positions
    length = min(1024, positions) if sequence_length is None else sequence_length
    if not 2 <= length <= positions:
        raise ConfigError(f"sequence_length: {length} is not in [2, {positions}], the model's n_positions")
    path = Path(data)
    warn_of_other_tokenizer(model.tokenizer, path)
    if path.is_dir():
        path = path / ("val.bin" if (path / "val.bin").is_file() else "train.bin")
    tokens = TokenFile(path, vocab_size=model.config.vocab_size)
    most = -(-len(tokens) // (batch_size * length)) if batches is None else batches
    started = time.perf_counter()
    with current().failing_together(), model.intervene(interventions):
        loss = evaluate_loss(model, tokens, batch_size, length, most)
    seen = length * min(len(tokens) // length, batch_size * most)
    return TokenFileLoss(path, seen, length, loss, time.perf_counter() - started, len(tokens) - seen)


def _window_and_stride(model: MoM, window: int | None, stride: int | None) -> tuple[int, int]:
    positions = model.config.n_positions
    window = positions if window is None else window
    if not 2 <= window <= positions:
        raise ValueError(f"window: {window} is not in [2, {positions}], the model's n_positions")
    stride = window // 2 if stride is None else stride
    if not 1 <= stride <= window - 1:
        raise ValueError(f"stride: {stride} is not in [1, {window - 1}], window - 1")
    return window, stride


def _one_part(
    model: MoM, tokenizer: Any, name: str, documents: Documents | TextDocuments, window: int, stride: int, batch: int
) -> TextLoss:
    first = tokenizer.bos_id if tokenizer.settings.add_bos else tokenizer.eos_id
    start = [] if first is None else [np.array([first], np.int32)]
    totals = {"bytes": 0, "documents": 0, "without": 0}

    def windows() -> Iterator[tuple[npt.NDArray[np.int32], int]]:
        for texts in _whole(pieces_for(documents, tokenizer)):
            totals["documents"] += 1
            totals["bytes"] += sum(len(text.encode("utf-8")) for text in texts)
            ids = np.concatenate([*start, *tokenizer.encode_batch(texts)])
            totals["without"] += len(ids) < 2
            yield from windows_of(ids, window, stride)

    nats, tokens = token_loss(model, windows(), batch, current())
    if totals["without"]:
        of = f"{totals['without']:,} of {totals['documents']:,}"
        _LOG.info("%s: %s documents have a single token, so there is nothing to predict in them", name, of)
    return TextLoss(name, nats, tokens, totals["bytes"], totals["documents"])


def _whole(pieces: Iterable[Piece]) -> Iterator[list[str]]:
    """The pieces of each document."""
    texts: list[str] = []
    for piece in pieces:
        texts.append(piece.text)
        if piece.end:
            yield texts
            texts = []


def windows_of(ids: npt.NDArray[np.int32], window: int, stride: int) -> Iterator[tuple[npt.NDArray[np.int32], int]]:
    """Windows of a token sequence, each with the number of tokens at its beginning that are not scored.

    Every token but the very first is scored exactly once.
    """
    done = 1
    start = 0
    while done < len(ids):
        end = min(start + window, len(ids))
        yield ids[start:end], done - start
        done = end
        start += stride
