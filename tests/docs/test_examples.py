"""The documentation tells the truth: its Python runs and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mom
from mom import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mom_c/*.md"), *ROOT.glob("benchmarks/*.md")]
)
#: Enough to see that an example works; the text a reader sees asks for more.
MOST_STEPS = 8


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    line: int  # of the first line inside, from 1
    text: str


def blocks_of(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of some languages, in order."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] in languages:
            found.append(Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2]))
    return found


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks_of(p, "python")], ids=name)
def test_python_blocks_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = mom.train

    def train_briefly(*arguments: Any, **changes: Any) -> Any:
        steps = min(changes.pop("steps", MOST_STEPS), MOST_STEPS)
        return train(*arguments, **{**changes, "steps": steps})

    sweep = mom.sweep.run

    def sweep_briefly(grid: dict[str, Any], *arguments: Any, **more: Any) -> Any:
        """With few steps and two seeds, one of which may be new."""
        base = {**grid["base"], "steps": MOST_STEPS}
        axes = {**grid["grid"], "seed": grid["grid"]["seed"][-2:]}
        variants = [{**entry, **{n: 2 for n in entry if n == "phase_one_steps"}} for entry in grid["variant"]]
        return sweep({**grid, "base": base, "grid": axes, "variant": variants}, *arguments, **{**more, "processes": 1})

    monkeypatch.setattr(mom, "train", train_briefly)
    monkeypatch.setattr(mom.sweep, "run", sweep_briefly)
    monkeypatch.chdir(tmp_path)
    mom.set_num_threads(1)  # the models are small, and the machine may have other tests to run
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in blocks_of(path, "python"):
        # Empty lines in front give tracebacks the document's line numbers.
        exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), namespace)


def test_questions_to_the_laboratory_take_five_lines() -> None:
    path = ROOT / "docs" / "routing-lab.md"
    text = path.read_text(encoding="utf-8")
    first, last = (text.count("\n", 0, text.index(title)) for title in ("## A day in", "## Routes are data"))
    lengths = [block.text.count("\n") for block in blocks_of(path, "python") if first < block.line < last]
    assert len(lengths) >= 11 and max(lengths) <= 5


def commands_of(path: Path, program: str) -> list[list[str]]:
    """Words of the command lines in shell blocks that begin with `program`, without comments and redirections."""
    found = []
    for block in blocks_of(path, "sh", "console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0] == program:
                found.append(words[1 : words.index(">") if ">" in words else None])
    return found


def test_the_readme_shows_commands() -> None:
    assert commands_of(ROOT / "README.md", "mom") and commands_of(ROOT / "README.md", "make")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_mom_commands_and_their_flags_exist(path: Path) -> None:
    for words in commands_of(path, "mom"):
        try:
            cli.parser().parse_args(cli.with_underscores(words))
        except SystemExit as end:
            assert end.code == 0, f"mom {shlex.join(words)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands_of(path, "make"):
        assert {word for word in words if "=" not in word} <= targets, words


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_scripts_exist(path: Path) -> None:
    for words in commands_of(path, "python"):
        for word in words:
            if word.startswith(("benchmarks/", "tests/", "python/")):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("path", [ROOT / "docs/architecture.md", ROOT / "mom_c/README.md"], ids=name)
def test_files_and_functions_of_the_core_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for file in re.findall(r"\b(?:base|kernels|ops|model|bindings)/\w+\.(?:c|h|inc)\b", text):
        assert (ROOT / "mom_c" / file).is_file(), file
    for file in re.findall(r"(?<!mom_c/)\b(?:mom_c|python/mom|docs|tests)/[\w/]+\.\w+\b", text):
        assert (ROOT / file).is_file(), file
    core = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "mom_c").rglob("*.[ch]"))
    for word in set(re.findall(r"\bmom_\w+", text)) - {"mom_c"}:
        assert re.search(rf"\b{word}\b", core), word


def test_the_file_list_of_the_core_is_complete() -> None:
    text = (ROOT / "mom_c/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "mom_c").rglob("*"):
        if path.suffix in (".c", ".h", ".inc"):
            stem = path.stem if path.suffix != ".inc" else path.name
            assert f"`{stem}`" in text, path.relative_to(ROOT)
