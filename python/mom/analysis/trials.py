"""Losses of many routes of one sequence, with as little computed again as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..interventions import Intervention, Patch
from ..interventions.places import places_of
from ..interventions.selection import ANY_SKIP, NONE
from ..model import MoM, Routes
from .candidates import Index, Site
from .restart import begin_at, losses_from, places_to_restart, rounds_of_config, routed_halves

__all__ = ["State", "Trials"]

Floats = npt.NDArray[np.float64]


class State:
    """Routes, the losses of their tokens, and the activations of their pass."""

    def __init__(self, index: Index, losses: Floats, captured: dict[str, npt.NDArray[np.float32]]) -> None:
        self.index, self.losses, self.captured = index, losses, captured
        self.loss = float(np.nansum(losses))


class Trials:
    """One sequence of a model: losses of routes, with as little computed again as possible."""

    def __init__(self, model: MoM, ids: npt.NDArray[np.int32], batch_size: int) -> None:
        self.model, self.ids, self.batch_size, self.config = model, ids, batch_size, model.config
        self.rounds = rounds_of_config(self.config)
        self.inputs = [name for name in places_of(self.config) if name.endswith("attn.input")]
        own = model(ids[None], labels=ids[None], return_routes=True, keep=False, return_token_losses=True)
        assert own.routes is not None and own.token_losses is not None
        self.own = own.routes
        self.loss = float(np.nansum(own.token_losses, dtype=np.float64)) / (len(ids) - 1)  # as `State` adds them up
        self.evaluated = 0

    def routes(self, rows: Sequence[Index], cut: int = 0) -> Routes:
        """Routes of a batch. Tokens before `cut` skip feed-forward modules."""
        r = self.own
        index = {half: np.stack([row[half] for row in rows], axis=1) for half in r.index}
        if cut and "ffn" in index:
            index["ffn"][:, :, :cut] = [ANY_SKIP, *[NONE] * (index["ffn"].shape[-1] - 1)]
        tokens = np.broadcast_to(self.ids, (len(rows), len(self.ids))).copy()
        return Routes(tokens, index, {}, {}, r.rounds, r.num_modules)

    def state(self, index: Index) -> State:
        """The pass with these routes, from which others begin."""
        names = [*places_to_restart(self.config), *self.inputs]
        out = self.model(self.ids[None], labels=self.ids[None], routes=self.routes([index]), capture=names, keep=False,
                         return_token_losses=True)  # fmt: skip
        assert out.token_losses is not None and out.captured is not None
        return State(index, out.token_losses[0].astype(np.float64), dict(out.captured))

    def losses(self, state: State, rows: Sequence[Index], site: Site) -> Floats:
        """Sum of losses of routes that equal those of `state` before `site`."""
        found = []
        for first in range(0, len(rows), self.batch_size):
            found.append(self._batch(state, rows[first : first + self.batch_size], site))
        self.evaluated += len(rows)
        return np.concatenate(found) + np.nansum(state.losses[: site.token])

    def _batch(self, state: State, rows: Sequence[Index], site: Site) -> Floats:
        tokens = np.broadcast_to(self.ids, (len(rows), len(self.ids))).copy()
        labels = tokens.copy()
        labels[:, : site.token + 1] = -100
        captured = {name: np.broadcast_to(a, (len(rows), *a.shape[1:])) for name, a in state.captured.items()}
        begin = begin_at(self.config, captured, site.number, site.half)
        routes = self.routes(rows, site.token)
        losses = losses_from(self.model, tokens, labels, begin, self._past(state, site), routes)
        sums: Floats = np.nansum(losses, axis=1, dtype=np.float64)
        return sums

    def _past(self, state: State, site: Site) -> list[Intervention]:
        """The stream of tokens before a site, which skip feed-forward modules. Their keys and values need it later."""
        if "ffn" not in routed_halves(self.config) or not site.token:
            return []
        block, round = self.rounds[site.number]
        later = self.inputs[self.inputs.index(f"block{block}.round{round}.attn.input") + 1 :]
        past = range(site.token)
        return [Patch(name, state.captured[name][0, : site.token], tokens=past) for name in later]
