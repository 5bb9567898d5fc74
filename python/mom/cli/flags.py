"""Flags that several commands share."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from .. import xsum
from ..errors import ConfigError
from ..interventions import Intervention, read_interventions
from ..model import beam_search
from ..settings import Settings, read_toml, type_names_of


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only if it is informative, and a number as ``N`` or ``X``. Breaks lines between words only."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        names: dict[Any, str] = {int: "N", float: "X"}
        return names.get(action.type) or super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


def command(commands: Any, name: str, run: Any, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Add a command that calls `run` with the parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{' ' if details else ''}{details}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument("--threads", type=int, help="threads to compute with (default: all CPUs)")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """``--progress``."""
    parser.add_argument(
        "--progress", type=truth, nargs="?", const=True, default=True, metavar="BOOL", help="show progress"
    )


def add_changes(group: Any) -> None:
    """``--set``; see `changes_of`."""
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="change a field of the model's configuration; may be repeated",
    )  # fmt: skip


def add_interventions(group: Any, resumed: bool = False) -> None:
    """``--interventions``. For a run that may be `resumed`, the checkpoint's are the default."""
    text = "JSON file of write_interventions; they are active throughout"
    group.add_argument(
        "--interventions", metavar="FILE.json",
        help=text + (" (default: none, or those of the checkpoint)" if resumed else ""),
    )  # fmt: skip


def interventions_of(a: argparse.Namespace) -> tuple[Intervention, ...]:
    """What the file of ``--interventions`` holds; without the flag, nothing."""
    return () if a.interventions is None else read_interventions(a.interventions)


def add_dtype(group: Any, resumed: bool) -> None:
    """``--dtype``. For a run that may be `resumed` the default is None, and the checkpoint decides."""
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=None if resumed else "float32",
        help="number format" + (" (default: float32, or that of the checkpoint)" if resumed else ""),
    )  # fmt: skip


def truth(text: str) -> bool:
    """The value of a flag that is true or false."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"{text!r} is not 'true' or 'false'")


def documented(thing: Any) -> Iterator[tuple[str, list[str], str]]:
    """Names, choices and texts of the ``Parameters`` section of a docstring."""
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n|\Z)", inspect.getdoc(thing) or "", re.DOTALL)
    entries = re.findall(r"^(\w[^\n:]*) :([^\n]*)\n((?: {4}[^\n]*\n?)+)", section[1] if section else "", re.MULTILINE)
    for names, kind, text in entries:
        words = " ".join(text.replace("`", "").split()).replace("%", "%%")
        for name in re.split(r",\s*", names):
            yield name, re.findall(r'"(\w+)"', kind), words


def field_help(settings: type[Settings]) -> dict[str, str]:
    """Help text of every field, from the class's docstring."""
    return {name: f"{text} [{', '.join(choices)}]" if choices else text for name, choices, text in documented(settings)}


def number(text: str) -> int | float:
    """Read a number; one that is written as an integer becomes an int."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def share_or_numbers(text: str) -> float | list[int]:
    """Read a share, or numbers with commas between or after them."""
    return [int(part) for part in text.split(",") if part] if "," in text else float(text)


#: Arguments of ``add_argument`` for fields of each type.
_KINDS: dict[str, dict[str, Any]] = {
    "int": {"type": int},
    "float": {"type": float},
    "int | float": {"type": number, "metavar": "X"},
    "float | Sequence[int]": {"type": share_or_numbers, "metavar": "X|N,N"},
    "str": {"type": str, "metavar": "NAME"},
    "PathLike": {"metavar": "PATH"},
    "bool": {"type": truth, "metavar": "BOOL", "nargs": "?", "const": True},
    "tuple[str, ...]": {"metavar": "PATTERN", "nargs": "+"},
}


def add_arguments(group: Any, function: Any, *names: str) -> None:
    """Add a flag for each of these arguments of a function, with its type, default, choices and description."""
    parameters = inspect.signature(function).parameters
    found = {name: (choices, text) for name, choices, text in documented(function)}
    for name in names:
        default = parameters[name].default
        choices, text = found[name]
        kind = {"choices": choices} if choices else _KINDS[parameters[name].annotation.removesuffix(" | None")]
        more = {"required": True} if default is inspect.Parameter.empty else {"default": default}
        group.add_argument(f"--{name}", help=text.removesuffix("."), **kind, **more)


def add_fields(group: Any, settings: type[Settings], shown: dict[str, str]) -> None:
    """Add a flag per field, and one for a file of fields. A field without its flag is not in the namespace."""
    group.add_argument("--config", metavar="FILE.toml", help="file with these settings; flags win over it")
    help_texts = field_help(settings)
    for field in settings.fields():
        default = shown.get(field.name, field.default)
        note = "" if default is None else f" (default: {default})"
        text = help_texts.get(field.name, "").removesuffix(".") + note
        kind = _KINDS[" | ".join(name for name in type_names_of(field) if name != "None")]
        group.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=text, **kind)


def given_fields(a: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """The fields that the file and the flags set. Flags override the file."""
    values: dict[str, Any] = {}
    if a.config is not None:
        values = read_toml(a.config, settings.table)
        settings.from_dict(values, source=a.config)
    return {**values, **{name: value for name, value in vars(a).items() if name in settings.names()}}


def changes_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` pairs. A value that is not valid JSON is a string."""
    words = {"none": None, "true": True, "false": False}
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"set: {pair!r} is not NAME=VALUE")
        name = name.strip().replace("-", "_")
        try:
            changes[name] = words[text.lower()] if text.lower() in words else json.loads(text)
        except (ValueError, RecursionError):
            changes[name] = text
    return changes


def add_generation(group: Any) -> None:
    """Flags for writing summaries."""
    add_arguments(group, xsum.evaluate, "rows")
    add_arguments(group, xsum.summarize, "max_summary", "num_beams")
    add_arguments(group, beam_search, "length_penalty", "no_repeat_ngram_size")
    group.add_argument("--examples", type=int, default=3, help="summaries to show, each with reference and LEAD-1")
