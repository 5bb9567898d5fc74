"""``mom routes``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..analysis import format_paths, module_use, plot_routes, token_names, view
from ..errors import DataError
from ..model import MoM
from .flags import add_interventions, add_threads, command, interventions_of


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "routes", _run, "show which modules the tokens of a text run",
        "A line for each token has its path: modules of attention (A) and feed-forward modules (F) in each round, with "
        "their weights.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    parser.add_argument("--text", required=True, metavar="TEXT", help="the text")
    parser.add_argument(
        "--out", metavar="FILE", help="save a picture (.png, .pdf, .svg; needs matplotlib) or a page to explore (.html)"
    )
    add_interventions(parser)
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    model, rules = MoM.resolve(a.model), interventions_of(a)
    if model.tokenizer is None:
        raise DataError(f"model: {a.model} holds no tokenizer to read the text with")
    ids = model.tokenizer.encode(a.text, special=True)
    routes = model(ids, return_routes=True, interventions=rules).routes
    assert routes is not None
    names = token_names(model, ids)
    print(format_paths(routes, names, weights=True))
    for use in module_use(routes, weighted=True).values():
        print(f"\nshare of the weight\n{use}")
    if a.out is not None:
        if Path(a.out).suffix == ".html":
            view(model, a.text, interventions=rules).save(a.out)
        else:
            plot_routes(routes, names=names).savefig(a.out, dpi=150)
        print(f"saved {a.out}", file=sys.stderr)
    return 0
