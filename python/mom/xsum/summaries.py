"""Summaries of a fine-tuned model, and their scores compared with the LEAD baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._arguments import PathLike
from ..data.batches import bucketed
from ..data.columns import checked_texts
from ..distributed import current
from ..errors import ConfigError, DataError
from ..glue.tasks import TASKS
from ..interventions.rules import Intervention
from ..model import Decoder, MoM, beam_search
from .metrics import ROUGE, lead, rouge
from .reader import read_xsum
from .rows import lengths_of, make_rows, prompts_of, rows_loss, tokenizer_of

__all__ = ["XsumScores", "evaluate", "format_examples", "summarize"]


@dataclass(frozen=True)
class XsumScores:
    """Summaries of a set, scored.

    Attributes
    ----------
    rouge : dict of str to float
        ROUGE of the model, in percent.
    lead : dict of str to dict
        ROUGE of ``"LEAD-1"`` and ``"LEAD-3"``.
    documents, references, summaries : list of str
    loss : float
        Loss on the references, in nats per token.
    """

    rouge: dict[str, float]
    lead: dict[str, dict[str, float]]
    documents: list[str]
    references: list[str]
    summaries: list[str]
    loss: float

    def table(self) -> str:
        """The ROUGE scores of the model and of the baselines."""
        rows = {"model": self.rouge, **self.lead}
        lines = [f"{'':8}{'ROUGE-1':>10}{'ROUGE-2':>10}{'ROUGE-L':>10}"]
        lines += [f"{name:8}" + "".join(f"{values[key]:10.2f}" for key in ROUGE) for name, values in rows.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON values."""
        return {"rouge": self.rouge, **self.lead, "loss": self.loss, "rows": len(self.documents)}


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
    interventions: Sequence[Intervention] = (),
) -> list[str]:
    """Summarise documents.

    Parameters
    ----------
    model : MoM
        Fine-tuned by `finetune`.
    documents : sequence of str
    max_summary, max_length : int, optional
        By default the lengths of fine-tuning, or 64 and ``n_positions`` if the model does not record them.
    num_beams : int
        1 is greedy.
    length_penalty, no_repeat_ngram_size
        See `mom.model.beam_search`.
    batch_size : int
        Documents decoded together. It has no effect on the result except for rounding.
    interventions : sequence of Intervention
        Active throughout, see `MoM.intervene`. `rows` are those of a batch.

    Returns
    -------
    list of str
        Without the end-of-text token and surrounding white space.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    documents = list(checked_texts(documents, "documents"))
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise DataError(f"documents: item {i}: expected a string, got {type(document).__name__}")
    tokenizer = tokenizer_of(model)
    length, max_summary = lengths_of(model, max_length, max_summary)
    prompts, _ = prompts_of(model, documents, length, max_summary)
    summaries = [""] * len(prompts)
    with model.evaluating(), model.intervene(interventions):
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
    interventions: Sequence[Intervention] = (),
    **generation: Any,
) -> XsumScores:
    """Compute ROUGE of a model's summaries and of LEAD-1 and LEAD-3, and the loss on the references.

    Parameters
    ----------
    model : MoM or path
    data, on_error
        See `read_xsum`.
    split : {"test", "validation", "train"}
    rows : int, optional
        Use the first so many rows.
    interventions : sequence of Intervention
        Active throughout, see `MoM.intervene`.
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
    found = MoM.resolve(model)
    if found.finetuning_task in TASKS:
        raise ConfigError(f"model: was fine-tuned for {TASKS[found.finetuning_task].title}, not for XSUM")
    if rows is not None and rows < 1:
        raise ValueError(f"rows: {rows} is less than 1")
    read = read_xsum(data, split, on_error=on_error)[:rows]
    with current().failing_together(), found.intervene(interventions):
        summaries = summarize(found, read.documents, **generation)
        lengths = lengths_of(found, generation.get("max_length"), generation.get("max_summary"))
        scored, _, _ = make_rows(found, read, *lengths)
        loss = rows_loss(found, scored)
    baselines = {f"LEAD-{n}": rouge([lead(document, n) for document in read.documents], read.summaries) for n in (1, 3)}
    return XsumScores(rouge(summaries, read.summaries), baselines, read.documents, read.summaries, summaries, loss)


def format_examples(scores: XsumScores, count: int = 3, width: int = 100) -> str:
    """Show the first summaries, each with its reference, LEAD-1 and the beginning of the document.

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
