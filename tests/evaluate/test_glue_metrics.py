"""`mom.glue.metrics` calls scikit-learn and SciPy as GLUE does, constants and ties included."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from mom.evaluate import baseline_metrics, glue_metrics, task_score
from mom.glue import TASKS

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")

CLASSES = [name for name, task in TASKS.items() if not task.is_regression]
EXPECTED = {
    "matthews": lambda p, y: metrics.matthews_corrcoef(y, p),
    "accuracy": lambda p, y: metrics.accuracy_score(y, p),
    "f1": lambda p, y: metrics.f1_score(y, p),
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("task", CLASSES)
def test_classes_equal_scikit_learn(task: str, rng: np.random.Generator) -> None:
    count = TASKS[task].num_labels
    for size in (1, 2, 3, 10, 200):
        for _ in range(20):
            wanted = rng.integers(0, count, size)
            predicted = np.where(rng.random(size) < 0.5, wanted, rng.integers(0, count, size))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = {name: EXPECTED[name](predicted, wanted) for name in TASKS[task].metrics}
            assert glue_metrics(task, predicted, wanted) == pytest.approx(expected, abs=1e-12)


def test_matthews_and_f1_by_hand() -> None:
    predicted, wanted = [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0]  # 3 true, 1 false positive, 3, 1 negatives
    assert glue_metrics("cola", predicted, wanted)["matthews"] == pytest.approx((3 * 3 - 1 * 1) / 16)
    found = glue_metrics("mrpc", predicted, wanted)
    assert list(found) == ["f1", "accuracy"] and found == pytest.approx({"f1": 0.75, "accuracy": 0.75})


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_equal_scipy(ties: bool, rng: np.random.Generator) -> None:
    for size in (2, 3, 10, 300):
        for _ in range(20):
            wanted = rng.uniform(0, 5, size).round(0 if ties else 6)
            predicted = (wanted + rng.standard_normal(size)).round(0 if ties else 6)
            if np.ptp(wanted) == 0 or np.ptp(predicted) == 0:
                continue
            found = glue_metrics("stsb", predicted.astype(np.float32), wanted.astype(np.float32))
            predicted, wanted = (np.float64(np.float32(a)) for a in (predicted, wanted))
            assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, wanted).statistic, abs=1e-12)
            assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, wanted).statistic, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("value", [0, 1])
def test_constant_classes(value: int, size: int, rng: np.random.Generator) -> None:
    wanted = rng.integers(0, 2, size)
    wanted[0] = 1
    constant = np.full(size, value)
    assert glue_metrics("cola", constant, wanted) == {"matthews": 0.0}
    assert glue_metrics("cola", wanted, constant) == {"matthews": 0.0}
    found = glue_metrics("qqp", constant, wanted)
    assert found["accuracy"] == pytest.approx(np.mean(wanted == value))
    assert found["f1"] == pytest.approx(2 * wanted.sum() / (size + wanted.sum()) if value else 0.0)
    assert glue_metrics("qqp", np.zeros(size, int), np.zeros(size, int)) == {"f1": 0.0, "accuracy": 1.0}


def test_constant_scores_correlate_with_nothing() -> None:
    varied = np.array([0.0, 2.5, 5.0])
    for predicted, wanted in ((np.full(3, 2.7), varied), (varied, np.full(3, 2.7)), (np.ones(3), np.ones(3))):
        assert glue_metrics("stsb", predicted, wanted) == {"pearson": 0.0, "spearman": 0.0}
    nearly = 1.0 + 1e-15 * np.arange(3)
    assert np.isfinite(list(glue_metrics("stsb", nearly, varied).values())).all()


def test_baseline_answers_with_the_majority_of_the_train_set() -> None:
    assert baseline_metrics("rte", [1, 1, 0], [0, 1, 1, 1]) == {"accuracy": 0.75}
    assert baseline_metrics("mrpc", [1, 1, 0], [1, 0]) == pytest.approx({"f1": 2 / 3, "accuracy": 0.5})
    assert baseline_metrics("stsb", [1.0, 4.0], [0.0, 5.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert task_score({"f1": 0.5, "accuracy": 0.25}) == 0.375


@pytest.mark.parametrize(
    ("task", "predictions", "labels", "message"),
    [
        ("rte", [], [], r"predictions: shape \(0,\), expected \(N,\) with N > 0"),
        ("rte", [[1]], [1], r"predictions: shape \(1, 1\)"),
        ("rte", [1, 0], [1], "predictions: 2 of them for 1 labels"),
        ("rte", [1, 2], [1, 0], r"predictions: 2 is not in \[0, 2\), the labels of RTE"),
        ("rte", [1, 0], [1, -1], r"labels: -1 is not in \[0, 2\)"),
        ("rte", [0.5, 0.5], [1, 0], "predictions: dtype float64, expected integers"),
        ("stsb", [1.0, np.nan], [1.0, 2.0], "predictions: not all are finite numbers"),
        ("stsb", [1.0], [1.0], "a correlation needs at least two rows"),
        ("imdb", [1], [1], "task: 'imdb' is not one of"),
    ],
)
def test_arguments_are_checked(task: str, predictions: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glue_metrics(task, predictions, labels)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(
        ImportError, match=r"GLUE's metrics needs the package scikit-learn: pip install scikit-learn"
    ):
        glue_metrics("rte", [1], [1])


def test_importing_the_package_does_not_import_the_extras() -> None:
    names = "('sklearn', 'scipy', 'pyarrow', 'rouge_score', 'datasets', 'huggingface_hub', 'matplotlib', 'lm_eval')"
    code = f"import sys, mom, mom.cli; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
