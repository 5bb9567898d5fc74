"""Passes that begin in the middle, so that only what a change can reach is computed again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..interventions import Force, Intervention, Patch
from ..interventions.places import places_of
from ..interventions.selection import HALVES

__all__ = ["places_to_restart", "restart", "rounds_of_config", "routed_halves"]


def rounds_of_config(config: MoMConfig) -> list[tuple[int, int]]:
    """(block, round) of all rounds in order."""
    blocks = sum(kind == "block" for kind in config.places())
    return [(block, round) for block in range(blocks) for round in range(config.rounds)]


def routed_halves(config: MoMConfig) -> list[str]:
    """The halves that have a router."""
    if not rounds_of_config(config):
        return []
    return [half for half, count in zip(HALVES, (config.num_attn, config.num_ffn), strict=True) if count > 1]


def places_to_restart(config: MoMConfig) -> list[str]:
    """What a pass has to capture so that `restart` can begin at any half-round."""
    return [name for name in places_of(config) if name.startswith("block") and name.endswith((".input", ".state"))]


def restart(
    config: MoMConfig, captured: Mapping[str, npt.NDArray[np.float32]], number: int, half: str
) -> list[Intervention]:
    """Interventions with which a pass begins at a half-round, to the same bits.

    Half-rounds before it run no module: all tokens are made to skip. The half-round's input and the routers' states are
    those of an earlier pass over the same tokens. Embedding, anchor layers, routers and the head are computed as
    always.

    Parameters
    ----------
    config : MoMConfig
    captured : mapping
        `places_to_restart` of the earlier pass.
    number : int
        The round, counted over the blocks.
    half : {"attn", "ffn"}

    Returns
    -------
    list of Intervention
        Empty where nothing can be left out: at the very first half-round, and if every token uses all modules.
    """
    if config.routing_all_possible_path:
        return []
    rounds = rounds_of_config(config)
    block, round = rounds[number]
    rules: list[Intervention] = []
    for other in HALVES:
        # The attention half of a round runs before the feed-forward half.
        before = number + (other == "attn" and half == "ffn")
        if other in routed_halves(config) and before:
            rules.append(Force(other, "SKIP", rounds=range(before)))
            state = f"block{block}.round{round + before - number - 1}.{other}.state"
            if state in captured:
                rules.append(Patch(state, captured[state]))
    if rules:
        name = f"block{block}.round{round}.{half}.input"
        rules.append(Patch(name, captured[name]))
    return rules
