"""``mom evaluate``."""

from __future__ import annotations

import argparse
from typing import Any

from .. import glue
from ..data import Documents
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError
from ..evaluate import text_losses, token_file_loss
from ..model import MoM
from .flags import add_arguments, add_generation, add_interventions, add_threads, command, interventions_of
from .results import active, print_json, show_summaries


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "evaluate", _run, "measure a model",
        "With --data: loss and perplexity on token files. With --text: perplexity and bits per byte of text files. "
        "With --task and --data: the metrics of a model that was fine-tuned on a task.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", metavar="PATH",
        help="token file, or prepared folder (its val.bin; without one, train.bin); with --task, the task's data",
    )  # fmt: skip
    what.add_argument(
        "--text", metavar="PATH", nargs="+", help="files (.txt, .jsonl, also .gz, or .parquet) and folders"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="rows per batch (of a GLUE task: 32)")
    parser.add_argument("--task", metavar="NAME", help=f"xsum, or one of {', '.join(glue.TASKS)}")
    add_arguments(parser, Documents, "on_error")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_interventions(parser)
    add_threads(parser)
    group = parser.add_argument_group("with --task")
    group.add_argument("--task_split", choices=("dev", "test", "train"), help="which set (default: dev; xsum: test)")
    add_arguments(group, glue.evaluate, "max_length")
    add_generation(parser.add_argument_group("with --task xsum"))
    add_arguments(parser.add_argument_group("with --data"), token_file_loss, "sequence_length", "batches")
    group = parser.add_argument_group("with --text")
    add_arguments(group, text_losses, "window", "stride")
    add_arguments(group, Documents, "key", "split")
    group.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use (default: the model's own)")


def _run(a: argparse.Namespace) -> int:
    for name in ("batch_size", "batches"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            raise ConfigError(f"{name}: {getattr(a, name)} is less than 1")
    if a.task is not None:
        return _evaluate_task(a)
    model = MoM.resolve(a.model)
    return _evaluate_tokens(a, model) if a.text is None else _evaluate_texts(a, model)


def _evaluate_task(a: argparse.Namespace) -> int:
    if a.data is None:
        raise ConfigError("task: needs --data, the folder of the task's files")
    if a.task.lower() == "xsum":
        show_summaries(a, MoM.resolve(a.model), a.task_split or "test", a.max_length, a.batch_size)
        return 0
    split = a.task_split or "dev"
    metrics = glue.evaluate(
        a.model, a.task, a.data, split, max_length=a.max_length, on_error=a.on_error, interventions=interventions_of(a)
    )
    if a.json:
        print_json({**metrics, **active(a)})
    else:
        print("\n".join(f"{name:10}{100 * value:8.2f}" for name, value in metrics.items()))
    return 0


def _evaluate_tokens(a: argparse.Namespace, model: MoM) -> int:
    found = token_file_loss(
        model, a.data, sequence_length=a.sequence_length, batch_size=a.batch_size, batches=a.batches,
        interventions=interventions_of(a),
    )  # fmt: skip
    if a.json:
        names = ("tokens", "left_out", "loss", "perplexity")
        print_json({"data": str(found.path), **{name: getattr(found, name) for name in names}, **active(a)})
        return 0
    print(f"data {found.path}, {found.tokens:,} tokens in windows of {found.sequence_length}")
    print(f"loss {found.loss:.6f}")
    print(f"perplexity {found.perplexity:.4f}")
    if found.left_out:
        print(f"tokens left out at the end of the file {found.left_out:,}")
    print(f"tokens per second {found.tokens / found.seconds:,.0f}")
    return 0


def _evaluate_texts(a: argparse.Namespace, model: MoM) -> int:
    results = text_losses(
        model, a.text, tokenizer=None if a.tokenizer is None else Tokenizer.load(a.tokenizer), window=a.window,
        stride=a.stride, batch_size=a.batch_size, key=a.key, split=a.split, on_error=a.on_error,
        interventions=interventions_of(a),
    )  # fmt: skip
    if a.json:
        names = ("name", "documents", "tokens", "bytes", "loss", "perplexity", "bits_per_byte")
        rows = [{**{name: getattr(result, name) for name in names}, **active(a)} for result in results]
        print_json(rows)
        return 0
    width = max(len(result.name) for result in results)
    print(f"{'text':{width}}{'tokens':>12}{'bytes':>12}{'loss':>9}{'perplexity':>13}{'bits per byte':>15}")
    for r in results:
        counts = f"{r.tokens:12,}{r.bytes:12,}"
        print(f"{r.name:{width}}{counts}{r.loss:9.4f}{r.perplexity:13.3f}{r.bits_per_byte:15.4f}")
    return 0
