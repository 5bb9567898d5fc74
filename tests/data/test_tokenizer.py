"""`mom.data.tokenizer`: exact round trips, the library's own ids, and files that are broken in every way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers

import mom.data.tokenizer
from mom.data.tokenizer import END_OF_TEXT, Tokenizer
from mom.errors import DataError
from shared_data import shared_path
from vocabularies import renumbered

TEXT = [
    "The quick brown fox jumps over the lazy dog.\n",
    "def f(x):\n    return x + 1\n",
    "naïve café 東京 🦊 e\u0301\n",
] * 20
AWKWARD = [
    "",
    " ",
    "\n\n  \t \r\n x",
    "naïve café 東京 🦊 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\x00\x01\x7f\x80\ufeff\uffff",
    "a" * 3000,
    f"before{END_OF_TEXT}after",
    "".join(map(chr, [*range(0xD7FF - 50, 0xD7FF), *range(0x10FFFF - 20, 0x10FFFF)])),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT, 320)


@pytest.fixture(scope="module")
def byte_files(tokenizer):
    """vocab.json and merges.txt of the trained tokenizer, as text."""
    model = json.loads(tokenizer.to_json())["model"]
    merges = "#version: 0.2\n" + "".join(f"{pair}\n" for pair in model["merges"])
    return json.dumps(model["vocab"]), merges


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text


def test_random_text_round_trips(tokenizer):
    rng = np.random.default_rng(0)
    points = rng.integers(0, 0x110000, 20_000)
    text = "".join(map(chr, points[(points < 0xD800) | (points > 0xDFFF)]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unused_ids_are_the_holes(tokenizer, tmp_path):
    assert len(tokenizer.unused_ids(10**6)) == 0
    used = np.setdiff1d(np.arange(tokenizer.vocab_size + 3), [0, 7, 8])
    holey = renumbered(tokenizer, used, tmp_path)
    assert holey.unused_ids(10**6).tolist() == [0, 7, 8] and holey.unused_ids(10**6).dtype == np.int32
    assert [holey.unused_ids(n).tolist() for n in (1, 7, 8)] == [[0], [0], [0, 7]]
    with pytest.raises(DataError, match="ids: 7 at position 1 "):
        holey.decode([1, 7])
    for text in AWKWARD:
        ids = holey.encode(text)
        assert np.array_equal(ids, used[tokenizer.encode(text)]) and holey.decode(ids) == text


def test_the_largest_id_costs_nothing(tokenizer, tmp_path):
    used = [*range(tokenizer.vocab_size - 1), 2**24 - 1]
    assert renumbered(tokenizer, used, tmp_path).unused_ids(400).tolist() == [*range(tokenizer.vocab_size - 1, 400)]


def test_batch_equals_single(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(AWKWARD), AWKWARD, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_special_tokens_are_text_unless_asked_for(tokenizer):
    assert tokenizer.eos_id == 0
    assert 0 not in tokenizer.encode(f"a{END_OF_TEXT}b")
    ids = tokenizer.encode(f"a{END_OF_TEXT}b", special=True)
    assert list(ids).count(0) == 1
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"


def test_training_is_deterministic_and_of_the_size_asked_for(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer) == 320
    assert Tokenizer.train(TEXT, 320).sha256 == tokenizer.sha256
    other_end = Tokenizer(tokenizer._with_special, eos_token="t")
    assert other_end.to_json() == tokenizer.to_json() and other_end.sha256 != tokenizer.sha256
    assert Tokenizer.train(["ab"], 5000).vocab_size < 300


def test_save_and_load(tokenizer, tmp_path):
    path = tokenizer.save(tmp_path / "new" / "folder")
    for source in (path, path.parent):
        loaded = Tokenizer.load(source)
        assert loaded.sha256 == tokenizer.sha256
        assert (loaded.vocab_size, loaded.eos_id) == (320, 0)
    names = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == names


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_loads_vocabulary_and_merges(tokenizer, byte_files, tmp_path, names):
    for name, content in zip(names, byte_files, strict=True):
        (tmp_path / name).write_text(content, encoding="utf-8")
    for source in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        loaded = Tokenizer.load(source)
        assert loaded.eos_id == 0
        for text in TEXT[:3] + AWKWARD:
            np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"", "truncated or not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vo', "truncated or not valid JSON"),
        ("tokenizer.json", b"[1, 2]", "expected a JSON object"),
        ("tokenizer.json", b"{}", "no 'model'"),
        ("tokenizer.json", b'{"model": {"type": "unheard-of"}}', "not a usable tokenizer"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "its vocabulary is empty"),
        ("tokenizer.json", b'{"model": "\xff\xfe"}', "not UTF-8"),
        ("tokenizer.json", b"[" * 100_000, "truncated or not valid JSON"),
    ],
)
def test_malformed_tokenizer_json_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_truncated_tokenizer_json_never_loads(tokenizer, tmp_path):
    whole = tokenizer.to_json().encode()
    path = tmp_path / "tokenizer.json"
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            Tokenizer.load(path)


def _broken_pairs(vocabulary_text, merges):
    vocabulary = json.loads(vocabulary_text)
    without_a = {token: id for token, id in vocabulary.items() if token != "A"}
    first, second = list(vocabulary)[:2]
    lines = merges.splitlines(keepends=True)
    yield "cut vocabulary", vocabulary_text[: len(vocabulary_text) // 2], merges, "truncated or not valid JSON"
    yield "byte missing", json.dumps(without_a), merges, "1 of the 256 byte tokens"
    yield "text id", json.dumps({**vocabulary, first: "0"}), merges, "expected an integer"
    yield "negative id", json.dumps({**vocabulary, first: -1}), merges, "expected an integer"
    yield "shared id", json.dumps({**vocabulary, first: vocabulary[second]}), merges, "share one id"
    yield "cut merges", vocabulary_text, "".join(lines[: len(lines) // 2]), "truncated"
    yield "cut in a line", vocabulary_text, "".join(lines[:20]) + "x\n", "line 21"
    yield "unknown token", vocabulary_text, merges + "qq zz\n", "is not in vocab.json"
    yield "three tokens", vocabulary_text, merges + "a b c\n", "is not a pair"


def test_malformed_vocabulary_or_merges_are_named(byte_files, tmp_path):
    for what, vocabulary, merges, message in _broken_pairs(*byte_files):
        (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
        (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
        with pytest.raises(DataError, match=message) as caught:
            Tokenizer.load(tmp_path)
        assert str(tmp_path) in str(caught.value), what


def test_missing_files_are_named(byte_files, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text(byte_files[0])
    with pytest.raises(DataError, match=r"merges\.txt: no such file"):
        Tokenizer.load(tmp_path)


def test_oversized_file_is_refused_unread(tokenizer, tmp_path, monkeypatch):
    path = tokenizer.save(tmp_path)
    monkeypatch.setattr(mom.data.tokenizer, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="more than the limit of 100") as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)


def test_sparse_file_beyond_the_real_limit_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.truncate(mom.data.tokenizer.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="more than the limit"):
        Tokenizer.load(path)


def test_arguments_are_named(tokenizer):
    with pytest.raises(DataError, match="vocab_size: 256 is less than 257"):
        Tokenizer.train(TEXT, 256)
    with pytest.raises(DataError, match="vocab_size: 1000000000000 is larger than the supported maximum 16777216"):
        Tokenizer.train(["text"], 10**12)
    with pytest.raises(DataError, match="texts: expected texts, got a string"):
        Tokenizer.train("text", 300)
    with pytest.raises(DataError, match="texts: expected str, got bytes"):
        Tokenizer.train([b"x"], 300)
    with pytest.raises(DataError, match="special_tokens"):
        Tokenizer.train(TEXT, 300, special_tokens=[])
    with pytest.raises(DataError, match="texts: expected str, got int"):
        tokenizer.encode(3)
    with pytest.raises(DataError, match="lone surrogate at position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match="ids: 320 at position 2"):
        tokenizer.decode([1, 2, 320])
    with pytest.raises(DataError, match="ids: -1 at position 0"):
        tokenizer.decode([-1])
    with pytest.raises(DataError, match=r"ids: float64 of shape \(2,\)"):
        tokenizer.decode([0.5, 1.0])
    assert tokenizer.decode([]) == ""


def test_cut_character_decodes_to_replacement(tokenizer):
    ids = tokenizer.encode("\U0001f98a\U0001f98b")
    assert "\ufffd" in tokenizer.decode(ids[:-1])


def test_gpt2_vocabulary_gives_the_librarys_ids():
    folder = shared_path("data", "gpt2")
    text_file = shared_path("data", "text", "tinyshakespeare.txt")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 50257
    assert tokenizer.eos_id == 50256
    np.testing.assert_array_equal(tokenizer.encode("Hello world"), [15496, 995])
    library = tokenizers.ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    for text in [text_file.read_text(encoding="utf-8")[:200_000], *AWKWARD]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        if END_OF_TEXT not in text:
            np.testing.assert_array_equal(ids, library.encode(text).ids)
