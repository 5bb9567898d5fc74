"""From text to token files: ``train.bin``, ``val.bin``, ``meta.json`` and the tokenizer's files in one folder.

The format is nanoGPT's (ids one after the other, little-endian uint16, or uint32 for vocabularies beyond
65,536). Beside each token file lies its description under its own name, ``train.bin.json``, which a copy of the file
should take along. Documents are read, encoded and written in batches, so memory does not grow with the text.
Everything is first written to a temporary folder. When all files are on the disk, the folder takes the place of the
earlier one in one step. If the folder holds other files, too, the new files are renamed into it one by one, and
``meta.json`` is missing meanwhile. A failure on the way undoes the renames. So a folder holds the earlier content or
the new one, never a mixture that looks whole.

A hash of seed and document number decides which documents are for validation. If that leaves one side empty, as with a
single long document, the last tokens of the whole text become the validation part.

The worker threads of the ``tokenizers`` library encode a batch. ``RAYON_NUM_THREADS`` sets their number, and
``TOKENIZERS_PARALLELISM=false`` switches them off. The result does not depend on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, flags
from .._reading import is_size, kind_of, read_json
from ..distributed import current
from ..errors import DataError
from ..file_fields import check
from ..files.atomic import mention_of, naming_file, replacing_files
from ..files.folders import write_json
from .hub_texts import HUB, hub_documents
from .sources import Documents, Piece, TextDocuments, pieces_for
from .token_formats import DTYPES, description_file, read_description
from .tokenizer import Tokenizer
from .tokenizer_files import TOKENIZER_FILES

__all__ = ["documents_of", "prepare", "read_meta", "tokenizer_of"]


#: What a folder of prepared data holds. The last one says that the others are complete.
_NAMES = ("train.bin", "val.bin", "train.bin.json", "val.bin.json", *TOKENIZER_FILES, "meta.json")
_BATCH_CHARS = 1 << 20
_COPY_BYTES = 1 << 20
_LOG = logging.getLogger(__name__)


def prepare(
    sources: PathLike | Sequence[PathLike] | Documents | TextDocuments,
    out_dir: PathLike,
    *,
    tokenizer: Tokenizer | PathLike | None = None,
    vocab_size: int = 8192,
    val_fraction: float = 0.01,
    seed: int = 0,
    append_eos: bool = True,
    key: str = "text",
    split: str = "file",
    on_error: str = "raise",
    progress: bool = True,
) -> dict[str, Any]:
    """Turn text into token files.

    Parameters
    ----------
    sources : path, sequence of paths, Documents or TextDocuments
        The text. `standard_library_text` gives one that every machine has. ``"hub:owner/name"`` is the split ``train``
        of a data set on the Hub, see `mom.data.hub_documents`.
    out_dir : path
        Folder for the files; made if missing. Other files in the folder are left alone.
    tokenizer : Tokenizer or path, optional
        By default a new one is trained on all of `sources`.
    vocab_size : int
        Vocabulary of a new tokenizer. Little text may yield a smaller one.
    val_fraction : float
        Expected share of documents in ``val.bin``, in [0, 1). 0 writes no ``val.bin``.
    seed : int
        Decides which documents these are.
    append_eos : bool
        End every document with the tokenizer's end-of-text token.
    key, split, on_error
        See `Documents`; without effect if `sources` is an object of that class.
    progress : bool
        Show progress bars.

    Returns
    -------
    dict
        The content of ``meta.json``. It has ``dtype``, ``vocab_size``, ``eos_id`` and ``tokenizer_sha256``; in
        ``files`` the tokens, documents and SHA-256 of each file; ``val_split``, which is ``"documents"``, ``"tail"`` or
        ``"none"``; and what was read and skipped.

    Raises
    ------
    DataError
        If an argument or the text cannot be used.
    OSError
        If the disk fails or is full; `out_dir` is then as it was.
    """
    append_eos, progress = flags(append_eos=append_eos, progress=progress)
    if not 0.0 <= val_fraction < 1.0:
        raise DataError(f"val_fraction: {val_fraction} is not in [0, 1)")
    documents = documents_of(sources, key, split, on_error)

    def write() -> dict[str, Any]:
        chosen = _tokenizer_for(documents, tokenizer, vocab_size, progress)
        if append_eos and chosen.eos_id is None:
            raise DataError("tokenizer: has no end-of-text token; use another one or append_eos=False")
        with replacing_files(Path(out_dir), _NAMES) as stage:
            return _write_files(stage, documents, chosen, val_fraction, seed, append_eos, progress)

    return current().from_first(write)


def documents_of(
    sources: PathLike | Sequence[PathLike] | Documents | TextDocuments, key: str, split: str, on_error: str
) -> Documents | TextDocuments:
    """The documents that the sources of `prepare` name."""
    if isinstance(sources, (Documents, TextDocuments)):
        return sources
    given = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    names = [source for source in given if isinstance(source, str) and source.startswith(HUB)]
    if not names:
        return Documents(sources, key=key, split=split, on_error=on_error)
    if len(given) > 1:
        raise DataError(f"sources: {names[0]!r} is a data set on the Hub and must be the only source")
    return hub_documents(names[0], key=key, on_error=on_error)


def _tokenizer_for(
    documents: Documents | TextDocuments, given: Tokenizer | PathLike | None, vocab_size: int, progress: bool
) -> Tokenizer:
    if given is not None:
        return given if isinstance(given, Tokenizer) else Tokenizer.load(given)
    from tqdm.auto import tqdm

    texts = tqdm(documents.texts(), "reading for the tokenizer", unit=" pieces", disable=not progress)
    return Tokenizer.train(texts, vocab_size, progress=progress)


def read_meta(data: PathLike) -> dict[str, Any]:
    """``meta.json`` of prepared data, or a token file's own description; empty for a token file without either."""
    path = Path(data)
    if kind_of(path) == "file" and kind_of(description_file(path)) is not None:
        return read_description(path)[0]
    file = (path if kind_of(path) == "folder" else path.parent) / "meta.json"
    if kind_of(file) is None:
        if left := mention_of(file) or mention_of(file.parent):
            raise DataError(f"{file}: no such file{left}")
        return {}
    values = read_json(file, DataError)
    if not isinstance(values, dict) or not is_size(values.get("vocab_size", 1)):
        raise DataError(f"{file}: not written by 'mom prepare'")
    check("meta.json", values, str(file), DataError, also=None)
    return values


def tokenizer_of(data: PathLike) -> Tokenizer | None:
    """The tokenizer that lies beside prepared data or in the folder of a model; None if there is none."""
    path = Path(data)
    file = (path if kind_of(path) == "folder" else path.parent) / "tokenizer.json"
    return None if kind_of(file) is None else Tokenizer.load(file)


def _write_files(
    stage: Path,
    documents: Documents | TextDocuments,
    tokenizer: Tokenizer,
    val_fraction: float,
    seed: int,
    append_eos: bool,
    progress: bool,
) -> dict[str, Any]:
    """Write all files into `stage`, under their final names and through to the disk. Returns the meta data."""
    dtype = DTYPES["uint16" if tokenizer.vocab_size <= 65536 else "uint32"]
    end = np.array([tokenizer.eos_id] if append_eos else [], dtype)
    with (
        contextlib.closing(_TokenWriter(stage / "train.part", dtype)) as train,
        contextlib.closing(_TokenWriter(stage / "val.part", dtype)) as val,
    ):
        number = 0
        for batch in _batches(documents, tokenizer, progress):
            encoded = tokenizer.encode_batch([piece.text for piece in batch])
            for piece, ids in zip(batch, encoded, strict=True):
                writer = val if _is_validation(seed, number, val_fraction) else train
                writer.add(ids)
                if piece.end:
                    writer.add(end)
                    writer.documents += 1
                    number += 1
        val_split = "documents" if val_fraction else "none"
        if not train.tokens + val.tokens:
            raise DataError(f"{', '.join(documents.names)}: holds no text")
        if val_fraction and not (train.tokens and val.tokens):
            val_split = "tail"
            if not train.tokens:
                train, val = val, train
            # One token at least stays in each file: an empty token file is of no use.
            _move_tail(train, val, min(max(1, round(train.tokens * val_fraction)), train.tokens - 1))
        files = {"train.bin": train.finish(stage / "train.bin")}
        if val.tokens:
            files["val.bin"] = val.finish(stage / "val.bin")
    report = documents.report
    meta = {
        "format": 1,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": tokenizer.sha256,
        "files": files,
        "val_split": val_split,
        "val_fraction": val_fraction,
        "seed": seed,
        "append_eos": append_eos,
        "sources": documents.names,
        "source_files": report.files,
        "source_bytes": report.bytes_read,
        "documents": report.documents,
        "empty_documents": report.empty,
        "skipped": report.skipped,
        "problems": report.problems,
    }
    tokenizer.save(stage)
    _write_descriptions(stage, meta)
    return meta


def _write_descriptions(stage: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json``, and for each token file what a copy of it needs, under the file's own name."""
    shared = {name: meta[name] for name in ("format", "dtype", "vocab_size", "eos_id", "tokenizer_sha256")}
    for name, entry in meta["files"].items():
        write_json(description_file(stage / name), {**shared, **entry})
    write_json(stage / "meta.json", meta)


def _batches(documents: Documents | TextDocuments, tokenizer: Tokenizer, progress: bool) -> Iterator[list[Piece]]:
    """Pieces in lists of about `_BATCH_CHARS` characters."""
    from tqdm.auto import tqdm

    total = documents.total_bytes or None
    with tqdm(desc="tokens", total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        batch: list[Piece] = []
        chars = done = 0
        for piece in pieces_for(documents, tokenizer):
            batch.append(piece)
            chars += len(piece.text)
            if chars >= _BATCH_CHARS:
                yield batch
                bar.update(documents.report.bytes_read - done)
                batch, chars, done = [], 0, documents.report.bytes_read
        if batch:
            yield batch
        bar.update(documents.report.bytes_read - done)


def _is_validation(seed: int, number: int, fraction: float) -> bool:
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64


class _TokenWriter:
    """A token file in the making: appends ids and counts them."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, dtype
        self.tokens = self.documents = 0
        self.file = open(path, "w+b")

    def close(self) -> None:
        with naming_file(self.path):
            self.file.close()

    def add(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        if ids.size:
            with naming_file(self.path):
                self.file.write(ids.astype(self.dtype, copy=False).view(np.uint8).data)
            self.tokens += ids.size

    def finish(self, path: Path) -> dict[str, Any]:
        """Bring everything to the disk and give the file its final name."""
        with naming_file(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.seek(0)
            digest = hashlib.sha256()
            while block := self.file.read(_COPY_BYTES):
                digest.update(block)
        os.rename(self.path, path)
        return {"tokens": self.tokens, "documents": self.documents, "sha256": digest.hexdigest()}


def _move_tail(source: _TokenWriter, target: _TokenWriter, count: int) -> None:
    """Move the last `count` tokens from one file to the end of another."""
    position = source.tokens - count
    block_size = _COPY_BYTES // source.dtype.itemsize
    with naming_file(source.path):  # an error of the target has its name already
        source.file.seek(position * source.dtype.itemsize)
        for start in range(0, count, block_size):
            size = min(block_size, count - start)
            target.add(np.frombuffer(source.file.read(size * source.dtype.itemsize), source.dtype))
        source.file.truncate(position * source.dtype.itemsize)
    source.tokens = position
    _LOG.info("val.bin: the last %d tokens of the text, as no split by documents was possible", count)
