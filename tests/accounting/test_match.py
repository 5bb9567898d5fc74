"""Twins: what `mom.match` finds, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import mom
from mom.config import PRESETS

GPT2 = mom.MoMConfig.vanilla(4, vocab_size=500, n_positions=64, n_embd=64, n_head=4)
MOM = mom.MoMConfig.preset("demo", vocab_size=500, n_positions=64, n_embd=48, n_head=4, router_dim=16, chunks=2)


def figure(config: mom.MoMConfig, on: str, batch: int = 1, length: int = 64) -> float:
    found = mom.ledger(config, batch, length)
    return {"train_flops": found.flops(), "params": found.parameters(), "active_params": found.active_parameters,
            "bytes": found.bytes}[on]  # fmt: skip


@pytest.mark.parametrize("on", ["train_flops", "params", "active_params", "bytes"])
@pytest.mark.parametrize("by", [("n_inner",), ("n_embd", "n_inner"), ("depth_per_chunk", "n_inner")], ids=str)
def test_it_comes_near_where_the_inner_width_may_vary(on: str, by: tuple[str, ...]) -> None:
    if on == "params" and "depth_per_chunk" in by:  # rounds have no parameters
        by = ("num_ffn", "n_inner")
    config, like = MOM, GPT2
    if on == "bytes" and len(by) == 1:  # with an inner width of 1 the MoM still reads more
        config, like = GPT2, MOM
    found = mom.match(config, like, on, by)
    assert abs(found.difference) < 0.005
    assert found.figure == pytest.approx(figure(found.config, on)) and found.wanted == pytest.approx(figure(like, on))
    assert found.difference == pytest.approx(found.figure / found.wanted - 1)
    assert found.config.n_embd % found.config.n_head == 0 and set(found.changed) == set(by)
    assert found.config == config.replace(**{name: new for name, (_, new) in found.changed.items()})


@pytest.mark.parametrize("on", ["train_flops", "active_params"])
def test_no_other_value_of_a_single_field_is_nearer(on: str) -> None:
    for name, values in (("n_embd", range(4, 200, 4)), ("depth_per_chunk", range(1, 17))):
        wanted = figure(GPT2, on)
        found = mom.match(MOM, like=GPT2, on=on, by=name, factor=10)
        best = min(values, key=lambda value, name=name: abs(figure(MOM.replace(**{name: value}), on) / wanted - 1))
        assert found.changed[name] == (getattr(MOM, name), best)


def test_a_gpt2_can_be_the_twin_and_the_batch_counts() -> None:
    like = mom.MoM(MOM)
    found = mom.match(GPT2, like, by=("n_layer", "n_inner"), batch=3, length=20)
    assert abs(found.difference) < 0.005 and found.config.is_vanilla
    assert found.wanted == figure(MOM, "train_flops", 3, 20)
    short = mom.match(GPT2, like, by="n_inner", length=3)  # so short that the last round skips rows
    assert short.figure == figure(short.config, "train_flops", 1, 3)


def test_among_near_ones_the_shape_changes_least() -> None:
    found = mom.match(GPT2.replace(n_inner=260), like=GPT2, by=("n_embd", "n_inner"))
    assert found.config.n_embd == 64 and found.changed["n_inner"] == (260, 256) and found.difference == 0


def test_it_says_what_remains() -> None:
    found = mom.match(MOM, like=GPT2, on="params", by="n_embd")
    text, html = repr(found), found._repr_html_()
    assert f"difference {found.difference:+.3%}" in text and f"n_embd={found.config.n_embd}" in text
    assert f"{found.difference:+.3%}" in html and "48 -&gt; " in html


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("by: no value of n_embd comes within a factor of 1.2", {"by": "n_embd", "config": MOM.replace(n_embd=4)}),
        ("by: 'inner' is not one of .*; did you mean 'n_inner'", {"by": "inner"}),
        ("by: n_layer has no effect on a model with blocks", {"by": ["n_layer"]}),
        ("by: num_ffn has no effect on a plain GPT-2", {"by": "num_ffn", "config": GPT2}),
        ("by: depth_per_chunk has no effect on the parameters", {"by": "depth_per_chunk", "on": "params"}),
        ("by: .* names a field twice", {"by": ["n_inner", "n_inner"]}),
        ("by: is empty", {"by": []}),
        ("on: 'flops' is not one of 'train_flops'", {"on": "flops"}),
        ("length: 65, but the smaller n_positions is 64", {"length": 65}),
        ("factor: 0.5 is not at least 1", {"factor": 0.5}),
    ],
)
def test_errors_name_the_argument(match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises((ValueError, mom.ConfigError), match=match):
        mom.match(**{"config": MOM, "like": GPT2, **arguments})


def test_a_name_is_no_configuration() -> None:
    with pytest.raises(TypeError, match="like: expected a MoMConfig, got str"):
        mom.match(MOM, like="gpt2")  # type: ignore[arg-type]


# ------------------------------------------------------------------ the presets
def executed_depth(config: mom.MoMConfig) -> int:
    """Layers that every token goes through, if a routed half always runs a module."""
    for half in ("attn", "ffn"):
        modules = config.num_attn if half == "attn" else config.num_ffn
        assert config.routing_top_k > config.num_choices(half) - modules, "some token may skip the half"
    return sum(config.rounds if kind == "block" else 1 for kind in config.places())


@pytest.mark.parametrize("name", ["mom-large-deep", "mom-large-wide"])
def test_the_large_presets_are_solved_for_as_many_parameters_as_gpt2_large(name: str) -> None:
    config, like = mom.MoMConfig.preset(name), mom.MoMConfig.preset("gpt2-large")
    found = mom.match(config.replace(n_inner=None), like, on="params", by="n_inner")
    assert found.config == config and config.n_inner == PRESETS[name]["n_inner"]
    assert abs(found.difference) < 0.005
    depth = executed_depth(config)
    if name == "mom-large-deep":
        assert depth >= 50 > 1.38 * like.n_layer
    else:
        assert depth <= 14 < 0.4 * like.n_layer
        assert min(config.num_attn, config.num_ffn) > mom.MoMConfig.preset("mom-large").num_ffn


def test_what_the_docs_say_of_the_large_presets() -> None:
    """The page on counting states these figures; memory for 8 x 1024 tokens, of one thread."""
    like = mom.ledger(mom.MoMConfig.preset("gpt2-large"), 8, 1024)
    ratios = {}
    for name, full in itertools.product(("mom-large-deep", "mom-large-wide"), (False, True)):
        found = mom.ledger(mom.MoMConfig.preset(name), 8, 1024)
        how = {"attention": "full", "head": False} if full else {}
        ratios[name, full] = round(found.flops(**how) / like.flops(**how), 2)  # type: ignore[arg-type]
    assert ratios == {
        ("mom-large-deep", False): 2.18, ("mom-large-deep", True): 2.23,
        ("mom-large-wide", False): 0.90, ("mom-large-wide", True): 0.86,
    }  # fmt: skip
