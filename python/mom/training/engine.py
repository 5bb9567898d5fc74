"""The training engine: it takes batches, updates the model, and writes records and checkpoints. The C core does all
work on tensors.

`mom.train` and all fine-tuning run on it. Each brings a `Schedule`, a source of batches and a function that evaluates.

The order is: a step; an evaluation, if one is due; a checkpoint, if one is due. A resumed run continues from a
checkpoint to the same bits. The checkpoint also records whether its step has been evaluated.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._reading import check_name
from ..data.prepare import tokenizer_of
from ..distributed import Serial, current, using
from ..errors import ConfigError, TrainingError
from ..files.atomic import clean_leftovers
from ..files.locks import lock_folder
from ..interventions.files import described
from ..model import Network
from .batches import Rows, Windows
from .callbacks import Callback, Evaluations, JsonLines, Progress, TensorBoard, WandB, closing
from .checkpoint import (
    State,
    check_no_run_in,
    fingerprint_in,
    load_checkpoint,
    newest_checkpoint,
    remove_older,
    save_checkpoint,
)
from .config import FinetuneConfig, TrainingConfig
from .fingerprint import changes_between, check_changes, fingerprint_of
from .health import Health
from .optimizer import AdamW
from .passes import Losses, Passes
from .records import module_use, peak_memory_bytes
from .sharded_adamw import ShardedAdamW
from .signals import BrokenOff, StopSignals
from .together import Together

__all__ = ["Engine", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """What a run does, and when.

    Attributes
    ----------
    steps : int
        Optimizer steps in all.
    rate_factor : callable
        Factor of the learning rate at a step, counted from 0.
    is_evaluated, is_saved : callable
        Whether an evaluation and a checkpoint are due after so many steps. After the last step both always are.
    measure : str
        Name of the value that goes into the history and decides which evaluation is the best.
    trained : ndarray of uint8 or None
        Which parameters are trained, in the model's order; None: all.
    keep_best : bool
        Keep a copy of the weights whose evaluation was the best.
    patience : int
        The run ends after so many evaluations in a row without a better one; 0: never. With `keep_best` a higher
        measure is better, else a lower one.
    save_optimizer : bool
        See `TrainingConfig`.
    log_every, max_bad_steps, keep_last : int
        See `TrainingConfig`.
    exploration : callable or None
        Temperature and jitter of the routers in a step, counted from 0; None: those of the model's configuration.
    terms_first : bool
        Order of summation of the recorded ``loss``. If set, the micro-batches of each term are added first, and then
        the terms (pre-training). Otherwise the terms of each micro-batch are added first (fine-tuning). Only rounding
        differs.
    """

    steps: int
    rate_factor: Callable[[int], float]
    is_evaluated: Callable[[int], bool]
    is_saved: Callable[[int], bool]
    measure: str
    trained: NDArray[np.uint8] | None = None
    keep_best: bool = False
    patience: int = 0
    log_every: int = 1
    max_bad_steps: int = 5
    keep_last: int = 1
    terms_first: bool = False
    save_optimizer: bool = True
    exploration: Callable[[int], tuple[float, float]] | None = None


class Engine:
    """One run, on this process or on several ranks (`mom.distributed.current`).

    Parameters
    ----------
    model : Network
        Trained in place.
    source : Windows or Rows
    config : TrainingConfig or FinetuneConfig
        Settings of the optimizer.
    schedule : Schedule
    evaluate : callable, optional
        Measures the model. Returns values for a record; one of them is the schedule's `measure`. If ``routes`` is among
        them, it is the `Routes` of the first batch, for the figures of `Health`.
    run_dir : path, optional
        Where checkpoints go.
    label : str
        Begins messages.
    facts : mapping of str to value, optional
        What belongs to the run's fingerprint and only the caller knows: hashes of the data, and in fine-tuning the
        ``seed``, which all records name.
    allow_changes : bool
        Resume even if model, settings or data are not those of the checkpoint.

    Attributes
    ----------
    state : State
    records : list of dict
        All records of this call, without ``module_use``.
    best : dict of str to ndarray
        With the schedule's `keep_best`: the trained parameters at the best evaluation.
    checkpoint : Path or None
        The newest one.
    passed_over : list of (Path, str)
        Checkpoints that a resume found unusable, with the reasons.
    """

    def __init__(
        self,
        model: Network,
        source: Windows | Rows,
        config: TrainingConfig | FinetuneConfig,
        schedule: Schedule,
        evaluate: Callable[[], Mapping[str, Any]] | None = None,
        run_dir: Path | None = None,
        label: str = "train",
        facts: Mapping[str, Any] | None = None,
        allow_changes: bool = False,
    ) -> None:
        self.model, self.source, self.config, self.schedule = model, source, config, schedule
        self.evaluate, self.dir, self.label = evaluate, run_dir, label
        self.facts, self.allow_changes = dict(facts or {}), allow_changes
        self.ranks = current()
        settings = (config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
        several = self.ranks.size > 1
        self.optimizer = (
            ShardedAdamW(model, self.ranks, *settings, transport=config.transport)
            if several else AdamW(model, *settings)
        )  # fmt: skip
        self._together = Together(self.ranks, model)
        self._passes = Passes(model, self.ranks, config.reproducible == "ranks", schedule.terms_first)
        self.state = State()
        self.records: list[dict[str, Any]] = []
        self.best: dict[str, NDArray[np.float32]] = {}
        self.checkpoint: Path | None = None
        self.passed_over: list[tuple[Path, str]] = []
        self._callbacks: Sequence[Callback] = ()
        self._signals = StopSignals()
        self._saved = (0, 0)  # `step` and `evaluated_step` of the newest checkpoint
        self._save_is_due = self._stop_wanted = False
        self._health: Health | None = None

    # ------------------------------------------------------------------ beginning
    @contextlib.contextmanager
    def _folder(self, resume: bool) -> Iterator[None]:
        """Own the run folder, if there is one: check that it is empty, or with `resume` read the newest valid state."""
        if self.allow_changes and not resume:
            raise ConfigError("allow_changes: has a meaning only with resume")
        if self.dir is None:
            if resume:
                raise ConfigError("resume: needs a run_dir")
            yield
            return
        check_name(self.dir, ConfigError)
        with contextlib.ExitStack() as stack:
            if self._together.speaks:
                self.dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock_folder(self.dir))
                clean_leftovers(self.dir)
                if not resume:
                    check_no_run_in(self.dir)
            if resume:
                self._resume(self.dir)
            yield

    def _resume(self, run_dir: Path) -> None:
        latest, self.passed_over = self.ranks.from_first(lambda: newest_checkpoint(run_dir))
        for path, reason in self.passed_over:
            self._together.say(f"resume: passed over {path}: {reason}")
        if latest is None:
            return
        if self.model.tokenizer is None:
            self.model.tokenizer = tokenizer_of(latest)
        changed = self.ranks.from_first(lambda: self._changes_since(latest))
        # What this call was not told stays true of the run.
        self.facts = {**(fingerprint_in(latest).get("run") or {}), **self.facts}
        found, self.best = load_checkpoint(latest, self.model, self.optimizer, self.schedule.steps)
        if changed & self.source.ordered_by:
            self._together.say("resume: the training data begin anew")
        else:
            self.source.load_state_dict(found["sampler"])
        found.setdefault("evaluated_step", found["step"])
        self.state = State(**{entry.name: found[entry.name] for entry in fields(State) if entry.name in found})
        self.state.history = [(step, measure) for step, measure in self.state.history]
        self._saved = (self.state.step, self.state.evaluated_step)
        self.checkpoint = latest
        # The run may have been killed after a save, before it removed older ones.
        if self._together.speaks and not self.state.bad_in_a_row:
            remove_older(latest, self.schedule.keep_last)

    def _changes_since(self, latest: Path) -> set[str]:
        """Compare this run with that of a checkpoint, and say what differs. Returns the names of what was changed."""
        changes = changes_between(fingerprint_in(latest), self._fingerprint(), type(self.config))
        for change in check_changes(changes, str(latest), self.allow_changes):
            self._together.say(f"resume: {change}")
        return {change.name for change in changes}

    def _fingerprint(self) -> dict[str, Any]:
        # In the other mode, the number of ranks has no effect on the numbers.
        facts = self.facts if self.config.reproducible == "ranks" else {**self.facts, "ranks": self.ranks.size}
        return fingerprint_of(self.model, self.config, facts, self.schedule.trained)

    def _check_ranks(self, resume: bool) -> None:
        """Raise unless the ranks can train together."""
        if self.config.reproducible == "ranks" and self.model.config.balance_counts == "step":
            raise ConfigError(
                "reproducible: 'ranks' is not possible with balance_counts='step', for which a micro-batch depends on "
                "those before it; take balance_counts='micro'"
            )
        if self.config.reproducible == "ranks" and self.config.transport != "float32":
            raise ConfigError(
                "transport: 'bfloat16' rounds what each rank sends, so reproducible='ranks' is not possible with it"
            )
        if self.ranks.size > 1:
            self._together.use_common_level()
            call = {"with run_dir": self.dir is not None, "evaluates": self.evaluate is not None, "resume": resume}
            self._together.check_alike({**self._fingerprint(), "call": call})

    # ------------------------------------------------------------------ the loop
    @property
    def stopped_early(self) -> bool:
        """Whether patience or a callback has ended the run before its last step."""
        return self.is_over and self.state.step < self.schedule.steps

    @property
    def is_over(self) -> bool:
        """Whether no steps are left."""
        patience_is_over = 0 < self.schedule.patience <= self._waited
        return self.state.step >= self.schedule.steps or patience_is_over or self._together.stop

    @property
    def _waited(self) -> int:
        """Evaluations in a row that were not better than all before them."""
        if self.schedule.keep_best:
            return self.state.waited
        measures = [math.inf if math.isnan(measure) else measure for _, measure in self.state.history]
        return len(measures) - 1 - measures.index(min(measures)) if measures else 0

    def run(
        self, callbacks: Sequence[Callback], signals: StopSignals, resume: bool = False, progress: bool = True
    ) -> str | None:
        """Train to the end of the schedule.

        Parameters
        ----------
        callbacks : sequence of Callback
            Receive every record. When one returns True from ``record``, the run ends as it would after its last step.
        signals : StopSignals
            When a signal comes, the run ends as if the step or the evaluation at hand had not begun.
        resume : bool
            Continue from the newest valid checkpoint.
        progress : bool
            Show progress on standard error.

        Returns
        -------
        str or None
            Name of the signal that ended the run before it was over. With a `run_dir`, a checkpoint has been saved.

        Raises
        ------
        TrainingError
            After too many steps in a row that were not finite. Also if another run is at work in the run folder.
        KeyboardInterrupt
            If a callback or an evaluation raises it. In the second case, and with a `run_dir`, a checkpoint has been
            saved. A resumed run begins with that evaluation.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.ranks.failing_together())
            self._check_ranks(resume)
            stack.enter_context(self._folder(resume))
            own = stack.enter_context(closing(self._own_callbacks(resume, progress)))
            stack.enter_context(self._training_mode())
            if self.model.tokenizer is None:  # checkpoints and the model have that of the data, too
                self.model.tokenizer = self.source.tokenizer(self.model.config.vocab_size)
            if self.evaluate is not None and self.model.config.has_routers:
                self._watch()
            self._callbacks, self._signals = [*callbacks, *own] if self._together.speaks else [], signals
            with contextlib.suppress(BrokenOff):
                if self._loop():
                    return None
            self._save()
            return self._together.signal or signals[0]

    def _loop(self) -> bool:
        """Make steps until the run is over or a signal comes. Returns whether it is over."""
        if self.state.step:
            self._between_steps()  # the evaluation that the interrupted run did not finish
        self._agree()
        while not self.is_over and not self._together.signal:
            self._one_step()
            self._agree()
            self._between_steps()
            self._agree()
        if self.is_over:
            self._between_steps()  # a callback may have asked to stop when it received the evaluation's record
        return self.is_over

    def _agree(self) -> None:
        self._together.agree(self._signals, self._stop_wanted, self.state.step)

    def _own_callbacks(self, resume: bool, progress: bool) -> Iterator[Callback]:
        if not self._together.speaks:
            return
        if self.dir is not None:
            yield JsonLines(self.dir / "log.jsonl", self.state.step if resume else None)
            if getattr(self.config, "tensorboard", False):
                yield TensorBoard(self.dir)
            if getattr(self.config, "wandb", False):
                model = {**self.model.config.to_dict(), "dtype": self.model.dtype}
                rules = described(self.model.interventions)
                yield WandB(self.dir, {**self.config.to_dict(), "model": model, "interventions": rules})
        if progress:
            display = Evaluations if self.schedule.keep_best else Progress
            yield display(self.schedule.steps, self.state.step, self.label)

    def _watch(self) -> None:
        """Count choices for the records of evaluations."""
        if not self._together.speaks:
            self.state.health.clear()  # what a checkpoint has counted is the first rank's
        self._health = Health(self.model.config, self.state.health)
        self._passes.counts_choices = True

    @contextlib.contextmanager
    def _training_mode(self) -> Iterator[None]:
        model, trained = self.model, self.schedule.trained
        before = model.training, model.activation_checkpointing
        try:
            model.train()
            model.activation_checkpointing = self.config.activation_checkpointing or before[1]
            model.zero_grad()
            if trained is not None:
                model.core.set_trained(trained & np.array(list(model.trainable.values()), np.uint8))
            yield
        finally:
            model.training, model.activation_checkpointing = before
            if trained is not None:
                model.core.set_trained(np.array(list(model.trainable.values()), np.uint8))
                model.zero_grad()  # gradients of parameters that are not trained

    def _between_steps(self) -> None:
        state, schedule = self.state, self.schedule
        if self.evaluate is not None and state.evaluated_step != state.step:
            if self.is_over or schedule.is_evaluated(state.step):
                self._evaluate(self.evaluate)
        self._save_is_due |= self.is_over or schedule.is_saved(state.step)
        # After a skipped step the weights may be ruined, and saving them must not remove good checkpoints. So the save
        # waits for the next good step. At the end of the run it removes nothing.
        if self._save_is_due and (self.is_over or not state.bad_in_a_row):
            self._save()
            self._save_is_due = False

    # ------------------------------------------------------------------ a step
    def _one_step(self) -> None:
        started, state = time.perf_counter(), self.state
        before = self.source.state_dict(), self.model.random_state
        batches = self.source.next_step(self._rows)
        self.ranks.doing = f"in step {state.step + 1}"
        self.optimizer.lr = self.config.lr * self.schedule.rate_factor(state.step)
        if self.model.core.used.any():  # the last step was skipped, or a callback has run a backward pass
            self.model.zero_grad()
        try:
            with self._at_once(), self._exploring():
                losses = self._passes.run(batches)
        except BrokenOff:  # as if the step had not begun
            self.source.load_state_dict(before[0])
            self.model.random_state = before[1]
            raise
        norm, problem = math.nan, None
        if not all(map(math.isfinite, losses.terms.values())):
            problem = ", ".join(f"{name} loss is {value}" for name, value in losses.terms.items())
        elif not math.isfinite(norm := self._update()):
            problem = f"gradient norm is {norm}"
        if self._health:
            self._health.count(self._passes.choices)
        seconds = time.perf_counter() - started
        state.step += 1
        state.seconds += seconds
        state.examples += sum(batch.examples for batch in batches)
        state.tokens += sum(batch.tokens for batch in batches)
        if problem is not None:
            self._skip(problem)
            return
        state.bad_in_a_row = 0
        state.lm_loss = losses.terms["lm"]
        state.losses.append(losses.joint)
        if state.step % self.schedule.log_every == 0 or state.step == self.schedule.steps:
            self._record_step(losses, norm, sum(batch.tokens for batch in batches), seconds)

    @contextlib.contextmanager
    def _exploring(self) -> Iterator[None]:
        """A block in which the routers have the temperature and the jitter of the step."""
        if self.schedule.exploration is None:
            yield
            return
        before = self.model.core.exploration
        self.model.core.exploration = self.schedule.exploration(self.state.step)
        try:
            yield
        finally:
            self.model.core.exploration = before

    @property
    def _rows(self) -> int | None:
        """Rows of a micro-batch; None: as the source has them."""
        if self.config.reproducible == "ranks":
            return self.config.tree_rows
        return None if self.ranks.size == 1 else -(-self.config.batch_size // self.ranks.size)

    def _at_once(self) -> contextlib.AbstractContextManager[None]:
        """A block that a signal ends at once. Several ranks end together, so they finish it first."""
        return self._signals.at_once() if self.ranks.size == 1 else contextlib.nullcontext()

    def _update(self) -> float:
        """Clip the gradients, make the optimizer's step, and zero the gradients. Returns the norm before clipping."""
        if isinstance(self.optimizer, ShardedAdamW):
            self.optimizer.reduce(self._passes.tree, self._passes.used)
        return self.optimizer.step(self.config.clip, zero_grad=True)

    def _skip(self, reason: str) -> None:
        state = self.state
        state.skipped += 1
        state.bad_in_a_row += 1
        self.model.zero_grad()
        self._record("skip", reason=reason, skipped_steps=state.skipped)
        if state.bad_in_a_row >= self.schedule.max_bad_steps:
            raise TrainingError(
                f"{self.label}: {state.bad_in_a_row} steps in a row were not finite (the last: {reason}); "
                f"stopped at step {state.step}"
            )

    # ------------------------------------------------------------------ evaluations, checkpoints, records
    def _evaluate(self, evaluate: Callable[[], Mapping[str, Any]]) -> None:
        state = self.state
        self.ranks.doing = f"in the evaluation after step {state.step}"
        try:
            with self.model.evaluating(), self._at_once():
                values = dict(evaluate())
        except KeyboardInterrupt:
            if self.ranks.size == 1:
                self._save()
            raise
        routes = values.pop("routes", None)
        measure = float(values[self.schedule.measure])
        state.evaluated_step, state.val_loss = state.step, values.get("val_loss")
        state.history.append((state.step, measure))
        if self.schedule.keep_best:
            values = {**values, "best": self._keep_best(measure, values)}
        if (health := self._health) is not None:
            health.gather(self.ranks)
            late = 3 * state.step > 2 * self.schedule.steps
            values |= self.ranks.from_first(lambda: health.report(routes, late))
        self._record("eval", **values)

    def _keep_best(self, measure: float, values: dict[str, Any]) -> bool:
        """Copy the weights if the evaluation is better than all before. Returns whether it is. NaN is never better."""
        state = self.state
        before = -math.inf if state.best_score is None else state.best_score
        better = measure > before or (math.isnan(before) and not math.isnan(measure))
        state.waited = 0 if better else state.waited + 1
        if better or state.best_score is None:
            state.best_step, state.best_score, state.best_values = state.step, measure, values
            names = list(self.model.parameters)
            if self.schedule.trained is not None:
                names = [name for name, trained in zip(names, self.schedule.trained, strict=True) if trained]
            self.best = {name: self.model.parameters[name].copy() for name in names}
        return better

    def restore_best(self) -> None:
        """Put the best weights, if there are any, into the model."""
        for name, value in self.best.items():
            self.model.parameters[name] = value

    def _save(self) -> None:
        state = self.state
        if self.dir is None or self._saved == (state.step, state.evaluated_step):
            return
        if self._health is not None:
            self._health.gather(self.ranks)
        progress = {"fingerprint": self._fingerprint(), "sampler": self.source.state_dict(), **vars(state)}
        keep_last = self.schedule.keep_last if not state.bad_in_a_row else sys.maxsize
        optimizer = self.optimizer if self.schedule.save_optimizer or state.step < self.schedule.steps else None
        self.ranks.doing = f"in the checkpoint after step {state.step}"
        if isinstance(self.optimizer, ShardedAdamW) and not self._together.speaks:
            self.optimizer.lend()
        else:
            self.checkpoint = save_checkpoint(self.dir, self.model, optimizer, progress, self.best, keep_last)
        if isinstance(self.optimizer, ShardedAdamW) and self._together.speaks:
            self.optimizer.lent()
        self.checkpoint = self.ranks.from_first(lambda: self.checkpoint)
        self._saved = (state.step, state.evaluated_step)
        self._record("checkpoint", path=str(self.checkpoint))

    def _record_step(self, losses: Losses, norm: float, tokens: int, seconds: float) -> None:
        # Another rank may have had nothing to compute.
        use, skip_share = module_use(self.model) if self._together.speaks else (None, None)
        terms = {f"{name}_loss": losses.terms.get(name) for name in self.model.config.loss_weights}
        self._record(
            "train", loss=losses.joint, **terms, grad_norm=norm, lr=self.optimizer.lr, seconds=seconds,
            tokens_per_second=tokens / seconds, epoch=self.source.epoch, skip_share=skip_share, module_use=use,
            peak_memory_bytes=peak_memory_bytes(), skipped_steps=self.state.skipped,
        )  # fmt: skip

    def _record(self, kind: str, **values: Any) -> None:
        whose = {name: value for name, value in self.facts.items() if name == "seed"}
        record = {"kind": kind, "step": self.state.step, "time": time.time(), **whose, **values}
        self.records.append({name: value for name, value in record.items() if name != "module_use"})
        with using(Serial()):  # the other ranks do not call what a callback calls
            for callback in self._callbacks:
                if callback.record(record) is True:
                    self._stop_wanted = True
