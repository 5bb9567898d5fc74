"""Two ranks of one thread beside one rank of two threads, and what a step sends.

    python benchmarks/bench_ranks.py

Both train the same model on the same rows. They take turns; each run is a job of its own. *ratio* is tokens per second
of the ranks to those of the single process, the median over the turns. *sent* is what a rank sends in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import at_least, new_report, write_report

import mom
from mom.distributed import current
from mom.distributed.launcher import Launch, launcher_command


def work(a: argparse.Namespace, data: str) -> None:
    """Train on every rank, and print the seconds of the steps on one."""
    model = mom.MoM(mom.MoMConfig.preset(a.preset), seed=0)
    result = mom.train(
        model, data, steps=a.warmup + a.steps, batch_size=a.rows, sequence_length=a.length, eval_every=0, save_every=0,
        lr=1e-9, warmup=0, progress=False, transport=a.transport,
    )  # fmt: skip
    seconds = [record["seconds"] for record in result.records if record["kind"] == "train"][a.warmup :]
    if current().rank == 0:
        plan = model.memory_plan(-(-a.rows // current().size), a.length, ranks=current().size)
        peak = max(record["peak_memory_bytes"] for record in result.records if record["kind"] == "train")
        print(json.dumps({"seconds": seconds, "planned": plan.total, "peak": peak}))


def measure(a: argparse.Namespace, data: str, ranks: int, threads: int) -> dict[str, Any]:
    """One job."""
    program = [sys.executable, __file__, *sys.argv[1:], "--data", data]
    words, environment = launcher_command(Launch(ranks, threads), program)
    if ranks == 1:
        words = program
    done = subprocess.run(words, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sent_bytes(model: mom.MoM, ranks: int, transport: str) -> int:
    """Bytes that a rank sends in a step: gradients of the other shards, and its own parameters to the others."""
    share = model.num_parameters * (ranks - 1) // ranks
    return share * (2 if transport == "bfloat16" else 4) + share * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--rows", type=at_least(1), default=4, help="sequences of a step")
    parser.add_argument("--length", type=at_least(2), default=512, help="tokens of a sequence")
    parser.add_argument("--ranks", type=at_least(1), default=2, help="beside one rank with as many threads")
    parser.add_argument("--turns", type=at_least(1), default=6)
    parser.add_argument("--warmup", type=at_least(0), default=1, help="steps that are not counted")
    parser.add_argument("--steps", type=at_least(1), default=3)
    parser.add_argument("--transport", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("bench_ranks.json"))
    parser.add_argument("--data", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.data is not None:
        work(a, a.data)
        return
    report = new_report("bench_ranks", {**vars(a), "output": str(a.output)})
    model = mom.MoM(mom.MoMConfig.preset(a.preset), seed=0)
    with tempfile.TemporaryDirectory() as data:
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=64 * a.rows * a.length)
        ids.astype("<u2").tofile(Path(data) / "train.bin")
        turns = []
        for turn in range(a.turns):
            kinds = ((1, a.ranks), (a.ranks, 1))
            found = {ranks: measure(a, data, ranks, threads) for ranks, threads in (kinds if turn % 2 else kinds[::-1])}
            turns.append({"alone": found[1], "ranks": found[a.ranks]})
    for kind in ("alone", "ranks"):
        best = min(min(turn[kind]["seconds"]) for turn in turns)
        middle = statistics.median(statistics.median(turn[kind]["seconds"]) for turn in turns)
        print(
            f"{kind:6}{a.rows * a.length / best:9,.0f} tokens/s best{a.rows * a.length / middle:9,.0f} median"
            f"{turns[0][kind]['planned'] / 1e6:9,.0f} MB planned per process{turns[0][kind]['peak'] / 1e6:7,.0f} in use"
        )
    ratios = sorted(
        statistics.median(turn["alone"]["seconds"]) / statistics.median(turn["ranks"]["seconds"]) for turn in turns
    )
    sent = sent_bytes(model, a.ranks, a.transport)
    print(f"ratio {statistics.median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}; sent {sent / 1e6:,.1f} MB")
    write_report({**report, "turns": turns, "ratios": ratios, "sent": sent}, a.output)


if __name__ == "__main__":
    main()
