"""Cached decoding equals a full recomputation: logits, routes, generated tokens, however a text is cut."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from test_memory_failures import every_failure

import mom
from kinds import NOISELESS_ROUTERS as ROUTERS
from mom import _core, reference
from parity_cases import case_names, load_case
from route_entries import entry

SMALL: dict[str, Any] = {
    "vocab_size": 31, "n_positions": 96, "n_embd": 18, "n_head": 2, "n_inner": 23, "n_layer": 2, "chunks": 1,
    "num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 0,
    "require_anchor_layer": False, "router_dim": 13, "router_type": "gru-softmax", "routing_top_k": 2,
    "initializer_range": 0.25,
}  # fmt: skip
ALL = 9

CASES: dict[str, dict[str, Any]] = {
    **{f"{r}, depth {d}, top-{k}": {"router_type": r, "depth_per_chunk": d, "routing_top_k": k}
       for i, r in enumerate(ROUTERS) for d in range(1, 7) for k in ((0, 1, 2, ALL)[(i + d) % 4], (1, 2)[d % 2])},
    **{f"{r}, depth 3, top-{k}": {"router_type": r, "depth_per_chunk": 3, "routing_top_k": k}
       for r in ROUTERS for k in (0, 1, 2, ALL)},
    **{f"{a} + {f} modules, {r}": {"num_attn": a, "num_ffn": f, "router_type": r, "routing_top_k": 3}
       for a, f, r in ((2, 5, "naive-softmax"), (5, 2, "gru-softmax"), (4, 2, "gru"), (2, 4, "gru-dev"))},
    "single attention module": {"num_attn": 1, "depth_per_chunk": 3},
    "single feed-forward module": {"num_ffn": 1, "depth_per_chunk": 3},
    "both single": {"num_attn": 1, "num_ffn": 1, "depth_per_chunk": 4},
    "signs": {"use_ste": True, "router_type": "naive"},
    "signs, weighted": {"use_ste": True, "weighted_qkv": True, "router_type": "gru"},
    "weighted": {"weighted_qkv": True, "depth_per_chunk": 3},
    "all paths": {"routing_all_possible_path": True, "depth_per_chunk": 3},
    "all paths, weighted, naive": {"routing_all_possible_path": True, "weighted_qkv": True, "router_type": "naive"},
    "no SKIP": {"enable_pause": False},
    "own choices": {"router_choices": "own", "num_attn": 2, "num_ffn": 4},
    "two blocks with anchors": {"chunks": 2, "require_anchor_layer": True, "num_top_layers": 1},
    "no rounds": {"depth_per_chunk": 0},
    "heads of 9": {"n_head": 2},
    "heads of 80": {"n_embd": 160, "n_head": 2, "initializer_range": 0.08},
    "one channel per head": {"n_head": 18},
    "unscaled": {"scale_attn_weights": False},
    "vanilla": {"chunks": 0, "n_layer": 3, "num_bottom_layers": 0},
    "vanilla, no layer norm of its own size": {"chunks": 0, "n_layer": 1, "n_embd": 6, "n_inner": 65},
}  # fmt: skip


def build(name: str, **fields: Any) -> mom.MoM:
    model = mom.MoM(mom.MoMConfig(**{**SMALL, **CASES[name], **fields}), seed=len(name))
    generator = np.random.default_rng(list(name.encode()))
    for tensor, value in model.parameters.items():
        if tensor.endswith("bias") or "layernorm" in tensor or "ln_" in tensor:
            value += generator.normal(0, 0.1, value.shape).astype(np.float32)
    return model


def halves(model: mom.MoM) -> list[tuple[int, int, int, str]]:
    """(block, place, round, half) of everything that is routed."""
    return [
        (b, block.place, r, half)
        for b, block in enumerate(model.blocks)
        for r in range(model.config.rounds)
        for half in ("attn", "ffn")
        if (block.attention_router if half == "attn" else block.ffn_router) is not None
    ]


def error(have: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(have.astype(np.float64) - want) / np.linalg.norm(want))


def check(decoder: mom.Decoder, model: mom.MoM, rows: list[np.ndarray], logits: np.ndarray) -> None:
    """The state after `rows` is that of a full pass over each row."""
    assert decoder.lengths.tolist() == [len(row) for row in rows]
    for b, row in enumerate(rows):
        out = model(row, return_logits=True, return_routes=True)
        assert out.logits is not None and out.routes is not None
        # Raw scores multiply results, and what was rounded there, once in every round.
        deep = not model.config.router_softmax and model.config.rounds > 4
        assert error(logits[b], out.logits[0, -1]) < (1e-4 if deep else 2e-5)
        for block, place, r, half in halves(model):
            want, have = entry(out.routes, half, block, r), decoder.route(place, r, half)
            assert want is not None and have is not None
            assert np.array_equal(have["index"][b], want["index"][0, -1])
            np.testing.assert_allclose(have["scores"][b], want["scores"][0, -1], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(have["weight"][b], want["weight"][0, -1], rtol=1e-3, atol=1e-5)


def texts(name: str, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(list(name.encode()))
    return [generator.integers(0, SMALL["vocab_size"], n) for n in lengths]


# ---------------------------------------------------------------------- logits and routes
@pytest.mark.parametrize("name", CASES)
def test_every_position_equals_a_full_pass(name: str) -> None:
    """A prompt by the forward pass, then steps; and a prompt by steps alone."""
    model = build(name)
    (text,) = texts(name, 30)
    for begin in (20, 3):
        decoder = mom.Decoder(model)
        logits = decoder.prefill(text[:begin])
        check(decoder, model, [text[:begin]], logits)
        for t in range(begin, 30):
            logits = decoder.step(text[t : t + 1])
            check(decoder, model, [text[: t + 1]], logits)


@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-2", "naive, depth 3, top-1", "vanilla", "weighted"])
def test_levels(name: str, kernel_level: str) -> None:
    model = build(name)
    (text,) = texts(name, 24)
    decoder = mom.Decoder(model)
    check(decoder, model, [text[:18]], decoder.prefill(text[:18]))
    for t in range(18, 24):
        logits = decoder.step(text[t : t + 1])
        check(decoder, model, [text[: t + 1]], logits)


@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-1", "naive, depth 3, top-2", "all paths", "vanilla"])
@pytest.mark.parametrize(
    "cuts", [(70,), (1,) * 70, (35, 35), (64, 6), (6, 64), (3, 33, 1, 32, 1), (17, 1, 16, 36), (63, 1, 1, 5)], ids=str
)
def test_any_cutting_of_a_text(name: str, cuts: tuple[int, ...]) -> None:
    model = build(name)
    (text,) = texts(name, 70)
    decoder, done = mom.Decoder(model), 0
    for cut in cuts:
        logits = decoder.prefill(text[done : done + cut])
        done += cut
        check(decoder, model, [text[:done]], logits)


@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-1", "2 + 5 modules, naive-softmax", "vanilla", "signs"])
def test_sequences_of_unequal_length(name: str) -> None:
    model = build(name)
    first = texts(name, 1, 40, 7, 22)
    decoder = mom.Decoder(model)
    check(decoder, model, first, decoder.prefill(first))
    more = texts(name + "more", 5, 1, 40, 2)
    both = [np.concatenate(pair) for pair in zip(first, more, strict=True)]
    check(decoder, model, both, decoder.prefill(more))
    (last,) = texts(name + "last", 4)
    both = [np.concatenate([row, [token]]) for row, token in zip(both, last, strict=True)]
    check(decoder, model, both, decoder.step(last))


@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-2", "vanilla"])
def test_what_is_right_of_a_row_is_never_read(name: str) -> None:
    model = build(name)
    core = _core.Decoder(model._core)
    rows = texts(name, 20, 5)
    padded = np.full((2, 20), 10**6, np.int32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    logits = core.prefill(padded, np.array([20, 5], np.int32))
    decoder = mom.Decoder(model)
    assert np.array_equal(logits, decoder.prefill(rows))
    core.prefill(padded, np.array([0, 1], np.int32) * 0 + np.array([0, 3], np.int32))
    assert core.lengths.tolist() == [20, 8]
    check(decoder, model, [rows[0], rows[1]], logits)
    assert error(core.logits[1], mom.Decoder(model).prefill(np.concatenate([rows[1], rows[1][:3]]))[0]) < 2e-5
    assert np.array_equal(core.logits[0], logits[0]), "nothing was appended there"


def test_a_row_of_a_batch_has_the_bits_it_has_alone() -> None:
    model = build("gru-softmax, depth 3, top-2")
    rows = texts("bits", 3, 6, 1, 4, 2)  # few enough to go through steps from the start
    together = mom.Decoder(model)
    alone = [mom.Decoder(model) for _ in rows]
    for _ in range(4):
        logits = together.prefill(rows)
        for b, (decoder, row) in enumerate(zip(alone, rows, strict=True)):
            assert np.array_equal(decoder.prefill(row)[0], logits[b])


def test_more_sequences_than_a_block_of_rows() -> None:
    model = build("gru-softmax, depth 3, top-1")
    rows = texts("many", *(1 + i % 5 for i in range(70)))
    decoder = mom.Decoder(model)
    logits = decoder.prefill(rows)
    logits = decoder.step(np.arange(70) % 31)
    rows = [np.concatenate([row, [i % 31]]) for i, row in enumerate(rows)]
    check(decoder, model, rows, logits)


def test_a_failure_in_a_later_block_of_rows_puts_everything_back() -> None:
    """The first block gives sequence 0 its logits and routes before the second one runs out of memory."""
    model = build("gru-softmax, depth 3, top-1", vocab_size=16000)
    beginning, more = texts("later", 2), texts("later still", 1, 32, *[1] * 20)

    def start() -> mom.Decoder:
        decoder = mom.Decoder(model, capacity=40)
        decoder.prefill(beginning)
        decoder.reorder([0] * 22)
        return decoder

    def state(decoder: mom.Decoder) -> list[np.ndarray]:
        routes = [decoder.route(place, r, half) for _, place, r, half in halves(model)]
        return [decoder.logits, decoder.lengths, *(a for route in routes if route for a in route.values())]

    decoder, other = start(), start()
    before = state(decoder)

    def unchanged() -> None:
        assert all(np.array_equal(a, b) for a, b in zip(state(decoder), before, strict=True))

    assert every_failure(lambda: decoder.prefill(more), unchanged) >= 1
    assert decoder.lengths.tolist() == [3, 34, *[3] * 20]
    assert np.array_equal(decoder.logits, other.prefill(more))


# ---------------------------------------------------------------------- skipping
def skipping(model: mom.MoM, half: str, tokens: list[int]) -> None:
    """Make the naive router of `half` send exactly these tokens to SKIP, by a channel of their own."""
    wte = model.parameters["transformer.wte.weight"]
    wte[:, 0] = 0
    wte[tokens, 0] = 1e4
    model.parameters["transformer.wpe.weight"][:, 0] = 0
    for block in model.blocks:
        router = block.attention_router if half == "attn" else block.ffn_router
        assert router is not None
        router.parameters["router.0.weight"][0] = 0
        router.parameters["router.0.weight"][0, 0] = 1
        router.parameters["router.2.weight"][-1, 0] = 1  # SKIP is the last choice


@pytest.mark.parametrize("half", ["attn", "ffn"])
@pytest.mark.parametrize("skips", [[0], [0, 1, 2], [3], list(range(31)), [30]], ids=str)
def test_tokens_that_only_skip(half: str, skips: list[int]) -> None:
    fields = {"router_type": "naive", "routing_top_k": 1, "depth_per_chunk": 3, "num_bottom_layers": 0}
    model = mom.MoM(mom.MoMConfig(**{**SMALL, **fields}), seed=3)
    skipping(model, half, skips)
    text = np.concatenate([[0, 0, 3, 1], np.random.default_rng(1).integers(0, 31, 40), [0, 3, 30]])
    out = model(text, return_routes=True)
    assert out.routes is not None
    chosen = out.routes.index[half][0, 0, :, 0]
    assert (chosen[np.isin(text, skips)] == 3).all()
    for begin in (1, 2, 25):
        decoder = mom.Decoder(model)
        logits = decoder.prefill(text[:begin])
        check(decoder, model, [text[:begin]], logits)
        for t in range(begin, len(text)):
            logits = decoder.step(text[t : t + 1])
            check(decoder, model, [text[: t + 1]], logits)


def test_no_choice_kept_caches_nothing() -> None:
    model = build("gru-softmax, depth 3, top-0")
    (text,) = texts("nothing", 20)
    decoder = mom.Decoder(model)
    decoder.prefill(text[:1])
    for t in range(1, 20):
        logits = decoder.step(text[t : t + 1])
    check(decoder, model, [text], logits)


# ---------------------------------------------------------------------- reorder
@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-1", "naive, depth 3, top-1", "vanilla"])
def test_reorder(name: str) -> None:
    model = build(name)
    rows = texts(name, 12, 1, 25)
    decoder = mom.Decoder(model)
    before = decoder.prefill(rows)
    for order in ([2, 0, 1], [1, 1, 2, 0], [3, 2, 2, 2, 0], [4]):
        decoder.reorder(order)
        rows = [rows[i] for i in order]
        before = before[order]
        assert np.array_equal(decoder.logits, before)
        check(decoder, model, rows, decoder.logits)
        (new,) = texts(name + str(order), len(order))
        before = decoder.step(new)
        rows = [np.concatenate([row, [token]]) for row, token in zip(rows, new, strict=True)]
        check(decoder, model, rows, before)


def test_reorder_after_generate_takes_the_pending_tokens_along() -> None:
    model = build("vanilla")
    decoder = mom.Decoder(model)
    rows = texts("pending", 4, 9)
    decoder.prefill(rows)
    rows = [np.concatenate(pair) for pair in zip(rows, decoder.generate(3), strict=True)]
    decoder.reorder([1, 0, 1])
    rows = [rows[1], rows[0], rows[1]]
    assert decoder.lengths.tolist() == [12, 7, 12]
    logits = decoder.step([5, 6, 7])
    check(decoder, model, [np.append(row, t) for row, t in zip(rows, (5, 6, 7), strict=True)], logits)


# ---------------------------------------------------------------------- generation
def recompute(model: mom.MoM, prompt: np.ndarray, new: int) -> np.ndarray:
    for _ in range(new):
        logits = model(prompt, return_logits=True).logits
        assert logits is not None
        prompt = np.append(prompt, logits[0, -1].argmax())
    return prompt


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_full_recomputation(name: str) -> None:
    model = build(name)
    prompts = texts(name, 2, 19, 5)
    for row, prompt in zip(model.generate(prompts, 25), prompts, strict=True):
        assert np.array_equal(row, recompute(model, prompt, 25))


def test_generation_up_to_the_last_position() -> None:
    model = build("gru-softmax, depth 3, top-1", n_positions=20)
    (prompt,) = texts("last", 3)
    whole = model.generate(prompt, 17)
    assert np.array_equal(whole, recompute(model, prompt, 17))
    decoder = mom.Decoder(model)
    decoder.prefill(prompt)
    with pytest.raises(ValueError, match="max_new_tokens: .* 18 new tokens need 21 positions, the model has 20"):
        decoder.generate(18)
    assert np.array_equal(decoder.generate(17)[0], whole[3:])
    assert decoder.lengths.tolist() == [20] and decoder.generate(0)[0].size == 0
    for call in (lambda: decoder.step([1]), lambda: decoder.prefill([1, 2])):
        with pytest.raises(ValueError, match="tokens: sequence 0 would have 2[12] tokens, n_positions is 20"):
            call()
    assert decoder.lengths.tolist() == [20]


def test_generation_in_parts_is_generation_at_once() -> None:
    model = build("gru-softmax, depth 3, top-2")
    prompts = texts("parts", 4, 20)
    for options in ({}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}):
        once = model.generate(prompts, 40, **options)
        decoder = mom.Decoder(model)
        decoder.prefill(prompts)
        parts = [decoder.generate(n, **options) for n in (1, 16, 17, 6)]
        for b, row in enumerate(once):
            assert np.array_equal(np.concatenate([prompts[b], *(p[b] for p in parts)]), row)


def test_finished_rows_do_not_hold_up_the_others() -> None:
    model = build("gru-softmax, depth 3, top-1")
    prompts = texts("stop", 3, 8, 5)
    free = model.generate(prompts, 30)
    stop = int(free[0][3 + 4])
    decoder = mom.Decoder(model)
    decoder.prefill(prompts)
    stopped = decoder.generate(30, stop_token=stop)
    for b, row in enumerate(free):
        new = row[len(prompts[b]) :].tolist()
        assert stopped[b].tolist() == (new[: new.index(stop) + 1] if stop in new else new)
    rows = [np.concatenate(pair) for pair in zip(prompts, stopped, strict=True)]
    logits = decoder.step([1, 2, 3])
    check(decoder, model, [np.append(row, t) for row, t in zip(rows, (1, 2, 3), strict=True)], logits)


@pytest.mark.parametrize("name", case_names("vanilla_generate", "mom_generate"))
@pytest.mark.parametrize("threads", [1, 2])
def test_recorded_generation(name: str, threads: int, kernel_level: str) -> None:
    mom.set_num_threads(threads)
    case = load_case(name)
    model = mom.MoM(case.config)
    model.load_state(case.parameters, name)
    tokens = case.expected32["tokens"]
    new = case.expected32["new_tokens"].shape[1]
    assert np.array_equal(model.generate(tokens[:, :-new], new), tokens)
    for begin in range(1, tokens.shape[1]):
        decoder = mom.Decoder(model)
        logits = decoder.prefill(tokens[:, :begin])
        assert error(logits, case.expected["logits_full"][:, begin - 1]) < 1e-4
        logits = decoder.prefill(tokens[:, begin:])
        assert error(logits, case.expected["logits_full"][:, -1]) < 1e-4


@pytest.mark.parametrize("name", case_names("lm", "vanilla"))
def test_recorded_logits(name: str) -> None:
    """Every recorded case without padding, by steps."""
    case = load_case(name)
    if "attention_mask" in case.inputs and not case.inputs["attention_mask"].all():
        pytest.skip("padded")
    if case.config.router_random:
        pytest.skip("random numbers of its own")
    model = mom.MoM(case.config)
    model.load_state(case.parameters, name)
    tokens = case.inputs["input_ids"]
    decoder = mom.Decoder(model)
    for t in range(tokens.shape[1]):
        logits = decoder.step(tokens[:, t]) if t else decoder.prefill(tokens[:, :1])
        assert error(logits, case.expected["logits"][:, t]) < 1e-4


# ---------------------------------------------------------------------- noise
@pytest.mark.parametrize("router", ["gru-random", "gru-dev-random-softmax"])
def test_random_routers_draw_once_per_token(router: str) -> None:
    model = build("gru, depth 3, top-2", router_type=router)
    (text,) = texts(router, 30)
    model.random_state = (5, 0)
    out = model(text[:20], return_logits=True, return_routes=True)
    assert out.logits is not None
    model.random_state = (5, 0)
    decoder = mom.Decoder(model)
    logits = decoder.prefill(text[:20])
    assert error(logits[0], out.logits[0, -1]) < 2e-5
    assert model.random_state == (5, 1)
    results = []
    for _ in range(2):
        model.random_state = (5, 0)
        decoder = mom.Decoder(model)
        decoder.prefill(text[:20])
        results.append([decoder.step(text[t : t + 1]) for t in range(20, 30)])
        assert model.random_state == (5, 11)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    model.random_state = (6, 0)
    assert not np.array_equal(mom.Decoder(model).prefill(text[:20]), logits)


# ---------------------------------------------------------------------- number formats
@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-1", "vanilla", "all paths", "heads of 80"])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_converted_weights_are_those_of_a_converted_model(name: str, weights: str, kernel_level: str) -> None:
    model = build(name)
    (text,) = texts(name, 25)
    decoder = mom.Decoder(model, weights)
    assert decoder.weights == weights
    logits = decoder.prefill(text[:1])
    stepped = [decoder.step(text[t : t + 1]) for t in range(1, 25)]
    converted = mom.MoM(model.config)
    converted.load_state(dict(model.parameters), "copy")
    for tensor, value in converted.parameters.items():
        if any(part in tensor for part in ("c_attn", "c_proj", "c_fc")) and tensor.endswith("weight"):
            value[...] = round_to(weights, value)
    # The head is converted too; the embedding is not.
    hidden = hidden_states(converted, text)
    want = hidden @ round_to(weights, model.parameters["transformer.wte.weight"].T)
    # The first token went through the model's forward pass, with its own weights: its keys differ by rounding.
    for t, have in enumerate(stepped, start=1):
        assert error(have[0], want[t]) < (0.02 if weights == "bfloat16" else 0.05)
    full = model(text, return_logits=True).logits
    assert full is not None
    assert 1e-5 < error(np.stack(stepped)[:, 0], full[0, 1:]) < 0.3
    assert logits.shape == (1, 31)


@pytest.mark.parametrize("name", ["both single", "vanilla", "all paths", "single attention module"])
@pytest.mark.parametrize("weights", [None, "float32", "int8"])
def test_models_in_bfloat16(name: str, weights: str | None) -> None:
    """The cache is filled from bfloat16 activations, steps go on in float32: equal up to bfloat16's rounding.

    Without choices of modules, where a near-tie may fall the other way.
    """
    single = build(name)
    (text,) = texts(name, 40)
    model = mom.MoM(single.config, dtype="bfloat16")
    model.load_state(dict(single.parameters), "copy")
    decoder = mom.Decoder(model, weights)
    assert decoder.weights == (weights or "bfloat16")
    full = model(text[:30], return_logits=True).logits
    assert full is not None and error(decoder.prefill(text[:30])[0], full[0, -1]) < 0.03
    exact = mom.Decoder(single)
    exact.prefill(text[:30])
    errors = [error(decoder.step(text[t : t + 1]), exact.step(text[t : t + 1])) for t in range(30, 40)]
    assert max(errors) < 0.06, errors
    assert len(model.generate(text[:20], 10)) == 30


def hidden_states(model: mom.MoM, text: np.ndarray) -> np.ndarray:
    """Rows before the head, recovered from logits of a head that is the identity."""
    twin = reference.Model(model.config, model.parameters)
    return np.asarray(twin(text[None]).trace["hidden/ln_f"]).reshape(len(text), -1)


def round_to(weights: str, value: np.ndarray) -> np.ndarray:
    """A (k, n) matrix as the decoder rounds it."""
    if weights == "bfloat16":
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    scale = np.abs(value).max(axis=0, keepdims=True) / 127
    return (np.rint(value / np.where(scale > 0, scale, 1)) * scale).astype(np.float32)


def test_weights_in_place_and_snapshots() -> None:
    model = build("vanilla")
    (text,) = texts("weights", 4)
    live, copied = mom.Decoder(model), mom.Decoder(model, "bfloat16")
    for decoder in (live, copied):
        decoder.prefill(text)
    decoder = mom.Decoder(model, "bfloat16")
    decoder.prefill(text)
    want = decoder.step([1])
    for tensor, value in model.parameters.items():
        if tensor.endswith("c_fc.weight"):
            value *= 2
    assert np.array_equal(copied.step([1]), want), "a copy of the weights as they were"
    fresh = live.step([1])
    live.clear()
    check(live, model, [np.append(text, 1)], live.prefill(np.append(text, 1)))
    assert error(fresh, live.logits) < 1.0


# ---------------------------------------------------------------------- bits, threads, levels
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["gru-softmax, depth 3, top-2", "heads of 80"])
def test_same_bits_for_any_number_of_threads(name: str, weights: str, kernel_level: str) -> None:
    model = build(name, vocab_size=700, n_inner=300)
    rows = texts(name, 3, 30, 8)
    results = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        decoder = mom.Decoder(model, weights)
        logits = [decoder.prefill(rows)]
        logits += [decoder.prefill([row[:n] for row, n in zip(rows, (1, 20, 4), strict=True)])]
        logits += [decoder.step([1, 2, 3])]
        results.append((logits, decoder.generate(12, 0.8, seed=3)))
    for logits, tokens in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(logits, results[0][0], strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(tokens, results[0][1], strict=True))


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("out_in", [False, True])
@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(1, 1, 1), (1, 768, 64), (2, 37, 65), (3, 64, 63), (4, 33, 128), (5, 100, 17), (7, 3, 200), (16, 256, 320),
     (1, 3000, 40), (1, 40, 3000), (33, 50, 70), (0, 4, 4), (2, 0, 5), (2, 5, 0)],
)  # fmt: skip
def test_products_of_a_few_rows(rows: int, k: int, n: int, out_in: bool, weights: str, kernel_level: str) -> None:
    generator = np.random.default_rng([rows, k, n])
    x = generator.normal(size=(rows, k)).astype(np.float32)
    weight = generator.normal(size=(k, n)).astype(np.float32)
    bias = generator.normal(size=n).astype(np.float32)
    stored = np.ascontiguousarray(weight.T) if out_in else weight
    used = weight if weights == "float32" or not weight.size else round_to(weights, weight)
    want = x.astype(np.float64) @ used
    scale = max(float(np.abs(want).max()), 1.0) if want.size else 1.0
    tolerance = 5e-6 * scale
    assert np.abs(_core.gemv(x, stored, None, out_in, weights, False) - want).max(initial=0) < tolerance
    biased = want + bias
    assert np.abs(_core.gemv(x, stored, bias, out_in, weights, False) - biased).max(initial=0) < tolerance
    gelu = 0.5 * biased * (1 + np.tanh(np.sqrt(2 / np.pi) * (biased + 0.044715 * biased**3)))
    assert np.abs(_core.gemv(x, stored, bias, out_in, weights, True) - gelu).max(initial=0) < 2 * tolerance


def test_a_column_of_zeros_has_no_scale() -> None:
    weight = np.zeros((4, 3), np.float32)
    weight[:, 1] = [1, -127, 3, 0.4]
    have = _core.gemv(np.eye(4, dtype=np.float32), weight, None, False, "int8", False)
    assert np.array_equal(have, np.rint(weight))


# ---------------------------------------------------------------------- the object
def test_the_decoder_keeps_its_model_and_gives_everything_back() -> None:
    gc.collect()
    live = _core.memory_live_bytes()
    decoder = mom.Decoder(build("gru-softmax, depth 3, top-1"), "int8")
    decoder.prefill([[1, 2], [3]])
    gc.collect()
    assert decoder.step([4, 5]).shape == (2, 31)
    assert 0 < decoder.bytes < _core.memory_live_bytes() - live
    assert decoder.model.config.num_attn == 3
    network = decoder.model._core
    references = sys.getrefcount(network)
    for _ in range(3):
        _core.Decoder(network)
        with pytest.raises(ValueError):
            _core.Decoder(network, "int4")
    assert sys.getrefcount(network) == references
    del decoder, network
    gc.collect()
    assert _core.memory_live_bytes() == live


def test_results_are_copies_with_stable_references() -> None:
    model = build("vanilla")
    decoder = mom.Decoder(model)
    logits = decoder.prefill([1, 2])
    logits[...] = 0
    assert decoder.logits.any()
    tokens = np.array([3], np.int32)
    before = sys.getrefcount(tokens)
    for _ in range(10):
        decoder._core.step(tokens)
    assert sys.getrefcount(tokens) == before


def test_bytes_grow_with_the_cache_and_capacity_is_reserved() -> None:
    model = build("vanilla")
    decoder = mom.Decoder(model, capacity=90)
    decoder.prefill([1])
    reserved = decoder.bytes
    for t in range(88):
        decoder.step([t % 31])
    assert decoder.bytes == reserved
    small = mom.Decoder(model)
    small.prefill([1])
    assert small.bytes < reserved
    small.clear()
    assert small.lengths.size == 0
    check(small, model, [np.array([7, 8])], small.prefill([7, 8]))


# ---------------------------------------------------------------------- refused memory
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize(
    "name", ["gru-softmax, depth 3, top-1", "vanilla", "all paths, weighted, naive", "signs, weighted"]
)
def test_every_allocation_may_fail(name: str, weights: str) -> None:
    gc.collect()
    live = _core.memory_live_bytes()
    fail_everywhere(name, weights)
    gc.collect()
    assert _core.memory_live_bytes() == live


def fail_everywhere(name: str, weights: str) -> None:
    """MemoryError, nothing lost, and the sequences are as they were before the call."""
    model = build(name, vocab_size=9000)
    prompts, more = texts(name, 3, 40), texts(name + "more", 30, 2)
    want = mom.Decoder(model, weights)
    first, second, third = want.prefill(prompts), want.prefill(more), want.step([1, 2])
    want.reorder([1, 1, 0])
    tokens = want.generate(4, 1.0, seed=2)

    state: dict[str, Any] = {}
    before = _core.memory_live_bytes()

    def nothing_is_left() -> None:
        gc.collect()
        assert _core.memory_live_bytes() == before

    def create() -> None:
        state["decoder"] = mom.Decoder(model, weights)

    assert every_failure(create, nothing_is_left) >= 1
    decoder: mom.Decoder = state["decoder"]

    def is_empty() -> None:
        assert decoder.lengths.size == 0

    def is_first() -> None:
        assert decoder.lengths.tolist() == [3, 40] and np.array_equal(decoder.logits, first)

    def is_second() -> None:
        assert decoder.lengths.tolist() == [33, 42] and np.array_equal(decoder.logits, second)

    def is_third() -> None:
        assert decoder.lengths.tolist() == [34, 43] and np.array_equal(decoder.logits, third)

    def keeping(call: Any) -> Any:
        def run() -> None:
            state["result"] = call()

        return run

    assert every_failure(keeping(lambda: decoder.prefill(prompts)), is_empty) >= 3
    assert np.array_equal(state["result"], first)
    every_failure(keeping(lambda: decoder.prefill(more)), is_first)
    assert np.array_equal(state["result"], second)
    every_failure(keeping(lambda: decoder.step([1, 2])), is_second)
    assert np.array_equal(state["result"], third)
    assert every_failure(keeping(lambda: decoder.reorder([1, 1, 0])), is_third) >= 2
    assert decoder.lengths.tolist() == [43, 43, 34]
    finished = np.zeros(3, np.uint8)
    made: list[np.ndarray] = []

    def generate() -> None:
        made.append(decoder._core.generate(4 - len(made), 1.0, 0, 1.0, 2, len(made), -1, finished))

    every_failure(generate, lambda: None)
    assert all(np.array_equal(a, b) for a, b in zip(np.concatenate(made).T, tokens, strict=True))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m, d: mom.Decoder(m, "int4"), ValueError, "weights: 'int4' is not one of 'float32'"),
        (lambda m, d: mom.Decoder(3), TypeError, "model: expected MoM, got int"),
        (lambda m, d: mom.Decoder(m, capacity=97), ValueError, "capacity: 97 tokens, n_positions is 96"),
        (lambda m, d: mom.Decoder(m, capacity=-1), ValueError, "capacity: -1 is negative"),
        (lambda m, d: _core.Decoder(3), TypeError, "argument 1 must be mom._core.Network"),
        (lambda m, d: _core.Decoder(m._core, "fp4"), ValueError, "weights: 'fp4', expected 'float32', 'bfloat16' or"),
        (lambda m, d: d.prefill([[1, 2]]), ValueError, "tokens: 1 rows, expected 2, one per sequence"),
        (lambda m, d: d.prefill([[1], []]), ValueError, r"tokens: row 1: shape \(0,\) is empty"),
        (lambda m, d: d.prefill([[1], [31]]), ValueError, r"tokens: 31 at position 0 is not in \[0, 31\).*row 1"),
        (lambda m, d: d.prefill([[1], [-1]]), ValueError, r"tokens: -1 at position 0"),
        (lambda m, d: d.prefill(np.zeros((2, 95), int)), ValueError, "tokens: sequence 0 would have 97 tokens"),
        (lambda m, d: d.step([1]), ValueError, "tokens: 1 rows, expected 2"),
        (lambda m, d: d.step([1, 2, 3]), ValueError, "tokens: 3 rows, expected 2"),
        (lambda m, d: d.step([[1], [2]]), ValueError, r"tokens: shape \(2, 1\), expected \(B,\)"),
        (lambda m, d: d.step([1.0, 2.0]), TypeError, "tokens: dtype float64"),
        (lambda m, d: d.step([1, 31]), ValueError, r"tokens: 31 at position 0 .* row 1"),
        (lambda m, d: d._core.step(np.zeros(2, np.int64)), TypeError, "tokens: dtype int64, expected int32"),
        (lambda m, d: d._core.prefill(np.zeros((2, 0), np.int32)), ValueError, r"tokens: shape \(2, 0\) is empty"),
        (lambda m, d: d._core.prefill(np.zeros((2, 2), np.int32), np.array([3, 1], np.int32)), ValueError,
         r"lengths: 3 at position 0 is not in \[0, 2\]"),
        (lambda m, d: d._core.prefill(np.zeros((2, 2), np.int32), np.array([1, -1], np.int32)), ValueError,
         r"lengths: -1 at position 1"),
        (lambda m, d: d._core.prefill(np.zeros((2, 2), np.int32), np.zeros(3, np.int32)), ValueError,
         r"lengths: shape \(3,\), expected \(2,\)"),
        (lambda m, d: _core.Decoder(m._core).prefill(np.zeros((1, 2), np.int32), np.zeros(1, np.int32)), ValueError,
         r"lengths: 0 at position 0 is not in \[1, 2\]"),
        (lambda m, d: d.reorder([0, 2]), ValueError, r"rows: 2 at position 1 is not in \[0, 2\)"),
        (lambda m, d: d.reorder([-1]), ValueError, "rows: -1 at position 0"),
        (lambda m, d: d.reorder([]), ValueError, r"rows: shape \(0,\) is empty"),
        (lambda m, d: d._core.reorder(np.zeros(0, np.int32)), ValueError, "rows: is empty"),
        (lambda m, d: mom.Decoder(m).reorder([0]), RuntimeError, "reorder: there are no sequences yet"),
        (lambda m, d: mom.Decoder(m).generate(1), RuntimeError, "generate: there are no sequences yet"),
        (lambda m, d: mom.Decoder(m).route(0), RuntimeError, "route: there are no sequences yet"),
        (lambda m, d: d.route(9), IndexError, "no such place"),
        (lambda m, d: d.route(0, half="both"), ValueError, "half: expected 'attn' or 'ffn'"),
        (lambda m, d: d.generate(95), ValueError, "max_new_tokens: .* need 97 positions, the model has 96"),
        (lambda m, d: d.generate(1, stop_token=31), ValueError, r"stop_token: 31 is not in \[0, 31\)"),
        (lambda m, d: d._core.generate(1, -1.0, 0, 1.0, 0, 0, -1, np.zeros(2, np.uint8)), ValueError, "out of range"),
        (lambda m, d: d._core.generate(1, 0.0, 0, 1.0, 0, 0, -1, np.zeros(3, np.uint8)), ValueError, "finished: shape"),
        (lambda m, d: d._core.generate(99, 0.0, 0, 1.0, 0, 0, -1, np.zeros(2, np.uint8)), ValueError,
         "n: sequence 0 of 2 tokens and 99 new ones need 101 positions"),
        (lambda m, d: d._core.reserve(97), ValueError, "capacity: 97 tokens, n_positions is 96"),
        (lambda m, d: m.generate([1], 2, weights="int4"), ValueError, "weights: 'int4' is not one of"),
    ],
)  # fmt: skip
def test_bad_arguments_change_nothing(call: Any, kind: Any, message: str) -> None:
    model = build("gru-softmax, depth 3, top-1")
    decoder = mom.Decoder(model)
    logits = decoder.prefill([[1, 2], [3]])
    with pytest.raises(kind, match=message):
        call(model, decoder)
    assert decoder.lengths.tolist() == [2, 1] and np.array_equal(decoder.logits, logits)
    check(decoder, model, [np.array([1, 2, 4]), np.array([3, 5])], decoder.step([4, 5]))


def test_a_classifier_has_no_next_token() -> None:
    classifier = mom.MoMForSequenceClassification(mom.MoMConfig(**SMALL, num_labels=2))
    with pytest.raises(TypeError, match="model: expected MoM, got MoMForSequenceClassification"):
        mom.Decoder(classifier)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="network: a classifier has no next token"):
        _core.Decoder(classifier._core)


def test_not_a_number_is_named_and_the_decoder_goes_on() -> None:
    model = build("vanilla")
    decoder = mom.Decoder(model)
    decoder.prefill([1, 2])
    saved = model.parameters["transformer.ln_f.bias"].copy()
    first = decoder.generate(1)[0]
    model.parameters["transformer.ln_f.bias"] = np.full(saved.shape, np.nan)
    with pytest.raises(ValueError, match="logits: not a number at row 0"):
        decoder.generate(2)
    model.parameters["transformer.ln_f.bias"] = saved
    assert decoder.lengths.tolist() == [3]
    check(decoder, model, [np.concatenate([[1, 2], first, [4]])], decoder.step([4]))


def test_one_thread_at_a_time() -> None:
    model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    decoder = mom.Decoder(model)
    prompt = np.arange(64).reshape(4, 16)
    decoder.prefill(prompt)
    made: list[list[np.ndarray]] = []
    thread = threading.Thread(target=lambda: made.append(decoder.generate(100)))
    thread.start()
    seen = set()
    while thread.is_alive():
        try:
            assert decoder.lengths.shape == (4,)
        except RuntimeError as problem:
            seen.add(str(problem))
    thread.join()
    assert seen <= {"model: in use by another thread; a model is used by one thread at a time"}
    assert np.array_equal(np.concatenate([prompt, made[0]], axis=1), model.generate(prompt, 100))
