"""What stands beside a vocabulary: special tokens, added tokens and settings, in our files and in those of others."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import DataError

TEXT = ["the cat sat on the mat and then left", "a warm and funny film"] * 5


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="tokenizer: ")  # what a tokenizer does with white space and bytes
        yield


def trained(*special: str) -> mom.Tokenizer:
    return mom.Tokenizer.train(TEXT, 290, special_tokens=special or ("</s>",))


def write(folder: Path, **files: Any) -> Path:
    """JSON files by their names without the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def fast(folder: Path, tokenizer: mom.Tokenizer, **files: Any) -> Path:
    """A folder with a tokenizer.json and other files."""
    return write(folder, tokenizer=json.loads(tokenizer.to_json()), **files)


def slow(folder: Path, tokenizer: mom.Tokenizer, **files: Any) -> Path:
    """A folder as the slow tokenizers of transformers write it: vocabulary and merges."""
    model = json.loads(tokenizer.to_json())["model"]
    write(folder, vocab=model["vocab"], **files)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


# ---------------------------------------------------------------------- the end token
def test_the_end_token_survives_under_any_name(tmp_path: Path) -> None:
    for i, name in enumerate(["</s>", "<|endoftext|>", "[END]", "ende"]):
        tokenizer = trained("[PAD]", name)
        tokenizer = mom.Tokenizer(tokenizer._with_special, eos_token=name)
        tokenizer.save(tmp_path / str(i))
        loaded = mom.Tokenizer.load(tmp_path / str(i))
        assert loaded.eos_id == tokenizer.eos_id == loaded.bos_id == 1
        assert loaded.sha256 == tokenizer.sha256
        again = mom.Tokenizer.load(loaded.save(tmp_path / str(i) / "again"))
        assert (again.eos_id, again.settings) == (1, loaded.settings)


def test_a_tokenizer_without_an_end_token_stays_so(tmp_path: Path) -> None:
    tokenizer = mom.Tokenizer(trained("<|endoftext|>")._with_special, eos_token="<absent>")
    tokenizer.save(tmp_path)
    assert tokenizer.eos_id is None and mom.Tokenizer.load(tmp_path).eos_id is None
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] is None


NAMED = {
    "tokenizer_config": {"tokenizer_config": {"eos_token": "</s>"}},
    "as a dict": {"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False, "__type": "AddedToken"}}},
    "special_tokens_map": {"special_tokens_map": {"eos_token": "</s>"}},
    "special_tokens_map as a dict": {"special_tokens_map": {"eos_token": {"content": "</s>", "normalized": True}}},
    "config": {"config": {"eos_token_id": 1}},
    "config with a list": {"config": {"eos_token_id": [1, 0]}},
    "generation_config": {"generation_config": {"eos_token_id": 1}},
    "meta of older data": {"meta": {"eos_id": 1}},
    "the tokenizer's files first": {"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 0}},
    "tokenizer_config before the map": {
        "tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<|endoftext|>"},
    },
    "an id without a token": {"config": {"eos_token_id": 50256}, "generation_config": {"eos_token_id": 1}},
}  # fmt: skip


@pytest.mark.parametrize("layout", [fast, slow])
@pytest.mark.parametrize("where", NAMED)
def test_where_an_end_token_is_named(where: str, layout: Any, tmp_path: Path) -> None:
    layout(tmp_path, trained("<|endoftext|>", "</s>"), **NAMED[where])
    assert mom.Tokenizer.load(tmp_path).eos_id == 1
    assert mom.Tokenizer.load(tmp_path, eos_token="<|endoftext|>").eos_id == 0
    if layout is fast:
        assert mom.Tokenizer.load(tmp_path / "tokenizer.json").eos_id == 1
        (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
        assert mom.Tokenizer.load(tmp_path / "other.json").eos_id == 0, "a file of its own"


def test_without_a_name_it_is_that_of_gpt2(tmp_path: Path) -> None:
    assert mom.Tokenizer.load(fast(tmp_path / "a", trained("[PAD]", "<|endoftext|>"))).eos_id == 1
    assert mom.Tokenizer.load(fast(tmp_path / "b", trained("[PAD]"))).eos_id is None


def test_a_special_token_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    fast(tmp_path, trained("</s>"), special_tokens_map={"eos_token": "</s>", "pad_token": "[PAD]"})
    with pytest.warns(UserWarning, match=r"the vocabulary has no token for pad_token '\[PAD\]'; left out"):
        tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.settings.tokens == {"eos_token": "</s>"}


def test_prepared_data_keep_the_end_token(tmp_path: Path) -> None:
    tokenizer = trained("</s>")
    meta = prepare(TextDocuments(TEXT), tmp_path, tokenizer=tokenizer, progress=False)
    assert mom.Tokenizer.load(tmp_path).eos_id == meta["eos_id"] == tokenizer.eos_id
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    assert mom.Tokenizer.load(tmp_path).eos_id == tokenizer.eos_id, "as earlier versions wrote them"


def test_copies_are_equal() -> None:
    tokenizer = trained("</s>")
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.sha256, other.settings, other.eos_id) == (tokenizer.sha256, tokenizer.settings, 0)
        for special in (False, True):  # in a document, a special token that is written out is text
            assert np.array_equal(other.encode("a</s>b", special), tokenizer.encode("a</s>b", special))
        assert 0 not in other.encode("a</s>b")


# ---------------------------------------------------------------------- added tokens
def test_added_tokens_of_the_slow_layout(tmp_path: Path) -> None:
    base = trained("</s>")
    n = base.vocab_size
    slow(
        tmp_path, base, added_tokens={"[PAD]": n, "<speaker1>": n + 1}, special_tokens_map={"pad_token": "[PAD]"},
        tokenizer_config={"eos_token": "</s>"},
    )  # fmt: skip
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == n + 2
    text = "<speaker1> the cat[PAD]</s>"
    assert tokenizer.encode(text, special=True).tolist() == [n + 1, *base.encode(" the cat"), n, 0]
    document = tokenizer.encode(text).tolist()  # only special tokens are text in a document
    assert document[0] == n + 1 and n not in document and 0 not in document
    loaded = mom.Tokenizer.load(tokenizer.save(tmp_path / "ours"))
    assert loaded.encode(text, special=True).tolist() == tokenizer.encode(text, special=True).tolist()
    assert loaded.settings.tokens["pad_token"] == "[PAD]" and loaded.sha256 == tokenizer.sha256


@pytest.mark.parametrize("layout", [fast, slow])
def test_added_tokens_decoder(layout: Any, tmp_path: Path) -> None:
    base = trained("</s>")
    n = base.vocab_size
    flags = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        "0": {"content": "</s>", "special": True}, str(n): {"content": "<a>", "special": True, **flags},
        str(n + 1): {"content": "<b>", "special": False, **flags, "lstrip": False},
    }  # fmt: skip
    layout(tmp_path, base, tokenizer_config={"added_tokens_decoder": decoder, "eos_token": "</s>"})
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == n + 2
    assert tokenizer.encode("mat <a> mat", special=True).tolist() == [*base.encode("mat"), n, *base.encode(" mat")]
    assert tokenizer.encode("<b>").tolist() == [n + 1] and n not in tokenizer.encode("mat <a> mat")
    assert mom.Tokenizer.load(tokenizer.save(tmp_path / "ours")).sha256 == tokenizer.sha256


@pytest.mark.parametrize("layout", [fast, slow])
def test_added_tokens_keep_their_ids_with_holes_between(layout: Any, tmp_path: Path) -> None:
    base = trained("</s>")
    n = base.vocab_size
    layout(tmp_path, base, added_tokens={"<b>": n + 7, "<a>": n + 3}, config={"eos_token_id": 0})
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == n + 8
    assert tokenizer.unused_ids(10**6).tolist() == [n, n + 1, n + 2, n + 4, n + 5, n + 6]
    wanted = [n + 3, *base.encode(" mat"), n + 7]
    assert tokenizer.encode("<a> mat<b>", special=True).tolist() == wanted
    loaded = mom.Tokenizer.load(tokenizer.save(tmp_path / "ours"))
    assert loaded.encode("<a> mat<b>", special=True).tolist() == wanted and loaded.eos_id == 0


WRONG_TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "id of another token": ({"added_tokens": {"<a>": 5}}, "added token '<a>': its id is 5, but the vocabulary has"),
    "another id": ({"added_tokens": {"</s>": 700}}, "added token '</s>': its id is 700, but the vocabulary has the id"),
    "one id twice": ({"added_tokens": {"<a>": 900, "<b>": 900}}, "added_tokens.json: two tokens have the id 900"),
    "huge id": ({"added_tokens": {"<a>": 2**31}}, "'<a>': 2147483648 is no id below"),
    "no number": ({"added_tokens": {"<a>": 1.5}}, "'<a>': 1.5 is no id"),
    "no object": ({"added_tokens": ["<a>"]}, "added_tokens.json: expected a JSON object"),
    "two files disagree": (
        {"added_tokens": {"<a>": 900}, "tokenizer_config": {"added_tokens_decoder": {"900": {"content": "<b>"}}}},
        "'900' is '<b>', but added_tokens.json says '<a>'",
    ),
    "no content": ({"tokenizer_config": {"added_tokens_decoder": {"900": {}}}}, "'900': {} is no token"),
    "no token": ({"tokenizer_config": {"eos_token": 3}}, "tokenizer_config.json: eos_token: 3 is no token"),
    "no list": ({"special_tokens_map": {"additional_special_tokens": 3}}, "expected a list of tokens, got 3"),
    "no flag": ({"tokenizer_config": {"add_prefix_space": "yes"}}, "add_prefix_space: expected true or false"),
    "bos without a token": ({"tokenizer_config": {"add_bos_token": True, "eos_token": None}}, "no bos_token is named"),
}  # fmt: skip


@pytest.mark.parametrize("layout", [fast, slow])
@pytest.mark.parametrize("what", WRONG_TOKENS)
def test_files_that_contradict_each_other_or_are_malformed(what: str, layout: Any, tmp_path: Path) -> None:
    files, message = WRONG_TOKENS[what]
    layout(tmp_path, trained("</s>"), **files)
    with pytest.raises(DataError) as caught:
        mom.Tokenizer.load(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        fast(tmp_path / name, trained("</s>"))
        for content, message in ((b"{", "not valid JSON"), (b"\xff", "not UTF-8"), (b"[" * 100_000, "not valid JSON")):
            (tmp_path / name / name).write_bytes(content)
            with pytest.raises(DataError, match=message) as caught:
                mom.Tokenizer.load(tmp_path / name)
            assert name in str(caught.value)


def test_named_tokens_become_special(tmp_path: Path) -> None:
    """A token of the vocabulary that only the other files call special."""
    values = json.loads(trained("</s>", "[PAD]", "<a>").to_json())
    values["added_tokens"] = []
    names = {"eos_token": "</s>", "pad_token": {"content": "[PAD]"}, "additional_special_tokens": ["<a>"]}
    write(tmp_path, tokenizer=values, special_tokens_map=names)
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.encode("<a>[PAD]</s>", special=True).tolist() == [2, 1, 0]
    assert not {0, 1, 2} & set(tokenizer.encode("<a>[PAD]</s>").tolist())
    loaded = mom.Tokenizer.load(tokenizer.save(tmp_path / "ours"))
    assert loaded.settings.extra == ("<a>",) and loaded.settings.tokens["pad_token"] == "[PAD]"


@pytest.mark.parametrize("layout", [fast, slow])
def test_how_a_special_token_is_found_in_a_text(layout: Any, tmp_path: Path) -> None:
    base = trained("</s>")
    n = base.vocab_size
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    wanted = [*base.encode("mat"), n, *base.encode(" mat")]
    for i, files in enumerate([
        {"added_tokens": {"<mask>": n}, "special_tokens_map": {"eos_token": "</s>", "mask_token": mask}},
        {"added_tokens": {"<mask>": n}, "special_tokens_map": {"eos_token": "</s>", "mask_token": mask},
         "tokenizer_config": {"mask_token": "<mask>"}},
        {"tokenizer_config": {"eos_token": "</s>", "mask_token": "<mask>", "added_tokens_decoder": {str(n): mask}}},
        {"added_tokens": {"<mask>": n}, "tokenizer_config": {"eos_token": "</s>", "additional_special_tokens": [mask]}},
    ]):  # fmt: skip
        layout(tmp_path / str(i), base, **files)
        tokenizer = mom.Tokenizer.load(tmp_path / str(i))
        assert tokenizer.encode("mat <mask> mat", special=True).tolist() == wanted
        assert n not in tokenizer.encode("mat <mask> mat"), "special"


# ---------------------------------------------------------------------- settings
@pytest.mark.parametrize("layout", [fast, slow])
def test_a_space_in_front(layout: Any, tmp_path: Path) -> None:
    base = trained("</s>")
    layout(tmp_path, base, tokenizer_config={"add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"},
           config={"eos_token_id": 0})  # fmt: skip
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert np.array_equal(tokenizer.encode("the cat"), base.encode(" the cat"))
    loaded = mom.Tokenizer.load(tokenizer.save(tmp_path / "ours"))
    assert np.array_equal(loaded.encode("the cat"), base.encode(" the cat"))
    written = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert written["add_prefix_space"] is True, "transformers takes false if the field is missing"
    written["add_prefix_space"] = False
    write(tmp_path / "ours", tokenizer_config=written)
    assert np.array_equal(mom.Tokenizer.load(tmp_path / "ours").encode("the cat"), base.encode("the cat"))


def test_a_space_in_front_where_there_are_no_bytes(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    write(tmp_path, tokenizer=json.loads(backend.to_str()), tokenizer_config={"add_prefix_space": True})
    with pytest.warns(UserWarning, match="add_prefix_space has no effect, as the tokenizer is not byte-level"):
        mom.Tokenizer.load(tmp_path)


def test_texts_that_begin_with_a_token(tmp_path: Path) -> None:
    base = trained("</s>", "<s>")
    fast(tmp_path, base, tokenizer_config={"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"})
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.settings.add_bos and (tokenizer.bos_id, tokenizer.eos_id) == (1, 0)
    assert np.array_equal(tokenizer.encode("the cat"), base.encode("the cat")), "encode adds nothing"
    assert mom.Tokenizer.load(tokenizer.save(tmp_path / "ours")).settings == tokenizer.settings

    model = mom.MoM(mom.MoMConfig.vanilla(1, vocab_size=290, n_positions=32, n_embd=16, n_head=2), seed=1)
    model.tokenizer = tokenizer
    ids = model.generate(np.concatenate([[1], base.encode("the cat")]), 5, stop_token=0)
    assert model.generate_text("the cat", 5) == base.decode(ids[1:])
    assert model.generate_text("<s>the cat", 5) == base.decode(ids)
    (only, _) = mom.evaluate.text_losses(model, TextDocuments(["the cat"]))
    row = np.concatenate([[1], base.encode("the cat")])
    assert only.nats == pytest.approx(model(row, labels=row).lm_loss * (len(row) - 1), rel=1e-6)


def test_post_processors_that_add_tokens(tmp_path: Path) -> None:
    values = json.loads(trained("</s>", "<s>").to_json())
    names = {"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}
    for template, adds in (("<s> $A", True), ("$A", False), ("<s> $A </s>", None)):
        backend = tokenizers.Tokenizer.from_str(json.dumps(values))
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 0)]
        )
        write(tmp_path, tokenizer=json.loads(backend.to_str()), **names)
        if adds is None:
            with pytest.warns(UserWarning, match="post_processor puts <s>, </s> around a text, but `encode` adds noth"):
                assert not mom.Tokenizer.load(tmp_path).settings.add_bos
        else:
            assert mom.Tokenizer.load(tmp_path).settings.add_bos is adds


def test_a_pair_of_a_class_that_cuts_text_otherwise(tmp_path: Path) -> None:
    for name in ("CLIPTokenizer", "Qwen2Tokenizer"):
        slow(tmp_path, trained("</s>"), tokenizer_config={"tokenizer_class": name})
        with pytest.raises(DataError, match=f"tokenizer_class: '{name}' may cut text otherwise than GPT-2"):
            mom.Tokenizer.load(tmp_path)
        fast(tmp_path / "fast", trained("</s>"), tokenizer_config={"tokenizer_class": name, "eos_token": "</s>"})
        assert mom.Tokenizer.load(tmp_path / "fast").eos_id == 0, "tokenizer.json says how"
    for name in ("GPT2TokenizerFast", "RobertaTokenizer"):
        slow(tmp_path, trained("</s>"), tokenizer_config={"tokenizer_class": name, "eos_token": "</s>"})
        assert mom.Tokenizer.load(tmp_path).eos_id == 0


def test_other_fields_are_kept_and_those_that_mean_something_are_mentioned(tmp_path: Path) -> None:
    kept = {
        "chat_template": "{{ x }}", "model_max_length": 1024, "padding_side": "left", "split_special_tokens": False,
        "clean_up_tokenization_spaces": True, "add_eos_token": True,
    }  # fmt: skip
    fast(
        tmp_path, trained("</s>"),
        tokenizer_config={"eos_token": "</s>", **kept, "errors": "replace", "name_or_path": "/a", "use_fast": True},
    )  # fmt: skip
    tokenizer = mom.Tokenizer.load(tmp_path)
    assert tokenizer.settings.kept == kept
    tokenizer.save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert written.items() >= kept.items() and "name_or_path" not in written
    write(tmp_path, tokenizer_config={"eos_token": "</s>", "errors": "strict", "field_of_tomorrow": 3})
    with pytest.warns(UserWarning) as caught:
        tokenizer = mom.Tokenizer.load(tmp_path)
    messages = sorted(str(warning.message).split("tokenizer_config.json: ")[1] for warning in caught)
    assert len(messages) == 2 and messages[1] == "unknown fields have no effect: field_of_tomorrow"
    assert messages[0].startswith("has no counterpart here and is left out: errors = 'strict'")
    assert tokenizer.settings.kept == {"field_of_tomorrow": 3}
