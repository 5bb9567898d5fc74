"""Tokenizers that are not ours: lossy, random, of other kinds and versions, and hostile files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

import mom
from mom.data import Documents, TextDocuments
from mom.data.encode import encode_texts
from mom.data.prepare import prepare
from mom.data.sources import pieces_for
from mom.data.token_files import TokenFile
from mom.data.tokenizer import Tokenizer
from mom.data.tokenizer_checks import merges_as_strings
from mom.errors import DataError
from mom.evaluate import text_losses

TEXT = "The cat sat on the mat, and the dog ran away. It's 12.5% of 東京!\n\n  naïve café 😀\tend\r\n"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def trained(pre=None, normalizer=None, decoder=None, model=None, trainer=trainers.BpeTrainer, **settings):
    backend = tokenizers.Tokenizer(models.BPE() if model is None else model)
    if pre is not None:
        backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    settings = {"vocab_size": 400, "special_tokens": ["<|endoftext|>"], "show_progress": False, **settings}
    backend.train_from_iterator([TEXT * 20], trainer(**settings))
    return backend


def byte_level(**settings):
    pre = settings.pop("pre", pre_tokenizers.ByteLevel(add_prefix_space=False))
    return trained(pre, decoder=decoders.ByteLevel(), initial_alphabet=ALPHABET, **settings)


def sentencepiece_bpe():
    """As Llama 2's: no pre-tokenizer, spaces as letters, bytes for unknown characters."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁Thecatsondmrwy.,", "▁t", "he"]
    merges = [("▁", "t"), ("h", "e")]
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer, backend.decoder = normalizers.Sequence(steps), decoder
    return backend


def with_added(token):
    backend = byte_level()
    backend.add_tokens([AddedToken(token, normalized=False)])
    return backend


LOSSLESS = {
    "GPT-2": byte_level,
    "Llama 2": sentencepiece_bpe,
    "Llama 3": lambda: byte_level(
        pre=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    ),
    "no regular expression": lambda: byte_level(pre=pre_tokenizers.ByteLevel(False, use_regex=False)),
    "added token": lambda: with_added("cat sat"),
}
LOSSY = {
    "characters, almost all": (
        lambda: trained(pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(), special_tokens=[]),
        r"drops or replaces characters \(.* U\+E000\)",
    ),
    "stripped at the ends": (
        lambda: trained(
            pre_tokenizers.ByteLevel(False), normalizers.Strip(), decoders.ByteLevel(), initial_alphabet=ALPHABET
        ),
        "drops white space around a text",
    ),
    "characters": (lambda: trained(pre_tokenizers.Whitespace()), "drops or replaces characters"),
    "unknown": (
        lambda: trained(
            pre_tokenizers.Whitespace(), model=models.WordLevel(unk_token="<u>"), trainer=trainers.WordLevelTrainer,
            special_tokens=["<u>"], vocab_size=9,
        ),
        "drops or replaces characters",
    ),
    "lower case": (
        lambda: trained(
            pre_tokenizers.ByteLevel(False), normalizers.Lowercase(), decoders.ByteLevel(), initial_alphabet=ALPHABET
        ),
        r"drops or replaces characters \(T Ω\)",
    ),
    "composed": (
        lambda: trained(
            pre_tokenizers.ByteLevel(False), normalizers.NFC(), decoders.ByteLevel(), initial_alphabet=ALPHABET
        ),
        "drops or replaces characters",
    ),
    "space in front": (lambda: byte_level(pre=pre_tokenizers.ByteLevel(add_prefix_space=True)), "adds white space"),
    "white space": (
        lambda: byte_level(
            pre=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(False)])
        ),
        "changes white space",
    ),
    "stripped": (
        lambda: trained(
            pre_tokenizers.ByteLevel(False), normalizers.Replace(Regex(r"\s+"), " "), decoders.ByteLevel(),
            initial_alphabet=ALPHABET,
        ),
        "changes white space",
    ),
}  # fmt: skip


def load(backend, folder):
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


# ------------------------------------------------------------------ behaviour
@pytest.mark.parametrize("kind", LOSSLESS)
def test_tokenizers_that_keep_texts_load_without_a_warning(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(LOSSLESS[kind](), tmp_path)
    assert loaded.decode(loaded.encode(TEXT)) == TEXT


@pytest.mark.parametrize("kind", LOSSY)
def test_tokenizers_that_lose_something_say_so(tmp_path, kind):
    make, message = LOSSY[kind]
    with pytest.warns(UserWarning, match=f"tokenizer: {message}"):
        load(make(), tmp_path)
    with pytest.warns(UserWarning, match=f"tokenizer: {message}"):
        Tokenizer(make())


@pytest.mark.parametrize("dropout", [0.5, 0.01])
def test_dropout_is_switched_off(tmp_path, dropout):
    content = json.loads(byte_level().to_str())
    expected = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    content["model"]["dropout"] = dropout
    text = json.dumps(content)
    (tmp_path / "tokenizer.json").write_text(text)
    for make in (lambda: Tokenizer.load(tmp_path), lambda: Tokenizer(tokenizers.Tokenizer.from_str(text))):
        with pytest.warns(UserWarning, match=rf"dropout of merges \({dropout}\) is switched off"):
            loaded = make()
        for special in (False, True):
            ids = {tuple(loaded.encode(TEXT, special=special)) for _ in range(20)}
            assert ids == {tuple(expected.encode(TEXT))}
        assert loaded.sha256 == expected.sha256
        assert json.loads(loaded.to_json())["model"]["dropout"] is None


def test_a_tokenizer_that_draws_at_random_is_refused():
    class Random:
        calls = 0

        def normalize(self, text):
            Random.calls += 1
            if Random.calls % 2:
                text.append("x")

    backend = byte_level()
    backend.normalizer = normalizers.Normalizer.custom(Random())
    with pytest.raises(DataError, match="gives one text several encodings"):
        Tokenizer(backend)


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="<unk>"),
        models.WordPiece({"a": 0}, unk_token="[UNK]"),
        models.Unigram([("a", 0.0)], None, False),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_tokenizer_that_cannot_encode_every_text_is_refused(tmp_path, model):
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match="cannot encode an ordinary text"):
        Tokenizer(backend)
    with pytest.raises(DataError, match=r"tokenizer\.json: .*cannot encode an ordinary text"):
        load(backend, tmp_path)


def test_a_text_end_that_no_token_stands_for_is_an_error():
    with pytest.warns(UserWarning, match="drops"):
        lossy = Tokenizer(trained(pre_tokenizers.Whitespace(), special_tokens=[]))
    with pytest.raises(DataError, match="neither an end-of-text token nor a token for a line feed"):
        encode_texts(lossy, [("the cat",)], 16)


# ------------------------------------------------------------------ cuts
ALL = {**LOSSLESS, **{kind: make for kind, (make, _) in LOSSY.items()}}
LONG = {
    "lines": TEXT * 40,
    "one line": TEXT.replace("\n", " ") * 40,
    "no white space": "abc123,def'll's've'd!!x9z(__)" * 60,
    "letters": "abcdefghij" * 200,
    "white space": "a" + " " * 300 + "\n" * 300 + "b \t" * 200,
    "scripts": "東京は日本の首都です。" * 100,
}


@pytest.mark.filterwarnings("ignore:tokenizer")
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_documents_are_cut_only_where_no_token_changes(tmp_path, kind, text):
    tokenizer = Tokenizer(ALL[kind]())
    documents = TextDocuments([text, "and another", text], max_chars=64)
    pieces = list(pieces_for(documents, tokenizer))
    assert "".join(piece.text for piece in pieces) == text + "and another" + text
    found = np.concatenate(tokenizer.encode_batch([piece.text for piece in pieces]))
    whole = tokenizer.encode_batch([text, "and another", text])
    np.testing.assert_array_equal(found, np.concatenate(whole))
    assert tokenizer.pieces_are_safe == (kind == "GPT-2")
    if kind == "GPT-2" and text != LONG["letters"] and text != LONG["scripts"]:
        assert max(len(piece.text) for piece in pieces) <= 700  # memory stays bounded
    prepare(documents, tmp_path, tokenizer=tokenizer, val_fraction=0.0, append_eos=False, progress=False)
    tokens = TokenFile(tmp_path)
    np.testing.assert_array_equal(tokens.read(0, len(tokens)), found)


def test_cuts_of_random_texts_change_no_token_of_gpt2():
    tokenizer = Tokenizer(byte_level())
    rng = np.random.default_rng(0)
    parts = [
        "a",
        "Zz",
        "9",
        "42",
        "'",
        "'s",
        "'ll",
        ",",
        "!?",
        "_",
        " ",
        "  ",
        "\n",
        "\t",
        "é",
        "京",
        "😀",
        "\u0301",
        "٣",
    ]
    for _ in range(300):
        text = "".join(rng.choice(parts, 400, p=rng.dirichlet(np.full(len(parts), 0.3))))
        pieces = [piece.text for piece in pieces_for(TextDocuments([text], max_chars=16), tokenizer)]
        found = np.concatenate(tokenizer.encode_batch(pieces))
        np.testing.assert_array_equal(found, tokenizer.encode(text), err_msg=repr(text))


def test_pieces_stay_small_without_a_tokenizer_and_say_where_they_are_unsafe(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 1000 + " yy" * 1000)
    pieces = list(Documents(path, max_chars=64))
    assert max(len(piece.text) for piece in pieces) <= 64
    unsafe = [piece.text for piece in pieces if not piece.safe]
    assert len(unsafe) == 15 and set("".join(unsafe)) == {"x"}


@pytest.mark.filterwarnings("ignore:tokenizer")
@pytest.mark.parametrize("kind", ["GPT-2", "space in front", "characters"])
def test_losses_of_texts_do_not_depend_on_cuts(kind):
    tokenizer = Tokenizer(ALL[kind]())
    config = mom.MoMConfig.vanilla(1, n_embd=16, n_head=1, n_positions=32, vocab_size=tokenizer.vocab_size)
    model = mom.MoM(config, seed=0)
    model.tokenizer = tokenizer
    found = [text_losses(model, TextDocuments([TEXT * 10], max_chars=size))[-1] for size in (16, 64, 1 << 16)]
    assert len({result.tokens for result in found}) == 1 and len({result.bytes for result in found}) == 1
    np.testing.assert_allclose([result.nats for result in found], found[0].nats, rtol=1e-6)


# ------------------------------------------------------------------ files
@pytest.fixture(scope="module")
def content():
    return json.loads(byte_level().to_str())


def write(folder, values):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(values))
    return path


def hostile():
    vocabulary = ("model", "vocab")
    for id in (2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 10**30, -1, None, "5", 1.5, True, [1]):
        yield f"id {id}", {(*vocabulary, "a"): id}, r"token 'a' has id .*, expected an integer in \[0, 16777215\]"
    yield "shared", {(*vocabulary, "a"): 100}, r"two tokens share one id: .* have id 100"
    for id in (2**31, None, -1):
        yield f"added {id}", {("added_tokens",): [{"content": "new", "id": id}]}, "token 'new' has id"
    yield "added, shared", {("added_tokens",): [{"content": "new", "id": 7}]}, "two tokens share one id"
    yield (
        "added, other",
        {("added_tokens",): [{"content": "a", "id": 9}]},
        "added token 'a' has id 9, in the vocabulary",
    )
    yield "added, nameless", {("added_tokens",): [{"id": 400}]}, "has no content"
    for prefix in ("xxxx", "a", "Ġ" * 50):
        yield f"prefix {prefix}", {("model", "continuing_subword_prefix"): prefix}, "not a usable tokenizer"
    growing = {"type": "Replace", "pattern": {"Regex": "."}, "content": "y" * 10}
    for part, name in (("normalizer", "normalizers"), ("decoder", "decoders")):
        bomb = {"type": "Sequence", name: [growing] * 12}
        yield f"growing {part}", {(part,): bomb}, rf"{part}: its replacements can make a text 3e\+12 times as long"
        nested = {"type": "Sequence", name: [{"type": "Sequence", name: [growing] * 3}] * 4}
        yield f"nested {part}", {(part,): nested}, "times as long"
        yield f"quickly {part}", {(part,): {**growing, "content": "y" * 1000}}, f"its {part} makes .* characters of"
    yield "unheard-of", {("pre_tokenizer",): {"type": "OfTheFuture"}}, "pip install --upgrade tokenizers"
    yield "merge of nothing", {("model", "merges"): [["a", "qqq"]]}, "not a usable tokenizer"


@pytest.mark.parametrize(("name", "changes", "message"), list(hostile()), ids=[name for name, _, _ in hostile()])
def test_hostile_files_end_in_a_named_exception(tmp_path, content, name, changes, message):
    values = json.loads(json.dumps(content))
    for place, value in changes.items():
        owner = values
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer.load(write(tmp_path, values))
    assert "tokenizer.json: " in str(caught.value) and len(str(caught.value)) < 800


def test_added_tokens_that_the_library_numbers_differently_are_refused(tmp_path, content):
    added = {**content["added_tokens"][0], "content": "<new>", "id": 5000}
    with pytest.raises(DataError, match="added token '<new>' has id 5000, but the library makes it"):
        Tokenizer.load(write(tmp_path, {**content, "added_tokens": [*content["added_tokens"], added]}))
    added["id"] = len(content["model"]["vocab"])
    loaded = Tokenizer.load(write(tmp_path, {**content, "added_tokens": [*content["added_tokens"], added]}))
    assert loaded.encode("a<new>", special=True)[-1] == added["id"]


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="a sanitizer needs address space of its own")
def test_the_largest_id_needs_little_memory(tmp_path, content):
    """In a process that may not have more than 2 GB."""
    content = json.loads(json.dumps(content))
    token = list(content["model"]["vocab"])[-1]
    content["model"]["vocab"][token] = 2**24 - 1
    path = write(tmp_path, content)
    code = f"""
        import pathlib, resource
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        import mom
        loaded = mom.Tokenizer.load({str(path)!r})
        loaded.save({str(tmp_path)!r})
        equal = mom.Tokenizer.load({str(path)!r}).sha256 == loaded.sha256
        pathlib.Path({str(tmp_path / "result")!r}).write_text(f"{{loaded.vocab_size}} {{equal}}")
    """
    # Old versions of the library print all unused ids.
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=240)
    assert (tmp_path / "result").read_text() == "16777216 True"


def test_panics_while_encoding_are_exceptions(monkeypatch):
    PanicException = type("PanicException", (BaseException,), {})  # noqa: N806
    tokenizer = Tokenizer(byte_level())

    class Panics:
        def encode_batch(self, *_, **__):
            raise PanicException("index out of bounds")

        decode = encode_batch_fast = encode_batch

    monkeypatch.setattr(tokenizer, "_plain", Panics())
    monkeypatch.setattr(tokenizer, "_with_special", Panics())
    with pytest.raises(DataError, match=r"texts: the tokenizer cannot encode them \(PanicException: index out"):
        tokenizer.encode("a")
    with pytest.raises(DataError, match="ids: the tokenizer cannot decode them"):
        tokenizer.decode([1])
    Panics.encode_batch_fast = Panics.encode_batch = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")


# ------------------------------------------------------------------ versions
@pytest.mark.filterwarnings("ignore:tokenizer")
@pytest.mark.parametrize("kind", ALL)
def test_merges_are_read_in_both_forms_and_written_as_all_versions_read_them(tmp_path, kind):
    values = json.loads(ALL[kind]().to_str())
    merges = values["model"].get("merges", [])
    strings = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    pairs = [merge.split(" ") for merge in strings]
    found = []
    for form in (strings, pairs):
        if merges:
            values["model"]["merges"] = form
        found.append(Tokenizer.load(write(tmp_path, values)))
    assert found[0].sha256 == found[1].sha256
    np.testing.assert_array_equal(found[0].encode(TEXT), found[1].encode(TEXT))
    saved = json.loads(found[1].save(tmp_path / "saved").read_text())
    assert saved["model"].get("merges", []) == strings
    assert Tokenizer.load(tmp_path / "saved").sha256 == found[0].sha256


def test_merges_of_tokens_with_spaces_stay_pairs():
    values = {"model": {"merges": [["a", "b"], ["a b", "c"]]}}
    assert not merges_as_strings(values) and values["model"]["merges"][1] == ["a b", "c"]
    values = {"model": {"merges": [["a", "b"]], "x": 1}}
    assert merges_as_strings(values) and values["model"] == {"merges": ["a b"], "x": 1}
    for odd in ({}, {"model": None}, {"model": {"merges": None}}, {"model": {"merges": [["a"]]}}):
        assert not merges_as_strings(odd)


def test_fields_that_the_library_would_ignore_are_refused(tmp_path, content):
    """As version 0.19 ignores Llama 3's ``ignore_merges`` and gives other tokens."""
    values = {**content, "model": {**content["model"], "of_the_future": True}}
    with pytest.raises(
        DataError, match="ignores of_the_future of the model. This is tokenizers .* --upgrade tokenizers"
    ):
        Tokenizer.load(write(tmp_path, values))
    for harmless in (None, False):
        values["model"]["of_the_future"] = harmless
        np.testing.assert_array_equal(
            Tokenizer.load(write(tmp_path, values)).encode(TEXT), Tokenizer(byte_level()).encode(TEXT)
        )
