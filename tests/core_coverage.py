"""Reports which lines and branches of the C core have run.

`make coverage` builds the extension with `MOM_COVERAGE=1`, runs the tests and then calls this script with the folder of
the counters. The script needs the `gcov` of the compiler; the variable `GCOV` names another one.

Rules of counting:

- A file counts once, even if several objects contain it, such as the `*.inc` files of the kernels. A line or a branch
  has run if it ran in any of these objects.
- Files of instruction-set levels that the processor lacks are left out, since their code cannot run here.
- Branches that no test can take are left out. `NEVER_TAKEN` lists them by the text of their line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import mom

ROOT = Path(__file__).resolve().parents[1]
#: Lines with branches that no test can take: assertions, and exchanges that fail if another thread comes in between.
NEVER_TAKEN = re.compile(r"\bMOM_ASSERT\(|\batomic_compare_exchange_weak\(")


@dataclass
class File:
    """Counts of one source file, summed over all objects that contain it."""

    lines: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    branches: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))  #: by line and number

    def covered(self) -> tuple[int, int, int, int]:
        """Lines that ran, lines, branches that were taken, branches."""
        counts = self.lines, self.branches
        return tuple(n for c in counts for n in (sum(v > 0 for v in c.values()), len(c)))  # type: ignore[return-value]

    def missing(self) -> str:
        """Lines that did not run, then branches "line/number" that were not taken in lines that ran."""
        texts: list[str] = []
        for ran, group in itertools.groupby(sorted(self.lines), key=lambda line: self.lines[line] > 0):
            first, *_, last = [*(lines := list(group)), lines[-1]]
            if not ran:
                texts.append(str(first) if first == last else f"{first}-{last}")
        branches = sorted(at for at, count in self.branches.items() if not count and self.lines[at[0]])
        return " ".join([*texts, *(f"{line}/{number}" for line, number in branches)])


def level_of(source: Path) -> str | None:
    """The instruction-set level that an object belongs to; None if all processors can run it."""
    found = re.fullmatch(r"(?:level|gemm_ukr)_(\w+)", source.stem)
    return found[1] if found else None


def read(counters: list[Path]) -> dict[str, File]:
    """Sum up the counters of some objects by source file."""
    command = [os.environ.get("GCOV", "gcov"), "--json-format", "--stdout", "--branch-probabilities"]
    output = subprocess.run(
        [*command, *map(str, counters)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    files: dict[str, File] = defaultdict(File)
    for document in output.splitlines():
        for source in json.loads(document)["files"]:
            if not source["file"].startswith("mom_c/"):
                continue
            text = (ROOT / source["file"]).read_text(encoding="utf-8").splitlines()
            file = files[source["file"]]
            for line in source["lines"]:
                number = line["line_number"]
                file.lines[number] += line["count"]
                if not NEVER_TAKEN.search(text[number - 1]):
                    for i, branch in enumerate(line["branches"]):
                        file.branches[number, i] += branch["count"]
    return files


def percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 100.0


def row(name: str, counts: tuple[int, int, int, int]) -> str:
    lines, all_lines, branches, all_branches = counts
    return (f"{name:44} {all_lines:6} {percent(lines, all_lines):6.1f} % "
            f"{all_branches:8} {percent(branches, all_branches):6.1f} %")  # fmt: skip


def total(files: list[File]) -> tuple[int, int, int, int]:
    return tuple(map(sum, zip(*(file.covered() for file in files), strict=True)))  # type: ignore[return-value]


def report(files: dict[str, File]) -> tuple[float, float]:
    """Print the table and what has not run. Returns the percentages of lines and branches."""
    folders: dict[str, dict[str, File]] = defaultdict(dict)
    for name, file in sorted(files.items()):
        folders[os.path.dirname(name)][name] = file
    print("Lines that have not run, and branches (line/number) that were not taken in lines that have run:")
    for name, file in sorted(files.items()):
        if file.missing():
            print(f"  {name}: {file.missing()}")
    print(f"\n{'':44} {'lines':>6} {'run':>8} {'branches':>8} {'taken':>8}")
    for folder, members in folders.items():
        print(row(folder, total(list(members.values()))))
        for name, file in members.items():
            print(row(f"  {os.path.basename(name)}", file.covered()))
    lines, all_lines, branches, all_branches = counts = total(list(files.values()))
    print(row("total", counts))
    return percent(lines, all_lines), percent(branches, all_branches)


def main() -> int:
    parser = argparse.ArgumentParser(description="Lines and branches of the C core that have run.")
    parser.add_argument("folder", type=Path, help="folder of the objects and their counters")
    parser.add_argument("--lines", type=float, default=0.0, help="least percentage of lines")
    parser.add_argument("--branches", type=float, default=0.0, help="least percentage of branches")
    goals = parser.parse_args()
    counters = sorted(goals.folder.resolve().rglob("*.gcda"))
    if not counters:
        parser.error(f"{goals.folder}: no counters (*.gcda) here; run the tests of a build with MOM_COVERAGE=1 first")
    lacking = [path for path in counters if level_of(path) not in (None, *mom.cpu_info()["levels"])]
    files = read([path for path in counters if path not in lacking])
    lines, branches = report(files)
    left_out = sorted(read(lacking).keys() - files.keys()) if lacking else []
    if left_out:
        print("left out, because this processor lacks the level:", *left_out)
    reached = lines >= goals.lines and branches >= goals.branches
    result = "reached" if reached else "missed"
    print(f"goal: {goals.lines:g} % of lines and {goals.branches:g} % of branches: {result}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
