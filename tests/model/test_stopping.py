"""A signal ends a call of the core before its time, and the model works on as if the call had not been made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mom

CONFIG = mom.MoMConfig.preset("demo", vocab_size=97, n_embd=64, n_positions=256, resid_pdrop=0.1, attn_pdrop=0.1)
TOKENS = np.random.default_rng(0).integers(97, size=(8, 256), dtype=np.int32)


class Stop(Exception):
    """Raised by the handler of the tests' signal."""


@pytest.fixture
def after() -> Iterator[Callable[[float], None]]:
    """Sends a signal after so many seconds; its handler raises `Stop`."""

    def handler(*_: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def until_stopped(work: Callable[[], Any], after: Callable[[float], None], delay: float) -> None:
    """Repeat some work until the signal comes."""
    with pytest.raises(Stop):
        after(delay)
        while True:
            work()


def one_step(model: mom.MoM, optimizer: mom.AdamW) -> bytes:
    model.train()
    model(TOKENS, labels=TOKENS)
    model.backward()
    optimizer.step(1.0, zero_grad=True)
    return b"".join(value.tobytes() for value in model.parameters.values())


@pytest.fixture(scope="module")
def undisturbed() -> bytes:
    model = mom.MoM(CONFIG, seed=3)
    return one_step(model, mom.AdamW(model, lr=1e-3))


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.05, 0.1])
def test_after_a_stopped_step_the_next_has_the_same_bits(
    delay: float, after: Callable[[float], None], undisturbed: bytes
) -> None:
    model = mom.MoM(CONFIG, seed=3)
    optimizer = mom.AdamW(model, lr=1e-3)
    model.train()
    state = model.random_state

    def work() -> None:
        model.random_state = state
        model.zero_grad()
        model(TOKENS, labels=TOKENS)
        model.backward()

    until_stopped(work, after, delay)
    model.random_state = state
    model.zero_grad()
    assert one_step(model, optimizer) == undisturbed


def test_a_stopped_backward_leaves_zeros_and_the_random_numbers_before(
    after: Callable[[float], None], undisturbed: bytes
) -> None:
    model = mom.MoM(CONFIG, seed=3)
    optimizer, core = mom.AdamW(model, lr=1e-3), model.core
    model.train()
    stopped = False
    while not stopped:  # until the signal comes while the core is in backward
        state = model.random_state
        model(TOKENS, labels=TOKENS)
        after(0.001)
        try:
            core.backward({"lm": 1.0})
            model.zero_grad()
            signal.sigtimedwait([], 0.01)  # if the call was faster than the timer
            model.random_state = state
        except Stop:
            stopped = not core.used.any()
            if not stopped:
                model.zero_grad()
                model.random_state = state
    assert model.random_state == state and not any(model.has_gradient.values())
    assert not any(gradient.any() for gradient in model.gradients.values())
    with pytest.raises(RuntimeError, match="needs a forward pass"):
        model.backward()
    assert one_step(model, optimizer) == undisturbed


def test_a_stopped_generation_keeps_whole_tokens(after: Callable[[float], None]) -> None:
    model = mom.MoM(CONFIG, seed=3)
    whole = mom.Decoder(model)
    whole.prefill([TOKENS[0, :4]])
    expected = whole.generate(252, temperature=0.0)
    until_stopped(lambda: model.generate(TOKENS[:1, :4], max_new_tokens=252), after, 0.03)
    decoder = mom.Decoder(model)
    decoder.prefill([TOKENS[0, :4]])
    with pytest.raises(Stop):
        after(0.003)
        decoder.generate(252, temperature=0.0)
        signal.pause()
    made = int(decoder.lengths[0]) - 4
    rest = decoder.generate(252 - made, temperature=0.0)
    np.testing.assert_array_equal(np.asarray(rest).ravel(), np.asarray(expected).ravel()[made:])


def test_a_handler_that_does_not_raise_disturbs_nothing(undisturbed: bytes) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        model = mom.MoM(CONFIG, seed=3)
        assert one_step(model, mom.AdamW(model, lr=1e-3)) == undisturbed
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard


def test_other_threads_are_not_stopped(after: Callable[[float], None], undisturbed: bytes) -> None:
    """Python runs handlers in the main thread, so a call in another thread goes on."""
    result: list[bytes] = []
    done = threading.Event()

    def work() -> None:
        model = mom.MoM(CONFIG, seed=3)
        result.append(one_step(model, mom.AdamW(model, lr=1e-3)))
        done.set()

    threading.Thread(target=work).start()
    until_stopped(lambda: done.wait(0.001), after, 0.005)
    assert done.wait(120)
    assert result == [undisturbed]


REFUSED = """
import os, resource, sys
import numpy as np, mom
model = mom.MoM(mom.MoMConfig.preset("demo", vocab_size=64), seed=0)
tokens = np.arange(32)[None] % 64
alone = mom.MoM(model.config, seed=0)
mom.set_num_threads(1)
expected = alone(tokens, labels=tokens).loss
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
mom.set_num_threads(8)
assert model(tokens, labels=tokens).loss == expected
print("computed")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of processes differ elsewhere")
def test_without_new_threads_the_core_computes_alone() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (0, "computed\n"), done.stderr
