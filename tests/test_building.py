"""What a build says when something is missing, and which options of the user's reach the compiler."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of `setup.py`, which builds nothing here."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return runpy.run_path("setup.py")


@pytest.mark.parametrize(
    ("known", "levels"),
    [
        ({"x86"}, ["baseline", "avx2", "avx512"]),
        ({"x86", "avx512bf16", "amx"}, ["baseline", "avx2", "avx512", "avx512bf16", "amx"]),
        ({"aarch64"}, ["baseline", "neon"]),
        ({"aarch64", "neonbf16"}, ["baseline", "neon", "neonbf16"]),
        (set(), ["baseline"]),
    ],
)
def test_levels_are_those_of_the_architecture_that_the_compiler_knows(
    known: set[str], levels: list[str], script: dict[str, Any]
) -> None:
    assert script["levels_to_build"](lambda feature: feature in known) == levels
    sources = {path.stem for path in (ROOT / "mom_c/kernels").glob("*.c")}
    assert sources >= {f"{kind}_{level}" for level in levels for kind in ("level", "gemm_ukr")}


def with_libomp(folder: Path) -> str:
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "omp.h").touch()
    return str(folder)


def test_libomp_is_found_in_homebrew_and_conda_on_macos(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: Callable[..., list[tuple[list[str], list[str]]]] = script["openmp_choices"]
    brew, conda, prefix = (with_libomp(tmp_path / name) for name in ("opt/libomp", "conda", "prefix"))
    program = tmp_path / "bin/brew"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$*" = "--prefix libomp" ] && echo {brew}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    plain = (["-fopenmp"], ["-fopenmp"])

    def with_library(folder: str) -> tuple[list[str], list[str]]:
        library = f"{folder}/lib"
        compiling = ["-Xpreprocessor", "-fopenmp", f"-I{folder}/include"]
        return compiling, [f"-L{library}", f"-Wl,-rpath,{library}", "-lomp"]

    monkeypatch.setenv("PATH", str(program.parent))
    assert choices("linux", {"CONDA_PREFIX": conda}, prefix) == [plain]
    found = choices("darwin", {"CONDA_PREFIX": conda}, prefix)
    assert found[0] == plain
    assert [choice for choice in found[1:] if str(tmp_path) in choice[0][2]] == [
        with_library(brew), with_library(conda), with_library(prefix),
    ]  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert with_library(brew) not in choices("darwin", {}, str(tmp_path / "elsewhere"))
