"""Cost of a train step as the sequence length, the pool, the rounds, the share of SKIP or the threads grow.

    python benchmarks/bench_scaling.py
    python benchmarks/plot_scaling.py bench_scaling.json

Every sweep changes one thing of a preset and keeps the number of tokens in a step:

length   tokens per sequence; attention's products grow with it, all others stay
pool     modules per pool at the preset's top-k; the products stay, the optimizer has more parameters
rounds   rounds of the block; products grow in proportion, but for anchors and head
skip     share of choices that are SKIP, top-1, forced through the bias of the routers' SKIP output
threads  1 to --threads, or --thread-counts

A step is forward, backward, clipping, AdamW and zeroing. The learning rate is 0, so that the routes do not change.
GFLOP counts the multiplications that the routes require (see README.md). *of peak* divides by the machine's peak. The
peak is measured before each point, and the best of a sweep is used.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_train_step import multiplications, random_batches  # noqa: E402
from common import at_least, integers, new_report, some_of, write_report  # noqa: E402

SWEEPS = ("length", "pool", "rounds", "skip", "threads")
SKIP_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: A bias that outweighs all scores.
FORCED = 1e4


def routes(model: Any, tokens: Any) -> dict[str, list[Any]]:
    """Indices of chosen modules by half, of every block and round."""
    found = model(tokens, return_routes=True, keep=False).routes
    return {half: list(index) for half, index in found.index.items()}


def skip_shares(model: Any, tokens: Any) -> dict[str, float]:
    """Share of choices that are SKIP, by half."""
    modules = {"attn": model.config.num_attn, "ffn": model.config.num_ffn}
    return {
        half: sum(int((i >= modules[half]).sum()) for i in chosen) / sum(i.size for i in chosen)
        for half, chosen in routes(model, tokens).items()
    }


def set_skip_bias(model: Any, half: str, value: float) -> None:
    """Bias of the output SKIP in all routers of one half."""
    for name, parameter in model.parameters.items():
        if f"mot_{half}.router.router." in name and name.endswith("bias") and not name.endswith("router.0.bias"):
            parameter[-1] = value


def force_skip(model: Any, tokens: Any, share: float) -> dict[str, float]:
    """Set biases so that about this share of choices is SKIP; gives what came out, by half.

    Both halves are searched at once. A token's later routes depend on its earlier ones, so the share is only nearly
    monotonic, but that is enough.
    """
    if share in (0.0, 1.0):
        for half in ("attn", "ffn"):
            set_skip_bias(model, half, FORCED if share else -FORCED)
        return skip_shares(model, tokens)
    low, high = dict.fromkeys(("attn", "ffn"), -4.0), dict.fromkeys(("attn", "ffn"), 4.0)
    found: dict[str, float] = {}
    for _ in range(14):
        middle = {half: (low[half] + high[half]) / 2 for half in low}
        for half, value in middle.items():
            set_skip_bias(model, half, value)
        found = skip_shares(model, tokens)
        for half, value in middle.items():
            (low if found[half] < share else high)[half] = value
    return found


def points(sweep: str, base: Any, a: argparse.Namespace) -> Iterator[tuple[float, Any, tuple[int, int], int]]:
    """Value, configuration, shape of the batch and threads of every point."""
    tokens = a.tokens
    length = min(base.n_positions, tokens)
    shape = (tokens // length, length)
    if sweep == "length":
        for value in a.lengths:
            yield value, base.replace(n_positions=value), (max(1, tokens // value), value), a.threads
    elif sweep == "pool":
        for value in a.pools:
            yield value, base.replace(num_attn=value, num_ffn=value), shape, a.threads
    elif sweep == "rounds":
        for value in a.rounds:
            yield value, base.replace(depth_per_chunk=value), shape, a.threads
    elif sweep == "skip":
        for share in SKIP_SHARES:
            yield share, base.replace(routing_top_k=1), shape, a.threads
    else:
        for value in a.thread_counts or range(1, a.threads + 1):
            yield value, base, shape, value


def measure(
    sweep: str, value: float, config: Any, shape: tuple[int, int], threads: int, a: argparse.Namespace
) -> dict[str, Any]:
    """One point."""
    import mom

    mom.set_num_threads(threads)
    peak = mom.runtime.machine_peak(a.dtype, threads, 0.1)
    model = mom.MoM(config, seed=a.seed, dtype=a.dtype)
    optimizer = mom.AdamW(model, lr=0.0)
    batches = random_batches(config.vocab_size, 1 + a.steps, *shape, a.seed)
    forced = force_skip(model, batches[0], value) if sweep == "skip" else None
    parts: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    for tokens in batches:
        marks = [time.perf_counter()]
        model(tokens, labels=tokens)
        marks.append(time.perf_counter())
        model.backward()
        marks.append(time.perf_counter())
        optimizer.step(1.0, zero_grad=True)
        marks.append(time.perf_counter())
        for part, start, end in zip(parts, marks, marks[1:], strict=False):
            parts[part].append(end - start)
    for seconds in parts.values():
        del seconds[0]  # the first step finds nothing in place
    whole = [sum(step) for step in zip(*parts.values(), strict=True)]
    flop = sum(multiplications(config, *shape, routes(model, batches[-1])).values())
    return {
        "value": value, "shape": shape, "threads": threads, "parameters": model.num_parameters, "flop": flop,
        "peak_gflops": peak, "forced": forced, "step_seconds": whole, "part_seconds": parts,
    }  # fmt: skip


def print_table(sweep: str, rows: list[dict[str, Any]]) -> None:
    """The figures of one sweep."""
    print(
        f"\n{sweep:>8}{'B':>5}{'T':>6}{'M param.':>10}{'best ms':>10}{'median':>9}{'us/token':>10}{'to first':>9}"
        f"{'GFLOP':>8}{'to first':>9}{'GFLOP/s':>9}{'of peak':>9}{'forward':>9}{'backward':>9}{'optim.':>8}"
    )

    def cost(row: dict[str, Any]) -> float:
        return min(row["step_seconds"]) / (row["shape"][0] * row["shape"][1])

    def work(row: dict[str, Any]) -> float:
        return row["flop"] / (row["shape"][0] * row["shape"][1])

    peak = {row["threads"]: 0.0 for row in rows}
    for row in rows:
        peak[row["threads"]] = max(peak[row["threads"]], row["peak_gflops"])
    for row in rows:
        gflops = 1e-9 * row["flop"] / min(row["step_seconds"])
        value = f"{row['value']:.2f}" if sweep == "skip" else f"{row['value']:g}"
        parts = "".join(
            f"{1e3 * statistics.median(seconds):>{width}.1f}"
            for seconds, width in zip(row["part_seconds"].values(), (9, 9, 8), strict=True)
        )
        print(
            f"{value:>8}{row['shape'][0]:>5}{row['shape'][1]:>6}{row['parameters'] / 1e6:>10.1f}"
            f"{1e3 * min(row['step_seconds']):>10.1f}{1e3 * statistics.median(row['step_seconds']):>9.1f}"
            f"{1e6 * cost(row):>10.1f}{cost(row) / cost(rows[0]):>9.2f}{1e-9 * row['flop']:>8.1f}"
            f"{work(row) / work(rows[0]):>9.2f}{gflops:>9.1f}{100 * gflops / peak[row['threads']]:>7.0f} %{parts}"
        )
        if row["forced"]:
            print(f"{'':8}SKIP in reality: {', '.join(f'{h} {s:.3f}' for h, s in row['forced'].items())}")


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sweeps", type=some_of(SWEEPS), default=list(SWEEPS), help="comma-separated (%(default)s)")
    parser.add_argument("--preset", default="base", help="what everything but the sweep follows (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--tokens", type=at_least(16), default=4096, help="in a step (%(default)s)")
    parser.add_argument("--lengths", type=integers, default=[256, 512, 1024, 2048, 4096], help="(%(default)s)")
    parser.add_argument("--pools", type=integers, default=[4, 8, 16, 32], help="modules per pool (%(default)s)")
    parser.add_argument("--rounds", type=integers, default=[1, 2, 4, 8], help="(%(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads, or the most of them (%(default)s)")
    parser.add_argument("--thread-counts", type=integers, help="of the sweep over threads (all up to --threads)")
    parser.add_argument("--steps", type=at_least(1), default=5, help="timed steps of a point (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of tokens and parameters (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("bench_scaling.json"), help="JSON file (%(default)s)")
    a = parser.parse_args()
    import mom

    base = mom.MoMConfig.preset(a.preset)
    settings = {name: value for name, value in vars(a).items() if name != "output"}
    report = new_report("scaling", settings)
    report["sweeps"] = {}
    for sweep in a.sweeps:
        rows = report["sweeps"][sweep] = []
        for point in points(sweep, base, a):
            rows.append(measure(sweep, *point, a))
            print(f"{sweep} {point[0]:g}: {min(rows[-1]['step_seconds']):.3f} s", file=sys.stderr)
        print_table(sweep, rows)
    write_report(report, a.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
