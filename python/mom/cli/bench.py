"""``mom bench``."""

from __future__ import annotations

import argparse
from typing import Any

from ..config import PRESETS, MoMConfig
from ..errors import ConfigError
from ..runtime import cpu_info, get_num_threads, machine_peak, memory_bandwidth
from ..training.recipe import seconds_per_step
from .flags import add_dtype, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "bench", _run, "measure how fast this machine trains a model",
        "Prints the machine's peak of arithmetic, the bandwidth of its memory, and the speed of a training step.",
    )  # fmt: skip
    parser.add_argument("--preset", default="mini", metavar="NAME", help=f"shape: {', '.join(PRESETS)}")
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="sequences of a step")
    parser.add_argument("--sequence_length", type=int, default=256, metavar="N", help="tokens of each")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="X", help="about how long to measure steps")
    add_dtype(parser, resumed=False)
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:
    config, threads = MoMConfig.preset(a.preset), get_num_threads()
    for name in ("batch_size", "sequence_length"):
        if getattr(a, name) < 1:
            raise ConfigError(f"{name}: {getattr(a, name)} is less than 1")
    print(f"level {cpu_info()['level']}, {threads} threads, {a.dtype}")
    print(f"peak {machine_peak(a.dtype, threads):,.0f} GFLOP/s")
    print(f"memory {memory_bandwidth(threads=threads).triad:,.1f} GB/s")
    step = seconds_per_step(config, a.batch_size, a.sequence_length, a.dtype, patience=a.seconds)
    tokens = a.batch_size * a.sequence_length
    shape = f"{a.preset}, {a.batch_size} x {a.sequence_length} tokens"
    print(f"{shape}: {step:.3f} s per step, {tokens / step:,.0f} tokens/s")
    return 0
