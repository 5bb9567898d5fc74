"""Every operator of the C core on plain NumPy arrays, forward and backward.

For notebooks, tests and experiments. Each function is one call of the core, at the active level and with the active
number of threads (see `use_level` and `mom.set_num_threads`).

Floating point arguments are ndarrays of float32, C-contiguous; nothing is converted silently.
Integer arguments (tokens, labels, indices) may have any integer dtype. Inputs are never modified.
Where the core *adds* a gradient, `add_to` takes the gradients so far: a tuple in the order of the results, with None
for zero. The results are new arrays with the sums.

A wrong dtype raises ``TypeError``. A wrong shape, layout or value raises ``ValueError``. The message names the
argument, what was passed and what was expected.

Dimension letters: B batch, T sequence, N tokens, C channels, H heads, V vocabulary, M modules,
K choices per token, S router outputs (modules and SKIP), R router width, P slots of a routing plan
(one per choice that is a module).
"""

from .._core import RoutingPlan
from .attention import attention_backward, attention_forward
from .balance import balance_loss, balance_loss_backward
from .elementwise import (
    dropout,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    layernorm_stats,
    random_uniform,
)
from .embedding import embedding_backward, embedding_forward
from .linear import GemmProduct, column_sum, gemm, gemm_grouped, linear_backward, linear_forward
from .losses import (
    cross_entropy_backward,
    cross_entropy_forward,
    label_loss,
    lm_head_backward,
    lm_head_forward,
    lm_head_gradient,
    lm_head_loss,
)
from .optimizer import adamw_step, clip_grad_norm
from .routed import (
    routed_combine_backward,
    routed_combine_forward,
    routed_layernorm_backward,
    routed_layernorm_forward,
    routed_linear_backward,
    routed_linear_forward,
    routed_score_backward,
    routed_slot_scale,
    routing_plan,
    routing_plan_dense,
)
from .router import (
    RouterSaved,
    RouterTensors,
    router_backward,
    router_forward,
    router_scores_backward,
    router_scores_forward,
    ste_backward,
    ste_forward,
    topk_backward,
    topk_forward,
)
from .shared import use_level

__all__ = [
    "GemmProduct", "RouterSaved", "RouterTensors", "RoutingPlan", "adamw_step", "attention_backward",
    "attention_forward", "balance_loss", "balance_loss_backward", "clip_grad_norm", "column_sum",
    "cross_entropy_backward", "cross_entropy_forward", "dropout", "embedding_backward", "embedding_forward",
    "gelu_backward", "gelu_forward", "gemm", "gemm_grouped", "label_loss", "layernorm_backward", "layernorm_forward",
    "layernorm_stats", "linear_backward", "linear_forward", "lm_head_backward", "lm_head_forward", "lm_head_gradient",
    "lm_head_loss", "random_uniform", "routed_combine_backward", "routed_combine_forward",
    "routed_layernorm_backward", "routed_layernorm_forward", "routed_linear_backward", "routed_linear_forward",
    "routed_score_backward", "routed_slot_scale", "router_backward", "router_forward", "router_scores_backward",
    "router_scores_forward", "routing_plan", "routing_plan_dense", "ste_backward", "ste_forward", "topk_backward",
    "topk_forward", "use_level",
]  # fmt: skip
