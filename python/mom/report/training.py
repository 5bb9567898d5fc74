"""The first stages: the text becomes tokens, and the models are trained by `mom.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._json import sha256_of
from .._reading import kind_of
from ..config import MoMConfig
from ..data import Documents, TextDocuments, TokenFile, standard_library_text
from ..data.prepare import prepare, read_meta
from ..errors import DataError, TrainingInterrupted
from ..files.folders import write_json
from ..model import MoM
from ..sweep import run
from ..sweep.trial import evaluations_in, read_records
from ..training.fingerprint import digest_of_tokens
from .box import TIME_UP, Box
from .shapes import VARIANTS, configs_of

__all__ = ["config_of", "data_folder", "load", "prepare_data", "train_models", "trained", "vocabulary_of"]

#: Trials may take this many times their share of the time.
_SLOWER = 1.6
_VAL_FRACTION = 0.05
#: Tokens that are counted at once.
_BLOCK = 1 << 20


# ---------------------------------------------------------------------- text
def vocabulary_of(data: Path | None) -> int | None:
    """The vocabulary of a prepared folder; None for text, which is prepared for the plan."""
    return None if data is None or not _is_prepared(data) else read_meta(data).get("vocab_size")


def _is_prepared(data: Path) -> bool:
    return kind_of(data / "train.bin") is not None


def prepare_data(box: Box, data: Path | None, folder: Path) -> dict[str, Any]:
    """Write token files and a new tokenizer, unless the data are token files already. Returns what there is."""
    if data is not None and _is_prepared(data):
        where, source = data, "a prepared folder"
    else:
        documents = standard_library_text() if data is None else Documents(data, on_error="skip")
        where, source = folder / "tokens", documents.names[0] if data is None else "a text"
        prepare(
            TextDocuments(_sample(documents, box.plan.chars), name=source), where,
            vocab_size=box.plan.size.vocab_size, val_fraction=_VAL_FRACTION, seed=box.seeds[0], progress=False,
        )  # fmt: skip
    vocab_size = read_meta(where).get("vocab_size") or box.plan.size.vocab_size
    found: dict[str, Any] = {"source": source, "vocab_size": vocab_size}
    for name in ("train.bin", "val.bin"):
        if kind_of(where / name) is None:
            raise DataError(
                f"data: {where} has no {name}; mom prepare makes both, with --val_fraction 0.05 for example"
            )
        tokens = TokenFile(where / name, vocab_size=vocab_size)
        if len(tokens) <= 2 * box.plan.size.positions:
            raise DataError(f"data: {name} has {len(tokens)} tokens, and sequences have {box.plan.size.positions}; "
                            "give a longer text")  # fmt: skip
        found[name] = digest_of_tokens(tokens)["sample"]
        found[f"{name.partition('.')[0]}_tokens"] = len(tokens)
    found["unigram"] = unigram_loss(
        *(TokenFile(where / name, vocab_size=vocab_size) for name in ("train.bin", "val.bin"))
    )
    for model, config in configs_of(box.plan.size, vocab_size).items():
        write_json(folder / f"{model}.json", config.to_dict())
    return found


def unigram_loss(train: TokenFile, validation: TokenFile) -> float:
    """Loss on the validation data, in nats per token, of a model that knows nothing but how often each token occurs."""
    seen, wanted = (_counts(tokens) for tokens in (train, validation))
    return float(np.sum(wanted / wanted.sum() * -np.log((seen + 1) / (seen + 1).sum())))


def _counts(tokens: TokenFile) -> npt.NDArray[np.float64]:
    counts = np.zeros(tokens.vocab_size or 1 << 16)
    for begin in range(0, len(tokens), _BLOCK):
        part = np.bincount(tokens.read(begin, min(_BLOCK, len(tokens) - begin)), minlength=len(counts))
        counts += part[: len(counts)]
    return counts


def _sample(documents: Documents, chars: int) -> list[str]:
    """The first documents, as many as make up so many characters."""
    texts: list[str] = []
    parts: list[str] = []
    for piece in documents:
        parts.append(piece.text[:chars])
        chars -= len(parts[-1])
        if piece.end or not chars:
            texts.append("".join(parts))
            parts = []
        if not chars:
            break
    return texts


def data_folder(box: Box, data: Path | None) -> Path:
    """Where the token files are."""
    own = box.out / "data" / "text" / "tokens"
    return own if kind_of(own) is not None or data is None else data


# ---------------------------------------------------------------------- models
def config_of(box: Box, model: str) -> MoMConfig:
    """The configuration of a model in `MODELS`."""
    return MoMConfig.from_json(box.out / "data" / "text" / f"{model}.json")


def train_models(box: Box, data: Path, folder: Path, wanted: Sequence[str] | None = None, share: float = 1.0) -> None:
    """Train all models that are not trained yet: all variants with the first seed, then with the next one.

    Parameters
    ----------
    box : Box
    data : Path
        Of the token files.
    folder : Path
        Of the sweep.
    wanted : sequence of str, optional
        Names of trials, as `trained` has them; by default all.
    share : float
        Share of the time that is for training. If it takes much longer, further seeds are left out.
    """
    used = sum(done["seconds"] for done in trained(folder).values()) / box.plan.processes
    limit = min(box.left, _SLOWER * share * box.seconds - used)
    with box.limited(max(1.0, limit)) as fired:
        for seed in box.seeds:
            names = [v for v, _, _ in VARIANTS if wanted is None or f"{v}-seed{seed}" in wanted]
            if not names or fired:
                continue
            processes = min(box.plan.processes, len(names))
            try:
                run(
                    grid_of(box, data, seed, names), folder, processes=processes, threads=processes,
                    retry_failed=True, progress=box.shows,
                )  # fmt: skip
            except TrainingInterrupted:
                if not fired:
                    raise
            box.note_time()
    there = trained(folder)
    for unit in (f"{variant}-seed{seed}" for seed in box.seeds for variant, _, _ in VARIANTS):
        if wanted is None and unit not in there:
            box.left_out[f"models/{unit}"] = TIME_UP if fired else failure_of(folder, unit)


def failure_of(folder: Path, unit: str) -> str:
    """Why a trial has no result."""
    for record in read_records(folder):
        if record.failed and unit in [f"{name}-seed{record.flat['seed']}" for name in record.names]:
            return str(record.failed.get("error"))
    return "it has not run"


def grid_of(box: Box, data: Path, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """The grid of one seed for `mom.sweep.run`."""
    plan = box.plan
    variants = []
    for name, model, two_phases in VARIANTS:
        file = str(box.out / "data" / "text" / f"{model}.json")
        fields: dict[str, Any] = {"name": name, "model": file, "steps": plan.steps}
        if two_phases:
            fields.update(steps=plan.steps - plan.phase_one, phase_one_steps=plan.phase_one)
        fields["warmup"] = max(1, int(fields["steps"]) // 10)
        variants.append(fields)
    every = max(1, plan.steps // 10)
    return {
        "base": {
            "data": str(data), "batch_size": plan.size.rows, "sequence_length": plan.size.positions, "lr": 2e-3,
            "final_lr": 0.1, "beta2": 0.95, "weight_decay": 0.1, "eval_every": every, "eval_batches": 8,
            "save_every": every,
        },
        "variant": [fields for fields in variants if fields["name"] in names], "grid": {"seed": [seed]},
        "measure": ["whole_val_loss", "routes"], "keep_models": True,
    }  # fmt: skip


def trained(folder: Path) -> dict[str, dict[str, Any]]:
    """The models that are trained, by ``variant-seed0``: results, times, the folder of the model, and the curve."""
    found: dict[str, dict[str, Any]] = {}
    for record in read_records(folder) if kind_of(folder) == "folder" else ():
        if not record.done:
            continue
        curve = {entry["step"]: entry["val_loss"] for entry in evaluations_in(record.folder)}
        curve = {step: curve[step] for step in sorted(curve)}
        first = (record.settings["phase_one_steps"] or 0) * _tokens(record.settings)
        result = {
            "loss": record.done["whole_val_loss"], "parameters": record.done["parameters"],
            "weights": record.done["parameters_sha256"], "routes": record.done.get("routes", {}),
            "curve": [[first + step * _tokens(record.settings), loss] for step, loss in curve.items()],
            "tokens": first + record.done["tokens"],
        }  # fmt: skip
        for name in record.names:
            found[f"{name}-seed{record.flat['seed']}"] = {
                "result": result, "sha256": sha256_of(result), "seconds": record.done["seconds"],
                "speed": record.done["tokens_per_second"], "model": record.folder / "model",
                "trial": record.folder.name,
            }  # fmt: skip
    return dict(sorted(found.items()))


def _tokens(settings: dict[str, Any]) -> int:
    training = settings["training"]
    return int(training["batch_size"] * training["sequence_length"] * training["accumulation"])


def load(box: Box, unit: str) -> MoM:
    """A trained model."""
    return MoM.from_pretrained(trained(box.out / "models")[unit]["model"])
