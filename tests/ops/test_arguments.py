"""Wrong arguments of `mom.ops`: the exception's type, and a message that names the argument, what came and what was
wanted. A rejected call changes nothing and leaks nothing."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from operators import make

from cases import CASES, cases_of
from mom import _core, ops

ONES = np.ones(8, dtype=np.float32)


def layernorm(inp: Any) -> Any:
    return ops.layernorm_forward(inp, ONES, ONES)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64, bool, object])
def test_wrong_dtype_names_the_argument_and_both_dtypes(dtype: Any) -> None:
    with pytest.raises(TypeError, match=rf"^inp: dtype {np.dtype(dtype)}, expected float32$"):
        layernorm(np.zeros((2, 8), dtype=dtype))


def test_list_is_not_taken_for_an_array() -> None:
    with pytest.raises(TypeError, match="^inp: list, expected an ndarray of float32$"):
        layernorm([[0.0] * 8])


def test_wrong_shape_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"^weight: shape \(8,\), expected \(5,\)$"):
        layernorm(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(ValueError, match=r"^inp: shape \(\), expected \(\.\.\., C\)$"):
        layernorm(np.zeros((), dtype=np.float32))
    with pytest.raises(ValueError, match=r"^qkv: shape \(2, 3\), expected \(B, T, 3C\)$"):
        ops.attention_forward(np.zeros((2, 3), dtype=np.float32), 1)
    with pytest.raises(ValueError, match=r"^qkv: shape \(1, 2, 4\), expected \(B, T, 3C\)$"):
        ops.attention_forward(np.zeros((1, 2, 4), dtype=np.float32), 1)
    with pytest.raises(ValueError, match=r"^dout: shape \(2, 3\), expected \(3, 2\)$"):
        ops.gelu_backward(np.zeros((2, 3), dtype=np.float32), np.zeros((3, 2), dtype=np.float32))


def test_an_array_without_dimensions_has_no_leading_ones() -> None:
    for operator in (ops.gelu_forward, ops.ste_forward):
        result = operator(np.array(0.5, np.float32))
        assert result.shape == () and result > 0


def test_wrong_byte_order_is_named() -> None:
    with pytest.raises(ValueError, match="^inp: is not in native byte order$"):
        layernorm(np.zeros((2, 8), dtype=np.dtype(np.float32).newbyteorder()))


def test_non_contiguous_is_named() -> None:
    for array in (np.zeros((8, 2), dtype=np.float32).T, np.zeros((2, 16), dtype=np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="^inp: is not C-contiguous"):
            layernorm(array)


def test_unaligned_is_named() -> None:
    unaligned = np.zeros(8 * 4 + 1, dtype=np.uint8)[1:].view(np.float32).reshape(1, 8)
    with pytest.raises(ValueError, match="^inp: is not aligned"):
        layernorm(unaligned)


def test_four_byte_alignment_is_enough(kernel_level: str, rng: np.random.Generator) -> None:
    values = rng.standard_normal((5, 8), dtype=np.float32)
    shifted = np.empty(41, dtype=np.float32)[1:].reshape(5, 8)
    shifted[...] = values
    assert layernorm(shifted)[0].tobytes() == layernorm(values)[0].tobytes()
    assert ops.gemm(shifted, values, transpose_b=True).tobytes() == ops.gemm(values, values, transpose_b=True).tobytes()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_every_integer_dtype_gives_the_same(dtype: Any, rng: np.random.Generator) -> None:
    wte, wpe = rng.standard_normal((9, 4), dtype=np.float32), rng.standard_normal((5, 4), dtype=np.float32)
    tokens = rng.integers(0, 9, (3, 5))
    expected = wte[tokens] + wpe
    swapped = tokens.astype(np.dtype(dtype).newbyteorder())
    for form in (tokens.astype(dtype), swapped, np.asfortranarray(tokens.astype(dtype)), tokens.tolist()):
        assert np.array_equal(ops.embedding_forward(form, wte, wpe), expected)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 9]], r"^tokens: value 9, expected \[0, 9\)$"),
        ([[-1, 0]], r"^tokens: value -1, expected \[0, 9\)$"),
        (np.array([[2**63 + 5]], dtype=np.uint64), rf"^tokens: value {2**63 + 5}, expected \[0, 9\)$"),
        (np.array([[2**40]]), rf"^tokens: value {2**40}, expected \[0, 9\)$"),
    ],
)
def test_token_out_of_range_is_named(tokens: Any, message: str) -> None:
    table = np.zeros((9, 4), dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        ops.embedding_forward(tokens, table, table)


@pytest.mark.parametrize("tokens", [[[0.5, 1.0]], [["a", "b"]], [[True, False]], [[None, 1]]])
def test_tokens_that_are_no_integers_are_refused(tokens: Any) -> None:
    table = np.zeros((9, 4), dtype=np.float32)
    with pytest.raises(TypeError, match="^tokens: dtype .*, expected integers$"):
        ops.embedding_forward(np.array(tokens), table, table)


def test_labels_may_be_ignored_but_not_otherwise_negative() -> None:
    logits = np.zeros((2, 3), dtype=np.float32)
    loss, _ = ops.cross_entropy_forward(logits, [-100, 2])
    assert loss[0] == 0.0 and np.isclose(loss[1], np.log(3.0))
    with pytest.raises(ValueError, match=r"^labels: value -1, expected \[0, 3\) or -100$"):
        ops.cross_entropy_forward(logits, [-1, 2])


def test_unsigned_labels_near_the_top_are_not_taken_for_the_ignored_label() -> None:
    logits = np.zeros((1, 3), dtype=np.float32)
    for label in (2**64 - 100, 2**64 - 1, 2**63):
        with pytest.raises(ValueError, match=rf"^labels: value {label}, expected \[0, 3\) or -100$"):
            ops.cross_entropy_forward(logits, np.array([label], dtype=np.uint64))


def test_an_empty_table_has_no_row_zero() -> None:
    with pytest.raises(ValueError, match=r"^tokens: value 0, expected \[0, 0\)$"):
        ops.embedding_forward([[0]], np.zeros((0, 4), np.float32), np.zeros((1, 4), np.float32))


def test_empty_widths_are_named() -> None:
    none, some = np.zeros((3, 0), dtype=np.float32), np.zeros((4, 0), dtype=np.float32)
    with pytest.raises(ValueError, match=r"^hidden: shape \(3, 0\), expected \(N, C\) with C at least 1$"):
        ops.lm_head_loss(none, some, [0, 1, 2])
    with pytest.raises(ValueError, match=r"^scores: shape \(3, 0\), expected \(N, S\) with S at least 1$"):
        ops.balance_loss([none])
    with pytest.raises(ValueError, match=r"^inp: shape \(3, 0\), expected \(\.\.\., C\) with C at least 1$"):
        ops.layernorm_stats(none)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_dropout_out_of_range_is_named(p: float) -> None:
    with pytest.raises(ValueError, match=r"^dropout: .*, expected \[0, 1\)$"):
        ops.dropout(ONES, p)


def test_other_values_are_checked() -> None:
    qkv, scores = np.zeros((1, 2, 12), dtype=np.float32), np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="^num_heads: 3, expected a divisor of C = 4$"):
        ops.attention_forward(qkv, 3)
    with pytest.raises(ValueError, match="^num_heads: 0, "):
        ops.attention_forward(qkv, 0)
    with pytest.raises(ValueError, match="^masked_query: 'future', "):
        ops.attention_forward(qkv, 1, masked_query="future")
    with pytest.raises(ValueError, match=r"^mask: shape \(2,\), expected \(1, 2\)$"):
        ops.attention_forward(qkv, 1, mask=[1, 1])
    with pytest.raises(ValueError, match="^temperature: "):
        ops.router_scores_forward(scores, 0.0)
    with pytest.raises(ValueError, match="^k: 4, expected 0 to 3$"):
        ops.topk_forward(scores, 4)
    with pytest.raises(ValueError, match=r"^index: value 3, expected \[0, 3\)$"):
        ops.topk_backward(scores[:, :1].copy(), [[3], [0]], scores[:, :1].copy(), scores)
    with pytest.raises(ValueError, match="^index: token 1 chooses module 0 twice$"):
        ops.routing_plan([[0, 1], [0, 0]], 2)
    with pytest.raises(ValueError, match=r"^index: value -1, "):
        ops.routing_plan([[-1]], 2)
    with pytest.raises(TypeError, match="^plan: int, expected a RoutingPlan$"):
        ops.routed_slot_scale(scores, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^n: -1 is negative$"):
        ops.random_uniform(0, 0, 0, -1)
    with pytest.raises(ValueError, match="^grads: 0 entries, expected 1$"):
        ops.adamw_step([ONES], [], [ONES], [ONES], [0])
    with pytest.raises(ValueError, match=r"^grads: entry 0 has shape \(1, 8\), expected \(8,\)$"):
        ops.adamw_step([ONES], [ONES[None]], [ONES], [ONES], [0])
    for name, setting in (
        ("lr", {"lr": np.inf}), ("betas", {"betas": (0.9, 1.0)}), ("betas", {"betas": (-0.1, 0.9)}),
        ("eps", {"eps": 0.0}), ("eps", {"eps": 1e-40}), ("lr, weight_decay", {"weight_decay": np.nan}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}"):
            ops.adamw_step([ONES], [ONES], [ONES], [ONES], [0], **setting)
    for step in (-1, np.nan):
        with pytest.raises(ValueError, match="^steps: entry 0 is negative or not a number$"):
            ops.adamw_step([ONES], [ONES], [ONES], [ONES], [step])
    for norm in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="^max_norm: expected a positive number$"):
            ops.clip_grad_norm([ONES], norm)
    for eps in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="^eps: expected a non-negative finite number$"):
            ops.layernorm_forward(ONES[None], ONES, ONES, eps)
        with pytest.raises(ValueError, match="^eps: expected a non-negative finite number$"):
            ops.layernorm_stats(ONES[None], eps)
    with pytest.raises(TypeError, match="^add_to: expected a tuple of 3 arrays"):
        ops.layernorm_backward(ONES[None], ONES[None], ONES, ONES[:1], ONES[:1], add_to=(None,))


def test_lists_may_change_while_their_items_are_read() -> None:
    def emptied_by(values: list[int], *lists: list[Any]) -> Any:
        class Rows:
            def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
                for each in lists:
                    each.clear()
                gc.collect()
                return np.array(values)

        return Rows()

    products: list[Any] = []
    for _ in range(3):
        a, b = np.full((40, 30), 2.0, np.float32), np.full((30, 50), 3.0, np.float32)
        products.append((a, b, 0, 0, emptied_by(list(range(40)), products), None, None, None, None))
        del a, b
    results = _core.gemm(products, False, False)
    assert not products and len(results) == 3 and all(np.all(r == 180.0) for r in results)

    grads, first, second = ([np.ones(1000, np.float32)] for _ in range(3))
    params = [np.ones(1000, np.float32)]
    kept = params[0]
    used = emptied_by([1], params, grads, first, second)
    steps = _core.adamw_step(params, grads, first, second, np.zeros(1), None, used, 0.1, 0.9, 0.95, 1e-5, 0.0, 1.0)
    assert not params and steps.tolist() == [1.0] and np.all(kept < 1.0)


def test_routing_plan_cannot_be_made_or_changed_by_hand() -> None:
    with pytest.raises(TypeError):
        ops.RoutingPlan()
    plan = ops.routing_plan([[0], [1]], 2)
    with pytest.raises(ValueError, match="read-only"):
        plan.token[0] = 1
    with pytest.raises(AttributeError):
        plan.token = plan.slot  # type: ignore[misc]


@pytest.mark.parametrize("name", CASES)
def test_every_array_argument_is_checked(name: str, rng: np.random.Generator) -> None:
    """Each floating point input in turn: of another dtype, with one more dimension, with strides."""
    if name == "adamw":
        pytest.skip("takes lists, checked above")
    case = cases_of(name, "odd", "small")[0]
    operator = make(case, rng)
    held = _core.memory_live_bytes()
    unused = {"gemm": {"bias"}, "column_sum": {"scale", "rows"}}.get(name, set())
    for key, array in operator.inputs.items():
        if array.dtype != np.float32 or key in unused or (name == "router" and "stat" in key):
            continue
        wrong = {**operator.inputs, key: array.astype(np.float64)}
        with pytest.raises(TypeError, match="dtype float64, expected float32"):
            operator.run(**wrong)
        if name not in ("gelu", "dropout", "ste"):
            with pytest.raises(ValueError, match=r": shape \(|has shape"):
                operator.run(**{**operator.inputs, key: array[None, None]})
        if array.size > 1:
            strided = np.repeat(array, 2, axis=-1)[..., ::2]
            with pytest.raises(ValueError, match="is not C-contiguous"):
                operator.run(**{**operator.inputs, key: strided})
    assert _core.memory_live_bytes() == held


def test_core_callables_carry_text_signatures() -> None:
    for name in dir(_core):
        member = getattr(_core, name)
        if callable(member) and not isinstance(member, type):
            assert member.__text_signature__, name
            assert member.__doc__, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: ops.linear_forward(a, a, out_in="no"), "^out_in: str, expected True or False$"),
        (lambda a: ops.topk_forward(a, True), "^k: bool, expected an integer$"),
        (lambda a: ops.gelu_forward(True), "^inp: bool"),
        (lambda a: ops.dropout(a, True), "^p: bool, expected a number$"),
        (lambda a: ops.gemm_grouped([a]), "^products: expected GemmProduct, got ndarray$"),
        (lambda a: ops.router_forward(a, (a, a), "gru"), "^weights: expected RouterTensors, got tuple$"),
    ],
)
def test_flags_numbers_and_tensors_are_not_mixed_up(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(np.ones((2, 2), np.float32))


def test_an_id_for_an_empty_table_is_refused() -> None:
    none = np.zeros((0, 8), np.float32)
    with pytest.raises(ValueError, match=r"^tokens: value 0, expected \[0, 0\)$"):
        ops.embedding_forward([0], none, np.zeros((1, 8), np.float32))
    with pytest.raises(ValueError, match=r"^tokens: value 0, expected \[0, 0\)$"):
        ops.embedding_backward(np.ones((1, 8), np.float32), [0], 0, 1)
    with pytest.raises(ValueError, match=r"^rows: value 0, expected \[0, 0\)$"):
        ops.column_sum(none, rows=[0])
    with pytest.raises(ValueError, match="with C at least 1$"):
        ops.lm_head_gradient(np.zeros((5, 0), np.float32), np.zeros((4, 0), np.float32), [0] * 5)
