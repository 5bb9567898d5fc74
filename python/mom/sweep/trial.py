"""A trial: one resolved configuration, and its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._json import from_words, sha256_of, to_json
from .._reading import kind_of, read_object, read_text
from ..config import MoMConfig
from ..errors import ConfigError, DataError
from ..training import TrainingConfig
from .fields import NO_EFFECT, OF_VANILLA, defaults_of, plain, without_routing

__all__ = [
    "CONFIG", "DONE", "FAILED", "LOCK", "LOG", "MESSAGES", "Record", "Trial", "evaluations_in", "flat", "read_records",
    "read_words",
]  # fmt: skip

#: Files of a trial's folder.
CONFIG, DONE, FAILED, LOG, LOCK = "config.json", "done.json", "failed.json", "log.jsonl", ".trial.lock"
#: What a trial's process prints, warnings for example.
MESSAGES = "messages.txt"
_LETTERS = 16
_UNKNOWN = object()
_DEFAULTS = {
    "model": defaults_of(MoMConfig),
    "training": {name: value for name, value in defaults_of(TrainingConfig).items() if name not in NO_EFFECT},
}


@dataclass(frozen=True)
class Trial:
    """One run of a grid.

    Attributes
    ----------
    settings : dict
        The resolved configuration: everything that determines the result.
    plan : dict
        Training settings that do not change the result, such as ``save_every``.
    where : dict
        Paths of the data.
    name : str or None
        Name of the variant.
    label : str
        What tells the trial from the others of its grid, in words.
    point : dict
        Its values of the grid's axes.
    """

    settings: dict[str, Any]
    plan: dict[str, Any] = field(compare=False)
    where: dict[str, Any] = field(compare=False)
    name: str | None = field(default=None, compare=False)
    label: str = field(default="", compare=False)
    point: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def hash(self) -> str:
        """Name of the folder: the beginning of the SHA-256 sum of the settings.

        Fields with their defaults do not count. So a field that a later version adds leaves the names as they are.
        """
        changed = {
            part: {name: value for name, value in self.settings[part].items() if value != defaults.get(name, _UNKNOWN)}
            for part, defaults in _DEFAULTS.items()
        }
        return sha256_of({**self.settings, **changed})[:_LETTERS]

    @property
    def seed(self) -> int:
        """Of the weights and of the order of the data."""
        return int(self.settings["training"]["seed"])

    def phase_one(self) -> Trial | None:
        """The trial that trains the plain GPT-2 for this one, if it has two phases."""
        steps = self.settings["phase_one_steps"]
        if steps is None:
            return None
        twin = MoMConfig(**self.settings["model"]).vanilla_config()
        model = plain(without_routing(twin))
        training = {**self.settings["training"], "steps": steps}
        settings = {**self.settings, "model": model, "training": training, "phase_one_steps": None}
        return Trial(settings, self.plan, self.where, None, f"phase one of {self.label}")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for `from_dict`."""
        return {"settings": self.settings, "plan": self.plan, "where": self.where, "name": self.name,
                "label": self.label, "point": self.point}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        return cls(**values)


# ---------------------------------------------------------------------- folders
@dataclass(frozen=True)
class Record:
    """What a trial's folder holds.

    Attributes
    ----------
    folder : Path
    names : list of str
        Names of variants under which the trial was run.
    settings, point : dict
        See `Trial`.
    done, failed : dict or None
        The content of ``done.json`` and ``failed.json``.
    """

    folder: Path
    names: list[str]
    settings: dict[str, Any]
    point: dict[str, Any]
    done: dict[str, Any] | None
    failed: dict[str, Any] | None

    @property
    def flat(self) -> dict[str, Any]:
        """See `flat`."""
        return flat(self.settings)


def evaluations_in(own: Path) -> Iterator[dict[str, Any]]:
    """The records of evaluations in the log of a trial's folder. Half a line of a killed process is left out."""
    for line in read_text(own / LOG, DataError).splitlines() if kind_of(own / LOG) is not None else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("kind") == "eval":
            yield entry


def read_words(path: Path) -> dict[str, Any]:
    """Read an object in which numbers that JSON does not have are words."""
    values: dict[str, Any] = from_words(read_object(path, DataError))
    return values


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial by the names of their fields. Data are the beginnings of their hashes.

    A plain GPT-2 has no fields of routing. A field that the version of the trial did not have yet has its default.
    """
    model, training = ({**defaults, **settings[part]} for part, defaults in _DEFAULTS.items())
    if not model["chunks"]:
        model = {name: value for name, value in model.items() if name in (*OF_VANILLA, "chunks")}
    values = {"dtype": settings["dtype"], **model, **training}
    values.update({name: settings[name]["sample"][:8] for name in ("data", "val_data")})
    values["phase_one_steps"] = settings["phase_one_steps"] or 0
    values["interventions"] = to_json(settings["interventions"], indent=None).strip()
    values["trainable"] = to_json(values["trainable"], indent=None).strip()
    return values


def read_records(folder: Path) -> Iterator[Record]:
    """The trials in the folder of a sweep, in the order of their names.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    if kind_of(folder) != "folder":
        raise ConfigError(f"dir: {folder} is not a folder")
    for trial in sorted(folder.iterdir()):
        if kind_of(trial / CONFIG) != "file":
            continue
        config = read_words(trial / CONFIG)
        if not isinstance(config.get("settings"), dict) or "phase_one_steps" not in config["settings"]:
            continue  # a model's folder, for example
        done, failed = (read_words(trial / name) if kind_of(trial / name) else None for name in (DONE, FAILED))
        names, point = list(config.get("names", [])), config.get("point", {})
        yield Record(trial, names, config["settings"], point, done, None if done else failed)
