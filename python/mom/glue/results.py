"""Results of fine-tuning on a GLUE task, and a table of several tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._html import html_table
from ..model import MoMForSequenceClassification
from ..training.finetune import LoopResult
from .metrics import task_score
from .tasks import TASKS, GlueTask

__all__ = ["GlueResult", "SeedResult", "format_table"]


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
        Numbers of examples, and of train examples that were longer than ``max_length``.
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

    @property
    def seconds(self) -> float:
        """Time of the training steps of all seeds."""
        return sum(s.loop.seconds for s in self.seeds)

    @property
    def tokens(self) -> int:
        """Tokens in these steps."""
        return sum(s.loop.tokens for s in self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON values."""
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
        seeds = f"median of {len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        return f"<GlueResult {self.task.title}: {shown} ({seeds}); {self.seconds:.1f} s of training>"

    def _repr_html_(self) -> str:
        rows = ([name, f"{value:.4f}", f"{self.baseline[name]:.4f}"] for name, value in self.metrics.items())
        return html_table(self.task.title, ["", f"median of {len(self.seeds)}", "baseline"], rows)


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
