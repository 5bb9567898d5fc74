"""``mom train``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..config import PRESETS, MoMConfig
from ..data.prepare import read_meta
from ..errors import ConfigError
from ..files import folders
from ..files.hub import model_folder
from ..interventions import Intervention
from ..model import MoM
from ..training import TrainingConfig, train
from ..training.checkpoint import (
    interventions_of_checkpoint,
    model_of_checkpoint,
    newest_checkpoint,
    settings_of_checkpoint,
)
from ..training.finetune import RunOptions
from ..training.fingerprint import start_of
from ..training.pretraining import run_training, take_tokenizer
from .flags import (
    add_arguments,
    add_changes,
    add_dtype,
    add_fields,
    add_interventions,
    add_progress,
    add_threads,
    changes_of,
    command,
    given_fields,
    interventions_of,
)
from .results import print_losses


def add(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands, "train", _run, "train a language model",
        "The run's folder gets checkpoints, log.jsonl and, at the end, the trained model in the folder 'model'. "
        "SIGTERM and Ctrl-C save a checkpoint first. --resume continues from it, to the same bits as without the stop.",
    )  # fmt: skip
    parser.add_argument("--data", required=True, metavar="PATH", help="folder made by 'mom prepare', or one token file")
    parser.add_argument(
        "--val_data", metavar="PATH", help="token file for validation (default: val.bin beside train.bin)"
    )
    parser.add_argument("--run_dir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest valid checkpoint, with its model and settings",
    )
    add_arguments(parser, train, "allow_changes")
    add_interventions(parser, resumed=True)
    add_progress(parser)
    add_threads(parser)
    group = parser.add_argument_group("model", "one of --preset, --model or --init_from, unless a run is resumed")
    group.add_argument("--preset", metavar="NAME", help=f"a named configuration: {', '.join(PRESETS)}")
    group.add_argument("--model", metavar="FILE", help="a config.json")
    group.add_argument("--init_from", metavar="FOLDER", help="continue training the model in this folder")
    group.add_argument(
        "--from_vanilla", metavar="FOLDER", help="start the modules from the layers of this plain GPT-2 (phase two)"
    )
    group.add_argument(
        "--vanilla", action="store_true", help="train the plain GPT-2 whose layers fill the model's modules (phase one)"
    )
    add_changes(group)
    add_dtype(group, resumed=True)
    group = parser.add_argument_group("training", "fields of mom.TrainingConfig")
    add_fields(group, TrainingConfig, {"sequence_length": "the model's n_positions, at most 1024"})


def _run(a: argparse.Namespace) -> int:
    latest, passed_over = newest_checkpoint(a.run_dir) if a.resume else (None, [])
    if a.resume and latest is None and not (a.preset or a.model or a.init_from):
        why = f" ({passed_over[-1][0].name}: {passed_over[-1][1]})" if passed_over else ""
        raise ConfigError(f"resume: {a.run_dir} holds no valid checkpoint{why}")
    # Checked now rather than after hours of training:
    folders.check_replaceable(Path(a.run_dir) / "model", folders.MODEL_FILES)
    settings = _training_settings(a, latest)
    meta = read_meta(a.data)
    model = _model_to_train(a, settings.get("seed", 0), meta) if latest is None else _model_to_resume(a, latest)
    take_tokenizer(model, a.data)
    settings.setdefault("sequence_length", min(TrainingConfig.sequence_length, model.config.n_positions))
    config = TrainingConfig().replace(**settings)
    print(f"{model!r}\n{config.steps} steps of {config.tokens_per_step:,} tokens", file=sys.stderr)

    options = RunOptions(
        "train", a.progress, dir=Path(a.run_dir), resume=a.resume, allow_changes=a.allow_changes,
        facts=_start(a, begins=latest is None),
    )  # fmt: skip
    with model.intervene(_interventions(a, latest), untouched="warn"):
        result = run_training(model, a.data, a.val_data, config, options)
    folder = Path(a.run_dir) / "model"
    model.save_pretrained(folder)
    print(f"step {result.step}")
    print_losses(result)
    if result.skipped:
        print(f"skipped steps {result.skipped}")
    print(f"model {folder}")
    return 0


def _training_settings(a: argparse.Namespace, latest: Path | None) -> dict[str, Any]:
    """Settings of the checkpoint to resume, if there is one, overridden by the file and then by the flags."""
    settings = {} if latest is None else settings_of_checkpoint(latest).to_dict()
    return {**settings, **given_fields(a, TrainingConfig)}


def _interventions(a: argparse.Namespace, latest: Path | None) -> tuple[Intervention, ...]:
    """Those of the file that is given, or else of the checkpoint to resume."""
    return interventions_of(a) if a.interventions or latest is None else interventions_of_checkpoint(latest)


def _base_config(a: argparse.Namespace) -> MoMConfig:
    return MoMConfig.preset(a.preset) if a.preset is not None else MoMConfig.from_json(a.model)


def _check_sources(a: argparse.Namespace) -> None:
    given = [name for name in ("preset", "model", "init_from") if getattr(a, name) is not None]
    if len(given) != 1:
        what = "nothing" if not given else " and ".join(f"--{name}" for name in given)
        raise ConfigError(f"model: expected one of --preset, --model, --init_from, got {what}")
    if a.init_from is not None and (a.from_vanilla is not None or a.vanilla):
        raise ConfigError(f"init_from: cannot be combined with --{'vanilla' if a.vanilla else 'from_vanilla'}")
    if a.from_vanilla is not None and a.vanilla:
        raise ConfigError("from_vanilla: cannot be combined with --vanilla")


def _start(a: argparse.Namespace, begins: bool) -> dict[str, str]:
    """The fact of the weights that the run begins with. They are read once more, so that their model can be let go."""
    if a.init_from is not None:
        return start_of(MoM.from_pretrained(model_folder(a.init_from, "init_from")), begins)
    return start_of(None if a.from_vanilla is None else MoM.resolve(a.from_vanilla, name="from_vanilla"), begins)


def _model_to_train(a: argparse.Namespace, seed: int, meta: dict[str, Any]) -> MoM:
    _check_sources(a)
    changes, dtype = changes_of(a.changes), a.dtype or "float32"
    if a.init_from is not None:
        started = MoM.from_pretrained(model_folder(a.init_from, "init_from"), dtype=dtype, **changes)
        started.random_state = (seed, 0)
        started.finetuning_task, started.finetuning_lengths = None, {}
        return started
    config = _base_config(a)
    if a.from_vanilla is not None:
        vanilla = MoM.resolve(a.from_vanilla, name="from_vanilla")
        taken = {name: getattr(vanilla.config, name) for name in ("vocab_size", "n_positions")}
        return MoM.from_vanilla(vanilla, config.replace(**{**taken, **changes}), seed=seed, dtype=dtype)
    if "vocab_size" in meta:
        changes.setdefault("vocab_size", meta["vocab_size"])
    config = config.replace(**changes)
    return MoM(config.vanilla_config() if a.vanilla else config, seed=seed, dtype=dtype)


def _model_to_resume(a: argparse.Namespace, latest: Path) -> MoM:
    """A model that `mom.train` reads the weights into. It compares the model with the checkpoint's."""
    config = MoMConfig.from_json(latest)
    changes = changes_of(a.changes)
    if a.preset is not None or a.model is not None:
        _check_sources(a)
        asked = _base_config(a)
        own = ("vocab_size", "n_positions", "eos_token_id", "bos_token_id")  # of the data and their tokenizer
        kept = {name: getattr(config, name) for name in own}
        asked = asked.replace(**{**kept, **changes})
        asked = asked.vanilla_config() if a.vanilla else asked
    else:
        asked = config.replace(**changes)
    return model_of_checkpoint(latest, a.dtype, asked)
