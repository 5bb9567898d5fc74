"""Generation: greedy, batches of unequal prompts, sampling and its distribution, stopping, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import _core
from vocabularies import renumbered

CONFIG = mom.MoMConfig(
    vocab_size=13, n_positions=16, n_embd=12, n_head=2, chunks=1, num_attn=3, num_ffn=3, depth_per_chunk=3,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=7,
    routing_top_k=2, initializer_range=0.3,
)  # fmt: skip
CONFIGS = {
    "recurrent": CONFIG,
    "naive, all paths": CONFIG.replace(router_type="naive", routing_all_possible_path=True),
    "single halves": CONFIG.replace(num_attn=1, num_ffn=1),
    "plain": mom.MoMConfig.vanilla(2, vocab_size=13, n_positions=16, n_embd=12, n_head=2, initializer_range=0.3),
    "dropout in the configuration": CONFIG.replace(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_the_argmax_of_every_step(name: str, kernel_level: str) -> None:
    model = mom.MoM(CONFIGS[name], seed=2)
    model.train()  # dropout is for training passes only
    want = np.array([[1, 2, 3], [7, 7, 0]])
    model.eval()
    for _ in range(9):
        logits = model(want, return_logits=True).logits
        assert logits is not None
        want = np.concatenate([want, logits[:, -1].argmax(-1)[:, None]], axis=1)
    model.train()
    have = model.generate(want[:, :3], 9)
    assert have.dtype == np.int32 and np.array_equal(have, want)
    assert np.array_equal(model.generate(want[0, :3], 9), want[0])
    assert np.array_equal(model.generate([int(t) for t in want[0, :3]], 9), want[0])


SAMPLING: tuple[dict[str, Any], ...] = (
    {}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 4}, {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 290, "top_p": 0.8},
)  # fmt: skip


@pytest.mark.parametrize("options", SAMPLING)
def test_ids_that_the_tokenizer_lacks_are_never_chosen(options: dict[str, Any]) -> None:
    tokenizer = mom.Tokenizer.train(["a few words"], 257)
    wide = mom.MoM(CONFIG.replace(vocab_size=300), seed=2)
    wide.parameters["transformer.wte.weight"][257:] *= 20.0  # which the model would choose nearly always
    narrow = mom.MoM(CONFIG.replace(vocab_size=257), seed=2)
    for name, value in wide.parameters.items():
        narrow.parameters[name] = value[:257] if name == "transformer.wte.weight" else value
    prompts = [[1, 2, 3], [4]]
    free = wide.generate(prompts, 12, **options)
    assert max(row.max() for row in free) >= 257, "the test says something"
    wide.tokenizer = tokenizer
    rows = wide.generate(prompts, 12, **options)
    for row, wanted in zip(rows, narrow.generate(prompts, 12, **options), strict=True):
        assert np.array_equal(row, wanted)
        tokenizer.decode(row)
    decoder = mom.Decoder(wide)
    decoder.prefill(prompts)
    assert all(np.array_equal(new, row[-12:]) for new, row in zip(decoder.generate(12, **options), rows, strict=True))
    assert decoder.logits.shape == (2, 300)


@pytest.mark.parametrize("options", SAMPLING)
def test_holes_in_a_vocabulary_are_never_chosen(options: dict[str, Any], tmp_path: Path) -> None:
    full = mom.Tokenizer.train(["a few words"], 257)
    rng = np.random.default_rng(0)
    holes = np.sort(rng.choice(np.arange(1, 300), 43, replace=False))
    used = np.setdiff1d(np.arange(300), holes)
    tokenizer = renumbered(full, used, tmp_path)
    assert tokenizer.vocab_size == used[-1] + 1 <= 300
    assert np.array_equal(tokenizer.unused_ids(310), holes[holes < used[-1]]), "those above are no holes"
    wide = mom.MoM(CONFIG.replace(vocab_size=310), seed=2)
    wide.parameters["transformer.wte.weight"][holes] *= 20.0  # which the model would choose nearly always
    wide.parameters["transformer.wte.weight"][300:] *= 20.0
    narrow = mom.MoM(CONFIG.replace(vocab_size=257), seed=2)
    for name, value in wide.parameters.items():
        narrow.parameters[name] = value[used] if name == "transformer.wte.weight" else value
    prompts = [[1, 2, 3], [4]]
    prompts_of_wide = [used[prompt] for prompt in prompts]
    free = wide.generate(prompts_of_wide, 12, **options)
    assert np.isin(np.concatenate(free), holes).any(), "the test says something"
    wide.tokenizer = tokenizer
    rows = wide.generate(prompts_of_wide, 12, **options)
    for row, wanted in zip(rows, narrow.generate(prompts, 12, **options), strict=True):
        assert np.array_equal(row, used[wanted])
        assert tokenizer.decode(row) == full.decode(wanted)
    decoder = mom.Decoder(wide)
    decoder.prefill(prompts_of_wide)
    assert all(np.array_equal(new, row[-12:]) for new, row in zip(decoder.generate(12, **options), rows, strict=True))
    assert np.isfinite(decoder.logits).all(), "the logits are those of the model"


def test_what_is_no_number_does_no_harm_where_there_is_no_token(tmp_path: Path) -> None:
    used = np.setdiff1d(np.arange(260), [5, 9, 11])
    model = mom.MoM(CONFIG.replace(vocab_size=260), seed=2)
    model.parameters["transformer.wte.weight"][9] = np.nan
    with pytest.raises(ValueError, match="logits: not a number at row 0, token 9"):
        model.generate([1, 2], 3, temperature=1.0)
    model.tokenizer = renumbered(mom.Tokenizer.train(["a few words"], 257), used, tmp_path)
    assert len(model.generate([1, 2], 3, temperature=1.0)) == 5
    model.parameters["transformer.wte.weight"][used[200]] = np.nan
    with pytest.raises(ValueError, match=f"logits: not a number at row 0, token {used[200]}"):
        model.generate([1, 2], 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_unequal_prompts_equals_each_alone(name: str) -> None:
    model = mom.MoM(CONFIGS[name], seed=2)
    prompts = [np.array([5]), np.array([1, 2, 3, 4, 5, 6]), np.array([9, 0, 3])]
    together = model.generate(prompts, 8)
    assert [len(row) for row in together] == [9, 14, 11]
    for row, prompt in zip(together, prompts, strict=True):
        assert np.array_equal(row, model.generate(prompt, 8))


def test_up_to_the_last_position_and_no_new_token() -> None:
    model = mom.MoM(CONFIG, seed=2)
    assert model.generate([1, 2], 14).shape == (16,)
    assert np.array_equal(model.generate([1, 2], 0), [1, 2])
    assert np.array_equal(model.generate(np.array([[1, 2]]), 0), [[1, 2]])


def test_generation_leaves_the_model_as_it_is() -> None:
    model = mom.MoM(CONFIG, seed=2)
    before = {n: a.copy() for n, a in model.parameters.items()}
    state = model.random_state
    model.generate([1, 2], 5, temperature=1.0)
    assert model.random_state == state
    assert all(np.array_equal(before[n], a) for n, a in model.parameters.items())
    with pytest.raises(RuntimeError):
        model.backward()


# ---------------------------------------------------------------------- sampling
def test_sampling_repeats_with_its_seed() -> None:
    model = mom.MoM(CONFIG, seed=2)
    draws = [model.generate(np.ones((4, 1), int), 12, 1.0, seed=s) for s in (5, 5, 6)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert len({tuple(row) for row in draws[0]}) > 1, "rows draw independently"


def frequencies(logits: Any, draws: int, **options: Any) -> np.ndarray:
    logits = np.tile(np.asarray(logits, np.float32), (draws, 1))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1, "step": 0} | options
    tokens = _core.sample(logits, *settings.values())
    return np.bincount(tokens, minlength=logits.shape[1])


def check_distribution(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square with a bound that a right sampler passes with probability 1 - 1e-9 (and the seed is fixed)."""
    expected = counts.sum() * probabilities
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    degrees = kept.sum() - 1
    assert statistic < degrees + 6 * np.sqrt(2 * max(degrees, 1)) + 20, (statistic, degrees)


LOGITS = np.array([0.0, 1.5, -1.0, 0.7, 1.5, -3.0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("step", [0, 1])
def test_distribution_of_samples(temperature: float, step: int) -> None:
    weight = np.exp(LOGITS / temperature)
    check_distribution(frequencies(LOGITS, 40000, temperature=temperature, step=step), weight / weight.sum())


@pytest.mark.parametrize("top_k", [1, 2, 3, 6, 100])
def test_top_k_keeps_the_most_probable(top_k: int) -> None:
    weight = np.exp(LOGITS)
    weight[np.argsort(-LOGITS, kind="stable")[top_k:]] = 0  # among equals the lower token comes first
    check_distribution(frequencies(LOGITS, 20000, top_k=top_k), weight / weight.sum())


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.45, 0.9, 0.99, 1.0])
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float) -> None:
    weight = np.exp(LOGITS) / np.exp(LOGITS).sum()
    order = np.argsort(-LOGITS, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(weight[order])[:-1]])
    weight[order[before >= top_p]] = 0
    check_distribution(frequencies(LOGITS, 20000, top_p=top_p), weight / weight.sum())


def test_top_k_and_top_p_together() -> None:
    weight = np.exp(LOGITS)
    weight[[0, 2, 5]] = 0  # top-3 is {1, 3, 4}; 0.6 of their mass needs two of them
    weight[3] = 0
    check_distribution(frequencies(LOGITS, 20000, top_k=3, top_p=0.6), weight / weight.sum())


def test_generate_hands_its_options_on() -> None:
    model = mom.MoM(CONFIG, seed=2)
    prompt = np.array([3, 1])
    logits = model(prompt, return_logits=True).logits
    assert logits is not None
    last = logits[0, -1].astype(np.float64)
    batch = np.tile(prompt, (20000, 1))
    for options, kept in (({}, 13), ({"top_k": 3}, 3)):
        weight = np.exp(last / 0.7)
        weight[np.argsort(-last)[kept:]] = 0
        counts = np.bincount(model.generate(batch, 1, 0.7, **options)[:, -1], minlength=13)
        check_distribution(counts, weight / weight.sum())
    assert np.array_equal(model.generate(prompt, 6, 1.0, top_k=1), model.generate(prompt, 6))
    for top_p in (1e-9, 1e-300):
        assert np.array_equal(model.generate(prompt, 6, 1.0, top_p=top_p), model.generate(prompt, 6))
    assert np.array_equal(model.generate(prompt, 6, 1e-30), model.generate(prompt, 6))


def test_ties_go_to_the_lowest_token() -> None:
    tied = np.zeros((3, 5), np.float32)
    assert _core.sample(tied, 0.0, 0, 1.0, 0, 0).tolist() == [0, 0, 0]
    assert _core.sample(tied, 1.0, 1, 1.0, 0, 0).tolist() == [0, 0, 0]
    assert set(_core.sample(np.zeros((200, 5), np.float32), 1.0, 2, 1.0, 0, 0).tolist()) == {0, 1}
    model = mom.MoM(CONFIG)
    model.parameters["transformer.wte.weight"] = np.zeros((13, 12))
    assert model.generate([4], 3).tolist() == [4, 0, 0, 0]


def test_minus_infinity_is_never_drawn_and_nan_is_an_error() -> None:
    assert not frequencies([0.0, -np.inf, 1.0], 2000)[1]
    for options in ({}, {"top_k": 3}, {"top_p": 0.9}):
        counts = frequencies([0.0, 1.0, *[-np.inf] * 3], 2000, temperature=1e300, **options)
        assert not counts[2:].any() and counts[:2].min() > 800
    with pytest.raises(ValueError, match="logits: not a number at row 1, token 2"):
        _core.sample(np.array([[0, 0, 0], [0, 0, np.nan]], np.float32), 1.0, 0, 1.0, 0, 0)
    model = mom.MoM(CONFIG)
    model.parameters["transformer.ln_f.bias"] = np.full(12, np.nan)
    with pytest.raises(ValueError, match="not a number"):
        model.generate([1], 2)


# ---------------------------------------------------------------------- stopping and errors
def test_stop_token_ends_a_row() -> None:
    model = mom.MoM(CONFIG, seed=2)
    full = model.generate([[1, 2, 3], [4]], 10)
    stop = int(full[0][5])
    rows = model.generate([[1, 2, 3], [4]], 10, stop_token=stop)
    for row, whole, length in zip(rows, full, (3, 1), strict=True):
        new = whole[length:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        assert np.array_equal(row, whole[: length + end])
    assert isinstance(model.generate(np.array([[1, 2]]), 3, stop_token=stop), list)
    prompt_holds_it = model.generate([stop, 1], 2, stop_token=12 if stop != 12 else 11)
    assert len(prompt_holds_it) >= 3


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, ValueError, r"prompt: shape \(0,\) is empty"),
        ([[]], {}, ValueError, r"prompt: row 0: shape \(0,\) is empty"),
        ([[1], []], {}, ValueError, r"prompt: row 1: shape \(0,\) is empty"),
        (np.zeros((0, 3), int), {}, ValueError, r"prompt: shape \(0, 3\) is empty"),
        (np.zeros((2, 2, 2), int), {}, ValueError, r"prompt: shape \(2, 2, 2\), expected \(B, T\)"),
        ([np.zeros((2, 2), int)], {}, ValueError, r"prompt: row 0 has shape \(2, 2\), expected \(T,\)"),
        ([[[1], [2, 3]]], {}, ValueError, "prompt: row 0: not an array"),
        ([1.0, 2.0], {}, TypeError, "prompt: dtype float64"),
        ("text", {}, (TypeError, ValueError), "prompt"),
        (None, {}, (TypeError, ValueError), "prompt"),
        (3, {}, ValueError, r"prompt: shape \(\), expected"),
        ([1, 13], {}, ValueError, r"tokens: 13 at position 1 is not in \[0, 13\)"),
        ([1, -1], {}, ValueError, "tokens: -1"),
        ([1, 2], {"max_new_tokens": 15}, ValueError, "max_new_tokens: .* need 17 positions, the model has 16"),
        ([1], {"max_new_tokens": -1}, ValueError, "max_new_tokens: -1"),
        ([1], {"max_new_tokens": 1.5}, TypeError, "max_new_tokens: expected an integer, got float"),
        ([1], {"temperature": -0.1}, ValueError, "temperature: -0.1"),
        ([1], {"temperature": float("nan")}, ValueError, "temperature: nan"),
        ([1], {"temperature": "hot"}, TypeError, "temperature: expected a number, got str"),
        ([1], {"top_k": 0}, ValueError, "top_k: 0 is less than 1"),
        ([1], {"top_k": 1.5}, TypeError, "top_k: expected an integer"),
        ([1], {"top_p": 0.0}, ValueError, r"top_p: 0.0 is not in \(0, 1\]"),
        ([1], {"top_p": 1.1}, ValueError, "top_p: 1.1"),
        ([1], {"top_p": float("nan")}, ValueError, "top_p: nan"),
        ([1], {"seed": -1}, ValueError, "seed: expected an integer"),
        ([1], {"seed": 2**63}, ValueError, "seed: expected an integer"),
        ([1], {"stop_token": 13}, ValueError, r"stop_token: 13 is not in \[0, 13\)"),
        ([1], {"stop_token": -2}, ValueError, "stop_token: -2"),
    ],
)
def test_bad_arguments(prompt: Any, options: dict[str, Any], error: Any, message: str) -> None:
    model = mom.MoM(CONFIG, seed=2)
    want = model.generate([1, 2], 3)
    with pytest.raises(error, match=message):
        model.generate(prompt, **{"max_new_tokens": 2, **options})
    assert np.array_equal(model.generate([1, 2], 3), want)


def test_logits_that_are_not_finite_are_refused() -> None:
    from mom import _core

    for bad, message in ((np.inf, "infinite at row 0, token 1"), (np.nan, "not a number at row 0, token 1")):
        with pytest.raises(ValueError, match=message):
            _core.sample(np.array([[0.0, bad, 1.0]], np.float32), 1.0, 0, 1.0, 0, 0)
    with pytest.raises(ValueError, match="every token of row 0"):
        _core.sample(np.full((1, 3), -np.inf, np.float32), 1.0, 0, 1.0, 0, 0)
    ruled_out = np.array([[-np.inf, 0.0, -np.inf]], np.float32)
    assert all(_core.sample(ruled_out, 1.0, 0, 1.0, seed, 0)[0] == 1 for seed in range(20))


# ---------------------------------------------------------------------- texts, beams and interventions
def test_beams_take_one_stop_token_and_no_sampling() -> None:
    model = small_text_model()
    model.generation = dataclasses.replace(model.generation, temperature=0.9)  # of a file: beams do not sample
    ids = np.array([1, 2, 3])
    found = model.generate(ids, 4, num_beams=3)
    best = mom.model.beam_search(mom.Decoder(model), [ids], 4, num_beams=3)[0].tokens
    assert found.tolist() == [*ids, *best] == model.generate(ids, 4, num_beams=3, stop_token=[]).tolist()
    for wrong in ({"temperature": 0.5}, {"top_k": 3}, {"return_routes": True}):
        with pytest.raises(ValueError, match="num_beams: above 1"):
            model.generate(ids, 4, num_beams=3, **wrong)
    with pytest.raises(ValueError, match=r"stop_token: \[4, 5\]; with num_beams above 1, there can be one"):
        model.generate(ids, 4, num_beams=3, stop_token=[4, 5])


@pytest.mark.parametrize("prompt", ["the cat", ["the cat", "sat"], np.array([1, 2, 3])])
def test_interventions_of_one_generation(prompt: Any) -> None:
    model, rules = small_text_model(), [mom.Forbid("ffn", modules=[0, 1])]
    found = model.generate(prompt, 5, interventions=rules)
    with model.intervene(rules):
        expected = model.generate(prompt, 5)
    assert np.array_equal(found, expected) and model.interventions == ()
    with pytest.raises(ValueError, match="touched nothing"):
        model.generate(prompt, 5, interventions=[mom.Force("ffn", 1, tokens=[15])])
    assert model.interventions == ()


def small_text_model() -> mom.MoM:
    model = mom.MoM(mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=32, vocab_size=280, router_dim=8))
    model.tokenizer = mom.Tokenizer.train(["the cat sat on the mat"] * 9, 270)
    return model
