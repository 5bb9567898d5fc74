"""The recipes of `mom_c/README.md` and `CONTRIBUTING.md` name the files that an existing example touches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("mom_c/README.md", "CONTRIBUTING.md")
SOURCES = {".c", ".h", ".inc", ".mk", ".py", ".pyi", ".toml"}


@dataclass(frozen=True)
class Example:
    """Something that exists, for one recipe.

    Attributes
    ----------
    pattern : str
        A regular expression. Every file of code that the example touches has a match.
    names : dict
        Words in angle brackets in the recipe's paths, each with its value for the example.
    elsewhere : dict
        Files that have a match although the recipe does not name them, each with the reason.
    """

    pattern: str
    names: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)


CHOSEN = "a case that happens to choose it"
EXAMPLES = {
    "Adding a router kind": Example(
        r"gru-dev|GRU_DEV|mom_recurrent_(forward|backward)|\bgru_(forward|backward)\b",
        {"kind": "recurrent"},
        {
            "mom_c/kernels/level.inc": "a kernel of the cell of recurrent kinds",
            "mom_c/kernels/vec.inc": "a kernel of the cell of recurrent kinds",
            "tests/analysis/test_audit.py": CHOSEN,
            "tests/analysis/test_oracle.py": CHOSEN,
            "tests/model/test_against_reference.py": CHOSEN,
            "tests/model/test_arena_failures.py": CHOSEN,
            "tests/model/test_capture.py": CHOSEN,
            "tests/model/test_decoding.py": CHOSEN,
            "tests/model/test_replay.py": CHOSEN,
            "tests/model/test_thread_bits.py": CHOSEN,
            "tests/api/test_values.py": "spellings of it, right and wrong",
            "tests/test_router_kinds.py": "an unusual spelling of it",
        },
    ),
    "Adding a term of the loss": Example(
        r"MOM_TERM_Z|\"z\"|\bmom_z_loss_|\bz_(loss|scale)\b|router_z_loss_coef|z-loss",
        {"term": "z"},
        {
            "mom_c/model/config.h": "the flag, see the recipe of configuration fields",
            "mom_c/bindings/network_config.c": "the flag, see the recipe of configuration fields",
            "python/mom/model/core_config.py": "the flag, see the recipe of configuration fields",
            "python/mom/model/output.py": "named in the description of the losses",
            "tests/model/test_z_loss.py": "what is special about it",
            "tests/model/test_arena_failures.py": CHOSEN,
            "tests/model/test_interventions_against_twin.py": CHOSEN,
            "tests/model/test_replay.py": CHOSEN,
            "tests/model/test_router_options.py": CHOSEN,
            "tests/reference/test_reference_interventions.py": CHOSEN,
            "tests/training/test_finetune.py": CHOSEN,
            "tests/training/test_fingerprint.py": "the field, see the recipe of configuration fields",
        },
    ),
    "Adding a configuration field": Example(
        r"\bweighted_qkv\b|SMALL_WEIGHTED", {},
        {
            "tests/accounting/test_ledger.py": CHOSEN,
            "tests/analysis/test_restart.py": CHOSEN,
            "tests/reference/test_reference_interventions.py": CHOSEN,
        },
    ),
    "Adding an operator": Example(
        r"mom_gelu_|vec_gelu_|(?<!vec\.)\bgelu_(forward|backward)\b|\"gelu\"|\bgelu\.forward\b",
        {"name": "gelu", "family": "layers", "topic": "elementwise"},
        {
            "mom_c/bindings/test_functions.c": "calls the kernel for its test",
            "mom_c/kernels/pack.inc": "calls the kernel",
            "python/mom/model/tensors.py": "calls the operator",
            "python/mom/ops/shared.py": "calls the operator in a documented example",
            "python/mom/reference/pools.py": "calls the operator",
            "tests/ops/test_arguments.py": CHOSEN,
        },
    ),
    "Adding a level": Example(r"avx2", {"level": "avx2"}),
    "Adding a GLUE task": Example(
        r"\"qnli\"|QNLI",
        {"TASK": "QNLI"},
        {"tests/docs/test_benchmark_figures.py": CHOSEN},
    ),
    "Adding a callback": Example(r"TensorBoard|tensorboard"),
    "Adding a command": Example(r"(commands, |mom_command\()\"info\"|\n    info,\n", {"command": "info"}),
}


def recipes() -> dict[str, list[str]]:
    """The paths that each recipe names, in order, as they are written."""
    found: dict[str, list[str]] = {}
    for document in DOCUMENTS:
        sections = re.split(r"^## ", (ROOT / document).read_text(encoding="utf-8"), flags=re.MULTILINE)
        for section in sections:
            title, _, text = section.partition("\n")
            if title.startswith("Adding "):
                heads = re.findall(r"^\d+\. ((?:`[^`]+`(?:,\s+)?)+):\s", text, re.MULTILINE)
                assert len(heads) == len(re.findall(r"^\d+\. ", text, re.MULTILINE)), f"{title}: an item without files"
                found[title] = [path for head in heads for path in re.findall(r"`([^`]+)`", head)]
    return found


RECIPES = recipes()


def touches(path: Path, pattern: str) -> bool:
    return re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def named(title: str) -> dict[str, list[Path]]:
    """The files that each path of a recipe leads to for its example."""
    files = {}
    for written in RECIPES[title]:
        path = re.sub(r"<(\w+)>", lambda word: EXAMPLES[title].names[word[1]], written)
        files[written] = sorted(ROOT.glob(path))
    return files


def code() -> list[Path]:
    """All files of code, but for this one."""
    folders = ("mom_c", "python/mom", "tests")
    everywhere = [path for folder in folders for path in (ROOT / folder).rglob("*")] + [*ROOT.glob("*.*")]
    return [path for path in everywhere if path.suffix in SOURCES and path != Path(__file__).resolve()]


def test_every_recipe_has_an_example() -> None:
    assert RECIPES.keys() == EXAMPLES.keys()


@pytest.mark.parametrize("title", EXAMPLES)
def test_files_of_a_recipe_exist_and_know_its_example(title: str) -> None:
    pattern = EXAMPLES[title].pattern
    for written, files in named(title).items():
        assert files, f"{written}: no such file"
        if files[0].suffix in SOURCES and "<" not in written:
            assert any(touches(path, pattern) for path in files), f"{written}: the example does not touch it"


@pytest.mark.parametrize("title", EXAMPLES)
def test_a_recipe_names_all_files_that_its_example_touches(title: str) -> None:
    example = EXAMPLES[title]
    touched = {path.relative_to(ROOT).as_posix() for path in code() if touches(path, example.pattern)}
    known = {path.relative_to(ROOT).as_posix() for files in named(title).values() for path in files}
    assert sorted(touched - known - example.elsewhere.keys()) == [], "name them in the recipe"
    assert sorted(example.elsewhere.keys() - touched) == [], "these exceptions are no longer any"
    assert sorted(example.elsewhere.keys() & known) == [], "these exceptions are named in the recipe"
