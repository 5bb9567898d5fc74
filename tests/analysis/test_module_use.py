"""Use of modules and paths of single tokens: counted, printed and drawn."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import mom
from mom import Routes, analysis


@pytest.fixture
def routes() -> Routes:
    """One row of three tokens, top-2, one block of two rounds; 2 attention and 3 feed-forward modules."""
    attention = [[[[0, 1], [1, 2], [2, 3]]], [[[0, 2], [0, 2], [1, 0]]]]  # 2 and above: SKIP
    feed_forward = [[[[2, 0], [2, 3], [3, 2]]], [[[1, 0], [1, 0], [1, 0]]]]  # 3: SKIP
    index = {half: np.array(chosen, np.int16) for half, chosen in (("attn", attention), ("ffn", feed_forward))}
    weight = {half: np.full(array.shape, 0.5, np.float32) for half, array in index.items()}
    scores = {half: np.full((2, 1, 3, 4), 0.25, np.float32) for half in index}
    tokens = np.array([[5, 6, 7]], np.int32)
    return Routes(tokens, index, scores, weight, [(0, 0), (0, 1)], {"attn": 2, "ffn": 3})


def small_model(**changes: Any) -> mom.MoM:
    fields = {"n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 16, "router_dim": 8, **changes}
    return mom.MoM(mom.MoMConfig.preset("demo", **fields))


def test_shares_are_counted_by_half_and_round(routes: Routes) -> None:
    use = analysis.module_use(routes)
    np.testing.assert_allclose(use["attn"].share, np.array([[1, 2, 3], [3, 1, 2]]) / 6)
    np.testing.assert_allclose(use["ffn"].share, np.array([[1, 0, 3, 2], [3, 3, 0, 0]]) / 6)
    assert use["attn"].labels == ["round 0", "round 1"]
    assert use["attn"].skip_share == pytest.approx(5 / 12)
    assert use["ffn"].skip_share == pytest.approx(2 / 12)


def test_padding_is_left_out(routes: Routes) -> None:
    masked = Routes(routes.tokens, routes.index, routes.scores, routes.weight, routes.rounds, routes.num_modules,
                    mask=np.array([[1, 0, 0]], np.int32))  # fmt: skip
    np.testing.assert_allclose(analysis.module_use(masked)["attn"].share, [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    assert analysis.token_paths(masked) == [["A0+A1 F2+F0", "A0 F1+F0"]]
    lines = analysis.format_paths(masked, ["one", "pad", "pad"]).splitlines()
    assert len(lines) == 2 and lines[1].startswith("one  ")


def test_paths_are_written_per_token_and_round(routes: Routes) -> None:
    assert analysis.token_paths(routes) == [
        ["A0+A1 F2+F0", "A0 F1+F0"],
        ["A1 F2", "A0 F1+F0"],
        ["- F2", "A1+A0 F1+F0"],
    ]


def test_free_choices_are_no_path(routes: Routes) -> None:
    edited = routes.edit("ffn", to="free", tokens=[1])
    for read in (analysis.module_use, analysis.token_paths, analysis.format_paths, analysis.plot_routes):
        with pytest.raises(ValueError, match="routes: some choices are free"):
            read(edited)


def test_half_without_router_is_its_letter() -> None:
    model = small_model(num_attn=1)
    routes = model(np.arange(6), return_routes=True).routes
    assert routes is not None
    assert list(analysis.module_use(routes)) == ["ffn"]
    assert all(cell.startswith("A ") for token in analysis.token_paths(routes) for cell in token)


def test_blocks_are_told_apart() -> None:
    model = small_model(chunks=2)
    ids = np.arange(5)
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    use = analysis.module_use(routes)["attn"]
    assert use.labels[0] == "block 0 round 0" and use.labels[-1] == "block 1 round 3" and use.share.shape == (8, 5)
    head = analysis.format_paths(routes, list("abcde")).splitlines()[0]
    assert "block 0 round 0" in head and "block 1 round 3" in head


def test_table_has_a_line_per_token() -> None:
    model = small_model()
    ids = np.arange(8).reshape(2, 4)
    routes = model(ids, return_routes=True).routes
    assert routes is not None
    lines = analysis.format_paths(routes, ["one", "two", "three", "four"], row=1).splitlines()
    assert len(lines) == 5 and lines[0].split() == ["token", *"round 0 round 1 round 2 round 3".split()]
    assert [line.split()[0] for line in lines[1:]] == ["one", "two", "three", "four"]
    table = analysis.token_paths(routes, row=1)
    assert all(cell in line for token, line in zip(table, lines[1:], strict=True) for cell in token)
    with pytest.raises(ValueError, match="names: 1 of them for 4 tokens"):
        analysis.format_paths(routes, ["one"])
    with pytest.raises(ValueError, match="row: there is no row 2; there are 2"):
        analysis.token_paths(routes, row=2)


def test_counts_agree_with_the_core() -> None:
    model = small_model(routing_top_k=3)
    ids = np.random.default_rng(0).integers(32, size=(4, 16))
    use = analysis.module_use(model(ids, return_routes=True).routes)  # type: ignore[arg-type]
    place = model.config.places().index("block")
    for number, half in enumerate(("attn", "ffn")):
        for r in range(4):
            counts = model._core.route_counts(place, r, number)
            np.testing.assert_allclose(use[half].share[r], counts / (4 * 16 * 3))


def test_plain_model_has_no_routes() -> None:
    model = mom.MoM(small_model().config.vanilla_config())
    routes = model(np.arange(4), return_routes=True).routes
    assert routes is not None
    assert analysis.module_use(routes) == {} and analysis.token_paths(routes) == []
    assert analysis.format_paths(routes) == "The model has no routers."
    with pytest.raises(ValueError, match="the model has no routers"):
        analysis.plot_module_use(routes)


def test_heat_map_shows_every_share(routes: Routes) -> None:
    pytest.importorskip("matplotlib")
    figure = analysis.plot_module_use(routes, title="Use")
    first, second = figure.axes[:2]
    assert figure.get_suptitle() == "Use"
    assert [label.get_text() for label in first.get_xticklabels()] == ["A0", "A1", "SKIP"]
    assert [text.get_text() for text in first.texts] == [".17", ".33", ".50", ".50", ".17", ".33"]
    assert len(second.texts) == 8 and second.get_title() == "feed-forward, 3 tokens"
    with pytest.raises(ValueError, match="ax: there are 2 panels"):
        analysis.plot_module_use(routes, ax=first)
    assert analysis.plot_module_use(routes, half="ffn", ax=second) is figure


def test_missing_matplotlib_names_the_extra(routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        analysis.plot_module_use(routes)


# ---------------------------------------------------------------------- weights and labels
def test_weights_count_in_place_of_choices(routes: Routes) -> None:
    routes.weight["attn"][0] = [[[0.9, 0.1], [0.75, -0.25], [1.0, 0.0]]]
    use = analysis.module_use(routes, weighted=True)["attn"]
    np.testing.assert_allclose(use.share[0], np.array([0.9, 0.1 + 0.75, 0.25 + 1.0]) / 3, rtol=1e-6)
    np.testing.assert_allclose(use.share[1], analysis.module_use(routes)["attn"].share[1])
    assert use.modules == ["A0", "A1", "SKIP"] and str(use).splitlines()[0].split() == use.modules
    assert "41.7%" in repr(use) and ">41.7%</td>" in use._repr_html_()


def test_use_by_a_label_of_the_tokens(routes: Routes) -> None:
    use = analysis.module_use(routes, by=[["noun", "verb", "noun"]])
    assert list(use) == ["noun", "verb"]
    np.testing.assert_allclose(use["noun"]["attn"].share[0], [0.25, 0.25, 0.5])
    np.testing.assert_allclose(use["verb"]["ffn"].share[0], [0.0, 0.0, 0.5, 0.5])
    whole = analysis.module_use(routes)["attn"].share
    np.testing.assert_allclose((2 * use["noun"]["attn"].share + use["verb"]["attn"].share) / 3, whole)
    with pytest.raises(ValueError, match=r"by: shape \(3,\), expected \(1, 3\), a label for each token"):
        analysis.module_use(routes, by=["noun", "verb", "noun"])
    with pytest.raises(TypeError, match="weighted: expected True or False"):
        analysis.module_use(routes, weighted="yes")  # type: ignore[arg-type, call-overload]


def test_paths_with_weights(routes: Routes) -> None:
    routes.weight["attn"][0] = [[[0.71, 0.29], [0.98, 0.02], [1.0, 0.0]]]
    paths = analysis.token_paths(routes, weights=True)
    assert [path[0].split()[0] for path in paths] == ["A0(.71)+A1(.29)", "A1(.98)+SKIP(.02)", "SKIP(1.00)+SKIP(.00)"]
    assert "A1(.98)+SKIP(.02) F2(.50)+SKIP(.50)" in analysis.format_paths(routes, weights=True)


def test_names_of_tokens_stay_on_one_line(routes: Routes) -> None:
    tokenizer = mom.Tokenizer.train(["a\n\tb"], 257)
    ids = tokenizer.encode("a\n\t")
    assert analysis.token_names(tokenizer, ids) == ['"a"', '"\\n"', '"\\t"']
    assert len(analysis.format_paths(routes, ["a\nb", "\t", "\x1b[2J"]).splitlines()) == 4
    model = small_model(vocab_size=300)
    with pytest.raises(mom.DataError, match="tokenizer: the model has none"):
        analysis.token_names(model, ids)
    model.tokenizer = tokenizer
    assert analysis.token_names(model, [299]) == ["<id 299>"]
