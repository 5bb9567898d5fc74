"""A whole training run on real text beside the recorded run of the published reference.

Routing is discrete, so two correct float32 runs part after a while; the tolerances are those that the recording's
description asks for, and come from what the reference differs from itself with another number of threads; but for that
of the validation loss, 0.4 %, which was too narrow: twelve runs at two levels, whose initial weights differ in their
last bit, ended between -0.56 and +0.05 % of the recorded one. Their standard deviation is 0.20 %, that of two runs'
difference 0.28 %, and the tolerance not quite three times that.
"""

from __future__ import annotations

import numpy as np
import pytest

import mom
from mom.files import weights
from shared_data import shared_path

STEPS, ROWS, LENGTH = 300, 8, 128


def run(dtype: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float]:
    """The recording; losses, gradient norms and validation loss of the same run in `dtype`."""
    folder = shared_path("curves", "gru_softmax_top2")
    text = np.frombuffer(shared_path("data", "text", "tinyshakespeare.txt").read_bytes(), np.uint8).astype(np.int32)
    expected = dict(np.load(folder / "expected.npz"))
    model = mom.MoM(mom.MoMConfig.from_json(folder), dtype=dtype)
    model.load_state(weights.read_weights(folder), str(folder))
    optimizer = mom.AdamW(model, lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    factor = mom.training.cosine_schedule(20, STEPS)
    losses, norms = [], []
    for step in range(STEPS):
        batch = text[step * ROWS * LENGTH : (step + 1) * ROWS * LENGTH].reshape(ROWS, LENGTH)
        model.zero_grad()
        losses.append(model(batch, labels=batch).lm_loss)
        model.backward()
        norms.append(mom.clip_grad_norm(model, 1.0))
        optimizer.lr = 1e-3 * factor(step)
        optimizer.step()
    validation = text[-64 * LENGTH :].reshape(8, ROWS, LENGTH)
    val_loss = float(np.mean([model(batch, labels=batch, keep=False).lm_loss for batch in validation]))
    print(
        f"{dtype}: mean of last 20 {np.mean(losses[-20:]):.4f} ({expected['lm_loss'][-20:].mean():.4f}), "
        f"validation {val_loss:.4f} ({float(expected['val_loss']):.4f})"
    )
    return expected, np.array(losses), np.array(norms), val_loss


def test_training_run_follows_the_recorded_losses() -> None:
    expected, losses, norms, val_loss = run("float32")
    apart = np.abs(losses - expected["lm_loss"]) / expected["lm_loss"]
    norms_apart = np.abs(norms - expected["grad_norm"]) / expected["grad_norm"]
    print(
        f"lm_loss apart: {apart[:20].max():.1e} to step 19, {apart[:50].max():.1e} to 49, {apart.max():.1e} to 299; "
        f"grad_norm {norms_apart[:20].max():.1e}"
    )
    assert apart[:20].max() <= 1e-5
    assert apart[:50].max() <= 2e-3
    assert apart.max() <= 1.5e-2
    assert norms_apart[:20].max() <= 1e-4
    assert losses[-20:].mean() == pytest.approx(expected["lm_loss"][-20:].mean(), rel=4e-3)
    assert val_loss == pytest.approx(float(expected["val_loss"]), rel=8e-3)


def test_bfloat16_ends_within_one_per_cent_of_the_recorded_float32_run() -> None:
    expected, losses, _, val_loss = run("bfloat16")
    assert losses[-20:].mean() == pytest.approx(expected["lm_loss"][-20:].mean(), rel=1e-2)
    assert val_loss == pytest.approx(float(expected["val_loss"]), rel=1e-2)
