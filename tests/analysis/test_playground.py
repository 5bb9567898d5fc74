"""The playground without Jupyter: forced choices, what they change, and messages of the page."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from mom.analysis import Playground, playground


def made(**changes: Any) -> Playground:
    return Playground(model_of(**changes), IDS[0])


def test_forced_choices_are_those_of_force() -> None:
    model, p = model_of(), made()
    p.force("ffn", round=2, token=3, to=1)
    p.force("attn", round=0, token=5, to="SKIP")
    p.force("ffn", round=1, token=4, to=[2, 0])
    rules = [mom.Force("ffn", to=1, rounds=[2], tokens=[3]), mom.Force("attn", to="SKIP", rounds=[0], tokens=[5]),
             mom.Force("ffn", to=[2, 0], rounds=[1], tokens=[4])]  # fmt: skip
    assert p.rules == rules
    out = model(IDS[:1], labels=IDS[:1], interventions=rules, return_routes=True, return_token_losses=True)
    assert out.token_losses is not None and p.routes == out.routes
    np.testing.assert_array_equal(p.losses[1:], out.token_losses[0, :-1])
    assert np.isnan(p.losses[0])
    before = model(IDS[:1], labels=IDS[:1], return_token_losses=True).token_losses
    assert before is not None
    np.testing.assert_array_equal(p.losses_before[1:], before[0, :-1])
    assert eval(p.code.removeprefix("rules = "), {"mom": mom}) == rules


def test_the_next_token_is_that_of_the_logits() -> None:
    model, p = model_of(), made()
    p.force("ffn", round=0, token=4, to=2)
    for token in (2, 7):
        rows = p.next_tokens(token)
        for key, rules in (("before", []), ("after", p.rules)):
            logits = model(IDS[:1], interventions=rules, return_logits=True).logits[0, token].astype(float)
            wanted = np.exp(logits - np.logaddexp.reduce(logits))
            np.testing.assert_allclose([row[key] for row in rows], wanted[[row["id"] for row in rows]], rtol=1e-4)
            best = np.argsort(-wanted)[:10].tolist()
            assert set(best) <= {row["id"] for row in rows}
    assert all(row["before"] == row["after"] for row in p.next_tokens(2))  # nothing changes before the forced token
    assert any(row["before"] != row["after"] for row in p.next_tokens(7))


def test_choices_can_be_freed_again() -> None:
    p = made()
    for token in (3, 6):
        p.force("ffn", round=1, token=token, to=0)
    assert p.rules == [mom.Force("ffn", to=0, rounds=[1], tokens=[3, 6])]
    p.free("ffn", round=1, token=3)
    assert p.rules == [mom.Force("ffn", to=0, rounds=[1], tokens=[6])]
    p.free("attn", round=0, token=0)  # nothing was forced there
    p.reset()
    assert p.rules == [] and p.code == "rules = []" and p.routes == p.routes_before
    np.testing.assert_array_equal(p.losses, p.losses_before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": "mlp"}, "half: expected 'attn' or 'ffn'"),
        ({"round": 9}, "round"),
        ({"token": 12}, "token: there is no position 12; the text has 12 tokens"),
        ({"to": 7}, "to: there is no module 7; there are 4, and 'SKIP'"),
        ({"to": [0, 1, 2]}, "to"),
    ],
)
def test_what_does_not_exist_is_said_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    p = made()
    p.force("attn", round=1, token=2, to=1)
    before, losses = p.rules, p.losses
    wanted = {"half": "ffn", "round": 0, "token": 1, "to": 0, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        p.force(**wanted)
    answer = p.answer({"do": "force", "shown": 1, **wanted})
    assert message.split(":")[0] in answer["error"]
    assert p.rules == before
    np.testing.assert_array_equal(p.losses, losses)


def test_messages_of_the_page_are_answered() -> None:
    p = made()
    first = p.answer({"do": "look", "shown": 3, "turn": 1})
    assert first["error"] == "" and first["shown"] == 3 and first["turn"] == 1 and first["changes"] == []
    assert [row["id"] for row in first["next"]] == [row["id"] for row in p.next_tokens(3)]
    answer = p.answer({"do": "force", "half": "ffn", "round": 2, "token": 3, "to": ["SKIP"], "shown": 3, "turn": 2})
    assert answer["changes"] == [{"half": "ffn", "round": 2, "token": 3, "to": ["SKIP"]}]
    assert answer["code"] == p.code and answer["losses"][:3] == first["losses"][:3]
    assert json.loads(json.dumps(answer)) == answer and json.loads(json.dumps(p.facts)) == p.facts
    assert p.answer({"do": "free", "half": "ffn", "round": 2, "token": 3})["changes"] == []
    assert p.answer({"do": "reset", "shown": 99})["shown"] == 0


@pytest.mark.parametrize("message", [None, 3, [], {}, {"do": "fly"}, {"do": "force"}, {"do": "free", "half": "ffn"},
                                     {"do": "force", "half": [], "round": {}, "token": None, "to": {}}])  # fmt: skip
def test_odd_messages_are_answered_with_a_sentence(message: Any) -> None:
    answer = made().answer(message)
    assert answer["error"] and answer["changes"] == []


def test_interventions_that_are_active_stay() -> None:
    model, rule = model_of(), mom.Forbid("ffn", [2])
    with model.intervene([rule]):
        p = Playground(model, IDS[0], interventions=[mom.Scale("hidden", 0.5)])
    assert not (p.routes.module["ffn"] == 2).any() and p.code.count("# Also active: ") == 2
    answer = p.answer({"do": "force", "half": "ffn", "round": 0, "token": 1, "to": [2]})
    assert "forced and forbidden" in answer["error"]


def test_texts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="text: has 1 tokens, and at least 2 are needed"):
        Playground(model_of(), [3])
    with pytest.raises(ValueError, match="every token uses all modules, so no choice can be forced"):
        Playground(model_of(routing_all_possible_path=True), IDS[0])


def test_a_missing_anywidget_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match="pip install anywidget"):
        playground(model_of(), IDS[0])


def test_the_widget_passes_messages_on() -> None:
    pytest.importorskip("anywidget")
    widget = playground(model_of(), IDS[0])
    assert widget.facts == widget.playground.facts and widget.state["changes"] == []
    widget._hear(widget, {"do": "force", "half": "attn", "round": 1, "token": 2, "to": [3], "shown": 2, "turn": 5}, [])
    assert widget.state["changes"] == [{"half": "attn", "round": 1, "token": 2, "to": [3]}]
    assert widget.state["turn"] == 5
