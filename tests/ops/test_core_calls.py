"""What holds for every call of the extension itself, below the Python layer that checks arguments.

Each argument in turn is replaced by something wrong, and Python's own allocations are refused one after the other. The
call returns or raises an ordinary exception, and the core holds as much memory as before.
"""

from __future__ import annotations

import gc
import importlib.util
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from operators import make

import mom
from cases import CASES, cases_of
from mom import _core
from mom.interventions.layout import layout_of
from mom.interventions.places import places_of
from mom.interventions.scope import make_call, records_for
from mom.model.core_config import core_config

Call = Callable[..., Any]
#: Functions without arrays, which no operator of `mom.ops` calls with small sizes.
PLAIN: dict[str, tuple[Any, ...]] = {
    "cpu_info": (), "config_fields": (), "router_kinds": (), "get_num_threads": (), "set_num_threads": (1,),
    "set_cpu_level": ("baseline",), "memory_live_bytes": (), "memory_peak_bytes": (), "quota_cpus": ("1 1",),
    "cgroup_cpus": ("/nowhere",), "peak_gflops": ("float32", 1, 0.0), "memory_bandwidth": (64, 1, 1),
    "kernel_map": ("exp", np.ones(3, np.float32)), "kernel_reduce": ("dot", *[np.ones(3, np.float32)] * 2),
    "kernel_exp_sum": (np.ones(3, np.float32), 1.0, 0.0), "sample": (np.ones((2, 5), np.float32), 1.0, 3, 0.9, 0, 0),
    "gemv": (np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones(4, np.float32), False, "int8", True),
}  # fmt: skip


def recorded_calls() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Calls of `_core` that the operators make, with their arguments. One for each function and choice of None."""
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {name: (name, arguments) for name, arguments in PLAIN.items()}
    functions = {name: getattr(_core, name) for name in dir(_core) if not isinstance(getattr(_core, name), type)}

    def recorder(name: str, function: Call) -> Call:
        def call(*arguments: Any) -> Any:
            given = "".join("-" if argument is None else "x" for argument in arguments)
            calls.setdefault(f"{name} {given}", (name, arguments))
            return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            if callable(function) and not name.startswith("__"):
                patch.setattr(_core, name, recorder(name, function))
        for operator in CASES:
            for case in cases_of(operator, "small"):
                made = make(case, np.random.default_rng(0))
                made.run(**made.inputs)
    return calls


CALLS = recorded_calls()


class Objects:
    """A network with an optimizer and a decoder, ready for every method."""

    def __init__(self, width: int = 8) -> None:
        config = mom.MoMConfig.preset("demo", vocab_size=11, n_embd=width, n_head=2, n_positions=512, router_dim=4)
        self.config = core_config(config, "float32")
        self.classifier = _core.Network({**self.config, "num_labels": 2})
        self.network = _core.Network(self.config)
        self.network.randomize(1)
        self.optimizer = _core.AdamW(self.network)
        self.decoder = _core.Decoder(self.network)
        self.tokens = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
        self.rows = np.array([1, 0], np.int32)
        self.flags = np.ones(len(self.network.parameter_table()), np.uint8)
        self.decoder.prefill(self.tokens)
        self.changes, self.step_changes = self.interventions(config)
        self.forward()

    def interventions(self, config: mom.MoMConfig) -> list[tuple[Any, ...]]:
        """What a forward pass, and a step of the decoder, get for their argument of this name."""
        rules = (mom.Force("ffn", to=1, rows=[0]), mom.Bias("attn", {0: 1.0}), mom.Forbid("attn", modules=[2]),
                 mom.Scale("block0.round0.*.input", 0.5), mom.Zero("block0.round1.ffn.module0.output"))  # fmt: skip
        _, place, round, _, _ = places_of(config)["block0.round1.attn.input"].site
        out = np.zeros((2, config.n_head, 3, 3), np.float32)
        full = make_call(
            config, layout_of(self.tokens), (), rules, None, ["hidden", "block0.round0.*"], gradients=True
        )
        step = make_call(config, layout_of(self.rows[:, None]), (), rules)
        assert full is not None and step is not None
        full.token_losses, full.attention = np.zeros(6, np.float32), (place, round, self.rows, out)
        step.records = records_for(config, step, 2)
        return [full.core, step.core]

    def forward(self) -> None:
        self.network.forward(self.tokens, labels=self.tokens, keep=True)

    def calls(self) -> dict[str, tuple[Call, tuple[Any, ...]]]:
        """Every method and property, with arguments that are right."""
        network, decoder, optimizer = self.network, self.decoder, self.optimizer
        plan = _core.routing_plan(np.array([[0], [1]]), 2)
        mask = np.ones((2, 3), np.uint8)
        positions = np.array([[0, 1, 2]] * 2, np.int32)
        results = (self.tokens, None, self.tokens, mask, positions, None, None, None, 0, True, False, False)
        half = self.routed_half()
        calls: dict[str, tuple[Call, tuple[Any, ...]]] = {
            "Network": (_core.Network, (self.config,)), "AdamW": (_core.AdamW, (network,)),
            "Decoder": (_core.Decoder, (network, "int8")),
            "forward": (network.forward, (*results, self.rows, True, True)),
            "forward changed": (network.forward, (*results, None, False, False, self.changes)),
            "forward packed": (network.forward, (self.tokens.reshape(-1), np.array([2, 4], np.int32))),
            "forward classes": (self.classifier.forward, (self.tokens, *[None] * 4, self.rows, self.rows, None, 1)),
            "forward values": (
                self.classifier.forward, (self.tokens, *[None] * 4, self.rows, None, np.ones((2, 2), np.float32), 0),
            ),
            "plan": (network.plan, (2, 3, 6, True, False, True, True)), "zero_grad": (network.zero_grad, ()),
            "randomize": (network.randomize, (1,)), "logits": (network.logits, (self.rows,)),
            "route": (network.route, half), "route_counts": (network.route_counts, half),
            "parameter_table": (network.parameter_table, ()), "parameter": (network.parameter, (0,)),
            "gradient": (network.gradient, (0,)), "set_trained": (network.set_trained, (self.flags,)),
            "count": (network.count, (False,)),
            "clip_grad_norm": (_core.clip_grad_norm, (network, 1.0)),
            "optimizer.step": (optimizer.step, (0.1, 0.9, 0.9, 1e-5, 0.1, 1.0, True)),
            "exp_avg": (optimizer.exp_avg, (0,)), "exp_avg_sq": (optimizer.exp_avg_sq, (0,)),
            "prefill": (decoder.prefill, (self.tokens[:, :1].copy(), np.array([1, 0], np.int32))),
            "decoder.step": (decoder.step, (self.rows,)),
            "decoder.step changed": (decoder.step, (self.rows, self.step_changes)),
            "generate": (decoder.generate, (1, 1.0, 3, 0.9, 0, 0, 1, np.ones(2, np.uint8), 10, self.rows)),
            "reorder": (decoder.reorder, (self.rows,)), "reserve": (decoder.reserve, (12,)),
            "decoder.route": (decoder.route, half), "clear": (_core.Decoder(network).clear, ()),
            "plan.repr": (plan.__repr__, ()),
        }  # fmt: skip
        setters = {"used": self.flags, "memory_limit": 0, "random_state": (1, 2)}
        for name, value in setters.items():
            calls[f"set {name}"] = (setattr, (network, name, value))
        for owner in (network, decoder, optimizer, plan):
            for name, member in vars(type(owner)).items():
                if type(member).__name__ in ("getset_descriptor", "member_descriptor"):
                    calls[f"get {type(owner).__name__}.{name}"] = (getattr, (owner, name))
        return calls

    def routed_half(self) -> tuple[int, int, int]:
        places = range(10)
        return next((p, 0, h) for p in places for h in (0, 1) if self.network.route(p, 0, h) is not None)


METHODS = sorted(Objects().calls())
JUNK: list[Any] = [
    None, object(), "x", "é\udc80", -1, 10**5, 2**70, -(2**70), float("nan"), True, b"x", [], (), {}, [object()],
    (None,) * 3,
    np.zeros(3), np.zeros((2, 2), np.int32), np.zeros(0, np.float32), np.array("x"), np.array([[-7, 99]], np.int32),
    np.array([-7, 99], np.int32), np.array([99, -7], np.int32), np.array([2, 3], np.int32),
]  # fmt: skip
ORDINARY = (TypeError, ValueError, OverflowError, IndexError, RuntimeError, AttributeError)


@pytest.fixture
def nothing_lost() -> Iterator[None]:
    gc.collect()
    held = _core.memory_live_bytes()
    yield
    gc.collect()
    assert _core.memory_live_bytes() == held


def with_junk(function: Call, arguments: tuple[Any, ...]) -> int:
    """Call with each argument replaced by each piece of junk, with too few and with too many. How many were refused."""
    tries = [(*arguments[:i], junk, *arguments[i + 1 :]) for i in range(len(arguments)) for junk in JUNK]
    refused = 0
    for call in [*tries, arguments[:-1], (*arguments, None), (None,) * 30]:
        try:
            function(*call)
        except ORDINARY as error:
            refused += 1
            assert str(error)
    return refused


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_of_functions(name: str) -> None:
    function, arguments = CALLS[name]
    assert with_junk(getattr(_core, function), arguments) > len(arguments)


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", METHODS)
def test_wrong_arguments_of_methods(name: str) -> None:
    function, arguments = Objects().calls()[name]
    if function in (getattr, setattr):
        owner, attribute, *value = arguments
        with pytest.raises((AttributeError, TypeError)):
            delattr(owner, attribute)
        function, arguments = (lambda *value: setattr(owner, attribute, *value)), tuple(value)
    assert with_junk(function, arguments) > len(arguments)


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", ["forward changed", "decoder.step changed"])
def test_wrong_parts_of_interventions(name: str) -> None:
    function, (*others, changes) = Objects().calls()[name]
    refused = parts = 0
    for i, part in enumerate(changes):
        tries: list[Any] = list(JUNK)
        for item in part if isinstance(part, list) else ():
            tries += [[(*item[:j], junk, *item[j + 1 :])] for j in range(len(item)) for junk in JUNK]
            parts += len(item)
        for wrong in tries:
            try:
                function(*others, (*changes[:i], wrong, *changes[i + 1 :]))
            except ORDINARY as error:
                refused += 1
                assert str(error)
    assert refused > 10 * parts > 0


FIELDS = _core.config_fields()
#: Values of a field that no network can have, by what the core says about them.
BAD_FIELDS = {
    **{name: (0, 2**25) for name in ("V", "P", "C", "F", "R")}, "H": (0, 3), "num_labels": (2**25,),
    **{name: (4097,) for name in ("bottom", "top", "chunks")}, "num_attn": (0, 4097), "num_ffn": (0, 4097),
    "rounds": (65537,), "choices_attn": (0, 2**15 - 1), "choices_ffn": (0, 2**15 - 1), "temperature": (0.0, -1.0),
    "router_kind": (99,), "masked_query_reference": (2,), "bf16": (2,),
}  # fmt: skip


class NotTrue:
    """An object that is neither true nor false, and no number either."""

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")

    __float__ = __bool__


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("field", FIELDS)
def test_wrong_configurations(field: str) -> None:
    config = Objects().config
    for bad in BAD_FIELDS.get(field, ()):
        with pytest.raises(ValueError, match="^[a-z_]+: "):
            _core.Network({**config, field: bad})
    with pytest.raises(TypeError):
        _core.Network({**config, field: NotTrue()})
    with pytest.raises(TypeError, match=f"^config: key '{field}' is missing$"):
        _core.Network({name: value for name, value in config.items() if name != field})
    if isinstance(config[field], int) and not isinstance(config[field], bool):
        for bad in (-1, 2**70):
            with pytest.raises(ValueError):
                _core.Network({**config, field: bad})


def test_a_configuration_with_another_field() -> None:
    with pytest.raises(TypeError, match=f"^config: {len(FIELDS) + 1} keys, expected the {len(FIELDS)} of"):
        _core.Network({**Objects().config, "more": 1})


#: What may be asked of a network that another call is using.
ALWAYS = {
    "Network", "forward classes", "forward values", "parameter_table", "parameter", "plan.repr", "get AdamW.steps",
    "get Decoder.weights", "get Network.memory_limit",
}  # fmt: skip


def test_every_call_that_needs_the_network_says_that_it_is_in_use() -> None:
    """Asked by the handler of a signal, which runs in the middle of a forward pass."""
    objects = Objects(width=64)
    calls, answers = objects.calls(), {}

    def ask(*_: Any) -> None:
        try:
            objects.network.zero_grad()
        except RuntimeError:  # the signal came while the core computes
            for name, (function, arguments) in calls.items():
                try:
                    function(*arguments)
                except RuntimeError as error:
                    answers[name] = str(error)

    before = signal.signal(signal.SIGALRM, ask)
    try:
        while not answers:
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            objects.network.forward(np.ones((16, 500), np.int32))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(answers.values()) == {"model: in use by another thread; a model is used by one thread at a time"}
    assert set(calls) - set(answers) == {name for name in calls if name in ALWAYS or "RoutingPlan" in name}


def refuse_each(call: Callable[[], Any], *errors: type[Exception]) -> int:
    """Refuse the 1st, 2nd, ... allocation of Python objects, until five calls in a row succeed. How many failed.

    Failures are a MemoryError or one of the other errors.
    """
    testcapi = pytest.importorskip("_testcapi", reason="this Python has no module that refuses allocations")
    refused = n = 0
    last_failure = -1
    while n - last_failure <= 5:
        testcapi.set_nomemory(n, n + 1)
        try:
            call()
        except (MemoryError, *errors):
            refused, last_failure = refused + 1, n
        finally:
            testcapi.remove_mem_hooks()
        n += 1
    return refused


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", CALLS)
def test_refused_objects_of_functions(name: str) -> None:
    function, arguments = getattr(_core, CALLS[name][0]), CALLS[name][1]
    refuse_each(lambda: function(*arguments))


@pytest.mark.usefixtures("nothing_lost")
@pytest.mark.parametrize("name", METHODS)
def test_refused_objects_of_methods(name: str) -> None:
    function, arguments = Objects().calls()[name]
    refuse_each(lambda: function(*arguments))


def test_refused_objects_while_the_module_is_made() -> None:
    assert _core.__spec__ is not None
    specification = importlib.util.spec_from_file_location("mom._core", _core.__spec__.origin)
    assert specification is not None and specification.loader is not None

    loader, tried = specification.loader, []
    made = [importlib.util.module_from_spec(specification) for _ in range(2000)]

    def execute() -> None:
        tried.append(made.pop())
        loader.exec_module(tried[-1])

    # NumPy raises an ImportError of its own, and some versions of Python make types without saying why they cannot.
    assert refuse_each(execute, ImportError, SystemError) > 20
    assert tried[-1].cpu_info() == _core.cpu_info()
