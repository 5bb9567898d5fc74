"""Fine-tuning on XSUM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, flags
from .._html import html_table
from ..data.batches import pack_labelled
from ..data.records import check_iterators
from ..distributed import current
from ..errors import ConfigError
from ..files.folders import MODEL_FILES, check_replaceable
from ..interventions.rules import Intervention
from ..model import MoM
from ..training.adapt import copy_of, warn_of_frozen, warn_of_idle_routers
from ..training.batches import MicroBatch, Rows
from ..training.callbacks import Callback, closing
from ..training.config import FinetuneConfig
from ..training.finetune import LoopResult, RunOptions, fit_rows, results_folder, train_seeds
from ..training.fingerprint import digest_of_rows, digest_of_weights
from ..training.records import perplexity_of
from ..training.signals import stop_signals
from .reader import read_xsum
from .rows import TASK, Row, make_rows, rows_loss

__all__ = ["XsumResult", "finetune"]


@dataclass(frozen=True)
class XsumResult:
    """Fine-tuning on summaries.

    Attributes
    ----------
    model : MoM
        With the weights of the lowest validation loss.
    val_loss : float or None
        Loss on the summaries of the validation set, in nats per token.
    loop : LoopResult
        Steps, evaluations (scores are negative losses) and times.
    train_rows, val_rows : int
    cut_documents, cut_summaries : int
        Training rows whose document or summary did not fit.
    folder : Path or None
        Where the model was saved.
    """

    model: MoM
    val_loss: float | None
    loop: LoopResult
    train_rows: int
    val_rows: int
    cut_documents: int
    cut_summaries: int
    folder: Path | None

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON values."""
        return {
            "val_loss": self.val_loss, "steps": self.loop.steps, "best_step": self.loop.best_step,
            "train_rows": self.train_rows, "val_rows": self.val_rows, "cut_documents": self.cut_documents,
            "cut_summaries": self.cut_summaries,
        }  # fmt: skip

    def __repr__(self) -> str:
        loss = "none" if self.val_loss is None else f"{self.val_loss:.4f}"
        size = f"{self.loop.steps} steps, {self.train_rows} documents, {self.loop.seconds:.1f} s of training"
        return f"<XsumResult: validation loss {loss}, {size}>"

    def _repr_html_(self) -> str:
        return html_table("XSUM", [], self.to_dict().items())

    @property
    def seconds(self) -> float:
        """Time of the training steps."""
        return self.loop.seconds

    @property
    def tokens(self) -> int:
        """Tokens in these steps."""
        return self.loop.tokens


def finetune(
    model: MoM | PathLike,
    data: Any,
    *,
    config: FinetuneConfig | None = None,
    seed: int = 0,
    max_summary: int = 64,
    val_rows: int | None = 200,
    out_dir: PathLike | None = None,
    on_error: str = "raise",
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
    run_dir: PathLike | None = None,
    resume: bool = False,
    allow_changes: bool = False,
    interventions: Sequence[Intervention] = (),
    **changes: Any,
) -> XsumResult:
    """Fine-tune a language model to summarise.

    A row is the document (cut to fit), ``PROMPT``, the summary and the end-of-text token. Only the summary and the
    end-of-text token count in the loss. The weights with the lowest loss on the validation set are kept.

    Parameters
    ----------
    model : MoM or path
        It is not changed. It needs a tokenizer.
    data : path, mapping of splits, or str
        See `read_xsum`; with ``train`` and ``validation``.
    config : FinetuneConfig, optional
        ``max_length`` is the length of document, prompt and summary together.
    seed : int
        Seed of the order of the data and of dropout.
    max_summary : int
        Tokens kept free for a summary and its end.
    val_rows : int, optional
        Use the first so many rows of the validation set, at least 1; None: all.
    out_dir : path, optional
        Folder for ``xsum/model`` and ``xsum/results.json``.
    on_error : {"raise", "skip"}
        See `read_xsum`.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and evaluation; one that returns True from ``record`` ends the run. Closed at the end.
    run_dir : path, optional
        Folder for ``xsum/seed-<number>``, with ``log.jsonl`` and the newest checkpoint. A checkpoint is written after
        every evaluation, and when a signal ends the run.
    resume : bool
        Continue from the newest valid checkpoint in `run_dir`, to the same bits as a run that was never stopped. Model,
        data and settings must be those of the checkpoint, except for `epochs`, `max_steps` and settings that have
        no effect on the weights.
    allow_changes : bool
        Resume even if model, settings or data are not those of the checkpoint.
    interventions : sequence of Intervention
        Active in training and evaluation, beside those that are active in `model`, see `MoM.intervene`. Checkpoints and
        results hold all of them, and a resumed run needs the same ones. The model that is returned or saved is without
        them. A warning says if one of them touched nothing.
    **changes
        Fields of `config` to override.

    Returns
    -------
    XsumResult

    Raises
    ------
    TrainingError
        If another fine-tuning is at work in `out_dir`, or another run in `run_dir`.
    FinetuneInterrupted
        On SIGTERM and Ctrl-C. After the first evaluation, the best weights so far are in `out_dir`.
    """
    resume, progress, allow_changes = flags(resume=resume, progress=progress, allow_changes=allow_changes)
    config = (config or FinetuneConfig()).replace(**changes)
    if val_rows is not None and val_rows < 1:
        raise ConfigError(f"val_rows: {val_rows} is less than 1")
    folder = None if out_dir is None else Path(out_dir) / TASK / "model"
    if folder is not None:
        check_replaceable(folder, MODEL_FILES)
    source = MoM.resolve(model)
    warn_of_frozen(source, config.train)
    warn_of_idle_routers(source.config, config.train, language_model=True)
    check_iterators(data)
    train, validation = (read_xsum(data, split, on_error=on_error) for split in ("train", "validation"))
    length = config.length_for(source.config)
    rows, cut_documents, cut_summaries = make_rows(source, train, length, max_summary)
    held_out, _, _ = make_rows(source, validation[:val_rows], length, max_summary)

    def begin(seed: int) -> MoM:
        return _copy_of(source, seed, config, {"max_length": length, "max_summary": max_summary})

    def fit(made: MoM, seed: int, options: RunOptions) -> LoopResult:
        def measure() -> dict[str, float]:
            loss = rows_loss(made, held_out)
            return {"score": -loss, "val_loss": loss, "perplexity": perplexity_of(loss)}

        return fit_rows(made, _batches(rows, config, seed), config, seed, measure, options)

    active, lock = source.intervene(interventions, untouched="warn"), results_folder(folder)
    with current().failing_together(), active, closing(callbacks) as listeners, stop_signals() as signals, lock:
        checkpoints = None if run_dir is None else Path(run_dir) / TASK
        facts = {} if run_dir is None and current().size == 1 else _facts(source, rows, held_out)
        options = RunOptions(TASK, progress, listeners, signals, checkpoints, resume, allow_changes, facts)
        runs = train_seeds((seed,), begin, fit, options, folder)
        signals.handled = runs.interrupted is not None
        loop = runs.loops[seed]
        assert runs.best is not None
        result = XsumResult(
            runs.best, None if loop.best_score is None else -loop.best_score, loop, len(rows), len(held_out),
            cut_documents, cut_summaries, folder,
        )  # fmt: skip
        runs.write_results(folder, {**result.to_dict(), "max_summary": max_summary, "seconds": loop.seconds}, config)
        runs.raise_interruption("" if folder is None else f"; kept in {folder}")
    return result


def _copy_of(source: MoM, seed: int, config: FinetuneConfig, lengths: dict[str, int]) -> MoM:
    """The model that is trained."""
    made = copy_of(source, MoM, seed, config.dropout)
    made.finetuning_task, made.finetuning_lengths = TASK, lengths
    return made


def _facts(source: MoM, rows: list[Row], held_out: list[Row]) -> dict[str, Any]:
    """What belongs to the fingerprint of a run, see `mom.training.fingerprint`."""

    def digest(part: list[Row]) -> dict[str, Any]:
        return digest_of_rows([row.tokens for row in part], [row.prompt for row in part])

    return {"data": digest(rows), "dev_data": digest(held_out), "start": digest_of_weights(source)}


def _batches(rows: list[Row], config: FinetuneConfig, seed: int) -> Rows:
    """Rows for training. A batch's loss is the mean over the tokens of its summaries."""

    def make(chosen: npt.NDArray[np.int64]) -> MicroBatch:
        part = [rows[i] for i in chosen]
        tokens, labels, lengths = pack_labelled(part)
        inputs = {"tokens": tokens, "labels": labels, "lengths": lengths}
        return MicroBatch(inputs, sum(len(row.tokens) - row.prompt for row in part), len(part), len(tokens))

    return Rows([len(row.tokens) for row in rows], config.batch_size, config.accumulation, seed, make)
