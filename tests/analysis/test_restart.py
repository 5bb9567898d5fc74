"""A pass that begins in the middle gives the bits of the whole pass."""

from __future__ import annotations

import numpy as np
import pytest
from small import IDS, model_of

import mom
from mom.analysis.restart import places_to_restart, restart, rounds_of_config, routed_halves


@pytest.mark.parametrize(
    "changes",
    [{}, {"router_type": "naive-softmax"}, {"router_type": "hash"}, {"router_type": "gru-dev-random-softmax"},
     {"chunks": 2}, {"num_attn": 1}, {"num_ffn": 1}, {"routing_top_k": 1, "use_ste": True},
     {"routing_all_possible_path": True}, {"weighted_qkv": True}, {"router_type": "gru"}],
    ids=str,
)  # fmt: skip
def test_it_has_the_bits_of_the_whole_pass(changes: dict[str, object]) -> None:
    model = model_of(**changes)
    state = model.random_state
    whole = model(IDS, labels=IDS, return_logits=True, capture=places_to_restart(model.config))
    assert whole.captured is not None and whole.logits is not None
    for number in range(len(rounds_of_config(model.config))):
        for half in routed_halves(model.config):
            model.random_state = state
            rules = restart(model.config, whole.captured, number, half)
            part = model(IDS, return_logits=True, interventions=rules)
            np.testing.assert_array_equal(part.logits, whole.logits, err_msg=f"{number} {half}")
            first = number == 0 and half == routed_halves(model.config)[0]
            assert bool(rules) != (first or model.config.routing_all_possible_path)


def test_modules_of_earlier_half_rounds_do_not_run() -> None:
    model = model_of()
    captured = model(IDS, capture=places_to_restart(model.config)).captured
    assert captured is not None
    rules = restart(model.config, captured, 2, "ffn")
    routes = model(IDS, return_routes=True, interventions=rules).routes
    assert routes is not None
    assert (routes.module["attn"][:3] == 4).all() and (routes.module["ffn"][:2] == 4).all()
    assert (routes.module["attn"][3] < 4).any() and (routes.module["ffn"][2] < 4).any()


def test_a_model_without_blocks_has_no_routed_halves() -> None:
    config = mom.MoMConfig.preset("demo", vocab_size=16).vanilla_config()
    assert routed_halves(config) == [] and rounds_of_config(config) == []
