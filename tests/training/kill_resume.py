"""Kill training runs at random moments, resume them, and compare the bits with those of a run that was never stopped.

    python tests/training/kill_resume.py --steps 200 --repeats 3

Each run is a process of its own that is ended with SIGKILL. Exit status 0 if all results are byte-equal.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import small_run

import mom


def start(data: Path, run_dir: Path, steps: int, resume: bool) -> subprocess.Popen[str]:
    """A process that trains and prints a line after each step."""
    command = [sys.executable, __file__, "--worker", str(data), str(run_dir), "--steps", str(steps)]
    return subprocess.Popen(command + ["--resume"] * resume, stdout=subprocess.PIPE, text=True)


def work(data: Path, run_dir: Path, steps: int, resume: bool) -> None:
    """The process's own part. With a checkpoint to resume from, the model's own weights do not matter: they differ."""
    settings = {**small_run.SETTINGS, "steps": steps, "save_every": 7, "eval_every": 10}
    print("ready", flush=True)
    report = small_run.Call(lambda record: print(record["step"], flush=True))
    seed = int(any(run_dir.glob("step-*")))
    with contextlib.suppress(mom.TrainingInterrupted):
        mom.train(
            small_run.model(seed), data, run_dir=run_dir, resume=resume, callbacks=[report], progress=False, **settings
        )


def digest(run_dir: Path, steps: int) -> str:
    """Hash of weights and optimizer state after the last step."""
    folder = run_dir / f"step-{steps:08d}"
    names = ("model.safetensors", "optimizer.safetensors")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def finish(process: subprocess.Popen[str]) -> int:
    """Let a run end; the number of steps it did."""
    output, _ = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(f"a training process ended with status {process.returncode}")
    return len(output.splitlines()) - 1


def stop(process: subprocess.Popen[str], step: int, delay: float, number: int = signal.SIGKILL) -> int:
    """Send a signal `delay` seconds after the given step; the last step that was reported."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == str(step):
            break
    time.sleep(delay)
    process.send_signal(number)
    rest = process.stdout.read().split()
    process.wait(timeout=60)
    return int(rest[-1]) if rest else step


def kill_and_resume(folder: Path, steps: int, repeats: int, seed: int) -> list[str]:
    """Run the comparison; returns the digests, that of the undisturbed run first."""
    rng = random.Random(seed)
    data = small_run.write_data(folder / "data")
    finish(start(data, folder / "whole", steps, resume=False))
    digests = [digest(folder / "whole", steps)]
    for number in range(repeats):
        run_dir = folder / f"killed-{number}"
        step, delay = rng.randint(1, max(1, steps * 3 // 4)), rng.uniform(0.0, 0.01)
        process = start(data, run_dir, steps, resume=False)
        last = stop(process, step, delay)
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the run ended by itself (status {process.returncode}) before it could be killed")
        left = ", ".join(sorted(path.name for path in run_dir.iterdir() if path.is_dir())) or "no checkpoint"
        redone = finish(start(data, run_dir, steps, resume=True))
        digests.append(digest(run_dir, steps))
        same = "byte-equal" if digests[-1] == digests[0] else "DIFFERENT"
        print(f"killed after step {last} of {steps} with {left}; resumed for {redone} steps: {same}", flush=True)
    return digests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: a new one each time)")
    parser.add_argument("--worker", nargs=2, type=Path, metavar=("DATA", "RUN_DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker, steps=arguments.steps, resume=arguments.resume)
        return 0
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        digests = kill_and_resume(Path(folder), arguments.steps, arguments.repeats, seed)
    return 0 if len(set(digests)) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
