"""What stands beside the weights, read and written: fields of every file, token ids, labels, defaults of `generate`."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import CheckpointError, ConfigError, MomError
from mom.file_fields import LEGACY_GENERATION, TABLE, USES, as_markdown, check
from mom.files import folders, hub
from mom.files.generation import GenerationDefaults
from mom.files.labels import read_labels
from mom.training.checkpoint import model_of_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PLAIN = mom.MoMConfig.vanilla(1, vocab_size=290, n_positions=32, n_embd=16, n_head=2)
BLOCKS = mom.MoMConfig.preset("demo", vocab_size=290, n_embd=16, n_head=2, router_dim=8, n_positions=32)
TEXT = ["the cat sat on the mat and then left", "a warm and funny film"] * 5


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def with_tokenizer(config: mom.MoMConfig = PLAIN, *special: str) -> mom.MoM:
    model = mom.MoM(config, seed=1)
    model.tokenizer = mom.Tokenizer.train(TEXT, 290, special_tokens=special or ("[PAD]", "</s>"))
    model.tokenizer.settings = model.tokenizer.settings.with_end(
        model.tokenizer.token(1) if not special else special[0]
    )
    model.tokenizer = model.tokenizer
    return model


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file, or make one, in a folder without a manifest."""
    values = read(path) if path.is_file() else {}
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    (path.parent / "manifest.json").unlink(missing_ok=True)


# ---------------------------------------------------------------------- the table
def test_the_page_shows_the_table() -> None:
    assert as_markdown() in (ROOT / "docs" / "files.md").read_text(encoding="utf-8")


def test_the_table_is_whole() -> None:
    for rows in TABLE.values():
        for name, row in rows.items():
            assert row.use in USES and not (row.values and row.use not in ("only", "told")), name
    assert not set(TABLE["config.json"]) & set(mom.MoMConfig.names()), "one place says what is done with a field"
    assert not LEGACY_GENERATION & set(mom.MoMConfig.names())


@pytest.mark.parametrize("config", [PLAIN, BLOCKS], ids=["plain", "blocks"])
def test_every_field_that_is_written_is_in_the_table(config: mom.MoMConfig, tmp_path: Path) -> None:
    model = with_tokenizer(config)
    model.generation = GenerationDefaults(0.5, 3, 0.9, 5, 9, (7,))
    model.tokenizer.settings = dataclasses.replace(model.tokenizer.settings, add_bos=True, extra=("[PAD]",))
    model.finetuning_task, model.finetuning_lengths = "xsum", {"max_length": 9}
    classifier = mom.MoMForSequenceClassification(config.replace(num_labels=3))
    classifier.label_names = ("a", "b", "c")
    for folder, saved in ((tmp_path / "m", model), (tmp_path / "c", classifier)):
        saved.save_pretrained(folder)
    prepare(TextDocuments(TEXT), tmp_path / "d", tokenizer=model.tokenizer, val_fraction=0.5, progress=False)
    seen = set()
    for path in [*tmp_path.glob("[mc]/*.json"), *tmp_path.glob("d/*.json")]:
        name = path.name.replace("val.bin", "train.bin")
        if name != "manifest.json":
            known = TABLE[name].keys() | (set(mom.MoMConfig.names()) if name == "config.json" else set())
            assert read(path).keys() <= known, path
            seen.add(name)
    assert seen == TABLE.keys() - {"added_tokens.json"}
    assert set(folders.MODEL_FILES) | {"manifest.json"} == {path.name for path in (tmp_path / "m").iterdir()}


def test_every_file_of_a_model_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Library:
        @staticmethod
        def snapshot_download(name: str, allow_patterns: list[str]) -> str:
            asked.extend(allow_patterns)
            return str(tmp_path / "m")

    with_tokenizer().save_pretrained(tmp_path / "m")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", Library)
    hub.model_folder("hub:gpt2")
    assert TABLE.keys() - {"meta.json", "train.bin.json"} <= set(asked)


def test_values_that_are_not_computed() -> None:
    check("config.json", {"tie_word_embeddings": None, "resid_dropout": 0.0, "use_cache": 1}, "f", ConfigError)
    with pytest.raises(ConfigError, match="f: tie_word_embeddings: False is not supported, only True"):
        check("config.json", {"tie_word_embeddings": False}, "f", ConfigError)
    with pytest.warns(UserWarning, match=r"f: has no counterpart here and is left out: resid_dropout = 0.1 \(GPT-2's"):
        check("config.json", {"resid_dropout": 0.1}, "f", ConfigError)
    with pytest.warns(UserWarning, match="f: unknown fields have no effect: a, b"):
        check("meta.json", {"b": 1, "a": 2}, "f", ConfigError)


# ---------------------------------------------------------------------- config.json
GPT2 = {
    "model_type": "gpt2", "vocab_size": 290, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "architectures": ["GPT2LMHeadModel"], "transformers_version": "4.41.2", "torch_dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "relu"}, "activation_function: 'relu' is not one of"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: False is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention: True is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"), ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4} is not supported"),
        ({"model_type": "llama"}, "model_type: 'llama' is no model of this package"),
        ({"model_type": "openai-gpt"}, "model_type: 'openai-gpt' is no model"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"), ({"n_head": 3}, "n_head: 3 does not divide"),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected"), ({"eos_token_id": -1}, "eos_token_id: -1"),
        ({"eos_token_id": []}, "eos_token_id: expected"),
    ],
)  # fmt: skip
def test_configurations_of_others_that_mean_something_else(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mom.MoMConfig.from_dict({**GPT2, **fields})


def test_configurations_of_ours_are_held_to_the_same_rules() -> None:
    for name, value in (("tie_word_embeddings", False), ("add_cross_attention", True)):
        with pytest.raises(ConfigError, match=f"{name}: {value} is not supported"):
            mom.MoMConfig.from_dict({**BLOCKS.to_dict(), name: value})
    published = {name: value for name, value in BLOCKS.to_dict().items() if name != "mom_format"}
    mom.MoMConfig.from_dict({**published, "scale_attn_by_inverse_layer_idx": True})  # that code forces it off


def test_fields_of_others_that_are_used() -> None:
    config = mom.MoMConfig.from_dict(
        {**GPT2, "n_inner": 24, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-6, "scale_attn_weights": False,
         "activation_function": "gelu_pytorch_tanh", "eos_token_id": [5, 6], "bos_token_id": [4]}
    )  # fmt: skip
    assert (config.inner_size, config.attn_pdrop, config.layer_norm_epsilon) == (24, 0.1, 1e-6)
    assert not config.scale_attn_weights and (config.eos_token_id, config.bos_token_id) == (5, 4)
    others = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    same = {name: value for name, value in GPT2.items() if name not in ("n_embd", "n_layer", "n_head", "n_positions")}
    assert mom.MoMConfig.from_dict({**same, **others}) == mom.MoMConfig.from_dict(GPT2)


@pytest.mark.parametrize("config", [PLAIN, BLOCKS], ids=["plain", "blocks"])
@pytest.mark.parametrize("kind", [mom.MoM, mom.MoMForSequenceClassification])
def test_token_ids_are_those_of_the_tokenizer(kind: Any, config: mom.MoMConfig, tmp_path: Path) -> None:
    model = kind(config.replace(eos_token_id=77))
    model.tokenizer = with_tokenizer().tokenizer
    assert (model.config.eos_token_id, model.config.bos_token_id, model.tokenizer.eos_id) == (1, 1, 1)
    model.save_pretrained(tmp_path / "m")
    assert read(tmp_path / "m" / "config.json")["eos_token_id"] == 1
    assert read(tmp_path / "m" / "config.json")["bos_token_id"] == 1
    if kind is mom.MoM:
        assert read(tmp_path / "m" / "generation_config.json") == {"eos_token_id": 1, "bos_token_id": 1}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert read(tmp_path / "m" / name)["eos_token"] == "</s>"
    again = kind.from_pretrained(tmp_path / "m")
    assert again.config == model.config and again.tokenizer.eos_id == 1
    again.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "m").iterdir():
        if path.suffix == ".json" and path.name != "manifest.json":
            assert read(tmp_path / "again" / path.name) == read(path), path.name
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.config == model.config and other.tokenizer.eos_id == 1


def test_a_tokenizer_and_a_configuration_that_name_different_ends(tmp_path: Path) -> None:
    with_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", eos_token_id=0)
    with pytest.warns(UserWarning, match=r"config.json says that eos_token_id is 0, '\[PAD\]', but .* name '</s>'"):
        assert mom.MoM.from_pretrained(tmp_path).tokenizer.eos_id == 1
    edit(tmp_path / "config.json", eos_token_id=50256)  # the default of transformers, in models of any size
    assert mom.MoM.from_pretrained(tmp_path).config.eos_token_id == 1


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path: Path) -> None:
    with_tokenizer(PLAIN.replace(vocab_size=270)).save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match="the tokenizer has 290 ids, but the model's vocab_size is 270. Texts that hold"
    ):
        model = mom.MoM.from_pretrained(tmp_path)
    assert model.generate_text("a", 3).startswith("a")
    pytest.importorskip("sklearn")
    rows = [{"sentence": "the film", "label": i % 2} for i in range(4)]
    with pytest.raises(MomError, match="tokenizer: its 290 ids are more than the model's vocab_size = 270"):
        mom.glue.finetune(model, "sst2", {"train": rows, "dev": rows}, progress=False)


# ---------------------------------------------------------------------- one tied tensor
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("kept", ["embedding", "head", "both"])
def test_one_tensor_of_the_tied_pair_is_enough(kept: str, prefix: str, tmp_path: Path) -> None:
    model = mom.MoM(PLAIN, seed=3)
    model.save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()
    tensors = {n.replace("transformer.", prefix): a for n, a in load_file(tmp_path / "model.safetensors").items()}
    embedding = tensors.pop(f"{prefix}wte.weight")
    tensors |= {} if kept == "head" else {f"{prefix}wte.weight": embedding}
    tensors |= {} if kept == "embedding" else {"lm_head.weight": embedding.copy()}
    save_file(tensors, tmp_path / "model.safetensors")
    other = mom.MoM.from_pretrained(tmp_path)
    for name, value in model.parameters.items():
        assert np.array_equal(other.parameters[name], value)
    if kept == "head":
        save_file({**tensors, "lm_head.weight": embedding[:-1]}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \(289, 16\), expected \(290, 16\)"):
            mom.MoM.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- labels
LABELS: list[tuple[dict[str, Any], Any]] = [
    ({"id2label": {"0": "b", "1": "a"}}, ("b", "a")), ({"label2id": {"a": 1, "b": 0}}, ("b", "a")),
    ({"label2id": {"a": "1", "b": "0"}}, ("b", "a")),
    ({"id2label": {"1": "a", "0": "b"}, "label2id": None}, ("b", "a")),
    ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None), ({}, None), ({"id2label": {}}, None),
    ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"a": 1, "b": 0}}, ("b", "a")),
    ({"id2label": {"0": "b", "1": "a"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ("b", "a")),
    ({"id2label": {"0": "b", "1": "a", "2": "c"}}, "id2label: 3 names, but the model has 2 labels"),
    ({"id2label": {"0": "b", "1": "b"}}, "expected distinct names, got 'b', 'b'"),
    ({"id2label": {"0": "b", "1": 3}}, "expected distinct names"),
    ({"id2label": {"0": "b", "2": "a"}}, "id2label: the numbers are 0, 2, expected 0 to 1"),
    ({"id2label": ["b", "a"]}, "id2label: expected an object, got list"),
    ({"id2label": {"0": "b", "1": "a"}, "label2id": {"a": 0, "b": 1}}, "id2label says b, a, but label2id says a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "wanted"), LABELS)
def test_names_of_labels(fields: dict[str, Any], wanted: Any, tmp_path: Path) -> None:
    if not isinstance(wanted, str):
        assert read_labels(fields, 2, "f") == wanted
    model = mom.MoMForSequenceClassification(PLAIN.replace(num_labels=2))
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **{"id2label": None, "label2id": None, **fields})
    assert mom.MoM.from_pretrained(tmp_path).label_names is None, "a language model does not read them"
    if isinstance(wanted, str):
        with pytest.raises(CheckpointError, match=wanted):
            mom.MoMForSequenceClassification.from_pretrained(tmp_path)
        return
    read_back = mom.MoMForSequenceClassification.from_pretrained(tmp_path)
    assert read_back.label_names == wanted
    for other in (copy.deepcopy(read_back), pickle.loads(pickle.dumps(read_back))):
        assert other.label_names == wanted


@pytest.mark.parametrize("config", [PLAIN, BLOCKS], ids=["plain", "blocks"])
def test_names_of_labels_are_saved(config: mom.MoMConfig, tmp_path: Path) -> None:
    model = mom.MoMForSequenceClassification(config.replace(num_labels=3))
    with pytest.raises(CheckpointError, match="label_names: 2 names, but the model has 3 labels"):
        model.label_names = ("x", "y")
    model.label_names = ["w", "x", "ü"]
    model.save_pretrained(tmp_path)
    fields = read(tmp_path / "config.json")
    assert fields["id2label"] == {"0": "w", "1": "x", "2": "ü"} and fields["label2id"] == {"w": 0, "x": 1, "ü": 2}
    assert mom.MoMForSequenceClassification.from_pretrained(tmp_path).label_names == ("w", "x", "ü")


def test_names_for_a_fresh_head(tmp_path: Path) -> None:
    mom.MoM(PLAIN).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", id2label={"0": "x", "1": "y", "2": "w"})
    assert mom.MoMForSequenceClassification.from_pretrained(tmp_path).label_names == ("x", "y", "w")
    assert mom.MoMForSequenceClassification.from_pretrained(tmp_path, num_labels=2).label_names is None


# ---------------------------------------------------------------------- generation_config.json
GENERATION: list[tuple[dict[str, Any], GenerationDefaults]] = [
    ({}, GenerationDefaults()), ({"eos_token_id": 1, "bos_token_id": 1}, GenerationDefaults()),
    ({"do_sample": True}, GenerationDefaults(1.0, top_k=50)),
    ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0}, GenerationDefaults(0.6, None, 0.9)),
    ({"do_sample": True, "top_p": 1.0, "top_k": 7}, GenerationDefaults(1.0, 7)),
    ({"temperature": 0.6}, GenerationDefaults()), ({"do_sample": False, "top_k": 9}, GenerationDefaults(0.0, 9)),
    ({"max_new_tokens": 12, "use_cache": False, "repetition_penalty": 1.0}, GenerationDefaults(max_new_tokens=12)),
    ({"max_length": 20}, GenerationDefaults(max_length=20)),
    ({"eos_token_id": [1, 7, 9999]}, GenerationDefaults(stop_tokens=(7,))),
    ({"eos_token_id": 7}, GenerationDefaults(stop_tokens=(7,))),
    ({"num_beams": 1, "early_stopping": True}, GenerationDefaults()),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "wanted"), GENERATION)
def test_defaults_of_generate(fields: dict[str, Any], wanted: GenerationDefaults, tmp_path: Path) -> None:
    with_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"transformers_version": "4.41.2", **fields}))
    (tmp_path / "m" / "manifest.json").unlink()
    model = mom.MoM.from_pretrained(tmp_path / "m")
    assert model.generation == wanted
    model.save_pretrained(tmp_path / "again")
    assert mom.MoM.from_pretrained(tmp_path / "again").generation == wanted
    assert copy.deepcopy(model).generation == pickle.loads(pickle.dumps(model)).generation == wanted
    one = BLOCKS.replace(num_bottom_layers=0, num_top_layers=0, num_attn=1, num_ffn=1)  # filled by a single layer
    assert mom.MoM.from_vanilla(model, one).generation == wanted
    if set(fields) <= LEGACY_GENERATION:  # older versions of transformers have them in config.json
        (tmp_path / "m" / "generation_config.json").unlink()
        gpt2 = {name: value for name, value in read(tmp_path / "m" / "config.json").items() if name in GPT2}
        (tmp_path / "m" / "config.json").write_text(json.dumps({**gpt2, **fields}))
        assert mom.MoM.from_pretrained(tmp_path / "m").generation == wanted


def test_a_run_that_is_resumed_keeps_what_stands_beside_the_weights(tmp_path: Path) -> None:
    model = with_tokenizer()
    model.generation = GenerationDefaults(0.5, 3, stop_tokens=(7,))
    prepare(TextDocuments(TEXT * 20), tmp_path / "data", tokenizer=model.tokenizer, progress=False)
    settings = {"steps": 1, "batch_size": 2, "sequence_length": 16, "progress": False}
    result = mom.train(model, tmp_path / "data", run_dir=tmp_path / "run", **settings)
    assert result.checkpoint is not None
    again = model_of_checkpoint(result.checkpoint)
    assert (again.generation, again.config) == (model.generation, model.config)
    assert again.tokenizer.settings.tokens["eos_token"] == "</s>" and again.tokenizer.eos_id == 1
    assert mom.MoM.from_pretrained(result.checkpoint).generation == model.generation


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_sample": True, "temperature": -1}, "temperature: -1"), ({"top_k": 0.5}, "top_k: expected an integer"),
        ({"do_sample": True, "temperature": "hot"}, "temperature: expected a number"), ({"top_p": 1.5}, "top_p: 1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is less than 1"), ({"max_length": True}, "max_length: expected an"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id: expected an integer"), ({"top_k": -3}, "top_k: -3 is less than 1"),
    ],
)  # fmt: skip
def test_defaults_that_are_out_of_range(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "generation_config.json", **fields)
    with pytest.raises(ConfigError, match=message) as caught:
        mom.MoM.from_pretrained(tmp_path)
    assert "generation_config.json" in str(caught.value)


def test_defaults_without_a_counterpart_are_mentioned(tmp_path: Path) -> None:
    with_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "generation_config.json", num_beams=4, repetition_penalty=1.2, suppress_tokens=[3], new=1)
    with pytest.warns(UserWarning) as caught:
        mom.MoM.from_pretrained(tmp_path)
    first, second = (str(warning.message).split("generation_config.json: ")[1] for warning in caught)
    assert first == (
        "has no counterpart here and is left out: num_beams = 4 "
        "(`generate` has no beams; `mom.model.beam_search` has), repetition_penalty = 1.2, suppress_tokens = [3]"
    )
    assert second == "unknown fields have no effect: new"


def test_generate_takes_the_defaults() -> None:
    model, prompt = with_tokenizer(), [5, 6, 7]
    greedy = model.generate(prompt, 9)
    with pytest.raises(TypeError, match="max_new_tokens: missing, and the model has no default"):
        model.generate(prompt)
    model.generation = GenerationDefaults(0.8, 20, 0.9, max_new_tokens=9)
    wanted = model.generate(prompt, 9, temperature=0.8, top_k=20, top_p=0.9, seed=4)
    assert np.array_equal(model.generate(prompt, seed=4), wanted) and not np.array_equal(wanted, greedy)
    assert np.array_equal(model.generate(prompt, temperature=0.0), greedy), "an argument counts more"
    assert model.generate_text("the", seed=4) == model.generate_text(
        "the", 9, temperature=0.8, top_k=20, top_p=0.9, seed=4
    )
    model.generation = GenerationDefaults(max_length=8)
    assert len(model.generate(prompt)) == 8 and len(model.generate(list(range(9)))) == 10
    model.generation = GenerationDefaults(max_new_tokens=500)
    length = len(model.tokenizer.encode(model.generate_text("the"), special=True))
    assert length <= PLAIN.n_positions, "as many as fit"


def test_several_tokens_end_a_text() -> None:
    model = with_tokenizer()
    prompts = np.array([[5, 6, 7], [9, 10, 11]])
    whole = model.generate(prompts, 25, temperature=2.0, seed=3)
    stops = [int(whole[0, 12]), int(whole[1, 8])]
    rows = model.generate(prompts, 25, temperature=2.0, seed=3, stop_token=stops)
    for row, full in zip(rows, whole, strict=True):
        end = 3 + int(np.flatnonzero(np.isin(full[3:], stops))[0])
        assert np.array_equal(row, full[: end + 1])
    for same in (stops[:1], np.array(stops[:1]), (stops[0], stops[0])):
        alone = model.generate(prompts, 25, temperature=2.0, seed=3, stop_token=same)
        one = model.generate(prompts, 25, temperature=2.0, seed=3, stop_token=stops[0])
        assert all(np.array_equal(a, b) for a, b in zip(alone, one, strict=True))
    with pytest.raises(ValueError, match="stop_token: 290 is not in"):
        model.generate(prompts, 3, stop_token=[1, 290])
    ids = model.tokenizer.encode("the")
    full = model.generate(ids, 20)
    model.generation = GenerationDefaults(stop_tokens=(int(full[len(ids) + 4]),))
    first = int(np.flatnonzero(full[len(ids) :] == full[len(ids) + 4])[0]) + len(ids)
    assert model.generate_text("the", 20) == model.tokenizer.decode(full[: first + 1])
