"""Answers of a classifier to rows of tokens and to texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.batches import bucketed, pack_rows
from ..data.columns import texts_or_pairs
from ..data.encode import encode_texts
from ..distributed import Communicator, Serial
from ..errors import ConfigError, DataError
from .on_ranks import own_batches

if TYPE_CHECKING:
    from .classifier import MoMForSequenceClassification

__all__ = ["classify", "finite_logits", "predict_labels"]


def classify(
    model: MoMForSequenceClassification,
    rows: Sequence[npt.NDArray[np.int32]],
    batch_size: int = 32,
    ranks: Communicator | None = None,
) -> npt.NDArray[np.float32]:
    """Compute the logits of token rows.

    Parameters
    ----------
    model : MoMForSequenceClassification
    rows : sequence of ndarray of int32, shape (T_i,)
    batch_size : int
        Rows computed together, packed. It has no effect on a prediction.
    ranks : Communicator, optional
        Ranks that deal the batches out among them. All get all logits.

    Returns
    -------
    ndarray of float32, shape (N, num_labels)
        In the order of `rows`. Training mode and random state of the model are as before.
    """
    if model.config.pooling != "mask":
        raise ConfigError(f"pooling: {model.config.pooling!r}; batches of unequal length need 'mask'")
    ranks = ranks or Serial()
    found = []
    with model.evaluating():
        for chosen in own_batches(model, ranks, bucketed([len(row) for row in rows], batch_size)):
            tokens, lengths = pack_rows([rows[i] for i in chosen])
            found.append((chosen, model(tokens, lengths=lengths).logits))
    logits = np.zeros((len(rows), model.config.num_labels or 1), np.float32)
    for chosen, values in itertools.chain(*ranks.exchange(found)):
        logits[chosen] = values
    return logits


def predict_labels(model: MoMForSequenceClassification, texts: Any) -> list[Any]:
    """What `MoMForSequenceClassification.predict` returns."""
    if model.tokenizer is None:
        raise DataError("tokenizer: the model has none to read texts with; set model.tokenizer")
    if model.config.problem_type == "multi_label_classification":
        raise ConfigError("problem_type: several labels can be true at once; read the logits of a forward pass")
    pairs = texts_or_pairs(texts, "texts")
    length = model.finetuning_lengths.get("max_length", model.config.n_positions)
    logits = finite_logits(classify(model, encode_texts(model.tokenizer, pairs, length)[0]))
    if model.config.num_labels == 1:
        return [float(value) for value in logits[:, 0]]
    names = model.label_names
    return [int(label) if names is None else names[label] for label in logits.argmax(axis=1)]


def finite_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the logits unchanged, but raise if the model is broken and they cannot give answers.

    Raises
    ------
    ValueError
        If one is not finite.
    """
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, label = bad[0]
        what = "not a number" if np.isnan(logits[row, label]) else "infinite"
        raise ValueError(f"logits: {what} at row {row}, label {label}")
    return logits
