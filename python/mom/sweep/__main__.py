"""The process of a trial: ``python -m mom.sweep``, started by `mom.sweep.run`.

The first line of standard input is the trial as JSON. Messages, one JSON object a line, go to standard output. When
standard input ends, the sweep is gone, and the process ends as after SIGTERM: with a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from .._json import from_words, to_json
from ..errors import TrainingInterrupted
from ..files.locks import FolderInUse
from .trial import Trial
from .work import run_trial


def main() -> int:
    """Run the trial that standard input describes. Returns the exit status."""
    job = from_words(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    trial, folder = Trial.from_dict(job["trial"]), Path(job["folder"])
    os.dup2(2, 1)  # whatever libraries print

    def tell(values: dict[str, Any]) -> None:
        try:
            output.write(to_json(values, indent=None, ascii=True))
            output.flush()
        except OSError:
            pass  # the sweep is gone; see _end_with_the_sweep

    tell({"what": trial.label})
    try:
        status = run_trial(folder, trial, job["keep_models"], job["measure"], job["retry_failed"], tell)
        tell({"end": status})
    except FolderInUse as error:
        tell({"end": "locked", "folder": str(error.folder)})
    except TrainingInterrupted as stop:
        tell({"end": "interrupted"})
        return 128 + signal.Signals[stop.signal]
    return 0


def _end_with_the_sweep() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
