"""The inner loops of the micro-kernels for AArch64, as a cross-compiler translates them.

They need nearly all of the 32 vector registers. A compiler that runs out of registers stores some of them to the stack
in every step. The results stay right but take longer, which no other test would notice.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER, OBJDUMP = (shutil.which(f"aarch64-linux-gnu-{tool}") for tool in ("gcc", "objdump"))
pytestmark = pytest.mark.skipif(
    not COMPILER or not OBJDUMP, reason="no cross-compiler: apt install gcc-aarch64-linux-gnu"
)

#: Beside multiplications: loads, prefetches, addresses and the end of the loop.
OTHERS = {"ldr", "ldp", "ldur", "prfm", "add", "sub", "subs", "mov", "cmp", "nop", "b.ne", "b.hi", "b.ls", "cbnz"}


def flags(name: str) -> list[str]:
    """The words of a variable of mom_c/flags.mk that refers to no other."""
    found = re.search(rf"^{name} :=(.*)$", (ROOT / "mom_c/flags.mk").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found[1].split()


def inner_loops(code: str, function: str) -> list[list[str]]:
    """The loops of a function that contain no other loop, each as its instructions."""
    body = re.search(rf"<{function}>:\n((?:.+\n)+)", code)
    assert body, f"no function {function}"
    lines = re.findall(r"^ *([0-9a-f]+):\t(.+)$", body[1], re.MULTILINE)
    places = {int(address, 16): number for number, (address, _) in enumerate(lines)}
    loops = []
    for end, (_, instruction) in enumerate(lines):
        target = re.match(r"(?:b\.\w+\s+|cbn?z\s+\w+,\s*)([0-9a-f]+) <", instruction)
        begin = places.get(int(target[1], 16), end) if target else end
        if begin < end:
            loops.append((begin, end))
    innermost = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[instruction for _, instruction in lines[begin : end + 1]] for begin, end in innermost]


@pytest.mark.parametrize(
    ("level", "function", "multiply"),
    [
        ("neon", "mom_gemm_f32_8x12_neon", r"fmla\tv\d+\.4s, v\d+\.4s, v\d+\.s\[[0-3]\]"),
        ("neon", "mom_gemm_f32_b_rows_8x12_neon", r"fmla\tv\d+\.4s, v\d+\.4s, v\d+\.s\[[0-3]\]"),
        ("neonbf16", "mom_gemm_bf16f32_8x12_neonbf16", r"bfdot\tv\d+\.4s, v\d+\.8h, v\d+\.2h\[[0-3]\]"),
        ("neonbf16", "one_panel", r"bfmmla\tv\d+\.4s, v\d+\.8h, v\d+\.8h"),
    ],
)
def test_inner_loops_only_load_and_multiply(level: str, function: str, multiply: str, tmp_path: Path) -> None:
    compiled = tmp_path / "kernel.o"
    options = [*flags("STANDARD"), *flags("OPTIMISE"), *flags(f"LEVEL_{level}"), f"-I{ROOT / 'mom_c'}"]
    source = ROOT / f"mom_c/kernels/gemm_ukr_{level}.c"
    subprocess.run([str(COMPILER), *options, "-c", source, "-o", compiled], check=True, timeout=120)
    done = subprocess.run(
        [str(OBJDUMP), "-d", "--no-show-raw-insn", compiled], check=True, capture_output=True, text=True, timeout=60
    )
    loops = [loop for loop in inner_loops(done.stdout, function) if any(re.match(multiply, line) for line in loop)]
    assert loops, done.stdout
    for loop in loops:
        multiplications = [line for line in loop if re.match(multiply, line)]
        others = [line for line in loop if not re.match(multiply, line)]
        assert len(multiplications) == 24, loop
        assert {line.split("\t")[0] for line in others} <= OTHERS, others
        assert not [line for line in others if re.search(r"\[sp|\bmov\tv", line)], others
        assert len(others) <= 12, others
