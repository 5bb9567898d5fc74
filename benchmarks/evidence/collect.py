"""Copies the results of a sweep, without weights, paths and records of single steps.

    python benchmarks/evidence/collect.py runs/central benchmarks/evidence/results/central

The copy is the folder of a sweep: `mom.sweep.table` and `mom.sweep.compare` read it, and ``mom sweep GRID --dir COPY``
runs what is missing. Trials that are not done are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mom.files.folders import write_file, write_json
from mom.sweep.trial import evaluations_in

#: Where the commands of docs/evidence.md put the data.
DATA = {"data": "data/train", "val_data": "data/valid/train.bin"}


def collect(source: Path, target: Path) -> int:
    """Copy all trials that are done, phases one included. Returns their number."""
    found = [path.parent for path in sorted(source.rglob("done.json"))]
    for trial in found:
        own = target / trial.relative_to(source)
        own.mkdir(parents=True, exist_ok=True)
        config = json.loads((trial / "config.json").read_text(encoding="utf-8"))
        write_json(own / "config.json", {**config, "where": DATA})
        log = "".join(json.dumps(record) + "\n" for record in evaluations_in(trial))
        write_file(own / "log.jsonl", log.encode())
        write_file(own / "done.json", (trial / "done.json").read_bytes())
    return len(found)


if __name__ == "__main__":
    print(f"{collect(Path(sys.argv[1]), Path(sys.argv[2]))} trials")
