"""Training learns, and accumulation, threads and evaluation do not change its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run

import mom
from mom.training import evaluate_loss

QUIET: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "router_type": "gru-softmax"}


@pytest.mark.parametrize("vanilla", [False, True], ids=["mom", "vanilla"])
def test_one_batch_is_learnt_to_near_zero_loss(tmp_path: Path, vanilla: bool) -> None:
    config = small_run.config(**QUIET)
    model = mom.MoM(config.vanilla_config() if vanilla else config)
    noise = np.random.default_rng(0).integers(small_run.VOCABULARY, size=4 * 16, dtype=np.uint16)
    (tmp_path / "one.bin").write_bytes(noise.tobytes())
    result = mom.train(
        model, tmp_path / "one.bin", steps=200, batch_size=4, sequence_length=16, sampling="consecutive", lr=1e-2,
        weight_decay=0.0, warmup=10, final_lr=0.1, progress=False,
    )  # fmt: skip
    assert result.lm_loss is not None and result.lm_loss < 0.02


def test_accumulated_gradients_equal_those_of_one_big_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_run.tokens(tmp_path / "tokens.bin")
    found = []

    def capture(optimizer: mom.AdamW, _clip: float, *, zero_grad: bool) -> float:
        found.append({name: array.copy() for name, array in optimizer.model.gradients.items()})
        return 1.0

    monkeypatch.setattr(mom.AdamW, "step", capture)
    losses = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        model = small_run.model(router_aux_loss_coef=0.0, **QUIET)
        result = mom.train(
            model, data, steps=1, batch_size=batch_size, accumulation=accumulation, sequence_length=16, progress=False
        )
        losses.append(result.lm_loss)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for other in found[1:]:
        for name, expected in found[0].items():
            assert np.linalg.norm(other[name] - expected) <= 1e-5 * max(float(np.linalg.norm(expected)), 1e-3), name


def test_number_of_threads_does_not_change_bits(tmp_path: Path) -> None:
    data = small_run.tokens(tmp_path / "tokens.bin")
    results = set()
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        model = small_run.model(n_embd=48, n_positions=64, router_dim=24)
        mom.train(model, data, steps=5, batch_size=3, sequence_length=64, warmup=0, progress=False)
        results.add(small_run.parameter_bytes(model))
    assert len(results) == 1


def test_evaluation_does_not_change_training_bits(tmp_path: Path) -> None:
    data = small_run.tokens(tmp_path / "tokens.bin")
    results = set()
    for settings in ({}, {"val_data": data, "eval_every": 1}, {"val_data": data, "eval_every": 3, "eval_batches": 1}):
        model = small_run.model()
        mom.train(model, data, steps=6, batch_size=2, sequence_length=16, warmup=0, progress=False, **settings)  # type: ignore[arg-type]
        results.add((small_run.parameter_bytes(model), model.random_state))
    assert len(results) == 1


def test_evaluate_loss_is_the_mean_over_windows_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    data = small_run.tokens(tmp_path / "tokens.bin", count=5 * 16 + 7)
    model = small_run.model(**QUIET)
    model.train()
    before = model.random_state
    windows = data.read(0, 5 * 16).reshape(5, 16)
    expected = np.mean([model(row, labels=row, keep=False).lm_loss for row in windows])  # type: ignore[misc]
    assert evaluate_loss(model, data, batch_size=2, sequence_length=16, batches=10) == pytest.approx(expected, rel=1e-6)
    assert model.training and model.random_state == before
    with pytest.raises(mom.DataError, match="holds no window of 128 tokens"):
        evaluate_loss(model, data, batch_size=2, sequence_length=128, batches=1)


def test_training_mode_is_put_back(tmp_path: Path) -> None:
    model = small_run.model()
    mom.train(model, small_run.tokens(tmp_path / "t.bin"), steps=1, batch_size=1, sequence_length=16, progress=False)
    assert not model.training
