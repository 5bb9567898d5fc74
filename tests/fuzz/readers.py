"""Part ``readers``: every file that mom reads, changed in all kinds of ways.

A reader loads the file or raises one of the exceptions of `REFUSALS`, whose message names the file. Any other
exception, a crash, more than a second, or memory that grows is a fault.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mom
from mom.data.prepare import read_meta, tokenizer_of
from mom.files import folders, weights
from mom.training import checkpoint
from mom.training.callbacks import JsonLines

from . import mutate, seeds
from .case import Case, Fault, Outcome, generator, packed, unpacked

__all__ = ["FORMATS", "Readers"]

#: What a reader may raise.
REFUSALS = (mom.MomError, OSError, MemoryError)
#: Longest time for a file, of the processor, and longest message.
SECONDS, LETTERS = 1.0, 6000

Mutation = Callable[[np.random.Generator, bytes], bytes]
BYTES: tuple[Mutation, ...] = (mutate.mutate_bytes,)
JSON = (mutate.mutate_json, mutate.mutate_json, mutate.mutate_json, mutate.mutate_bytes)
LINES = (mutate.mutate_lines, mutate.mutate_bytes)
TABLE = (mutate.mutate_cells, mutate.mutate_cells, mutate.mutate_lines, mutate.mutate_bytes)
WEIGHTS = (mutate.mutate_weights, mutate.mutate_weights, mutate.mutate_bytes)


def _inside(mutations: Iterable[Mutation]) -> tuple[Mutation, ...]:
    """Mutations of what a gzip file holds."""

    def within(change: Mutation) -> Mutation:
        return lambda rng, content: gzip.compress(change(rng, gzip.decompress(content)), 1, mtime=0)

    return tuple(map(within, mutations))


@dataclass(frozen=True)
class Format:
    """A file, how it is changed and who reads it.

    Attributes
    ----------
    file : str
        Path below the folder of `seeds.make`.
    mutations : tuple of functions
    read : function of the file's path
    names : bool
        Whether the message of a refusal must name the file or its folder.
    """

    file: str
    mutations: tuple[Mutation, ...]
    read: Callable[[Path], object]
    names: bool = True


# ---------------------------------------------------------------------- readers
def _model(path: Path) -> None:
    model = mom.MoM.from_pretrained(path.parent)
    assert all(array.dtype == np.float32 for array in model.parameters.values())


def _tokenizer(path: Path) -> None:
    tokenizer = mom.Tokenizer.load(path.parent)
    ids = tokenizer.encode(seeds.TEXTS[1])
    tokenizer.decode(ids)
    tokenizer.files(16)
    assert tokenizer.vocab_size > 0 and len(tokenizer.sha256) == 64
    for id in (tokenizer.eos_id, tokenizer.bos_id):
        assert id is None or isinstance(id, int)


def _tokens(path: Path) -> None:
    tokens = mom.data.TokenFile(path)
    found = tokens.read(0, min(len(tokens), 5))
    assert found.dtype == np.int32 and found.min() >= 0
    sampler = mom.data.WindowSampler(tokens, 2, min(len(tokens), 7))
    sampler.next_batch()


def _prepared(path: Path) -> None:
    read_meta(path.parent)
    tokenizer_of(path.parent)
    _tokens(path.parent / "train.bin")


def _documents(path: Path) -> None:
    for on_error in ("skip", "raise"):
        for split in ("file", "blank_line"):
            for piece in mom.data.Documents(path, on_error=on_error, split=split, max_chars=32):
                piece.text.encode("utf-8")


def _summaries(path: Path) -> None:
    from mom import xsum

    for on_error in ("skip", "raise"):
        read = xsum.read_xsum(path, on_error=on_error)
        assert len(read.documents) == len(read.summaries) == len(read.ids) > 0


def _glue(task: str, split: str = "train") -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from mom import glue

        for on_error in ("skip", "raise"):
            found = glue.read_glue(path, task, split, on_error=on_error)
            assert found.labels is None or np.isfinite(found.labels).all()

    return read


def _checkpoint(path: Path) -> None:
    checkpoint.settings_of_checkpoint(path.parent)
    checkpoint.fingerprint_in(path.parent)
    model = checkpoint.model_of_checkpoint(path.parent)
    checkpoint.load_checkpoint(path.parent, model, mom.AdamW(model), steps=10**9)


def _resumed(path: Path) -> None:
    """Resume the run, with a manifest that fits the changed file."""
    data = path.parents[2]
    manifest = json.loads((path.parent / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["files"][path.name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    resumed = path.parents[1] / "resumed"
    shutil.copytree(path.parent, resumed / path.parent.name)
    try:
        (resumed / path.parent.name / "manifest.json").write_text(json.dumps(manifest))
        model = mom.MoM(seeds.CONFIG)
        settings = {"batch_size": 2, "sequence_length": 8, "eval_every": 2, "save_every": 2}
        mom.train(model, data, run_dir=resumed, resume=True, steps=3, progress=False, **settings)
    finally:
        shutil.rmtree(resumed)


def _log(path: Path) -> None:
    JsonLines(path, 2).close()


STEP = "run/run/step-00000003"
FORMATS: dict[str, Format] = {
    "config.json": Format("model/config.json", JSON, _model),
    "config.json of a classifier": Format(
        "classifier/config.json", JSON, lambda path: mom.MoMForSequenceClassification.from_pretrained(path.parent)
    ),
    "config.json of a plain GPT-2": Format("plain/config.json", JSON, _model),
    "config.json alone": Format("model/config.json", JSON, mom.MoMConfig.from_json),
    "generation_config.json": Format("model/generation_config.json", JSON, _model),
    "tokenizer.json": Format("model/tokenizer.json", JSON, _tokenizer),
    "tokenizer.json of word pieces": Format("word pieces/tokenizer.json", JSON, _tokenizer),
    "tokenizer.json of a unigram model": Format("unigram/tokenizer.json", JSON, _tokenizer),
    "tokenizer_config.json": Format("model/tokenizer_config.json", JSON, _tokenizer),
    "special_tokens_map.json": Format("model/special_tokens_map.json", JSON, _tokenizer),
    "added_tokens.json": Format("model/added_tokens.json", JSON, _tokenizer),
    "vocab.json": Format("plain/vocab.json", JSON, _tokenizer),
    "merges.txt": Format("plain/merges.txt", LINES, _tokenizer),
    "tokenizer_config.json of a pair": Format("plain/tokenizer_config.json", JSON, _tokenizer),
    "manifest.json": Format("manifest/manifest.json", JSON, lambda path: folders.verify_folder(path.parent)),
    "model.safetensors": Format("model/model.safetensors", WEIGHTS, _model),
    "model.safetensors of a plain GPT-2": Format("plain/model.safetensors", WEIGHTS, _model),
    "safetensors of every type": Format("tensors/tensors.safetensors", WEIGHTS, weights.read_safetensors),
    "model.safetensors.index.json": Format("sharded/model.safetensors.index.json", JSON, _model),
    "meta.json": Format("prepared/meta.json", JSON, _prepared),
    "train.bin": Format("prepared/train.bin", BYTES, _prepared),
    "train.bin.json": Format("tokens/train.bin.json", JSON, lambda path: _tokens(path.with_suffix(""))),
    "token file without description": Format("tokens/plain.bin", BYTES, _tokens),
    "token file of NumPy": Format("tokens/ids.npy", BYTES, _tokens),
    "token file of llm.c": Format("tokens/llmc.bin", BYTES, _tokens),
    "training.toml": Format("run/training.toml", LINES, mom.TrainingConfig.from_toml),
    "finetune.toml": Format("run/finetune.toml", LINES, mom.FinetuneConfig.from_toml),
    "training.json": Format(f"{STEP}/training.json", JSON, _checkpoint),
    "training.json of a resumed run": Format(f"{STEP}/training.json", JSON, _resumed, names=False),
    "optimizer.safetensors": Format(f"{STEP}/optimizer.safetensors", WEIGHTS, _checkpoint),
    "log.jsonl": Format("run/run/log.jsonl", LINES, _log),
    "JSON lines": Format("texts/lines.jsonl", LINES, _documents),
    "JSON lines, packed": Format("texts/lines.jsonl.gz", BYTES + _inside(LINES), _documents),
    "text": Format("texts/text.txt", LINES, _documents),
    "text, packed": Format("texts/text.txt.gz", BYTES + _inside(LINES), _documents),
    "Parquet": Format("texts/rows.parquet", BYTES, _documents),
    "XSUM": Format("texts/lines.jsonl", LINES, _summaries),
    "XSUM, Parquet": Format("texts/rows.parquet", BYTES, _summaries),
    "CoLA": Format("glue/CoLA/train.tsv", TABLE, _glue("cola")),
    "MRPC": Format("glue/MRPC/train.tsv", TABLE, _glue("mrpc")),
    "STS-B": Format("glue/STS-B/dev.tsv", TABLE, _glue("stsb", "dev")),
    "MNLI": Format("glue/MNLI/train.tsv", TABLE, _glue("mnli")),
    "QQP": Format("glue/QQP/test.tsv", TABLE, _glue("qqp", "test")),
    "GLUE, Parquet": Format("texts/train.parquet", BYTES, _glue("cola")),
}


# ---------------------------------------------------------------------- the part
class Readers:
    """Cases of files. The folder gets valid files first.

    Parameters
    ----------
    folder : Path
        An empty folder of this process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        seeds.make(folder)
        there = {name: form for name, form in FORMATS.items() if (folder / form.file).is_file()}
        self._formats = there
        self._valid = {form.file: (folder / form.file).read_bytes() for form in there.values()}
        for name, form in there.items():  # what nothing has changed is read
            self._read(form, self._valid[form.file], name)

    def draw(self, seed: int, number: int) -> Case:
        """The case of a number: its format, and the file's content."""
        rng = generator(seed, "readers", number)
        name = mutate.pick(rng, list(self._formats))
        form = self._formats[name]
        content = self._valid[form.file]
        for _ in range(int(mutate.pick(rng, (1, 1, 1, 2)))):
            try:
                content = mutate.pick(rng, form.mutations)(rng, content)
            except Exception:  # what the first mutation left has no structure
                content = mutate.mutate_bytes(rng, content)
        return {"part": "readers", "format": name, **packed(content)}

    def run(self, case: Case) -> Outcome:
        """Read the content of a case."""
        name = case["format"]
        outcome = Outcome(name, case=case)
        if name not in self._formats:  # Parquet, without pyarrow
            return outcome
        form, content = self._formats[name], unpacked(case)
        try:
            outcome.accepted, outcome.seconds = self._read(form, content, name)
            if outcome.seconds > SECONDS:  # once more: the first time can have been that of something else
                outcome.seconds = min(outcome.seconds, self._read(form, content, name)[1])
            if outcome.seconds > SECONDS:
                raise Fault(f"took {outcome.seconds:.1f} seconds")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of Rust code is no Exception
            outcome.problem = traceback.format_exc()
        return outcome

    def _read(self, form: Format, content: bytes, name: str) -> tuple[bool, float]:
        """Put the content in place and read it. Returns whether the reader accepted it, and the processor's time."""
        path = self._folder / form.file
        path.write_bytes(content)
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", category=RuntimeWarning)
                form.read(path)
        except REFUSALS as error:
            text, folder = str(error), str(path.parent)
            file = str(getattr(error, "filename", None) or "")
            named = not form.names or isinstance(error, MemoryError) or folder in text or folder in file
            if not named:
                raise Fault(f"the message does not name the file: {type(error).__name__}: {text[:500]}") from error
            if len(text) > LETTERS:
                raise Fault(f"a message of {len(text)} characters: {text[:300]}...") from error
            return False, time.process_time() - started
        finally:
            path.write_bytes(self._valid[form.file])
        return True, time.process_time() - started
