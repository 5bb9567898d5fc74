"""``mom sweep``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._extras import need
from ..sweep import run, table
from .flags import add_arguments, add_progress, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "sweep", _run, "train all models of a grid, and print their table",
        "Runs what has no result yet, so the same command goes on after any interruption. Each trial has a folder in "
        "--dir, named by the hash of its configuration. SIGTERM and Ctrl-C save checkpoints first.",
    )  # fmt: skip
    parser.add_argument("grid", metavar="GRID.toml", help="which models; docs/ablations.md describes the file")
    parser.add_argument("--dir", required=True, metavar="FOLDER", help="folder of the sweep")
    add_arguments(parser, run, "processes")
    add_threads(parser)
    parser.add_argument("--retry_failed", action="store_true", help="run trials again that failed before")
    parser.add_argument("--keep_models", action="store_true", help="keep the trained model of every trial")
    parser.add_argument("--part", metavar="K/N", help="run one part of the trials, such as 1/3, the first of three")
    parser.add_argument("--data", metavar="PATH", help="where the data lie, in place of the grid's base")
    parser.add_argument("--val_data", metavar="PATH", help="token file for validation, in place of the grid's base")
    add_progress(parser)


def _run(a: argparse.Namespace) -> int:
    need("pandas", "the table of a sweep", "pandas")  # now rather than after hours of training
    result = run(
        a.grid, a.dir, processes=a.processes, threads=a.threads, retry_failed=a.retry_failed,
        keep_models=a.keep_models, part=a.part, data=a.data, val_data=a.val_data, progress=a.progress,
    )  # fmt: skip
    if result.done:
        print(table(a.dir).to_string(index=False))
    print(result, file=sys.stderr)
    return 1 if result.failed else 0
