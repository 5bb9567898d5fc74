"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

# Tests that run side by side share the processors. Those that are about threads set the number themselves.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import mom  # noqa: E402

# Processes started in the background ignore Ctrl-C. The runs that tests stop with Ctrl-C would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name only."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(autouse=True)
def _same_runtime_after() -> Iterator[None]:
    """Level and number of threads are the process's: put back what a test has changed."""
    level, threads = mom.cpu_info()["level"], mom.get_num_threads()
    yield
    mom.set_cpu_level(level)
    mom.set_num_threads(threads)


@pytest.fixture(params=mom.cpu_info()["levels"])
def kernel_level(request: pytest.FixtureRequest) -> str:
    """Runs the test once at every instruction-set level of this machine."""
    mom.set_cpu_level(request.param)
    return str(request.param)
