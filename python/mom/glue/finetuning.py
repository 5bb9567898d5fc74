"""Fine-tuning on a GLUE task, and what a fine-tuned model answers."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..data.encode import encode_texts
from ..data.records import MissingSplitError, check_iterators
from ..errors import ConfigError, DataError
from ..files.folders import MODEL_FILES, check_replaceable, write_file
from ..files.hub import model_folder
from ..files.weights import read_weights
from ..model import MoM, MoMForSequenceClassification
from ..training.callbacks import Callback, closing
from ..training.finetune import (
    FinetuneConfig,
    FinetuneInterrupted,
    LoopResult,
    classifier_from,
    classify,
    finite_logits,
    fit_classifier,
    warn_of_idle_routers,
)
from ..training.signals import stop_signals
from .metrics import baseline_metrics, glue_metrics, task_score
from .reader import GlueData, read_glue
from .submission import write_submission
from .tasks import TASKS, GlueTask, find_task

__all__ = ["GlueResult", "SeedResult", "evaluate", "finetune", "format_table", "predict"]

PathLike = str | os.PathLike[str]
Network = MoM | MoMForSequenceClassification

#: Sets beside its own that a model of a task can answer: for dev metrics and submissions.
_ALSO: dict[str, tuple[str, ...]] = {"mnli": ("mnli-mm", "ax")}
_PREDICT_BATCH = 32


@dataclass(frozen=True)
class SeedResult:
    """One run of fine-tuning.

    Attributes
    ----------
    seed : int
    metrics : dict of str to float
        On the dev set, with the best weights.
    score : float
        Their mean.
    loop : LoopResult
        Steps, evaluations and times.
    """

    seed: int
    metrics: dict[str, float]
    score: float
    loop: LoopResult


@dataclass(frozen=True)
class GlueResult:
    """Fine-tuning on one task with one or more seeds.

    Attributes
    ----------
    task : GlueTask
    seeds : list of SeedResult
        One per seed, in their order.
    baseline : dict of str to float
        Dev metrics of always giving the most frequent label of the train set (STS-B: its mean).
    model : MoMForSequenceClassification
        Of the seed with the best score.
    other_metrics : dict of str to dict
        Dev metrics of `model` on further sets (MNLI mismatched, AX), by task name.
    train_rows, dev_rows, cut_rows : int
        Examples; train examples that were longer than ``max_length``.
    folder : Path or None
        Where the model was saved.
    submissions : list of Path
        Files for the GLUE site.
    """

    task: GlueTask
    seeds: list[SeedResult]
    baseline: dict[str, float]
    model: MoMForSequenceClassification
    other_metrics: dict[str, dict[str, float]]
    train_rows: int
    dev_rows: int
    cut_rows: int
    folder: Path | None = None
    submissions: list[Path] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Median over seeds of each metric."""
        return {name: float(np.median([s.metrics[name] for s in self.seeds])) for name in self.task.metrics}

    @property
    def score(self) -> float:
        """Median over seeds of the task's score."""
        return float(np.median([s.score for s in self.seeds]))

    @property
    def best(self) -> SeedResult:
        """The seed with the best score (of equals, the first)."""
        return max(self.seeds, key=lambda s: s.score)

    @property
    def examples_per_second(self) -> float:
        """Training speed over all seeds."""
        seconds = sum(s.loop.seconds for s in self.seeds)
        return sum(s.loop.examples for s in self.seeds) / seconds if seconds else math.nan

    def to_dict(self) -> dict[str, Any]:
        """All numbers, fit for JSON."""
        runs = [
            {"seed": s.seed, **s.metrics, "score": s.score, "steps": s.loop.steps, "best_step": s.loop.best_step,
             "loss": s.loop.loss, "seconds": s.loop.seconds, "interrupted": s.loop.interrupted}
            for s in self.seeds
        ]  # fmt: skip
        return {
            "task": self.task.name, "metrics": self.metrics, "score": self.score, "baseline": self.baseline,
            "other": self.other_metrics, "train_rows": self.train_rows, "dev_rows": self.dev_rows,
            "cut_rows": self.cut_rows, "seeds": runs,
        }  # fmt: skip

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        return f"<GlueResult {self.task.title}: {shown} (median of {len(self.seeds)})>"


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
    **changes: Any,
) -> GlueResult:
    """Fine-tune a model on a GLUE task.

    For every seed, a classifier with the model's body and a fresh head learns from the train set; its score on the
    dev set decides which weights are kept and when to stop.

    Parameters
    ----------
    model : MoM, MoMForSequenceClassification or path
        Left as it is. It needs a tokenizer.
    task : str or GlueTask
    data : path, mapping of splits, or str
        See `read_glue`.
    config : FinetuneConfig, optional
    seeds : sequence of int
        Of heads, dropout and order of the data.
    out_dir : path, optional
        Gets ``<task>/model`` (the best seed's), ``<task>/results.json`` and, with `predict`, ``submission``.
    predict : bool
        Answer the test set and write the file that the GLUE site takes; with MNLI also for its mismatched set and AX,
        where they are there (a warning says which are not).
    on_error : {"raise", "skip"}
        About rows of train and dev set that cannot be used. Test sets must be whole.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and evaluation; closed at the end.
    **changes
        Fields of `config` to override.

    Returns
    -------
    GlueResult

    Raises
    ------
    ConfigError, DataError
        If settings, model and data do not fit together.
    FinetuneInterrupted
        On SIGTERM and Ctrl-C. The best model so far, also of the seed that was interrupted from its first evaluation,
        and the results are in `out_dir`.
    """
    task = find_task(task)
    config = (config or FinetuneConfig()).replace(**changes)
    seeds = _checked_seeds(seeds)
    if "train" not in task.files:
        raise DataError(f"task: {task.title} has no train set; fine-tune on mnli")
    if predict and out_dir is None:
        raise ConfigError("predict: needs an out_dir")
    body = MoM.from_pretrained(model) if isinstance(model, (str, os.PathLike)) else model
    if not isinstance(body, (MoM, MoMForSequenceClassification)):
        raise TypeError(f"model: expected MoM or MoMForSequenceClassification, got {type(body).__name__}")
    warn_of_idle_routers(body.config, config.train, language_model=False)
    folder = None if out_dir is None else Path(out_dir) / task.name / "model"
    if folder is not None:  # now rather than after hours of training
        check_replaceable(folder, MODEL_FILES)
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
                stacklevel=2,
            )
    length = config.length_for(body.config)
    rows, cut = encode_texts(body.tokenizer, train.texts, length)
    dev_rows, _ = encode_texts(body.tokenizer, dev.texts, length)
    dev_labels = dev.labels
    assert train.labels is not None and dev_labels is not None
    baseline = baseline_metrics(task, train.labels, dev_labels)  # says now what the metrics lack
    problem = "regression" if task.is_regression else "single_label_classification"

    results: list[SeedResult] = []
    best: MoMForSequenceClassification | None = None
    interrupted: FinetuneInterrupted | None = None
    other_metrics: dict[str, dict[str, float]] = {}
    submissions: list[Path] = []
    with closing(callbacks) as listeners, stop_signals() as signals:
        for seed in seeds:
            made = classifier_from(body, task.num_labels, problem, seed, config.dropout)
            made.finetuning_task, made.finetuning_lengths = task.name, {"max_length": length}
            measured: list[dict[str, float]] = []

            def score_now(
                made: MoMForSequenceClassification = made, measured: list[dict[str, float]] = measured
            ) -> float:
                answers = _answers(task, classify(made, dev_rows, _PREDICT_BATCH))
                measured.append(glue_metrics(task, answers, dev_labels))
                return task_score(measured[-1])

            try:
                loop = fit_classifier(
                    made, rows, train.labels, config, seed, score_now, label=f"{task.name} seed {seed}",
                    progress=progress, callbacks=listeners, signals=signals,
                )  # fmt: skip
            except FinetuneInterrupted as stop:
                interrupted, loop = stop, stop.loop
                if loop.best_score is None:
                    break
            metrics = measured[[step for step, _ in loop.history].index(loop.best_step)]
            results.append(SeedResult(seed, metrics, task_score(metrics), loop))
            if best is None or results[-1].score > max(r.score for r in results[:-1]):
                best = made
                if folder is not None:  # what comes later may fail
                    best.save_pretrained(folder)
            if interrupted is not None or signals:
                break
        if best is None:
            assert interrupted is not None
            raise interrupted
        if interrupted is None:
            try:
                with signals.at_once():
                    other_metrics.update({o.task.name: _metrics_of(best, o, length) for o in others})
                    for test in tests:
                        answers = _answers(test.task, _logits_of(best, test, length))
                        submissions.append(
                            write_submission(test.task, answers, Path(out_dir or "") / "submission", test.index)
                        )
            except KeyboardInterrupt:
                done = f"{task.name}: {len(results)} of {len(seeds)} seeds trained"
                interrupted = FinetuneInterrupted(done, results[-1].loop, signals[0] if signals else "SIGINT")
        signals.handled = interrupted is not None
        result = GlueResult(
            task, results, baseline, best, other_metrics, len(rows), len(dev_rows), cut, folder, submissions
        )  # fmt: skip
        if folder is not None:
            ended_by = None if interrupted is None else interrupted.signal
            summary = {**result.to_dict(), "interrupted": ended_by, "config": config.to_dict()}
            write_file(folder.parent / "results.json", json.dumps(summary, indent=2) + "\n")
    if interrupted is not None:
        kept = f"seed {result.best.seed} is the best so far{'' if folder is None else f', kept in {folder}'}"
        raise FinetuneInterrupted(f"{interrupted}; {kept}", interrupted.loop, interrupted.signal)
    return result


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    try:
        seeds = [operator.index(seed) for seed in ([seeds] if isinstance(seeds, (int, np.integer)) else seeds)]
    except TypeError:
        raise ConfigError(f"seeds: expected one or more distinct integers, got {seeds!r}") from None
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds: expected one or more distinct integers, got {seeds!r}")
    return seeds


def _other_sets(data: Any, task: GlueTask, split: str, on_error: str = "raise") -> list[GlueData]:
    """Further sets that a task's model can answer, as far as the source has them under names of their own."""
    names = _ALSO.get(task.name, ())
    if isinstance(data, Mapping):  # its "dev" is that of the task
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
    return finite_logits(classify(model, encode_texts(model.tokenizer, data.texts, length)[0], _PREDICT_BATCH))


def _metrics_of(model: MoMForSequenceClassification, data: GlueData, length: int) -> dict[str, float]:
    if data.labels is None:
        raise DataError(f"{data.report.source}: has no labels")
    return glue_metrics(data.task, _answers(data.task, _logits_of(model, data, length)), data.labels)


def _classifier(model: MoMForSequenceClassification | PathLike, task: GlueTask) -> MoMForSequenceClassification:
    if isinstance(model, (str, os.PathLike)):
        model = model_folder(model)
        loaded: MoMForSequenceClassification = MoMForSequenceClassification.from_pretrained(model)
        if MoMConfig.from_json(model).num_labels is None and "score.weight" not in read_weights(model):
            raise DataError(f"{model}: a language model without a classification head; fine-tune it first")
        model = loaded
    if not isinstance(model, MoMForSequenceClassification):
        raise TypeError(f"model: expected MoMForSequenceClassification, got {type(model).__name__}")
    if model.config.num_labels != task.num_labels:
        raise ConfigError(f"model: has {model.config.num_labels} labels, {task.title} has {task.num_labels}")
    tuned = TASKS.get(model.finetuning_task or "")  # names of other programs' tasks say nothing here
    if tuned is not None and task.name not in (tuned.name, *_ALSO.get(tuned.name, ())):
        raise ConfigError(f"model: was fine-tuned for {tuned.title}, not for {task.title}")
    return model


def _length(model: MoMForSequenceClassification, max_length: int | None) -> int:
    """As given or as in fine-tuning."""
    return FinetuneConfig(max_length=max_length or model.finetuning_lengths.get("max_length")).length_for(model.config)


def evaluate(
    model: MoMForSequenceClassification | PathLike,
    task: str | GlueTask,
    data: Any,
    split: str = "dev",
    *,
    max_length: int | None = None,
    on_error: str = "raise",
) -> dict[str, float]:
    """Official metrics of a fine-tuned model.

    Parameters
    ----------
    model : MoMForSequenceClassification or path
    task : str or GlueTask
    data, on_error
        See `read_glue`.
    split : {"dev", "train", "test"}
        The set must have labels.
    max_length : int, optional
        By default that of fine-tuning, of a model that does not know it the model's ``n_positions``.

    Returns
    -------
    dict of str to float
    """
    task = find_task(task)
    model = _classifier(model, task)
    length = _length(model, max_length)
    return _metrics_of(model, read_glue(data, task, split, on_error=on_error), length)


def predict(
    model: MoMForSequenceClassification | PathLike,
    task: str | GlueTask,
    data: Any,
    split: str = "test",
    *,
    max_length: int | None = None,
) -> npt.NDArray[Any]:
    """Answers of a fine-tuned model: numbers of labels (N,) int64, or scores (N,) float32 for STS-B.

    Parameters
    ----------
    model, task, data, max_length
        See `evaluate`.
    split : {"test", "dev", "train"}
    """
    task = find_task(task)
    model = _classifier(model, task)
    length = _length(model, max_length)
    return _answers(task, _logits_of(model, read_glue(data, task, split), length))


def format_table(results: Iterable[GlueResult]) -> str:
    """Results as a table: a line per task and metric, in percent, beside the majority-class baseline.

    Parameters
    ----------
    results : iterable of GlueResult

    Returns
    -------
    str
        Median, lowest and highest value over the seeds.
    """
    results = list(results)
    lines = [f"{'task':9}{'metric':10}{'median':>8}{'lowest':>8}{'highest':>8}{'baseline':>10}{'seeds':>7}{'train':>9}"
             f"{'dev':>8}"]  # fmt: skip
    for result in results:
        for name in result.task.metrics:
            values = [100 * s.metrics[name] for s in result.seeds]
            lines.append(
                f"{result.task.title:9}{name:10}{np.median(values):8.2f}{min(values):8.2f}{max(values):8.2f}"
                f"{100 * result.baseline[name]:10.2f}{len(values):7}{result.train_rows:9,}{result.dev_rows:8,}"
            )
        for other, metrics in result.other_metrics.items():
            lines += [f"{TASKS[other].title:9}{name:10}{100 * value:8.2f}" for name, value in metrics.items()]
    if len(results) > 1:
        mean = 100 * np.mean([result.score for result in results])
        base = 100 * np.mean([task_score(result.baseline) for result in results])
        lines.append(f"{'mean':9}{'score':10}{mean:8.2f}{'':16}{base:10.2f}")
    return "\n".join(lines)
