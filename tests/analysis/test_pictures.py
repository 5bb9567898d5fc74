"""Pictures show the numbers that they are about."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import numpy as np
import pytest
from by_hand import routes
from small import IDS, model_of

from mom import analysis

pytest.importorskip("pandas")
figures = pytest.importorskip("matplotlib.figure")

MADE = routes(
    {
        "attn": [[[[1, 0], [0, 2], [2, 0]]], [[[0, 2], [2, 0], [1, 2]]]],
        "ffn": [[[[2], [2], [3]]], [[[1], [1], [0]]]],
    },
    {"attn": 2, "ffn": 3},
    tokens=[[7, 8, 9]],
)  # fmt: skip


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def saved(figure: Any, tmp_path: Any) -> bool:
    """Whether drawing it gives a file that is no blank page."""
    figure.savefig(tmp_path / "picture.png")
    return bool((tmp_path / "picture.png").stat().st_size > 3000)


def test_routes_have_a_cell_for_every_choice(tmp_path: Any) -> None:
    figure = analysis.plot_routes(MADE, names=["a", "b", "c"])
    attention, ffn = figure.axes
    assert texts(attention) == ["A1", "A0", "–", "A0", "–", "A0", "A0", "–", "A1", "–", "A0", "–"]
    assert texts(ffn) == ["F2", "F2", "–", "F1", "F1", "F0"]
    assert [label.get_text() for label in ffn.get_xticklabels()] == ["a", "b", "c"]
    assert attention.images[0].get_array().shape == (4, 3) and saved(figure, tmp_path)
    dollars = analysis.plot_routes(MADE, names=["$x_{$", "$$", "\\frac"])
    assert saved(dollars, tmp_path)  # a dollar sign begins no formula
    masked = routes({"ffn": MADE.index["ffn"]}, 3, tokens=[[7, 8, 9]], mask=[[0, 1, 1]])
    (axis,) = analysis.plot_routes(masked).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "9"]
    with pytest.raises(ValueError, match="row: there is no row 4; there are 1"):
        analysis.plot_routes(MADE, row=4)
    with pytest.raises(ValueError, match="names: 1 of them for 3 tokens"):
        analysis.plot_routes(MADE, names=["a"])
    with pytest.raises(ValueError, match="ax: there are 2 panels; name one half"):
        analysis.plot_routes(MADE, ax=axis)
    assert analysis.plot_routes(MADE, half="ffn", ax=axis) is axis.figure


def test_boxes_of_the_flow_have_the_shares_of_the_modules(tmp_path: Any) -> None:
    figure = analysis.plot_flow(MADE)
    (axis,) = figure.axes
    boxes = [p for p in axis.patches if hasattr(p, "get_height")]
    heights = sorted((round(box.get_x() + 0.13), round(box.get_height() * 3)) for box in boxes)
    # Best choices: attention 1 0 SKIP, feed-forward 2 2 SKIP, attention 0 SKIP 1, feed-forward 1 1 0.
    assert heights == [(0, 1), (0, 1), (0, 1), (1, 1), (1, 2), (2, 1), (2, 1), (2, 1), (3, 1), (3, 2)]
    bands = [p for p in axis.patches if not hasattr(p, "get_height")]
    assert len(bands) == 3 + 3 + 3  # of the three tokens each takes a band of its own
    assert texts(axis)[:3] == ["A0", "A1", "SKIP"] and saved(figure, tmp_path)
    with pytest.raises(ValueError, match="block: there is no block 2"):
        analysis.plot_flow(MADE, block=2)


def test_bands_of_equal_ways_are_one() -> None:
    same = routes({"ffn": [[[[0], [0], [1], [1]]], [[[1], [1], [1], [0]]]]}, 2)
    (axis,) = analysis.plot_flow(same).axes
    bands = [p for p in axis.patches if not hasattr(p, "get_height")]
    spans = sorted(round(float(p.get_path().vertices[6][1] - p.get_path().vertices[1][1]), 6) for p in bands)
    assert spans == [0.25, 0.25, 0.5]


def test_coactivation_shows_its_table(tmp_path: Any) -> None:
    figure = analysis.plot_coactivation(MADE)
    table = analysis.coactivation(MADE)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), table)
    assert texts(figure.axes[0])[0] == f"{table.iloc[0, 0]:.2f}".lstrip("0") and saved(figure, tmp_path)
    dead = routes({"ffn": np.zeros((1, 1, 3, 1))}, 2)
    assert len(texts(analysis.plot_coactivation(dead, lift=True).axes[0])) == 1


def test_drift_shows_its_table(tmp_path: Any) -> None:
    pytest.importorskip("scipy")
    model, other = model_of(), model_of()
    for parameter in other.parameters.values():
        parameter += 0.05
    made = [m(IDS, return_routes=True).routes for m in (model, other)]
    table = analysis.drift(*made)  # type: ignore[arg-type]
    figure = analysis.plot_drift(table)
    attention, ffn = figure.axes
    lines = {line.get_label(): line for line in ffn.lines}
    np.testing.assert_allclose(lines["chance"].get_ydata(), table.loc[table["half"] == "ffn", "chance"])
    assert attention.get_title() == "attention" and saved(figure, tmp_path)
    with pytest.raises(ValueError, match="table: expected the table of mom.analysis.drift"):
        analysis.plot_drift(table.drop(columns="chance"))


def test_module_use_leaves_padding_out() -> None:
    masked = routes({"ffn": [[[[0], [1], [1], [2]]]]}, 2, mask=[[0, 1, 1, 1]])
    image = analysis.plot_module_use(masked).axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0.0, 2 / 3, 1 / 3]])


def test_audit_has_a_panel_for_each_measure_and_half(tmp_path: Any) -> None:
    found = analysis.audit(model_of(), IDS, ["usage", "reap", "drop_one", "skip_round"], samples=20)
    figure = found.plot()
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in shown] == ["usage", "reap", "round", "round"]
    assert shown[0].get_title() == f"rank correlation {found.correlation('usage', 'drop_one'):.2f}"
    heights = [bar.get_height() for bar in shown[2].patches]
    np.testing.assert_allclose(heights, found.table.query("half == 'attn'")["skip_round"].dropna())
    assert saved(figure, tmp_path)
    for axis in shown[2:]:  # the legend covers no bar and no interval
        legend = axis.get_legend().get_window_extent()
        tops = [axis.transData.transform((0, y))[1] for line in axis.collections for path in line.get_paths()
                for y in path.vertices[:, 1]]  # fmt: skip
        assert tops and max(tops) <= legend.y0
    with pytest.raises(ValueError, match="against: 'taylor' is no measure of modules here; there are usage, reap"):
        found.plot(against="taylor")
    only = analysis.audit(model_of(), IDS, ["skip_round"], samples=20).plot()
    assert [axis.get_title() for axis in only.axes] == ["attention", "feed-forward"]


def test_a_model_without_routers_has_no_pictures() -> None:
    nothing = routes({"ffn": np.zeros((1, 1, 3, 1))})
    nothing.index = {}
    for draw in (analysis.plot_routes, analysis.plot_flow, analysis.plot_coactivation):
        with pytest.raises(ValueError, match="routes: the model has no routers"):
            draw(nothing)
    with pytest.raises(TypeError, match="routes: expected mom.Routes, got int"):
        analysis.plot_module_use(3)  # type: ignore[arg-type]


def test_pictures_are_of_pyplot_only_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure = analysis.plot_routes(MADE)
    assert pyplot.get_fignums() == [*before, figure.number]
    pyplot.close(figure)
    assert len(pickle.loads(pickle.dumps(figure)).axes) == 2
    pyplot.close("all")
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    analysis.plot_routes(MADE)
    assert not pyplot.get_fignums()


def test_blocks_and_modules_are_named() -> None:
    two = routes({"ffn": [[[[0], [1]]], [[[1], [2]]]]}, 2, tokens=[[7, 8]])
    two.rounds = [(0, 0), (1, 0)]
    (axis, *_) = analysis.plot_module_use(two).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["block 0   0", "block 1   0"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["F0", "F1", "SKIP"]
    assert axis.get_title() == "feed-forward, 2 tokens"
    (axis,) = analysis.plot_routes(two, names=["a", "a very long name of a token"]).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["F0", "F1", "SKIP"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "a very long name …"]


def test_colors_of_modules_differ_in_greyscale() -> None:
    from mom.analysis.pictures.canvas import module_colors

    for modules in (1, 2, 8):
        grey = module_colors(modules)[:, :3] @ (0.299, 0.587, 0.114)
        assert len(grey) == modules and (np.diff(grey) > 0.06).all()
