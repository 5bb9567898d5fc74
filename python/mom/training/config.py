"""Settings of training and of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import MoMConfig
from ..errors import ConfigError
from ..routers import KINDS
from ..settings import Settings, at_least, between, one_of, positive, setting
from .schedules import exploration_schedule

__all__ = ["FinetuneConfig", "TrainingConfig", "warmup_steps"]

_RATE = between(0.0, 1e3)
_SHARE = between(0.0, 1.0)
_BELOW_ONE = between(0, 1, open_end=True)


def _steps_or_share(value: int | float) -> str | None:
    if isinstance(value, int):
        return "is negative" if value < 0 else None
    return None if 0.0 <= value <= 1.0 else "is no share in [0, 1]; a number of steps is an integer"


def warmup_steps(warmup: int | float | None, total: int) -> int:
    """Steps of linear warm-up: an integer is steps, a float is a share of `total`, None is a tenth, rounded down."""
    if warmup is None:
        return total // 10
    if isinstance(warmup, float):
        return round(warmup * total)
    if warmup > total:
        raise ConfigError(f"warmup: {warmup} of {total} steps; a share of the steps is a float, such as 0.1")
    return warmup


@dataclass(frozen=True, repr=False)
class TrainingConfig(Settings):
    """Settings of a training run. The defaults are the published recipe, except for its length and batch size.

    Parameters
    ----------
    steps : int
        Optimizer steps of the whole run (the published runs: 5,000 to 30,000).
    batch_size, sequence_length : int
        Rows and tokens per row of a micro-batch (published: 512 sequences of 1,024 per step). Where no length is given,
        `mom.train` and ``mom train`` take the model's ``n_positions``, if that is less.
    accumulation : int
        Micro-batches per step. Equals one large batch for the language-model loss.
    lr : float
        Highest learning rate.
    schedule : {"cosine", "linear", "constant"}
        After the warm-up: half a cosine or a straight line to ``final_lr * lr`` at the last step.
    warmup : int, float or None
        Linear warm-up from 0: an integer is steps, a float from 0 to 1 a share of all steps; None is a tenth of them
        (published: 500 of 5,000).
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
    patience : int
        The run ends after so many evaluations in a row without a lower validation loss; 0: never. Needs validation
        data. The model keeps the weights of the last step.
    save_every, keep_last : int
        Checkpoint every so many steps (0: only at the end); how many to keep.
    save_optimizer : bool
        Whether the checkpoint after the last of `steps` has the optimizer's state, which takes twice as much as the
        weights. Only then can a larger `steps` make the run longer. Earlier checkpoints always have it.
    log_every : int
        Steps between lines of the log.
    max_bad_steps : int
        A step with a non-finite loss or gradient is skipped; after this many in a row the run stops.
    router_temperature_start, router_jitter_start : float, optional
        Temperature and jitter of the routers in the first step. From there they go to those of the model, the
        temperature by equal factors and the jitter by equal steps, and arrive after the share `router_anneal` of all
        steps.
        Evaluations have those of the model.
    router_anneal : float
        See above.
    trainable : str or sequence of str, optional
        Names of parameters or shell patterns such as ``"*.router.*"``: only these are trained. By default all are. What
        `MoM.train_only` has frozen stays frozen.
    activation_checkpointing : bool
        Keep just the input of every round for backward, which computes the rest again: less memory, more time, the
        same numbers. See `mom.MoM.memory_plan`.
    reproducible : {None, "ranks"}
        None: on several ranks, a run has the same bits whenever their number is the same. ``"ranks"``: with any number,
        one included. Micro-batches then have `tree_rows` windows, and their gradients are added in an order that
        depends on nothing else. This takes memory for further gradients, as many as the binary logarithm of the
        micro-batches that a rank has in a step.
    tree_rows : int
        Rows of a micro-batch with ``reproducible="ranks"``. Small ones can be spread over many ranks, large ones are
        computed faster.
    transport : {"float32", "bfloat16"}
        Format in which ranks send gradients to each other; ``"bfloat16"`` sends half as much, with rounding.
    tensorboard : bool
        Also write TensorBoard event files (needs the package tensorboard).
    wandb : bool
        Also log to Weights & Biases (needs the package wandb). The environment variable WANDB_MODE=offline keeps the
        files in the run's folder.

    Raises
    ------
    ConfigError
        Naming the field that is unknown, of the wrong type or out of range.
    """

    noun = "training"
    table = "training"

    steps: int = setting(5000, at_least(1))
    batch_size: int = setting(8, at_least(1))
    sequence_length: int = setting(1024, at_least(2))
    accumulation: int = setting(1, at_least(1))
    lr: float = setting(1e-3, _RATE)
    schedule: str = setting("cosine", one_of("cosine", "linear", "constant"))
    warmup: int | float | None = setting(None, _steps_or_share)
    final_lr: float = setting(0.0, _SHARE)
    beta1: float = setting(0.9, _BELOW_ONE)
    beta2: float = setting(0.95, _BELOW_ONE)
    eps: float = setting(1e-5, positive)
    weight_decay: float = setting(0.1, _RATE)
    clip: float = setting(1.0, positive)
    sampling: str = setting("random", one_of("random", "consecutive"))
    seed: int = setting(0, at_least(0))
    eval_every: int = setting(500, at_least(0))
    eval_batches: int = setting(20, at_least(1))
    patience: int = setting(0, at_least(0))
    save_every: int = setting(500, at_least(0))
    keep_last: int = setting(2, at_least(1))
    save_optimizer: bool = setting(True)
    log_every: int = setting(1, at_least(1))
    max_bad_steps: int = setting(5, at_least(1))
    router_temperature_start: float | None = setting(None, positive)
    router_jitter_start: float | None = setting(None, _RATE)
    router_anneal: float = setting(0.5, _SHARE)
    trainable: tuple[str, ...] | None = setting(None, lambda value: None if value else "is empty; None trains all")
    activation_checkpointing: bool = setting(False)
    reproducible: str | None = setting(None, one_of("ranks"))
    tree_rows: int = setting(1, at_least(1))
    transport: str = setting("float32", one_of("float32", "bfloat16"))
    tensorboard: bool = setting(False)
    wandb: bool = setting(False)

    def _check(self) -> None:
        if self.batch_size * self.sequence_length >= 2**31:
            raise ConfigError(
                f"batch_size: {self.batch_size} rows of {self.sequence_length} tokens are 2**31 tokens or more"
            )
        warmup_steps(self.warmup, self.steps)

    def exploration_of(self, model: MoMConfig) -> Callable[[int], tuple[float, float]] | None:
        """Temperature and jitter of the routers in each step, counted from 0; None: always those of the model."""
        if self.router_temperature_start is None and self.router_jitter_start is None:
            return None
        if self.router_temperature_start is not None and not (model.has_routers and model.router_softmax):
            raise ConfigError("router_temperature_start: needs a router with '-softmax', which this model has not")
        if self.router_jitter_start is not None and not (model.has_routers and KINDS[model.router_kind].scored):
            raise ConfigError("router_jitter_start: needs a router with scores, which this model has not")
        hot = model.router_softmax_temperature
        hot_start = hot if self.router_temperature_start is None else self.router_temperature_start
        jitter = model.router_jitter
        jitter_start = jitter if self.router_jitter_start is None else self.router_jitter_start
        return exploration_schedule((hot_start, hot), (jitter_start, jitter), self.router_anneal * self.steps)

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, also where `warmup` is None or a share."""
        return warmup_steps(self.warmup, self.steps)

    @property
    def tokens_per_step(self) -> int:
        """Tokens read per optimizer step."""
        return self.batch_size * self.sequence_length * self.accumulation

    def is_evaluated(self, step: int) -> bool:
        """Whether the validation loss is measured after `step` steps. After the last step it always is."""
        return bool(self.eval_every) and step % self.eval_every == 0

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step` steps. After the last step it always is."""
        return bool(self.save_every) and step % self.save_every == 0


@dataclass(frozen=True, repr=False)
class FinetuneConfig(Settings):
    """Settings of fine-tuning.

    Parameters
    ----------
    epochs : int
        Passes over the training data, unless `max_steps` or `patience` ends them.
    max_steps : int or None
        Largest number of optimizer steps.
    batch_size : int
        Examples that go through the model at once.
    accumulation : int
        Batches per step. The step is the same as with one larger batch of all their examples, except for rounding,
        dropout and the balance loss: in a language model that loss is the mean over the batches.
    lr : float
        Highest learning rate.
    schedule : {"linear", "cosine", "constant"}
        After the warm-up: a straight line or half a cosine to 0 at the last step.
    warmup : int or float
        Linear warm-up from 0: an integer is steps, a float from 0 to 1 a share of all steps.
    weight_decay, beta1, beta2, eps : float
        AdamW; see `mom.AdamW`.
    clip : float
        Largest gradient norm; ``inf`` switches clipping off.
    dropout : float or None
        Probability of all three dropouts; None: as the model has them.
    max_length : int or None
        Tokens per example; longer ones are cut. None: the model's ``n_positions``.
    evals_per_epoch : int
        Evaluations on the dev set per epoch, evenly spaced, the last one at its end.
    eval_every : int or None
        If given, evaluate after so many steps instead, counted through all epochs. The last step is always evaluated.
    patience : int
        Training stops after so many evaluations in a row without a better dev score; 0: never. With the defaults these
        take one and a half epochs.
    train : {"all", "routers", "head"}
        What is trained: everything; the routers (and a classifier's head); or only a classifier's head. Gradients that
        are not needed are not computed and take no memory. GLUE, XSUM and the estimators train a copy of the model, to
        which `MoM.train_only` of the model does not apply; a warning says so.
    activation_checkpointing : bool
        Less memory, more time, the same numbers; see `TrainingConfig`.
    reproducible : {None, "ranks"}
        See `TrainingConfig`.
    tree_rows : int
        See `TrainingConfig`.
    transport : {"float32", "bfloat16"}
        See `TrainingConfig`.

    Raises
    ------
    ConfigError
        Naming the field that is unknown, of the wrong type or out of range.
    """

    noun = "fine-tuning"
    table = "finetune"

    epochs: int = setting(3, at_least(1))
    max_steps: int | None = setting(None, at_least(1))
    batch_size: int = setting(16, at_least(1))
    accumulation: int = setting(1, at_least(1))
    lr: float = setting(1e-4, _RATE)
    schedule: str = setting("linear", one_of("linear", "cosine", "constant"))
    warmup: int | float = setting(0.1, _steps_or_share)
    weight_decay: float = setting(0.01, _RATE)
    beta1: float = setting(0.9, _BELOW_ONE)
    beta2: float = setting(0.98, _BELOW_ONE)
    eps: float = setting(1e-6, positive)
    clip: float = setting(1.0, positive)
    dropout: float | None = setting(None, _BELOW_ONE)
    max_length: int | None = setting(None, at_least(4))
    evals_per_epoch: int = setting(2, at_least(1))
    eval_every: int | None = setting(None, at_least(1))
    patience: int = setting(3, at_least(0))
    train: str = setting("all", one_of("all", "routers", "head"))
    activation_checkpointing: bool = setting(False)
    reproducible: str | None = setting(None, one_of("ranks"))
    tree_rows: int = setting(1, at_least(1))
    transport: str = setting("float32", one_of("float32", "bfloat16"))

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of all epochs."""
        total = self.epochs * steps_per_epoch
        return total if self.max_steps is None else min(total, self.max_steps)

    def is_evaluated(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the dev set is evaluated after `step` steps (1, 2, ...). After the last step it always is."""
        if self.eval_every is not None:
            return step % self.eval_every == 0
        done = (step - 1) % steps_per_epoch + 1  # of this epoch
        # A part ends at the first step that reaches its share of the epoch.
        return done * self.evals_per_epoch // steps_per_epoch > (done - 1) * self.evals_per_epoch // steps_per_epoch

    def length_for(self, config: MoMConfig) -> int:
        """Tokens per example for a model."""
        if self.max_length is not None and self.max_length > config.n_positions:
            raise ConfigError(
                f"max_length: {self.max_length} is more than the model's n_positions = {config.n_positions}"
            )
        return self.max_length or config.n_positions
