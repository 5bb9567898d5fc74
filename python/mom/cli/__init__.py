"""The command ``mom``. Each flag has the name of the Python argument that it sets, with dashes or underscores.

Results go to standard output; progress and messages go to standard error. Exit status: 0 success, 1 an error (one line
on standard error; with ``MOM_DEBUG_TRACEBACK`` set, the traceback), 2 wrong usage, 128 + number after a signal.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence

from .. import _version
from ..distributed import current, is_first, launched_rank
from ..errors import ConfigError, MomError, RankError, TrainingInterrupted
from ..runtime import set_num_threads
from . import (
    bench,
    demo,
    evaluate,
    finetune,
    generate,
    info,
    launch,
    ledger,
    lm_eval,
    prepare,
    pretrain,
    prune,
    reproduce,
    routes,
    sweep,
    train,
)

__all__ = ["main", "parser"]

#: Exceptions that are shown as one line on standard error instead of a traceback.
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
    with _any_character_shown():
        try:
            current()
        except (ImportError, RankError, ConfigError) as error:  # they cannot speak to each other
            if launched_rank() == 0:
                print(f"mom: error: {error}", file=sys.stderr)
            return 1
        return _run(parser().parse_args(with_underscores(sys.argv[1:] if argv is None else argv)))


def _run(arguments: argparse.Namespace) -> int:
    stderr = sys.stderr  # a rank that keeps silent has another one while it works

    def tell(text: str, error: BaseException) -> None:
        if current().told is not error:
            print(text if is_first() else f"rank {current().rank}: {text}", file=stderr, flush=True)

    try:
        with warnings.catch_warnings(), current().failing_together(), _silent_but_on_the_first_rank(), _reports_shown():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            if getattr(arguments, "threads", None) is not None:
                set_num_threads(arguments.threads)
            status: int = arguments.run(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as stop:
        name = stop.signal if isinstance(stop, TrainingInterrupted) else "SIGINT"
        by = "" if name == "SIGINT" else f" by {name}"
        tell(f"mom: interrupted{by}{f'; {stop}' if str(stop) else ''}", stop)
        return 128 + signal.Signals[name]
    except RankError as error:
        # Where all ranks find the same fault, the first says so. What befell another rank that rank has told.
        if is_first() and not error.traceback:
            tell(f"mom: error: {error}", error)
        return 1
    except BrokenPipeError:
        # The program that read the output has ended. At exit, Python would try to write to it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except _EXPECTED as error:
        if os.environ.get("MOM_DEBUG_TRACEBACK"):
            raise
        tell(f"mom: error: {' '.join(str(error).split()) or type(error).__name__}", error)
        return 1


@contextlib.contextmanager
def _silent_but_on_the_first_rank() -> Iterator[None]:
    """On several ranks, let only the first one print results, progress and what it reads."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for a character that a stream cannot encode: an escape, or the byte of a name that is not UTF-8."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # how Python holds such a byte
        return bytes([ord(character) - 0xDC00]), after
    return character.encode("ascii", "backslashreplace").decode("ascii"), after


@contextlib.contextmanager
def _any_character_shown() -> Iterator[None]:
    """Let standard output and error show characters that they cannot encode, see `_shown`.

    A stream that was closed before the process began is None, and messages for one would appear on the other. Within
    the block it is the null device.
    """
    codecs.register_error("mom.shown", _shown)
    with contextlib.ExitStack() as undo:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                undo.callback(setattr, sys, name, None)
                setattr(sys, name, undo.enter_context(open(os.devnull, "w")))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                undo.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="mom.shown")
        yield


class _Shown(logging.Handler):
    """Prints each message once, as a line on standard error."""

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
    """Print to standard error what was read, and what was cut or left out."""
    logger, handler = logging.getLogger("mom"), _Shown()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Replace dashes by underscores in the names of long flags, up to the argument ``--``. Values are not changed."""
    result = list(argv)
    if result[:1] == ["lm_eval"] and len(result) > 1 and not result[1].startswith("-"):
        return result  # another program's flags
    for i, word in enumerate(result):
        if word == "--" or (result[0] == "launch" and word.endswith(".py")):
            break
        if re.match(r"--[a-z]", word):
            name, equals, value = word[2:].partition("=")
            result[i] = f"--{name.replace('-', '_')}{equals}{value}"
    return result


class _Listing(argparse.HelpFormatter):
    """Has room for the longest name of a command beside its description."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 13


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    root = argparse.ArgumentParser(
        prog="mom",
        formatter_class=_Listing,
        description="Mixture-of-Modules language models on a CPU.",
        epilog="'mom COMMAND --help' explains a command. First steps: 'mom demo'.",
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"mom {_version.__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listed = (
        demo, prepare, train, pretrain, sweep, evaluate, generate, routes, finetune, prune, ledger, reproduce, launch,
        lm_eval, info, bench,
    )  # fmt: skip
    for module in listed:
        module.add(commands)
    return root
