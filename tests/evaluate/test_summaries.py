"""`mom.xsum.metrics`: ROUGE as rouge-score computes it, and LEAD."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest

from mom.evaluate import lead, rouge, sentences
from shared_data import shared_path

WORDS = "the cats cat running runs ran a police officer officers said says on Monday 12 £5 Wales's it".split()


@pytest.mark.parametrize("which", [0, 1])
def test_texts_without_anything_that_rouge_compares_are_warned_of(which: int) -> None:
    pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    texts = [["A cat sat.", "", "7"], ["A cat sat.", "A dog.", "8"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an empty text is known to score 0
        rouge(*texts)
    texts[which][2] = "\u72ac\u304c\u8d70\u308b\u3002"
    name = ("predictions", "references")[which]
    with pytest.warns(UserWarning, match=f"{name}: 1 of 3 hold no letter .*; the first is row 2"):
        found = rouge(*texts)
    assert found["rouge1"] == pytest.approx(100 / 3)


def test_equals_rouge_score_with_stemming(rng: np.random.Generator) -> None:
    scoring = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    scorer = scoring.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    predictions = [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(60)]
    references = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(60)]
    predictions[:3] = ["", references[1], "the the the the"]
    scores = [scorer.score(target=r, prediction=p) for p, r in zip(predictions, references, strict=True)]
    expected = {name: 100 * np.mean([s[name].fmeasure for s in scores]) for name in ("rouge1", "rouge2", "rougeL")}
    assert rouge(predictions, references) == pytest.approx(expected, abs=1e-10)


def test_by_hand() -> None:
    pytest.importorskip("rouge_score")
    found = rouge(["police officers ran"], ["A police officer was running"])  # officer(s) match by their stem
    assert found["rouge1"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert found["rouge2"] == pytest.approx(100 * 2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))
    assert rouge(["a"], ["a"])["rougeL"] == 100 and rouge([""], ["a"]) == dict.fromkeys(found, 0.0)
    assert rouge(["x", "a"], ["a", "a"])["rouge1"] == 50


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [([], [], "0 of them for 0"), (["a"], [], "1 of them for 0"), ("ab", ["a", "b"], "got a string")],
)
def test_arguments_are_checked(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rouge(predictions, references)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match=r"ROUGE needs the package rouge-score: pip install rouge-score"):
        rouge(["a"], ["a"])


def test_sentences() -> None:
    text = (
        'The U.S. Army left. "I am here," said J. K. Smith. "Go!" Then Dr. Hill left... Nobody stayed? Yes!\n\n'
        "A line without an end\nIt cost 3.5m. £5 is less. end"
    )
    assert sentences(text) == [
        "The U.S. Army left.", '"I am here," said J. K. Smith.', '"Go!"', "Then Dr. Hill left...", "Nobody stayed?",
        "Yes!", "A line without an end", "It cost 3.5m.", "£5 is less. end",
    ]  # fmt: skip
    assert sentences(" \n ") == []


def test_lead_takes_the_first_sentences() -> None:
    text = "One is here. Two is there.\nThree is gone. Four."
    assert lead(text, 1) == "One is here." and lead(text, 3) == "One is here. Two is there. Three is gone."
    assert lead(text, 9) == "One is here. Two is there. Three is gone. Four." and lead("", 3) == ""
    with pytest.raises(ValueError, match="count: 0 is less than 1"):
        lead(text, 0)


def test_lead_on_real_summaries_is_where_the_literature_has_it() -> None:
    pytest.importorskip("rouge_score")
    import gzip
    import json

    with gzip.open(shared_path("data", "xsum", "test.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:200]
    found = rouge([lead(row["document"], 3) for row in rows], [row["summary"] for row in rows])
    # Narayan et al. (2018) give 16.30, 1.60 and 11.95 on the whole test set.
    assert 14 < found["rouge1"] < 21 and 1 < found["rouge2"] < 4 and 10 < found["rougeL"] < 15
