"""The architectures of `mom.presets`, written down once more in plain NumPy: loops over layers, rounds and tokens.

Nothing of mom is used. Each architecture is a function of the weights and one sequence; `loss` adds the sequences up.
All functions also work with complex weights: a weight ``w + 1e-30j * d`` gives a loss whose imaginary part, divided by
1e-30, is the derivative along d, exact to rounding (the complex step). So choices compare real parts, and nothing takes
an absolute value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Weights = dict[str, Array]


# ---------------------------------------------------------------------- pieces
def softmax(z: Array) -> Array:
    e = np.exp(z - z.real.max())
    return e / e.sum()


def sigmoid(z: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-z))


def gelu(z: Array) -> Array:
    return 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))


def best(p: Array, k: int) -> list[int]:
    """The k choices with the largest real parts, the largest first."""
    return [int(s) for s in np.argsort(-p.real, kind="stable")[:k]]


def layernorm(w: Weights, name: str, x: Array) -> Array:
    """Of one row."""
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Weights, name: str, x: Array) -> Array:
    """A layer of the body: weights [in, out]."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def router_linear(w: Weights, name: str, x: Array) -> Array:
    """A layer of a router: weights [out, in]."""
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def attend(queries: list[Any], keys: list[Any], values: list[Any], heads: int, real: Array) -> list[Any]:
    """What each token reads from those before it and itself. A token that skips has None in all three lists.

    To later tokens it is a key with score 0 and value 0. Keys that are padding are not seen. A query that sees no key
    reads its whole past evenly.
    """
    found: list[Any] = []
    for t, query in enumerate(queries):
        if query is None:
            found.append(None)
            continue
        seen = [j for j in range(t + 1) if real[j]]
        evenly = not seen
        seen = seen or list(range(t + 1))
        out, width = np.zeros_like(query), len(query) // heads
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = np.zeros(len(seen), query.dtype)
            for n, j in enumerate(seen):
                if keys[j] is not None and not evenly:
                    scores[n] = query[part] @ keys[j][part] / np.sqrt(width)
            for share, j in zip(softmax(scores), seen, strict=True):
                if values[j] is not None:
                    out[part] += share * values[j][part]
        found.append(out)
    return found


@dataclass
class Module:
    """The names of the weights of one attention or one feed-forward network."""

    norm: str
    first: str
    last: str


def attention_module(place: int, number: int | None = None) -> Module:
    """Of a layer, or the one with a number among several."""
    end, start = "" if number is None else f".{number}", f"transformer.h.{place}.mot_attn"
    return Module(f"{start}.attention_layernorm{end}", f"{start}.c_attn{end}", f"{start}.c_proj{end}")


def ffn_module(place: int, number: int | None = None) -> Module:
    end, start = "" if number is None else f".{number}", f"transformer.h.{place}.mot_ffn"
    return Module(f"{start}.ffn_layernorm{end}", f"{start}.c_fc{end}", f"{start}.c_proj{end}")


def attention(w: Weights, x: Array, chosen: list[list[tuple[Any, Module]]], heads: int, real: Array) -> Array:
    """What attention adds to each row, if every token has a list of (weight, module). An empty list: it skips."""
    queries, keys, values = [], [], []
    for row, mine in zip(x, chosen, strict=True):
        three = sum(linear(w, m.first, layernorm(w, m.norm, row)) for _, m in mine) if mine else None
        query, key, value = np.split(three, 3) if mine else (None, None, None)
        queries.append(query)
        keys.append(key)
        values.append(value)
    added = np.zeros_like(x)
    for t, read in enumerate(attend(queries, keys, values, heads, real)):
        for weight, m in chosen[t]:
            added[t] += weight * linear(w, m.last, read)
    return added


def ffn(w: Weights, x: Array, chosen: list[list[tuple[Any, Module]]]) -> Array:
    """The same of feed-forward networks."""
    added = np.zeros_like(x)
    for t, row in enumerate(x):
        for weight, m in chosen[t]:
            added[t] += weight * linear(w, m.last, gelu(linear(w, m.first, layernorm(w, m.norm, row))))
    return added


def all_to(x: Array, module: Module) -> list[list[tuple[Any, Module]]]:
    return [[(1.0, module)] for _ in x]


# ---------------------------------------------------------------------- what is observed
@dataclass
class Seen:
    """What the routers of one sequence did: by half and round, probabilities (T, S) and the choices of each token."""

    scores: dict[str, list[Array]] = field(default_factory=lambda: {"attn": [], "ffn": []})
    choices: dict[str, list[list[list[int]]]] = field(default_factory=lambda: {"attn": [], "ffn": []})

    def add(self, half: str, scores: list[Array], choices: list[list[int]]) -> None:
        self.scores[half].append(np.array(scores))
        self.choices[half].append([list(kept) for kept in choices])


@dataclass
class Shape:
    """Sizes that the formulas name."""

    heads: int
    layers: int
    rounds: int
    modules: int
    edges: int = 0  # ordinary layers before the blocks, and as many after them
    left_out: tuple[int, ...] = ()


# ---------------------------------------------------------------------- architectures
def layer(w: Weights, x: Array, place: int, shape: Shape, real: Array) -> Array:
    """An ordinary layer under the names of a model with modules."""
    x = x + attention(w, x, all_to(x, attention_module(place)), shape.heads, real)
    return x + ffn(w, x, all_to(x, ffn_module(place)))


def vanilla(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        name = f"transformer.h.{i}"
        a = Module(f"{name}.ln_1", f"{name}.attn.c_attn", f"{name}.attn.c_proj")
        f = Module(f"{name}.ln_2", f"{name}.mlp.c_fc", f"{name}.mlp.c_proj")
        x = x + attention(w, x, all_to(x, a), shape.heads, real)
        x = x + ffn(w, x, all_to(x, f))
    return x


def albert(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for _ in range(shape.rounds):
        x = layer(w, x, 0, shape, real)
    return x


def layerskip(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        if i not in shape.left_out:
            x = layer(w, x, i, shape, real)
    return x


def universal(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    running = {"attn": [True] * len(x), "ffn": [True] * len(x)}
    for r in range(shape.rounds):
        for half, module in (("attn", attention_module(0)), ("ffn", ffn_module(0))):
            router = f"transformer.h.0.mot_{half}.router"
            scores, kept, chosen = [], [], []
            for t, row in enumerate(x):
                p = softmax(router_linear(w, f"{router}.router", row + w[f"{router}.round_embedding.weight"][r]))
                goes_on = p[0].real >= p[1].real
                scores.append(p)
                kept.append([0 if goes_on else 1] if running[half][t] else [])
                running[half][t] = running[half][t] and bool(goes_on)
                chosen.append([(p[0], module)] if running[half][t] else [])
            seen.add(half, scores, kept)
            x = x + (attention(w, x, chosen, shape.heads, real) if half == "attn" else ffn(w, x, chosen))
    return x


def moe(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        x = x + attention(w, x, all_to(x, attention_module(i)), shape.heads, real)
        p = expert_probabilities(w, x, f"transformer.h.{i}.mot_ffn.router")
        kept = [best(row, 1) for row in p]
        seen.add("ffn", p, kept)
        x = x + ffn(w, x, [[(row[e], ffn_module(i, e))] for row, (e,) in zip(p, kept, strict=True)])
    return x


def expert_probabilities(w: Weights, x: Array, router: str) -> list[Array]:
    return [softmax(router_linear(w, f"{router}.router", layernorm(w, f"{router}.layernorm", row))) for row in x]


def moe_attention(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        for half, module in (("attn", attention_module), ("ffn", ffn_module)):
            p = expert_probabilities(w, x, f"transformer.h.{i}.mot_{half}.router")
            kept = [best(row, 2) for row in p]
            seen.add(half, p, kept)
            chosen = []
            for row, (a, b) in zip(p, kept, strict=True):
                both = row[a] + row[b]
                chosen.append([(row[a] / both, module(i, a)), (row[b] / both, module(i, b))])
            x = x + (attention(w, x, chosen, shape.heads, real) if half == "attn" else ffn(w, x, chosen))
    return x


def mod(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        routed, ordinary = 2 * i, 2 * i + 1
        for half, module in (("attn", attention_module(routed)), ("ffn", ffn_module(routed))):
            p = [softmax(router_linear(w, f"transformer.h.{routed}.mot_{half}.router.router", row)) for row in x]
            seen.add(half, p, [best(row, 1) for row in p])
            chosen = [[(row[0], module)] if row[0].real >= row[1].real else [] for row in p]
            x = x + (attention(w, x, chosen, shape.heads, real) if half == "attn" else ffn(w, x, chosen))
        x = layer(w, x, ordinary, shape, real)
    return x


def early_exit(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    choices = shape.modules + 1
    running = {"attn": [True] * len(x), "ffn": [True] * len(x)}
    for r in range(shape.rounds):
        for half, module in (("attn", attention_module), ("ffn", ffn_module)):
            name, own = f"transformer.h.0.mot_{half}.router.router", slice(r * choices, (r + 1) * choices)
            scores, kept, chosen = [], [], []
            for t, row in enumerate(x):
                p = softmax(w[f"{name}.weight"][own] @ row + w[f"{name}.bias"][own])
                (m,) = best(p, 1)
                scores.append(p)
                kept.append([m] if running[half][t] else [])
                running[half][t] = running[half][t] and m < shape.modules
                chosen.append([(p[m], module(0, m))] if running[half][t] else [])
            seen.add(half, scores, kept)
            x = x + (attention(w, x, chosen, shape.heads, real) if half == "attn" else ffn(w, x, chosen))
    return x


def shared_pool(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.layers):
        x = x + attention(w, x, all_to(x, attention_module(i)), shape.heads, real)
        p = expert_probabilities(w, x, f"transformer.h.{i}.mot_ffn.router")
        kept = [best(row, 2) for row in p]
        seen.add("ffn", p, kept)
        chosen = []
        for row, (a, b) in zip(p, kept, strict=True):
            chosen.append([(row[a], ffn_module(0, a)), (row[b], ffn_module(0, b))])  # the experts of layer 0
        x = x + ffn(w, x, chosen)
    return x


def mom(w: Weights, x: Array, shape: Shape, real: Array, seen: Seen) -> Array:
    for i in range(shape.edges):
        x = layer(w, x, i, shape, real)
    for i in range(shape.edges, shape.edges + shape.layers):
        states: dict[str, list[Any]] = {"attn": [0.0 for _ in x], "ffn": [0.0 for _ in x]}
        for _ in range(shape.rounds):
            for half, module in (("attn", attention_module), ("ffn", ffn_module)):
                router = f"transformer.h.{i}.mot_{half}.router"
                scores, kept, chosen = [], [], []
                for t, row in enumerate(x):
                    states[half][t] = gru(w, router, row, states[half][t])
                    p = softmax(router_linear(w, f"{router}.router", states[half][t]) / 0.2)
                    a, b = best(p, 2)
                    both = p[a] + p[b]
                    scores.append(p)
                    kept.append([a, b])
                    chosen.append([(p[m] / both, module(i, m)) for m in (a, b) if m < shape.modules])
                seen.add(half, scores, kept)
                x = x + (attention(w, x, chosen, shape.heads, real) if half == "attn" else ffn(w, x, chosen))
    for i in range(shape.edges + shape.layers, 2 * shape.edges + shape.layers):
        x = layer(w, x, i, shape, real)
    return x


def gru(w: Weights, router: str, row: Array, h: Any) -> Array:
    y_r, y_i, y_n = np.split(router_linear(w, f"{router}.x2h", row), 3)
    h = h + np.zeros_like(y_r)
    z_r, z_i, z_n = np.split(router_linear(w, f"{router}.h2h", h), 3)
    r, i = sigmoid(y_r + z_r), sigmoid(y_i + z_i)
    n = np.tanh(y_n + r * z_n)
    return n + i * (h - n)


# ---------------------------------------------------------------------- the loss
Architecture = Callable[[Weights, Array, Shape, Array, Seen], Array]


@dataclass
class Result:
    """Of a batch: the two terms of the loss, and by sequence logits (T, V) and what the routers did."""

    lm: Any
    balance: Any
    logits: list[Array]
    seen: list[Seen]


def run(
    architecture: Architecture, w: Weights, shape: Shape, sequences: list[tuple[Array, Array, Array]], used: bool,
    by_layer: bool,
) -> Result:  # fmt: skip
    """The mean loss over all predictions of a batch.

    Parameters
    ----------
    sequences
        Ids, labels (-100: none) and marks of real tokens of each, all (T,). Position t predicts label t + 1.
    used
        The balance loss counts choices that were made, not those that were preferred.
    by_layer
        The balance loss is the mean of those of the layers.
    """
    total, count, all_logits, all_seen = 0.0, 0, [], []
    for ids, labels, real in sequences:
        seen = Seen()
        x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: len(ids)]
        x = architecture(w, x, shape, real, seen)
        logits = np.array([layernorm(w, "transformer.ln_f", row) @ w["transformer.wte.weight"].T for row in x])
        for t in range(len(ids) - 1):
            if labels[t + 1] != -100:
                total = total - np.log(softmax(logits[t])[labels[t + 1]])
                count += 1
        all_logits.append(logits)
        all_seen.append(seen)
    marks = [real for _, _, real in sequences]
    balance = sum(balance_loss(all_seen, half, marks, used, by_layer) for half in ("attn", "ffn"))
    return Result(total / count, balance, all_logits, all_seen)


def balance_loss(all_seen: list[Seen], half: str, marks: list[Array], used: bool, by_layer: bool) -> Any:
    """``S * sum of f_s P_s``, over all rounds together or as a mean over rounds."""
    rounds = len(all_seen[0].scores[half])
    groups = [[r] for r in range(rounds)] if by_layer else [list(range(rounds))]
    losses = []
    for group in groups if rounds else []:
        f: Any = 0.0
        mean: Any = 0.0
        tokens = 0
        for seen, real in zip(all_seen, marks, strict=True):
            for r in group:
                for t in np.flatnonzero(real):
                    p, kept = seen.scores[half][r][t], seen.choices[half][r][t]
                    counted = kept[:1] if used else best(p, 1)
                    f = f + np.array([float(s in counted) for s in range(len(p))])
                    mean = mean + p
                    tokens += 1
        losses.append(len(mean) * (f / tokens * mean / tokens).sum())
    return sum(losses) / len(losses) if losses else 0.0


def derivative(loss: Callable[[Weights], Any], w: Weights, name: str, direction: Array) -> float:
    """Of a loss along a direction of one weight, by the complex step."""
    moved = {other: value.astype(np.complex128) for other, value in w.items()}
    moved[name] = moved[name] + 1e-30j * direction
    return float(np.imag(loss(moved)) / 1e-30)


ARCHITECTURES: dict[str, Architecture] = {
    "vanilla": vanilla, "albert": albert, "universal": universal, "moe": moe, "moe-attention": moe_attention,
    "mod": mod, "layerskip": layerskip, "early-exit": early_exit, "shared-pool": shared_pool, "mom": mom,
}  # fmt: skip
