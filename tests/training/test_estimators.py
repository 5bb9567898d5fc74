"""`mom.TextClassifier` and `mom.TextRegressor`: scikit-learn's verbs, and its tools around them."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.exceptions import NotFittedError

import mom
from mom.errors import ConfigError, DataError

CONFIG = mom.MoMConfig.preset(
    "demo", vocab_size=300, n_positions=24, n_embd=32, n_head=2, router_dim=8, depth_per_chunk=2
)
QUICK: dict[str, Any] = {"epochs": 12, "lr": 1e-2, "batch_size": 8}


def texts_and_labels(count: int = 48) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = ["the", "film", "is", "really", "a", "thing"]
    kinds = ["dull", "fine", "odd"]
    labels = [kinds[i % 3] for i in range(count)]
    signs = {"dull": "boring", "fine": "lovely", "odd": "weird"}
    return [" ".join([*rng.choice(words, 3), signs[label], *rng.choice(words, 2)]) for label in labels], labels


# ---------------------------------------------------------------------- verbs
def test_classifier_learns_labels_of_any_type() -> None:
    texts, labels = texts_and_labels()
    for values in (labels, [len(label) for label in labels], np.array([label == "odd" for label in labels])):
        classifier = mom.TextClassifier(CONFIG, **QUICK).fit(texts, values)
        np.testing.assert_array_equal(classifier.classes_, np.unique(values))
        assert classifier.score(texts, values) > 0.95 and classifier.predict(texts).dtype == np.asarray(values).dtype
        proba = classifier.predict_proba(texts)
        assert proba.shape == (48, len(classifier.classes_)) and np.allclose(proba.sum(axis=1), 1)
        np.testing.assert_allclose(np.exp(classifier.predict_log_proba(texts)), proba)
        np.testing.assert_array_equal(classifier.classes_[proba.argmax(axis=1)], classifier.predict(texts))


@pytest.mark.parametrize(
    ("changes", "train", "words"),
    [
        ({"routing_top_k": 1}, "all", "train: 'all' trains everything but the routers: with routing_top_k = 1"),
        ({"routing_top_k": 1, "use_ste": True}, "routers", "train: 'routers' trains the head alone: .*top_k=2"),
        ({"routing_top_k": 1}, "head", None), ({}, "all", None), ({}, "routers", None),
        ({"routing_top_k": 1, "router_type": "gru"}, "routers", None),
    ],
)  # fmt: skip
def test_routers_that_cannot_learn_are_said_once(changes: dict[str, Any], train: str, words: str | None) -> None:
    texts, labels = texts_and_labels(9)
    before = _routers(mom.MoM(CONFIG.replace(**changes), seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = mom.TextClassifier(CONFIG.replace(**changes), train=train, epochs=3, weight_decay=0.0).fit(texts, labels)
        mom.TextRegressor(CONFIG.replace(**changes), train=train, epochs=1).fit(texts, range(9))
    assert len(caught) == (0 if words is None else 2)
    for warning in caught:
        assert words is not None and re.search(words, str(warning.message)) and warning.filename == __file__
    learnt = not np.array_equal(_routers(made.model_), before)
    assert learnt is (words is None and train != "head")


def _routers(model: Any) -> np.ndarray:
    return np.concatenate([value.ravel() for name, value in model.parameters.items() if ".router." in name])


def test_order_and_company_do_not_change_a_prediction() -> None:
    texts, labels = texts_and_labels(24)
    classifier = mom.TextClassifier(CONFIG, **QUICK).fit(texts, labels)
    proba = classifier.predict_proba(texts)
    np.testing.assert_allclose(classifier.predict_proba(texts[::-1])[::-1], proba, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([classifier.predict_proba([t]) for t in texts]), proba, atol=1e-5)


def test_regressor_learns_numbers_of_any_scale() -> None:
    texts, labels = texts_and_labels()
    values = np.array([{"dull": 1000.0, "fine": 1300.0, "odd": 1100.0}[label] for label in labels])
    regressor = mom.TextRegressor(CONFIG, **{**QUICK, "epochs": 40}).fit(texts, values)
    assert regressor.score(texts, values) > 0.9 and regressor.mean_ == pytest.approx(values.mean())
    assert regressor.predict(texts[:2]).dtype == np.float64


def test_regressor_learns_a_constant() -> None:
    texts, _ = texts_and_labels()
    sevens = np.full(48, 7.0)
    constant = mom.TextRegressor(CONFIG, **QUICK).fit(texts, sevens)
    assert (constant.mean_, constant.scale_) == (7.0, 1.0)
    np.testing.assert_allclose(constant.predict(texts), 7.0, atol=0.05)
    assert constant.score(texts, sevens) == 0.0, "near is not right"
    constant.model_.parameters["score.weight"][:] = 0.0
    np.testing.assert_array_equal(constant.predict(texts), sevens)
    assert constant.score(texts, sevens) == 1.0


def test_pairs_of_texts() -> None:
    pairs = [("a cat", "a cat"), ("a cat", "a dog")] * 10
    classifier = mom.TextClassifier(CONFIG, **{**QUICK, "epochs": 40}).fit(pairs, [1, 0] * 10)
    assert classifier.score(np.array(pairs), [1, 0] * 10) > 0.9


def test_a_model_given_is_left_as_it_is_and_its_tokenizer_is_used(tmp_path: Any) -> None:
    texts, labels = texts_and_labels(12)
    tokenizer = mom.Tokenizer.train(texts, 280)
    model = mom.MoM(CONFIG.replace(vocab_size=tokenizer.vocab_size), seed=4)
    model.tokenizer = tokenizer
    before = {n: v.copy() for n, v in model.parameters.items()}
    classifier = mom.TextClassifier(model, epochs=1).fit(texts, labels)
    assert all(np.array_equal(v, before[n]) for n, v in model.parameters.items())
    assert classifier.model_.tokenizer is tokenizer
    model.save_pretrained(tmp_path / "m")
    again = mom.TextClassifier(tmp_path / "m", epochs=1).fit(texts, labels)
    np.testing.assert_array_equal(again.predict_proba(texts), classifier.predict_proba(texts))


def test_validation_chooses_weights() -> None:
    texts, labels = texts_and_labels(40)
    classifier = mom.TextClassifier(CONFIG, **QUICK, validation_fraction=0.25, patience=2).fit(texts, labels)
    assert classifier.loop_.best_score == max(score for _, score in classifier.loop_.history)
    assert classifier.loop_.examples % 30 == 0
    for fraction, message in ((1.0, "validation_fraction: 1.0 is not in"), (0.99, "leaves none of 40 texts")):
        with pytest.raises(ConfigError, match=message):
            mom.TextClassifier(CONFIG, epochs=1, validation_fraction=fraction).fit(texts, labels)


@pytest.mark.parametrize(
    ("X", "y", "kind", "message"),
    [
        ("a text", [1], DataError, "X: expected texts, got a str"), ([], [], DataError, "X: there are no texts"),
        ([1, 2], [0, 1], DataError, "X: row 0: expected a string or a pair of strings, got int"),
        (["a", ("b", "c")], [0, 1], DataError, "X: row 1 has 2 texts, row 0 has 1"),
        (["a", "b"], [1, 1], ValueError, "at least two classes"),
        (["a", "b", "c"], [1, 0], ValueError, "y: 2 values for 3"),
        (["a", "b"], [1], ValueError, "y: 1 values for 2"),
        (["a", "b"], [[1], [0]], ValueError, r"y: shape \(2, 1\), expected \(N,\)"),
    ],
)  # fmt: skip
def test_arguments_are_checked(X: Any, y: Any, kind: type[Exception], message: str) -> None:  # noqa: N803
    with pytest.raises(kind, match=message):
        mom.TextClassifier(CONFIG, epochs=1).fit(X, y)


def test_other_errors() -> None:
    for estimator in (mom.TextClassifier(), mom.TextRegressor()):
        with pytest.raises(NotFittedError, match=f"This {type(estimator).__name__} instance is not fitted yet"):
            estimator.predict(["a"])
    with pytest.raises(ValueError, match="Invalid parameter 'layers' for estimator TextClassifier"):
        mom.TextClassifier().set_params(layers=2)
    with pytest.raises(TypeError, match="model: expected a model, a configuration, a path or None, got int"):
        mom.TextClassifier(3).fit(["a", "b"], [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y: not all are finite numbers"):
        mom.TextRegressor(CONFIG).fit(["a"], [np.inf])
    with pytest.raises(ValueError, match="y: <U1 of shape"):
        mom.TextRegressor(CONFIG).fit(["a"], ["b"])


# ---------------------------------------------------------------------- copies
def test_without_scikit_learn_the_package_is_named() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None\nimport mom\nfrom mom import *\n"
        "try:\n    mom.TextClassifier\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "need the package scikit-learn: pip install scikit-learn" in done.stdout


def test_the_package_is_imported_without_scikit_learn() -> None:
    code = "import sys, mom, mom.training, mom.glue; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("values", [[1e308, -1e308], [1.7e308, 1.7e308], [1e200, -1e200]])
def test_numbers_too_large_to_standardise_are_refused(values: list[float]) -> None:
    regressor = mom.TextRegressor(CONFIG)
    with pytest.raises(ValueError, match="y: numbers as large as .* have no finite standard deviation"):
        regressor.fit(["a", "b"], values)
    assert not hasattr(regressor, "scale_")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_model_gives_no_answers(value: float) -> None:
    message = "logits: (not a number|infinite) at row 0, label 0"
    classifier = mom.TextClassifier(CONFIG, epochs=1).fit(["a", "b"], [0, 1])
    regressor = mom.TextRegressor(CONFIG, epochs=1).fit(["a", "b"], [0.0, 1.0])
    for estimator in (classifier, regressor):
        estimator.model_.parameters["score.weight"][0] = value
    for answer in (classifier.predict, classifier.predict_proba, classifier.predict_log_proba, regressor.predict):
        with pytest.raises(ValueError, match=message):
            answer(["a", "b"])
    rows = [{"sentence": "a", "label": 1}]
    with pytest.raises(ValueError, match=message):
        mom.glue.predict(classifier.model_, "sst2", {"dev": rows}, "dev")


def test_models_can_be_copied_and_sent_to_other_processes() -> None:
    model = mom.MoM(CONFIG, seed=3)
    model.tokenizer = mom.Tokenizer.train(["some text"], 270)
    model.random_state = (5, 7)
    model.activation_checkpointing, model.memory_limit = True, 123_456_789
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config and other.random_state == (5, 7) and type(other) is mom.MoM
        assert all(np.array_equal(v, other.parameters[n]) for n, v in model.parameters.items())
        assert other.tokenizer.sha256 == model.tokenizer.sha256
        assert (other.activation_checkpointing, other.memory_limit) == (True, 123_456_789)
        other.parameters["transformer.wte.weight"][:] = 0
        assert model.parameters["transformer.wte.weight"].any()
        other([[1, 2]], [[1, 2]])
        other.backward()


def test_fitted_estimators_can_be_copied() -> None:
    texts, labels = texts_and_labels(12)
    classifier = mom.TextClassifier(CONFIG, epochs=1).fit(texts, labels)
    other = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(other.predict_proba(texts), classifier.predict_proba(texts))


def test_a_failed_fit_leaves_the_estimator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = texts_and_labels(12)
    classifier = mom.TextClassifier(CONFIG, epochs=1).fit(texts, labels)
    regressor = mom.TextRegressor(CONFIG, epochs=1).fit(texts, [float(len(label)) for label in labels])
    answers = classifier.predict(texts), regressor.predict(texts)
    for error in (ConfigError("no"), KeyboardInterrupt()):
        monkeypatch.setattr("mom.sklearn.fit_classifier", _raise(error))
        with pytest.raises(type(error)):
            classifier.fit(texts, ["pos", "neg"] * 6)
        with pytest.raises(type(error)):
            regressor.fit(texts, np.arange(12) * 1e6)
        np.testing.assert_array_equal(classifier.predict(texts), answers[0])
        np.testing.assert_array_equal(regressor.predict(texts), answers[1])


def _raise(error: BaseException) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail


# ---------------------------------------------------------------------- in scikit-learn's hands
def test_parameters_and_clone() -> None:
    sklearn = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    classifier = mom.TextClassifier(mom.MoM(CONFIG), epochs=2, lr=0.5)
    other = sklearn.clone(classifier)
    assert other.get_params() == {**classifier.get_params(), "model": other.model} and other.epochs == 2
    assert other.model is not classifier.model and not hasattr(other, "model_")
    assert classifier.set_params(epochs=3) is classifier and classifier.get_params()["epochs"] == 3
    assert repr(mom.TextClassifier(epochs=2)) == "TextClassifier(epochs=2)"
    assert sklearn.is_classifier(classifier) and sklearn.is_regressor(mom.TextRegressor())
    assert not sklearn.is_regressor(classifier)


def test_cross_validation_search_and_pipelines() -> None:
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    texts, labels = texts_and_labels(60)
    classifier = mom.TextClassifier(CONFIG, **QUICK)
    scores = selection.cross_val_score(classifier, texts, labels, cv=3)
    assert scores.shape == (3,) and scores.min() > 0.8
    upper = FunctionTransformer(lambda rows: [text.upper() for text in rows])
    pipeline = make_pipeline(upper, mom.TextClassifier(CONFIG, **QUICK)).fit(texts, labels)
    assert pipeline.score(texts, labels) > 0.9 and pipeline.predict_proba(texts[:2]).shape == (2, 3)
    grid = {"epochs": np.array([1, 12]), "lr": np.array([1e-2], dtype=np.float32)}
    search = selection.GridSearchCV(classifier, grid, cv=2).fit(texts, labels)
    assert search.best_params_["epochs"] == 12
    values = [float(len(label)) for label in labels]
    assert len(selection.cross_val_score(mom.TextRegressor(CONFIG, **QUICK), texts, values, cv=2)) == 2
    assert len(selection.cross_val_score(classifier, texts, labels, cv=2, scoring="neg_log_loss")) == 2


def test_what_train_only_froze_is_said_to_be_trained() -> None:
    texts, labels = texts_and_labels(9)
    model = mom.MoM(CONFIG)
    model.tokenizer = mom.Tokenizer.train(texts, 290)
    model.train_only("*.router.*")
    with pytest.warns(UserWarning, match="train_only has frozen .* pass train='routers'") as caught:
        mom.TextClassifier(model, epochs=1).fit(texts, labels)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_classifier_predicts_texts_itself() -> None:
    config = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, vocab_size=300, router_dim=8)
    classifier = mom.TextClassifier(config, epochs=1)
    texts = ["good film", "bad film"] * 4
    model = classifier.fit(texts, ["yes", "no"] * 4).model_
    assert model.predict(texts) == classifier.predict(texts).tolist()
    for wrong, message in (("a film", "texts: "), ([3], "texts: row 0: expected a string"), ([], "there are no texts")):
        with pytest.raises(mom.DataError, match=message):
            model.predict(wrong)
    model.tokenizer = None
    with pytest.raises(mom.DataError, match="tokenizer: the model has none"):
        model.predict(texts)
