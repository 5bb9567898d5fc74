"""Parameters, gradients and optimizer state are views of the core's memory: writable, complete, and kept alive."""

from __future__ import annotations

import gc
import html.parser
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import _core, reference
from mom.files.names import canonical_names

CONFIG = mom.MoMConfig(
    vocab_size=17, n_positions=8, n_embd=8, n_head=2, chunks=2, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False, router_type="gru", router_dim=5, routing_top_k=2,
)  # fmt: skip
CONFIGS = {
    "blocks": CONFIG,
    "naive": CONFIG.replace(router_type="naive", require_anchor_layer=True, num_top_layers=2),
    "noise": CONFIG.replace(router_type="gru-random"),
    "single halves": CONFIG.replace(num_attn=1, num_ffn=1),
    "plain": mom.MoMConfig.vanilla(2, vocab_size=17, n_positions=8, n_embd=8, n_head=2),
}
TOKENS = np.random.default_rng(0).integers(0, 17, (2, 6))


@pytest.mark.parametrize("name", CONFIGS)
def test_mappings_are_complete_and_in_canonical_order(name: str) -> None:
    config = CONFIGS[name]
    model = mom.MoM(config)
    names = canonical_names(config)
    assert list(model.parameters) == list(model.gradients) == list(names) == list(reference.parameter_shapes(config))
    for key, shape in names.items():
        for array in (model.parameters[key], model.gradients[key]):
            assert array.shape == shape and array.dtype == np.float32
            assert (
                array.flags.writeable and array.flags.c_contiguous and array.flags.aligned and not array.flags.owndata
            )
    assert model.num_parameters == sum(a.size for a in model.parameters.values())
    assert len(model.parameters) == len(names) and "lm_head.weight" not in model.parameters
    assert list(model.has_gradient) == list(names) and not any(model.has_gradient.values())


def test_classifier_has_its_head() -> None:
    model = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=3))
    assert list(model.parameters)[-1] == "score.weight" and model.parameters["score.weight"].shape == (3, 8)


def test_fresh_values_follow_gpt2() -> None:
    config = mom.MoMConfig(
        vocab_size=500, n_positions=64, n_embd=64, n_head=2, n_layer=8, chunks=1, num_attn=2, num_ffn=2,
        depth_per_chunk=1, num_bottom_layers=1, num_top_layers=0, require_anchor_layer=False,
    )  # fmt: skip
    for name, value in mom.MoM(config, seed=3).parameters.items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "ln_" in name or "layernorm" in name:
            assert (value == 1).all(), name
        else:
            anchor_output = name.startswith("transformer.h.0") and "c_proj" in name
            std = 0.02 / 4 if anchor_output else 0.02
            assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), name
            assert abs(value.mean()) < 5 * std / np.sqrt(value.size), name


def test_seed_decides_the_fresh_values() -> None:
    a, b, c = mom.MoM(CONFIG, seed=1), mom.MoM(CONFIG, seed=1), mom.MoM(CONFIG, seed=2)
    assert all(np.array_equal(a.parameters[n], b.parameters[n]) for n in a.parameters)
    assert not np.array_equal(a.parameters["transformer.wte.weight"], c.parameters["transformer.wte.weight"])


def test_what_python_writes_the_core_computes_with() -> None:
    model = mom.MoM(CONFIG, seed=1)
    before = model(TOKENS, TOKENS).lm_loss
    view = model.parameters["transformer.h.1.mot_ffn.c_proj.0.weight"]
    kept = view.copy()
    view += 0.5
    assert model(TOKENS, TOKENS).lm_loss != before
    view[...] = kept
    assert model(TOKENS, TOKENS).lm_loss == before
    model.parameters["transformer.wte.weight"] = np.zeros((17, 8))
    assert model(TOKENS, TOKENS).lm_loss == pytest.approx(np.log(17), rel=1e-6)


def test_what_the_core_writes_python_sees() -> None:
    model = mom.MoM(CONFIG, seed=1)
    parameter, gradient = model.parameters["transformer.wte.weight"], model.gradients["transformer.wte.weight"]
    before = parameter.copy()
    model(TOKENS, TOKENS)
    model.backward()
    assert gradient.any()
    mom.AdamW(model, lr=0.1).step()
    assert not np.array_equal(parameter, before)
    model.zero_grad()
    assert not gradient.any()


def test_gradients_written_by_hand_reach_the_optimizer() -> None:
    model = mom.MoM(CONFIG, seed=1)
    name = "transformer.h.1.mot_attn.c_attn.1.weight"
    before = {n: a.copy() for n, a in model.parameters.items()}
    model.gradients[name] = np.ones(model.parameters[name].shape)
    optimizer = mom.AdamW(model, lr=0.1, weight_decay=0.0)
    optimizer.step()
    assert all(np.array_equal(model.parameters[n], before[n]) for n in before), "nothing is marked yet"
    model.mark_gradient(name)
    assert [n for n, has in model.has_gradient.items() if has] == [name]
    optimizer.step()
    changed = [n for n in before if not np.array_equal(model.parameters[n], before[n])]
    assert changed == [name]
    assert np.allclose(before[name] - model.parameters[name], 0.1, rtol=1e-4)
    model.mark_gradient(name, False)
    assert not any(model.has_gradient.values())
    with pytest.raises(KeyError, match="no parameter 'nothing'"):
        model.mark_gradient("nothing")


@pytest.mark.parametrize("kind", ["parameters", "gradients"])
def test_views_outlive_the_model(kind: str) -> None:
    gc.collect()
    live = _core.memory_live_bytes()
    model = mom.MoM(CONFIG, seed=1)
    model(TOKENS, TOKENS)
    model.backward()
    view = getattr(model, kind)["transformer.wte.weight"]
    part, values = view[1:3, ::2], view.copy()
    del model
    gc.collect()
    assert _core.memory_live_bytes() > live
    assert np.array_equal(view, values)
    view += 1
    del view
    gc.collect()
    assert np.array_equal(part, values[1:3, ::2] + 1)
    del part
    gc.collect()
    assert _core.memory_live_bytes() == live


def test_optimizer_state_outlives_everything() -> None:
    gc.collect()
    live = _core.memory_live_bytes()
    model = mom.MoM(CONFIG, seed=1)
    model(TOKENS, TOKENS)
    model.backward()
    optimizer = mom.AdamW(model)
    optimizer.step()
    moment, steps = optimizer.state["exp_avg.transformer.wte.weight"], optimizer.state["steps"]
    values = moment.copy()
    del model, optimizer
    gc.collect()
    assert np.array_equal(moment, values) and steps.max() == 1
    del moment, steps
    gc.collect()
    assert _core.memory_live_bytes() == live


def test_reference_counts_and_memory_are_stable() -> None:
    model = mom.MoM(CONFIG, seed=1)
    classifier = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=2, pad_token_id=0))
    optimizer = mom.AdamW(model)
    mask, labels = np.ones_like(TOKENS), TOKENS.copy()
    watched = (TOKENS, mask, labels, model._core, model.parameters["transformer.wte.weight"], classifier._core, None)

    def work() -> None:
        model.zero_grad()
        model(TOKENS, labels, mask, return_logits=True, return_routes=True)
        model.backward()
        mom.clip_grad_norm(model, 1.0)
        optimizer.step()
        model.generate(TOKENS[:, :3], 2, 1.0)
        classifier(TOKENS, [0, 1], mask, return_routes=True)
        classifier.backward()
        for bad in (lambda: model(TOKENS + 100), lambda: model(TOKENS, labels[:, :2]), model.backward):
            with pytest.raises((ValueError, RuntimeError)):
                bad()
        _ = model.has_gradient, model.random_state, optimizer.state, model.blocks, repr(model)

    for _ in range(3):
        work()
    gc.collect()
    counts, live = [sys.getrefcount(x) for x in watched], _core.memory_live_bytes()
    for _ in range(30):
        work()
    gc.collect()
    after = [sys.getrefcount(x) for x in watched]
    assert after[:-1] == counts[:-1]
    assert abs(after[-1] - counts[-1]) < 30, "None is shared with the whole interpreter; a leak adds one for each call"
    assert _core.memory_live_bytes() == live


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.zeros((8, 17)), ValueError, r"transformer.wte.weight: shape \(8, 17\), expected \(17, 8\)"),
        (np.zeros(8), ValueError, r"shape \(8,\), expected \(17, 8\)"),
        (0.0, ValueError, r"shape \(\), expected"),
        ([[1.0], [2.0, 3.0]], ValueError, "transformer.wte.weight: not an array"),
        (np.full((17, 8), "x"), TypeError, "transformer.wte.weight: dtype <U1"),
        (np.zeros((17, 8), complex), TypeError, "transformer.wte.weight: dtype complex128"),
        (np.full((17, 8), None), TypeError, "transformer.wte.weight: dtype object"),
    ],
)
def test_wrong_assignments_change_nothing(value: Any, error: type[Exception], message: str) -> None:
    model = mom.MoM(CONFIG)
    before = model.parameters["transformer.wte.weight"].copy()
    with pytest.raises(error, match=message):
        model.parameters["transformer.wte.weight"] = value
    assert np.array_equal(model.parameters["transformer.wte.weight"], before)


def test_unknown_names() -> None:
    model = mom.MoM(CONFIG)
    with pytest.raises(KeyError, match="parameters: no tensor 'x'"):
        model.parameters["x"]
    with pytest.raises(KeyError, match="gradients: no tensor 'x'"):
        model.gradients["x"] = 1
    with pytest.raises((TypeError, AttributeError)):
        del model.parameters["transformer.wte.weight"]  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- pools and routers
@pytest.mark.parametrize("name", CONFIGS)
def test_pools_and_routers_cover_the_blocks(name: str) -> None:
    config = CONFIGS[name]
    model = mom.MoM(config)
    blocks = model.blocks
    assert [b.place for b in blocks] == [i for i, kind in enumerate(config.places()) if kind == "block"]
    reached = {}
    for block in blocks:
        for pool, router, half, count in (
            (block.attention_pool, block.attention_router, "attn", config.num_attn),
            (block.ffn_pool, block.ffn_router, "ffn", config.num_ffn),
        ):
            assert len(pool) == count and pool.kind == half and list(pool) == [pool[j] for j in range(count)]
            assert (router is None) == (count == 1)
            for part in [*pool, *([] if router is None else [router])]:
                for short, view in part.parameters.items():
                    assert getattr(part, short.replace(".", "__")) is not None
                    assert part.gradients[short].shape == view.shape
                    reached[view.ctypes.data] = view.size
    own = {
        a.ctypes.data: a.size for n, a in model.parameters.items() if ".mot_" in n and int(n.split(".")[2]) in
        [b.place for b in blocks]
    }  # fmt: skip
    assert reached == own


def test_modules_are_views_and_index_order_is_the_cores() -> None:
    model = mom.MoM(CONFIG, seed=1)
    pool = model.blocks[0].ffn_pool
    full = "transformer.h.1.mot_ffn.c_fc.2.weight"
    assert pool[2].c_fc__weight.ctypes.data == model.parameters[full].ctypes.data
    assert pool[2] == pool[-1] and [m.name for m in pool[1:]] == ["block 0 ffn module 1", "block 0 ffn module 2"]
    pool[2].parameters["ln.bias"] = np.full(8, 7.0)
    assert (model.parameters["transformer.h.1.mot_ffn.ffn_layernorm.2.bias"] == 7).all()
    assert "c_fc__weight" in dir(pool[0])
    with pytest.raises(AttributeError, match="no tensor 'c_attn__weight'; it has ln.weight"):
        _ = pool[0].c_attn__weight
    router = model.blocks[1].attention_router
    assert router is not None and list(router.parameters) == [
        "router.weight", "router.bias", "h2h.weight", "h2h.bias", "x2h.weight", "x2h.bias",
    ]  # fmt: skip


class _Html(html.parser.HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


@pytest.mark.parametrize("name", CONFIGS)
def test_displays(name: str) -> None:
    model = mom.MoM(CONFIGS[name])
    routes = model([[1, 2, 3]], return_routes=True).routes
    shown: list[Any] = [model, model.config, model.memory_plan(1, 4), model.parameters, model.gradients, routes]
    for block in model.blocks:
        shown += [block.attention_pool, block.ffn_pool, block.ffn_pool[0]]
        shown += [r for r in (block.attention_router, block.ffn_router) if r is not None]
    for thing in shown:
        parser = _Html()
        parser.feed(thing._repr_html_())
        parser.close()
        assert not parser.open
        assert len(repr(thing)) < 2000
    assert f"{model.num_parameters:,}" in repr(model) and f"{model.num_parameters:,}" in model._repr_html_()
    assert "transformer.wpe.weight" in model.parameters._repr_html_()


def test_results_are_tables_in_notebooks(tmp_path: Path) -> None:
    model = mom.MoM(CONFIG.replace(vocab_size=64))
    np.arange(64, dtype="uint16").tofile(tmp_path / "train.bin")
    np.arange(64, dtype="uint16").tofile(tmp_path / "val.bin")
    found = mom.train(model, tmp_path, steps=2, batch_size=1, sequence_length=8, eval_every=1, progress=False)
    page = found._repr_html_()
    assert [f"{loss:.4f}</td>" in page for _, loss in found.history] == [True, True] and "step 2" in page
    assert "default" in mom.TrainingConfig(steps=3)._repr_html_()
    routes = model([[1, 2, 3]], return_routes=True).routes
    assert routes is not None and "1 sequences, 3 tokens" in routes._repr_html_()
    skipped = (routes.module["ffn"] == routes.num_modules["ffn"]).mean()
    assert f"{skipped:.1%}</td>" in routes._repr_html_()
    padded = model([[1, 2, 3, 0, 0]], attention_mask=[[1, 1, 1, 0, 0]], return_routes=True).routes
    assert padded is not None and f"{skipped:.1%}</td>" in padded._repr_html_()  # padding counts nowhere
