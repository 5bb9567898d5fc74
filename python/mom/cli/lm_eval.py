"""``mom lm_eval``."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ConfigError
from ..evaluate import register
from .flags import command


def add(commands: Any) -> None:
    parser = command(
        commands, "lm_eval", _run, "run lm-evaluation-harness with the model 'mom'",
        "All that follows goes to the harness, for example: mom lm_eval run --model mom --model_args "
        "pretrained=FOLDER --tasks lambada_openai. After 'mom lm_eval --register' the harness's own command lm_eval "
        "knows the model too.",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--register", action="store_true", help="make the command lm_eval of this environment know it")
    what.add_argument("--unregister", action="store_true", help="undo --register")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the harness gets")


def _run(a: argparse.Namespace) -> int:
    if a.register or a.unregister:
        if a.arguments:
            raise ConfigError(f"arguments: {a.arguments[0]!r} with --register or --unregister")
        if a.register:
            print(f"wrote {register.install()}")
        else:
            register.uninstall()
        return 0
    if not a.arguments:
        raise ConfigError("arguments: none; 'mom lm_eval run --help' lists the harness's")
    return register.run(a.arguments)
