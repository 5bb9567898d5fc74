"""A plain GPT-2 in PyTorch with fused attention: the yardstick for vanilla models.

The usual compact form of GPT-2: pre-norm layers, tanh GELU, tied head,
``scaled_dot_product_attention``. Weights are `torch.nn.Linear` ([out, in]); `load_parameters` takes
GPT-2's own files, which store them [in, out].

Dimension letters: B batch, T sequence, C channels, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mom.config import MoMConfig

__all__ = ["TorchGPT"]

_LINEAR = ("c_attn.weight", "c_fc.weight", "c_proj.weight")


class Attention(nn.Module):
    """Causal self-attention of all heads at once."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.scale = None if config.scale_attn_weights else 1.0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.c_attn(x).view(batch, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_size)
        self.c_proj = nn.Linear(config.inner_size, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Layer(nn.Module):
    """x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """GPT-2 language model without dropout.

    Parameters
    ----------
    config : mom.config.MoMConfig
        A configuration with ``chunks == 0``.
    seed : int
        Seed of the initial parameters.
    """

    def __init__(self, config: MoMConfig, seed: int = 0) -> None:
        super().__init__()
        if not config.is_vanilla:
            raise ValueError(f"config: chunks = {config.chunks}, expected 0 (a plain GPT-2)")
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if getattr(config, name):
                raise ValueError(f"config: {name} is {getattr(config, name)}, expected 0 (no dropout here)")
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_positions, config.n_embd),
                "h": nn.ModuleList(Layer(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon),
            }
        )
        generator = torch.Generator().manual_seed(seed)
        for name, value in self.named_parameters():
            if ".ln_" in name or name.endswith(".bias"):
                nn.init.constant_(value, float("bias" not in name))
            else:
                shrink = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(value, 0.0, config.initializer_range / shrink, generator=generator)

    def load_parameters(self, values: Mapping[str, object]) -> None:
        """Copy arrays or tensors with GPT-2's names and layouts into the parameters. Every name must match."""
        state = {}
        for name, value in values.items():
            tensor = torch.as_tensor(value)
            state[name] = tensor.t() if name.endswith(_LINEAR) else tensor
        self.load_state_dict(state, strict=True)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients under GPT-2's names and layouts."""
        return {
            name: value.grad.t() if name.endswith(_LINEAR) else value.grad
            for name, value in self.named_parameters()
            if value.grad is not None
        }

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits and, given targets, the mean cross entropy.

        Parameters
        ----------
        tokens : Tensor of int64, shape (B, T)
        targets : Tensor of int64, shape (B, T), optional
            Already shifted: position t is scored against target t; -100 is left out.

        Returns
        -------
        logits : Tensor of float, shape (B, T, V)
        loss : Tensor of float, shape (), or None
        """
        if tokens.dim() != 2 or tokens.size(1) > self.config.n_positions:
            limit = self.config.n_positions
            raise ValueError(f"tokens: shape {tuple(tokens.shape)}, expected (B, T) with T <= {limit}")
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.size(1), device=tokens.device))
        for layer in parts["h"]:
            x = layer(x)
        logits = F.linear(parts["ln_f"](x), parts["wte"].weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))
