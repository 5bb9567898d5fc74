"""Speed of clipping, AdamW and zeroing of gradients beside the memory's own bandwidth.

    python benchmarks/bench_optimizer.py

It counts 28 bytes per parameter: the parameter and two moments are read and written, and the gradient is read. Zeroing
the gradients adds 4 bytes, and the norm, which reads the gradients first, adds 4 more. Every round also measures
STREAM's triad with plain stores and with stores that bypass the caches, where all bytes that move are counted; see
`mom.runtime.memory_bandwidth`. Models whose tensors fit into the last cache can be faster than memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import at_least, new_report, seconds_of, some_of, write_report

PRESETS = ("mini", "base", "gpt2")


def measure(preset: str, threads: int, rounds: int) -> dict[str, Any]:
    """GB/s of every way to make a step, and of the yardsticks, over so many rounds."""
    import mom

    mom.set_num_threads(threads)
    model = mom.MoM(mom.MoMConfig.preset(preset))
    optimizer = mom.AdamW(model, lr=1e-5)

    def separate() -> None:
        mom.clip_grad_norm(model, 1.0)
        optimizer.step()
        model.zero_grad()

    #: Name: bytes per parameter, call.
    ways: dict[str, tuple[int, Any]] = {
        "step()": (28, optimizer.step),
        "step(max_norm)": (32, lambda: optimizer.step(1.0)),
        "step(max_norm, zero_grad)": (36, lambda: optimizer.step(1.0, zero_grad=True)),
        "clip; step; zero": (48, separate),
    }
    gradients = model.gradients
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    triad: list[float] = []
    stream: list[float] = []
    for _ in range(rounds):
        bandwidth = mom.runtime.memory_bandwidth(threads=threads, repeats=3)
        triad.append(bandwidth.triad)
        stream.append(bandwidth.stream)
        for name, (_, call) in ways.items():
            for parameter, gradient in gradients.items():
                gradient[...] = 0.01
                model.mark_gradient(parameter)
            seconds[name].append(seconds_of(call))
    count = model.num_parameters
    return {
        "parameters": count, "triad": triad, "stream": stream,
        "ways": {name: {"bytes_per_parameter": moved, "seconds": seconds[name],
                        "gb_per_second": [1e-9 * moved * count / s for s in seconds[name]]}
                 for name, (moved, _) in ways.items()},
    }  # fmt: skip


def print_table(preset: str, found: dict[str, Any]) -> None:
    """The figures of one model."""
    print(f"\n{preset}: {found['parameters'] / 1e6:.1f} M parameters")
    for name in ("triad", "stream"):
        print(f"memory, {name}: best {max(found[name]):.1f}, median {statistics.median(found[name]):.1f} GB/s")
    print(
        f"{'way':<28}{'bytes':>6}{'best ms':>9}{'median':>8}{'GB/s':>8}{'median':>8}{'of triad':>10}{'of stream':>11}"
        "   (medians of the ratios within a round)"
    )
    for name, way in found["ways"].items():
        rates = way["gb_per_second"]
        shares = [
            statistics.median(a / b for a, b in zip(rates, found[yard], strict=True)) for yard in ("triad", "stream")
        ]
        print(
            f"{name:<28}{way['bytes_per_parameter']:>6}{1e3 * min(way['seconds']):>9.2f}"
            f"{1e3 * statistics.median(way['seconds']):>8.2f}{max(rates):>8.1f}{statistics.median(rates):>8.1f}"
            f"{100 * shares[0]:>8.0f} %{100 * shares[1]:>9.0f} %"
        )


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--presets", type=some_of(PRESETS), default=list(PRESETS), help="comma-separated (%(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=7, help="measurements of each (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file (none)")
    a = parser.parse_args()
    report = new_report("optimizer", {"threads": a.threads, "rounds": a.rounds})
    report["presets"] = {}
    for preset in a.presets:
        report["presets"][preset] = found = measure(preset, a.threads, a.rounds)
        print_table(preset, found)
    write_report(report, a.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
