"""``mom generate``."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.tokenizer import Tokenizer
from ..errors import DataError
from ..model import MoM
from .flags import add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "generate", _run, "continue a text")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue ('' begins a document)")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use (default: the model's own)")
    parser.add_argument(
        "--max_new_tokens", type=int, help="tokens to add (default: the model's, or 100; fewer if no more fit)"
    )
    parser.add_argument(
        "--temperature", type=float, help="0: always the most probable token (default: the model's, or 0)"
    )
    parser.add_argument("--top_k", type=int, help="sample among so many most probable tokens")
    parser.add_argument(
        "--top_p", type=float, help="sample among the most probable tokens that make up this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16", "int8"), help="number format in which weights are read"
    )
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    model = MoM.from_pretrained(a.model)
    if a.tokenizer is not None:
        model.tokenizer = Tokenizer.load(a.tokenizer)
    if model.tokenizer is None:
        raise DataError(f"tokenizer: {a.model} holds none; name one with --tokenizer")
    print(model.generate_text(
        a.prompt, a.max_new_tokens, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p, seed=a.seed,
        weights=a.weights,
    ))  # fmt: skip
    return 0
