"""Settings of a training run: a validated dataclass that reads and writes TOML."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TrainingConfig", "read_toml"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run; the defaults are the published recipe, but for its length and batch.

    Parameters
    ----------
    steps : int
        Optimizer steps of the whole run (the published runs: 5,000 to 30,000).
    batch_size, sequence_length : int
        Rows and tokens per row of a micro-batch (published: 512 sequences of 1,024 per step).
    accumulation : int
        Micro-batches per step. Equals one large batch for the language-model loss.
    lr : float
        Highest learning rate.
    schedule : {"cosine", "linear", "constant"}
        After the warm-up: half a cosine or a straight line to ``final_lr * lr`` at the last step.
    warmup : int or None
        Steps of linear warm-up from 0; None is a tenth of the run (published: 500 of 5,000).
    final_lr : float
        Factor of `lr` at the end of the schedule.
    beta1, beta2, eps, weight_decay : float
        AdamW; see `mom.AdamW`.
    clip : float
        Largest gradient norm; ``inf`` switches clipping off.
    sampling : {"random", "consecutive"}
        Windows drawn without replacement in each epoch, or in the file's order as in the reference.
    seed : int
        Of the order of the data (and of the model's weights where the command makes one).
    eval_every, eval_batches : int
        Validation loss every so many steps (0: only at the end), over so many batches.
    save_every, keep_last : int
        Checkpoint every so many steps (0: only at the end); how many to keep.
    log_every : int
        Steps between lines of the log.
    max_bad_steps : int
        A step with a non-finite loss or gradient is skipped; after this many in a row the run stops.
    activation_checkpointing : bool
        Keep just the input of every round for backward, which computes the rest again: less memory, more time, the
        same numbers. See `mom.MoM.memory_plan`.
    tensorboard : bool
        Also write TensorBoard event files (needs the ``tensorboard`` extra).

    Raises
    ------
    ConfigError
        Naming the field that is unknown, of the wrong type or out of range.
    """

    steps: int = 5000
    batch_size: int = 8
    sequence_length: int = 1024
    accumulation: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: int | None = None
    final_lr: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip: float = 1.0
    sampling: str = "random"
    seed: int = 0
    eval_every: int = 500
    eval_batches: int = 20
    save_every: int = 500
    keep_last: int = 2
    log_every: int = 1
    max_bad_steps: int = 5
    activation_checkpointing: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if value is None and kind.endswith("| None"):
                continue
            wanted = kind.split(" |")[0]
            good = {
                "int": isinstance(value, int) and not isinstance(value, bool),
                "float": isinstance(value, (int, float)) and not isinstance(value, bool),
                "bool": isinstance(value, bool),
                "str": isinstance(value, str),
            }[wanted]
            if not good:
                raise ConfigError(f"{field.name}: expected {kind}, got {type(value).__name__} {value!r}")
        for name in ("steps", "batch_size", "accumulation", "log_every", "max_bad_steps", "keep_last", "eval_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is less than 1")
        if self.sequence_length < 2:
            raise ConfigError(f"sequence_length: {self.sequence_length} is less than 2, so nothing could be predicted")
        if self.batch_size * self.sequence_length >= 2**31:
            raise ConfigError(
                f"batch_size: {self.batch_size} rows of {self.sequence_length} tokens are 2**31 tokens or more"
            )
        for name in ("eval_every", "save_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")
        for name, low, high in (("lr", 0.0, 1e3), ("final_lr", 0.0, 1.0), ("weight_decay", 0.0, 1e3)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [{low}, {high}]")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("eps", "clip"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        for name, choices in (("schedule", ("cosine", "linear", "constant")), ("sampling", ("random", "consecutive"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")
        if self.warmup is not None and not 0 <= self.warmup <= self.steps:
            raise ConfigError(f"warmup: {self.warmup} of {self.steps} steps")

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, with the default worked out."""
        return self.steps // 10 if self.warmup is None else self.warmup

    @property
    def tokens_per_step(self) -> int:
        """Tokens read per optimizer step."""
        return self.batch_size * self.sequence_length * self.accumulation

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with some fields changed (and validated)."""
        _check_known(changes, "configuration")
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> TrainingConfig:
        """Build from a mapping; errors begin with `source`."""
        _check_known(values, source)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> TrainingConfig:
        """Read a TOML file: the fields at top level or in a table ``[training]``."""
        return cls.from_dict(read_toml(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """All fields as TOML text (fields that are None are left out)."""
        lines = ["[training]"]
        for name, value in self.to_dict().items():
            if value is not None:
                text = "inf" if value == float("inf") else json.dumps(value)
                lines.append(f"{name} = {text}")
        return "\n".join(lines) + "\n"


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields that a TOML file sets: those of its table ``[training]``, or those at top level; names are not checked."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    section = values.get("training", values)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: training is not a table")
    return section


def _check_known(values: Mapping[str, Any], source: str) -> None:
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(TrainingConfig)})
    if unknown:
        raise ConfigError(f"{source}: unknown training field {unknown[0]!r}")
