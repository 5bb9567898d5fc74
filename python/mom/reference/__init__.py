"""The readable NumPy float64 twin of the C core: every operator and the whole model, forward and backward.

It is written for clarity and exactness, and tests compare the core with it. It is slow. Operators are
submodules with ``forward`` and ``backward`` functions that take saved values as arguments;
derivations are in ``docs/derivations``.

Examples
--------
>>> import numpy as np, mom.reference as reference
>>> np.round(reference.gelu.forward([-1.0, 0.0, 1.0]), 4)
array([-0.1588,  0.    ,  0.8412])
>>> index, weight = reference.router.top_k_forward([[0.5, 0.25, 0.5]], top_k=2, renormalise=True)
>>> index.tolist(), weight.tolist()
([[0, 2]], [[0.5, 0.5]])
"""

from . import (
    adamw,
    attention,
    balance_loss,
    classification_loss,
    coupling_loss,
    cross_entropy,
    dropout,
    embedding,
    forced_choices,
    gelu,
    grad_norm,
    layernorm,
    linear,
    routed_linear,
    router,
    routing_plan,
)
from .adamw import AdamW
from .halves import Route
from .model import Gradients, Model, Output
from .parameters import init_from_vanilla, parameter_shapes

__all__ = [
    "AdamW",
    "Gradients",
    "Model",
    "Output",
    "Route",
    "adamw",
    "attention",
    "balance_loss",
    "classification_loss",
    "coupling_loss",
    "cross_entropy",
    "dropout",
    "embedding",
    "forced_choices",
    "gelu",
    "grad_norm",
    "init_from_vanilla",
    "layernorm",
    "linear",
    "parameter_shapes",
    "routed_linear",
    "router",
    "routing_plan",
]
