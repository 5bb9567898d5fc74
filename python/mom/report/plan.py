"""The plan: how large, how long and how often, from the hours and the measured speed of the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .._arguments import PathLike
from .._reading import kind_of, read_object
from ..accounting import ledger
from ..errors import ConfigError
from ..runtime import get_num_threads, set_num_threads
from ..training.recipe import seconds_per_step
from .shapes import MODELS, SIZES, VARIANTS, Size, configs_of

__all__ = ["Plan", "Speeds", "choose", "measure", "read_plan", "shares_of"]

#: Seconds of a training step, by size and model.
Speeds = dict[str, dict[str, float]]

#: Shares of the time. The rest is for data, pruning, counting and the report.
_TRAINING, _GLUE, _XSUM = 0.55, 0.2, 0.1
#: What evaluations, starting processes and sharing the machine add to the steps of training.
_SLACK = 1.3
#: Fewest tokens per parameter for which a larger model is worth it, fewest for five seeds, and most.
_ENOUGH, _PLENTY, _MOST = 1.0, 4.0, 20.0
_FEWEST_STEPS, _SOME_STEPS = 20, 100
#: Of fine-tuning: steps of one task, rows of its dev set, examples of a step, and tokens of an example, as a guess.
_GLUE_STEPS, _GLUE_LEAST, _GLUE_DEV, _GLUE_BATCH, _GLUE_TOKENS = 400, 20, 400, 16, 40
_XSUM_STEPS, _XSUM_LEAST, _XSUM_ROWS = 200, 10, 50


@dataclass(frozen=True)
class Plan:
    """What a reproduction does. With the same plan, data and seed it computes the same bits on the same machine.

    Attributes
    ----------
    size : Size
    steps : int
        Training steps of each model. With two phases, both together.
    seeds : int
        Seeds of each model.
    processes : int
        Trainings side by side.
    glue_tasks : list of str
        Names of the GLUE tasks.
    glue_steps, glue_dev_rows : int
        Steps of fine-tuning on each, and rows of the dev set that are scored.
    xsum_steps, xsum_rows : int
        Steps of fine-tuning, and articles that are summarised. No steps: XSUM is left out.
    measured_batches : int
        Batches of tokens on which pruned models and routes are measured.
    chars : int
        Characters of text that are prepared.
    """

    size: Size
    steps: int
    seeds: int
    processes: int
    glue_tasks: list[str]
    glue_steps: int
    glue_dev_rows: int
    xsum_steps: int
    xsum_rows: int
    measured_batches: int
    chars: int

    @property
    def phase_one(self) -> int:
        """Steps of phase one."""
        return self.steps // 2

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        return cls(**{**values, "size": Size(**values["size"])})


def read_plan(path: PathLike) -> Plan:
    """Read the ``plan.json`` of a reproduction.

    Raises
    ------
    ConfigError
        If the file does not hold a plan.
    """
    file = Path(path) / "plan.json" if kind_of(path) == "folder" else Path(path)
    values = read_object(file, ConfigError)
    known = [field.name for field in fields(Plan)]
    found = {name: value for name, value in values.items() if name in known}
    try:
        return Plan.from_dict(found)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"plan: {file} is not the plan.json of a reproduction: {error}") from None


def shares_of(glue: bool, xsum: bool) -> dict[str, float]:
    """Shares of the time for training, GLUE and XSUM. Without their files, training has it."""
    shares = {"glue": _GLUE if glue else 0.0, "xsum": _XSUM if xsum else 0.0}
    return {"training": _TRAINING + _GLUE + _XSUM - sum(shares.values()), **shares}


# ---------------------------------------------------------------------- measuring
def measure(seconds: float, processes: int, sizes: Sequence[Size] = SIZES) -> Speeds:
    """Time training steps on one thread, from the smallest models up to those that are too slow for the hours."""
    speeds: Speeds = {}
    before = get_num_threads()
    set_num_threads(1)
    try:
        for number, size in enumerate(sizes):
            if number and not _is_possible(sizes[number - 1], size, speeds, seconds, processes):
                break
            configs = configs_of(size, size.vocab_size)
            speeds[size.name] = {
                model: seconds_per_step(configs[model], size.rows, size.positions, patience=0.4) for model in MODELS
            }
    finally:
        set_num_threads(before)
    return speeds


def _is_possible(small: Size, size: Size, speeds: Speeds, seconds: float, processes: int) -> bool:
    """Whether the next size could have enough tokens, by the speed of the smaller one and the work of both."""
    work = [ledger(configs_of(one, one.vocab_size)["gpt2"], one.rows, one.positions).flops() for one in (small, size)]
    guess = {name: value * work[1] / work[0] for name, value in speeds[small.name].items()}
    return _steps(guess, _TRAINING * seconds, 3, processes) * size.tokens >= _parameters(size) / 2


def _parameters(size: Size) -> float:
    return float(ledger(configs_of(size, size.vocab_size)["gpt2"]).parameters())


def _steps(speed: Mapping[str, float], seconds: float, seeds: int, processes: int) -> int:
    """Steps that all variants can have. Those of a seed are trained side by side, and the seeds one after the other."""
    busy = [0.0] * min(processes, len(VARIANTS))  # seconds for a step of its trainings, by process
    for _, m, two_phases in VARIANTS:
        busy[busy.index(min(busy))] += 0.5 * (speed["gpt2"] + speed[m]) if two_phases else speed[m]
    return int(seconds / (seeds * max(busy) * _SLACK))


# ---------------------------------------------------------------------- choosing
def choose(
    speeds: Speeds, seconds: float, processes: int, glue_tasks: Sequence[str] = (), xsum: bool = False,
    sizes: Sequence[Size] = SIZES,
) -> Plan:  # fmt: skip
    """Choose the plan.

    Parameters
    ----------
    speeds : dict
        See `measure`.
    seconds : float
        For everything.
    processes : int
        Trainings side by side.
    glue_tasks : sequence of str
        Tasks whose files are there, in the order of preference.
    xsum : bool
        Whether XSUM is there.
    sizes : sequence of Size
        What there is to choose from, as for `measure`.

    Returns
    -------
    Plan

    Raises
    ------
    ConfigError
        If the time is too short for the smallest models.

    Notes
    -----
    The largest size is taken that gets a token per parameter with three seeds. With four tokens per parameter there are
    five seeds. If no size has enough tokens, the smallest one is taken, with as many of three seeds as give 100 steps.
    """
    shares = shares_of(bool(glue_tasks), xsum)
    time = shares["training"] * seconds

    def steps(size: Size, seeds: int) -> int:
        return _steps(speeds[size.name], time, seeds, processes)

    measured = [size for size in sizes if size.name in speeds]
    able = [size for size in measured if steps(size, 3) * size.tokens >= _ENOUGH * _parameters(size)]
    if able:
        size = able[-1]
        seeds = 5 if steps(size, 5) * size.tokens >= _PLENTY * _parameters(size) else 3
    else:
        size = measured[0]
        seeds = next((n for n in (3, 2) if steps(size, n) >= _SOME_STEPS), 1)
    number = min(steps(size, seeds), int(_MOST * _parameters(size) / size.tokens))
    if number < _FEWEST_STEPS:
        needed = math.ceil(seconds / 36 * _FEWEST_STEPS / max(1, number)) / 100
        raise ConfigError(f"hours: {seconds / 3600:.3g} are too few on this machine; give at least {needed:g}")
    tasks, glue_steps = _glue(speeds[size.name], shares["glue"] * seconds, seeds, size, glue_tasks)
    xsum_steps = _xsum(speeds[size.name], shares["xsum"] * seconds, seeds, size)
    chars = int(min(max(6 * number * size.tokens, 500_000), 100_000_000 if size.name == "base" else 8_000_000))
    return Plan(
        size, number, seeds, processes, tasks, glue_steps, _GLUE_DEV, xsum_steps, _XSUM_ROWS,
        max(4, min(32, int(0.02 * seconds / (seeds * 30 * speeds[size.name]["deep"])))), chars,
    )  # fmt: skip


def _glue(
    speed: Mapping[str, float], seconds: float, seeds: int, size: Size, tasks: Sequence[str]
) -> tuple[list[str], int]:
    """As many tasks as can have enough steps, and the steps of each."""
    step = sum(speed[model] for model in MODELS) * _GLUE_BATCH * _GLUE_TOKENS / size.tokens
    answers = 2.0 * _GLUE_DEV / _GLUE_BATCH / 3  # evaluations, counted in steps
    for count in range(len(tasks), 0, -1):
        number = int(seconds / (count * seeds * step * _SLACK) - answers)
        if number >= (_GLUE_LEAST if count == 1 else 3 * _GLUE_LEAST):
            return list(tasks[:count]), min(_GLUE_STEPS, number)
    return [], 0


def _xsum(speed: Mapping[str, float], seconds: float, seeds: int, size: Size) -> int:
    """Steps of fine-tuning. About half of the time is for writing summaries."""
    number = int(0.5 * seconds / (seeds * sum(speed[model] for model in MODELS) * _SLACK))
    return 0 if number < _XSUM_LEAST else min(_XSUM_STEPS, number)
