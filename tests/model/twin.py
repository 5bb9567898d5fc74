"""The C model beside the float64 twin: the same parameters, batch and random draws, and every result compared.

Both compute one function; the C model in float32, so results agree to rounding. Where a routing decision hangs on less
than rounding, or a straight-through sign does, no agreement can be asked for: such a draw is replaced by another one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

import mom
from mom import ops, reference
from mom.config import MoMConfig
from route_entries import entry as entry_of

#: Relative norm errors, and for gradients that are (close to) zero in exact arithmetic a share of the norm of all.
OUTPUT, GRADIENT, NOISE = 1e-5, 1e-4, 1e-6
Gradients = dict[str, Any]

#: Least distance between scores on which a decision hangs.
MARGIN = 1e-5
#: Largest raw score.
LARGE = 20.0

_EMBEDDING_SITE, _ROUND_SITE, _COUPLING_SITE, _FIRST_SITE = 1, 2, 3, 16
_NOISE, _ATTENTION, _OUTPUT, _STREAMS = range(4)


@dataclass
class Case:
    """One configuration and one batch."""

    fields: dict[str, Any]
    batch: int = 2
    steps: int = 7
    mask: str | None = None  # "left", "right", "holes", "row"
    labels: str = "tokens"  # "tokens", "some", "none"
    training: bool = False
    lm_scale: float = 1.0
    balance_scale: float | None = None
    micro_batches: int = 1
    seed: int = 0
    lengths: tuple[int, ...] = ()  # packed rows instead of `batch` rows of `steps`
    forced: tuple[float, ...] = ()  # put in place of the routers' last biases, choice by choice
    interventions: tuple[Any, ...] = ()
    capture: tuple[str, ...] = ()

    @property
    def config(self) -> MoMConfig:
        return MoMConfig(**{**SMALL, **self.fields})


SMALL: dict[str, Any] = {
    "vocab_size": 29, "n_positions": 16, "n_embd": 18, "n_head": 2, "n_inner": 23, "n_layer": 2, "chunks": 1,
    "num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 0, "num_top_layers": 0,
    "require_anchor_layer": False, "router_dim": 13, "router_type": "gru-softmax", "routing_top_k": 2,
    "router_aux_loss_coef": 0.5,
}  # fmt: skip


def rng_key(seed: int, counter: int, site: int) -> int:
    """The key of a stream of random numbers, as in mom_c/base/rng.h."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((seed + golden) % 2**64)
    key = mix((key + counter * golden + 1) % 2**64)
    return mix((key + site * golden + 2) % 2**64)


class Draws:
    """The core's random numbers under the twin's names of sites."""

    def __init__(self, config: MoMConfig, seed: int, counter: int) -> None:
        self.config, self.seed, self.counter = config, seed, counter
        self._halves: dict[str, int] = {}
        site = _FIRST_SITE
        for i, kind in enumerate(config.places()):
            names = [f"block{i}/round{r}" for r in range(config.rounds)] if kind == "block" else [f"block{i}"]
            for name in names:
                for half in ("attn", "ffn"):
                    self._halves[f"{name}/{half}"] = site
                    site += _STREAMS

    def _uniform(self, site: int, shape: tuple[int, ...]) -> np.ndarray:
        return ops.random_uniform(self.seed, self.counter, site, int(np.prod(shape))).reshape(shape)

    def noise_site(self, site: str) -> int:
        return self._halves[site] + _NOISE

    def noise(self, site: str, shape: tuple[int, ...]) -> np.ndarray:
        if site.startswith("jitter/"):  # a stream of its own, derived from that of the noise gate
            key = rng_key(self.seed, self.counter, self.noise_site(site.removeprefix("jitter/")))
            return ops.random_uniform(key, 1, 0, int(np.prod(shape))).reshape(shape).astype(np.float64)
        if site.startswith("coupling/"):  # a stream for each half of a place
            _, block, half = site.split("/")
            key = rng_key(self.seed, self.counter, _COUPLING_SITE)
            drawn = ops.random_uniform(key, int(block.removeprefix("block")), int(half == "ffn"), int(np.prod(shape)))
            return drawn.reshape(shape).astype(np.float64)
        return self._uniform(self.noise_site(site), shape).astype(np.float64)

    def dropout(self, site: str, shape: tuple[int, ...]) -> np.ndarray:
        kind, _, place = site.partition("/")
        if kind == "round":
            number = list(self._halves).index(f"{place}/attn") // 2
            drawn = self._uniform(_ROUND_SITE, (number + 1,))[-1:]
            return (drawn >= np.float32(self.config.round_pdrop)).astype(np.float64)
        if kind == "embed":
            number, p = _EMBEDDING_SITE, self.config.embd_pdrop
        elif kind == "attn_probs":
            number, p = self._halves[f"{place}/attn"] + _ATTENTION, self.config.attn_pdrop
        else:
            number, p = self._halves[f"{place}/{kind.removesuffix('_out')}"] + _OUTPUT, self.config.resid_pdrop
        return (self._uniform(number, shape) >= np.float32(p)).astype(np.float64)


def parameters(config: MoMConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Values under which every part of the model matters and activations stay moderate."""
    values = {}
    router_gain = 1.5 if config.router_softmax else 0.5
    for name, shape in reference.parameter_shapes(config).items():
        if name.endswith("weight") and ("layernorm" in name or ".ln_" in name):
            value = 1.0 + 0.2 * rng.standard_normal(shape)
        elif len(shape) == 1:
            value = 0.2 * rng.standard_normal(shape)
        elif "wte" in name or "wpe" in name:
            value = 1.5 / np.sqrt(config.n_embd) * rng.standard_normal(shape)
        else:
            fan_in = shape[1] if "router" in name or name == "score.weight" else shape[0]
            value = rng.standard_normal(shape) * (router_gain if "router" in name else 0.7) / np.sqrt(fan_in)
        values[name] = value.astype(np.float32)
    return values


def force_routes(values: dict[str, np.ndarray], biases: tuple[float, ...]) -> None:
    """Put these in place of the last biases of all routers: large enough ones decide every choice."""
    for name, value in values.items():
        if biases and name.endswith((".router.router.bias", ".router.router.2.bias")):
            value[: len(biases)] = biases[: len(value)]


def batch(case: Case, config: MoMConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Tokens, labels, and mask or lengths of one call."""
    shape = (sum(case.lengths),) if case.lengths else (case.batch, case.steps)
    sequences = len(case.lengths) or case.batch
    tokens = rng.integers(0, config.vocab_size, shape)
    mask = None
    if case.mask is not None:
        mask = np.ones(shape, dtype=np.int64)
        for b in range(case.batch):
            pads = int(rng.integers(1, case.steps)) if case.steps > 1 else 0
            if case.mask == "left":
                mask[b, :pads] = 0
            elif case.mask == "right":
                mask[b, case.steps - pads :] = 0
            elif case.mask == "holes":
                mask[b] = rng.random(case.steps) < 0.6
                mask[b, int(rng.integers(case.steps))] = 1
        if case.mask == "row":
            mask[0] = 0
    labels: Any = None
    if config.num_labels is not None:
        labels = rng.random((sequences, config.num_labels))
        if config.problem_type == "single_label_classification" or (
            config.problem_type is None and config.num_labels > 1
        ):
            labels = rng.integers(0, config.num_labels, sequences)
        if config.pad_token_id is not None and case.mask == "right":
            assert mask is not None
            tokens = np.where(mask == 0, config.pad_token_id, tokens)
    elif case.labels != "none":
        labels = tokens.copy()
        if case.labels == "some":
            labels[rng.random(shape) < 0.5] = -100
    call = {"tokens": tokens, "labels": labels, "attention_mask": mask}
    return {**call, "lengths": case.lengths} if case.lengths else call


def norm(x: Any) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def relative_error(have: Any, want: Any) -> float:
    """Norm of the difference over the norm of what is wanted; NaN and infinity must be met by the same."""
    assert np.shape(have) == np.shape(want)
    finite = np.isfinite(want)
    if not np.all(finite):
        have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
        assert np.array_equal(have[~finite], want[~finite], equal_nan=True)
        have, want = have[finite], want[finite]
    return norm(np.asarray(have, np.float64) - want) / max(norm(want), 1e-12)


def is_decided(config: MoMConfig, out: reference.Output) -> bool:
    """Whether the choices that are kept, the best one and each straight-through sign are clear of rounding."""
    for half, places in out.routes.items():
        modules = config.num_attn if half == "attn" else config.num_ffn
        for route in (r for rounds in places.values() for r in rounds):
            gaps = gaps_of(config, route)
            kept = route.index.shape[-1]
            for at in {0, kept - 1} & set(range(gaps.shape[-1])):
                if gaps[..., at].min() < MARGIN:
                    return False
            # A probability is positive, but in float32 it may be too small to be told from zero.
            least = 1e-30 if config.router_softmax else MARGIN
            # Raw scores that grow from round to round drown everything else, in float32 more than in float64.
            if not config.router_softmax and np.abs(allowed(route)).max(initial=0) > LARGE:
                return False
            if config.use_ste and np.abs(allowed(route, modules)).min(initial=1.0) < least:
                return False
    return True


def allowed(route: reference.Route, choices: int | None = None) -> np.ndarray:
    """The scores of choices that are not forbidden, flat."""
    scores = route.scores[..., :choices]
    found: np.ndarray = scores[np.isfinite(scores) & (scores != 0.0)]
    return found


def gaps_of(config: MoMConfig, route: reference.Route) -> np.ndarray:
    """Distances between neighbouring scores in falling order, relative to their size: (B, T, S - 1).

    Forbidden choices are infinitely far away.
    """
    falling = -np.sort(-route.scores, axis=-1)
    forbidden = (np.isneginf(falling) | (falling == 0.0))[..., 1:]
    largest = float(np.abs(allowed(route)).max(initial=0))
    size = falling[..., :-1] + 1e-30 if config.router_softmax else max(1.0, largest)
    near = np.where(forbidden, 0.0, falling[..., 1:])
    gaps: np.ndarray = np.where(forbidden, np.inf, (np.where(forbidden, 0.0, falling[..., :-1]) - near) / size)
    return gaps


@dataclass
class Expected:
    """What the twin gives for all micro-batches of a case."""

    outputs: list[reference.Output]
    total: Gradients
    unused: set[str]

    @property
    def felt(self) -> Gradients:
        """Gradients of the captured activations of the last micro-batch."""
        return self.outputs[-1].captured.gradients

    def arrays(self) -> dict[str, np.ndarray]:
        """Logits, losses, scores and kept weights, named."""
        named = {}
        for i, out in enumerate(self.outputs):
            named[f"batch {i} logits"] = out.logits
            named |= {f"batch {i} {name}": value for name, value in out.captured.items()}
            if out.token_losses is not None:
                named[f"batch {i} token losses"] = out.token_losses
            for name, loss in {**out.losses, "joint": out.loss}.items():
                if loss is not None:
                    named[f"batch {i} {name} loss"] = np.array(loss)
            for half, places in out.routes.items():
                for place, rounds in places.items():
                    for r, route in enumerate(rounds):
                        named[f"batch {i} block {place} round {r} {half} scores"] = route.scores
                        named[f"batch {i} block {place} round {r} {half} weight"] = route.weight
        return named


class Comparison:
    """The twin's results for a case, and how far another result may be from them.

    Where a result is the small difference of large terms, ten times what float32 rounding of the parameters does to it
    is allowed.
    """

    def __init__(self, case: Case, routes: Any = None) -> None:
        self.case, self.config, self.routes = case, case.config, routes
        for attempt in range(40):
            rng = np.random.default_rng([case.seed, attempt])
            self.values = parameters(self.config, rng)
            force_routes(self.values, case.forced)
            self.batches = [batch(case, self.config, rng) for _ in range(case.micro_batches)]
            self.expected = self._run_twin(self.values)
            if all(is_decided(self.config, out) for out in self.expected.outputs):
                return
        raise AssertionError("no draw without a routing decision that hangs on rounding")

    @property
    def _changes(self) -> dict[str, Any]:
        case = self.case
        return {"routes": self.routes, "interventions": case.interventions, "capture": case.capture}

    def _run_twin(self, values: Gradients) -> Expected:
        case, config = self.case, self.config
        twin = reference.Model(config, values)
        expected = Expected([], {n: np.zeros(v.shape) for n, v in values.items()}, set(values))
        chances = (config.embd_pdrop, config.attn_pdrop, config.resid_pdrop, config.round_pdrop, config.router_jitter,
                   config.router_coupling_loss_coef)  # fmt: skip
        drops = case.training and max(chances) > 0
        for counter, call in enumerate(self.batches):
            draws = Draws(config, case.seed, counter if config.router_random or drops else 0)
            out = twin(**call, **self._changes, noise=draws.noise, dropout=draws.dropout if case.training else None)
            expected.outputs.append(out)
            if call["labels"] is None:
                continue
            gradients = twin.backward(case.lm_scale, case.balance_scale)
            expected.unused &= gradients.unused
            for name, gradient in gradients.items():
                expected.total[name] += gradient
        return expected

    @functools.cached_property
    def _rounding(self) -> tuple[float, dict[str, float]]:
        """What a change of all parameters by half a unit in the last place does: the largest relative change of an
        output, and the norm of the change of each gradient."""
        outputs, gradients = 0.0, dict.fromkeys([*self.values, *self.expected.felt], 0.0)
        exact = self.expected.arrays()
        for seed in range(3):
            signs = np.random.default_rng([seed, self.case.seed])
            moved = self._run_twin(
                {n: v * (1 + 6e-8 * signs.choice([-1.0, 1.0], v.shape)) for n, v in self.values.items()}
            )
            for name, value in moved.arrays().items():
                outputs = max(outputs, relative_error(value, exact[name]))
            for name, value in moved.total.items():
                gradients[name] = max(gradients[name], norm(value - self.expected.total[name]))
            for name, value in moved.felt.items():
                gradients[name] = max(gradients[name], norm(value - self.expected.felt[name]))
        return outputs, gradients

    def check_output(self, have: Any, want: Any, what: str) -> None:
        assert (have is None) == (want is None), what
        error = 0.0 if want is None else relative_error(have, want)
        if want is not None and np.ndim(want) == 0 and error > 0:
            error *= min(1.0, abs(want))  # a loss is the difference of numbers of about 1, however small it is
        if error > OUTPUT:
            allowed = 10 * self._rounding[0]
            assert error <= allowed, f"{what}: relative error {error:.2e} > {OUTPUT:.0e} and > {allowed:.2e}"

    def check_routes(self, have: Any, want: reference.Output) -> None:
        """Choices exactly, scores and kept weights as other outputs."""
        config = self.config
        for half in ("attn", "ffn"):
            for b, place in enumerate(i for i, kind in enumerate(config.places()) if kind == "block"):
                for r in range(config.rounds):
                    entry, expected = entry_of(have, half, b, r), want.routes[half].get(place)
                    assert (entry is None) == (expected is None)
                    if entry is None or expected is None:
                        continue
                    where, route = f"block {place} round {r} {half}", expected[r]
                    index = entry["index"]
                    # Among kept choices with equal scores the order is open.
                    tied = (gaps_of(config, route)[..., : max(index.shape[-1] - 1, 0)] < MARGIN).any(-1)
                    assert np.array_equal(index[~tied], route.index[~tied]), f"{where}: index"
                    assert np.array_equal(np.sort(index, -1), np.sort(route.index, -1)), f"{where}: index"
                    self.check_output(entry["scores"], route.scores, f"{where}: scores")
                    self.check_output(entry["weight"], route.weight, f"{where}: weight")

    def check_gradients(self, model: Any) -> float:
        """Every gradient; returns the largest relative error among those that are not small differences."""
        total, unused = self.expected.total, self.expected.unused
        assert {n for n, has in model.has_gradient.items() if not has} == unused
        for name in unused:
            assert not model.gradients[name].any(), f"{name}: a gradient although nothing reached it"
        return self._check_near(model.gradients, total)

    def check_captured(self, have: Any) -> None:
        """Gradients of captured activations."""
        assert set(have) == set(self.expected.felt)
        self._check_near(have, self.expected.felt)

    def _check_near(self, all_have: Any, all_want: Gradients) -> float:
        everything = np.sqrt(sum(norm(g) ** 2 for g in all_want.values()))
        worst = 0.0
        for name, want in all_want.items():
            have = all_have[name].astype(np.float64)
            assert np.isfinite(have).all(), name
            difference = norm(have - want)
            error = difference / max(norm(want), 1e-30)
            if error <= GRADIENT:
                worst = max(worst, error)
                continue
            allowed = max(NOISE * max(everything, self.case.lm_scale, 1.0), 10 * self._rounding[1][name])
            assert difference <= allowed, (
                f"{name}: relative error {error:.2e} > {GRADIENT:.0e}; norm of the difference {difference:.2e} > "
                f"{allowed:.2e} (norm {norm(want):.2e}, of all gradients {everything:.2e})"
            )
        return worst

    def new_model(self, dtype: str = "float32") -> Any:
        """The C model with the parameters and random state of the case."""
        kind = mom.MoM if self.config.num_labels is None else mom.MoMForSequenceClassification
        model = kind(self.config, seed=self.case.seed, dtype=dtype)
        model.load_state(self.values)
        model.random_state = (self.case.seed, 0)
        if self.case.training:
            model.train()
        return model

    def check(self) -> float:
        """Forward and backward of the C model on every micro-batch; AssertionError where the two part."""
        model = self.new_model()
        for call, want in zip(self.batches, self.expected.outputs, strict=True):
            changes = self._changes if any(map(bool, self._changes.values())) else {}
            by_token = {"return_token_losses": True} if changes and want.token_losses is not None else {}
            out = model(**call, **changes, **by_token, return_logits=True, return_routes=True)
            self.check_routes(out.routes, want)
            self.check_output(out.logits, want.logits, "logits")
            if by_token:
                self.check_output(out.token_losses, want.token_losses, "token losses")
            for name, value in want.captured.items():
                self.check_output(out.captured[name], value, name)
            if call["labels"] is None:
                continue
            assert set(out.losses) == set(want.losses)
            for name in want.losses:
                self.check_output(out.losses[name], want.losses[name], f"{name} loss")
            self.check_output(out.loss, want.loss, "loss")
            model.backward(self.case.lm_scale, self.case.balance_scale)
            if out.captured is not None and want is self.expected.outputs[-1]:
                self.check_captured(out.captured.gradients)
        return self.check_gradients(model) if self.batches[0]["labels"] is not None else 0.0
