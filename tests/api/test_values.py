"""Values that look right and mean something else are refused, and what is assigned or added to a model stays."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import mom

CONFIG = mom.MoMConfig.preset("demo", vocab_size=40, n_embd=16, n_head=2, router_dim=8, n_positions=16)


class Noted(mom.MoM):
    """A subclass with an attribute of its own."""

    note = "of the class"


@pytest.mark.parametrize(
    "router_type",
    [
        "naive", "naive-softmax", "naive-random", "gru", "gru-softmax", "gru-random", "gru-random-softmax",
        "gru-softmax-random", "gru-dev", "gru-dev-random-softmax", "hash", "hash-softmax",
        "linear", "softmax-linear", "norm-softmax",
        "softmax-dev-gru", "dev-gru-random",
    ],
)  # fmt: skip
def test_spellings_of_router_types(router_type: str) -> None:
    config = CONFIG.replace(router_type=router_type)
    words = router_type.split("-")
    assert set(config.router_kind.split("-")) == set(words) - {"softmax", "random"}
    assert config.router_softmax == ("softmax" in words and "hash" not in words)
    assert config.router_random == ("random" in words and "gru" in words)


@pytest.mark.parametrize(
    ("router_type", "meant"),
    [
        ("gru-sofmax", "gru-softmax"), ("gru-softmax-randm", "gru-softmax-random"), ("nave", "naive"),
        ("gru_dev", "gru-dev"), ("naivesoftmax", "naive-softmax"), ("GRU-softmax", "gru-softmax"),
        ("gru-softmax2", "gru-softmax"), ("gru ", "gru"), ("gru-softmax-", "gru-softmax"),
    ],
)  # fmt: skip
def test_misspelt_router_type_is_refused_with_the_nearest(router_type: str, meant: str) -> None:
    with pytest.raises(mom.ConfigError, match=f"router_type: '{router_type}' .*did you mean '{meant}"):
        CONFIG.replace(router_type=router_type)


@pytest.mark.parametrize(
    "router_type", ["", "dev", "softmax", "random", "naive-gru", "lstm-softmax", "gru-softmax-softmax"]
)
def test_words_that_name_no_router_are_refused(router_type: str) -> None:
    with pytest.raises(mom.ConfigError, match="router_type: .*expected one of 'naive', 'gru-dev', 'gru', 'hash'"):
        CONFIG.replace(router_type=router_type)


def test_assigning_to_a_tensor_of_a_view_writes_into_the_model() -> None:
    model = mom.MoM(CONFIG)
    module, router = model.blocks[0].ffn_pool[2], model.blocks[0].ffn_router
    name = "transformer.h.1.mot_ffn.c_proj.2.weight"
    module.c_proj__weight = 0.0
    assert not model.parameters[name].any()
    module.c_proj__weight += 2.0
    assert (model.parameters[name] == 2.0).all()
    wanted = np.arange(16, dtype=np.float32)
    module.c_proj__bias = wanted
    assert np.array_equal(module.parameters["c_proj.bias"], wanted)
    assert router is not None
    router.x2h__bias = np.ones(24)
    assert (model.parameters["transformer.h.1.mot_ffn.router.x2h.bias"] == 1.0).all()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("c_proj_weight", 0.0, AttributeError), ("name", "other", AttributeError), ("_names", {}, AttributeError),
        ("c_proj__bias", np.zeros(3), ValueError), ("c_proj__bias", "0", TypeError), ("c_proj__bias", None, TypeError),
    ],
)  # fmt: skip
def test_other_assignments_to_a_view_are_refused(key: str, value: Any, error: type[Exception]) -> None:
    model = mom.MoM(CONFIG)
    before = {name: tensor.copy() for name, tensor in model.parameters.items()}
    with pytest.raises(error, match=key.replace("c_proj__bias", "c_proj.bias")):
        setattr(model.blocks[0].ffn_pool[2], key, value)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in model.parameters.items())


def test_assignments_that_could_not_reach_the_core_are_refused() -> None:
    model = mom.MoM(CONFIG)
    for name, value in (("config", CONFIG.replace(routing_top_k=1)), ("dtype", "bfloat16"), ("parameters", {})):
        with pytest.raises(AttributeError):
            setattr(model, name, value)
    states: tuple[Any, ...] = (model.trainable, model.has_gradient)
    for state in states:
        with pytest.raises(TypeError, match="does not support item assignment"):
            state["transformer.wte.weight"] = False


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_added_attributes(copied: Any) -> None:
    model = Noted(CONFIG, seed=3)
    model.note = "of the model"
    model.history = [1, {"loss": 2.0}]  # type: ignore[attr-defined]
    model.train()
    model.train_only("*.router.*")
    model.random_state, model.memory_limit = (5, 7), 123_456_789
    other = copied(model)
    assert type(other) is Noted and (other.note, other.history) == ("of the model", [1, {"loss": 2.0}])
    assert other.config == model.config and other.training and other.trainable == model.trainable
    assert other.random_state == (5, 7) and other.memory_limit == 123_456_789
    other.parameters["transformer.ln_f.bias"] = np.ones(16)
    other.train_only("*")
    assert not model.parameters["transformer.ln_f.bias"].any() and not all(model.trainable.values())
