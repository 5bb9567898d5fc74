"""``mom lm_eval``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .._extras import need
from ..errors import ConfigError
from ..interventions import read_interventions
from .flags import add_interventions, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "lm_eval", _run, "run lm-evaluation-harness with the model 'mom'",
        "All arguments are passed to the harness, for example: mom lm_eval run --model mom --model_args "
        "pretrained=FOLDER --tasks lambada_openai. --interventions comes before them and joins the --model_args.",
    )  # fmt: skip
    add_interventions(parser)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the harness")


def _run(a: argparse.Namespace) -> int:
    if not a.arguments:
        raise ConfigError("arguments: none; 'mom lm_eval run --help' lists the harness's")
    harness = need("lm_eval.__main__", "evaluation with lm-evaluation-harness", "lm-eval")
    from ..evaluate import harness as _registers_the_model  # noqa: F401

    before = sys.argv
    sys.argv = ["lm_eval", *_with_interventions(a.arguments, a.interventions)]
    try:
        harness.cli_evaluate()
    finally:
        sys.argv = before
    return 0


def _with_interventions(arguments: list[str], file: str | None) -> list[str]:
    """The harness's arguments with the file among those of the model."""
    if file is None:
        return arguments
    read_interventions(file)  # before the harness loads anything
    if "," in file or "=" in file:
        raise ConfigError(f"interventions: {file!r} has a comma or an equals sign, which --model_args cannot hold")
    place = next((i for i, word in enumerate(arguments) if word.partition("=")[0] in ("--model_args", "-a")), None)
    if place is None:
        raise ConfigError("interventions: the harness's arguments name no --model_args to join")
    joined = list(arguments)
    last = place if "=" in arguments[place] and arguments[place].startswith("--model_args=") else place + 1
    if last >= len(arguments):
        raise ConfigError("interventions: --model_args is empty; it holds pretrained=FOLDER")
    joined[last] += f",interventions={file}"
    return joined
