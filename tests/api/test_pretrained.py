"""Model folders: read back in every naming, others' folders, damaged ones, and starting from a plain GPT-2."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mom
from mom import MoMConfig
from mom.config import BEHAVIOUR_FIELDS
from mom.errors import CheckpointError, ConfigError
from mom.files import atomic, weights
from mom.files.names import canonical_names, rename, vanilla_mapping

CONFIG = MoMConfig(
    vocab_size=17, n_positions=10, n_embd=8, n_head=2, n_layer=4, chunks=1, num_attn=2, num_ffn=3, depth_per_chunk=2,
    num_bottom_layers=1, num_top_layers=0, require_anchor_layer=True, router_type="gru-softmax", router_dim=5,
    routing_top_k=2,
)  # fmt: skip
PLAIN = MoMConfig.vanilla(2, vocab_size=17, n_positions=10, n_embd=8, n_head=2)
TOKENS = np.random.default_rng(0).integers(1, 17, (3, 7))


def assert_same(a: Any, b: Any) -> None:
    assert list(a.parameters) == list(b.parameters)
    assert all(np.array_equal(v, b.parameters[n]) for n, v in a.parameters.items())


def moved(model: Any) -> Any:
    """The model with all parameters away from their fresh values."""
    rng = np.random.default_rng(5)
    for value in model.parameters.values():
        value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    return model


# ---------------------------------------------------------------------- round trips
@pytest.mark.parametrize("naming", ["canonical", "reference", "bare", "huggingface"])
@pytest.mark.parametrize("config", [CONFIG, PLAIN], ids=["blocks", "plain"])
def test_round_trip(config: MoMConfig, naming: str, tmp_path: Path) -> None:
    model = moved(mom.MoM(config, seed=1))
    if naming == "huggingface" and not config.is_vanilla:
        with pytest.raises(CheckpointError, match="exist only for a plain GPT-2"):
            model.save_pretrained(tmp_path / "m", naming)
        assert not list(tmp_path.iterdir())
        return
    model.save_pretrained(tmp_path / "m", naming)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    other = mom.MoM.from_pretrained(tmp_path / "m")
    assert other.config == config and other.tokenizer is None and type(other) is mom.MoM
    assert_same(model, other)
    assert other(TOKENS, TOKENS).loss == model(TOKENS, TOKENS).loss
    names = load_file(tmp_path / "m" / "model.safetensors")
    assert ("wte.weight" in names) == (naming == "bare")


def test_unknown_naming(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'torch' is not one of 'canonical', 'reference'"):
        mom.MoM(CONFIG).save_pretrained(tmp_path / "m", naming="torch")
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_read_trains_like_the_one_that_was_written(tmp_path: Path) -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.save_pretrained(tmp_path / "m")
    other = mom.MoM.from_pretrained(tmp_path / "m")
    for m in (model, other):
        optimizer = mom.AdamW(m, lr=0.01)
        for _ in range(3):
            m.zero_grad()
            m(TOKENS, TOKENS)
            m.backward()
            optimizer.step()
    assert_same(model, other)


#: Beside the fields that are ours: what transformers 5.24 writes for a GPT-2, and gpt2-medium's published file has.
WRITTEN_BY_OTHERS: dict[str, dict[str, Any]] = {
    "transformers 5": {
        "add_cross_attention": False, "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "dtype": "float32",
        "is_decoder": False, "layer_types": None, "pad_token_id": None, "pruned_heads": {}, "tie_word_embeddings": True,
        "transformers_version": "5.24.0", "use_cache": True,
    },
    "gpt2-medium": {"n_ctx": 8, "n_special": 0, "predict_special_tokens": True, "architectures": ["GPT2LMHeadModel"]},
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITTEN_BY_OTHERS)
def test_fields_that_other_programs_add_to_a_gpt2_are_left_out(writer: str) -> None:
    shape = {"model_type": "gpt2", "vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = mom.MoMConfig.from_dict({**shape, **WRITTEN_BY_OTHERS[writer]})
    assert (config.chunks, config.n_layer, config.n_embd, config.vocab_size) == (0, 2, 8, 17)
    for name, value in (("add_cross_attention", True), ("tie_word_embeddings", False), ("pruned_heads", {"0": [1]}),
                        ("scale_attn_by_inverse_layer_idx", True)):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}: .* is not supported"):
            mom.MoMConfig.from_dict({**shape, **WRITTEN_BY_OTHERS[writer], name: value})
    with pytest.warns(UserWarning, match="unknown fields have no effect: a_field_of_tomorrow"):
        mom.MoMConfig.from_dict({**shape, "a_field_of_tomorrow": [1]})
    with pytest.raises(ConfigError, match="num_modules: unknown configuration field"):  # a slip of ours
        mom.MoMConfig.from_dict({**shape, "chunks": 1, "num_modules": 3})


def test_config_changes_while_reading(tmp_path: Path) -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.save_pretrained(tmp_path / "m")
    other = mom.MoM.from_pretrained(tmp_path / "m", routing_top_k=1, depth_per_chunk=4, resid_pdrop=0.1)
    assert other.config == CONFIG.replace(routing_top_k=1, depth_per_chunk=4, resid_pdrop=0.1)
    assert_same(model, other)
    with pytest.raises(ConfigError, match="num_modules: unknown configuration field"):
        mom.MoM.from_pretrained(tmp_path / "m", num_modules=3)
    with pytest.raises(CheckpointError, match="does not fit the configuration"):
        mom.MoM.from_pretrained(tmp_path / "m", num_ffn=4)


def test_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    tokenizer = mom.Tokenizer.train(["some text to learn from, some more text"], vocab_size=270)
    model = mom.MoM(CONFIG.replace(vocab_size=270))
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "m")
    other = mom.MoM.from_pretrained(tmp_path / "m")
    assert other.tokenizer.to_json() == tokenizer.to_json()
    (tmp_path / "m" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        mom.MoM.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    with pytest.raises(mom.MomError, match="tokenizer.json"):
        mom.MoM.from_pretrained(tmp_path / "m")


# ---------------------------------------------------------------------- others' folders
def gpt2_folder(folder: Path, prefix: str = "", dtype: str = "float32", **fields: Any) -> Any:
    """A folder as Hugging Face's GPT-2 writes it: other fields in the configuration, buffers, names without prefix."""
    model = moved(mom.MoM(PLAIN, seed=3))
    tensors = {n.replace("transformer.", prefix): a.astype(dtype) for n, a in model.parameters.items()}
    for i in range(2):
        tensors[f"{prefix}h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 10, 10), np.float32))
        tensors[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 17, "n_positions": 10, "n_ctx": 10,
        "n_embd": 8, "n_head": 2, "n_layer": 2, "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "resid_pdrop": 0.1, "summary_type": "cls_index", "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32",
        "task_specific_params": {"text-generation": {"do_sample": True}}, "transformers_version": "4.41.2",
        "use_cache": True, **fields,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_folder(prefix: str, tmp_path: Path) -> None:
    model = gpt2_folder(tmp_path / "gpt2", prefix)
    other = mom.MoM.from_pretrained(tmp_path / "gpt2")
    assert other.config.is_vanilla and other.config.resid_pdrop == 0.1 and other.config.eos_token_id == 0
    assert all(getattr(other.config, n) == v for n, v in BEHAVIOUR_FIELDS.items())
    assert_same(model, other)
    assert other(TOKENS, TOKENS).loss == model(TOKENS, TOKENS).loss


def test_gpt2_folder_with_a_tied_head_in_half_precision_and_in_shards(tmp_path: Path) -> None:
    model = gpt2_folder(tmp_path / "gpt2", "transformer.", "float16")
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, tmp_path / "gpt2" / file)
    weight_map = {n: file for file, part in shards.items() for n in part}
    (tmp_path / "gpt2" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    other = mom.MoM.from_pretrained(tmp_path / "gpt2")
    for name, value in model.parameters.items():
        assert np.array_equal(other.parameters[name], value.astype(np.float16).astype(np.float32))


def test_a_head_that_is_not_tied_is_refused(tmp_path: Path) -> None:
    gpt2_folder(tmp_path / "gpt2")
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["wte.weight"] + 1}, tmp_path / "gpt2" / "model.safetensors")
    with pytest.raises(CheckpointError, match="only a tied head is supported"):
        mom.MoM.from_pretrained(tmp_path / "gpt2")


def test_reference_folder_selects_the_reference(tmp_path: Path) -> None:
    """A configuration file with the reference's fields only, and weights without the balance of our defaults."""
    reference = CONFIG.replace(num_attn=1, num_ffn=3, router_type="naive-softmax", **BEHAVIOUR_FIELDS)
    model = moved(mom.MoM(reference, seed=2))
    model.save_pretrained(tmp_path / "m", naming="reference")
    fields = {k: v for k, v in dataclasses.asdict(reference).items() if k not in BEHAVIOUR_FIELDS}
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gpt2-mot", **fields}))
    (tmp_path / "m" / "manifest.json").unlink()
    other = mom.MoM.from_pretrained(tmp_path / "m")
    assert other.config == reference
    assert other(TOKENS, TOKENS).balance_loss is None, "with one attention module the reference has none"
    ours = mom.MoM.from_pretrained(tmp_path / "m", balance_loss="switch")
    assert ours(TOKENS, TOKENS).balance_loss is not None
    other.save_pretrained(tmp_path / "again")
    assert mom.MoM.from_pretrained(tmp_path / "again").config == reference


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_header_lengths_that_look_like_a_pickle(length: int, tmp_path: Path) -> None:
    model = mom.MoM(MoMConfig.vanilla(1, vocab_size=17, n_positions=10, n_embd=8, n_head=2), seed=1)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    path = tmp_path / "m" / "model.safetensors"
    raw = path.read_bytes()
    have = int.from_bytes(raw[:8], "little")
    length += 0x10000  # longer than the header, which may end in spaces
    path.write_bytes(length.to_bytes(8, "little") + raw[8 : 8 + have] + b" " * (length - have) + raw[8 + have :])
    assert_same(model, mom.MoM.from_pretrained(tmp_path / "m"))


# ---------------------------------------------------------------------- classifiers
def test_classifier_round_trip_and_both_directions(tmp_path: Path) -> None:
    config = CONFIG.replace(pad_token_id=0)
    language = moved(mom.MoM(config, seed=1))
    language.save_pretrained(tmp_path / "lm")
    classifier = mom.MoMForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=3)
    assert classifier.config == config.replace(num_labels=3)
    assert all(np.array_equal(v, classifier.parameters[n]) for n, v in language.parameters.items())
    head = classifier.parameters["score.weight"]
    assert head.shape == (3, 8) and 0.005 < head.std() < 0.05, "a fresh head"
    assert mom.MoMForSequenceClassification.from_pretrained(tmp_path / "lm").config.num_labels == 2

    moved(classifier).save_pretrained(tmp_path / "cls")
    again = mom.MoMForSequenceClassification.from_pretrained(tmp_path / "cls")
    assert again.config == classifier.config
    assert_same(classifier, again)
    assert again(TOKENS, [0, 1, 2]).loss == classifier(TOKENS, [0, 1, 2]).loss

    back = mom.MoM.from_pretrained(tmp_path / "cls")
    assert back.config == config and "score.weight" not in back.parameters
    assert all(np.array_equal(v, classifier.parameters[n]) for n, v in back.parameters.items())


def test_number_of_labels_follows_the_head(tmp_path: Path) -> None:
    gpt2_folder(tmp_path / "gpt2", "transformer.", num_labels=None)
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    head = np.arange(40, dtype=np.float32).reshape(5, 8)
    save_file({**tensors, "score.weight": head}, tmp_path / "gpt2" / "model.safetensors")
    model = mom.MoMForSequenceClassification.from_pretrained(tmp_path / "gpt2")
    assert model.config.num_labels == 5 and np.array_equal(model.parameters["score.weight"], head)
    with pytest.raises(CheckpointError, match="score.weight has shape"):
        mom.MoMForSequenceClassification.from_pretrained(tmp_path / "gpt2", num_labels=4)


# ---------------------------------------------------------------------- damaged folders
def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def flip(path: Path, at: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 0x40
    path.write_bytes(bytes(raw))


def claim(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def huge_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def replace_tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return damage


WTE = "transformer.wte.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "folder: .* is not a folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors nor"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled PyTorch file.*Convert it",
    ),
    "empty config": (lambda f: (f / "config.json").write_bytes(b""), "config.json: not valid JSON"),
    "half a config": (lambda f: truncate(f / "config.json", 0.5), "config.json: not valid JSON"),
    "unknown field": (claim(num_modules=3), "config.json: num_modules: unknown configuration field"),
    "invalid field": (claim(n_head=3), "config.json: n_head: 3 does not divide"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: truncated"),
    "weights cut in the header": (lambda f: truncate(f / "model.safetensors", 0.1), "model.safetensors: truncated"),
    "weights cut in the data": (lambda f: truncate(f / "model.safetensors", 0.99), "truncated"),
    "weights with something behind them": (
        lambda f: (f / "model.safetensors").open("ab").write(b"0" * 9), "9 bytes after the last tensor",
    ),
    "header of 2**62 bytes": (huge_header, "header of 4611686018427387904 bytes"),
    "tensor missing": (replace_tensors(lambda t: {n: a for n, a in t.items() if n != WTE}), f"1 missing: {WTE}"),
    "tensor too many": (replace_tensors(lambda t: {**t, "x": t[WTE]}), "1 unexpected: x"),
    "tensor transposed": (replace_tensors(lambda t: {**t, WTE: t[WTE].T.copy()}), r"shape \(8, 17\).*\(transposed\?\)"),
    "tensor of integers": (replace_tensors(lambda t: {**t, WTE: t[WTE].astype(int)}), "type int64"),
    "smaller than the config says": (claim(n_embd=16), "does not fit the configuration"),
    "far smaller than the config says": (claim(n_embd=2**24, vocab_size=2**24), "does not fit the configuration"),
    "fewer modules than the config says": (claim(num_ffn=4096), "missing"),
    "weights of a plain GPT-2": (
        lambda f: mom.MoM(PLAIN).save_pretrained(f.parent / "p") or shutil.copy(f.parent / "p/model.safetensors", f),
        "names of a plain GPT-2, which MoM.from_vanilla takes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    mom.MoM(CONFIG).save_pretrained(folder)
    (folder / "manifest.json").unlink()  # what others write has none
    damage, message = DAMAGE[name]
    damage(folder)
    for kind in (mom.MoM, mom.MoMForSequenceClassification):
        with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
            kind.from_pretrained(folder)
        assert str(folder) in str(caught.value)


def test_manifest_finds_every_flipped_bit(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for file in ("model.safetensors", "config.json"):
        for at in (0.0, 0.3, 0.7, 0.999):
            mom.MoM(CONFIG).save_pretrained(folder)
            flip(folder / file, at)
            with pytest.raises(CheckpointError, match=f"{file}: content differs from its SHA-256"):
                mom.MoM.from_pretrained(folder)
    flip(folder / "manifest.json", 0.0)
    with pytest.raises(CheckpointError, match="manifest.json: not valid JSON"):
        mom.MoM.from_pretrained(folder)


def test_random_damage_is_a_checkpoint_error_or_harmless(tmp_path: Path) -> None:
    """Without a manifest nothing but a valid file of the right shape may come through."""
    folder = tmp_path / "m"
    mom.MoM(PLAIN).save_pretrained(folder)
    (folder / "manifest.json").unlink()
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(8)
    read = 0
    for _ in range(300):
        raw = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            raw[int(rng.integers(header))] = int(rng.integers(256))
        path.write_bytes(bytes(raw))
        try:
            model = mom.MoM.from_pretrained(folder)
        except CheckpointError as error:
            assert str(folder) in str(error)
        else:
            read += 1
            assert list(model.parameters) == list(canonical_names(PLAIN))
    assert read < 100


@pytest.mark.parametrize("when", ["write", "fsync", "rename"])
def test_full_disk_leaves_the_earlier_folder(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    old, new = moved(mom.MoM(CONFIG, seed=1)), mom.MoM(CONFIG, seed=2)
    old.save_pretrained(folder)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(
            *{"write": (weights, "_write_parts"), "fsync": (os, "fsync"), "rename": (atomic, "_exchange")}[when], full
        )
        with pytest.raises(OSError) as caught:
            new.save_pretrained(folder)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["m"], "nothing half-written stays"
    assert_same(old, mom.MoM.from_pretrained(folder))
    new.save_pretrained(folder)
    assert_same(new, mom.MoM.from_pretrained(folder))


# ---------------------------------------------------------------------- load_state
def test_load_state_takes_every_naming_or_nothing() -> None:
    source, target = moved(mom.MoM(PLAIN, seed=1)), mom.MoM(PLAIN, seed=2)
    for naming in ("canonical", "reference", "bare", "huggingface"):
        fresh = mom.MoM(PLAIN, seed=2)
        fresh.load_state(rename(dict(source.parameters), PLAIN, to=naming))
        assert_same(fresh, source)
    tensors = {n: a.astype(np.float64).tolist() for n, a in source.parameters.items()}
    target.load_state(tensors)
    assert_same(target, source)
    before = {n: a.copy() for n, a in target.parameters.items()}
    other = {n: a + 1 for n, a in before.items()}
    for bad in (
        {**other, "x": other[WTE]},
        {**other, WTE: other[WTE][1:]},
        {n: a for n, a in other.items() if n != WTE},
    ):
        with pytest.raises(CheckpointError, match="my tensors: does not fit"):
            target.load_state(bad, "my tensors")
        assert all(np.array_equal(target.parameters[n], a) for n, a in before.items())
    with pytest.raises(ValueError, match=f"{WTE}: not an array"):
        target.load_state({**other, WTE: [[1.0], [2.0, 3.0]]})
    with pytest.raises(TypeError, match="tensors: expected a mapping of names to arrays, got list"):
        target.load_state([*other])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- from a plain GPT-2
def from_vanilla(vanilla: Any, config: MoMConfig, **options: Any) -> mom.MoM:
    return mom.MoM.from_vanilla(vanilla, config, **options)


def test_layers_become_modules_and_anchors(tmp_path: Path) -> None:
    vanilla = moved(mom.MoM(CONFIG.vanilla_config(), seed=1))
    assert vanilla.config.n_layer == 5  # one below, three for the pool of three, one after the block
    vanilla.save_pretrained(tmp_path / "v")
    model = from_vanilla(tmp_path / "v", CONFIG, seed=4)
    fresh = mom.MoM(CONFIG, seed=4)
    p, v = model.parameters, vanilla.parameters
    assert np.array_equal(p["transformer.h.0.mot_attn.c_attn.weight"], v["transformer.h.0.attn.c_attn.weight"])
    for j in range(3):
        assert np.array_equal(
            p[f"transformer.h.1.mot_ffn.c_fc.{j}.weight"], v[f"transformer.h.{1 + j}.mlp.c_fc.weight"]
        )
    assert np.array_equal(p["transformer.h.1.mot_attn.c_proj.1.bias"], v["transformer.h.2.attn.c_proj.bias"])
    assert np.array_equal(p["transformer.h.2.mot_ffn.ffn_layernorm.weight"], v["transformer.h.4.ln_2.weight"])
    assert np.array_equal(p["transformer.ln_f.bias"], v["transformer.ln_f.bias"])
    routers = [n for n in p if "router" in n]
    assert routers and all(np.array_equal(p[n], fresh.parameters[n]) for n in routers)
    copied = {target for target, _ in vanilla_mapping(CONFIG)}
    assert copied == set(p) - set(routers)


@pytest.mark.parametrize("norm", [None, False, True])
@pytest.mark.parametrize("single", [None, False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_what_is_copied_is_a_choice(norm: bool | None, single: bool | None, reference: bool) -> None:
    config = CONFIG.replace(num_attn=1, **(BEHAVIOUR_FIELDS if reference else {}))
    vanilla = moved(mom.MoM(config.vanilla_config(), seed=1))
    model = from_vanilla(vanilla, config, copy_final_norm=norm, copy_single_modules=single)
    expect_norm, expect_single = (not reference if x is None else x for x in (norm, single))
    ln_f = np.array_equal(model.parameters["transformer.ln_f.weight"], vanilla.parameters["transformer.ln_f.weight"])
    c_attn = np.array_equal(
        model.parameters["transformer.h.1.mot_attn.c_attn.weight"],
        vanilla.parameters["transformer.h.1.attn.c_attn.weight"],
    )
    assert (ln_f, c_attn) == (expect_norm, expect_single)
    assert expect_norm or (model.parameters["transformer.ln_f.weight"] == 1).all()


@pytest.mark.filterwarnings("error")
def test_a_depth_of_one_and_one_module_continue_the_plain_model() -> None:
    """With a single module in each half, one round, and all copied, both compute the same function."""
    config = CONFIG.replace(num_attn=1, num_ffn=1, depth_per_chunk=1)
    vanilla = moved(mom.MoM(config.vanilla_config(), seed=1))
    model = from_vanilla(vanilla, config)
    assert model(TOKENS, TOKENS).lm_loss == pytest.approx(vanilla(TOKENS, TOKENS).lm_loss, rel=1e-6)


@pytest.mark.parametrize(("layers", "message"), [(3, "3 layers.*places for 5; the rest is fresh"), (7, "left out")])
def test_another_number_of_layers_is_said(layers: int, message: str) -> None:
    vanilla = moved(mom.MoM(CONFIG.vanilla_config().replace(n_layer=layers), seed=1))
    with pytest.warns(UserWarning, match=message):
        model = from_vanilla(vanilla, CONFIG, seed=4)
    fresh = mom.MoM(CONFIG, seed=4)
    name = "transformer.h.2.mot_attn.c_attn.weight"
    if layers == 3:
        assert np.array_equal(model.parameters[name], fresh.parameters[name])
    else:
        assert np.array_equal(model.parameters[name], vanilla.parameters["transformer.h.4.attn.c_attn.weight"])


def test_models_that_do_not_fit_together(tmp_path: Path) -> None:
    vanilla = mom.MoM(CONFIG.vanilla_config())
    with pytest.raises(ConfigError, match=r"gpt2: expected a plain GPT-2 \(chunks = 0\)"):
        from_vanilla(mom.MoM(CONFIG), CONFIG)
    for field, value in (("vocab_size", 18), ("n_positions", 9), ("n_embd", 16), ("n_head", 4), ("n_inner", 30)):
        name = "inner_size" if field == "n_inner" else field
        with pytest.raises(ConfigError, match=f"config: {name} = {value}, the plain model has"):
            from_vanilla(vanilla, CONFIG.replace(**{field: value}))
    with pytest.raises(TypeError, match="config: expected MoMConfig, got dict"):
        from_vanilla(vanilla, {})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="^gpt2: .* is not a folder"):
        from_vanilla(tmp_path / "none", CONFIG)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("folder", lambda none: mom.MoM.from_pretrained(none)),
        ("model", lambda none: mom.MoM.resolve(none)),
        ("pretrained", lambda none: mom.MoM.resolve(none, name="pretrained")),
        ("model", lambda none: mom.glue.finetune(none, "cola", {})),
        ("model", lambda none: mom.glue.evaluate(none, "cola", {})),
        ("model", lambda none: mom.xsum.finetune(none, {})),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_that_is_not_there_is_blamed_on_the_callers_argument(
    tmp_path: Path, name: str, call: Any, kind: Any
) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}: {re.escape(str(tmp_path))}/none is not a folder$"):
        call(kind(tmp_path / "none"))


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    mom.MoM(CONFIG).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model.safetensors is a file; give the folder that holds it"):
        mom.MoM.from_pretrained(tmp_path / "model.safetensors")
    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(b"PK\x03\x04")
    for given in (pickled, str(pickled)):
        with pytest.raises(CheckpointError, match="(?s)pytorch_model.bin: a pickled PyTorch file.*python -c") as error:
            mom.MoM.from_pretrained(given)
        assert str(tmp_path / "model.safetensors") in str(error.value)
