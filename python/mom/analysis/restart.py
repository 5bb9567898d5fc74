"""Passes that begin in the middle, so that only what a change can reach is computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..interventions import Intervention
from ..interventions.places import places_of
from ..interventions.selection import HALVES
from ..model import MoM, Routes

__all__ = ["begin_at", "losses_from", "places_to_restart", "rounds_of_config", "routed_halves"]

Floats = npt.NDArray[np.float32]


def rounds_of_config(config: MoMConfig) -> list[tuple[int, int]]:
    """(block, round) of all rounds in order."""
    blocks = sum(kind == "block" for kind in config.places())
    return [(block, round) for block in range(blocks) for round in range(config.rounds)]


def routed_halves(config: MoMConfig) -> list[str]:
    """The halves that have a router."""
    if not rounds_of_config(config):
        return []
    return [half for half in HALVES if config.is_routed(half)]


def places_to_restart(config: MoMConfig) -> list[str]:
    """What a pass has to capture so that others can begin at any half-round of a block."""
    return [name for name in places_of(config) if name.startswith("block") and name.endswith((".input", ".state"))]


def begin_at(config: MoMConfig, captured: Mapping[str, Floats], number: int, half: str) -> tuple[Any, ...] | None:
    """What the core's forward pass takes as `begin` in order to begin at a half-round of a block.

    Parameters
    ----------
    config : MoMConfig
    captured : mapping
        `places_to_restart` of a pass over the same tokens.
    number : int
        The round, counted over the blocks.
    half : {"attn", "ffn"}

    Returns
    -------
    tuple or None
        None, a whole pass, if choices depend on those of earlier rounds (``skip_is_final``).
    """
    if config.skip_is_final:
        return None
    block, round = rounds_of_config(config)[number]
    place = [index for index, kind in enumerate(config.places()) if kind == "block"][block]
    states = []
    for other in HALVES:
        # The attention half of a round runs before the feed-forward half.
        last = round if other == "attn" and half == "ffn" else round - 1
        state = captured.get(f"block{block}.round{last}.{other}.state")
        states.append(None if state is None else _rows(state))
    return (place, round, HALVES.index(half), _rows(captured[f"block{block}.round{round}.{half}.input"]), *states)


def _rows(values: Floats) -> Floats:
    """The same values with a row for each token."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]))


def losses_from(
    model: MoM,
    ids: npt.NDArray[np.int32],
    labels: npt.NDArray[np.int32],
    begin: tuple[Any, ...] | None,
    interventions: Sequence[Intervention] = (),
    routes: Routes | None = None,
) -> Floats:
    """Losses of predictions, shape (B, T), by a pass that begins at a half-round and runs nothing before it.

    They have the bits of a whole pass in which nothing before the half-round is changed. There is NaN where there is no
    label. `begin` is that of `begin_at`, and the other arguments are those of a call of the model.
    """
    given = model.inputs(ids, None, None, None)
    call = model.call_of(given, interventions, routes, token_losses=True)
    assert call is not None and call.token_losses is not None
    model.core.forward(**given, labels=labels, interventions=call.core, begin=begin)
    call.finish()
    return call.token_losses.reshape(ids.shape)
