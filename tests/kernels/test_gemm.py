"""Tests of matrix products, beyond the tests that every operator has."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mom
from mom import _core, ops
from mom.ops import GemmProduct


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 70), st.integers(0, 70), st.integers(0, 70)),
    transpose=st.tuples(st.booleans(), st.booleans()),
    level=st.sampled_from(mom.cpu_info()["levels"]),
    precision=st.sampled_from(["float32", "bfloat16"]),
    prepack=st.booleans(),
    gathered=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32),
)
def test_any_shape(
    sizes: tuple[int, int, int], transpose: tuple[bool, bool], level: str, precision: str, prepack: bool,
    gathered: tuple[bool, bool, bool], seed: int,
) -> None:  # fmt: skip
    m, n, k = sizes
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((k, m) if transpose[0] else (m, k), dtype=np.float32)
    b = rng.standard_normal((n, k) if transpose[1] else (k, n), dtype=np.float32)
    options: dict[str, Any] = {}
    rounded = to_bfloat16 if precision == "bfloat16" else np.array
    used_a, used_b = a, b
    if gathered[0] and len(a):
        options["a_rows"] = rng.integers(0, len(a), len(a))
        used_a = a[options["a_rows"]]
    if gathered[1] and len(b):
        options["b_rows"] = rng.integers(0, len(b), len(b))
        used_b = b[options["b_rows"]]
    right = used_b.T if transpose[1] else used_b
    if gathered[2]:
        options["k_scale"] = rng.standard_normal(k, dtype=np.float32)
        right = options["k_scale"][:, None] * right
    with ops.use_level(level):
        got = ops.gemm(
            a, b, transpose_a=transpose[0], transpose_b=transpose[1], precision=precision, prepack=prepack, **options
        )
    exact = rounded(used_a.T if transpose[0] else used_a).astype(np.float64) @ rounded(right)
    assert np.abs(got - exact).max(initial=0.0) <= 2e-6 * (k + 1)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_group_of_unequal_products(kernel_level: str, rng: np.random.Generator) -> None:
    sizes = [(0, 5, 3), (1, 300, 40), (130, 7, 0), (17, 33, 300), (64, 64, 64), (2, 0, 9)]
    products = [
        GemmProduct(rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32))
        for m, n, k in sizes
    ]
    together = ops.gemm_grouped(products)
    for product, got in zip(products, together, strict=True):
        assert got.tobytes() == ops.gemm(product.a, product.b).tobytes()
        assert np.allclose(got, product.a.astype(np.float64) @ product.b, atol=1e-4)
    assert ops.gemm_grouped([]) == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_rows_have_the_same_bits_in_any_company(
    precision: str, accumulate: bool, kernel_level: str, rng: np.random.Generator
) -> None:
    a, b = rng.standard_normal((201, 600), dtype=np.float32), rng.standard_normal((600, 130), dtype=np.float32)
    c = rng.standard_normal((201, 130), dtype=np.float32)

    def product(rows: slice, columns: slice) -> bytes:
        start = c[rows, columns].copy() if accumulate else None
        got = ops.gemm(a[rows].copy(), b[:, columns].copy(), c=start, precision=precision)
        return got.tobytes()

    whole = ops.gemm(a, b, c=c if accumulate else None, precision=precision)
    for rows in (
        slice(0, 1),
        slice(3, 7),
        slice(4, 9),
        slice(5, 13),
        slice(7, 19),
        slice(7, 20),
        slice(7, 27),
        slice(7, 40),
        slice(200, 201),
    ):
        assert product(rows, slice(None)) == whole[rows].tobytes()
    assert product(slice(None), slice(0, 33)) == whole[:, :33].tobytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "k"), [(50, 70, 260), (24, 33, 1024), (200, 32, 7), (30, 3072, 300)])
def test_bits_do_not_depend_on_how_a_factor_lies(
    m: int, n: int, k: int, precision: str, kernel_level: str, rng: np.random.Generator
) -> None:
    # Factors stored by rows or by columns may be read in place. A factor with an index along k is always packed.
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    rows, columns = rng.permutation(m), rng.permutation(k)
    expected = ops.gemm(
        np.ascontiguousarray(a.T[np.argsort(columns)]), b, transpose_a=True, a_rows=columns, precision=precision
    )
    for got in (
        ops.gemm(a, b, precision=precision),
        ops.gemm(np.ascontiguousarray(a.T), b, transpose_a=True, precision=precision),
        ops.gemm(a[np.argsort(rows)], b, a_rows=rows, precision=precision),
    ):
        assert np.array_equal(got, expected)


EDGES = (1, 2, 31, 32, 33, 63, 64, 65, 100, 383, 384, 385, 1031, 1032, 1033, 2100)


@pytest.mark.parametrize("k", EDGES)
@pytest.mark.parametrize("transpose", [(False, False), (True, False), (False, True), (True, True)])
def test_bfloat16_at_the_edges_of_tiles_and_blocks(
    k: int, transpose: tuple[bool, bool], kernel_level: str, rng: np.random.Generator
) -> None:
    for m, n in ((1, 1), (5, 33), (12, 32), (13, 65), (24, 64), (37, 31), (130, 96)):
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        # The rows of memory that are not chosen hold NaN, which must not affect the result.
        left, right = [np.concatenate([np.full_like(rows, np.nan), rows]) for rows in (a, b)]
        options: dict[str, Any] = {"a_rows": np.arange(m) + m, "b_rows": np.arange(k) + k}
        if transpose[0]:
            left, options["a_rows"] = np.ascontiguousarray(a.T), None
        if transpose[1]:
            right, options["b_rows"] = np.ascontiguousarray(b.T), None
        options |= {"transpose_a": transpose[0], "transpose_b": transpose[1], "precision": "bfloat16"}
        exact = to_bfloat16(a).astype(np.float64) @ to_bfloat16(b)
        got = ops.gemm(left, right, **options)
        assert np.abs(got - exact).max() <= 1e-6 * (k + 1)
        assert ops.gemm(left, right, prepack=True, **options).tobytes() == got.tobytes()
        c = rng.standard_normal((m, n), np.float32)
        assert np.abs(ops.gemm(left, right, c=c, **options) - (c + exact)).max() <= 1e-6 * (k + 4)


def test_padding_of_packed_factors_is_zero(kernel_level: str, rng: np.random.Generator) -> None:
    """Products of NaN run first. Their packed factors remain in the memory that the next products use."""
    for m, n, k in ((5, 7, 3), (5, 7, 33), (20, 40, 65), (13, 33, 47), (37, 70, 100)):
        nan = np.full((m + 30, k + 30), np.nan, np.float32), np.full((k + 30, n + 30), np.nan, np.float32)
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        for precision in ("float32", "bfloat16"):
            for prepack in (False, True):
                for c in (None, np.zeros((m, n), np.float32)):
                    assert np.isnan(ops.gemm(*nan, precision=precision, prepack=prepack)).all()
                    got = ops.gemm(a, b, c=c, precision=precision, prepack=prepack)
                    assert np.abs(got - a.astype(np.float64) @ b).max() < 0.02 * (k + 1)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_infinities_do_not_meet_the_padding(
    transpose_a: bool, transpose_b: bool, kernel_level: str, rng: np.random.Generator
) -> None:
    """Infinity times a zero in the padding of the other factor would be NaN."""
    a, b = rng.uniform(1.0, 2.0, (30, 41)).astype(np.float32), rng.uniform(1.0, 2.0, (41, 40)).astype(np.float32)
    a[3, 12], b[13, 4] = np.inf, np.inf
    left, right = np.ascontiguousarray(a.T) if transpose_a else a, np.ascontiguousarray(b.T) if transpose_b else b
    for precision in ("float32", "bfloat16"):
        got = ops.gemm(left, right, transpose_a=transpose_a, transpose_b=transpose_b, precision=precision)
        assert np.array_equal(np.isinf(got), np.isinf(a @ b))
        assert not np.isnan(got).any()


def tile_products(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b, summed as on tiles: 32 steps at a time, with separate sums of even and odd steps. Products are exact."""
    for begin in range(0, a.shape[1], 32):
        sums = [np.zeros_like(c), np.zeros_like(c)]
        for p in range(begin, min(begin + 32, a.shape[1])):
            sums[p % 2] += np.outer(a[:, p], b[p])
        c = c + (sums[0] + sums[1])
    return c


@pytest.mark.skipif("amx" not in mom.cpu_info()["levels"], reason="no tiles here")
@pytest.mark.parametrize("k", [1, 30, 33, 96, 1100])
def test_tiles_sum_in_the_order_of_their_definition(k: int, rng: np.random.Generator) -> None:
    a, b = to_bfloat16(rng.standard_normal((41, k), np.float32)), to_bfloat16(rng.standard_normal((k, 75), np.float32))
    c = rng.standard_normal((41, 75), np.float32)
    with ops.use_level("amx"):
        assert ops.gemm(a, b, precision="bfloat16").tobytes() == tile_products(a, b, np.zeros_like(c)).tobytes()
        expected = tile_products(a, b, c)
        assert ops.gemm(a, b, c=c, precision="bfloat16").tobytes() == expected.tobytes()


@pytest.mark.parametrize("sharing", [("avx512", "avx512bf16", "amx"), ("neon", "neonbf16")])
def test_float32_has_the_same_bits_at_all_levels_that_share_its_kernels(
    sharing: tuple[str, ...], rng: np.random.Generator
) -> None:
    levels = [level for level in mom.cpu_info()["levels"] if level in sharing]
    a, b = rng.standard_normal((61, 1100), np.float32), rng.standard_normal((1100, 77), np.float32)
    results = set()
    for level in levels:
        with ops.use_level(level):
            results.add(ops.gemm(a, b).tobytes())
    assert len(results) == min(len(levels), 1)


X86 = platform.machine().lower() in ("x86_64", "amd64")
AARCH64 = platform.machine().lower() in ("aarch64", "arm64")


def test_multiply_adds_are_fused_everywhere_but_at_baseline_on_x86(kernel_level: str) -> None:
    """x * x - round(x * x) is the rounding error of x * x with a fused multiply-add, and 0 without."""
    x = np.float32(1) + np.float32(2) ** -12
    rounded = x * x
    error = float(x) * float(x) - float(rounded)
    assert error != 0.0
    for m in (1, 5, 13, 40):
        a = np.tile(np.array([[-rounded, x]], np.float32), (m, 1))
        b = np.tile(np.array([[1.0], [x]], np.float32), (1, 37))
        fused = not (X86 and kernel_level == "baseline")
        assert np.array_equal(ops.gemm(a, b), np.full((m, 37), error if fused else 0.0, np.float32))


@pytest.mark.skipif(not (X86 or AARCH64), reason="denormal numbers are switched off on x86 and AArch64 only")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_denormal_factors_count_as_zero(kernel_level: str, precision: str) -> None:
    denormal = np.full((13, 4), 1e-40, np.float32)
    assert (denormal != 0).all()
    for scale in (1.0, 1e30):
        assert not ops.gemm(denormal, np.full((4, 33), scale, np.float32), precision=precision).any()


def test_large_product_against_a_random_vector(kernel_level: str, rng: np.random.Generator) -> None:
    """(A B) x = A (B x), which costs n^2."""
    a, b = rng.standard_normal((700, 900), dtype=np.float32), rng.standard_normal((900, 2500), dtype=np.float32)
    x = rng.standard_normal(2500)
    got, exact = ops.gemm(a, b).astype(np.float64) @ x, a.astype(np.float64) @ (b.astype(np.float64) @ x)
    assert np.linalg.norm(got - exact) < 2e-6 * np.linalg.norm(exact)


def test_infinities_and_nan_pass_through(kernel_level: str) -> None:
    a = np.eye(20, dtype=np.float32)
    b = np.ones((20, 40), dtype=np.float32)
    b[3, 5], b[4, 6] = np.inf, np.nan
    got = ops.gemm(a, b)
    assert np.isnan(got[:, 6]).all()
    assert got[3, 5] == np.inf
    assert np.array_equal(np.delete(got, [5, 6], axis=1), np.delete(a @ np.ones_like(b), [5, 6], axis=1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_k_of_zero_gives_the_bias(kernel_level: str, precision: str) -> None:
    a, b = np.zeros((3, 0), dtype=np.float32), np.zeros((0, 2), dtype=np.float32)
    bias = np.array([1.0, 2.0], dtype=np.float32)
    assert ops.gemm(a, b, bias=bias, precision=precision).tolist() == [[1.0, 2.0]] * 3
    assert ops.gemm(a, b, precision=precision).tolist() == [[0.0, 0.0]] * 3


def test_arguments_are_checked() -> None:
    a, b = np.zeros((2, 3), dtype=np.float32), np.zeros((4, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"^b: shape \(4, 5\), expected \(3, N\)$"):
        ops.gemm(a, b)
    with pytest.raises(ValueError, match=r"^a_rows: value 2, expected \[0, 2\)$"):
        ops.gemm(a, b, a_rows=[0, 2])
    with pytest.raises(ValueError, match=r"^c: shape \(3, 2\), expected \(2, 5\)$"):
        ops.gemm(a, b[:3].copy(), c=np.zeros((3, 2), dtype=np.float32))


def test_timed_products_give_a_time_for_every_repeat_and_leave_nothing(rng: np.random.Generator) -> None:
    a = rng.standard_normal((30, 20), np.float32)
    product = ops.GemmProduct(a, a, transpose_b=True)._fields()
    live = _core.memory_live_bytes()
    for prepack in (False, True):
        for bf16 in (False, True):
            seconds = _core.gemm_seconds([product, product], bf16, prepack, 3)
            assert seconds.shape == (3,) and (seconds >= 0).all()
    assert _core.memory_live_bytes() == live
    with pytest.raises(ValueError, match="^repeats: 0 is less than 1$"):
        _core.gemm_seconds([product], False, False, 0)
    with pytest.raises(TypeError, match=r"^products: expected \(a, b, transpose_a, .*\)$"):
        _core.gemm_seconds([1], False, False, 1)  # type: ignore[list-item]
