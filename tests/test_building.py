"""What a build says when something is missing, and which options of the user's reach the compiler."""

from __future__ import annotations

import os
import re
import runpy
import shutil
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
    kept = {"-DKEPT=1", "-mmacosx-version-min=15.0"}
    build(tmp_path, CC=str(compiler), CFLAGS=f"-march=native -mavx512f -Ofast -ffast-math {' '.join(kept)}")
    options = set(told.read_text().split())
    assert kept <= options
    assert not [option for option in options - kept if option.startswith(("-m", "-Ofast", "-ffast-math"))]


def test_a_build_for_two_processors_is_refused(tmp_path: Path) -> None:
    """Files of the levels have instructions of one processor, and OpenMP libraries are for one processor, too."""
    done = build(tmp_path, CFLAGS="-arch x86_64 -arch arm64")
    assert done.returncode != 0
    assert done.stderr == (
        "ARCHFLAGS: mom cannot be built for several processors at once (arm64, x86_64), since each gets instructions "
        "of its own. Build once for each, such as with ARCHFLAGS='-arch arm64'.\n"
    )


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="git says which files there are")
def test_the_source_distribution_has_all_files(tmp_path: Path) -> None:
    """But for those that only concern the repository and its hosts."""
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    distributed = set((tmp_path / "mom.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {name for name in tracked.splitlines() if not name.startswith((".ci/", ".github/"))}
    assert "mom_c/flags.mk" in files
    assert sorted(files - distributed) == []
    assert [name for name in distributed if name.endswith((".so", ".pyc", ".o"))] == []


def test_the_tests_of_wheels_exist() -> None:
    """Those of hosted builds are named in `pyproject.toml`, where a missing folder would show only in a release."""
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.cibuildwheel]")[2]
    names = re.findall(r"\{project\}/([\w/.]+)", table)
    assert names and [name for name in names if not (ROOT / name).exists()] == []


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
