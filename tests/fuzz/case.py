"""Cases: what was tried, in a form that can be written into a file and tried again."""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PARTS", "Fault", "Outcome", "generator", "load", "packed", "store", "unpacked"]

PARTS = ("readers", "calls", "sequences")
Case = dict[str, Any]


class Fault(AssertionError):
    """What a case should not have done, in words."""


@dataclass
class Outcome:
    """What came of a case.

    Attributes
    ----------
    kind : str
        The format, function or model that the case was about.
    accepted : bool
        Whether the input was taken, or refused with an exception that it may have.
    seconds : float
        Time of the processor.
    problem : str or None
        The fault, if there was one.
    case : dict
        How to try it again.
    """

    kind: str
    accepted: bool = False
    seconds: float = 0.0
    problem: str | None = None
    case: Case = field(default_factory=dict)


def generator(seed: int, part: str, number: int) -> np.random.Generator:
    """Random numbers of one case: they depend on nothing else."""
    return np.random.default_rng([seed, PARTS.index(part), number])


def packed(content: bytes) -> Case:
    """Content of a file as values of JSON: text if it is text."""
    with contextlib.suppress(UnicodeDecodeError):
        return {"text": content.decode("utf-8")}
    return {"base64": base64.b64encode(content).decode("ascii")}


def unpacked(case: Case) -> bytes:
    """The content that `packed` has packed."""
    return case["text"].encode("utf-8") if "text" in case else base64.b64decode(case["base64"])


def store(folder: Path, name: str, case: Case, problem: str) -> Path:
    """Write a case into a folder, and what was wrong into a file beside it. Returns the file of the case."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def load(path: Path) -> Case:
    """A case from a file."""
    case: Case = json.loads(path.read_text(encoding="utf-8"))
    if case.get("part") not in PARTS:
        raise SystemExit(f"{path}: not a case: its part is {case.get('part')!r}, expected one of {', '.join(PARTS)}")
    return case
