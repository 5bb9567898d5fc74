"""Speed of the matrix products of real models, compared with the machine's peak and with NumPy's products.

    python benchmarks/bench_gemm.py --presets mini,base --precision float32
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import at_least, new_report, some_of, write_report
from numpy.typing import NDArray

from mom import MoMConfig, _core, cpu_info, get_num_threads, set_num_threads
from mom.ops import GemmProduct
from mom.runtime import machine_peak

_Float = NDArray[np.float32]

#: Tokens of one training step of the benchmarks' workloads.
_TOKENS = {"mini": 2048, "base": 2048}
#: Between our products and NumPy's: threads that wait for more work have to have given up by then.
_PAUSE = 0.05


@dataclass(frozen=True)
class Product:
    """Products of one kind as they occur in a step.

    Parameters
    ----------
    preset, layer : str
        Where they occur.
    direction : {"forward", "to inputs", "to weights"}
        Forward pass, gradient to inputs, gradient to weights.
    kind : {"plain", "grouped", "gathered"}
        One product; one for every module of a pool; the same with the modules' rows picked out of all tokens.
    rows : tuple of int
        Rows (tokens) of every product.
    tokens : int
        Rows to pick from; only for ``"gathered"``.
    inner, outer : int
        The layer's width In and Out.
    out_in : bool
        Weights are stored [out, in].
    """

    preset: str
    layer: str
    direction: str
    kind: str
    rows: tuple[int, ...]
    tokens: int
    inner: int
    outer: int
    out_in: bool = False

    @property
    def flop(self) -> float:
        """Two for every multiplication."""
        return 2.0 * sum(self.rows) * self.inner * self.outer

    @property
    def shape(self) -> tuple[int, int, int]:
        """m, k, n of the (first) product."""
        rows, inner, outer = self.rows[0], self.inner, self.outer
        if self.direction == "forward":
            return rows, inner, outer
        if self.direction == "to inputs":
            return rows, outer, inner
        return (outer, rows, inner) if self.out_in else (inner, rows, outer)

    def arrays(self) -> _Arrays:
        """Factors of random numbers, and NumPy's results."""
        return _Arrays(self)


@dataclass
class _Arrays:
    """Factors of a `Product`; `ours` and `numpy` are its two computations."""

    product: Product
    x: list[_Float] = field(init=False)
    rows: list[NDArray[np.int32]] = field(init=False)
    w: list[_Float] = field(init=False)
    dy: list[_Float] = field(init=False)

    def __post_init__(self) -> None:
        p, rng = self.product, np.random.default_rng(0)

        def numbers(*shape: int) -> _Float:
            return rng.standard_normal(shape, np.float32)

        gathered, backward = p.kind == "gathered", p.direction != "forward"
        shared = numbers(p.tokens, p.inner) if gathered else None
        self.x = [numbers(n, p.inner) if shared is None else shared for n in p.rows]
        self.rows = [np.sort(rng.permutation(p.tokens)[:n]).astype(np.int32) for n in p.rows] if gathered else []
        self.w = [numbers(p.outer, p.inner) if p.out_in else numbers(p.inner, p.outer) for _ in p.rows]
        self.dy = [numbers(n, p.outer) for n in p.rows] if backward else []

    def ours(self) -> list[GemmProduct]:
        """What `mom.ops.gemm_grouped` takes."""
        p = self.product
        products = []
        for i in range(len(p.rows)):
            rows = self.rows[i] if self.rows else None
            if p.direction == "forward":
                products.append(GemmProduct(self.x[i], self.w[i], transpose_b=p.out_in, a_rows=rows))
            elif p.direction == "to inputs":
                products.append(GemmProduct(self.dy[i], self.w[i], transpose_b=not p.out_in))
            elif p.out_in:
                products.append(GemmProduct(self.dy[i], self.x[i], transpose_a=True, b_rows=rows))
            else:
                products.append(GemmProduct(self.x[i], self.dy[i], transpose_a=True, a_rows=rows))
        return products

    def numpy(self) -> tuple[Callable[[], None], list[_Float]]:
        """The same with NumPy, rows picked by ``take``: a function, and the arrays that it writes."""
        p = self.product
        buffers = [np.empty((len(rows), p.inner), np.float32) for rows in self.rows]
        m, _, n = p.shape
        height = [m] * len(p.rows) if p.direction == "to weights" else list(p.rows)
        results = [np.empty((h, n), np.float32) for h in height]

        def compute() -> None:
            for i, out in enumerate(results):
                x, w = self.x[i], self.w[i]
                if self.rows and p.direction != "to inputs":
                    x = np.take(x, self.rows[i], axis=0, out=buffers[i], mode="clip")
                if p.direction == "forward":
                    np.matmul(x, w.T if p.out_in else w, out=out)
                elif p.direction == "to inputs":
                    np.matmul(self.dy[i], w if p.out_in else w.T, out=out)
                elif p.out_in:
                    np.matmul(self.dy[i].T, x, out=out)
                else:
                    np.matmul(x.T, self.dy[i], out=out)

        return compute, results


def gemm_products(preset: str) -> list[Product]:
    """The large products of one training step of a preset, each kind once.

    Parameters
    ----------
    preset : {"mini", "base"}

    Returns
    -------
    list of Product
        Plain products of anchors, routers and head, and grouped products of the pools. There the tokens are divided
        evenly among modules and SKIP.
    """
    config, tokens = MoMConfig.preset(preset), _TOKENS[preset]
    width, inner, router = config.n_embd, config.inner_size, config.router_dim
    plain = [
        ("q, k, v", width, 3 * width, False), ("attention out", width, width, False),
        ("feed-forward in", width, inner, False), ("feed-forward out", inner, width, False),
        ("router gates", width, 3 * router, True), ("output head", width, config.vocab_size, True),
    ]  # fmt: skip
    pools = [
        ("q, k, v", "gathered", width, 3 * width), ("feed-forward in", "gathered", width, inner),
        ("feed-forward out", "grouped", inner, width),
    ]  # fmt: skip
    found = []
    for direction in ("forward", "to inputs", "to weights"):
        found += [
            Product(preset, layer, direction, "plain", (tokens,), tokens, first, second, out_in)
            for layer, first, second, out_in in plain
        ]
        each = tokens * config.routing_top_k // (config.num_ffn + 1)
        rows = (each,) * config.num_ffn
        for layer, kind, first, second in pools:
            # Gradients to inputs take every module's own rows; they are scattered afterwards.
            found.append(Product(preset, layer, direction, "grouped" if direction == "to inputs" else kind, rows,
                                 tokens, first, second))  # fmt: skip
    return found


@contextlib.contextmanager
def limit_numpy_threads(threads: int) -> Iterator[str]:
    """NumPy's BLAS with so many threads, if the package ``threadpoolctl`` is there; gives what is the case in words."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield "as many threads as its BLAS takes (threadpoolctl, which could limit them, is not installed)"
        return
    with threadpool_limits(limits=threads, user_api="blas"):
        yield f"{threads} threads"


def measure_gemm(
    products: Sequence[Product], repeats: int = 7, precision: str = "float32", *, peak_seconds: float = 0.05
) -> Iterator[dict[str, Any]]:
    """Time products, ours and NumPy's in turn, with results whose memory is there beforehand.

    Parameters
    ----------
    products : sequence of Product
    repeats : int
        Measurements of each, after one that does not count.
    precision : {"float32", "bfloat16"}
        Of our products; NumPy's are float32 always.
    peak_seconds : float
        How long to measure the machine's peak before each product (ten times as long before the first); the best so
        far counts, as other programs only ever lower it.

    Yields
    ------
    dict
        ``preset``, ``layer``, ``direction``, ``kind``, ``groups``, ``m``, ``k``, ``n``, and in GFLOP/s ``peak``,
        ``mom`` and ``numpy`` (best), ``mom_median`` and ``numpy_median``.

    Notes
    -----
    Packing is part of our products, as is picking rows out of all tokens for both.
    """
    peak = machine_peak(precision, get_num_threads(), 10 * peak_seconds)
    for product in products:
        arrays = product.arrays()
        peak = max(peak, machine_peak(precision, get_num_threads(), peak_seconds))
        fields = [entry._fields() for entry in arrays.ours()]
        ours = _core.gemm_seconds(fields, precision == "bfloat16", False, repeats).tolist()
        compute, _ = arrays.numpy()
        time.sleep(_PAUSE)
        compute()
        theirs = []
        for _ in range(repeats):
            started = time.perf_counter()
            compute()
            theirs.append(time.perf_counter() - started)
        time.sleep(_PAUSE)
        m, k, n = product.shape
        yield {
            "preset": product.preset, "layer": product.layer, "direction": product.direction, "kind": product.kind,
            "groups": len(product.rows), "m": m, "k": k, "n": n, "peak": peak,
            "mom": 1e-9 * product.flop / min(ours), "mom_median": 1e-9 * product.flop / statistics.median(ours),
            "numpy": 1e-9 * product.flop / min(theirs), "numpy_median": 1e-9 * product.flop / statistics.median(theirs),
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--presets", type=some_of(_TOKENS), default=list(_TOKENS), help="comma-separated (both)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                        help="of our products; NumPy's are float32")  # fmt: skip
    parser.add_argument("--repeats", type=at_least(1), default=7, help="measurements of each product (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), help="threads of both (all CPUs)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        set_num_threads(options.threads)
    cpu, threads = cpu_info(), get_num_threads()
    report = new_report("gemm", {"precision": options.precision, "threads": threads, "repeats": options.repeats})
    report |= {"cpu": cpu, "numpy": np.__version__, "products": []}
    kernel = cpu["gemm"] if options.precision == "float32" else cpu["gemm_bf16"]
    print(f"matrix products in {options.precision}, GFLOP/s, {options.repeats} repeats; level {cpu['level']}, {kernel}")
    products = [product for preset in options.presets for product in gemm_products(preset)]
    with limit_numpy_threads(threads) as report["numpy_threads"]:
        print(f"mom: {threads} threads; numpy {np.__version__} in float32: {report['numpy_threads']}")
        print(f"{'':50}{'':17}{'mom':>16}{'numpy':>16}{'peak':>7}   mom of")
        print(f"{'product':41}{'groups':>8} {'m, k, n':>17}{'best':>8}{'median':>8}{'best':>8}{'median':>8}{'':>7}"
              f"{'peak':>7}{'numpy':>7}")  # fmt: skip
        for row in measure_gemm(products, options.repeats, options.precision):
            report["products"].append(row)
            print_row(row)
    write_report(report, options.output)
    return 0


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    name = f"{row['preset']} {row['layer']}, {row['direction']}, {row['kind']}"
    size = f"{row['m']}, {row['k']}, {row['n']}"
    print(
        f"{name:45}{row['groups']:>4} {size:>17}{row['mom']:8.1f}{row['mom_median']:8.1f}{row['numpy']:8.1f}"
        f"{row['numpy_median']:8.1f}{row['peak']:7.1f}{100 * row['mom'] / row['peak']:5.0f} %"
        f"{row['mom'] / row['numpy']:6.2f}x",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
