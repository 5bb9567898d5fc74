"""GLUE's official metrics, computed by scikit-learn and SciPy, with values for constant predictions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .._extras import need
from ..data.columns import checked_labels
from .tasks import GlueTask, find_task

__all__ = ["baseline_metrics", "glue_metrics", "task_score"]


def glue_metrics(task: str | GlueTask, predictions: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """The official metrics of a task.

    Parameters
    ----------
    task : str or GlueTask
    predictions, labels : array, shape (N,)
        Numbers of labels (int), or scores (float) for STS-B.

    Returns
    -------
    dict of str to float
        ``matthews`` (CoLA, AX), ``accuracy`` (SST-2, QNLI, RTE, WNLI, MNLI), ``f1`` and ``accuracy`` (MRPC, QQP; of the
        positive class), ``pearson`` and ``spearman`` (STS-B).

    Raises
    ------
    ValueError
        If the arrays are empty, of unequal length, not finite, or hold no labels of the task; for correlations, if
        there are fewer than two rows.
    ImportError
        Without scikit-learn and SciPy. The message says what to install.

    Notes
    -----
    If all predictions are the same, or all labels, the Matthews, Pearson and Spearman correlations are 0. If no
    prediction and no label is positive, F1 is 0.
    """
    task = find_task(task)
    predicted, wanted = _checked(predictions, "predictions", task), _checked(labels, "labels", task)
    if len(predicted) != len(wanted):
        raise ValueError(f"predictions: {len(predicted)} of them for {len(wanted)} labels")
    return {name: _METRICS[name](predicted, wanted) for name in task.metrics}


def task_score(metrics: Mapping[str, float]) -> float:
    """The score of a task: the mean of its metrics, as on the GLUE site."""
    return float(np.mean(list(metrics.values())))


def baseline_metrics(task: str | GlueTask, train_labels: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """Metrics of always giving the most frequent label of the train set, or for STS-B its mean score."""
    task = find_task(task)
    seen = _checked(train_labels, "train_labels", task)
    answer = seen.mean() if task.is_regression else np.bincount(seen).argmax()
    wanted = _checked(labels, "labels", task)
    return glue_metrics(task, np.full(len(wanted), answer), wanted)


def _checked(values: npt.ArrayLike, name: str, task: GlueTask) -> npt.NDArray[Any]:
    array = np.asarray(values) if name == "predictions" else checked_labels(values, name)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: shape {array.shape}, expected (N,) with N > 0")
    if task.labels is None:
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise ValueError(f"{name}: not all are finite numbers")
        return array.astype(np.float64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype {array.dtype}, expected integers")
    wrong = array[(array < 0) | (array >= len(task.labels))]
    if wrong.size:
        raise ValueError(f"{name}: {wrong[0]} is not in [0, {len(task.labels)}), the labels of {task.title}")
    return array.astype(np.int64)


def _sklearn(function: str, predicted: npt.NDArray[Any], wanted: npt.NDArray[Any], **options: Any) -> float:
    metric = getattr(need("sklearn.metrics", "GLUE's metrics", "scikit-learn"), function)
    return float(metric(wanted, predicted, **options))


def _matthews(predicted: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant labels, for which the result is 0
        return _sklearn("matthews_corrcoef", predicted, wanted)


def _correlation(function: str, predicted: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    stats = need("scipy.stats", "the metrics of STS-B")
    if len(predicted) < 2:
        raise ValueError("predictions: a correlation needs at least two rows")
    if np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        value = float(getattr(stats, function)(predicted, wanted)[0])
    return value if math.isfinite(value) else 0.0


#: Each takes predictions and labels.
_METRICS: dict[str, Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]] = {
    "matthews": _matthews,
    "accuracy": partial(_sklearn, "accuracy_score"),
    "f1": partial(_sklearn, "f1_score", zero_division=0),
    "pearson": partial(_correlation, "pearsonr"),
    "spearman": partial(_correlation, "spearmanr"),
}
