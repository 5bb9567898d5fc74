"""Prepares models at the beginning of a run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from ..config import MoMConfig
from ..data.prepare import read_meta, tokenizer_of
from ..errors import ConfigError
from ..model import MoM
from ..model.beside import read_beside
from .state import read_progress

__all__ = ["model_of_checkpoint", "take_tokenizer"]

PathLike = str | os.PathLike[str]


def take_tokenizer(model: MoM, data: PathLike) -> None:
    """Give a model the tokenizer of prepared data, if there is one.

    A warning says if the model had another tokenizer.

    Raises
    ------
    ConfigError
        If the data have more tokens than the model.
    """
    vocabulary = read_meta(data).get("vocab_size")
    if vocabulary is not None and vocabulary > model.config.vocab_size:
        raise ConfigError(f"vocab_size: the model has {model.config.vocab_size} tokens, the data {vocabulary}")
    tokenizer = tokenizer_of(data)
    if tokenizer is None:
        return
    if model.tokenizer is not None and model.tokenizer.sha256 != tokenizer.sha256:
        warnings.warn("the data were made with another tokenizer than the model's; the data's is kept", stacklevel=2)
    model.tokenizer = tokenizer


def model_of_checkpoint(folder: PathLike, dtype: str | None = None) -> MoM:
    """A model of a checkpoint's shape, with all but the weights, which `mom.train` with ``resume=True`` reads.

    Parameters
    ----------
    folder : path
        A folder ``step-...`` of a run.
    dtype : {"float32", "bfloat16"}, optional
        By default that of the checkpoint.
    """
    folder = Path(folder)
    model = MoM(MoMConfig.from_json(folder), dtype=dtype or read_progress(folder).get("dtype", "float32"))
    read_beside(model, folder, fresh_head=True)
    return model
