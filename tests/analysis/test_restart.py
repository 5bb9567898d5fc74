"""A pass that begins in the middle gives the bits of the whole pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small import IDS, model_of

import mom
from kinds import ROUTERS
from mom.analysis.restart import begin_at, losses_from, places_to_restart, rounds_of_config, routed_halves
from mom.interventions.selection import HALVES

#: The tokens of IDS but some at the end of its rows, one row after the other.
LENGTHS = np.array([12, 3, 12, 7, 1, 12], np.int32)
PACKED = np.concatenate([row[:length] for row, length in zip(IDS, LENGTHS, strict=True)])


def losses_of(model: mom.MoM, tokens: Any, labels: Any, begin: Any = None, **given: Any) -> np.ndarray:
    call = model.call_of({"tokens": tokens, **given}, token_losses=True)
    assert call is not None and call.token_losses is not None
    model.core.forward(tokens, labels=labels, training=model.training, interventions=call.core, begin=begin, **given)
    return call.token_losses


def compare(model: mom.MoM, tokens: Any, labels: Any = None, **given: Any) -> None:
    """Passes that begin at each half-round of a block, with 1 to 3 threads, against the whole pass."""
    labels = tokens if labels is None else labels
    state, options = model.random_state, {"attention_mask" if k == "mask" else k: v for k, v in given.items()}
    captured = model(tokens, capture=places_to_restart(model.config), **options).captured
    assert captured is not None
    model.random_state = state
    whole = losses_of(model, tokens, labels, **given)
    assert np.isfinite(whole).any()
    before = mom.get_num_threads()
    for number in range(len(rounds_of_config(model.config))):
        for half in HALVES:
            model.random_state = state
            mom.set_num_threads(1 + number % 3)
            try:
                part = losses_of(model, tokens, labels, begin_at(model.config, captured, number, half), **given)
            finally:
                mom.set_num_threads(before)
            np.testing.assert_array_equal(part, whole, err_msg=f"{number} {half}")


@pytest.mark.parametrize("router_type", ROUTERS)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_routers(router_type: str, top_k: int) -> None:
    compare(model_of(router_type=router_type, routing_top_k=top_k), IDS)


@pytest.mark.parametrize(
    "changes",
    [{"chunks": 2}, {"chunks": 2, "num_top_layers": 0, "num_bottom_layers": 0}, {"num_top_layers": 2},
     {"num_attn": 1}, {"num_ffn": 1}, {"num_attn": 1, "num_ffn": 1}, {"use_ste": True, "routing_top_k": 1},
     {"enable_pause": False}, {"routing_all_possible_path": True}, {"weighted_qkv": True},
     {"weighted_qkv": True, "chunks": 2, "use_ste": True},
     {"embd_pdrop": 0.2, "attn_pdrop": 0.2, "resid_pdrop": 0.2}],
    ids=str,
)  # fmt: skip
def test_configurations(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    if "embd_pdrop" in changes:
        model.train()
    compare(model, IDS)
    compare(model, PACKED, lengths=LENGTHS)


def test_batches() -> None:
    model = model_of(num_top_layers=1)
    mask = np.ones(IDS.shape, np.uint8)
    mask[1, :4] = mask[3, :1] = 0
    compare(model, IDS, np.where(mask == 1, IDS, -100).astype(np.int32), mask=mask)
    few = np.full_like(IDS, -100)
    few[:, 9:] = IDS[:, 9:]
    compare(model, IDS, few)  # the last anchor layer leaves out rows that are not needed
    compare(model, IDS, positions=np.ascontiguousarray(np.broadcast_to(np.arange(12, dtype=np.int32)[::-1], IDS.shape)))
    half_sized = mom.MoM(model.config, seed=0, dtype="bfloat16")
    compare(half_sized, IDS)
    compare(half_sized, PACKED, lengths=LENGTHS)


def test_what_comes_later_can_be_changed_and_captured() -> None:
    model = model_of(chunks=2)
    active = [mom.Scale("block0.round1.ffn.input", 1.5), mom.Scale("block0.round1.attn.state", 0.5)]
    change = [mom.Forbid("ffn", [1], rounds=[2, 3]), mom.Scale("block1.round0.ffn.output", 0.5)]
    with model.intervene(active):
        captured = model(IDS, capture=places_to_restart(model.config)).captured
        assert captured is not None
        whole = model(IDS, labels=IDS, interventions=change, return_token_losses=True, keep=False)
        for number, half in ((1, "ffn"), (2, "attn"), (2, "ffn")):
            part = losses_from(model, IDS, IDS, begin_at(model.config, captured, number, half), change)
            np.testing.assert_array_equal(part, whole.token_losses)
    assert not np.array_equal(losses_of(model, IDS, IDS).reshape(IDS.shape), part)


def test_routes_before_the_beginning_do_not_matter() -> None:
    model = model_of()
    out = model(IDS, return_routes=True, capture=places_to_restart(model.config))
    assert out.routes is not None and out.captured is not None
    begin = begin_at(model.config, out.captured, 2, "ffn")
    skipping = out.routes.edit("attn", to="SKIP").edit("ffn", to="SKIP", round=1)
    skipping.index["attn"][3] = out.routes.index["attn"][3]
    own = losses_from(model, IDS, IDS, begin)
    np.testing.assert_array_equal(losses_from(model, IDS, IDS, begin, routes=skipping), own)
    skipping.index["attn"][3] = 4, -2
    assert not np.array_equal(losses_from(model, IDS, IDS, begin, routes=skipping), own)


def test_a_pass_can_begin_with_an_anchor_layer() -> None:
    model = model_of(num_bottom_layers=2, num_top_layers=1)
    anchors = [place for place, kind in enumerate(model.config.places()) if kind != "block"]
    names = [f"anchor{number}.{half}.input" for number in range(len(anchors)) for half in HALVES]
    captured, whole = model(IDS, capture=names).captured, losses_of(model, IDS, IDS)
    assert captured is not None and len(anchors) == 3
    for name, (place, half) in zip(names, [(place, half) for place in anchors for half in (0, 1)], strict=True):
        stream = captured[name].reshape(-1, model.config.n_embd)
        np.testing.assert_array_equal(losses_of(model, IDS, IDS, (place, 0, half, stream, None, None)), whole)


def test_a_pass_from_the_middle_leaves_no_results() -> None:
    model = model_of()
    captured = model(IDS, labels=IDS, capture=places_to_restart(model.config)).captured
    assert captured is not None
    begin = begin_at(model.config, captured, 1, "attn")
    terms = model.core.forward(IDS, labels=IDS, begin=begin)[0]
    assert list(terms) == ["lm"]
    for read in (
        model.route_counts,
        model.backward,
        lambda: model.core.route(1, 0, 0),
        lambda: model.core.logits(None),
    ):
        with pytest.raises(RuntimeError):
            read()
    out = model(IDS, labels=IDS, return_routes=True)
    model.backward()
    assert out.lm_loss == pytest.approx(terms["lm"], abs=1e-12)


def test_what_it_refuses() -> None:
    model = model_of()
    captured = model(IDS, capture=places_to_restart(model.config)).captured
    assert captured is not None
    place, round, half, stream, attn, ffn = begin_at(model.config, captured, 1, "ffn")
    with pytest.raises(ValueError, match="keep: a pass that begins in the middle has no backward"):
        model.core.forward(IDS, labels=IDS, keep=True, begin=(place, round, half, stream, attn, ffn))
    for option in ("logits", "routes"):
        with pytest.raises(ValueError, match="begin: a pass that begins in the middle returns no logits and no routes"):
            model.core.forward(IDS, begin=(place, round, half, stream, attn, ffn), **{option: True})
    wrong: list[tuple[Any, type[Exception], str]] = [
        ((place, 4, half, stream, attn, ffn), ValueError, "begin: no place 1 with a round 4 and a half 1"),
        ((-1, round, half, stream, attn, ffn), ValueError, "begin: no place -1"),
        ((place, round, 2, stream, attn, ffn), ValueError, "and a half 2"),
        ((place, round, half, stream[1:], attn, ffn), ValueError, "begin: stream"),
        ((place, round, half, None, attn, ffn), TypeError, "begin: stream"),
        ((place, round, half, stream, None, ffn), TypeError, "begin: state"),
        ((place, round, half, stream, attn[:, 1:].copy(), ffn), ValueError, "begin: state"),
        ((place, 0, half, stream, attn, ffn), ValueError, "begin: half 1 has no state before place 1, round 0"),
        ((0, 0, 1, stream, attn, None), ValueError, "begin: half 0 has no state before place 0, round 0"),
        ([place], TypeError, "begin: expected tuple, got list"),
        ((place, round), TypeError, "begin"),
    ]
    for begin, error, message in wrong:
        with pytest.raises(error, match=message):
            model.core.forward(IDS, labels=IDS, begin=begin)


def test_a_model_without_blocks_has_no_routed_halves() -> None:
    config = mom.MoMConfig.preset("demo", vocab_size=16).vanilla_config()
    assert routed_halves(config) == [] and rounds_of_config(config) == []
