"""Bad input ends in an exception that names the argument; the model is unchanged and works on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mom
from mom import MoMConfig
from mom.config import BEHAVIOUR_FIELDS, PRESETS
from mom.errors import ConfigError

CONFIG = MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, chunks=1, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru-softmax", router_dim=5,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 17, (3, 7))
ONES = np.ones((3, 7), int)


def changed(array: Any, at: tuple[int, ...], value: Any) -> np.ndarray:
    result = np.array(array)
    result[at] = value
    return result


def raises_and_leaves_intact(
    model: Any, good: Callable[[], Any], bad: Callable[[], Any], error: Any, match: str
) -> None:
    """`bad` raises; parameters, gradients and the results of `good` are what they were."""
    want = good()
    model.backward()
    before = {n: a.copy() for n, a in (*model.parameters.items(), *((f"d {n}", g) for n, g in model.gradients.items()))}
    with pytest.raises(error, match=match):
        bad()
    after = {**model.parameters, **{f"d {n}": g for n, g in model.gradients.items()}}
    assert all(np.array_equal(before[n], after[n]) for n in before)
    assert good() == want
    model.backward()


# ---------------------------------------------------------------------- arrays
TOKENS_AND_LABELS: list[tuple[Any, Any, str]] = [
    (TOKENS.astype(float), TypeError, "dtype float64, expected an integer dtype"),
    (TOKENS.astype(bool), TypeError, "dtype bool"),
    (TOKENS.astype(complex), TypeError, "dtype complex128"),
    (TOKENS.astype(str), TypeError, "dtype <U"),
    (TOKENS.astype(object), TypeError, "dtype object"),
    (None, (TypeError, ValueError), ""),
    ("a text", (TypeError, ValueError), ""),
    ({1: 2}, (TypeError, ValueError), ""),
    ([[1, 2], [3]], ValueError, "not an array"),
    ([], ValueError, r"shape \(0,\) is empty"),
    ([[]], ValueError, r"shape \(1, 0\) is empty"),
    (np.zeros((0, 7), int), ValueError, r"shape \(0, 7\) is empty"),
    (np.zeros((3, 0), int), ValueError, r"shape \(3, 0\) is empty"),
    (5, ValueError, r"shape \(\), expected \(B, T\)"),
    (TOKENS[None], ValueError, r"shape \(1, 3, 7\), expected \(B, T\)"),
    (changed(TOKENS, (1, 2), 17), ValueError, r"17 at position 9 is not in \[0, 17\)"),
    (changed(TOKENS, (2, 6), -1), ValueError, r"-1 at position 20 is not in \[0, 17\)"),
    (changed(TOKENS, (0, 0), 2**31), ValueError, "value 2147483648 does not fit 32 bits"),
    (changed(TOKENS, (0, 0), -(2**40)), ValueError, "value -1099511627776 does not fit 32 bits"),
    (changed(TOKENS.astype("u8"), (0, 0), 2**64 - 1), ValueError, "value 18446744073709551615 does not fit"),
    (changed(TOKENS, (0, 0), 2**31 - 1).astype(">i4"), ValueError, "2147483647 at position 0"),
    (changed(TOKENS, (0, 0), -(2**31)).astype("i4"), ValueError, "-2147483648 at position 0"),
]


@pytest.mark.parametrize(("value", "error", "message"), TOKENS_AND_LABELS)
def test_bad_tokens(value: Any, error: Any, message: str) -> None:
    model = mom.MoM(CONFIG)
    raises_and_leaves_intact(
        model, lambda: model(TOKENS, TOKENS).loss, lambda: model(value), error, f"^tokens: .*{message}"
    )


@pytest.mark.parametrize(("value", "error", "message"), [row for row in TOKENS_AND_LABELS if row[0] is not None])
@pytest.mark.parametrize("name", ["labels", "positions"])
def test_bad_labels_and_positions(name: str, value: Any, error: Any, message: str) -> None:
    model = mom.MoM(CONFIG)
    message = message.replace("17\\)", "1[07]\\)")
    if name == "positions" and "17 at position 9" in message:
        message = r"1\d at position \d+ is not in \[0, 10\)"
    elif name == "positions" and "at position" in message:
        value = np.where(np.asarray(value).astype("i8") > 16, value, np.minimum(value, 9))
    raises_and_leaves_intact(
        model, lambda: model(TOKENS, TOKENS).loss, lambda: model(TOKENS, **{"labels": TOKENS, name: value}), error,
        f"^{name}: .*{message}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"tokens": np.zeros((1, 11), int)}, ValueError, "tokens: sequences of 11 tokens, n_positions is 10"),
        ({"labels": TOKENS[:2]}, ValueError, r"labels: shape \(2, 7\), expected \(3, 7\) like tokens"),
        ({"labels": TOKENS[:, :6]}, ValueError, r"labels: shape \(3, 6\), expected \(3, 7\)"),
        ({"labels": TOKENS[0]}, ValueError, r"labels: shape \(1, 7\), expected \(3, 7\)"),
        ({"labels": changed(TOKENS, (0, 1), -99)}, ValueError, "labels: -99 at position 1"),
        ({"labels": changed(TOKENS, (0, 1), -101)}, ValueError, "labels: -101 at position 1"),
        ({"attention_mask": ONES[:2]}, ValueError, r"attention_mask: shape \(2, 7\), expected \(3, 7\) like tokens"),
        ({"attention_mask": ONES[0]}, ValueError, r"attention_mask: shape \(1, 7\)"),
        ({"attention_mask": ONES[:, None]}, ValueError, r"attention_mask: shape \(3, 1, 7\)"),
        ({"attention_mask": 2 * ONES}, ValueError, "attention_mask: values other than 0 and 1"),
        ({"attention_mask": -ONES}, ValueError, "attention_mask: values other than 0 and 1"),
        ({"attention_mask": 0.5 * ONES}, ValueError, "attention_mask: values other than 0 and 1"),
        ({"attention_mask": np.nan * ONES}, ValueError, "attention_mask: values other than 0 and 1"),
        ({"attention_mask": ONES.astype(str)}, TypeError, "attention_mask: dtype <U"),
        ({"attention_mask": ONES.astype(object)}, TypeError, "attention_mask: dtype object"),
        ({"attention_mask": [[1], [1, 1]]}, ValueError, "attention_mask: not an array"),
        ({"positions": changed(ONES, (0, 0), 10)}, ValueError, r"positions: 10 at position 0 is not in \[0, 10\)"),
        ({"positions": -ONES}, ValueError, "positions: -1 at position 0"),
        ({"positions": ONES[:, :3]}, ValueError, r"positions: shape \(3, 3\), expected \(3, 7\) like tokens"),
    ],
)
def test_bad_calls(call: dict[str, Any], error: type[Exception], message: str) -> None:
    model = mom.MoM(CONFIG)
    raises_and_leaves_intact(
        model, lambda: model(TOKENS, TOKENS).loss, lambda: model(**{"tokens": TOKENS, **call}), error, f"^{message}"
    )


@pytest.mark.parametrize(
    ("fields", "labels", "error", "message"),
    [
        ({"num_labels": 3}, [0, 1], ValueError, r"labels: shape \(2,\), expected \(3,\)"),
        ({"num_labels": 3}, [[0], [1], [2]], ValueError, r"labels: shape \(3, 1\), expected \(3,\)"),
        ({"num_labels": 3}, [0, 1, 3], ValueError, r"labels: 3 is not in \[0, 3\)"),
        ({"num_labels": 3}, [0, 1, -1], ValueError, "labels: -1 is not in"),
        ({"num_labels": 3}, [0, 1, 2**40], ValueError, "labels: 1099511627776 is not in"),
        ({"num_labels": 3}, ["a", "b", "c"], TypeError, "labels: dtype <U1"),
        ({"num_labels": 3}, [True, False, True], TypeError, "labels: dtype bool"),
        ({"num_labels": 3}, [[1], [2, 3]], ValueError, "labels: not an array"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, [0.0, 1.0, 2.0], TypeError, "labels: dtype"),
        ({"num_labels": 3}, [0.0, 1.0, 0.0], ValueError, r"labels: shape \(3,\), expected \(3, 3\)"),
        ({"num_labels": 1}, [0.0, 1.0], ValueError, r"labels: shape \(2,\), expected \(3, 1\)"),
        ({"num_labels": 1}, [0.0, 1.0, np.nan], ValueError, "labels: not all are finite"),
        ({"num_labels": 1}, [0.0, 1.0, 1e300], ValueError, "labels: not all are finite"),
        ({"num_labels": 2}, np.full((3, 2), np.inf), ValueError, "labels: not all are finite"),
    ],
)
def test_bad_labels_of_classifiers(fields: dict[str, Any], labels: Any, error: type[Exception], message: str) -> None:
    model = mom.MoMForSequenceClassification(CONFIG.replace(pad_token_id=0, **fields))
    right = [0, 0, 0] if fields == {"num_labels": 3} else np.zeros((3, fields["num_labels"]))
    if "problem_type" in fields:
        right = [0, 1, 2]
    raises_and_leaves_intact(
        model, lambda: model(TOKENS, right).loss, lambda: model(TOKENS, labels), error, f"^{message}"
    )


@pytest.mark.parametrize(
    ("scales", "error", "message"),
    [
        ((float("nan"),), ValueError, "lm_scale: nan is not a finite float32"),
        ((float("inf"),), ValueError, "lm_scale: inf"),
        ((1e300,), ValueError, "lm_scale: 1e\\+300"),
        ((1.0, float("-inf")), ValueError, "balance_scale: -inf"),
        (("1",), TypeError, "lm_scale: expected a number, got str"),
        ((1.0, [1.0]), TypeError, "balance_scale: expected a number, got list"),
        (([],), TypeError, "lm_scale: expected a number, got list"),
    ],
)
def test_bad_scales(scales: Any, error: type[Exception], message: str) -> None:
    model = mom.MoM(CONFIG)
    model(TOKENS, TOKENS)
    with pytest.raises(error, match=message):
        model.backward(*scales)
    assert not any(g.any() for g in model.gradients.values())
    model.backward()


@pytest.mark.parametrize(
    ("arguments", "scales", "error", "message"),
    [
        ((), [1], TypeError, "scales: expected a mapping .* numbers, got list; the terms are 'lm', 'balance'"),
        ((), 0.5, TypeError, "scales: expected a mapping from terms to numbers, got float"),
        ((), {"lm": 1.0, "ln": 1.0}, ValueError, "scales: unknown term 'ln'; the terms are 'lm', 'balance'"),
        ((), {1: 1.0}, ValueError, "scales: unknown term 1; the terms are"),
        ((), {"lm": "1"}, TypeError, r"scales\['lm'\]: expected a number, got str"),
        ((1.0,), {"lm": 0.5}, ValueError, "scales: cannot be combined with lm_scale"),
        ((None, 0.0), {"lm": 0.5}, ValueError, "scales: cannot be combined with balance_scale"),
    ],
)
def test_bad_mappings_of_scales(
    arguments: tuple[Any, ...], scales: Any, error: type[Exception], message: str
) -> None:
    model = mom.MoM(CONFIG)
    model(TOKENS, TOKENS)
    with pytest.raises(error, match=f"^{message}"):
        model.backward(*arguments, scales=scales)
    assert not any(g.any() for g in model.gradients.values())
    model.backward(scales={})


def test_parameters_that_are_not_finite_raise_nothing_in_forward() -> None:
    """NaN is a result like others here: the training loop decides what to do about it."""
    model = mom.MoM(CONFIG)
    good = model(TOKENS, TOKENS).loss
    for name in ("transformer.wte.weight", "transformer.h.1.mot_ffn.router.router.weight"):
        for value in (np.nan, np.inf, -np.inf, 1e38):
            kept = model.parameters[name].copy()
            model.parameters[name][...] = value
            out = model(TOKENS, TOKENS, return_logits=True, return_routes=True)
            model.backward()
            assert out.routes is not None
            assert all((index >= 0).all() and (index < 4).all() for index in out.routes.index.values())
            model.parameters[name] = kept
            model.zero_grad()
    assert model(TOKENS, TOKENS).loss == good


_ARRAYS = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=3), st.booleans(),
    st.recursive(
        st.integers(-5, 20) | st.sampled_from([2**31, 2**63, -(2**63), 2**70]),
        lambda inner: st.lists(inner, max_size=5), max_leaves=12,
    ),
    st.builds(
        lambda shape, dtype: np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).astype(dtype) % 17
        if dtype != "O" else np.zeros(shape, "O"),
        st.lists(st.integers(0, 4), max_size=4).map(tuple), st.sampled_from(["i1", "i8", ">i4", "u8", "f4", "O"]),
    ),
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(_ARRAYS, _ARRAYS, _ARRAYS, _ARRAYS)
def test_junk_in_calls(tokens: Any, labels: Any, mask: Any, positions: Any) -> None:
    model = _MODEL
    try:
        out = model(tokens, labels, mask, positions=positions)
    except (TypeError, ValueError) as error:
        assert re.match("tokens|labels|attention_mask|positions", str(error)), error
    else:
        assert (out.loss is None) == (labels is None)
    assert model(TOKENS, TOKENS).loss == _LOSS


_MODEL = mom.MoM(CONFIG)
_LOSS = _MODEL(TOKENS, TOKENS).loss


# ---------------------------------------------------------------------- configurations
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(({name: 0}, f"{name}: 0 is less than 1") for name in (
            "vocab_size", "n_positions", "n_embd", "n_head", "n_layer", "router_dim", "num_attn", "num_ffn", "n_inner",
            "num_labels",
        )),
        *(({name: -1}, f"{name}: -1 is less than 0") for name in (
            "chunks", "num_top_layers", "num_bottom_layers", "routing_top_k", "depth_per_chunk",
        )),
        *(({name: 2**24 + 1}, f"{name}: 16777217 is larger") for name in (
            "vocab_size", "n_positions", "n_embd", "router_dim", "n_inner", "num_labels",
        )),
        *(({name: 4097}, f"{name}: 4097 is larger") for name in (
            "num_attn", "num_ffn", "chunks", "num_top_layers", "num_bottom_layers", "n_layer",
        )),
        *(({name: value}, rf"{name}: {value} is not in \[0, 1\)")
          for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")
          for value in (1.0, -0.1, float("nan"), float("inf"))),
        *(({name: value}, f"{name}: .* is not a positive finite number") for name in (
            "layer_norm_epsilon", "router_softmax_temperature",
        ) for value in (0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60, 10**400)),
        *(({name: value}, f"{name}: .* is not a non-negative finite number") for name in (
            "initializer_range", "router_aux_loss_coef",
        ) for value in (-1.0, float("nan"), float("inf"), 1e60)),
        *(({"depth_multiplier": value}, "depth_multiplier: .* is not in") for value in (
            -1, float("nan"), float("inf"), 1e300, 10**400,
        )),
        *(({name: -1}, f"{name}: -1 is less than 0") for name in ("bos_token_id", "eos_token_id", "pad_token_id")),
        ({"n_head": 3}, "n_head: 3 does not divide n_embd = 8"),
        ({"activation_function": "relu"}, "activation_function: 'relu' is not one of 'gelu_new'"),
        ({"balance_loss": "none"}, "balance_loss: 'none'"),
        ({"balance_counts": "global"}, "balance_counts: 'global'"),
        ({"router_choices": ""}, "router_choices: ''"),
        ({"masked_query_attention": "x"}, "masked_query_attention: 'x'"),
        ({"pooling": "first"}, "pooling: 'first'"),
        ({"problem_type": "x"}, "problem_type: 'x'"),
        ({"router_type": "lstm"}, "router_type: 'lstm' names no kind of router, expected one of 'naive', "),
        ({"router_type": "softmax"}, "router_type: 'softmax'"),
        ({"router_type": "dev"}, "router_type: 'dev'"),
        ({"bind_ffn_attn": True}, "bind_ffn_attn: needs num_attn == num_ffn, got 2 and 3"),
        ({"depth_per_chunk": 65537}, "depth_per_chunk: 65537 rounds"),
        ({"depth_per_chunk": None, "depth_multiplier": 60000}, "depth_per_chunk: 180000 rounds"),
        ({"chunks": 4000, "num_ffn": 4000}, "chunks: .* modules in all"),
        ({"num_attn": 5, "router_type": "naive", "router_choices": "reference"}, "num_attn: 5 modules but .* only 4"),
        *(({name: "1"}, f"{name}: expected .*int.*, got str")
          for name in ("vocab_size", "n_inner", "routing_top_k")),
        ({"vocab_size": 1.0}, "vocab_size: expected int, got float 1.0"),
        ({"vocab_size": True}, "vocab_size: expected int, got bool"),
        ({"vocab_size": None}, "vocab_size: expected int, got NoneType"),
        ({"use_ste": 1}, "use_ste: expected bool, got int 1"),
        ({"resid_pdrop": "0"}, "resid_pdrop: expected float"),
        ({"router_type": None}, "router_type: expected str"),
        ({"activation_function": ["gelu_new"]}, "activation_function: expected str, got list"),
    ],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    values = {**dataclasses.asdict(CONFIG), **fields}
    with pytest.raises(ConfigError, match=f"^{message}"):
        MoMConfig(**values)
    with pytest.raises(ConfigError, match=f"^file.json: {message}"):
        MoMConfig.from_dict(values, "file.json")
    with pytest.raises(ConfigError, match=f"^{message}"):
        CONFIG.replace(**fields)


def test_rules_of_routing_bind_models_with_blocks_only() -> None:
    plain = MoMConfig.vanilla(2, router_type="x", bind_ffn_attn=True, num_attn=5, depth_per_chunk=10**9)
    assert plain.is_vanilla and plain.places() == ["anchor"] * 2


def test_unknown_fields() -> None:
    for make in (
        lambda: MoMConfig.from_dict({**dataclasses.asdict(CONFIG), "num_modules": 3}),
        lambda: CONFIG.replace(num_modules=3),
        lambda: MoMConfig.preset("mini", num_modules=3),
        lambda: MoMConfig.vanilla(2, num_modules=3),
    ):
        with pytest.raises(ConfigError, match="num_modules"):
            make()
    with pytest.raises(TypeError, match="num_modules"):
        MoMConfig(num_modules=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no preset 'huge'; there are albert, base"):
        MoMConfig.preset("huge")
    with pytest.raises(ConfigError, match="1: unknown configuration field"):
        MoMConfig.from_dict({1: 2, "a": 3})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="file: expected a mapping of fields, got list"):
        MoMConfig.from_dict([1], "file")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mom_format: 2 is not 1"):
        MoMConfig.from_dict({"mom_format": 2})


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.vocab_size = 3  # type: ignore[misc]


def test_gpt2_variants_that_would_compute_something_else_are_refused() -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 17, "n_embd": 8, "n_head": 2, "n_layer": 2}
    with pytest.raises(ConfigError, match="scale_attn_by_inverse_layer_idx"):
        MoMConfig.from_dict({**gpt2, "scale_attn_by_inverse_layer_idx": True})
    assert MoMConfig.from_dict({**gpt2, "scale_attn_by_inverse_layer_idx": False}).is_vanilla
    # The reference carries the field and forces it off.
    assert not MoMConfig.from_dict({**gpt2, "num_attn": 2, "scale_attn_by_inverse_layer_idx": True}).is_vanilla
    with pytest.raises(ConfigError, match="add_cross_attention"):
        MoMConfig.from_dict({**gpt2, "add_cross_attention": True})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_survive_a_file(name: str, tmp_path: Path) -> None:
    config = MoMConfig.preset(name)
    config.to_json(tmp_path / "config.json")
    assert MoMConfig.from_json(tmp_path) == config == MoMConfig.from_dict(config.to_dict())
    assert config.vanilla_config().is_vanilla


def test_a_file_without_own_fields_selects_the_reference() -> None:
    fields = {"vocab_size": 17, "n_embd": 8, "n_head": 2, "num_attn": 2, "num_ffn": 2}
    config = MoMConfig.from_dict(fields)
    assert all(getattr(config, name) == value for name, value in BEHAVIOUR_FIELDS.items())
    assert MoMConfig.from_dict({**fields, "mom_format": 1}).balance_loss == "switch"
    assert MoMConfig.from_dict({**fields, "pooling": "mask"}).balance_loss == "switch"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{'a': 1}", b"[" * 100_000, b'{"vocab_size": 1e400}',
        b'{"vocab_size": ' + b"9" * 5000 + b"}", b'{"vocab_size": NaN}', b'{"n_embd": 8, "n_head": 3}', b"\0" * 10,
    ],
    ids=range(14),
)  # fmt: skip
def test_bad_files(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        MoMConfig.from_json(path)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        MoMConfig.from_json(tmp_path)


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["gru", "naive-softmax", "switch", "reference", 0, 1, 2, 8, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
_KEYS = st.sampled_from(
    [f.name for f in dataclasses.fields(MoMConfig)]
    + ["mom_format", "id2label", "model_type", "n_ctx", "scale_attn_by_inverse_layer_idx"]
)  # fmt: skip


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.dictionaries(_KEYS | st.text(max_size=5), _JUNK, max_size=4), st.booleans())
def test_junk_in_configurations(values: dict[str, Any], complete: bool) -> None:
    """Either a valid configuration that survives a file, or a ConfigError."""
    try:
        config = MoMConfig.from_dict({**(CONFIG.to_dict() if complete else {}), **values})
    except ConfigError:
        return
    assert MoMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    small = (
        config.n_embd <= 64 and config.vocab_size <= 64 and config.n_positions <= 64 and config.inner_size <= 64
        and config.router_dim <= 64 and len(config.places()) <= 20 and config.num_attn + config.num_ffn <= 20
        and (config.is_vanilla or config.rounds <= 20) and (config.num_labels or 1) <= 64
    )  # fmt: skip
    if small:
        kind = mom.MoM if config.num_labels is None else mom.MoMForSequenceClassification
        kind(config)(np.zeros((1, 1), int))
