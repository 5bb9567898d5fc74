"""Routes as data: their form, comparison, edits, tables and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intervened import made, tokens_of

import mom


def routes_of(packed: bool = False, **changes: object) -> mom.Routes:
    model, tokens = made(**changes), tokens_of()
    call = {"tokens": tokens.ravel(), "lengths": [13, 7]} if packed else {"tokens": tokens}
    return model(**call, return_routes=True).routes


def test_arrays_have_the_documented_form() -> None:
    routes = routes_of(chunks=2)
    assert routes.rounds == [(b, r) for b in range(2) for r in range(3)] and routes.rows == 2
    assert routes.lengths is None and routes.mask is None and np.array_equal(routes.tokens, tokens_of())
    for half, modules in (("attn", 3), ("ffn", 4)):
        assert routes.index[half].shape == routes.weight[half].shape == routes.module[half].shape == (6, 2, 10, 2)
        assert routes.scores[half].shape == (6, 2, 10, 5)
        assert routes.index[half].dtype == routes.module[half].dtype == np.int16
        assert np.array_equal(routes.module[half], np.minimum(routes.index[half], modules))
    packed = routes_of(packed=True, num_attn=1)
    assert packed.index["ffn"].shape == (3, 20, 2) and packed.tokens.shape == (20,) and list(packed.index) == ["ffn"]
    assert packed.rows == 2 and packed.of_row(packed.index["ffn"], 1).shape == (3, 7, 2)
    assert np.array_equal(packed.of_row(packed.tokens, 1), tokens_of().ravel()[13:])
    assert repr(routes) == "<Routes: 2 sequences, 20 tokens, 6 rounds; attn top-2 of 3, ffn top-2 of 4>"
    assert repr(made(chunks=0)(tokens_of(), return_routes=True).routes).endswith("0 rounds; none>")


def test_surplus_choices_mean_skip() -> None:
    routes = routes_of(num_attn=2, num_ffn=5, routing_top_k=6)
    assert routes.index["attn"].max() == 5 and routes.module["attn"].max() == 2
    assert ((routes.index["attn"] >= 2) == (routes.module["attn"] == 2)).all()


def test_the_mask_is_kept() -> None:
    mask = np.ones((2, 10), int)
    mask[0, :3] = 0
    routes = made()(tokens_of(), attention_mask=mask, return_routes=True).routes
    assert routes.mask.dtype == bool and np.array_equal(routes.mask, mask == 1)


def test_the_nested_form_can_still_be_read_with_a_warning() -> None:
    routes = routes_of(chunks=2, num_attn=1)
    with pytest.warns(DeprecationWarning, match=r"routes\[half\]\[block\]\[round\] is going away; use routes.index"):
        entry = routes["ffn"][1][2]
    assert entry is not None
    for kind in ("index", "scores", "weight"):
        assert np.array_equal(entry[kind], getattr(routes, kind)["ffn"][5])
    with pytest.warns(DeprecationWarning):
        assert routes["attn"] == [[None] * 3, [None] * 3]
    assert list(routes) == ["attn", "ffn"] and len(routes) == 2
    with pytest.raises(KeyError):
        routes["mlp"]


def test_equality_and_agreement() -> None:
    a, b = routes_of(), routes_of()
    assert a == b and a != routes_of(packed=True) and a != routes_of(seed=5) and a != 3
    other = a.edit("ffn", to="SKIP", round=1, tokens=[0, 1, 2, 3, 4])
    assert a != other
    agreement = a.agreement(other)
    assert agreement["attn"].tolist() == [1.0] * 3 and agreement["ffn"][[0, 2]].tolist() == [1.0, 1.0]
    module = other.module["ffn"][1]
    assert agreement["ffn"][1] == np.mean(a.module["ffn"][1] == module) < 1.0
    assert a.agreement(a)["ffn"].tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="other: is of other tokens"):
        a.agreement(routes_of(packed=True))
    with pytest.raises(ValueError, match="other: has other rounds, halves or numbers of choices"):
        a.agreement(routes_of(routing_top_k=1))
    with pytest.raises(TypeError, match="other: expected Routes, got dict"):
        a.agreement({})  # type: ignore[arg-type]


def test_padding_does_not_count_in_agreement() -> None:
    mask = np.ones((2, 10), int)
    mask[:, :5] = 0
    a = made()(tokens_of(), attention_mask=mask, return_routes=True).routes
    changed = a.edit("ffn", to=0)
    changed.index["ffn"][:, :, 5:] = a.index["ffn"][:, :, 5:]
    assert a.agreement(changed)["ffn"].tolist() == [1.0] * 3


def test_edits_are_copies_of_what_is_named() -> None:
    routes = routes_of(chunks=2)
    before = {half: index.copy() for half, index in routes.index.items()}
    edited = routes.edit("ffn", to=[3, "SKIP"], round=(1, 0), tokens=[2, 4], rows=1)
    assert all(np.array_equal(routes.index[half], index) for half, index in before.items())
    assert (edited.index["ffn"][3, 1, [2, 4]] == [3, 4]).all()
    edited.index["ffn"][3, 1, [2, 4]] = before["ffn"][3, 1, [2, 4]]
    assert edited == routes
    everything = routes.edit("attn", to=0)
    assert (everything.index["attn"][..., 0] == 0).all() and (everything.module["attn"][..., 1] == 3).all()
    assert (routes.edit("attn", to="free").module["attn"][..., 0] == -1).all()


def test_edits_of_packed_and_padded_rows_count_real_tokens() -> None:
    packed = routes_of(packed=True).edit("ffn", to=1, tokens=8)  # the second row has 7 tokens
    assert (packed.index["ffn"][:, 8, 0] == 1).all() and (packed.index["ffn"][:, 8, 1] == -2).all()
    mask = np.ones((2, 10), int)
    mask[0, :4] = 0
    routes = made()(tokens_of(), attention_mask=mask, return_routes=True).routes
    none = (routes.edit("ffn", to=1, tokens=0).index["ffn"][0] == -2).any(-1)
    assert np.argwhere(none).tolist() == [[0, 4], [1, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": "mlp", "to": 1}, r"half: 'mlp' has no router here; those with one are \['attn', 'ffn'\]"),
        ({"half": "ffn", "to": 4}, "to: there is no module 4; there are 4, and 'SKIP'"),
        ({"half": "ffn", "to": [0, 1, 2]}, "to: 3 choices, the router keeps 2"),
        ({"half": "ffn", "to": "skip"}, "to: expected a module's number or 'SKIP' or 'free', got 'skip'"),
        ({"half": "ffn", "to": 1, "round": 3}, "round: there is no round 3"),
        ({"half": "ffn", "to": 1, "round": (0, 1, 2)}, r"round: expected numbers or \(block, round\) pairs"),
        ({"half": ["ffn"], "to": 1}, "half: .* has no router here"),
        ({"half": "ffn", "to": 1, "tokens": 10}, "tokens: position 10 is outside of every row"),
        ({"half": "ffn", "to": 1, "rows": [2]}, "rows: there is no row 2; the batch has 2"),
    ],
)
def test_edits_of_what_does_not_exist_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routes_of().edit(**change)  # type: ignore[arg-type]


def test_a_pair_is_one_round_and_a_list_is_several() -> None:
    routes = routes_of(chunks=2)
    changed = [
        np.flatnonzero((routes.edit("ffn", to=["free", "free"], round=round).index["ffn"] == -1).all((1, 2, 3)))
        for round in ((1, 0), [1, 0], [(1, 0), 1], range(2), np.int64(4))
    ]
    assert [found.tolist() for found in changed] == [[3], [0, 1], [1, 3], [0, 1], [4]]
    for bad in (True, 1.5, "all"):
        with pytest.raises(TypeError, match="round: expected numbers"):
            routes.edit("ffn", to=1, round=bad)  # type: ignore[arg-type]


def test_one_free_choice_and_all_of_them() -> None:
    model, tokens = made(), tokens_of()
    routes = model(tokens, return_routes=True).routes
    assert routes is not None
    left = model(tokens, routes=routes.edit("ffn", to=["free"] * 2), return_routes=True).routes
    one = model(tokens, routes=routes.edit("ffn", to="free", round=2), return_routes=True).routes
    assert left == routes and one is not None
    assert np.array_equal(one.index["ffn"][2, ..., 0], routes.index["ffn"][2, ..., 0])
    assert (one.index["ffn"][2, ..., 1] == -2).all()


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_holds_everything(packed: bool, tmp_path: Path) -> None:
    routes = routes_of(packed=packed, num_attn=1)
    routes.save(tmp_path / "r.npz")
    again = mom.Routes.load(tmp_path / "r.npz")
    assert again == routes and again.num_modules == routes.num_modules
    assert all(np.array_equal(again.weight[half], routes.weight[half]) for half in routes.weight)
    assert all(np.array_equal(again.scores[half], routes.scores[half]) for half in routes.scores)
    mask = np.ones((2, 10), int)
    mask[1, 7:] = 0
    masked = made()(tokens_of(), attention_mask=mask, return_routes=True).routes
    masked.save(tmp_path / "r.npz")
    assert mom.Routes.load(tmp_path / "r.npz") == masked


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    with pytest.raises(FileNotFoundError, match="r.npz"):
        mom.Routes.load(path)
    routes_of().save(path)
    whole = path.read_bytes()
    for content in (b"", b"not a file of routes", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(mom.DataError, match="r.npz: is no file of routes"):
            mom.Routes.load(path)
    np.savez(path, tokens=np.zeros(3))
    with pytest.raises(mom.DataError, match="r.npz: is no file of routes"):
        mom.Routes.load(path)
    np.savez(path, facts=np.frombuffer(b'{"format": 9}', np.uint8))
    with pytest.raises(mom.DataError, match="r.npz: format 9, this version reads 1"):
        mom.Routes.load(path)
    np.savez(path, facts=np.frombuffer(b"[" * 100_000, np.uint8))
    with pytest.raises(mom.DataError, match="r.npz: is no file of routes"):
        mom.Routes.load(path)
    path.write_bytes(b"not a file of routes")
    with pytest.raises(mom.DataError, match="not a whole .npz file"):
        mom.Routes.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": [[0, 0], [0, 0], [0, 1]]}, "rounds: .* are not different pairs"),
        ({"rounds": [[-1, 0], [0, 0], [0, 1]]}, "rounds: .* are not different pairs"),
        ({"num_modules": {"attn": 3, "ffn": 0}}, "num_modules: .*expected at least 1"),
        ({"num_modules": {"attn": 3, "ffn": 4, "x": 1}}, "num_modules: .*expected at least 1"),
    ],
)
def test_files_with_impossible_facts_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    routes_of().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    facts = {**json.loads(arrays["facts"].tobytes()), **changes}
    np.savez(path, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    with pytest.raises(mom.DataError, match=message):
        mom.Routes.load(path)


@pytest.mark.parametrize("field", ["tokens", "ffn.index", "ffn.scores", "ffn.weight"])
def test_files_whose_arrays_do_not_fit_together_are_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    routes_of().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    for broken in (arrays[field][:1], arrays[field].astype(str)):
        np.savez(path, **{**arrays, field: broken})
        with pytest.raises(mom.DataError, match=r"r.npz: is no file of routes .*(: .*expected|fit the tokens)"):
            mom.Routes.load(path)


def test_a_table_has_a_row_per_choice() -> None:
    pandas = pytest.importorskip("pandas")
    routes = routes_of(chunks=2)
    table = routes.to_pandas()
    assert isinstance(table, pandas.DataFrame) and len(table) == 2 * 10 * 6 * 2 * 2
    columns = ["row", "position", "token", "block", "round", "half", "choice", "module", "weight", "score"]
    assert list(table.columns) == columns
    one = table[(table.row == 1) & (table.position == 4) & (table.block == 1) & (table["round"] == 2)]
    for half, modules in (("attn", 3), ("ffn", 4)):
        mine = one[one.half == half].sort_values("choice")
        index, scores = routes.index[half][5, 1, 4], routes.scores[half][5, 1, 4]
        assert mine.module.tolist() == ["SKIP" if i >= modules else i for i in index]
        np.testing.assert_array_equal(mine.weight.to_numpy(np.float32), routes.weight[half][5, 1, 4])
        np.testing.assert_array_equal(mine.score.to_numpy(np.float32), scores[index])
        assert set(mine.token) == {routes.tokens[1, 4]}
    forced = routes.edit("ffn", to="SKIP", round=0, tokens=0).to_pandas()
    first = forced[(forced.position == 0) & (forced.block == 0) & (forced["round"] == 0) & (forced.half == "ffn")]
    assert first.module.tolist() == ["SKIP"] * 4
    free = routes.edit("ffn", to=["free", 1], round=0, tokens=0, rows=0).to_pandas().query("half == 'ffn'")
    assert free.module.tolist()[:2] == ["free", 1] and (free.module == "free").sum() == 1
    none = made(chunks=0)(tokens_of(), return_routes=True).routes.to_pandas()
    assert none.empty and list(none.columns) == columns


def test_a_table_leaves_out_padding() -> None:
    pytest.importorskip("pandas")
    mask = np.ones((2, 10), int)
    mask[0, :6] = 0
    routes = made()(tokens_of(), attention_mask=mask, return_routes=True).routes
    table = routes.to_pandas()
    assert len(table) == (4 + 10) * 3 * 2 * 2
    assert (
        table[table.row == 0].position.max() == 3
        and table[(table.row == 0) & (table.position == 0)].token.iloc[0] == (tokens_of()[0, 6])
    )
