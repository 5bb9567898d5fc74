"""``mom bench``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import bench
from ..errors import ConfigError
from ..runtime import cpu_info, get_num_threads
from .flags import add_threads, command


def add(commands: Any) -> None:
    parser = command(
        commands, "bench", _run, "measure matrix products on this machine",
        "GFLOP/s, best and median of the repeats, beside the machine's peak measured just before and NumPy's product.",
    )  # fmt: skip
    parser.add_argument("what", choices=("gemm",), help="gemm: products of a training step")
    parser.add_argument("--presets", default="mini,base", metavar="NAMES", help="of 'mini' and 'base', comma-separated")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of our products; NumPy's are float32"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each product")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON, too")
    add_threads(parser)


def _run(a: argparse.Namespace) -> int:

    if a.repeats < 1:
        raise ConfigError(f"repeats: {a.repeats} is less than 1")
    products = [product for preset in a.presets.split(",") for product in bench.gemm_products(preset)]
    cpu, threads, rows = cpu_info(), get_num_threads(), []
    kernel = cpu["gemm"] if a.precision == "float32" else cpu["gemm_bf16"]
    print(f"matrix products in {a.precision}, GFLOP/s, {a.repeats} repeats; level {cpu['level']}, kernel {kernel}")
    with bench.limit_numpy_threads(threads) as numpy_threads:
        print(f"mom: {threads} threads; numpy {np.__version__} in float32: {numpy_threads}")
        print(f"{'':50}{'':17}{'mom':>16}{'numpy':>16}{'peak':>7}   mom of")
        print(
            f"{'product':41}{'groups':>8} {'m, k, n':>17}{'best':>8}{'median':>8}{'best':>8}{'median':>8}{'':>7}"
            f"{'peak':>7}{'numpy':>7}"
        )
        for row in bench.measure_gemm(products, a.repeats, a.precision):
            rows.append(row)
            name = f"{row['preset']} {row['layer']}, {row['direction']}, {row['kind']}"
            size = f"{row['m']}, {row['k']}, {row['n']}"
            print(
                f"{name:45}{row['groups']:>4} {size:>17}{row['mom']:8.1f}{row['mom_median']:8.1f}{row['numpy']:8.1f}"
                f"{row['numpy_median']:8.1f}{row['peak']:7.1f}{100 * row['mom'] / row['peak']:5.0f} %"
                f"{row['mom'] / row['numpy']:6.2f}x",
                flush=True,
            )
    if a.output is not None:
        report = {
            "benchmark": "gemm", "precision": a.precision, "threads": threads, "numpy_threads": numpy_threads,
            "repeats": a.repeats, "cpu": cpu, "numpy": np.__version__, "products": rows,
        }  # fmt: skip
        Path(a.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0
