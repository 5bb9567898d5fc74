"""Exchange with the Hugging Face ecosystem: GPT-2 folders in and out, names on the Hub, tokenizer files."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.errors import CheckpointError
from mom.files.hub import model_folder
from shared_data import shared_path

PLAIN = mom.MoMConfig.vanilla(2, vocab_size=97, n_positions=32, n_embd=32, n_head=4)
TOKENS = np.random.default_rng(0).integers(0, 97, (3, 20))


def moved(model: Any) -> Any:
    rng = np.random.default_rng(5)
    for value in model.parameters.values():
        value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    return model


# ---------------------------------------------------------------------- folders
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_of_every_precision(dtype: str, tmp_path: Path) -> None:
    model = moved(mom.MoM(PLAIN, seed=1))
    model.save_pretrained(tmp_path / "m", naming="huggingface", dtype=dtype)
    other = mom.MoM.from_pretrained(tmp_path / "m")
    step = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    for name, value in model.parameters.items():
        assert (np.abs(other.parameters[name] - value) <= step * np.abs(value) + 1e-7 * (step > 0)).all()
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert size == pytest.approx(model.num_parameters * (4 if dtype == "float32" else 2), rel=0.15)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["architectures"] == ["GPT2LMHeadModel"]
    assert config["torch_dtype"] == dtype


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = mom.MoM(PLAIN)
    model.parameters["transformer.ln_f.bias"][3] = 7e4
    with pytest.raises(CheckpointError, match="'transformer.ln_f.bias' holds a number beyond the range of float16"):
        model.save_pretrained(tmp_path / "m", dtype="float16")
    with pytest.raises(CheckpointError, match="dtype: 'int8' is not one of"):
        model.save_pretrained(tmp_path / "m", dtype="int8")
    assert not list(tmp_path.iterdir())


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(np.float64(expected)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gpt2_of_transformers_is_read(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_head=4, n_layer=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value += 0.1 * torch.randn_like(value)
    theirs = theirs.to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "m")
    ours = mom.MoM.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        expected = theirs.float()(torch.tensor(TOKENS)).logits.numpy()
    assert relative(ours(TOKENS, return_logits=True).logits, expected) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_reads_what_is_written(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = moved(mom.MoM(PLAIN, seed=1))
    ours.save_pretrained(tmp_path / "m", dtype=dtype)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "m").float().eval()
    with torch.no_grad():
        found = theirs(torch.tensor(TOKENS)).logits.numpy()
    again = mom.MoM.from_pretrained(tmp_path / "m")
    assert relative(again(TOKENS, return_logits=True).logits, found) < 1e-4
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")) is type(theirs)


def test_classifiers_in_both_directions(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = moved(mom.MoMForSequenceClassification(PLAIN.replace(num_labels=3, pad_token_id=0), seed=1))
    ours.save_pretrained(tmp_path / "m")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    tokens = TOKENS.clip(1)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.shape == (3, 3) and relative(ours(tokens).logits, expected) < 1e-4
    theirs.save_pretrained(tmp_path / "back")
    back = mom.MoMForSequenceClassification.from_pretrained(tmp_path / "back")
    assert relative(back(tokens).logits, expected) < 1e-4


def test_a_plain_gpt2_of_ours_that_transformers_has_written_again(tmp_path: Path) -> None:
    """Version 5 adds fields of every GPT-2 to those that it found."""
    ours = moved(mom.MoMForSequenceClassification(PLAIN.replace(num_labels=3, pad_token_id=0, pooling="mask"), seed=1))
    ours.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["num_labels"], values["problem_type"], values["torch_dtype"]
    values |= {"transformers_version": "5.24.0", "add_cross_attention": False, "tie_word_embeddings": True,
               "summary_type": "cls_index", "dtype": "float32", "scale_attn_by_inverse_layer_idx": False}  # fmt: skip
    path.write_text(json.dumps(values))
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    assert mom.MoMForSequenceClassification.from_pretrained(tmp_path).config == ours.config
    path.write_text(json.dumps(values | {"add_cross_attention": True}))
    with pytest.raises(mom.ConfigError, match="add_cross_attention: True is not supported, only False"):
        mom.MoMForSequenceClassification.from_pretrained(tmp_path)
    path.write_text(json.dumps(values | {"chunks": 1, "num_bottom_layers": 1, "num_modules": 3}))
    with pytest.raises(mom.ConfigError, match="num_modules: unknown configuration field"):
        mom.MoMForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_command_that_converts_a_pickle_does_so(tmp_path: Path, sharded: bool) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_head=4, n_layer=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    config.save_pretrained(tmp_path / "m")
    names = ["pytorch_model.bin"]
    state = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}  # tied
    if sharded:
        names = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
        places = {name: names[i % 3] for i, name in enumerate(state)}
        (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        for shard in names:
            torch.save({n: v for n, v in state.items() if places[n] == shard}, tmp_path / "m" / shard)
    else:
        torch.save(state, tmp_path / "m" / names[0])
    for source in (tmp_path / "m", tmp_path / "m" / names[-1]):
        with pytest.raises(CheckpointError, match="pytorch_model.*bin: (a )?pickled PyTorch file") as caught:
            mom.MoM.from_pretrained(source)
    words = shlex.split(str(caught.value).splitlines()[-1])
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    ours = mom.MoM.from_pretrained(tmp_path / "m")
    assert relative(ours(TOKENS, return_logits=True).logits, expected) < 1e-4


# ---------------------------------------------------------------------- names on the Hub
class Library:
    """Stands in for huggingface_hub."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def snapshot_download(self, name: str, allow_patterns: list[str]) -> str:
        self.asked.append(name)
        assert "*.safetensors" in allow_patterns and not any("bin" in p for p in allow_patterns if p != "vocab.bpe")
        if self.folder is None:
            raise ConnectionError("no route to\nhost")
        return str(self.folder)


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mom.MoM(PLAIN, seed=1).save_pretrained(tmp_path / "cache")
    library = Library(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)  # type: ignore[arg-type]
    assert mom.MoM.from_pretrained("owner/model").config == PLAIN
    assert mom.MoM.from_pretrained("hub:gpt2").config == PLAIN and library.asked == ["owner/model", "gpt2"]
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert model_folder("owner/model") == Path("owner/model"), "a folder comes first"
    for name in ("a/b/c", "owner/none", str(tmp_path / "none"), "../x"):
        with pytest.raises(CheckpointError, match=f"folder: {name} is not a folder$"):
            model_folder(name)
    with pytest.raises(CheckpointError, match="gpt2 is not a folder; the model on the Hugging Face Hub is 'hub:gpt2'$"):
        model_folder("gpt2")
    assert len(library.asked) == 2
    (tmp_path / "cache" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"other/model on the Hub holds no .safetensors; .* safe_serialization"):
        model_folder("other/model")


def test_the_hub_offline_or_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Library(None))  # type: ignore[arg-type]
    message = r"other/model is not a folder, and the Hub did not give it \(ConnectionError: no route to host\); without"
    with pytest.raises(CheckpointError, match=message):
        mom.MoM.from_pretrained("other/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"for names on the Hub: pip install huggingface_hub"):
        mom.MoM.from_pretrained("other/model")


# ---------------------------------------------------------------------- tokenizers
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json", "encoder.json"])
def test_the_three_tokenizer_forms_give_the_librarys_ids(form: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = shared_path("data", "gpt2")
    library = tokenizers.ByteLevelBPETokenizer(str(source / "encoder.json"), str(source / "vocab.bpe"))
    if form == "tokenizer.json":
        library.save(str(tmp_path / form))
    else:
        pair = ("vocab.json", "merges.txt") if form == "vocab.json" else ("encoder.json", "vocab.bpe")
        for name, original in zip(pair, ("encoder.json", "vocab.bpe"), strict=True):
            (tmp_path / name).write_bytes((source / original).read_bytes())
    ours = mom.Tokenizer.load(tmp_path)
    texts = ["Hello world", "  naïve café 東京 🦊\n\n\tdef f(x): return x\r\n", "it's 3.14, isn't it?", "", "a" * 999]
    for text in texts:
        assert ours.encode(text).tolist() == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
