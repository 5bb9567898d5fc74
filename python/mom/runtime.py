"""Threads and instruction-set level of this process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple, TypedDict

from . import _core

__all__ = [
    "Bandwidth", "CpuInfo", "cpu_info", "get_num_threads", "machine_peak", "memory_bandwidth", "memory_limit",
    "set_cpu_level", "set_num_threads",
]  # fmt: skip


class CpuInfo(TypedDict):
    """What `cpu_info` returns."""

    level: str  #: active level
    levels: list[str]  #: levels this machine can run, best last
    gemm: str  #: matrix micro-kernel of the active level
    gemm_bf16: str  #: the same for factors in bfloat16
    openmp: bool  #: built with threads
    threads: int  #: as `get_num_threads`
    cpus: int  #: CPUs this process may use
    features: dict[str, bool]  #: what the processor and the operating system offer
    compiler: str  #: that built the core


def cpu_info() -> CpuInfo:
    """The active kernels, the other levels this machine can run, and the number of threads.

    Returns
    -------
    CpuInfo
        A dictionary with the keys ``level``, ``levels``, ``gemm``, ``gemm_bf16``, ``openmp``, ``threads``, ``cpus``,
        ``features`` and ``compiler``.

    Examples
    --------
    >>> import mom
    >>> mom.cpu_info()["level"] in mom.cpu_info()["levels"]
    True
    """
    return _core.cpu_info()


def set_cpu_level(level: str) -> str:
    """Choose the instruction-set level of all later calls in this process.

    The environment variable ``MOM_CPU`` does the same when the package is imported.

    Parameters
    ----------
    level : str
        One of ``cpu_info()["levels"]``.

    Returns
    -------
    str
        The level before the call.

    Raises
    ------
    ValueError
        If the level is unknown or this machine cannot run it; the message lists the choices.

    Notes
    -----
    Results of different levels differ by rounding; results of one level do not depend on the number
    of threads.
    """
    return _core.set_cpu_level(level)


def set_num_threads(n: int) -> None:
    """Set the number of threads of all later calls in this process.

    The default is the environment variable ``OMP_NUM_THREADS``, or else the number of CPUs that the process may use.
    It changes the speed only: results have the same bits for any number of threads.

    Parameters
    ----------
    n : int
        1 to 256.

    Raises
    ------
    ValueError
        If `n` is out of range.
    RuntimeError
        If `n` is above 1 in a process made by ``fork``, which always runs with one thread: the
        threads of its parent do not exist in it. Start processes with ``spawn`` or ``forkserver``.
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """The number of threads that a call would use now."""
    return _core.get_num_threads()


def machine_peak(dtype: str = "float32", threads: int | None = None, seconds: float = 0.2) -> float:
    """Measure the speed that matrix products cannot exceed on this machine, with multiply-adds between registers only.

    Benchmarks use it for "share of peak". Measure the peak in the same run as the speeds that you compare with it.

    Parameters
    ----------
    dtype : {"float32", "bfloat16"}
        Type of the factors. A level without instructions for bfloat16 multiplies in float32, so both types give the
        same there.
    threads : int, optional
        1 to 256; `get_num_threads` by default.
    seconds : float
        How long to measure, 0 to 60. The fastest of many bursts of a few milliseconds counts, since other programs can
        only slow a burst down.

    Returns
    -------
    float
        GFLOP/s of all threads together, at the active level; a multiply-add counts 2.

    Examples
    --------
    >>> import mom
    >>> mom.runtime.machine_peak(seconds=0.01) > 0.1
    True
    """
    return _core.peak_gflops(dtype, get_num_threads() if threads is None else threads, seconds)


class Bandwidth(NamedTuple):
    """What `memory_bandwidth` returns, in GB/s (1e9 bytes per second)."""

    triad: float  #: ``a[i] = b[i] + s * c[i]`` with plain stores, 12 bytes per element, as STREAM counts
    stream: float  #: the same with stores that bypass the caches, if the processor has them
    read: float  #: reading only


def memory_bandwidth(bytes: int = 1 << 27, threads: int | None = None, repeats: int = 7) -> Bandwidth:
    """Speed of this machine's memory, by STREAM's triad and by reading; the best of the repeats.

    Parameters
    ----------
    bytes : int
        Size of each of three arrays. If it is less than four times the last cache, the cache is measured instead.
    threads : int, optional
        1 to 256; `get_num_threads` by default.
    repeats : int

    Returns
    -------
    Bandwidth

    Notes
    -----
    With plain stores most processors read a cache line before they write it, which STREAM does not count: up to 16
    bytes per element move. With stores that bypass the caches (x86) it is 12.

    References
    ----------
    McCalpin, Memory bandwidth and machine balance in current high performance computers, 1995.

    Examples
    --------
    >>> import mom
    >>> mom.runtime.memory_bandwidth(1 << 20, repeats=1).triad > 0.1
    True
    """
    return Bandwidth(*_core.memory_bandwidth(bytes, get_num_threads() if threads is None else threads, repeats))


def memory_limit() -> int | None:
    """Largest number of bytes that this process can use: the machine's memory, or less if a control group limits it.

    Returns
    -------
    int or None
        None if the system does not say.

    Examples
    --------
    >>> import mom
    >>> limit = mom.runtime.memory_limit()
    >>> limit is None or limit > 1e6
    True
    """
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _group_files():
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            limits.append(int(file.read_text(encoding="ascii")))
    return min((limit for limit in limits if limit > 0), default=None)


def _group_files() -> list[Path]:
    """Files with the memory limits of this process's control groups (version 1 and 2), up to the root group."""
    files = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = Path("/sys/fs/cgroup", "memory" if controllers else "")
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            own = root / group.strip("/")
            files += [folder / name for folder in (own, *own.parents) if root in (folder, *folder.parents)]
    return files
