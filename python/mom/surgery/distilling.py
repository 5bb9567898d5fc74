"""Routers that learn to make given choices by themselves."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import count
from .._arguments import seed as seed_of
from .._progress import shown
from ..analysis.audit import sequences_of
from ..model import MoM, Routes
from ..routers import KINDS
from ..training import AdamW
from .modules import facts_of
from .result import SurgeryResult

__all__ = ["distil_routes"]

Ids = npt.NDArray[np.int32]
Teacher = MoM | Routes | Callable[[Ids], Routes]


def distil_routes(
    model: MoM,
    teacher: Teacher,
    data: Any = None,
    *,
    steps: int = 200,
    batch_size: int = 8,
    sequence_length: int | None = None,
    lr: float = 1e-3,
    trainable: str = "*.router.*",
    seed: int = 0,
    progress: bool = True,
) -> SurgeryResult:
    """Train routers to make a teacher's choices. Modules stay as they are.

    Each step runs the model on the teacher's routes and lowers the route loss: the negative logarithm of the
    probability that the routers give to these choices (`MoMConfig.router_route_loss_coef`).

    Parameters
    ----------
    model : MoM
    teacher : MoM, Routes or callable
        Another model with as many modules and rounds, whose routes on the data are taught; or a function from ids
        (B, T) to their `Routes`, such as a search for better ones; or routes of unpacked rows, which are taught as they
        are.
    data : array of int, shape (B, T), TokenFile or path
        What is read; not needed, and not allowed, with routes, which have tokens of their own.
    steps, batch_size : int
        Steps of AdamW, and sequences in each.
    sequence_length : int, optional
        Of token files.
    lr : float
    trainable : str
        Shell pattern of the names of the parameters that are trained.
    seed : int
        Of the order of the sequences.
    progress : bool
        Show a bar if it takes long.

    Returns
    -------
    SurgeryResult
        The receipt has, before and after, on the first sequences: ``route_loss``, ``agreement`` (share of the
        teacher's choices that the model makes) and ``loss`` in nats per token, and ``teacher_loss``, the model's own
        loss on the teacher's routes.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, data are missing, or the model has no routers that learn.

    Examples
    --------
    >>> import mom
    >>> import numpy as np
    >>> config = mom.MoMConfig.preset("demo")
    >>> ids = np.random.default_rng(0).integers(0, 2048, (8, 16))
    >>> result = mom.surgery.distil_routes(mom.MoM(config, seed=0), mom.MoM(config, seed=1), ids, steps=5)
    >>> result.receipt["after"]["route_loss"] < result.receipt["before"]["route_loss"]
    True
    """
    steps, batch_size, seed = count(steps, "steps", 1), count(batch_size, "batch_size", 1), seed_of(seed)
    if not KINDS[model.config.router_kind].scored or not model.config.has_routers:
        raise ValueError("model: has no routers that learn")
    if model.config.router_frozen:
        raise ValueError("model: router_frozen keeps its routers as they are; use with_config(router_frozen=False)")
    number, take, routes_of = _lessons(model, teacher, data, sequence_length)
    pupil = model.with_config(router_route_loss_coef=1.0)
    # A bias that balances is moved by counts of choices, which here are the teacher's.
    names = [name for name in fnmatch.filter(pupil.parameters, trainable) if not name.endswith(".balance_bias")]
    pupil.train_only(*names or [trainable])
    first = np.arange(min(batch_size, number))
    before = _measures(pupil, take(first), routes_of(first))
    optimizer = AdamW(pupil, lr=lr, weight_decay=0.0)
    order = np.random.default_rng(seed)
    for _ in shown(range(steps), "distil_routes", "step", progress, steps):
        rows = np.sort(order.choice(number, min(batch_size, number), replace=False))
        taught = routes_of(rows)
        pupil(**_lesson(take(rows), taught), routes=taught)
        pupil.backward(scales={"route": 1.0})
        optimizer.step(1.0, zero_grad=True)
    after = _measures(pupil, take(first), routes_of(first))
    changed = pupil.with_config(router_route_loss_coef=model.config.router_route_loss_coef)
    changed.train_only(*(name for name, trained in model.trainable.items() if trained))
    receipt = {
        "surgery": "distil_routes", "steps": steps, "batch_size": batch_size, "lr": lr, "trainable": trainable,
        "seed": seed, "before": {**facts_of(model), **before}, "after": {**facts_of(changed), **after},
    }  # fmt: skip
    return SurgeryResult(changed, receipt)


def _lessons(
    model: MoM, teacher: Teacher, data: Any, sequence_length: int | None
) -> tuple[int, Callable[[Any], Ids], Callable[[Any], Routes]]:
    """How many sequences there are, and what gives the ids and the teacher's routes of some of them."""
    if isinstance(teacher, Routes):
        if data is not None:
            raise ValueError("data: routes have tokens of their own; leave it out")
        if teacher.lengths is not None:
            raise ValueError("teacher: has packed rows; give a model, a function, or routes of unpacked rows")
        return len(teacher.tokens), lambda rows: teacher.tokens[rows], lambda rows: _some(teacher, rows)
    if data is None:
        raise ValueError("data: needed to ask the teacher for routes")
    number, slices = sequences_of(model, data, sequence_length)

    def take(rows: Any) -> Ids:
        return np.concatenate([slices(int(row), int(row) + 1) for row in rows])

    if isinstance(teacher, MoM):
        own = teacher.copy().eval()

        def ask(rows: Any) -> Routes:
            found = own(take(rows), return_routes=True, keep=False).routes
            assert found is not None
            return found

        return number, take, ask
    if not callable(teacher):
        raise TypeError(f"teacher: expected MoM, Routes or a function, got {type(teacher).__name__}")
    return number, take, lambda rows: teacher(take(rows))


def _some(routes: Routes, rows: Any) -> Routes:
    """The routes of some sequences."""
    index = {half: array[:, rows] for half, array in routes.index.items()}
    scores = {half: array[:, rows] for half, array in routes.scores.items()}
    weight = {half: array[:, rows] for half, array in routes.weight.items()}
    mask = None if routes.mask is None else routes.mask[rows]
    return Routes(routes.tokens[rows], index, scores, weight, routes.rounds, routes.num_modules, None, mask)


def _lesson(ids: Ids, taught: Routes) -> dict[str, Any]:
    """Tokens, labels and mask of a call; padding has no label."""
    if taught.mask is None:
        return {"tokens": ids, "labels": ids}
    return {"tokens": ids, "labels": np.where(taught.mask, ids, -100), "attention_mask": taught.mask}


def _measures(pupil: MoM, ids: Ids, taught: Routes) -> dict[str, float]:
    forced = pupil(**_lesson(ids, taught), routes=taught, keep=False)
    own = pupil(**_lesson(ids, taught), return_routes=True, keep=False)
    assert own.routes is not None and own.lm_loss is not None and forced.lm_loss is not None
    same = [_share(taught.module[half], own.routes.module[half]) for half in taught.module]
    return {"route_loss": forced.losses["route"], "agreement": float(np.mean(same)), "loss": own.lm_loss,
            "teacher_loss": forced.lm_loss}  # fmt: skip


def _share(taught: npt.NDArray[np.int16], made: npt.NDArray[np.int16]) -> float:
    """Share of the first choices (..., K) that are among the second."""
    return float((taught[..., :, None] == made[..., None, :]).any(-1).mean())
