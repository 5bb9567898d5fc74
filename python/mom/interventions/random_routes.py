"""Random choices that depend on a token and the tokens before it, and on nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .layout import Layout

__all__ = ["random_choices"]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection whose outputs look independent."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prefix_hash(tokens: npt.NDArray[np.int32], position: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """What each token adds to the hash of its prefix. The hash of a prefix is the sum, modulo 2**64."""
    with np.errstate(over="ignore"):
        place = (position.astype(np.int64).astype(np.uint64) + np.uint64(1)) * _STEP
        return _mix(_mix(tokens.astype(np.uint64) + _STEP) ^ place)


def _prefixes(layout: Layout) -> npt.NDArray[np.uint64]:
    """The hash of every token's prefix, itself included; padding before the first real token does not count."""
    with np.errstate(over="ignore"):
        added = np.where(layout.position >= 0, prefix_hash(layout.tokens, layout.position), np.uint64(0))
        total = np.cumsum(added, dtype=np.uint64)
        start = np.concatenate([[True], _new_sequence(layout)]) if len(total) else np.zeros(0, bool)
        first = np.maximum.accumulate(np.where(start, np.arange(len(total)), 0))
        earlier = np.zeros(len(total), np.uint64)
        for begin, tokens in layout.before:
            earlier[begin] = prefix_hash(tokens, np.arange(len(tokens), dtype=np.int32)).sum(dtype=np.uint64)
        return total - (total - added)[first] + earlier[first]


def _new_sequence(layout: Layout) -> npt.NDArray[np.bool_]:
    """Whether token i + 1 begins another sequence than token i."""
    jump = layout.position[1:] != layout.position[:-1] + 1
    new: npt.NDArray[np.bool_] = jump | (layout.row[1:] != layout.row[:-1])
    return new


def random_choices(
    layout: Layout, seed: int, key: tuple[int, int, int], choices: int, kept: int
) -> npt.NDArray[np.int16]:
    """Distinct choices for every token, uniform among all, shape (N, kept). `key` is the half-round."""
    with np.errstate(over="ignore"):
        place, round, half = (np.uint64(i) for i in key)
        number = (place * np.uint64(4096) + round) * np.uint64(2) + half
        stream = _mix(_mix(np.array([seed & (2**64 - 1)], np.uint64)) ^ number * _STEP)
        state = _mix(_prefixes(layout) ^ stream)
        numbers = _mix(state[:, None] + (np.arange(choices, dtype=np.uint64) + np.uint64(1)) * _STEP)
    return np.argsort(numbers, axis=1, kind="stable")[:, :kept].astype(np.int16)
