"""Every notebook runs from a clean kernel, is small, and holds no code that belongs into the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from notebook_kernel import STORE, WHOLE, execute, store

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes, so that a diff or a clone stays bearable

#: Goes after the cell tagged "parameters", as papermill does it: enough training to reach the end.
BRIEFLY = "steps = 8"


def name(path: Path) -> str:
    return path.stem


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_runs_from_a_clean_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    for i, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            if not WHOLE:
                notebook.cells.insert(i + 1, nbformat.v4.new_code_cell(BRIEFLY))
            break
    else:
        pytest.fail("no cell is tagged 'parameters'")
    execute(notebook, tmp_path, monkeypatch)
    if STORE:
        store(notebook, path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_is_well_formed_small_and_free_of_traces(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert len(text.encode()) < LARGEST
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown" and "?" in notebook.cells[0].source.splitlines()[0]
    assert str(Path.home()) not in text and str(ROOT) not in text
    for cell in notebook.cells:
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_defines_nothing_that_belongs_into_the_package(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            code = "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
            for node in ast.walk(ast.parse(code)):
                assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), node.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_no_sentence_turns_into_a_list(path: Path) -> None:
    """Markdown takes a line that begins with "1. " for the first item of a list, within a paragraph, too."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"[^\n]\n1\. ", cell.source)
