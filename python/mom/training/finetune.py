"""Fine-tuning on the training engine: trains seed after seed, keeps the best weights and handles interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from ..data.batches import pack_rows
from ..distributed import current, is_first
from ..errors import TrainingInterrupted
from ..files.folders import write_json
from ..files.locks import lock_folder
from ..interventions.files import described
from ..model import MoMForSequenceClassification, Network
from .adapt import Made, parameters_selected_by
from .batches import MicroBatch, Rows
from .callbacks import Callback
from .checkpoint import check_no_run_in
from .config import FinetuneConfig, warmup_steps
from .engine import Engine, Schedule
from .fingerprint import digest_of_rows
from .schedules import learning_rate_factor
from .signals import StopSignals, stop_signals

__all__ = [
    "FinetuneInterrupted", "LoopResult", "RunOptions", "SeedRuns", "fit_classifier", "fit_rows", "results_folder",
    "train_seeds",
]  # fmt: skip

Evaluate = Callable[[], "Mapping[str, Any] | float"]


@dataclass(frozen=True)
class LoopResult:
    """How fine-tuning went.

    Attributes
    ----------
    steps, best_step : int
        Steps done, and the step of the best evaluation. The model has the weights of that step.
    best_score : float or None
        The best evaluation's score; None without a dev set.
    loss : float
        Mean loss of the last tenth of the steps.
    skipped : int
        Steps skipped because of non-finite numbers.
    stopped_early : bool
        Whether `patience` or a callback ended the run.
    seconds : float
        Time of the training steps alone.
    examples, tokens : int
        Number of examples in these steps, and of their tokens.
    history : list of (int, float)
        Step and score of every evaluation.
    best_values : dict
        All values of the best evaluation.
    interrupted : bool
        Whether SIGTERM or Ctrl-C ended the run.
    records : list of dict
        The records of this call, without ``module_use``: rows for a table.
    """

    steps: int
    best_step: int
    best_score: float | None
    loss: float
    skipped: int
    stopped_early: bool
    seconds: float
    examples: int
    tokens: int
    history: list[tuple[int, float]] = field(default_factory=list)
    best_values: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)


class FinetuneInterrupted(TrainingInterrupted):
    """SIGTERM or Ctrl-C during fine-tuning.

    The model has the weights of the best evaluation so far, or of the last step if there was no evaluation.

    Attributes
    ----------
    loop : LoopResult
        How far the run came.
    """

    @property
    def loop(self) -> LoopResult:
        return self.result  # type: ignore[no-any-return]


@dataclass(frozen=True)
class RunOptions:
    """How a run is observed, stopped and saved.

    Attributes
    ----------
    label : str
        Begins every line of progress.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and per evaluation; one that returns True from ``record`` ends the run.
    signals : StopSignals or None
        Given by a caller that does more than this run and collects signals itself.
    dir : Path or None
        Gets ``log.jsonl``, and a checkpoint after every evaluation and when a signal ends the run.
    resume : bool
        Go on from the newest valid checkpoint in `dir`, to the same bits as a run that was never stopped.
    allow_changes : bool
        Resume even if model, settings or data are not those of the checkpoint.
    facts : mapping of str to value
        What belongs to the run's fingerprint and only the caller knows.
    """

    label: str = "finetune"
    progress: bool = True
    callbacks: Iterable[Callback] = ()
    signals: StopSignals | None = None
    dir: Path | None = None
    resume: bool = False
    allow_changes: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def fit_rows(
    model: Network,
    source: Rows,
    config: FinetuneConfig,
    seed: int,
    evaluate: Evaluate | None = None,
    options: RunOptions | None = None,
) -> LoopResult:
    """Train `model` in place and leave it with the weights of the best evaluation.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    source : Rows
    config : FinetuneConfig
    seed : int
        Only named in the records and in checkpoints. The order of the data is determined by `source`.
    evaluate : callable, optional
        Measures the model on the dev set. Returns a score (larger is better), or a mapping of values with the key
        ``"score"``. Without it the model keeps the last weights.
    options : RunOptions, optional

    Raises
    ------
    FinetuneInterrupted
        On SIGTERM and Ctrl-C, as if the step or the evaluation at hand had not begun.
    TrainingError
        If several steps in a row are not finite.
    """
    options = options or RunOptions()
    shared = stop_signals() if options.signals is None else contextlib.nullcontext(options.signals)
    with shared as signals:
        measure = None if evaluate is None else _as_values(evaluate)
        schedule = _schedule(model, source, config)
        facts = {"seed": seed, **options.facts}
        engine = Engine(
            model, source, config, schedule, measure, options.dir, options.label, facts, options.allow_changes
        )
        try:
            interrupted = engine.run(list(options.callbacks), signals, options.resume, options.progress)
        except KeyboardInterrupt:
            interrupted = signals[0] if signals else "SIGINT"
        engine.restore_best()
        result = _result(engine, interrupted is not None)
        if interrupted is not None:
            kept = "before any evaluation"
            if result.best_score is not None:
                kept = f"best score {result.best_score:.4f} at step {result.best_step}"
            if engine.checkpoint is not None:
                kept += f"; resume goes on from {engine.checkpoint}"
            message = f"{options.label}: step {result.steps}/{schedule.steps}, {kept}"
            raise FinetuneInterrupted(message, result, interrupted)
        return result


def _schedule(model: Network, source: Rows, config: FinetuneConfig) -> Schedule:
    total = config.total_steps(source.steps_per_epoch)
    chosen = parameters_selected_by(model, config.train)

    def is_evaluated(step: int) -> bool:
        return config.is_evaluated(step, source.steps_per_epoch)

    factor = learning_rate_factor(config.schedule, warmup_steps(config.warmup, total), total, ahead=1)
    return Schedule(
        total, factor, is_evaluated,
        is_saved=is_evaluated, measure="score", trained=None if chosen.all() else chosen, keep_best=True,
        patience=config.patience,
    )  # fmt: skip


def _as_values(evaluate: Evaluate) -> Callable[[], Mapping[str, Any]]:
    """The same evaluation with a mapping as its result."""

    def measure() -> Mapping[str, Any]:
        values = evaluate()
        return values if isinstance(values, Mapping) else {"score": float(values)}

    return measure


def _result(engine: Engine, interrupted: bool) -> LoopResult:
    state = engine.state
    tail = state.losses[-max(1, len(state.losses) // 10) :]
    return LoopResult(
        state.step, state.step if state.best_score is None else state.best_step, state.best_score,
        float(np.mean(tail)) if tail else math.nan, state.skipped, engine.stopped_early, state.seconds, state.examples,
        state.tokens, state.history, state.best_values, interrupted, engine.records,
    )  # fmt: skip


def fit_classifier(
    model: MoMForSequenceClassification,
    rows: Sequence[npt.NDArray[np.int32]],
    labels: npt.NDArray[Any],
    config: FinetuneConfig,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    options: RunOptions | None = None,
) -> LoopResult:
    """Train a classifier on token rows, see `fit_rows`.

    Parameters
    ----------
    model : MoMForSequenceClassification
        Trained in place.
    rows : sequence of ndarray of int32, shape (T_i,)
    labels : ndarray, shape (N,)
        Integers for classes, floats for scores.
    config : FinetuneConfig
    seed : int
        Determines the order of the data.
    evaluate : callable, optional
        Score on the dev set.
    options : RunOptions, optional
    """

    def make(chosen: npt.NDArray[np.int64]) -> MicroBatch:
        tokens, lengths = pack_rows([rows[i] for i in chosen])
        inputs = {"tokens": tokens, "labels": labels[chosen], "lengths": lengths, "return_logits": False}
        return MicroBatch(inputs, len(chosen), len(chosen), len(tokens))

    source = Rows([len(row) for row in rows], config.batch_size, config.accumulation, seed, make)
    if options is not None and (options.dir is not None or current().size > 1):
        options = dataclasses.replace(options, facts={"data": digest_of_rows(rows, labels), **options.facts})
    return fit_rows(model, source, config, seed, evaluate, options)


@dataclass
class SeedRuns(Generic[Made]):
    """Runs that differ only in their seed, and the model with the best score.

    Attributes
    ----------
    loops : dict of int to LoopResult
        How the run of each seed went, in the order of the seeds. A run that was interrupted before its first evaluation
        is missing.
    best : model or None
        If there is a folder, the model is saved in it whenever it becomes the best.
    best_seed : int
    interrupted : FinetuneInterrupted or None
        The interruption that ended the runs early.
    """

    loops: dict[int, LoopResult] = field(default_factory=dict)
    best: Made | None = None
    best_seed: int = 0
    interrupted: FinetuneInterrupted | None = None

    def write_results(self, folder: Path | None, values: dict[str, Any], config: FinetuneConfig) -> None:
        """Write ``results.json`` beside the model's folder, with the interventions that are active."""
        if folder is not None:
            signal = None if self.interrupted is None else self.interrupted.signal
            rules = [] if self.best is None else described(self.best.interventions)
            values = {**values, "interrupted": signal, "config": config.to_dict(), "interventions": rules}
            write_json(folder.parent / "results.json", values)

    def raise_interruption(self, kept: str) -> None:
        """If the runs were interrupted, raise the interruption. Its message also says what was kept."""
        if (stop := self.interrupted) is not None:
            raise FinetuneInterrupted(f"{stop}{kept}", stop.loop, stop.signal)


@contextlib.contextmanager
def results_folder(folder: Path | None) -> Iterator[None]:
    """Lock the folder that gets a task's model and results, until the block ends.

    Parameters
    ----------
    folder : Path or None
        The model's folder; the folder above it is made if it is missing, and locked. None: nothing is locked.

    Raises
    ------
    TrainingError
        If another fine-tuning holds the lock. The message names `out_dir`.
    """
    if folder is None or not is_first():
        yield
        return
    made = [path for path in (folder.parent, folder.parent.parent) if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder.parent, "out_dir"):
            yield
    finally:
        with contextlib.suppress(OSError):  # a run that saved nothing leaves no folder
            for path in made:
                path.rmdir()


def train_seeds(
    seeds: Iterable[int],
    make: Callable[[int], Made],
    fit: Callable[[Made, int, RunOptions], LoopResult],
    options: RunOptions,
    folder: Path | None,
) -> SeedRuns[Made]:
    """Fine-tune a model for each seed, until a signal comes.

    Parameters
    ----------
    seeds : iterable of int
    make : callable
        Makes the initial model for a seed.
    fit : callable
        Trains the model.
    options : RunOptions
        With `signals` set. Each seed has a folder of its own in ``options.dir``.
    folder : Path or None
        Where the best model is saved.

    Raises
    ------
    FinetuneInterrupted
        If there is no best model yet.
    """
    runs: SeedRuns[Made] = SeedRuns()
    own = {seed: None if options.dir is None else options.dir / f"seed-{seed}" for seed in seeds}
    for path in own.values():
        if path is not None and not options.resume and is_first():
            check_no_run_in(path)  # checked now, before any seed is trained
    for seed, path in own.items():
        model = make(seed)
        try:
            loop = fit(model, seed, dataclasses.replace(options, dir=path))
        except FinetuneInterrupted as stop:
            runs.interrupted, loop = stop, stop.loop
            if loop.best_score is None:
                break
        if runs.best is None or _score(loop) > _score(runs.loops[runs.best_seed]):
            runs.best, runs.best_seed = model, seed
            if folder is not None:  # what comes later may fail
                model.save_pretrained(folder)
        runs.loops[seed] = loop
        # A signal may have come to some ranks only. All must go on alike.
        if runs.interrupted is not None or any(current().exchange(bool(options.signals))):
            break
    if runs.best is None:
        assert runs.interrupted is not None
        raise runs.interrupted
    return runs


def _score(loop: LoopResult) -> float:
    return -math.inf if loop.best_score is None else loop.best_score
