"""Level and threads: choosing them, the environment variables, forks, and what `cpu_info` says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mom
from mom import _core, ops


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MOM_CPU", "OMP_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )


def test_cpu_info_describes_the_active_level(kernel_level: str) -> None:
    info = mom.cpu_info()
    assert info["level"] == kernel_level
    float32_level = {"avx512bf16": "avx512", "amx": "avx512", "neonbf16": "neon"}.get(kernel_level, kernel_level)
    assert info["gemm"].startswith("mom_gemm_f32_") and info["gemm"].endswith(float32_level)
    own = kernel_level in ("avx512bf16", "amx", "neonbf16")
    assert info["gemm_bf16"].removesuffix(", emulated").endswith(kernel_level if own else "widened to float32")
    assert not own or info["features"][kernel_level] or info["gemm_bf16"].endswith(", emulated")
    assert info["levels"][0] == "baseline"
    assert info["threads"] == mom.get_num_threads()
    assert info["cpus"] >= 1


def test_use_level_goes_back_after_an_exception() -> None:
    before = mom.cpu_info()["level"]
    with pytest.raises(KeyError), ops.use_level("baseline"):
        assert mom.cpu_info()["level"] == "baseline"
        raise KeyError
    assert mom.cpu_info()["level"] == before


def test_unknown_level_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^level: 'sse9', expected one of this machine's levels \['baseline'"):
        mom.set_cpu_level("sse9")
    with pytest.raises(TypeError, match="level: expected str, got int"):
        mom.set_cpu_level(3)  # type: ignore[arg-type]


def test_environment_chooses_the_level() -> None:
    for level in mom.cpu_info()["levels"]:
        done = run_python("import mom; print(mom.cpu_info()['level'])", MOM_CPU=level)
        assert done.stdout.strip() == level, done.stderr


@pytest.mark.parametrize("level", ["sse9", "avx2", "avx512", "avx512bf16", "amx", "neon", "neonbf16"])
def test_level_in_the_environment_that_this_machine_lacks_fails_the_import(level: str) -> None:
    if level in mom.cpu_info()["levels"]:
        pytest.skip("this machine has it")
    done = run_python("import mom", MOM_CPU=level)
    assert done.returncode != 0
    assert f"ImportError: MOM_CPU: '{level}', expected one of this machine's levels ['baseline'" in done.stderr


def test_environment_chooses_the_threads() -> None:
    code = "import mom; print(mom.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS="3").stdout.strip() == "3"
    assert run_python(code, OMP_NUM_THREADS="2,1").stdout.strip() == "2"
    assert run_python(code, OMP_NUM_THREADS="").stdout.strip() == str(mom.cpu_info()["cpus"])


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", 0), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1 100000", 1),
        ("300001 100000", 4), ("-1 100000", 0), ("0 100000", 0), ("100000 0", 0), ("", 0), ("100000", 0), ("a b", 0),
        (f"{2**62} 1", 2**31 - 1),
    ],
)  # fmt: skip
def test_quota_of_a_control_group_is_rounded_up(limit: str, cpus: int) -> None:
    assert _core.quota_cpus(limit) == cpus


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        # Version 2: the own group, one above it, a container that sees its limit at the root, no limit.
        ("0::/a/b\n", {"a/b/cpu.max": "250000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n", "cpu.max": "max 1\n"}, 2),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/elsewhere/c1\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, 0),
        # Version 1, with the controller's own folder or that of a list of controllers, among other controllers.
        ("3:memory:/x\n2:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "15000", "cpu/a/cpu.cfs_period_us": "10000"}, 2),
        ("2:cpuacct,cpu:/\n", {"cpuacct,cpu/cpu.cfs_quota_us": "-1", "cpuacct,cpu/cpu.cfs_period_us": "100000"}, 0),
        ("2:cpuacct,cpu:/o\n", {"cpuacct,cpu/cpu.cfs_quota_us": "50000", "cpuacct,cpu/cpu.cfs_period_us": "10000"}, 5),
        ("2:cpuset,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "15000", "cpu/a/cpu.cfs_period_us": "10000"}, 0),
        ("nonsense\n\n", {}, 0),
        ("0::/" + "a/" * 2040, {"cpu.max": "100000 100000\n"}, 0),  # the folder's name would be too long
        (None, {"cpu.max": "100000 100000\n"}, 0),
    ],
)
def test_limits_of_control_groups_are_found(
    groups: str | None, files: dict[str, str], cpus: int, tmp_path: Path
) -> None:
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert _core.cgroup_cpus(str(tmp_path)) == cpus


MANY_CPUS = """
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <string.h>
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    (void)pid;
    if (size < 256) {
        errno = EINVAL;
        return -1;
    }
    memset(set, 0, size);
    memset(set, 0xff, 250);
    return 0;
}
"""
NO_AFFINITY = """
#define _GNU_SOURCE
#include <sched.h>
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    (void)pid, (void)size, (void)set;
    return -1;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or "LD_PRELOAD" in os.environ, reason="needs Linux")
@pytest.mark.parametrize(
    ("source", "scheduled"), [(MANY_CPUS, 2000), (NO_AFFINITY, os.cpu_count())], ids=["many", "unknown"]
)
def test_cpus_that_the_scheduler_allows(source: str, scheduled: int, tmp_path: Path) -> None:
    """More than 1,024; and if the system does not tell, all that are there."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    (tmp_path / "scheduler.c").write_text(source)
    library = tmp_path / "scheduler.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "scheduler.c"], check=True, timeout=60)
    done = run_python("import mom; print(mom.cpu_info()['cpus'])", LD_PRELOAD=str(library))
    assert done.stdout.strip() == str(min(_core.cgroup_cpus("") or scheduled, scheduled)), done.stderr


@pytest.mark.parametrize("n", [0, -1, 257])
def test_number_of_threads_is_checked(n: int) -> None:
    with pytest.raises(ValueError, match=f"^n: {n} threads, expected 1 to 256$"):
        mom.set_num_threads(n)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(not mom.cpu_info()["openmp"], reason="built without threads")
def test_forked_child_runs_with_one_thread() -> None:
    code = """
import os, numpy as np, mom
mom.set_num_threads(2)
a = np.ones((300, 300), dtype=np.float32)
before = mom.ops.gemm(a, a)
pid = os.fork()
if pid == 0:
    ok = mom.get_num_threads() == 1 and np.array_equal(mom.ops.gemm(a, a), before)
    mom.set_num_threads(1)
    try:
        mom.set_num_threads(2)
    except RuntimeError as error:
        ok = ok and "forked" in str(error)
    else:
        ok = False
    os._exit(0 if ok else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert mom.get_num_threads() == 2
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_calls_from_several_python_threads_agree() -> None:
    from concurrent.futures import ThreadPoolExecutor

    a = np.random.default_rng(0).standard_normal((120, 90), dtype=np.float32)
    expected = ops.gemm(a, a, transpose_b=True).tobytes()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: ops.gemm(a, a, transpose_b=True).tobytes(), range(30)))
    assert set(results) == {expected}
