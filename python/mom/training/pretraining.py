"""Training a language model on token files."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arguments import PathLike, flag, flags
from .._html import html_table
from .._reading import kind_of
from ..data.prepare import read_meta, tokenizer_of
from ..data.same_tokenizer import warn_of_other_tokenizer
from ..data.token_files import TokenFile, WindowSampler
from ..distributed import current
from ..errors import ConfigError, DataError, TrainingInterrupted
from ..familiar import Familiar
from ..interventions.rules import Intervention
from ..model import MoM, Routes
from ..model.on_ranks import own_batches, summed_losses
from .batches import Windows
from .callbacks import Callback, closing
from .config import TrainingConfig
from .engine import Engine, Schedule
from .finetune import RunOptions
from .fingerprint import digest_of_tokens
from .records import perplexity_of
from .schedules import learning_rate_factor
from .signals import stop_signals

__all__ = ["TrainingResult", "evaluate_loss", "run_training", "take_tokenizer", "train"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class TrainingResult(Familiar):
    """How a run ended.

    Attributes
    ----------
    step : int
        Optimizer steps done in all (resumed ones included).
    lm_loss : float or None
        Of the last step.
    val_loss : float or None
        Of the last evaluation.
    skipped : int
        Steps skipped because of non-finite numbers.
    interrupted : str or None
        Name of the signal that ended the run early.
    checkpoint : Path or None
        The newest checkpoint of the run.
    passed_over : list of (Path, str)
        Checkpoints that a resume found unusable, with the reasons.
    stopped_early : bool
        Whether a callback ended the run before its last step.
    history : list of (int, float)
        Step and validation loss of every evaluation (resumed ones included).
    records : list of dict
        The records of this call, without ``module_use``: rows for a table.
    seconds : float
        Time of the training steps alone (resumed ones included).
    tokens : int
        Tokens that these steps have read.
    """

    step: int
    lm_loss: float | None
    val_loss: float | None
    skipped: int
    interrupted: str | None
    checkpoint: Path | None
    passed_over: list[tuple[Path, str]]
    stopped_early: bool = False
    history: list[tuple[int, float]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    tokens: int = 0

    def __repr__(self) -> str:
        val = "" if self.val_loss is None else f", validation loss {self.val_loss:.4f}"
        ended = f", interrupted by {self.interrupted}" if self.interrupted else ", stopped early" * self.stopped_early
        skipped = f", {self.skipped} steps skipped" if self.skipped else ""
        speed = f"{self.tokens:,} tokens in {self.seconds:.1f} s ({self.tokens_per_second:,.0f} per second)"
        loss = "none" if self.lm_loss is None else f"{self.lm_loss:.4f}"
        return f"<TrainingResult: step {self.step}, loss {loss}{val}; {speed}{skipped}{ended}>"

    def _repr_html_(self) -> str:
        rows = ([f"{step:,}", f"{loss:.4f}"] for step, loss in self.history)
        return html_table(repr(self).strip("<>"), ["step", "validation loss"] if self.history else [], rows)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the training steps."""
        return self.tokens / self.seconds if self.seconds else 0.0


def take_tokenizer(model: MoM, data: PathLike) -> None:
    """Give a model the tokenizer of prepared data, if there is one.

    A warning says if the model had another tokenizer.

    Raises
    ------
    ConfigError
        If the data have more tokens than the model.
    """
    vocabulary = read_meta(data).get("vocab_size")
    if vocabulary is not None and vocabulary > model.config.vocab_size:
        raise ConfigError(f"vocab_size: the model has {model.config.vocab_size} tokens, the data {vocabulary}")
    tokenizer = tokenizer_of(data)
    if tokenizer is None:
        return
    if model.tokenizer is not None and model.tokenizer.sha256 != tokenizer.sha256:
        warnings.warn("the data were made with another tokenizer than the model's; the data's is kept", stacklevel=2)
    model.tokenizer = tokenizer


def evaluate_loss(
    model: MoM, tokens: TokenFile, batch_size: int, sequence_length: int, batches: int,
    look: Callable[[Routes], None] | None = None,
) -> float:  # fmt: skip
    """Mean language-model loss over the first windows of a token file.

    Parameters
    ----------
    model : MoM
    tokens : TokenFile
    batch_size, sequence_length, batches : int
        At most `batches` batches of consecutive windows; fewer where the file ends.
    look : callable, optional
        Gets the routes of the first batch, on the rank that computes this batch.

    Returns
    -------
    float
        Nats per predicted token. Training mode and random state of the model are as before.

    Notes
    -----
    On several ranks, all of them must call this function. They deal the batches out among them.
    """
    windows = min(batches * batch_size, len(tokens) // sequence_length)
    if windows < 1:
        raise DataError(f"tokens: {tokens.path} holds no window of {sequence_length} tokens")
    ranks, losses = current(), list[tuple[float, int]]()
    with model.evaluating():
        for begin in own_batches(model, ranks, range(0, windows, batch_size)):
            rows = min(batch_size, windows - begin)
            ids = tokens.windows(np.arange(begin, begin + rows) * sequence_length, sequence_length)
            out = model(ids, labels=ids, keep=False, return_routes=look is not None and begin == 0)
            assert out.lm_loss is not None
            if look is not None and out.routes is not None:
                look(out.routes)
            losses.append((out.lm_loss, out.num_labelled))
    nats, count = summed_losses(losses, ranks)
    return nats / count


def train(
    model: MoM,
    data: PathLike | TokenFile,
    config: TrainingConfig | None = None,
    *,
    run_dir: PathLike | None = None,
    val_data: PathLike | TokenFile | None = None,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    description: str = "train",
    allow_changes: bool = False,
    interventions: Sequence[Intervention] = (),
    **changes: Any,
) -> TrainingResult:
    """Train a language model.

    Parameters
    ----------
    model : MoM
        Trained in place. A model without a tokenizer gets that of the data, if the data have one.
    data : path or TokenFile
        A folder made by ``mom prepare`` (``train.bin``, ``val.bin``) or one token file.
    config : TrainingConfig, optional
    run_dir : path, optional
        Where checkpoints and ``log.jsonl`` go; without it nothing is written.
    val_data : path or TokenFile, optional
        Validation tokens; by default ``val.bin`` beside ``train.bin``, if it is there.
    resume : bool
        Continue from the newest valid checkpoint in `run_dir`, to the same bits as a run that was never stopped.
        Without a checkpoint the run starts from the beginning. Model, settings and data must be those of the
        checkpoint, except for `steps` and for settings that have no effect on the weights.
    callbacks : iterable of Callback
        Receive every record. When one returns True from ``record``, the run ends as it would after its last step.
    progress : bool, optional
        Show progress on standard error (default True).
    description : str
        Label of the progress display.
    allow_changes : bool
        Resume even if model, settings or data are not those of the checkpoint. If the order of the data is another one,
        the data begin anew.
    interventions : sequence of Intervention
        Active in every step and every evaluation, beside those of `MoM.intervene`. Checkpoints hold all of them, and a
        resumed run needs the same ones. A warning says if one of them touched nothing.
    **changes
        Fields of `config` to override.

    Returns
    -------
    TrainingResult

    Raises
    ------
    TrainingError
        After ``max_bad_steps`` non-finite steps in a row; or if `run_dir` holds a run and `resume` is False.
    ConfigError, DataError
        If settings, model and data do not fit together, or are not those of the checkpoint to resume.
    TypeError
        If `model` is no language model or `config` no `TrainingConfig`.
    TrainingInterrupted
        On SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C. Its ``result`` is a `TrainingResult`.
    RankError
        On several ranks, if another one fails or does not answer.

    Notes
    -----
    On SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C, the model is as before the step at hand, and a checkpoint of it is saved.

    Started on several ranks (``mom launch``, ``mpiexec`` or ``srun``), all of them train one model: each has its part
    of the rows of a step, and all end with the same model. ``batch_size`` counts the rows of all ranks. Rank 0 alone
    calls callbacks, shows progress and saves. On a signal the ranks finish the step at hand.
    """
    with current().failing_together():
        resume, allow_changes = flags(resume=resume, allow_changes=allow_changes)
        progress = progress is None or flag(progress, "progress")
        config = _checked(model, config, run_dir, changes)
        options = RunOptions(
            description, progress, callbacks, None, None if run_dir is None else Path(run_dir), resume,
            allow_changes,
        )  # fmt: skip
        with model.intervene(interventions, untouched="warn"):
            return run_training(model, data, val_data, config, options)


def run_training(
    model: MoM, data: PathLike | TokenFile, val_data: PathLike | TokenFile | None, config: TrainingConfig,
    options: RunOptions,
) -> TrainingResult:  # fmt: skip
    """Train a language model as `train` does, for a caller with facts of its own for the run's fingerprint.

    Parameters
    ----------
    model, data, val_data, config
        See `train`.
    options : RunOptions
        Its `signals` are not used.
    """
    if config.sequence_length > model.config.n_positions:
        raise ConfigError(
            f"sequence_length: {config.sequence_length} is more than "
            f"the model's n_positions = {model.config.n_positions}"
        )
    trained = None if config.trainable is None else _selected(model, config.trainable)
    tokens, validation = _open_data(data, val_data, model, config)
    if config.patience and validation is None:
        raise ConfigError("patience: needs validation data, which decide when the run ends")
    windows = config.batch_size * config.accumulation
    sampler = WindowSampler(tokens, windows, config.sequence_length, config.seed, config.sampling)

    def evaluate() -> dict[str, Any]:
        assert validation is not None
        seen: list[Routes] = []
        look = seen.append if model.config.has_routers else None
        loss = evaluate_loss(model, validation, config.batch_size, config.sequence_length, config.eval_batches, look)
        return {"val_loss": loss, "perplexity": perplexity_of(loss), "routes": seen[0] if seen else None}

    schedule = Schedule(
        config.steps, learning_rate_factor(config.schedule, config.warmup_steps, config.steps, config.final_lr),
        config.is_evaluated, config.is_saved, measure="val_loss", trained=trained, log_every=config.log_every,
        max_bad_steps=config.max_bad_steps, keep_last=config.keep_last, terms_first=True, patience=config.patience,
        save_optimizer=config.save_optimizer, exploration=config.exploration_of(model.config),
    )  # fmt: skip
    has_facts = options.dir is not None or current().size > 1
    facts = {**_facts(tokens, validation), **options.facts} if has_facts else {}
    engine = Engine(
        model, Windows(sampler, config.batch_size), config, schedule, None if validation is None else evaluate,
        options.dir, options.label, facts, options.allow_changes,
    )  # fmt: skip
    with closing(options.callbacks) as listeners, stop_signals() as signals:
        interrupted = engine.run(listeners, signals, options.resume, options.progress)
        signals.handled = True  # a signal at the very end has no effect on the run
    state = engine.state
    result = TrainingResult(
        state.step, state.lm_loss, state.val_loss, state.skipped, interrupted, engine.checkpoint, engine.passed_over,
        engine.stopped_early, state.history, engine.records, state.seconds, state.tokens,
    )  # fmt: skip
    if interrupted is None:
        return result
    kept = "without a run_dir, nothing is saved" if options.dir is None else f"resume goes on from {engine.checkpoint}"
    raise TrainingInterrupted(f"{options.label}: step {state.step}/{config.steps}; {kept}", result, interrupted)


def _selected(model: MoM, patterns: Sequence[str]) -> NDArray[np.uint8]:
    try:
        return model.parameters_fitting(patterns, "trainable")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _facts(tokens: TokenFile, validation: TokenFile | None) -> dict[str, Any]:
    return {"data": digest_of_tokens(tokens), "val_data": None if validation is None else digest_of_tokens(validation)}


def _checked(
    model: MoM, config: TrainingConfig | None, run_dir: PathLike | None, changes: dict[str, Any]
) -> TrainingConfig:
    if not isinstance(model, MoM):
        raise TypeError(f"model: expected MoM, got {type(model).__name__}")
    if config is not None and not isinstance(config, TrainingConfig):
        raise TypeError(f"config: expected TrainingConfig, got {type(config).__name__}")
    if config is None:
        config = TrainingConfig(sequence_length=max(2, min(TrainingConfig.sequence_length, model.config.n_positions)))
    config = config.replace(**changes)
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and run_dir is None:
            raise ConfigError(f"{name}: needs a run_dir")
    return config


def _open_data(data: Any, val_data: Any, model: MoM, config: TrainingConfig) -> tuple[TokenFile, TokenFile | None]:
    sequence_length = config.sequence_length

    def open_one(source: Any) -> TokenFile:
        return source if isinstance(source, TokenFile) else TokenFile(source, vocab_size=model.config.vocab_size)

    for source in (data, val_data):
        if isinstance(source, (np.ndarray, list, tuple)):
            raise TypeError(
                f"data: {type(source).__name__}, expected a path or a TokenFile; "
                "ids are written by np.asarray(ids, 'uint16').tofile('train.bin')"
            )
        if source is not None:
            warn_of_other_tokenizer(model.tokenizer, source, stacklevel=4)
    found = False
    if not isinstance(data, TokenFile) and kind_of(data) == "folder":
        beside = Path(data) / "val.bin"
        if val_data is None and kind_of(beside) == "file":
            if beside.stat().st_size:
                val_data, found = beside, True
            else:
                print(f"no validation: {beside} is empty", file=sys.stderr)
    validation = None if val_data is None else open_one(val_data)
    if validation is not None and len(validation) < sequence_length:
        problem = f"{validation.path} holds {len(validation)} tokens, fewer than sequence_length = {sequence_length}"
        if not found:
            raise DataError(f"val_data: {problem}")
        print(f"no validation: {problem}", file=sys.stderr)
        validation = None
    if validation is not None:
        whole, rows = len(validation), config.eval_batches * config.batch_size
        used = min(rows, whole // sequence_length) * sequence_length
        if used < whole:
            _LOG.info("validation: the first %s of %s tokens of %s", f"{used:,}", f"{whole:,}", validation.path)
    return open_one(data), validation
