"""Pages of `mom.analysis.view`, and the playground behind the widget, without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from kinds import ROUTERS
from mom.analysis import Playground, View, playground, view
from mom.analysis.view import asset, read_text, texts_of

#: What must not act in a page: what ends scripts, begins comments, names files, breaks lines, or turns text round.
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028\u2029\u202e ' \" & @SCRIPT@ \\u003c \x00 \ud7ff é"
FILES = ("grid.js", "grid.css", "page.html", "page.js", "playground.js", "playground.css")


@pytest.fixture(scope="module")
def reader() -> mom.MoM:
    """A model with a tokenizer, whose tokens are mostly single bytes."""
    tokenizer = mom.Tokenizer.train(["the cat and the other cat"] * 9, vocab_size=264)
    model = model_of(vocab_size=tokenizer.vocab_size, n_positions=160)
    model.tokenizer = tokenizer
    return model


def facts_in(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scripts_of(page)[0])
    return found


class _Elements(HTMLParser):
    """Names of all elements, and the texts of the scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside = ""
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.inside = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.texts:
            self.texts[self.inside][-1] += data


def scripts_of(page: str) -> list[str]:
    return _Elements(page).texts["script"]


# ---------------------------------------------------------------------- the page
def test_the_page_has_what_the_model_computes() -> None:
    model, ids = model_of(), IDS[:1]
    out = model(ids, labels=ids, return_routes=True, return_token_losses=True, keep=False)
    facts = facts_in(view(model, ids[0]).html)
    assert facts["ids"] == ids[0].tolist() and facts["texts"] is None and facts["rules"] == []
    assert facts["losses"][0] is None
    np.testing.assert_allclose(facts["losses"][1:], out.token_losses[0, :-1], atol=5.1e-4)
    assert [tuple(pair) for pair in facts["rounds"]] == out.routes.rounds
    assert [half["key"] for half in facts["halves"]] == list(out.routes.index)
    for half in facts["halves"]:
        index = out.routes.index[half["key"]]
        assert np.array_equal(np.reshape(half["index"], index.shape), index)
        assert half["modules"] == out.routes.num_modules[half["key"]] and half["softmax"] is True
        for name, array in (("scores", out.routes.scores), ("weight", out.routes.weight)):
            wanted = array[half["key"]]
            np.testing.assert_allclose(np.reshape(half[name], wanted.shape), wanted, atol=5.1e-4)


def test_a_large_page_is_small() -> None:
    model = model_of(chunks=2, n_positions=64, depth_per_chunk=4)
    page = view(model, np.random.default_rng(0).integers(0, 40, 64))
    facts = facts_in(page.html)
    assert len(facts["rounds"]) == 8 and len(facts["ids"]) == 64 and len(facts["halves"]) == 2
    assert len(page.html.encode()) < 200_000


def test_the_page_refers_to_nothing_outside(reader: mom.MoM) -> None:
    page = view(reader, "the cat").html
    assert not re.search(r"https?:|//\w+\.|\bimport\b|@import|url\(|\bfetch\b|XMLHttp|WebSocket|innerHTML|\bsrc=", page)
    for name in FILES:
        assert not re.search(r"https?:|\bimport\b|url\(|innerHTML|insertAdjacent|\beval\b", asset(name)), name


def test_the_policy_allows_the_own_style_and_script_only(reader: mom.MoM) -> None:
    page = view(reader, "the cat").html
    found = _Elements(page).texts
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (found["style"][0], found["script"][1])
    ]
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy == f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]}"


def test_hostile_tokens_and_titles_are_text(reader: mom.MoM) -> None:
    plain = view(reader, "the cat", title="a title").html
    page = view(reader, HOSTILE, title=HOSTILE).html
    assert _Elements(page).names == _Elements(plain).names  # no element more
    facts = facts_in(page)
    assert facts["title"] == HOSTILE and facts["texts"] == texts_of(reader, facts["ids"])
    assert {"<", "&", '"', "\x00"} <= set(facts["texts"])
    assert np.array_equal(facts["ids"], reader.tokenizer.encode(HOSTILE))
    assert view(reader, "the cat", title="half \ud800").title == "half ?"  # no file can hold half a pair
    [written] = re.findall('<script type="application/json" id="facts">(.*?)</script>', page, re.DOTALL)
    assert "<" not in written and written.isascii()
    assert scripts_of(page)[1] == scripts_of(plain)[1]
    assert 'srcdoc="' in (framed := view(reader, HOSTILE, title=HOSTILE)._repr_html_())
    assert _Elements(framed).names == ["iframe"] and 'sandbox="allow-scripts"' in framed


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    page = view(model_of(), IDS[0], title="Routes of ids")
    page.save(tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page.html
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert isinstance(page, View) and "'Routes of ids', 12 tokens" in repr(page)


def test_rules_and_routes_change_what_is_shown_and_are_named() -> None:
    model = model_of()
    rule = mom.Force("ffn", to=1, rounds=[2], tokens=[5])
    facts = facts_in(view(model, IDS[0], interventions=[rule]).html)
    [ffn] = [half for half in facts["halves"] if half["key"] == "ffn"]
    entries = np.reshape(ffn["index"], (4, 12, 2))
    assert entries[2, 5].tolist() == [1, -2] and facts["rules"] == [repr(rule)]
    with model.intervene([rule]):
        assert facts_in(view(model, IDS[0]).html) == facts
    routes = model(IDS[:1], return_routes=True).routes.edit(half="ffn", round=2, tokens=5, to=1)
    by_routes = facts_in(view(model, IDS[0], routes=routes).html)
    assert by_routes["losses"] == facts["losses"] and by_routes["rules"] == ["choices of given routes"]


def test_the_model_stays_as_it_was() -> None:
    model = model_of(resid_pdrop=0.3)
    model.train()
    state = model.random_state
    shown = view(model, IDS[0]).html
    assert model.training and model.random_state == state
    model.eval()
    assert view(model, IDS[0]).html == shown


@pytest.mark.parametrize("router_type", ROUTERS)
def test_all_kinds_of_routers_have_a_page(router_type: str) -> None:
    facts = facts_in(view(model_of(router_type=router_type), IDS[0]).html)
    assert [half["key"] for half in facts["halves"]] == ["attn", "ffn"]
    assert all(half["softmax"] == router_type.endswith("-softmax") for half in facts["halves"])


def test_models_of_other_forms_have_a_page() -> None:
    every = facts_in(view(model_of(routing_all_possible_path=True), IDS[0]).html)
    assert [half["kept"] for half in every["halves"]] == [half["choices"] for half in every["halves"]]
    assert [half["key"] for half in facts_in(view(model_of(num_attn=1), IDS[0]).html)["halves"]] == ["ffn"]


def test_a_forbidden_raw_score_has_no_number() -> None:
    facts = facts_in(view(model_of(router_type="naive"), IDS[0], interventions=[mom.Forbid("ffn", [2])]).html)
    [ffn] = [half for half in facts["halves"] if half["key"] == "ffn"]
    assert set(ffn["scores"][2::5]) == {None} and None not in ffn["scores"][::5]


def test_one_token_has_a_page_without_losses() -> None:
    assert facts_in(view(model_of(), [3]).html)["losses"] == [None]


@pytest.mark.parametrize(
    "text, message",
    [
        ("the cat", "text: the model has no tokenizer. Set model.tokenizer"),
        (IDS, r"text: shape \(6, 12\) has 6 sequences; a page shows one"),
        ([1] * 17, "text: has 17 tokens; give at most 16"),
        ([], "text: "),
        ([40], "40"),
    ],
)
def test_texts_that_do_not_fit_are_refused(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view(model_of(), text)


def test_models_without_routers_are_refused() -> None:
    for model in (
        model_of(num_attn=1, num_ffn=1),
        mom.MoM(mom.MoMConfig.preset("gpt2", vocab_size=40, n_positions=16, n_embd=16, n_head=2, n_layer=1)),
    ):
        with pytest.raises(ValueError, match="model: has no routers"):
            read_text(model, [1, 2])


def test_the_files_of_pages_belong_to_the_package() -> None:
    root = Path(__file__).resolve().parents[2]
    folder = root / "python/mom/analysis/pages"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert '"mom.analysis" = ["pages/*"]' in (root / "pyproject.toml").read_text(encoding="utf-8")
    [line] = re.findall(r"^recursive-include python/mom (.*)$", (root / "MANIFEST.in").read_text("utf-8"), re.MULTILINE)
    assert {f"*{path.suffix}" for path in folder.iterdir()} <= set(line.split())


# ---------------------------------------------------------------------- the playground
def losses_of(model: mom.MoM, rules: Any) -> Any:
    return model(IDS[:1], labels=IDS[:1], return_token_losses=True, keep=False, interventions=rules).token_losses[0]


def test_the_playground_computes_what_a_call_with_its_rules_computes() -> None:
    model = model_of()
    p = Playground(model, IDS[0])
    p.force("ffn", 2, 5, 1)
    p.force("ffn", 2, 3, 1)
    p.force("attn", 0, 7, [2, "SKIP"])
    wanted = [
        mom.Force("ffn", to=1, rounds=[2], tokens=[3, 5]),
        mom.Force("attn", to=[2, "SKIP"], rounds=[0], tokens=[7]),
    ]
    assert p.rules == wanted
    assert eval(p.code.removeprefix("rules = "), {"mom": mom}) == wanted
    losses = losses_of(model, wanted)
    assert np.array_equal(p.losses[1:], losses[:-1]) and np.isnan(p.losses[0])
    assert np.array_equal(p.losses_before[1:], losses_of(model, ())[:-1])
    assert p.losses[4] != p.losses_before[4] and np.array_equal(p.losses[1:4], p.losses_before[1:4])
    assert p.routes == model(IDS[:1], return_routes=True, interventions=wanted).routes
    assert p.routes_before == model(IDS[:1], return_routes=True).routes
    p.free("attn", 0, 7)
    assert p.rules == wanted[:1]
    p.reset()
    assert p.rules == [] and p.code == "rules = []" and np.array_equal(p.losses[1:], p.losses_before[1:])


def test_next_tokens_are_the_best_ten_of_both() -> None:
    model = model_of()
    p = Playground(model, IDS[0])
    p.force("ffn", 3, 5, "SKIP")
    rows = p.next_tokens(5)

    def shares(rules: Any) -> Any:
        logits = model(IDS[:1], return_logits=True, interventions=rules).logits[0, 5].astype(np.float64)
        return np.exp(logits) / np.exp(logits).sum()

    before, after = shares(()), shares(p.rules)
    ids = [row["id"] for row in rows]
    assert ids[:10] == np.argsort(-after)[:10].tolist()
    assert set(ids) == set(ids[:10]) | set(np.argsort(-before)[:10].tolist())
    np.testing.assert_allclose([row["before"] for row in rows], before[ids], rtol=1e-5)
    np.testing.assert_allclose([row["after"] for row in rows], after[ids], rtol=1e-5)
    assert not np.allclose(before, after, rtol=1e-3)


def test_messages_and_answers_survive_json(reader: mom.MoM) -> None:
    p = Playground(reader, "the cat <b>")
    json.dumps(p.facts, allow_nan=False)
    assert p.facts["texts"][0] == "the"
    message = {"do": "force", "half": "ffn", "round": 1, "token": 2, "to": [3, "SKIP"], "shown": 2, "turn": 7}
    answer = json.loads(json.dumps(p.answer(json.loads(json.dumps(message))), allow_nan=False))
    assert answer["error"] == "" and answer["turn"] == 7 and answer["shown"] == 2
    assert answer["changes"] == [{"half": "ffn", "round": 1, "token": 2, "to": [3, "SKIP"]}]
    assert answer["code"] == p.code and [row["id"] for row in answer["next"]] == [r["id"] for r in p.next_tokens(2)]
    np.testing.assert_allclose(answer["losses"][1:], p.losses[1:], atol=5.1e-4)
    assert p.answer({"do": "free", "half": "ffn", "round": 1, "token": 2})["changes"] == []
    p.answer(message)
    assert p.answer({"do": "reset"})["changes"] == [] and p.rules == []


@pytest.mark.parametrize(
    "message, error",
    [
        (None, "expected 'do' to be one of 'force', 'free', 'reset', 'look', got None"),
        ({"do": "explode"}, "expected 'do' to be one of"),
        ({"do": ["force"]}, "expected 'do' to be one of"),
        ({"do": "force", "half": "ffn", "round": 1, "token": 2}, "'force' needs 'to'"),
        ({"do": "force", "half": "mlp", "round": 1, "token": 2, "to": [0]}, "half: expected 'attn' or 'ffn'"),
        ({"do": "force", "half": "ffn", "round": 9, "token": 2, "to": [0]}, "rounds: there is no round 9"),
        ({"do": "force", "half": "ffn", "round": 1, "token": 12, "to": [0]}, "token: there is no position 12"),
        ({"do": "force", "half": "ffn", "round": 1, "token": 2, "to": [9]}, "9"),
        ({"do": "force", "half": "ffn", "round": 1, "token": 2, "to": [0, 1, 2]}, "3"),
        ({"do": "force", "half": "ffn", "round": 1, "token": 2, "to": {"a": []}}, "to: expected"),
        ({"do": "force", "half": ["ffn"], "round": 1, "token": "2", "to": [0]}, "token"),
        ({"do": "free", "half": "ffn", "round": 1}, "'free' needs 'token'"),
    ],
)
def test_wrong_messages_are_answered_and_change_nothing(message: Any, error: str) -> None:
    p = Playground(model_of(), IDS[0])
    p.force("attn", 0, 1, 2)
    before = p.answer({"do": "look", "shown": 3})
    answer = p.answer(message)
    assert error in answer["error"]
    again = p.answer({"do": "look", "shown": 3})
    assert again == before and again["error"] == ""
    for shown in (99, -1, "x", True, None):
        assert p.answer({"do": "look", "shown": shown})["shown"] == 0


def test_active_interventions_stay_and_may_not_be_contradicted() -> None:
    model, rule = model_of(), mom.Force("ffn", to=1, rounds=[2], tokens=[5])
    with model.intervene([rule]):
        p = Playground(model, IDS[0])  # counts as a use of the rule
    assert np.array_equal(p.losses[1:], losses_of(model, [rule])[:-1])
    assert p.code == f"# Also active: {rule!r}\nrules = []" and p.facts["rules"] == [repr(rule)]
    with pytest.raises(ValueError, match="choose differently"):
        p.force("ffn", 2, 5, 3)
    p.force("ffn", 1, 5, 3)
    both = [rule, mom.Force("ffn", to=3, rounds=[1], tokens=[5])]
    assert np.array_equal(p.losses[1:], losses_of(model, both)[:-1])
    model.parameters["transformer.wte.weight"][...] = 0.0
    p.free("ffn", 1, 5)
    p.force("ffn", 1, 5, 3)
    assert p.losses[6] > 0 and not np.array_equal(p.losses[1:], losses_of(model, both)[:-1])


def test_a_playground_needs_choices_and_two_tokens() -> None:
    with pytest.raises(ValueError, match="every token uses all modules, so no choice can be forced"):
        Playground(model_of(routing_all_possible_path=True), IDS[0])
    with pytest.raises(ValueError, match="text: has 1 tokens, and at least 2 are needed"):
        Playground(model_of(), [1])


# ---------------------------------------------------------------------- the widget
def test_without_anywidget_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match="a playground needs the package anywidget: pip install anywidget"):
        playground(model_of(), IDS[0])


def check_widget(widget: Any, hear: Any) -> None:
    """`hear` gives a message to the widget as the page would."""
    assert widget.facts == widget.playground.facts and widget.state["error"] == ""
    hear({"do": "force", "half": "ffn", "round": 1, "token": 2, "to": [3], "shown": 2, "turn": 1})
    assert widget.state["changes"] == [{"half": "ffn", "round": 1, "token": 2, "to": [3]}]
    assert widget.playground.rules == [mom.Force("ffn", to=3, rounds=[1], tokens=[2])]
    hear({"do": "nothing"})
    assert "message: expected 'do'" in widget.state["error"]


def test_the_widget_passes_messages_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for anywidget and traitlets, which tests need not have."""

    class AnyWidget:
        def __init__(self, **values: Any) -> None:
            vars(self).update(values)

        def on_msg(self, listener: Any) -> None:
            self.listener = listener

    class Dict:
        def tag(self, sync: bool) -> Dict:
            assert sync
            return self

    for name, member in (("anywidget", AnyWidget), ("traitlets", Dict)):
        module = types.ModuleType(name)
        setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)
    widget = playground(model_of(), IDS[0])
    check_widget(widget, lambda message: widget.listener(widget, message, []))


def test_the_widget_with_anywidget() -> None:
    pytest.importorskip("anywidget")
    widget = playground(model_of(), IDS[0])
    assert "export default" in widget._esm and ".mom-lab" in widget._css
    check_widget(widget, lambda message: widget._handle_custom_msg(message, []))
