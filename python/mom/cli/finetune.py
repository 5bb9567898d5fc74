"""``mom finetune``."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from .. import glue, xsum
from ..errors import ConfigError
from ..model import MoM
from ..training import FinetuneConfig
from .flags import (
    add_arguments,
    add_dtype,
    add_fields,
    add_generation,
    add_interventions,
    add_threads,
    command,
    given_fields,
    interventions_of,
)
from .results import show_summaries


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "finetune", _run, "fine-tune a model on GLUE tasks or on XSUM",
        "GLUE: prints a table of dev metrics: median, lowest and highest over the seeds, beside the majority-class "
        "baseline. The folder gets each task's best model and results and, with --predict, files for the GLUE site. "
        "XSUM: prints summaries and ROUGE on the test set beside LEAD-1 and LEAD-3.",
    )  # fmt: skip
    parser.add_argument(
        "--task",
        required=True,
        nargs="+",
        metavar="NAME",
        help=f"xsum, glue (all of it), or some of {', '.join(glue.TASKS)}",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model with its tokenizer")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="folder of GLUE's task folders, or a name on the Hub"
    )
    parser.add_argument("--out_dir", required=True, metavar="DIR", help="folder for models and results")
    add_dtype(parser, resumed=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run for each")
    add_arguments(parser, glue.finetune, "run_dir", "resume", "allow_changes", "predict", "on_error", "progress")
    add_interventions(parser)
    add_threads(parser)
    group = parser.add_argument_group("settings", "fields of mom.FinetuneConfig")
    add_fields(group, FinetuneConfig, {})
    group = parser.add_argument_group("with --task xsum")
    add_arguments(group, xsum.finetune, "val_rows")
    add_generation(group)


def _run(a: argparse.Namespace) -> int:
    config = FinetuneConfig(**given_fields(a, FinetuneConfig))
    if any(name.lower() == "xsum" for name in a.task):
        return _finetune_xsum(a, config)
    return _finetune_glue(a, config)


def _finetune_xsum(a: argparse.Namespace, config: FinetuneConfig) -> int:
    if len(a.task) > 1 or len(a.seeds) > 1 or a.predict:
        raise ConfigError("task: xsum goes with no other task, with one seed, and without --predict")
    if a.rows is not None and a.rows < 1:
        raise ConfigError(f"rows: {a.rows} is less than 1")
    # The documents to summarise afterwards must be readable before hours of training begin.
    xsum.read_xsum(a.data, "test", on_error=a.on_error)
    result = xsum.finetune(
        MoM.resolve(a.model, a.dtype), a.data, config=config, seed=a.seeds[0], out_dir=a.out_dir,
        max_summary=64 if a.max_summary is None else a.max_summary, val_rows=a.val_rows, on_error=a.on_error,
        progress=a.progress, run_dir=a.run_dir, resume=a.resume, allow_changes=a.allow_changes,
        interventions=interventions_of(a),
    )  # fmt: skip
    print(f"{result!r}: {result.folder}", file=sys.stderr)
    show_summaries(a, result.model, "test", config.max_length, config.batch_size)
    print(f"model {result.folder}")
    return 0


def _finetune_glue(a: argparse.Namespace, config: FinetuneConfig) -> int:
    names = [name for name in glue.TASKS if "train" in glue.TASKS[name].files and name != "mnli-mm"]
    found = [glue.find_task(word) for name in a.task for word in (names if name.lower() == "glue" else [name])]
    tasks = list({task.name: task for task in found}.values())
    body = MoM.resolve(a.model, a.dtype)
    for task in tasks[1:]:  # find a missing or broken file before hours of training; the first task is read first
        for split in ("train", "dev", *(("test",) if a.predict else ())):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                glue.read_glue(a.data, task, split, on_error=a.on_error if split != "test" else "raise")
    results: list[glue.GlueResult] = []
    try:
        for task in tasks:
            result = glue.finetune(
                body, task, a.data, config=config, seeds=a.seeds, out_dir=a.out_dir, predict=a.predict,
                on_error=a.on_error, progress=a.progress, run_dir=a.run_dir, resume=a.resume,
                allow_changes=a.allow_changes, interventions=interventions_of(a),
            )  # fmt: skip
            results.append(result)
            print(f"{result!r}, {result.examples_per_second:.1f} examples/s: {result.folder}", file=sys.stderr)
    finally:  # if a task fails or is interrupted, the results of the tasks before it are still printed
        if results:
            print(glue.format_table(results))
        for path in (path for result in results for path in result.submissions):
            print(f"submission {path}")
    return 0
