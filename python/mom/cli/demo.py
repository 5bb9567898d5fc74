"""``mom demo``."""

from __future__ import annotations

import argparse
from typing import Any

from ..demo import run_demo
from .flags import add_arguments, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "demo", _run, "train a small model on the spot and look at its routes",
        "Without --text it reads the source code of Python's standard library.",
    )  # fmt: skip
    add_arguments(parser, run_demo, "text", "out_dir", "minutes", "steps", "seed")
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    run_demo(text=a.text, out_dir=a.out_dir, minutes=a.minutes, seed=a.seed, steps=a.steps)
    return 0
