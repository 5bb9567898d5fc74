"""Defaults of `generate` in ``generation_config.json``, as transformers keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._arguments import count, number
from ..errors import ConfigError
from ..file_fields import LEGACY_GENERATION, check, read_object

__all__ = ["GenerationDefaults", "generation_fields", "read_generation"]

#: Choices among which transformers samples if a file does not say how many.
_TOP_K = 50


@dataclass(frozen=True)
class GenerationDefaults:
    """What `MoM.generate` does where its arguments do not say otherwise.

    Attributes
    ----------
    temperature : float
        0 is greedy.
    top_k : int or None
    top_p : float or None
    max_new_tokens : int or None
    max_length : int or None
        Tokens of prompt and continuation, where `max_new_tokens` is None.
    stop_tokens : tuple of int
        Tokens that end a text, beside the tokenizer's end token; of `generate_text`.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            number(self.temperature, "temperature", 0.0, "a non-negative finite number")
            for name in ("top_k", "max_new_tokens", "max_length"):
                if getattr(self, name) is not None:
                    count(getattr(self, name), name, 1)
            if self.top_p is not None and not 0.0 < number(self.top_p, "top_p", 0.0, "in (0, 1]") <= 1.0:
                raise ValueError(f"top_p: {self.top_p} is not in (0, 1]")
            for token in self.stop_tokens:
                count(token, "stop_tokens")
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None

    def new_tokens(self, longest: int) -> int | None:
        """New tokens after a prompt of `longest` tokens; None if there is no default."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens
        return max(1, self.max_length - longest)


def read_generation(folder: Path, fields: Mapping[str, Any], end: int | None, vocab_size: int) -> GenerationDefaults:
    """The defaults in a model's folder: those of ``generation_config.json``, or of ``config.json`` if there is none.

    Parameters
    ----------
    folder : Path
    fields : mapping
        Of ``config.json``.
    end : int or None
        The model's end token, which is not listed among the `stop_tokens`.
    vocab_size : int
        Ids that the model does not have are left out.

    Raises
    ------
    ConfigError
        If the file is malformed or a value is out of range.
    """
    path = folder / "generation_config.json"
    values = read_object(path, ConfigError)
    if not values:
        path = folder / "config.json"
        values = {name: value for name, value in fields.items() if name in LEGACY_GENERATION or name == "eos_token_id"}
    check("generation_config.json", values, str(path), ConfigError)
    ids = values.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    given = {name: values[name] for name in ("max_new_tokens", "max_length") if values.get(name) is not None}
    sampled = values.get("do_sample") is True
    temperature, top_k, top_p = (values.get(name) for name in ("temperature", "top_k", "top_p"))
    top_k = _TOP_K if top_k is None and sampled else top_k
    given |= {
        "temperature": (1.0 if temperature is None else temperature) if sampled else 0.0,
        "top_k": None if top_k == 0 else top_k, "top_p": None if top_p in (1, 1.0) else top_p,
    }  # fmt: skip
    try:
        stops = tuple(count(id, "eos_token_id") for id in ids)
        return GenerationDefaults(**given, stop_tokens=tuple(id for id in stops if id != end and id < vocab_size))
    except (TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{path}: {error}") from None


def generation_fields(defaults: GenerationDefaults, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The fields of ``generation_config.json``; none if there is nothing to say.

    Parameters
    ----------
    defaults : GenerationDefaults
    ids : mapping
        ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``; None: the model has no such token.
    """
    fields: dict[str, Any] = {name: id for name, id in ids.items() if id is not None}
    if defaults.stop_tokens:
        end = [fields["eos_token_id"]] if "eos_token_id" in fields else []
        fields["eos_token_id"] = [*end, *defaults.stop_tokens]
    for name in ("max_new_tokens", "max_length"):
        if getattr(defaults, name) is not None:
            fields[name] = getattr(defaults, name)
    sampling = (defaults.temperature, defaults.top_k, defaults.top_p)
    if sampling != (0.0, None, None):
        fields |= {
            "do_sample": defaults.temperature > 0.0, "temperature": defaults.temperature or 1.0,
            "top_k": defaults.top_k or 0, "top_p": 1.0 if defaults.top_p is None else defaults.top_p,
        }  # fmt: skip
    return fields
