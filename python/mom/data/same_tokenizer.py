"""Whether prepared data were made with a model's tokenizer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import DataError
from .prepare import read_meta, tokenizer_of
from .token_files import TokenFile
from .tokenizer import Tokenizer

__all__ = ["warn_of_other_tokenizer"]


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
    files = meta.get("files")
    if tokenizer is None or (isinstance(files, dict) and not path.is_dir() and path.name not in files):
        return
    theirs, ours = meta.get("tokenizer_sha256"), tokenizer.sha256
    if theirs is not None and theirs != ours and not _is_same(tokenizer, path):
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


def _is_same(tokenizer: Tokenizer, path: Path) -> bool:
    """Whether the tokenizer beside the data is this one. Another version of the library gives it another hash."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            beside: Any = tokenizer_of(path)
    except DataError:
        return False
    return beside is not None and beside.sha256 == tokenizer.sha256
