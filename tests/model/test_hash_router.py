"""Hash routers: the modules they choose, that they have no parameters, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mom
from mom import reference

HASHED = mom.MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, chunks=2, num_attn=4, num_ffn=5, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="hash", router_dim=5,
    router_choices="own", routing_top_k=2, router_aux_loss_coef=0.1,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 7))


def hashed_order(tokens: np.ndarray, step: int, half: int, modules: int) -> np.ndarray:
    """The choices in the order in which tokens prefer them, by the twin; SKIP is the last one."""
    given = reference.router.HashInputs(tokens, step, half, modules, modules + 1)
    return np.argsort(-reference.router.hash_forward(given), axis=-1)


@pytest.mark.parametrize("top_k", [1, 2, 9])
@pytest.mark.parametrize("router_type", ["hash", "hash-softmax"])
def test_a_hash_of_token_round_and_half_chooses_the_modules(router_type: str, top_k: int) -> None:
    model = mom.MoM(HASHED.replace(router_type=router_type, routing_top_k=top_k))
    routes = model(TOKENS, return_routes=True).routes
    assert routes is not None
    for number, half in enumerate(("attn", "ffn")):
        for (_, r), index in zip(routes.rounds, routes.index[half], strict=True):  # the same in every block
            kept = hashed_order(TOKENS.ravel(), r, number, routes.num_modules[half])[:, :top_k]
            assert np.array_equal(index.reshape(kept.shape), kept)
        assert (routes.weight[half] == np.float32(1 / routes.index[half].shape[-1])).all()


def test_hashed_choices_never_change_and_are_even() -> None:
    assert hashed_order(np.array([50256]), 2, 1, 5).tolist() == [[3, 4, 2, 0, 1, 5]]
    assert hashed_order(np.array([1, 7]), 0, 0, 5).tolist() == [[0, 1, 2, 3, 4, 5], [4, 1, 2, 3, 0, 5]]
    pairs = np.concatenate([hashed_order(np.arange(2000), r, 0, 4)[:, :2] for r in range(2)])
    counts = np.bincount(pairs @ [4, 1], minlength=16).reshape(4, 4)
    assert not np.diag(counts).any()
    assert (np.abs(counts[~np.eye(4, dtype=bool)] - 4000 / 12) < 75).all()  # four standard deviations


def test_a_model_with_hash_routers_trains_and_is_saved_without_them(tmp_path: Any) -> None:
    model = mom.MoM(HASHED.replace(initializer_range=0.3))
    assert not any(".router." in name for name in model.parameters)
    router = model.blocks[0].attention_router
    assert router is not None and not router.parameters
    optimizer = mom.AdamW(model, lr=0.01)
    losses = []
    for _ in range(20):
        out = model(TOKENS, TOKENS)
        assert out.balance_loss is None and out.loss == out.lm_loss
        losses.append(out.loss)
        model.backward()
        optimizer.step(1.0, zero_grad=True)
    assert losses[-1] < 0.5 * losses[0]
    model.save_pretrained(tmp_path)
    again = mom.MoM.from_pretrained(tmp_path)
    assert again.config == model.config and again(TOKENS, TOKENS).loss == model(TOKENS, TOKENS).loss
    decoder = mom.Decoder(again)
    decoder.prefill([TOKENS[0], TOKENS[1, :2]])
    decoder.reorder([1, 0, 1])
    logits = decoder.step([5, 6, 7])
    for row, last in ((TOKENS[1, :2], 5), (TOKENS[0], 6), (TOKENS[1, :2], 7)):
        whole = model([*row, last], return_logits=True).logits
        assert whole is not None
        np.testing.assert_allclose(logits[last - 5], whole[0, -1], rtol=1e-4, atol=1e-4)


def test_what_hash_routers_refuse() -> None:
    with pytest.raises(mom.errors.ConfigError, match="routing_all_possible_path: weighs all modules with their scores"):
        HASHED.replace(routing_all_possible_path=True)
    tensors = mom.ops.RouterTensors(*(np.zeros(shape, np.float32) for shape in ((2, 3), 2, (4, 2), 4)))
    with pytest.raises(ValueError, match="kind: a hash router reads the ids of tokens"):
        mom.ops.router_forward(np.zeros((5, 3), np.float32), tensors, "hash")
