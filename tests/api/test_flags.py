"""Arguments that are true or false. Words are refused wherever there is such an argument: ``bool("no")`` is true."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.files import folders, names, weights

CONFIG = mom.MoMConfig.preset("demo", vocab_size=30, n_embd=16, n_head=2, router_dim=8, n_positions=16)
ONES = np.ones((2, 2), np.float32)
#: `mom.reference` is the readable twin that tests compare with; `mom.sklearn` needs another package and is tried below.
MODULES = ("accounting analysis data data.prepare data.tokenizer demo evaluate files.folders files.hub files.labels "
           "files.names files.weights glue interventions model ops routers runtime training xsum").split()  # fmt: skip


def public_functions() -> Iterator[Callable[..., Any]]:
    """All public functions of the package, and public methods of its public classes."""
    for module in (mom, *(importlib.import_module(f"mom.{name}") for name in MODULES)):
        for name in module.__all__:
            member = getattr(module, name)
            if not inspect.isclass(member):
                yield member
                continue
            for base in member.__mro__:
                for method, value in vars(base).items() if base.__module__.startswith("mom.") else ():
                    made = method == "__init__" and dataclasses.is_dataclass(base)
                    if (method in ("__init__", "__call__") or not method.startswith("_")) and not made:
                        yield value.__func__ if isinstance(value, (classmethod, staticmethod)) else value


def flags_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if isinstance(p.annotation, str) and re.search(r"\bbool\b", p.annotation)]


FOUND = {f"{f.__module__}.{f.__qualname__}": flags_of(f) for f in public_functions() if inspect.isroutine(f)}
FOUND = {name: flags for name, flags in FOUND.items() if flags}


def model() -> mom.MoM:
    return mom.MoM(CONFIG)


def classifier() -> mom.MoMForSequenceClassification:
    return mom.MoMForSequenceClassification(CONFIG.replace(num_labels=2))


def routes() -> mom.Routes:
    found = model()([[1, 2]], return_routes=True).routes
    assert found is not None
    return found


def tokenizer() -> mom.Tokenizer:
    return mom.Tokenizer.train(["a b"], 257)


TENSORS = mom.ops.RouterTensors(ONES, ONES[0], ONES, ONES[0])
KIND = next(iter(mom.routers.KINDS))
#: A call of each function that has such an argument. Arguments that are looked at later are None.
CALLS: dict[str, Callable[..., Any]] = {
    "accounting.counted.ledger": lambda **f: mom.ledger(CONFIG, **f),
    "accounting.table.Ledger.flops": lambda **f: mom.ledger(CONFIG).flops(**f),
    "accounting.table.Ledger.parameters": lambda **f: mom.ledger(CONFIG).parameters(**f),
    "analysis.audit.audit": lambda **f: mom.analysis.audit(model(), [[1, 2]], **f),
    "analysis.oracle.oracle": lambda **f: mom.analysis.oracle(model(), [[1, 2]], **f),
    "analysis.module_use.module_use": lambda **f: mom.analysis.module_use(routes(), **f),
    "analysis.paths.format_paths": lambda **f: mom.analysis.format_paths(routes(), **f),
    "analysis.paths.token_paths": lambda **f: mom.analysis.token_paths(routes(), **f),
    "analysis.paths.coactivation": lambda **f: mom.analysis.coactivation(routes(), **f),
    "analysis.paths.path_entropy": lambda **f: mom.analysis.path_entropy(routes(), **f),
    "analysis.pictures.of_routes.plot_coactivation": lambda **f: mom.analysis.plot_coactivation(routes(), **f),
    "data.prepare.prepare": lambda **f: prepare(TextDocuments(["a b"]), "nowhere", **f),
    "data.tokenizer.Tokenizer.decode": lambda **f: tokenizer().decode([1], **f),
    "data.tokenizer.Tokenizer.encode": lambda **f: tokenizer().encode("a", **f),
    "data.tokenizer.Tokenizer.encode_batch": lambda **f: tokenizer().encode_batch([], **f),
    "data.tokenizer.Tokenizer.train": lambda **f: mom.Tokenizer.train(["a b"], 257, **f),
    "files.folders.write_json": lambda **f: folders.write_json("nowhere", {}, **f),
    "files.folders.verify_folder": lambda **f: folders.verify_folder("nowhere", **f),
    "files.names.vanilla_mapping": lambda **f: names.vanilla_mapping(CONFIG, **f),
    "files.weights.read_safetensors": lambda **f: weights.read_safetensors("nowhere", **f),
    "glue.finetuning.finetune": lambda **f: mom.glue.finetune("nowhere", "cola", "nowhere", **f),
    "model.classifier.MoMForSequenceClassification.__call__": lambda **f: classifier()([[1, 2]], **f),
    "model.decoder.Decoder.__init__": lambda **f: mom.Decoder(model(), **f),
    "model.intervening.Intervening.call_of": lambda **f: model().call_of(
        model().inputs([[1, 2]], None, None, None), **f
    ),
    "model.language_model.MoM.__call__": lambda **f: model()([[1, 2]], labels=[[1, 2]], **f),
    "model.language_model.MoM.from_vanilla": lambda **f: mom.MoM.from_vanilla(
        mom.MoM(CONFIG.vanilla_config()), CONFIG, **f
    ),
    "model.language_model.MoM.generate": lambda **f: model().generate([1, 2], 1, **f),
    "model.network.Network.mark_gradient": lambda **f: model().mark_gradient("transformer.wte.weight", **f),
    "model.network.Network.train": lambda **f: model().train(**f),
    "model.network.Network.memory_plan": lambda **f: model().memory_plan(1, 2, **f),
    "ops.balance.balance_loss": lambda **f: mom.ops.balance_loss([ONES], **f),
    "ops.balance.balance_loss_backward": lambda **f: mom.ops.balance_loss_backward([ONES], **f),
    "ops.linear.gemm": lambda **f: mom.ops.gemm(ONES, ONES, **f),
    "ops.linear.gemm_grouped": lambda **f: mom.ops.gemm_grouped([], **f),
    "ops.linear.linear_backward": lambda **f: mom.ops.linear_backward(ONES, ONES, ONES, **f),
    "ops.linear.linear_forward": lambda **f: mom.ops.linear_forward(ONES, ONES, **f),
    "ops.routed.routed_linear_backward": lambda **f: mom.ops.routed_linear_backward(*[None] * 4, **f),
    "ops.routed.routed_linear_forward": lambda **f: mom.ops.routed_linear_forward(*[None] * 4, **f),
    "ops.routed.routed_score_backward": lambda **f: mom.ops.routed_score_backward(*[None] * 6, **f),
    "ops.router.forced_choices_backward": lambda **f: mom.ops.forced_choices_backward(
        ONES, [[0, 1], [0, 1]], ONES, ONES, **f
    ),
    "ops.router.forced_choices_forward": lambda **f: mom.ops.forced_choices_forward(ONES, ONES, None, 1, 1, **f),
    "ops.router.router_backward": lambda **f: mom.ops.router_backward(
        ONES, ONES, mom.ops.RouterSaved(ONES, None, None), TENSORS, KIND, **f
    ),
    "ops.router.router_forward": lambda **f: mom.ops.router_forward(ONES, TENSORS, KIND, **f),
    "ops.router.topk_backward": lambda **f: mom.ops.topk_backward(ONES, [[0, 1], [0, 1]], ONES, ONES, **f),
    "ops.router.topk_forward": lambda **f: mom.ops.topk_forward(ONES, 1, **f),
    "training.optimizer.AdamW.step": lambda **f: mom.AdamW(model()).step(**f),
    "training.pretraining.train": lambda **f: mom.train(model(), "nowhere", **f),
    "training.recipe.pretrain": lambda **f: mom.pretrain("demo", "nowhere", "nowhere", phase="mom", **f),
    "xsum.finetuning.finetune": lambda **f: mom.xsum.finetune("nowhere", "nowhere", **f),
}


def test_every_function_with_such_an_argument_is_tried() -> None:
    assert {f"mom.{name}" for name in CALLS} == set(FOUND)


@pytest.mark.parametrize("value", ["no", "", "False", 0.0])
@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name in CALLS for flag in FOUND[f"mom.{name}"]])
def test_words_and_numbers_are_refused(name: str, flag: str, value: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=f"^{flag}: .*expected True or False"):
        CALLS[name](**{flag: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("model.", "ops.balance", "training.opt"))])
def test_truths_of_numpy_are_taken(name: str) -> None:
    for flag in FOUND[f"mom.{name}"]:
        for value in (np.True_, np.False_):
            CALLS[name](**{flag: value})


def test_numpys_false_is_false(capsys: pytest.CaptureFixture[str]) -> None:
    assert model()([[1, 2]], return_logits=np.False_).logits is None  # type: ignore[arg-type]
    text, made = "<|endoftext|>", tokenizer()
    assert len(made.encode(text, special=np.False_)) > 1 == len(made.encode(text, special=np.True_))  # type: ignore


def test_attributes_and_fields_of_a_product_are_checked_when_they_are_used() -> None:
    for attribute in ("training", "activation_checkpointing"):
        network = model()
        setattr(network, attribute, "no")
        with pytest.raises(TypeError, match=f"^{attribute}: expected True or False, got str 'no'"):
            network([[1, 2]])
    for field in ("transpose_a", "transpose_b"):
        with pytest.raises(TypeError, match=f"{field}: .*expected True or False"):
            mom.ops.gemm(ONES, ONES, **{field: "no"})


def test_settings_refuse_words() -> None:
    for settings in (mom.MoMConfig, mom.TrainingConfig, mom.FinetuneConfig):
        for field in settings.fields():
            if "bool" in str(field.type):
                with pytest.raises(mom.ConfigError, match=f"^{field.name}: expected bool, got str 'no'"):
                    settings(**{field.name: "no"})


def test_estimators_refuse_words() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for estimator in (mom.TextClassifier, mom.TextRegressor):
        assert flags_of(estimator.__init__) == ["verbose"]
        with pytest.raises(TypeError, match="^verbose: expected True or False, got str 'no'"):
            estimator(CONFIG, verbose="no").fit(["a", "b"], [0, 1])
