"""``mom prune``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..analysis import audit
from ..errors import ConfigError
from ..files import folders
from ..model import MoM
from ..surgery import prune
from .flags import add_arguments, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "prune", _run, "leave out the modules of a model that matter least",
        "Writes a model with fewer modules, and receipt.json beside its folder. Prints which modules stay and, with "
        "--data, the loss before and after.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    parser.add_argument("--out_dir", required=True, metavar="DIR", help="folder for 'model' and receipt.json")
    parser.add_argument(
        "--data", metavar="PATH", help="token file or prepared folder to measure on; not needed with --by random"
    )
    add_arguments(parser, prune, "attn", "ffn", "by", "reroute", "seed")
    add_arguments(parser, audit, "sequence_length", "batch_size", "batches")
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    folder = Path(a.out_dir) / "model"
    folders.check_replaceable(folder, folders.MODEL_FILES)  # before the modules are measured
    if not a.attn and not a.ffn:
        raise ConfigError("attn, ffn: nothing to leave out; give a share of at least one of them, such as --ffn 0.25")
    measured = {"sequence_length": a.sequence_length, "batch_size": a.batch_size, "batches": a.batches}
    changed, receipt = prune(
        MoM.resolve(a.model), attn=a.attn, ffn=a.ffn, by=a.by, data=a.data, reroute=a.reroute, seed=a.seed,
        **({} if a.data is None else measured),
    )  # fmt: skip
    changed.save_pretrained(folder)
    folders.write_json(folder.parent / "receipt.json", receipt)
    for half, blocks in receipt["kept"].items():
        for block, numbers in enumerate(blocks):
            print(f"block {block} {half}: modules {', '.join(map(str, numbers))} stay")
    for what in ("parameters", "loss"):
        if what in receipt["before"]:
            form = ",d" if what == "parameters" else ".4f"
            print(f"{what} {receipt['before'][what]:{form}} before, {receipt['after'][what]:{form}} after")
    print(f"model {folder}")
    print(f"receipt {folder.parent / 'receipt.json'}", file=sys.stderr)
    return 0
