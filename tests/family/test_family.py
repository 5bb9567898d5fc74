"""The family of presets against plain NumPy: values, choices, and the gradient of every parameter along a direction.

`plain` states each architecture without mom's pools or its twin. The float64 twin agrees with it to 1e-9 of each array
or gradient, which is rounding (1e-5 would be the promise); the core agrees to 1e-4.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import plain
import pytest

import mom
from mom import ops, presets, reference

TWIN, CORE = 1e-9, 1e-4
#: Least distance between the probabilities on which a choice hangs.
MARGIN = 1e-4
SEEDS = range(2)
_LAYERS = {"chunks": 3}
#: What makes each preset small. All else is the preset's own.
SMALL: dict[str, dict[str, Any]] = {
    "vanilla": {"n_layer": 3}, "albert": {"depth_per_chunk": 4}, "universal": {"depth_per_chunk": 4},
    "moe": {**_LAYERS, "num_ffn": 3}, "moe-attention": {**_LAYERS, "num_attn": 3, "num_ffn": 3}, "mod": {"chunks": 2},
    "layerskip": _LAYERS, "early-exit": {"num_attn": 3, "num_ffn": 3, "depth_per_chunk": 4},
    "shared-pool": {**_LAYERS, "num_ffn": 4},
    "mom": {"num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 1},
}  # fmt: skip
SKIPPING = ("universal", "mod", "early-exit", "mom")
ROUTED = (*SKIPPING, "moe", "moe-attention", "shared-pool")
FORMS = ("rectangle", "masked", "packed")


def small(name: str, **changes: Any) -> mom.MoMConfig:
    sizes = {"vocab_size": 23, "n_positions": 9, "n_embd": 8, "n_head": 2, "n_inner": 10, "router_dim": 5}
    return mom.MoMConfig.preset(name, **{**sizes, **SMALL[name], **changes})


@dataclass
class Case:
    """A configuration, its weights, one batch as a call of mom and as sequences, and what plain NumPy gives."""

    name: str
    config: mom.MoMConfig
    weights: dict[str, np.ndarray]
    call: dict[str, Any]
    sequences: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    left_out: tuple[int, ...] = ()

    def run(self, weights: dict[str, np.ndarray]) -> plain.Result:
        config = self.config
        layers = config.n_layer if config.is_vanilla else config.chunks
        shape = plain.Shape(
            config.n_head, layers, config.rounds, config.num_ffn, config.num_bottom_layers, self.left_out
        )
        used, by_layer = config.balance_routes == "used", config.depthwise_bal_loss
        return plain.run(plain.ARCHITECTURES[self.name], weights, shape, self.sequences, used, by_layer)

    def loss(self, weights: dict[str, np.ndarray]) -> Any:
        result = self.run(weights)
        return result.lm + self.config.router_aux_loss_coef * result.balance

    @functools.cached_property
    def doubles(self) -> dict[str, np.ndarray]:
        return {name: value.astype(np.float64) for name, value in self.weights.items()}

    @functools.cached_property
    def expected(self) -> plain.Result:
        return self.run(self.doubles)

    @functools.cached_property
    def slopes(self) -> dict[str, tuple[np.ndarray, float]]:
        """For each weight a direction, and the derivative of the loss along it."""
        rng = np.random.default_rng(5)
        found = {}
        for name, value in self.weights.items():
            direction = rng.choice([-1.0, 1.0], value.shape)
            found[name] = direction, plain.derivative(self.loss, self.doubles, name, direction)
        return found


def weights_of(config: mom.MoMConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights under which every part matters and choices differ from token to token."""
    values = {}
    for name, shape in reference.parameter_shapes(config).items():
        value = rng.standard_normal(shape)
        if len(shape) == 1:
            value = 0.2 * value + (name.endswith("weight"))
        elif "wte" in name or "wpe" in name:
            value *= 0.5
        else:
            value *= (1.0 if "router" in name else 0.8) / np.sqrt(shape[1] if "router" in name else shape[0])
        values[name] = value.astype(np.float32)
    return values


def batch_of(config: mom.MoMConfig, form: str, rng: np.random.Generator) -> tuple[dict[str, Any], list[Any]]:
    """The arguments of a call, and the same batch as sequences (ids, labels, marks of real tokens)."""
    lengths = (5, 1, 6) if form == "packed" else (6, 6)
    sequences = []
    for row, length in enumerate(lengths):
        ids = rng.integers(0, config.vocab_size, length)
        real = np.ones(length, np.int64)
        if form == "masked":
            real[:2] = row  # the first row begins with padding,
            real[3] = 1 - row  # the second has a hole
        labels = np.where((real == 1) & (rng.random(length) < 0.8), ids, -100)
        sequences.append((ids, labels, real))
    sequences[0][1][-1] = sequences[0][0][-1]  # at least one label
    join = np.concatenate if form == "packed" else np.stack
    call = {"tokens": join([ids for ids, _, _ in sequences]), "labels": join([labels for _, labels, _ in sequences])}
    if form == "masked":
        call["attention_mask"] = join([real for _, _, real in sequences])
    if form == "packed":
        call["lengths"] = lengths
    return call, sequences


def is_decided(result: plain.Result) -> bool:
    """Whether float32 makes the same choices: neighbouring probabilities are apart."""
    for seen in result.seen:
        for half in ("attn", "ffn"):
            for scores in seen.scores[half]:
                if np.diff(np.sort(scores, axis=-1), axis=-1).min() < MARGIN:
                    return False
    return True


@functools.lru_cache(None)
def case_of(name: str, form: str, seed: int, left_out: tuple[int, ...] = ()) -> Case:
    config = small(name)
    for attempt in range(200):
        rng = np.random.default_rng([seed, attempt, *name.encode()])
        case = Case(name, config, weights_of(config, rng), *batch_of(config, form, rng), left_out)
        if is_decided(case.expected):
            return case
    raise AssertionError("no draw whose choices do not hang on rounding")


def error_of(have: Any, want: Any) -> float:
    have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(have - want) / max(np.linalg.norm(want), 1e-30))


def check(case: Case, out: Any, gradients: Any, tolerance: float) -> None:
    """Losses, logits and gradients of a call against plain NumPy."""
    want = case.expected
    assert error_of(out.losses["lm"], want.lm) <= tolerance
    assert ("balance" in out.losses) == (case.name in ROUTED)
    if case.name in ROUTED:
        assert error_of(out.losses["balance"], want.balance) <= tolerance
    assert error_of(out.logits.reshape(-1, case.config.vocab_size), np.concatenate(want.logits)) <= tolerance
    everything = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    for name, (direction, slope) in case.slopes.items():
        gradient = gradients[name].astype(np.float64)
        # A slope is a sum of entries with random signs, about as large as the norm of the gradient.
        allowed = tolerance * (np.linalg.norm(gradient) + 1e-2 * everything)
        assert abs((gradient * direction).sum() - slope) <= allowed, name


def made_by(case: Case, half: str) -> np.ndarray:
    """Choices by plain NumPy, (L, N, K); -2 where a token makes none."""
    kept = case.config.routing_top_k
    by_sequence = [
        [[[*made, *[-2] * (kept - len(made))] for made in of_round] for of_round in seen.choices[half]]
        for seen in case.expected.seen
    ]
    return np.concatenate([np.array(each) for each in by_sequence], axis=1)


def halves_of(config: mom.MoMConfig) -> list[str]:
    return [half for half in ("attn", "ffn") if config.is_routed(half)]


# ---------------------------------------------------------------------- equality
@pytest.mark.parametrize("name", presets.FAMILY)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_twin_and_the_core_compute_the_architecture(name: str, form: str, seed: int) -> None:
    case = case_of(name, form, seed)
    twin = reference.Model(case.config, case.weights)
    out = twin(**case.call)
    gradients = twin.backward()
    check(case, out, gradients, TWIN)
    assert all(case.slopes[unused][1] == 0.0 for unused in gradients.unused)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    core = model(**case.call, return_logits=True, return_routes=True)
    model.backward()
    check(case, core, model.gradients, CORE)
    assert core.routes is not None and list(core.routes.index) == halves_of(case.config)
    for half in halves_of(case.config):
        by_twin = [route.index for place in sorted(out.routes[half]) for route in out.routes[half][place]]
        for index in (np.stack(by_twin), core.routes.index[half]):
            np.testing.assert_array_equal(index.reshape(len(index), -1, index.shape[-1]), made_by(case, half))


@pytest.mark.parametrize("name", SKIPPING)
def test_tokens_skip_in_these_tests(name: str) -> None:
    config = small(name)
    for half in halves_of(config):
        made = np.concatenate([made_by(case_of(name, form, seed), half) for form in FORMS for seed in SEEDS], axis=1)
        modules = config.num_attn if half == "attn" else config.num_ffn
        skips, runs = made[..., 0] == modules, (made[..., 0] >= 0) & (made[..., 0] < modules)
        assert skips.any() and runs.any(axis=1).all()  # the last rounds run, too
        if config.skip_is_final:
            assert (made == -2).any() and ((made[:-1] >= 0).all(-1) >= (made[1:] >= 0).all(-1)).all()
        if name == "mom":  # of two choices either one
            assert (made[..., 1] == modules).any()


# ---------------------------------------------------------------------- layers left out
@pytest.mark.parametrize("seed", range(6))
def test_layerskip_leaves_layers_out_in_training(seed: int) -> None:
    config = small("layerskip", round_pdrop=0.5)
    runs = ops.random_uniform(seed, 0, 2, config.chunks) >= np.float32(0.5)  # the stream of rounds, a number for each
    case = case_of("layerskip", "rectangle", seed, tuple(int(i) for i in np.flatnonzero(~runs)))
    case.config = config
    twin = reference.Model(config, case.weights)
    sites = {f"round/block{i}/round0": float(runs[i]) for i in range(config.chunks)}
    check(case, twin(**case.call, dropout=lambda site, shape: np.full(shape, sites[site])), twin.backward(), TWIN)
    model = mom.MoM(config, seed=seed).train()
    model.load_state(case.weights)
    model.random_state = (seed, 0)
    out = model(**case.call, return_logits=True)
    model.backward()
    check(case, out, model.gradients, CORE)
    for i in range(config.chunks):
        assert model.has_gradient[f"transformer.h.{i}.mot_attn.c_attn.weight"] == runs[i]


def test_both_cases_occur_among_these_seeds() -> None:
    drawn = np.array([ops.random_uniform(seed, 0, 2, 3) >= np.float32(0.5) for seed in range(6)])
    assert drawn.any(axis=0).all() and not drawn.all(axis=0).any()


# ---------------------------------------------------------------------- early exit
def exits(layers: range) -> list[mom.Zero]:
    return [mom.Zero(f"block{i}.round0.*.output") for i in layers]


def test_an_early_exit_is_a_model_with_fewer_layers() -> None:
    case = case_of("layerskip", "rectangle", 0)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    first = mom.MoM(case.config.replace(chunks=2))
    first.load_state({name: case.weights[name] for name in first.parameters})
    out = model(**case.call, return_logits=True, interventions=exits(range(2, 3)))
    want = first(**case.call, return_logits=True)
    np.testing.assert_array_equal(out.logits, want.logits)
    ids = case.call["tokens"][:, :3].astype(np.int32)
    with model.intervene(exits(range(2, 3))):
        text = model.generate(ids, max_new_tokens=5, temperature=0.0)
    np.testing.assert_array_equal(text, first.generate(ids, max_new_tokens=5, temperature=0.0))


@pytest.mark.parametrize("name", ["albert", "layerskip"])
def test_only_some_tokens_may_exit(name: str) -> None:
    """The others still see the keys and values of a token that has exited."""
    case = case_of(name, "rectangle", 1)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    last = "block2.round0" if name == "layerskip" else "block0.round3"
    rule = mom.Zero(f"{last}.*.output", tokens=[4])
    capture = [f"{last}.attn.input", "final"]
    before = model(**case.call, capture=capture).captured
    after = model(**case.call, capture=capture, interventions=[rule]).captured
    np.testing.assert_array_equal(after["final"][:, 4], after[f"{last}.attn.input"][:, 4])
    others = [t for t in range(6) if t != 4]
    np.testing.assert_array_equal(after["final"][:, others], before["final"][:, others])


@pytest.mark.parametrize("name", ["albert", "mod"])
def test_fewer_rounds_of_shared_weights_are_another_configuration(name: str) -> None:
    case = case_of(name, "rectangle", 0)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    rounds = case.config.rounds
    deeper = model.with_config(depth_per_chunk=rounds + 1)
    rules = [mom.Zero(f"block{b}.round{rounds}.*.output") for b in range(case.config.chunks)]
    same = deeper(**case.call, return_logits=True, interventions=rules)
    np.testing.assert_array_equal(same.logits, model(**case.call, return_logits=True).logits)


def test_a_token_is_made_to_exit() -> None:
    """With a router, exit is a forced SKIP; it is final."""
    case = case_of("early-exit", "rectangle", 0)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    rules = [mom.Force(half, to="SKIP", rounds=[1], tokens=[2]) for half in ("attn", "ffn")]
    out = model(**case.call, return_routes=True, interventions=rules, capture=["block0.round1.attn.input", "final"])
    assert out.routes is not None
    for half in ("attn", "ffn"):
        assert (out.routes.module[half][1:, :, 2] == case.config.num_ffn).all()
    np.testing.assert_array_equal(out.captured["final"][:, 2], out.captured["block0.round1.attn.input"][:, 2])


# ---------------------------------------------------------------------- presets
@pytest.mark.parametrize("name", ROUTED)
def test_the_language_model_loss_trains_the_routers(name: str) -> None:
    case = case_of(name, "rectangle", 0)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    model(**case.call)
    model.backward(balance_scale=0.0)
    for block, place in enumerate(i for i, kind in enumerate(case.config.places()) if kind == "block"):
        for half in halves_of(case.config):
            last = model.gradients[f"transformer.h.{place}.mot_{half}.router.router.weight"]
            assert np.linalg.norm(last) > 1e-6, (block, half)


@pytest.mark.parametrize("name", presets.FAMILY)
def test_every_preset_states_itself(name: str) -> None:
    config = mom.MoMConfig.preset(name)
    assert (config.n_embd, config.n_head) == (768, 12)
    assert mom.MoMConfig.preset(name, n_embd=64, n_head=4).n_embd == 64
    assert mom.config.PRESETS[name] == presets.FAMILY[name]()
    stated = presets.FAMILY[name].__doc__ or ""
    assert "arXiv:" in stated and "ifference" in stated and re.search(r"x(_t)? +<- x", stated)
    assert set(plain.ARCHITECTURES) == set(presets.FAMILY)


def test_presets_with_the_parameters_of_gpt_2_have_them() -> None:
    count = {
        name: sum(int(np.prod(shape)) for shape in reference.parameter_shapes(mom.MoMConfig.preset(name)).values())
        for name in presets.FAMILY
    }
    for name in ("layerskip", "mod", "early-exit", "shared-pool"):
        assert count["vanilla"] <= count[name] < 1.003 * count["vanilla"]
    assert count["albert"] < 0.4 * count["vanilla"]


def test_an_exit_from_a_plain_model() -> None:
    """The path bias sends tokens through the layers in their order."""
    config = small("early-exit", num_attn=4, num_ffn=4)
    vanilla = mom.MoM(config.vanilla_config(), seed=0)
    model = mom.MoM.from_vanilla(vanilla, config)
    ids = np.arange(9, dtype=np.int32)[None]
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    for half in ("attn", "ffn"):
        assert all((routes.module[half][r] == r).all() for r in range(4))
        assert (routes.weight[half] > 0.8).all()


def test_layerskip_from_a_plain_model_is_that_model() -> None:
    config = small("layerskip")
    vanilla = mom.MoM(config.vanilla_config(), seed=0)
    model = mom.MoM.from_vanilla(vanilla, config)
    ids = np.arange(9, dtype=np.int32)[None]
    np.testing.assert_array_equal(model(ids, return_logits=True).logits, vanilla(ids, return_logits=True).logits)


# ---------------------------------------------------------------------- use
@pytest.mark.parametrize("name", presets.FAMILY)
def test_generation_agrees_with_a_whole_pass(name: str) -> None:
    case = case_of(name, "rectangle", 0)
    model = mom.MoM(case.config)
    model.load_state(case.weights)
    ids = case.call["tokens"].astype(np.int32)
    decoder = mom.Decoder(model)
    decoder.prefill(ids[:, :2])
    for t in range(2, ids.shape[1]):
        decoder.step(ids[:, t])
    want = np.stack([logits[-1] for logits in case.expected.logits])
    assert error_of(decoder.logits, want) < CORE


@pytest.mark.parametrize("name", presets.FAMILY)
def test_every_preset_learns(name: str) -> None:
    """A text of period 5 costs next to nothing after a few steps, with SKIP and layers left out as well."""
    model = mom.MoM(small(name, n_embd=16), seed=0).train()
    ids = np.tile(np.arange(5, dtype=np.int32) * 3, (4, 2))[:, :9]
    optimizer = mom.AdamW(model, lr=1e-2)
    for _ in range(60):
        model(ids, labels=ids)
        model.backward()
        optimizer.step(1.0, zero_grad=True)
    assert (model.eval()(ids, labels=ids).lm_loss or np.inf) < 0.3
