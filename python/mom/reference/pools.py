"""Module pools: the sum over the selected modules of one half, which is added to the residual stream in one round.

An anchor layer, or a half with a single module, is treated as a pool of one module that every token selects with weight
1. So one implementation is enough. See docs/derivations/routed_linear.md.

Both pools have the same interface. `forward` returns the output of the half, which is added to the stream, and a
record. `backward` takes the gradient of the output and the record, and adds the gradients of the parameters to the
`Store`. It returns the gradient of the input, and one gradient of the weights for each place where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..config import MoMConfig
from . import attention, dropout, gelu, layernorm, routed_linear
from ._checks import Array, Float, Int
from .interventions import Bench
from .parameters import is_routed, module_names
from .routing_plan import RoutingPlan

Sampler = Callable[[str, tuple[int, ...]], Float]


@dataclass
class Store:
    """Parameters by name, and the gradients collected so far. A name without gradient was not used."""

    parameters: dict[str, Float]
    gradients: dict[str, Float] = field(default_factory=dict)

    def add(self, name: str, gradient: Float) -> None:
        """Add to the gradient of a parameter."""
        self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient


@dataclass
class Batch:
    """Data that all layers of one call share.

    They are tokens, sizes, key mask, sources of dropout masks and noise, trace, and the bench of interventions.

    Attributes
    ----------
    tokens : ndarray of int64, shape (N,)
    size, steps : int
        Sequences, and tokens of the longest.
    lengths : ndarray of int64, shape (size,), or None
        Lengths of packed sequences; None: all sequences have `steps` tokens.
    """

    tokens: Int
    size: int
    steps: int
    lengths: Int | None
    mask: Int | None
    dropout: Sampler | None
    noise: Sampler | None
    trace: dict[str, Array]
    bench: Bench = field(default_factory=Bench)

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes of results: (B, T), or (N,) of packed rows."""
        return (self.size, self.steps) if self.lengths is None else (int(self.lengths.sum()),)

    def keep(self, site: str, shape: tuple[int, ...], p: float) -> Float | None:
        """Dropout mask of a site; None if nothing is dropped."""
        return None if self.dropout is None or p == 0.0 else self.dropout(site, shape)

    def record(self, name: str, rows: Float) -> None:
        """Keep rows of tokens (N, width) in the trace, as (B, T, width) unless they are packed."""
        self.trace[name] = rows.reshape(*self.shape, -1).copy()


class Layers:
    """One layer (norm or linear) of all modules of a half, by role."""

    def __init__(self, config: MoMConfig, store: Store, place: int, half: str) -> None:
        self.config, self.store, self.place, self.half = config, store, place, half

    def tensors(self, role: str) -> tuple[list[Float], list[Float]]:
        """Weights and biases of all modules."""
        names = module_names(self.config, self.place, self.half, role)
        values = self.store.parameters
        return [values[f"{n}.weight"] for n in names], [values[f"{n}.bias"] for n in names]

    def add_gradients(self, role: str, dweight: list[Float], dbias: list[Float], plan: RoutingPlan) -> None:
        """Add the gradients of the modules that have slots. Other modules stay unused."""
        names = module_names(self.config, self.place, self.half, role)
        for m, _ in plan.modules():
            self.store.add(f"{names[m]}.weight", dweight[m])
            self.store.add(f"{names[m]}.bias", dbias[m])

    def norm_forward(self, x: Float, plan: RoutingPlan) -> tuple[Float, tuple[Float, Float, Float]]:
        """Gather and normalise: (N, C) to (P, C), each slot with its module's LayerNorm."""
        weight, bias = self.tensors("norm")
        slots = routed_linear.gather_forward(x, plan)
        out, mean, rstd = np.empty_like(slots), np.empty(plan.num_slots), np.empty(plan.num_slots)
        for m, rows in plan.modules():
            out[rows], mean[rows], rstd[rows] = layernorm.forward(
                slots[rows], weight[m], bias[m], self.config.layer_norm_epsilon
            )
        return out, (slots, mean, rstd)

    def norm_backward(self, dout: Float, saved: tuple[Float, Float, Float], plan: RoutingPlan) -> Float:
        """Gradient of `norm_forward` with respect to x, shape (N, C)."""
        slots, mean, rstd = saved
        weight, bias = self.tensors("norm")
        dslots = np.empty_like(slots)
        dweight, dbias = [np.zeros_like(w) for w in weight], [np.zeros_like(b) for b in bias]
        for m, rows in plan.modules():
            dslots[rows], dweight[m], dbias[m] = layernorm.backward(
                dout[rows], slots[rows], weight[m], mean[rows], rstd[rows]
            )
        self.add_gradients("norm", dweight, dbias, plan)
        return routed_linear.gather_backward(dslots, plan)

    def output_forward(self, inner: Float, rec: OutputRecord, batch: Batch) -> Float:
        """What the half adds to the stream (N, C), from the rows of slots that its last layer reads."""
        parts = routed_linear.weighted_forward(inner, *self.tensors("c_proj"), rec.weight, rec.plan)
        parts = dropout.forward(parts, rec.keep_slots, rec.p)
        parts = batch.bench.modules_forward(rec.where, parts, rec.plan)
        return batch.bench.forward(f"{rec.where}.output", routed_linear.gather_backward(parts, rec.plan))

    def output_backward(self, dout: Float, inner: Float, rec: OutputRecord, batch: Batch) -> tuple[Float, Float]:
        """Gradients of the rows that the last layer reads, and of the weights (N, K) in this use."""
        dout = batch.bench.backward(f"{rec.where}.output", dout)
        dparts = batch.bench.modules_backward(rec.where, routed_linear.gather_forward(dout, rec.plan), rec.plan)
        dparts = dropout.backward(dparts, rec.keep_slots, rec.p)
        dinner, dweight, dbias, duse = routed_linear.weighted_backward(
            dparts, inner, *self.tensors("c_proj"), rec.weight, rec.plan
        )
        self.add_gradients("c_proj", dweight, dbias, rec.plan)
        return dinner, duse


@dataclass
class OutputRecord:
    """What both pools save for the last layer of a half.

    Attributes
    ----------
    where : str
        Name of the half-round, such as ``block0.round1.attn``.
    plan : RoutingPlan
    weight : ndarray of float64, shape (N, K), or None
    keep : ndarray of 0/1, shape (N, C), or None
        Dropout mask of the output, and its probability `p`.
    """

    where: str
    plan: RoutingPlan
    weight: Float | None
    keep: Float | None
    p: float

    @property
    def keep_slots(self) -> Float | None:
        """The mask of every slot (P, C): that of its token."""
        return None if self.keep is None else self.keep[self.plan.token]


@dataclass
class AttentionRecord:
    """What `AttentionPool.forward` saves."""

    out: OutputRecord
    norm: tuple[Float, Float, Float]
    normed: Float
    qkv: Float
    probs: Float
    heads: Float
    keep_probs: Float | None


class AttentionPool(Layers):
    """Attention half: q, k, v mixed over the selected modules, one attention, mixed output projections."""

    def forward(
        self, x: Float, plan: RoutingPlan, weight: Float | None, batch: Batch, site: str, where: str
    ) -> tuple[Float, AttentionRecord]:
        """What the half adds to `x` (N, C); `weight` is (N, K), or None for 1.

        `site` names the half-round in traces and draws, `where` in interventions.
        """
        config = self.config
        normed, norm = self.norm_forward(x, plan)
        mixed = routed_linear.combine_forward(normed, *self.tensors("c_attn"), self._qkv_weight(weight), plan)
        qkv = mixed.reshape(*batch.shape, -1)
        shape = (batch.size, config.n_head, batch.steps, batch.steps)
        keep_probs = batch.keep(f"attn_probs/{site}", shape, config.attn_pdrop)
        out, probs = attention.forward(
            qkv,
            config.n_head,
            batch.mask,
            config.masked_query_attention,
            config.scale_attn_weights,
            keep_probs,
            config.attn_pdrop,
            lengths=batch.lengths,
        )
        heads = out.reshape(len(x), -1)
        batch.trace[f"attn_probs/{site}"] = probs
        keep = batch.keep(f"attn_out/{site}", x.shape, config.resid_pdrop)
        record = OutputRecord(where, plan, weight, keep, config.resid_pdrop)
        out = self.output_forward(routed_linear.gather_forward(heads, plan), record, batch)
        return out, AttentionRecord(record, norm, normed, qkv, probs, heads, keep_probs)

    def backward(self, dout: Float, rec: AttentionRecord, batch: Batch) -> tuple[Float, list[Float]]:
        """Gradients of x (N, C) and of the weights (N, K): in their use on the output and, if weighted, on q, k, v."""
        config, plan = self.config, rec.out.plan
        slots = routed_linear.gather_forward(rec.heads, plan)
        dslots, dout_weight = self.output_backward(dout, slots, rec.out, batch)
        dheads = routed_linear.gather_backward(dslots, plan).reshape(*batch.shape, -1)
        dqkv = attention.backward(
            dheads,
            rec.qkv,
            rec.probs,
            config.n_head,
            batch.mask,
            config.masked_query_attention,
            config.scale_attn_weights,
            rec.keep_probs,
            config.attn_pdrop,
            lengths=batch.lengths,
        )
        dnormed, dweight, dbias, dqkv_weight = routed_linear.combine_backward(
            dqkv.reshape(len(dout), -1), rec.normed, *self.tensors("c_attn"), self._qkv_weight(rec.out.weight), plan
        )
        self.add_gradients("c_attn", dweight, dbias, plan)
        uses = [dout_weight, dqkv_weight] if config.weighted_qkv else [dout_weight]
        return self.norm_backward(dnormed, rec.norm, plan), uses

    def _qkv_weight(self, weight: Float | None) -> Float | None:
        return weight if self.config.weighted_qkv else None


@dataclass
class FfnRecord:
    """What `FfnPool.forward` saves."""

    out: OutputRecord
    norm: tuple[Float, Float, Float]
    normed: Float
    inner: Float


class FfnPool(Layers):
    """Feed-forward half: ``sum of weight * c_proj(gelu(c_fc(LN(x))))`` over the selected modules."""

    def forward(
        self, x: Float, plan: RoutingPlan, weight: Float | None, batch: Batch, site: str, where: str
    ) -> tuple[Float, FfnRecord]:
        """What the half adds to `x` (N, C); arguments as for `AttentionPool.forward`."""
        normed, norm = self.norm_forward(x, plan)
        inner = routed_linear.forward(normed, *self.tensors("c_fc"), plan)
        p = self._output_dropout()
        record = OutputRecord(where, plan, weight, batch.keep(f"ffn_out/{site}", x.shape, p), p)
        return self.output_forward(gelu.forward(inner), record, batch), FfnRecord(record, norm, normed, inner)

    def backward(self, dout: Float, rec: FfnRecord, batch: Batch) -> tuple[Float, list[Float]]:
        """Gradients of x (N, C), and of the weights (N, K) in their only use, on the output."""
        plan = rec.out.plan
        dslots, dout_weight = self.output_backward(dout, gelu.forward(rec.inner), rec.out, batch)
        dinner = gelu.backward(dslots, rec.inner)
        dnormed, dweight, dbias = routed_linear.backward(dinner, rec.normed, self.tensors("c_fc")[0], plan)
        self.add_gradients("c_fc", dweight, dbias, plan)
        return self.norm_backward(dnormed, rec.norm, plan), [dout_weight]

    def _output_dropout(self) -> float:
        return 0.0 if is_routed(self.config, self.place, "ffn") else self.config.resid_pdrop
