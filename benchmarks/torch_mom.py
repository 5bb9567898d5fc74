"""Mixture-of-Modules in plain PyTorch, eager: the yardstick for the C core.

Computes the same as the published model (Gong et al., arXiv:2407.06677), written as such a model usually is in PyTorch.
A Python loop goes over the modules of a pool; rows are gathered with ``index_select`` and scattered back with
``index_add_``. State-dict names and layouts are those of the reference, so parameters and gradients can be exchanged by
name: `c_attn`, `c_fc`, `c_proj` are [in, out], routers [out, in].

Left out, and refused by name: dropout, the noise gate of ``random`` routers, classification heads,
balance counts over several micro-batches, the package's own treatment of masked queries.

Dimension letters: B batch, T sequence, N = B*T, C channels, H heads, D = C/H, F inner width,
V vocabulary, M modules in a pool, K top-k, S router outputs, R router width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mom.config import MoMConfig

__all__ = ["MoMOutput", "Route", "TorchMoM"]


@dataclass
class Route:
    """What a router chose in one round.

    Attributes
    ----------
    scores : Tensor of float, shape (N, S)
        Router outputs, or probabilities if the router type says ``softmax``.
    index : Tensor of int64, shape (N, K)
        Choices in falling order of score; at least the pool's M means SKIP.
    weight : Tensor of float, shape (N, K)
        Kept scores, renormalised over the kept choices if they are probabilities.
    """

    scores: Tensor
    index: Tensor
    weight: Tensor


@dataclass
class MoMOutput:
    """Result of a forward pass.

    Attributes
    ----------
    logits : Tensor of float, shape (B, T, V)
    loss, lm_loss : Tensor of float, shape (), or None
        ``loss = lm_loss + router_aux_loss_coef * balance_loss``; None without labels.
    balance_loss : Tensor of float, shape (), or None
        None without labels, without routers, or where the configuration asks for none.
    routes : dict of list of list of Route
        By half (``"attn"``, ``"ffn"``), block and round; a half without a router has no entry.
    """

    logits: Tensor
    loss: Tensor | None
    lm_loss: Tensor | None
    balance_loss: Tensor | None
    routes: dict[str, list[list[Route]]]


class StraightThroughSign(torch.autograd.Function):
    """Sign in the forward pass; the gradient, clamped to [-1, 1], in the backward pass."""

    @staticmethod
    def forward(ctx, score: Tensor) -> Tensor:
        return score.sign()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1.0, 1.0)


class Projection(nn.Module):
    """Affine map with the weight stored [in, out], as in GPT-2's files."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight)
        return rows.view(*x.shape[:-1], -1)


def gelu_composed(x: Tensor) -> Tensor:
    """GELU, tanh form, from elementary operations as the published model evaluates it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class LinearRouter(nn.Module):
    """Scores from two linear layers; keeps no state."""

    def __init__(self, config: MoMConfig, choices: int) -> None:
        super().__init__()
        width = config.router_dim
        self.router = nn.Sequential(nn.Linear(config.n_embd, width), nn.ReLU(), nn.Linear(width, choices))

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, None]:
        return self.router(x), None


class RecurrentRouter(nn.Module):
    """Scores from a GRU cell whose state is carried from round to round, token by token.

    The 3R rows of `x2h` and `h2h` are, in order, the gates r (reset), i (update) and n (new). The
    ``gru-dev`` variant leaves the state out of n, hence computes r in vain.
    """

    def __init__(self, config: MoMConfig, choices: int) -> None:
        super().__init__()
        self.width = config.router_dim
        self.resets = config.router_kind == "gru"
        self.x2h = nn.Linear(config.n_embd, 3 * self.width)
        self.h2h = nn.Linear(self.width, 3 * self.width)
        self.router = nn.Linear(self.width, choices)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(x.size(0), self.width)
        x_reset, x_update, x_new = self.x2h(x).chunk(3, dim=1)
        h_reset, h_update, h_new = self.h2h(state).chunk(3, dim=1)
        update = torch.sigmoid(x_update + h_update)
        if self.resets:
            new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
        else:
            new = torch.tanh(x_new)
        state = new + update * (state - new)
        return self.router(state), state


class Half(nn.Module):
    """What the two halves of a layer share: a pool of M modules and, for M > 1, its router."""

    def __init__(self, config: MoMConfig, half: str, num_modules: int, fused: bool) -> None:
        super().__init__()
        self.config = config
        self.num_modules = num_modules
        self.fused = fused
        if num_modules > 1:
            kind = LinearRouter if config.router_kind == "naive" else RecurrentRouter
            self.router = kind(config, config.num_choices(half))

    def pool(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The modules of a pool; a single one goes without an index in its name."""
        return build() if self.num_modules == 1 else nn.ModuleList(build() for _ in range(self.num_modules))

    def choose(self, x: Tensor, state: Tensor | None) -> tuple[Route, Tensor | None]:
        """Route the rows of x (N, C); also returns the router's next state."""
        config = self.config
        scores, state = self.router(x, state)
        if config.router_softmax:
            scores = torch.softmax(scores / config.router_softmax_temperature, dim=-1)
        weight, index = torch.topk(scores, min(config.routing_top_k, scores.size(-1)), dim=-1)
        if config.router_softmax:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        return Route(scores, index, weight), state

    def dispatch(self, route: Route) -> list[tuple[int, Tensor, Tensor]]:
        """Module, its rows (n,) and their scores (n,), for every module that has any rows."""
        if self.config.routing_all_possible_path:
            everyone = torch.arange(route.scores.size(0), device=route.scores.device)
            return [(m, everyone, route.scores[:, m]) for m in range(self.num_modules)]
        parts = []
        for m in range(self.num_modules):
            rows, slots = torch.nonzero(route.index == m, as_tuple=True)
            if rows.numel():
                parts.append((m, rows, route.weight[rows, slots]))
        return parts

    def factor(self, score: Tensor) -> Tensor:
        """Column (n, 1) that multiplies a module's rows."""
        # Each use calls this anew: the straight-through gradient is clamped use by use.
        return (StraightThroughSign.apply(score) if self.config.use_ste else score).unsqueeze(-1)


class AttentionHalf(Half):
    """Attention of one layer: an anchor (M = 1) or a routed pool."""

    def __init__(self, config: MoMConfig, num_modules: int, fused: bool) -> None:
        super().__init__(config, "attn", num_modules, fused)
        width = config.n_embd
        self.attention_layernorm = self.pool(lambda: nn.LayerNorm(width, eps=config.layer_norm_epsilon))
        self.c_attn = self.pool(lambda: Projection(width, 3 * width))
        self.c_proj = self.pool(lambda: Projection(width, width))

    def attend(self, qkv: Tensor, causal: Tensor, key_bias: Tensor | None) -> Tensor:
        """Causal attention over qkv (B, T, 3C); returns the merged heads (B, T, C)."""
        batch, length, _ = qkv.shape
        width, heads = self.config.n_embd, self.config.n_head
        q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in qkv.split(width, dim=2))
        scale = math.sqrt(width // heads) if self.config.scale_attn_weights else 1.0
        if self.fused and key_bias is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0 / scale)
        else:
            weights = torch.matmul(q, k.transpose(-1, -2)) / scale
            weights = torch.where(causal[:length, :length], weights, torch.finfo(weights.dtype).min)
            if key_bias is not None:
                weights = weights + key_bias
            mixed = torch.matmul(torch.softmax(weights, dim=-1), v)
        return mixed.transpose(1, 2).reshape(batch, length, width)

    def forward(
        self, x: Tensor, state: Tensor | None, causal: Tensor, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Route | None]:
        if self.num_modules == 1:
            heads = self.attend(self.c_attn(self.attention_layernorm(x)), causal, key_bias)
            return self.c_proj(heads), None, None
        rows_of_x = x.reshape(-1, x.size(-1))
        route, state = self.choose(rows_of_x, state)
        parts = self.dispatch(route)
        qkv = rows_of_x.new_zeros(rows_of_x.size(0), 3 * rows_of_x.size(1))
        for m, rows, score in parts:
            mine = self.c_attn[m](self.attention_layernorm[m](rows_of_x.index_select(0, rows)))
            if self.config.weighted_qkv:
                mine = mine * self.factor(score)
            qkv.index_add_(0, rows, mine)
        heads = self.attend(qkv.view(*x.shape[:-1], -1), causal, key_bias).view_as(rows_of_x)
        out = torch.zeros_like(rows_of_x)
        for m, rows, score in parts:
            out.index_add_(0, rows, self.c_proj[m](heads.index_select(0, rows)) * self.factor(score))
        return out.view_as(x), state, route


class FeedForwardHalf(Half):
    """Feed-forward half of one layer: an anchor (M = 1) or a routed pool."""

    def __init__(self, config: MoMConfig, num_modules: int, fused: bool) -> None:
        super().__init__(config, "ffn", num_modules, fused)
        width, inner = config.n_embd, config.inner_size
        self.ffn_layernorm = self.pool(lambda: nn.LayerNorm(width, eps=config.layer_norm_epsilon))
        self.c_fc = self.pool(lambda: Projection(width, inner))
        self.c_proj = self.pool(lambda: Projection(inner, width))

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh") if self.fused else gelu_composed(x)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None, Route | None]:
        if self.num_modules == 1:
            return self.c_proj(self.gelu(self.c_fc(self.ffn_layernorm(x)))), None, None
        rows_of_x = x.reshape(-1, x.size(-1))
        route, state = self.choose(rows_of_x, state)
        out = torch.zeros_like(rows_of_x)
        for m, rows, score in self.dispatch(route):
            inner = self.gelu(self.c_fc[m](self.ffn_layernorm[m](rows_of_x.index_select(0, rows))))
            out.index_add_(0, rows, self.c_proj[m](inner) * self.factor(score))
        return out.view_as(x), state, route


class Layer(nn.Module):
    """One place of the body: an anchor layer (one round) or a block of several rounds."""

    def __init__(self, config: MoMConfig, is_block: bool, fused: bool) -> None:
        super().__init__()
        self.rounds = config.rounds if is_block else 1
        self.mot_attn = AttentionHalf(config, config.num_attn if is_block else 1, fused)
        self.mot_ffn = FeedForwardHalf(config, config.num_ffn if is_block else 1, fused)

    def forward(self, x: Tensor, causal: Tensor, key_bias: Tensor | None) -> tuple[Tensor, dict[str, list[Route]]]:
        attn_state = ffn_state = None
        routes: dict[str, list[Route]] = {"attn": [], "ffn": []}
        for _ in range(self.rounds):
            delta, attn_state, attn_route = self.mot_attn(x, attn_state, causal, key_bias)
            x = x + delta
            delta, ffn_state, ffn_route = self.mot_ffn(x, ffn_state)
            x = x + delta
            for half, route in (("attn", attn_route), ("ffn", ffn_route)):
                if route is not None:
                    routes[half].append(route)
        return x, routes


class TorchMoM(nn.Module):
    """The published Mixture-of-Modules language model.

    Parameters
    ----------
    config : mom.config.MoMConfig
        A configuration with ``chunks >= 1``. Its `balance_loss` and `router_choices` are followed.
    seed : int
        Seed of the initial parameters.
    fused : bool
        Use PyTorch's fused attention and GELU. The published model composes both from elementary
        operations, which is the default here.

    Raises
    ------
    ValueError
        If the configuration asks for something this yardstick leaves out.
    """

    def __init__(self, config: MoMConfig, seed: int = 0, fused: bool = False) -> None:
        super().__init__()
        if config.is_vanilla:
            raise ValueError("config: chunks = 0 is a plain GPT-2, use torch_nanogpt.TorchGPT")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if getattr(config, name):
                raise ValueError(f"config: {name} is {getattr(config, name)}, expected 0 (no dropout here)")
        if config.router_random:
            raise ValueError(f"config: router_type {config.router_type!r} has a noise gate, which is left out here")
        if config.num_labels is not None:
            raise ValueError(f"config: num_labels is {config.num_labels}, expected None (language model only)")
        if config.balance_counts != "micro":
            raise ValueError(f"config: balance_counts is {config.balance_counts!r}, expected 'micro'")
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "h": nn.ModuleList(Layer(config, place == "block", fused) for place in config.places()),
                "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon),
            }
        )
        causal = torch.ones(config.n_positions, config.n_positions, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for name, value in self.named_parameters():
            if "layernorm" in name or "ln_f" in name or name.endswith(".bias"):
                nn.init.constant_(value, float("bias" not in name))
            else:
                # Un-indexed output projections, i.e. those of anchors, start smaller; routed ones do not.
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith(".c_proj.weight") else 1.0
                nn.init.normal_(value, 0.0, std / shrink, generator=generator)

    def load_parameters(self, values: Mapping[str, object]) -> None:
        """Copy arrays or tensors, by state-dict name, into the parameters; every name must match."""
        state = {name: torch.as_tensor(value) for name, value in values.items()}
        self.load_state_dict(state, strict=True)

    def forward(self, tokens: Tensor, labels: Tensor | None = None, attention_mask: Tensor | None = None) -> MoMOutput:
        """Logits and, given labels, losses.

        Parameters
        ----------
        tokens : Tensor of int64, shape (B, T)
        labels : Tensor of int64, shape (B, T), optional
            Position t is scored against label t + 1; -100 is left out.
        attention_mask : Tensor of int64, shape (B, T), optional
            0 hides a key and leaves its token out of the balance loss.

        Returns
        -------
        MoMOutput
        """
        config = self.config
        if tokens.dim() != 2 or tokens.size(1) > config.n_positions:
            raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected (B, T) with T <= {config.n_positions}")
        if attention_mask is not None and config.masked_query_attention != "reference":
            raise ValueError("attention_mask: needs a configuration with masked_query_attention = 'reference'")
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.size(1), device=tokens.device))
        key_bias = None
        if attention_mask is not None:
            hidden = 1.0 - attention_mask[:, None, None, :].to(x.dtype)
            key_bias = hidden * torch.finfo(x.dtype).min
        routes: dict[str, list[list[Route]]] = {"attn": [], "ffn": []}
        for layer in parts["h"]:
            x, rounds = layer(x, self.causal, key_bias)
            for half, chosen in rounds.items():
                if chosen:
                    routes[half].append(chosen)
        logits = F.linear(parts["ln_f"](x), parts["wte"].weight)
        if labels is None:
            return MoMOutput(logits, None, None, None, routes)
        lm_loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1))
        balance = self._balance_loss(routes, attention_mask)
        loss = lm_loss if balance is None else lm_loss + config.router_aux_loss_coef * balance
        return MoMOutput(logits, loss, lm_loss, balance, routes)

    def _balance_loss(self, routes: dict[str, list[list[Route]]], mask: Tensor | None) -> Tensor | None:
        config = self.config
        # The published model looks at the first attention score: no attention router, no balance loss.
        unrouted = not routes["attn"] if config.balance_loss == "reference" else not any(routes.values())
        if unrouted or not config.output_router_logits:
            return None
        kept = None if mask is None else mask.reshape(-1).bool()
        total = sum(self._imbalance(scores, kept) for scores in self._balance_groups(routes))
        return total / (config.chunks * config.rounds) if config.depthwise_bal_loss else total

    def _balance_groups(self, routes: dict[str, list[list[Route]]]) -> Iterator[list[Tensor]]:
        """Scores that are counted together: a round of a block, or all of them, half by half."""
        for blocks in routes.values():
            every = [route.scores for rounds in blocks for route in rounds]
            if self.config.depthwise_bal_loss:
                yield from ([scores] for scores in every)
            elif every:
                yield every

    def _imbalance(self, scores: list[Tensor], kept: Tensor | None) -> Tensor:
        """S * sum over the choices of (share of first choices) * (mean probability)."""
        rows = torch.cat([s if kept is None else s[kept] for s in scores])
        once = self.config.balance_loss == "switch" and self.config.router_softmax
        probabilities = rows if once else torch.softmax(rows, dim=-1)
        probability = probabilities.mean(dim=0)
        # Of the probabilities, not of the scores: after the softmax more of them are equal in float32.
        counts = torch.bincount(torch.topk(probabilities, 1).indices.reshape(-1), minlength=rows.size(-1))
        share = counts.to(rows.dtype) / rows.size(0)
        return rows.size(-1) * (share * probability).sum()
