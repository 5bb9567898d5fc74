"""``mom prepare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..data import Documents, standard_library_text
from ..data.prepare import prepare
from .flags import add_on_error, command, truth


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "prepare", _run, "turn text into token files",
        "Writes train.bin, val.bin, meta.json and the files of the tokenizer.",
    )  # fmt: skip
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE",
        help="files (.txt, .jsonl, also .gz, or .parquet) and folders (default: Python's standard library)",
    )  # fmt: skip
    parser.add_argument("--out_dir", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: train a new one)")
    parser.add_argument("--vocab_size", type=int, default=8192, help="vocabulary of a new tokenizer")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="share of documents kept for validation")
    parser.add_argument("--seed", type=int, default=0, help="decides which documents these are")
    parser.add_argument(
        "--append_eos", type=truth, nargs="?", const=True, default=True, metavar="BOOL",
        help="end every document with <|endoftext|>",
    )  # fmt: skip
    parser.add_argument("--key", default="text", help="JSON field or Parquet column that holds the text")
    parser.add_argument(
        "--split", choices=("file", "blank_line"), default="file", help="whether a text file is one document"
    )
    add_on_error(parser)


def _run(a: argparse.Namespace) -> int:
    documents = (
        Documents(a.sources, key=a.key, split=a.split, on_error=a.on_error) if a.sources else standard_library_text()
    )
    meta = prepare(
        documents, a.out_dir, tokenizer=a.tokenizer, vocab_size=a.vocab_size, val_fraction=a.val_fraction, seed=a.seed,
        append_eos=a.append_eos, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(f"{meta['documents']:,} documents, {meta['source_bytes']:,} bytes; vocabulary of {meta['vocab_size']:,}")
    for name, entry in meta["files"].items():
        print(f"{Path(a.out_dir) / name}: {entry['tokens']:,} tokens")
    return 0
