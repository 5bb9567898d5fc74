"""A sample of `make faults`: faults at some calls to the system, some killed saves, some failing allocations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import shim

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(shim.why_not() is not None, reason=f"fault injection: {shim.why_not()}")


def faults(*arguments: str) -> str:
    """What the command prints. It must not find anything."""
    command = [sys.executable, str(HERE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    if "faults: skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    return done.stdout


@pytest.mark.slow
def test_nothing_is_lost_by_a_sample_of_faults() -> None:
    found = faults("--seconds", "200", "--cases", "8", "--seed", "1")
    assert "faults: seed 1" in found and "failed: 0" in found
    assert "saves: 8 killed at random moments" in found
    for part in ("kills", "errors"):
        left = re.search(rf"^  {part} left: (.*)$", found, re.MULTILINE)
        assert left is not None, found
        assert sum(map(int, re.findall(r" (\d+)(?:,|$)", left[1]))) == 8, left[0]
    assert "allocations that failed: train 2, finetune 2, generate 1, generate greedily 1, save 1, load 1" in found


def test_a_case_can_be_repeated() -> None:
    found = faults("--case", "save/over error-ENOSPC@45")
    assert "1 calls met" in found and "No space left on device" in found and "config.json" in found


def test_what_is_lost_is_found(tmp_path: Path) -> None:
    """A writer that is not careful: the folder is deleted before the new one is there, and errors are swallowed."""
    careless = tmp_path / "careless.py"
    careless.write_text(CARELESS)
    done = subprocess.run([sys.executable, str(careless), str(HERE)], capture_output=True, text=True, timeout=400)
    if "faults: skipped" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert any("kill-" in line and "the model folder is" in line for line in failed), failed
    assert any("error-" in line and "silence in" in line for line in failed), failed
    assert all("--case 'save/over " in line and "(seed 1)" in line for line in failed if "ended after" not in line)


#: A save that is not careful, under the same faults.
CARELESS = """
import contextlib, runpy, shutil, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import shim

try:
    if not shim.Shim.is_loaded():
        sys.exit(shim.run_under_shim([__file__, sys.argv[1]]))
except shim.Unusable as problem:
    print(f"faults: skipped: {problem}")
    sys.exit()

from mom.files import atomic, folders

@contextlib.contextmanager
def careless(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    with contextlib.suppress(OSError):
        yield path

folders.replacing = careless
from session import Session

session = Session(Path(__file__).parent / "home", 1, 2, "save/over")
for part in ("kills", "errors"):
    session.run(part, 100, 20)
sys.exit(session.summary())
"""
