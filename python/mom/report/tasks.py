"""Fine-tuning of the trained models on the GLUE tasks and on XSUM, as far as their files are at hand."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._extras import need
from ..errors import MomError
from ..glue import TASKS, GlueData, read_glue
from ..glue import finetune as finetune_glue
from ..xsum import XsumData, read_xsum
from ..xsum import evaluate as evaluate_xsum
from ..xsum import finetune as finetune_xsum
from .box import Box, Unit
from .measuring import seeds_of
from .shapes import MODELS
from .training import load

__all__ = ["ORDER", "glue", "glue_at_hand", "xsum", "xsum_at_hand"]

#: Tasks in the order of preference, if time is short. Small models learn something about sentiment.
ORDER = sorted(
    (name for name, task in TASKS.items() if {"train", "dev"} <= set(task.files) and name != "mnli-mm"),
    key="sst2".__ne__,
)
#: Tokens of a summary.
_SUMMARY = 32


def glue_at_hand(path: Path | None) -> tuple[list[str], dict[str, str]]:
    """The tasks whose train and dev sets can be read, and why others are left out."""
    if path is None:
        return [], {"glue": "no --glue was given"}
    try:
        need("sklearn", "GLUE's metrics", "scikit-learn")
    except ImportError as error:
        return [], {"glue": str(error)}
    found, missing = list[str](), dict[str, str]()
    for name in ORDER:
        try:
            _rows_of(path, name, "train"), _rows_of(path, name, "dev")
            found.append(name)
        except (MomError, OSError) as error:
            missing[f"glue/{name}"] = f"{error}"
    return (found, missing) if found else ([], {"glue": f"{path} holds no task of GLUE"})


def xsum_at_hand(path: Path | None) -> dict[str, str]:
    """Why XSUM is left out; nothing if it is there."""
    if path is None:
        return {"xsum": "no --xsum was given"}
    try:
        need("rouge_score", "ROUGE", "rouge-score")
        for split in ("train", "validation", "test"):
            _xsum_of(path, split, 1)
    except (ImportError, MomError, OSError) as error:
        return {"xsum": str(error)}
    return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A block without messages about what was read. The same files are read again and again."""
    logger = logging.getLogger("mom")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------------- GLUE
def _rows_of(path: Path, task: str, split: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows with the names of the columns on the Hub."""
    with _quiet():
        read: GlueData = read_glue(path, task, split, on_error="skip")[:count]
    assert read.labels is not None
    names = TASKS[task].hub_texts
    return [
        {**dict(zip(names, texts, strict=True)), "label": label.item()}
        for texts, label in zip(read.texts, read.labels, strict=True)
    ]


def glue(box: Box, path: Path | None) -> list[Unit]:
    """Units that fine-tune each model on each task; with all models and seeds first on the first task."""

    def unit(task: str, model: str, seed: int) -> Unit:
        name = f"{model}-seed{seed}"
        return Unit("glue", f"{name}-{task}", lambda folder: _finetune(box, Path(path or ""), task, name, seed, folder))

    return [
        unit(task, model, seed)
        for task in box.plan.glue_tasks for seed in box.seeds for model in MODELS if seed in seeds_of(box, model)
    ]  # fmt: skip


def _finetune(box: Box, path: Path, task: str, name: str, seed: int, folder: Path) -> dict[str, Any]:
    plan, batch = box.plan, 16
    data: Mapping[str, Any] = {
        "train": _rows_of(path, task, "train", batch * plan.glue_steps),
        "dev": _rows_of(path, task, "dev", plan.glue_dev_rows),
    }  # fmt: skip
    model = load(box, name)
    with _quiet():
        result = finetune_glue(
            model, task, data, seeds=[seed], run_dir=folder, resume=True, progress=False, max_steps=plan.glue_steps,
            epochs=1000, eval_every=plan.glue_steps, batch_size=batch, lr=3e-4,
            max_length=min(128, model.config.n_positions),
        )  # fmt: skip
    return {"task": task, "score": result.score, "metrics": result.metrics, "baseline": result.baseline,
            "train_rows": result.train_rows, "dev_rows": result.dev_rows}  # fmt: skip


# ---------------------------------------------------------------------- XSUM
def _xsum_of(path: Path, split: str, count: int) -> list[dict[str, Any]]:
    with _quiet():
        read: XsumData = read_xsum(path, split, on_error="skip")[:count]
    return [{"document": document, "summary": summary}
            for document, summary in zip(read.documents, read.summaries, strict=True)]  # fmt: skip


def xsum(box: Box, path: Path | None) -> list[Unit]:
    """Units that fine-tune each model on XSUM, write summaries and score them."""

    def unit(model: str, seed: int) -> Unit:
        name = f"{model}-seed{seed}"
        return Unit("xsum", name, lambda folder: _summarise(box, Path(path or ""), name, seed, folder))

    return [
        unit(model, seed)
        for seed in box.seeds for model in MODELS if box.plan.xsum_steps and seed in seeds_of(box, model)
    ]  # fmt: skip


def _summarise(box: Box, path: Path, name: str, seed: int, folder: Path) -> dict[str, Any]:
    plan, batch = box.plan, 8
    data = {
        "train": _xsum_of(path, "train", batch * plan.xsum_steps), "validation": _xsum_of(path, "validation", 64),
        "test": _xsum_of(path, "test", plan.xsum_rows),
    }  # fmt: skip
    length = min(_SUMMARY, plan.size.positions // 4)
    with _quiet():
        result = finetune_xsum(
            load(box, name), data, seed=seed, run_dir=folder, resume=True, progress=False, max_steps=plan.xsum_steps,
            epochs=1000, eval_every=plan.xsum_steps, batch_size=batch, lr=3e-4, max_summary=length,
        )  # fmt: skip
        scores = evaluate_xsum(result.model, data, "test", max_summary=length, no_repeat_ngram_size=3)
    return {"rouge": scores.rouge, "lead": scores.lead, "loss": scores.loss, "rows": len(scores.documents)}
