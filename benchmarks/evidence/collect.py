"""Copies the results of a sweep, without weights, paths and records of single steps.

    python benchmarks/evidence/collect.py runs/central benchmarks/evidence/results/central

The copy is the folder of a sweep: `mom.sweep.table` and `mom.sweep.compare` read it, and ``mom sweep GRID --dir COPY``
runs what is missing. Trials that are not done are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Where the commands of docs/evidence.md put the data.
DATA = {"data": "data/train", "val_data": "data/valid/train.bin"}


def collect(source: Path, target: Path) -> int:
    """Copy all trials that are done, phases one included. Returns their number."""
    found = [path.parent for path in sorted(source.rglob("done.json"))]
    for trial in found:
        own = target / trial.relative_to(source)
        own.mkdir(parents=True, exist_ok=True)
        (own / "done.json").write_bytes((trial / "done.json").read_bytes())
        config = json.loads((trial / "config.json").read_text(encoding="utf-8"))
        _write(own / "config.json", [json.dumps({**config, "where": DATA}, indent=2)])
        _write(own / "log.jsonl", [json.dumps(record) for record in _evaluations(trial / "log.jsonl")])
    return len(found)


def _evaluations(log: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["kind"] == "eval"]


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    print(f"{collect(Path(sys.argv[1]), Path(sys.argv[2]))} trials")
