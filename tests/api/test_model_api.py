"""The model objects: what calls return, modes, backward's rules, accumulation, classifiers, and threads."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import mom
from kinds import LOSSES
from mom import _core
from mom.model.core_config import core_config
from mom.routers import KINDS
from route_entries import entries

CONFIG = mom.MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, chunks=2, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=5,
    routing_top_k=2, router_aux_loss_coef=0.1,
)  # fmt: skip
PLAIN = mom.MoMConfig.vanilla(2, vocab_size=17, n_positions=10, n_embd=8, n_head=2)
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 7))


def gradients(model: Any) -> dict[str, np.ndarray]:
    return {n: g.copy() for n, g in model.gradients.items()}


def apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Norm of the difference of two sets of tensors over the norm of the first."""
    total = np.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in a.values()))
    return float(np.sqrt(sum(float(np.sum((np.float64(x) - b[n]) ** 2)) for n, x in a.items())) / total)


# ---------------------------------------------------------------------- forward
def test_output_holds_what_was_asked_for() -> None:
    model = mom.MoM(CONFIG)
    out = model(TOKENS)
    assert (out.loss, out.lm_loss, out.logits, out.routes, out.num_labelled) == (None, None, None, None, 0)
    out = model(TOKENS, TOKENS, return_logits=True, return_routes=True)
    assert out.logits is not None and out.logits.shape == (3, 7, 17) and out.logits.dtype == np.float32
    assert out.num_labelled == 18 and isinstance(out.loss, float)
    assert out.lm_loss is not None and out.balance_loss is not None
    assert out.loss == pytest.approx(out.lm_loss + 0.1 * out.balance_loss, rel=1e-12)
    plain = mom.MoM(PLAIN)(TOKENS, TOKENS)
    assert plain.balance_loss is None and plain.loss == plain.lm_loss


def test_routes_have_the_documented_form() -> None:
    routes = mom.MoM(CONFIG)(TOKENS, return_routes=True).routes
    assert routes is not None
    assert routes.num_modules == {"attn": 2, "ffn": 3} and routes.rounds == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert list(routes.index) == list(routes.scores) == list(routes.weight) == ["attn", "ffn"]
    for half in routes.index:
        scores, index, weight = routes.scores[half], routes.index[half], routes.weight[half]
        assert scores.shape == (4, 3, 7, 4) and scores.dtype == np.float32
        assert index.shape == (4, 3, 7, 2) and index.dtype == np.int16
        assert weight.shape == (4, 3, 7, 2) and weight.dtype == np.float32
        kept = np.take_along_axis(scores, index.astype(int), -1)
        assert (np.diff(kept, axis=-1) <= 0).all() and np.allclose(weight.sum(-1), 1)
        assert np.allclose(scores.sum(-1), 1, atol=1e-6)
    single = mom.MoM(CONFIG.replace(num_attn=1))(TOKENS, return_routes=True).routes
    assert single is not None and list(single.index) == ["ffn"]
    plain = mom.MoM(PLAIN)(TOKENS, return_routes=True).routes
    assert plain is not None and plain.index == plain.scores == plain.weight == {} and plain.rounds == []


def test_results_are_copies() -> None:
    model = mom.MoM(CONFIG)
    first = model(TOKENS, return_logits=True, return_routes=True)
    assert first.logits is not None and first.routes is not None
    logits, scores = first.logits.copy(), first.routes.scores["ffn"].copy()
    model((TOKENS + 1) % 17, return_logits=True, return_routes=True)
    assert np.array_equal(first.logits, logits) and np.array_equal(first.routes.scores["ffn"], scores)


@pytest.mark.parametrize("dtype", ["u1", "i2", "<i4", ">i4", "u4", "i8", "u8"])
def test_every_integer_type_and_layout_of_tokens(dtype: str) -> None:
    model = mom.MoM(CONFIG)
    want = model(TOKENS, TOKENS).loss
    tokens = TOKENS.astype(dtype)
    wide = np.zeros((6, 14), dtype)
    wide[::2, ::2] = tokens
    for given in (tokens, np.asfortranarray(tokens), wide[::2, ::2], tokens[:, ::-1][:, ::-1], tokens.tolist()):
        assert model(given, given).loss == want
    frozen = tokens.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + tokens.tobytes(), dtype, offset=1).reshape(tokens.shape)
    assert model(frozen, unaligned).loss == want


def test_one_row_may_come_without_batch_axis() -> None:
    model = mom.MoM(CONFIG)
    out = model(TOKENS[0], TOKENS[0], np.ones(7), return_logits=True)
    assert out.logits is not None and out.logits.shape == (1, 7, 17)
    assert out.loss == model(TOKENS[:1], TOKENS[:1]).loss


def test_inputs_are_not_modified() -> None:
    model, mask, labels = mom.MoM(CONFIG), np.ones((3, 7)), TOKENS.copy()
    mask[1, :2] = 0
    labels[0] = -100
    given = [a.copy() for a in (TOKENS, labels, mask)]
    model(TOKENS, labels, mask)
    model.backward()
    assert all(np.array_equal(a, b) for a, b in zip(given, (TOKENS, labels, mask), strict=True))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_masks_of_any_type_mean_the_same(dtype: Any) -> None:
    model = mom.MoM(CONFIG)
    mask = np.ones((3, 7), int)
    mask[0, :3] = mask[2, 4:] = 0
    assert model(TOKENS, TOKENS, mask.astype(dtype)).loss == model(TOKENS, TOKENS, mask.tolist()).loss


def test_a_mask_of_ones_changes_nothing_and_padding_on_the_right_is_invisible() -> None:
    model = mom.MoM(CONFIG)
    plain = model(TOKENS, TOKENS, return_logits=True)
    masked = model(TOKENS, TOKENS, np.ones((3, 7)), return_logits=True)
    assert plain.logits is not None and masked.logits is not None
    assert np.array_equal(plain.logits, masked.logits) and plain.loss == masked.loss
    padded = np.concatenate([TOKENS, np.full((3, 2), 5)], axis=1)
    longer = model(padded, attention_mask=np.arange(9) < np.full((3, 1), 7), return_logits=True)
    assert longer.logits is not None
    assert np.allclose(longer.logits[:, :7], plain.logits, rtol=1e-5, atol=1e-6)


def test_positions() -> None:
    model = mom.MoM(CONFIG)
    positions = np.tile(np.arange(7), (3, 1))
    assert model(TOKENS, TOKENS, positions=positions).loss == model(TOKENS, TOKENS).loss
    shifted = model(TOKENS, TOKENS, positions=positions + 3)
    shifted_loss = shifted.loss
    model.backward()
    gradient = model.gradients["transformer.wpe.weight"].copy()
    assert not gradient[:3].any() and gradient[3:].any()
    wpe = model.parameters["transformer.wpe.weight"]
    wpe[...] = np.roll(wpe, -3, axis=0)
    assert model(TOKENS, TOKENS).loss == shifted_loss
    model.zero_grad()
    model.backward()
    assert np.array_equal(np.roll(model.gradients["transformer.wpe.weight"], 3, axis=0), gradient)
    out = model(np.zeros((1, 20), int), positions=np.zeros((1, 20), int), return_logits=True)
    assert out.logits is not None and out.logits.shape == (1, 20, 17), "repeated positions may make long rows"


# ---------------------------------------------------------------------- backward
def test_backward_follows_a_forward_pass_with_labels_once() -> None:
    model = mom.MoM(CONFIG)
    with pytest.raises(RuntimeError, match="backward: needs a forward pass with labels"):
        model.backward()
    for call in (lambda: model(TOKENS), lambda: model(TOKENS, keep=True), lambda: model(TOKENS, TOKENS, keep=False)):
        model(TOKENS, TOKENS)
        call()
        with pytest.raises(RuntimeError, match="backward: needs a forward pass with labels"):
            model.backward()
    model(TOKENS, TOKENS)
    model.backward()
    before = gradients(model)
    with pytest.raises(RuntimeError, match="only once"):
        model.backward()
    assert apart(before, gradients(model)) == 0
    model(TOKENS, TOKENS)
    model.backward()
    assert apart(before, {n: g / 2 for n, g in gradients(model).items()}) < 1e-6


def test_logits_and_generation_between_forward_and_backward() -> None:
    model = mom.MoM(CONFIG)
    model(TOKENS, TOKENS)
    model.backward()
    want = gradients(model)
    model.zero_grad()
    model(TOKENS, TOKENS, return_logits=True, return_routes=True)
    model._core.logits(None)
    model.backward()
    assert apart(want, gradients(model)) == 0


def test_scales_of_backward() -> None:
    of_terms = [name for name in CONFIG.names() if name.endswith("_loss_coef")]
    coefficients = {name: 0.2 + 0.1 * i for i, name in enumerate(of_terms)}
    config = CONFIG.replace(router_type="linear-softmax", **coefficients)  # all terms are there
    model = mom.MoM(config).eval()

    def of(*scales: Any, **named: Any) -> dict[str, np.ndarray]:
        model.zero_grad()
        assert list(model(TOKENS, TOKENS).losses) == LOSSES
        model.backward(*scales, **named)
        return gradients(model)

    parts = {term: of(scales={term: 1.0}) for term in LOSSES}

    def added(scales: dict[str, float]) -> dict[str, np.ndarray]:
        return {n: sum(scale * parts[term][n] for term, scale in scales.items()) for n in parts["lm"]}

    mixed = {term: 0.3 + 0.4 * number for number, term in enumerate(LOSSES)}
    assert apart(added(mixed), of(scales=mixed)) < 1e-6
    assert apart(added({**config.loss_weights, "lm": 0.3, "balance": 0.7}), of(0.3, 0.7)) < 1e-6
    assert apart(added(config.loss_weights), of()) < 1e-6


@pytest.mark.parametrize("counts", ["micro", "step"])
def test_accumulation_equals_one_batch(counts: str) -> None:
    config = CONFIG.replace(balance_counts=counts)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 17, (6, 7))
    labels = np.where(rng.random((6, 7)) < 0.4, -100, tokens)
    whole = mom.MoM(config)
    out = whole(tokens, labels)
    whole.backward(1.0, 0.0)
    parts = mom.MoM(config)
    loss = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = parts(tokens[rows], labels[rows])
        share = part.num_labelled / out.num_labelled
        assert part.lm_loss is not None
        loss += share * part.lm_loss
        parts.backward(share, 0.0)
    assert loss == pytest.approx(out.lm_loss, rel=1e-6)
    assert apart(gradients(whole), gradients(parts)) < 1e-6
    assert parts.has_gradient == whole.has_gradient


def test_shares_of_the_step_gather_over_micro_batches_until_zero_grad() -> None:
    """With equal micro-batches the gathered shares are those of each, so the loss stays; zero_grad forgets them."""
    model = mom.MoM(CONFIG.replace(balance_counts="step"))
    other = (TOKENS + 5) % 17
    alone = model(other, other).balance_loss
    model(TOKENS, TOKENS)
    model.backward()
    assert model(other, other).balance_loss != alone
    model.zero_grad()
    assert model(other, other).balance_loss == alone
    model.backward()
    assert model(other, other).balance_loss == pytest.approx(alone, rel=1e-12)


def test_modules_without_tokens_have_no_gradient() -> None:
    model = mom.MoM(CONFIG.replace(num_attn=6, num_ffn=6, routing_top_k=1))
    out = model(TOKENS[:1, :2], TOKENS[:1, :2], return_routes=True)
    model.backward()
    assert out.routes is not None
    for half, norm in (("attn", "attention_layernorm"), ("ffn", "ffn_layernorm")):
        for block, place in enumerate((1, 2)):
            rounds = [number for number, (of, _) in enumerate(out.routes.rounds) if of == block]
            reached = set(out.routes.index[half][rounds].ravel().tolist())
            for module in range(6):
                name = f"transformer.h.{place}.mot_{half}.{norm}.{module}.weight"
                assert model.has_gradient[name] == (module in reached)
    model.zero_grad()
    assert not any(model.has_gradient.values()) and not any(g.any() for g in model.gradients.values())


def test_nothing_labelled() -> None:
    model = mom.MoM(CONFIG)
    for tokens, labels in ((TOKENS, np.full((3, 7), -100)), (TOKENS[:, :1], TOKENS[:, :1])):
        out = model(tokens, labels)
        assert out.num_labelled == 0 and out.lm_loss is not None and np.isnan(out.lm_loss)
        model.zero_grad()
        model.backward(1.0, 0.0)
        assert all(np.isfinite(g).all() and not g.any() for g in model.gradients.values())


# ---------------------------------------------------------------------- modes and random numbers
def test_dropout_acts_in_training_only_and_repeats_with_its_state() -> None:
    model = mom.MoM(CONFIG.replace(resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3), seed=9)
    assert not model.training and model.random_state == (9, 0)
    assert model(TOKENS, TOKENS).loss == model(TOKENS, TOKENS).loss
    assert model.random_state == (9, 0)
    model.train()
    first, second = model(TOKENS, TOKENS).loss, model(TOKENS, TOKENS).loss
    assert model.training and first != second and model.random_state == (9, 2)
    model.random_state = (9, 0)
    assert model(TOKENS, TOKENS).loss == first
    model.random_state = (10, 0)
    assert model(TOKENS, TOKENS).loss not in (first, second)
    model.eval()
    assert not model.training


def test_noise_of_random_routers_acts_in_evaluation_too() -> None:
    model = mom.MoM(CONFIG.replace(router_type="gru-random", initializer_range=0.5))
    losses = [model(TOKENS, TOKENS).loss for _ in range(2)]
    assert losses[0] != losses[1] and model.random_state == (0, 2)
    naive = mom.MoM(CONFIG.replace(router_type="naive-random"))
    assert naive(TOKENS, TOKENS).loss == naive(TOKENS, TOKENS).loss and naive.random_state == (0, 0)


@pytest.mark.parametrize("value", [(-1, 0), (0, -1), (2**63, 0), (0.5, 0), (1, 2, 3), ("a", 0), 5])
def test_bad_random_states(value: Any) -> None:
    model = mom.MoM(CONFIG, seed=4)
    with pytest.raises(ValueError, match="random_state"):
        model.random_state = value
    assert model.random_state == (4, 0)


# ---------------------------------------------------------------------- construction
@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "a", None, True])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed: expected an integer"):
        mom.MoM(CONFIG, seed=seed)


def test_bad_construction() -> None:
    with pytest.raises(TypeError, match="config: expected MoMConfig, got dict"):
        mom.MoM({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype: 'float64' is not one of"):
        mom.MoM(CONFIG, dtype="float64")
    with pytest.raises(mom.ConfigError, match="num_labels: a language model has none"):
        mom.MoM(CONFIG.replace(num_labels=2))


def test_sizes_that_cannot_be_addressed_are_memory_errors() -> None:
    huge = CONFIG.replace(n_embd=2**24, n_inner=2**24, n_head=1, num_ffn=4096, chunks=15, num_attn=1, vocab_size=2**24)
    with pytest.raises(MemoryError):
        mom.MoM(huge)
    with pytest.raises(MemoryError):
        mom.MoM(PLAIN.replace(vocab_size=2**24, n_embd=2**24, n_inner=1))
    assert mom.MoM(CONFIG)(TOKENS, TOKENS).loss is not None


# ---------------------------------------------------------------------- classifiers
def test_classifier_outputs() -> None:
    config = CONFIG.replace(num_labels=3, pad_token_id=0)
    model = mom.MoMForSequenceClassification(config)
    out = model(TOKENS)
    assert out.logits is not None and out.logits.shape == (3, 3) and out.loss is None
    out = model(TOKENS, [0, 2, 1], return_routes=True)
    assert out.loss == out.lm_loss and out.balance_loss is None and out.num_labelled == 3 and out.routes is not None
    assert model(TOKENS, return_logits=False).logits is None
    assert mom.MoMForSequenceClassification(CONFIG).config.num_labels == 2


def test_ignored_classes() -> None:
    model = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=3, pad_token_id=0))
    some = model(TOKENS, [0, -100, 1])
    assert some.num_labelled == 2
    assert some.loss == pytest.approx(model(TOKENS[::2], [0, 1]).loss, rel=1e-6)
    none = model(TOKENS, [-100] * 3)
    assert none.num_labelled == 0
    model.backward()
    assert not any(g.any() for g in model.gradients.values())


def test_pooled_positions() -> None:
    by_mask = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=2, pad_token_id=0))
    tokens = np.array([[1, 2, 3, 0, 0], [4, 0, 5, 6, 7], [0, 0, 1, 2, 3], [1, 2, 3, 4, 5]], np.int32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], np.uint8)
    assert by_mask.pooled_positions(tokens, mask).tolist() == [2, 4, 4, 3]
    assert by_mask.pooled_positions(tokens, None).tolist() == [2, 0, 4, 4]
    reference = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=2, pad_token_id=0, pooling="reference"))
    assert reference.pooled_positions(tokens, mask).tolist() == [2, 0, 4, 4]
    no_pad = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=2))
    assert no_pad.pooled_positions(tokens[:1], None).tolist() == [4]
    with pytest.raises(ValueError, match="tokens: more than one row needs an attention_mask"):
        no_pad(tokens)
    with pytest.raises(ValueError, match="attention_mask: row 1 masks every token"):
        by_mask(tokens, attention_mask=mask * np.array([[1], [0], [1], [1]]))


# ---------------------------------------------------------------------- threads
def test_a_busy_model_refuses_other_threads() -> None:
    config = mom.MoMConfig(
        vocab_size=2000, n_positions=256, n_embd=128, n_head=4, chunks=1, num_attn=2, num_ffn=2, depth_per_chunk=4,
        num_bottom_layers=0, num_top_layers=0, require_anchor_layer=False,
    )  # fmt: skip
    model = mom.MoM(config)
    tokens = np.random.default_rng(0).integers(0, 2000, (8, 256))
    small = tokens[:1, :4]
    model(small, small)
    model.backward()
    optimizer = mom.AdamW(model)
    optimizer.lr = 0.0
    losses: list[float | None] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                losses.append(model(tokens, tokens).loss)
            except RuntimeError:  # the other thread was faster
                pass

    calls = {
        "forward": lambda: model(small, small), "backward": model.backward, "zero_grad": model.zero_grad,
        "logits": lambda: model._core.logits(None), "route": lambda: model._core.route(0, 0, 0),
        "route_counts": lambda: model._core.route_counts(0, 0, 0), "step": optimizer.step,
        "clip": lambda: mom.clip_grad_norm(model, 1.0), "has_gradient": lambda: model.has_gradient,
        "mark_gradient": lambda: model.mark_gradient("transformer.wte.weight"),
        "random_state": lambda: setattr(model, "random_state", (1, 1)), "gradient": lambda: model._core.gradient(0),
        "random_state read": lambda: model.random_state, "region": lambda: model._core.region,
        "region_parts": lambda: model._core.region_parts, "optimizer": lambda: mom.AdamW(model),
    }  # fmt: skip
    thread = threading.Thread(target=work)
    thread.start()
    missed = []
    for name, call in calls.items():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.001)  # outside of the model, so that the other thread can enter
            try:
                call()
            except RuntimeError as error:
                if "model: in use by another thread" in str(error):
                    break
        else:
            missed.append(name)
    stop.set()
    thread.join()
    assert not missed
    assert set(losses) <= {mom.MoM(config)(tokens, tokens).loss}
    model(small, small)
    model.backward()


@pytest.mark.parametrize("kind", ["logits", "routes", "logits_at", "classifier"])
def test_a_call_takes_its_results_before_another_thread_can_run_the_model(kind: str) -> None:
    """The other thread runs the model as soon as the core returns from the first thread's forward pass."""
    a, b = np.arange(1, 9)[None] % CONFIG.vocab_size, np.arange(2, 10)[None] % CONFIG.vocab_size
    labels = 3 if kind == "classifier" else None
    made = mom.MoMForSequenceClassification if labels else mom.MoM
    model = made(CONFIG.replace(num_labels=labels, pooling="mask"), seed=0)

    def call(tokens: np.ndarray) -> list[np.ndarray]:
        if kind == "logits_at":
            return [model.logits_at(tokens, [0, 5])]
        out = model(tokens, return_logits=kind != "routes", return_routes=kind == "routes")
        if kind == "routes":
            return [array for r in entries(out.routes) for array in r.values()]
        return [out.logits]

    expected, others = call(a), call(b)
    assert any(not np.array_equal(x, y) for x, y in zip(expected, others, strict=True)), "the test says something"
    returned, go, found = threading.Event(), threading.Event(), []

    def pause(_frame: object, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "forward":
            sys.setprofile(None)
            returned.set()
            go.wait(60)

    def run() -> None:
        sys.setprofile(pause)
        found.extend(call(a))

    thread = threading.Thread(target=run)
    thread.start()
    assert returned.wait(60)
    call(b)
    go.set()
    thread.join()
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_during_a_forward_pass_leaves_the_childs_network_usable() -> None:
    code = """
import os, threading, time
import numpy as np, mom
mom.set_num_threads(1)
model = mom.MoM(mom.MoMConfig.preset("demo").replace(n_positions=256), seed=0)
tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (64, 256))
small = tokens[:1, :4]
want = model(small, small).loss
thread = threading.Thread(target=lambda: model(tokens, tokens))
thread.start()
busy = False
while thread.is_alive() and not busy:
    try:
        model._core.region
    except RuntimeError:
        busy = True
assert busy
pid = os.fork()
if pid == 0:
    try:
        try:
            model._core.route(0, 0, 0)
        except RuntimeError as error:
            assert "there is no forward pass" in str(error), error
        assert model(small, small).loss == want
        model.backward()
        os._exit(0)
    finally:
        os._exit(1)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_models_in_different_threads_do_not_meet() -> None:
    want = mom.MoM(CONFIG)(TOKENS, TOKENS).loss
    results: list[float | None] = []

    def work() -> None:
        model = mom.MoM(CONFIG)
        for _ in range(20):
            results.append(model(TOKENS, TOKENS).loss)
            model.backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [want] * 80


def test_core_refuses_what_python_would_not_send() -> None:
    """The checks of the extension itself, past the Python layer."""
    core = mom.MoM(CONFIG)._core
    good = np.ascontiguousarray(TOKENS, np.int32)
    for arguments, message in (
        ({"tokens": TOKENS.tolist()}, "tokens: list, expected an ndarray of int32"),
        ({"tokens": TOKENS}, "tokens: dtype int64, expected int32"),
        ({"tokens": good.astype(">i4")}, "tokens: is not in native byte order"),
        ({"tokens": np.asfortranarray(good)}, "tokens: is not C-contiguous"),
        ({"tokens": good[0]}, r"tokens: shape \(7,\), expected \(any, any\)"),
        ({"tokens": good[:0]}, r"tokens: shape \(0, 7\) is empty"),
        ({"tokens": good, "labels": good[:2]}, r"labels: shape \(2, 7\), expected \(3, 7\)"),
        ({"tokens": good, "mask": good}, "attention_mask: dtype int32, expected uint8"),
        ({"tokens": good, "positions": good}, r"positions: 1\d at position \d+ is not in \[0, 10\)"),
        ({"tokens": good, "pooled": np.zeros(3, np.int32)}, "pooled: given exactly for a classifier"),
        ({"tokens": good, "label_loss": 3}, "label_loss: 3 does not fit"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            core.forward(**arguments)
    with pytest.raises(ValueError, match="rows: 21"):
        core.forward(good)
        core.logits(np.array([21], np.int32))
    with pytest.raises(IndexError):
        core.route(9, 0, 0)
    fields = core_config(CONFIG, "float32") | {"bf16": False}
    assert sorted(fields) == sorted(_core.config_fields())  # both sides know the same fields
    for wrong, message in (
        ({"V": -1}, "config: 'V' is negative"),
        ({"router_kind": len(KINDS)}, f"config: 'router_kind' is {len(KINDS)}, expected less than {len(KINDS)}"),
        ({"depth": 3}, f"config: {len(fields) + 1} keys, expected the {len(fields)} of"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            _core.Network({**fields, **wrong})
    for bad in ({}, {"V": -1}):
        with pytest.raises((TypeError, ValueError)):
            _core.Network(bad)
    with pytest.raises(TypeError):
        _core.Network(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _core.AdamW(None)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- parts that are trained
def test_frozen_parameters_have_no_gradient_and_stay() -> None:
    model, whole = mom.MoM(CONFIG, seed=1), mom.MoM(CONFIG, seed=1)
    assert all(model.trainable.values()) and not any(model.has_gradient.values())
    model.train_only("*.router.*", "transformer.ln_f.weight")
    chosen = {name for name, trained in model.trainable.items() if trained}
    assert chosen == {name for name in model.parameters if ".router." in name} | {"transformer.ln_f.weight"}
    for each in (model, whole):
        each(TOKENS, TOKENS)
        each.backward()
    assert set() < {name for name, has in model.has_gradient.items() if has} <= chosen
    for name in chosen:
        assert model.gradients[name] == pytest.approx(whole.gradients[name], rel=1e-5, abs=1e-7)
    before = {name: value.copy() for name, value in model.parameters.items()}
    mom.AdamW(model, lr=0.1, weight_decay=0.5).step(1.0, zero_grad=True)
    moved = {name for name, value in model.parameters.items() if not np.array_equal(value, before[name])}
    assert moved and moved <= chosen
    model.train_only("*")
    assert all(model.trainable.values())
    model(TOKENS, TOKENS)
    model.backward()
    assert model.has_gradient["transformer.wte.weight"]


def test_gradients_of_what_is_frozen_afterwards_do_not_count() -> None:
    model = mom.MoM(CONFIG, seed=1)
    model(TOKENS, TOKENS)
    model.backward()
    model.train_only("*.router.*")
    assert not model.has_gradient["transformer.wte.weight"]
    before = model.parameters["transformer.wte.weight"].copy()
    mom.AdamW(model, lr=0.1).step()
    assert np.array_equal(model.parameters["transformer.wte.weight"], before)


def test_a_copy_trains_the_same_parameters() -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.train_only("*.router.*")
    assert copy.deepcopy(model).trainable == model.trainable


def test_a_pattern_that_fits_nothing_changes_nothing() -> None:
    model = mom.MoM(PLAIN)
    with pytest.raises(ValueError, match=r"patterns: '\*\.router\.\*' fits no parameter of this model"):
        model.train_only("transformer.ln_f.*", "*.router.*")
    assert all(model.trainable.values())


@pytest.mark.parametrize("pattern", [["*"], ("*.router.*",), None, 0])
def test_a_pattern_that_is_no_string_changes_nothing(pattern: Any) -> None:
    model = mom.MoM(CONFIG)
    with pytest.raises(TypeError, match=r"^patterns: expected str, got \w+ .*Each pattern is an argument of its own"):
        model.train_only("transformer.ln_f.*", pattern)
    assert all(model.trainable.values())


# ---------------------------------------------------------------------- parts of what a pass knows
@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["mom", "plain"])
def test_logits_at_some_tokens_are_those_of_all(config: mom.MoMConfig) -> None:
    model = mom.MoM(config, seed=2)
    wanted = model(TOKENS, return_logits=True).logits.reshape(-1, 17)[[20, 0, 5]]  # type: ignore[union-attr]
    assert model.logits_at(TOKENS, [20, 0, 5]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    packed = model.logits_at(TOKENS.ravel(), [20, 0, 5], lengths=[7, 7, 7])
    assert packed == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    with pytest.raises(ValueError, match="rows: "):
        model.logits_at(TOKENS, [21])


def test_route_counts_are_those_of_the_routes() -> None:
    model = mom.MoM(CONFIG.replace(num_attn=1))
    routes = model(TOKENS, return_routes=True).routes
    counts = model.route_counts()
    assert routes is not None and counts["attn"] == [[None, None], [None, None]]
    for (block, r), module in zip(routes.rounds, routes.module["ffn"], strict=True):
        np.testing.assert_array_equal(counts["ffn"][block][r], np.bincount(module.ravel(), minlength=4))


# ---------------------------------------------------------------------- a model or where it is
def test_a_model_or_a_folder_resolves_to_a_model(tmp_path: Any) -> None:
    model = mom.MoM(CONFIG)
    assert mom.MoM.resolve(model) is model
    model.save_pretrained(tmp_path / "m")
    read = mom.MoM.resolve(tmp_path / "m", "bfloat16")
    assert read.dtype == "bfloat16" and all(np.array_equal(read.parameters[n], v) for n, v in model.parameters.items())
    with pytest.raises(TypeError, match="^gpt2: expected MoM or a path, got MoMForSequenceClassification$"):
        mom.MoM.resolve(mom.MoMForSequenceClassification(CONFIG), name="gpt2")
    with pytest.raises(mom.CheckpointError):
        mom.MoM.resolve(str(tmp_path / "none"))


def test_text_is_continued_as_its_tokens_are() -> None:
    model = mom.MoM(mom.MoMConfig.preset("demo", vocab_size=280, n_positions=32, n_embd=32), seed=4)
    with pytest.raises(mom.DataError, match="tokenizer: the model has none"):
        model.generate_text("a")
    model.tokenizer = tokenizer = mom.Tokenizer.train(["a b c " * 9], 280)
    ids = tokenizer.encode("a b")
    made = model.generate(ids, 5, stop_token=tokenizer.eos_id, temperature=1.0, seed=3)
    assert model.generate_text("a b", 5, temperature=1.0, seed=3) == tokenizer.decode(made)
    begun = model.generate([tokenizer.eos_id], 4, stop_token=tokenizer.eos_id)
    assert model.generate_text("", 4) == tokenizer.decode(begun[1:])
    assert model.generate_text("a b") == model.generate_text("a b", 32 - len(ids)), "as many tokens as fit"
