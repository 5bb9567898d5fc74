"""The tokenizer of prepared data, and whether it is that of a model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import DataError
from .prepare import read_meta, tokenizer_of
from .token_files import TokenFile
from .tokenizer import Tokenizer

__all__ = ["tokenizer_for", "warn_of_other_tokenizer"]


def tokenizer_for(data: TokenFile, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of prepared data, for a model that has none.

    Parameters
    ----------
    data : TokenFile
        What `mom.data.prepare` wrote. Files that ``meta.json`` does not describe have no known tokenizer.
    vocab_size : int
        The model's. If the tokenizer has more ids, a warning says so, and the result is None.
    """
    found = tokenizer_of(data.path) if _is_described(read_meta(data.path), data.path) else None
    if found is not None and found.vocab_size > vocab_size:
        warnings.warn(
            f"{data.path}: its tokenizer has {found.vocab_size} ids, more than the model's vocab_size = {vocab_size}, "
            "so the model stays without a tokenizer",
            stacklevel=2,
        )
        return None
    return found


def _is_described(meta: dict[str, Any], path: Path) -> bool:
    """Whether ``meta.json`` speaks of a folder or a file in it, so that the tokenizer beside them is theirs."""
    files = meta.get("files")
    return not isinstance(files, dict) or path.is_dir() or path.name in files


def warn_of_other_tokenizer(
    tokenizer: Tokenizer | None, data: str | os.PathLike[str] | TokenFile, stacklevel: int = 2
) -> None:
    """Warn if the tokens of prepared data stand for other texts than a model's tokenizer says.

    Parameters
    ----------
    tokenizer : Tokenizer or None
        The model's. Without one there is nothing to compare.
    data : path or TokenFile
        What `mom.data.prepare` wrote. Files that ``meta.json`` does not describe are passed over.
    stacklevel : int
        As for `warnings.warn`.
    """
    path = Path(data.path if isinstance(data, TokenFile) else data)
    meta = read_meta(path)
    if tokenizer is None or not _is_described(meta, path):
        return
    theirs, ours = meta.get("tokenizer_sha256"), tokenizer.sha256
    if theirs is not None and theirs != ours and not _has_same_tokens(tokenizer, path):
        warnings.warn(
            f"{path}: was made with another tokenizer than the model's (tokenizer_sha256 in meta.json is "
            f"{str(theirs)[:12]}..., that of the model's tokenizer {ours[:12]}...), so the tokens stand for other "
            "texts. Prepare the data with the model's tokenizer, or give the model that of the data",
            stacklevel=stacklevel + 1,
        )
    elif meta.get("append_eos") and meta.get("eos_id") != tokenizer.eos_id:
        warnings.warn(
            f"{path}: documents end with the token {meta.get('eos_id')}, but the model's tokenizer ends them with "
            f"{tokenizer.eos_id}. Prepare the data with the model's tokenizer, or give the model that of the data",
            stacklevel=stacklevel + 1,
        )


def _has_same_tokens(tokenizer: Tokenizer, path: Path) -> bool:
    """Whether the tokenizer beside the data makes the same tokens of a text. It may end documents in another way.

    Another version of the library can give the same tokenizer another hash.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            beside: Any = tokenizer_of(path)
    except DataError:
        return False
    return beside is not None and beside.to_json() == tokenizer.to_json()
