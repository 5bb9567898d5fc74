"""Checks of tokenizers that others made, before and after the ``tokenizers`` library reads them.

The library trusts its files. It reads some files as something else, and it panics over others. A few bytes can make it
ask for more memory than there is, which ends the process. So the ids of a file are checked first, and then what the
loaded tokenizer does with a text.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .._reading import shown
from ..errors import DataError, MomError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["MAX_ID", "check_behaviour", "library_errors", "pieces_are_safe", "portable_json", "read_backend"]

#: No model has a larger vocabulary. The library reserves memory for all ids up to the largest one.
MAX_ID = 2**24 - 1
#: Texts with upper and lower case, marks, several scripts, digits, punctuation and white space of all kinds. The
#: character U+E000 is for private use, so no vocabulary of characters has it.
_PROBES = ("The naïve cat 😀 sat,  on\n it's 東京 (12.5%)\tΩ e\u0301 \ue000", " a\n\n b ")
_REPEATS = 4
#: Fields of a model that all versions of the library know.
_FIELDS = frozenset(
    "type vocab merges dropout unk_token unk_id continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback "
    "max_input_chars_per_word".split()
)
#: So many times longer may the replacements of a normalizer or decoder make a text, by their file and on the probe.
_MOST_GROWTH, _PROBE_GROWTH = 2**16, 32


@contextlib.contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises, panics included, into a `DataError` that begins with `what`."""
    try:
        yield
    except (MomError, MemoryError, Warning):
        raise
    except BaseException as error:
        # A panic of Rust code arrives as PanicException, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = str(error)
        text = text if len(text) <= 300 else f"{text[:300]}..."
        raise DataError(f"{what} ({type(error).__name__}: {text})") from None


def read_backend(values: dict[str, Any], text: str, path: Any) -> tokenizers.Tokenizer:
    """The library's tokenizer of a ``tokenizer.json``, checked.

    Parameters
    ----------
    values, text : dict, str
        Its content, parsed and as it is.
    path : Path
        For messages.

    Raises
    ------
    DataError
        If ids are missing, negative, too large or shared, if texts would grow beyond measure, or if the library cannot
        read the file.
    """
    import tokenizers

    _check_ids(values, path)
    for part in ("normalizer", "decoder"):
        growth = math.prod(map(_growth, _steps(values.get(part))))
        if growth > _MOST_GROWTH:
            raise DataError(f"{path}: {part}: its replacements can make a text {growth:.0e} times as long")
    if merges_as_strings(values):
        text = json.dumps(values)
    version = f"This is tokenizers {tokenizers.__version__}; a newer version may know it"
    way_out = "pip install --upgrade tokenizers"
    try:
        with library_errors(f"{path}: not a usable tokenizer"):
            backend = tokenizers.Tokenizer.from_str(text)
    except DataError as error:
        raise DataError(f"{error}. {version}: {way_out}") from None
    unusual = [name for name, value in values["model"].items() if value not in (None, False) and name not in _FIELDS]
    known = json.loads(backend.to_str())["model"] if unusual else {}
    if ignored := [name for name in unusual if name not in known]:
        names = ", ".join(name[:80] for name in ignored[:16])
        raise DataError(f"{path}: the library ignores {names} of the model. {version}: {way_out}")
    _check_added_tokens(backend, values, path)
    return backend


def portable_json(backend: tokenizers.Tokenizer) -> str:
    """Contents of a ``tokenizer.json`` that all versions of the library read, and write in the same way."""
    values = json.loads(backend.to_str())
    merges_as_strings(values)
    model = values["model"]
    if model.get("type") == "BPE":  # version 0.19 does not know this field
        last = {name: model.pop(name) for name in ("vocab", "merges")}
        model.setdefault("ignore_merges", False)
        model.update(last)
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def merges_as_strings(values: dict[str, Any]) -> bool:
    """Write merges as all versions of the library read them, as strings. Says whether anything was changed.

    From version 0.20 on, the library writes pairs. A token with a space in it can only be part of a pair.
    """
    model = values.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not isinstance(merges, list) or not merges or not all(_is_plain_pair(pair) for pair in merges):
        return False
    values["model"] = {**model, "merges": [" ".join(pair) for pair in merges]}  # type: ignore[dict-item]
    return True


def _is_plain_pair(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
        return False
    return " " not in pair[0] and " " not in pair[1]


def _check_ids(values: dict[str, Any], path: Any) -> None:
    """Raise unless all ids of a ``tokenizer.json`` are integers up to `MAX_ID` that have one token each."""
    vocabulary = values["model"].get("vocab")
    owners: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        for token, id in vocabulary.items():
            _take(owners, token, id, path)
    elif isinstance(vocabulary, list) and len(vocabulary) > MAX_ID:
        raise DataError(f"{path}: {len(vocabulary)} tokens, more than {MAX_ID + 1}")
    added = values.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise DataError(f"{path}: added_tokens: {str(token)[:80]} has no content")
        content = token["content"]
        if isinstance(vocabulary, dict) and content in vocabulary and vocabulary[content] != token.get("id"):
            raise DataError(
                f"{path}: added token {shown(content)} has id {shown(token.get('id'))}, "
                f"in the vocabulary {shown(vocabulary[content])}"
            )
        _take(owners, content, token.get("id"), path)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The single steps of a normalizer or decoder, also of sequences in sequences."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            yield step
            waiting += [step.get("normalizers"), step.get("decoders")]
        elif isinstance(step, list):
            waiting += step


def _growth(step: dict[str, Any]) -> float:
    """How many times longer a step can make a text. A pattern that matches nothing lets each character stand, too."""
    lengths = [len(text) for name in ("content", "prepend") if isinstance(text := step.get(name), str)]
    pattern = step.get("pattern")
    kept = 1 if lengths != [0] and (not isinstance(pattern, dict) or pattern.get("String") in (None, "")) else 0
    return float(max([1, *(length + kept for length in lengths)]))


def _take(owners: dict[int, str], token: str, id: Any, path: Any) -> None:
    """Note that a token has an id."""
    if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id <= MAX_ID:
        raise DataError(f"{path}: token {shown(token)} has id {shown(id)}, expected an integer in [0, {MAX_ID}]")
    if owners.setdefault(id, token) != token:
        raise DataError(f"{path}: two tokens share one id: {shown(owners[id])} and {shown(token)} have id {id}")


def _check_added_tokens(backend: tokenizers.Tokenizer, values: dict[str, Any], path: Any) -> None:
    """Raise if the library gave an added token another id than its file has: it numbers them as it likes."""
    for token in values.get("added_tokens") or ():
        found = backend.token_to_id(token["content"])
        if found != token["id"]:
            raise DataError(
                f"{path}: added token {shown(token['content'])} has id {token['id']}, but the library makes it {found}:"
                " added tokens must follow the vocabulary without a gap, or be part of it"
            )


def pieces_are_safe(text: str) -> bool:
    """Whether the tokens of a text's pieces, as `mom.data.Documents` cuts them, are the tokens of the text.

    That holds for byte-level BPE with the pre-tokenizer of GPT-2. It does not hold with a normalizer, with a space in
    front of every piece, or with added tokens in the text, which may span a cut.

    Parameters
    ----------
    text : str
        The tokenizer as the library writes it.
    """
    values = json.loads(text)
    pre = values.get("pre_tokenizer") or {}
    return bool(
        values["model"].get("type", "BPE") == "BPE"
        and values.get("normalizer") is None
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space", True)
        and pre.get("use_regex", True)
        and all(token.get("special") for token in values.get("added_tokens") or ())
    )


def check_behaviour(backend: tokenizers.Tokenizer) -> None:
    """Make a tokenizer deterministic, and warn if texts do not come back from its tokens.

    Raises
    ------
    DataError
        If it cannot encode an ordinary text, or gives one text several encodings.
    """
    if dropout := getattr(backend.model, "dropout", None):
        warnings.warn(
            f"tokenizer: dropout of merges ({dropout:.6g}) is switched off, so that a text has one encoding",
            stacklevel=4,
        )
        backend.model.dropout = None
    for text in _PROBES:
        got = _back(backend, text)
        if got != text:
            warnings.warn(
                f"tokenizer: {_damage(text, got)}. {text!r} comes back as {got[:200]!r}. What is lost is neither "
                "learnt nor measured",
                stacklevel=4,
            )
            return


def _back(backend: tokenizers.Tokenizer, text: str) -> str:
    """What comes back of a text when its tokens are decoded."""
    with library_errors("tokenizer: cannot encode an ordinary text"):
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        _check_length(normal, text, "normalizer")
        ids = [backend.encode(text, add_special_tokens=False).ids for _ in range(_REPEATS)]
        got: str = backend.decode(ids[0], skip_special_tokens=False)
        _check_length(got, text, "decoder")
    if any(again != ids[0] for again in ids):
        raise DataError("tokenizer: gives one text several encodings; measuring and preparing need a deterministic one")
    return got


def _check_length(made: str, text: str, part: str) -> None:
    if len(made) > _PROBE_GROWTH * len(text):
        raise DataError(f"tokenizer: its {part} makes {len(made)} characters of {len(text)}")


def _damage(text: str, got: str) -> str:
    """What happened to a text, in words."""
    lost = [c for c in dict.fromkeys(text) if not c.isspace() and got.count(c) < text.count(c)]
    if lost:
        words = " ".join(c if c.isalnum() or c.isascii() else f"U+{ord(c):04X}" for c in lost[:12])
        return f"drops or replaces characters ({words}{' ...' if len(lost) > 12 else ''})"
    if got.strip() == text.strip():
        return f"{'adds' if len(got) > len(text) else 'drops'} white space around a text"
    if _letters(got) == _letters(text):
        return "changes white space"
    return "changes texts"


def _letters(text: Iterable[str]) -> list[str]:
    return [c for c in text if not c.isspace()]
