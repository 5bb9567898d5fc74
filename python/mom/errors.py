"""Exceptions of the package.

Exceptions about files, configurations and runs derive from `MomError` and from a built-in exception. So both
``except mom.MomError`` and, for example, ``except ValueError`` work. Wrong arguments of a call (a shape, a dtype, a
range) raise only built-in exceptions, as in NumPy: ``ValueError``, ``TypeError``, ``RuntimeError``, ``MemoryError``.
"""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "MomError", "RankError", "TrainingError", "TrainingInterrupted",
]  # fmt: skip


class MomError(Exception):
    """Base class of the exceptions defined by this package."""


class ConfigError(MomError, ValueError):
    """A configuration field is unknown, of the wrong type, out of range or contradicts another."""


class CheckpointError(MomError, ValueError):
    """A checkpoint or weight file is missing, truncated, corrupted or does not fit the model."""


class DataError(MomError, ValueError):
    """A text, token or tokenizer file cannot be used."""


class TrainingError(MomError, RuntimeError):
    """A training run cannot continue (for example after repeated non-finite losses)."""


class RankError(TrainingError):
    """Another rank of a run on several ranks has failed, or does not answer.

    Attributes
    ----------
    ranks : list of int
        The ranks that failed, as far as they are known.
    traceback : str
        That of the rank that failed; empty if it did not answer.
    """

    def __init__(self, message: str, ranks: Sequence[int] = (), traceback: str = "") -> None:
        super().__init__(message, list(ranks), traceback)
        self.ranks, self.traceback = list(ranks), traceback

    def __str__(self) -> str:
        return str(self.args[0])


class TrainingInterrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C ended a call that trains, after it has saved what it saves.

    It is a `KeyboardInterrupt`, so a program's loop over many runs ends, too. Catch it to use the result.

    Attributes
    ----------
    result : object
        What the call would have returned at this point.
    signal : str
        Name of the signal.
    """

    def __init__(self, message: str, result: Any, signal: str = "SIGINT") -> None:
        super().__init__(message)
        self.result, self.signal = result, signal
