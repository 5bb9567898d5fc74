"""`mom.data.columns`: tables, mappings and missing labels, wherever texts and labels come in."""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import mom
from mom.data import Documents, TextDocuments
from mom.data.columns import checked_labels, checked_texts, is_missing
from mom.data.prepare import prepare
from mom.errors import DataError
from mom.glue import read_glue
from mom.glue.metrics import baseline_metrics, glue_metrics
from mom.xsum.metrics import rouge

pd = pytest.importorskip("pandas")

TEXTS = ["please send it", "it is late", "it is wrong", "where is it"]
LABELS = ["a", "b", "a", "b"]
CONFIG = mom.MoMConfig.vanilla(1, n_embd=16, n_head=1, n_positions=32, vocab_size=270)
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})
STRUCTURED = np.array(list(zip(TEXTS, LABELS, strict=True)), dtype=[("text", "U20"), ("label", "U20")])


def classifier() -> Any:
    return mom.TextClassifier(CONFIG, epochs=1)


@pytest.fixture(scope="module")
def fitted() -> Any:
    return classifier().fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def summariser() -> Any:
    model = mom.MoM(CONFIG, seed=0)
    model.tokenizer = mom.Tokenizer.train(TEXTS, 270)
    return model


@pytest.fixture
def consumers(fitted: Any, summariser: Any, tmp_path: Any) -> dict[str, Any]:
    """Everything that takes an iterable of texts."""
    return {
        "X": lambda texts: classifier().fit(texts, LABELS),
        "predict": lambda texts: fitted.predict(texts),
        "predict_proba": lambda texts: fitted.predict_proba(texts),
        "score": lambda texts: fitted.score(texts, LABELS),
        "regressor": lambda texts: mom.TextRegressor(CONFIG, epochs=1).fit(texts, [1.0, 2.0, 3.0, 4.0]),
        "train": lambda texts: mom.Tokenizer.train(texts, 270),
        "encode_batch": lambda texts: summariser.tokenizer.encode_batch(texts),
        "documents": lambda texts: [piece.text for piece in TextDocuments(texts)],
        "prepare": lambda texts: prepare(TextDocuments(texts), tmp_path / "out", vocab_size=270, progress=False),
        "summarize": lambda texts: mom.xsum.summarize(summariser, texts, max_summary=4),
        "rouge": lambda texts: rouge(texts, TEXTS),
        "references": lambda texts: rouge(TEXTS, texts),
    }


REFUSED = {
    "string": (TEXTS[0], "got a string; put it into a list"),
    "bytes": (b"text", "got a bytes"),
    "array of one string": (np.array("text"), r"got an array of shape \(\)"),
    "dict": ({"name": "the text"}, r"got a dict; its values are list\(\w+\.values\(\)\)"),
    "ordered dict": (OrderedDict(name="x"), "got a OrderedDict"),
    "counter": (Counter(TEXTS), "got a Counter"),
    "mapping proxy": (MappingProxyType({"name": "x"}), "got a mappingproxy"),
    "set": (set(TEXTS), "got a set, which has no order"),
    "frozenset": (frozenset(TEXTS), "got a frozenset"),
    "frame": (FRAME, r"got a DataFrame of 2 columns \('text', 'label'\); choose one of them, as in \w+\['text'\]"),
    "empty frame": (pd.DataFrame(), r"got a DataFrame of 0 columns"),
    "wide frame": (pd.DataFrame(np.full((2, 20), "x")), r"of 20 columns \(0, 1, 2, 3, 4, ...\)"),
    "equal names": (pd.DataFrame([["x", "y"]] * 4, columns=["text", "text"]), "of 2 columns"),
    "structured": (STRUCTURED, "of 2 columns"),
    "column vector": (np.array(TEXTS)[:, None], r"got an array of shape \(4, 1\); \w+.ravel\(\) has one dimension"),
    "three dimensions": (np.array(TEXTS).reshape(2, 2, 1), r"got an array of shape \(2, 2, 1\)"),
    "number": (3, "in a list or another iterable, got a int"),
    "nothing": (None, "in a list or another iterable, got a NoneType"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_iterable_of_texts_is_refused_everywhere(consumers: dict[str, Any], kind: str) -> None:
    values, message = REFUSED[kind]
    for name, call in consumers.items():
        with pytest.raises(DataError, match=message) as caught:
            call(values)
        assert str(caught.value).startswith(("X: ", "texts: ", "documents: ", "predictions: ", "references: ")), name


def columns() -> dict[str, Any]:
    found = {
        "list": TEXTS,
        "tuple": tuple(TEXTS),
        "iterator": TEXTS,  # made anew for each use
        "values of a dict": dict(enumerate(TEXTS)).values(),
        "keys of a dict": dict.fromkeys(TEXTS).keys(),
        "array": np.array(TEXTS),
        "array of objects": np.array(TEXTS, object),
        "series": FRAME["text"],
        "shuffled index": pd.Series(TEXTS, index=[3, 1, 0, 2]),
        "index called columns": pd.Series(TEXTS, index=["columns", "shape", "column_names", "iloc"]),
        "categories": FRAME["text"].astype("category"),
        "frame of one column": FRAME[["text"]],
        "unnamed column": pd.DataFrame(TEXTS),
        "structured, one field": STRUCTURED[["text"]],
    }
    return found


@pytest.mark.parametrize("kind", columns())
def test_columns_are_accepted_everywhere_and_mean_the_same(consumers: dict[str, Any], fitted: Any, kind: str) -> None:
    def values() -> Any:
        return iter(TEXTS) if kind == "iterator" else columns()[kind]

    for name, call in consumers.items():
        if not (kind == "iterator" and name == "prepare"):  # reads twice
            call(values())
    assert list(checked_texts(values())) == TEXTS
    np.testing.assert_array_equal(fitted.predict_proba(values()), fitted.predict_proba(TEXTS))
    assert consumers["documents"](values()) == TEXTS
    assert consumers["train"](values()).sha256 == mom.Tokenizer.train(TEXTS, 270).sha256
    assert consumers["summarize"](values()) == consumers["summarize"](TEXTS)


def test_tables_of_other_libraries() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": TEXTS, "label": LABELS})
    with pytest.raises(DataError, match=r"got a Table of 2 columns \('text', 'label'\)"):
        checked_texts(table)
    assert list(checked_texts(table.select(["text"]))) == TEXTS
    assert checked_labels(table.select(["label"])).tolist() == LABELS
    with pytest.raises(DataError, match=r"y: rows 1, 3 have no label \(None\)"):
        checked_labels(pyarrow.table({"label": ["a", None, "b", None]}))
    with pytest.raises(DataError, match=r"its rows are table.to_pylist\(\)"):
        read_glue({"train": table}, "cola")


def test_pairs_come_as_rows_of_two_and_not_as_a_table() -> None:
    pairs = [(text, "it") for text in TEXTS]
    for values in (pairs, np.array(pairs), [list(pair) for pair in pairs]):
        assert len(classifier().fit(values, LABELS).predict(values)) == 4
    with pytest.raises(DataError, match=r"for pairs: list\(zip\(X\['a'\], X\['b'\]\)\)"):
        classifier().fit(pd.DataFrame({"a": TEXTS, "b": TEXTS}), LABELS)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, float("nan")])
def test_missing_texts_are_named(consumers: dict[str, Any], missing: Any) -> None:
    for name, call in consumers.items():
        for values in ([*TEXTS[:2], missing, TEXTS[3]], pd.Series([*TEXTS[:2], missing, TEXTS[3]], dtype=object)):
            with pytest.raises(ValueError, match=r"(row|item|document) 2\b"):
                call(values)
            assert name


# ------------------------------------------------------------------ labels
MISSING_LABELS = {
    "nan": [0.0, 1.0, np.nan, 1.0],
    "nan among strings": ["a", "b", np.nan, "b"],  # NumPy makes the string 'nan' of it
    "None among strings": ["a", "b", None, "b"],
    "None among numbers": [0, 1, None, 1],
    "NA": ["a", "b", pd.NA, "b"],
    "array": np.array([0.0, 1.0, np.nan, 1.0], np.float32),
    "array of objects": np.array(["a", "b", None, "b"], object),
    "masked": np.ma.masked_array([0, 1, 7, 1], mask=[0, 0, 1, 0]),
    "series": pd.Series([0.0, 1.0, np.nan, 1.0]),
    "nullable Int64": pd.Series([0, 1, None, 1], dtype="Int64"),
    "nullable boolean": pd.Series([True, False, None, True], dtype="boolean"),
    "nullable Float64": pd.Series([0, 1, None, 1], dtype="Float64"),
    "strings of pandas": pd.Series(["a", "b", None, "b"], dtype="string"),
    "categories": pd.Series(["a", "b", None, "b"], dtype="category"),
    "shuffled index": pd.Series([0.0, 1.0, np.nan, 1.0], index=[2, 3, 0, 1]),
    "frame of one column": pd.DataFrame({"label": ["a", "b", None, "b"]}),
    "times": np.array(["2020-01-01", "2020-01-02", "NaT", "2020-01-02"], "M8[D]"),
}


@pytest.mark.parametrize("kind", MISSING_LABELS)
def test_missing_labels_are_an_error_that_names_the_rows(fitted: Any, kind: str) -> None:
    labels = MISSING_LABELS[kind]
    calls = [lambda: classifier().fit(TEXTS, labels), lambda: fitted.score(TEXTS, labels)]
    regressor = mom.TextRegressor(CONFIG, epochs=1)
    calls += [lambda: regressor.fit(TEXTS, labels), lambda: regressor.score(TEXTS, labels)]
    for call in calls:
        with pytest.raises(ValueError, match=r"^y: row 2 has no label \("):
            call()
    with pytest.raises(ValueError, match="^labels: row 2 has no label"):
        glue_metrics("stsb", [0.0, 1.0, 2.0, 3.0], labels)
    with pytest.raises(ValueError, match="^train_labels: row 2 has no label"):
        baseline_metrics("cola", labels, [0, 1, 0, 1])


def test_many_missing_labels_are_counted() -> None:
    with pytest.raises(DataError, match=r"y: rows 0, 2, 4, 6, 8 and 5 more have no label \(nan\)"):
        checked_labels([np.nan, 1.0] * 10)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("abab", "expected labels, got a string"),
        ({"a": 1, "b": 2}, "expected labels, got a dict"),
        ({0, 1}, "expected labels, got a set"),
        (FRAME, "expected labels, got a DataFrame of 2 columns"),
        (np.zeros((4, 1), int), r"shape \(4, 1\), expected \(N,\); y.ravel\(\)"),
        (np.zeros((4, 2), int), r"shape \(4, 2\), expected \(N,\)$"),
        ([["a"], ["b"], ["a"], ["b"]], r"shape \(4, 1\), expected \(N,\)"),
        ([[0], [1, 2], [0], [1]], "not an array"),
        (3, r"shape \(\), expected \(N,\)"),
        (["a", 1, "a", 1], "labels of two kinds: 'a' in row 0 and 1 in row 1"),
        ([0, True, "b", 1], "labels of two kinds: 'b' in row 2 and 0 in row 0"),
    ],
)
def test_what_is_no_column_of_labels_is_refused(fitted: Any, labels: Any, message: str) -> None:
    for call in (lambda: classifier().fit(TEXTS, labels), lambda: fitted.score(TEXTS, labels)):
        with pytest.raises(ValueError, match=f"y: {message}"):
            call()


@pytest.mark.parametrize(
    "labels",
    [
        LABELS, tuple(LABELS), np.array(LABELS), FRAME["label"], FRAME[["label"]], FRAME["label"].astype("category"),
        FRAME["label"].astype("string"), np.array(LABELS, object), iter(LABELS),
    ],
    ids=lambda labels: type(labels).__name__,
)  # fmt: skip
def test_columns_of_labels_are_accepted(labels: Any) -> None:
    made = classifier().fit(TEXTS, labels)
    assert made.classes_.tolist() == ["a", "b"]
    assert set(made.predict(TEXTS)) <= {"a", "b"}


def test_types_of_labels_are_kept() -> None:
    for labels in ([0, 1], [True, False], [0.5, 1.5], np.array([0, 1], np.int8), np.array([1, 2], np.float32)):
        assert checked_labels(labels).dtype == np.asarray(labels).dtype
        assert checked_labels(labels).tolist() == np.asarray(labels).tolist()
    assert checked_labels(pd.Series([2, 1], dtype="Int64")).tolist() == [2, 1]


def test_missing_values() -> None:
    assert all(map(is_missing, (None, np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"))))
    assert not any(map(is_missing, (0, 0.0, "", "nan", False, np.inf, datetime.date(2020, 1, 1), np.zeros(0))))


# ------------------------------------------------------------------ rows and paths
@pytest.mark.parametrize("label", [None, np.nan, pd.NA])
def test_missing_labels_of_rows(label: Any) -> None:
    rows = [{"sentence": "They left.", "label": 1}, {"sentence": "They leaves.", "label": label}]
    with pytest.raises(DataError, match=r"1 unlabelled.*CoLA train: row 1: column 'label'"):
        read_glue(rows, "cola")
    assert read_glue(rows, "cola", "test").report.unlabelled == 1


def test_tables_of_rows_are_refused_with_the_way_out() -> None:
    frame = pd.DataFrame({"sentence": ["They left.", "They leaves."], "label": [1, 0]})
    for source in (frame, {"train": frame}):
        with pytest.raises(DataError, match=r"expected rows, got a DataFrame; its rows are table.to_dict\('records'\)"):
            read_glue(source, "cola")
    assert read_glue(frame.to_dict("records"), "cola").labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="expected rows, got a DataFrame"):
        mom.xsum.read_xsum(pd.DataFrame({"document": ["a"], "summary": ["b"]}))


def test_paths_are_no_table() -> None:
    for sources, message in (
        ({"a.txt": 1}, "sources: expected paths, got a dict"),
        (FRAME, "sources: expected paths, got a DataFrame of 2 columns"),
        ({"a.txt"}, "sources: expected paths, got a set"),
        ([3], "sources: expected paths, got a int among them"),
    ):
        with pytest.raises(DataError, match=message):
            Documents(sources)
