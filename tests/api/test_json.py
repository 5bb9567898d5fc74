"""`mom._json.to_json`: what it writes, every JSON reader can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mom._json import from_words, sha256_of, to_json
from mom.files.folders import write_json


def strict(text: str) -> Any:
    """The value, read by a reader that knows no NaN and no infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5]}, {"a": None, "b": [None, None, 1.5]}),
        ((np.float32(0.5), np.int64(3), np.bool_(True)), [0.5, 3, True]),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), [[1.0, None], [2.0, 3.0]]),
        ({"text": "naïve 東京 🦊", "none": None}, {"text": "naïve 東京 🦊", "none": None}),
    ],
)
def test_values_are_strict_json(value: Any, expected: Any) -> None:
    for indent in (None, 2):
        text = to_json(value, indent)
        assert text.endswith("\n") and strict(text) == expected
    assert "\n" not in to_json(value, indent=None)[:-1]


def test_text_is_utf8_as_it_is_and_what_utf8_lacks_is_escaped(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "東京", "path": "caf\udce9"})
    data = (tmp_path / "a.json").read_bytes()
    assert "東京".encode() in data and rb"caf\udce9" in data
    assert strict(data.decode("utf-8")) == {"name": "東京", "path": "caf\udce9"}


def test_what_json_lacks_is_an_error() -> None:
    with pytest.raises(TypeError, match="set"):
        to_json({"a": {1, 2}})


def test_numbers_that_json_lacks_come_back_from_words() -> None:
    value = {"a": [float("inf"), -float("inf"), 1.5, "inf"], "b": {"c": np.float32("nan"), "d": None}}
    text = to_json(value, words=True)
    assert strict(text) == {"a": ["Infinity", "-Infinity", 1.5, "inf"], "b": {"c": "NaN", "d": None}}
    found = from_words(json.loads(text))
    assert found["a"] == value["a"] and np.isnan(found["b"]["c"]) and found["b"]["d"] is None


def test_ascii_keeps_the_value_and_needs_no_other_character() -> None:
    value = {"na\u00efve": "\u6771\u4eac \U0001f98a", "path": "caf\udce9"}
    text = to_json(value, indent=None, ascii=True)
    assert text.isascii() and strict(text) == value


def test_the_sum_of_a_value_knows_its_values_and_not_the_order_of_its_names() -> None:
    value = {"a": [1, 2.5, float("nan")], "b": {"c": None, "d": "x"}}
    assert sha256_of(value) == sha256_of({"b": {"d": "x", "c": None}, "a": (1, 2.5, np.float64("nan"))})
    others = [{**value, "a": [1, 2.5, None]}, {**value, "a": [2.5, 1, float("nan")]}, {"a": value["a"]}]
    assert len({sha256_of(other) for other in [value, *others]}) == 4
