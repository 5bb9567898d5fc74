"""What a test means by all routers and all terms of the loss."""

from __future__ import annotations

import mom
from mom.routers import KINDS, router_kind

__all__ = ["LOSSES", "NOISELESS_ROUTERS", "NOISY_ROUTERS", "ROUTERS"]


def _router_types(kinds: list[str], noise: str) -> list[str]:
    return [f"{kind}{noise}{softmax}" for kind in kinds for softmax in ("", "-softmax")]


def _is_unscored(router_type: str) -> bool:
    kind = router_kind(router_type)
    return kind is None or not kind.scored


#: Kinds with scores first, among them those without a state, then by name. The order decides the random numbers of some
#: tests.
_KINDS = sorted(KINDS, key=lambda name: (not KINDS[name].scored, KINDS[name].recurrent, name))
#: Values of `MoMConfig.router_type`: every kind, with raw scores and with probabilities.
NOISELESS_ROUTERS = _router_types(_KINDS, "")
#: Every kind that has a noise gate.
NOISY_ROUTERS = _router_types([name for name in _KINDS if KINDS[name].recurrent], "-random")
ROUTERS = sorted(NOISELESS_ROUTERS + NOISY_ROUTERS, key=_is_unscored)

#: Names of the terms of the loss.
LOSSES = list(mom.MoMConfig().loss_weights)
