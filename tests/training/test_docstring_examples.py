"""The examples in the docstrings of fine-tuning and evaluation run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["mom.data.glue", "mom.data.xsum", "mom.estimators", "mom.evaluate.summaries", "mom.glue", "mom.xsum"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    if name == "mom.glue":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted and not outcome.failed
