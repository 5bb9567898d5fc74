"""The sequence classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import LARGEST, as_array, flag, flags
from ..config import MoMConfig
from ..errors import ConfigError
from ..familiar import takes_familiar_arguments
from ..interventions.rules import Intervention
from .network import Network
from .output import ModelOutput
from .routes import Routes

__all__ = ["MoMForSequenceClassification"]


def pooled_positions(
    config: MoMConfig, tokens: NDArray[np.int32], attention_mask: NDArray[np.uint8] | None
) -> NDArray[np.int32]:
    """Position of the token whose state is classified, (B,) int32; see ``MoMConfig.pooling``."""
    batch, length = tokens.shape
    if config.pooling == "mask" and attention_mask is not None:
        if not attention_mask.any(axis=1).all():
            row = int(np.flatnonzero(~attention_mask.any(axis=1))[0])
            raise ValueError(f"attention_mask: row {row} masks every token")
        last: NDArray[np.int32] = (length - 1 - np.argmax(attention_mask[:, ::-1] != 0, axis=1)).astype(np.int32)
        return last
    pad = config.pad_token_id
    if pad is None:
        if batch > 1:
            raise ValueError(
                "tokens: more than one row needs an attention_mask or, in the configuration, a pad_token_id"
            )
        return np.full(batch, length - 1, dtype=np.int32)
    # The reference takes the position before the first pad. Without a pad, or with one in front, that is the last.
    before: NDArray[np.int32] = ((np.argmax(tokens == pad, axis=1) - 1) % length).astype(np.int32)
    return before


class MoMForSequenceClassification(Network):
    """A Mixture-of-Modules (or plain GPT-2) with a linear head on the last real token.

    Parameters
    ----------
    config : MoMConfig
        With ``num_labels`` set. If ``problem_type`` is None, one label means regression; with more labels, integers
        mean single-label and floats multi-label classification.
    seed : int
    dtype : {"float32", "bfloat16"}
        Number format of stored activations and of the factors of products; see `MoM`.
    """

    is_classifier = True

    def _check_config(self, config: MoMConfig) -> MoMConfig:
        return config.replace(num_labels=2) if config.num_labels is None else config

    @classmethod
    def _adapt_config(cls, config: MoMConfig, tensors: Mapping[str, Any]) -> MoMConfig:
        if "score.weight" in tensors:
            return config.replace(num_labels=int(np.shape(tensors["score.weight"])[0]))
        return config

    def pooled_positions(
        self, tokens: NDArray[np.int32], attention_mask: NDArray[np.uint8] | None
    ) -> NDArray[np.int32]:
        """Position of the token whose state is classified, (B,) int32; see ``MoMConfig.pooling``."""
        return pooled_positions(self.config, tokens, attention_mask)

    def _targets(self, labels: ArrayLike, batch: int) -> dict[str, Any]:
        count = self.config.num_labels or 1
        array = as_array(labels, "labels")
        integer = np.issubdtype(array.dtype, np.integer)
        if not integer and not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"labels: dtype {array.dtype}, expected integer or float")
        problem = self.config.problem_type
        if problem is None:
            problem = "regression" if count == 1 else "single_label_classification"
            if count > 1 and not integer:
                problem = "multi_label_classification"
        if problem == "single_label_classification":
            if not integer:
                raise TypeError(f"labels: dtype {array.dtype}, expected an integer dtype for classification")
            if array.shape != (batch,):
                raise ValueError(f"labels: shape {array.shape}, expected ({batch},)")
            bad = (array != -100) & ((array < 0) | (array >= count))
            if bad.any():
                raise ValueError(f"labels: {int(array[bad][0])} is not in [0, {count})")
            return {"classes": np.array(array, dtype=np.int32), "label_loss": 1}
        if array.shape not in ((batch, count), *(((batch,),) if count == 1 else ())):
            raise ValueError(f"labels: shape {array.shape}, expected ({batch}, {count})")
        if not (np.abs(array) <= LARGEST).all():
            raise ValueError("labels: not all are finite float32 numbers")
        values = np.array(array.reshape(batch, count), dtype=np.float32, order="C")
        return {"values": values, "label_loss": 0 if problem == "regression" else 2}

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Any]:
        """The label of each text or pair of texts, by the model's tokenizer.

        Parameters
        ----------
        texts : sequence of str, or of pairs of str

        Returns
        -------
        list of str, int or float
            Of ``label_names``, or else numbers of labels; for a regression the numbers that it predicts.

        Raises
        ------
        DataError
            If the model has no tokenizer.
        ConfigError
            If several labels can be true at once.
        """
        from .answers import predict_labels  # with `mom.data`, which is loaded when it is used

        return predict_labels(self, texts)

    @takes_familiar_arguments
    def __call__(
        self,
        tokens: ArrayLike,
        labels: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        return_logits: bool = True,
        return_routes: bool = False,
        *,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        keep: bool | None = None,
        routes: Routes | None = None,
        interventions: Sequence[Intervention] = (),
        capture: str | Sequence[str] = (),
    ) -> ModelOutput:
        """Forward pass.

        Parameters
        ----------
        tokens : array of int, shape (B, T), or (N,) with `lengths`
        labels : array, optional
            (B,) of int for classification; (B,) or (B, num_labels) of float for regression; (B, num_labels) of
            float for multi-label classification.
        attention_mask : array of 0/1, shape (B, T), optional
        return_logits, return_routes : bool
        lengths : array of int, shape (B,), optional
            The tokens are packed: B sequences of these lengths, one after the other; see `MoM`. Each is classified at
            its last token. Not together with `attention_mask`, nor with ``pooling = "reference"``, which looks for
            padding.
        positions : array of int, as `tokens`, optional
            Position ids; by default 0, 1, 2, ... in every sequence. With ``pooling = "mask"`` positions count from the
            first unmasked token, so masked padding on either side does not change a prediction. With ``"reference"``,
            padding on the left takes up positions, as in the published code.
        keep : bool, optional
            Keep what `backward` needs; by default exactly when there are labels.
        routes : Routes, optional
            Choices to force, of the same tokens. Weights are computed anew from the live scores, so that gradients
            reach the routers. A model's own routes give the same bits.
        interventions : sequence of Intervention
            What to change in this call, see `mom.interventions`; beside those of `intervene`.
        capture : str or sequence of str
            Names of places, or shell patterns, whose activations `ModelOutput.captured` shall have. All rows are
            computed then.

        Returns
        -------
        ModelOutput
            With logits (B, num_labels) at the pooled position and the loss as ``lm_loss`` and ``loss``.
        """
        return_logits, return_routes = flags(return_logits=return_logits, return_routes=return_routes)
        given = self.inputs(tokens, lengths, attention_mask, positions)
        ids = given["tokens"]
        if lengths is None:
            mask = given.get("mask")
            given["pooled"] = self.pooled_positions(ids, mask)
            if positions is None and mask is not None and self.config.pooling == "mask" and not mask[:, 0].all():
                first = np.argmax(mask, axis=1)[:, None]
                given["positions"] = np.maximum(np.arange(ids.shape[1]) - first, 0).astype(np.int32)
        elif self.config.pooling != "mask":
            raise ConfigError(f"pooling: {self.config.pooling!r} looks for padding; packed rows need 'mask'")
        keep = labels is not None if keep is None else flag(keep, "keep")
        call = self.call_of(given, interventions, routes, capture, keep)
        targets = {} if labels is None else self._targets(labels, len(ids if lengths is None else given["lengths"]))
        results = self._core.forward(
            **given,
            keep=keep,
            training=flag(self.training, "training"),
            checkpoint=flag(self.activation_checkpointing, "activation_checkpointing"),
            logits=return_logits,
            routes=return_routes,
            interventions=None if call is None else call.core,
            **targets,
        )
        return self.output(given, *results, call)
