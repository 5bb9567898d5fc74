"""Points of a grid that Optuna chooses."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._extras import need
from .._reading import kind_of
from ..errors import ConfigError, DataError
from .grid import Grid
from .trial import Trial, read_records

__all__ = ["Asked"]


class _Point:
    """A point that Optuna has chosen, and the losses of its seeds so far."""

    def __init__(self, asked: Any, hashes: set[str]) -> None:
        self.asked, self.waits, self.losses = asked, hashes, list[float]()


class Asked:
    """Trials at points that Optuna chooses by the validation losses of earlier ones: the mean over the seeds.

    The trials in the folder count as earlier ones, so a sweep that was interrupted goes on.

    Parameters
    ----------
    plan : Grid
        Its axes are what Optuna chooses. The axis ``seed`` is not: every point is run with each seed.
    folder : Path
        Of the sweep.

    Raises
    ------
    ImportError
        Without the package optuna.
    ConfigError
        If the grid has variants or no number of trials, or an axis that Optuna cannot choose from.
    """

    def __init__(self, plan: Grid, folder: Path) -> None:
        self._optuna = need("optuna", "sampler='optuna'")
        if plan.variants:
            raise ConfigError("variant: has no meaning with the sampler 'optuna'; make an axis of what differs")
        if plan.number is None:
            raise ConfigError("trials: missing; say how many points the sampler 'optuna' may try")
        self._plan, self._seeds = plan, plan.axes.get("seed", [plan.base.get("seed", 0)])
        if isinstance(self._seeds, Mapping):
            raise ConfigError("grid: seed: expected a list; every point is run with each seed")
        self._space = {name: self._distribution(axis, name) for name, axis in plan.axes.items() if name != "seed"}
        if not self._space:
            raise ConfigError("grid: the sampler 'optuna' needs an axis beside seed")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._left: deque[Trial] = deque()
        self._open: list[_Point] = []
        known = self._known(folder) if kind_of(folder) == "folder" else []
        if not known:
            self._check()
        # A sampler that begins anew with the same seed would choose points again that are known.
        self._study = self._optuna.create_study(sampler=self._optuna.samplers.TPESampler(seed=len(known)))
        for point, loss in known:
            result = {"value": loss} if math.isfinite(loss) else {"state": self._optuna.trial.TrialState.FAIL}
            made = self._optuna.trial.create_trial(params=point, distributions=self._space, **result)
            self._study.add_trial(made)
            self._left.extend(self._trials(point))
        self._asked = min(len(known), plan.number)

    def _distribution(self, axis: Any, name: str) -> Any:
        kinds = self._optuna.distributions
        try:
            if not isinstance(axis, Mapping):
                return kinds.CategoricalDistribution(axis)
            whole = all(type(axis[end]) is int for end in ("low", "high"))
            return (kinds.IntDistribution if whole else kinds.FloatDistribution)(**axis)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"grid: {name}: {error}") from None

    def _check(self) -> None:
        """Try whether a point of the space is a run at all, before the first process begins."""
        point = {
            name: axis["low"] if isinstance(axis, Mapping) else axis[0] for name, axis in self._plan.axes.items()
        }  # fmt: skip
        self._plan.trial(point)

    def _known(self, folder: Path) -> list[tuple[dict[str, Any], float]]:
        """The points in the folder whose seeds are all done, and their mean losses."""
        points: dict[str, tuple[dict[str, Any], dict[int, float]]] = {}
        for record in read_records(folder):
            point = {name: record.point.get(name) for name in self._space}
            if record.done is None or record.point.keys() < self._space.keys() or None in point.values():
                continue
            try:
                trial = self._plan.trial({**point, "seed": record.flat["seed"]})
            except (ConfigError, DataError):
                continue
            if trial.hash == record.folder.name:
                points.setdefault(repr(point), (point, {}))[1][trial.seed] = record.done["val_loss"]
        return [
            (point, math.fsum(losses[seed] for seed in self._seeds) / len(self._seeds))
            for point, losses in points.values()
            if set(self._seeds) <= losses.keys() and self._fits(point)
        ]

    def _fits(self, point: Mapping[str, Any]) -> bool:
        """Whether a point of the folder lies in the space of this sweep."""
        axes = {name: self._plan.axes[name] for name in self._space}
        return all(
            axis["low"] <= point[name] <= axis["high"] if isinstance(axis, Mapping) else point[name] in axis
            for name, axis in axes.items()
        )

    def _trials(self, point: Mapping[str, Any]) -> list[Trial]:
        return [self._plan.trial({**point, "seed": seed}) for seed in self._seeds]

    @property
    def total(self) -> int:
        return (self._plan.number or 0) * len(self._seeds)

    @property
    def is_over(self) -> bool:
        return not self._left and self._asked >= (self._plan.number or 0)

    def next(self) -> Trial | None:
        if not self._left and not self.is_over:
            asked = self._study.ask(self._space)
            trials = self._trials(asked.params)
            self._asked += 1
            self._open.append(_Point(asked, {trial.hash for trial in trials}))
            self._left.extend(trials)
        return self._left.popleft() if self._left else None

    def ended(self, trial: Trial, done: dict[str, Any] | None) -> None:
        for point in [point for point in self._open if trial.hash in point.waits]:
            point.waits.remove(trial.hash)
            point.losses.append(math.nan if done is None else done["val_loss"])
            if point.waits:
                continue
            self._open.remove(point)
            mean = math.fsum(point.losses) / len(point.losses)
            failed = None if math.isfinite(mean) else self._optuna.trial.TrialState.FAIL
            self._study.tell(point.asked, None if failed else mean, state=failed)
