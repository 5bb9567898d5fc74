"""Byte-level BPE, as GPT-2 uses it, on top of the ``tokenizers`` library.

`Tokenizer` adds three things to the library. Token ids are NumPy arrays of int32. Files are checked before use, and
messages name the file. And text is data: a document that contains ``<|endoftext|>`` does not end there, unless the
caller asks for that.

References
----------
Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.2.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._arguments import flag
from .._reading import parse_json, read_text, shown
from ..errors import DataError
from ..familiar import Familiar, takes_familiar_arguments, text_batch
from ..files.folders import write_file
from .columns import checked_texts
from .cuts import safe_parts
from .library_calls import LONGEST_CALL, groups, interruptible
from .tokenizer_checks import MAX_ID, check_behaviour, library_errors, pieces_are_safe, portable_json, read_backend
from .tokenizer_files import TokenizerSettings, apply, end_token, read_settings, settings_files

if TYPE_CHECKING:  # a large library: imported where it is used, so that `import mom` does not load it
    import tokenizers
    from tokenizers import models

__all__ = ["END_OF_TEXT", "MAX_FILE_BYTES", "Tokenizer"]

PathLike = str | os.PathLike[str]

#: GPT-2's only special token: separates documents.
END_OF_TEXT = "<|endoftext|>"
#: Largest size of a new vocabulary, and of a model's. The library reserves memory for the whole vocabulary at once and
#: ends the process if there is not enough.
MAX_VOCAB_SIZE = 2**24
#: Larger tokenizer files are refused unread.
MAX_FILE_BYTES = 512 * 1024 * 1024

#: Vocabulary and merges under the names of Hugging Face and of OpenAI.
_FILE_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


class Tokenizer(Familiar):
    """Text to token ids and back.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Any tokenizer of the library. Truncation, padding and dropout of merges are switched off. A warning says if
        texts do not come back from their tokens as they were.
    eos_token : str
        The token that separates documents.
    settings : TokenizerSettings, optional
        What the files beside a vocabulary say: all special tokens, `eos_token` among them.

    See Also
    --------
    Tokenizer.train : learn a vocabulary.
    Tokenizer.load : read one from files.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, eos_token: str = END_OF_TEXT, settings: TokenizerSettings | None = None
    ) -> None:
        import tokenizers

        with library_errors("tokenizer: not usable"):
            backend.no_truncation()
            backend.no_padding()
            check_behaviour(backend)
            self._with_special = backend
            # In the library, "are special tokens recognised?" is a state. Two copies make an argument of it.
            content = backend.to_str()
            self._plain = tokenizers.Tokenizer.from_str(content)
            self._plain.encode_special_tokens = True
            #: Whether the tokens of a text's pieces, as `Documents` cuts them, are the tokens of the text.
            self.pieces_are_safe = pieces_are_safe(content)
        #: What the files beside the vocabulary say; saved with it.
        self.settings = TokenizerSettings({"eos_token": eos_token}) if settings is None else settings
        ids = set(backend.get_vocab(with_added_tokens=True).values())
        self._vocab_size = max(ids, default=-1) + 1
        #: Ids that have a token; None if every id below `vocab_size` has one.
        self._ids = None if len(ids) == self._vocab_size else np.array(sorted(ids), np.int64)

    # ------------------------------------------------------------------ making one
    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        progress: bool = False,
    ) -> Tokenizer:
        """Learn a byte-level BPE vocabulary.

        Parameters
        ----------
        texts : iterable of str
            Read one by one; memory grows with the number of distinct words.
        vocab_size : int
            Tokens wanted, at most 2**24: special tokens, 256 bytes and merges. Little text may yield fewer.
        special_tokens : sequence of str
            They get the first ids. The first special token separates documents.
        progress : bool
            Show the library's progress bar.

        Raises
        ------
        DataError
            If `vocab_size` is too small or too large, or `texts` yields something else than text.
        """
        progress = flag(progress, "progress")
        special_tokens = list(special_tokens)
        texts = checked_texts(texts)
        if not special_tokens or len(set(special_tokens)) != len(special_tokens):
            raise DataError(f"special_tokens: expected one or more distinct tokens, got {special_tokens!r}")
        least = 256 + len(special_tokens)
        if vocab_size < least:
            raise DataError(f"vocab_size: {vocab_size} is less than {least} (256 bytes and the special tokens)")
        if vocab_size > MAX_VOCAB_SIZE:
            raise DataError(f"vocab_size: {vocab_size} is larger than the supported maximum {MAX_VOCAB_SIZE}")
        from tokenizers import models, trainers

        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            initial_alphabet=sorted(_alphabet()),
            show_progress=progress,
        )

        def learn(check: Callable[[], None]) -> None:
            def given() -> Iterator[str]:
                for row, text in enumerate(texts):
                    check()
                    yield _checked_text(text, row)

            backend.train_from_iterator(given(), trainer=trainer)

        interruptible(learn)
        return cls(backend, eos_token=special_tokens[0])

    @classmethod
    def load(cls, path: PathLike, eos_token: str | None = None) -> Tokenizer:
        """Read a tokenizer, and what the files beside it say of its special tokens.

        Parameters
        ----------
        path : path
            A ``tokenizer.json``; or a folder with ``tokenizer.json``, with ``vocab.json`` and
            ``merges.txt``, or with ``encoder.json`` and ``vocab.bpe``; or one file of such a pair.
        eos_token : str, optional
            The token that separates documents; `eos_id` is None if the vocabulary lacks it. By default the token that
            the files name: ``tokenizer_config.json``, ``special_tokens_map.json``, or the id in ``config.json``,
            ``generation_config.json`` or ``meta.json``. If none does, it is ``<|endoftext|>``.

        Raises
        ------
        DataError
            If a file is missing, truncated, malformed, not UTF-8 or larger than `MAX_FILE_BYTES`.

        Warns
        -----
        UserWarning
            Of fields that are not known, special tokens that the vocabulary lacks, and tokens that the tokenizer would
            put around a text.
        """
        path = Path(path)
        if path.is_dir():
            for names in (("tokenizer.json",), *_FILE_PAIRS):
                if (path / names[0]).is_file():
                    return cls.load(path / names[0], eos_token)
            wanted = "tokenizer.json, vocab.json + merges.txt or encoder.json + vocab.bpe"
            raise DataError(f"{path}: holds no tokenizer ({wanted})")
        pair = next((names for names in _FILE_PAIRS if path.name in names), None)
        backend = _from_json(path) if pair is None else _from_pair(*map(path.with_name, pair))
        # A file of another name says nothing of the other files in its folder.
        found = read_settings(path.parent if pair is not None or path.name == "tokenizer.json" else path)
        # The library reads some damaged files, but not what it writes from them, or it panics when it is used.
        with library_errors(f"{path}: not a usable tokenizer"):
            backend = apply(backend, found, from_pair=pair is not None)
            settings = end_token(backend, found, eos_token)
        try:
            return cls(backend, settings=settings)
        except Exception as error:
            raise DataError(f"{path}: not a usable tokenizer ({error})") from None

    from_pretrained = load  # as in other libraries

    # ------------------------------------------------------------------ use
    def __call__(self, texts: str | Sequence[str], **options: Any) -> dict[str, npt.NDArray[np.int32]]:
        """Ids and attention mask of one text or of several, as other libraries return them.

        Parameters
        ----------
        texts : str or sequence of str
        **options
            Only ``padding=True`` and ``return_tensors="np"``, which change nothing.

        Returns
        -------
        dict
            ``"input_ids"`` and ``"attention_mask"``: for one text arrays (T,), for several (B, T), filled up on the
            right with 0 where the mask is 0.
        """
        for name, value in options.items():
            if (name, value) not in (("padding", True), ("padding", "longest"), ("return_tensors", "np")):
                raise TypeError(f"{name}={value!r}: is not possible here; encode and encode_batch give rows of ids")
        return text_batch(self, texts)

    @takes_familiar_arguments
    def encode(self, text: str, special: bool = False) -> npt.NDArray[np.int32]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
            The text; nothing is added before or after.
        special : bool
            Whether special tokens written out in the text become those tokens (a prompt) or are
            text like any other (a document).

        Returns
        -------
        ndarray of int32, shape (T,)
        """
        return self._encode([_checked_text(text)], flag(special, "special"))[0]

    def encode_batch(self, texts: Sequence[str], special: bool = False) -> list[npt.NDArray[np.int32]]:
        """Token ids of several texts, with the library's worker threads; see `encode`."""
        special = flag(special, "special")
        return self._encode([*map(_checked_text, checked_texts(texts), itertools.count())], special)

    def _encode(self, texts: list[str], special: bool) -> list[npt.NDArray[np.int32]]:
        rows: list[npt.NDArray[np.int32]] = []
        for group in groups(texts):
            if len(group[0]) > LONGEST_CALL:
                rows.append(self._encode_long(group[0], special))
            else:
                rows += self._call(group, special)
        return rows

    def _encode_long(self, text: str, special: bool) -> npt.NDArray[np.int32]:
        """Token ids of a text that would take too long in one call, in parts where that changes no token."""
        may_cut = self.pieces_are_safe and not special  # a cut could divide a special token
        rows: list[npt.NDArray[np.int32]] = []
        for part in safe_parts(text, LONGEST_CALL) if may_cut else [text]:
            if len(part) > LONGEST_CALL:
                rows += interruptible(lambda _, part=part: self._call([part], special))  # type: ignore[misc]
            else:
                rows += self._call([part], special)
        return np.concatenate(rows)

    def _call(self, texts: list[str], special: bool) -> list[npt.NDArray[np.int32]]:
        backend = self._with_special if special else self._plain
        encode = getattr(backend, "encode_batch_fast", backend.encode_batch)  # without offsets, since tokenizers 0.20
        with library_errors("texts: the tokenizer cannot encode them"):
            encodings = encode(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @takes_familiar_arguments
    def decode(self, ids: npt.ArrayLike, skip_special_tokens: bool = False) -> str:
        """Text of token ids, with special tokens written out. The exact inverse of `encode`.

        Parameters
        ----------
        ids : array_like of int, shape (T,)
            Bytes that do not form whole characters become U+FFFD, for example after a cut in the middle of one.
        skip_special_tokens : bool
            Leave special tokens out.

        Raises
        ------
        DataError
            If `ids` is not one-dimensional or holds an id outside the vocabulary, or one of `unused_ids`.
        """
        skip = flag(skip_special_tokens, "skip_special_tokens")
        array = np.asarray(ids)
        if array.size == 0:
            return ""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"ids: {array.dtype} of shape {array.shape}, expected integers of shape (T,)")
        outside = (array < 0) | (array >= self._vocab_size)
        if self._ids is not None:
            outside |= ~np.isin(array, self._ids)
        wrong = np.flatnonzero(outside)
        if wrong.size:
            raise DataError(
                f"ids: {array[wrong[0]]} at position {wrong[0]} is outside the vocabulary of {self._vocab_size}"
            )
        with library_errors("ids: the tokenizer cannot decode them"):
            text: str = self._with_special.decode(array.tolist(), skip_special_tokens=skip)
        return text

    def token(self, id: int) -> str | None:
        """The token of an id, as the vocabulary writes it; None if the id has no token."""
        return self._with_special.id_to_token(id) if 0 <= id < self._vocab_size else None

    @property
    def vocab_size(self) -> int:
        """The largest id plus one. A model's ``vocab_size`` must be at least this."""
        return self._vocab_size

    def unused_ids(self, below: int) -> npt.NDArray[np.int32]:
        """Ids below `below` and `vocab_size` that have no token, in rising order. Most vocabularies have none."""
        if self._ids is None:
            return np.zeros(0, np.int32)
        unused = np.ones(min(below, self._vocab_size), np.bool_)
        unused[self._ids[self._ids < len(unused)]] = False
        return np.flatnonzero(unused).astype(np.int32)

    @property
    def eos_id(self) -> int | None:
        """Id of the token that separates documents, None if the vocabulary has none."""
        return self._id_of("eos_token")

    @property
    def bos_id(self) -> int | None:
        """Id of the token that begins texts. If the tokenizer names none, it is `eos_id`."""
        found = self._id_of("bos_token")
        return self.eos_id if found is None else found

    def _id_of(self, name: str) -> int | None:
        token = self.settings.tokens.get(name)
        return None if token is None else self._with_special.token_to_id(token)

    # ------------------------------------------------------------------ files
    def to_json(self) -> str:
        """Contents of a ``tokenizer.json``, in a form that all versions of the library read."""
        return portable_json(self._with_special)

    @property
    def sha256(self) -> str:
        """Hash of `to_json` and `eos_id`: equal for tokenizers that make the same tokens of the same documents."""
        return hashlib.sha256(f"{self.to_json()}\n{self.eos_id}".encode()).hexdigest()

    def files(self, max_length: int | None = None) -> dict[str, str]:
        """What `save` writes: file names and contents. `max_length` is for ``model_max_length``."""
        return {**settings_files(self._with_special, self.settings, max_length), "tokenizer.json": self.to_json()}

    def save(self, folder: PathLike) -> Path:
        """Write ``tokenizer.json`` and what belongs beside it into `folder` (made when missing).

        ``tokenizer_config.json`` and ``special_tokens_map.json`` name the special tokens, so that `load` and
        transformers find them again. Each file is written atomically.

        Returns
        -------
        Path
            Of ``tokenizer.json``.
        """
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            write_file(path.with_name(name), content)
        return path

    def __getstate__(self) -> tuple[str, TokenizerSettings]:
        """For `copy.deepcopy` and other processes. The library's own copies forget that special tokens are text."""
        return self.to_json(), self.settings

    def __setstate__(self, state: tuple[str, TokenizerSettings]) -> None:
        import tokenizers

        text, settings = state
        self.__init__(tokenizers.Tokenizer.from_str(text), settings=settings)  # type: ignore[misc]

    def __len__(self) -> int:
        return self._vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self._vocab_size}, eos_id={self.eos_id})"


def _alphabet() -> set[str]:
    """The characters that stand for the 256 bytes."""
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _checked_text(text: Any, row: int | None = None) -> str:
    where = "" if row is None else f" in row {row}"
    if not isinstance(text, str):
        raise DataError(f"texts: expected str, got {type(text).__name__}{where}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"texts: lone surrogate at position {error.start}{where}, not valid text") from None
    return text


def _read_text(path: Path) -> str:
    try:
        return read_text(path, DataError, MAX_FILE_BYTES, "a tokenizer file")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    text = _read_text(path)
    values = parse_json(text, str(path), DataError, flaw="truncated or not valid JSON")
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object, got a {type(values).__name__}")
    return values, text


def _from_json(path: Path) -> tokenizers.Tokenizer:
    values, text = _read_object(path)
    if not isinstance(values.get("model"), dict):
        raise DataError(f"{path}: not a tokenizer.json (no 'model')")
    backend = read_backend(values, text, path)
    if not backend.get_vocab_size():
        raise DataError(f"{path}: not a usable tokenizer (its vocabulary is empty)")
    if "ByteLevel" in json.dumps(values.get("pre_tokenizer")):
        _check_alphabet(backend.get_vocab(), path)
    return backend


def _from_pair(vocabulary_path: Path, merges_path: Path) -> tokenizers.Tokenizer:
    vocabulary, _ = _read_object(vocabulary_path)
    for token, id in vocabulary.items():
        if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id <= MAX_ID:
            what = f"token {shown(token)} has id {shown(id)}"
            raise DataError(f"{vocabulary_path}: {what}, expected an integer in [0, {MAX_ID}]")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise DataError(f"{vocabulary_path}: two tokens share one id")
    _check_alphabet(vocabulary, vocabulary_path)
    merges = []
    for number, line in enumerate(_read_text(merges_path).split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.removesuffix("\r").partition(" ")
        if not left or not right or " " in right:
            raise DataError(f"{merges_path}: line {number}: {line[:80]!r} is not a pair of tokens")
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise DataError(f"{merges_path}: line {number}: {shown(token)} is not in {vocabulary_path.name}")
        merges.append((left, right))
    # Every ordinary token is a byte or the result of a merge. All other tokens must be special.
    reachable = {left + right for left, right in merges} | _alphabet()
    unreachable = [token for token in vocabulary if token not in reachable and not _looks_special(token)]
    if unreachable:
        raise DataError(
            f"{merges_path}: no merge makes {shown(unreachable[0])} of {vocabulary_path.name} "
            f"({len(unreachable)} such tokens); truncated?"
        )
    from tokenizers import models

    with library_errors(f"{vocabulary_path}: not a usable vocabulary"):
        backend = _byte_level(models.BPE(vocab=vocabulary, merges=merges))
    special = sorted(vocabulary.keys() - reachable, key=vocabulary.__getitem__)
    backend.add_special_tokens(special)
    return backend


def _looks_special(token: str) -> bool:
    return len(token) > 2 and token.startswith("<") and token.endswith(">")


def _check_alphabet(vocabulary: dict[str, int], path: Path) -> None:
    """Raise if a byte has no token: byte-level BPE would drop the byte in silence."""
    missing = _alphabet() - vocabulary.keys()
    if missing:
        raise DataError(f"{path}: {len(missing)} of the 256 byte tokens are missing; truncated or not byte-level BPE")
