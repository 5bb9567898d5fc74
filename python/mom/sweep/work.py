"""One trial, in the process that runs it: it trains, measures, and writes what is kept."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._reading import kind_of
from .._version import __version__
from ..config import MoMConfig
from ..data import TokenFile
from ..errors import ConfigError, DataError
from ..files.atomic import remove_folder
from ..files.folders import write_json
from ..files.locks import FolderInUse, lock_folder
from ..interventions.files import interventions_from
from ..model import MoM
from ..runtime import cpu_info, get_num_threads
from ..training import TrainingConfig, train
from ..training.checkpoint import newest_checkpoint
from ..training.fingerprint import digest_of_tokens, digest_of_weights
from ..training.pretraining import TrainingResult
from .measures import MEASURES
from .trial import CONFIG, DONE, FAILED, LOCK, Trial, evaluations_in, read_words

__all__ = ["PHASE_ONE", "clean", "run_trial", "write_config", "write_failure"]

#: Folder, in that of the sweep, of the plain models that phases two begin with.
PHASE_ONE = "phase-one"
#: Receives what a trial has to say: values by name.
Tell = Callable[[dict[str, Any]], None]
#: Seconds between two messages about steps.
_PAUSE = 0.5


class _Steps:
    """Tells about a run's steps and evaluations, now and then."""

    def __init__(self, tell: Tell, what: str, total: int) -> None:
        self._tell, self._what, self._total, self._last = tell, what, total, 0.0
        self._values: dict[str, Any] = {}

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            self._values["loss"] = record["lm_loss"]
        elif record["kind"] == "eval":
            self._values["val_loss"] = record["val_loss"]
        now = time.monotonic()
        if record["kind"] == "eval" or now > self._last + _PAUSE:
            self._last = now
            self._tell({"what": self._what, "step": record["step"], "steps": self._total, **self._values})

    def close(self) -> None:
        """There is nothing to close."""


def run_trial(
    folder: Path, trial: Trial, keep_models: bool, measure: Sequence[str], retry_failed: bool, tell: Tell
) -> str:
    """Run a trial in its folder, unless it is done.

    Parameters
    ----------
    folder : Path
        Of the sweep.
    trial : Trial
    keep_models : bool
        Keep the trained model in ``model``.
    measure : sequence of str
        Names in `MEASURES`.
    retry_failed : bool
        Run it also if it has failed before.
    tell : callable
        Receives messages about the progress.

    Returns
    -------
    str
        ``"done"`` or ``"failed"``.

    Raises
    ------
    FolderInUse
        If another process runs the trial or its phase one.
    TrainingInterrupted
        After a signal. A checkpoint has been saved.
    """
    own = folder / trial.hash
    own.mkdir(parents=True, exist_ok=True)
    with lock_folder(own, "dir", LOCK):
        write_config(own, trial)
        if kind_of(own / DONE) is not None:
            clean(own)
            return "done"
        if kind_of(own / FAILED) is not None:
            if not retry_failed:
                return "failed"
            (own / FAILED).unlink()
        try:
            start = _phase_one(folder, trial, retry_failed, tell)
            _train_and_measure(own, trial, start, keep_models, measure, tell)
        except FolderInUse:
            raise
        except Exception as error:
            write_failure(own, f"{type(error).__name__}: {error}", traceback.format_exc())
            return "failed"
        clean(own)
        return "done"


def write_failure(own: Path, error: str, trace: str) -> None:
    """Keep why a trial has failed."""
    values = {"error": error, "traceback": trace, "time": time.time(), "version": __version__}
    write_json(own / FAILED, values, words=True)


def clean(own: Path) -> None:
    """Remove the checkpoints of a trial that is done."""
    for path in own.glob("step-*"):
        remove_folder(path)


def write_config(own: Path, trial: Trial) -> None:
    """Write ``config.json``, or add a new name of the trial to it."""
    before = read_words(own / CONFIG) if kind_of(own / CONFIG) is not None else {}
    names = list(before.get("names", []))
    if trial.name is not None and trial.name not in names:
        names.append(trial.name)
    if not before or names != before.get("names"):
        write_json(own / CONFIG, {**trial.to_dict(), "names": names}, words=True)


# ---------------------------------------------------------------------- training
def _phase_one(folder: Path, trial: Trial, retry_failed: bool, tell: Tell) -> Path | None:
    """The model of phase one, trained here unless another trial has done it."""
    first = trial.phase_one()
    if first is None:
        return None
    if run_trial(folder / PHASE_ONE, first, True, (), retry_failed, tell) == "failed":
        error = read_words(folder / PHASE_ONE / first.hash / FAILED)
        raise ConfigError(f"phase one has failed: {error.get('error')} (in {PHASE_ONE}/{first.hash})")
    return folder / PHASE_ONE / first.hash / "model"


def _config_of(trial: Trial) -> TrainingConfig:
    return TrainingConfig(**trial.settings["training"], **trial.plan)


def _model(own: Path, trial: Trial, start: Path | None) -> MoM:
    """The model that training begins with. If there is a checkpoint, its weights are read later."""
    config, dtype = MoMConfig(**trial.settings["model"]), trial.settings["dtype"]
    if start is None or newest_checkpoint(own)[0] is not None:
        return MoM(config, seed=trial.seed, dtype=dtype)
    return MoM.from_vanilla(start, config, seed=trial.seed, dtype=dtype)


def _train_and_measure(
    own: Path, trial: Trial, start: Path | None, keep_models: bool, measure: Sequence[str], tell: Tell
) -> None:
    config, rules = _config_of(trial), interventions_from(trial.settings["interventions"], "interventions")
    model, where = _model(own, trial, start), trial.where
    _check_data(trial)
    result = train(
        model, where["data"], config, run_dir=own, val_data=where["val_data"], resume=True, progress=False,
        callbacks=[_Steps(tell, trial.label, config.steps)], interventions=rules,
    )  # fmt: skip
    values = _results(model, result)
    values["alarms"] = sorted({name for record in evaluations_in(own) for name in record.get("alarms", {})})
    for name in measure:
        tell({"what": f"{trial.label}: {name}"})
        with model.intervene(rules, untouched="warn"):
            values[name] = MEASURES[name](model, Path(where["val_data"]), config)
    if keep_models:
        model.save_pretrained(own / "model")
    write_json(own / DONE, values, words=True)


def _check_data(trial: Trial) -> None:
    """Raise if the data are not those of the configuration any more."""
    for name in ("data", "val_data"):
        tokens = TokenFile(trial.where[name], vocab_size=trial.settings["model"]["vocab_size"])
        if digest_of_tokens(tokens)["sample"] != trial.settings[name]["sample"]:
            raise DataError(f"{name}: {tokens.path} has changed since the sweep began")


def _results(model: MoM, result: TrainingResult) -> dict[str, Any]:
    """What ``done.json`` says of the training."""
    best = min(result.history, key=lambda entry: math.inf if math.isnan(entry[1]) else entry[1])
    return {
        "val_loss": result.val_loss, "best_val_loss": best[1], "best_step": best[0], "lm_loss": result.lm_loss,
        "steps": result.step, "skipped_steps": result.skipped, "stopped_early": result.stopped_early,
        "history": result.history, "tokens": result.tokens, "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second, "parameters": model.num_parameters,
        "parameters_sha256": digest_of_weights(model), "time": time.time(), "version": __version__,
        "level": cpu_info()["level"], "compiler": cpu_info()["compiler"], "threads": get_num_threads(),
    }  # fmt: skip
