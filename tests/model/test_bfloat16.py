"""Models whose activations and factors of products are bfloat16."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_against_reference import ALL, FIXED, one_token_per_module
from twin import Comparison, force_routes, norm, relative_error

import mom

CONFIG = {
    "vocab_size": 97, "n_positions": 40, "n_embd": 48, "n_head": 3, "n_layer": 2, "chunks": 1, "num_attn": 3,
    "num_ffn": 3, "depth_per_chunk": 3, "num_bottom_layers": 1, "num_top_layers": 1, "require_anchor_layer": False,
    "router_dim": 16, "router_type": "gru-softmax", "routing_top_k": 2,
}  # fmt: skip


def gradients(
    dtype: str, threads: int = 2, forced: tuple[float, ...] = (), length: int = 40, **changes: object
) -> tuple[float, dict[str, np.ndarray]]:
    config = mom.MoMConfig(**{**CONFIG, **changes})  # type: ignore[arg-type]
    before = mom.get_num_threads()
    mom.set_num_threads(threads)
    try:
        model = mom.MoM(config, seed=3, dtype=dtype)
        model.train()
        force_routes(dict(model.parameters), forced)
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, length))
        loss = model(tokens, labels=tokens).loss
        model.backward()
    finally:
        mom.set_num_threads(before)
    assert loss is not None
    return loss, {name: value.copy() for name, value in model.gradients.items()}


ONE_MODULE, SKIP = (0.0, 9.0, -9.0, -9.0), (-9.0, -9.0, -9.0, 9.0)
WIDE = {"n_embd": 520, "n_head": 8, "n_inner": 1030, "num_attn": 2, "num_ffn": 2}


# Every choice is kept or forced, so that rounding cannot send a token elsewhere; bfloat16 has 8 bits of precision.
@pytest.mark.parametrize(
    "changes",
    [
        {"routing_top_k": 4},
        {"routing_top_k": 4, "weighted_qkv": True},
        {"routing_top_k": 1, "weighted_qkv": True, "forced": ONE_MODULE},
        {"routing_top_k": 1, "forced": SKIP},
        {"routing_top_k": 2, "forced": ONE_MODULE, "num_attn": 1},
        {"routing_top_k": 3, "weighted_qkv": True, "length": 7, **WIDE},
        {"routing_all_possible_path": True},
        {"chunks": 0},
    ],
)
def test_loss_and_gradients_are_those_of_float32_rounded(kernel_level: str, changes: dict[str, object]) -> None:
    exact_loss, exact = gradients("float32", **changes)  # type: ignore[arg-type]
    loss, rounded = gradients("bfloat16", **changes)  # type: ignore[arg-type]
    assert loss != exact_loss and abs(loss - exact_loss) < 2e-3 * exact_loss
    flat = [np.concatenate([g[name].ravel() for name in exact]).astype(np.float64) for g in (exact, rounded)]
    assert np.linalg.norm(flat[1] - flat[0]) < 0.03 * np.linalg.norm(flat[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"routing_top_k": 1, "weighted_qkv": True, "attn_pdrop": 0.1, "resid_pdrop": 0.2},
        {"routing_top_k": 1, "forced": ONE_MODULE, "n_positions": 65, "length": 65},
        {"forced": SKIP, "routing_top_k": 1},
        {"routing_all_possible_path": True, "resid_pdrop": 0.2},
        {"routing_top_k": 2, "weighted_qkv": True, "length": 7, **WIDE},
        {"n_head": 1, "n_embd": 80, "n_inner": 1, "length": 3},
    ],
)
def test_same_bits_for_any_number_of_threads(kernel_level: str, changes: dict[str, object]) -> None:
    loss, first = gradients("bfloat16", 1, **changes)  # type: ignore[arg-type]
    for threads in (2, 3):
        again, others = gradients("bfloat16", threads, **changes)  # type: ignore[arg-type]
        assert again == loss
        assert all(first[name].tobytes() == others[name].tobytes() for name in first)


EDGES = [
    name
    for name in FIXED
    if name.startswith(("one token", "packed, one", "packed, single tokens", "packed, lengths", "packed, everything",
                        "heads of", "vocabulary of", "everything skipped", "no choice kept"))
    or "to one module" in name or "always SKIP" in name
]  # fmt: skip


@pytest.mark.parametrize("name", [*EDGES, "one token per module", "one token per module, packed"])
def test_edges_against_the_twin(name: str, kernel_level: str) -> None:
    """Sizes around tiles, modules without tokens, tokens without modules: float64's results to bfloat16's rounding."""
    mom.set_num_threads(1)
    if name.startswith("one token per module"):
        comparison = one_token_per_module((1, 2, 1) if "packed" in name else ())
    else:
        case = FIXED[name]
        kept = case.fields.get("routing_top_k", 2) if case.forced or name == "no choice kept" else ALL
        comparison = Comparison(dataclasses.replace(case, fields={**case.fields, "routing_top_k": kept}))
    model = comparison.new_model("bfloat16")
    (call,), (want,) = comparison.batches, comparison.expected.outputs
    out = model(**call, return_logits=True, return_routes=True)
    for half, places in want.routes.items():
        entries = [route for rounds in places.values() for route in rounds]
        for have, route in zip(out.routes.index.get(half, []), entries, strict=True):  # no entry without a router
            assert np.array_equal(np.sort(have, -1), np.sort(route.index, -1))
    assert relative_error(out.logits, want.logits) < 0.02
    assert want.lm_loss is not None and out.lm_loss is not None
    assert np.isnan(out.lm_loss) == np.isnan(want.lm_loss)
    assert not abs(out.lm_loss - want.lm_loss) > 0.01 * max(1.0, want.lm_loss)  # NaN where nothing is labelled
    model.backward()
    unused = comparison.expected.unused
    assert {key for key, has in model.has_gradient.items() if not has} == unused
    assert not any(model.gradients[key].any() for key in unused)
    total = comparison.expected.total
    flat = np.concatenate([total[key].ravel() for key in total])
    difference = np.concatenate([(model.gradients[key] - total[key]).ravel() for key in total])
    assert np.isfinite(difference).all() and norm(difference) <= 0.04 * norm(flat)


def test_a_batch_is_learnt_and_the_dtype_survives_the_recipe() -> None:
    config = mom.MoMConfig(**CONFIG)  # type: ignore[arg-type]
    plain = mom.MoM(config.vanilla_config(), seed=1, dtype="bfloat16")
    model = mom.MoM.from_vanilla(plain, config, seed=1)
    assert model.dtype == "bfloat16"
    optimizer = mom.AdamW(model, lr=3e-3)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 24))
    losses = []
    for _ in range(80):
        losses.append(model(tokens, labels=tokens).lm_loss)
        model.backward()
        optimizer.step(max_norm=1.0, zero_grad=True)
    assert losses[0] is not None and losses[-1] is not None and losses[-1] < 0.2 * losses[0]


def test_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="dtype: 'float16' is not one of 'float32', 'bfloat16'"):
        mom.MoM(mom.MoMConfig(**CONFIG), dtype="float16")  # type: ignore[arg-type]
