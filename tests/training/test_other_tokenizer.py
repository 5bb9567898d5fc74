"""Where a model meets prepared data, their tokenizers are compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.cli import main
from mom.data import TextDocuments, TokenFile
from mom.data.prepare import prepare
from mom.evaluate import token_file_loss

OURS = ["the cat sat on the mat and then left"] * 9
THEIRS = ["zebra quartz vex jump fox"] * 9
STEPS: dict[str, Any] = {"steps": 1, "batch_size": 2, "sequence_length": 16, "progress": False}
OTHER = "was made with another tokenizer than the model's"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of the model's tokenizer in ``ours``, of another one in ``theirs``, and the model in ``model``."""
    ours, theirs = mom.Tokenizer.train(OURS, 280), mom.Tokenizer.train(THEIRS, 280)
    text = TextDocuments(["the cat sat on the mat and then left. " * 30] * 4)
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        prepare(text, tmp_path / name, tokenizer=tokenizer, val_fraction=0.3, progress=False)
    size = max(ours.vocab_size, theirs.vocab_size)
    model = mom.MoM(mom.MoMConfig.vanilla(1, vocab_size=size, n_positions=32, n_embd=16, n_head=2), seed=0)
    model.tokenizer = ours
    model.save_pretrained(tmp_path / "model")
    return tmp_path


#: Everything that brings a model and prepared data together.
CALLS: dict[str, Callable[[mom.MoM, Path], object]] = {
    "train": lambda model, data: mom.train(model, data, **STEPS),
    "train on one file": lambda model, data: mom.train(model, data / "train.bin", **STEPS),
    "train on an open file": lambda model, data: mom.train(model, TokenFile(data / "train.bin"), **STEPS),
    "validation": lambda model, data: mom.train(model, data.parent / "ours", val_data=data / "val.bin", **STEPS),
    "evaluate": token_file_loss,
    "evaluate one file": lambda model, data: token_file_loss(model, data / "val.bin"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_warning_says_that_the_tokenizers_differ(what: str, folder: Path) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[what](model, folder / "ours")
    with pytest.warns(UserWarning, match=OTHER) as caught:
        CALLS[what](model, folder / "theirs")
    assert len(caught) == 1


def test_without_a_tokenizer_or_a_description_nothing_is_compared(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mom.MoM.from_pretrained(folder / "model")
        (folder / "theirs" / "copy.bin").write_bytes((folder / "theirs" / "train.bin").read_bytes())
        token_file_loss(model, folder / "theirs" / "copy.bin")  # meta.json does not describe this file
        model.tokenizer = None
        token_file_loss(model, folder / "theirs")
        for path in (folder / "theirs").glob("*.json"):
            path.unlink()
        token_file_loss(mom.MoM.from_pretrained(folder / "model"), folder / "theirs")


def test_a_hash_of_another_version_of_the_library_is_no_difference(folder: Path) -> None:
    meta = folder / "ours" / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "tokenizer_sha256": "0" * 64}))
    model = mom.MoM.from_pretrained(folder / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_file_loss(model, folder / "ours")  # the tokenizer beside the data is the model's
    for damaged in (b"{", None):
        (folder / "ours" / "tokenizer.json").unlink()
        if damaged:
            (folder / "ours" / "tokenizer.json").write_bytes(damaged)
        else:
            (folder / "ours" / "tokenizer.json").touch()
        with pytest.warns(UserWarning, match=OTHER):
            token_file_loss(model, folder / "ours")


def test_another_end_token_is_a_difference(folder: Path) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    model.tokenizer = mom.Tokenizer(model.tokenizer._with_special, eos_token="t")
    with pytest.warns(UserWarning, match="documents end with the token 0, but the model's tokenizer ends them with"):
        token_file_loss(model, folder / "ours")
    text, ours = TextDocuments(["the cat sat on the mat and then left. " * 30]), mom.Tokenizer.load(folder / "ours")
    prepare(text, folder / "endless", tokenizer=ours, append_eos=False, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_file_loss(model, folder / "endless" / "train.bin")  # the same tokens, whatever ends a document


def test_a_run_does_not_go_on_with_another_end_token(folder: Path) -> None:
    model = mom.MoM.from_pretrained(folder / "model")
    mom.train(model, folder / "ours", run_dir=folder / "run", **STEPS)
    model.tokenizer = mom.Tokenizer(model.tokenizer._with_special, eos_token="t")
    model_settings = {**STEPS, "steps": 2, "run_dir": folder / "run", "resume": True}
    with pytest.warns(UserWarning, match="documents end"), pytest.raises(mom.ConfigError, match="tokenizer was "):
        mom.train(model, folder / "ours", **model_settings)


@pytest.mark.parametrize("source", ["folder", "file", "open file"])
def test_a_model_without_a_tokenizer_gets_that_of_the_data(source: str, folder: Path) -> None:
    data: Any = folder / "theirs" if source == "folder" else folder / "theirs" / "train.bin"
    data = TokenFile(data) if source == "open file" else data
    theirs = mom.Tokenizer.load(folder / "theirs")
    model = mom.MoM.from_pretrained(folder / "model")
    model.tokenizer = None
    mom.train(model, data, run_dir=folder / "run", **STEPS)
    model.save_pretrained(folder / "trained")
    for saved in (folder / "run" / "step-00000001", folder / "trained"):
        assert mom.MoM.from_pretrained(saved).tokenizer.sha256 == theirs.sha256
    assert (model.config.eos_token_id, model.config.bos_token_id) == (theirs.eos_id, theirs.bos_id)
    again = mom.MoM(model.config)
    mom.train(again, data, run_dir=folder / "run", resume=True, **{**STEPS, "steps": 2})
    assert again.tokenizer.sha256 == theirs.sha256


def test_a_model_keeps_its_own_tokenizer_and_takes_none_that_may_not_be_that_of_the_data(folder: Path) -> None:
    own = mom.MoM.from_pretrained(folder / "model")
    with pytest.warns(UserWarning, match=OTHER):
        mom.train(own, folder / "theirs", **STEPS)
    assert own.tokenizer.sha256 == mom.Tokenizer.load(folder / "ours").sha256
    own.tokenizer = None
    (folder / "theirs" / "copy.bin").write_bytes((folder / "theirs" / "train.bin").read_bytes())
    mom.train(own, folder / "theirs" / "copy.bin", **STEPS)  # meta.json does not describe this file
    assert own.tokenizer is None
    small = mom.MoM(own.config.replace(vocab_size=8))
    (folder / "ours" / "meta.json").unlink()
    (folder / "ours" / "train.bin.json").unlink()
    (folder / "ours" / "train.bin").write_bytes((np.arange(100, dtype="<u2") % 7 + 1).tobytes())
    with pytest.warns(UserWarning, match=r"its tokenizer has 2\d\d ids, more than the model's vocab_size = 8, so the"):
        mom.train(small, folder / "ours" / "train.bin", **STEPS)
    assert small.tokenizer is None


def test_the_commands_say_so_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, theirs = str(folder / "model"), str(folder / "theirs")
    assert main(["evaluate", "--model", model, "--data", theirs]) == 0
    assert OTHER in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--data", str(folder / "ours")]) == 0
    assert capsys.readouterr().err == ""
    flags = ["--steps", "1", "--batch_size", "2", "--sequence_length", "16", "--run_dir", str(folder / "run")]
    assert main(["train", "--init_from", model, "--data", theirs, *flags]) == 0
    assert "another tokenizer than the model's; the data's is kept" in capsys.readouterr().err
    trained = mom.MoM.from_pretrained(folder / "run" / "model")
    assert trained.tokenizer.sha256 == mom.Tokenizer.load(theirs).sha256
