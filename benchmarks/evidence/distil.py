"""Teaches the routers of a trained model the routes that an oracle has found, and measures what that brings elsewhere.

    python benchmarks/evidence/distil.py runs/levers/HASH/model --train data/train --data data/valid --output found.json

The oracle searches on sequences of the training text. The losses are those of unseen text, before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import mom
from mom.data import TokenFile
from mom.files.folders import write_json


def loss(model: mom.MoM, ids: Any) -> float:
    """Nats per token, the mean over all sequences."""
    with model.evaluating():
        found = [model(part, labels=part, keep=False).lm_loss or 0.0 for part in ids[:, None]]
    return float(np.mean(found))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model with routers")
    parser.add_argument("--train", required=True, help="token file or prepared folder for the oracle")
    parser.add_argument("--data", required=True, help="unseen text")
    parser.add_argument("--sequences", type=int, default=64, help="sequences of the oracle")
    parser.add_argument("--length", type=int, default=32, help="tokens of each")
    parser.add_argument("--samples", type=int, default=2000, help="routes that the oracle tries for each sequence")
    parser.add_argument("--steps", type=int, default=100, help="steps of teaching")
    parser.add_argument("--dtype", default="bfloat16", help="number format of the passes, as in training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    mom.set_num_threads(arguments.threads)
    model = mom.MoM.from_pretrained(arguments.model, dtype=arguments.dtype)
    files = [TokenFile(path, vocab_size=model.config.vocab_size) for path in (arguments.train, arguments.data)]
    length = model.config.n_positions
    # Far apart, so that sequences are of different documents.
    begins = np.linspace(0, len(files[0]) - length, arguments.sequences).astype(np.int64)
    ids = files[0].windows(begins, arguments.length)
    unseen = files[1].windows(np.arange(min(64, len(files[1]) // length)) * length, length)
    found = mom.analysis.oracle(model, ids, samples=arguments.samples, progress=False)
    result = mom.surgery.distil_routes(model, found.routes, steps=arguments.steps, progress=False)
    report = {
        "sequences": len(ids), "length": arguments.length, "regret": found.regret, "low": found.regret_low,
        "high": found.regret_high, "random_regret": found.random_regret, "receipt": result.receipt,
        "taught": {"before": loss(model, np.asarray(ids)), "after": loss(result.model, np.asarray(ids))},
        "unseen": {"before": loss(model, unseen), "after": loss(result.model, unseen)},
    }  # fmt: skip
    write_json(arguments.output, report)


if __name__ == "__main__":
    main()
