"""A run that is killed at any of its calls to the system loses nothing, and its next run leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import small_run

import mom
from killed import killed_at
from mom.files.folders import latest_valid

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SETTINGS = {**small_run.SETTINGS, "steps": 3, "accumulation": 1, "eval_every": 0, "save_every": 1, "keep_last": 1}


def train(data: Path, run_dir: Path, resume: bool = False) -> mom.MoM:
    model = small_run.model(seed=9 if resume else 0)
    mom.train(model, data, run_dir=run_dir, resume=resume, progress=False, **SETTINGS)
    return model


@pytest.mark.parametrize("exchange", [True, False])
def test_a_run_that_is_killed_anywhere_goes_on(tmp_path: Path, exchange: bool) -> None:
    data = small_run.tokens(tmp_path / "tokens.bin")
    whole = small_run.parameter_bytes(train(data.path, tmp_path / "whole"))
    listing = sorted(os.listdir(tmp_path / "whole"))
    patches = {} if exchange else {"_exchange": lambda one, two: False}
    newest, number = 0, 0
    while True:
        number += 1
        run = tmp_path / f"run-{number}"
        if not killed_at(number, number % 2 == 0, lambda run=run: train(data.path, run), patches):
            break
        found = latest_valid(run)[0]
        assert found is None or int(found.name[-8:]) >= newest, "a later kill never finds an earlier state"
        newest = 0 if found is None else int(found.name[-8:])
        resume = found is not None
        if not resume:  # killed before the first checkpoint was there
            with contextlib.suppress(FileNotFoundError):
                (run / "log.jsonl").unlink()
        resumed = small_run.model(seed=9 if resume else 0)
        mom.train(resumed, data.path, run_dir=run, resume=resume, progress=False, **SETTINGS)
        assert small_run.parameter_bytes(resumed) == whole
        assert sorted(os.listdir(run)) == listing
    assert number > 30 and newest == 3
