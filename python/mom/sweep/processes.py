"""The processes of trials: starting them, hearing them, stopping them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._json import to_json
from .trial import FAILED, MESSAGES, Trial

__all__ = ["Job", "Process"]

#: What a process says: the process, and a message, or None when it has ended.
Said = tuple["Process", "dict[str, Any] | None"]


class Job:
    """What all trials of a sweep have in common.

    Parameters
    ----------
    folder : Path
    threads : int
        Of each process.
    keep_models, measure, retry_failed
        See `mom.sweep.work.run_trial`.
    """

    def __init__(
        self, folder: Path, threads: int, keep_models: bool, measure: Sequence[str], retry_failed: bool
    ) -> None:
        self.folder, self.threads, self.keep_models = folder, threads, keep_models
        self.measure, self.retry_failed = list(measure), retry_failed

    def describe(self, trial: Trial) -> str:
        """A line for the process of a trial."""
        values = {
            "folder": str(self.folder), "trial": trial.to_dict(), "keep_models": self.keep_models,
            "measure": self.measure, "retry_failed": self.retry_failed,
        }  # fmt: skip
        return to_json(values, indent=None, words=True, ascii=True)


class Process:
    """A Python process that runs one trial.

    The number of threads is in its environment before Python starts. It has a session of its own, so Ctrl-C in a
    terminal reaches the sweep alone, which then stops all processes once.

    Parameters
    ----------
    job : Job
    trial : Trial
    place : int
        Which of the processes that run side by side it is.
    said : queue
        Gets what the process says.

    Attributes
    ----------
    end : dict
        The last message, which has ``end``. Empty if the process died before it could say that.
    """

    def __init__(self, job: Job, trial: Trial, place: int, said: queue.Queue[Said]) -> None:
        self.trial, self.place, self.end = trial, place, dict[str, Any]()
        package = str(Path(__file__).resolve().parents[2])
        path = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": os.pathsep.join(path),
        }  # fmt: skip
        own = job.folder / trial.hash
        own.mkdir(parents=True, exist_ok=True)
        self._messages = own / MESSAGES
        with self._messages.open("wb" if (own / FAILED).exists() else "ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mom.sweep"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                stderr=messages, start_new_session=True, text=True, encoding="utf-8",
            )  # fmt: skip
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status tells
            self._process.stdin.write(job.describe(trial))
            self._process.stdin.flush()
        threading.Thread(target=self._listen, args=(said,), daemon=True).start()

    def _listen(self, said: queue.Queue[Said]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # half a line of a killed process
                message = json.loads(line)
                if "end" in message:
                    self.end = message
                said.put((self, message))
        self._process.wait()
        with contextlib.suppress(OSError):  # of a locked trial it is the file of another process
            if self.end.get("end") != "locked" and self._messages.stat().st_size == 0:
                self._messages.unlink()
        said.put((self, None))

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended the process; None if none did."""
        status = self._process.returncode
        return signal.Signals(-status).name if status is not None and status < 0 else None

    @property
    def status(self) -> int | None:
        """Exit status."""
        return self._process.returncode

    def stop(self) -> None:
        """Ask the process to save a checkpoint and to end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def leave(self) -> None:
        """Let the process end by itself, as if the sweep had been killed."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
