"""Fine-tuning on a GLUE task, and the metrics and answers of a fine-tuned model."""

from __future__ import annotations

import contextlib
import operator
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, flags
from ..config import MoMConfig
from ..data.encode import encode_texts
from ..data.records import MissingSplitError, check_iterators
from ..distributed import current
from ..errors import ConfigError, DataError
from ..files.folders import MODEL_FILES, check_replaceable
from ..files.hub import model_folder
from ..files.weights import read_weights
from ..interventions.rules import Intervention
from ..model import MoM, MoMForSequenceClassification, Network
from ..model.answers import classify, finite_logits
from ..training.adapt import classifier_from, warn_of_frozen, warn_of_idle_routers
from ..training.callbacks import Callback, closing
from ..training.config import FinetuneConfig
from ..training.finetune import (
    FinetuneInterrupted,
    LoopResult,
    RunOptions,
    SeedRuns,
    fit_classifier,
    results_folder,
    train_seeds,
)
from ..training.fingerprint import digest_of_rows, digest_of_weights
from ..training.signals import StopSignals, stop_signals
from .metrics import baseline_metrics, glue_metrics, task_score
from .reader import GlueData, read_glue
from .results import GlueResult, SeedResult
from .submission import write_submission
from .tasks import TASKS, GlueTask, find_task

__all__ = ["evaluate", "finetune", "predict"]

#: Further sets that a task's model can answer, for dev metrics and for submissions.
_ALSO: dict[str, tuple[str, ...]] = {"mnli": ("mnli-mm", "ax")}
_PREDICT_BATCH = 32


def finetune(
    model: Network | PathLike,
    task: str | GlueTask,
    data: Any,
    *,
    config: FinetuneConfig | None = None,
    seeds: Sequence[int] = (0,),
    out_dir: PathLike | None = None,
    predict: bool = False,
    on_error: str = "raise",
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
    run_dir: PathLike | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    interventions: Sequence[Intervention] = (),
    **changes: Any,
) -> GlueResult:
    """Fine-tune a model on a GLUE task.

    For every seed, a classifier with the model's body and a fresh head is trained on the train set. Its score on the
    dev set decides which weights are kept and when to stop.

    Parameters
    ----------
    model : MoM, MoMForSequenceClassification or path
        It is not changed. It needs a tokenizer.
    task : str or GlueTask
    data : path, mapping of splits, or str
        See `read_glue`.
    config : FinetuneConfig, optional
    seeds : sequence of int
        Seeds of the heads, of dropout and of the order of the data.
    out_dir : path, optional
        Folder for ``<task>/model`` (of the best seed), ``<task>/results.json`` and, with `predict`, ``submission``.
    predict : bool
        Answer the test set and write the file that the GLUE site takes. A model of MNLI also answers its mismatched set
        and AX. If the data lack one of them, a warning says so.
    on_error : {"raise", "skip"}
        What to do with rows of train and dev set that cannot be used. Test sets must be complete.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and evaluation; one that returns True from ``record`` ends the seed's run. Closed at
        the end.
    run_dir : path, optional
        Folder for ``<task>/seed-<number>``, one per seed, with ``log.jsonl`` and the newest checkpoint. A checkpoint is
        written after every evaluation, and when a signal ends the run.
    resume : bool
        Continue from the checkpoints in `run_dir`, to the same bits as a run that was never stopped. Finished seeds are
        not trained again. Model, data and settings must be those of the checkpoints, except for `epochs`, `max_steps`
        and settings that have no effect on the weights.
    allow_changes : bool
        Resume even if model, settings or data are not those of the checkpoints.
    interventions : sequence of Intervention
        Active in training and in all answers, beside those that are active in `model`, see `MoM.intervene`. Checkpoints
        and results hold all of them, and a resumed run needs the same ones. The model that is returned or saved is
        without them. A warning says if one of them touched nothing.
    **changes
        Fields of `config` to override.

    Returns
    -------
    GlueResult

    Raises
    ------
    ConfigError, DataError
        If settings, model and data do not fit together.
    TrainingError
        If another fine-tuning on this task is at work in `out_dir`, or another run in `run_dir`.
    FinetuneInterrupted
        On SIGTERM and Ctrl-C. The best model so far and the results are in `out_dir`. The interrupted seed counts if it
        had been evaluated at least once.
    """
    predict, progress = flags(predict=predict, progress=progress)
    resume, allow_changes = flags(resume=resume, allow_changes=allow_changes)
    task = find_task(task)
    config = (config or FinetuneConfig()).replace(**changes)
    seeds = _checked_seeds(seeds)
    if "train" not in task.files:
        raise DataError(f"task: {task.title} has no train set; fine-tune on mnli")
    if predict and out_dir is None:
        raise ConfigError("predict: needs an out_dir")
    body = model if isinstance(model, MoMForSequenceClassification) else MoM.resolve(model)
    warn_of_frozen(body, config.train)
    warn_of_idle_routers(body.config, config.train, language_model=False)
    folder = None if out_dir is None else Path(out_dir) / task.name / "model"
    if folder is not None:  # checked now rather than after hours of training
        check_replaceable(folder, MODEL_FILES)
    sets = _read_sets(data, task, predict, on_error)
    lesson = _Lesson(body, task, sets, config)
    active, lock = body.intervene(interventions, untouched="warn"), results_folder(folder)
    with current().failing_together(), active, closing(callbacks) as listeners, stop_signals() as signals, lock:
        checkpoints = None if run_dir is None else Path(run_dir) / task.name
        options = RunOptions(
            progress=progress, callbacks=listeners, signals=signals, dir=checkpoints, resume=resume,
            allow_changes=allow_changes, facts={} if run_dir is None else lesson.facts(),
        )  # fmt: skip
        runs = train_seeds(seeds, lesson.classifier, lesson.fit, options, folder)
        other_metrics, submissions = _answer_other_sets(runs, sets, lesson, out_dir, signals, len(seeds))
        signals.handled = runs.interrupted is not None
        assert runs.best is not None
        result = GlueResult(
            task, [_seed_result(task, seed, loop) for seed, loop in runs.loops.items()], lesson.baseline, runs.best,
            other_metrics, len(lesson.rows), len(lesson.dev_rows), lesson.cut, folder, submissions,
        )  # fmt: skip
        runs.write_results(folder, result.to_dict(), config)
        where = "" if folder is None else f", kept in {folder}"
        runs.raise_interruption(f"; seed {runs.best_seed} is the best so far{where}")
    return result


@dataclass(frozen=True)
class _Sets:
    """The data that are read for a task before training."""

    train: GlueData
    dev: GlueData
    others: list[GlueData]  # further dev sets
    tests: list[GlueData]


def _read_sets(data: Any, task: GlueTask, predict: bool, on_error: str) -> _Sets:
    if isinstance(data, (str, os.PathLike)) and Path(data).is_file():
        raise ConfigError(f"data: {os.fspath(data)} is one file; a folder or a mapping has a train and a dev set")
    check_iterators(data)
    train, dev = (read_glue(data, task, split, on_error=on_error) for split in ("train", "dev"))
    others = _other_sets(data, task, "dev", on_error)
    tests = [read_glue(data, task, "test"), *_other_sets(data, task, "test")] if predict else []
    for name in _ALSO.get(task.name, ()) if predict else ():
        if name not in {test.task.name for test in tests}:
            absent = TASKS[name]
            warnings.warn(
                f"predict: the data hold no test set of {absent.title}, so there will be no {absent.submission}",
                stacklevel=3,
            )
    return _Sets(train, dev, others, tests)


class _Lesson:
    """A task's examples as token rows, and how a classifier learns from them."""

    def __init__(self, body: Network, task: GlueTask, sets: _Sets, config: FinetuneConfig) -> None:
        self._body, self._task, self._config = body, task, config
        self.length = config.length_for(body.config)
        self.rows, self.cut = encode_texts(body.tokenizer, sets.train.texts, self.length, sets.train.report.source)
        self.dev_rows, _ = encode_texts(body.tokenizer, sets.dev.texts, self.length, sets.dev.report.source)
        assert sets.train.labels is not None and sets.dev.labels is not None
        self._labels, self._dev_labels = sets.train.labels, sets.dev.labels
        # If packages for the metrics are missing, this raises now.
        self.baseline = baseline_metrics(task, self._labels, self._dev_labels)

    def classifier(self, seed: int) -> MoMForSequenceClassification:
        """The initial classifier of a seed."""
        problem = "regression" if self._task.is_regression else "single_label_classification"
        made = classifier_from(self._body, self._task.num_labels, problem, seed, self._config.dropout)
        made.finetuning_task, made.finetuning_lengths = self._task.name, {"max_length": self.length}
        made.label_names = self._task.label_names
        return made

    def facts(self) -> dict[str, Any]:
        """What belongs to the fingerprint of a run, see `mom.training.fingerprint`."""
        return {
            "data": digest_of_rows(self.rows, self._labels),
            "dev_data": digest_of_rows(self.dev_rows, self._dev_labels),
            "start": digest_of_weights(self._body),
        }

    def fit(self, made: MoMForSequenceClassification, seed: int, options: RunOptions) -> LoopResult:
        """Train a classifier; the mean of the task's metrics on the dev set chooses the weights."""

        def measure() -> dict[str, float]:
            answers = _answers(self._task, classify(made, self.dev_rows, _PREDICT_BATCH, current()))
            metrics = glue_metrics(self._task, answers, self._dev_labels)
            return {"score": task_score(metrics), **metrics}

        options = replace(options, label=f"{self._task.name} seed {seed}")
        return fit_classifier(made, self.rows, self._labels, self._config, seed, measure, options)


def _seed_result(task: GlueTask, seed: int, loop: LoopResult) -> SeedResult:
    metrics = {name: loop.best_values[name] for name in task.metrics}
    return SeedResult(seed, metrics, task_score(metrics), loop)


def _answer_other_sets(
    runs: SeedRuns[MoMForSequenceClassification],
    sets: _Sets,
    lesson: _Lesson,
    out_dir: PathLike | None,
    signals: StopSignals,
    seeds: int,
) -> tuple[dict[str, dict[str, float]], list[Path]]:
    """Compute metrics of the best model on further dev sets and write submission files, unless a signal arrives."""
    metrics: dict[str, dict[str, float]] = {}
    submissions: list[Path] = []
    if runs.interrupted is not None:
        return metrics, submissions
    assert runs.best is not None
    try:
        with signals.at_once():
            metrics.update({o.task.name: _metrics_of(runs.best, o, lesson.length) for o in sets.others})
            for test in sets.tests:
                answers = _answers(test.task, _logits_of(runs.best, test, lesson.length))
                submissions.append(
                    write_submission(test.task, answers, Path(out_dir or "") / "submission", test.index)
                )
    except KeyboardInterrupt:
        done = f"{sets.train.task.name}: {len(runs.loops)} of {seeds} seeds trained"
        last = list(runs.loops.values())[-1]
        runs.interrupted = FinetuneInterrupted(done, last, signals[0] if signals else "SIGINT")
    return metrics, submissions


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    try:
        seeds = [operator.index(seed) for seed in ([seeds] if isinstance(seeds, (int, np.integer)) else seeds)]
    except TypeError:
        raise ConfigError(f"seeds: expected one or more distinct integers, got {seeds!r}") from None
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: expected one or more distinct integers, got {seeds!r}")
    return seeds


def _other_sets(data: Any, task: GlueTask, split: str, on_error: str = "raise") -> list[GlueData]:
    """Further sets that a task's model can answer and that the source has under names of their own."""
    names = _ALSO.get(task.name, ())
    if isinstance(data, Mapping):  # its "dev" is the dev set of the task itself
        also = (TASKS[name] for name in names)
        names = tuple(o.name for o in also if o.hub_config == task.hub_config and o.hub_splits.get(split) in data)
    elif not isinstance(data, (str, os.PathLike)) or Path(data).is_file():
        names = ()
    found = []
    for name in names:
        with contextlib.suppress(MissingSplitError):
            found.append(read_glue(data, name, split, on_error=on_error))
    return found


def _answers(task: GlueTask, logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return logits[:, 0] if task.is_regression else logits.argmax(axis=1)


def _logits_of(model: MoMForSequenceClassification, data: GlueData, length: int) -> npt.NDArray[np.float32]:
    """Logits in the order of the task's labels, whatever the order of the model's own."""
    rows, _ = encode_texts(model.tokenizer, data.texts, length, data.report.source)
    logits = finite_logits(classify(model, rows, _PREDICT_BATCH, current()))
    named = model.label_names is not None and not data.task.is_regression
    return logits[:, data.task.outputs_of(model.label_names or ())] if named else logits


def _metrics_of(model: MoMForSequenceClassification, data: GlueData, length: int) -> dict[str, float]:
    if data.labels is None:
        raise DataError(f"{data.report.source}: has no labels")
    return glue_metrics(data.task, _answers(data.task, _logits_of(model, data, length)), data.labels)


def _classifier(
    model: MoMForSequenceClassification | PathLike, task: GlueTask, max_length: int | None
) -> tuple[MoMForSequenceClassification, int]:
    """The classifier of a task, and the given length or else that of fine-tuning."""
    if isinstance(model, (str, os.PathLike)):
        model = model_folder(model, "model")
        if MoMConfig.from_json(model).num_labels is None and "score.weight" not in read_weights(model):
            raise DataError(f"{model}: a language model without a classification head; fine-tune it first")
    model = MoMForSequenceClassification.resolve(model)
    if model.config.num_labels != task.num_labels:
        raise ConfigError(f"model: has {model.config.num_labels} labels, {task.title} has {task.num_labels}")
    tuned = TASKS.get(model.finetuning_task or "")  # names of other programs' tasks are ignored
    if tuned is not None and task.name not in (tuned.name, *_ALSO.get(tuned.name, ())):
        raise ConfigError(f"model: was fine-tuned for {tuned.title}, not for {task.title}")
    if model.label_names is not None and not task.is_regression:
        task.outputs_of(model.label_names)  # names of other labels are an error before the data are read
    config = FinetuneConfig(max_length=max_length or model.finetuning_lengths.get("max_length"))
    return model, config.length_for(model.config)


def evaluate(
    model: MoMForSequenceClassification | PathLike,
    task: str | GlueTask,
    data: Any,
    split: str = "dev",
    *,
    max_length: int | None = None,
    on_error: str = "raise",
    interventions: Sequence[Intervention] = (),
) -> dict[str, float]:
    """Official metrics of a fine-tuned model.

    Parameters
    ----------
    model : MoMForSequenceClassification or path
        If its labels have names, these say which output stands for which label of the task.
    task : str or GlueTask
    data, on_error
        See `read_glue`.
    split : {"dev", "train", "test"}
        The set must have labels.
    max_length : int, optional
        By default the length of fine-tuning, or ``n_positions`` if the model does not record it.
    interventions : sequence of Intervention
        Active throughout, see `MoM.intervene`.

    Returns
    -------
    dict of str to float
    """
    task = find_task(task)
    model, length = _classifier(model, task, max_length)
    with current().failing_together(), model.intervene(interventions):
        return _metrics_of(model, read_glue(data, task, split, on_error=on_error), length)


def predict(
    model: MoMForSequenceClassification | PathLike,
    task: str | GlueTask,
    data: Any,
    split: str = "test",
    *,
    max_length: int | None = None,
    interventions: Sequence[Intervention] = (),
) -> npt.NDArray[Any]:
    """Answers of a fine-tuned model: label numbers (N,) int64, or scores (N,) float32 for STS-B.

    Parameters
    ----------
    model, task, data, max_length, interventions
        See `evaluate`.
    split : {"test", "dev", "train"}
    """
    task = find_task(task)
    model, length = _classifier(model, task, max_length)
    with current().failing_together(), model.intervene(interventions):
        return _answers(task, _logits_of(model, read_glue(data, task, split), length))
