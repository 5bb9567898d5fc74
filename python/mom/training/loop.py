"""The training loop: batches in, records and checkpoints out. Every forward, backward and update is one C call."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.token_files import TokenFile, WindowSampler
from ..errors import ConfigError, DataError, TrainingError
from ..files import folders
from ..model import MoM
from .callbacks import Callback, JsonLines, Progress, TensorBoard, closing
from .config import TrainingConfig
from .optimizer import AdamW, cosine_schedule, linear_schedule
from .signals import stop_signals
from .state import PREFIX, load_state, save_state

__all__ = ["TrainingResult", "evaluate_loss", "train"]


@dataclass(frozen=True)
class TrainingResult:
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
        Steps left out because of non-finite numbers.
    interrupted : str or None
        Name of the signal that ended the run early.
    checkpoint : Path or None
        The newest checkpoint of the run.
    passed_over : list of (Path, str)
        Checkpoints that a resume found unusable, with the reasons.
    """

    step: int
    lm_loss: float | None
    val_loss: float | None
    skipped: int
    interrupted: str | None
    checkpoint: Path | None
    passed_over: list[tuple[Path, str]]


def peak_memory_bytes() -> int:
    """Largest resident memory of the process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def evaluate_loss(model: MoM, tokens: TokenFile, batch_size: int, sequence_length: int, batches: int) -> float:
    """Mean language-model loss over the first windows of a token file.

    Parameters
    ----------
    model : MoM
    tokens : TokenFile
    batch_size, sequence_length, batches : int
        At most `batches` batches of consecutive windows; fewer where the file ends.

    Returns
    -------
    float
        Nats per predicted token. Training mode and random state of the model are as before.
    """
    windows = min(batches * batch_size, len(tokens) // sequence_length)
    if windows < 1:
        raise DataError(f"tokens: {tokens.path} holds no window of {sequence_length} tokens")
    total, count = 0.0, 0
    with model.evaluating():
        for begin in range(0, windows, batch_size):
            rows = min(batch_size, windows - begin)
            ids = tokens.windows(np.arange(begin, begin + rows) * sequence_length, sequence_length)
            out = model(ids, labels=ids, keep=False)
            assert out.lm_loss is not None
            total += out.lm_loss * out.num_labelled
            count += out.num_labelled
    return total / count


def _schedule(config: TrainingConfig) -> Any:
    if config.schedule == "cosine":
        return cosine_schedule(config.warmup_steps, config.steps, config.final_lr)
    if config.schedule == "linear":
        return linear_schedule(config.warmup_steps, config.steps, config.final_lr)
    warmup = config.warmup_steps
    return lambda step: step / warmup if step < warmup else 1.0


def _module_use(model: MoM) -> tuple[dict[str, Any], float | None]:
    """Share of kept choices per module (SKIP last) by half, block and round; and the share of SKIP in all."""
    use: dict[str, Any] = {"attn": [], "ffn": []}
    skipped, total = 0, 0
    for place, kind in enumerate(model.config.places()):
        if kind != "block":
            continue
        for number, half in enumerate(("attn", "ffn")):
            rounds: list[list[float] | None] = []
            for r in range(model.config.rounds):
                counts = model.core.route_counts(place, r, number)
                if counts is None:
                    rounds.append(None)
                    continue
                everything = int(counts.sum())
                skipped += int(counts[-1])
                total += everything
                rounds.append([round(float(c) / everything, 5) if everything else 0.0 for c in counts])
            use[half].append(rounds)
    return use, (skipped / total if total else None)


def train(
    model: MoM,
    data: str | os.PathLike[str] | TokenFile,
    config: TrainingConfig | None = None,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    val_data: str | os.PathLike[str] | TokenFile | None = None,
    resume: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    description: str = "train",
    **changes: Any,
) -> TrainingResult:
    """Train a language model.

    Parameters
    ----------
    model : MoM
        Trained in place.
    data : path or TokenFile
        A folder made by ``mom prepare`` (``train.bin``, ``val.bin``) or one token file.
    config : TrainingConfig, optional
    run_dir : path, optional
        Where checkpoints and ``log.jsonl`` go; without it nothing is written.
    val_data : path or TokenFile, optional
        Validation tokens; by default ``val.bin`` beside ``train.bin``, if it is there.
    resume : bool
        Go on from the newest valid checkpoint in `run_dir`, to the same bits as a run that was never stopped.
        Without any checkpoint the run starts from the beginning.
    callbacks : iterable of Callback
        Receive every record.
    progress : bool, optional
        Show progress on standard error (default True).
    description : str
        Label of the progress display.
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
        If settings, model and data do not fit together.
    TypeError
        If `model` is no language model or `config` no `TrainingConfig`.

    Notes
    -----
    SIGTERM and Ctrl-C finish the step, save a checkpoint and return.
    """
    if not isinstance(model, MoM):
        raise TypeError(f"model: expected MoM, got {type(model).__name__}")
    if config is not None and not isinstance(config, TrainingConfig):
        raise TypeError(f"config: expected TrainingConfig, got {type(config).__name__}")
    config = (config or TrainingConfig()).replace(**changes)
    if config.sequence_length > model.config.n_positions:
        raise ConfigError(
            f"sequence_length: {config.sequence_length} is more than "
            f"the model's n_positions = {model.config.n_positions}"
        )
    if config.tensorboard and run_dir is None:
        raise ConfigError("tensorboard: needs a run_dir")
    tokens, validation = _open_data(data, val_data, model, config.sequence_length)
    sampler = WindowSampler(tokens, config.batch_size, config.sequence_length, config.seed, config.sampling)
    run = _Run(model, config, sampler, validation, Path(run_dir) if run_dir is not None else None)
    run.prepare(resume)
    was_training, was_checkpointing = model.training, model.activation_checkpointing
    with ExitStack() as stack:
        run.callbacks = stack.enter_context(closing(callbacks))

        def add(callback: JsonLines | TensorBoard | Progress) -> None:
            run.callbacks.append(callback)
            stack.callback(callback.close)

        if run.dir is not None:
            add(JsonLines(run.dir / "log.jsonl", run.step if resume else None))
            if config.tensorboard:
                add(TensorBoard(run.dir))
        if progress is not False:
            add(Progress(config.steps, run.step, description))
        model.train()
        model.activation_checkpointing = config.activation_checkpointing or was_checkpointing
        try:
            with stop_signals() as signals:
                result = run.loop(signals)
                signals.handled = True  # one that came at the very end changes nothing any more
                return result
        finally:
            model.training, model.activation_checkpointing = was_training, was_checkpointing


def _open_data(data: Any, val_data: Any, model: MoM, sequence_length: int) -> tuple[TokenFile, TokenFile | None]:
    def open_one(source: Any) -> TokenFile:
        return source if isinstance(source, TokenFile) else TokenFile(source, vocab_size=model.config.vocab_size)

    found = False
    if not isinstance(data, TokenFile) and Path(data).is_dir():
        beside = Path(data) / "val.bin"
        if val_data is None and beside.is_file() and beside.stat().st_size:
            val_data, found = beside, True
    validation = None if val_data is None else open_one(val_data)
    if validation is not None and len(validation) < sequence_length:
        problem = f"{validation.path} holds {len(validation)} tokens, fewer than sequence_length = {sequence_length}"
        if not found:
            raise DataError(f"val_data: {problem}")
        print(f"no validation: {problem}", file=sys.stderr)
        validation = None
    return open_one(data), validation


class _Run:
    def __init__(
        self,
        model: MoM,
        config: TrainingConfig,
        sampler: WindowSampler,
        validation: TokenFile | None,
        run_dir: Path | None,
    ) -> None:
        self.model, self.config, self.sampler, self.validation, self.dir = model, config, sampler, validation, run_dir
        self.optimizer = AdamW(
            model, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay
        )
        self.callbacks: list[Callback] = []
        self.step = 0
        self.skipped = 0
        self.bad_in_a_row = 0
        self.saved_step: int | None = None
        self.checkpoint: Path | None = None
        self.passed_over: list[tuple[Path, str]] = []
        self.lm_loss: float | None = None
        self.val_loss: float | None = None

    # ------------------------------------------------------------------ beginning
    def prepare(self, resume: bool) -> None:
        """Empty run folder, or the newest valid state in it."""
        if self.dir is None:
            if resume:
                raise ConfigError("resume: needs a run_dir")
            return
        self.dir.mkdir(parents=True, exist_ok=True)
        if not resume:
            if any(self.dir.glob(f"{PREFIX}*")):
                raise TrainingError(f"run_dir: {self.dir} already holds checkpoints; use resume or another folder")
            log = self.dir / "log.jsonl"
            if log.is_file() and log.stat().st_size:
                raise TrainingError(f"run_dir: {self.dir} already holds a log.jsonl; use resume or another folder")
            return
        latest, self.passed_over = folders.latest_valid(self.dir, prefix=PREFIX)
        for path, reason in self.passed_over:
            print(f"resume: passed over {path}: {reason}", file=sys.stderr)
        if latest is None:
            return
        state = load_state(latest, self.model, self.optimizer)
        before = TrainingConfig.from_dict(state["config"], f"{latest}/training.json")
        names = ("batch_size", "sequence_length", "accumulation", "seed", "sampling", "steps", "lr", "schedule")
        pairs = [(name, getattr(before, name), getattr(self.config, name)) for name in names]
        pairs.append(("dtype", state.get("dtype", "float32"), self.model.dtype))
        for name, old, new in pairs:
            if old != new:
                print(f"resume: {name} was {old} and is now {new}", file=sys.stderr)
        self.sampler.load_state_dict(state["sampler"])
        self.step = self.saved_step = int(state["step"])
        self.skipped, self.bad_in_a_row = int(state["skipped"]), int(state["bad_in_a_row"])
        self.lm_loss, self.val_loss = state["lm_loss"], state["val_loss"]
        self.checkpoint = latest

    # ------------------------------------------------------------------ the loop
    def loop(self, signals: list[str]) -> TrainingResult:
        config = self.config
        factor = _schedule(config)
        due = False
        self.model.zero_grad()
        while self.step < config.steps and not signals:
            self.optimizer.lr = config.lr * factor(self.step)
            self._one_step()
            self.step += 1
            last = self.step == config.steps
            if self.validation is not None and (last or (config.eval_every and self.step % config.eval_every == 0)):
                self._evaluate()
            due = due or last or bool(config.save_every and self.step % config.save_every == 0)
            # Weights that may be ruined must not push good checkpoints out: a save waits for the next good step, and at
            # the end of the run nothing is removed for it.
            if due and (last or not self.bad_in_a_row):
                self._save()
                due = False
        interrupted = signals[0] if signals and self.step < config.steps else None
        if interrupted:
            self._save()
        return TrainingResult(
            self.step, self.lm_loss, self.val_loss, self.skipped, interrupted, self.checkpoint, self.passed_over
        )

    def _one_step(self) -> None:
        started = time.perf_counter()
        model, config = self.model, self.config
        batches = [self.sampler.next_batch() for _ in range(config.accumulation)]
        # Position t is scored against label t + 1, so a row of T tokens counts T - 1.
        counts = [b.shape[0] * (b.shape[1] - 1) for b in batches]
        total = sum(counts)
        if model.core.used.any():  # a callback has run a backward pass: the step before left no gradients
            model.zero_grad()
        lm_loss, balance_loss = 0.0, None
        for ids, count in zip(batches, counts, strict=True):
            lm, balance = self._micro_batch(ids, count / total)
            lm_loss += lm * count / total
            if balance is not None:
                balance_loss = (balance_loss or 0.0) + balance / config.accumulation
        if not math.isfinite(lm_loss) or not math.isfinite(balance_loss or 0.0):
            return self._skip(f"loss is {lm_loss}, balance loss {balance_loss}")
        norm = self.optimizer.step(config.clip, zero_grad=True)
        if not math.isfinite(norm):
            return self._skip(f"gradient norm is {norm}")
        self.bad_in_a_row = 0
        self.lm_loss = lm_loss
        if (self.step + 1) % config.log_every == 0 or self.step + 1 == config.steps:
            self._log_step(lm_loss, balance_loss, norm, total + sum(b.shape[0] for b in batches), started)

    def _micro_batch(self, ids: NDArray[np.int32], share: float) -> tuple[float, float | None]:
        out = self.model(ids, labels=ids)
        assert out.lm_loss is not None
        if math.isfinite(out.lm_loss):
            self.model.backward(
                lm_scale=share, balance_scale=self.model.config.router_aux_loss_coef / self.config.accumulation
            )
        return out.lm_loss, out.balance_loss

    def _log_step(self, lm_loss: float, balance_loss: float | None, norm: float, tokens: int, started: float) -> None:
        use, skip_share = _module_use(self.model)
        seconds = time.perf_counter() - started
        coefficient = self.model.config.router_aux_loss_coef
        self._record(
            "train", loss=lm_loss + coefficient * (balance_loss or 0.0), lm_loss=lm_loss, balance_loss=balance_loss,
            grad_norm=norm, lr=self.optimizer.lr, tokens_per_second=tokens / seconds, seconds=seconds,
            epoch=self.sampler.epoch, skip_share=skip_share, module_use=use, peak_memory_bytes=peak_memory_bytes(),
            skipped_steps=self.skipped,
        )  # fmt: skip

    def _skip(self, reason: str) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        self.model.zero_grad()
        self._record("skip", reason=reason, skipped_steps=self.skipped)
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{self.bad_in_a_row} steps in a row were not finite (the last: {reason}); "
                f"stopped at step {self.step + 1}"
            )

    def _evaluate(self) -> None:
        config = self.config
        assert self.validation is not None
        self.val_loss = evaluate_loss(
            self.model, self.validation, config.batch_size, config.sequence_length, config.eval_batches
        )
        self._record("eval", val_loss=self.val_loss, perplexity=math.exp(min(self.val_loss, 700.0)))

    def _save(self) -> None:
        if self.dir is None or self.saved_step == self.step:
            return
        progress = {
            "config": self.config.to_dict(), "sampler": self.sampler.state_dict(), "skipped": self.skipped,
            "bad_in_a_row": self.bad_in_a_row, "lm_loss": self.lm_loss, "val_loss": self.val_loss,
        }  # fmt: skip
        keep_last = self.config.keep_last if not self.bad_in_a_row else sys.maxsize
        self.checkpoint = save_state(self.dir, self.step, self.model, self.optimizer, progress, keep_last)
        self.saved_step = self.step
        self._record("checkpoint", path=str(self.checkpoint))

    def _record(self, kind: str, **values: Any) -> None:
        # Records of a step carry the number of steps done when it is over.
        step = self.step + 1 if kind in ("train", "skip") else self.step
        record = {"kind": kind, "step": step, "time": time.time(), **values}
        for callback in self.callbacks:
            callback.record(record)
