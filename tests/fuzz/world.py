"""A model with its optimizer and decoder, and what can be done with them: the vocabulary of part ``sequences``.

`REAL` are actions that change the model or compute something. `IDLE` are actions that must leave no trace: reads, wrong
calls, calls whose memory runs out, copies. Each is a function of a `World` and a generator of random numbers.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from test_memory_failures import CONFIGS

import mom
from mom import _core

from .case import Fault
from .mutate import pick

__all__ = ["CONFIGS", "IDLE", "REAL", "World"]

Random = np.random.Generator
V, T = 17, 16


class World:
    """What the actions work on.

    Attributes
    ----------
    alive : bool
        Whether there is a forward pass that `backward` can follow.
    done : list of (str, int)
        The actions of `REAL` that have run, each with its seed.
    held : list of ndarray
        Views that outlive what they were taken from.
    """

    def __init__(self, config: str, dtype: str) -> None:
        self.config = CONFIGS[config]
        self.is_classifier = self.config.num_labels is not None
        kind = mom.MoMForSequenceClassification if self.is_classifier else mom.MoM
        self.model: Any = kind(self.config, seed=1, dtype=dtype)
        self.model.activation_checkpointing = config == "checkpointing"
        self.optimizer = mom.AdamW(self.model)
        self.decoder: Any = None
        self.alive = False
        self.done: list[tuple[str, int]] = []
        self.results: list[Any] = []
        self.held: list[np.ndarray] = []

    def real(self, name: str, seed: int) -> None:
        """Run an action of `REAL` and keep what it returns. A backward pass that has no forward pass is left out."""
        if name == "backward" and not self.alive:
            return
        result = bits(REAL[name](self, np.random.default_rng(seed)))
        self.done.append((name, seed))
        self.results.append(result)

    def state(self) -> dict[str, Any]:
        """Everything that must have the same bits."""
        model = self.model
        return {
            "parameters": bits(dict(model.parameters)), "gradients": bits(dict(model.gradients)),
            "has_gradient": dict(model.has_gradient), "optimizer": bits(self.optimizer.state),
            "random_state": model.random_state, "trainable": dict(model.trainable),
        }  # fmt: skip


def bits(value: Any) -> Any:
    """A value with every array as bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict) or hasattr(value, "items"):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return np.float64(value).tobytes() if isinstance(value, float) else value


# ---------------------------------------------------------------------- inputs
def _batch(rng: Random, world: World) -> dict[str, Any]:
    """Arguments of a forward pass."""
    b, t = int(pick(rng, (1, 1, 2, 5))), int(rng.integers(1, T + 1))
    tokens = rng.integers(0, V, (b, t))
    given: dict[str, Any] = {}
    if rng.random() < 0.3 and not world.is_classifier:
        lengths = rng.integers(1, T + 1, b)
        tokens = rng.integers(0, V, int(lengths.sum()))
        given["lengths"] = lengths
    elif rng.random() < 0.4 or world.is_classifier:
        given["attention_mask"] = (rng.random((b, t)) < 0.7).astype(int)
        given["attention_mask"][:, -1] = 1
    given["tokens"] = tokens
    if rng.random() < 0.8:
        given["labels"] = rng.integers(0, 3, b) if world.is_classifier else np.where(
            rng.random(tokens.shape) < pick(rng, (0.0, 0.3, 1.0)), tokens, -100
        )  # fmt: skip
    if rng.random() < 0.3 and not world.is_classifier:
        given["positions"] = rng.integers(0, T, tokens.shape)
    for name in ("return_logits", "return_routes"):
        if rng.random() < 0.3 and (name != "return_logits" or not world.is_classifier):
            given[name] = True
    return given


def _prompts(rng: Random, longest: int = 10) -> list[np.ndarray]:
    return [rng.integers(0, V, int(rng.integers(1, longest + 1))) for _ in range(int(pick(rng, (1, 2, 3))))]


def _sampling(rng: Random) -> dict[str, Any]:
    return {
        "max_new_tokens": int(rng.integers(0, 4)), "temperature": float(pick(rng, (0.0, 0.7, 2.0))),
        "top_k": pick(rng, (None, 1, 5)), "top_p": pick(rng, (None, 0.5, 1.0)), "seed": int(rng.integers(100)),
        "stop_token": pick(rng, (None, 3, [1, 2])),
    }  # fmt: skip


# ---------------------------------------------------------------------- real actions
def forward(world: World, rng: Random) -> Any:
    given = _batch(rng, world)
    out = world.model(**given)
    world.alive = "labels" in given
    r = out.routes
    routes = None if r is None else [kind[half] for kind in (r.scores, r.index, r.weight) for half in kind]
    return [out.loss, out.losses, out.logits, out.num_labelled, routes]


def backward(world: World, rng: Random) -> Any:
    scales = {"lm_scale": 0.5, "balance_scale": pick(rng, (None, 0.0, 0.3))} if rng.random() < 0.5 else {}
    world.model.backward(**({} if world.is_classifier else scales))
    world.alive = False
    return None


def zero_grad(world: World, rng: Random) -> Any:
    world.model.zero_grad()


def step(world: World, rng: Random) -> Any:
    world.optimizer.lr = float(pick(rng, (1e-3, 1e-2)))
    return world.optimizer.step(pick(rng, (None, 1.0, 1e-3)), zero_grad=bool(rng.random() < 0.5))


def clip(world: World, rng: Random) -> Any:
    return mom.clip_grad_norm(world.model, float(pick(rng, (1.0, 1e-2, np.inf))))


def write(world: World, rng: Random) -> Any:
    name = pick(rng, list(world.model.parameters))
    world.model.parameters[name][...] *= np.float32(1.01)


def write_gradient(world: World, rng: Random) -> Any:
    name = pick(rng, list(world.model.parameters))
    world.model.gradients[name][...] += np.float32(0.01)
    world.model.mark_gradient(name, bool(rng.random() < 0.8))


def mode(world: World, rng: Random) -> Any:
    pick(rng, (world.model.train, world.model.eval))()


def random_state(world: World, rng: Random) -> Any:
    world.model.random_state = (int(rng.integers(2**62)), int(rng.integers(2**40)))


def train_only(world: World, rng: Random) -> Any:
    world.model.train_only(*pick(rng, (("*",), ("*",), ("*ln_*",), ("*.wte.*", "*bias"))))
    world.alive = False


def generate(world: World, rng: Random) -> Any:
    if world.is_classifier:
        return None
    world.alive = False
    return world.model.generate(_prompts(rng), weights=pick(rng, (None, "int8", "bfloat16")), **_sampling(rng))


def decoder(world: World, rng: Random) -> Any:
    if world.is_classifier:
        return None
    world.alive = False
    if world.decoder is None or rng.random() < 0.2:
        world.decoder = mom.Decoder(world.model, pick(rng, (None, "int8", "bfloat16")), int(pick(rng, (0, T))))
        return world.decoder.prefill(_prompts(rng, 6))
    lengths = world.decoder.lengths
    if not lengths.size or lengths.max() > T - 4:
        world.decoder.clear()
        return world.decoder.prefill(_prompts(rng, 6))
    match int(rng.integers(4)):
        case 0:
            return world.decoder.step(rng.integers(0, V, lengths.size))
        case 1:
            return [world.decoder.generate(**_sampling(rng)), world.decoder.lengths, world.decoder.logits]
        case 2:
            world.decoder.reorder(rng.integers(0, lengths.size, int(rng.integers(1, 4))))
            return [world.decoder.lengths, world.decoder.logits]
        case _:
            return world.decoder.prefill(rng.integers(0, V, (lengths.size, 2)))


def forget_decoder(world: World, rng: Random) -> Any:
    world.decoder = None


REAL: dict[str, Callable[[World, Random], Any]] = {
    f.__name__: f
    for f in (forward, backward, zero_grad, step, clip, write, write_gradient, mode, random_state, train_only, generate,
              decoder, forget_decoder)
}  # fmt: skip


# ---------------------------------------------------------------------- actions without a trace
@contextlib.contextmanager
def keeping_random_state(world: World) -> Iterator[None]:
    before = world.model.random_state
    try:
        yield
    finally:
        world.model.random_state = before


def read(world: World, rng: Random) -> None:
    model = world.model
    with contextlib.suppress(RuntimeError):
        model.route_counts()
    for value in (*model.parameters.values(), *model.gradients.values(), *world.optimizer.state.values()):
        value.copy()
    _ = model.has_gradient, model.trainable, repr(model), model.memory_plan(2, 5), model.blocks, model.memory_limit
    if world.decoder is not None:
        _ = world.decoder.logits, world.decoder.lengths, world.decoder.bytes, repr(world.decoder)


def wrong_call(world: World, rng: Random) -> None:
    model, tokens = world.model, np.zeros((2, 3), int)
    calls: list[Callable[[], Any]] = [
        lambda: model(np.full((2, 3), V), labels=tokens), lambda: model(np.zeros((1, T + 1), int)),
        lambda: model(tokens, labels=np.full((2, 3), -5)), lambda: model(tokens.astype(float)),
        lambda: model(tokens, attention_mask=tokens + 2), lambda: model.backward("x"),
        lambda: model.backward(scales={"lm": np.nan}), lambda: model.train_only("nothing.like.this"),
        lambda: setattr(model, "random_state", (-1, 0)), lambda: setattr(model, "memory_limit", -1),
        lambda: model.load_state({"x": tokens}), lambda: mom.clip_grad_norm(model, -1.0),
        lambda: world.optimizer.step(max_norm=float("nan")), lambda: world.optimizer.load_state({}),
        lambda: model.memory_plan(0, 5), lambda: model.parameters.__setitem__("transformer.wte.weight", tokens),
        lambda: model.mark_gradient("x"), lambda: setattr(model, "label_names", ["a"] * 9),
    ]  # fmt: skip
    if not world.is_classifier:
        calls += [
            lambda: model.generate([1, 2], 1000),
            lambda: model.generate([V]),
            lambda: model.logits_at(tokens, [99]),
            lambda: model.generate([1], 2, temperature=-1.0),
            lambda: mom.Decoder(model, "int4"),
            lambda: model(tokens.ravel(), lengths=[2, 3]),
            lambda: model(tokens, positions=tokens + T),
        ]
        if world.decoder is not None:
            calls += [lambda: world.decoder.step([V] * world.decoder.lengths.size), lambda: world.decoder.reorder([9]),
                      lambda: world.decoder.generate(1000), lambda: world.decoder.prefill([[1]] * 9),
                      lambda: world.decoder.route(99)]  # fmt: skip
    number = int(rng.integers(len(calls)))
    try:
        calls[number]()
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError):
        return
    raise Fault(f"wrong call {number} was accepted")


def little_memory(world: World, rng: Random) -> None:
    """A pass beyond the limit is refused before anything changes."""
    limit = world.model.memory_limit
    world.model.memory_limit = 1000
    try:
        forward(world, rng)
        raise Fault("a forward pass ran within 1000 bytes")
    except MemoryError:
        pass
    finally:
        world.model.memory_limit = limit


def look(world: World, rng: Random) -> None:
    """A forward pass between others."""
    with world.model.evaluating():
        forward(world, rng)
    world.alive = False


def idle_generate(world: World, rng: Random) -> None:
    with keeping_random_state(world):
        generate(world, rng)


def threads(world: World, rng: Random) -> None:
    mom.set_num_threads(int(pick(rng, (1, 2, 3))))


def train_copy(world: World, rng: Random) -> None:
    """Train a copy of the model."""
    other = copy.deepcopy(world.model)
    optimizer = mom.AdamW(other, lr=0.1)
    tokens = np.zeros((2, 3), int)
    other(tokens, np.zeros(2, int) if world.is_classifier else tokens, np.ones((2, 3), int))
    other.backward()
    optimizer.step(zero_grad=True)


def hold(world: World, rng: Random) -> None:
    """Keep views, and read those that are kept."""
    views = [*world.model.parameters.values(), *world.model.gradients.values(), *world.optimizer.state.values()]
    if world.decoder is not None:
        views += [world.decoder.logits, world.decoder.lengths]
    world.held += [pick(rng, views) for _ in range(3)]
    for view in world.held:
        view.copy()


def failing_copy(world: World, rng: Random) -> None:
    """Make something of the model while an allocation fails."""
    makers: list[Callable[[], Any]] = [
        lambda: copy.deepcopy(world.model), lambda: mom.AdamW(world.model), lambda: pickle.dumps(world.model),
        lambda: mom.Decoder(world.model, "int8"), lambda: world.model.memory_plan(3, 7),
        lambda: train_copy(world, rng),
    ]  # fmt: skip
    make = makers[int(rng.integers(len(makers)))]
    _core.memory_fail_at(int(rng.integers(1, 12)))
    with contextlib.suppress(MemoryError, TypeError if world.is_classifier else MemoryError):
        try:
            make()
        finally:
            _core.memory_fail_at(0)


def failing(world: World, rng: Random) -> None:
    """One of the real actions, while an allocation fails. What succeeds nevertheless counts."""
    name = str(pick(rng, ("forward", "forward", "backward", "step", "clip", "generate", "decoder")))
    seed, number = int(rng.integers(2**31)), int(pick(rng, (1, 1, 2, 3, 5, 8)))
    before = world.model.random_state
    _core.memory_fail_at(number)
    try:
        world.real(name, seed)
        return
    except MemoryError:
        pass
    finally:
        _core.memory_fail_at(0)
    world.alive = False if name in ("forward", "generate", "decoder") else world.alive
    if name == "forward" and world.model.random_state != before:
        raise Fault("a forward pass that failed has drawn random numbers")
    world.model.random_state = before
    if name == "backward":  # its gradients are lost; the reference says so
        world.alive = False
        world.real("zero_grad", 0)
    if name == "decoder":
        world.real("forget_decoder", 0)


def reborn(world: World, rng: Random) -> None:
    """The model becomes a copy of itself, or what a file of it holds. Gradients do not come along."""
    old, state = world.model, {name: value.copy() for name, value in world.optimizer.state.items()}
    world.real("zero_grad", 0)
    world.real("forget_decoder", 0)
    match int(rng.integers(3)):
        case 0:
            new = copy.deepcopy(old)
        case 1:
            new = pickle.loads(pickle.dumps(old))
        case _:
            with tempfile.TemporaryDirectory(prefix="mom-fuzz-") as folder:
                old.save_pretrained(folder + "/model", naming=pick(rng, ("canonical", "reference", "bare")))
                new = type(old).from_pretrained(folder + "/model", old.dtype)
            new.random_state, new.training = old.random_state, old.training
            new.activation_checkpointing = old.activation_checkpointing
            new.train_only(*(name for name, is_trained in old.trainable.items() if is_trained))
    world.model, world.alive = new, False
    world.optimizer = mom.AdamW(new)
    world.optimizer.load_state(state)


IDLE: dict[str, Callable[[World, Random], None]] = {
    f.__name__: f
    for f in (read, wrong_call, little_memory, look, idle_generate, threads, train_copy, hold, failing_copy, failing,
              reborn)
}  # fmt: skip
