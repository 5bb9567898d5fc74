"""``mom launch``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from ..distributed.launcher import Launch, default_ranks, launcher_command, supervise, threads_for
from ..errors import ConfigError
from .flags import command

#: Commands that work on several ranks.
_COMMANDS = ("train", "pretrain", "finetune", "evaluate", "prepare", "info")
#: Commands that continue from a checkpoint with ``--resume``.
_RESUMABLE = ("train", "pretrain", "finetune")


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "launch", _run, "run a command or a script on several ranks",
        "Starts the same program several times with the mpiexec that belongs to mpi4py, or with srun in a SLURM job. "
        "Each process, a rank, gets its own processors. A model is then trained by all of them together.",
    )  # fmt: skip
    parser.add_argument("-n", "--ranks", type=int, help="processes in all (default: one per NUMA node of each host)")
    parser.add_argument("--hosts", metavar="A,B", help="names of the machines to use (default: this one)")
    parser.add_argument(
        "--threads", type=int, dest="rank_threads", metavar="N",
        help="threads of each rank (default: all processors divided)",
    )  # fmt: skip
    parser.add_argument(
        "--max_restarts", type=int, default=0, help="start again after a failure, from the newest checkpoint"
    )
    parser.add_argument("--min_ranks", type=int, metavar="N", help="after two failures in a row, halve ranks down to N")
    parser.add_argument("program", help="a command, such as train, or a script.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")


def _run(a: argparse.Namespace) -> int:
    hosts = tuple(host for host in (a.hosts or "").split(",") if host)
    ranks = default_ranks() * max(1, len(hosts)) if a.ranks is None else a.ranks
    least = ranks if a.min_ranks is None else a.min_ranks
    _check(a, ranks, least)

    def start(count: int, again: bool) -> subprocess.Popen[bytes]:
        per_host = Launch(count, 1, hosts).per_host
        threads = threads_for(per_host) if a.rank_threads is None else a.rank_threads
        words, environment = launcher_command(Launch(count, threads, hosts), _program(a, again))
        # In a session of its own, so that Ctrl-C comes to this process only.
        return subprocess.Popen(words, env={**os.environ, **environment}, start_new_session=True)

    return supervise(start, ranks, a.max_restarts, least)


def _check(a: argparse.Namespace, ranks: int, least: int) -> None:
    limits = {"ranks": (ranks, 1), "max_restarts": (a.max_restarts, 0), "min_ranks": (least, 1)}
    for name, (value, low) in {**limits, "threads": (1 if a.rank_threads is None else a.rank_threads, 1)}.items():
        if value < low:
            raise ConfigError(f"{name}: {value} is less than {low}")
    if least > ranks:
        raise ConfigError(f"min_ranks: {least} is more than the {ranks} ranks to begin with")
    if not a.program.endswith(".py") and a.program not in _COMMANDS:
        raise ConfigError(f"program: {a.program!r} is no command ({', '.join(_COMMANDS)}) and no script.py")


def _program(a: argparse.Namespace, again: bool) -> list[str]:
    """What each rank runs. A command that can resume does so when it is started again."""
    if a.program.endswith(".py"):
        return [sys.executable, a.program, *a.arguments]
    more = ["--resume"] if again and a.program in _RESUMABLE and "--resume" not in a.arguments else []
    return [sys.executable, "-m", "mom", a.program, *a.arguments, *more]
