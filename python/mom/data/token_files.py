"""Token files and windows of them.

A token file has nanoGPT's format: only token ids, little-endian uint16 (uint32 for vocabularies beyond 65,536). A
description beside the file, as `mom.data.prepare` writes it, says which; see `mom.data.token_formats`, which also reads
files of NumPy and llm.c.

`WindowSampler` draws windows of T tokens. In ``"random"`` mode an epoch visits every one of the non-overlapping windows
once. Their order is a keyed permutation of their numbers, a mixed-radix Feistel network. It needs no memory and is
computed for a whole batch at once. The position in the epoch is a single number, so a run resumes exactly, at no cost.
A stored permutation of the 9 million windows of OpenWebText would take 72 MB and half a second per epoch. Each epoch
shifts all windows by a random offset, so over many epochs a token appears at every position of a window.

References
----------
Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002 (the generalised Feistel cipher).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike
from .._reading import kind_of, shown
from ..errors import DataError
from ..files.atomic import mention_of, naming_file
from .token_formats import DTYPES, layout_of

__all__ = ["TokenFile", "WindowSampler"]

_FEISTEL_ROUNDS = 6
_LOG = logging.getLogger(__name__)


class TokenFile:
    """A token file, read and checked as it is used.

    Parameters
    ----------
    path : path
        The file, or a folder with a ``train.bin``.
    dtype : {None, "uint16", "uint32"}
        Type of an id. By default a description beside the file decides, ``NAME.json`` or ``meta.json``, or the header
        of a file of NumPy or llm.c. A file without either must look like uint16.
    vocab_size : int, optional
        Every id must be less than this, and less than the description's ``vocab_size``. If neither is known, ids are
        not checked.

    Attributes
    ----------
    path : Path
        The file.
    dtype : dtype
        Type of an id in the file.
    vocab_size : int or None
        The bound on ids.

    Raises
    ------
    DataError
        If the file is missing, empty, cut in the middle of an id, of another kind, or not as its description says; or
        if nothing tells how its ids are written.
    """

    def __init__(self, path: PathLike, dtype: str | None = None, vocab_size: int | None = None) -> None:
        path = Path(path)
        self.path = path / "train.bin" if path.is_dir() else path
        self._arguments = (os.path.abspath(self.path), dtype, vocab_size)
        if dtype is not None and str(dtype) not in DTYPES:
            raise DataError(f"dtype: {dtype!r} is not one of 'uint16', 'uint32'")
        if vocab_size is not None and vocab_size < 1:
            raise DataError(f"vocab_size: {vocab_size} is less than 1")
        beside = self.path.with_name("meta.json")
        left = mention_of(beside) if kind_of(beside) is None else ""
        if kind_of(self.path) is None:
            left = left or mention_of(self.path) or mention_of(self.path.parent)
            hint = "; 'mom prepare' makes it from texts" if self.path.name == "train.bin" else ""
            raise DataError(f"{self.path}: no such file{left or hint}")
        if kind_of(self.path) != "file":
            raise DataError(f"{self.path}: is a {kind_of(self.path)}, expected a token file")
        if left:
            raise DataError(f"{self.path}: what 'mom prepare' was writing when it was interrupted{left}")
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, _close, self._file)
        with naming_file(self.path):
            layout = layout_of(self.path, self._file, None if dtype is None else str(dtype), vocab_size)
        self.dtype, self._offset, self._count = layout.dtype, layout.offset, layout.tokens
        bounds = [size for size in (vocab_size, layout.vocab_size) if size is not None]
        self.vocab_size = min(bounds, default=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments  # a copy opens the file again

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r}, {len(self)} tokens, {self.dtype.name}, vocab_size={self.vocab_size})"

    def read(self, start: int, length: int) -> npt.NDArray[np.int32]:
        """Tokens ``start`` to ``start + length``, checked.

        Returns
        -------
        ndarray of int32, shape (length,)
        """
        row: npt.NDArray[np.int32] = self.windows(np.array([start]), length)[0]
        return row

    def windows(self, starts: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.int32]:
        """Windows of `length` tokens that begin at `starts`, checked.

        Parameters
        ----------
        starts : ndarray of int, shape (B,)
            Positions in the file.
        length : int
            Window length T.

        Returns
        -------
        ndarray of int32, shape (B, T)

        Raises
        ------
        DataError
            If a window does not lie within the file, the file became shorter, or an id is not in the vocabulary. The
            message names the position in the file.
        """
        starts = np.asarray(starts, np.int64)
        outside = starts[(starts < 0) | (starts > len(self) - length)]
        if not 1 <= length <= len(self) or outside.size:
            raise DataError(f"{self.path}: a window of {length} tokens does not lie within the {len(self)} present")
        found = np.empty((len(starts), length), self.dtype)
        for start, row in zip(starts.tolist(), found, strict=True):
            self._read_into(row, start)
        limit = 2**31 if self.vocab_size is None else self.vocab_size
        if found.size and (int(found.max()) >= limit or int(found.min()) < 0):
            row, column = np.argwhere((found >= limit) | (found < 0))[0]
            bound = "2**31" if self.vocab_size is None else f"vocab_size = {limit}"
            problem = "is negative" if found[row, column] < 0 else f"is not less than {bound}"
            raise DataError(f"{self.path}: id {found[row, column]} at position {starts[row] + column} {problem}")
        return found.astype(np.int32)

    def _read_into(self, row: npt.NDArray[Any], start: int) -> None:
        """Fill a row from the file. (Reading a memory map beyond the end of a file that was cut ends the process.)"""
        buffer = row.view(np.uint8).data
        first, done = self._offset + start * row.itemsize, 0
        with naming_file(self.path):
            size = os.fstat(self._file).st_size
            while done < row.nbytes and (got := os.preadv(self._file, [buffer[done:]], first + done)):
                done += got
        wanted = self._offset + self._count * row.itemsize
        if size < wanted or done < row.nbytes:
            raise DataError(f"{self.path}: became shorter while in use ({size} bytes, {wanted} before)")


def _close(file: int) -> None:
    """Close a file that was only read. Nothing can be lost, and nobody is there to hear of an error."""
    with contextlib.suppress(OSError):
        os.close(file)


class WindowSampler:
    """Batches of windows of a token file.

    Labels are the windows themselves: the model scores position t against token t + 1, so a window of
    T tokens has T - 1 targets.

    Parameters
    ----------
    tokens : TokenFile
        The tokens.
    batch_size, seq_len : int
        Windows per batch B and tokens per window T.
    seed : int
        Determines order and offsets in ``"random"`` mode.
    mode : {"random", "consecutive"}
        ``"random"``: every window of an epoch once, in random order, shifted by an offset per epoch.
        ``"consecutive"``: windows in the order of the file, again and again (as the reference does).
    rank, num_ranks : int
        For data-parallel training: this sampler takes the `rank`-th `batch_size` windows of every
        ``num_ranks * batch_size``.

    Attributes
    ----------
    position : int
        Windows drawn so far by all ranks together. The position does not depend on `batch_size`, so a run may be
        resumed with another batch size.

    Raises
    ------
    DataError
        If an argument is out of range or the file is shorter than one window.
    """

    def __init__(
        self,
        tokens: TokenFile,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        mode: str = "random",
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("seq_len", seq_len), ("num_ranks", num_ranks)):
            if value < 1:
                raise DataError(f"{name}: {value} is less than 1")
        if not 0 <= rank < num_ranks:
            raise DataError(f"rank: {rank} is not in [0, {num_ranks})")
        if mode not in ("random", "consecutive"):
            raise DataError(f"mode: {mode!r} is not one of 'random', 'consecutive'")
        if len(tokens) < seq_len:
            raise DataError(f"{tokens.path}: {len(tokens)} tokens, fewer than one window of seq_len = {seq_len}")
        self.tokens, self.batch_size, self.seq_len, self.seed, self.mode = tokens, batch_size, seq_len, seed, mode
        self.rank, self.num_ranks, self.position = rank, num_ranks, 0
        if mode == "consecutive" and (tail := len(tokens) % seq_len):
            _LOG.info("%s: the last %d tokens fill no window of %d and are not used", tokens.path, tail, seq_len)

    @property
    def windows_per_epoch(self) -> int:
        """Windows in one pass over the file."""
        room = len(self.tokens) - (self.seq_len - 1 if self.mode == "random" else 0)
        return max(1, room // self.seq_len)

    @property
    def epoch(self) -> int:
        """Whole passes over the file so far."""
        return self.position // self.windows_per_epoch

    def starts(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First token of each window, by the number in which the window is drawn.

        Parameters
        ----------
        numbers : ndarray of int64, shape (n,)
            Numbers in the order of drawing; epochs follow each other without a gap.

        Returns
        -------
        ndarray of int64, shape (n,)
        """
        count = self.windows_per_epoch
        epoch, index = np.divmod(np.asarray(numbers, np.int64), count)
        if self.mode == "consecutive":
            return index * self.seq_len
        key = _mix(_mix(np.uint64(self.seed % 2**64)) + epoch.astype(np.uint64))
        slack = len(self.tokens) - count * self.seq_len
        offset = (_mix(key) % np.uint64(slack + 1)).astype(np.int64)
        return offset + _permute(index, count, key) * self.seq_len

    def next_batch(self) -> npt.NDArray[np.int32]:
        """The next windows.

        Returns
        -------
        ndarray of int32, shape (B, T)
        """
        first = self.position + self.rank * self.batch_size
        batch = self.tokens.windows(self.starts(np.arange(first, first + self.batch_size)), self.seq_len)
        self.position += self.num_ranks * self.batch_size
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the data as JSON values. `load_state_dict` continues from it exactly."""
        return {
            "mode": self.mode,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "tokens": len(self.tokens),
            "position": self.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another sampler was; the batch size may be another one.

        Raises
        ------
        DataError
            If the state belongs to another mode, window length or number of tokens, or is malformed.
        """
        wanted = self.state_dict()
        if not isinstance(state, dict) or state.keys() != wanted.keys():
            raise DataError(f"state: expected the keys {', '.join(wanted)}")
        for name in ("mode", "seq_len", "tokens"):
            if state[name] != wanted[name]:
                raise DataError(f"state: {name} is {shown(state[name])}, but this sampler has {wanted[name]!r}")
        for name in ("seed", "position"):
            if not isinstance(state[name], int) or isinstance(state[name], bool):
                raise DataError(f"state: {name} is {shown(state[name])}, expected an integer")
        if state["position"] < 0:
            raise DataError(f"state: position {shown(state['position'])} is negative")
        self.seed, self.position = state["seed"], state["position"]


def _mix(value: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """Spread 64 bits well (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    mixed = np.atleast_1d(np.asarray(value, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _permute(index: npt.NDArray[np.int64], count: int, key: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Image of each index under the permutation of ``range(count)`` that its key selects.

    Choose a and b with a * b just above `count`, and write numbers below a * b as two digits. Each round adds a keyed
    hash of one digit to the other. This can be undone, so a round is a permutation. A result of `count` or more goes
    through the rounds again, until it is below `count`.
    """
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    result = index.copy()
    pending = np.arange(index.size)
    while pending.size:
        high, low = np.divmod(result[pending], b)
        for turn in range(1, _FEISTEL_ROUNDS + 1):
            high = (high + _digit(low, key[pending], 2 * turn, a)) % a
            low = (low + _digit(high, key[pending], 2 * turn + 1, b)) % b
        result[pending] = high * b + low
        pending = pending[result[pending] >= count]
    return result


def _digit(digit: npt.NDArray[np.int64], key: npt.NDArray[np.uint64], turn: int, base: int) -> npt.NDArray[np.int64]:
    return (_mix(_mix(key + np.uint64(turn)) + digit.astype(np.uint64)) % np.uint64(base)).astype(np.int64)
