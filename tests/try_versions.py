"""Installs the package with the oldest and the newest versions that ``pyproject.toml`` allows, and runs tests.

    python tests/try_versions.py tests/api tests/data/test_tokenizer.py

Three environments are made: the oldest Python with the lowest version of every package the library needs, the oldest
Python with the newest versions, and the newest Python with the newest versions. The interpreters are ``python3.N`` on
the ``PATH``. The variables ``OLDEST_PYTHON`` and ``NEWEST_PYTHON`` name others. A table at the end has what was
installed and how the tests went; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: What the tests themselves need; tests that need more are skipped.
FOR_TESTS = ("pytest", "hypothesis", "safetensors")
#: Minor versions of Python 3 that are looked for, newest first.
MINORS = range(30, 9, -1)


class Trial(NamedTuple):
    """A kind of environment."""

    python: str
    lowest: bool


def section(name: str) -> str:
    """The list ``name = [...]`` of ``pyproject.toml``. Python 3.10 has no reader of TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"pyproject.toml: has no list {name}")
    return found[1]


def lowest_versions() -> list[str]:
    """The dependencies with their lowest versions, as constraints for pip: ``numpy==1.24``."""
    bounds = re.findall(r'"([\w-]+)>=([\w.]+)([^"]*)"', section("dependencies"))
    return [f"{name}=={version}{marker}" for name, version, marker in bounds]


def runs(command: str) -> bool:
    """Whether there is such an interpreter. A command on the ``PATH`` may only stand for one that is not installed."""
    return shutil.which(command) is not None and not subprocess.run([command, "-c", ""], capture_output=True).returncode


def interpreters() -> tuple[str, str]:
    """Commands of the oldest Python that is allowed and of the newest one that is there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'^requires-python = ">=(3\.\d+)"', text, re.MULTILINE)
    if oldest is None:
        sys.exit('pyproject.toml: requires-python: expected ">=3.N"')
    there = [command for command in (f"python3.{n}" for n in MINORS) if runs(command)]
    old = os.environ.get("OLDEST_PYTHON") or f"python{oldest[1]}"
    new = os.environ.get("NEWEST_PYTHON") or (there[0] if there else old)
    for command, variable in ((old, "OLDEST_PYTHON"), (new, "NEWEST_PYTHON")):
        if not runs(command):
            sys.exit(f"{variable}: no {command} that runs; name an interpreter, as in {variable}=/usr/bin/python3.10")
    return old, new


def try_one(trial: Trial, folder: Path, tests: list[str]) -> tuple[str, str]:
    """Install and test. Returns the versions that were installed, and how it went."""
    python = folder / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check")
    constraints = folder.with_suffix(".txt")
    constraints.write_text("\n".join(lowest_versions() if trial.lowest else []) + "\n")
    subprocess.run([trial.python, "-m", "venv", "--clear", folder], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", *quiet, "-c", constraints, str(ROOT), *FOR_TESTS], cwd=folder
    )
    needed = re.findall(r'"([\w-]+)', section("dependencies"))
    freeze = subprocess.run([python, "-m", "pip", "freeze"], text=True, stdout=subprocess.PIPE, check=True).stdout
    versions = " ".join(line for line in freeze.split() if line.partition("==")[0] in needed)
    if installed.returncode:
        return versions, "could not be installed"
    last = ""
    run = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(run, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            sys.stdout.write(line)
            last = line.strip() or last
    return versions, last if process.returncode == 0 else f"FAILED: {last}"


def main() -> int:
    old, new = interpreters()
    tests = sys.argv[1:] or ["tests"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate((Trial(old, True), Trial(old, False), Trial(new, False))):
            kind = "lowest" if trial.lowest else "newest"
            print(f"--- {trial.python}, {kind} versions", flush=True)
            rows.append((f"{trial.python}, {kind}", *try_one(trial, Path(folder) / f"env-{number}", tests)))
    for row in rows:
        print(*row, sep="\n    ")
    return int(any("FAILED" in row[2] or "could not" in row[2] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
