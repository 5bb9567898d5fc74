"""The published two-phase recipe, scaled to a budget of tokens or minutes.

Phase one trains a plain GPT-2; in phase two its layers become the modules of a Mixture-of-Modules, with fresh routers,
and training starts anew on the same kind of data. Both phases have the same settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._arguments import PathLike, flags
from .._reading import kind_of
from ..config import MoMConfig
from ..data.prepare import read_meta
from ..distributed import current
from ..errors import ConfigError, DataError, TrainingInterrupted
from ..files.folders import MODEL_FILES, check_replaceable, write_json
from ..interventions.files import described
from ..interventions.rules import Intervention, as_interventions
from ..model import MoM
from .callbacks import Callback
from .checkpoint import (
    interventions_of_checkpoint,
    newest_checkpoint,
    read_progress,
    settings_of_checkpoint,
)
from .config import TrainingConfig
from .finetune import RunOptions
from .fingerprint import start_of
from .optimizer import AdamW
from .pretraining import TrainingResult, run_training, take_tokenizer

__all__ = ["RECIPES", "PretrainResult", "Recipe", "pretrain", "seconds_per_step"]


#: Smallest number of tokens of a step, and the number of tokens that go through the model at once.
_LEAST_STEP, _MICRO_BATCH = 2048, 4096


@dataclass(frozen=True)
class Recipe:
    """Settings of a published run.

    Attributes
    ----------
    steps, sequences, sequence_length : int
        Optimizer steps; sequences per step and tokens per sequence.
    settings : dict
        Other fields of `TrainingConfig`.
    """

    steps: int
    sequences: int
    sequence_length: int
    settings: dict[str, Any]

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.sequences * self.sequence_length

    def scaled(self, tokens: int, n_positions: int) -> TrainingConfig:
        """The same run for another budget.

        The number of steps stays the same, and a step gets smaller or larger. A step has at least 2,048 tokens; for
        very small budgets the number of steps is reduced instead. Learning rate, warm-up (as a share), schedule and
        optimizer stay the same.

        Parameters
        ----------
        tokens : int
            Budget.
        n_positions : int
            The model's `n_positions`, the largest length of a sequence.
        """
        length = min(self.sequence_length, n_positions)
        if tokens < 2 * length:
            raise ConfigError(f"tokens: {tokens} are less than two sequences of {length}")
        rows = max(1, round(max(tokens / self.steps, min(_LEAST_STEP, tokens / 2)) / length))
        batch = max(1, min(rows, _MICRO_BATCH // length))
        accumulation = max(1, round(rows / batch))
        steps = max(1, round(tokens / (batch * accumulation * length)))
        every = max(1, steps // 10)
        return TrainingConfig(
            steps=steps, batch_size=batch, accumulation=accumulation, sequence_length=length, eval_every=every,
            save_every=every, **self.settings,
        )  # fmt: skip


#: Named recipes. ``"paper"`` is that of Gong et al., arXiv:2407.06677: 5,000 steps of 512 sequences of 1,024 tokens.
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        steps=5000, sequences=512, sequence_length=1024,
        settings={"lr": 1e-3, "schedule": "cosine", "final_lr": 0.0, "warmup": None, "beta1": 0.9, "beta2": 0.95,
                  "eps": 1e-5, "weight_decay": 0.1, "clip": 1.0},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PretrainResult:
    """How a phase went.

    Attributes
    ----------
    model : MoM
    training : TrainingResult
    config : TrainingConfig
        The scaled recipe.
    tokens : int
        Planned number of training tokens.
    folder : Path
        The model's folder.
    """

    model: MoM
    training: TrainingResult
    config: TrainingConfig
    tokens: int
    folder: Path


def pretrain(
    config: MoMConfig | str,
    data: PathLike,
    run_dir: PathLike,
    *,
    phase: str,
    vanilla: MoM | PathLike | None = None,
    tokens: int | None = None,
    minutes: float | None = None,
    recipe: str = "paper",
    dtype: str | None = None,
    seed: int | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
    allow_changes: bool = False,
    interventions: Sequence[Intervention] | None = None,
    **changes: Any,
) -> PretrainResult:
    """One phase of the recipe.

    Parameters
    ----------
    config : MoMConfig or str
        Configuration of the final Mixture-of-Modules, or the name of a preset. Phase one trains the plain GPT-2 that
        later fills its modules. The vocabulary size is taken from the data.
    data : path
        Folder made by `mom.data.prepare`.
    run_dir : path
        Gets checkpoints, ``log.jsonl``, ``recipe.json`` and, at the end, ``model``.
    phase : {"vanilla", "mom"}
        Which phase.
    vanilla : MoM or path, optional
        In phase two: the model of phase one. Without it phase two starts from scratch, unlike the published recipe.
    tokens, minutes : optional
        The budget; give one of the two. Minutes are converted to tokens after a measurement of the speed.
    recipe : str
        One of `RECIPES`.
    dtype : {"float32", "bfloat16"}, optional
        By default float32; of a resumed run, that of its checkpoint.
    seed : int, optional
        By default 0; of a resumed run, that of its checkpoint.
    resume : bool
        Go on from the newest valid checkpoint in `run_dir`, with its settings. Arguments that are given must be those
        of the checkpoint, `vanilla` too. `minutes` has no effect then.
    allow_changes : bool
        With `resume`: continue even if model, settings or data are not those of the checkpoint.
    progress, callbacks
        See `train`.
    interventions : sequence of Intervention, optional
        Active throughout, see `train`. By default none; of a resumed run, those of its checkpoint.
    **changes
        Fields of `TrainingConfig` to override.

    Returns
    -------
    PretrainResult

    Raises
    ------
    ConfigError, DataError
        If arguments contradict each other or the files.
    TrainingInterrupted
        On SIGTERM and Ctrl-C. Its ``result`` is a `PretrainResult`; the model's folder has not been written.
    """
    resume, progress, allow_changes = flags(resume=resume, progress=progress, allow_changes=allow_changes)
    if phase not in ("vanilla", "mom"):
        raise ConfigError(f"phase: {phase!r} is not one of 'vanilla', 'mom'")
    if phase == "vanilla" and vanilla is not None:
        raise ConfigError("vanilla: phase 'vanilla' makes this model. Use phase 'mom' to continue with it")
    if recipe not in RECIPES:
        raise ConfigError(f"recipe: {recipe!r} is not one of {', '.join(RECIPES)}")
    run = Path(run_dir)
    check_replaceable(run / "model", MODEL_FILES)
    planned, before, earlier = _earlier_settings(run) if resume else (None, "float32", ())
    rules = earlier if interventions is None else as_interventions(interventions)
    if planned is None and (tokens is None) == (minutes is None):
        raise ConfigError("tokens: expected one of tokens and minutes")
    if seed is None:
        seed = 0 if planned is None else planned.seed
    first = _phase_one(vanilla)
    start = start_of(first, begins=planned is None)
    model = _model(config, data, phase, first, dtype or before, seed)
    if planned is None and minutes is not None:
        # On several ranks all take the number of one. Each has its own part of the tokens.
        with current().failing_together():
            tokens = current().size * current().exchange(_tokens_in(model, RECIPES[recipe], minutes))[0]
    if tokens is not None:
        scaled = RECIPES[recipe].scaled(int(tokens), model.config.n_positions)
        by_budget = {name: getattr(scaled, name) for name in ("steps", "batch_size", "accumulation", "sequence_length")}
        planned = scaled if planned is None else planned.replace(**by_budget)
    assert planned is not None
    planned = planned.replace(seed=seed, **changes)
    total = planned.steps * planned.tokens_per_step
    with current().failing_together():
        try:
            options = RunOptions(phase, progress, callbacks, None, run, resume, allow_changes, start)
            with model.intervene(rules, untouched="warn"):
                result = run_training(model, data, None, planned, options)
        except TrainingInterrupted as stop:
            so_far = PretrainResult(model, stop.result, planned, total, run / "model")
            raise TrainingInterrupted(str(stop), so_far, stop.signal) from None
        model.save_pretrained(run / "model")
        done = PretrainResult(model, result, planned, total, run / "model")
        write_json(run / "recipe.json", {"recipe": recipe, "phase": phase, **_summary(done, rules)})
        return done


def _summary(done: PretrainResult, rules: Sequence[Intervention]) -> dict[str, Any]:
    model, result = done.model, done.training
    return {
        "tokens": done.tokens, "seed": done.config.seed, "dtype": model.dtype, "parameters": model.num_parameters,
        "lm_loss": result.lm_loss, "val_loss": result.val_loss, "training": done.config.to_dict(),
        "interventions": described([*model.interventions, *rules]),
    }  # fmt: skip


def _earlier_settings(run: Path) -> tuple[TrainingConfig | None, str, tuple[Intervention, ...]]:
    """Settings, dtype and interventions of the newest checkpoint."""
    latest, _ = newest_checkpoint(run)
    if latest is None:
        return None, "float32", ()
    dtype = read_progress(latest).get("dtype", "float32")
    return settings_of_checkpoint(latest), dtype, interventions_of_checkpoint(latest)


def _phase_one(vanilla: MoM | PathLike | None) -> MoM | None:
    if vanilla is None:
        return None
    first = MoM.resolve(vanilla, name="vanilla")
    if not first.config.is_vanilla:
        raise ConfigError("vanilla: expected a plain GPT-2 (chunks = 0)")
    return first


def _model(
    config: MoMConfig | str, data: PathLike, phase: str, first: MoM | None, dtype: str, seed: int
) -> MoM:
    file = Path(data) / "meta.json"
    if kind_of(file) is None:
        raise DataError(f"{file}: no such file; make the folder with 'mom prepare'")
    vocabulary = read_meta(data).get("vocab_size")
    if vocabulary is None:
        raise DataError(f"{file}: not written by 'mom prepare' (no 'vocab_size')")
    shape = MoMConfig.preset(config) if isinstance(config, str) else config
    shape = shape.replace(vocab_size=vocabulary)
    if shape.is_vanilla and phase == "mom":
        raise ConfigError("config: a plain GPT-2 has no phase 'mom'")
    if first is not None:
        model = MoM.from_vanilla(first, shape, seed=seed, dtype=dtype)
    else:
        model = MoM(shape.vanilla_config() if phase == "vanilla" else shape, seed=seed, dtype=dtype)
    take_tokenizer(model, data)
    return model


def seconds_per_step(config: MoMConfig, rows: int, length: int, dtype: str = "float32", patience: float = 1.0) -> float:
    """Median time of a training step of a new model, measured over some steps in about `patience` seconds."""
    model = MoM(config, dtype=dtype)
    optimizer = AdamW(model, lr=0.0)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(rows, length), dtype=np.int32)
    times: list[float] = []
    while len(times) < 4 or (sum(times) < patience and len(times) < 20):
        started = time.perf_counter()
        model(ids, labels=ids)
        model.backward()
        optimizer.step(1.0, zero_grad=True)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))  # the first step allocates memory, so it is not measured


def _tokens_in(model: MoM, recipe: Recipe, minutes: float) -> int:
    """Tokens that can be trained on in some minutes, from the speed of a few steps of a model of the same shape."""
    if not 0.0 < minutes < math.inf:
        raise ConfigError(f"minutes: {minutes} is not a positive finite number")
    length = min(recipe.sequence_length, model.config.n_positions)
    rows = max(1, _MICRO_BATCH // length)
    seconds = seconds_per_step(model.config, rows, length, model.dtype, patience=min(10.0, 3.0 * minutes))
    return max(2 * length, int(60.0 * minutes * rows * length / seconds))
