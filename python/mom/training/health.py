"""The health of routing during training: figures and alarms for the records of evaluations.

Loads, effective modules, the share of SKIP and dead modules are counted in all training passes since the last
evaluation. The entropy of the routers' scores and flips are those of the first validation batch. Nothing here changes
what is trained.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import MoMConfig
from ..distributed import Communicator
from ..model import Routes
from ..routers import KINDS

__all__ = ["ALARMS", "Health"]

#: When an alarm is raised, by its name. Each is about one half of one block.
ALARMS = {
    "dead_modules": "no token has chosen a module since the last evaluation, out of 100 choices or more per module",
    "collapse": "effective modules are at most 1 + (M - 1) / 10 of M modules: nearly all choices are one module",
    "all_skip": "at least 95 % of the choices are SKIP",
    "router_entropy_low": "the mean entropy of the router's scores is at most 2 % of the largest possible",
    # Earlier in a run it is what routers do while they learn.
    "flips_high": "in the last third of a run, at least half of the tokens have another first choice than at the last "
    "evaluation",
}
_ENOUGH, _SKIP, _ENTROPY, _FLIPS = 100, 0.95, 0.02, 0.5
#: Flips are counted in so many tokens. Their choices are kept in checkpoints.
_TOKENS = 1024

Counts = Mapping[str, Sequence[Sequence["NDArray[np.int64] | None"]]]


class Health:
    """Counts the choices of a run.

    Parameters
    ----------
    config : MoMConfig
        Of the model.
    state : dict
        The state of the run, as JSON values, in which everything is kept that a resumed run needs. It is changed here.
    """

    def __init__(self, config: MoMConfig, state: dict[str, Any]) -> None:
        self._config, self._state = config, state

    def count(self, passes: Iterable[Counts]) -> None:
        """Add the choices of passes, see `Network.route_counts`."""
        for counts in passes:
            for half, blocks in counts.items():
                for block, rounds in enumerate(blocks):
                    if routed := [counted for counted in rounds if counted is not None]:
                        self._add(half, str(block), np.sum(routed, axis=0))

    def _add(self, half: str, block: str, counted: ArrayLike) -> None:
        sums = self._state.setdefault("counts", {}).setdefault(half, {})
        sums[block] = (np.asarray(counted) + sums.get(block, 0)).tolist()

    def gather(self, ranks: Communicator) -> None:
        """On several ranks, which all call this: give the counts of all ranks to the first one."""
        if ranks.size == 1:
            return
        own = self._state.pop("counts", {})
        for counts in ranks.exchange(own):
            for half, blocks in counts.items() if ranks.rank == 0 else ():
                for block, counted in blocks.items():
                    self._add(half, block, counted)

    def report(self, routes: Routes | None, late: bool) -> dict[str, Any]:
        """The fields ``health`` and ``alarms`` of an evaluation's record. Counting begins anew.

        Parameters
        ----------
        routes : Routes, optional
            Of the first validation batch. Without them there are no entropies and no flips.
        late : bool
            Whether the run is in its last third, where flips may be an alarm.
        """
        health: dict[str, dict[str, list[Any]]] = {}
        alarms: dict[str, str] = {}
        counted = self._state.pop("counts", {})
        entropies = {} if routes is None else self._entropies(routes)
        flips = {} if routes is None else self._flips(routes)
        for half in dict.fromkeys([*counted, *entropies, *flips]):
            own = health[half] = {}
            for block in range(self._config.chunks):
                figures = _figures_of(counted.get(half, {}).get(str(block)))
                figures["router_entropy"] = entropies.get(half, {}).get(block)
                figures["flips"] = flips.get(half, {}).get(block)
                for name, value in figures.items():
                    own.setdefault(name, []).append(value)
                for name, words in _alarms_of(figures, late):
                    alarms.setdefault(name, f"block {block} {half}: {words}")
        return {"health": health, "alarms": alarms}

    def _entropies(self, routes: Routes) -> dict[str, dict[int, float]]:
        """Mean entropy of the scores as a share of the largest possible, by half and block."""
        found: dict[str, dict[int, float]] = {}
        if not KINDS[self._config.router_kind].scored:
            return found
        for half, scores in routes.scores.items():
            shares = scores if self._config.router_softmax else _softmax(scores)
            if shares.shape[-1] < 2:
                continue
            logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
            by_round = -(shares * logs).sum(axis=-1, dtype=np.float64).reshape(len(routes.rounds), -1).mean(axis=1)
            found[half] = _by_block(by_round / np.log(shares.shape[-1]), routes)
        return found

    def _flips(self, routes: Routes) -> dict[str, dict[int, float]]:
        """Share of tokens with another first choice than at the last evaluation, by half and block."""
        found: dict[str, dict[int, float]] = {}
        before, now = self._state.get("first", {}), dict[str, str]()
        for half, modules in routes.module.items():
            if not modules.shape[-1]:
                continue
            first = modules.reshape(len(routes.rounds), -1, modules.shape[-1])[:, :_TOKENS, 0].astype("<i2")
            now[half] = base64.b64encode(zlib.compress(first.tobytes())).decode("ascii")
            if half in before:
                then = np.frombuffer(zlib.decompress(base64.b64decode(before[half])), "<i2")
                if then.size == first.size:  # otherwise another batch was measured
                    found[half] = _by_block((then.reshape(first.shape) != first).mean(axis=1), routes)
        self._state["first"] = now
        return found


def _by_block(values: NDArray[np.float64], routes: Routes) -> dict[int, float]:
    """The mean over the rounds of each block."""
    blocks = [block for block, _ in routes.rounds]
    return {
        block: float(np.mean([value for value, own in zip(values, blocks, strict=True) if own == block]))
        for block in dict.fromkeys(blocks)
    }


def _softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(axis=-1, keepdims=True)
    return shares


def _figures_of(counts: Sequence[int] | None) -> dict[str, Any]:
    """Figures of the choices of a half of a block; the last count is SKIP's. None where nothing was chosen."""
    names = ("load", "effective_modules", "skip_share", "dead_modules", "choices")
    if counts is None or not sum(counts):
        return dict.fromkeys(names)
    total, own = sum(counts), np.asarray(counts[:-1], np.float64)
    shares = own[own > 0] / max(1.0, own.sum())
    effective = float(np.exp(-np.sum(shares * np.log(shares)))) if shares.size else 0.0
    load = [round(count / total, 5) for count in counts]
    dead = [module for module, count in enumerate(counts[:-1]) if not count]
    return dict(zip(names, (load, round(effective, 5), load[-1], dead, total), strict=True))


def _alarms_of(figures: Mapping[str, Any], late: bool) -> Iterator[tuple[str, str]]:
    """Names of `ALARMS`, with what is the matter in words."""
    if figures["load"] is not None:
        modules = len(figures["load"]) - 1
        if figures["skip_share"] >= _SKIP:
            yield "all_skip", f"{figures['skip_share']:.1%} of the choices are SKIP"
        elif figures["dead_modules"] and figures["choices"] >= _ENOUGH * modules:
            yield "dead_modules", f"no token chose module {', '.join(map(str, figures['dead_modules']))}"
        if modules > 1 and 0 < figures["effective_modules"] <= 1 + (modules - 1) / 10:
            yield "collapse", f"{figures['effective_modules']:.2f} effective modules of {modules}"
    if figures["router_entropy"] is not None and figures["router_entropy"] <= _ENTROPY:
        yield "router_entropy_low", f"entropy is {figures['router_entropy']:.1%} of the largest possible"
    if late and figures["flips"] is not None and figures["flips"] >= _FLIPS:
        yield "flips_high", f"{figures['flips']:.0%} of first choices changed since the last evaluation"
