"""Exceptions of the package.

Exceptions about files, configurations and runs derive from `MomError` and from a built-in exception. So both
``except mom.MomError`` and, for example, ``except ValueError`` work. Wrong arguments of a call (a shape, a dtype, a
range) raise only built-in exceptions, as in NumPy: ``ValueError``, ``TypeError``, ``RuntimeError``, ``MemoryError``.
"""

__all__ = ["CheckpointError", "ConfigError", "DataError", "MomError", "TrainingError"]


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
