"""What a run is, and what a resumed run may change.

Every checkpoint holds the fingerprint of its run: the model's configuration, all settings, hashes of the data and of
the tokenizer, and the kernels that computed it. A run that is resumed compares the checkpoint's fingerprint with its
own. `MAY_CHANGE` says what happens to each field that differs.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._reading import open_file
from .._version import __version__
from ..config import MoMConfig
from ..data.token_files import TokenFile
from ..data.token_formats import read_description
from ..errors import ConfigError, DataError
from ..files.atomic import naming_file
from ..interventions.files import described
from ..model import Network
from ..runtime import cpu_info
from ..settings import Settings

__all__ = [
    "FREE", "FROM_SCRATCH", "MAY_CHANGE", "Change", "changes_between", "check_changes", "digest_of_rows",
    "digest_of_tokens", "digest_of_weights", "fingerprint_of", "shown_fact", "start_of",
]  # fmt: skip

#: The change alters what is computed: it is refused, unless the caller insists.
REFUSED = "refused"
#: The change alters only rounding, or only what is measured: a warning says so.
WARNED = "warned"
#: The change makes the run longer or shorter, and with it the schedule of the learning rate. It is said.
SAID = "said"
#: The change has no effect on what is computed: nothing is said.
FREE = "free"

#: What a resumed run may change: fields of `TrainingConfig`, of `FinetuneConfig`, and facts of a run. Every field of
#: the model's configuration is `REFUSED`.
MAY_CHANGE: dict[str, dict[str, str]] = {
    "training": {
        "steps": SAID, "batch_size": REFUSED, "sequence_length": REFUSED, "accumulation": REFUSED, "lr": REFUSED,
        "schedule": REFUSED, "warmup": REFUSED, "final_lr": REFUSED, "beta1": REFUSED, "beta2": REFUSED,
        "eps": REFUSED, "weight_decay": REFUSED, "clip": REFUSED, "sampling": REFUSED, "seed": REFUSED,
        "eval_every": FREE, "eval_batches": WARNED, "patience": FREE, "save_every": FREE, "keep_last": FREE,
        "save_optimizer": FREE, "log_every": FREE, "max_bad_steps": FREE, "trainable": REFUSED,
        "router_temperature_start": REFUSED, "router_jitter_start": REFUSED, "router_anneal": REFUSED,
        "activation_checkpointing": FREE, "reproducible": REFUSED, "tree_rows": REFUSED, "transport": WARNED,
        "tensorboard": FREE, "wandb": FREE,
    },
    # Evaluations choose the weights that are kept, so they count here.
    "fine-tuning": {
        "epochs": SAID, "max_steps": SAID, "batch_size": REFUSED, "accumulation": REFUSED, "lr": REFUSED,
        "schedule": REFUSED, "warmup": REFUSED, "weight_decay": REFUSED, "beta1": REFUSED, "beta2": REFUSED,
        "eps": REFUSED, "clip": REFUSED, "dropout": REFUSED, "max_length": REFUSED, "evals_per_epoch": REFUSED,
        "eval_every": REFUSED, "patience": FREE, "train": REFUSED, "activation_checkpointing": FREE,
        "reproducible": REFUSED, "tree_rows": REFUSED, "transport": WARNED,
    },
    "run": {
        "data": REFUSED,  # hash of the training data
        "val_data": WARNED,  # the data of an evaluation that only measures
        "dev_data": REFUSED,  # the data of an evaluation that chooses weights
        "tokenizer": REFUSED,  # its hash
        "start": REFUSED,  # hash of the weights of the model that the run begins with, or FROM_SCRATCH
        "frozen": REFUSED,  # which parameters are not trained
        "seed": REFUSED,  # of fine-tuning
        "interventions": REFUSED,  # those that are active in the whole run
        "ranks": WARNED,  # how many
        "dtype": WARNED, "level": WARNED, "compiler": WARNED, "version": WARNED,
    },
}  # fmt: skip

#: The fact `start` of a run whose model begins with random weights.
FROM_SCRATCH = "fresh weights"

#: Token files up to this size are hashed whole. Of larger ones as many bytes are read, in blocks over the whole file.
_WHOLE, _BLOCKS = 1 << 24, 256


class Change(NamedTuple):
    """A field that a resumed run has changed, and the verdict of `MAY_CHANGE`."""

    name: str
    before: Any
    now: Any
    verdict: str

    def __str__(self) -> str:
        return f"{self.name} was {shown_fact(self.before)} and is now {shown_fact(self.now)}"


def shown_fact(value: Any) -> str:
    """A value of a fingerprint for a message."""
    if isinstance(value, Mapping):
        return " ".join(f"{name} {shown_fact(item)}" for name, item in value.items())
    text = value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


# ---------------------------------------------------------------------- making one
def fingerprint_of(
    model: Network, config: Settings, facts: Mapping[str, Any], trained: npt.NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """The fingerprint of a run, as JSON values.

    Parameters
    ----------
    model : Network
    config : TrainingConfig or FinetuneConfig
    facts : mapping of str to value
        What only the caller knows, under names of ``MAY_CHANGE["run"]``.
    trained : ndarray of uint8, optional
        Which parameters the run selects, in the model's order. By default all.
    """
    cpu = cpu_info()
    chosen = [True] * len(model.parameters) if trained is None else trained
    pairs = zip(model.trainable.items(), chosen, strict=True)
    frozen = [name for (name, may), is_chosen in pairs if not (may and is_chosen)]
    run = {
        **facts, "tokenizer": getattr(model.tokenizer, "sha256", None),
        "interventions": described(model.interventions),
        "frozen": {"parameters": len(frozen), "sha256": hashlib.sha256("\n".join(frozen).encode()).hexdigest()},
        "dtype": model.dtype, "level": cpu["level"], "compiler": cpu["compiler"], "version": __version__,
    }  # fmt: skip
    return {"model": model.config.to_dict(), "settings": config.to_dict(), "run": run}


def digest_of_tokens(tokens: TokenFile) -> dict[str, Any]:
    """Number of tokens and hashes of a token file.

    ``sha256`` is what its description says of the file. ``sample`` is the hash of at most 16 MiB of the file itself: of
    the whole file, or of 256 blocks over its whole length. So a large file is recognised in a fraction of a second. A
    change between the blocks is not noticed if the description stays as it is.
    """
    size, digest = os.stat(tokens.path).st_size, hashlib.sha256()
    block = _WHOLE // _BLOCKS
    last = max(0, size - block)
    starts = range(0, size, block) if size <= _WHOLE else [i * last // (_BLOCKS - 1) for i in range(_BLOCKS)]
    with naming_file(tokens.path), open_file(tokens.path, DataError) as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(block))
    found = {"tokens": len(tokens), "bytes": size, "sample": digest.hexdigest()}
    said = read_description(tokens.path)[0].get("sha256")
    return found if said is None else {**found, "sha256": said}


def digest_of_rows(rows: Sequence[npt.NDArray[np.int32]], labels: Any) -> dict[str, Any]:
    """Number and hash of token rows with their labels, or with what else belongs to each row."""
    digest = hashlib.sha256()
    for values in (np.array([len(row) for row in rows], np.int64), np.asarray(labels), *rows):
        digest.update(str(values.dtype.str).encode() + np.ascontiguousarray(values).tobytes())
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def digest_of_weights(model: Network) -> str:
    """Hash of a model's parameters without a classifier's head, which fine-tuning does not begin with."""
    digest = hashlib.sha256()
    for name, value in model.parameters.items():
        if not name.startswith("score."):
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def start_of(first: Network | None, begins: bool) -> dict[str, str]:
    """The fact of what a run's model begins with: the weights of `first`, or fresh ones.

    A resumed run that does not name the model again (`begins` is False) says nothing: its checkpoint counts.
    """
    if first is not None:
        return {"start": digest_of_weights(first)}
    return {"start": FROM_SCRATCH} if begins else {}


# ---------------------------------------------------------------------- comparing two
def changes_between(before: Mapping[str, Any], now: Mapping[str, Any], settings: type[Settings]) -> list[Change]:
    """Fields that differ between the fingerprints of a checkpoint and of the run that continues from it.

    A field of the configuration or of the settings that the checkpoint does not have had its default value. A fact that
    one of the two does not know is not compared.
    """
    changes = []
    for part, kind in (("model", MoMConfig), ("settings", settings)):
        if not isinstance(before.get(part), Mapping):
            continue
        verdicts = MAY_CHANGE[kind.noun] if part == "settings" else {}
        for field in kind.fields():
            old, new = before[part].get(field.name, field.default), now[part][field.name]
            if old != new:
                changes.append(Change(field.name, old, new, verdicts.get(field.name, REFUSED)))
    known = {"interventions": [], **(before.get("run") or {})}  # earlier versions had none
    for name, verdict in MAY_CHANGE["run"].items():
        old, new = known.get(name), now["run"].get(name)
        if old is not None and new is not None and _differ(old, new):
            changes.append(Change(name, old, new, verdict))
    return changes


def _differ(old: Any, new: Any) -> bool:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return any(old[name] != new[name] for name in old.keys() & new.keys())
    return bool(old != new)


def check_changes(changes: Sequence[Change], source: str, allowed: bool) -> list[Change]:
    """Refuse what must not change, and warn of other changes that matter.

    Parameters
    ----------
    changes : sequence of Change
    source : str
        The checkpoint, for the message.
    allowed : bool
        The caller insists: what would be refused is only said.

    Returns
    -------
    list of Change
        The changes in what is computed or in the length of the run, which the caller says.

    Raises
    ------
    ConfigError
        Naming every field that must not change, with its old and its new value.
    """
    refused = [change for change in changes if change.verdict == REFUSED]
    if refused and not allowed:
        raise ConfigError(
            f"resume: {source} belongs to another run: {'; '.join(map(str, refused))}. Resume with what the run began "
            "with, or use another run_dir. To continue with the changes all the same, pass allow_changes=True "
            "(on the command line --allow_changes)"
        )
    if rounding := [change for change in changes if change.verdict == WARNED]:
        warnings.warn(
            f"resume: {'; '.join(map(str, rounding))}. From here on, numbers can differ from those of a run that was "
            "never stopped",
            stacklevel=2,
        )
    return [change for change in changes if change.verdict not in (WARNED, FREE)]
