"""How much memory a model needs."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core, runtime
from .._arguments import count, flags
from .._html import html_table
from ..config import MoMConfig
from ..distributed import Communicator
from ..files.names import canonical_names
from ..interventions.scope import capture_bytes, capture_names
from .core_config import core_config

__all__ = ["MemoryPlan", "check_model_fits", "check_optimizer_fits", "plan", "plan_for"]


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """Bytes that a model needs for batches of a shape; made by `MoM.memory_plan`.

    Activations, packed weights and workspace share one block of memory, the arena. Their sizes change during a pass.
    The plan holds their sizes at the moment when the arena is fullest.

    Attributes
    ----------
    batch, length : int
        Sequences, and tokens per sequence (for packed rows, of the longest).
    tokens : int
        Tokens of the whole batch.
    training : bool
        Whether it is a training step, or a forward pass alone.
    activation_checkpointing : bool
    parameters, gradients, moments : int
        Weights, their gradients and AdamW's two moments, each float32. If only some parameters are trained, only
        gradients that are computed count. The moments are those of trained parameters, and of other parameters if an
        optimizer already has moments for them. The moments of all the model's optimizers count; without an optimizer,
        those of one.
    activations : int
        What backward needs if every module is in use; without training, what the pass itself holds.
    packed : int
        Weights packed for several rounds. They exist only while their block is computed. This is 0 if the arena is
        fullest at another moment. In training, that moment is mostly the computation of the output head.
    workspace : int
        Temporaries.
    captured : int
        Copies of captured activations and, in training, of their gradients.
    ranks : int
        Ranks that train together, each of which holds its share of the moments.
    received : int
        Parts of gradients that a rank receives from the others, at most at a time.
    sums : int
        Gradients that wait for those of other micro-batches, see `TrainingConfig.reproducible`.
    """

    batch: int
    length: int
    tokens: int
    training: bool
    activation_checkpointing: bool
    parameters: int
    gradients: int
    moments: int
    activations: int
    packed: int
    workspace: int
    captured: int = 0
    ranks: int = 1
    received: int = 0
    sums: int = 0

    @property
    def arena(self) -> int:
        """Bytes of the block that is allocated before the first pass."""
        return self.activations + self.packed + self.workspace

    @property
    def total(self) -> int:
        """Bytes of everything. The interpreter and its libraries (some 40 MB) are not counted."""
        of_ranks = self.received + self.sums
        return self.parameters + self.gradients + self.moments + self.arena + self.captured + of_ranks

    def rows(self) -> list[tuple[str, int]]:
        """Names and bytes of the parts, then of the total. The last parts are among them only if they are not 0."""
        parts = ["parameters", "gradients", "moments", "activations", "packed", "workspace"]
        parts += [name for name in ("captured", "received", "sums") if getattr(self, name)]
        return [(name, getattr(self, name)) for name in [*parts, "total"]]

    def __repr__(self) -> str:
        title, *rows = str(self).splitlines()
        return f"<MemoryPlan: {title}; {', '.join(' '.join(row.split()) for row in rows)}>"

    def _repr_html_(self) -> str:
        title, *_ = str(self).splitlines()
        return html_table(title, [], ([name, f"{1e-6 * size:,.1f} MB"] for name, size in self.rows()))

    def __str__(self) -> str:
        kind = "training" if self.training else "forward pass"
        if self.activation_checkpointing:
            kind += ", activation checkpointing"
        shape = f"{self.batch} x {self.length} tokens"
        if self.tokens != self.batch * self.length:
            shape = f"{self.tokens} tokens in {self.batch} sequences of up to {self.length}"
        lines = [f"{kind}, {shape}"]
        return "\n".join(lines + [f"  {name:12}{1e-6 * size:12,.1f} MB" for name, size in self.rows()])


def plan(
    core: _core.Network,
    config: MoMConfig,
    batch: int,
    length: int,
    *,
    tokens: int | None = None,
    training: bool = True,
    activation_checkpointing: bool = False,
    capture: str | Sequence[str] = (),
    ranks: int = 1,
    leaves: int = 1,
) -> MemoryPlan:
    """The plan of a network of the core with this configuration; see `MoM.memory_plan`."""
    ranks, leaves = count(ranks, "ranks", 1), count(leaves, "leaves", 1)
    training, checkpoint = flags(training=training, activation_checkpointing=activation_checkpointing)
    batch, length = count(batch, "batch", 1), count(length, "length", 1)
    tokens = batch * length if tokens is None else count(tokens, "tokens", 1)
    if length > config.n_positions:
        raise ValueError(f"length: {length}, n_positions is {config.n_positions}")
    if batch * length >= 2**31:
        raise ValueError(f"batch: {batch} sequences of {length} tokens are 2**31 tokens or more")
    if not length + batch - 1 <= tokens <= batch * length:
        raise ValueError(
            f"tokens: {tokens}, expected {length + batch - 1} to {batch * length} "
            f"in {batch} sequences, the longest of {length}"
        )
    checkpoint = checkpoint and training
    names = capture_names(capture)
    try:
        sizes = core.plan(batch, length, tokens, training, checkpoint, training, bool(names))
    except ValueError as error:  # sizes are all that can be wrong
        raise ValueError(f"batch: {batch} sequences of {length} tokens are too many ({error})") from None
    if training:
        sizes.update(_of_ranks(core, ranks, leaves, sizes["moments"]))
    captured = capture_bytes(config, names, tokens, training)
    return MemoryPlan(batch, length, tokens, training, checkpoint, **sizes, captured=captured, ranks=ranks)


def _of_ranks(core: _core.Network, ranks: int, leaves: int, moments: int) -> dict[str, int]:
    """Bytes of the parts of a plan that depend on the ranks. `moments` are those of a single process."""
    bounds = _core.shard_bounds(core, ranks)
    shard, whole = int(np.diff(bounds).max()), int(bounds[-1])
    return {
        "moments": min(moments, 8 * shard) if ranks > 1 else moments,
        "received": 4 * ranks * min(shard, Communicator.slab) if ranks > 1 else 0,
        "sums": 4 * whole * (leaves - 1).bit_length(),
    }


def plan_for(config: MoMConfig, batch: int, length: int, *, dtype: str = "float32", **options: Any) -> MemoryPlan:
    """The memory plan of a model that need not exist; see `MoM.memory_plan`.

    Parameters
    ----------
    config : MoMConfig
    batch, length : int
    dtype : {"float32", "bfloat16"}
    **options
        As for `MoM.memory_plan`.

    Examples
    --------
    >>> import mom
    >>> plan = mom.model.plan_for(mom.MoMConfig.preset("mini"), 8, 256)
    >>> plan.moments == 2 * plan.parameters
    True
    """
    core = _core.Network(core_config(config, dtype))
    return plan(core, config, batch, length, **options)


def check_model_fits(config: MoMConfig) -> None:
    """Raise unless the parameters of a new model fit beside what this process holds already.

    Nothing is allocated before. The limit is `mom.runtime.memory_limit`.

    Raises
    ------
    MemoryError
        With the bytes that the model needs, those that are in use, and the limit.
    """
    needed = 4 * sum(math.prod(shape) for shape in canonical_names(config).values())
    _check_machine("config: the parameters of this model", needed, "Choose a smaller model, or delete others first")


def check_optimizer_fits(numbers: int, trained: int, limit: int | None, ranks: int = 1) -> None:
    """Raise unless the gradients of a model and the moments of a new optimizer fit.

    Two limits hold: that of the machine for all models of this process, and `limit`, the model's own. Of the model's
    `numbers`, `trained` are trained; the others take no memory for gradients and moments. Each of several `ranks` holds
    its share of the moments.

    Raises
    ------
    MemoryError
        With the bytes that are needed, and the limit.
    """
    moments = 8 * trained // ranks
    total = 4 * numbers + 4 * trained + moments
    way_out = "Train fewer parameters with train_only, or a smaller model"
    if limit is not None and total > limit:
        raise MemoryError(
            f"model: parameters, gradients and AdamW's moments need {total} bytes, more than the model's memory_limit "
            f"of {limit}. {way_out}"
        )
    _check_machine("model: the moments of AdamW", moments, way_out)


def _check_machine(what: str, needed: int, way_out: str) -> None:
    limit = runtime.memory_limit()
    if limit is None or _core.memory_live_bytes() + needed <= limit:
        return
    gc.collect()  # models in reference cycles still hold memory
    held = _core.memory_live_bytes()
    if held + needed > limit:
        raise MemoryError(
            f"{what} need {needed} bytes. With {held} bytes that are in use, this is more than the limit of {limit} "
            f"bytes of this machine or its control group. {way_out}"
        )
