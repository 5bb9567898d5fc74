"""``mom pretrain``."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..config import PRESETS, MoMConfig
from ..errors import ConfigError, MomError
from ..training import RECIPES, pretrain
from .flags import (
    add_arguments,
    add_changes,
    add_dtype,
    add_interventions,
    add_progress,
    add_threads,
    changes_of,
    command,
    interventions_of,
)
from .results import print_losses


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "pretrain", _run, "one phase of the published recipe, scaled to a budget",
        "Phase 'vanilla' trains a plain GPT-2. Phase 'mom' makes its layers the modules of the preset's model (--from "
        "names the folder of phase one) and trains that model. The settings are those of the recipe; 'mom train' "
        "lets you choose all of them.",
    )  # fmt: skip
    add_arguments(parser, pretrain, "phase", "data", "run_dir", "seed", "resume", "allow_changes")
    parser.add_argument("--from", dest="vanilla", metavar="FOLDER", help="with --phase mom: the model of phase one")
    parser.add_argument("--preset", default="mini", metavar="NAME", help=f"shape: {', '.join(PRESETS)}")
    add_changes(parser)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=float, metavar="N", help="budget in tokens, such as 5e6")
    add_arguments(budget, pretrain, "minutes")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="paper", help="recipe with the settings")
    parser.add_argument("--lr", type=float, default=argparse.SUPPRESS, help="highest learning rate")
    add_dtype(parser, resumed=True)
    add_interventions(parser, resumed=True)
    add_progress(parser)
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    if a.phase == "mom" and a.vanilla is None:
        raise ConfigError("phase: 'mom' starts --from the model of phase 'vanilla'")
    config = MoMConfig.preset(a.preset).replace(**changes_of(a.changes))
    changes = {"lr": a.lr} if hasattr(a, "lr") else {}
    if a.tokens is not None and not math.isfinite(a.tokens):
        raise ConfigError(f"tokens: {a.tokens} is not a finite number")
    rules = interventions_of(a) if a.interventions else None
    try:
        result = pretrain(
            config, a.data, a.run_dir, phase=a.phase, vanilla=a.vanilla, minutes=a.minutes, recipe=a.recipe,
            seed=a.seed, tokens=None if a.tokens is None else int(a.tokens), dtype=a.dtype, resume=a.resume,
            progress=a.progress, allow_changes=a.allow_changes, interventions=rules, **changes,
        )  # fmt: skip
    except MomError as error:
        if not str(error).startswith("vanilla: "):
            raise
        # The flag for this argument has another name.
        raise type(error)(f"--from: {str(error).removeprefix('vanilla: ')}") from None
    training, plan = result.training, result.config
    print(f"{result.tokens:,} tokens in {plan.steps:,} steps of {plan.tokens_per_step:,}")
    print_losses(training)
    print(f"model {result.folder}")
    return 0
