"""Part ``sequences``: random sequences of calls on one model, with reads, wrong calls and failures in between.

A second model sees only the calls that succeeded and that change or compute something. Both must have the same bits:
what the calls returned, parameters, gradients, moments and random state. All memory must come back in the end.
"""

from __future__ import annotations

import gc
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

import mom
from mom import _core

from .case import Case, Fault, Outcome, generator
from .mutate import pick
from .world import CONFIGS, IDLE, REAL, World

__all__ = ["Sequences"]

#: How often each action is drawn.
OFTEN = {"forward": 5, "backward": 5, "step": 3, "failing": 5, "decoder": 4, "wrong_call": 3}
NAMES = [name for name in (*REAL, *IDLE) for _ in range(OFTEN.get(name, 1))]
#: Seconds that finding a shorter sequence may take.
SHORTENING = 20.0


class Sequences:
    """Cases of sequences."""

    def __init__(self, folder: Path) -> None:
        del folder

    def draw(self, seed: int, number: int) -> Case:
        """The case of a number: a model and a list of actions, each with a seed."""
        rng = generator(seed, "sequences", number)
        actions = [[pick(rng, NAMES), int(rng.integers(2**31))] for _ in range(int(rng.integers(3, 30)))]
        dtype = pick(rng, ("float32", "float32", "bfloat16"))
        return {"part": "sequences", "config": pick(rng, list(CONFIGS)), "dtype": dtype, "actions": actions}

    def run(self, case: Case) -> Outcome:
        """Run the actions, and the second model's. A sequence that fails is shortened."""
        outcome = Outcome(case["config"], accepted=True, case=case)
        started = time.process_time()
        outcome.problem = problem(case)
        outcome.seconds = time.process_time() - started
        if outcome.problem is not None:
            outcome.case = shortened(case)
            outcome.problem = problem(outcome.case) or outcome.problem
        return outcome


def problem(case: Case) -> str | None:
    """What is wrong with a sequence, or None."""
    gc.collect()
    live, threads = _core.memory_live_bytes(), mom.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compare(case)
        gc.collect()
        if _core.memory_live_bytes() != live:
            return f"{_core.memory_live_bytes() - live} bytes of memory were lost"
    except Exception:
        return traceback.format_exc()
    finally:
        mom.set_num_threads(threads)
    return None


def compare(case: Case) -> None:
    """Run a sequence on one model, and what it did on another, and compare the two."""
    first, second = (World(case["config"], case["dtype"]) for _ in range(2))
    for name, seed in case["actions"]:
        if name in REAL:
            first.real(name, seed)
        else:
            IDLE[name](first, np.random.default_rng(seed))
    for i, (name, seed) in enumerate(first.done):
        second.real(name, seed)
        if first.results[i] != second.results[i]:
            raise Fault(f"action {i}, {name}: the results differ. Actions: {[name for name, _ in first.done[: i + 1]]}")
    IDLE["hold"](first, np.random.default_rng(0))
    one, two = first.state(), second.state()
    for what, value in one.items():
        if value != two[what]:
            names = [name for name in value if value[name] != two[what][name]] if isinstance(value, dict) else []
            raise Fault(f"{what} differ: {names[:5]}. Actions: {[name for name, _ in first.done]}")


def shortened(case: Case) -> Case:
    """The case without actions that its failure does not need."""
    end, i, actions = time.monotonic() + SHORTENING, 0, list(case["actions"])
    while i < len(actions) and time.monotonic() < end:
        fewer = actions[:i] + actions[i + 1 :]
        if problem({**case, "actions": fewer}) is not None:
            actions = fewer
        else:
            i += 1
    return {**case, "actions": actions}
