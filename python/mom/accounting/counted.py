"""Making a ledger from a configuration or a model."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .._arguments import count, flags
from .._reading import shown
from ..config import MoMConfig
from ..files.names import canonical_names
from ..model.network import Network
from ..model.routes import Routes, rounds_of_blocks
from .batch import Batch, batch_of
from .loads import expected_load, real_load, share_still_choosing
from .shapes import Half, Place, Trained, places_of, trained_parts
from .table import Ledger, LedgerRow
from .work import Step, half_work, head_work

__all__ = ["ledger"]


def ledger(
    model: MoMConfig | Network,
    batch: int | None = None,
    length: int | None = None,
    routes: Routes | None = None,
    training: bool = True,
    *,
    labels: ArrayLike | None = None,
    labelled: bool = True,
    logits: bool = False,
    activation_checkpointing: bool | None = None,
    trainable: str | Sequence[str] | None = None,
) -> Ledger:
    """Count what a pass computes, without computing it.

    Useful work counts: pairs that attention sees, real rows, modules that run. With real routes, the numbers are those
    that the core counts itself (`MoM.counting`), to the last multiply-add. Without routes they are means: each row
    makes K distinct choices, uniform over all outputs of the router, those for SKIP included. Rows are independent.

    Parameters
    ----------
    model : MoMConfig, MoM or MoMForSequenceClassification
        A configuration is enough; no weights are made.
    batch, length : int, optional
        Sequences, and tokens of each. By default those of the routes, or 1 sequence of ``n_positions`` tokens.
    routes : Routes, optional
        As a call has returned them. They also say which tokens are padding, and the lengths of packed rows.
    training : bool
        Whether backward is counted, too.
    labels : array of int, as the routes' tokens, optional
        Labels of the call; -100 does not count. By default every real token has a label.
    labelled : bool
        Whether the call has labels. Without them there is no loss, no head and no backward.
    logits : bool
        The call returns the logits of all rows.
    activation_checkpointing : bool, optional
        By default the model's attribute; False for a configuration.
    trainable : str or sequence of str, optional
        Patterns of the names of trained parameters, as for `MoM.train_only`; by default the model's own choice.

    Returns
    -------
    Ledger

    Raises
    ------
    ValueError
        If the routes are not those of such a model, have free entries, or do not fit the labels or the shape.

    Examples
    --------
    >>> import mom
    >>> one = mom.ledger(mom.MoMConfig.preset("gpt2"), batch=8, length=1024)
    >>> other = mom.ledger(mom.MoMConfig.preset("mom-small"), batch=8, length=1024)
    >>> round(other.flops() / one.flops(), 2)
    1.34
    """
    if not isinstance(model, (MoMConfig, Network)):
        raise TypeError(
            f"model: expected a MoMConfig or a model, got {type(model).__name__} {shown(model)}. For a named "
            "configuration use MoMConfig.preset('demo')"
        )
    config = model if isinstance(model, MoMConfig) else model.config
    training, logits, labelled = flags(training=training, logits=logits, labelled=labelled)
    if activation_checkpointing is None:
        activation_checkpointing = False if isinstance(model, MoMConfig) else model.activation_checkpointing
    (checkpointing,) = flags(activation_checkpointing=activation_checkpointing)
    if routes is not None:
        _check_routes(config, routes)
    shape = _shape(config, batch, length, routes)
    rows = batch_of(config, shape, routes, labels, labelled=labelled, logits=logits)
    training = training and labelled
    trained = trained_parts(config, _trained(model, config, trainable))
    entries, active = [], 0.0
    for place in places_of(config):
        found, used = _of_place(config, place, rows, routes, training, checkpointing, trained)
        entries += found
        active += used
    entries.append(LedgerRow.of(head_work(config, rows, training, trained)))
    halves = [half for place in places_of(config) for half in place.halves]
    expected = routes is None and any(half.routed and not half.all_paths for half in halves)
    return Ledger(config, tuple(entries), rows.sequences, rows.num_real, training, expected, active)


def _of_place(
    config: MoMConfig,
    place: Place,
    batch: Batch,
    routes: Routes | None,
    training: bool,
    checkpointing: bool,
    trained: Trained,
) -> tuple[list[LedgerRow], float]:
    """The rows of a place, and how many numbers of its parameters a token uses."""
    last_place = place.number + 1 == len(config.places())
    rows, used = [], 0.0
    first_round = True
    for round_number in range(place.rounds):
        number = (place.block or 0) * place.rounds + round_number
        if routes is not None and place.block is not None and _is_left_out(routes, number):
            continue
        saves = last_place and round_number + 1 == place.rounds and not place.halves[1].routed
        for half in place.halves:
            if routes is None or place.block is None:
                load = expected_load(half, batch, saves, round_number)
            else:
                load = real_load(half, batch, routes, number, saves)
            step = Step.of(training, checkpointing, trained, place.number, half.name)
            work = half_work(half, load, batch, first_round, step)
            rows += [LedgerRow.of(entry, place, round_number, half.name) for entry in work]
        first_round = False
    for half in place.halves:
        used += half.all_router_parameters
        if config.owner(place.number, half.name) == place.number:
            shared = config.shared_pools in (half.name, "both") and place.block is not None
            rounds = place.rounds * (config.chunks if shared else 1)
            used += half.module_parameters * _modules_used(half, place, rounds, batch, routes)
    return rows, used


def _is_left_out(routes: Routes, number: int) -> bool:
    """Whether a round was left out (``round_pdrop``): then its routers have no scores."""
    return bool(routes.scores) and not any(scores[number].any() for scores in routes.scores.values())


def _modules_used(half: Half, place: Place, rounds: int, batch: Batch, routes: Routes | None) -> float:
    """How many modules of a half a token uses in so many rounds from this place on, each counted once.

    It is a mean over real tokens.
    """
    if not rounds:
        return 0.0
    if not half.routed or half.all_paths:
        return float(half.modules)
    if routes is None or place.block is None:
        share = half.choices / half.outputs
        unused = math.prod(1.0 - share * share_still_choosing(half, r % max(place.rounds, 1)) for r in range(rounds))
        return half.modules * (1.0 - unused)
    first = place.block * place.rounds
    module = routes.module[half.name][first : first + rounds].reshape(rounds, len(batch.row), -1)
    used = np.zeros((batch.num_real, half.modules + 1), bool)
    for in_round in module[:, batch.real]:
        used[np.arange(len(used))[:, None], in_round] = True
    return float(used[:, :-1].sum() / max(len(used), 1))


def _trained(model: MoMConfig | Network, config: MoMConfig, patterns: str | Sequence[str] | None) -> Mapping[str, bool]:
    if patterns is None:
        return dict.fromkeys(canonical_names(config), True) if isinstance(model, MoMConfig) else model.trainable
    chosen = [patterns] if isinstance(patterns, str) else list(patterns)
    known = canonical_names(config)
    for pattern in chosen:
        if not isinstance(pattern, str) or not fnmatch.filter(known, pattern):
            raise ValueError(f"trainable: {shown(pattern)} fits no parameter of this model")
    return {name: any(fnmatch.fnmatchcase(name, pattern) for pattern in chosen) for name in known}


def _shape(config: MoMConfig, batch: int | None, length: int | None, routes: Routes | None) -> tuple[int, int]:
    """Sequences and tokens of each; those of routes may be packed, so that only the longest is told."""
    if routes is None:
        sequences = 1 if batch is None else count(batch, "batch", 1)
        longest = config.n_positions if length is None else count(length, "length", 1)
        if longest > config.n_positions:
            raise ValueError(f"length: {longest}, n_positions is {config.n_positions}")
        return sequences, longest
    have = (routes.rows, routes.tokens.shape[1] if routes.lengths is None else int(routes.lengths.max()))
    for name, given, is_there in (("batch", batch, have[0]), ("length", length, have[1])):
        if given is not None and given != is_there:
            raise ValueError(f"{name}: {given}, but the routes have {is_there}; leave it out")
    return have


def _check_routes(config: MoMConfig, routes: Routes) -> None:
    if not isinstance(routes, Routes):
        raise TypeError(f"routes: expected mom.Routes, got {type(routes).__name__}")
    rounds = [(block, number) for _, block, number in rounds_of_blocks(config)]
    if routes.rounds != rounds:
        raise ValueError(f"routes: have {len(routes.rounds)} rounds, and the model's blocks have {len(rounds)}")
    for name, modules in (("attn", config.num_attn), ("ffn", config.num_ffn)):
        if rounds and (routes.num_modules[name] != modules or config.is_routed(name) != (name in routes.index)):
            raise ValueError(f"routes: are of {routes.num_modules[name]} {name} modules, and the model has {modules}")
