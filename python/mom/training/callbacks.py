"""Receivers of a run's records: the JSON-lines log, the progress bar, TensorBoard, Weights & Biases.

A callback is any object with a method ``record(record: dict)`` and, optionally, ``close()``. When ``record`` returns
True, the run finishes the current step, makes its last evaluation and checkpoint, and ends.

Every record has ``kind``, ``step`` and ``time``, and in fine-tuning the ``seed``. The kinds and their other fields:

``train``       ``loss``, ``lm_loss`` and so on for every term (`MoMConfig.loss_weights`), ``grad_norm``, ``lr``,
                ``tokens_per_second``, ``seconds``, ``epoch``, ``skip_share``, ``module_use``, ``peak_memory_bytes``,
                ``skipped_steps``
``skip``        ``reason``, ``skipped_steps``: a step was left out, because its numbers were not finite
``eval``        ``val_loss`` and ``perplexity``; in fine-tuning ``score``, ``best`` and the task's metrics. Of models
                with routers, ``health`` and ``alarms``; see `mom.training.health`
``checkpoint``  ``path``
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from .._extras import need
from .._json import to_json
from .._progress import bar, can_draw_bars
from .._reading import kind_of, open_file
from ..errors import TrainingError
from ..files.atomic import naming_file
from ..files.folders import write_file

__all__ = ["Callback", "Evaluations", "JsonLines", "Progress", "TensorBoard", "WandB", "closing"]


class Callback(Protocol):
    """Receives the records of a run."""

    def record(self, record: dict[str, Any]) -> bool | None:
        """One record; True asks the run to stop."""

    def close(self) -> None:
        """The run is over."""


@contextlib.contextmanager
def closing(callbacks: Iterable[Callback]) -> Iterator[list[Callback]]:
    """Yield the callbacks of a run, and close them after the block, even if it or a later callback raises."""
    with contextlib.ExitStack() as stack:
        found = []
        for callback in callbacks:
            if hasattr(callback, "close"):
                stack.callback(callback.close)
            found.append(callback)
        yield found


def _is_before(line: str, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to `step`. A killed run may have left half a line."""
    try:
        return line.endswith("\n") and bool(json.loads(line).get("step", 0) <= step)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return False


class JsonLines:
    """Writes one JSON object per line to ``log.jsonl``. A resumed run drops the lines of steps that it will repeat."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self._path = path
        kept: list[str] = []
        if resume_step is not None and kind_of(path) is not None:
            with naming_file(path), open_file(path, TrainingError) as file:
                lines = io.TextIOWrapper(io.BufferedReader(file), "utf-8", "replace")  # type: ignore[type-var]
                kept = [line for line in lines if _is_before(line, resume_step)]
        write_file(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def record(self, record: dict[str, Any]) -> None:
        with naming_file(self._path):
            self._file.write(to_json(record, indent=None))
            self._file.flush()

    def close(self) -> None:
        with naming_file(self._path):
            self._file.close()


class _Alarms:
    """The alarms of a run, each told once."""

    def __init__(self, label: str) -> None:
        self._label, self._told = label, set[str]()

    def new(self, record: dict[str, Any]) -> list[str]:
        """Lines about the alarms of an evaluation's record that have not been told of yet."""
        found = {name: words for name, words in record.get("alarms", {}).items() if name not in self._told}
        self._told.update(found)
        return [f"{self._label}: step {record['step']}: {name}: {words}" for name, words in found.items()]


class Progress:
    """Shows a progress bar, in a terminal or a notebook. Elsewhere, it prints a line after every tenth of the run."""

    def __init__(self, steps: int, done: int, description: str = "train") -> None:
        self._steps, self._description = steps, description
        self._bar = None
        if can_draw_bars():
            self._bar = bar(total=steps, initial=done, desc=description, unit="step")
        self._next_line = done
        self._losses: dict[str, str] = {}
        self._val: dict[str, str] = {}
        self._speed: dict[str, str] = {}
        self._alarms = _Alarms(description)

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "eval":
            self._val = {"val": f"{record['val_loss']:.4f}"}
            for line in self._alarms.new(record):
                self._write(line)
            if self._bar is not None:
                self._bar.set_postfix(self._numbers())
        if record["kind"] == "skip":
            self._write(f"{self._description}: step {record['step']} skipped: {record['reason']}")
        if record["kind"] != "train":
            return
        self._losses = {"loss": f"{record['lm_loss']:.4f}"}
        for name, value in record.items():
            if name.endswith("_loss") and name != "lm_loss" and value is not None:
                self._losses[name.removesuffix("_loss")] = f"{value:.3f}"
        self._speed = {"tok/s": f"{record['tokens_per_second']:,.0f}"}
        if self._bar is not None:
            self._bar.set_postfix(self._numbers(), refresh=False)
            self._bar.update(record["step"] - self._bar.n)
        elif record["step"] >= self._next_line or record["step"] == self._steps:
            self._next_line = record["step"] + max(1, self._steps // 10)
            self._write(
                f"{self._description}: step {record['step']}/{self._steps} "
                + " ".join(f"{name} {value}" for name, value in self._numbers().items())
            )

    def _numbers(self) -> dict[str, str]:
        return {**self._losses, **self._val, **self._speed}

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()  # with the last values
            self._bar.close()


class Evaluations:
    """Writes a line to standard error for every evaluation of fine-tuning."""

    def __init__(self, steps: int, done: int, label: str) -> None:
        self._steps, self._label = steps, label
        self._losses: deque[float] = deque(maxlen=50)
        self._alarms = _Alarms(label)

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._losses.append(record["loss"])
        elif record["kind"] == "eval":
            recent = sum(self._losses) / len(self._losses) if self._losses else math.nan
            print(
                f"{self._label}: step {record['step']}/{self._steps} loss {recent:.4f} "
                f"dev score {record['score']:.4f}{' (best)' if record['best'] else ''}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            for line in self._alarms.new(record):
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """There is nothing to close."""


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record, each under ``<kind>/<field>``, and of its health the means over blocks."""
    found = {
        f"{record['kind']}/{key}": float(value)
        for key, value in record.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for half, figures in record.get("health", {}).items():
        for name in ("effective_modules", "skip_share", "router_entropy", "flips"):
            numbers = [value for value in figures[name] if value is not None]
            if numbers:
                found[f"{record['kind']}/{half}/{name}"] = sum(numbers) / len(numbers)
    return found


class TensorBoard:
    """Writes the scalars of every record as TensorBoard events to ``run_dir/tensorboard``.

    Raises
    ------
    ImportError
        Without the package ``tensorboard``.
    """

    def __init__(self, run_dir: Path) -> None:
        def part(module: str) -> Any:
            return need(f"tensorboard.{module}", "tensorboard=True")

        self._event = part("compat.proto.event_pb2").Event
        self._summary = part("compat.proto.summary_pb2").Summary
        self._writer = part("summary.writer.event_file_writer").EventFileWriter(str(run_dir / "tensorboard"))

    def record(self, record: dict[str, Any]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record).items()]
        if values:
            event = self._event(
                wall_time=record.get("time", 0.0), step=record["step"], summary=self._summary(value=values)
            )
            self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Logs the scalars of every record to a run of Weights & Biases, which has the name of the run's folder.

    The environment decides the rest, such as WANDB_PROJECT. With WANDB_MODE=offline nothing is sent: the files stay in
    ``run_dir/wandb``, and ``wandb sync`` sends them later.

    Raises
    ------
    ImportError
        Without the package ``wandb``.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        name = run_dir.resolve().name
        self._run = need("wandb", "wandb=True").init(dir=str(run_dir), name=name, config=config)

    def record(self, record: dict[str, Any]) -> None:
        if values := _scalars(record):
            self._run.log(values, step=record["step"])

    def close(self) -> None:
        self._run.finish()
