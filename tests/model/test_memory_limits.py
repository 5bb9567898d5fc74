"""What a configuration makes large is compared with the memory limit before it is allocated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mom
from mom import _core
from mom.files import names
from mom.training.adapt import classifier_from, copy_of

CONFIG = mom.MoMConfig.preset("demo", vocab_size=40, n_embd=32, n_head=2, router_dim=8, n_positions=512)


def parameter_bytes(config: mom.MoMConfig) -> int:
    return 4 * sum(int(np.prod(shape)) for shape in names.canonical_names(config).values())


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], int]:
    """Sets the machine's limit to some bytes more than are in use."""

    def set_limit(more: int) -> int:
        value = _core.memory_live_bytes() + more
        monkeypatch.setattr(mom.runtime, "memory_limit", lambda: value)
        return value

    return set_limit


@pytest.mark.parametrize("change", [{}, {"vocab_size": 2**24, "n_embd": 4096}, {"chunks": 4096, "n_embd": 8192}])
def test_a_model_that_does_not_fit_is_refused_before_it_is_allocated(
    limit: Callable[[int], int], change: dict[str, Any]
) -> None:
    config = CONFIG.replace(**change)
    needed = parameter_bytes(config)
    bytes_limit, live = limit(parameter_bytes(CONFIG) - 1), _core.memory_live_bytes()
    for build in (mom.MoM, lambda c: mom.MoMForSequenceClassification(c.replace(num_labels=2))):
        with pytest.raises(MemoryError, match=rf"^config: .* need \d+ bytes.* limit of {bytes_limit} bytes .*smaller"):
            build(config)
    with pytest.raises(MemoryError, match=f" {needed} bytes"):
        mom.MoM(config)
    assert _core.memory_live_bytes() == live


def test_a_model_that_just_fits_is_made(limit: Callable[[int], int]) -> None:
    limit(parameter_bytes(CONFIG) + 4096)  # and the tables of the core
    assert 4 * mom.MoM(CONFIG).num_parameters == parameter_bytes(CONFIG)


def test_the_limit_of_this_machine_is_asked() -> None:
    if (bytes_limit := mom.runtime.memory_limit()) is None:
        pytest.skip("the system does not say how much memory there is")
    config = CONFIG.replace(vocab_size=2**24, n_embd=2**16)
    with pytest.raises(MemoryError, match=f"limit of {bytes_limit} bytes"):
        mom.MoM(config)


@pytest.mark.parametrize(
    "make",
    [
        copy.deepcopy, lambda m: copy_of(m, mom.MoM), lambda m: classifier_from(m, 2, "single_label_classification"),
    ],
)  # fmt: skip
def test_copies_count_beside_their_model(limit: Callable[[int], int], make: Any) -> None:
    model = mom.MoM(CONFIG)
    limit(parameter_bytes(CONFIG) - 1)
    before = {name: tensor.copy() for name, tensor in model.parameters.items()}
    with pytest.raises(MemoryError, match="config: the parameters of this model"):
        make(model)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in model.parameters.items())


def test_reading_a_folder_asks_the_limit(limit: Callable[[int], int], tmp_path: Any) -> None:
    model = mom.MoM(CONFIG)
    model.save_pretrained(tmp_path / "model")
    limit(parameter_bytes(CONFIG) - 1)
    with pytest.raises(MemoryError, match="config: the parameters of this model"):
        mom.MoM.from_pretrained(tmp_path / "model")


def test_memory_of_models_that_are_gone_does_not_count(limit: Callable[[int], int]) -> None:
    model: Any = mom.MoM(CONFIG)
    model.itself = model  # a cycle, which only the collector frees
    limit(100)
    del model
    assert mom.MoM(CONFIG).num_parameters


def test_optimizer_asks_both_limits(limit: Callable[[int], int]) -> None:
    model = mom.MoM(CONFIG)
    total, moments = 4 * parameter_bytes(CONFIG), 2 * parameter_bytes(CONFIG)
    live = _core.memory_live_bytes()
    model.memory_limit = total - 1
    with pytest.raises(MemoryError, match=f"need {total} bytes, more than the model's memory_limit of {total - 1}"):
        mom.AdamW(model)
    model.memory_limit = total
    limit(moments - 1)
    with pytest.raises(MemoryError, match=f"moments of AdamW need {moments} bytes"):
        mom.AdamW(model)
    assert _core.memory_live_bytes() == live
    limit(2 * moments)
    mom.AdamW(model)
    model.train_only("*.router.*")
    model.memory_limit = total - 1
    mom.AdamW(model)  # of few parameters


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_copied_weights_of_a_decoder_are_compared_with_the_limit(weights: str) -> None:
    model = mom.MoM(CONFIG)
    size = mom.Decoder(model, weights).bytes
    live = _core.memory_live_bytes()
    model.memory_limit = parameter_bytes(CONFIG) + 100
    with pytest.raises(MemoryError, match="weights of the decoder: .*memory_limit of"):
        mom.Decoder(model, weights)
    assert _core.memory_live_bytes() == live
    model.memory_limit = 2 * parameter_bytes(CONFIG) + size
    assert mom.Decoder(model, weights).bytes == size


def test_cache_of_a_decoder_is_compared_with_the_limit() -> None:
    model = mom.MoM(CONFIG)
    decoder = mom.Decoder(model)
    decoder.prefill([[1, 2, 3], [4]])
    model.memory_limit = parameter_bytes(CONFIG) + decoder.bytes + 64
    logits = decoder.logits.copy()
    with pytest.raises(MemoryError, match="cache of keys and values: .*fewer or shorter"):
        decoder.prefill(np.ones((2, 300), np.int32))
    assert decoder.lengths.tolist() == [3, 1] and np.array_equal(decoder.logits, logits)
    model.memory_limit = None
    decoder.prefill(np.ones((2, 300), np.int32))
    assert decoder.lengths.tolist() == [303, 301]


def test_reordered_sequences_are_compared_with_the_limit() -> None:
    """All copies of a call count together, and beside the sequences that they are made of."""
    model = mom.MoM(CONFIG)
    decoder, other = mom.Decoder(model), mom.Decoder(model)
    for each in (decoder, other):
        each.prefill([list(range(40))])
    other.reorder([0] * 5)
    live = _core.memory_live_bytes()
    for rows, needed in (([0] * 5, other.bytes), ([0], decoder.bytes + 1)):
        model.memory_limit = parameter_bytes(CONFIG) + needed - 1
        with pytest.raises(
            MemoryError, match="(cache|sequences) of .*: .*fewer or shorter"
        ):
            decoder.reorder(rows)
        assert decoder.lengths.tolist() == [40] and _core.memory_live_bytes() == live
    model.memory_limit = parameter_bytes(CONFIG) + other.bytes + decoder.bytes
    decoder.reorder([0] * 5)
    assert decoder.bytes == other.bytes and np.array_equal(decoder.logits, other.logits)


def test_room_for_few_choices_is_not_taken_for_room_for_more() -> None:
    model = mom.MoM(CONFIG.replace(routing_top_k=4), seed=0)
    tokens = np.random.default_rng(0).integers(0, 40, (4, 500))
    plan = model.memory_plan(*tokens.shape)
    total = plan.total - plan.moments  # there is no optimizer
    model.memory_limit = total - 1
    model(tokens, labels=tokens, interventions=[mom.TopK(1)])
    with pytest.raises(MemoryError, match=f"need {total} bytes"):
        model(tokens, labels=tokens)
    model.memory_limit = total
    model(tokens, labels=tokens)
