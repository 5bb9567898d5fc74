"""A text's routes as one page of HTML: tokens and rounds, scores of every choice, and the loss of each token."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, as_ids
from .._json import to_json
from ..files.folders import write_file
from ..interventions.rules import Intervention, as_interventions
from ..model import ModelOutput, MoM, Routes

__all__ = ["View", "asset", "facts_of", "read_text", "texts_of", "view"]

Ids = npt.NDArray[np.int32]
_NAMES = {"attn": "Attention", "ffn": "Feed-forward"}


class View:
    """A page of HTML that shows itself in Jupyter.

    Attributes
    ----------
    html : str
        The whole page. It loads nothing from anywhere.
    title : str
    """

    def __init__(self, page: str, title: str, tokens: int) -> None:
        self.html, self.title, self._tokens = page, title, tokens

    def save(self, path: PathLike) -> None:
        """Write the page to a file, whole or not at all."""
        write_file(path, self.html)

    def _repr_html_(self) -> str:
        """A frame, so that scripts and styles of the page and of the notebook do not meet."""
        height = min(860, 400 + 22 * self._tokens)
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width: 100%; height: {height}px; border: 0"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<View: {self.title!r}, {self._tokens} tokens, {len(self.html.encode()) / 1000:.0f} kB of HTML>"


def view(
    model: MoM | PathLike,
    text: str | npt.ArrayLike,
    *,
    title: str = "Routes of a text",
    interventions: Sequence[Intervention] = (),
    routes: Routes | None = None,
) -> View:
    """Show which modules the tokens of a text run, as a page of HTML.

    Parameters
    ----------
    model : MoM or path
    text : str, or array of int of shape (T,) or (1, T)
        A text, for a model with a tokenizer; or token ids.
    title : str
        Heading of the page.
    interventions : sequence of Intervention
        What to change, beside the interventions that are active in the model. The page lists all of them.
    routes : Routes, optional
        Choices to force, of the same tokens.

    Returns
    -------
    View
        With the page in ``html``, and ``save(path)``. In Jupyter it shows itself.

    Raises
    ------
    ValueError, TypeError
        If the model has no routers, or the text does not fit it.

    Notes
    -----
    The page has a row for each token and a column for each round of a half. Point at a cell, or move there with the
    arrow keys, to see the router's score of every choice. Filters keep a half, a block, the cells that run a module or
    SKIP, and tokens above a loss. The loss of a token says how well the tokens before it predict it, in nats, so the
    first token has none.

    The page needs no network. Scores and losses are rounded to three decimals. The model is in evaluation mode
    meanwhile, and stays as it was.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> page = mom.analysis.view(model, [5, 3, 8, 8, 1])
    >>> page.save("routes.html")
    >>> page.html.startswith("<!DOCTYPE html>")
    True
    """
    model = MoM.resolve(model)
    ids = read_text(model, text)
    with model.evaluating():
        out = model(
            ids, labels=ids, return_routes=True, keep=False, interventions=interventions, routes=routes,
            return_token_losses=True,
        )  # fmt: skip
    rules = [repr(rule) for rule in (*model.interventions, *as_interventions(interventions))]
    if routes is not None:
        rules.append("choices of given routes")
    title = str(title).encode("utf-8", "replace").decode()  # half a surrogate pair cannot be written to a file
    facts = {"title": title, **facts_of(model, out, texts_of(model, ids)), "rules": rules}
    return View(_page(facts), title, ids.size)


def read_text(model: MoM, text: Any, least: int = 1) -> Ids:
    """The token ids (1, T) of a text, checked against the model.

    Raises
    ------
    ValueError, TypeError
        If the model has no routers, no tokenizer, or too few positions, or there are fewer tokens than `least`.
    """
    c = model.config
    if not c.has_routers:
        raise ValueError("model: has no routers, so there is nothing to show")
    if isinstance(text, str):
        if model.tokenizer is None:
            raise ValueError(
                "text: the model has no tokenizer. Set model.tokenizer = mom.Tokenizer.load(folder), or give token ids"
            )
        ids: Ids = model.tokenizer.encode(text)[None]
    else:
        ids = as_ids(np.asarray(text)[None] if np.ndim(text) == 1 else text, "text")
    if len(ids) != 1:
        raise ValueError(f"text: shape {ids.shape} has {len(ids)} sequences; a page shows one, such as text[0]")
    if ids.size < least:
        raise ValueError(f"text: has {ids.size} tokens, and at least {least} are needed")
    if ids.size > c.n_positions:
        raise ValueError(f"text: has {ids.size} tokens; give at most {c.n_positions}, the model's n_positions")
    return ids


def texts_of(model: MoM, ids: npt.ArrayLike) -> list[str] | None:
    """The text of each token, or None if the model has no tokenizer. An id without a token is shown as the id."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    flat = np.asarray(ids).ravel().tolist()
    return [f"<id {i}>" if tokenizer.token(i) is None else tokenizer.decode([i]) for i in flat]


def facts_of(model: MoM, out: ModelOutput, texts: list[str] | None) -> dict[str, Any]:
    """What a page shows of a forward pass of one sequence: plain values that JSON can hold.

    Numbers of a half stand in flat lists: round by round, and in a round token by token. Losses are those of the
    tokens themselves.
    """
    routes, losses = out.routes, out.token_losses
    assert routes is not None and losses is not None
    halves = []
    for half, index in routes.index.items():
        scores, weight = routes.scores[half], routes.weight[half]
        if model.config.routing_all_possible_path:  # every choice is kept, and weighs as much as its score
            index = np.argsort(-scores, axis=-1, kind="stable").astype(np.int16)
            weight = -np.sort(-scores, axis=-1)
        halves.append({
            "key": half, "name": _NAMES[half], "modules": routes.num_modules[half], "kept": index.shape[-1],
            "choices": scores.shape[-1], "softmax": model.config.router_type.endswith("-softmax"),
            "index": index.ravel().tolist(), "weight": _rounded(weight), "scores": _rounded(scores),
        })  # fmt: skip
    return {
        "ids": routes.tokens[0].tolist(), "texts": texts, "losses": [None, *_rounded(losses[0, :-1])],
        "rounds": [list(pair) for pair in routes.rounds], "halves": halves,
    }  # fmt: skip


def _rounded(values: npt.NDArray[np.float32]) -> list[float | None]:
    """Three decimals; None where a value is not finite."""
    found = np.round(values.astype(np.float64).ravel(), 3) + 0.0  # no -0.0
    return [value if np.isfinite(value) else None for value in found.tolist()]


def asset(name: str) -> str:
    """The text of a file of the folder ``pages``."""
    return (resources.files(__package__) / "pages" / name).read_text(encoding="utf-8")


def _page(facts: Mapping[str, Any]) -> str:
    """The whole page. A policy in its head forbids everything but the page's own style and script."""
    style, script = "\n" + asset("grid.css"), "\n" + asset("grid.js") + asset("page.js")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    # Within a script element only "<" can end it or begin a comment; JSON may write it as an escape.
    written = to_json(facts, indent=None, ascii=True).strip().replace("<", "\\u003c")
    parts = {"POLICY": policy, "TITLE": html.escape(str(facts["title"])), "STYLE": style, "FACTS": written,
             "SCRIPT": script}  # fmt: skip
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], asset("page.html"))


def _hash(text: str) -> str:
    """The source expression of an inline element with this text, for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
