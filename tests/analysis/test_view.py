"""The page of a text's routes: its facts, its escapes, its size, and what it loads (nothing)."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from mom.analysis import View, view
from mom.analysis.view import asset


def tokenizer() -> mom.Tokenizer:
    """A token for each byte, and a few longer ones."""
    return mom.Tokenizer.train(["a text of some words"], vocab_size=270)


def facts_in(page: View) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page.html, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_holds_routes_scores_and_losses_of_a_pass() -> None:
    model = model_of(chunks=2, num_ffn=6)
    out = model(IDS[:1], labels=IDS[:1], return_routes=True, return_token_losses=True)
    routes, facts = out.routes, facts_in(view(model, IDS[0]))
    assert routes is not None and out.token_losses is not None
    assert facts["ids"] == IDS[0].tolist() and facts["texts"] is None and facts["rules"] == []
    assert facts["rounds"] == [list(pair) for pair in routes.rounds]
    np.testing.assert_allclose(facts["losses"][1:], out.token_losses[0, :-1], atol=6e-4)
    assert facts["losses"][0] is None
    for half in facts["halves"]:
        key = half["key"]
        shape = routes.index[key].shape
        assert (half["modules"], half["kept"]) == (routes.num_modules[key], shape[-1])
        np.testing.assert_array_equal(np.reshape(half["index"], shape), routes.index[key])
        np.testing.assert_allclose(np.reshape(half["weight"], shape), routes.weight[key], atol=6e-4)
        np.testing.assert_allclose(np.reshape(half["scores"], routes.scores[key].shape), routes.scores[key], atol=6e-4)


def test_interventions_and_given_routes_are_shown_and_listed() -> None:
    model = model_of()
    forbid, force = mom.Forbid("attn", [1]), mom.Force("ffn", to="SKIP", tokens=[2])
    with model.intervene([forbid]):
        page = view(model, IDS[0], interventions=[force])
        routes = model(IDS[:1], interventions=[force], return_routes=True).routes
    assert routes is not None
    facts = facts_in(page)
    assert facts["rules"] == [repr(forbid), repr(force)]
    np.testing.assert_array_equal(facts["halves"][1]["index"], routes.index["ffn"].ravel())
    replayed = facts_in(view(model, IDS[0], routes=routes))
    assert replayed["rules"] == ["choices of given routes"]
    np.testing.assert_array_equal(replayed["halves"][0]["index"], routes.index["attn"].ravel())


EVIL = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\u2028b", '"\'&<!--', "]]>", "\x00"]


@pytest.mark.parametrize("text", EVIL)
def test_a_text_cannot_leave_its_place(text: str) -> None:
    model = model_of(vocab_size=300, n_positions=64)
    model.tokenizer = tokenizer()
    page = view(model, text, title=text)
    facts = facts_in(page)
    assert facts["title"] == text and len(facts["texts"]) == len(facts["ids"]) == len(model.tokenizer.encode(text))
    outside = page.html.replace(html.escape(text), "")
    assert outside.count("<script") == 2 and "<img" not in outside and "alert(1)</script>" not in outside
    assert "\u2028" not in re.findall(r'id="facts">(.*?)</script>', page.html, re.DOTALL)[0]


def test_the_page_loads_nothing_and_its_policy_fits_its_script_and_style() -> None:
    page = view(model_of(), IDS[0]).html
    assert not re.search(r"https?:|//[a-z]|\bimport\b|@import|url\(|<link|src=", page.replace("http://www.w3.org/", ""))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    for element in ("style", "script"):
        text = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


def test_64_tokens_in_8_rounds_are_far_below_a_megabyte() -> None:
    model = model_of(n_positions=64, depth_per_chunk=8)
    page = view(model, np.arange(64) % 40)
    assert len(page.html.encode()) < 200_000
    assert len(page._repr_html_().encode()) < 400_000


def test_a_page_is_saved_whole_and_shows_itself_in_a_frame(tmp_path: Path) -> None:
    page = view(model_of(), IDS[0], title='A "title"')
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page.html
    shown = page._repr_html_()
    (inner,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(inner) == page.html and 'sandbox="allow-scripts"' in shown
    assert repr(page).startswith("<View: 'A \"title\"', 12 tokens, ")


def test_the_model_stays_as_it_was() -> None:
    model = model_of()
    model.train()
    state = model.random_state
    view(model, IDS[0])
    assert model.training and model.random_state == state


def test_what_cannot_be_shown_is_refused() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="text: the model has no tokenizer. Set model.tokenizer"):
        view(model, "a text")
    with pytest.raises(ValueError, match=r"text: shape \(6, 12\) has 6 sequences; a page shows one"):
        view(model, IDS)
    with pytest.raises(ValueError, match="text: has 17 tokens; give at most 16, the model's n_positions"):
        view(model, np.zeros(17, int))
    with pytest.raises(ValueError, match="model: has no routers"):
        view(mom.MoM(model.config.vanilla_config()), IDS[0])
    larger = model_of(vocab_size=300)
    larger.tokenizer = tokenizer()
    with pytest.raises(ValueError, match="text: has 0 tokens"):
        view(larger, "")


def test_every_asset_is_there() -> None:
    for name in ("grid.js", "grid.css", "page.html", "page.js", "playground.js", "playground.css"):
        assert asset(name)
