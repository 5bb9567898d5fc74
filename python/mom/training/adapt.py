"""What fine-tuning does with models: copy them with a fresh head, and choose what is trained."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..config import MoMConfig
from ..errors import ConfigError, DataError
from ..model import MoM, MoMForSequenceClassification, Network

__all__ = [
    "classifier_from", "copy_of", "parameters_selected_by", "routers_are_idle", "warn_of_frozen",
    "warn_of_idle_routers",
]  # fmt: skip

Made = TypeVar("Made", MoM, MoMForSequenceClassification)


def parameters_selected_by(model: Network, train: str) -> npt.NDArray[np.uint8]:
    """Which parameters `FinetuneConfig.train` selects, in the model's order.

    ``"all"`` selects every parameter. Training changes only parameters that `MoM.train_only` has not frozen either.

    Raises
    ------
    ConfigError
        If the model has no such parameters.
    """
    names = list(model.parameters)
    head = [name.startswith("score.") for name in names]
    routers = [".router." in name for name in names]
    if train == "routers" and not any(routers):
        raise ConfigError("train: 'routers', but the model has none")
    if train == "routers" and model.config.router_frozen:
        raise ConfigError("train: 'routers', but router_frozen keeps their weights")
    if train == "head" and not any(head):
        raise ConfigError("train: 'head', but a language model has no head of its own")
    chosen = {
        "all": [True] * len(names), "head": head, "routers": [a or b for a, b in zip(head, routers, strict=True)],
    }[train]  # fmt: skip
    return np.array(chosen, np.uint8)


def routers_are_idle(config: MoMConfig, language_model: bool) -> bool:
    """Whether the loss gives a model's routers no gradient.

    By default the probabilities of the kept choices are divided by their sum. For a single choice the quotient is
    always 1, whatever the router computes, and its straight-through sign is 1, too. Without a kept choice (top-0) no
    score is used at all. Then only the routers' own terms of the loss can give a gradient, and a classifier has none.
    """
    if not config.has_routers or config.routing_all_possible_path:
        return False
    own = {name: weight for name, weight in config.loss_weights.items() if name != "lm"}
    if not config.output_router_logits:
        del own["balance"]
    if language_model and any(own.values()):
        return False
    always_one = config.router_softmax and config.router_renormalise
    return config.routing_top_k == 0 or (config.routing_top_k == 1 and always_one)


def warn_of_idle_routers(config: MoMConfig, train: str, language_model: bool, stacklevel: int = 2) -> None:
    """Warn before the first step if routers are to be trained but would learn nothing; see `routers_are_idle`."""
    if train == "head" or not routers_are_idle(config, language_model):
        return
    what = {"all": "everything but the routers", "routers": "nothing" if language_model else "the head alone"}[train]
    warnings.warn(
        f"train: {train!r} trains {what}: with routing_top_k = {config.routing_top_k} and router_type = "
        f"{config.router_type!r} the loss does not depend on what the routers say (a single choice has the weight 1, "
        "with use_ste as well), so they get no gradient. Begin with a model that keeps two choices, as "
        "from_pretrained(folder, routing_top_k=2) does, or that was trained with router_renormalise = False.",
        stacklevel=stacklevel + 1,
    )


def warn_of_frozen(model: Network, train: str, stacklevel: int = 2) -> None:
    """Warn if `Network.train_only` froze parameters of a model whose copy is to be trained as a whole."""
    frozen = [name for name, may in model.trainable.items() if not may]
    if frozen and train == "all":
        warnings.warn(
            f"model: train_only has frozen {len(frozen)} of its {len(model.trainable)} parameters, but a copy of the "
            "model is trained, in which nothing is frozen. To train a part of the copy, pass train='routers' or "
            "train='head'",
            stacklevel=stacklevel + 1,
        )


def copy_of(model: Network, kind: type[Made], seed: int = 0, dropout: float | None = None, **changes: Any) -> Made:
    """Make a network of a given kind with a model's body and tokenizer. A classifier gets a fresh head.

    The copy takes over the interventions that are active in the model, see `MoM.intervene`.

    Parameters
    ----------
    model : MoM or MoMForSequenceClassification
        Its body is copied, but not its head.
    kind : type
        `MoM` or `MoMForSequenceClassification`.
    seed : int
        Of the head and of dropout.
    dropout : float, optional
        Replaces the configuration's three dropout probabilities.
    **changes
        Other fields of the configuration.

    Raises
    ------
    DataError
        If the tokenizer has ids that the model does not know.
    """
    tokenizer, known = model.tokenizer, model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > known:
        raise DataError(f"tokenizer: its {tokenizer.vocab_size} ids are more than the model's vocab_size = {known}")
    if dropout is not None:
        changes |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    made = kind(model.config.replace(**changes), seed=seed, dtype=model.dtype)
    for name, value in model.parameters.items():
        if not name.startswith("score."):
            made.parameters[name] = value
    made.tokenizer, made.generation = tokenizer, model.generation
    made.activation_checkpointing, made.memory_limit = model.activation_checkpointing, model.memory_limit
    made.share_scopes(model)
    return made


def classifier_from(
    model: Network, num_labels: int, problem_type: str, seed: int = 0, dropout: float | None = None
) -> MoMForSequenceClassification:
    """A classifier with the body of a model and a fresh head.

    Parameters
    ----------
    model, seed, dropout
        See `copy_of`.
    num_labels : int
    problem_type : str
        See `MoMConfig`.
    """
    return copy_of(
        model, MoMForSequenceClassification, seed, dropout, num_labels=num_labels, problem_type=problem_type,
        pooling="mask",
    )  # fmt: skip
