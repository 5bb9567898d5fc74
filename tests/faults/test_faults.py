"""A sample of `make faults`: faults at some calls to the system, some killed saves, some failing allocations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=HERE.parents[1])


@pytest.fixture(scope="module", autouse=True)
def needs_the_shim() -> None:
    done = faults("--seconds", "0", "--part", "saves")
    if "skipped" in done.stdout:
        pytest.skip(done.stdout.strip())


@pytest.mark.slow
def test_nothing_is_lost_by_a_sample_of_faults() -> None:
    done = faults("--seconds", "60", "--cases", "25", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: seed 1" in done.stdout and "failed: 0" in done.stdout
    assert "saves: 25 killed at random moments" in done.stdout
    for part in ("kills", "errors"):
        left = re.search(rf"^  {part} left: (.*)$", done.stdout, re.MULTILINE)
        assert left is not None, done.stdout
        assert sum(map(int, re.findall(r" (\d+)(?:,|$)", left[1]))) >= 20, left[0]
    assert all(int(count) > 0 for count in re.findall(r"(?:train|finetune|generate|load) (\d+)", done.stdout))


def test_a_case_can_be_repeated() -> None:
    done = faults("--case", "save/over error-ENOSPC@40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 calls met" in done.stdout and "No space left on device" in done.stdout
