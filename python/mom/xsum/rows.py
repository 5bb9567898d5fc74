"""Token rows of documents and summaries: the document, cut to fit, the prompt, the summary and its end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..distributed import current
from ..errors import ConfigError, DataError
from ..model import MoM
from ..model.token_loss import token_loss
from ..training.config import FinetuneConfig
from .reader import XsumData

__all__ = ["PROMPT", "TASK", "Row", "lengths_of", "make_rows", "prompts_of", "rows_loss", "tokenizer_of"]

#: The text between a document and its summary.
PROMPT = "\nTL;DR:"
#: Name of the task in a fine-tuned model's folder.
TASK = "xsum"
_EVAL_BATCH = 8
_LOG = logging.getLogger(__name__)


class Row(NamedTuple):
    """A document, the prompt and the summary as tokens.

    Attributes
    ----------
    tokens : ndarray of int32, shape (T,)
    prompt : int
        How many of the first tokens are not scored.
    """

    tokens: npt.NDArray[np.int32]
    prompt: int


def tokenizer_of(model: MoM) -> Any:
    """The model's tokenizer, which must have an end-of-text token."""
    if model.tokenizer is None:
        raise DataError("tokenizer: the model has none")
    if model.tokenizer.eos_id is None:
        raise DataError("tokenizer: has no end-of-text token, which ends a summary")
    return model.tokenizer


def lengths_of(model: MoM, max_length: int | None, max_summary: int | None) -> tuple[int, int]:
    """The given lengths, or else those of fine-tuning."""
    tuned = model.finetuning_lengths
    config = FinetuneConfig(max_length=max_length or tuned.get("max_length"))
    return config.length_for(model.config), tuned.get("max_summary", 64) if max_summary is None else max_summary


def prompts_of(model: MoM, documents: Sequence[str], length: int, max_summary: int) -> tuple[list[Any], int]:
    """Make token rows of documents, cut so that prompt and summary fit. Also returns how many were cut."""
    tokenizer = tokenizer_of(model)
    end = tokenizer.encode(PROMPT)
    room = length - len(end) - max_summary
    if max_summary < 2 or room < 1:
        raise ConfigError(f"max_summary: {max_summary} of {length} tokens leaves no room for a document or a summary")
    found = tokenizer.encode_batch(list(documents))
    rows = [np.concatenate([ids[:room], end]).astype(np.int32) for ids in found]
    cut = sum(len(ids) > room for ids in found)
    if cut:
        _LOG.info("%s of %s documents were cut to %d tokens", f"{cut:,}", f"{len(rows):,}", room)
    return rows, cut


def make_rows(model: MoM, data: XsumData, length: int, max_summary: int) -> tuple[list[Row], int, int]:
    """Make rows with summaries. Also returns how many documents and summaries were cut."""
    prompts, cut = prompts_of(model, data.documents, length, max_summary)
    tokenizer = tokenizer_of(model)
    rows, cut_summaries = [], 0
    for prompt, ids in zip(prompts, tokenizer.encode_batch([f" {s.strip()}" for s in data.summaries]), strict=True):
        cut_summaries += len(ids) + 1 > max_summary
        summary = np.append(ids, tokenizer.eos_id)[:max_summary]
        rows.append(Row(np.concatenate([prompt, summary]).astype(np.int32), len(prompt)))
    if cut_summaries:
        _LOG.info("%s of %s summaries were cut to %d tokens", f"{cut_summaries:,}", f"{len(rows):,}", max_summary)
    return rows, cut, cut_summaries


def rows_loss(model: MoM, rows: Iterable[Row]) -> float:
    """Loss in nats per scored token."""
    nats, tokens = token_loss(model, iter(rows), _EVAL_BATCH, current())
    return nats / tokens
