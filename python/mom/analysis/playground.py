"""Forcing modules of single tokens and watching what changes: losses, routes and the next-token distribution."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, count
from .._extras import need
from ..interventions.rules import Force, Intervention, as_interventions
from ..model import ModelOutput, MoM, Routes
from .view import asset, facts_of, read_text, texts_of

__all__ = ["Playground", "playground"]

#: So many next tokens are shown.
_MOST_NEXT = 10
#: What a message may ask for.
_REQUESTS = ("force", "free", "reset", "look")

Floats = npt.NDArray[np.floating[Any]]


class Playground:
    """Forced choices of single tokens of a text, and what they change.

    This is what stands behind the widget of `playground`, and it works without Jupyter. It has a copy of the model in
    evaluation mode, so later changes of the model do not reach it.

    Parameters
    ----------
    model : MoM or path
    text : str, or array of int of shape (T,) or (1, T)
        At least two tokens.
    interventions : sequence of Intervention
        What stays changed throughout, beside the interventions that are active in the model.

    Attributes
    ----------
    ids : ndarray of int32, shape (1, T)
    losses_before, losses : ndarray of float32, shape (T,)
        Loss of each token in nats, without and with the forced choices. The first token has none, which is NaN.
    routes_before, routes : Routes
        Without and with the forced choices.

    Raises
    ------
    ValueError, TypeError
        If the model has no routers, or every token uses all modules, or the text does not fit.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> p = mom.analysis.Playground(model, [5, 3, 8, 8, 1])
    >>> p.force("ffn", round=2, token=3, to=1)
    >>> p.rules
    [Force(half='ffn', to=1, rounds=[2], tokens=[3])]
    >>> print(p.code)
    rules = [
        mom.Force("ffn", to=1, rounds=[2], tokens=[3]),
    ]
    >>> p.losses.shape
    (5,)
    """

    def __init__(
        self, model: MoM | PathLike, text: str | npt.ArrayLike, *, interventions: Sequence[Intervention] = ()
    ) -> None:
        model = MoM.resolve(model)
        self.ids = read_text(model, text, least=2)
        if model.config.routing_all_possible_path:
            raise ValueError(
                "model: every token uses all modules, so no choice can be forced. mom.analysis.view shows the weights"
            )
        self._always = [*model.interventions, *as_interventions(interventions)]
        self._model = model.copy()
        self._model.eval()
        self._forced: dict[tuple[str, int, int], tuple[int | str, ...]] = {}
        self._next_before: dict[int, Floats] = {}
        self._before = self._after = self._pass(self.rules)
        for scope in model.scopes:
            scope.touched.update(range(len(scope.rules)))

    def _pass(self, rules: Sequence[Intervention]) -> ModelOutput:
        with self._model.intervene([*self._always, *rules]):
            return self._model(self.ids, labels=self.ids, return_routes=True, keep=False, return_token_losses=True)

    # ------------------------------------------------------------------ changes
    def force(self, half: str, round: int, token: int, to: int | str | Sequence[int | str]) -> None:
        """Choose what a token does in one round, in place of the router.

        Parameters
        ----------
        half : {"attn", "ffn"}
        round : int
            Counted over the blocks.
        token : int
            Position in the text.
        to : int, "SKIP", or a list of at most K of them
            As for `mom.Force`.

        Raises
        ------
        ValueError, TypeError
            If something does not exist, or an intervention of the model decides this choice. Nothing changes then.
        """
        wanted = Force(half, to=to, rounds=[count(round, "round")], tokens=[self._token(token)])
        kept = wanted.to if isinstance(wanted.to, tuple) else (wanted.to,)
        self._change({**self._forced, (wanted.half, int(round), int(token)): kept})

    def free(self, half: str, round: int, token: int) -> None:
        """Leave a choice to the router again. If it was not forced, nothing changes."""
        self._change({key: to for key, to in self._forced.items() if key != (half, round, token)})

    def reset(self) -> None:
        """Leave all choices to the router."""
        self._change({})

    def _change(self, forced: dict[tuple[str, int, int], tuple[int | str, ...]]) -> None:
        self._after = self._pass(_rules_of(forced)) if forced else self._before
        self._forced = forced

    def _token(self, token: Any) -> int:
        found = count(token, "token")
        if found >= self.ids.size:
            raise ValueError(f"token: there is no position {found}; the text has {self.ids.size} tokens")
        return found

    # ------------------------------------------------------------------ what is known
    @property
    def rules(self) -> list[Force]:
        """The forced choices as interventions. Tokens with the same choices in the same round share a rule."""
        return _rules_of(self._forced)

    @property
    def code(self) -> str:
        """`rules` as Python code."""
        lines = []
        for rule in self.rules:
            to = json.dumps(rule.to) if not isinstance(rule.to, tuple) else json.dumps(list(rule.to))
            lines.append(
                f'    mom.Force("{rule.half}", to={to}, rounds={list(rule.rounds)}, tokens={list(rule.tokens)}),\n'
            )
        also = "".join(f"# Also active: {rule!r}\n" for rule in self._always)
        return f"{also}rules = [\n{''.join(lines)}]" if lines else f"{also}rules = []"

    @property
    def losses_before(self) -> Floats:
        return _losses_of(self._before)

    @property
    def losses(self) -> Floats:
        return _losses_of(self._after)

    @property
    def routes_before(self) -> Routes:
        return _routes_of(self._before)

    @property
    def routes(self) -> Routes:
        return _routes_of(self._after)

    def next_tokens(self, token: int) -> list[dict[str, Any]]:
        """The most probable tokens after a position: the ten best with the forced choices, then others of the ten best
        without them.

        Returns
        -------
        list of dict
            ``id``, ``text`` (None without a tokenizer), and the probabilities ``before`` and ``after``.
        """
        token = self._token(token)
        if token not in self._next_before:
            self._next_before[token] = self._distribution(token, ())
        before = self._next_before[token]
        after = self._distribution(token, self.rules) if self._forced else before
        best = [np.argsort(-values, kind="stable")[:_MOST_NEXT].tolist() for values in (after, before)]
        ids = list(dict.fromkeys(best[0] + best[1]))
        texts = texts_of(self._model, ids)
        return [
            {"id": i, "text": texts and texts[n], "before": float(before[i]), "after": float(after[i])}
            for n, i in enumerate(ids)
        ]

    def _distribution(self, token: int, rules: Sequence[Intervention]) -> Floats:
        with self._model.intervene([*self._always, *rules]):
            logits = self._model.logits_at(self.ids, [token])[0].astype(np.float64)
        found: Floats = np.exp(logits - logits.max())
        found /= found.sum()
        return found

    def __repr__(self) -> str:
        return f"<Playground: {self.ids.size} tokens, {len(self._forced)} forced choices>"

    # ------------------------------------------------------------------ the page
    @property
    def facts(self) -> dict[str, Any]:
        """What a page shows of the text without forced choices: plain values that JSON can hold."""
        rules = [repr(rule) for rule in self._always]
        known = facts_of(self._model, self._before, texts_of(self._model, self.ids))
        return {"title": "Playground of routes", **known, "rules": rules}

    def answer(self, message: Any) -> dict[str, Any]:
        """Do what a message of the page asks, and say how things stand.

        Parameters
        ----------
        message : dict
            ``do`` says what to do: "force" needs ``half, round, token, to``, and "free" needs ``half, round, token``.
            "reset" and "look" need nothing. ``shown`` is the position whose next tokens the page shows. ``turn`` comes
            back as it is.

        Returns
        -------
        dict
            Plain values that JSON can hold. ``error`` is empty, or says in a sentence what was wrong with the message.
            Nothing has changed then.
        """
        error = ""
        try:
            self._do(message)
        except Exception as trouble:  # a reader of the page sees it; in the kernel nobody would
            error = str(trouble) or type(trouble).__name__
        given = message if isinstance(message, Mapping) else {}
        shown = given.get("shown")
        if type(shown) is not int or not 0 <= shown < self.ids.size:
            shown = 0
        now = facts_of(self._model, self._after, None)
        changes = [
            {"half": half, "round": round, "token": token, "to": list(to)}
            for (half, round, token), to in self._forced.items()
        ]
        return {
            "losses": now["losses"], "halves": now["halves"], "changes": changes, "code": self.code, "shown": shown,
            "next": self.next_tokens(shown), "error": error, "turn": given.get("turn"),
        }  # fmt: skip

    def _do(self, message: Any) -> None:
        do = message.get("do") if isinstance(message, Mapping) else None
        if do not in _REQUESTS:
            raise ValueError(f"message: expected 'do' to be one of {', '.join(map(repr, _REQUESTS))}, got {message!r}")
        if do == "reset":
            self.reset()
        elif do in ("force", "free"):
            names = ("half", "round", "token", "to")[: 4 if do == "force" else 3]
            if missing := [name for name in names if name not in message]:
                raise ValueError(f"message: {do!r} needs {missing[0]!r}")
            getattr(self, do)(**{name: message[name] for name in names})


def _rules_of(forced: Mapping[tuple[str, int, int], tuple[int | str, ...]]) -> list[Force]:
    shared: dict[tuple[str, int, tuple[int | str, ...]], list[int]] = {}
    for (half, round, token), to in forced.items():
        shared.setdefault((half, round, to), []).append(token)
    return [
        Force(half, to=to[0] if len(to) == 1 else list(to), rounds=[round], tokens=sorted(tokens))
        for (half, round, to), tokens in shared.items()
    ]


def _losses_of(out: ModelOutput) -> Floats:
    assert out.token_losses is not None
    return np.concatenate([np.array([np.nan], np.float32), out.token_losses[0, :-1]])


def _routes_of(out: ModelOutput) -> Routes:
    assert out.routes is not None
    return out.routes


def playground(model: MoM | PathLike, text: str | npt.ArrayLike, *, interventions: Sequence[Intervention] = ()) -> Any:
    """A Jupyter widget to force modules of single tokens and watch what changes.

    It shows the grid of `view`. Choose a cell with the mouse or the arrow keys, then a module or SKIP for it, or leave
    the choice free. Beside the grid are the router's scores and the next-token distribution at this token, before and
    after. Below it are the forced choices and the Python code for them.

    Parameters
    ----------
    model, text, interventions
        As for `Playground`.

    Returns
    -------
    anywidget.AnyWidget
        Its ``playground`` is the `Playground` behind it, with the rules, losses and routes.

    Raises
    ------
    ImportError
        Without the package anywidget: ``pip install anywidget``.
    ValueError, TypeError
        As for `Playground`.

    Notes
    -----
    What a reader asks for and cannot have is said in the widget, and nothing changes then.
    """
    anywidget, traitlets = (
        need(name, "the widget of a playground", "anywidget") for name in ("anywidget", "traitlets")
    )

    class PlaygroundWidget(anywidget.AnyWidget):  # type: ignore[misc, name-defined]
        _esm = asset("grid.js") + asset("playground.js")
        _css = asset("grid.css") + asset("playground.css")
        facts = traitlets.Dict().tag(sync=True)
        state = traitlets.Dict().tag(sync=True)

        def __init__(self, playground: Playground) -> None:
            super().__init__(facts=playground.facts, state=playground.answer({"do": "look", "shown": 0}))
            self.playground = playground
            self.on_msg(self._hear)

        def _hear(self, _: Any, message: Any, buffers: Any) -> None:
            self.state = self.playground.answer(message)

    return PlaygroundWidget(Playground(model, text, interventions=interventions))
