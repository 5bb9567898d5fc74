"""What a build says when something is missing, and which options of the user's reach the compiler."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("setuptools", minversion="77")


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Begin a build of the extension in a folder of its own."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)


def test_without_a_compiler_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    done = build(tmp_path, CC="/nonexistent/cc")
    assert done.returncode != 0
    [line] = (done.stdout + done.stderr).splitlines()
    assert line.startswith("mom is built from C, and no C compiler works here (/nonexistent/cc). Install one: 'apt ")


def test_options_for_one_processor_do_not_reach_the_compiler(tmp_path: Path) -> None:
    """Files for all processors run on all, whatever CFLAGS says. This compiler only writes its options down."""
    compiler, told = tmp_path / "cc", tmp_path / "told"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {told}\nexit 1\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    build(tmp_path, CC=str(compiler), CFLAGS="-march=native -mavx512f -Ofast -ffast-math -DKEPT=1")
    options = told.read_text().split()
    assert "-DKEPT=1" in options
    assert not [option for option in options if option.startswith(("-m", "-Ofast", "-ffast-math"))]
