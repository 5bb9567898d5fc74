"""Checkpoints of a run: folders ``step-NNNNNNNN`` with model, optimizer, random numbers and the position in the data.

`newest_checkpoint` finds the one that a resumed run continues from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._json import from_words, to_json
from .._reading import kind_of, read_object, shown
from ..config import MoMConfig
from ..errors import CheckpointError, TrainingError
from ..files import folders, weights
from ..interventions.files import interventions_from
from ..interventions.rules import Intervention
from ..model import MoM, Network
from ..model.beside import read_beside
from .config import TrainingConfig
from .optimizer import AdamW

__all__ = [
    "State", "check_no_run_in", "fingerprint_in", "interventions_of_checkpoint", "load_checkpoint",
    "model_of_checkpoint", "newest_checkpoint", "read_progress", "remove_older", "save_checkpoint",
    "settings_of_checkpoint",
]  # fmt: skip

PathLike = str | os.PathLike[str]

#: Prefix of the names of checkpoints.
_PREFIX = "step-"


@dataclass
class State:
    """The progress of a run: what a checkpoint holds beside tensors, random state and the position in the data.

    Attributes
    ----------
    step, skipped : int
        Steps done in all, and how many of them were skipped because of non-finite numbers.
    bad_in_a_row : int
        Steps skipped since the last good one.
    examples, tokens, seconds
        Examples and tokens in these steps, and the time the steps took.
    lm_loss, val_loss : float or None
        Of the last step and of the last evaluation.
    losses : list of float
        Loss of every step that was not skipped.
    history : list of (int, float)
        Step and measure of every evaluation.
    evaluated_step : int
        The step that was evaluated last.
    best_step, best_score, best_values
        The evaluation with the highest measure: its step, its measure (None before the first evaluation) and all its
        values.
    waited : int
        Evaluations since the best one.
    health : dict
        See `mom.training.health.Health`.
    """

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    lm_loss: float | None = None
    val_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    history: list[tuple[int, float]] = field(default_factory=list)
    evaluated_step: int = 0
    best_step: int = 0
    best_score: float | None = None
    best_values: dict[str, Any] = field(default_factory=dict)
    waited: int = 0
    health: dict[str, Any] = field(default_factory=dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_maybe_number(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_pair_of_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, list) and len(entry) == 2 and _is_count(entry[0]) and _is_number(entry[1]) for entry in value
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


#: What ``training.json`` may hold, and which of it must be there.
_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "skipped", "bad_in_a_row", "examples", "tokens"), _is_count),
    **dict.fromkeys(("evaluated_step", "best_step", "waited"), _is_count),
    **dict.fromkeys(("lm_loss", "val_loss", "best_score"), _is_maybe_number),
    **dict.fromkeys(("config", "sampler", "best_values", "health"), _is_object),
    "seconds": _is_number, "random_state": _is_pair_of_counts, "history": _is_history,
    "losses": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "dtype": lambda value: value in ("float32", "bfloat16"),
    "fingerprint": lambda value: _is_object(value) and all(map(_is_object, value.values())),
}  # fmt: skip
_NEEDED = ("step", "random_state", "config", "sampler")


def check_no_run_in(run_dir: Path) -> None:
    """Raise if a folder already holds a run. The folder need not exist."""
    if kind_of(run_dir) is None:
        return
    log = run_dir / "log.jsonl"
    for what, there in (("checkpoints", any(name.startswith(_PREFIX) for name in os.listdir(run_dir))),
                        ("a log.jsonl", kind_of(log) is not None and log.stat().st_size > 0)):  # fmt: skip
        if there:
            raise TrainingError(f"run_dir: {run_dir} already holds {what}; use resume or another folder")


def newest_checkpoint(run_dir: PathLike) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest valid checkpoint in a run's folder, and the newer ones that are not valid, each with the reason."""
    return folders.latest_valid(run_dir, prefix=_PREFIX)


def save_checkpoint(
    run_dir: Path,
    model: Network,
    optimizer: AdamW | None,
    progress: dict[str, Any],
    best: dict[str, NDArray[np.float32]],
    keep_last: int,
) -> Path:
    """Write everything a run needs to continue. Then remove all but the newest `keep_last` folders.

    Without an optimizer, the run cannot be made longer. `progress` holds the ``step`` and the ``fingerprint``. `best`
    holds the best weights so far, if the run keeps them.
    """
    path = run_dir / f"{_PREFIX}{progress['step']:08d}"
    files = model.pretrained_files()
    if optimizer is not None:
        state = optimizer.state
        files["optimizer.safetensors"] = lambda file: weights.write_safetensors(file, state)
    if best:
        files["best.safetensors"] = lambda file: weights.write_safetensors(file, best)
    # "config" repeats the settings where programs that read checkpoints expect them.
    settings = progress["fingerprint"]["settings"]
    progress = {"random_state": model.random_state, "dtype": model.dtype, "config": settings, **progress}
    files["training.json"] = to_json(progress, indent=None, words=True)
    folders.write_folder(path, files)
    remove_older(path, keep_last)
    return path


def remove_older(path: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints of a run. `path` is one that stays."""
    folders.rotate(path.parent, keep_last, prefix=_PREFIX, protect=path)


def read_progress(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the tensors: ``step``, ``random_state``, ``dtype``, ``config``, ..."""
    file = path / "training.json"
    if kind_of(file) is None:
        raise CheckpointError(f"{file}: no such file")
    progress: dict[str, Any] = from_words(read_object(file, CheckpointError))
    for name, is_right in _FORMS.items():
        if not (name in progress and is_right(progress[name])) and (name in progress or name in _NEEDED):
            raise CheckpointError(f"{file}: {name}: {shown(progress.get(name))} is not usable")
    return progress


def fingerprint_in(path: Path) -> dict[str, Any]:
    """The fingerprint of the run that a checkpoint belongs to, as far as the checkpoint knows it."""
    progress = read_progress(path)
    if "fingerprint" not in progress:  # as written before runs had one
        model = MoMConfig.from_json(path).to_dict()
        return {"model": model, "settings": progress["config"], "run": {"dtype": progress.get("dtype")}}
    fingerprint: dict[str, Any] = progress["fingerprint"]
    return fingerprint


def load_checkpoint(
    path: Path, model: Network, optimizer: AdamW, steps: int
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Read a checkpoint of a run of `steps` steps into model and optimizer.

    Returns its progress and its best weights. If the run is over, the checkpoint need not have the optimizer's state.
    """
    progress = read_progress(path)
    moments_file = path / "optimizer.safetensors"
    has_moments = kind_of(moments_file) is not None
    if not has_moments and progress["step"] < steps:
        raise CheckpointError(
            f"{path}: has no optimizer state (save_optimizer=False), so the run cannot be made longer; begin a new run "
            "with its model"
        )
    random_state = progress["random_state"]
    # All files are read before anything changes.
    tensors = weights.read_safetensors(path / "model.safetensors")
    moments = weights.read_safetensors(moments_file, keep_float64=True) if has_moments else None
    best_file = path / "best.safetensors"
    best = {} if kind_of(best_file) is None else weights.read_safetensors(best_file)
    model.load_state(tensors, str(path))
    try:
        if moments is not None:
            optimizer.load_state(moments)
    except ValueError as error:
        raise CheckpointError(f"{path}/optimizer.safetensors: {error}") from None
    model.random_state = (random_state[0], random_state[1])
    return progress, best


def settings_of_checkpoint(path: Path) -> TrainingConfig:
    """The settings of the run that a checkpoint belongs to."""
    return TrainingConfig.from_dict(read_progress(path)["config"], f"{path}/training.json: config")


def interventions_of_checkpoint(path: Path) -> tuple[Intervention, ...]:
    """The interventions of the run that a checkpoint belongs to."""
    values = fingerprint_in(path)["run"].get("interventions", [])
    return interventions_from(values, f"{path}/training.json: interventions")


def model_of_checkpoint(path: PathLike, dtype: str | None = None, config: MoMConfig | None = None) -> MoM:
    """A model of a checkpoint's shape, with all but the weights, which `mom.train` with ``resume=True`` reads.

    Parameters
    ----------
    path : path
        A folder ``step-...`` of a run.
    dtype : {"float32", "bfloat16"}, optional
        By default that of the checkpoint.
    config : MoMConfig, optional
        By default that of the checkpoint.
    """
    path = Path(path)
    model = MoM(config or MoMConfig.from_json(path), dtype=dtype or read_progress(path).get("dtype", "float32"))
    read_beside(model, path, fresh_head=True)
    return model
