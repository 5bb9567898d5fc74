"""What stands beside the weights in a model's folder: configuration, labels, defaults of `generate` and tokenizer.

`mom.file_fields` lists every field of these files.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._json import to_json
from ..config import MoMConfig
from ..errors import CheckpointError
from ..file_fields import read_object
from ..files import folders
from ..files.generation import generation_fields, read_generation
from ..files.labels import label_fields, read_labels

if TYPE_CHECKING:
    from .network import Network

__all__ = ["as_tokenizer", "files_beside", "read_beside", "with_token_ids"]

_VOCABULARIES = ("tokenizer.json", "vocab.json", "encoder.json")


def with_token_ids(config: MoMConfig, tokenizer: Any) -> MoMConfig:
    """The configuration with the ids of a tokenizer's special tokens, which count where there is a tokenizer."""
    if tokenizer is None:
        return config
    return config.replace(eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id)


def as_tokenizer(value: Any) -> Any:
    """The tokenizer itself, or a `mom.Tokenizer` of one of the library ``tokenizers`` or of transformers."""
    if value is None or hasattr(value, "eos_id"):
        return value
    from ..data.tokenizer import END_OF_TEXT, Tokenizer

    backend = getattr(value, "backend_tokenizer", value)  # a fast one of transformers has one of the library
    if not hasattr(backend, "to_str"):
        raise TypeError(
            f"tokenizer: expected a mom.Tokenizer, or a tokenizer of the library tokenizers, got {type(value).__name__}"
        )
    made = type(backend).from_str(backend.to_str())  # the caller's keeps its settings
    return Tokenizer(made, eos_token=getattr(value, "eos_token", None) or END_OF_TEXT)


def files_beside(model: Network, dtype: str | None) -> dict[str, folders.Content]:
    """Names and contents of all files of a model but its weights, which are stored as `dtype`."""
    config = model.config
    files: dict[str, folders.Content] = {"config.json": to_json(_config_fields(model, dtype))}
    if not model.is_classifier:
        ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        if fields := generation_fields(model.generation, ids):
            files["generation_config.json"] = to_json(fields)
    if model.tokenizer is not None:
        files |= model.tokenizer.files(max_length=config.n_positions)
    return files


def _config_fields(model: Network, dtype: str | None) -> dict[str, Any]:
    fields = model.config.to_dict()
    if model.config.is_vanilla:  # for transformers
        kind = "GPT2ForSequenceClassification" if model.is_classifier else "GPT2LMHeadModel"
        fields |= {"architectures": [kind], "torch_dtype": dtype or "float32"}
        if not model.is_classifier:
            del fields["num_labels"]
    if model.is_classifier and (model.config.is_vanilla or model.label_names is not None):
        fields |= label_fields(model.label_names, model.config.num_labels or 1)
    if model.finetuning_task is not None:  # under transformers' name
        fields["finetuning_task"] = model.finetuning_task
    if model.finetuning_lengths:
        fields["finetuning_lengths"] = model.finetuning_lengths
    return fields


def read_beside(model: Network, folder: Path, fresh_head: bool) -> None:
    """Give a model what stands beside its weights in a folder; its configuration was read before.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
    folder : Path
    fresh_head : bool
        Whether the folder has no head. Then names of another number of labels are passed over.

    Warns
    -----
    UserWarning
        If the files contradict each other, or the tokenizer has ids that the model does not have.
    """
    fields = read_object(folder / "config.json", CheckpointError)
    source = str(folder / "config.json")
    _read_tokenizer(model, folder)
    config = model.config
    if model.is_classifier:
        named = fields.get("id2label")
        if not fresh_head or (isinstance(named, dict) and len(named) == config.num_labels):
            model.label_names = read_labels(fields, config.num_labels or 1, source)
    else:
        model.generation = read_generation(folder, fields, config.eos_token_id, config.vocab_size)
    task, lengths = fields.get("finetuning_task"), fields.get("finetuning_lengths")
    model.finetuning_task = task if isinstance(task, str) else None
    if isinstance(lengths, dict):
        model.finetuning_lengths = {name: n for name, n in lengths.items() if type(n) is int and n > 0}


def _read_tokenizer(model: Network, folder: Path) -> None:
    from ..data.tokenizer import Tokenizer

    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return
    tokenizer = Tokenizer.load(folder)
    known = model.config.vocab_size
    if tokenizer.vocab_size > known:
        warnings.warn(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size is {known}. Texts "
            f"that hold one of the other tokens, such as {tokenizer.token(tokenizer.vocab_size - 1)!r}, are errors",
            stacklevel=4,
        )
    said = model.config.eos_token_id
    if said is not None and tokenizer.eos_id is not None and said != tokenizer.eos_id:
        if (other := tokenizer.token(said)) is not None:
            warnings.warn(
                f"{folder}: config.json says that eos_token_id is {said}, {other!r}, but the tokenizer's files name "
                f"{tokenizer.token(tokenizer.eos_id)!r}, which counts",
                stacklevel=4,
            )
    model.tokenizer = tokenizer
