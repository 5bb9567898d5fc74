"""Stubs of the extension. The public interface of its functions is `mom.ops`, `mom.runtime` and `mom.MoM`."""

from typing import Any, Literal, final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .runtime import CpuInfo

_Float = NDArray[np.float32]
_Double = NDArray[np.float64]
_Int = NDArray[np.int32]
_Partial = tuple[_Float | None, ...] | None
_Tensors = tuple[_Float | None, ...]

@final
class RoutingPlan:
    @property
    def offsets(self) -> _Int: ...
    @property
    def counts(self) -> _Int: ...
    @property
    def token(self) -> _Int: ...
    @property
    def choice(self) -> _Int: ...
    @property
    def slot(self) -> _Int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_choices(self) -> int: ...
    @property
    def num_modules(self) -> int: ...
    @property
    def num_slots(self) -> int: ...

# ---- the process
def set_cpu_level(level: str, /) -> str: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def cpu_info() -> CpuInfo: ...
def peak_gflops(dtype: str, threads: int, seconds: float, /) -> float: ...
def memory_bandwidth(bytes: int, threads: int, repeats: int, /) -> tuple[float, float, float]: ...
def memory_fail_at(n: int, /) -> None: ...
def arena_fail_at(n: int, /) -> None: ...
def memory_live_bytes() -> int: ...
def memory_peak_bytes() -> int: ...
def memory_reset_peak() -> None: ...
def config_fields() -> list[str]: ...
def quota_cpus(limit: str, /) -> int: ...
def cgroup_cpus(root: str, /) -> int: ...

# ---- layers
def layernorm_forward(inp: _Float, weight: _Float, bias: _Float, eps: float, /) -> tuple[_Float, _Float, _Float]: ...
def layernorm_stats(inp: _Float, eps: float, /) -> tuple[_Float, _Float]: ...
def layernorm_backward(
    dout: _Float, inp: _Float, weight: _Float, mean: _Float, rstd: _Float, add_to: _Partial, /
) -> tuple[_Float, _Float, _Float]: ...
def linear_forward(
    inp: _Float, weight: _Float, bias: _Float | None, out_in: bool, add_to: _Partial, /
) -> _Float: ...
def linear_backward(
    dout: _Float, inp: _Float, weight: _Float, out_in: bool, add_to: _Partial, /
) -> tuple[_Float, _Float, _Float]: ...
def column_sum(inp: _Float, scale: _Float | None, rows: ArrayLike | None, add_to: _Partial, /) -> _Float: ...
def gelu_forward(inp: _Float, /) -> _Float: ...
def gelu_backward(dout: _Float, inp: _Float, /) -> _Float: ...
def dropout(inp: _Float, p: float, seed: int, counter: int, site: int, /) -> _Float: ...
def random_uniform(seed: int, counter: int, site: int, n: int, /) -> _Float: ...
def embedding_forward(
    tokens: ArrayLike, positions: ArrayLike, wte: _Float, wpe: _Float, p: float, seed: int, counter: int, site: int, /
) -> _Float: ...
def embedding_backward(
    dout: _Float,
    tokens: ArrayLike,
    positions: ArrayLike,
    vocab_size: int,
    n_positions: int,
    p: float,
    seed: int,
    counter: int,
    site: int,
    add_to: _Partial,
    /,
) -> tuple[_Float, _Float]: ...
def attention_forward(
    qkv: _Float,
    num_heads: int,
    mask: ArrayLike | None,
    active: ArrayLike | None,
    queries: ArrayLike | None,
    lengths: ArrayLike | None,
    scale: float | None,
    reference: bool,
    bfloat16: bool,
    p: float,
    seed: int,
    counter: int,
    site: int,
    /,
) -> tuple[_Float, _Float]: ...
def attention_backward(
    dout: _Float,
    qkv: _Float,
    out: _Float,
    lse: _Float,
    num_heads: int,
    mask: ArrayLike | None,
    active: ArrayLike | None,
    queries: ArrayLike | None,
    lengths: ArrayLike | None,
    scale: float | None,
    reference: bool,
    bfloat16: bool,
    p: float,
    seed: int,
    counter: int,
    site: int,
    /,
) -> _Float: ...
def attention_probabilities(
    qkv: _Float,
    rows: ArrayLike,
    num_heads: int,
    mask: ArrayLike | None,
    active: ArrayLike | None,
    queries: ArrayLike | None,
    lengths: ArrayLike | None,
    scale: float | None,
    reference: bool,
    bfloat16: bool,
    p: float,
    seed: int,
    counter: int,
    site: int,
    /,
) -> _Float: ...

# ---- losses, products, kernels
def cross_entropy_forward(logits: _Float, labels: ArrayLike, /) -> tuple[_Float, _Float]: ...
def cross_entropy_backward(logits: _Float, lse: _Float, labels: ArrayLike, scale: float, /) -> _Float: ...
def lm_head_forward(hidden: _Float, wte: _Float, labels: ArrayLike, /) -> tuple[_Float, float]: ...
def lm_head_backward(
    hidden: _Float, wte: _Float, lse: _Float, labels: ArrayLike, scale: float, add_to: _Partial, /
) -> tuple[_Float, _Float]: ...
@overload
def lm_head_gradient(
    hidden: _Float, wte: _Float, labels: ArrayLike, bfloat16: bool, loss_only: Literal[False], /
) -> tuple[_Float, _Float, float]: ...
@overload
def lm_head_gradient(
    hidden: _Float, wte: _Float, labels: ArrayLike, bfloat16: bool, loss_only: Literal[True], /
) -> float: ...
def label_loss(logits: _Float, labels: ArrayLike, kind: int, scale: float, /) -> tuple[_Float, float]: ...
def gemm(products: list[tuple[Any, ...]], bf16: bool, prepack: bool, /) -> list[_Float]: ...
def gemm_seconds(
    products: list[tuple[Any, ...]], bf16: bool, prepack: bool, repeats: int, /
) -> _Double: ...
def kernel_map(name: str, inp: _Float, /) -> _Float: ...
def kernel_reduce(name: str, a: _Float, b: _Float | None, /) -> float: ...
def kernel_exp_sum(inp: _Float, factor: float, offset: float, /) -> tuple[_Float, float]: ...

# ---- optimizer
def adamw_step(
    params: list[_Float],
    grads: list[_Float],
    exp_avg: list[_Float],
    exp_avg_sq: list[_Float],
    steps: _Double,
    decay: ArrayLike | None,
    used: ArrayLike | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_scale: float,
    /,
) -> _Double: ...
def clip_gradients(grads: list[_Float], max_norm: float, /) -> float: ...

# ---- routing
def router_kinds() -> list[tuple[str, bool, tuple[str, ...]]]: ...
def router_forward(
    inp: _Float,
    tensors: _Tensors,
    kind: int,
    random: bool,
    state: _Float | None,
    seed: int,
    counter: int,
    site: int,
    /,
) -> tuple[_Float, _Float, _Float | None, _Float | None]: ...
def router_backward(
    dlogits: _Float,
    inp: _Float,
    saved: _Tensors,
    dstate: _Float | None,
    tensors: _Tensors,
    kind: int,
    random: bool,
    state: _Float | None,
    seed: int,
    counter: int,
    site: int,
    add_to: _Partial,
    /,
) -> tuple[Any, ...]: ...
def router_scores_forward(logits: _Float, softmax: bool, temperature: float, /) -> _Float: ...
def router_scores_backward(dscores: _Float, scores: _Float, softmax: bool, temperature: float, /) -> _Float: ...
def topk_forward(scores: _Float, k: int, renormalise: bool, /) -> tuple[NDArray[np.int16], _Float]: ...
def topk_backward(
    dweight: _Float, index: ArrayLike, weight: _Float, scores: _Float, renormalise: bool, add_to: _Partial, /
) -> _Float: ...
def forced_choices_forward(
    scores: _Float,
    outputs: _Float,
    forced: ArrayLike | None,
    k: int,
    num_modules: int,
    renormalise: bool,
    scored: bool,
    /,
) -> tuple[NDArray[np.int16], _Float]: ...
def forced_choices_backward(
    dweight: _Float, index: ArrayLike, weight: _Float, scores: _Float, renormalise: bool, add_to: _Partial, /
) -> _Float: ...
def ste_forward(weight: _Float, /) -> _Float: ...
def ste_backward(dout: _Float, /) -> _Float: ...
def routing_plan(index: ArrayLike, num_modules: int, /) -> RoutingPlan: ...
def routing_plan_dense(num_tokens: int, num_modules: int, /) -> RoutingPlan: ...
def routed_linear_forward(
    inp: _Float, weights: _Float, biases: _Float | None, plan: RoutingPlan, gathered: bool, /
) -> _Float: ...
def routed_linear_backward(
    dout: _Float,
    inp: _Float,
    weights: _Float,
    plan: RoutingPlan,
    gathered: bool,
    dout_gathered: bool,
    slot_scale: _Float | None,
    add_to: _Partial,
    /,
) -> tuple[_Float, _Float, _Float]: ...
def routed_combine_forward(y: _Float, weight: _Float | None, plan: RoutingPlan, add_to: _Partial, /) -> _Float: ...
def routed_combine_backward(
    dout: _Float, y: _Float, weight: _Float | None, plan: RoutingPlan, /
) -> tuple[_Float, _Float]: ...
def routed_slot_scale(weight: _Float, plan: RoutingPlan, /) -> _Float: ...
def routed_score_backward(
    dh: _Float,
    h: _Float,
    dout: _Float,
    biases: _Float,
    weight: _Float | None,
    plan: RoutingPlan,
    gathered: bool,
    add_to: _Partial,
    /,
) -> tuple[_Float, _Float]: ...
def routed_layernorm_forward(
    inp: _Float, mean: _Float, rstd: _Float, weights: _Float, biases: _Float, plan: RoutingPlan, /
) -> _Float: ...
def routed_layernorm_backward(
    dout: _Float,
    inp: _Float,
    mean: _Float,
    rstd: _Float,
    weights: _Float,
    plan: RoutingPlan,
    add_to: _Partial,
    /,
) -> tuple[_Float, _Float, _Float]: ...
def balance_counts(scores: _Float, mask: ArrayLike | None, softmax: bool, /) -> tuple[_Double, _Double, float]: ...
def balance_loss(counts: _Double, count_tokens: float, prob_sums: _Double, tokens: float, /) -> float: ...
def balance_backward(
    scores: _Float,
    mask: ArrayLike | None,
    counts: _Double,
    count_tokens: float,
    tokens: float,
    scale: float,
    softmax: bool,
    add_to: _Partial,
    /,
) -> _Float: ...

# ---- whole networks
@final
class Network:
    def __new__(cls, config: dict[str, Any]) -> Network: ...
    @property
    def used(self) -> NDArray[np.uint8]: ...
    @used.setter
    def used(self, value: NDArray[np.uint8]) -> None: ...
    @property
    def random_state(self) -> tuple[int, int]: ...
    @random_state.setter
    def random_state(self, value: tuple[int, int]) -> None: ...
    def forward(
        self,
        tokens: _Int,
        lengths: _Int | None = None,
        labels: _Int | None = None,
        mask: NDArray[np.uint8] | None = None,
        positions: _Int | None = None,
        pooled: _Int | None = None,
        classes: _Int | None = None,
        values: _Float | None = None,
        label_loss: int = 0,
        keep: bool = False,
        training: bool = False,
        checkpoint: bool = False,
        rows: _Int | None = None,
        logits: bool = False,
        routes: bool = False,
        interventions: tuple[Any, ...] | None = None,
        begin: tuple[Any, ...] | None = None,
    ) -> tuple[dict[str, float], int, _Float | None, dict[tuple[int, int, int], dict[str, NDArray[Any]]] | None]: ...
    @property
    def memory_limit(self) -> int: ...
    @memory_limit.setter
    def memory_limit(self, value: int) -> None: ...
    @property
    def region(self) -> tuple[int, int, int, int]: ...
    @property
    def region_parts(self) -> tuple[int, int, int]: ...
    def plan(
        self,
        batch: int,
        length: int,
        tokens: int,
        keep: bool,
        checkpoint: bool,
        training: bool,
        outputs: bool = False,
        /,
    ) -> dict[str, int]: ...
    def backward(self, scales: dict[str, float], /) -> None: ...
    def zero_grad(self) -> None: ...
    def randomize(self, seed: int, /) -> None: ...
    def logits(self, rows: _Int | None, /) -> _Float: ...
    def route(self, place: int, round: int, half: int, /) -> dict[str, NDArray[Any]] | None: ...
    def route_counts(self, place: int, round: int, half: int, /) -> NDArray[np.int64] | None: ...
    def parameter_table(self) -> list[tuple[str, tuple[int, ...], int]]: ...
    def parameter(self, index: int, /) -> _Float: ...
    def gradient(self, index: int, /) -> _Float: ...
    def set_trained(self, trained: NDArray[np.uint8], /) -> None: ...

@final
class Decoder:
    def __new__(cls, network: Network, weights: str = "float32") -> Decoder: ...
    @property
    def logits(self) -> _Float: ...
    @property
    def lengths(self) -> _Int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def weights(self) -> str: ...
    @property
    def pending(self) -> _Int: ...
    def prefill(
        self, tokens: _Int, lengths: _Int | None = None, interventions: tuple[Any, ...] | None = None
    ) -> _Float: ...
    def step(self, tokens: _Int, interventions: tuple[Any, ...] | None = None) -> _Float: ...
    def generate(
        self,
        n: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        step: int,
        stop_token: int,
        finished: NDArray[np.uint8],
        choices: int = 0,
        banned: _Int | None = None,
        interventions: tuple[Any, ...] | None = None,
        /,
    ) -> _Int: ...
    def reorder(self, rows: _Int, /) -> None: ...
    def reserve(self, capacity: int, /) -> None: ...
    def clear(self) -> None: ...
    def route(self, place: int, round: int, half: int, /) -> dict[str, NDArray[Any]] | None: ...

@final
class AdamW:
    def __new__(cls, network: Network, rank: int = 0, ranks: int = 1) -> AdamW: ...
    @property
    def steps(self) -> _Double: ...
    def step(
        self,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        max_norm: float | None,
        zero_grad: bool,
        squares: _Double | None = None,
        /,
    ) -> float | None: ...
    def squares(self) -> _Double: ...
    def exp_avg(self, index: int, /) -> _Float: ...
    def exp_avg_sq(self, index: int, /) -> _Float: ...

def gemv(
    x: _Float, weight: _Float, bias: _Float | None, out_in: bool, weights: str, gelu: bool, /
) -> _Float: ...
def has_signal_handler(number: int, /) -> bool: ...
def parameter_block(network: Network, /) -> _Float: ...
def gradient_block(network: Network, /) -> _Float: ...
def take_gradients(network: Network, used: NDArray[np.uint8], /) -> None: ...
def shard_bounds(network: Network, ranks: int, /) -> NDArray[np.int64]: ...
def add_pieces(pieces: tuple[_Float, ...], additions: tuple[tuple[int, int], ...], /) -> None: ...
def to_bfloat16(out: NDArray[np.uint16], values: _Float, /) -> None: ...
def from_bfloat16(out: _Float, values: NDArray[np.uint16], /) -> None: ...
def clip_grad_norm(network: Network, max_norm: float, /) -> float: ...
def sample(
    logits: _Float, temperature: float, top_k: int, top_p: float, seed: int, step: int, /
) -> _Int: ...
