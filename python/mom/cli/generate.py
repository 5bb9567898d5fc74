"""``mom generate``."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.tokenizer import Tokenizer
from ..errors import DataError
from ..model import MoM
from .flags import add_arguments, add_interventions, add_threads, command, interventions_of


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "generate", _run, "continue a text")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue ('' begins a document)")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use (default: the model's own)")
    add_arguments(parser, MoM.generate_text, "max_new_tokens")
    add_arguments(parser, MoM.generate, "temperature", "top_k", "top_p", "seed", "weights")
    add_interventions(parser)
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    model = MoM.resolve(a.model)
    if a.tokenizer is not None:
        model.tokenizer = Tokenizer.load(a.tokenizer)
    if model.tokenizer is None:
        raise DataError(f"tokenizer: {a.model} holds none; name one with --tokenizer")
    with model.intervene(interventions_of(a)):
        print(model.generate_text(
            a.prompt, a.max_new_tokens, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p, seed=a.seed,
            weights=a.weights,
        ))  # fmt: skip
    return 0
