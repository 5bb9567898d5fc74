"""The fields of a run in a grid, and the resolved configuration that they describe.

A run has fields of three kinds: those of `MoMConfig`, those of `TrainingConfig`, and those in `RUN`. No two kinds share
a name, so a grid needs no sections for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._reading import kind_of, shown
from ..config import MoMConfig
from ..data import TokenFile
from ..data.prepare import read_meta
from ..errors import ConfigError
from ..familiar import field_hint
from ..interventions.files import described, interventions_from, read_interventions
from ..settings import Settings, type_names_of
from ..training import TrainingConfig
from ..training.fingerprint import FREE, MAY_CHANGE, digest_of_tokens

__all__ = [
    "NO_EFFECT", "OF_VANILLA", "RUN", "check_names", "defaults_of", "merged", "plain", "resolve", "without_routing",
]  # fmt: skip

#: Fields of a run that belong neither to the model's configuration nor to the training's, and what they hold.
RUN: dict[str, tuple[type, ...]] = {
    "preset": (str,),  # a named configuration
    "model": (str, os.PathLike),  # or a config.json
    "vanilla": (bool,),  # take the plain GPT-2 whose layers fill the model's modules
    "dtype": (str,),
    "data": (str, os.PathLike),
    "val_data": (str, os.PathLike),
    "phase_one_steps": (int,),  # first train the plain GPT-2 for so many steps, and begin with its layers
    "interventions": (list, str, os.PathLike),  # active throughout: a list of mappings, or a file
}
_MEASURED = ("eval_every", "patience")
#: Training settings that do not change a result: those that a resumed run may change, but for what determines the
#: evaluations and the end, and what only matters on several ranks. Trials that differ in nothing else are one trial.
NO_EFFECT = (
    *(name for name, verdict in MAY_CHANGE["training"].items() if verdict == FREE and name not in _MEASURED),
    "transport",
)
#: Fields of a plain GPT-2. The other fields of its configuration have their defaults, so that they make no difference.
OF_VANILLA = (
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "scale_attn_weights", "bos_token_id",
    "eos_token_id", "pad_token_id", "masked_query_attention",
)  # fmt: skip


def check_names(fields: Mapping[str, Any], source: str) -> None:
    """Raise unless every name is a field of a run.

    Raises
    ------
    ConfigError
        With the nearest name. The message begins with `source`.
    """
    known = [*MoMConfig.names(), *TrainingConfig.names(), *RUN]
    for name in fields:
        if name in known:
            continue
        name = str(name)[:80]
        familiar = [field_hint(kind.noun, name, kind.names()) for kind in (TrainingConfig, MoMConfig)]
        hint = field_hint("run", name, known) or next(filter(None, familiar), "")
        raise ConfigError(f"{source}: {name}: unknown field of a run{hint}")


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of several mappings, later ones win. Of `preset` and `model`, the later one wins, too."""
    fields: dict[str, Any] = {}
    for part in parts:
        if "preset" in part or "model" in part:
            fields.pop("preset", None)
            fields.pop("model", None)
        fields.update(part)
    return fields


def resolve(
    fields: Mapping[str, Any], digests: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The configuration that fields describe.

    Parameters
    ----------
    fields : mapping
        All fields of a run, with names that `check_names` accepts.
    digests : dict
        Digests of token files by path. Missing ones are added.

    Returns
    -------
    settings, plan, where : dict
        What determines the result, as JSON values: the whole configuration of the model, settings of training, digests
        of the data. Then training settings without effect on the result, and paths.

    Raises
    ------
    ConfigError, DataError
        If the fields do not describe a run.
    """
    for name, kinds in RUN.items():
        value = fields.get(name)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ConfigError(f"{name}: expected {kinds[0].__name__}, got {type(value).__name__} {shown(value)}")
    if fields.get("data") is None:
        raise ConfigError("data: missing; name a folder made by 'mom prepare', or a token file")
    data, validation = Path(fields["data"]), _validation(fields)
    config = _model(fields, read_meta(data).get("vocab_size"))
    training = _training(fields, config)
    dtype = fields.get("dtype") or "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: {dtype!r} is not one of 'float32', 'bfloat16'")
    plan = {name: training[name] for name in NO_EFFECT}
    settings = {  # a changed default of a field needs another format: `Trial.hash` leaves out defaults
        "format": 1, "model": plain(config), "dtype": dtype,
        "training": {name: value for name, value in training.items() if name not in NO_EFFECT},
        "data": _digest(data, config.vocab_size, digests), "val_data": _digest(validation, config.vocab_size, digests),
        "phase_one_steps": _phase_one(fields, config, training), "interventions": _rules(fields.get("interventions")),
    }  # fmt: skip
    return settings, plan, {"data": str(data), "val_data": str(validation)}


# ---------------------------------------------------------------------- parts
def _model(fields: Mapping[str, Any], vocabulary: int | None) -> MoMConfig:
    changes = {name: fields[name] for name in MoMConfig.names() if name in fields}
    sources = [name for name in ("preset", "model") if fields.get(name) is not None]
    if len(sources) > 1:
        raise ConfigError("preset, model: give one of them")
    if not sources:
        raise ConfigError("preset: missing; name a preset, or a config.json as model = \"FILE\"")
    source = fields[sources[0]]
    base = MoMConfig.preset(source) if sources[0] == "preset" else MoMConfig.from_json(source)
    if vocabulary is not None:
        changes.setdefault("vocab_size", vocabulary)
    config = base.replace(**changes)
    if vocabulary is not None and vocabulary > config.vocab_size:
        raise ConfigError(f"vocab_size: the model has {config.vocab_size} tokens, the data {vocabulary}")
    config = config.vanilla_config() if fields.get("vanilla") else config
    if config.is_vanilla:
        return without_routing(config)
    multiplier = defaults_of(MoMConfig)["depth_multiplier"]
    return config.replace(n_inner=config.inner_size, depth_per_chunk=config.rounds, depth_multiplier=multiplier)


def without_routing(config: MoMConfig) -> MoMConfig:
    """A plain GPT-2 whose fields of routing, which have no effect, are the defaults."""
    shape = {name: getattr(config, name) for name in OF_VANILLA}
    return MoMConfig.vanilla(**{**shape, "n_inner": config.inner_size})


def _training(fields: Mapping[str, Any], config: MoMConfig) -> dict[str, Any]:
    given = {name: fields[name] for name in TrainingConfig.names() if name in fields}
    given.setdefault("sequence_length", min(TrainingConfig.sequence_length, config.n_positions))
    given.setdefault("keep_last", 1)
    training = TrainingConfig(**given)
    if training.sequence_length > config.n_positions:
        raise ConfigError(
            f"sequence_length: {training.sequence_length} is more than the model's n_positions = {config.n_positions}"
        )
    return plain(training)


def plain(settings: Settings) -> dict[str, Any]:
    """All fields. Where a field is declared as a float, 1 becomes 1.0: both are the same setting."""
    values = {field.name: getattr(settings, field.name) for field in settings.fields()}
    for field in settings.fields():
        kinds = type_names_of(field)
        if "float" in kinds and "int" not in kinds and values[field.name] is not None:
            values[field.name] = float(values[field.name])
        elif isinstance(values[field.name], tuple):
            values[field.name] = list(values[field.name])
    return values


def defaults_of(kind: type[Settings]) -> dict[str, Any]:
    """The defaults of all fields."""
    return {field.name: field.default for field in kind.fields()}


def _validation(fields: Mapping[str, Any]) -> Path:
    if fields.get("val_data") is not None:
        return Path(fields["val_data"])
    data = Path(fields["data"])
    beside = data / "val.bin"
    if kind_of(data) == "folder" and kind_of(beside) == "file" and beside.stat().st_size:
        return beside
    raise ConfigError(f"val_data: a sweep compares losses on unseen text, and {data} has no val.bin; name a token file")


def _digest(path: Path, vocab_size: int, digests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a token file holds, without its name. ``sample`` is the hash of the file, or of blocks all over it."""
    if str(path) not in digests:
        found = digest_of_tokens(TokenFile(path, vocab_size=vocab_size))
        digests[str(path)] = {name: found[name] for name in ("tokens", "bytes", "sample")}
    return digests[str(path)]


def _phase_one(fields: Mapping[str, Any], config: MoMConfig, training: Mapping[str, Any]) -> int | None:
    steps = fields.get("phase_one_steps")
    if not steps:
        return None
    if config.is_vanilla:
        raise ConfigError("phase_one_steps: a plain GPT-2 has no second phase; leave the field out, or use 0")
    try:
        TrainingConfig(**{**training, "steps": steps})
    except ConfigError as error:
        raise ConfigError(f"phase_one_steps: {steps} steps do not fit the other settings: {error}") from None
    return int(steps)


def _rules(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    found = interventions_from(value, "interventions") if isinstance(value, list) else read_interventions(value)
    return described(found)
