"""Level and threads: choosing them, the environment variables, forks, and what `cpu_info` says."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import mom
from mom import ops


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MOM_CPU", "OMP_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )


def test_cpu_info_describes_the_active_level(kernel_level: str) -> None:
    info = mom.cpu_info()
    assert info["level"] == kernel_level
    float32_level = "avx512" if kernel_level in ("avx512bf16", "amx") else kernel_level
    assert info["gemm"].startswith("mom_gemm_f32_") and info["gemm"].endswith(float32_level)
    own = kernel_level in ("avx512bf16", "amx")
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


@pytest.mark.parametrize("level", ["sse9", "avx2", "avx512", "avx512bf16", "amx"])
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
