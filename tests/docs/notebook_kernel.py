"""Runs notebooks in a kernel of their own that imports the package under test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mom

#: `make notebooks` runs notebooks whole, with the threads of the machine, and can store what they showed.
WHOLE = os.environ.get("MOM_NOTEBOOKS") in ("whole", "store")
STORE = os.environ.get("MOM_NOTEBOOKS") == "store"


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run all cells in an empty folder; the notebook gets their outputs."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(folder / variable.lower()))
    if not WHOLE:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the models are small, and the machine may have other tests to run
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel chooses its own
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # The kernel shall test the package that this process tests, however it was found.
    package = str(Path(mom.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    work = folder / "work"
    work.mkdir()
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()
    return notebook


def store(notebook: Any, path: Path) -> None:
    """Write a notebook with its outputs, without times and versions of this run."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.language_info = {"name": "python"}
    pytest.importorskip("nbformat").write(notebook, path)
