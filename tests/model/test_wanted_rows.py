"""If only some rows of the final states are wanted, the last round skips work that only other rows depend on.

Losses, gradients and logits are the same as with all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mom
from mom.config import MoMConfig

CONFIG: dict[str, Any] = {
    "vocab_size": 97, "n_positions": 140, "n_embd": 48, "n_head": 3, "n_layer": 2, "chunks": 0,
}  # fmt: skip
MIXED: dict[str, Any] = {
    "chunks": 1, "num_attn": 3, "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 1,
    "router_dim": 16, "router_type": "gru-softmax", "routing_top_k": 2, "router_aux_loss_coef": 0.3,
}  # fmt: skip
IGNORED = -100

#: Changes of the configuration, and which labels count: by sequence positions from and to.
ENDS = ((30, 40), (38, 40), (39, 40), (20, 40))
CONFIGS: dict[str, tuple[dict[str, Any], tuple[tuple[int, int], ...], int]] = {
    "ends": ({}, ENDS, 40),
    "beginnings": ({}, ((0, 7), (1, 2), (2, 9), (0, 3)), 40),
    "some sequences only": ({}, ((0, 0), (5, 6), (0, 0), (33, 40)), 40),
    "around tiles": ({}, ((130, 133), (60, 67), (2, 3), (127, 130)), 133),
    "one layer": ({"n_layer": 1}, ENDS, 40),
    "heads of 9": ({"n_embd": 27, "n_inner": 31}, ENDS, 40),
    "heads of 80": ({"n_embd": 160, "n_head": 2}, ENDS, 40),
    "dropout": ({"attn_pdrop": 0.2, "resid_pdrop": 0.1, "embd_pdrop": 0.1}, ENDS, 40),
    "MoM with an anchor on top": (MIXED, ENDS, 40),
    "MoM without an anchor on top": ({**MIXED, "num_top_layers": 0, "require_anchor_layer": False}, ENDS, 40),
    "one attention module, routed feed-forward": (
        {**MIXED, "num_top_layers": 0, "require_anchor_layer": False, "num_attn": 1}, ENDS, 40
    ),
}  # fmt: skip
#: Of gradients, in relation to the largest of a tensor; 7e-7 and 6e-4 were seen: sums over q, k, v are cut differently.
TOLERANCE = {"float32": 4e-6, "bfloat16": 3e-3}
Results = tuple[float, dict[str, Any]]


def make(changes: dict[str, Any], dtype: str = "float32") -> mom.MoM:
    model = mom.MoM(MoMConfig(**{**CONFIG, **changes}), seed=1, dtype=dtype)
    rng = np.random.default_rng(3)
    for value in model.parameters.values():
        value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    return model


def batch(spans: tuple[tuple[int, int], ...], length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, vocabulary, (len(spans), length))
    labels = np.full_like(tokens, IGNORED)
    for row, (begin, end) in enumerate(spans):
        labels[row, begin:end] = tokens[row, begin:end]
    return tokens, labels


def computes_some(model: mom.MoM) -> bool:
    """Whether the last forward left rows out: their logits are refused."""
    try:
        model._core.logits(None)
    except RuntimeError as error:
        assert "not asked for" in str(error)
        return True
    return False


def results(model: mom.MoM, tokens: np.ndarray, labels: np.ndarray, whole: bool, **more: Any) -> Results:
    model.zero_grad()
    model.training = model.config.resid_pdrop > 0
    out = model(tokens, labels, return_logits=whole, **more)
    assert computes_some(model) is not whole
    model.backward()
    return out.loss, {name: value.copy() for name, value in model.gradients.items()}


def assert_same(have: dict[str, Any], want: dict[str, Any], limit: float) -> None:
    for name, value in want.items():
        scale = max(float(np.abs(value).max()), 1e-6)
        assert np.abs(have[name] - value).max() <= limit * scale, name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_all_rows(name: str, dtype: str) -> None:
    changes, spans, length = CONFIGS[name]
    tokens, labels = batch(spans, length, 97)
    pair = [make(changes, dtype) for _ in range(2)]  # two of them, which draw the same random numbers
    loss, gradients = results(pair[0], tokens, labels, whole=False)
    want_loss, want = results(pair[1], tokens, labels, whole=True)
    assert loss == want_loss, "each element of a product is the same chain of sums"
    assert_same(gradients, want, TOLERANCE[dtype])


@pytest.mark.parametrize("queries", ["causal", "reference"])
@pytest.mark.parametrize("side", ["left", "right", "all"])
def test_masked_tokens(side: str, queries: str) -> None:
    tokens, labels = batch(((30, 40), (0, 9), (12, 14), (0, 0)), 40, 97)
    mask = np.ones_like(tokens)
    for row, count in enumerate((11, 5, 25, 3)):
        mask[row, :count] = side == "right"
        mask[row, 40 - count :] &= side == "left"
    mask[2] &= side != "all"
    model = make({"masked_query_attention": queries})
    loss, have = results(model, tokens, labels, whole=False, attention_mask=mask)
    want_loss, want = results(model, tokens, labels, whole=True, attention_mask=mask)
    assert loss == want_loss
    assert_same(have, want, TOLERANCE["float32"])


def test_packed_rows_and_checkpoints() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([40, 3, 17, 1, 29])
    tokens = rng.integers(0, 97, lengths.sum())
    labels = np.full_like(tokens, IGNORED)
    labels[[38, 39, 42, 55]] = tokens[[38, 39, 42, 55]]
    model = make(MIXED)
    loss, have = results(model, tokens, labels, whole=False, lengths=lengths)
    want_loss, want = results(model, tokens, labels, whole=True, lengths=lengths)
    assert loss == want_loss
    assert_same(have, want, TOLERANCE["float32"])
    model.activation_checkpointing = True
    same_loss, same = results(model, tokens, labels, whole=False, lengths=lengths)
    assert same_loss == loss
    for name, value in have.items():
        np.testing.assert_array_equal(same[name], value, name)


@pytest.mark.parametrize("classifier", [False, True])
def test_bits_do_not_depend_on_threads(classifier: bool) -> None:
    tokens, labels = batch(ENDS * 3, 40, 97)
    found = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        if classifier:
            model = mom.MoMForSequenceClassification(MoMConfig(**CONFIG, num_labels=2), seed=0)
            out = model(tokens.ravel(), np.arange(12) % 2, lengths=[40] * 12)
        else:
            model = make({})
            out = model(tokens, labels)
        model.backward()
        found.append((out.loss, {name: value.copy() for name, value in model.gradients.items()}))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        for name, value in gradients.items():
            np.testing.assert_array_equal(value, found[0][1][name], name)


def test_gradients_add_up() -> None:
    """A second batch adds to gradients that the first has written, whichever rows either wants."""
    tokens, labels = batch(ENDS, 40, 97)
    model = make({})
    _, some = results(model, tokens, labels, whole=False)
    _, full = results(model, tokens, tokens, whole=True)
    model.zero_grad()
    for part in (labels, tokens, labels):
        model(tokens, part)
        model.backward()
    assert_same(dict(model.gradients), {name: 2 * some[name] + full[name] for name in some}, TOLERANCE["float32"])


def test_what_counts_as_wanted() -> None:
    tokens, labels = batch(ENDS, 40, 97)
    model = make({})
    model(tokens)
    assert not computes_some(model)  # nothing says which
    model(tokens, tokens)
    assert not computes_some(model)  # leaving one row in forty out does not pay
    model(tokens, np.full_like(tokens, IGNORED), keep=False)
    assert not computes_some(model)
    want = model(tokens, return_logits=True).logits.reshape(-1, 97)
    rows = np.array([7, 159, 80], np.int32)
    model._core.forward(**model.inputs(tokens, None, None, None), rows=rows)
    np.testing.assert_allclose(model._core.logits(rows), want[rows], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="row 8 was not asked for"):
        model._core.logits(np.array([7, 8], np.int32))
    with pytest.raises(ValueError, match="rows: 160 at position 0"):
        model._core.forward(**model.inputs(tokens, None, None, None), rows=np.array([160], np.int32))


def test_frozen_modules() -> None:
    tokens, labels = batch(ENDS, 40, 97)
    model = make({})
    _, whole = results(model, tokens, labels, whole=True)
    trained = [name.startswith("transformer.h.1.ln_2") for name in model.parameters]
    model._core.set_trained(np.array(trained, np.uint8))
    _, have = results(model, tokens, labels, whole=False)
    for name in ("transformer.h.1.ln_2.weight", "transformer.h.1.ln_2.bias"):
        assert_same({name: have[name]}, {name: whole[name]}, TOLERANCE["float32"])


def test_memory_stays_within_the_plan() -> None:
    config = MoMConfig.preset("mom-small").replace(vocab_size=512, n_layer=2, chunks=0)
    tokens = np.random.default_rng(0).integers(0, 512, (4, 128))
    labels = tokens.copy()
    for cut in (96, 64, 120):
        model = mom.MoM(config, seed=0)
        labels[:, :cut] = IGNORED
        model(tokens, labels)
        model.backward()
        assert_within_the_plan(model, tokens.shape)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("cut", [0, 33, 40, 120])
def test_memory_stays_within_the_plan_where_attention_is_the_most_of_it(cut: int, checkpoint: bool) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (5, 130))
    labels = tokens.copy()
    labels[:, :cut] = IGNORED
    model = make({"n_embd": 66, "n_inner": 5, "n_layer": 1})
    model.activation_checkpointing = checkpoint
    model(tokens, labels)
    assert computes_some(model) is (cut > 0)
    model.backward()
    assert_within_the_plan(model, tokens.shape)


def assert_within_the_plan(model: mom.MoM, shape: tuple[int, ...]) -> None:
    size, most, beside, full = model._core.region
    assert size == model.memory_plan(*shape).arena
    assert most <= size and (beside, full) == (0, 0)
