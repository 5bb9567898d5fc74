"""A notebook shows every picture of a cell once, however the cell ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from notebook_kernel import execute

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

BEGIN = """
import mom
from mom.analysis import plot_flow, plot_module_use, plot_routes
config = mom.MoMConfig.preset("demo", vocab_size=50, n_embd=16, n_head=2, router_dim=8, n_positions=16)
routes = mom.MoM(config)([[1, 2, 3]], return_routes=True).routes
"""
CELLS = [
    ("last value", "plot_routes(routes)", 1),
    ("semicolon", "plot_routes(routes);", 1),
    ("statement", "figure = plot_routes(routes)\nnumber = 3", 1),
    ("loop", "for draw in (plot_routes, plot_flow, plot_module_use):\n    draw(routes)", 3),
    ("show", "import matplotlib.pyplot as plt\nplot_routes(routes)\nplt.show()", 1),
    ("shown before", "figure", 1),
    ("own axes", "own, axis = plt.subplots()\nplot_routes(routes, half='ffn', ax=axis);", 1),
    ("closed", "kept = plot_routes(routes)\nplt.close(kept)", 0),
]


def images(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.slow
def test_each_picture_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in (BEGIN, *(cell for _, cell, _ in CELLS))]
    done = execute(nbformat.v4.new_notebook(cells=cells), tmp_path, monkeypatch)
    found = {name: images(cell) for (name, _, _), cell in zip(CELLS, done.cells[1:], strict=True)}
    assert found == {name: count for name, _, count in CELLS}
