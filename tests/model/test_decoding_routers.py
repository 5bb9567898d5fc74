"""Cached decoding equals recomputation for every router at every depth and top-k, however each row of a batch is cut.

Routers with noise draw it once per token: the float64 twin is given the very numbers that a token drew when it came.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from test_decoding import ALL, SMALL, error, halves
from twin import Draws

import mom
from kinds import ROUTERS
from mom import ops, reference
from route_entries import entry

NEW = 5  # tokens generated after each text
BLOCK, FEW = 32, 16  # rows of a block of steps; most tokens with which a decoder begins by steps
MARGIN = 1e-5


def rounding(config: mom.MoMConfig) -> float:
    """At most what rounding does to scores, in relation to the largest.

    Naive ones grow to hundreds in six rounds: 4e-5 was seen in a build without vector instructions of the compiler's.
    """
    return 5e-5 if config.router_type == "naive" else MARGIN


class Recorder:
    """Which call drew the noise of each token, and at which of its rows."""

    def __init__(self, model: mom.MoM, rows: int) -> None:
        self.model = model
        self.drawn: list[list[tuple[int, int]]] = [[] for _ in range(rows)]

    def add(self, parts: list[int]) -> None:
        """The next call adds so many tokens to each of the rows."""
        counter, at = self.model.random_state[1], 0
        in_blocks = any(self.drawn) or sum(parts) <= FEW
        for b, n in enumerate(parts):
            for _ in range(n):
                self.drawn[b].append((counter + at // BLOCK, at % BLOCK) if in_blocks else (counter, at))
                at += 1

    def add_generated(self, new: int) -> None:
        """The next call adds so many tokens to each row, one after the other."""
        counter = self.model.random_state[1]
        for b, drawn in enumerate(self.drawn):
            drawn.extend((counter + i, b) for i in range(new))

    def noise_of(self, b: int) -> Callable[[str, tuple[int, ...]], np.ndarray]:
        seed = self.model.random_state[0]
        draws = Draws(self.model.config, seed, 0)

        def noise(site: str, shape: tuple[int, ...]) -> np.ndarray:
            count, width = shape
            assert count == len(self.drawn[b])
            rows = [
                ops.random_uniform(seed, counter, draws.noise_site(site), (i + 1) * width)[i * width :]
                for counter, i in self.drawn[b]
            ]
            return np.array(rows, np.float64)

        return noise


@dataclass
class Whole:
    """A pass over the whole of a row: logits (T, V), what rounding did to them (T,), routes by (place, round, half)."""

    logits: np.ndarray
    rounded: np.ndarray
    routes: dict[tuple[int, int, str], dict[str, np.ndarray]]

    def decided(self, softmax: bool, margin: float) -> bool:
        """Whether no choice hangs on rounding."""
        for route in self.routes.values():
            falling = -np.sort(-np.asarray(route["scores"], np.float64), axis=-1)
            kept = min(route["index"].shape[-1], falling.shape[-1] - 1)
            size = falling[..., :-1] + 1e-30 if softmax else max(1.0, np.abs(falling).max())
            if kept and ((falling[..., :-1] - falling[..., 1:]) / size)[..., :kept].min() < margin:
                return False
        return True


def tied(logits: np.ndarray) -> bool:
    """Whether the choice of a token hangs on rounding."""
    first, second = -np.partition(-logits, 1, axis=-1)[:, :2].T
    return bool((first - second < MARGIN * np.abs(logits).max()).any())


def explodes(config: mom.MoMConfig) -> bool:
    """Whether scores multiply the stream by itself, round after round: maps of the stream, without a softmax."""
    limits = {"naive": 4, "linear": 1, "norm": 1}
    return not config.router_softmax and config.rounds > limits.get(config.router_kind, 99)


def recompute(model: mom.MoM, row: np.ndarray, noise: Any) -> Whole:
    config, rounded = model.config, np.zeros(len(row))
    twin = None
    if config.router_random or explodes(config):
        twin = reference.Model(config, model.parameters)(row[None], noise=noise if config.router_random else None)
    if config.router_random:
        assert twin is not None
        routes = {(p, r, half): vars(twin.routes[half][p][r]) for _, p, r, half in halves(model)}
        return Whole(twin.logits[0], rounded, routes)
    out = model(row, return_logits=True, return_routes=True)
    assert out.logits is not None and out.routes is not None
    if twin is not None:
        # Scores without softmax multiply results and what was rounded there: where they reach 1,100 (six rounds, all
        # modules kept) this pass is 1.5e-4 away from the one in float64, and the cached one 3e-5.
        rounded = np.array([error(a, b) for a, b in zip(out.logits[0], twin.logits[0], strict=True)])
        assert rounded.max() < 1e-3
    routes = {(p, r, half): entry(out.routes, half, b, r) for b, p, r, half in halves(model)}
    return Whole(out.logits[0], rounded, routes)


@dataclass
class Moment:
    """What a decoder tells after a call: tokens of each row so far, logits, routes of the last tokens."""

    lengths: list[int]
    logits: np.ndarray
    routes: dict[tuple[int, int, str], Any]

    def check(self, wholes: list[Whole], rounded: float) -> None:
        for b, (n, whole) in enumerate(zip(self.lengths, wholes, strict=True)):
            assert error(self.logits[b], whole.logits[n - 1]) < 1e-4 + 3 * whole.rounded[n - 1]
            grown = 10 * whole.rounded[n - 1]  # rounding does to scores what it does to results, and more
            for key, route in whole.routes.items():
                have = self.routes[key]
                assert np.array_equal(have["index"][b], route["index"][0, n - 1])
                for kind in ("scores", "weight"):
                    want = route[kind][0, n - 1]
                    largest = max(1.0, float(np.abs(want).max(initial=0.0)))  # of a row that went through the same sums
                    np.testing.assert_allclose(have[kind][b], want, rtol=1e-3, atol=(rounded + grown) * largest)


def cuttings(rng: np.random.Generator, lengths: list[int]) -> list[list[list[int]]]:
    """Ways of cutting rows into calls: tokens per row, for each call."""
    shortest, ones = min(lengths), [1] * len(lengths)
    ways = [
        [lengths],  # at once
        [ones, [n - 1 for n in lengths]],  # a token each, then the rest
        [[n - shortest + 1 for n in lengths], *[ones] * (shortest - 1)],  # step by step
    ]
    for _ in range(2):
        calls = int(rng.integers(2, shortest + 1))
        ends = [np.sort(rng.choice(np.arange(1, n), calls - 1, replace=False)) for n in lengths]
        parts = [np.diff([0, *e, n]).tolist() for e, n in zip(ends, lengths, strict=True)]
        ways.append([list(call) for call in zip(*parts, strict=True)])
    return ways


def decode(
    model: mom.MoM, rows: list[np.ndarray], way: list[list[int]]
) -> tuple[list[Moment], list[np.ndarray], Recorder]:
    """Give the rows to a new decoder and go on with tokens of its own."""
    decoder, recorder, moments = mom.Decoder(model), Recorder(model, len(rows)), []
    done = [0] * len(rows)
    for parts in way:
        recorder.add(parts)
        new = [row[at : at + n] for row, at, n in zip(rows, done, parts, strict=True)]
        logits = decoder.step(np.concatenate(new)) if moments and max(parts) == 1 else decoder.prefill(new)
        done = [at + n for at, n in zip(done, parts, strict=True)]
        assert decoder.lengths.tolist() == done
        moments.append(Moment(done, logits, {key[1:]: decoder.route(*key[1:]) for key in halves(model)}))
    recorder.add_generated(NEW - 1)  # the last one is not given to the model
    return moments, decoder.generate(NEW), recorder


def new_model(router: str, depth: int, top_k: int) -> mom.MoM:
    fields = {"router_type": router, "depth_per_chunk": depth, "routing_top_k": top_k}
    model = mom.MoM(mom.MoMConfig(**{**SMALL, **fields}), seed=10 * depth + top_k)
    rng = np.random.default_rng([depth, top_k])
    for tensor, value in model.parameters.items():
        if tensor.endswith("bias") or "layernorm" in tensor or "ln_" in tensor:
            value += rng.normal(0, 0.1, value.shape).astype(np.float32)
    return model


@pytest.mark.parametrize("top_k", [0, 1, 2, 3, ALL])
@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("router", ROUTERS)
def test_every_cutting(router: str, depth: int, top_k: int) -> None:
    mom.set_num_threads(1)
    model = new_model(router, depth, top_k)
    assert any(agree(model, attempt) for attempt in range(10)), "all texts have choices that hang on rounding"


def agree(model: mom.MoM, attempt: int) -> bool:
    """Check every cutting of some rows; False if a choice among their tokens hangs on rounding."""
    rng = np.random.default_rng([attempt, model.config.rounds])
    rows = [rng.integers(0, SMALL["vocab_size"], n) for n in rng.permutation([5, 7, 13])]
    rounded = rounding(model.config)
    wholes: list[Whole] = []
    before: list[np.ndarray] = []
    for number, way in enumerate(cuttings(rng, [len(row) for row in rows])):
        model.random_state = (100 * attempt + number, 7)
        moments, made, recorder = decode(model, rows, way)
        if not wholes or model.config.router_random:  # other calls draw other numbers
            texts = [np.concatenate([row, new[:-1]]) for row, new in zip(rows, made, strict=True)]
            wholes = [recompute(model, text, recorder.noise_of(b)) for b, text in enumerate(texts)]
            if not all(whole.decided(model.config.router_softmax, rounded) for whole in wholes):
                return False
            if any(tied(whole.logits[len(row) - 1 :]) for row, whole in zip(rows, wholes, strict=True)):
                return False
            before = made
        for moment in moments:
            moment.check(wholes, rounded)
        for row, new, same, whole in zip(rows, made, before, wholes, strict=True):
            assert np.array_equal(whole.logits[len(row) - 1 :].argmax(-1), new) and np.array_equal(new, same)
    return True
