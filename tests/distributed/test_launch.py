"""Which launcher is used, with which flags, and what happens when a run fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mom
from mom.cli import main, with_underscores
from mom.distributed import launcher
from mom.distributed.launcher import Launch, find_mpiexec, launcher_command, supervise

MPICH = "MPICH Version:      5.0.2"
HYDRA = "HYDRA build details:\n    Version: 5.0.2"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI"
PRTERUN = "mpiexec (Open MPI) 5.0.11"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make a machine with an MPI library, and with launchers in folders of PATH."""

    def make(library: str, **launchers: str) -> None:
        for folder, version in launchers.items():
            program(tmp_path / folder / "mpiexec", f"echo '{version}'")
        monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / folder) for folder in launchers))
        said_by = launcher._said_by
        monkeypatch.setattr(
            launcher, "_said_by", lambda words: library if words[0] == sys.executable else said_by(["/bin/sh", *words])
        )
        monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
        for name in ("SLURM_JOB_ID", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)

    return make


def test_the_launcher_of_the_library_is_found(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(MPICH, a=PRTERUN, b=HYDRA)
    assert find_mpiexec() == (str(tmp_path / "b" / "mpiexec"), "MPICH")


def test_one_beside_python_comes_first(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(OPEN_MPI, a=PRTERUN)
    program(tmp_path / "own" / "mpiexec", f"echo '{PRTERUN}'")
    assert find_mpiexec() == (str(tmp_path / "own" / "mpiexec"), "Open MPI")


def test_without_one_the_message_says_what_was_found(machine: Callable[..., None], tmp_path: Path) -> None:
    machine(MPICH, a=PRTERUN)
    with pytest.raises(mom.ConfigError, match=f"mpi4py uses MPICH, .* not in PATH .found: {tmp_path}/a/mpiexec.$"):
        find_mpiexec()


def test_without_mpi4py_the_message_says_what_to_install(machine: Callable[..., None]) -> None:
    machine("")
    with pytest.raises(ImportError, match="pip install mpi4py mpich"):
        find_mpiexec()


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("hosts", [(), ("a", "b")])
@pytest.mark.parametrize("family", ["MPICH", "Open MPI"])
def test_flags(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, family: str, hosts: tuple[str, ...], fits: bool
) -> None:
    machine(MPICH if family == "MPICH" else OPEN_MPI, a=HYDRA if family == "MPICH" else PRTERUN)
    monkeypatch.setattr(launcher, "cpu_info", lambda: {"cpus": 8})
    words, environment = launcher_command(Launch(4, 2 if fits else 5, hosts), ["python", "x.py"])
    text = " ".join(words)
    assert words[1:3] == ["-n", "4"] and words[-2:] == ["python", "x.py"]
    assert environment == {"OMP_NUM_THREADS": "2" if fits else "5"}
    binding = {("MPICH", True): "-bind-to hwthread:2", ("Open MPI", True): "--map-by slot:PE=2:HWTCPUS",
               ("Open MPI", False): "--oversubscribe --bind-to none"}  # fmt: skip
    assert binding.get((family, fits), "-n 4") in text and ("bind-to hwthread" in text) == fits
    where = {"MPICH": "-hosts a,b -ppn 2", "Open MPI": "--host a:2,b:2"}[family]
    assert (where in text) == bool(hosts)


def test_in_a_slurm_job(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(MPICH, a=HYDRA)
    program(tmp_path / "a" / "srun", "true")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    words, environment = launcher_command(Launch(8, 4, ("n1", "n2")), ["python", "x.py"])
    assert words == [
        "srun", "--ntasks=8", "--cpus-per-task=4", "--kill-on-bad-exit=1", "--nodelist=n1,n2", "--ntasks-per-node=4",
        "--cpu-bind=cores", "python", "x.py",
    ]  # fmt: skip
    assert environment == {"OMP_NUM_THREADS": "4"}


# ---------------------------------------------------------------------- restarts
def attempts(*statuses: int) -> tuple[list[tuple[int, bool]], Callable[[int, bool], subprocess.Popen[bytes]]]:
    """A list of attempts, and a function that starts them; each ends with the next status."""
    made: list[tuple[int, bool]] = []

    def start(ranks: int, again: bool) -> subprocess.Popen[bytes]:
        made.append((ranks, again))
        return subprocess.Popen([sys.executable, "-c", f"import sys; sys.exit({statuses[len(made) - 1]})"])

    return made, start


def test_a_run_that_fails_is_started_again(capfd: pytest.CaptureFixture[str]) -> None:
    made, start = attempts(9, 1, 0)
    assert supervise(start, 4, 5, 4) == 0
    assert made == [(4, False), (4, True), (4, True)]
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "mom launch: the run ended with status 9; restart 1 of 5 on 4 ranks" and len(said) == 2


def test_but_only_so_often() -> None:
    made, start = attempts(1, 2, 3)
    assert supervise(start, 2, 2, 2) == 3 and len(made) == 3


def test_after_two_failures_with_half_the_ranks() -> None:
    made, start = attempts(1, 1, 1, 1, 1, 0)
    assert supervise(start, 8, 9, 3) == 0
    assert [ranks for ranks, _ in made] == [8, 8, 4, 4, 3, 3]


@pytest.mark.parametrize("status", [130, 143, 129, 138])
def test_a_run_that_a_signal_ended_is_not(status: int) -> None:
    made, start = attempts(status)
    assert supervise(start, 2, 5, 2) == status and len(made) == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_reach_the_ranks_as_one_that_launchers_pass_on(name: str, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, time\n"
        f"signal.signal(signal.SIGUSR1, lambda *_: (pathlib.Path('{tmp_path}/got').touch(), os._exit(138)))\n"
        f"os.kill({os.getpid()}, signal.{name})\n"
        "time.sleep(30)"
    )
    before = signal.getsignal(getattr(signal, name))
    status = supervise(lambda *_: subprocess.Popen([sys.executable, "-c", code], start_new_session=True), 2, 3, 2)
    assert status == 128 + getattr(signal, name) and (tmp_path / "got").exists()
    assert signal.getsignal(getattr(signal, name)) == before


# ---------------------------------------------------------------------- the command
def test_flags_of_a_script_are_left_alone() -> None:
    words = ["launch", "--max-restarts", "2", "my-script.py", "--some-flag", "a-b"]
    assert with_underscores(words) == ["launch", "--max_restarts", "2", "my-script.py", "--some-flag", "a-b"]
    words = ["launch", "-n", "2", "train", "--run-dir", "a-b"]
    assert with_underscores(words) == ["launch", "-n", "2", "train", "--run_dir", "a-b"]


@pytest.mark.parametrize(
    "words, message",
    [(["-n", "0", "train"], "ranks: 0 is less than 1"), (["--max_restarts", "-1", "train"], "max_restarts: -1"),
     (["-n", "2", "--min_ranks", "0", "train"], "min_ranks: 0 is less than 1"),
     (["-n", "2", "--min_ranks", "3", "train"], "min_ranks: 3 is more than the 2 ranks"),
     (["--threads", "0", "train"], "threads: 0 is less than 1"), (["tarin"], "program: 'tarin' is no command")],
)  # fmt: skip
def test_wrong_values(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", *words]) == 1
    assert message in capsys.readouterr().err
