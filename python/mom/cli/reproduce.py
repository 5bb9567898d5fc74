"""``mom reproduce``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..report import reproduce
from ..report.workflow import two_columns
from .flags import add_arguments, add_progress, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "reproduce", _run, "run the workflow of the paper at a small scale, and write a report",
        "Trains a GPT-2 and MoMs with several seeds, measures, prunes and fine-tunes them, and says what that means "
        "for the claims of the paper. Writes report.html and report.md. The same command goes on after any "
        "interruption.",
    )  # fmt: skip
    add_arguments(parser, reproduce, "hours")
    parser.add_argument("--out_dir", default="paper", metavar="DIR", help="folder of the reproduction")
    add_arguments(parser, reproduce, "data")
    for name, what in (("glue", "GLUE's task folders"), ("xsum", "XSUM")):
        parser.add_argument(f"--{name}", metavar="PATH", help=f"folder of {what}; without it, {name} is left out")
    add_arguments(parser, reproduce, "seed", "plan")
    parser.add_argument("--rerun", metavar="STAGE", help="compute a finished stage again, and compare the bits")
    add_threads(parser)
    add_progress(parser)


def _run(a: argparse.Namespace) -> int:
    result = reproduce(
        a.hours, a.out_dir, data=a.data, glue=a.glue, xsum=a.xsum, seed=a.seed, plan=a.plan, rerun=a.rerun,
        progress=a.progress,
    )  # fmt: skip
    if result is not None:
        print("\n".join(two_columns([(claim.verdict, f"{claim.words}: {claim.found}") for claim in result.claims])))
        print(f"report {result.report}")
        print(result, file=sys.stderr)
    return 0
