"""The whole network, forward and backward, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..config import MoMConfig
from ..interventions.layout import layout_of
from ..interventions.rules import Intervention
from ..routers import KINDS
from . import balance_loss, classification_loss, coupling_loss, cross_entropy, embedding, layernorm, linear
from . import dropout as dropout_op
from ._checks import Array, Float, Int, as_int, check_shape
from .halves import Half, RoundRecord, Route, RouterRecord
from .interventions import Bench, Captured
from .parameters import checked
from .pools import Batch, Sampler, Store

if TYPE_CHECKING:
    from ..model.routes import Routes

HALVES = ("attn", "ffn")


@dataclass(frozen=True)
class Output:
    """Result of a call of `Model`.

    Parameters
    ----------
    loss : float or None
        Sum of all terms, each times its weight (`MoMConfig.loss_weights`); None without labels.
    losses : dict of str to float
        The terms by name; empty without labels. ``"lm"`` is the mean cross entropy (of a classifier: its loss).
    lm_loss, balance_loss : float or None
        These terms; None where there is none.
    logits : ndarray of float64, shape (B, T, V), (N, V) of packed rows, or (B, num_labels) of a classifier
    routes : dict
        ``routes[half][place][round]`` is a `Route`, for routed halves.
    trace : dict of str to ndarray
        Intermediate values (B, T, width): ``hidden/embed``, ``hidden/block{i}``,
        ``hidden/block{i}/round{r}``, ``hidden/ln_f``, ``attn_out/...``, ``ffn_out/...``, and by half
        ``router_logit``, ``router_state``, ``score``, ``topk_index``, ``topk_weight``. ``attn_probs`` are the
        probabilities of attention (B, H, T, T).
    captured : Captured
        Activations at the places that the call asked for, and after `Model.backward` their gradients.
    token_losses : ndarray of float64, shaped as the tokens, or None
        The loss of each prediction of the next token; NaN where that has no label. None without labels.
    """

    loss: float | None
    losses: dict[str, float]
    logits: Float
    routes: dict[str, dict[int, list[Route]]]
    trace: dict[str, Array]
    captured: Captured
    token_losses: Float | None

    @property
    def lm_loss(self) -> float | None:
        return self.losses.get("lm")

    @property
    def balance_loss(self) -> float | None:
        return self.losses.get("balance")


class Gradients(dict[str, Float]):
    """Gradient of every parameter by name.

    Attributes
    ----------
    unused : frozenset of str
        Parameters that do not affect the loss because no token reached them. Their entries are zero, and an optimizer
        does not change them.
    """

    unused: frozenset[str] = frozenset()


@dataclass
class _Place:
    """An entry of ``transformer.h``: its halves, its rounds, and what the last forward saved.

    `names` are those of its rounds in interventions.
    """

    halves: dict[str, Half]
    names: list[str]
    is_block: bool
    records: dict[str, list[RoundRecord | None]]  # None for a round that is left out


@dataclass
class _Tape:
    """What the last forward pass with labels saves for the backward pass."""

    tokens: Int
    positions: Int | None
    batch: Batch
    keep_embed: Float | None
    last: Float
    mean: Float
    rstd: Float
    hidden: Float
    logits: Float
    rows: Int
    labels: Array = field(default_factory=lambda: np.empty(0))
    problem: str | None = None
    lse: Float = field(default_factory=lambda: np.empty(0))
    balance: dict[str, balance_loss.Saved] = field(default_factory=dict)
    z: dict[str, Float] = field(default_factory=dict)  # gradient of the z-loss by half, (L, N, S)
    path: dict[str, Float] = field(default_factory=dict)  # gradient of the path loss by half, (L, N, S)
    route: dict[str, Float] = field(default_factory=dict)  # gradient of the route loss by half, (L, N, S)
    coupling: list[tuple[Half, coupling_loss.Saved]] = field(default_factory=list)  # halves that have the loss


def _ends(batch: Batch) -> Int:
    """Flat index one past the last token of each sequence, (B,)."""
    lengths = np.full(batch.size, batch.steps) if batch.lengths is None else batch.lengths
    return np.cumsum(lengths, dtype=np.int64)


def _first_choices(index: Int) -> Int:
    """The first choice of every token, -1 if it has none: (N, K) to (N,)."""
    return index[:, 0] if index.shape[1] else np.full(len(index), -1)


def _names_of_rounds(config: MoMConfig) -> list[list[str]]:
    """By place, the names of its rounds in interventions: ``block0.round1``, ``anchor0``."""
    seen = {"block": 0, "anchor": 0}
    names = []
    for kind in config.places():
        kind = "block" if kind == "block" else "anchor"
        start = f"{kind}{seen[kind]}"
        names.append([f"{start}.round{r}" for r in range(config.rounds)] if kind == "block" else [start])
        seen[kind] += 1
    return names


class Model:
    """Mixture-of-Modules, plain GPT-2 (``chunks=0``) or a sequence classifier (``num_labels``) of either.

    Parameters
    ----------
    config : MoMConfig
    parameters : mapping of str to ndarray
        All names of `parameter_shapes`; converted to float64 copies.

    Attributes
    ----------
    parameters : dict of str to ndarray of float64
        May be replaced in place, as `AdamW.step` does.
    counts : dict of str to ndarray of float64
        With ``balance_counts="step"``: counts of best choices by half since `reset_counts`.
    counted : dict of str to float
        Tokens behind each of these counts.
    """

    def __init__(self, config: MoMConfig, parameters: Mapping[str, ArrayLike]) -> None:
        self.config = config
        self.parameters = checked(config, parameters)
        self.counts: dict[str, Float] = {}
        self.counted: dict[str, float] = {}
        self._store = Store(self.parameters)
        self._places = [
            _Place({half: Half(config, self._store, i, half) for half in HALVES}, names, kind == "block", {})
            for i, (kind, names) in enumerate(zip(config.places(), _names_of_rounds(config), strict=True))
        ]
        self._tape: _Tape | None = None

    # ------------------------------------------------------------------ forward
    def __call__(
        self,
        tokens: ArrayLike,
        labels: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        dropout: Sampler | None = None,
        noise: Sampler | None = None,
        routes: Routes | None = None,
        interventions: Sequence[Intervention] = (),
        capture: str | Sequence[str] = (),
    ) -> Output:
        """Forward pass.

        Parameters
        ----------
        tokens : ndarray of int, shape (B, T), or (N,) with `lengths`
        labels : ndarray, optional
            Language model: int, shaped as `tokens`, unshifted (position t is scored against label
            t + 1), -100 is left out. Classifier: see `classification_loss.forward`.
        attention_mask : ndarray, shape (B, T), optional
            Nonzero for real tokens. Restricts the keys of attention and the balance loss; a classifier with pooling
            ``"mask"`` counts positions from the first real token.
        lengths : ndarray of int, shape (B,), optional
            Lengths of the sequences, which follow one another in `tokens`. A classifier classifies each sequence at its
            last token.
        dropout : callable (site, shape) -> ndarray of 0/1, optional
            Returns the keep mask of a site. It is called at every site with a dropout probability above 0. None means
            evaluation mode.
        noise : callable (site, shape) -> ndarray of float64, optional
            Returns uniform numbers for ``random`` routers, at sites ``block{i}/round{r}/{half}``. In training it also
            does so for the jitter of routers, at sites ``jitter/...``, and for the coupling loss, at sites
            ``coupling/block{i}/{half}``.
        routes : mom.Routes, optional
            Choices to force.
        interventions : sequence of Intervention
            What to change in this call.
        capture : str or sequence of str
            Names of places, or shell patterns, for `Output.captured`.
        """
        config = self.config
        tokens = as_int("tokens", tokens, ("B", "T") if lengths is None else ("N",))
        if not tokens.size:
            raise ValueError(f"tokens: shape {tokens.shape} is empty")
        packed = positions = mask = None
        size, steps = tokens.shape if lengths is None else (0, 0)
        if lengths is not None:
            packed = as_int("lengths", lengths, ("B",))
            if packed.size == 0 or packed.min() < 1 or packed.sum() != tokens.size:
                raise ValueError(f"lengths: {packed}, expected positive numbers with sum {tokens.size}")
            size, steps = len(packed), int(packed.max())
            positions = np.concatenate([np.arange(n) for n in packed])
        if attention_mask is not None:
            check_shape("attention_mask", np.shape(attention_mask), tokens.shape)
            mask = (np.asarray(attention_mask) != 0).astype(np.int64)
            if config.num_labels is not None and config.pooling == "mask":
                positions = np.maximum(np.arange(steps) - mask.argmax(-1)[:, None], 0)
        lengths32 = None if packed is None else packed.astype(np.int32)
        layout = layout_of(tokens.astype(np.int32), None if mask is None else mask != 0, lengths32)
        bench = Bench(config, layout, routes, interventions, capture)
        batch = Batch(tokens.reshape(-1), size, steps, packed, mask, dropout, noise, {}, bench)
        tape, found = self._network_forward(tokens, positions, batch)
        losses: dict[str, float] = {}
        if labels is not None:
            terms = {"lm": self._task_loss(labels, tape), "balance": self._balance_forward(tape)}
            terms["z"] = self._z_forward(tape)
            terms["path"] = self._path_forward(tape)
            terms["route"] = self._route_forward(tape)
            terms["coupling"] = self._coupling_forward(tape)
            losses = {name: value for name, value in terms.items() if value is not None}
        loss = sum(config.loss_weights[name] * value for name, value in losses.items()) if losses else None
        self._tape = tape if labels is not None else None
        bench.finish()
        shape = tokens.shape if config.num_labels is None else (size,)
        by_token = self._token_losses(tape) if labels is not None and config.num_labels is None else None
        return Output(loss, losses, tape.logits.reshape(*shape, -1), found, batch.trace, bench.captured, by_token)

    def _network_forward(
        self, tokens: Int, positions: Int | None, batch: Batch
    ) -> tuple[_Tape, dict[str, dict[int, list[Route]]]]:
        """From tokens to logits."""
        config, values, bench = self.config, self.parameters, batch.bench
        x = embedding.forward(tokens, values["transformer.wte.weight"], values["transformer.wpe.weight"], positions)
        keep_embed = batch.keep("embed", x.shape, config.embd_pdrop)
        x = dropout_op.forward(x, keep_embed, config.embd_pdrop).reshape(tokens.size, -1)
        x = bench.forward("embedding", x)
        batch.record("hidden/embed", x)
        routes: dict[str, dict[int, list[Route]]] = {half: {} for half in HALVES}
        for i, place in enumerate(self._places):
            x = self._place_forward(x, i, place, batch, routes)
        x = bench.forward("final", x)
        norm = values["transformer.ln_f.weight"], values["transformer.ln_f.bias"]
        hidden, mean, rstd = layernorm.forward(x, *norm, config.layer_norm_epsilon)
        hidden = bench.forward("hidden", hidden)
        batch.record("hidden/ln_f", hidden)
        rows = np.arange(tokens.size) if config.num_labels is None else self._pooled_rows(tokens, batch)
        logits = linear.forward(hidden[rows], self._head().T)
        return _Tape(tokens, positions, batch, keep_embed, x, mean, rstd, hidden, logits, rows), routes

    def _place_forward(
        self, x: Float, i: int, place: _Place, batch: Batch, routes: dict[str, dict[int, list[Route]]]
    ) -> Float:
        place.records = {half: [] for half in HALVES}
        state: dict[str, Float | None] = dict.fromkeys(HALVES)
        for r, round_name in enumerate(place.names):
            site = f"block{i}/round{r}" if place.is_block else f"block{i}"
            if place.is_block and self._is_left_out(batch, site):
                self._leave_out(len(x), i, place, batch, routes)
                continue
            for name, half in place.halves.items():
                where = f"{round_name}.{name}"
                x = batch.bench.forward(f"{where}.input", x)
                before = [rec.router.index for rec in place.records[name] if rec is not None and rec.router is not None]
                out, state[name], record, route = half.forward(
                    x, state[name], batch, site, r, where, before[-1] if before else None
                )
                x = x + out
                place.records[name].append(record)
                batch.record(f"{name}_out/{site}", out)
                if route is not None:
                    routes[name].setdefault(i, []).append(route)
            batch.record(f"hidden/{site}", x)
        batch.record(f"hidden/block{i}", x)
        return x

    def _is_left_out(self, batch: Batch, site: str) -> bool:
        p = self.config.round_pdrop
        return batch.dropout is not None and p > 0.0 and not batch.dropout(f"round/{site}", (1,))[0]

    def _leave_out(
        self, tokens: int, i: int, place: _Place, batch: Batch, routes: dict[str, dict[int, list[Route]]]
    ) -> None:
        for name, half in place.halves.items():
            place.records[name].append(None)
            route = half.left_out(tokens, batch)
            if route is not None:
                routes[name].setdefault(i, []).append(route)

    def _head(self) -> Float:
        """Output weights [out, in]: the tied embedding, or the classification head."""
        return self.parameters["transformer.wte.weight" if self.config.num_labels is None else "score.weight"]

    def _pooled_rows(self, tokens: Int, batch: Batch) -> Int:
        """Flat index of the position at which each sequence is classified."""
        size, steps, mask = batch.size, batch.steps, batch.mask
        if batch.lengths is not None:
            return _ends(batch) - 1
        if self.config.pooling == "mask" and mask is not None:
            last = steps - 1 - mask[:, ::-1].argmax(-1)
        elif self.config.pad_token_id is None:
            last = np.full(size, steps - 1)
        else:
            last = (tokens == self.config.pad_token_id).argmax(-1) - 1
        rows: Int = np.arange(size) * steps + last % steps
        return rows

    def _task_loss(self, labels: ArrayLike, tape: _Tape) -> float:
        if self.config.num_labels is not None:
            tape.labels = np.asarray(labels)
            tape.problem = classification_loss.problem_type(self.config.num_labels, labels, self.config.problem_type)
            return classification_loss.forward(tape.logits, labels, tape.problem)
        given = as_int("labels", labels, tape.tokens.shape)
        shifted = np.roll(given.reshape(-1), -1)
        shifted[_ends(tape.batch) - 1] = cross_entropy.IGNORED
        tape.labels = shifted
        total, count, tape.lse = cross_entropy.forward(tape.logits, tape.labels)
        return total / count if count else float("nan")

    def _token_losses(self, tape: _Tape) -> Float:
        """The loss of each prediction, NaN where it has no label."""
        labelled = tape.labels != cross_entropy.IGNORED
        chosen = np.where(labelled, tape.labels, 0)[:, None]
        losses = tape.lse - np.take_along_axis(tape.logits, chosen, -1)[:, 0]
        return np.where(labelled, losses, np.nan).reshape(tape.tokens.shape)

    # ------------------------------------------------------------------ balance loss
    def reset_counts(self) -> None:
        """Forget the counts of ``balance_counts="step"``, as when an optimizer step begins."""
        self.counts, self.counted = {}, {}

    def _scored_halves(self) -> list[str]:
        """Halves whose routers' scores have terms of the loss."""
        config, scored = self.config, KINDS[self.config.router_kind].scored
        if config.is_vanilla or config.num_labels is not None or not scored or not config.rounds:
            return []
        return [half for half in HALVES if config.is_routed(half)]

    def _balanced_halves(self) -> list[str]:
        config, routed = self.config, self._scored_halves()
        without = not config.output_router_logits or (config.balance_loss == "reference" and "attn" not in routed)
        return [] if without else routed

    def _router_records(self, half: str) -> list[RouterRecord]:
        records = [rec for place in self._places if place.is_block for rec in place.records[half]]
        return [rec.router for rec in records if rec is not None and rec.router is not None]

    def _balance_softmax(self) -> bool:
        return self.config.balance_loss == "reference" or not self.config.router_softmax

    def _balance_forward(self, tape: _Tape) -> float | None:
        config = self.config
        mask = None if tape.batch.mask is None else tape.batch.mask.reshape(-1)
        losses = []
        for half in self._balanced_halves():
            records = self._router_records(half)
            if not records:  # all rounds are left out
                losses.append(0.0)
                continue
            scores = np.stack([rec.scores for rec in records])
            used = np.stack([_first_choices(rec.index) for rec in records]) if config.balance_routes == "used" else None
            counts, counted = (
                balance_loss.count(scores, mask, used),
                float(tape.tokens.size if mask is None else mask.sum()),
            )
            if not config.depthwise_bal_loss:
                counts, counted = counts.sum(0), counted * len(scores)
            if config.balance_counts == "step":
                counts = self.counts[half] = self.counts.get(half, 0.0) + counts
                counted = self.counted[half] = self.counted.get(half, 0.0) + counted
            loss, tape.balance[half] = balance_loss.forward(
                scores, self._balance_softmax(), config.depthwise_bal_loss, mask, counts, counted
            )
            losses.append(loss * self._share_of_rounds(half))
        return sum(losses) if losses else None

    def _share_of_rounds(self, half: str) -> float:
        """The factor of a mean over the rounds that ran, where the loss is one over all rounds."""
        config = self.config
        return len(self._router_records(half)) / (config.chunks * config.rounds) if config.depthwise_bal_loss else 1.0

    def _balance_backward(self, dloss: float, tape: _Tape) -> dict[str, Float]:
        """Gradient of the scores, by half (L, N, S) with L = rounds of all blocks."""
        softmax = self._balance_softmax()
        return {
            half: balance_loss.backward(dloss * self._share_of_rounds(half), saved, softmax)
            for half, saved in tape.balance.items()
        }

    # ------------------------------------------------------------------ z-loss
    def _z_forward(self, tape: _Tape) -> float | None:
        """By half the mean over rounds and real tokens of the squared log-sum-exp of the router's outputs, added up."""
        real = np.ones(tape.tokens.size) if tape.batch.mask is None else tape.batch.mask.reshape(-1)
        losses = []
        for half in self._scored_halves() if self.config.loss_weights["z"] > 0 else []:
            records = self._router_records(half)
            if not records:
                continue
            logits = np.stack([rec.logits for rec in records])
            share = real / max(real.sum(), 1) / len(logits)
            y = np.logaddexp.reduce(logits, axis=-1)
            losses.append(float((share * y**2).sum()))
            tape.z[half] = (share * 2 * y)[..., None] * np.exp(logits - y[..., None])
        return sum(losses) if losses else None

    # ------------------------------------------------------------------ path loss
    def _path_forward(self, tape: _Tape) -> float | None:
        """Mean over blocks and real tokens of M times the sum of squares of shares of modules, by half."""
        if not self.config.loss_weights["path"] > 0:
            return None
        real = np.ones(tape.tokens.size) if tape.batch.mask is None else tape.batch.mask.reshape(-1)
        share = (real / max(real.sum(), 1) / self.config.chunks)[:, None]
        losses = []
        for half in self._scored_halves():
            gradients: list[Float] = []
            for place in self._places:
                records = [rec.router for rec in place.records[half] if rec is not None and rec.router is not None]
                if not records:
                    continue
                modules = place.halves[half].modules
                mean = np.mean([rec.scores for rec in records], axis=0)
                mean[:, modules:] = 0.0
                total, squares = mean.sum(-1, keepdims=True), (mean**2).sum(-1, keepdims=True)
                some = squares > 0
                safe = np.where(some, total, 1.0)
                losses.append(float((share * modules * squares / safe**2).sum()))
                slope = 2 * modules / safe**2 * (mean - squares / safe)
                slope[:, modules:] = 0.0
                gradients += [np.where(some, share * slope / len(records), 0.0)] * len(records)
            if gradients:
                tape.path[half] = np.stack(gradients)
        return sum(losses) if losses else None

    # ------------------------------------------------------------------ route loss
    def _route_forward(self, tape: _Tape) -> float | None:
        """Mean over half-rounds and real tokens with a choice of -log of the probabilities of the choices made."""
        config, real = self.config, None if tape.batch.mask is None else tape.batch.mask.reshape(-1) != 0
        if not config.loss_weights["route"] > 0:
            return None
        temperature = config.router_softmax_temperature if config.router_softmax else 1.0
        total, count, found = 0.0, 0, False
        for half in self._scored_halves():
            gradients = []
            for rec in self._router_records(half):
                z, choices = rec.logits / temperature, rec.logits.shape[1]
                y = np.logaddexp.reduce(z, axis=-1, keepdims=True)
                made = np.zeros((len(z), choices + 1))
                known = (rec.index >= 0) & (rec.index < choices)
                np.add.at(made, (np.arange(len(z))[:, None], np.where(known, rec.index, choices)), 1.0)
                kept = made[:, :choices].sum(-1, keepdims=True)
                counted = (kept > 0) & (True if real is None else real[:, None])
                share = made[:, :choices] / np.maximum(kept, 1)
                chosen = np.where(share > 0, share * np.where(share > 0, z, 0.0), 0.0).sum(-1, keepdims=True)
                total += float(np.where(counted, y - chosen, 0.0).sum())
                count, found = count + int(counted.sum()), True
                gradients.append(np.where(counted, (np.exp(z - y) - share) / temperature, 0.0))
            if gradients:
                tape.route[half] = np.stack(gradients)
        tape.route = {half: gradient / max(count, 1) for half, gradient in tape.route.items()}
        return total / max(count, 1) if found else None

    # ------------------------------------------------------------------ coupling loss
    def _coupling_forward(self, tape: _Tape) -> float | None:
        """Mean over the halves of blocks with several modules."""
        losses = []
        for name in self._scored_halves() if self.config.loss_weights["coupling"] > 0 else []:
            for i, place in enumerate(self._places):
                half = place.halves[name]
                if half.modules > 1:
                    loss, saved = half.coupling_forward(tape.batch, i)
                    losses.append(loss)
                    tape.coupling.append((half, saved))
        return float(np.mean(losses)) if losses else None

    # ------------------------------------------------------------------ backward
    def backward(self, lm_scale: float = 1.0, balance_scale: float | None = None) -> Gradients:
        """Gradient of ``lm_scale * lm_loss + balance_scale * balance_loss`` and the other weighted terms.

        They are those of the last call.

        Parameters
        ----------
        lm_scale : float
        balance_scale : float, optional
            Default: the weight in ``config.loss_weights``.

        Raises
        ------
        RuntimeError
            If the last call had no labels.
        """
        tape = self._tape
        if tape is None:
            raise RuntimeError("backward: needs a preceding call with labels")
        config, batch, store = self.config, tape.batch, self._store
        store.gradients.clear()
        batch.bench.begin_backward()
        scale = config.loss_weights["balance"] if balance_scale is None else balance_scale
        dscores = self._balance_backward(scale, tape)
        for half, gradient in tape.path.items():
            dscores[half] = dscores.get(half, 0.0) + config.loss_weights["path"] * gradient
        doutputs = {half: config.loss_weights["z"] * gradient for half, gradient in tape.z.items()}

        for half, gradient in tape.route.items():
            doutputs[half] = doutputs.get(half, 0.0) + config.loss_weights["route"] * gradient

        for coupled, saved in tape.coupling:
            coupled.coupling_backward(config.loss_weights["coupling"] / len(tape.coupling), saved)

        dlogits = self._task_backward(lm_scale, tape)
        dpooled, dhead, _ = linear.backward(dlogits, tape.hidden[tape.rows], self._head().T)
        dhidden = np.zeros_like(tape.hidden)
        dhidden[tape.rows] = dpooled
        store.add("transformer.wte.weight" if config.num_labels is None else "score.weight", dhead.T)
        dhidden = batch.bench.backward("hidden", dhidden)
        dx, dweight, dbias = layernorm.backward(
            dhidden, tape.last, self.parameters["transformer.ln_f.weight"], tape.mean, tape.rstd
        )
        store.add("transformer.ln_f.weight", dweight)
        store.add("transformer.ln_f.bias", dbias)

        dx = self._places_backward(batch.bench.backward("final", dx), dscores, doutputs, batch)
        dx = batch.bench.backward("embedding", dx)
        dembed = dropout_op.backward(dx.reshape(*tape.tokens.shape, -1), tape.keep_embed, config.embd_pdrop)
        dwte, dwpe = embedding.backward(dembed, tape.tokens, config.vocab_size, config.n_positions, tape.positions)
        store.add("transformer.wte.weight", dwte)
        store.add("transformer.wpe.weight", dwpe)
        gradients = Gradients(
            (name, store.gradients.get(name, np.zeros_like(value))) for name, value in self.parameters.items()
        )
        gradients.unused = frozenset(name for name in self.parameters if name not in store.gradients)
        return gradients

    def _places_backward(self, dx: Float, dscores: dict[str, Float], doutputs: dict[str, Float], batch: Batch) -> Float:
        """The gradient before all places, from the one after them and those of scores and outputs by half."""
        remaining = {half: len(self._router_records(half)) for half in HALVES}
        mask = batch.mask
        for place in reversed(self._places):
            dstate: dict[str, Float | None] = dict.fromkeys(HALVES)
            for r in reversed(range(len(place.names))):
                for name in reversed(HALVES):
                    record = place.records[name][r]
                    if record is None:
                        continue
                    if record.router is not None:
                        remaining[name] -= 1
                        if self.config.router_bias_rate:
                            place.halves[name].count_choices(record.router, mask)
                    at = remaining[name]
                    from_balance = dscores[name][at] if place.is_block and name in dscores else None
                    from_z = doutputs[name][at] if place.is_block and name in doutputs else None
                    dinp, dstate[name] = place.halves[name].backward(
                        dx, dstate[name], from_balance, from_z, record, batch
                    )
                    dx = batch.bench.backward(f"{place.names[r]}.{name}.input", dx + dinp)
        return dx

    def _task_backward(self, dloss: float, tape: _Tape) -> Float:
        if tape.problem is not None:
            return classification_loss.backward(dloss, tape.logits, tape.labels, tape.problem)
        count = int((tape.labels != cross_entropy.IGNORED).sum())
        return cross_entropy.backward(dloss / max(count, 1), tape.logits, tape.labels, tape.lse)

    # ------------------------------------------------------------------ generation
    def generate_greedy(self, tokens: ArrayLike, n: int, *, noise: Sampler | None = None) -> Int:
        """Append the `n` most probable tokens, recomputing the whole context for each.

        Parameters
        ----------
        tokens : ndarray of int, shape (B, T)
        n : int
            At least 0, with T + n - 1 <= n_positions.

        Returns
        -------
        ndarray of int64, shape (B, T + n)
        """
        if self.config.num_labels is not None:
            raise RuntimeError("generate_greedy: a classifier has no next token")
        tokens = as_int("tokens", tokens, ("B", "T"))
        for _ in range(n):
            best = self(tokens, noise=noise).logits[:, -1].argmax(-1)
            tokens = np.concatenate([tokens, best[:, None]], axis=1)
        return tokens
