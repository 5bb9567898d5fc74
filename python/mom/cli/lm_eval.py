"""``mom lm_eval``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._extras import need
from ..errors import ConfigError
from .flags import command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "lm_eval", _run, "run lm-evaluation-harness with the model 'mom'",
        "All arguments are passed to the harness, for example: mom lm_eval run --model mom --model_args "
        "pretrained=FOLDER --tasks lambada_openai.",
    )  # fmt: skip
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the harness")


def _run(a: argparse.Namespace) -> int:
    if not a.arguments:
        raise ConfigError("arguments: none; 'mom lm_eval run --help' lists the harness's")
    harness = need("lm_eval.__main__", "evaluation with lm-evaluation-harness", "lm-eval")
    from ..evaluate import harness as _registers_the_model  # noqa: F401

    before = sys.argv
    sys.argv = ["lm_eval", *a.arguments]
    try:
        harness.cli_evaluate()
    finally:
        sys.argv = before
    return 0
