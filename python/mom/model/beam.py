"""Beam search over anything that decodes token by token, and greedy search with the same rules.

Notes
-----
The search needs three verbs, which `mom.Decoder` has: ``prefill(prompts)`` gives logits (B, V), ``step(tokens)``
appends one token per row and gives logits, ``reorder(rows)`` makes row i what row ``rows[i]`` was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .._arguments import LARGEST, count, number
from .._arguments import prompts as prompt_rows

__all__ = ["Hypothesis", "TokenDecoder", "beam_search"]

#: Largest power of a length, as a logarithm: scores stay finite and apart.
_LOG_POWER = 500.0


class TokenDecoder(Protocol):
    """What `beam_search` needs of a decoder."""

    def prefill(self, tokens: Any) -> npt.NDArray[np.float32]:
        """Begin with prompts of unequal length; logits (B, V) after each."""

    def step(self, tokens: Any) -> npt.NDArray[np.float32]:
        """Append one token to every row; logits (B, V)."""

    def reorder(self, rows: Any) -> None:
        """Make row i what row ``rows[i]`` was."""


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that the search found.

    Attributes
    ----------
    tokens : ndarray of int32, shape (n,)
        The new tokens, without the stop token.
    log_probability : float
        Of the new tokens and, if `ended`, the stop token.
    score : float
        ``log_probability / n ** length_penalty``, with the stop token counted in n.
    ended : bool
        Whether the stop token came.
    """

    tokens: npt.NDArray[np.int32]
    log_probability: float
    score: float
    ended: bool


@dataclass(frozen=True)
class _Rules:
    """The settings of a search, checked."""

    longest: int
    num_beams: int
    length_penalty: float
    no_repeat: int
    stop_token: int | None


@dataclass
class _Prompt:
    """The beams of one prompt."""

    number: int
    scores: npt.NDArray[np.float64]
    tokens: list[list[int]]
    finished: list[Hypothesis] = field(default_factory=list)

    def end_all(self, length: int, penalty: float) -> None:
        """End all beams as they are."""
        for tokens, score in zip(self.tokens, self.scores.tolist(), strict=True):
            self.finished.append(Hypothesis(np.array(tokens, np.int32), score, score / length**penalty, False))


def beam_search(
    decoder: TokenDecoder,
    prompts: Sequence[npt.NDArray[Any]] | npt.NDArray[Any],
    max_new_tokens: int,
    *,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    stop_token: int | None = None,
    vocab_size: int | None = None,
    excluded: npt.ArrayLike = (),
) -> list[Hypothesis]:
    """The best continuation of every prompt.

    Parameters
    ----------
    decoder : TokenDecoder
        Such as a `mom.Decoder`; its sequences are replaced.
    prompts : sequence of ndarray of int, shape (T_i,), or one ndarray of shape (B, T)
    max_new_tokens : int
        Length of the longest continuation, stop token included.
    num_beams : int
        How many continuations are kept at every length; 1 is greedy search.
    length_penalty : float
        Hypotheses are compared by their log probability divided by length to this power. A value above 0 favours longer
        ones. The power of the longest length must fit a float.
    no_repeat_ngram_size : int
        A continuation never repeats a sequence of this many of its own tokens; the prompt does not count. 0 allows
        repeats.
    stop_token : int, optional
        Ends a continuation.
    vocab_size : int, optional
        Only ids below it are chosen, as if there were no other logits. Usually the tokenizer's size.
    excluded : array of int, shape (n,), optional
        Further ids that are never chosen, such as `mom.Tokenizer.unused_ids`.

    Returns
    -------
    list of Hypothesis
        One per prompt, in their order.

    Notes
    -----
    The search for a prompt ends when there are `num_beams` hypotheses and no running beam could overtake the worst
    hypothesis. For this test all further tokens of a beam are given probability 1.
    """
    rules = _checked(max_new_tokens, num_beams, length_penalty, no_repeat_ngram_size, stop_token)
    if isinstance(prompts, (list, tuple)) and not prompts:
        raise ValueError("prompts: there are none")
    rows, _ = prompt_rows(prompts, "prompts")
    known = None if vocab_size is None else count(vocab_size, "vocab_size", 1)
    banned = _excluded_ids(excluded)
    logits = decoder.prefill(rows)[:, :known]
    banned = banned[banned < logits.shape[1]]
    _check_vocabulary(rules, logits.shape[1], banned)
    states = [_Prompt(i, np.zeros(1), [[]]) for i in range(len(rows))]
    results: dict[int, Hypothesis] = {}
    for length in range(1, rules.longest + 1):
        totals = _log_softmax(logits, banned)
        _ban_repeats(totals, [t for state in states for t in state.tokens], rules.no_repeat)
        parents: list[int] = []
        chosen: list[int] = []
        running: list[_Prompt] = []
        first = 0
        for state in states:
            width = len(state.tokens)
            grown = _advance(state, totals[first : first + width] + state.scores[:, None], length, rules)
            if _is_done(state, length, rules):
                results[state.number] = max(state.finished, key=lambda h: h.score)
            else:
                parents += [first + beam for beam in grown]
                chosen += [tokens[-1] for tokens in state.tokens]
                running.append(state)
            first += width
        states = running
        if not states:
            break
        decoder.reorder(np.array(parents))
        logits = decoder.step(np.array(chosen))[:, :known]
    return [results[i] for i in range(len(rows))]


def _checked(
    max_new_tokens: int, num_beams: int, length_penalty: float, no_repeat_ngram_size: int, stop_token: int | None
) -> _Rules:
    rules = _Rules(
        count(max_new_tokens, "max_new_tokens", 1), count(num_beams, "num_beams", 1),
        number(length_penalty, "length_penalty", -LARGEST, "finite"),
        count(no_repeat_ngram_size, "no_repeat_ngram_size"),
        None if stop_token is None else count(stop_token, "stop_token"),
    )  # fmt: skip
    if abs(length_penalty) * math.log(max_new_tokens) > _LOG_POWER:
        raise ValueError(
            f"length_penalty: {length_penalty} is too far from 0 for {max_new_tokens} tokens; "
            f"at most {_LOG_POWER / math.log(max_new_tokens):.4g}"
        )
    return rules


def _check_vocabulary(rules: _Rules, vocabulary: int, banned: npt.NDArray[np.int64]) -> None:
    if rules.num_beams * 2 > vocabulary - len(banned):
        raise ValueError(f"num_beams: {rules.num_beams} are too many for {vocabulary - len(banned)} tokens")
    if rules.stop_token is not None and rules.stop_token >= vocabulary:
        raise ValueError(f"stop_token: {rules.stop_token} is not in [0, {vocabulary})")
    if rules.stop_token in banned:
        raise ValueError(f"stop_token: {rules.stop_token} is among the excluded")


def _excluded_ids(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    ids = np.unique(np.asarray(values))
    if ids.size and (ids.dtype.kind not in "iu" or np.ndim(values) != 1 or ids[0] < 0):
        raise ValueError("excluded: expected non-negative integers of shape (n,)")
    return ids.astype(np.int64)


def _log_softmax(logits: npt.NDArray[np.float32], banned: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    if len(banned):
        logits = logits.copy()
        logits[:, banned] = -math.inf
    top = logits.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():  # single tokens may be ruled out by -inf
        row = int(np.flatnonzero(~np.isfinite(top[:, 0]))[0])
        worst = float(top[row, 0])
        what = "not a number" if math.isnan(worst) else "infinite" if worst > 0 else "minus infinity for every token"
        raise ValueError(f"logits: {what} at row {row}")
    shifted = logits.astype(np.float64) - top
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _ban_repeats(totals: npt.NDArray[np.float64], rows: list[list[int]], size: int) -> None:
    """Rule out every token that would complete a sequence of `size` tokens that a row already has."""
    if size < 1:
        return
    for total, tokens in zip(totals, rows, strict=True):
        head = tokens[len(tokens) - size + 1 :] if size > 1 else []
        for start in range(len(tokens) - size + 1):
            if tokens[start : start + size - 1] == head:
                total[tokens[start + size - 1]] = -math.inf


def _advance(state: _Prompt, rows: npt.NDArray[np.float64], length: int, rules: _Rules) -> list[int]:
    """Replace a prompt's beams by the best continuations. Returns the beam that each of them continues."""
    num_beams = rules.num_beams
    vocabulary = rows.shape[1]
    flat = rows.reshape(-1)
    # At most num_beams of the 2 * num_beams best candidates end, so at least num_beams continue.
    count = min(2 * num_beams, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.lexsort((best, -flat[best]))]
    parents: list[int] = []
    tokens: list[list[int]] = []
    scores: list[float] = []
    for rank, candidate in enumerate(best):
        beam, token = divmod(int(candidate), vocabulary)
        score = float(flat[candidate])
        if score == -math.inf:
            break
        if token == rules.stop_token:
            if rank < num_beams:
                made = np.array(state.tokens[beam], np.int32)
                state.finished.append(Hypothesis(made, score, score / length**rules.length_penalty, True))
            continue
        if len(parents) < num_beams:
            parents.append(beam)
            tokens.append([*state.tokens[beam], token])
            scores.append(score)
    if not parents and not state.finished:  # every token is ruled out, so the beams end as they are
        state.end_all(max(1, length - 1), rules.length_penalty)
    state.tokens, state.scores = tokens, np.array(scores)
    state.finished = sorted(state.finished, key=lambda h: -h.score)[:num_beams]
    return parents


def _is_done(state: _Prompt, length: int, rules: _Rules) -> bool:
    if length == rules.longest or not state.tokens:
        state.end_all(length, rules.length_penalty)
        return True
    if len(state.finished) < rules.num_beams:
        return False
    # Log probabilities are negative and only fall. So the best score to come belongs to the shortest or the longest
    # continuation, whichever the penalty favours.
    lengths = (length + 1, rules.longest)
    bound = max(float(state.scores.max()) / n**rules.length_penalty for n in lengths)
    return bool(state.finished[-1].score >= bound)
