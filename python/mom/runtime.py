"""Threads and instruction-set level of this process."""

from __future__ import annotations

from typing import TypedDict

from . import _core

__all__ = ["CpuInfo", "cpu_info", "get_num_threads", "set_cpu_level", "set_num_threads"]


class CpuInfo(TypedDict):
    """What `cpu_info` returns."""

    level: str  #: active level
    levels: list[str]  #: levels this machine can run, best last
    gemm: str  #: matrix micro-kernel of the active level
    openmp: bool  #: built with threads
    threads: int  #: as `get_num_threads`
    cpus: int  #: CPUs this process may use
    features: dict[str, bool]  #: what the processor and the operating system offer
    compiler: str  #: that built the core


def cpu_info() -> CpuInfo:
    """The active kernels, what else this machine could run, and the number of threads.

    Returns
    -------
    CpuInfo
        A dictionary with the keys ``level``, ``levels``, ``gemm``, ``openmp``, ``threads``, ``cpus``,
        ``features`` and ``compiler``.

    Examples
    --------
    >>> import mom
    >>> mom.cpu_info()["level"] in mom.cpu_info()["levels"]
    True
    """
    info: CpuInfo = _core.cpu_info()
    return info


def set_cpu_level(level: str) -> str:
    """Choose the instruction-set level of all later calls in this process.

    The environment variable ``MOM_CPU`` does the same when the package is imported.

    Parameters
    ----------
    level : str
        One of ``cpu_info()["levels"]``: ``"baseline"``, ``"avx2"``, ``"avx512"``, ``"avx512bf16"``.

    Returns
    -------
    str
        The level before.

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

    The default is the environment variable ``OMP_NUM_THREADS``, else the CPUs the process may use.
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
    """Number of threads that a call made now would use."""
    return _core.get_num_threads()
