"""The router z-loss: its value, its bits in every mode, and what training on it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mom
from kinds import ROUTERS
from mom.routers import KINDS

CONFIG = mom.MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, chunks=2, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=5,
    routing_top_k=2, router_aux_loss_coef=0.1,
)  # fmt: skip
PLAIN = mom.MoMConfig.vanilla(2, vocab_size=17, n_positions=10, n_embd=8, n_head=2)
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 7))


def test_z_loss_of_even_outputs_is_that_of_their_number() -> None:
    model = mom.MoM(CONFIG.replace(router_z_loss_coef=0.2))
    for name, value in model.parameters.items():
        if ".router.router." in name:
            value[:] = 0.0
    out = model(TOKENS, TOKENS)
    assert out.losses["z"] == pytest.approx(2 * np.log(4.0) ** 2, rel=1e-6)  # two halves, each of 3 modules and SKIP
    assert out.loss == pytest.approx(out.losses["lm"] + 0.1 * out.losses["balance"] + 0.2 * out.losses["z"], rel=1e-12)
    assert "z" not in mom.MoM(CONFIG)(TOKENS, TOKENS).losses
    assert "z" not in mom.MoM(PLAIN.replace(router_z_loss_coef=0.2))(TOKENS, TOKENS).losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", [r for r in ROUTERS if KINDS[CONFIG.replace(router_type=r).router_kind].scored])
def test_z_loss_has_the_same_bits_in_every_mode(router: str, dtype: str, kernel_level: str) -> None:
    config = CONFIG.replace(router_type=router, n_positions=600)
    tokens = np.random.default_rng(3).integers(0, 17, 900)

    def run(threads: int = 1, checkpointing: bool = False, scales: Any = None, coef: float = 0.2) -> Any:
        model = mom.MoM(config.replace(router_z_loss_coef=coef), seed=1, dtype=dtype)
        model.activation_checkpointing = checkpointing
        mom.set_num_threads(threads)
        losses = model(tokens, tokens, lengths=[600, 1, 299]).losses
        model.backward(scales=scales)
        return losses, [g.tobytes() for g in model.gradients.values()]

    first = run()
    assert first == run(2) == run(3) == run(checkpointing=True)
    others = {"lm": 1.0, "balance": 0.1}
    without = run(scales=others, coef=0.0)
    assert without[0] == {name: first[0][name] for name in others}
    assert without[1] == run(scales=others)[1] != first[1]


def test_z_loss_of_padded_and_packed_rows_is_the_same() -> None:
    model = mom.MoM(CONFIG.replace(router_z_loss_coef=0.2))
    mask = np.ones(TOKENS.shape, int)
    mask[1, 3:] = 0
    padded = model(TOKENS, TOKENS, mask).losses["z"]
    packed = model(TOKENS[mask == 1], TOKENS[mask == 1], lengths=mask.sum(1)).losses["z"]
    assert padded == pytest.approx(packed, rel=1e-6) and padded != model(TOKENS, TOKENS).losses["z"]


def test_z_loss_alone_makes_outputs_small() -> None:
    model = mom.MoM(CONFIG.replace(router_z_loss_coef=1.0, router_type="naive"))
    optimizer, found = mom.AdamW(model, lr=0.01), []
    for _ in range(30):
        found.append(model(TOKENS, TOKENS).losses["z"])
        model.backward(scales={"z": 1.0})
        optimizer.step(zero_grad=True)
    assert found[-1] < 0.3 * found[0]
