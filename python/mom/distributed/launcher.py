"""Starts the processes of a run with the launcher that fits, and starts them again when one dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runtime import cpu_info

__all__ = ["Launch", "default_ranks", "find_mpiexec", "launcher_command", "supervise", "threads_for"]

#: Words by which an MPI names itself, in its library and in its launcher.
_FAMILIES = {
    "MPICH": r"MPICH|HYDRA|Intel\(R\) MPI|MVAPICH",
    "Open MPI": r"Open MPI|OpenRTE|PRRTE|prterun",
}

#: Signals that end a run after it has saved a checkpoint, and its exit status then. It is not begun again.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_STOPPED = frozenset(128 + number for number in _SIGNALS)


@dataclass(frozen=True)
class Launch:
    """How the ranks of a run are started.

    Attributes
    ----------
    ranks : int
    threads : int
        Of each rank.
    hosts : tuple of str
        Names of the machines; none: this one.
    """

    ranks: int
    threads: int
    hosts: tuple[str, ...] = ()

    @property
    def per_host(self) -> int:
        """Ranks of a machine, rounded up."""
        return -(-self.ranks // max(1, len(self.hosts)))


def default_ranks() -> int:
    """The number of NUMA nodes of this machine, at least 1."""
    nodes = [path for path in Path("/sys/devices/system/node").glob("node[0-9]*") if any(path.glob("cpu[0-9]*"))]
    return max(1, min(len(nodes), cpu_info()["cpus"]))


def threads_for(ranks_per_host: int) -> int:
    """Threads of each of so many ranks on a machine like this one."""
    return max(1, cpu_info()["cpus"] // ranks_per_host)


# ---------------------------------------------------------------------- which launcher
def find_mpiexec() -> tuple[str, str]:
    """The launcher that belongs to the MPI library of mpi4py, and the name of its family.

    Raises
    ------
    ImportError
        Without mpi4py or an MPI library.
    ConfigError
        If no launcher of this library is found.
    """
    library = _said_by([sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())"])
    family = _family_of(library or "")
    if family is None:
        raise ImportError("a run on several ranks needs the packages mpi4py and mpich: pip install mpi4py mpich")
    beside = Path(sys.executable).parent / "mpiexec"
    candidates = [str(beside)] if beside.exists() else []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = shutil.which("mpiexec", path=folder)
        candidates += [found] if found and found not in candidates else []
    for candidate in candidates:
        if _family_of(_said_by([candidate, "--version"]) or "") == family:
            return candidate, family
    found = " and ".join(candidates) or "none"
    raise ConfigError(f"mpiexec: mpi4py uses {family}, and its launcher is not in PATH (found: {found})")


def _said_by(command: Sequence[str]) -> str | None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI_", "PRTE"))}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, check=False)
    return done.stdout + done.stderr if done.returncode == 0 else None


def _family_of(text: str) -> str | None:
    return next((family for family, words in _FAMILIES.items() if re.search(words, text)), None)


def launcher_command(launch: Launch, program: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command that starts the ranks, and variables of its environment."""
    environment = {"OMP_NUM_THREADS": str(launch.threads)}
    fits = launch.per_host * launch.threads <= cpu_info()["cpus"]
    if "SLURM_JOB_ID" in os.environ and shutil.which("srun"):
        words = ["srun", f"--ntasks={launch.ranks}", f"--cpus-per-task={launch.threads}", "--kill-on-bad-exit=1"]
        if launch.hosts:
            words += [f"--nodelist={','.join(launch.hosts)}", f"--ntasks-per-node={launch.per_host}"]
        return [*words, "--cpu-bind=cores", *program], environment
    mpiexec, family = find_mpiexec()
    words = [mpiexec, "-n", str(launch.ranks)]
    if family == "MPICH":
        words += ["-hosts", ",".join(launch.hosts), "-ppn", str(launch.per_host)] if launch.hosts else []
        words += ["-bind-to", f"hwthread:{launch.threads}"] if fits else []
        words += ["-genv", "OMP_NUM_THREADS", str(launch.threads)]
    else:
        words += ["--host", ",".join(f"{host}:{launch.per_host}" for host in launch.hosts)] if launch.hosts else []
        if fits:
            words += ["--map-by", f"slot:PE={launch.threads}:HWTCPUS", "--bind-to", "hwthread"]
        else:
            words += ["--oversubscribe", "--bind-to", "none"]
        words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        words += ["-x", "OMP_NUM_THREADS"]
    return [*words, *program], environment


# ---------------------------------------------------------------------- running
def supervise(
    start: Callable[[int, bool], subprocess.Popen[bytes]], ranks: int, max_restarts: int, min_ranks: int
) -> int:
    """Start a run, and start it again when it fails.

    Parameters
    ----------
    start : callable
        Starts the processes: takes the number of ranks, and whether the run shall continue from its newest checkpoint.
    ranks : int
    max_restarts : int
        How often to start it again.
    min_ranks : int
        After two failures in a row, half as many ranks are started, but no fewer than these.

    Returns
    -------
    int
        Exit status of the last attempt.
    """
    for attempt in range(max_restarts + 1):
        status = _wait(start(ranks, attempt > 0))
        if status == 0 or status in _STOPPED or attempt == max_restarts:
            return status
        if attempt % 2:
            ranks = max(min_ranks, ranks // 2)
        print(
            f"mom launch: the run ended with status {status}; restart {attempt + 1} of {max_restarts} on {ranks} ranks",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    raise AssertionError("the loop returns")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a launcher. Returns its exit status, or that of the signal that ended it.

    The first signal reaches the ranks as SIGUSR1, which every launcher passes on and survives. The next one ends the
    launcher.
    """
    received: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        received.append(number)
        process.send_signal(signal.SIGUSR1 if len(received) == 1 else signal.SIGTERM)

    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        status = process.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if received:
        return 128 + received[0]
    return 128 - status if status < 0 else status
