"""From texts and pairs of texts to token rows for a classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError

__all__ = ["encode_texts"]

_LOG = logging.getLogger(__name__)


def encode_texts(
    tokenizer: Any, texts: Sequence[Sequence[str]], max_length: int, name: str = "texts"
) -> tuple[list[npt.NDArray[np.int32]], int]:
    """Token rows in which every text ends with the end-of-text token. A classifier reads the state of the last one.

    Parameters
    ----------
    tokenizer : Tokenizer
    texts : sequence of (str,) or (str, str)
    max_length : int
        Length of the longest row. A pair that is too long loses tokens from the end of the longer text. If both texts
        exceed half, both are cut to half. The number of cut rows goes to the logger of this module, and so to the
        terminal of the command ``mom``.
    name : str
        What the log calls the texts.

    Returns
    -------
    rows : list of ndarray of int32
    cut : int
        How many rows were too long.

    Notes
    -----
    A tokenizer without an end-of-text token gets a line feed in its place.
    """
    if tokenizer is None:
        raise DataError("tokenizer: the model has none")
    count = len(texts[0]) if len(texts) else 1
    mark = [tokenizer.eos_id] if tokenizer.eos_id is not None else tokenizer.encode("\n").tolist()
    if not mark:
        raise DataError("tokenizer: has neither an end-of-text token nor a token for a line feed")
    end = np.array(mark, np.int32)
    room = max_length - count * len(end)
    if room < count:
        raise DataError(f"max_length: {max_length} leaves no room for {count} texts")
    columns = [tokenizer.encode_batch([row[i] for row in texts]) for i in range(count)]
    rows, cut = [], 0
    for parts in zip(*columns, strict=True):
        lengths = _fitting([len(part) for part in parts], room)
        cut += sum(lengths) < sum(len(part) for part in parts)
        pieces = [piece for part, n in zip(parts, lengths, strict=True) for piece in (part[:n], end)]
        rows.append(np.concatenate(pieces).astype(np.int32))
    if cut:
        of = f"{cut:,} of {len(rows):,}"
        _LOG.info("%s: %s rows were cut to max_length = %d tokens", name, of, max_length)
    return rows, cut


def _fitting(lengths: list[int], room: int) -> list[int]:
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    half = room // 2
    if first <= half:
        return [first, room - first]
    if second <= room - half:
        return [room - second, second]
    return [half, room - half]
