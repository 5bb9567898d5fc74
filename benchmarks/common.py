"""Code that several benchmarks share: facts about the machine, timing, arguments, writing results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def machine_facts() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
        flags = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
        facts["cpu"] = model.group(1) if model else None
        present = set(flags.group(1).split()) if flags else set()
        watched = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_bf16")
        facts["cpu_flags"] = [flag for flag in watched if flag in present]
    with contextlib.suppress(OSError, ValueError):
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return facts


def new_report(benchmark: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The head of a result file."""
    report: dict[str, Any] = {
        "benchmark": benchmark,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "settings": settings,
    }
    if hasattr(os, "getloadavg"):
        report["load_average_before"] = os.getloadavg()
    return report


def write_report(report: dict[str, Any], path: Path | None) -> None:
    """Write a result file, if one is wanted."""
    if path is None:
        return
    if hasattr(os, "getloadavg"):
        report["load_average_after"] = os.getloadavg()
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def seconds_of(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def best_and_median(values: Iterable[float]) -> tuple[float, float]:
    """Smallest value and median."""
    values = list(values)
    return min(values), statistics.median(values)


def at_least(least: int) -> Callable[[str], int]:
    """A type for `argparse`: an integer that is not below `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return parse


def some_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """A type for `argparse`: names from a list, separated by commas."""
    known = list(allowed)

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        if not names:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def integers(text: str) -> list[int]:
    """A type for `argparse`: positive integers, separated by commas."""
    return [at_least(1)(part) for part in text.split(",") if part]


def serve(make: Callable[[], Any], answer: Callable[[Any, str, Any], Any]) -> int:
    """A worker: says its facts, then answers requests, one JSON object per line.

    Parameters
    ----------
    make : callable
        Makes what measures, with a method ``facts``; an ImportError says that it is not available here.
    answer : callable (own, what, about)
        The answer to a request.
    """
    try:
        own = make()
    except ImportError as error:
        print(json.dumps({"unavailable": f"{sys.executable}: {error}"}), flush=True)
        return 0
    print(json.dumps({"facts": own.facts()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"answer": answer(own, request["what"], request["about"])}), flush=True)
    return 0


class Process:
    """A worker that lives as long as the benchmark, and the line to it.

    Parameters
    ----------
    script : str
        Started with ``--worker KIND --settings JSON``, upon which it calls `serve`.
    python : str
        The interpreter.
    kind : str
    settings : dict
        With ``threads``.
    """

    def __init__(self, script: str, python: str, kind: str, settings: dict[str, Any]) -> None:
        threads = str(settings["threads"])
        limits = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [python, str(Path(script).resolve()), "--worker", kind, "--settings", json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits},
        )  # fmt: skip
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"unavailable": "the worker ended; see above"}
        return answer

    def ask(self, what: str, about: Any = None) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"what": what, "about": about}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        if "answer" not in answer:
            raise SystemExit(f"{what} {about}: {answer.get('unavailable')}")
        return answer["answer"]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
