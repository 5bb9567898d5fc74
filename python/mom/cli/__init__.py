"""The command ``mom``: each flag has the name of the Python argument it sets (dashes do as well as underscores).

Results go to standard output; progress and messages go to standard error. Exit status: 0 success, 1 an error (one line
on standard error; with ``MOM_DEBUG_TRACEBACK`` set, the traceback), 2 wrong usage, 128 + number after a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import os
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import _version, glue, xsum
from ..config import PRESETS, MoMConfig
from ..data import Documents, TokenFile, standard_library_text
from ..data.prepare import prepare, read_meta
from ..data.tokenizer import Tokenizer
from ..demo import run_demo
from ..errors import ConfigError, DataError, MomError
from ..evaluate import register, text_losses
from ..files import folders
from ..glue.reader import TASKS, find_task
from ..model import MoM
from ..model.memory_plan import plan_for
from ..runtime import cpu_info, get_num_threads, memory_limit, set_num_threads
from ..training import RECIPES, FinetuneConfig, TrainingConfig, TrainingResult, evaluate_loss, pretrain, train
from ..training.config import read_toml
from ..training.finetune import FinetuneInterrupted
from ..training.state import PREFIX, read_progress

__all__ = ["main"]

#: What becomes one line on standard error instead of a traceback.
_EXPECTED = (MomError, ValueError, OSError, ImportError, MemoryError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status.
    """
    arguments = _parser().parse_args(_with_underscores(sys.argv[1:] if argv is None else argv))
    try:
        with warnings.catch_warnings(), _reports_shown():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            if getattr(arguments, "threads", None) is not None:
                set_num_threads(arguments.threads)
            status: int = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        name = stop.signal if isinstance(stop, FinetuneInterrupted) else "SIGINT"
        by = "" if name == "SIGINT" else f" by {name}"
        print(f"mom: interrupted{by}{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 128 + signal.Signals[name]
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to be said to it, not even when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except _EXPECTED as error:
        if os.environ.get("MOM_DEBUG_TRACEBACK"):
            raise
        print(f"mom: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1


class _Shown(logging.Handler):
    """One line on standard error for each message, however often it comes."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._seen:
            self._seen.add(text)
            print(text, file=sys.stderr)


@contextlib.contextmanager
def _reports_shown() -> Iterator[None]:
    """What readers say of the files they read goes to standard error."""
    logger, handler = logging.getLogger("mom.data"), _Shown()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _with_underscores(argv: Sequence[str]) -> list[str]:
    """Long flags with underscores for dashes; values and everything after a bare ``--`` stay as they are."""
    result = list(argv)
    if result[:1] == ["lm_eval"] and len(result) > 1 and not result[1].startswith("-"):
        return result  # another program's flags
    for i, word in enumerate(result):
        if word == "--":
            break
        if re.match(r"--[a-z]", word):
            name, equals, value = word[2:].partition("=")
            result[i] = f"--{name.replace('-', '_')}{equals}{value}"
    return result


# ------------------------------------------------------------------ flags
class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mom",
        description="Mixture-of-Modules language models on a CPU.",
        epilog="'mom COMMAND --help' explains a command. First steps: 'mom demo'.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mom {_version.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_demo,
        _add_prepare,
        _add_train,
        _add_pretrain,
        _add_evaluate,
        _add_generate,
        _add_finetune,
        _add_lm_eval,
        _add_info,
        _add_bench,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, details: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{' ' if details else ''}{details}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all CPUs)")


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress", type=_truth, nargs="?", const=True, default=True, metavar="BOOL", help="show progress"
    )


def _add_on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on_error", choices=("raise", "skip"), default="raise", help="what to do about records that cannot be used"
    )


def _add_changes(group: Any) -> None:
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="change a field of the model's configuration; may be repeated",
    )  # fmt: skip


def _add_dtype(group: Any, resumed: bool) -> None:
    """The number format; None, if a run that may be resumed decides."""
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=None if resumed else "float32",
        help="number format" + (" (default: float32, or that of the checkpoint)" if resumed else ""),
    )  # fmt: skip


def _truth(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"{text!r} is not 'true' or 'false'")


def _field_help(documented: type) -> dict[str, str]:
    """Help text of every field, out of the ``Parameters`` section of a class's docstring."""
    found: dict[str, str] = {}
    section = re.search(r"Parameters\n\s*-+\n(.*?)(?:\n\n|\Z)", documented.__doc__ or "", re.DOTALL)
    entries = re.findall(
        r"^ {4}(\w[^\n:]*) :([^\n]*)\n((?: {8}[^\n]*\n?)+)", section[1] if section else "", re.MULTILINE
    )
    for names, kind, text in entries:
        choices = re.search(r"\{(.*)\}", kind)
        words = [*text.replace("``", "").replace("`", "").split()]
        if choices:
            words += [f"[{choices[1]}]".replace('"', "")]
        found.update(dict.fromkeys(re.split(r",\s*", names), " ".join(words).replace("%", "%%")))
    return found


def _add_fields(group: Any, settings: Any, shown: dict[str, str]) -> None:
    """A flag per field of a dataclass of settings; without the flag, the field is not in the namespace."""
    help_texts = _field_help(settings)
    kinds: dict[str, dict[str, Any]] = {
        "int": {"type": int, "metavar": "N"},
        "float": {"type": float, "metavar": "X"},
        "str": {"type": str, "metavar": "NAME"},
        "bool": {"type": _truth, "metavar": "BOOL", "nargs": "?", "const": True},
    }
    for field in dataclasses.fields(settings):
        default = shown.get(field.name, field.default)
        note = "" if default is None else f" (default: {default})"
        text = help_texts.get(field.name, "").removesuffix(".") + note
        kind = kinds[str(field.type).split(" |")[0]]
        group.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **kind)


# ------------------------------------------------------------------ demo
def _add_demo(commands: Any) -> None:
    parser = _command(
        commands, "demo", _run_demo, "train a small model on the spot and look at its routes",
        "Without --text it reads the source code of Python's standard library.",
    )  # fmt: skip
    parser.add_argument(
        "--text", metavar="PATH", help="file or folder with your own text (.txt, .jsonl, .parquet, ...)"
    )
    parser.add_argument("--out_dir", default="mom-demo", metavar="DIR", help="folder for the model and the picture")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long to train")
    parser.add_argument("--steps", type=int, help="steps of each phase, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and sampling")
    _add_threads(parser)


def _run_demo(a: argparse.Namespace) -> int:
    run_demo(text=a.text, out_dir=a.out_dir, minutes=a.minutes, seed=a.seed, steps=a.steps)
    return 0


# ------------------------------------------------------------------ prepare
def _add_prepare(commands: Any) -> None:
    parser = _command(
        commands, "prepare", _run_prepare, "turn text into token files",
        "Writes train.bin, val.bin, meta.json and tokenizer.json.",
    )  # fmt: skip
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE",
        help="files (.txt, .jsonl, also .gz, or .parquet) and folders (default: Python's standard library)",
    )  # fmt: skip
    parser.add_argument("--out_dir", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json or its folder (default: train a new one)")
    parser.add_argument("--vocab_size", type=int, default=8192, help="vocabulary of a new tokenizer")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="share of documents kept for validation")
    parser.add_argument("--seed", type=int, default=0, help="decides which documents these are")
    parser.add_argument(
        "--append_eos", type=_truth, nargs="?", const=True, default=True, metavar="BOOL",
        help="end every document with <|endoftext|>",
    )  # fmt: skip
    parser.add_argument("--key", default="text", help="JSON field or Parquet column that holds the text")
    parser.add_argument(
        "--split", choices=("file", "blank_line"), default="file", help="whether a text file is one document"
    )
    _add_on_error(parser)


def _run_prepare(a: argparse.Namespace) -> int:
    documents = (
        Documents(a.sources, key=a.key, split=a.split, on_error=a.on_error) if a.sources else standard_library_text()
    )
    meta = prepare(
        documents, a.out_dir, tokenizer=a.tokenizer, vocab_size=a.vocab_size, val_fraction=a.val_fraction, seed=a.seed,
        append_eos=a.append_eos, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(f"{meta['documents']:,} documents, {meta['source_bytes']:,} bytes; vocabulary of {meta['vocab_size']:,}")
    for name, entry in meta["files"].items():
        print(f"{Path(a.out_dir) / name}: {entry['tokens']:,} tokens")
    return 0


# ------------------------------------------------------------------ train
def _add_train(commands: Any) -> None:
    parser = _command(
        commands, "train", _run_train, "train a language model",
        "The run's folder gets checkpoints, log.jsonl and, at the end, the trained model in the folder 'model'. "
        "SIGTERM and Ctrl-C save a checkpoint first; --resume goes on to the bits of a run that was never stopped.",
    )  # fmt: skip
    parser.add_argument("--data", required=True, metavar="PATH", help="folder made by 'mom prepare', or one token file")
    parser.add_argument(
        "--val_data", metavar="PATH", help="token file for validation (default: val.bin beside train.bin)"
    )
    parser.add_argument("--run_dir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest valid checkpoint, with the model and settings in it",
    )
    _add_progress(parser)
    _add_threads(parser)
    group = parser.add_argument_group("model", "one of --preset, --model or --init_from, unless a run is resumed")
    group.add_argument("--preset", metavar="NAME", help=f"a named configuration: {', '.join(PRESETS)}")
    group.add_argument("--model", metavar="FILE", help="a config.json")
    group.add_argument("--init_from", metavar="FOLDER", help="go on training the model in this folder")
    group.add_argument(
        "--from_vanilla", metavar="FOLDER", help="start the modules from the layers of this plain GPT-2 (phase two)"
    )
    group.add_argument(
        "--vanilla", action="store_true", help="train the plain GPT-2 whose layers fill the model's modules (phase one)"
    )
    _add_changes(group)
    _add_dtype(group, resumed=True)
    group = parser.add_argument_group("training", "fields of mom.TrainingConfig")
    group.add_argument("--config", metavar="FILE.toml", help="file with these settings; flags win over it")
    _add_fields(group, TrainingConfig, {"sequence_length": "the model's n_positions, at most 1024"})


def _run_train(a: argparse.Namespace) -> int:
    latest, passed_over = folders.latest_valid(a.run_dir, prefix=PREFIX) if a.resume else (None, [])
    if a.resume and latest is None and not (a.preset or a.model or a.init_from):
        why = f" ({passed_over[-1][0].name}: {passed_over[-1][1]})" if passed_over else ""
        raise ConfigError(f"resume: {a.run_dir} holds no valid checkpoint{why}")
    # Now rather than after hours of training:
    folders.check_replaceable(Path(a.run_dir) / "model", folders.MODEL_FILES)
    settings = _training_settings(a, latest)
    meta = read_meta(a.data)
    model = _model_to_train(a, settings.get("seed", 0), meta) if latest is None else _model_to_resume(a, latest)
    vocabulary = meta.get("vocab_size")
    if vocabulary is not None and vocabulary > model.config.vocab_size:
        raise ConfigError(f"vocab_size: the model has {model.config.vocab_size} tokens, the data {vocabulary}")
    tokenizer = _tokenizer_beside(a.data)
    if tokenizer is not None:
        if model.tokenizer is not None and model.tokenizer.sha256 != tokenizer.sha256:
            warnings.warn(
                "the data were made with another tokenizer than the model's; the data's is kept", stacklevel=1
            )
        model.tokenizer = tokenizer
    settings.setdefault("sequence_length", min(TrainingConfig.sequence_length, model.config.n_positions))
    config = TrainingConfig().replace(**settings)
    print(f"{model!r}\n{config.steps} steps of {config.tokens_per_step:,} tokens", file=sys.stderr)

    result = train(model, a.data, config, run_dir=a.run_dir, val_data=a.val_data, resume=a.resume, progress=a.progress)
    if result.interrupted is not None:
        return _interrupted(result)
    folder = Path(a.run_dir) / "model"
    model.save_pretrained(folder)
    print(f"step {result.step}")
    _print_losses(result)
    if result.skipped:
        print(f"skipped steps {result.skipped}")
    print(f"model {folder}")
    return 0


def _interrupted(result: TrainingResult) -> int:
    """What is said of a run that a signal ended; the exit status."""
    assert result.interrupted is not None
    print(f"{result.interrupted}: saved {result.checkpoint}; go on with --resume", file=sys.stderr)
    return 128 + signal.Signals[result.interrupted].value


def _print_losses(result: TrainingResult) -> None:
    for name, loss in (("loss", result.lm_loss), ("validation loss", result.val_loss)):
        if loss is not None:
            print(f"{name} {loss:.4f}")


def _training_settings(a: argparse.Namespace, latest: Path | None) -> dict[str, Any]:
    """Fields from the checkpoint to resume, else the file, then the flags; each wins over the one before."""
    settings: dict[str, Any] = {}
    if latest is not None:
        settings.update(read_progress(latest)["config"])
    if a.config is not None:
        given = read_toml(a.config)
        TrainingConfig.from_dict(given, source=a.config)
        settings.update(given)
    names = {f.name for f in dataclasses.fields(TrainingConfig)}
    settings.update({name: value for name, value in vars(a).items() if name in names})
    return settings


def _tokenizer_beside(data: str | Path) -> Tokenizer | None:
    """The ``tokenizer.json`` of a folder, or in the folder of a file."""
    path = Path(data)
    file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    return Tokenizer.load(file) if file.is_file() else None


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs; values are JSON, or else strings."""
    words = {"none": None, "true": True, "false": False}
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"set: {pair!r} is not NAME=VALUE")
        name = name.strip().replace("-", "_")
        try:
            changes[name] = words[text.lower()] if text.lower() in words else json.loads(text)
        except ValueError:
            changes[name] = text
    return changes


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


def _model_to_train(a: argparse.Namespace, seed: int, meta: dict[str, Any]) -> MoM:
    _check_sources(a)
    changes, dtype = _changes(a.changes), a.dtype or "float32"
    if a.init_from is not None:
        started: MoM = MoM.from_pretrained(a.init_from, dtype=dtype, **changes)
        started.random_state = (seed, 0)
        started.finetuning_task, started.finetuning_lengths = None, {}
        return started
    config = _base_config(a)
    if a.from_vanilla is not None:
        vanilla: MoM = MoM.from_pretrained(a.from_vanilla)
        taken = {name: getattr(vanilla.config, name) for name in ("vocab_size", "n_positions")}
        return MoM.from_vanilla(vanilla, config.replace(**{**taken, **changes}), seed=seed, dtype=dtype)
    if "vocab_size" in meta:
        changes.setdefault("vocab_size", meta["vocab_size"])
    config = config.replace(**changes)
    return MoM(config.vanilla_config() if a.vanilla else config, seed=seed, dtype=dtype)


def _model_to_resume(a: argparse.Namespace, latest: Path) -> MoM:
    """A model of the checkpoint's shape; `mom.train` reads the weights. Flags may repeat the shape, not change it."""
    config = MoMConfig.from_json(latest)
    changes = _changes(a.changes)
    if a.preset is not None or a.model is not None:
        _check_sources(a)
        asked = _base_config(a)
        kept = {name: getattr(config, name) for name in ("vocab_size", "n_positions")}
        asked = asked.replace(**{**kept, **changes})
        asked = asked.vanilla_config() if a.vanilla else asked
    else:
        asked = config.replace(**changes)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(asked, field.name)
        if ours != theirs:
            raise ConfigError(f"resume: {field.name} is {ours!r} in {latest}, but {theirs!r} is asked for")
    model = MoM(config, dtype=a.dtype or read_progress(latest).get("dtype", "float32"))
    model.tokenizer = _tokenizer_beside(latest)
    return model


# ------------------------------------------------------------------ pretrain
def _add_pretrain(commands: Any) -> None:
    parser = _command(
        commands, "pretrain", _run_pretrain, "one phase of the published recipe, scaled to a budget",
        "Phase 'vanilla' trains the plain GPT-2 whose layers will be the modules of the preset's model; phase 'mom' "
        "starts that model --from the first phase's and trains it. 'mom train' has every setting; this command has "
        "the recipe's.",
    )  # fmt: skip
    parser.add_argument("--phase", required=True, choices=("vanilla", "mom"), help="which phase")
    parser.add_argument("--data", required=True, metavar="PATH", help="folder made by 'mom prepare'")
    parser.add_argument("--run_dir", required=True, metavar="DIR", help="folder of the run; gets 'model' at the end")
    parser.add_argument("--from", dest="vanilla", metavar="FOLDER", help="with --phase mom: the model of phase one")
    parser.add_argument("--preset", default="mini", metavar="NAME", help=f"shape: {', '.join(PRESETS)}")
    _add_changes(parser)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=float, metavar="N", help="budget in tokens (5e6 will do)")
    budget.add_argument("--minutes", type=float, metavar="X", help="budget in minutes, by the speed of a few steps")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="paper", help="whose settings")
    parser.add_argument("--lr", type=float, default=argparse.SUPPRESS, help="another highest learning rate")
    _add_dtype(parser, resumed=True)
    parser.add_argument("--seed", type=int, default=0, help="of weights and order of the data")
    parser.add_argument("--resume", action="store_true", help="go on from the newest valid checkpoint, with its plan")
    _add_progress(parser)
    _add_threads(parser)


def _run_pretrain(a: argparse.Namespace) -> int:
    if a.phase == "mom" and a.vanilla is None:
        raise ConfigError("phase: 'mom' starts --from the model of phase 'vanilla'")
    config = MoMConfig.preset(a.preset).replace(**_changes(a.changes))
    changes = {"lr": a.lr} if hasattr(a, "lr") else {}
    if a.tokens is not None and not math.isfinite(a.tokens):
        raise ConfigError(f"tokens: {a.tokens} is not a finite number")
    result = pretrain(
        config, a.data, a.run_dir, phase=a.phase, vanilla=a.vanilla, minutes=a.minutes, recipe=a.recipe, seed=a.seed,
        tokens=None if a.tokens is None else int(a.tokens), dtype=a.dtype, resume=a.resume, progress=a.progress,
        **changes,
    )  # fmt: skip
    training, plan = result.training, result.config
    if training.interrupted is not None:
        return _interrupted(training)
    print(f"{result.tokens:,} tokens in {plan.steps:,} steps of {plan.tokens_per_step:,}")
    _print_losses(training)
    print(f"model {result.folder}")
    return 0


# ------------------------------------------------------------------ evaluate
def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands, "evaluate", _run_evaluate, "measure a model",
        "With --data: loss and perplexity on token files. With --text: perplexity and bits per byte of text files. "
        "With --task and --data: the metrics of a model that was fine-tuned on a task.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data", metavar="PATH",
        help="token file, or prepared folder (its val.bin; without one, train.bin); with --task, the task's data",
    )  # fmt: skip
    what.add_argument(
        "--text", metavar="PATH", nargs="+", help="files (.txt, .jsonl, also .gz, or .parquet) and folders"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="rows per batch (of a GLUE task: 32)")
    parser.add_argument("--task", metavar="NAME", help=f"xsum, or one of {', '.join(TASKS)}")
    _add_on_error(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _add_threads(parser)
    group = parser.add_argument_group("with --task")
    group.add_argument("--task_split", choices=("dev", "test", "train"), help="which set (default: dev; xsum: test)")
    group.add_argument("--max_length", type=int, help="tokens per example (default: as in fine-tuning, or n_positions)")
    _add_generation(parser.add_argument_group("with --task xsum"))
    group = parser.add_argument_group("with --data")
    group.add_argument(
        "--sequence_length", type=int, help="tokens per row (default: the model's n_positions, at most 1024)"
    )
    group.add_argument("--batches", type=int, help="at most so many batches (default: the whole file)")
    group = parser.add_argument_group("with --text")
    group.add_argument("--window", type=int, help="tokens the model sees at once (default: its n_positions)")
    group.add_argument("--stride", type=int, help="tokens from one window to the next (default: half a window)")
    group.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use (default: the model's own)")
    group.add_argument("--key", default="text", help="JSON field or Parquet column that holds the text")
    group.add_argument(
        "--split", choices=("file", "blank_line"), default="file", help="whether a text file is one document"
    )


def _run_evaluate(a: argparse.Namespace) -> int:
    for name in ("batch_size", "batches"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            raise ConfigError(f"{name}: {getattr(a, name)} is less than 1")
    if a.task is not None:
        return _evaluate_task(a)
    model: MoM = MoM.from_pretrained(a.model)
    return _evaluate_tokens(a, model) if a.text is None else _evaluate_texts(a, model)


def _evaluate_task(a: argparse.Namespace) -> int:
    if a.data is None:
        raise ConfigError("task: needs --data, the folder of the task's files")
    if a.task.lower() == "xsum":
        _show_summaries(a, MoM.from_pretrained(a.model), a.task_split or "test", a.max_length, a.batch_size)
        return 0
    split = a.task_split or "dev"
    metrics = glue.evaluate(a.model, a.task, a.data, split, max_length=a.max_length, on_error=a.on_error)
    if a.json:
        print(json.dumps(metrics))
    else:
        print("\n".join(f"{name:10}{100 * value:8.2f}" for name, value in metrics.items()))
    return 0


def _add_generation(group: Any) -> None:
    group.add_argument("--rows", type=int, help="summarise the first so many documents (default: all)")
    group.add_argument(
        "--max_summary", type=int, help="tokens kept free for a summary and its end (as in fine-tuning; there 64)"
    )
    group.add_argument("--num_beams", type=int, default=1, help="beams of the search; 1: greedy")
    group.add_argument("--length_penalty", type=float, default=1.0, help="above 0 favours longer summaries")
    group.add_argument(
        "--no_repeat_ngram_size", type=int, default=0, help="never repeat so many tokens of a summary; 0: allowed"
    )
    group.add_argument("--examples", type=int, default=3, help="summaries to show beside reference and LEAD-1")


def _show_summaries(a: argparse.Namespace, model: MoM, split: str, max_length: int | None, batch_size: int) -> None:
    scores = xsum.evaluate(
        model, a.data, split, rows=a.rows, on_error=a.on_error, max_summary=a.max_summary, max_length=max_length,
        num_beams=a.num_beams, length_penalty=a.length_penalty, no_repeat_ngram_size=a.no_repeat_ngram_size,
        batch_size=batch_size,
    )  # fmt: skip
    if getattr(a, "json", False):
        print(json.dumps(scores.to_dict()))
        return
    if a.examples > 0:
        print(xsum.format_examples(scores, a.examples), end="\n\n")
    print(scores.table())
    print(f"{len(scores.documents)} documents, loss {scores.loss:.4f} nats per token of the references")


def _evaluate_tokens(a: argparse.Namespace, model: MoM) -> int:
    positions = model.config.n_positions
    length = min(1024, positions) if a.sequence_length is None else a.sequence_length
    if not 2 <= length <= positions:
        raise ConfigError(f"sequence_length: {length} is not in [2, {positions}], the model's n_positions")
    path = Path(a.data)
    if path.is_dir():
        path = path / ("val.bin" if (path / "val.bin").is_file() else "train.bin")
    tokens = TokenFile(path, vocab_size=model.config.vocab_size)
    whole = -(-len(tokens) // (a.batch_size * length))
    started = time.perf_counter()
    loss = evaluate_loss(model, tokens, a.batch_size, length, whole if a.batches is None else a.batches)
    seconds = time.perf_counter() - started
    windows = min(len(tokens) // length, a.batch_size * (whole if a.batches is None else a.batches))
    perplexity, speed = math.exp(min(loss, 700.0)), windows * length / seconds
    if a.json:
        print(json.dumps({"data": str(path), "tokens": windows * length, "loss": loss, "perplexity": perplexity}))
        return 0
    print(f"data {path}, {windows * length:,} tokens in windows of {length}")
    print(f"loss {loss:.6f}")
    print(f"perplexity {perplexity:.4f}")
    print(f"tokens per second {speed:,.0f}")
    return 0


def _evaluate_texts(a: argparse.Namespace, model: MoM) -> int:
    results = text_losses(
        model, a.text, tokenizer=None if a.tokenizer is None else Tokenizer.load(a.tokenizer), window=a.window,
        stride=a.stride, batch_size=a.batch_size, key=a.key, split=a.split, on_error=a.on_error,
    )  # fmt: skip
    if a.json:
        names = ("name", "documents", "tokens", "bytes", "loss", "perplexity", "bits_per_byte")
        rows = [{name: getattr(result, name) for name in names} for result in results]
        print(json.dumps([{k: None if v != v else v for k, v in row.items()} for row in rows]))
        return 0
    width = max(len(result.name) for result in results)
    print(f"{'text':{width}}{'tokens':>12}{'bytes':>12}{'loss':>9}{'perplexity':>13}{'bits per byte':>15}")
    for r in results:
        counts = f"{r.tokens:12,}{r.bytes:12,}"
        print(f"{r.name:{width}}{counts}{r.loss:9.4f}{r.perplexity:13.3f}{r.bits_per_byte:15.4f}")
    return 0


# ------------------------------------------------------------------ generate
def _add_generate(commands: Any) -> None:
    parser = _command(commands, "generate", _run_generate, "continue a text")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model or checkpoint")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue ('' begins a document)")
    parser.add_argument("--tokenizer", metavar="PATH", help="tokenizer to use (default: the model's own)")
    parser.add_argument("--max_new_tokens", type=int, help="tokens to add (default: 100, or fewer if no more fit)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most probable token")
    parser.add_argument("--top_k", type=int, help="sample among so many most probable tokens")
    parser.add_argument(
        "--top_p", type=float, help="sample among the most probable tokens that make up this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument(
        "--weights", choices=("float32", "bfloat16", "int8"), help="number format in which weights are read"
    )
    _add_threads(parser)


def _run_generate(a: argparse.Namespace) -> int:
    model: MoM = MoM.from_pretrained(a.model)
    tokenizer: Tokenizer | None = model.tokenizer if a.tokenizer is None else Tokenizer.load(a.tokenizer)
    if tokenizer is None:
        raise DataError(f"tokenizer: {a.model} holds none; name one with --tokenizer")
    model.tokenizer = tokenizer  # what it lacks is not generated
    prompt = tokenizer.encode(a.prompt, special=True)
    begun = len(prompt)
    if begun == 0:
        if tokenizer.eos_id is None:
            raise DataError("prompt: is empty, and the tokenizer has no end-of-text token to begin with")
        prompt = np.array([tokenizer.eos_id], np.int32)
    room = model.config.n_positions - len(prompt)
    new = max(1, min(100, room)) if a.max_new_tokens is None else a.max_new_tokens
    tokens = model.generate(
        prompt, max_new_tokens=new, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p, seed=a.seed,
        stop_token=tokenizer.eos_id, weights=a.weights,
    )  # fmt: skip
    print(tokenizer.decode(tokens[len(prompt) - begun :]))
    return 0


# ------------------------------------------------------------------ finetune
def _add_finetune(commands: Any) -> None:
    parser = _command(
        commands, "finetune", _run_finetune, "fine-tune a model on GLUE tasks or on XSUM",
        "GLUE: prints a table of dev metrics: median, lowest and highest over the seeds, beside the majority-class "
        "baseline. The folder gets each task's best model and results and, with --predict, files for the GLUE site. "
        "XSUM: prints summaries and ROUGE on the test set beside LEAD-1 and LEAD-3.",
    )  # fmt: skip
    parser.add_argument(
        "--task",
        required=True,
        nargs="+",
        metavar="NAME",
        help=f"xsum, glue (all of it), or some of {', '.join(TASKS)}",
    )  # fmt: skip
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder of a model with its tokenizer")
    parser.add_argument(
        "--data", required=True, metavar="PATH", help="folder of GLUE's task folders, or a name on the Hub"
    )
    parser.add_argument("--out_dir", required=True, metavar="DIR", help="folder for models and results")
    _add_dtype(parser, resumed=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run for each")
    parser.add_argument("--predict", action="store_true", help="answer the test sets and write submission files")
    _add_on_error(parser)
    _add_progress(parser)
    _add_threads(parser)
    group = parser.add_argument_group("settings", "fields of mom.FinetuneConfig")
    _add_fields(group, FinetuneConfig, {})
    group = parser.add_argument_group("with --task xsum")
    group.add_argument("--val_rows", type=int, default=200, help="rows of the validation set that choose the weights")
    _add_generation(group)


def _run_finetune(a: argparse.Namespace) -> int:
    fields = {f.name for f in dataclasses.fields(FinetuneConfig)}
    config = FinetuneConfig().replace(**{name: value for name, value in vars(a).items() if name in fields})
    if any(name.lower() == "xsum" for name in a.task):
        return _finetune_xsum(a, config)
    return _finetune_glue(a, config)


def _finetune_xsum(a: argparse.Namespace, config: FinetuneConfig) -> int:
    if len(a.task) > 1 or len(a.seeds) > 1 or a.predict:
        raise ConfigError("task: xsum goes with no other task, with one seed, and without --predict")
    if a.rows is not None and a.rows < 1:
        raise ConfigError(f"rows: {a.rows} is less than 1")
    # What is summarised afterwards, too, has to be there before hours of training.
    xsum.read_xsum(a.data, "test", on_error=a.on_error)
    result = xsum.finetune(
        MoM.from_pretrained(a.model, dtype=a.dtype), a.data, config=config, seed=a.seeds[0], out_dir=a.out_dir,
        max_summary=64 if a.max_summary is None else a.max_summary, val_rows=a.val_rows, on_error=a.on_error,
        progress=a.progress,
    )  # fmt: skip
    print(f"{result!r}: {result.folder}", file=sys.stderr)
    _show_summaries(a, result.model, "test", config.max_length, config.batch_size)
    print(f"model {result.folder}")
    return 0


def _finetune_glue(a: argparse.Namespace, config: FinetuneConfig) -> int:
    names = [name for name in TASKS if "train" in TASKS[name].files and name != "mnli-mm"]
    found = [find_task(word) for name in a.task for word in (names if name.lower() == "glue" else [name])]
    tasks = list({task.name: task for task in found}.values())
    body: MoM = MoM.from_pretrained(a.model, dtype=a.dtype)
    for task in tasks[1:]:  # a missing or broken file is said before hours of training; the first is read at once
        for split in ("train", "dev", *(("test",) if a.predict else ())):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                glue.read_glue(a.data, task, split, on_error=a.on_error if split != "test" else "raise")
    results: list[glue.GlueResult] = []
    try:
        for task in tasks:
            result = glue.finetune(
                body, task, a.data, config=config, seeds=a.seeds, out_dir=a.out_dir, predict=a.predict,
                on_error=a.on_error, progress=a.progress,
            )  # fmt: skip
            results.append(result)
            print(f"{result!r}, {result.examples_per_second:.1f} examples/s: {result.folder}", file=sys.stderr)
    finally:  # a task that fails or is interrupted takes nothing from those before it
        if results:
            print(glue.format_table(results))
        for path in (path for result in results for path in result.submissions):
            print(f"submission {path}")
    return 0


# ------------------------------------------------------------------ lm_eval
def _add_lm_eval(commands: Any) -> None:
    parser = _command(
        commands, "lm_eval", _run_lm_eval, "run lm-evaluation-harness with the model 'mom'",
        "All that follows goes to the harness, for example: mom lm_eval run --model mom --model_args "
        "pretrained=FOLDER --tasks lambada_openai. After 'mom lm_eval --register' the harness's own command lm_eval "
        "knows the model too.",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--register", action="store_true", help="make the command lm_eval of this environment know it")
    what.add_argument("--unregister", action="store_true", help="undo --register")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the harness gets")


def _run_lm_eval(a: argparse.Namespace) -> int:
    if a.register or a.unregister:
        if a.arguments:
            raise ConfigError(f"arguments: {a.arguments[0]!r} with --register or --unregister")
        if a.register:
            print(f"wrote {register.install()}")
        else:
            register.uninstall()
        return 0
    if not a.arguments:
        raise ConfigError("arguments: none; 'mom lm_eval run --help' lists the harness's")
    return register.run(a.arguments)


# ------------------------------------------------------------------ info
def _add_info(commands: Any) -> None:
    parser = _command(
        commands, "info", _run_info, "versions, processor and active kernels; or the memory that a model needs",
        "With --preset or --model: bytes of a training step, and of a forward pass alone, for a batch of that shape.",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", metavar="NAME", help=f"a named configuration: {', '.join(PRESETS)}")
    which.add_argument("--model", metavar="DIR", help="folder with a model, or its config.json")
    parser.add_argument("--batch_size", type=int, default=TrainingConfig.batch_size, metavar="N", help="sequences")
    parser.add_argument("--sequence_length", type=int, metavar="N", help="tokens of each (default: n_positions)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    _add_threads(parser)


def _show_memory(a: argparse.Namespace) -> int:
    config = MoMConfig.preset(a.preset) if a.preset is not None else MoMConfig.from_json(a.model)
    length = config.n_positions if a.sequence_length is None else a.sequence_length
    columns = {
        "training": {},
        "checkpointing": {"activation_checkpointing": True},
        "forward": {"training": False},
    }  # fmt: skip
    plans = [plan_for(config, a.batch_size, length, dtype=a.dtype, **options) for options in columns.values()]
    print(f"{a.batch_size} x {length} tokens, {a.dtype}; MB (activations to workspace: at their fullest moment)")
    print(f"{'':13}" + "".join(f"{name:>15}" for name in columns))
    for parts in zip(*(plan.rows() for plan in plans), strict=True):
        print(f"{parts[0][0]:13}" + "".join(f"{1e-6 * size:15,.1f}" for _, size in parts))
    limit = memory_limit()
    if limit is not None:
        print(f"{'limit':13}{1e-6 * limit:15,.1f}   (of this machine or control group)")
    return 0


def _run_info(a: argparse.Namespace) -> int:
    if a.preset is not None or a.model is not None:
        return _show_memory(a)
    cpu = cpu_info()
    rows = [("mom", _version.__version__), ("python", platform.python_version()), ("platform", platform.platform())]
    packages = ("numpy", "safetensors", "tokenizers", "tqdm", "matplotlib", "scikit-learn", "scipy", "rouge-score")
    for package in (*packages, "pyarrow", "datasets", "huggingface_hub", "lm-eval"):
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            rows.append((package, "not installed"))
    rows += [
        ("level", f"{cpu['level']} (of {', '.join(cpu['levels'])}; MOM_CPU chooses)"),
        ("matrix kernel", cpu["gemm"]),
        ("features", ", ".join(name for name, there in cpu["features"].items() if there) or "none"),
        ("threads", f"{cpu['threads']} of {cpu['cpus']} CPUs" + ("" if cpu["openmp"] else "; built without OpenMP")),
        ("compiler", cpu["compiler"]),
    ]
    for name, value in rows:
        print(f"{name:13} {value}")
    return 0


# ------------------------------------------------------------------ bench
def _add_bench(commands: Any) -> None:
    parser = _command(
        commands, "bench", _run_bench, "measure matrix products on this machine",
        "GFLOP/s, best and median of the repeats, beside the machine's peak measured just before and NumPy's product.",
    )  # fmt: skip
    parser.add_argument("what", choices=("gemm",), help="gemm: products of a training step")
    parser.add_argument("--presets", default="mini,base", metavar="NAMES", help="of 'mini' and 'base', comma-separated")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of our products; NumPy's are float32"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each product")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON, too")
    _add_threads(parser)


def _run_bench(a: argparse.Namespace) -> int:
    from .. import bench

    if a.repeats < 1:
        raise ConfigError(f"repeats: {a.repeats} is less than 1")
    products = [product for preset in a.presets.split(",") for product in bench.gemm_products(preset)]
    cpu, threads, rows = cpu_info(), get_num_threads(), []
    kernel = cpu["gemm"] if a.precision == "float32" else cpu["gemm_bf16"]
    print(f"matrix products in {a.precision}, GFLOP/s, {a.repeats} repeats; level {cpu['level']}, kernel {kernel}")
    with bench.limit_numpy_threads(threads) as numpy_threads:
        print(f"mom: {threads} threads; numpy {np.__version__} in float32: {numpy_threads}")
        print(f"{'':50}{'':17}{'mom':>16}{'numpy':>16}{'peak':>7}   mom of")
        print(
            f"{'product':41}{'groups':>8} {'m, k, n':>17}{'best':>8}{'median':>8}{'best':>8}{'median':>8}{'':>7}"
            f"{'peak':>7}{'numpy':>7}"
        )
        for row in bench.measure_gemm(products, a.repeats, a.precision):
            rows.append(row)
            name = f"{row['preset']} {row['layer']}, {row['direction']}, {row['kind']}"
            size = f"{row['m']}, {row['k']}, {row['n']}"
            print(
                f"{name:45}{row['groups']:>4} {size:>17}{row['mom']:8.1f}{row['mom_median']:8.1f}{row['numpy']:8.1f}"
                f"{row['numpy_median']:8.1f}{row['peak']:7.1f}{100 * row['mom'] / row['peak']:5.0f} %"
                f"{row['mom'] / row['numpy']:6.2f}x",
                flush=True,
            )
    if a.output is not None:
        report = {
            "benchmark": "gemm", "precision": a.precision, "threads": threads, "numpy_threads": numpy_threads,
            "repeats": a.repeats, "cpu": cpu, "numpy": np.__version__, "products": rows,
        }  # fmt: skip
        Path(a.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
