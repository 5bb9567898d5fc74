"""The recorded runs of the published reference, as objects for tests of any implementation.

``tests/parity/<case>`` holds a small, diverse selection; the complete set is read from the optional
data folder (see ``shared_data.py``) where it is present. What the names in a case mean is
described in ``tests/parity/README.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mom.config import MoMConfig
from shared_data import shared_root

COMMITTED = Path(__file__).resolve().parent / "parity"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One recorded run.

    Parameters
    ----------
    name, kind : str
        Kinds are ``lm``, ``seqcls``, ``train_trace``, ``vanilla``, ``vanilla_train_trace``,
        ``vanilla_generate``, ``mom_generate`` and ``init_from_vanilla``.
    config : MoMConfig
        With the reference's behaviour in every field.
    parameters : dict of str to ndarray of float32
        All parameters; of ``init_from_vanilla`` cases those that are not copied.
    inputs : dict of str to ndarray
        ``input_ids``, ``labels`` and, where used, ``attention_mask``.
    expected, expected32 : dict of str to ndarray
        Results of the reference in float64 and in float32.
    meta : dict
        ``case.json``.
    vanilla_config, vanilla : MoMConfig and dict, or None
        The plain GPT-2 of ``init_from_vanilla`` cases.
    """

    name: str
    kind: str
    config: MoMConfig
    parameters: Arrays
    inputs: Arrays
    expected: Arrays
    expected32: Arrays
    meta: dict[str, Any]
    vanilla_config: MoMConfig | None = None
    vanilla: Arrays | None = None

    @property
    def call_inputs(self) -> dict[str, np.ndarray | None]:
        """Keyword arguments of a model call."""
        return {
            "tokens": self.inputs["input_ids"],
            "labels": self.inputs.get("labels"),
            "attention_mask": self.inputs.get("attention_mask"),
        }

    def expected_gradients(self) -> Arrays:
        """Gradients of the total loss by parameter name; unused parameters are absent."""
        return {name.removeprefix("grad/"): g for name, g in self.expected.items() if name.startswith("grad/")}


def _folders() -> dict[str, Path]:
    roots = [COMMITTED] if shared_root() is None else [shared_root() / "parity", COMMITTED]
    return {path.parent.name: path.parent for root in roots for path in sorted(root.glob("*/case.json"))}


def case_names(*kinds: str) -> list[str]:
    """Sorted names of all cases at hand, or of those of some kinds."""
    folders = _folders()
    return sorted(n for n, path in folders.items() if not kinds or _json(path / "case.json")["kind"] in kinds)


def load_case(name: str) -> Case:
    """Read one case; the committed copy if there are two."""
    folders = _folders()
    if name not in folders:
        raise KeyError(f"name: no case {name!r}; there are {', '.join(sorted(folders))}")
    path = folders[name]
    meta = _json(path / "case.json")
    has_vanilla = (path / "vanilla.safetensors").exists()
    return Case(
        name=name,
        kind=meta["kind"],
        config=MoMConfig.from_json(path / "config.json"),
        parameters=load_file(path / ("fresh.safetensors" if has_vanilla else "model.safetensors")),
        inputs=_arrays(path / "inputs.npz"),
        expected=_arrays(path / "expected_f64.npz"),
        expected32=_arrays(path / "expected.npz"),
        meta=meta,
        vanilla_config=MoMConfig.from_json(path / "vanilla_config.json") if has_vanilla else None,
        vanilla=load_file(path / "vanilla.safetensors") if has_vanilla else None,
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
