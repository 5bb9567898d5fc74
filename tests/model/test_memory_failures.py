"""Every allocation of every call is made to fail once: MemoryError, nothing else, and the model works on."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import mom
from mom import _core
from route_entries import entries

BASE = mom.MoMConfig(
    vocab_size=17, n_positions=16, n_embd=24, n_head=2, chunks=1, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=0, num_top_layers=1, require_anchor_layer=False, router_type="gru-random-softmax", router_dim=5,
    routing_top_k=2, resid_pdrop=0.1, attn_pdrop=0.1, embd_pdrop=0.1,
)  # fmt: skip
CONFIGS = {
    "recurrent": BASE,
    "naive, signs, weighted": BASE.replace(
        router_type="naive", use_ste=True, weighted_qkv=True, depthwise_bal_loss=True
    ),
    "all paths, counts of the step": BASE.replace(routing_all_possible_path=True, balance_counts="step"),
    "plain": BASE.replace(chunks=0, n_layer=1),
    "classifier": BASE.replace(num_labels=3),
    "checkpointing": BASE,
}
#: Enough tokens that arenas have to grow beyond their first block.
SHAPE = (90, 16)


FailAt = Callable[[int], None]


@contextmanager
def failing(n: int, fail_at: FailAt = _core.memory_fail_at) -> Iterator[None]:
    fail_at(n)
    try:
        yield
    finally:
        fail_at(0)


def every_failure(call: Callable[[], Any], after: Callable[[], None], fail_at: FailAt = _core.memory_fail_at) -> int:
    """Run `call` with its 1st, 2nd, ... allocation failing until it comes through; `after` each failure."""
    for n in itertools.count(1):
        with failing(n, fail_at):
            try:
                call()
            except MemoryError as error:
                assert "cannot allocate" in str(error)
            else:
                return n - 1
        after()
        assert n < 5000
    raise AssertionError


class Work:
    """A model and one training step of it, repeatable to the bit."""

    def __init__(
        self, config: mom.MoMConfig, checkpointing: bool = False, shape: tuple[int, int] = SHAPE,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        self.checkpointing, self.dtype = checkpointing, dtype
        rng = np.random.default_rng(3)
        self.config = config
        self.tokens = rng.integers(0, 17, shape)
        self.mask = (rng.random(shape) < 0.8).astype(int)
        self.mask[:, 0] = 1
        self.labels = self.tokens if config.num_labels is None else rng.integers(0, 3, shape[0])

    def new_model(self) -> Any:
        kind = mom.MoM if self.config.num_labels is None else mom.MoMForSequenceClassification
        model = kind(self.config, seed=1, dtype=self.dtype)
        model.train()
        model.activation_checkpointing = self.checkpointing
        return model

    def forward(self, model: Any) -> Any:
        model.random_state = (7, 0)
        return model(self.tokens, self.labels, self.mask, return_logits=True, return_routes=True)

    def expected(self) -> tuple[Any, dict[str, np.ndarray]]:
        model = self.new_model()
        out = self.forward(model)
        model.backward()
        return out, {n: g.copy() for n, g in model.gradients.items()}


def same(a: Any, b: Any) -> bool:
    routes = [entries(x.routes) for x in (a, b)]
    return bool(
        a.loss == b.loss
        and a.losses == b.losses
        and np.array_equal(a.logits, b.logits)
        and all(np.array_equal(r[k], s[k]) for r, s in zip(*routes, strict=True) for k in r)
    )


@pytest.fixture(params=CONFIGS)
def work(request: pytest.FixtureRequest) -> Iterator[Work]:
    gc.collect()
    live = _core.memory_live_bytes()
    yield Work(CONFIGS[request.param], request.param == "checkpointing")
    gc.collect()
    assert _core.memory_live_bytes() == live, "memory was lost"


def test_creation(work: Work) -> None:
    gc.collect()
    live = _core.memory_live_bytes()

    def nothing_is_left() -> None:
        gc.collect()
        assert _core.memory_live_bytes() == live

    assert every_failure(work.new_model, nothing_is_left) >= 2


def test_forward(work: Work) -> None:
    out, _ = work.expected()
    models = {"fresh": work.new_model(), "used": work.new_model()}
    work.forward(models["used"])
    state: dict[str, Any] = {}

    def forward() -> None:
        # Every failure meets a model without memory of its own: otherwise the blocks of earlier calls serve.
        state["model"] = work.new_model() if state.get("fresh") else models["used"]
        state["counter"] = state["model"].random_state
        state["out"] = None
        state["out"] = work.forward(state["model"])

    def usable() -> None:
        model = state["model"]
        assert model.random_state == (7, 0), "a pass that failed has drawn nothing"
        with pytest.raises(RuntimeError, match="backward: needs a forward pass"):
            model.backward()
        with pytest.raises(RuntimeError, match="no forward pass"):
            model._core.logits(None)
        assert same(work.forward(model), out)

    every_failure(forward, usable)
    assert same(state["out"], out)

    def fresh_forward() -> None:
        model = state["prepared"].pop()
        state["model"] = model
        state["out"] = work.forward(model)

    state["prepared"] = [work.new_model() for _ in range(2)]

    def usable_and_prepare() -> None:
        usable()
        state["prepared"] = [work.new_model()]

    assert every_failure(fresh_forward, usable_and_prepare) >= 4
    assert same(state["out"], out)


@pytest.mark.parametrize("gradients_first", [False, True])
def test_backward(work: Work, gradients_first: bool) -> None:
    _, expected = work.expected()
    state: dict[str, Any] = {}

    def prepare() -> None:
        state["model"] = work.new_model()
        if gradients_first:
            _ = state["model"].gradients
        work.forward(state["model"])

    def usable_and_prepare() -> None:
        model = state["model"]
        model.zero_grad()
        work.forward(model)
        model.backward()
        assert all(np.array_equal(g, expected[n]) for n, g in model.gradients.items())
        assert all(np.isfinite(a).all() for a in model.parameters.values())
        prepare()

    prepare()
    failures = every_failure(lambda: state["model"].backward(), usable_and_prepare)
    # The arena was made before the forward pass, with room for this: only gradients are new.
    assert failures == 0 if gradients_first else failures >= 1
    assert all(np.array_equal(g, expected[n]) for n, g in state["model"].gradients.items())


def test_backward_without_memory_for_gradients_can_be_repeated() -> None:
    work = Work(BASE)
    _, expected = work.expected()
    model = work.new_model()
    work.forward(model)
    with failing(1), pytest.raises(MemoryError, match="gradients"):
        model.backward()
    model.backward()
    assert all(np.array_equal(g, expected[n]) for n, g in model.gradients.items())


def test_gradients_property_and_optimizer(work: Work) -> None:
    _, expected = work.expected()
    model = work.new_model()
    every_failure(lambda: model.gradients, lambda: None)
    work.forward(model)
    model.backward()
    assert all(np.array_equal(g, expected[n]) for n, g in model.gradients.items())

    gc.collect()
    live = _core.memory_live_bytes()

    def nothing_is_left() -> None:
        gc.collect()
        assert _core.memory_live_bytes() == live

    assert every_failure(lambda: mom.AdamW(model), nothing_is_left) == 5


def test_optimizer_step_clipping_logits_and_generation() -> None:
    work = Work(BASE)
    model, other = work.new_model(), work.new_model()
    optimizer, other_optimizer = mom.AdamW(model), mom.AdamW(other)
    for m in (model, other):
        work.forward(m)
        m.backward()
    norm = mom.clip_grad_norm(other, 1.0)
    other_optimizer.step()
    state: dict[str, Any] = {}

    def unchanged() -> None:
        assert not optimizer.state["steps"].any()

    assert every_failure(lambda: state.update(norm=mom.clip_grad_norm(model, 1.0)), unchanged) >= 1
    assert state["norm"] == norm
    assert every_failure(optimizer.step, unchanged) >= 1
    assert all(np.array_equal(a, other.parameters[n]) for n, a in model.parameters.items())

    for m in (model, other):
        m.random_state = (1, 0)
    want = other.generate([1, 2, 3], 3, 1.0)

    def generate() -> None:
        model.random_state = (1, 0)
        state["tokens"] = model.generate([1, 2, 3], 3, 1.0)

    every_failure(generate, lambda: None)
    assert np.array_equal(state["tokens"], want)


@pytest.mark.parametrize("shape", [(1, 10), (4, 96)])
def test_repeated_steps_allocate_nothing(shape: tuple[int, int]) -> None:
    """The second step settles on the memory of the first: an allocation that fails is never reached."""
    model = mom.MoM(mom.MoMConfig.preset("mini"), seed=0)
    tokens = np.arange(shape[0] * shape[1]).reshape(shape)

    def step() -> None:
        model(tokens, labels=tokens)
        model.backward()
        model.zero_grad()
        model(tokens, keep=False, return_logits=True)

    step()
    step()
    with failing(1):
        step()


RULES = [
    mom.Force("ffn", to=1, rounds=[1], tokens=[2]), mom.Forbid("attn", modules=[1]),
    mom.RandomRoutes("ffn", rounds=[0]), mom.Scale("block0.*.output", 0.5),
    mom.Patch("block0.round0.ffn.output", 0.1, tokens=[5]), mom.Zero("final", rows=[3]),
]  # fmt: skip


@pytest.mark.parametrize("name", ["recurrent", "naive, signs, weighted", "checkpointing"])
def test_a_pass_with_interventions(name: str) -> None:
    work = Work(CONFIGS[name], name == "checkpointing")
    places = ["block0.*", "hidden"]

    def step(model: Any) -> Any:
        model.random_state = (7, 0)
        out = model(work.tokens, work.labels, work.mask, interventions=RULES, capture=places, return_token_losses=True)
        model.backward()
        return out

    good = work.new_model()
    want = step(good)
    gradients = {n: g.copy() for n, g in good.gradients.items()}
    state: dict[str, Any] = {}

    def fresh() -> None:
        state["model"] = work.new_model()
        state["model"].random_state = (7, 0)
        state["out"] = step(state["model"])

    def usable() -> None:
        if "model" in state:
            state["model"].zero_grad()
            assert step(state["model"]).losses == want.losses
        state.clear()

    assert every_failure(fresh, usable) >= 8
    assert state["out"].losses == want.losses
    assert all(np.array_equal(value, want.captured[place]) for place, value in state["out"].captured.items())
    assert all(np.array_equal(g, state["model"].gradients[n]) for n, g in gradients.items())


def test_decoding_with_interventions() -> None:
    model = mom.MoM(BASE.replace(router_type="gru-softmax"), seed=1)
    rows = np.random.default_rng(3).integers(0, 17, (3, 6))
    with model.intervene(RULES[:5] + [mom.Zero("final", rows=[2])]):
        want = model.generate(rows, max_new_tokens=4)
        state: dict[str, Any] = {}

        def generate() -> None:
            state["out"] = model.generate(rows, max_new_tokens=4)

        def usable() -> None:
            assert np.array_equal(model.generate(rows, max_new_tokens=4), want)

        assert every_failure(generate, usable) >= 5
    assert np.array_equal(state["out"], want)
