"""What stands beside a vocabulary: the special tokens' names, added tokens and settings, as transformers keeps them.

`read_settings` reads ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``; `apply` brings a
tokenizer of the library to what they say; `settings_files` writes them. `mom.file_fields` lists every field.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._json import to_json
from .._reading import shown
from ..errors import DataError
from ..file_fields import TABLE, check, read_object

if TYPE_CHECKING:
    import tokenizers

__all__ = ["NAMES", "TOKENIZER_FILES", "TokenizerSettings", "apply", "end_token", "read_settings", "settings_files"]

#: Files of a tokenizer that is saved.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
#: What special tokens are for.
NAMES = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: GPT-2's special token, which ends documents in vocabularies whose files do not name another one.
_END_OF_TEXT = "<|endoftext|>"
#: Classes of transformers that cut text as GPT-2 does. A vocabulary with merges alone does not say how to cut.
_CUT_LIKE_GPT2 = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer",
                  "CodeGenTokenizer", "PreTrainedTokenizer")  # fmt: skip
#: Larger ids of added tokens are refused: the library reserves memory for every id up to the largest.
_LARGEST_ID = 2**24
#: What is written if nothing was read: transformers takes true if the field is missing.
_CLEAN_UP = ("clean_up_tokenization_spaces", False)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside a vocabulary say.

    Attributes
    ----------
    tokens : mapping of str to str
        Special tokens by what they are for, such as ``{"eos_token": "</s>"}``; see `NAMES`.
    extra : tuple of str
        Further special tokens.
    add_bos : bool
        Whether texts begin with the `bos_token`.
    kept : mapping
        Other fields of ``tokenizer_config.json``, which are written again as they were read.
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    add_bos: bool = False
    kept: Mapping[str, Any] = field(default_factory=dict)

    def with_end(self, token: str) -> TokenizerSettings:
        """The same with another token that ends documents."""
        return replace(self, tokens={**self.tokens, "eos_token": token})


@dataclass(frozen=True)
class _Found:
    """What was read: the settings, and what has to be changed in the tokenizer."""

    settings: TokenizerSettings
    special: Mapping[str, Mapping[str, Any]]
    added: Mapping[int, Mapping[str, Any]]
    prefix_space: bool | None
    add_bos: bool | None
    no_end: bool
    tokenizer_class: str
    source: Path


# ---------------------------------------------------------------------- reading
def read_settings(folder: Path) -> _Found:
    """Read the files beside a vocabulary in `folder`. Files that are missing say nothing.

    Raises
    ------
    DataError
        If a file is malformed, or the files contradict each other.
    """
    config, special, slow = (
        read_object(folder / name, DataError)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    )
    source = folder / "tokenizer_config.json"
    check("tokenizer_config.json", config, str(source), DataError)
    check("special_tokens_map.json", special, str(folder / "special_tokens_map.json"), DataError)
    tokens: dict[str, Any] = {}
    extra: list[Any] = []
    for values, file in ((special, folder / "special_tokens_map.json"), (config, source)):  # the second one counts
        named = {name: _token(values[name], f"{file}: {name}") for name in NAMES if values.get(name) is not None}
        tokens |= {name: {**tokens.get(name, {}), **token} for name, token in named.items()}
        for name in ("additional_special_tokens", "extra_special_tokens"):
            listed = values.get(name) or ()
            if not isinstance(listed, (list, tuple, dict)):
                raise DataError(f"{file}: {name}: expected a list of tokens, got {shown(listed)}")
            listed = listed.values() if isinstance(listed, dict) else listed
            extra += [_token(token, f"{file}: {name}") for token in listed]
    special_tokens = {token["content"]: token for token in (*extra, *tokens.values())}
    rows = TABLE["tokenizer_config.json"]
    kept = {name: value for name, value in config.items() if name not in rows or rows[name].use == "kept"}
    kept = {name: value for name, value in kept.items() if (name, value) != _CLEAN_UP}
    return _Found(
        TokenizerSettings(
            {name: token["content"] for name, token in tokens.items()},
            tuple(dict.fromkeys(token["content"] for token in extra)), kept=kept,
        ),
        special_tokens, _added(config, slow, special_tokens, folder),
        _flag(config, "add_prefix_space", source), _flag(config, "add_bos_token", source),
        no_end="eos_token" in config and config["eos_token"] is None,
        tokenizer_class=str(config.get("tokenizer_class") or "").removesuffix("Fast"), source=source,
    )  # fmt: skip


def _token(token: Any, where: str) -> dict[str, Any]:
    """A token's text and how it is found, from ``"</s>"`` or ``{"content": "</s>", "lstrip": false, ...}``."""
    values = token if isinstance(token, Mapping) else {"content": token}
    text = values.get("content")
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: {shown(token)} is no token")
    return {"content": text, **{name: bool(values[name]) for name in (*_FLAGS, "special") if name in values}}


def _flag(values: Mapping[str, Any], name: str, source: Path) -> bool | None:
    if not isinstance(value := values.get(name), (bool, type(None))):
        raise DataError(f"{source}: {name}: expected true or false, got {shown(value)}")
    return value


def _added(
    config: Mapping[str, Any], slow: Mapping[str, Any], special: Mapping[str, Any], folder: Path
) -> dict[int, Mapping[str, Any]]:
    """Added tokens by id, from ``added_tokens.json`` and from ``added_tokens_decoder``."""
    found: dict[int, Mapping[str, Any]] = {}
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise DataError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder: expected an object")
    for text, number in slow.items():
        id = _id(number, f"{folder / 'added_tokens.json'}: token {shown(text)}")
        if id in found:
            raise DataError(f"{folder / 'added_tokens.json'}: two tokens have the id {id}")
        found[id] = {
            "normalized": text not in special,
            **special.get(text, {"content": text}),
            "special": text in special,
        }
    for number, token in decoder.items():
        where = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder: {shown(number)}"
        id, made = _id(number, where), _token(token, where)
        text = made["content"]
        if id in found and found[id]["content"] != text:
            raise DataError(f"{where} is {shown(text)}, but added_tokens.json says {shown(found[id]['content'])}")
        found[id] = {**special.get(text, {}), **made, "special": text in special or made.get("special", False)}
    return dict(sorted(found.items()))


def _id(value: Any, where: str) -> int:
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) >= _LARGEST_ID:
        raise DataError(f"{where}: {shown(value)} is no id below {_LARGEST_ID}")
    return int(text)


# ---------------------------------------------------------------------- a tokenizer as the files say
def apply(backend: tokenizers.Tokenizer, found: _Found, from_pair: bool) -> tokenizers.Tokenizer:
    """The tokenizer with the added tokens, special tokens and space in front that the files name.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        May be changed.
    found : from `read_settings`
    from_pair : bool
        Whether the vocabulary came with merges alone, so that the files must say how text is cut.

    Raises
    ------
    DataError
        If two tokens would share an id or a token has two ids, or the class of a pair's tokenizer cuts text otherwise.
    """
    if from_pair and found.tokenizer_class and found.tokenizer_class not in _CUT_LIKE_GPT2:
        raise DataError(
            f"{found.source}: tokenizer_class: {shown(found.tokenizer_class)} may cut text otherwise than GPT-2, and "
            "no tokenizer.json says how. Save the tokenizer with transformers as a fast one, which writes that file"
        )
    backend.no_truncation()
    backend.no_padding()
    backend = _with_added_tokens(backend, found)
    if found.prefix_space is not None:
        backend = _with_prefix_space(backend, found)
    missing = [
        f"{name} {shown(token)}" for name, token in found.settings.tokens.items() if backend.token_to_id(token) is None
    ]
    if missing:
        warnings.warn(
            f"{found.source.parent}: the vocabulary has no token for {', '.join(missing)}; left out", stacklevel=4
        )
    if found.special:
        known = {token["content"] for token in _json_of(backend)["added_tokens"] if token["special"]}
        added = {token["content"]: token for token in found.added.values()}
        _add(backend, [
            {"normalized": False, **token, **added.get(text, {}), "special": True}
            for text, token in found.special.items() if text not in known and backend.token_to_id(text) is not None
        ])  # fmt: skip
    return backend


def _add(backend: tokenizers.Tokenizer, tokens: Iterable[Mapping[str, Any]]) -> None:
    import tokenizers

    for token in tokens:
        flags = {name: value for name, value in token.items() if name in _FLAGS}
        made = tokenizers.AddedToken(token["content"], **flags)
        (backend.add_special_tokens if token["special"] else backend.add_tokens)([made])


def _json_of(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(backend.to_str())
    return values


def _with_added_tokens(backend: tokenizers.Tokenizer, found: _Found) -> tokenizers.Tokenizer:
    import tokenizers

    new = {}
    for id, token in found.added.items():
        have, there = backend.token_to_id(token["content"]), backend.id_to_token(id)
        if have not in (None, id) or there not in (None, token["content"]):
            what = f"the id {have}" if have not in (None, id) else f"this id for {shown(there)}"
            raise DataError(f"{found.source.parent}: added token {shown(token['content'])}: its id is {id}, but the "
                            f"vocabulary has {what}")  # fmt: skip
        if have is None:
            new[id] = token
    next_id = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if new and list(new) != list(range(next_id, next_id + len(new))):  # the library numbers added tokens itself
        values = _json_of(backend)
        if not isinstance(values["model"].get("vocab"), dict):
            raise DataError(f"{found.source.parent}: added tokens: the ids {_short(list(new))} do not follow the "
                            f"vocabulary's, which end at {next_id - 1}")  # fmt: skip
        values["model"]["vocab"].update({token["content"]: id for id, token in new.items()})
        backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    _add(backend, new.values())
    return backend


def _short(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:4])) + (", ..." if len(ids) > 4 else "")


def _with_prefix_space(backend: tokenizers.Tokenizer, found: _Found) -> tokenizers.Tokenizer:
    import tokenizers

    values = _json_of(backend)
    byte_level = _byte_level_steps(values)
    if not byte_level:
        if found.prefix_space:
            warnings.warn(f"{found.source}: add_prefix_space has no effect, as the tokenizer is not byte-level; its "
                          "own way to begin a text counts", stacklevel=5)  # fmt: skip
        return backend
    if byte_level[0]["add_prefix_space"] == found.prefix_space:
        return backend
    byte_level[0]["add_prefix_space"] = found.prefix_space
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def _byte_level_steps(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = values["pre_tokenizer"] or {}
    return [step for step in steps.get("pretokenizers", [steps]) if step.get("type") == "ByteLevel"]


def end_token(backend: tokenizers.Tokenizer, found: _Found, asked: str | None) -> TokenizerSettings:
    """The settings with the token that ends documents, and with whether texts begin with another one.

    The first of these that the vocabulary has is the end token: the caller's choice, the token that the tokenizer's
    files name, the token of the id in ``config.json``, ``generation_config.json`` or ``meta.json``, and GPT-2's.
    """
    folder, settings = found.source.parent, found.settings
    tokens = {name: token for name, token in settings.tokens.items() if backend.token_to_id(token) is not None}
    settings = replace(settings, tokens=tokens)
    token = asked or tokens.get("eos_token")
    if token is None:
        token = _token_of_ids(backend, folder, "eos_token_id")
    if token is None and not found.no_end and backend.token_to_id(_END_OF_TEXT) is not None:
        token = _END_OF_TEXT
    if token is not None:
        settings = settings.with_end(token)
    bos = tokens.get("bos_token") or _token_of_ids(backend, folder, "bos_token_id")
    if bos is not None:
        settings = replace(settings, tokens={**settings.tokens, "bos_token": bos})
    # They are written as special tokens, so they are special tokens from now on, too.
    known = {added.content for added in backend.get_added_tokens_decoder().values() if added.special}
    named = [text for text in settings.tokens.values() if text not in known and backend.token_to_id(text) is not None]
    _add(backend, [{"content": text, "normalized": False, "special": True} for text in named])
    return replace(settings, add_bos=_begins_with_bos(backend, settings, found))


def _token_of_ids(backend: tokenizers.Tokenizer, folder: Path, name: str) -> str | None:
    """The token of an id in the files of a model or of prepared data."""
    for file in ("config.json", "generation_config.json", "meta.json"):
        values = read_object(folder / file, DataError)
        id = values.get("eos_id" if file == "meta.json" and name == "eos_token_id" else name)
        id = id[0] if isinstance(id, list) and id else id
        if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < 2**31:
            token: str | None = backend.id_to_token(id)
            if token is not None:
                return token
    return None


def _begins_with_bos(backend: tokenizers.Tokenizer, settings: TokenizerSettings, found: _Found) -> bool:
    """Whether texts begin with the bos token: as ``add_bos_token`` says, or else as the post-processor does it."""
    try:
        bare, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    except Exception:  # the library raises nothing narrower; such a tokenizer lacks a token for "a"
        bare = whole = []
    bos = settings.tokens.get("bos_token") or settings.tokens.get("eos_token")
    start = [] if bos is None else [backend.token_to_id(bos)]
    if whole not in (bare, [*start, *bare]):
        extra = [backend.id_to_token(id) for id in whole if id not in bare]
        warnings.warn(
            f"{found.source.parent}: the tokenizer's post_processor puts {', '.join(map(str, extra[:16]))} around a "
            "text, but `encode` adds nothing. Add these tokens to your texts if the model was trained with them",
            stacklevel=4,
        )
    if found.add_bos is None:
        return bool(start) and whole == [*start, *bare] and whole != bare
    if found.add_bos and not start:
        raise DataError(f"{found.source}: add_bos_token is true, but no bos_token is named")
    return found.add_bos


# ---------------------------------------------------------------------- writing
def settings_files(
    backend: tokenizers.Tokenizer, settings: TokenizerSettings, max_length: int | None = None
) -> dict[str, str]:
    """The files beside ``tokenizer.json``, by name: transformers reads the same tokenizer from them.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        What ``tokenizer.json`` holds.
    settings : TokenizerSettings
        Tokens that the vocabulary lacks are left out.
    max_length : int, optional
        Written as ``model_max_length``.
    """
    tokens: dict[str, str | None] = dict.fromkeys(("eos_token", "bos_token"))
    tokens |= {name: token for name, token in settings.tokens.items() if backend.token_to_id(token) is not None}
    if tokens["bos_token"] is None:  # as in GPT-2, what ends a document also begins the next one
        tokens["bos_token"] = tokens["eos_token"]
    extra = {"additional_special_tokens": list(settings.extra)} if settings.extra else {}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", **tokens, **extra, **dict([_CLEAN_UP]),
        "model_input_names": ["input_ids", "attention_mask"], **settings.kept,
    }  # fmt: skip
    if byte_level := _byte_level_steps(_json_of(backend)):  # transformers takes false if the field is missing
        config["add_prefix_space"] = byte_level[0]["add_prefix_space"]
    if settings.add_bos:
        config["add_bos_token"] = True
    if max_length is not None:
        config["model_max_length"] = max_length
    named = {name: token for name, token in tokens.items() if token is not None}
    return {"tokenizer_config.json": to_json(config), "special_tokens_map.json": to_json({**named, **extra})}
