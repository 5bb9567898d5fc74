"""Packed rows: what a padded batch gives for its real tokens, without the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mom
from kinds import NOISELESS_ROUTERS
from mom.analysis import module_use, token_paths
from mom.config import MoMConfig
from mom.errors import ConfigError
from padding import padded
from route_entries import entries

CONFIG: dict[str, Any] = {
    "vocab_size": 97, "n_positions": 40, "n_embd": 48, "n_head": 3, "n_layer": 2, "chunks": 1, "num_attn": 3,
    "num_ffn": 3, "depth_per_chunk": 2, "num_bottom_layers": 1, "num_top_layers": 0, "require_anchor_layer": False,
    "router_dim": 16, "router_type": "gru-softmax", "routing_top_k": 2, "router_aux_loss_coef": 0.3,
}  # fmt: skip
LENGTHS = (5, 1, 40, 12, 13, 33, 2)

CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    **{
        f"{router} top-{k}, {rounds} rounds": (
            {"router_type": router, "routing_top_k": k, "depth_per_chunk": rounds}, LENGTHS
        )
        for router in NOISELESS_ROUTERS  # noise depends on the row of the batch; tests with the twin cover it
        for k in (1, 2)
        for rounds in (1, 3)
    },
    "plain GPT-2": ({"chunks": 0, "n_layer": 2}, LENGTHS),
    "single tokens": ({}, (1, 1, 1)),
    "one sequence": ({}, (17,)),
    "one token": ({}, (1,)),
    "around tiles": ({"n_positions": 130}, (127, 128, 129, 96, 95, 97, 1)),
    "heads of 9": ({"n_embd": 27, "n_head": 3, "n_inner": 31}, LENGTHS),
    "heads of 80": ({"n_embd": 160, "n_head": 2}, LENGTHS),
    "weighted, depthwise": ({"weighted_qkv": True, "depthwise_bal_loss": True, "chunks": 2}, LENGTHS),
    "all paths, signs": ({"routing_all_possible_path": True, "use_ste": True, "num_attn": 2}, LENGTHS),
    "step counts": ({"balance_counts": "step", "balance_loss": "switch"}, LENGTHS),
    "reference's queries": ({"masked_query_attention": "reference"}, LENGTHS),
    "regression": ({"num_labels": 1}, LENGTHS),
    "three classes": ({"num_labels": 3}, LENGTHS),
    "several labels": ({"num_labels": 3, "problem_type": "multi_label_classification"}, LENGTHS),
    "plain classifier": ({"num_labels": 2, "chunks": 0, "n_layer": 2}, LENGTHS),
}  # fmt: skip


class Setting:
    """A model whose routes are clear of rounding, rows, and labels for either form of the batch."""

    def __init__(self, changes: dict[str, Any], lengths: tuple[int, ...], dtype: str = "float32") -> None:
        self.config = MoMConfig(**{**CONFIG, **changes})
        rng = np.random.default_rng(7)
        self.rows = [rng.integers(0, self.config.vocab_size, n) for n in lengths]
        self.lengths, self.dtype = lengths, dtype
        count = self.config.num_labels
        self.classes: Any = None
        if count is not None:
            self.classes = rng.random((len(lengths), count))
            if count > 1 and self.config.problem_type is None:
                self.classes = rng.integers(0, count, len(lengths))

    def model(self) -> Any:
        kind = mom.MoM if self.config.num_labels is None else mom.MoMForSequenceClassification
        made = kind(self.config, seed=1, dtype=self.dtype)
        rng = np.random.default_rng(3)
        for value in made.parameters.values():
            value += 0.15 * rng.standard_normal(value.shape).astype(np.float32)
        return made

    def packed(self) -> dict[str, Any]:
        tokens = np.concatenate(self.rows)
        labels = tokens if self.classes is None else self.classes
        return {"tokens": tokens, "labels": labels, "lengths": self.lengths}

    def padded(self, side: str) -> tuple[dict[str, Any], np.ndarray]:
        """The call, and where its real tokens are."""
        tokens, mask, positions = padded(self.rows, side, fill=11)
        labels = self.classes
        if labels is None:
            labels = np.where((mask == 1) & (positions > 0), tokens, -100)
        return {"tokens": tokens, "labels": labels, "attention_mask": mask, "positions": positions}, mask == 1


def run(model: Any, call: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    out = model(**call, return_logits=True, return_routes=True)
    if np.isfinite(out.loss):
        model.backward()
    gradients = {name: value.copy() for name, value in model.gradients.items()}
    model.zero_grad()
    return out, gradients


def check_gradients(have: dict[str, np.ndarray], want: dict[str, np.ndarray], dtype: str, what: str) -> None:
    """Gradients are sums over tokens: zeros of the padding lie between them, and where a sum is cut differs. In
    bfloat16 what is stored between operators may then round the other way."""
    total = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in want.values()))
    for key, value in want.items():
        difference = float(np.linalg.norm((have[key] - value).astype(np.float64)))
        allowed = (1e-5 if dtype == "float32" else 1e-3) * max(float(np.linalg.norm(value)), 1e-2 * total)
        assert difference <= allowed, f"{what}: {key}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_packed_rows_equal_padded_ones(name: str, dtype: str, kernel_level: str) -> None:
    setting = Setting(*CASES[name], dtype)
    model = setting.model()
    packed, gradients = run(model, setting.packed())
    classifier = setting.config.num_labels is not None
    assert len(packed.logits) == (len(setting.lengths) if classifier else sum(setting.lengths))
    for side in ("right", "left"):
        call, real = setting.padded(side)
        want, expected = run(model, call)
        assert want.num_labelled == packed.num_labelled
        assert packed.losses.keys() == want.losses.keys()
        for term, loss in {**want.losses, "joint": want.loss}.items():
            have = packed.loss if term == "joint" else packed.losses[term]
            np.testing.assert_allclose(have, loss, rtol=1e-6, err_msg=f"{side}: {term}")
        # A row of a product, its routes included, does not depend on the rows beside it: the very same numbers.
        assert np.array_equal(packed.logits, want.logits if classifier else want.logits[real])
        for have, wanted in zip(entries(packed.routes), entries(want.routes), strict=True):
            for key, value in have.items():
                assert np.array_equal(value, wanted[key][real]), f"{side}: {key}"
        check_gradients(gradients, expected, dtype, side)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gru-softmax top-2, 3 rounds", "naive top-1, 1 rounds", "plain GPT-2", "around tiles",
                                  "three classes"])  # fmt: skip
def test_bits_do_not_depend_on_the_number_of_threads(name: str, dtype: str, kernel_level: str) -> None:
    changes, lengths = CASES[name]
    setting = Setting({**changes, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}, lengths, dtype)
    found = []
    for threads in (1, 2, 3):
        mom.set_num_threads(threads)
        model = setting.model()
        model.train()
        out, gradients = run(model, setting.packed())
        arrays = [out.logits, *(a for entry in entries(out.routes) for a in entry.values()), *gradients.values()]
        found.append((out.loss, [a.tobytes() for a in arrays]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["gru-softmax top-2, 3 rounds", "plain GPT-2", "three classes", "weighted, depthwise"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_memory_held_before_is_not_read(name: str, dtype: str, kernel_level: str) -> None:
    """A model whose memory is full of NaN gives the bits of a new one, packed and padded."""
    setting = Setting(*CASES[name], dtype)
    used = setting.model()
    good = {key: value.copy() for key, value in used.parameters.items()}
    positions = setting.config.n_positions
    tokens = np.zeros((12, positions), int)
    labels = tokens if setting.classes is None else np.resize(setting.classes, (12, *setting.classes.shape[1:]))
    for value in used.parameters.values():
        value[...] = np.nan
    assert np.isnan(used(tokens, labels, np.ones_like(tokens)).loss)
    used.backward()
    for key, value in used.parameters.items():
        value[...] = good[key]
    used.zero_grad()
    for call in (setting.packed(), setting.padded("left")[0], setting.padded("right")[0]):
        out, gradients = run(used, call)
        want, expected = run(setting.model(), call)
        assert out.loss == want.loss and np.array_equal(out.logits, want.logits)
        for key, value in expected.items():
            assert np.isfinite(value).all() and np.array_equal(gradients[key], value), key


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["gru-softmax top-2, 3 rounds", "naive top-1, 3 rounds", "plain GPT-2",
                                  "three classes"])  # fmt: skip
def test_padding_may_be_nan(name: str, side: str, kernel_level: str) -> None:
    """Padding whose embedding is NaN changes nothing of what real tokens and losses are."""
    changes, lengths = CASES[name]
    setting = Setting(changes, lengths)
    setting.rows = [row % 96 for row in setting.rows]
    call, real = setting.padded(side)
    call["tokens"][~real] = 96
    model = setting.model()
    wte = model.parameters["transformer.wte.weight"]
    packed = model(**setting.packed(), return_logits=True, return_routes=True)
    wte[96] = np.nan
    out = model(**call, return_logits=True, return_routes=True)
    if setting.config.num_labels is not None:
        assert np.array_equal(out.logits, packed.logits)
        assert out.loss == packed.loss
        return
    # The tied head has a column of NaN, which the losses see: those are taken from the other columns.
    assert np.array_equal(out.logits[real][:, :96], packed.logits[:, :96])
    assert out.balance_loss == packed.balance_loss
    for have, wanted in zip(entries(out.routes), entries(packed.routes), strict=True):
        for key, value in have.items():
            assert np.array_equal(value[real], wanted[key]), key


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gru-softmax top-2, 3 rounds", "naive top-1, 3 rounds", "plain GPT-2", "step counts",
                                  "weighted, depthwise", "all paths, signs", "reference's queries", "three classes",
                                  "plain classifier"])  # fmt: skip
def test_positions_of_padding_alone_reach_no_gradient(
    name: str, dtype: str, side: str, bad: float, kernel_level: str
) -> None:
    """A position that only padding has may be anything: gradients are those of a finite one, its own is zero."""
    changes, lengths = CASES[name]
    drops = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    setting = Setting({"n_positions": 41, **changes, **drops}, lengths, dtype)
    call, real = setting.padded(side)
    call["positions"] = np.where(real, call["positions"], 40)
    found = []
    for value in (0.5, bad):
        model = setting.model()
        model.train()
        model.parameters["transformer.wpe.weight"][40] = value
        found.append(run(model, call))
    (want, expected), (have, gradients) = found
    assert np.isfinite(want.loss) and have.loss == want.loss and have.losses == want.losses
    check_gradients(gradients, expected, dtype, side)  # the padding's routes are others, and so where sums are cut
    assert not gradients["transformer.wpe.weight"][40].any()
    if setting.config.num_labels is None:
        assert np.array_equal(have.logits[real], want.logits[real])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_that_is_scored_is_not_hidden(side: str) -> None:
    setting = Setting({"n_positions": 41}, LENGTHS)
    call, real = setting.padded(side)
    call["positions"] = np.where(real, call["positions"], 40)
    call["labels"] = call["tokens"]
    model = setting.model()
    model.parameters["transformer.wpe.weight"][40] = np.nan
    assert np.isnan(model(**call).loss)


def test_routes_know_their_rows() -> None:
    setting = Setting({}, (3, 1, 5))
    model = setting.model()
    routes = model(**setting.packed(), return_routes=True).routes
    alone = [model(row[None], return_routes=True).routes for row in setting.rows]
    for b, own in enumerate(alone):
        for have, want in zip(entries(routes), entries(own), strict=True):
            assert np.array_equal(routes.of_row(have["index"], b), own.of_row(want["index"], 0))
        assert token_paths(routes, b) == token_paths(own)
    for half, use in module_use(routes).items():
        of_rows = [module_use(own)[half].share for own in alone]
        np.testing.assert_allclose(use.share, np.average(of_rows, axis=0, weights=setting.lengths))


TOKENS = np.arange(9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"lengths": [4, 4]}, ValueError, "lengths: sum 8, expected 9 like tokens"),
        ({"lengths": [4, 6]}, ValueError, "lengths: sum 10, expected 9 like tokens"),
        ({"lengths": [4, 0, 5]}, ValueError, r"lengths: 0 at position 1 is not in \[1, 40\] \(n_positions\)"),
        ({"lengths": [4, -1, 6]}, ValueError, "lengths: -1 at position 1 is not in"),
        ({"tokens": np.zeros(41, int), "lengths": [41]}, ValueError, "lengths: 41 at position 0 is not in"),
        ({"lengths": [9], "positions": np.zeros(9, int) + 40}, ValueError, "positions: 40 at position 0 is not in"),
        ({"lengths": [10], "positions": TOKENS}, ValueError, r"lengths: 10 at position 0 is not in \[1, 9\] \(tokens"),
        ({"lengths": []}, ValueError, r"lengths: shape \(0,\) is empty"),
        ({"lengths": 9}, ValueError, r"lengths: shape \(\), expected \(B,\)"),
        ({"lengths": [[9]]}, ValueError, r"lengths: shape \(1, 1\), expected \(B,\)"),
        ({"lengths": [9.0]}, TypeError, "lengths: dtype float64, expected an integer dtype"),
        ({"lengths": [2**32 + 9]}, ValueError, "lengths: value 4294967305 does not fit 32 bits"),
        ({"lengths": [2**31 - 1] * 3}, ValueError, "lengths: 2147483647 at position 0 is not in"),
        ({"tokens": TOKENS[None], "lengths": [9]}, ValueError, r"tokens: shape \(1, 9\), expected \(N,\)"),
        ({"tokens": TOKENS[:0], "lengths": [9]}, ValueError, r"tokens: shape \(0,\) is empty"),
        ({"tokens": TOKENS + 90, "lengths": [9]}, ValueError, "tokens: 97 at position 7 is not in"),
        ({"lengths": [9], "labels": TOKENS[:8]}, ValueError, r"labels: shape \(8,\), expected \(9,\) like tokens"),
        ({"lengths": [9], "labels": TOKENS[None]}, ValueError, r"labels: shape \(1, 9\), expected \(N,\)"),
        ({"lengths": [9], "positions": TOKENS[:8]}, ValueError, r"positions: shape \(8,\), expected \(9,\)"),
        ({"lengths": [9], "attention_mask": np.ones(9)}, ValueError, "attention_mask: packed rows have no padding"),
    ],
)
def test_bad_calls_name_the_argument(call: dict[str, Any], error: type[Exception], message: str) -> None:
    model = mom.MoM(MoMConfig(**CONFIG))
    before = model(TOKENS, TOKENS, lengths=[4, 5]).loss
    with pytest.raises(error, match=f"^{message}"):
        model(**{"tokens": TOKENS, **call})
    assert model(TOKENS, TOKENS, lengths=[4, 5]).loss == before


def test_bad_calls_of_a_classifier() -> None:
    model = mom.MoMForSequenceClassification(MoMConfig(**CONFIG, num_labels=3))
    with pytest.raises(ValueError, match=r"labels: shape \(9,\), expected \(2,\)"):
        model(TOKENS, TOKENS % 3, lengths=[4, 5])
    with pytest.raises(ValueError, match="attention_mask: packed rows have no padding"):
        model(TOKENS, [0, 1], np.ones(9), lengths=[4, 5])
    before_padding = mom.MoMForSequenceClassification(MoMConfig(**CONFIG, num_labels=3, pooling="reference"))
    with pytest.raises(ConfigError, match="pooling: 'reference' looks for padding; packed rows need 'mask'"):
        before_padding(TOKENS, [0, 1], lengths=[4, 5])


def test_given_positions_are_used() -> None:
    setting = Setting({}, (3, 4))
    model = setting.model()
    positions = np.concatenate([np.arange(5, 8), np.arange(30, 34)])
    found = model(np.concatenate(setting.rows), lengths=(3, 4), positions=positions, return_logits=True).logits
    for row, part, at in zip(setting.rows, np.split(found, [3]), np.split(positions, [3]), strict=True):
        assert np.array_equal(model(row, positions=at, return_logits=True).logits[0], part)
