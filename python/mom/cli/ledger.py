"""``mom ledger``."""

from __future__ import annotations

import argparse
from typing import Any

from ..accounting import Ledger, ledger
from ..config import PRESETS, MoMConfig
from ..model import plan_for
from ..training import TrainingConfig
from ..training.recipe import seconds_per_step
from .flags import add_dtype, add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "ledger", _run, "count what a model computes, without computing it",
        "Multiply-adds and bytes of weights by part, FLOPs and parameters under several conventions, and memory. "
        "Routes are expected ones: uniform over the outputs of the routers.",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", metavar="NAME", help=f"a named configuration: {', '.join(PRESETS)}")
    which.add_argument("--model", metavar="DIR", help="folder with a model, or its config.json")
    parser.add_argument("--batch_size", type=int, default=TrainingConfig.batch_size, metavar="N", help="sequences")
    parser.add_argument("--sequence_length", type=int, metavar="N", help="tokens of each (default: n_positions)")
    parser.add_argument("--like", metavar="OTHER", help="a named configuration to compare with")
    parser.add_argument("--measure", action="store_true", help="also time training steps, for ten seconds or longer")
    add_dtype(parser, resumed=False)
    add_threads(parser)


def _memory(config: MoMConfig, a: argparse.Namespace, length: int) -> dict[str, int]:
    kinds = {"training": True, "forward pass": False}
    return {
        f"memory, {kind}": plan_for(config, a.batch_size, length, dtype=a.dtype, training=training).total
        for kind, training in kinds.items()
    }


def _compare(own: dict[str, Any], other: dict[str, Any], name: str) -> None:
    print(f"\n{'':38}{'this':>13}{name:>16}{'ratio':>8}")
    for what, value in own.items():
        ratio = f"{value / other[what]:.3f}" if other[what] else ""
        print(f"{what:38}{value:13.4g}{other[what]:16.4g}{ratio:>8}")


def _run(a: argparse.Namespace) -> int:
    config = MoMConfig.preset(a.preset) if a.preset is not None else MoMConfig.from_json(a.model)
    length = config.n_positions if a.sequence_length is None else a.sequence_length
    like = None if a.like is None else MoMConfig.preset(a.like)
    found: Ledger = ledger(config, a.batch_size, length)
    memory = _memory(config, a, length)
    print(found)
    for name, size in memory.items():
        print(f"{name:22}{size / 1e9:10.2f} GB")
    if like is not None:
        other = ledger(like, a.batch_size, length)
        _compare({**found.totals(), **memory}, {**other.totals(), **_memory(like, a, length)}, a.like)
    if a.measure:
        step = seconds_per_step(config, a.batch_size, length, a.dtype, patience=10.0)
        print(f"\n{step:.3f} s per training step in {a.dtype}, {1e-9 * found.flops() / step:,.1f} GFLOP/s")
    return 0
