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

# ruff: noqa: F403
from .._core import RoutingPlan
from . import attention, balance, elementwise, embedding, linear, losses, optimizer, routed, router
from .attention import *
from .balance import *
from .elementwise import *
from .embedding import *
from .linear import *
from .losses import *
from .optimizer import *
from .routed import *
from .router import *
from .shared import use_level

__all__ = ["RoutingPlan", "use_level"]
__all__ += attention.__all__ + balance.__all__ + elementwise.__all__ + embedding.__all__ + linear.__all__
__all__ += losses.__all__ + optimizer.__all__ + routed.__all__ + router.__all__
