"""`mom.model.beam`: equals an exhaustive search, greedy search and a recomputing decoder; its rules hold."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import mom
from mom.model import beam_search

CONFIG = mom.MoMConfig(
    vocab_size=12, n_positions=20, n_embd=16, n_head=2, chunks=1, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=8,
    routing_top_k=2,
)  # fmt: skip
PROMPTS = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8, 9])]


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    made = mom.MoM(CONFIG, seed=1)
    rng = np.random.default_rng(5)
    for value in made.parameters.values():
        value += 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    return made


class Recomputing:
    """The three verbs by running the model on everything again."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.rows: list[np.ndarray] = []

    def _logits(self) -> np.ndarray:
        return np.stack([self.model(row, return_logits=True).logits[0, -1] for row in self.rows])

    def prefill(self, tokens: Any) -> np.ndarray:
        self.rows = [np.asarray(row) for row in tokens]
        return self._logits()

    def step(self, tokens: Any) -> np.ndarray:
        self.rows = [np.append(row, token) for row, token in zip(self.rows, tokens, strict=True)]
        return self._logits()

    def reorder(self, rows: Any) -> None:
        self.rows = [self.rows[i] for i in rows]


class Table:
    """A made-up language: probabilities of the next token given the last one."""

    def __init__(self, probabilities: Any) -> None:
        self.logs = np.log(np.asarray(probabilities, np.float64) + 1e-30).astype(np.float32)
        self.last = np.zeros(0, int)

    def prefill(self, tokens: Any) -> np.ndarray:
        return self.step([row[-1] for row in tokens])

    def step(self, tokens: Any) -> np.ndarray:
        self.last = np.asarray(tokens)
        return self.logs[self.last]

    def reorder(self, rows: Any) -> None:
        self.last = self.last[np.asarray(rows)]


def all_continuations(
    model: Any, prompt: np.ndarray, length: int, stop: int, penalty: float
) -> tuple[list[int], float]:
    """The best of all continuations, one by one."""
    best: tuple[list[int], float] = ([], -np.inf)
    logs: dict[tuple[int, ...], np.ndarray] = {}

    def log_of(tokens: tuple[int, ...]) -> np.ndarray:
        if tokens not in logs:
            row = np.concatenate([prompt, np.array(tokens, int)])
            logits = model(row, return_logits=True).logits[0, -1].astype(np.float64)
            logs[tokens] = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        return logs[tokens]

    others = [t for t in range(model.config.vocab_size) if t != stop]
    for n in range(length + 1):
        for tokens in itertools.product(others, repeat=n):
            total = sum(log_of(tokens[:i])[t] for i, t in enumerate(tokens))
            if n < length:
                total += log_of(tokens)[stop]
            score = total / min(n + 1, length) ** penalty
            if score > best[1]:
                best = (list(tokens), score)
    return best


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all(penalty: float) -> None:
    config = CONFIG.replace(vocab_size=5)
    model = mom.MoM(config, seed=3)
    rng = np.random.default_rng(9)
    for value in model.parameters.values():
        value += 0.4 * rng.standard_normal(value.shape).astype(np.float32)
    prompts = [np.array([1, 2]), np.array([3])]
    # A beam that loses nothing is as wide as there are continuations; the vocabulary bounds it, so it is padded out.
    wide = Padded(mom.Decoder(model), 500)
    found = beam_search(wide, prompts, 3, num_beams=64, length_penalty=penalty, stop_token=0)
    for hypothesis, prompt in zip(found, prompts, strict=True):
        tokens, score = all_continuations(model, prompt, 3, 0, penalty)
        assert hypothesis.tokens.tolist() == tokens and hypothesis.score == pytest.approx(score, abs=1e-4)


def test_only_ids_of_a_tokenizer_are_chosen() -> None:
    model = mom.MoM(CONFIG, seed=7)
    decoder = mom.Decoder(model)
    prompts = [np.array([1, 2]), np.array([3])]
    free = beam_search(decoder, prompts, 8, num_beams=2)
    assert max(hypothesis.tokens.max() for hypothesis in free) >= 5, "the test says something"

    class Cut:
        """The same decoder without the logits of other ids."""

        def prefill(self, tokens: Any) -> np.ndarray:
            return decoder.prefill(tokens)[:, :5].copy()

        def step(self, tokens: Any) -> np.ndarray:
            return decoder.step(tokens)[:, :5].copy()

        def reorder(self, rows: Any) -> None:
            decoder.reorder(rows)

    decoder.clear()
    wanted = beam_search(Cut(), prompts, 8, num_beams=2)
    decoder.clear()
    found = beam_search(decoder, prompts, 8, num_beams=2, vocab_size=5)
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a.tokens, b.tokens) and a.score == b.score and a.tokens.max() < 5
    decoder.clear()
    with pytest.raises(ValueError, match="num_beams: 3 are too many for 5 tokens"):
        beam_search(decoder, prompts, 8, num_beams=3, vocab_size=5)


@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_excluded_ids_are_as_if_they_were_not_there(model: mom.MoM, num_beams: int) -> None:
    excluded, kept = np.array([0, 6, 9, 40]), np.setdiff1d(np.arange(12), [0, 6, 9])

    class Cut:
        """The decoder of a language without these ids."""

        def __init__(self) -> None:
            self.decoder = mom.Decoder(model)

        def prefill(self, tokens: Any) -> np.ndarray:
            return self.decoder.prefill([kept[row] for row in tokens])[:, kept]

        def step(self, tokens: Any) -> np.ndarray:
            return self.decoder.step(kept[tokens])[:, kept]

        def reorder(self, rows: Any) -> None:
            self.decoder.reorder(rows)

    prompts = [np.array([1, 2, 3]), np.array([4])]
    options: dict[str, Any] = {"num_beams": num_beams, "no_repeat_ngram_size": 2}
    free = beam_search(mom.Decoder(model), [kept[row] for row in prompts], 9, stop_token=int(kept[5]), **options)
    assert np.isin(np.concatenate([h.tokens for h in free]), excluded).any(), "the test says something"
    wanted = beam_search(Cut(), prompts, 9, stop_token=5, **options)
    found = beam_search(
        mom.Decoder(model), [kept[row] for row in prompts], 9, stop_token=int(kept[5]), excluded=excluded, **options
    )
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a.tokens, kept[b.tokens]) and a.ended == b.ended
        # The denominators' sums have zeros between their terms or not, which groups them differently.
        assert np.isclose(a.score, b.score, rtol=1e-12, atol=0.0)


class Padded:
    """A decoder with impossible tokens added to its vocabulary."""

    def __init__(self, inner: Any, size: int) -> None:
        self.inner, self.size = inner, size

    def _wide(self, logits: np.ndarray) -> np.ndarray:
        wide = np.full((len(logits), self.size), -np.inf, np.float32)
        wide[:, : logits.shape[1]] = logits
        return wide

    def prefill(self, tokens: Any) -> np.ndarray:
        return self._wide(self.inner.prefill(tokens))

    def step(self, tokens: Any) -> np.ndarray:
        return self._wide(self.inner.step(tokens))

    def reorder(self, rows: Any) -> None:
        self.inner.reorder(rows)


@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.5}, {"no_repeat_ngram_size": 2}, {"num_beams": 1},
                                     {"stop_token": None}], ids=str)  # fmt: skip
def test_cached_and_recomputing_decoders_agree(model: mom.MoM, options: dict[str, Any]) -> None:
    settings = {"num_beams": 3, "stop_token": 2, **options}
    cached = beam_search(mom.Decoder(model), PROMPTS, 9, **settings)
    again = beam_search(Recomputing(model), PROMPTS, 9, **settings)
    for a, b in zip(cached, again, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.ended == b.ended
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.score == a.log_probability / (len(a.tokens) + a.ended) ** settings.get("length_penalty", 1.0)


def test_prompts_do_not_influence_each_other(model: mom.MoM) -> None:
    together = beam_search(mom.Decoder(model), PROMPTS, 8, num_beams=3, stop_token=2)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        (alone,) = beam_search(mom.Decoder(model), [prompt], 8, num_beams=3, stop_token=2)
        assert alone.tokens.tolist() == expected.tokens.tolist()


def test_one_beam_is_greedy_search(model: mom.MoM) -> None:
    for stop in (None, 2):
        found = beam_search(mom.Decoder(model), PROMPTS, 9, num_beams=1, stop_token=stop)
        expected = model.generate(PROMPTS, 9, stop_token=stop)
        for hypothesis, prompt, row in zip(found, PROMPTS, expected, strict=True):
            new = row[len(prompt) :].tolist()
            assert hypothesis.ended == (stop is not None and new[-1] == stop)
            assert hypothesis.tokens.tolist() == (new[:-1] if hypothesis.ended else new)


def test_a_beam_finds_what_greed_misses() -> None:
    table = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0.6, 0.4, 0, 0], [0.2, 0, 0, 0, 0.4, 0.4], [0.9, 0, 0, 0, 0.1, 0],
                      [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])  # fmt: skip
    prompt = [np.array([1])]
    greedy, beam = (beam_search(Table(table), prompt, 4, num_beams=n, length_penalty=0.0, stop_token=0)[0]
                    for n in (1, 2))  # fmt: skip
    assert greedy.tokens.tolist() == [2, 4] and np.exp(greedy.log_probability) == pytest.approx(0.24)
    assert beam.tokens.tolist() == [3] and np.exp(beam.log_probability) == pytest.approx(0.36) and beam.ended


def test_length_penalty_prefers_longer_continuations() -> None:
    table = np.array([[0.0] * 5, [0.3, 0, 0.7, 0, 0], [0.5, 0, 0, 0.5, 0], [0.9, 0, 0, 0, 0.1], [1, 0, 0, 0, 0]])
    lengths = [
        len(beam_search(Table(table), [np.array([1])], 6, num_beams=2, length_penalty=p, stop_token=0)[0].tokens)
        for p in (-2.0, 0.0, 3.0)
    ]
    assert lengths[0] <= lengths[1] <= lengths[2] and lengths[0] < lengths[2]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_ngram_comes_twice(model: mom.MoM, size: int, num_beams: int) -> None:
    free = beam_search(mom.Decoder(model), PROMPTS, 11, num_beams=num_beams)
    found = beam_search(mom.Decoder(model), PROMPTS, 11, num_beams=num_beams, no_repeat_ngram_size=size)
    for hypothesis in found:
        tokens = hypothesis.tokens.tolist()
        grams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
        assert len(grams) == len(set(grams)) and len(tokens) == 11
    assert size > 1 or any(len(set(h.tokens.tolist())) < 11 for h in free), "the test says something"


@pytest.mark.parametrize("num_beams", [1, 2])
def test_when_everything_is_ruled_out_the_search_ends(num_beams: int) -> None:
    """0 goes to 1 or 3, 1 to 2 and 2 to 1; 3 only to itself. Without a repetition, [1, 2] is as far as it goes."""
    decoder = Table(np.zeros((4, 4)))
    decoder.logs[:] = -np.inf
    decoder.logs[0, [1, 3]], decoder.logs[1, 2], decoder.logs[2, 1] = np.log([0.6, 0.4]), 0.0, 0.0
    decoder.logs[3, 3] = 0.0
    (found,) = beam_search(
        decoder, [np.array([0])], 5, num_beams=num_beams, no_repeat_ngram_size=1, length_penalty=-1.0
    )
    assert found.tokens.tolist() == [1, 2] and not found.ended
    assert np.exp(found.log_probability) == pytest.approx(0.6)
    assert found.score == pytest.approx(2 * np.log(0.6)), "two tokens, to the power -1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"), ({"num_beams": 0}, "num_beams: 0 is less than 1"),
        ({"num_beams": 7}, "num_beams: 7 are too many for 12 tokens"), ({"prompts": []}, "prompts: there are none"),
        ({"length_penalty": float("nan")}, "length_penalty: nan is not finite"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: -1 is negative"),
        ({"length_penalty": 1e6}, "length_penalty: 1000000.0 is too far from 0 for 3 tokens; at most 455.1"),
        ({"length_penalty": -1e6}, "length_penalty: -1000000.0 is too far from 0"),
        ({"length_penalty": float("inf")}, "length_penalty: inf is not finite"),
        ({"num_beams": 5, "excluded": [1, 3, 7, 15]}, "num_beams: 5 are too many for 9 tokens"),
        ({"excluded": [1, 2], "stop_token": 2}, "stop_token: 2 is among the excluded"),
        ({"excluded": [1, -2]}, r"excluded: expected non-negative integers of shape \(n,\)"),
        ({"excluded": [0.5]}, "excluded: expected"), ({"excluded": [[1]]}, "excluded: expected"),
        ({"stop_token": 12}, r"stop_token: 12 is not in \[0, 12\)"), ({"stop_token": -1}, "stop_token: -1 is negative"),
        ({"prompts": np.zeros((0, 3), int)}, r"prompts: shape \(0, 3\) is empty"),
        ({"prompts": np.zeros((1, 1, 3), int)}, r"prompts: shape \(1, 1, 3\), expected"),
    ],
)  # fmt: skip
def test_arguments_are_checked(model: mom.MoM, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(**{"decoder": mom.Decoder(model), "prompts": PROMPTS, "max_new_tokens": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 2.5}, "num_beams: expected an integer, got float"),
        ({"num_beams": True}, "num_beams: expected an integer, got bool"),
        ({"max_new_tokens": 3.0}, "max_new_tokens: expected an integer, got float"),
        ({"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size: expected an integer, got float"),
        ({"length_penalty": "1"}, "length_penalty: expected a number, got str"),
        ({"stop_token": 2.0}, "stop_token: expected an integer, got float"),
        ({"prompts": [np.array([0.5])]}, "prompts: row 0: dtype float64, expected an integer dtype"),
    ],
)  # fmt: skip
def test_types_of_arguments_are_checked(model: mom.MoM, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        beam_search(**{"decoder": mom.Decoder(model), "prompts": PROMPTS, "max_new_tokens": 3, **changes})


def test_prompts_of_one_length_may_be_one_array(model: mom.MoM) -> None:
    together = np.array([[1, 2, 3], [4, 5, 6]])
    found = beam_search(mom.Decoder(model), together, np.int64(4), num_beams=np.int32(2))  # type: ignore[arg-type]
    again = beam_search(mom.Decoder(model), [*together], 4, num_beams=2)
    assert [h.tokens.tolist() for h in found] == [h.tokens.tolist() for h in again] and len(found) == 2


@pytest.mark.parametrize("penalty", [450.0, -450.0])
def test_scores_stay_finite_up_to_the_largest_penalty(model: mom.MoM, penalty: float) -> None:
    for found in beam_search(mom.Decoder(model), PROMPTS, 3, num_beams=2, length_penalty=penalty, stop_token=2):
        assert np.isfinite(found.score) and found.score < 0.0


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "not a number"), (np.inf, "infinite"), (-np.inf, "minus infinity for every token")],
)
def test_logits_that_nothing_can_be_chosen_from_are_an_error(step: int, value: float, message: str) -> None:
    decoder = Table(np.full((6, 6), 1 / 6))
    if step:
        decoder.logs[0] = np.array([-np.inf, 0.0, -np.inf, -np.inf, -np.inf, -np.inf])
    decoder.logs[1] = value
    with pytest.raises(ValueError, match=f"logits: {message} at row {1 - step}"):
        beam_search(decoder, [np.array([0])] if step else [np.array([0]), np.array([1])], 3, num_beams=2)
