"""Fine-tuning: predictions that do not depend on batches, what is trained, the loop's rules, and learning at all."""

from __future__ import annotations

import math
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

import mom
from kinds import ROUTERS
from mom.data.encode import encode_texts
from mom.errors import ConfigError, DataError, TrainingError
from mom.glue.finetuning import _checked_seeds
from mom.model.answers import classify
from mom.training import FinetuneConfig
from mom.training.adapt import classifier_from, parameters_selected_by, routers_are_idle
from mom.training.batches import MicroBatch, Rows
from mom.training.finetune import FinetuneInterrupted, LoopResult, RunOptions, fit_rows
from mom.training.finetune import fit_classifier as fit_with_options
from padding import padded

CONFIG = mom.MoMConfig(
    vocab_size=300, n_positions=24, n_embd=16, n_head=2, chunks=1, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=1, require_anchor_layer=False, router_type="gru-softmax", router_dim=8,
    routing_top_k=2,
)  # fmt: skip
PLAIN = mom.MoMConfig.vanilla(2, vocab_size=300, n_positions=24, n_embd=16, n_head=2)
KINDS = pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(router_type="naive", routing_top_k=1), PLAIN],
                                ids=["gru", "naive", "plain"])  # fmt: skip


def fit_classifier(
    model: Any, rows: Any, labels: Any, config: FinetuneConfig, seed: int = 0, evaluate: Any = None, **options: Any
) -> LoopResult:
    return fit_with_options(model, rows, labels, config, seed, evaluate, RunOptions(**options))


def moved(model: Any, seed: int = 5) -> Any:
    """The model with parameters well away from their fresh values, so that routes are clear."""
    rng = np.random.default_rng(seed)
    for value in model.parameters.values():
        value += 0.3 * rng.standard_normal(value.shape).astype(np.float32)
    return model


def some_rows(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 300, rng.integers(1, 25), dtype=np.int32) for _ in range(count)]


def classifier(config: mom.MoMConfig, labels: int = 3) -> mom.MoMForSequenceClassification:
    return moved(classifier_from(mom.MoM(config, seed=1), labels, "single_label_classification"))


# ---------------------------------------------------------------------- predictions
@KINDS
def test_predictions_do_not_depend_on_padding_batch_or_order(config: mom.MoMConfig) -> None:
    model = classifier(config)
    rows = some_rows(60)
    alone = np.stack([model(row[None], attention_mask=np.ones((1, len(row)))).logits[0] for row in rows])  # type: ignore[index]
    assert np.ptp(alone, axis=0).min() > 0.1, "the test says something"
    order = np.random.default_rng(3).permutation(len(rows))
    for batch_size in (1, 7, 60):
        np.testing.assert_allclose(classify(model, rows, batch_size), alone, rtol=0, atol=1e-5)
    shuffled = classify(model, [rows[i] for i in order], 7)
    np.testing.assert_allclose(shuffled, alone[order], rtol=0, atol=1e-5)
    for side in ("right", "left"):  # the same rows in a batch that is padded
        tokens, mask, positions = padded(rows, side)
        for given in (positions, None):
            found = model(tokens, attention_mask=mask, positions=given).logits
            np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


@KINDS
def test_padding_may_hold_anything(config: mom.MoMConfig) -> None:
    model = classifier(config)
    row = some_rows(1, seed=4)[0][:9]
    expected = model(row[None]).logits
    for fill in (0, 7, 299):
        for side in ("right", "left"):
            filler = np.full(6, fill, np.int32)
            tokens = np.concatenate([row, filler] if side == "right" else [filler, row])[None]
            mask = np.ones_like(tokens)
            mask[:, slice(9, None) if side == "right" else slice(6)] = 0
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
            for given in (positions, None):
                found = model(tokens, attention_mask=mask, positions=given).logits
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_positions_begin_at_the_first_token_unless_padding_counts() -> None:
    row, mask = some_rows(1, seed=4)[0][None, :9], np.array([[0, 0, 1, 1, 0, 1, 1, 1, 1]])
    shifted = np.array([[0, 0, 0, 1, 2, 3, 4, 5, 6]])  # a hole in the middle keeps its place
    model = classifier(PLAIN)
    assert np.array_equal(
        model(row, attention_mask=mask).logits, model(row, attention_mask=mask, positions=shifted).logits
    )
    published = mom.MoMForSequenceClassification(PLAIN.replace(pooling="reference", num_labels=3, pad_token_id=0))
    by_default = published(row, attention_mask=mask).logits
    assert np.array_equal(by_default, published(row, attention_mask=mask, positions=np.arange(9)[None]).logits)
    assert not np.array_equal(by_default, published(row, attention_mask=mask, positions=shifted).logits)


def test_a_tokenizer_larger_than_the_model_is_named() -> None:
    model = mom.MoM(PLAIN.replace(vocab_size=270))
    model.tokenizer = mom.Tokenizer.train(["some text of some words, said some times"] * 9, 290)
    assert model.tokenizer.vocab_size > 270
    with pytest.raises(DataError, match=r"tokenizer: its \d+ ids are more than the model's vocab_size = 270"):
        classifier_from(model, 2, "single_label_classification")
    rows = [{"sentence": "some", "label": 1}, {"sentence": "words", "label": 0}]
    with pytest.raises(DataError, match="tokenizer: its"):
        mom.glue.finetune(model, "sst2", {"train": rows, "dev": rows}, epochs=1, progress=False)


def test_classify_needs_pooling_at_the_mask() -> None:
    model = mom.MoMForSequenceClassification(PLAIN.replace(pooling="reference", num_labels=2))
    with pytest.raises(ConfigError, match="pooling: 'reference'; batches of unequal length need 'mask'"):
        classify(model, some_rows(2))


def test_positions_are_checked() -> None:
    with pytest.raises(ValueError, match=r"positions: shape \(1, 2\), expected \(1, 3\) like tokens"):
        classifier(PLAIN)([[1, 2, 3]], positions=[[0, 1]])


# ---------------------------------------------------------------------- what is trained
@pytest.mark.parametrize("train", ["all", "routers", "head"])
def test_only_what_is_chosen_changes(train: str) -> None:
    model = classifier(CONFIG)
    before = {name: value.copy() for name, value in model.parameters.items()}
    rows, labels = some_rows(12), np.arange(12) % 3
    fit_classifier(model, rows, labels, FinetuneConfig(epochs=2, lr=0.01, train=train, batch_size=6), progress=False)
    changed = {name for name, value in model.parameters.items() if not np.array_equal(value, before[name])}
    routers = {name for name in before if ".router." in name}
    if train == "all":
        assert changed > routers and "score.weight" in changed and "transformer.wte.weight" in changed
    else:
        assert changed == {"score.weight"} | (routers if train == "routers" else set())


@pytest.mark.parametrize("train", ["all", "routers"])
def test_what_train_only_has_frozen_stays_frozen_but_a_copy_is_not_frozen(train: str) -> None:
    model = classifier(CONFIG)
    model.train_only("transformer.ln_f.*", "score.*")
    before = {name: value.copy() for name, value in model.parameters.items()}
    rows, labels = some_rows(12), np.arange(12) % 3
    fit_classifier(model, rows, labels, FinetuneConfig(epochs=1, lr=0.01, train=train, batch_size=6), progress=False)
    changed = {name for name, value in model.parameters.items() if not np.array_equal(value, before[name])}
    final_norm = {"transformer.ln_f.weight", "transformer.ln_f.bias"} if train == "all" else set()
    assert changed == {"score.weight"} | final_norm
    assert all(classifier_from(model, 3, "single_label_classification").trainable.values())


PARTIAL: dict[str, tuple[mom.MoMConfig, dict[str, Any]]] = {
    "recurrent routers": (CONFIG, {}),
    "naive routers, all paths": (CONFIG.replace(router_type="naive", routing_all_possible_path=True), {}),
    "anchors between": (CONFIG.replace(chunks=2, require_anchor_layer=True, num_bottom_layers=2), {}),
    "plain": (PLAIN, {}),
    "bfloat16": (CONFIG, {"dtype": "bfloat16"}),
    "checkpointing and dropout": (
        CONFIG.replace(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2), {"checkpointing": True, "training": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("train", ["routers", "head", "last block", "all"])
@pytest.mark.parametrize("language_model", [False, True])
@pytest.mark.parametrize("name", PARTIAL)
def test_gradients_of_what_is_trained_have_the_bits_of_the_whole_backward_pass(
    name: str, language_model: bool, train: str, threads: int
) -> None:
    config, options = PARTIAL[name]
    if (train == "head" and language_model) or (train in ("routers", "last block") and name == "plain"):
        pytest.skip("there is no such parameter")
    kind: Any = mom.MoM if language_model else mom.MoMForSequenceClassification
    changes = {"output_router_logits": True} if language_model else {"num_labels": 3, "pooling": "mask"}
    rows, found = some_rows(7), []
    tokens, lengths = np.concatenate(rows), [len(row) for row in rows]
    before = mom.get_num_threads()
    mom.set_num_threads(threads)
    try:
        for partly in (True, False):
            model = kind(config.replace(**changes), seed=3, dtype=options.get("dtype", "float32"))
            names = list(model.parameters)
            if train == "last block":
                last = max(place for place, kind in enumerate(config.places()) if kind == "block")
                chosen = np.array([f"transformer.h.{last}." in n and ".router." in n for n in names], np.uint8)
            else:
                chosen = parameters_selected_by(model, train)
            assert chosen.any()
            model.training = options.get("training", False)
            model.activation_checkpointing = options.get("checkpointing", False)
            if partly:
                model._core.set_trained(chosen)
            for _ in range(2):  # gradients add up
                out = model(tokens, tokens if language_model else np.arange(7) % 3, lengths=lengths)
                model.backward(lm_scale=0.5)
            used = model._core.used & chosen
            grads = {n: model.gradients[n].copy() for n, wanted in zip(names, chosen, strict=True) if wanted}
            found.append((out.loss, used, grads))
            if partly and train != "all":
                assert model._core.used.sum() < len(names)
                wte = model.gradients["transformer.wte.weight"]
                assert not wte.any() and not model._core.used[names.index("transformer.wte.weight")]
    finally:
        mom.set_num_threads(before)
    assert found[0][0] == found[1][0] and np.array_equal(found[0][1], found[1][1]) and found[0][1].any()
    for n, gradient in found[0][2].items():
        assert np.array_equal(gradient, found[1][2][n]), n
    assert any(gradient.any() for gradient in found[0][2].values())


def test_less_that_is_trained_needs_less_memory() -> None:
    model = classifier(CONFIG.replace(n_embd=64, num_bottom_layers=3))

    def needed() -> int:
        return sum(model._core.plan(8, 24, 8 * 24, True, False, True).values())

    sizes = {}
    for train in ("all", "routers", "head"):
        model._core.set_trained(parameters_selected_by(model, train))
        sizes[train] = needed()
        plan = model._core.plan(8, 24, 8 * 24, True, False, True)
        if train == "head":
            forward = model._core.plan(8, 24, 8 * 24, False, False, True)
            assert plan["gradients"] < 4 * (3 * 64 + 3 * 64) and plan["activations"] <= 1.1 * forward["activations"]
    assert sizes["head"] < sizes["routers"] < sizes["all"]
    model._core.set_trained(np.ones(len(list(model.parameters)), np.uint8))
    assert needed() == sizes["all"]
    out = model(np.arange(8)[None], [1], attention_mask=np.ones((1, 8)))
    model._core.set_trained(parameters_selected_by(model, "head"))
    with pytest.raises(RuntimeError, match="backward: needs a forward pass with labels before it"):
        model.backward()
    assert out.loss is not None
    with pytest.raises(ValueError, match="trained: shape"):
        model._core.set_trained(np.ones(2, np.uint8))


@pytest.mark.parametrize("train", ["routers", "head"])
def test_afterwards_everything_is_trained_again(train: str) -> None:
    model, fresh = classifier(CONFIG), classifier(CONFIG)
    rows, labels = some_rows(8), np.arange(8) % 3
    fit_classifier(model, rows, labels, FinetuneConfig(epochs=1, train=train, batch_size=4), progress=False)
    assert not model._core.used.any()
    for name, value in model.parameters.items():
        fresh.parameters[name] = value
    for each in (model, fresh):
        each(np.concatenate(rows), labels, lengths=[len(row) for row in rows])
        each.backward()
    for name in model.parameters:
        assert np.array_equal(model.gradients[name], fresh.gradients[name]), name


def test_choices_that_a_model_does_not_have() -> None:
    with pytest.raises(ConfigError, match="train: 'routers', but the model has none"):
        parameters_selected_by(classifier(PLAIN), "routers")
    with pytest.raises(ConfigError, match="train: 'head', but a language model has no head"):
        parameters_selected_by(mom.MoM(CONFIG), "head")
    model = mom.MoM(CONFIG)
    assert parameters_selected_by(model, "routers").sum() == sum(".router." in name for name in model.parameters)


IDLE = [
    {"router_type": kind, "routing_top_k": k, "use_ste": ste, "routing_all_possible_path": dense}
    for kind in ROUTERS
    if "hash" not in kind  # has no parameters
    for k in (0, 1, 2)
    for ste in (False, True)
    for dense in (False, True)
]
BALANCES: list[dict[str, Any]] = [
    {}, {"output_router_logits": False}, {"router_aux_loss_coef": 0.0},
    {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("changes", IDLE, ids=lambda changes: "-".join(map(str, changes.values())))
def test_routers_are_idle_where_they_have_no_gradient(changes: dict[str, Any]) -> None:
    rng, config = np.random.default_rng(0), CONFIG.replace(**changes)
    tokens = rng.integers(0, 300, 48)

    def gradient(model: Any, labels: Any) -> float:
        model.train()
        model(tokens, labels, lengths=[24, 24])
        model.backward()
        return max(float(np.abs(v).max()) for n, v in model.gradients.items() if ".router." in n)

    assert (gradient(classifier(config), [0, 1]) == 0.0) is routers_are_idle(config, language_model=False)
    for balance in BALANCES:
        changed = config.replace(**balance)
        found = gradient(moved(mom.MoM(changed, seed=1)), tokens)
        assert (found == 0.0) is routers_are_idle(changed, language_model=True), balance


def test_halves_without_routers_are_not_idle() -> None:
    single = CONFIG.replace(num_attn=1, num_ffn=1, routing_top_k=1)
    assert not any(routers_are_idle(config, kind) for config in (PLAIN, single) for kind in (False, True))
    assert routers_are_idle(CONFIG.replace(num_attn=1, routing_top_k=1), False)


def test_the_body_is_copied_and_the_head_is_fresh() -> None:
    source = moved(mom.MoM(CONFIG, seed=1))
    source.tokenizer = mom.Tokenizer.train(["some text"], 270)
    first, second = (classifier_from(source, 4, "single_label_classification", seed, dropout=0.2) for seed in (1, 2))
    assert first.tokenizer is source.tokenizer and first.config.resid_pdrop == first.config.attn_pdrop == 0.2
    assert all(np.array_equal(first.parameters[n], v) for n, v in source.parameters.items())
    assert first.parameters["score.weight"].shape == (4, 16)
    assert not np.array_equal(first.parameters["score.weight"], second.parameters["score.weight"])
    source.activation_checkpointing, source.memory_limit = True, 10**9
    limited = classifier_from(source, 2, "single_label_classification")
    assert (limited.activation_checkpointing, limited.memory_limit) == (True, 10**9)
    again = classifier_from(first, 1, "regression", 1)
    assert again.parameters["score.weight"].shape == (1, 16)
    assert np.array_equal(again.parameters["transformer.wte.weight"], source.parameters["transformer.wte.weight"])


# ---------------------------------------------------------------------- the loop
class Records(list[Any]):
    def record(self, record: dict[str, Any]) -> None:
        self.append(record)

    def close(self) -> None:
        pass


def test_best_weights_are_kept_and_patience_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(CONFIG)
    rows, labels = some_rows(8), np.arange(8) % 3
    scores = iter([0.1, 0.7, 0.7, 0.2, 0.9])
    kept: list[np.ndarray] = []

    def evaluate() -> float:
        assert not model.training
        kept.append(model.parameters["score.weight"].copy())
        return next(scores)

    records = Records()
    config = FinetuneConfig(epochs=9, lr=0.01, batch_size=4, patience=2, evals_per_epoch=1)
    result = fit_classifier(model, rows, labels, config, 0, evaluate, callbacks=[records], label="x seed 0")
    assert result.history == [(2, 0.1), (4, 0.7), (6, 0.7), (8, 0.2)]
    assert (result.steps, result.best_step, result.best_score, result.stopped_early) == (8, 4, 0.7, True)
    assert result.examples == 32 and result.seconds > 0 and not model.training
    assert np.array_equal(model.parameters["score.weight"], kept[1])
    assert [r["kind"] for r in records] == ["train", "train", "eval"] * 4 and records[-1]["score"] == 0.2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 4 and err[1].startswith("x seed 0: step 4/18 loss ") and err[1].endswith("0.7000 (best)")


def test_the_defaults_evaluate_within_epochs_and_can_stop_early() -> None:
    scores = iter([0.1, 0.7, 0.7, 0.2, 0.3])
    result = fit_classifier(
        classifier(CONFIG), some_rows(20), np.arange(20) % 3, FinetuneConfig(batch_size=4), 0, lambda: next(scores),
        progress=False,
    )  # fmt: skip
    # Five steps an epoch: after the third, at the end, and again; stopped within the third of three epochs.
    assert [step for step, _ in result.history] == [3, 5, 8, 10, 13]
    assert (result.steps, result.best_step, result.stopped_early) == (13, 5, True)


@pytest.mark.parametrize(
    ("parts", "steps", "evaluated"),
    [(1, 5, [5, 10]), (2, 1, [1, 2]), (3, 2, [1, 2, 3, 4]), (4, 10, [3, 5, 8, 10, 13, 15, 18, 20])],
)
def test_evaluations_stand_at_even_distances(parts: int, steps: int, evaluated: list[int]) -> None:
    config = FinetuneConfig(evals_per_epoch=parts)
    assert [step for step in range(1, 2 * steps + 1) if config.is_evaluated(step, steps)] == evaluated
    every = config.replace(eval_every=4)
    assert [step for step in range(1, 13) if every.is_evaluated(step, steps)] == [4, 8, 12]


def test_a_score_that_is_no_number_is_not_the_best() -> None:
    model, scores, kept = classifier(CONFIG), iter([math.nan, 0.5, math.nan, 0.4]), []

    def evaluate() -> float:
        kept.append(model.parameters["score.weight"].copy())
        return next(scores)

    config = FinetuneConfig(epochs=4, lr=0.01, batch_size=8, patience=0)
    result = fit_classifier(model, some_rows(8), np.arange(8) % 3, config, 0, evaluate)
    assert (result.steps, result.best_step, result.best_score) == (4, 2, 0.5)
    assert np.array_equal(model.parameters["score.weight"], kept[1])


def test_steps_and_learning_rates() -> None:
    model = classifier(CONFIG)
    records = Records()
    config = FinetuneConfig(epochs=5, max_steps=8, lr=1.0, warmup=0.5, batch_size=4, eval_every=3, patience=0)
    result = fit_classifier(
        model, some_rows(10), np.arange(10) % 3, config.replace(lr=0.001), 0, lambda: 0.0, progress=False,
        callbacks=[records],
    )  # fmt: skip
    assert result.steps == 8 and [step for step, _ in result.history] == [3, 6, 8] and not result.stopped_early
    rates = [1000 * r["lr"] for r in records if r["kind"] == "train"]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_without_a_dev_set_the_last_weights_stay() -> None:
    model = classifier(CONFIG)
    result = fit_classifier(model, some_rows(5), np.arange(5) % 3, FinetuneConfig(epochs=2), progress=False)
    assert (result.steps, result.best_step, result.best_score, result.history) == (2, 2, None, [])


def test_the_same_seed_gives_the_same_bits() -> None:
    ends = []
    for seed in (0, 0, 1):
        model = classifier(CONFIG.replace(resid_pdrop=0.1))
        fit_classifier(model, some_rows(30), np.arange(30) % 3, FinetuneConfig(lr=0.01), seed, progress=False)
        ends.append(model.parameters["transformer.wte.weight"].copy())
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_recomputing_activations_changes_no_bit_and_only_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, backward = [], mom.MoMForSequenceClassification.backward

    def observed(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self.activation_checkpointing)
        backward(self, *args, **kwargs)

    monkeypatch.setattr(mom.MoMForSequenceClassification, "backward", observed)
    ends = []
    for how in (False, True):
        model = classifier(CONFIG.replace(resid_pdrop=0.1))
        config = FinetuneConfig(lr=0.01, epochs=1, activation_checkpointing=how)
        result = fit_classifier(model, some_rows(30), np.arange(30) % 3, config, progress=False)
        assert not model.activation_checkpointing
        ends.append((result.loss, model.parameters["transformer.wte.weight"].copy()))
    assert seen == [False, False, True, True]
    assert ends[0][0] == ends[1][0] and np.array_equal(ends[0][1], ends[1][1])
    model.activation_checkpointing = True  # what the model is set to stays in force
    fit_classifier(model, some_rows(5), np.arange(5) % 3, FinetuneConfig(epochs=1), progress=False)
    assert seen[4:] == [True] and model.activation_checkpointing


def test_evaluating_does_not_change_what_is_learnt() -> None:
    """Noisy routers draw in evaluations too, from the streams that dropout uses."""
    config = CONFIG.replace(router_type="gru-softmax-random", resid_pdrop=0.1)
    rows, ends = some_rows(12), []
    for every in (1, 6):
        model = classifier(config)
        scores = iter(range(99))

        def evaluate(model: Any = model, scores: Any = scores) -> float:
            classify(model, rows)
            return float(next(scores))

        settings = FinetuneConfig(epochs=3, lr=0.01, batch_size=6, eval_every=every)
        fit_classifier(model, rows, np.arange(12) % 3, settings, 0, evaluate, progress=False)
        ends.append(model.parameters["transformer.wte.weight"].copy())
    assert np.array_equal(*ends)


@pytest.mark.parametrize("train", ["all", "head"])
def test_a_skipped_step_leaves_no_gradients(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = mom.AdamW.step, []

    def poisoned(optimizer: mom.AdamW, clip: float, *, zero_grad: bool) -> float:
        calls.append({name: value.copy() for name, value in optimizer.model.gradients.items()})
        if len(calls) == 2:
            optimizer.model.gradients["score.weight"][0] = np.inf
        return step(optimizer, clip, zero_grad=zero_grad)

    monkeypatch.setattr(mom.AdamW, "step", poisoned)
    settings = FinetuneConfig(epochs=3, lr=0.0, batch_size=6, train=train)
    result = fit_classifier(classifier(CONFIG), some_rows(6), np.arange(6) % 3, settings, progress=False)
    assert (result.steps, result.skipped) == (3, 1)
    for name, value in calls[0].items():  # each step's batch holds the same rows, in another order
        np.testing.assert_allclose(calls[2][name], value, atol=1e-5 * np.abs(value).max())


def test_repeated_bad_steps_end_the_run() -> None:
    model = classifier(CONFIG)
    model.parameters["score.weight"][:] = np.nan
    with pytest.raises(TrainingError, match="5 steps in a row were not finite"):
        fit_classifier(model, some_rows(9), np.arange(9) % 3, FinetuneConfig(batch_size=1), progress=False)
    assert not model.training


@pytest.mark.parametrize("regression", [False, True])
@KINDS
def test_a_small_set_is_learnt(config: mom.MoMConfig, regression: bool) -> None:
    """The label is whether token 7 occurs, which has to be carried to the last token."""
    rows = some_rows(64, seed=2)
    for i, row in enumerate(rows):
        row[row == 7] = 8
        if i % 2:
            row[(3 * i) % len(row)] = 7
    labels: Any = np.arange(64) % 2
    model = classifier_from(
        mom.MoM(config, seed=1), 1 if regression else 2,
        "regression" if regression else "single_label_classification",
    )  # fmt: skip
    settings = FinetuneConfig(epochs=60, lr=0.01, batch_size=16, weight_decay=0.0, warmup=0.1)
    fit_classifier(model, rows, labels.astype(np.float32) if regression else labels, settings, progress=False)
    logits = classify(model, rows)
    right = (logits[:, 0] > 0.5) == labels if regression else logits.argmax(axis=1) == labels
    assert right.mean() > 0.95


def one_step(model: Any, rows: list[np.ndarray], labels: np.ndarray, **changes: Any) -> tuple[float, dict[str, Any]]:
    """Loss of one step over all rows, and the gradients that the optimizer got."""
    gradients: dict[str, Any] = {}
    step = mom.AdamW.step

    def seen(optimizer: mom.AdamW, clip: float, *, zero_grad: bool) -> float:
        gradients.update((name, value.copy()) for name, value in model.gradients.items())
        return step(optimizer, clip, zero_grad=zero_grad)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mom.AdamW, "step", seen)
        config = FinetuneConfig(epochs=1, lr=0.0, **changes)
        result = fit_classifier(model, rows, labels, config, progress=False)
    assert result.steps == 1 and result.examples == len(rows)
    return result.loss, gradients


@pytest.mark.parametrize("regression", [False, True])
@KINDS
def test_accumulated_gradients_are_those_of_the_large_batch(config: mom.MoMConfig, regression: bool) -> None:
    rows, classes = some_rows(10, seed=6), np.arange(10) % 3
    labels: Any = classes.astype(np.float32) if regression else classes
    problem = "regression" if regression else "single_label_classification"
    model = moved(classifier_from(mom.MoM(config, seed=1), 1 if regression else 3, problem))
    loss, expected = one_step(model, rows, labels, batch_size=12)
    for batch_size, accumulation in ((4, 3), (3, 4), (1, 10)):  # 4, 4 and 2 rows; 3, 3, 3 and 1; one by one
        found_loss, found = one_step(model, rows, labels, batch_size=batch_size, accumulation=accumulation)
        assert found_loss == pytest.approx(loss, rel=1e-5)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


def test_accumulation_takes_the_steps_of_the_large_batch() -> None:
    rows, labels, ends, records = some_rows(22, seed=3), np.arange(22) % 3, [], []
    for batch_size, accumulation in ((8, 1), (2, 4), (8, 4)):
        model, heard = classifier(CONFIG), Records()
        config = FinetuneConfig(epochs=2, lr=1e-3, eps=1e-3, batch_size=batch_size, accumulation=accumulation)
        result = fit_classifier(model, rows, labels, config, 3, progress=False, callbacks=[heard])
        assert result.examples == 44 and result.steps == (6 if batch_size * accumulation == 8 else 2)
        ends.append({name: value.copy() for name, value in model.parameters.items()})
        records.append([r["loss"] for r in heard])
    np.testing.assert_allclose(records[1], records[0], rtol=1e-4)
    # Routes may flip where two scores are nearly equal; a step moves a parameter by up to lr, six of them by 6e-3.
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=0, atol=1e-5, err_msg=name)
    assert max(np.abs(ends[2][name] - value).max() for name, value in ends[0].items()) > 1e-3, "the test says something"


class Interrupt(Records):
    """Ctrl-C at the so many-th record."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def record(self, record: dict[str, Any]) -> None:
        super().record(record)
        if len(self) == self.at:
            raise KeyboardInterrupt


def test_an_interrupted_loop_keeps_its_best_weights() -> None:
    rows, labels, kept = some_rows(8), np.arange(8) % 3, []

    def run(at: int) -> tuple[Any, FinetuneInterrupted]:
        kept.clear()
        model, scores = classifier(CONFIG), iter([0.1, 0.7, 0.2])

        def evaluate() -> float:
            kept.append({name: value.copy() for name, value in model.parameters.items()})
            return next(scores)

        config = FinetuneConfig(epochs=9, lr=0.01, batch_size=4, evals_per_epoch=1)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit_classifier(model, rows, labels, config, 0, evaluate, progress=False, callbacks=[Interrupt(at)])
        assert isinstance(caught.value, FinetuneInterrupted) and not model.training
        return model, caught.value

    model, stop = run(at=10)  # two steps and an evaluation, three times, and a step
    assert str(stop) == "finetune: step 7/18, best score 0.7000 at step 4"
    assert stop.loop.interrupted and (stop.loop.steps, stop.loop.best_step, stop.loop.best_score) == (7, 4, 0.7)
    assert all(np.array_equal(value, kept[1][name]) for name, value in model.parameters.items())
    assert not np.array_equal(kept[1]["score.weight"], kept[2]["score.weight"]), "the test says something"

    model, stop = run(at=2)
    assert str(stop) == "finetune: step 2/18, before any evaluation"
    assert stop.loop.best_score is None and stop.loop.best_step == 2 and not kept
    assert not np.array_equal(model.parameters["score.weight"], classifier(CONFIG).parameters["score.weight"])


class Signal(Records):
    """A signal during the step or evaluation that makes the so many-th record."""

    def __init__(self, at: int, number: signal.Signals) -> None:
        super().__init__()
        self.at, self.number = at, number

    def record(self, record: dict[str, Any]) -> None:
        super().record(record)
        if len(self) == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_run_after_the_step(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    heard, scores = Signal(3, number), iter([0.5])
    config = FinetuneConfig(epochs=9, lr=0.01, batch_size=4, eval_every=1)
    with pytest.raises(FinetuneInterrupted) as caught:  # a step, its evaluation, a step that is not evaluated any more
        fit_classifier(
            classifier(CONFIG), some_rows(8), np.arange(8) % 3, config, 0, lambda: next(scores), progress=False,
            callbacks=[heard],
        )  # fmt: skip
    assert str(caught.value) == "finetune: step 2/18, best score 0.5000 at step 1"
    assert caught.value.signal == number.name and caught.value.loop.interrupted
    assert [r["kind"] for r in heard] == ["train", "eval", "train"] and signal.getsignal(number) is before


def test_a_signal_breaks_an_evaluation_off() -> None:
    calls = []

    def evaluate() -> float:
        calls.append("begun")
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            calls.append("not to be reached")
        return 0.5

    model = classifier(CONFIG)
    config = FinetuneConfig(epochs=9, lr=0.01, batch_size=4, eval_every=2)
    with pytest.raises(FinetuneInterrupted, match="step 4/18, best score 0.5000 at step 2") as caught:
        fit_classifier(model, some_rows(8), np.arange(8) % 3, config, 0, evaluate, progress=False)
    assert caught.value.signal == "SIGTERM" and calls == ["begun", "begun"] and not model.training


def test_language_models_are_trained_too() -> None:
    model = mom.MoM(CONFIG, seed=0)
    tokens = np.tile(np.arange(8), (4, 2))

    def make(rows: np.ndarray) -> MicroBatch:
        return MicroBatch({"tokens": tokens[rows], "labels": tokens[rows]}, 15 * len(rows), len(rows), 16 * len(rows))

    first = model(tokens, labels=tokens).lm_loss
    source = Rows([16] * 4, 4, 1, 0, make)
    result = fit_rows(model, source, FinetuneConfig(epochs=60, lr=0.01), 0, options=RunOptions(progress=False))
    assert result.loss < 0.3 * (first or math.nan)


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is less than 1"), ({"accumulation": 0}, "accumulation: 0 is less than 1"),
        ({"epochs": 1.5}, "epochs: expected int, got float 1.5"),
        ({"lr": -1.0}, r"lr: -1.0 is not in \[0.0, 1000.0\]"),
        ({"warmup": 2.0}, r"warmup: 2.0 is no share in \[0, 1\]; a number of steps is an integer"),
        ({"warmup": -1}, "warmup: -1 is negative"),
        ({"train": "body"}, "train: 'body' is not one of 'all', 'routers', 'head'"),
        ({"schedule": "step"}, "schedule: 'step' is not one of"),
        ({"dropout": 1.0}, r"dropout: 1.0 is not in \[0, 1\)"),
        ({"clip": 0.0}, "clip: 0.0 is not positive"), ({"patience": -1}, "patience: -1 is less than 0"),
        ({"evals_per_epoch": 0}, "evals_per_epoch: 0 is less than 1"),
        ({"layers": 3}, "layers: unknown fine-tuning field"), ({"max_steps": True}, "max_steps: expected int"),
        ({"activation_checkpointing": 1}, "activation_checkpointing: expected bool, got int 1"),
    ],
)  # fmt: skip
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig().replace(**changes)


def test_numbers_of_numpy_are_numbers() -> None:
    config = FinetuneConfig(epochs=np.int64(2), lr=np.float32(0.5), batch_size=np.int32(3))  # type: ignore[arg-type]
    assert (config.epochs, config.lr, config.batch_size) == (2, 0.5, 3)
    assert type(config.epochs) is int and type(config.lr) is float
    assert _checked_seeds(np.int64(3)) == _checked_seeds(np.array([3])) == [3]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seeds: expected one or more distinct integers"):
        _checked_seeds([0.5])  # type: ignore[list-item]


def test_what_is_no_model_is_named() -> None:
    with pytest.raises(TypeError, match="model: expected MoM or a path, got int"):
        mom.glue.finetune(3, "sst2", {})  # type: ignore[arg-type]


def test_length_follows_the_model() -> None:
    assert FinetuneConfig().length_for(PLAIN) == 24 and FinetuneConfig(max_length=9).length_for(PLAIN) == 9
    with pytest.raises(ConfigError, match="max_length: 25 is more than the model's n_positions = 24"):
        FinetuneConfig(max_length=25).length_for(PLAIN)


# ---------------------------------------------------------------------- texts to rows
@pytest.fixture(scope="module")
def tokenizer() -> mom.Tokenizer:
    return mom.Tokenizer.train(["a few words to learn from, a few words more"], 290)


def test_texts_end_with_the_end_of_text_token(tokenizer: mom.Tokenizer) -> None:
    rows, cut = encode_texts(tokenizer, [("a few",), ("",)], 24)
    np.testing.assert_array_equal(rows[0], [*tokenizer.encode("a few"), tokenizer.eos_id])
    np.testing.assert_array_equal(rows[1], [tokenizer.eos_id])
    (row,), _ = encode_texts(tokenizer, [("a few", "words")], 24)
    eos = tokenizer.eos_id
    np.testing.assert_array_equal(row, [*tokenizer.encode("a few"), eos, *tokenizer.encode("words"), eos])
    assert cut == 0 and rows[0].dtype == np.int32 and encode_texts(tokenizer, [], 24) == ([], 0)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [(3, 3, (3, 3)), (50, 2, (6, 2)), (2, 50, (2, 6)), (50, 50, (4, 4)), (4, 50, (4, 4)), (50, 4, (4, 4))],
)
def test_the_longer_text_is_cut_first(tokenizer: mom.Tokenizer, first: int, second: int, kept: tuple[int, int]) -> None:
    (row,), cut = encode_texts(tokenizer, [("x" * first, "y" * second)], 10)
    x, y = tokenizer.encode("x")[0], tokenizer.encode("y")[0]
    assert ((row == x).sum(), (row == y).sum()) == kept and cut == (first + second > 8)
    (row,), cut = encode_texts(tokenizer, [("x" * first,)], 10)
    assert len(row) == min(first, 9) + 1 and cut == (first > 9)


def test_encoding_errors(tokenizer: mom.Tokenizer) -> None:
    with pytest.raises(DataError, match="tokenizer: the model has none"):
        encode_texts(None, [("a",)], 10)
    with pytest.raises(DataError, match="max_length: 3 leaves no room for 2 texts"):
        encode_texts(tokenizer, [("a", "b")], 3)
