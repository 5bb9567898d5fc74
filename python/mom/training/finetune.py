"""Fine-tuning: settings, what is trained, and one loop for classifiers and language models alike."""

from __future__ import annotations

import dataclasses
import math
import numbers
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..data.batches import Batch, bucketed, iter_batches, make_batch
from ..errors import ConfigError, DataError, TrainingError
from ..model import ModelOutput, MoM, MoMForSequenceClassification
from .callbacks import Callback
from .optimizer import AdamW, cosine_schedule, linear_schedule
from .signals import StopSignals, stop_signals

__all__ = [
    "FinetuneConfig", "FinetuneInterrupted", "LoopResult", "classifier_from", "classify", "copy_of", "finite_logits",
    "fit_classifier", "routers_are_idle", "run_loop", "split_step", "trainable", "warn_of_idle_routers",
]  # fmt: skip

Network = MoM | MoMForSequenceClassification
Item = TypeVar("Item")
Made = TypeVar("Made", MoM, MoMForSequenceClassification)

#: A step with a non-finite loss or gradient is skipped; after so many in a row the run stops.
_MAX_BAD_STEPS = 5


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning.

    Parameters
    ----------
    epochs : int
        Passes over the training data, unless `max_steps` or `patience` ends them.
    max_steps : int or None
        At most so many optimizer steps.
    batch_size : int
        Examples that go through the model at once.
    accumulation : int
        Batches per step. The step is that of one batch so many times as large, but for rounding, dropout, and the
        balance loss of a language model, which is the mean of its batches'.
    lr : float
        Highest learning rate.
    schedule : {"linear", "cosine", "constant"}
        After the warm-up: a straight line or half a cosine to 0 at the last step.
    warmup : float
        Share of all steps during which the learning rate rises from 0.
    weight_decay, beta1, beta2, eps : float
        AdamW; see `mom.AdamW`.
    clip : float
        Largest gradient norm; ``inf`` switches clipping off.
    dropout : float or None
        Probability of all three dropouts; None: as the model has them.
    max_length : int or None
        Tokens per example; longer ones are cut. None: the model's ``n_positions``.
    evals_per_epoch : int
        Evaluations on the dev set per epoch, at even distances, the last one at its end.
    eval_every : int or None
        Steps between evaluations instead, counted through all epochs. The last step is evaluated in any case.
    patience : int
        Evaluations in a row without a better dev score after which training stops; 0: never. The defaults stop
        after one and a half epochs in vain.
    train : {"all", "routers", "head"}
        What is trained: everything; the routers (and a classifier's head); a classifier's head only. No other
        gradients are computed, and nothing is kept for them.
    activation_checkpointing : bool
        Less memory, more time, the same numbers; see `TrainingConfig`.

    Raises
    ------
    ConfigError
        Naming the field that is unknown, of the wrong type or out of range.
    """

    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    lr: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip: float = 1.0
    dropout: float | None = None
    max_length: int | None = None
    evals_per_epoch: int = 2
    eval_every: int | None = None
    patience: int = 3
    train: str = "all"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value, kind = getattr(self, entry.name), str(entry.type)
            if value is None and kind.endswith("| None"):
                continue
            base = kind.split(" |")[0]
            wanted: Any = {"int": numbers.Integral, "float": numbers.Real, "str": str, "bool": (bool, np.bool_)}[base]
            if not isinstance(value, wanted) or (isinstance(value, bool) and base != "bool"):
                raise ConfigError(f"{entry.name}: expected {kind}, got {type(value).__name__} {value!r}")
            plain = {"int": int, "float": float, "str": str, "bool": bool}[base]  # searches over arrays give NumPy's
            object.__setattr__(self, entry.name, plain(value))
        for name, least in (("epochs", 1), ("max_steps", 1), ("batch_size", 1), ("accumulation", 1),
                            ("evals_per_epoch", 1), ("eval_every", 1), ("patience", 0), ("max_length", 4)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: {value} is less than {least}")
        for name, low, high in (("lr", 0.0, 1e3), ("warmup", 0.0, 1.0), ("weight_decay", 0.0, 1e3)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [{low}, {high}]")
        for name in ("beta1", "beta2", "dropout"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        for name in ("eps", "clip"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        for name, choices in (("schedule", ("linear", "cosine", "constant")), ("train", ("all", "routers", "head"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")

    def replace(self, **changes: Any) -> FinetuneConfig:
        """A copy with some fields changed (and validated)."""
        unknown = sorted(set(changes) - {entry.name for entry in dataclasses.fields(self)})
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown field of fine-tuning")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)

    def is_evaluated(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the dev set is looked at after that many steps (1, 2, ...), apart from the last step of all."""
        if self.eval_every is not None:
            return step % self.eval_every == 0
        done = (step - 1) % steps_per_epoch + 1  # of this epoch
        # A part ends at the first step that reaches its share of the epoch.
        return done * self.evals_per_epoch // steps_per_epoch > (done - 1) * self.evals_per_epoch // steps_per_epoch

    @property
    def examples_per_step(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.accumulation

    def length_for(self, config: MoMConfig) -> int:
        """Tokens per example for a model."""
        if self.max_length is not None and self.max_length > config.n_positions:
            raise ConfigError(
                f"max_length: {self.max_length} is more than the model's n_positions = {config.n_positions}"
            )
        return self.max_length or config.n_positions


@dataclass(frozen=True)
class LoopResult:
    """How fine-tuning went.

    Attributes
    ----------
    steps, best_step : int
        Steps done; step of the best evaluation, whose weights the model has now.
    best_score : float or None
        Its score; None without a dev set.
    loss : float
        Mean loss of the last tenth of the steps.
    skipped : int
        Steps left out because of non-finite numbers.
    stopped_early : bool
        Whether `patience` ended the run.
    seconds : float
        Time of the training steps alone.
    examples : int
        Examples they went through.
    history : list of (int, float)
        Step and score of every evaluation.
    interrupted : bool
        Whether SIGTERM or Ctrl-C ended the run.
    """

    steps: int
    best_step: int
    best_score: float | None
    loss: float
    skipped: int
    stopped_early: bool
    seconds: float
    examples: int
    history: list[tuple[int, float]] = field(default_factory=list)
    interrupted: bool = False


class FinetuneInterrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C during fine-tuning.

    The model has the weights of the best evaluation so far; before the first one, those of the last step.

    Attributes
    ----------
    loop : LoopResult
        How far it came.
    signal : str
        Name of the signal.
    """

    def __init__(self, message: str, loop: LoopResult, signal: str = "SIGINT") -> None:
        super().__init__(message)
        self.loop, self.signal = loop, signal


def trainable(model: Network, train: str) -> npt.NDArray[np.uint8]:
    """Which parameters `FinetuneConfig.train` selects, in the model's order.

    Raises
    ------
    ConfigError
        If the model has no such parameters.
    """
    names = list(model.parameters)
    head = [name.startswith("score.") for name in names]
    routers = [".router." in name for name in names]
    if train == "routers" and not any(routers):
        raise ConfigError("train: 'routers', but the model has none")
    if train == "head" and not any(head):
        raise ConfigError("train: 'head', but a language model has no head of its own")
    chosen = {
        "all": [True] * len(names), "head": head, "routers": [a or b for a, b in zip(head, routers, strict=True)],
    }[train]  # fmt: skip
    return np.array(chosen, np.uint8)


def routers_are_idle(config: MoMConfig, language_model: bool) -> bool:
    """Whether the loss gives a model's routers no gradient.

    Probabilities of the choices that are kept are divided by their sum. Of a single choice that makes 1, whatever the
    router says, and so does its straight-through sign. What remains is the balance loss, which a classifier does not
    have.
    """
    if config.is_vanilla or max(config.num_attn, config.num_ffn) < 2 or config.routing_all_possible_path:
        return False
    if language_model and config.output_router_logits and config.router_aux_loss_coef > 0.0:
        return False
    return config.routing_top_k == 0 or (config.routing_top_k == 1 and config.router_softmax)


def warn_of_idle_routers(config: MoMConfig, train: str, language_model: bool, stacklevel: int = 2) -> None:
    """Say before the first step that routers which are to be trained will learn nothing; see `routers_are_idle`."""
    if train == "head" or not routers_are_idle(config, language_model):
        return
    what = {"all": "everything but the routers", "routers": "nothing" if language_model else "the head alone"}[train]
    warnings.warn(
        f"train: {train!r} trains {what}: with routing_top_k = {config.routing_top_k} and router_type = "
        f"{config.router_type!r} the loss does not depend on what the routers say (a single choice has the weight 1, "
        "with use_ste as well), so they get no gradient. Begin with a model that keeps two choices, as "
        "from_pretrained(folder, routing_top_k=2) does, or that was trained with a router_type without softmax.",
        stacklevel=stacklevel + 1,
    )


def copy_of(
    model: Network, kind: type[Made], seed: int = 0, dropout: float | None = None, **changes: Any
) -> Made:
    """A network of a kind with the body and the tokenizer of a model, and its limits; a classifier's head is fresh.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
        Its body is copied; a head it has is left behind.
    kind : type
        `MoM` or `MoMForSequenceClassification`.
    seed : int
        Of the head and of dropout.
    dropout : float, optional
        Replaces the configuration's three dropout probabilities.
    **changes
        Other fields of the configuration.

    Raises
    ------
    DataError
        If the tokenizer has ids that the model does not know.
    """
    tokenizer, known = model.tokenizer, model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > known:
        raise DataError(f"tokenizer: its {tokenizer.vocab_size} ids are more than the model's vocab_size = {known}")
    if dropout is not None:
        changes |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    made = kind(model.config.replace(**changes), seed=seed, dtype=model.dtype)
    for name, value in model.parameters.items():
        if not name.startswith("score."):
            made.parameters[name] = value
    made.tokenizer = tokenizer
    made.activation_checkpointing, made.memory_limit = model.activation_checkpointing, model.memory_limit
    return made


def classifier_from(
    model: Network, num_labels: int, problem_type: str, seed: int = 0, dropout: float | None = None
) -> MoMForSequenceClassification:
    """A classifier with the body of a model and a fresh head.

    Parameters
    ----------
    model, seed, dropout
        See `copy_of`.
    num_labels : int
    problem_type : str
        See `MoMConfig`.
    """
    return copy_of(
        model, MoMForSequenceClassification, seed, dropout, num_labels=num_labels, problem_type=problem_type,
        pooling="mask",
    )  # fmt: skip


def classify(
    model: MoMForSequenceClassification,
    rows: Sequence[npt.NDArray[np.int32]],
    batch_size: int = 32,
) -> npt.NDArray[np.float32]:
    """Logits of token rows.

    Parameters
    ----------
    model : MoMForSequenceClassification
    rows : sequence of ndarray of int32, shape (T_i,)
    batch_size : int
        Rows computed together, packed; without effect on a prediction.

    Returns
    -------
    ndarray of float32, shape (N, num_labels)
        In the order of `rows`. Training mode and random state of the model are as before.
    """
    if model.config.pooling != "mask":
        raise ConfigError(f"pooling: {model.config.pooling!r}; batches of unequal length need 'mask'")
    logits = np.zeros((len(rows), model.config.num_labels or 1), np.float32)
    with model.evaluating():
        for batch in iter_batches(rows, batch_size):
            out = model(batch.tokens, lengths=batch.lengths)
            logits[batch.rows] = out.logits
    return logits


def finite_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits themselves, for answers to be read off; those of a broken model are an error.

    Raises
    ------
    ValueError
        If one is not finite.
    """
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, label = bad[0]
        what = "not a number" if np.isnan(logits[row, label]) else "infinite"
        raise ValueError(f"logits: {what} at row {row}, label {label}")
    return logits


def split_step(chosen: npt.NDArray[np.int64], config: FinetuneConfig) -> list[npt.NDArray[np.int64]]:
    """The rows of one step in parts of ``batch_size``."""
    return [chosen[start : start + config.batch_size] for start in range(0, len(chosen), config.batch_size)]


def run_loop(
    model: Network,
    batches: Callable[[np.random.Generator], Iterable[Sequence[Item]]],
    steps_per_epoch: int,
    forward: Callable[[Item], tuple[ModelOutput, int]],
    terms: Callable[[Item], int],
    config: FinetuneConfig,
    seed: int,
    evaluate: Callable[[], float] | None = None,
    *,
    label: str = "finetune",
    progress: bool = True,
    callbacks: Iterable[Callback] = (),
    signals: StopSignals | None = None,
) -> LoopResult:
    """Train `model` in place and leave it with the weights of the best evaluation.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    batches : callable
        Gives the batches of each step of one epoch, in an order drawn from a generator.
    steps_per_epoch : int
    forward : callable
        Runs one batch with labels; gives the output and the number of examples.
    terms : callable
        Of how many terms a batch's loss is the mean; decides its share of a step's loss.
    config : FinetuneConfig
    seed : int
        Of the order of the data.
    evaluate : callable, optional
        Score on the dev set, larger is better; without it the last weights stay.
    label : str
        Begins every line of progress.
    progress : bool
        Write a line to standard error per evaluation.
    callbacks : iterable of Callback
        Receive a record per step and per evaluation.
    signals : StopSignals, optional
        Of a caller that has more to do than this loop and collects signals itself.

    Raises
    ------
    FinetuneInterrupted
        On SIGTERM and Ctrl-C, when the step is done; an evaluation is broken off.
    TrainingError
        If several steps in a row are not finite.
    """
    chosen = trainable(model, config.train)
    total = config.epochs * steps_per_epoch
    total = total if config.max_steps is None else min(total, config.max_steps)
    factor = _schedule(config, total)
    rng = np.random.default_rng([seed, 0x6D6F6D])
    names = [name for name, selected in zip(model.parameters, chosen, strict=True) if selected]
    best: dict[str, npt.NDArray[np.float32]] | None = None
    best_step, best_score = 0, -math.inf
    history: list[tuple[int, float]] = []
    losses: list[float] = []
    step = skipped = bad = examples = since_best = 0
    seconds = 0.0
    callbacks = list(callbacks)

    def record(kind: str, **values: Any) -> None:
        for callback in callbacks:
            callback.record({"step": step, "kind": kind, "seed": seed, "time": time.time(), **values})

    def evaluated() -> None:
        nonlocal best, best_step, best_score, since_best
        assert evaluate is not None
        with model.evaluating(), received.at_once():
            score = float(evaluate())
        history.append((step, score))
        record("eval", score=score)
        better = score > best_score or (math.isnan(best_score) and not math.isnan(score))
        if progress:
            recent = float(np.mean(losses[-50:])) if losses else math.nan
            print(f"{label}: step {step}/{total} loss {recent:.4f} dev score {score:.4f}"
                  + (" (best)" if better else ""), file=sys.stderr, flush=True)  # fmt: skip
        since_best = 0 if better else since_best + 1
        if better or best is None:
            copies = {name: model.parameters[name].copy() for name in names}
            best, best_step, best_score = copies, step, score

    def result(interrupted: bool = False) -> LoopResult:
        for name, value in (best or {}).items():
            model.parameters[name] = value
        tail = losses[-max(1, len(losses) // 10) :]
        return LoopResult(
            step, best_step if best is not None else step, best_score if best is not None else None,
            float(np.mean(tail)) if tail else math.nan, skipped, stopped and step < total, seconds, examples, history,
            interrupted,
        )  # fmt: skip

    was_training, was_checkpointing = model.training, model.activation_checkpointing
    stopped = False
    with ExitStack() as stack:
        received = stack.enter_context(stop_signals()) if signals is None else signals
        try:
            model.train()
            model.activation_checkpointing = config.activation_checkpointing or was_checkpointing
            model.zero_grad()
            model.core.set_trained(chosen)
            optimizer = AdamW(model, config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay)
            while step < total and not stopped:
                for items in batches(rng):
                    started = time.perf_counter()
                    optimizer.lr = config.lr * factor(step)
                    if model.core.used.any():  # the step before was skipped, or a callback has run a backward pass
                        model.zero_grad()
                    loss, count, problem = _one_step(model, optimizer, items, forward, terms, chosen, config.clip)
                    seconds += time.perf_counter() - started
                    examples += count
                    step += 1
                    if problem is None:
                        bad = 0
                        losses.append(loss)
                        record("train", loss=loss, lr=optimizer.lr)
                    else:
                        skipped, bad = skipped + 1, bad + 1
                        record("skip", reason=problem)
                        if bad >= _MAX_BAD_STEPS:
                            raise TrainingError(f"{label}: {bad} steps in a row were not finite (the last: {problem})")
                    if received and (step < total or evaluate is not None):
                        raise KeyboardInterrupt
                    if evaluate is not None and (config.is_evaluated(step, steps_per_epoch) or step == total):
                        evaluated()
                        stopped = bool(config.patience) and since_best >= config.patience
                    if stopped or step == total:
                        break
            return result()
        except KeyboardInterrupt:
            done = result(interrupted=True)
            kept = "before any evaluation" if best is None else f"best score {best_score:.4f} at step {best_step}"
            name = received[0] if received else "SIGINT"
            raise FinetuneInterrupted(f"{label}: step {step}/{total}, {kept}", done, name) from None
        finally:
            model.training, model.activation_checkpointing = was_training, was_checkpointing
            model.core.set_trained(np.ones_like(chosen))
            if not chosen.all():
                model.zero_grad()  # what others got on the way


def _one_step(
    model: Network,
    optimizer: AdamW,
    items: Sequence[Item],
    forward: Callable[[Item], tuple[ModelOutput, int]],
    terms: Callable[[Item], int],
    chosen: npt.NDArray[np.uint8],
    clip: float,
) -> tuple[float, int, str | None]:
    """Passes over the batches of a step, and the update: loss, examples, and the reason if it was left out."""
    weights = [terms(item) for item in items]
    balance_scale = model.balance_scale / len(items)
    loss, examples = 0.0, 0
    for item, weight in zip(items, weights, strict=True):
        out, count = forward(item)
        assert out.lm_loss is not None
        share = weight / sum(weights)
        loss += share * out.lm_loss + balance_scale * (out.balance_loss or 0.0)
        examples += count
        if not math.isfinite(loss):
            return loss, examples, f"loss is {loss}"
        model.backward(lm_scale=share, balance_scale=balance_scale)
    if not chosen.all():
        # Parameters without a gradient are passed over by clipping and optimizer alike.
        used = model.core.used
        used[chosen == 0] = 0
        model.core.used = used
    norm = optimizer.step(clip, zero_grad=True)
    return loss, examples, None if math.isfinite(norm) else f"gradient norm is {norm}"


def _schedule(config: FinetuneConfig, total: int) -> Callable[[int], float]:
    warmup = min(total, round(config.warmup * total))
    if config.schedule == "constant":
        return lambda step: (step + 1) / (warmup + 1) if step < warmup else 1.0
    make = linear_schedule if config.schedule == "linear" else cosine_schedule
    inner = make(warmup, total)
    # One step later than in pre-training, so that no step of a short run has a learning rate of 0.
    return lambda step: inner(step + 1) if step < warmup else inner(step)


def fit_classifier(
    model: MoMForSequenceClassification,
    rows: Sequence[npt.NDArray[np.int32]],
    labels: npt.NDArray[Any],
    config: FinetuneConfig,
    seed: int = 0,
    evaluate: Callable[[], float] | None = None,
    **display: Any,
) -> LoopResult:
    """Train a classifier on token rows, see `run_loop`.

    Parameters
    ----------
    model : MoMForSequenceClassification
        Trained in place.
    rows : sequence of ndarray of int32, shape (T_i,)
    labels : ndarray, shape (N,)
        Integers for classes, floats for scores.
    config : FinetuneConfig
    seed : int
    evaluate : callable, optional
        Score on the dev set.
    **display
        ``label``, ``progress``, ``callbacks`` and ``signals`` of `run_loop`.
    """

    lengths = [len(row) for row in rows]

    def batches(rng: np.random.Generator) -> Iterable[list[Batch]]:
        for chosen in bucketed(lengths, config.examples_per_step, rng):
            yield [make_batch(rows, part) for part in split_step(chosen, config)]

    def forward(batch: Batch) -> tuple[ModelOutput, int]:
        out = model(batch.tokens, labels[batch.rows], lengths=batch.lengths, return_logits=False)
        return out, len(batch.rows)

    return run_loop(
        model, batches, len(bucketed(lengths, config.examples_per_step)), forward, lambda batch: len(batch.rows),
        config, seed, evaluate, **display,
    )  # fmt: skip
