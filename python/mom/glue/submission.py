"""The files that the GLUE site takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike
from ..files.folders import write_file
from .tasks import GlueTask, find_task

__all__ = ["write_submission"]


def write_submission(
    task: str | GlueTask, predictions: npt.ArrayLike, folder: PathLike, index: Sequence[int] | None = None
) -> Path:
    """Write one task's file for the GLUE site.

    Parameters
    ----------
    task : str or GlueTask
    predictions : array, shape (N,)
        Numbers of labels, or scores for STS-B (cut to 0 to 5).
    folder : path
        Created if missing. The file has the site's name for the task, such as ``CoLA.tsv`` or ``MNLI-m.tsv``.
    index : sequence of int, optional
        Numbers of the rows; 0, 1, 2, ... by default.

    Returns
    -------
    Path
        The file: a header ``index``, tab, ``prediction``, then a line per row with the label's word.

    Warns
    -----
    UserWarning
        If the official test set has another number of rows (the site would refuse such a file), or if all answers are
        the same.
    """
    task = find_task(task)
    answers = np.asarray(predictions)
    if answers.ndim != 1 or not answers.size:
        raise ValueError(f"predictions: shape {answers.shape}, expected (N,) with N > 0")
    numbers = list(range(len(answers))) if index is None else list(index)
    if len(numbers) != len(answers):
        raise ValueError(f"index: {len(numbers)} numbers for {len(answers)} predictions")
    if task.labels is None:
        if not np.isfinite(answers).all():
            raise ValueError("predictions: not all are finite numbers")
        words = [f"{score:.3f}" for score in np.clip(answers, 0.0, 5.0)]
    else:
        if answers.dtype.kind not in "iu" or answers.min() < 0 or answers.max() >= len(task.labels):
            raise ValueError(f"predictions: expected integers in [0, {len(task.labels)})")
        words = [task.labels[answer] for answer in answers]
    if len(answers) != task.test_rows:
        warnings.warn(
            f"{task.submission}: {len(answers)} rows, but the official test set of {task.title} has {task.test_rows}",
            stacklevel=2,
        )
    if len(words) > 1 and len(set(words)) == 1:
        warnings.warn(f"{task.submission}: all {len(words)} answers are {words[0]!r}", stacklevel=2)
    path = Path(folder) / task.submission
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["index\tprediction", *(f"{number}\t{word}" for number, word in zip(numbers, words, strict=True))]
    write_file(path, "\n".join(lines) + "\n")
    return path
