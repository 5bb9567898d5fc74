"""Kill a sweep with SIGKILL at random moments, run it to its end, and compare it with an undisturbed one.

    python tests/sweep/kill_sweep.py --kills 20

Some kills end the sweep alone, others also all processes of its trials. Exit status 0 if the tables and the hashes of
all final weights are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import small_grid

import mom

VARIANTS = """
measure = ["whole_val_loss", "routes"]
[[variant]]
name = "two choices"
[[variant]]
name = "one choice"
routing_top_k = 1
[[variant]]
name = "two phases"
phase_one_steps = 60
"""


def write_grid(folder: Path, data: Path, steps: int, seeds: int) -> Path:
    """A grid file with three variants, one of which has two phases."""
    base = {**small_grid.BASE, "data": str(data), "steps": steps, "save_every": 10, "eval_every": 20}
    lines = [f"{name} = {json.dumps(value)}" for name, value in base.items()]
    measure, _, variants = VARIANTS.partition("[[variant]]")
    text = "\n".join([measure, "[base]", *lines, "[grid]", f"seed = {list(range(seeds))}", f"[[variant]]{variants}"])
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"


def start(grid: Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mom", "sweep", str(grid), "--dir", str(runs), "--processes", "2"]
    return subprocess.Popen([*command, "--threads", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children_of(process: int) -> list[int]:
    """Processes that a process has started, where the system tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == process:
            found.append(int(path.parent.name))
    return found


def kill(process: subprocess.Popen[str], trials_too: bool) -> int:
    """Kill a sweep, and its trials if that is asked for. Returns how many processes were killed."""
    targets = [process.pid, *(children_of(process.pid) if trials_too else [])]
    for number in targets:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    return len(targets)


def weights(runs: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["parameters_sha256"] for path in runs.glob("*/done.json")}


def finish(grid: Path, runs: Path) -> str:
    process = start(grid, runs)
    said, _ = process.communicate(timeout=1200)
    if process.returncode != 0:
        raise RuntimeError(f"the sweep ended with status {process.returncode}: {said}")
    return said


def kill_and_compare(
    folder: Path, kills: int, steps: int, seeds: int, seed: int, longest: float
) -> bool:
    rng = random.Random(seed)
    grid = write_grid(folder, small_grid.write_data(folder / "data"), steps, seeds)
    began = time.monotonic()
    finish(grid, folder / "whole")
    print(f"undisturbed: {time.monotonic() - began:.1f} s", flush=True)
    done = 0
    for number in range(kills):
        process = start(grid, folder / "killed")
        time.sleep(rng.uniform(0.3, longest))
        ended = process.poll() is not None
        count = kill(process, trials_too=number % 2 == 1)
        before, done = done, len(weights(folder / "killed"))
        early = " (it had ended)" if ended else ""
        print(f"kill {number + 1}: {count} processes, {done} trials done{early}", flush=True)
        if before == 3 * seeds:
            print("all trials are done before the last kills; raise --steps")
            return False
    finish(grid, folder / "killed")
    tables = [mom.sweep.table(folder / name) for name in ("whole", "killed")]
    print(tables[0].to_string())
    left = [str(path) for path in (folder / "killed").rglob("step-*")]
    same = tables[0].equals(tables[1]) and weights(folder / "whole") == weights(folder / "killed") and not left
    print("equal tables, equal bits of all weights" if same else f"DIFFERENT:\n{tables[1].to_string()}\n{left}")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--longest", type=float, default=6.0, help="seconds from a start to its kill")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: a new one each time)")
    a = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if a.seed is None else a.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        return 0 if kill_and_compare(Path(folder), a.kills, a.steps, a.seeds, seed, a.longest) else 1


if __name__ == "__main__":
    sys.exit(main())
