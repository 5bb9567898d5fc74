"""``mom info``."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

from .. import _version
from ..config import PRESETS, MoMConfig
from ..model import plan_for
from ..runtime import cpu_info, memory_limit
from ..training import TrainingConfig
from .flags import add_threads, command


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "info", _run, "versions, processor and active kernels; or the memory that a model needs",
        "With --preset or --model: bytes of a training step, and of a forward pass alone, for a batch of that shape.",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", metavar="NAME", help=f"a named configuration: {', '.join(PRESETS)}")
    which.add_argument("--model", metavar="DIR", help="folder with a model, or its config.json")
    parser.add_argument("--batch_size", type=int, default=TrainingConfig.batch_size, metavar="N", help="sequences")
    parser.add_argument("--sequence_length", type=int, metavar="N", help="tokens of each (default: n_positions)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    add_threads(parser)


def _show_memory(a: argparse.Namespace) -> int:
    config = MoMConfig.preset(a.preset) if a.preset is not None else MoMConfig.from_json(a.model)
    length = config.n_positions if a.sequence_length is None else a.sequence_length
    columns = {
        "training": {},
        "checkpointing": {"activation_checkpointing": True},
        "forward": {"training": False},
    }  # fmt: skip
    plans = [plan_for(config, a.batch_size, length, dtype=a.dtype, **options) for options in columns.values()]
    print(f"{a.batch_size} x {length} tokens, {a.dtype}; MB (activations to workspace: at their fullest moment)")
    print(f"{'':13}" + "".join(f"{name:>15}" for name in columns))
    for parts in zip(*(plan.rows() for plan in plans), strict=True):
        print(f"{parts[0][0]:13}" + "".join(f"{1e-6 * size:15,.1f}" for _, size in parts))
    limit = memory_limit()
    if limit is not None:
        print(f"{'limit':13}{1e-6 * limit:15,.1f}   (of this machine or control group)")
    return 0


def _run(a: argparse.Namespace) -> int:
    if a.preset is not None or a.model is not None:
        return _show_memory(a)
    cpu = cpu_info()
    rows = [("mom", _version.__version__), ("python", platform.python_version()), ("platform", platform.platform())]
    packages = ("numpy", "tokenizers", "tqdm", "matplotlib", "scikit-learn", "scipy", "rouge-score")
    for package in (*packages, "pyarrow", "datasets", "huggingface_hub", "lm-eval"):
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    rows += [
        ("level", f"{cpu['level']} (of {', '.join(cpu['levels'])}; MOM_CPU chooses)"),
        ("matrix kernel", cpu["gemm"]),
        ("features", ", ".join(name for name, there in cpu["features"].items() if there) or "none"),
        ("threads", f"{cpu['threads']} of {cpu['cpus']} CPUs" + ("" if cpu["openmp"] else "; built without OpenMP")),
        ("compiler", cpu["compiler"]),
    ]
    for name, value in rows:
        print(f"{name:13} {value}")
    return 0
