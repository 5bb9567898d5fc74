"""Where optional test data lives: recorded runs and real text that the repository does not carry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_root() -> Path | None:
    """The folder of optional data (environment variable ``MOM_SHARED``, else ``shared`` beside the checkout)."""
    candidate = Path(os.environ.get("MOM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    return candidate if candidate.is_dir() else None


def shared_path(*parts: str) -> Path:
    """Path of an optional file or folder; skips the calling test, with the reason, when it is absent."""
    root = shared_root()
    if root is None:
        pytest.skip("optional data folder is absent (set MOM_SHARED to use one)")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"optional data {'/'.join(parts)} is absent")
    return path
