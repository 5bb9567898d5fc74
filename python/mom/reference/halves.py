"""One half (attention or feed-forward) of one place of the body: its router, if any, and its pool.

A round is ``x += attention(x); x += ffn(x)``; each half routes on the x it is added to, before any
normalisation. See docs/derivations/router.md for the gradient through rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..config import MoMConfig
from ..routers import KINDS, LAST_MAPS
from . import coupling_loss, layernorm, router, routing_plan
from ._checks import Bool, Float, Int, as_float
from .forced_choices import NONE
from .parameters import is_routed, num_modules
from .pools import AttentionPool, Batch, FfnPool, Store
from .router_cells import CELLS, CellInputs


@dataclass(frozen=True)
class Route:
    """Routing decisions of one half in one round. For packed rows the arrays have one axis N instead of B, T.

    Parameters
    ----------
    scores : ndarray of float64, shape (B, T, S)
        Router outputs, after the softmax where the router has one.
    index : ndarray of int64, shape (B, T, K)
        Best choices in falling order; at least the number of modules means SKIP. Interventions can leave an entry
        without a choice, which is -2.
    weight : ndarray of float64, shape (B, T, K)
        Kept scores before any straight-through sign. They are renormalised if they are probabilities.
    """

    scores: Float
    index: Int
    weight: Float


@dataclass
class RouterRecord:
    """What the router of a half saves in one round."""

    number: int  # of the round in its block
    inputs: CellInputs
    norm: tuple[Float, Float, Float] | None  # of the router's LayerNorm: input, mean, reciprocal standard deviation
    cell: Any  # what `Cell.forward` saves
    logits: Float
    scores: Float
    index: Int
    weight: Float


@dataclass
class RoundRecord:
    """What a half saves for the backward pass of one round."""

    pool: Any  # `AttentionRecord` or `FfnRecord`
    router: RouterRecord | None


class Half:
    """Router and pool of one half.

    Parameters
    ----------
    config : MoMConfig
    store : Store
    place : int
        Index in ``transformer.h``.
    name : {"attn", "ffn"}
    """

    def __init__(self, config: MoMConfig, store: Store, place: int, name: str) -> None:
        self.config, self.store, self.name = config, store, name
        kind = AttentionPool if name == "attn" else FfnPool
        self.pool: AttentionPool | FfnPool = kind(config, store, place, name)
        self.modules = num_modules(config, place, name)
        self.routed = is_routed(config, place, name)
        self.prefix = f"transformer.h.{place}.mot_{name}.router."
        self.cell = CELLS[config.router_kind]
        self.renormalise = config.router_softmax and config.router_renormalise
        self.temperature = config.router_softmax_temperature if config.router_softmax else None

    # -------------------------------------------------------------- forward
    def forward(
        self, x: Float, state: Float | None, batch: Batch, site: str, number: int, where: str, before: Int | None = None
    ) -> tuple[Float, Float | None, RoundRecord, Route | None]:
        """One round.

        Parameters
        ----------
        x : ndarray of float64, shape (N, C)
        state : ndarray of float64, shape (N, R), or None
            Recurrent state after the previous round; None in the first one.
        batch : Batch
        site : str
            Name of the place and round in traces, ``block{i}`` or ``block{i}/round{r}``.
        number : int
            Of the round in its block.
        where : str
            Name of the half-round in interventions, such as ``block0.round1.attn``.
        before : ndarray of int64, shape (N, K), optional
            Choices in the round before; None in the first one.

        Returns
        -------
        out : ndarray of float64, shape (N, C)
            What the half adds to x.
        state : ndarray of float64, shape (N, R), or None
        record : RoundRecord
        route : Route or None
            None for a half without router.
        """
        if not self.routed:
            plan = routing_plan.build(np.zeros((len(x), 1), dtype=np.int64), 1)
            out, pool = self.pool.forward(x, plan, None, batch, site, where)
            return out, None, RoundRecord(pool, None), None
        state, rec = self._router_forward(x, state, batch, f"{site}/{self.name}", number, where)
        self._keep_skipping(rec, before, batch.bench.is_free(where, len(x)))
        used, weight = np.where(rec.index < 0, self.modules, rec.index), rec.weight
        if self.config.routing_all_possible_path:
            used = np.tile(np.arange(self.modules), (len(x), 1))
            weight = np.where(_is_forbidden(rec.logits), 0.0, rec.scores)[:, : self.modules]
        if self.config.use_ste:
            weight = router.sign_forward(weight)
        out, pool = self.pool.forward(x, routing_plan.build(used, self.modules), weight, batch, site, where)
        kept = (*batch.shape, rec.index.shape[1])
        route = Route(rec.scores.reshape(*batch.shape, -1), rec.index.reshape(kept), rec.weight.reshape(kept))
        batch.record(f"router_logit/{site}/{self.name}", rec.logits)
        batch.record(f"score/{site}/{self.name}", rec.scores)
        batch.trace[f"topk_index/{site}/{self.name}"] = route.index
        batch.trace[f"topk_weight/{site}/{self.name}"] = route.weight
        if state is not None:
            batch.record(f"router_state/{site}/{self.name}", state)
        return out, state, RoundRecord(pool, rec), route

    def _router_forward(
        self, x: Float, state: Float | None, batch: Batch, site: str, number: int, where: str
    ) -> tuple[Float | None, RouterRecord]:
        config, noise, bench = self.config, None, batch.bench
        if config.router_random:
            if batch.noise is None:
                raise ValueError("noise: a source is needed, the router type is 'random'")
            shape = (len(x), config.router_dim)
            noise = as_float("noise", batch.noise(site, shape), shape)
        choices, half = config.num_choices(self.name), int(self.name == "ffn")
        hashed = router.HashInputs(batch.tokens, number, half, self.modules, choices)
        changes = (partial(bench.forward, f"{where}.state"), partial(bench.backward, f"{where}.state"))
        read, norm = self._read(x, number)
        state = None if config.router_state == "reset" else state
        given = CellInputs(read, state, noise, hashed, self.modules, *changes)
        logits, new, saved = self.cell.forward(self._weights(number), given)
        if config.router_jitter and batch.dropout is not None and batch.noise is not None:  # in training
            logits = logits + config.router_jitter * (2.0 * batch.noise(f"jitter/{site}", logits.shape) - 1.0)
        logits = bench.bias(where, logits)
        scores = router.scores_forward(logits, self.temperature)
        bias = self.store.parameters[f"{self.prefix}balance_bias"] if config.router_bias_rate else None
        index, weight = bench.choose(
            where, half, scores, logits, config.routing_top_k, self.modules, self.renormalise, bias
        )
        if not KINDS[config.router_kind].scored:
            weight = (index >= 0) / np.maximum((index >= 0).sum(-1, keepdims=True), 1)
        return new, RouterRecord(number, given, norm, saved, logits, scores, index, weight)

    def _read(self, x: Float, number: int) -> tuple[Float, tuple[Float, Float, Float] | None]:
        """What the router reads in a round, and what its LayerNorm saves."""
        config, values, norm = self.config, self.store.parameters, None
        read = x
        if config.router_layernorm:
            weight, bias = (values[f"{self.prefix}layernorm.{part}"] for part in ("weight", "bias"))
            read, mean, rstd = layernorm.forward(x, weight, bias, config.layer_norm_epsilon)
            norm = (x, mean, rstd)
        if config.router_rounds == "embedding":
            read = read + values[f"{self.prefix}round_embedding.weight"][number]
        return read, norm

    def _keep_skipping(self, rec: RouterRecord, before: Int | None, free: Bool) -> None:
        """With ``skip_is_final``: whoever skipped in the round before makes no choice, unless one is forced."""
        if not self.config.skip_is_final or before is None or not before.shape[1]:
            return
        skipped = ((before[:, 0] < 0) | (before[:, 0] >= self.modules)) & free
        rec.index = np.where(skipped[:, None], NONE, rec.index)
        rec.weight = np.where(skipped[:, None], 0.0, rec.weight)

    def left_out(self, tokens: int, batch: Batch) -> Route | None:
        """The route of a round that is left out: no token has a choice."""
        if not self.routed:
            return None
        choices = self.config.num_choices(self.name)
        kept = (*batch.shape, min(self.config.routing_top_k, choices))
        return Route(np.zeros((*batch.shape, choices)), np.full(kept, NONE), np.zeros(kept))

    # -------------------------------------------------------------- backward
    def backward(
        self,
        dout: Float,
        dstate: Float | None,
        dscores: Float | None,
        dlogits: Float | None,
        rec: RoundRecord,
        batch: Batch,
    ) -> tuple[Float, Float | None]:
        """Gradients of one round.

        Parameters
        ----------
        dout : ndarray of float64, shape (N, C)
            Gradient of what the half adds.
        dstate : ndarray of float64, shape (N, R), or None
            Gradient of the state from the next round; None if nothing depends on it.
        dscores : ndarray of float64, shape (N, S), or None
            Gradient of the scores from the balance loss.
        dlogits : ndarray of float64, shape (N, S), or None
            Gradient of the router's outputs from the z-loss.
        rec : RoundRecord
        batch : Batch

        Returns
        -------
        dx : ndarray of float64, shape (N, C)
        dstate : ndarray of float64, shape (N, R), or None
            For the previous round.
        """
        dx, uses = self.pool.backward(dout, rec.pool, batch)
        if rec.router is None:
            return dx, None
        if rec.pool.out.plan.num_slots:
            from_pool = self._scores_backward(uses, rec.router)
            dscores = from_pool if dscores is None else dscores + from_pool
        if dscores is None and dlogits is None and dstate is None:  # no computed value depends on the router
            return dx, None
        if dlogits is None:
            dlogits = np.zeros_like(rec.router.scores)
        if dscores is not None:
            dlogits = dlogits + router.scores_backward(dscores, rec.router.scores, self.temperature)
        dlogits = np.where(_is_forbidden(rec.router.logits), 0.0, dlogits)
        if self.config.router_state != "kept":
            dstate = None
        dinp, dstate = self._router_backward(dlogits, dstate, rec.router)
        return dx + dinp, dstate if self.config.router_state == "kept" else None

    def _scores_backward(self, uses: list[Float], rec: RouterRecord) -> Float:
        """Gradient of the scores (N, S) from the gradients of the weights in each of their uses."""
        if self.config.use_ste:
            uses = [router.sign_backward(use) for use in uses]
        dweight = sum(uses[1:], uses[0])
        if self.config.routing_all_possible_path:
            dscores = np.zeros_like(rec.scores)
            dscores[:, : self.modules] = dweight
            return dscores
        return router.top_k_backward(dweight, rec.scores, rec.index, rec.weight, self.renormalise)

    def _router_backward(self, dlogits: Float, dstate: Float | None, rec: RouterRecord) -> tuple[Float, Float | None]:
        weights = self._weights(rec.number)
        dinp, dstate, gradients = self.cell.backward(dlogits, dstate, weights, rec.inputs, rec.cell)
        for name, gradient in zip(self.cell.names, gradients, strict=True):
            whole = np.zeros_like(self.store.parameters[self.prefix + name])
            whole[self._rows(name, rec.number)] = gradient
            self.store.add(self.prefix + name, whole)
        if self.config.router_rounds == "embedding":
            name = f"{self.prefix}round_embedding.weight"
            whole = np.zeros_like(self.store.parameters[name])
            whole[rec.number] = dinp.sum(0)
            self.store.add(name, whole)
        if rec.norm is not None:
            x, mean, rstd = rec.norm
            name = f"{self.prefix}layernorm"
            dinp, dweight, dbias = layernorm.backward(dinp, x, self.store.parameters[f"{name}.weight"], mean, rstd)
            self.store.add(f"{name}.weight", dweight)
            self.store.add(f"{name}.bias", dbias)
        return dinp, dstate

    def count_choices(self, rec: RouterRecord, mask: Int | None) -> None:
        """With a bias that balances: in place of its gradient, by how much each choice exceeds its equal share."""
        choices = rec.scores.shape[1]
        real = np.ones(len(rec.index), bool) if mask is None else mask.reshape(-1) != 0
        made = rec.index[real]
        counts = np.bincount(made[(made >= 0) & (made < choices)], minlength=choices).astype(np.float64)
        if self.config.num_labels is not None:  # a classifier's routers are not balanced
            counts[:] = 0.0
        self.store.add(f"{self.prefix}balance_bias", counts - counts.mean())

    # -------------------------------------------------------------- coupling loss
    def coupling_forward(self, batch: Batch, place: int) -> tuple[float, coupling_loss.Saved]:
        """The coupling loss of the router and its modules. In training `Batch.noise` gives the random factors."""
        rows = self._maps().mean(0)[: self.modules]
        delta = np.ones_like(rows)
        if batch.dropout is not None and batch.noise is not None:  # in training
            uniform = batch.noise(f"coupling/block{place}/{self.name}", rows.shape)
            delta += coupling_loss.spread(rows)[:, None] * (2.0 * uniform - 1.0)
        return coupling_loss.forward(rows, delta, *self._first_layers(), eps=self.config.layer_norm_epsilon)

    def coupling_backward(self, dloss: float, saved: coupling_loss.Saved) -> None:
        """Add the gradients of the router's map, and of the LayerNorms and first layers of all modules."""
        drows, *of_modules = coupling_loss.backward(dloss, saved, *self._first_layers())
        whole = np.zeros_like(self._maps())
        whole[:, : self.modules] = drows / len(whole)
        name = f"{self.prefix}router.weight"
        self.store.add(name, whole.reshape(self.store.parameters[name].shape))
        everywhere = routing_plan.build(np.arange(self.modules)[None], self.modules)
        for role, pairs in zip(self._first_roles, of_modules, strict=True):
            dweight, dbias = zip(*pairs, strict=True)
            self.pool.add_gradients(role, list(dweight), list(dbias), everywhere)

    @property
    def _first_roles(self) -> tuple[str, str]:
        return "norm", "c_attn" if self.name == "attn" else "c_fc"

    def _first_layers(self) -> tuple[list[coupling_loss.Pair], list[coupling_loss.Pair]]:
        """Weights and biases by module, of the LayerNorms and of the first layers."""
        norms, layers = (list(zip(*self.pool.tensors(role), strict=True)) for role in self._first_roles)
        return norms, layers

    def _maps(self) -> Float:
        """The maps of a linear router, (1, S, C), or one for each round."""
        weight = self.store.parameters[f"{self.prefix}router.weight"]
        return weight.reshape(-1, self.config.num_choices(self.name), weight.shape[1])

    # -------------------------------------------------------------- parameters of a round
    def _rows(self, name: str, number: int) -> slice:
        """The rows of a parameter that belong to a round: all of them, unless it is a last map of the round's own."""
        choices = self.config.num_choices(self.name)
        own = self.config.router_rounds == "projection" and name in LAST_MAPS
        return slice(number * choices, (number + 1) * choices) if own else slice(None)

    def _weights(self, number: int) -> list[Float]:
        return [self.store.parameters[self.prefix + name][self._rows(name, number)] for name in self.cell.names]


def _is_forbidden(logits: Float) -> Bool:
    """Choices that Forbid takes away."""
    return np.isneginf(logits)
