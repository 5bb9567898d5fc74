"""Output that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from .. import xsum
from .._json import to_json
from ..interventions.files import described
from ..model import MoM
from ..training import TrainingResult
from .flags import interventions_of


def print_json(value: Any) -> None:
    """One line of JSON on standard output, in ASCII, so that it stays JSON in every encoding."""
    print(to_json(value, indent=None, ascii=True), end="")


def active(a: argparse.Namespace) -> dict[str, Any]:
    """What a JSON result says of ``--interventions``; nothing without the flag."""
    return {} if a.interventions is None else {"interventions": described(interventions_of(a))}


def print_losses(result: TrainingResult) -> None:
    """The last losses of a run."""
    for name, loss in (("loss", result.lm_loss), ("validation loss", result.val_loss)):
        if loss is not None:
            print(f"{name} {loss:.4f}")


def show_summaries(a: argparse.Namespace, model: MoM, split: str, max_length: int | None, batch_size: int) -> None:
    """Summarise documents, and print scores and examples."""
    scores = xsum.evaluate(
        model, a.data, split, rows=a.rows, on_error=a.on_error, max_summary=a.max_summary, max_length=max_length,
        num_beams=a.num_beams, length_penalty=a.length_penalty, no_repeat_ngram_size=a.no_repeat_ngram_size,
        batch_size=batch_size, interventions=interventions_of(a),
    )  # fmt: skip
    if getattr(a, "json", False):
        print_json({**scores.to_dict(), **active(a)})
        return
    if a.examples > 0:
        print(xsum.format_examples(scores, a.examples), end="\n\n")
    print(scores.table())
    print(f"{len(scores.documents)} documents, loss {scores.loss:.4f} nats per token of the references")
