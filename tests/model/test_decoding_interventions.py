"""Decoding with interventions equals the full pass: steps, long prompts, generation, reordered rows, beam search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from intervened import SMALL, made, tokens_of

import mom
from mom.model import beam_search

RULES = [
    mom.Force("ffn", to=1, rounds=[1], tokens=[2, 7]), mom.Force("attn", to="SKIP", rounds=[0], tokens=[4]),
    mom.Forbid("attn", modules=[2]), mom.Bias("ffn", {0: 1.5, "SKIP": -2.0}),
    mom.RandomRoutes("ffn", rounds=[2], seed=3),
    mom.Scale("block0.round1.ffn.output", 0.5), mom.Patch("block0.round0.ffn.output", np.full(16, 0.1), tokens=[5]),
    mom.Zero("embedding", tokens=[1]), mom.Scale("hidden", 1.3),
]  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "recurrent": {},
    "one choice": {"routing_top_k": 1, "chunks": 2},
    "naive": {"router_type": "naive", "weighted_qkv": True},
    "hash": {"router_type": "hash"},
    "no SKIP": {"router_type": "gru", "enable_pause": False, "num_attn": 4},
}


def setting(name: str) -> tuple[mom.MoM, list[mom.Intervention]]:
    rules = RULES if name != "no SKIP" else [
        mom.Bias("ffn", {0: 1.5}), *(rule for rule in RULES if "SKIP" not in repr(rule))
    ]  # fmt: skip
    return made(**SETTINGS[name]), rules


def close(have: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=3e-5)


@pytest.mark.parametrize("first", [1, 3, 10])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_prompt_and_steps_equal_the_full_pass(name: str, first: int) -> None:
    model, rules = setting(name)
    tokens = tokens_of(3, 12)
    with model.intervene(rules):
        full = model(tokens, return_logits=True).logits
        decoder = mom.Decoder(model)
        close(decoder.prefill(tokens[:, :first]), full[:, first - 1])
        for t in range(first, 12):
            close(decoder.step(tokens[:, t]), full[:, t])
    assert np.abs(model(tokens, return_logits=True).logits - full).max() > 1e-3


@pytest.mark.parametrize("name", ["recurrent", "hash"])
def test_added_pieces_and_unequal_prompts_equal_the_full_pass(name: str) -> None:
    model, rules = setting(name)
    tokens = tokens_of(3, 12)
    starts = [2, 6, 4]
    with model.intervene(rules):
        full = [model(row[None], return_logits=True).logits[0] for row in tokens]
        decoder = mom.Decoder(model)
        logits = decoder.prefill([row[:n] for row, n in zip(tokens, starts, strict=True)])
        for b, n in enumerate(starts):
            close(logits[b], full[b][n - 1])
        logits = decoder.prefill([row[n : n + 5] for row, n in zip(tokens, starts, strict=True)])
        for b, n in enumerate(starts):
            close(logits[b], full[b][n + 4])


def test_a_long_prompt_goes_through_the_forward_pass() -> None:
    model = made(n_positions=200)
    tokens = tokens_of(2, 150)
    with model.intervene(RULES):
        full = model(tokens, return_logits=True).logits
        decoder = mom.Decoder(model)
        close(decoder.prefill(tokens[:, :140]), full[:, 139])
        for t in range(140, 150):
            close(decoder.step(tokens[:, t]), full[:, t])


@pytest.mark.parametrize("name", ["recurrent", "one choice", "hash"])
def test_generated_tokens_are_those_of_full_passes(name: str) -> None:
    model, rules = setting(name)
    prompts = [tokens_of(1, n, seed=n)[0] for n in (4, 7)]
    with model.intervene(rules):
        found = model.generate(prompts, max_new_tokens=8)
        for prompt, row in zip(prompts, found, strict=True):
            want = list(prompt)
            for _ in range(8):
                want.append(int(model([want], return_logits=True).logits[0, -1].argmax()))
            assert row.tolist() == want
    plain = [model.generate(prompt, max_new_tokens=8).tolist() for prompt in prompts]
    assert [row.tolist() for row in found] != plain


def test_generating_on_after_generating_and_steps() -> None:
    model = made()
    with model.intervene(RULES):
        decoder = mom.Decoder(model)
        prompt = tokens_of(2, 3)
        decoder.prefill(prompt)
        rows = [list(row) for row in prompt]
        for length in (2, 1, 4):
            for row, new in zip(rows, decoder.generate(length), strict=True):
                row.extend(new.tolist())
        logits = decoder.step([5, 6])
        for row, token in zip(rows, (5, 6), strict=True):
            row.append(token)
        close(logits, model(np.array(rows), return_logits=True).logits[:, -1])


def test_stop_tokens_end_single_rows() -> None:
    model = made()
    prompts = tokens_of(4, 3)
    with model.intervene(RULES):
        whole = model.generate(prompts, max_new_tokens=10)
        stop = int(whole[0, 6])
        for stops in (stop, [stop, int(whole[1, 5])]):
            found = model.generate(prompts, max_new_tokens=10, stop_token=stops)
            for row, want in zip(found, whole, strict=True):
                hits = np.flatnonzero(np.isin(want[3:], stops))
                assert row.tolist() == want[: 3 + (hits[0] + 1 if hits.size else 10)].tolist()


def test_sampling_draws_the_same_numbers_in_one_call_or_token_by_token() -> None:
    model = made()
    rule = mom.Bias("ffn", {1: 0.0})  # changes nothing, but makes tokens come one by one
    want = model.generate(tokens_of(2, 4), max_new_tokens=15, temperature=1.2, top_k=9, seed=3)
    with model.intervene([rule]):
        have = model.generate(tokens_of(2, 4), max_new_tokens=15, temperature=1.2, top_k=9, seed=3)
    assert np.array_equal(want, have)


def test_reordered_rows_keep_their_prompts() -> None:
    """`rows` of a rule are prompts, wherever their copies stand."""
    model = made()
    tokens = tokens_of(2, 10)
    rules = [mom.Force("ffn", to=0, rows=[1]), mom.RandomRoutes("attn", rows=[0], seed=1)]
    with model.intervene(rules):
        full = model(tokens, return_logits=True).logits
        decoder = mom.Decoder(model)
        decoder.prefill(tokens[:, :4])
        decoder.reorder([1, 1, 0])
        for t in range(4, 10):
            logits = decoder.step(tokens[[1, 1, 0], t])
            close(logits, full[[1, 1, 0], t])
        assert np.array_equal(decoder.generate(3)[0], decoder.generate(3)[0]) or decoder.lengths.tolist() == [16] * 3


@pytest.mark.parametrize("beams", [1, 3])
def test_a_beam_search_equals_one_over_full_passes(beams: int) -> None:
    model = made()
    prompts = [tokens_of(1, n, seed=n)[0] for n in (4, 6)]
    rules = [*RULES, mom.Force("ffn", to=0, rows=[1], rounds=[0])]

    class FullPasses:
        """The verbs of a decoder, by a full pass for each token."""

        def prefill(self, tokens: Any) -> np.ndarray:
            self.rows = [(number, list(row)) for number, row in enumerate(tokens)]
            return self.logits()

        def step(self, tokens: Any) -> np.ndarray:
            self.rows = [(number, [*row, int(t)]) for (number, row), t in zip(self.rows, tokens, strict=True)]
            return self.logits()

        def reorder(self, rows: Any) -> None:
            self.rows = [self.rows[i] for i in rows]

        def logits(self) -> np.ndarray:
            # A row of its own in a batch, so that `rows` of the rules are prompts.
            found = []
            for number, row in self.rows:
                filled = [row if n == number else [0] * len(row) for n in range(2)]
                found.append(model(filled, return_logits=True).logits[number, -1])
            return np.array(found)

    with model.intervene(rules):
        want = beam_search(FullPasses(), prompts, 7, num_beams=beams, stop_token=3)
        have = beam_search(mom.Decoder(model), prompts, 7, num_beams=beams, stop_token=3)
    for a, b in zip(want, have, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.score == pytest.approx(b.score, rel=1e-4)


def test_a_rule_with_positions_waits_until_they_are_reached() -> None:
    model = made()
    rule = mom.Zero("hidden", tokens=[9])
    with model.intervene([rule]):
        model.generate(tokens_of(1, 4), max_new_tokens=7)
    with pytest.raises(ValueError, match=r"tokens=\[9\]\) touched nothing"), model.intervene([rule]):
        model.generate(tokens_of(1, 4), max_new_tokens=3)


def test_more_choices_than_the_configuration_keeps() -> None:
    model, tokens = made(routing_top_k=1), tokens_of(2, 8)
    with model.intervene([mom.TopK(3)]):
        full = model(tokens, return_logits=True, return_routes=True)
        decoder = mom.Decoder(model)
        decoder.prefill(tokens[:, :2])
        for t in range(2, 8):
            logits = decoder.step(tokens[:, t])
        close(logits, full.logits[:, -1])
        place = model.blocks[0].place
        for r in range(3):
            have = decoder.route(place, r, "ffn")
            assert np.array_equal(have["index"], full.routes.index["ffn"][r, :, -1])


def test_what_decoding_cannot_do_is_refused_and_nothing_is_appended() -> None:
    model, tokens = made(), tokens_of(2, 4)
    decoder = mom.Decoder(model)
    decoder.prefill(tokens)
    with pytest.raises(ValueError, match="no place fits 'hiden'"), model.intervene([mom.Zero("hiden")]):
        decoder.step([1, 2])
    assert decoder.lengths.tolist() == [4, 4]
    close(decoder.step([1, 2]), model(np.column_stack([tokens, [1, 2]]), return_logits=True).logits[:, -1])
    with (
        pytest.raises(ValueError, match="expected .16,. or .2, 16."),
        model.intervene([mom.Patch("hidden", np.ones((3, 2, 16)))]),
    ):
        decoder.step([1, 2])


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_other_formats_of_weights_take_the_same_interventions(weights: str) -> None:
    model, tokens = made(), tokens_of(2, 8)
    with model.intervene(RULES):
        decoder = mom.Decoder(model, weights=weights)
        logits = decoder.prefill(tokens[:, :6])
        for t in (6, 7):
            logits = decoder.step(tokens[:, t])
        route = decoder.route(model.blocks[0].place, 1, "ffn")
        full = model(tokens, return_logits=True).logits[:, -1]
    assert np.abs(logits - full).max() < 0.1 * np.abs(full).max()
    assert (route["index"][:, 0] == 1).all()  # position 7 is forced


# ---------------------------------------------------------------------- routes of generated tokens
def same_routes(have: mom.Routes, row: int, want: mom.Routes) -> None:
    """A packed row has the routes of a full pass over its tokens."""
    assert have.rounds == want.rounds and have.num_modules == want.num_modules
    assert np.array_equal(have.of_row(have.tokens, row), want.tokens[0])
    for half, index in want.index.items():
        assert np.array_equal(have.of_row(have.index[half], row), index[:, 0])
        np.testing.assert_allclose(have.of_row(have.weight[half], row), want.weight[half][:, 0], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(have.of_row(have.scores[half], row), want.scores[half][:, 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("length", [2, 30])
@pytest.mark.parametrize("name", [*SETTINGS, "single attention", "all paths"])
def test_routes_of_generated_tokens_are_those_of_the_full_pass(name: str, length: int) -> None:
    fields = {"single attention": {"num_attn": 1}, "all paths": {"routing_all_possible_path": True}}
    model = made(n_positions=48, **(SETTINGS | fields)[name])
    prompts = [tokens_of(1, n, seed=n)[0] for n in (length, length + 3)]
    want = model.generate(prompts, max_new_tokens=6)
    found, routes = model.generate(prompts, max_new_tokens=6, return_routes=True)
    assert [row.tolist() for row in found] == [row.tolist() for row in want]
    assert routes.lengths.tolist() == [length + 5, length + 8]  # nothing has read the last token
    for b, row in enumerate(found):
        same_routes(routes, b, model(row[None, :-1], return_routes=True).routes)


def test_routes_with_interventions_and_other_calls() -> None:
    model, tokens = made(), tokens_of(2, 8)
    rules = [mom.Force("ffn", to=1, rounds=[1], tokens=[2, 7]), mom.Forbid("attn", modules=[2])]
    decoder = mom.Decoder(model, keep_routes=True)
    with model.intervene(rules):
        decoder.prefill(tokens[:, :3])
        decoder.generate(2)
        decoder.step(tokens[:, 3])
        decoder.reorder([1, 1, 0])
        decoder.prefill([[5], [6, 7], [8]])
        routes = decoder.routes
        assert routes.lengths.tolist() == [7, 8, 7]
        for b in range(3):
            row = routes.of_row(routes.tokens, b)
            same_routes(routes, b, model(row[None], return_routes=True).routes)
    with model.intervene([mom.TopK(3, half="ffn")]):
        decoder.step([1, 2, 3])
    wide = decoder.routes
    assert wide.index["ffn"].shape[-1] == 3 and wide.index["attn"].shape[-1] == 2
    assert np.array_equal(wide.of_row(wide.index["ffn"], 0)[:, :7, :2], routes.of_row(routes.index["ffn"], 0))
    assert (wide.of_row(wide.index["ffn"], 0)[:, :7, 2] == -2).all() and (
        wide.of_row(wide.index["ffn"], 0)[:, 7] >= 0
    ).all()
    decoder.clear()
    with pytest.raises(RuntimeError, match="routes: there are no sequences yet"):
        decoder.routes  # noqa: B018
    with pytest.raises(RuntimeError, match="routes: are not kept; use Decoder.model, keep_routes=True"):
        mom.Decoder(model).routes  # noqa: B018


def test_routes_of_a_prompt_alone_and_of_a_plain_model() -> None:
    model, prompt = made(), tokens_of(1, 6)
    found, routes = model.generate(prompt[0], max_new_tokens=0, return_routes=True)
    assert found.tolist() == prompt[0].tolist()
    same_routes(routes, 0, model(prompt, return_routes=True).routes)
    _, none = made(chunks=0, n_layer=2).generate(prompt, max_new_tokens=3, return_routes=True)
    assert none.index == {} and none.lengths.tolist() == [8]


def test_rows_that_have_stopped_can_go_on() -> None:
    """Stop tokens that fill up a finished row are no tokens of it."""
    model, prompts = made(), tokens_of(4, 3)
    whole = model.generate(prompts, max_new_tokens=10)
    stop = int(whole[0, 5])
    rule = mom.RandomRoutes("attn", seed=2)
    with model.intervene([rule]):
        decoder = mom.Decoder(model, keep_routes=True)
        decoder.prefill(prompts)
        added = decoder.generate(10, stop_token=stop)
        rows = [[*prompt, *new] for prompt, new in zip(prompts.tolist(), added, strict=True)]
        assert decoder.lengths.tolist() == [len(row) for row in rows]
        logits = decoder.step([1, 2, 3, 4])
        for b, row in enumerate(rows):
            full = model([[*row, b + 1]], return_logits=True, return_routes=True)
            close(logits[b], full.logits[0, -1])
            same_routes(decoder.routes, b, full.routes)


def test_noise_of_decoding_is_in_its_routes() -> None:
    model = made(router_type="gru-random-softmax")
    tokens, routes = model.generate(tokens_of(2, 4), max_new_tokens=5, return_routes=True)
    model.random_state = (1, 0)
    again, same = model.generate(tokens_of(2, 4), max_new_tokens=5, return_routes=True)
    model.random_state = (1, 0)
    third, equal = model.generate(tokens_of(2, 4), max_new_tokens=5, return_routes=True)
    assert np.array_equal(again, third) and same == equal
    assert routes.index["ffn"].shape == (3, 16, 2) and tokens.shape == (2, 9)


@pytest.mark.parametrize("name", ["recurrent", "one choice", "naive", "hash", "plain", "all paths"])
def test_every_kind_of_place_is_changed_in_decoding(name: str) -> None:
    fields = {"plain": {"chunks": 0, "n_layer": 2}, "all paths": {"routing_all_possible_path": True}}
    model = made(**(SETTINGS | fields)[name])
    tokens = tokens_of(2, 12)
    rules = [mom.Scale("embedding", 1.1), mom.Scale("anchor*.*.input", 0.9), mom.Scale("final", 1.2)]
    rules += [mom.Patch("anchor0.attn.output", np.linspace(-1, 1, 16), tokens=[3, 8]), mom.Scale("hidden", 0.8)]
    if name != "plain":
        rules += [mom.Scale("block0.*.module*.output", 0.5), mom.Scale("block0.*.ffn.input", 0.95)]
        rules += [mom.Zero("block0.round1.attn.output", tokens=[5])]
    if name in ("recurrent", "one choice", "all paths"):
        rules += [mom.Scale("block0.*.state", 1.5, tokens=[2, 6, 9])]
    with model.intervene(rules):
        full = model(tokens, return_logits=True).logits
        decoder = mom.Decoder(model)
        close(decoder.prefill(tokens[:, :4]), full[:, 3])
        close(decoder.prefill(tokens[:, 4:7]), full[:, 6])
        for t in range(7, 12):
            close(decoder.step(tokens[:, t]), full[:, t])


def test_routes_of_decoding_can_be_replayed() -> None:
    model = made()
    with model.intervene([mom.RandomRoutes("ffn", seed=6), mom.Forbid("attn", [0])]):
        tokens, routes = model.generate(tokens_of(2, 5), max_new_tokens=4, return_routes=True)
        full = model(tokens[:, :-1], return_logits=True).logits
    free = model(tokens[:, :-1].ravel(), lengths=[8, 8], routes=routes, return_routes=True, return_logits=True)
    assert free.routes == routes
    # Forbidden modules change the scores that weights come from, so only the forced half could be compared by itself.
    with model.intervene([mom.Forbid("attn", [0])]):
        again = model(tokens[:, :-1].ravel(), lengths=[8, 8], routes=routes, return_logits=True)
    close(again.logits.reshape(full.shape), full)


def test_values_by_position_are_those_of_the_full_pass_for_any_number_of_rows() -> None:
    model, tokens = made(), tokens_of(2, 12)
    values = np.random.default_rng(4).standard_normal((2, 16))
    rule = mom.Patch("block0.round1.ffn.output", values, tokens=[9, 5])  # as many values as a step has tokens
    with model.intervene([rule]):
        full = model(tokens, return_logits=True).logits
        decoder = mom.Decoder(model)
        decoder.prefill(tokens[:, :4])
        for t in range(4, 12):
            close(decoder.step(tokens[:, t]), full[:, t])


def test_tokens_of_an_interrupted_call_are_not_guessed() -> None:
    model = made()
    decoder = mom.Decoder(model)
    decoder.prefill(tokens_of(2, 4))
    # As a signal leaves it that ends a call between two tokens: the core has tokens that nobody was told of.
    decoder._core.generate(2, 0.0, 0, 1.0, 0, 0, -1, np.zeros(2, np.uint8))
    assert decoder.lengths.tolist() == [6, 6]
    with pytest.raises(RuntimeError, match="an interrupted generate has chosen tokens .*; call clear"):
        with model.intervene([mom.Scale("hidden", 2.0)]):
            decoder.step([1, 2])
    decoder.step([1, 2])  # without interventions nothing needs to be known
    decoder.clear()
    with model.intervene([mom.Scale("hidden", 2.0)]):
        decoder.prefill(tokens_of(2, 4))


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_replaying_own_routes_in_decoding_gives_the_same_bits(name: str, weights: str) -> None:
    model = setting(name)[0]
    prompts = [tokens_of(1, 5)[0], tokens_of(1, 2)[0]]
    own, followed = mom.Decoder(model, weights, keep_routes=True), []
    bits = [own.prefill(prompts), own.step([3, 4]), own.prefill(tokens_of(2, 3))]
    bits += [np.stack(own.generate(3)), own.logits]
    followed = mom.Decoder(model, weights, keep_routes=True, routes=own.routes)
    again = [followed.prefill(prompts), followed.step([3, 4]), followed.prefill(tokens_of(2, 3))]
    again += [np.stack(followed.generate(3)), followed.logits]
    for have, want in zip(again, bits, strict=True):
        np.testing.assert_array_equal(have, want)
    assert followed.routes == own.routes


def test_replayed_routes_of_a_full_pass_end_where_their_tokens_end() -> None:
    model, tokens = made(), tokens_of(2, 12)
    routes = model(tokens, return_routes=True).routes
    assert routes is not None
    edited = routes.edit("ffn", to="SKIP", tokens=[3, 7], rows=[1]).edit("attn", to=1, round=2, tokens=[9])
    full = model(tokens, routes=edited, return_logits=True).logits
    decoder = mom.Decoder(model, keep_routes=True, routes=edited)
    close(decoder.prefill(tokens[:, :4]), full[:, 3])
    for t in range(4, 12):
        close(decoder.step(tokens[:, t]), full[:, t])
    decoder.step([1, 2])  # a thirteenth token chooses freely
    seen = decoder.routes.module["ffn"].reshape(-1, 2, 13, 2)
    assert (seen[:, 1, [3, 7]] == routes.num_modules["ffn"]).all()
    free = model(np.concatenate([tokens, [[1], [2]]], axis=1), return_routes=True).routes
    assert free is not None and not np.array_equal(free.module["ffn"][:, 1, 3], seen[:, 1, 3])


def test_rows_of_replayed_routes_are_prompts_also_after_reorder() -> None:
    model, tokens = made(), tokens_of(2, 8)
    routes = model(tokens, return_routes=True).routes
    assert routes is not None
    edited = routes.edit("ffn", to="SKIP", tokens=[6], rows=[1])
    decoder = mom.Decoder(model, keep_routes=True, routes=edited)
    decoder.prefill(tokens[:, :6])
    decoder.reorder([1, 0, 1])
    decoder.step([1, 1, 1])
    seen = decoder.routes.module["ffn"].reshape(-1, 3, 7, 2)[:, :, 6]
    assert (seen[:, [0, 2]] == SMALL.num_ffn).all() and (seen[:, 1] != SMALL.num_ffn).any()


def test_routes_that_do_not_fit_a_decoder_are_refused_before_any_work() -> None:
    model, tokens = made(), tokens_of(2, 8)
    routes = model(tokens, return_routes=True).routes
    with pytest.raises(ValueError, match="routes: are of 2 sequences, there are 1 prompts"):
        model.generate(tokens[0], max_new_tokens=2, routes=routes)
    with pytest.raises(TypeError, match="routes: expected mom.Routes, got dict"):
        mom.Decoder(model, routes={})  # type: ignore[arg-type]
    decoder = mom.Decoder(made(num_ffn=5), routes=routes)
    with pytest.raises(ValueError, match="routes: are of a model with other rounds or modules"):
        decoder.prefill(tokens)
    assert decoder.lengths.size == 0
