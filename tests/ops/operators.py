"""How each operator of `mom.ops` is called on a case, and what `mom.reference` says about it.

`make` returns an `Operator`: random inputs, the C call (forward and then backward), and the same in
float64. Results are compared in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases import Case
from mom import ops, reference
from mom.reference.router_cells import CELLS, CellInputs
from mom.routers import KINDS

Array = NDArray[Any]
Results = dict[str, Any]


@dataclass
class Operator:
    """One operator on one case."""

    inputs: dict[str, Array]
    run: Callable[..., Results]  #: C results by name
    expected: Callable[..., Results]  #: float64 results by name
    tolerance: float = 2e-6  #: norm of the difference over the norm of the expected
    add: Callable[..., tuple[Any, ...]] | None = None  #: the backward call with add_to, results to be summed


def make(case: Case, rng: np.random.Generator) -> Operator:
    """The operator of a case with random inputs."""
    maker: Callable[[Case, np.random.Generator], Operator] = globals()[f"_{case.operator}"]
    return maker(case, rng)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _wide(inputs: dict[str, Array]) -> dict[str, Array]:
    """Floating point inputs in float64."""
    return {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in inputs.items()}


# ------------------------------------------------------------------ layers
def _layernorm(case: Case, rng: np.random.Generator) -> Operator:
    n, c = case["N"], case["C"]
    inputs = {
        "inp": 3.0 + 2.0 * _normal(rng, n, c),
        "weight": _normal(rng, c),
        "bias": _normal(rng, c),
        "dout": _normal(rng, n, c),
    }

    def run(inp: Array, weight: Array, bias: Array, dout: Array) -> Results:
        out, mean, rstd = ops.layernorm_forward(inp, weight, bias)
        stats = ops.layernorm_stats(inp)
        assert np.array_equal(mean, stats[0]) and np.array_equal(rstd, stats[1])
        dinp, dweight, dbias = ops.layernorm_backward(dout, inp, weight, mean, rstd)
        return {"out": out, "mean": mean, "rstd": rstd, "dinp": dinp, "dweight": dweight, "dbias": dbias}

    def expected(inp: Array, weight: Array, bias: Array, dout: Array) -> Results:
        out, mean, rstd = reference.layernorm.forward(inp, weight, bias)
        dinp, dweight, dbias = reference.layernorm.backward(dout, inp, weight, mean, rstd)
        return {"out": out, "mean": mean, "rstd": rstd, "dinp": dinp, "dweight": dweight, "dbias": dbias}

    def add(inp: Array, weight: Array, bias: Array, dout: Array, add_to: Any) -> tuple[Any, ...]:
        mean, rstd = ops.layernorm_stats(inp)
        return ops.layernorm_backward(dout, inp, weight, mean, rstd, add_to=add_to)

    return Operator(inputs, run, expected, tolerance=1e-5, add=add)


def _linear(case: Case, rng: np.random.Generator) -> Operator:
    n, i, o = case["N"], case["I"], case["O"]
    out_in, biased = case.options.get("out_in", False), case.options.get("bias", True)
    inputs = {
        "inp": _normal(rng, n, i),
        "weight": _normal(rng, o, i) if out_in else _normal(rng, i, o),
        "bias": _normal(rng, o),
        "dout": _normal(rng, n, o),
    }

    def run(inp: Array, weight: Array, bias: Array, dout: Array) -> Results:
        out = ops.linear_forward(inp, weight, bias if biased else None, out_in=out_in)
        more = ops.linear_forward(inp, weight, bias if biased else None, out_in=out_in, add_to=dout)
        dinp, dweight, dbias = ops.linear_backward(dout, inp, weight, out_in=out_in)
        return {"out": out, "out added": more, "dinp": dinp, "dweight": dweight, "dbias": dbias}

    def expected(inp: Array, weight: Array, bias: Array, dout: Array) -> Results:
        w = weight.T if out_in else weight
        out = reference.linear.forward(inp, w, bias if biased else None)
        dinp, dweight, dbias = reference.linear.backward(dout, inp, w)
        dweight = dweight.T if out_in else dweight
        return {"out": out, "out added": out + dout, "dinp": dinp, "dweight": dweight, "dbias": dbias}

    def add(inp: Array, weight: Array, bias: Array, dout: Array, add_to: Any) -> tuple[Any, ...]:
        return ops.linear_backward(dout, inp, weight, out_in=out_in, add_to=add_to)

    return Operator(inputs, run, expected, add=add)


def _column_sum(case: Case, rng: np.random.Generator) -> Operator:
    n, c = case["N"], case["C"]
    scaled, chosen = case.options.get("scaled", False), case.options.get("chosen", False)
    inputs = {"inp": _normal(rng, n, c), "scale": _normal(rng, n), "rows": rng.integers(0, max(n, 1), n)}

    def run(inp: Array, scale: Array, rows: Array) -> Results:
        return {"out": ops.column_sum(inp, scale if scaled else None, rows if chosen else None)}

    def expected(inp: Array, scale: Array, rows: Array) -> Results:
        picked = inp[rows] if chosen else inp
        return {"out": (scale[:, None] * picked if scaled else picked).sum(0)}

    return Operator(inputs, run, expected)


def _gelu(case: Case, rng: np.random.Generator) -> Operator:
    inputs = {"inp": 3.0 * _normal(rng, case["N"]), "dout": _normal(rng, case["N"])}

    def run(inp: Array, dout: Array) -> Results:
        return {"out": ops.gelu_forward(inp), "dinp": ops.gelu_backward(dout, inp)}

    def expected(inp: Array, dout: Array) -> Results:
        return {"out": reference.gelu.forward(inp), "dinp": reference.gelu.backward(dout, inp)}

    return Operator(inputs, run, expected)


def _dropout(case: Case, rng: np.random.Generator) -> Operator:
    p = case.options["p"]

    def run(inp: Array) -> Results:
        return {"out": ops.dropout(inp, p, 5, 6, 7)}

    def expected(inp: Array) -> Results:
        return {"out": reference.dropout.forward(inp, ops.random_uniform(5, 6, 7, inp.size) >= p, p)}

    return Operator({"inp": _normal(rng, case["N"])}, run, expected)


def _ste(case: Case, rng: np.random.Generator) -> Operator:
    values = 2.0 * _normal(rng, case["N"])
    values[::3] = 0.0

    def run(weight: Array) -> Results:
        return {"out": ops.ste_forward(weight), "dweight": ops.ste_backward(weight)}

    def expected(weight: Array) -> Results:
        return {"out": reference.router.sign_forward(weight), "dweight": reference.router.sign_backward(weight)}

    return Operator({"weight": values}, run, expected, tolerance=0.0)


def _embedding(case: Case, rng: np.random.Generator) -> Operator:
    b, t, v, p, c = (case[letter] for letter in "BTVPC")
    drop = case.options.get("p", 0.0)
    inputs = {
        "tokens": rng.integers(0, max(v, 1), (b, t)).astype(np.uint16),
        "wte": _normal(rng, v, c),
        "wpe": _normal(rng, p, c),
        "dout": _normal(rng, b, t, c),
    }
    streams: dict[str, Any] = {"dropout": drop, "seed": 1, "counter": 2, "site": 3}

    def run(tokens: Array, wte: Array, wpe: Array, dout: Array) -> Results:
        out = ops.embedding_forward(tokens, wte, wpe, **streams)
        dwte, dwpe = ops.embedding_backward(dout, tokens, v, p, **streams)
        return {"out": out, "dwte": dwte, "dwpe": dwpe}

    def expected(tokens: Array, wte: Array, wpe: Array, dout: Array) -> Results:
        keep = ops.random_uniform(1, 2, 3, dout.size).reshape(dout.shape) >= drop
        out = reference.dropout.forward(reference.embedding.forward(tokens, wte, wpe), keep, drop)
        dwte, dwpe = reference.embedding.backward(reference.dropout.backward(dout, keep, drop), tokens, v, p)
        return {"out": out, "dwte": dwte, "dwpe": dwpe}

    def add(tokens: Array, wte: Array, wpe: Array, dout: Array, add_to: Any) -> tuple[Any, ...]:
        return ops.embedding_backward(dout, tokens, v, p, **streams, add_to=add_to)

    return Operator(inputs, run, expected, add=add)


def _mask(kind: str | None, rng: np.random.Generator, b: int, t: int) -> Array:
    lengths = rng.integers(0, t + 1, b)
    steps = np.arange(t)
    if kind == "left":
        return (steps >= lengths[:, None]).astype(np.int64)
    if kind == "right":
        return (steps < np.maximum(lengths, 1)[:, None]).astype(np.float32)
    return rng.random((b, t)) < 0.6 if kind == "random" else np.ones((b, t), dtype=bool)


def _attention(case: Case, rng: np.random.Generator) -> Operator:
    b, t, c, h = (case[letter] for letter in "BTCH")
    kind, how = case.options.get("mask"), case.options.get("masked_query", "causal")
    drop, scaled = case.options.get("p", 0.0), case.options.get("scaled", True)
    precision = case.options.get("precision", "float32")
    mask = None if kind is None else _mask(kind, rng, b, t)
    active = rng.random((b, t)) < case.options["active"] if "active" in case.options else None
    inputs = {"qkv": _normal(rng, b, t, 3 * c), "dout": _normal(rng, b, t, c)}
    lengths = None
    if "lengths" in case.options:
        lengths = rng.integers(0, t + 1, b)
        lengths[b // 2 : b // 2 + 1] = t
        kept = np.arange(t) < lengths[:, None]
        inputs = {name: x[kept] for name, x in inputs.items()}
        mask, active = (None if x is None else x[kept] for x in (mask, active))
    if precision == "bfloat16":
        inputs = {name: round_to_bfloat16(x) for name, x in inputs.items()}
    if active is not None:
        for x in inputs.values():
            x[~active] = np.nan  # not to be read
    streams: dict[str, Any] = {"dropout": drop, "seed": 4, "counter": 5, "site": 6}
    streams |= {"active": active, "lengths": lengths, "precision": precision}
    scale = None if scaled else 1.0

    def run(qkv: Array, dout: Array) -> Results:
        out, lse = ops.attention_forward(qkv, h, mask, scale, how, **streams)
        dqkv = ops.attention_backward(dout, qkv, out, lse, h, mask, scale, how, **streams)
        return {"out": out, "dqkv": dqkv}

    def expected(qkv: Array, dout: Array) -> Results:
        keep = ops.random_uniform(4, 5, 6, b * h * t * t).reshape(b, h, t, t) >= drop
        more = (h, mask, how, scaled, keep, drop, active, lengths)
        out, probs = reference.attention.forward(qkv, *more)
        return {"out": out, "dqkv": reference.attention.backward(dout, qkv, probs, *more)}

    return Operator(inputs, run, expected, tolerance=4e-6 if precision == "float32" else 1e-2)


def _attention_probabilities(case: Case, rng: np.random.Generator) -> Operator:
    b, t, c, h, r = (case[letter] for letter in "BTCHR")
    kind, how = case.options.get("mask"), case.options.get("masked_query", "causal")
    precision, scaled = case.options.get("precision", "float32"), case.options.get("scaled", True)
    mask = None if kind is None else _mask(kind, rng, b, t)
    active = rng.random((b, t)) < case.options["active"] if "active" in case.options else None
    qkv, lengths, wanted = _normal(rng, b, t, 3 * c), None, np.ones((b, t), bool) if active is None else active
    if "lengths" in case.options:
        lengths = rng.integers(0, t + 1, b)
        lengths[b // 2 : b // 2 + 1] = t
        kept = np.arange(t) < lengths[:, None]
        qkv, wanted = qkv[kept], wanted & kept
        mask, active = (None if x is None else x[kept] for x in (mask, active))
    if precision == "bfloat16":
        qkv = round_to_bfloat16(qkv)
    if active is not None:
        qkv[~active] = np.nan  # not to be read
    rows = rng.integers(0, max(b, 1), r)
    more: dict[str, Any] = {"active": active, "lengths": lengths}

    def run(qkv: Array, rows: Array) -> Results:
        scale = None if scaled else 1.0
        return {"probs": ops.attention_probabilities(qkv, h, mask, scale, how, rows=rows, precision=precision, **more)}

    def expected(qkv: Array, rows: Array) -> Results:
        probs = reference.attention.forward(qkv, h, mask, how, scaled and c > 0, **more)[1]
        return {"probs": np.where(wanted[:, None, :, None], probs, 0.0)[rows]}

    return Operator({"qkv": qkv, "rows": rows}, run, expected)


def round_to_bfloat16(x: Array) -> Array:
    """To the nearest number with 8 significant bits, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


# ------------------------------------------------------------------ losses
def _labels(rng: np.random.Generator, n: int, v: int, labelled: float = 0.8) -> Array:
    return np.where(rng.random(n) < (labelled if v else 0.0), rng.integers(0, max(v, 1), n), -100)


def _cross_entropy(case: Case, rng: np.random.Generator) -> Operator:
    n, v = case["N"], case["V"]
    inputs = {"logits": 4.0 * _normal(rng, n, v), "labels": _labels(rng, n, v)}

    def run(logits: Array, labels: Array) -> Results:
        loss, lse = ops.cross_entropy_forward(logits, labels)
        return {"lse": lse, "loss": loss, "dlogits": ops.cross_entropy_backward(logits, lse, labels, 0.5)}

    def expected(logits: Array, labels: Array) -> Results:
        _, _, lse = reference.cross_entropy.forward(logits, labels)
        picked = logits[np.arange(n), np.maximum(labels, 0)]
        loss = np.where(labels >= 0, lse - picked, 0.0)
        return {"lse": lse, "loss": loss, "dlogits": reference.cross_entropy.backward(0.5, logits, labels, lse)}

    return Operator(inputs, run, expected)


def _lm_head(case: Case, rng: np.random.Generator) -> Operator:
    n, v, c = case["N"], case["V"], case["C"]
    inputs = {
        "hidden": _normal(rng, n, c),
        "wte": 0.3 * _normal(rng, v, c),
        "labels": _labels(rng, n, v, case.options.get("labelled", 0.8)),
    }

    def run(hidden: Array, wte: Array, labels: Array) -> Results:
        loss, lse = ops.lm_head_forward(hidden, wte, labels)
        dhidden, dwte = ops.lm_head_backward(hidden, wte, lse, labels, 0.25)
        return {"loss": np.array(loss), "lse": lse, "dhidden": dhidden, "dwte": dwte}

    def expected(hidden: Array, wte: Array, labels: Array) -> Results:
        logits = hidden @ wte.T
        if not logits.size:
            return {"loss": np.array(0.0), "lse": np.zeros(0), "dhidden": 0.0 * hidden, "dwte": 0.0 * wte}
        loss, _, lse = reference.cross_entropy.forward(logits, labels)
        dlogits = reference.cross_entropy.backward(0.25, logits, labels, lse)
        return {"loss": np.array(loss), "lse": lse[labels >= 0], "dhidden": dlogits @ wte, "dwte": dlogits.T @ hidden}

    def add(hidden: Array, wte: Array, labels: Array, add_to: Any) -> tuple[Any, ...]:
        _, lse = ops.lm_head_forward(hidden, wte, labels)
        return ops.lm_head_backward(hidden, wte, lse, labels, add_to=add_to)

    return Operator(inputs, run, expected, add=add)


def _lm_head_gradient(case: Case, rng: np.random.Generator) -> Operator:
    n, v, c = case["N"], case["V"], case["C"]
    precision = case.options.get("precision", "float32")
    inputs = {
        "hidden": _normal(rng, n, c),
        "wte": 0.3 * _normal(rng, v, c),
        "labels": _labels(rng, n, v, case.options.get("labelled", 0.8)) if n else np.zeros(0, dtype=np.int64),
    }
    if precision == "bfloat16":
        inputs |= {name: round_to_bfloat16(inputs[name]) for name in ("hidden", "wte")}

    def run(hidden: Array, wte: Array, labels: Array) -> Results:
        loss, dhidden, dwte = ops.lm_head_gradient(hidden, wte, labels, precision=precision)
        assert ops.lm_head_loss(hidden, wte, labels, precision=precision) == loss
        return {"loss": np.array(loss), "dhidden": dhidden, "dwte": dwte}

    def expected(hidden: Array, wte: Array, labels: Array) -> Results:
        logits = hidden @ wte.T
        if not logits.size:
            return {"loss": np.array(0.0), "dhidden": 0.0 * hidden, "dwte": 0.0 * wte}
        loss, _, lse = reference.cross_entropy.forward(logits, labels)
        dlogits = reference.cross_entropy.backward(1.0, logits, labels, lse)
        return {"loss": np.array(loss), "dhidden": dlogits @ wte, "dwte": dlogits.T @ hidden}

    # Logits of a spread of 11 are off by up to 4e-7 of that in chains of 512 steps, and probabilities by as much in
    # proportion as logits are absolutely.
    return Operator(inputs, run, expected, tolerance=1e-2 if precision == "bfloat16" else 5e-6)


def _label_loss(case: Case, rng: np.random.Generator) -> Operator:
    b, n, kind = case["B"], case["L"], case.options["loss"]
    labels: Array = rng.random((b, n), dtype=np.float32)
    if kind == "single_label_classification":
        labels = np.where(np.arange(b) == 1, -100, rng.integers(0, max(n, 1), b))

    def run(logits: Array, labels: Array) -> Results:
        loss, dlogits = ops.label_loss(logits, labels, kind, 2.0)
        return {"loss": np.array(loss), "dlogits": dlogits}

    def expected(logits: Array, labels: Array) -> Results:
        loss = reference.classification_loss.forward(logits, labels, kind)
        return {"loss": np.array(loss), "dlogits": reference.classification_loss.backward(2.0, logits, labels, kind)}

    return Operator({"logits": 3.0 * _normal(rng, b, n), "labels": labels}, run, expected)


# ------------------------------------------------------------------ products
def _gemm(case: Case, rng: np.random.Generator) -> Operator:
    m, n, k = case["m"], case["n"], case["k"]
    ta, tb = case.options.get("transpose_a", False), case.options.get("transpose_b", False)
    inputs = {
        "a": _normal(rng, k, m) if ta else _normal(rng, m, k),
        "b": _normal(rng, n, k) if tb else _normal(rng, k, n),
        "c": _normal(rng, m, n),
        "bias": _normal(rng, n),
        "k_scale": _normal(rng, k),
        "a_rows": rng.integers(0, max(k if ta else m, 1), k if ta else m),
        "b_rows": rng.integers(0, max(n if tb else k, 1), n if tb else k),
    }

    def run(a: Array, b: Array, c: Array, bias: Array, k_scale: Array, a_rows: Array, b_rows: Array) -> Results:
        how: dict[str, Any] = {"transpose_a": ta, "transpose_b": tb}
        results = {
            "plain": ops.gemm(a, b, **how),
            "bias": ops.gemm(a, b, bias=bias, **how),
            "added": ops.gemm(a, b, c=c, **how),
            "rows": ops.gemm(a, b, a_rows=a_rows, b_rows=b_rows, k_scale=k_scale, **how),
        }
        prepacked = ops.gemm(a, b, a_rows=a_rows, b_rows=b_rows, k_scale=k_scale, prepack=True, **how)
        assert prepacked.tobytes() == results["rows"].tobytes()
        return results

    def expected(a: Array, b: Array, c: Array, bias: Array, k_scale: Array, a_rows: Array, b_rows: Array) -> Results:
        product = (a.T if ta else a) @ (b.T if tb else b)
        chosen_a, chosen_b = a[a_rows], b[b_rows]
        left, right = chosen_a.T if ta else chosen_a, chosen_b.T if tb else chosen_b
        return {
            "plain": product,
            "bias": product + bias,
            "added": product + c,
            "rows": left @ (k_scale[:, None] * right),
        }

    return Operator(inputs, run, expected)


# ------------------------------------------------------------------ router
#: In the order in which `ops.router_backward` returns their gradients.
_ROUTER_TENSORS = ops.RouterTensors._fields


def _router(case: Case, rng: np.random.Generator) -> Operator:
    n, c, r, s = (case[letter] for letter in "NCRS")
    kind, random = case.options["kind"], case.options.get("random", False)
    recurrent, first = KINDS[kind].recurrent, case.options.get("first", False)
    rows = (4 if random else 3) * r if recurrent else r
    of_state = ("state_weight", "state_bias") if recurrent else ()
    names, cell = ("in_weight", "in_bias", *of_state, "out_weight", "out_bias"), CELLS[kind]
    if kind in ("linear", "norm"):
        names = {"linear": ("out_weight", "out_bias"), "norm": ("in_weight", "out_bias")}[kind]
    inputs = {
        "inp": _normal(rng, n, c),
        "in_weight": 0.5 * _normal(rng, rows, c),
        "in_bias": 0.5 * _normal(rng, rows),
        "out_weight": _normal(rng, s, c if kind == "linear" else r),
        "out_bias": _normal(rng, s),
        "state_weight": 0.5 * _normal(rng, rows, r),
        "state_bias": 0.5 * _normal(rng, rows),
        "state": _normal(rng, n, r),
        "dlogits": _normal(rng, n, s),
        "dstate": _normal(rng, n, r),
    }
    streams: dict[str, Any] = {"random": random, "seed": 8, "counter": 9, "site": 10}

    def tensors(a: dict[str, Array]) -> ops.RouterTensors:
        return ops.RouterTensors(**{name: a[name] if name in names else None for name in _ROUTER_TENSORS})

    def run(**a: Array) -> Results:
        weights, state = tensors(a), a["state"] if recurrent and not first else None
        logits, saved = ops.router_forward(a["inp"], weights, kind, state, **streams)
        dstate = a["dstate"] if recurrent else None
        dinp, dbefore, d = ops.router_backward(a["dlogits"], a["inp"], saved, weights, kind, state, dstate, **streams)
        assert (dbefore is None) == (state is None)
        return {
            "logits": logits,
            "hidden": saved.hidden,
            "dinp": dinp,
            "dstate": dbefore,
            **{f"d{name}": value for name, value in d._asdict().items()},
        }

    def expected(**a: Array) -> Results:
        weights = [a[name] for name in names]
        noise = ops.random_uniform(8, 9, 10, n * r).reshape(n, r).astype(np.float64) if random else None
        given = CellInputs(a["inp"], a["state"] if recurrent and not first else None, noise, modules=s)
        logits, state, saved = cell.forward(weights, given)
        dinp, dstate, gradients = cell.backward(
            a["dlogits"], a["dstate"] if recurrent else None, weights, given, saved
        )
        return {
            "logits": logits,
            "hidden": state if recurrent else saved,
            "dinp": dinp,
            "dstate": None if given.state is None else dstate,
            **{f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)},
        }

    def add(add_to: Any, **a: Array) -> tuple[Any, ...]:
        weights = tensors(a)
        logits, saved = ops.router_forward(a["inp"], weights, kind, **streams)
        so_far = None
        if add_to is not None:
            present = (name for name in _ROUTER_TENSORS if name in names)
            sums = dict(zip(present, add_to[1:], strict=True))
            so_far = (add_to[0], ops.RouterTensors(**{name: sums.get(name) for name in _ROUTER_TENSORS}))
        dinp, _, d = ops.router_backward(a["dlogits"], a["inp"], saved, weights, kind, **streams, add_to=so_far)
        return (dinp, *(t for t in d if t is not None))

    return Operator(inputs, run, expected, tolerance=5e-6, add=add)


def _scores(case: Case, rng: np.random.Generator) -> Operator:
    n, s = case["N"], case["S"]
    temperature = case.options.get("temperature", 1.0)
    inputs = {"logits": _normal(rng, n, s), "dscores": _normal(rng, n, s)}

    def run(logits: Array, dscores: Array) -> Results:
        scores = ops.router_scores_forward(logits, temperature)
        return {"scores": scores, "dlogits": ops.router_scores_backward(dscores, scores, temperature)}

    def expected(logits: Array, dscores: Array) -> Results:
        scores = reference.router.scores_forward(logits, temperature)
        return {"scores": scores, "dlogits": reference.router.scores_backward(dscores, scores, temperature)}

    return Operator(inputs, run, expected, tolerance=4e-6)


def _topk(case: Case, rng: np.random.Generator) -> Operator:
    n, s, k = case["N"], case["S"], case["K"]
    renormalise = case.options.get("renormalise", False)
    scores = ops.router_scores_forward(_normal(rng, n, s), 1.0)
    inputs = {"scores": scores, "dweight": _normal(rng, n, k)}

    def run(scores: Array, dweight: Array) -> Results:
        index, weight = ops.topk_forward(scores, k, renormalise)
        dscores = ops.topk_backward(dweight, index, weight, scores, renormalise)
        return {"index": index, "weight": weight, "dscores": dscores}

    def expected(scores: Array, dweight: Array) -> Results:
        index, weight = reference.router.top_k_forward(scores, k, renormalise)
        dscores = reference.router.top_k_backward(dweight, scores, index, weight, renormalise)
        return {"index": index, "weight": weight, "dscores": dscores}

    def add(scores: Array, dweight: Array, add_to: Any) -> tuple[Any, ...]:
        index, weight = ops.topk_forward(scores, k, renormalise)
        so_far = None if add_to is None else add_to[0]
        return (ops.topk_backward(dweight, index, weight, scores, renormalise, add_to=so_far),)

    return Operator(inputs, run, expected, add=add, tolerance=1e-5)


def _forced_choices(case: Case, rng: np.random.Generator) -> Operator:
    n, s, k, m = (case[letter] for letter in "NSKM")
    renormalise, scored = case.options.get("renormalise", False), case.options.get("scored", True)
    outputs = _normal(rng, n, s)
    if case.options.get("forbidden"):
        outputs[rng.random((n, s)) < 0.5] = -np.inf
        outputs[:, :1] = 0.5
    names = np.arange(-3, s if s > m else s + 1)  # free, none, SKIP and choices
    drawn = rng.random((n, len(names))).argsort(axis=1)[:, :k]
    forced = names[drawn] if not case.options.get("free") else None
    if forced is not None:
        forced[rng.random((n, k)) < 0.3] = -1
    scores = ops.router_scores_forward(outputs, 1.0)
    inputs = {"scores": scores, "outputs": outputs, "dweight": _normal(rng, n, k)}
    how = (k, m, renormalise, scored)

    def run(scores: Array, outputs: Array, dweight: Array) -> Results:
        index, weight = ops.forced_choices_forward(scores, outputs, forced, *how)
        dscores = ops.forced_choices_backward(dweight, index, weight, scores, renormalise)
        return {"index": index, "weight": weight, "dscores": dscores}

    def expected(scores: Array, outputs: Array, dweight: Array) -> Results:
        index, weight = reference.forced_choices.forward(scores, outputs, forced, *how)
        dscores = reference.router.top_k_backward(dweight, scores, index, weight, renormalise)
        return {"index": index, "weight": weight, "dscores": dscores}

    def add(scores: Array, outputs: Array, dweight: Array, add_to: Any) -> tuple[Any, ...]:
        index, weight = ops.forced_choices_forward(scores, outputs, forced, *how)
        so_far = None if add_to is None else add_to[0]
        return (ops.forced_choices_backward(dweight, index, weight, scores, renormalise, add_to=so_far),)

    return Operator(inputs, run, expected, add=add, tolerance=1e-5)


# ------------------------------------------------------------------ routed layers
def _choices(case: Case, rng: np.random.Generator) -> Array:
    """Random choices, SKIP (M) and surplus ones among them; the last module of five has no token."""
    n, k, m = case["N"], case["K"], case["M"]
    if case.options.get("dense"):
        return np.tile(np.arange(m), (n, 1))
    outputs = np.array([i for i in range(m + 2) if not (m == 5 and i == m - 1)])
    order = rng.random((n, len(outputs))).argsort(axis=1)[:, :k]
    return outputs[order].astype(np.int16)


def _plans(case: Case, index: Array) -> tuple[ops.RoutingPlan, reference.routing_plan.RoutingPlan]:
    n, m = case["N"], case["M"]
    plan = ops.routing_plan_dense(n, m) if case.options.get("dense") else ops.routing_plan(index, m)
    return plan, reference.routing_plan.build(index, m)


def _routed_linear(case: Case, rng: np.random.Generator) -> Operator:
    n, m, i, o = (case[letter] for letter in "NMIO")
    gathered = case.options.get("gathered", True)
    plan, twin = _plans(case, _choices(case, rng))
    inputs = {
        "inp": _normal(rng, n if gathered else plan.num_slots, i),
        "weights": _normal(rng, m, i, o),
        "biases": _normal(rng, m, o),
        "dout": _normal(rng, n if gathered else plan.num_slots, o),
        "scale": _normal(rng, plan.num_slots),
    }

    def run(inp: Array, weights: Array, biases: Array, dout: Array, scale: Array) -> Results:
        out = ops.routed_linear_forward(inp, weights, biases, plan, gathered)
        bare = ops.routed_linear_forward(inp, weights, None, plan, gathered)
        dinp, dweights, dbiases = ops.routed_linear_backward(dout, inp, weights, plan, gathered, gathered, scale)
        return {"out": out, "bare": bare, "dinp": dinp, "dweights": dweights, "dbiases": dbiases}

    def expected(inp: Array, weights: Array, biases: Array, dout: Array, scale: Array) -> Results:
        slots = reference.routed_linear.gather_forward(inp, twin) if gathered else inp
        dslots = dout[twin.token] if gathered else dout
        out = reference.routed_linear.forward(slots, list(weights), list(biases), twin)
        bare = reference.routed_linear.forward(slots, list(weights), list(np.zeros_like(biases)), twin)
        dinp, _, _ = reference.routed_linear.backward(dslots, slots, list(weights), twin)
        _, dweights, dbiases = reference.routed_linear.backward(scale[:, None] * dslots, slots, list(weights), twin)
        return {"out": out, "bare": bare, "dinp": dinp, "dweights": np.stack(dweights), "dbiases": np.stack(dbiases)}

    def add(inp: Array, weights: Array, biases: Array, dout: Array, scale: Array, add_to: Any) -> tuple[Any, ...]:
        return ops.routed_linear_backward(dout, inp, weights, plan, gathered, gathered, scale, add_to=add_to)[1:]

    return Operator(inputs, run, expected, add=add)


def _routed_combine(case: Case, rng: np.random.Generator) -> Operator:
    n, k, c = case["N"], case["K"], case["C"]
    weighted = case.options.get("weighted", True)
    plan, twin = _plans(case, _choices(case, rng))
    inputs = {
        "y": _normal(rng, plan.num_slots, c),
        "weight": _normal(rng, n, k),
        "dout": _normal(rng, n, c),
        "before": _normal(rng, n, c),
    }

    def run(y: Array, weight: Array, dout: Array, before: Array) -> Results:
        factor = weight if weighted else None
        dweight, dy = ops.routed_combine_backward(dout, y, factor, plan)
        return {
            "out": ops.routed_combine_forward(y, factor, plan),
            "added": ops.routed_combine_forward(y, factor, plan, add_to=before),
            "scale": ops.routed_slot_scale(weight, plan),
            "dweight": dweight,
            "dy": dy,
        }

    def expected(y: Array, weight: Array, dout: Array, before: Array) -> Results:
        scale = weight[twin.token, twin.choice]
        factor = (scale if weighted else np.ones_like(scale))[:, None]
        out = reference.routed_linear.gather_backward(factor * y, twin)
        dweight = np.zeros((n, k))
        dweight[twin.token, twin.choice] = (dout[twin.token] * y).sum(-1)
        return {"out": out, "added": out + before, "scale": scale, "dweight": dweight, "dy": factor * dout[twin.token]}

    return Operator(inputs, run, expected)


def _routed_scores(case: Case, rng: np.random.Generator) -> Operator:
    n, k, m, i, o = (case[letter] for letter in "NKMIO")
    gathered, weighted = case.options.get("gathered", False), case.options.get("weighted", True)
    plan, twin = _plans(case, _choices(case, rng))
    inputs = {
        "h": _normal(rng, n if gathered else plan.num_slots, i),
        "weights": _normal(rng, m, i, o),
        "biases": _normal(rng, m, o),
        "weight": _normal(rng, n, k),
        "dout": _normal(rng, n, o),
    }

    def run(h: Array, weights: Array, biases: Array, weight: Array, dout: Array) -> Results:
        factor = weight if weighted else None
        dh, _, _ = ops.routed_linear_backward(dout, h, weights, plan, gathered, True)
        dweight, dh = ops.routed_score_backward(dh, h, dout, biases, factor, plan, gathered)
        return {"dweight": dweight, "dh": dh}

    def expected(h: Array, weights: Array, biases: Array, weight: Array, dout: Array) -> Results:
        slots = h[twin.token] if gathered else h
        dh, _, _, dweight = reference.routed_linear.combine_backward(
            dout, slots, list(weights), list(biases), weight if weighted else None, twin
        )
        return {"dweight": dweight, "dh": dh}

    def add(h: Array, weights: Array, biases: Array, weight: Array, dout: Array, add_to: Any) -> tuple[Any, ...]:
        dh, _, _ = ops.routed_linear_backward(dout, h, weights, plan, gathered, True)
        so_far = None if add_to is None else add_to[0]
        return (ops.routed_score_backward(dh, h, dout, biases, weight, plan, gathered, add_to=so_far)[0],)

    return Operator(inputs, run, expected, add=add, tolerance=4e-6)


def _routed_layernorm(case: Case, rng: np.random.Generator) -> Operator:
    n, m, c = case["N"], case["M"], case["C"]
    plan, twin = _plans(case, _choices(case, rng))
    inputs = {
        "inp": 1.0 + 2.0 * _normal(rng, n, c),
        "weights": _normal(rng, m, c),
        "biases": _normal(rng, m, c),
        "dout": _normal(rng, plan.num_slots, c),
    }

    def run(inp: Array, weights: Array, biases: Array, dout: Array) -> Results:
        mean, rstd = ops.layernorm_stats(inp)
        out = ops.routed_layernorm_forward(inp, mean, rstd, weights, biases, plan)
        dinp, dweights, dbiases = ops.routed_layernorm_backward(dout, inp, mean, rstd, weights, plan)
        return {"out": out, "dinp": dinp, "dweights": dweights, "dbiases": dbiases}

    def expected(inp: Array, weights: Array, biases: Array, dout: Array) -> Results:
        out, dinp = np.zeros((plan.num_slots, c)), np.zeros_like(inp)
        dweights, dbiases = np.zeros_like(weights), np.zeros_like(biases)
        for module, rows in twin.modules():
            tokens = twin.token[rows]
            out[rows], mean, rstd = reference.layernorm.forward(inp[tokens], weights[module], biases[module])
            d, dweights[module], dbiases[module] = reference.layernorm.backward(
                dout[rows], inp[tokens], weights[module], mean, rstd
            )
            np.add.at(dinp, tokens, d)
        return {"out": out, "dinp": dinp, "dweights": dweights, "dbiases": dbiases}

    def add(inp: Array, weights: Array, biases: Array, dout: Array, add_to: Any) -> tuple[Any, ...]:
        mean, rstd = ops.layernorm_stats(inp)
        return ops.routed_layernorm_backward(dout, inp, mean, rstd, weights, plan, add_to=add_to)

    return Operator(inputs, run, expected, add=add, tolerance=4e-6)


def _balance_loss(case: Case, rng: np.random.Generator) -> Operator:
    rounds, n, s = case["L"], case["N"], case["S"]
    probabilities = case.options.get("probabilities", True)
    definition, depthwise = case.options.get("definition", "switch"), case.options.get("depthwise", False)
    masked = case.options.get("masked", False)
    mask = None if not masked else np.zeros(n) if masked == "all" else (rng.random(n) < 0.7).astype(np.int8)
    logits = _normal(rng, rounds * n, s)
    scores = ops.router_scores_forward(logits, 1.0 if probabilities else None).reshape(rounds, n, s)
    how: dict[str, Any] = {"probabilities": probabilities, "mask": mask}

    def run(scores: Array) -> Results:
        loss = ops.balance_loss(list(scores), definition, depthwise, **how)
        dscores = ops.balance_loss_backward(list(scores), definition, depthwise, dloss=3.0, **how)
        return {"loss": np.array(loss), "dscores": np.stack(dscores) if dscores else np.zeros_like(scores)}

    def expected(scores: Array) -> Results:
        if not rounds:
            return {"loss": np.array(0.0), "dscores": scores}
        softmax = definition == "reference" or not probabilities
        loss, saved = reference.balance_loss.forward(scores, softmax, depthwise, mask)
        return {"loss": np.array(loss), "dscores": reference.balance_loss.backward(3.0, saved, softmax)}

    return Operator({"scores": scores}, run, expected, tolerance=4e-6)


# ------------------------------------------------------------------ optimizer
_TENSOR_SHAPES = [(3,), (4, 5), (1,), (0,), (70, 33), (17,), (300, 90), (2, 2), (31,)]


def _adamw(case: Case, rng: np.random.Generator) -> Operator:
    shapes = _TENSOR_SHAPES[: case["tensors"]]
    inputs: dict[str, Array] = {}
    for i, shape in enumerate(shapes):
        inputs[f"param{i}"], inputs[f"grad{i}"] = _normal(rng, *shape), _normal(rng, *shape)
        inputs[f"first{i}"], inputs[f"second{i}"] = 0.1 * _normal(rng, *shape), _normal(rng, *shape) ** 2
    steps = np.arange(len(shapes), dtype=np.float64)
    decay, used = np.arange(len(shapes)) % 2 == 0, np.arange(len(shapes)) != 1

    def lists(a: dict[str, Array]) -> list[list[Array]]:
        return [[a[f"{name}{i}"] for i in range(len(shapes))] for name in ("param", "grad", "first", "second")]

    def run(**a: Array) -> Results:
        clipped, norm = ops.clip_grad_norm(lists(a)[1], 1.0)
        p, m, v, after = ops.adamw_step(*lists(a), steps, lr=0.01, decay=decay, used=used, grad_scale=0.25)
        named = [(f"{name}{i}", value) for name, values in zip("pmvg", (p, m, v, clipped), strict=True)
                 for i, value in enumerate(values)]  # fmt: skip
        return {"norm": np.array(norm), "steps": after, **dict(named)}

    def expected(**a: Array) -> Results:
        param, grad, first, second = lists(a)
        clipped, norm = reference.grad_norm.clip({str(i): g for i, g in enumerate(grad)}, 1.0)
        results: Results = {"norm": np.array(norm), "steps": steps + used}
        for i in range(len(shapes)):
            new = (param[i], first[i], second[i])
            if used[i]:
                count = int(steps[i]) + 1
                new = reference.adamw.step(
                    param[i], 0.25 * grad[i], first[i], second[i], count, 0.01, (0.9, 0.95), 1e-5,
                    0.1 if decay[i] else 0.0,
                )
            for name, value in zip("pmvg", (*new, clipped[str(i)]), strict=True):
                results[f"{name}{i}"] = value
        return results

    return Operator(inputs, run, expected)
