"""Models by their name on the Hugging Face Hub, through the package `huggingface_hub`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..config import PRESETS
from ..errors import CheckpointError
from .atomic import mention_of
from .weights import is_pickle_name, pickle_error

__all__ = ["hint_of_name", "model_folder"]

#: Files that a model may need. Pickled weights are not downloaded.
_PATTERNS = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "vocab.json", "merges.txt",
    "encoder.json", "vocab.bpe", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


#: Models on the Hub without an owner.
_WITHOUT_OWNER = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def hint_of_name(name: str) -> str:
    """The end of a message about a name that is no folder: where a model of this name is, or nothing."""
    if name in _WITHOUT_OWNER:
        return f"; the model on the Hugging Face Hub is 'hub:{name}'"
    return f"; a new model of this shape has the configuration MoMConfig.preset({name!r})" if name in PRESETS else ""


def model_folder(name: str | os.PathLike[str], argument: str = "folder") -> Path:
    """The folder of a model: `name` itself, or the folder with the Hub's files of that name, downloaded or cached.

    Parameters
    ----------
    name : path or str
        A folder; ``"owner/name"`` on the Hub, if there is no such folder; or ``"hub:name"`` for any name on the Hub.
    argument : str
        What the caller's argument is called, for messages.

    Raises
    ------
    CheckpointError
        If there is no such folder and the Hub cannot help: `name` is no name on the Hub, `huggingface_hub` is not
        installed, or the files are not in its cache and the Hub cannot be reached.
    """
    text = os.fspath(name)
    prefixed = text.startswith("hub:")
    if not prefixed:
        folder = Path(name)
        parent_is_there = folder.parent != Path(".") and folder.parent.exists()
        if folder.is_dir():
            return folder
        if folder.is_file():
            if is_pickle_name(folder):
                raise pickle_error(folder)
            raise CheckpointError(f"{argument}: {text} is a file; give the folder that holds it and its config.json")
        left = mention_of(folder)
        if left or not isinstance(name, str) or parent_is_there or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
            raise CheckpointError(f"{argument}: {text} is not a folder{left or hint_of_name(text)}")
    repository = text.removeprefix("hub:")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{argument}: {text} is not a folder; for names on the Hub: pip install huggingface_hub"
        ) from None
    try:
        found = Path(snapshot_download(repository, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # the library and the network raise all kinds
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{argument}: {text} is not a folder, and the Hub did not give it ({type(error).__name__}: {reason}); "
            "without a connection, name a folder with config.json and model.safetensors"
        ) from None
    if not any(found.glob("*.safetensors")):
        raise CheckpointError(
            f"{argument}: {repository} on the Hub holds no .safetensors; pickled weights are not read here. Convert "
            "them where PyTorch is installed: load the model with transformers and save it with safe_serialization=True"
        )
    return found
