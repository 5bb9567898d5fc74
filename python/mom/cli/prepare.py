"""``mom prepare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..data import Documents, standard_library_text
from ..data.prepare import documents_of, prepare
from .flags import add_arguments, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "prepare", _run, "turn text into token files",
        "Writes train.bin, val.bin, meta.json and the files of the tokenizer.",
    )  # fmt: skip
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE",
        help="files (.txt, .jsonl, also .gz, .xz or .zst; .parquet; .tar archives), folders, or hub:owner/name for a "
        "data set on the Hub (default: Python's standard library)",
    )  # fmt: skip
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: train a new one)")
    add_arguments(parser, prepare, "out_dir", "vocab_size", "val_fraction", "seed", "append_eos")
    add_arguments(parser, Documents, "key", "split", "on_error")


def _run(a: argparse.Namespace) -> int:
    documents = documents_of(a.sources, a.key, a.split, a.on_error) if a.sources else standard_library_text()
    meta = prepare(
        documents, a.out_dir, tokenizer=a.tokenizer, vocab_size=a.vocab_size, val_fraction=a.val_fraction, seed=a.seed,
        append_eos=a.append_eos, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(f"{meta['documents']:,} documents, {meta['source_bytes']:,} bytes; vocabulary of {meta['vocab_size']:,}")
    for name, entry in meta["files"].items():
        print(f"{Path(a.out_dir) / name}: {entry['tokens']:,} tokens")
    return 0
