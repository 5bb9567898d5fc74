"""Part ``calls``: random calls of `mom.ops` and of the extension, functions and methods.

A call ends in a result or in one of the exceptions of `REFUSALS` with a message. If it is refused, its arguments are
what they were. In both cases the reference counts of its arguments and mom's bytes of memory are as before.
"""

from __future__ import annotations

import gc
import inspect
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from operators import make
from test_sweeps import drawn, fitting

from cases import CASES, cases_of
from mom import _core, ops

from .arguments import Strange, Surprise, copied, wrong
from .case import Case, Fault, Outcome, generator
from .mutate import pick
from .objects import OBJECTS

__all__ = ["Calls"]

REFUSALS = (TypeError, ValueError, OverflowError, MemoryError, RuntimeError, IndexError, Surprise)
#: They measure time, or change the process.
LEFT_OUT = {"use_level", "peak_gflops", "memory_bandwidth", "gemm_seconds", "set_num_threads", "set_cpu_level",
            "memory_fail_at", "memory_reset_peak", "cpu_info"}  # fmt: skip
#: Bytes of arguments of a call that is kept as a beginning, and calls that are kept for each function.
LARGEST, MOST = 1 << 17, 8

Beginning = tuple[tuple[Any, ...], dict[str, Any]]


def functions() -> dict[str, tuple[Any, str]]:
    """The functions by name: a module and a name in it."""
    found = {f"ops.{name}": (ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    found |= {f"_core.{name}": (_core, name) for name in dir(_core) if inspect.isbuiltin(getattr(_core, name))}
    return {name: place for name, place in found.items() if place[1] not in LEFT_OUT}


def recorded() -> dict[str, list[Beginning]]:
    """Valid calls of the functions: those that the tests of operators make on their cases."""
    places = functions()
    calls: dict[str, list[Beginning]] = {name: [] for name in places}
    real = {name: getattr(*place) for name, place in places.items()}

    def listening(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(calls[name]) < MOST and size_of((arguments, options)) < LARGEST:
                calls[name].append((copied(arguments), copied(options)))
            return real[name](*arguments, **options)

        return call

    try:
        for name, (module, attribute) in places.items():
            setattr(module, attribute, listening(name))
        for operator in CASES:
            for i, case in enumerate(cases_of(operator, "edge", "small", "odd")):
                rng = np.random.default_rng(i)
                drawn_case = (
                    case if operator == "adamw" else fitting(case, {k: min(n, 9) for k, n in case.sizes.items()})
                )
                made = make(drawn_case, rng)
                try:
                    made.run(**made.inputs)
                except ValueError:  # sizes of 0
                    continue
    finally:
        for name, (module, attribute) in places.items():
            setattr(module, attribute, real[name])
    return calls


def size_of(value: Any) -> int:
    """Bytes of all arrays in a value."""
    return sum(array.nbytes for array in arrays_in(value))


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    """Arrays in lists, tuples and dicts."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_in(item)


class Calls:
    """Cases of calls."""

    def __init__(self, folder: Path) -> None:
        del folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._recorded = recorded()
        self._functions = functions()
        self._names = [*self._functions, *(name for name in OBJECTS for _ in range(12))]

    def draw(self, seed: int, number: int) -> Case:
        """The case of a number. The calls follow from the two numbers."""
        return {"part": "calls", "seed": seed, "number": number}

    def run(self, case: Case) -> Outcome:
        """Make the calls of a case."""
        rng = generator(case["seed"], "calls", case["number"])
        name = pick(rng, self._names)
        outcome = Outcome(name, case=case)
        started = time.process_time()
        try:
            if name in OBJECTS:
                outcome.accepted = self._methods(rng, name, case)
            else:
                outcome.accepted = self._function(rng, name, case)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of Rust code is no Exception
            outcome.problem = traceback.format_exc()
        outcome.seconds = time.process_time() - started
        return outcome

    def _function(self, rng: np.random.Generator, name: str, case: Case) -> bool:
        arguments, options = self._arguments(rng, name)
        function = getattr(*self._functions[name])
        case["call"] = described(name, arguments, options)
        live = _core.memory_live_bytes()
        accepted = checked(function, arguments, options)
        if _core.memory_live_bytes() != live:  # perhaps memory that is kept for the next call
            live = _core.memory_live_bytes()
            checked(function, arguments, options, unchanged=False)
            gc.collect()
            if _core.memory_live_bytes() > live:
                raise Fault(f"{_core.memory_live_bytes() - live} bytes of memory were lost")
        return accepted

    def _arguments(self, rng: np.random.Generator, name: str) -> tuple[list[Any], dict[str, Any]]:
        """Arguments: those of a valid call, some of them changed, or any."""
        beginnings = self._recorded[name]
        if not beginnings or rng.random() < 0.1:
            parameters = [p for p in inspect.signature(getattr(*self._functions[name])).parameters.values()
                          if p.kind is not p.VAR_KEYWORD]  # fmt: skip
            if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
                return [drawn(rng) for _ in parameters], {}
            return [], {p.name: drawn(rng) for p in parameters if p.default is p.empty or rng.random() < 0.5}
        given, options = copied(pick(rng, beginnings))
        arguments, changes = list(given), int(pick(rng, (0, 1, 1, 1, 2, 3)))
        every = [*arguments, *options.values()]
        for _ in range(changes):
            place = int(rng.integers(len(every))) if every else -1
            if 0 <= place < len(arguments):
                arguments[place] = wrong(rng, arguments[place], every)
            elif place >= 0:
                key = list(options)[place - len(arguments)]
                options[key] = wrong(rng, options[key], every)
        return arguments, options

    def _methods(self, rng: np.random.Generator, name: str, case: Case) -> bool:
        """Several calls of one object's methods."""
        thing, methods = OBJECTS[name](rng)
        accepted = True
        told: list[str] = []
        for _ in range(int(rng.integers(1, 5))):
            method, given = pick(rng, methods)
            arguments = list(copied(given))
            if arguments and rng.random() < 0.7:
                place = int(rng.integers(len(arguments)))
                arguments[place] = wrong(rng, arguments[place], arguments)
            told.append(described(method, arguments, {}))
            case["call"] = "; ".join(told)
            accepted = checked(lambda *values, method=method: method_of(thing, method)(*values), arguments, {})
        return accepted


def method_of(thing: Any, method: str) -> Callable[..., Any]:
    """A method by name; the name of an attribute with ``=`` sets it, and with ``.`` reads it."""
    if method.startswith("="):
        return lambda value: setattr(thing, method[1:], value)
    if method.startswith("."):
        return lambda: getattr(thing, method[1:])
    bound: Callable[..., Any] = getattr(thing, method)
    return bound


def checked(
    function: Callable[..., Any], arguments: list[Any], options: dict[str, Any], unchanged: bool = True
) -> bool:
    """Call a function and look at what it leaves behind. Returns whether it accepted the arguments."""
    every = [*arguments, *options.values()]
    before = contents(every)
    counts = [sys.getrefcount(value) for value in every]
    accepted = call(function, arguments, options)
    if not accepted and unchanged and not any(map(changes_others, every)):
        if before != contents(every):
            raise Fault("a call that was refused has changed an argument")
    if counts != [sys.getrefcount(value) for value in every]:
        gc.collect()
        after = [sys.getrefcount(value) for value in every]
        # Objects that all of Python shares, such as small numbers, are counted elsewhere, too.
        wrong_ones = [i for i, value in enumerate(every) if after[i] != counts[i] and is_own(value)]
        if wrong_ones:
            raise Fault(
                f"argument {wrong_ones[0]}: {counts[wrong_ones[0]]} references before, {after[wrong_ones[0]]} after"
            )
    return accepted


def changes_others(value: Any) -> bool:
    """Whether an argument changes the others when it is asked for something; it may stand in a list."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, Strange) or any(map(changes_others, items))


def contents(values: list[Any]) -> list[bytes]:
    """The bytes of all arrays of numbers."""
    return [array.tobytes() for array in arrays_in(values) if array.dtype != object]


def is_own(value: Any) -> bool:
    """Whether a case made this object, so that nothing else counts references to it."""
    return isinstance(value, (np.ndarray, list, dict, Strange))


def call(function: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> bool:
    """Whether the function accepts the arguments. Its result is dropped here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*arguments, **options)
    except REFUSALS as error:
        if not str(error) and not isinstance(error, (MemoryError, Surprise)):
            raise Fault(f"an exception without a message: {type(error).__name__}") from error
        return False
    return True


def described(name: str, arguments: list[Any], options: dict[str, Any]) -> str:
    """A call in words."""
    words = [word(value) for value in arguments]
    words += [f"{key}={word(value)}" for key, value in options.items()]
    return f"{name}({', '.join(words)})"


def word(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__}({value.dtype}, {value.shape}, strides {value.strides})"
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: {type(error).__name__}>"
    return text if len(text) <= 100 else f"{text[:100]}..."
