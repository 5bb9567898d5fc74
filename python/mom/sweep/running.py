"""Runs what a sweep has not done yet, in processes side by side."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._arguments import PathLike, count, flags
from .._html import html_table
from .._reading import check_name, kind_of
from ..distributed import current
from ..errors import ConfigError, TrainingInterrupted
from ..files.locks import FolderInUse, is_locked, lock_folder
from ..runtime import cpu_info
from ..training.signals import StopSignals, stop_signals
from .display import Display
from .grid import Grid, read_grid
from .processes import Job, Process
from .sampling import Asked
from .sources import Listed, Source
from .tables import table
from .trial import DONE, FAILED, LOCK, MESSAGES, Trial, read_words
from .work import clean, write_config, write_failure

if TYPE_CHECKING:
    import pandas

__all__ = ["SweepResult", "run"]

#: A trial whose process is killed so often in one sweep counts as failed.
_KILLS = 3
#: Signals that come from outside: the trial may do better the next time.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
_POLL = 0.2


@dataclass(frozen=True, repr=False)
class SweepResult:
    """How a sweep ended.

    Attributes
    ----------
    dir : Path
    done, failed, left : list of str
        Labels of the trials that are done, that failed, and that were not run because a signal came.
    """

    dir: Path
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def table(self) -> pandas.DataFrame:
        """See `mom.sweep.table`."""
        return table(self.dir)

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        left = f", {len(self.left)} left" if self.left else ""
        return f"<SweepResult: {len(self.done)} trials done{failed}{left} in {self.dir}>"

    def _repr_html_(self) -> str:
        rows = [(name, state) for state in ("done", "failed", "left") for name in getattr(self, state)]
        return html_table(repr(self).strip("<>"), ["trial", "state"], rows, text_columns=2)


def run(
    grid: PathLike | Mapping[str, Any] | Grid,
    dir: PathLike,
    *,
    processes: int = 1,
    threads: int | None = None,
    retry_failed: bool = False,
    keep_models: bool = False,
    part: str | None = None,
    data: PathLike | None = None,
    val_data: PathLike | None = None,
    progress: bool = True,
) -> SweepResult:
    """Run the trials of a grid that are not done yet.

    Parameters
    ----------
    grid : path or mapping
        A TOML file, or a mapping of the same form. ``docs/ablations.md`` describes it.
    dir : path
        Folder of the sweep. Each trial has a folder there, named by the hash of its configuration.
    processes : int
        Trials that run side by side, each in a Python process of its own.
    threads : int, optional
        Threads of all processes together (default: all CPUs).
    retry_failed : bool
        Run trials again that failed before.
    keep_models : bool
        Keep the trained model of every trial that is run, even if the grid does not say so.
    part : str, optional
        Run one part of the trials, such as ``"1/3"``, the first of three.
    data, val_data : path, optional
        Where the data lie on this machine, in place of what the grid's base says.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    SweepResult

    Raises
    ------
    ConfigError, DataError
        If the grid is not valid, before any trial begins.
    TrainingInterrupted
        On SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C. All running trials save a checkpoint first. The same call goes on later.

    Notes
    -----
    A trial that fails does not stop the others. ``failed.json`` in its folder has the traceback. A trial whose process
    is killed goes on from its checkpoint, to the same bits.

    Several sweeps may work in one folder at the same time, also on several machines that share it. A lock makes sure
    that each trial runs once.
    """
    if current().size > 1:
        raise ConfigError("sweep: starts processes of its own, so start it as a single process, without 'mom launch'")
    retry_failed, keep_models, progress = flags(
        retry_failed=retry_failed, keep_models=keep_models, progress=progress
    )
    processes = count(processes, "processes", 1)
    threads = cpu_info()["cpus"] if threads is None else count(threads, "threads", 1)
    check_name(dir, ConfigError)
    folder, plan = Path(dir), read_grid(grid)
    where = {name: path for name, path in (("data", data), ("val_data", val_data)) if path is not None}
    plan = replace(plan, base={**plan.base, **where})
    source = _source(plan, folder, part)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder, max(1, threads // processes), plan.keep_models or keep_models, plan.measure, retry_failed)
    with stop_signals() as signals:
        sweep = _Sweep(job, source, processes, progress, signals)
        try:
            sweep.run()
        finally:
            sweep.close()
        signals.handled = True
    result = sweep.result()
    if sweep.stopped:
        words = f"sweep: {len(result.done)} trials done; the same command goes on with the others"
        raise TrainingInterrupted(words, result, signals[0])
    return result


def _source(plan: Grid, folder: Path, part: str | None) -> Source:
    if plan.sampler == "optuna":
        if part is not None:
            raise ConfigError("part: has no meaning with the sampler 'optuna'")
        return Asked(plan, folder)
    return Listed(part_of(plan.trials(), part))


def part_of(trials: Sequence[Trial], part: str | None) -> list[Trial]:
    """Every n-th trial, from the k-th on, for a part ``"k/n"``. None: all trials."""
    if part is None:
        return list(trials)
    number, _, of = str(part).partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"part: {part!r} is not of the form '1/3', the first of three parts")
    return list(trials[int(number) - 1 :: int(of)])


class _Sweep:
    """The loop over trials and processes."""

    def __init__(self, job: Job, source: Source, processes: int, progress: bool, signals: StopSignals) -> None:
        self.job, self.source, self._signals = job, source, signals
        self._said: queue.Queue[Any] = queue.Queue()
        self._running: dict[int, Process] = {}
        self._places = range(processes)
        self._waiting: list[tuple[Trial, Path]] = []  # trials that another sweep runs, and the folder that is locked
        self._again: list[Trial] = []  # trials whose process was killed
        self._kills: dict[str, int] = {}
        self._states: dict[str, tuple[str, str]] = {}
        self._display = Display(source.total, processes, progress)
        self.stopped = False

    def run(self) -> None:
        while True:
            if self._signals and not self.stopped:
                self.stopped = True
                self._display.say(f"sweep: {self._signals[0]}; the running trials save a checkpoint and end")
                for process in self._running.values():
                    process.stop()
            if not self.stopped:
                self._fill()
            if not self._running and (self.stopped or (self.source.is_over and not self._waiting and not self._again)):
                return
            try:
                process, message = self._said.get(timeout=_POLL)
            except queue.Empty:
                continue
            if message is None:
                del self._running[process.place]
                self._ended(process)
            else:
                self._display.heard(process.place, message)

    def close(self) -> None:
        """End the display; processes that still run end as if the sweep had been killed."""
        for process in self._running.values():
            process.leave()
        self._display.close()

    def result(self) -> SweepResult:
        labels: dict[str, list[str]] = {"done": [], "failed": [], "left": []}
        for state, label in self._states.values():
            labels[state].append(label)
        return SweepResult(self.job.folder, **labels)

    # ------------------------------------------------------------------ beginning
    def _fill(self) -> None:
        for place in self._places:
            while place not in self._running:
                trial = self._next()
                if trial is None:
                    return
                if not self._is_settled(trial):
                    self._start(trial, place)

    def _next(self) -> Trial | None:
        if self._again:
            return self._again.pop()
        if trial := self.source.next():
            return trial
        for entry in self._waiting:
            if not is_locked(entry[1], LOCK):
                self._waiting.remove(entry)
                return entry[0]
        return None

    def _is_settled(self, trial: Trial) -> bool:
        """Whether there is nothing to run, now or at all."""
        own = self.job.folder / trial.hash
        self._states[trial.hash] = ("left", trial.label)
        if kind_of(own / DONE) is not None:
            if any(own.glob("step-*")):
                self._clean(own)
            if trial.name is not None and trial.name not in read_words(own / "config.json").get("names", []):
                return False  # the process adds the name
            self._settle(trial, None, "was done before")
            return True
        if kind_of(own / FAILED) is not None and not self.job.retry_failed:
            self._settle(trial, None, "has failed before; retry_failed runs it again")
            return True
        if is_locked(own, LOCK):
            self._waiting.append((trial, own))
            return True
        return False

    def _clean(self, own: Path) -> None:
        try:
            with lock_folder(own, "dir", LOCK):
                clean(own)
        except FolderInUse:
            pass  # its process does the same

    def _start(self, trial: Trial, place: int) -> None:
        self._running[place] = Process(self.job, trial, place, self._said)
        self._display.started(place, trial.label)

    # ------------------------------------------------------------------ ending
    def _ended(self, process: Process) -> None:
        end, trial = process.end.get("end"), process.trial
        if end in ("done", "failed"):
            self._settle(trial, process.place)
        elif self.stopped or self._signals:  # Ctrl-C also reaches a process that has no session of its own yet
            pass
        elif end == "locked":
            self._waiting.append((trial, Path(process.end["folder"])))
        else:
            self._died(process)

    def _died(self, process: Process) -> None:
        """Run a trial again whose process was killed, or note that it has failed."""
        trial = process.trial
        kills = self._kills[trial.hash] = self._kills.get(trial.hash, 0) + 1
        if (process.signal in _FROM_OUTSIDE or end_of(process) == "interrupted") and kills < _KILLS:
            self._display.say(f"{trial.label}: its process was killed; it goes on from its checkpoint")
            self._again.append(trial)
            return
        how = f"by {process.signal}" if process.signal else f"with exit status {process.status}"
        own = self.job.folder / trial.hash
        messages = own / MESSAGES
        said = messages.read_text("utf-8", "replace")[-4000:] if messages.is_file() else ""
        write_config(own, trial)
        write_failure(own, f"its process ended {how}", said)
        self._settle(trial, process.place)

    def _settle(self, trial: Trial, place: int | None, words: str = "") -> None:
        """Note how a trial has ended, by the files in its folder."""
        own = self.job.folder / trial.hash
        done = read_words(own / DONE) if kind_of(own / DONE) is not None else None
        self._states[trial.hash] = ("failed" if done is None else "done", trial.label)
        if not words:
            error = "" if done else read_words(own / FAILED).get("error")
            words = f"validation loss {done['val_loss']:.4f}" if done else f"failed: {error}"
        self._display.ended(place, trial.label, words, done is not None, done is None)
        self.source.ended(trial, done)
        self._display.grow(self.source.total)
        if done is not None and (missing := [name for name in self.job.measure if name not in done]):
            self._display.say(
                f"{trial.label}: was done without the measurement of {', '.join(missing)}; remove {own} to repeat it"
            )


def end_of(process: Process) -> str | None:
    """What the process said of its end."""
    end: str | None = process.end.get("end")
    return end
