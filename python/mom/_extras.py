"""Optional packages: imported when first needed, with a message that names what to install."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["need"]


def need(module: str, purpose: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Parameters
    ----------
    module : str
        Such as ``"scipy.stats"``.
    purpose : str
        What needs it, for the message.
    package : str, optional
        Name under which the package is installed; by default the module's first part.

    Raises
    ------
    ImportError
        Saying what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        shown = package or module.partition(".")[0]
        raise ImportError(f"{purpose} needs the package {shown}: pip install {shown} ({error})") from None
