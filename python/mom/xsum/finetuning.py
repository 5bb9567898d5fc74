"""Fine-tuning on XSUM, summaries and their scores."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.batches import bucketed, pack_labelled
from ..data.records import check_iterators
from ..errors import ConfigError, DataError
from ..files.folders import MODEL_FILES, check_replaceable, write_file
from ..glue.tasks import TASKS
from ..model import Decoder, ModelOutput, MoM, beam_search, token_loss
from ..training.callbacks import Callback, closing
from ..training.finetune import (
    FinetuneConfig,
    FinetuneInterrupted,
    LoopResult,
    copy_of,
    run_loop,
    split_step,
    warn_of_idle_routers,
)
from ..training.signals import stop_signals
from .metrics import ROUGE, lead, rouge
from .reader import XsumData, read_xsum

__all__ = ["PROMPT", "XsumResult", "XsumScores", "evaluate", "finetune", "format_examples", "read_xsum", "summarize"]

PathLike = str | os.PathLike[str]

#: What stands between a document and its summary.
PROMPT = "\nTL;DR:"
_EVAL_BATCH = 8
_TASK = "xsum"


class _Row(NamedTuple):
    tokens: npt.NDArray[np.int32]
    prompt: int  # tokens that are not scored


@dataclass(frozen=True)
class XsumResult:
    """Fine-tuning on summaries.

    Attributes
    ----------
    model : MoM
        With the weights of the lowest validation loss.
    val_loss : float or None
        Nats per token of the summaries of the validation set.
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

    def __repr__(self) -> str:
        loss = "none" if self.val_loss is None else f"{self.val_loss:.4f}"
        return f"<XsumResult: validation loss {loss}, {self.loop.steps} steps, {self.train_rows} documents>"


@dataclass(frozen=True)
class XsumScores:
    """Summaries of a set, scored.

    Attributes
    ----------
    rouge : dict of str to float
        Of the model, in percent.
    lead : dict of str to dict
        The same of ``"LEAD-1"`` and ``"LEAD-3"``.
    documents, references, summaries : list of str
    loss : float
        Nats per token of the references.
    """

    rouge: dict[str, float]
    lead: dict[str, dict[str, float]]
    documents: list[str]
    references: list[str]
    summaries: list[str]
    loss: float

    def table(self) -> str:
        """The model's ROUGE beside the baselines'."""
        rows = {"model": self.rouge, **self.lead}
        lines = [f"{'':8}{'ROUGE-1':>10}{'ROUGE-2':>10}{'ROUGE-L':>10}"]
        lines += [f"{name:8}" + "".join(f"{values[key]:10.2f}" for key in ROUGE) for name, values in rows.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, fit for JSON."""
        return {"rouge": self.rouge, **self.lead, "loss": self.loss, "rows": len(self.documents)}


def _tokenizer(model: MoM) -> Any:
    if model.tokenizer is None:
        raise DataError("tokenizer: the model has none")
    if model.tokenizer.eos_id is None:
        raise DataError("tokenizer: has no end-of-text token, which ends a summary")
    return model.tokenizer


def _lengths(model: MoM, max_length: int | None, max_summary: int | None) -> tuple[int, int]:
    """Both as given or as in fine-tuning."""
    tuned = model.finetuning_lengths
    config = FinetuneConfig(max_length=max_length or tuned.get("max_length"))
    return config.length_for(model.config), tuned.get("max_summary", 64) if max_summary is None else max_summary


def _prompts(model: MoM, documents: Sequence[str], length: int, max_summary: int) -> tuple[list[Any], int]:
    """Token rows of documents, cut so that prompt and summary fit; and how many were cut."""
    tokenizer = _tokenizer(model)
    end = tokenizer.encode(PROMPT)
    room = length - len(end) - max_summary
    if max_summary < 2 or room < 1:
        raise ConfigError(f"max_summary: {max_summary} of {length} tokens leaves no room for a document or a summary")
    found = tokenizer.encode_batch(list(documents))
    rows = [np.concatenate([ids[:room], end]).astype(np.int32) for ids in found]
    return rows, sum(len(ids) > room for ids in found)


def _rows(model: MoM, data: XsumData, length: int, max_summary: int) -> tuple[list[_Row], int, int]:
    prompts, cut = _prompts(model, data.documents, length, max_summary)
    tokenizer = _tokenizer(model)
    rows, cut_summaries = [], 0
    for prompt, ids in zip(prompts, tokenizer.encode_batch([f" {s.strip()}" for s in data.summaries]), strict=True):
        cut_summaries += len(ids) + 1 > max_summary
        summary = np.append(ids, tokenizer.eos_id)[:max_summary]
        rows.append(_Row(np.concatenate([prompt, summary]).astype(np.int32), len(prompt)))
    return rows, cut, cut_summaries


def _forward(model: MoM, rows: Sequence[_Row], keep: bool) -> ModelOutput:
    tokens, labels, lengths = pack_labelled(rows)
    return model(tokens, labels=labels, lengths=lengths, keep=keep)


def _loss(model: MoM, rows: Sequence[_Row]) -> float:
    nats, tokens = token_loss(model, iter(rows), _EVAL_BATCH)
    return nats / tokens


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
    **changes: Any,
) -> XsumResult:
    """Fine-tune a language model to summarise.

    A row is the document, cut to fit, `PROMPT`, the summary and the end-of-text token; only summary and end count in
    the loss. The weights with the lowest loss on the validation set are kept.

    Parameters
    ----------
    model : MoM or path
        Left as it is. It needs a tokenizer.
    data : path, mapping of splits, or str
        See `read_xsum`; with ``train`` and ``validation``.
    config : FinetuneConfig, optional
        ``max_length`` is the length of document, prompt and summary together.
    seed : int
        Of the order of the data and of dropout.
    max_summary : int
        Tokens kept free for a summary and its end.
    val_rows : int, optional
        Use the first so many rows of the validation set, at least 1; None: all.
    out_dir : path, optional
        Gets ``xsum/model`` and ``xsum/results.json``.
    on_error : {"raise", "skip"}
        See `read_xsum`.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and evaluation; closed at the end.
    **changes
        Fields of `config` to override.

    Returns
    -------
    XsumResult

    Raises
    ------
    FinetuneInterrupted
        On SIGTERM and Ctrl-C. After the first evaluation, the best weights so far are in `out_dir`.
    """
    config = (config or FinetuneConfig()).replace(**changes)
    if val_rows is not None and val_rows < 1:
        raise ConfigError(f"val_rows: {val_rows} is less than 1")
    folder = None if out_dir is None else Path(out_dir) / "xsum" / "model"
    if folder is not None:
        check_replaceable(folder, MODEL_FILES)
    source = MoM.from_pretrained(model) if isinstance(model, (str, os.PathLike)) else model
    if not isinstance(source, MoM):
        raise TypeError(f"model: expected MoM, got {type(source).__name__}")
    warn_of_idle_routers(source.config, config.train, language_model=True)
    check_iterators(data)
    train, validation = (read_xsum(data, split, on_error=on_error) for split in ("train", "validation"))
    validation = validation[:val_rows]
    length = config.length_for(source.config)
    rows, cut_documents, cut_summaries = _rows(source, train, length, max_summary)
    held_out, _, _ = _rows(source, validation, length, max_summary)
    made = copy_of(source, MoM, seed, config.dropout)
    made.finetuning_task, made.finetuning_lengths = _TASK, {"max_length": length, "max_summary": max_summary}

    def batches(rng: np.random.Generator) -> Iterable[list[list[_Row]]]:
        for chosen in bucketed(lengths, config.examples_per_step, rng):
            yield [[rows[i] for i in part] for part in split_step(chosen, config)]

    lengths = [len(row.tokens) for row in rows]
    interrupted: FinetuneInterrupted | None = None
    with closing(callbacks) as listeners, stop_signals() as signals:
        try:
            loop = run_loop(
                made, batches, len(bucketed(lengths, config.examples_per_step)),
                lambda batch: (_forward(made, batch, keep=True), len(batch)),
                lambda batch: sum(len(row.tokens) - row.prompt for row in batch),
                config, seed, lambda: -_loss(made, held_out), label=_TASK, progress=progress, callbacks=listeners,
                signals=signals,
            )  # fmt: skip
        except FinetuneInterrupted as stop:
            if stop.loop.best_score is None:
                raise
            interrupted, loop = stop, stop.loop
        signals.handled = interrupted is not None
        val_loss = None if loop.best_score is None else -loop.best_score
        if folder is not None:
            made.save_pretrained(folder)
            values = {
                "val_loss": val_loss, "steps": loop.steps, "best_step": loop.best_step, "train_rows": len(rows),
                "val_rows": len(held_out), "cut_documents": cut_documents, "cut_summaries": cut_summaries,
                "max_summary": max_summary, "seconds": loop.seconds,
                "interrupted": None if interrupted is None else interrupted.signal, "config": config.to_dict(),
            }  # fmt: skip
            write_file(folder.parent / "results.json", json.dumps(values, indent=2) + "\n")
    if interrupted is not None:
        kept = "" if folder is None else f"; kept in {folder}"
        raise FinetuneInterrupted(f"{interrupted}{kept}", loop, interrupted.signal)
    return XsumResult(made, val_loss, loop, len(rows), len(held_out), cut_documents, cut_summaries, folder)


def summarize(
    model: MoM,
    documents: Sequence[str],
    *,
    max_summary: int | None = None,
    max_length: int | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    batch_size: int = 8,
) -> list[str]:
    """Summaries of documents.

    Parameters
    ----------
    model : MoM
        Fine-tuned by `finetune`.
    documents : sequence of str
    max_summary, max_length : int, optional
        By default those of fine-tuning; of a model that does not know them 64 and its ``n_positions``.
    num_beams : int
        1 is greedy.
    length_penalty, no_repeat_ngram_size
        See `mom.model.beam_search`.
    batch_size : int
        Documents decoded together; without effect on the result, but for rounding.

    Returns
    -------
    list of str
        Without the end-of-text token and surrounding white space.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    if isinstance(documents, (str, bytes, Mapping)):
        raise DataError(f"documents: expected texts, got a {type(documents).__name__}")
    documents = list(documents)
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise DataError(f"documents: item {i}: expected a string, got {type(document).__name__}")
    tokenizer = _tokenizer(model)
    length, max_summary = _lengths(model, max_length, max_summary)
    prompts, _ = _prompts(model, documents, length, max_summary)
    summaries = [""] * len(prompts)
    with model.evaluating():
        decoder = Decoder(model)
        for chosen in bucketed([len(prompt) for prompt in prompts], batch_size):
            decoder.clear()
            found = beam_search(
                decoder, [prompts[i] for i in chosen], max_summary, num_beams=num_beams,
                length_penalty=length_penalty, no_repeat_ngram_size=no_repeat_ngram_size, stop_token=tokenizer.eos_id,
                vocab_size=tokenizer.vocab_size, excluded=tokenizer.unused_ids(model.config.vocab_size),
            )  # fmt: skip
            for i, hypothesis in zip(chosen, found, strict=True):
                summaries[i] = tokenizer.decode(hypothesis.tokens).strip()
    return summaries


def evaluate(
    model: MoM | PathLike,
    data: Any,
    split: str = "test",
    *,
    rows: int | None = None,
    on_error: str = "raise",
    **generation: Any,
) -> XsumScores:
    """ROUGE of a model's summaries beside LEAD-1 and LEAD-3, and the loss on the references.

    Parameters
    ----------
    model : MoM or path
    data, on_error
        See `read_xsum`.
    split : {"test", "validation", "train"}
    rows : int, optional
        Use the first so many rows.
    **generation
        See `summarize`.

    Returns
    -------
    XsumScores

    Raises
    ------
    ConfigError
        If the model was fine-tuned for another task.
    """
    found = MoM.from_pretrained(model) if isinstance(model, (str, os.PathLike)) else model
    if found.finetuning_task in TASKS:
        raise ConfigError(f"model: was fine-tuned for {TASKS[found.finetuning_task].title}, not for XSUM")
    if rows is not None and rows < 1:
        raise ValueError(f"rows: {rows} is less than 1")
    read = read_xsum(data, split, on_error=on_error)[:rows]
    summaries = summarize(found, read.documents, **generation)
    lengths = _lengths(found, generation.get("max_length"), generation.get("max_summary"))
    scored, _, _ = _rows(found, read, *lengths)
    baselines = {f"LEAD-{n}": rouge([lead(document, n) for document in read.documents], read.summaries) for n in (1, 3)}
    loss = _loss(found, scored)
    return XsumScores(rouge(summaries, read.summaries), baselines, read.documents, read.summaries, summaries, loss)


def format_examples(scores: XsumScores, count: int = 3, width: int = 100) -> str:
    """The first summaries one under the other with reference, LEAD-1 and the beginning of the document.

    Parameters
    ----------
    scores : XsumScores
    count : int
        How many documents.
    width : int
        Characters of a line.
    """
    blocks = []
    for document, reference, summary in list(zip(scores.documents, scores.references, scores.summaries, strict=True))[
        :count
    ]:
        rows = (("document", document), ("reference", reference), ("model", summary), ("LEAD-1", lead(document, 1)))
        lines = []
        for name, text in rows:
            shown = " ".join(text.split())
            lines.append(f"{name:10}{shown if len(shown) <= width - 10 else shown[: width - 13] + '...'}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
