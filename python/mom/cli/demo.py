"""``mom demo``."""

from __future__ import annotations

import argparse
from typing import Any

from ..demo import run_demo
from .flags import add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "demo", _run, "train a small model on the spot and look at its routes",
        "Without --text it reads the source code of Python's standard library.",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="PATH", help="file or folder with your own text (.txt, .jsonl, .parquet, ...)"
    )
    parser.add_argument("--out_dir", default="mom-demo", metavar="DIR", help="folder for the model and the picture")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long to train")
    parser.add_argument("--steps", type=int, help="steps of each phase, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data order and sampling")
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    run_demo(text=a.text, out_dir=a.out_dir, minutes=a.minutes, seed=a.seed, steps=a.steps)
    return 0
