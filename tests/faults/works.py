"""What is disturbed: saves, preparing data, training, fine-tuning and resuming, each with a tiny model.

A work begins in an empty folder `home`. It looks at what a fault has left there, and it knows how a user goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import Board

import mom
from mom.data import TokenFile
from mom.data.prepare import prepare
from mom.errors import CheckpointError, DataError
from mom.files.folders import latest_valid, verify_folder

CONFIG = mom.MoMConfig(
    vocab_size=270, n_positions=16, n_embd=8, n_head=2, chunks=1, num_attn=2, num_ffn=2, depth_per_chunk=2,
    num_bottom_layers=0, num_top_layers=1, require_anchor_layer=False, router_dim=4, router_type="gru-softmax-random",
    routing_top_k=2, resid_pdrop=0.1,
)  # fmt: skip
WORDS = "a the red old lamp door cat river runs falls sings near".split()
#: What a record or a report says about time, memory and places, which no two runs have in common.
TIMED = {"time", "seconds", "tokens_per_second", "examples_per_second", "peak_memory_bytes", "sources"}


class Lost(Exception):
    """Something that was saved is gone, or something is there that must not be."""


def need(holds: bool, words: str) -> None:
    if not holds:
        raise Lost(words)


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(3, 9)))


@functools.cache
def tokenizer(extra: str = "") -> mom.Tokenizer:
    rng = np.random.default_rng(1)
    return mom.Tokenizer.train([extra + sentence(rng) for _ in range(20)], 270, progress=False)


def digest(model: Any) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in model.parameters.values())).hexdigest()


# ---------------------------------------------------------------------- what a folder holds
def untimed(value: Any) -> Any:
    """A value of a JSON file without what it says about time."""
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name not in TIMED}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def log_lines(path: Path) -> list[Any]:
    """Records of a log. A record of a checkpoint can be missing where the run was killed right before it."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**untimed(line), "path": None} for line in lines if line["kind"] != "checkpoint"]


def content_of(path: Path) -> Any:
    if path.name == "log.jsonl":
        return log_lines(path)
    if path.name in ("training.json", "results.json", "meta.json"):
        return untimed(json.loads(path.read_text()))
    if path.name == "manifest.json" and (path.parent / "training.json").exists():
        verify_folder(path.parent)
        return sorted(json.loads(path.read_text())["files"])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder, hidden files too, without what depends on time."""
    return {
        str(path.relative_to(folder)): "folder" if path.is_dir() else content_of(path)
        for path in sorted(folder.rglob("*"))
    }


# ---------------------------------------------------------------------- works
class Work:
    """A work: its family and its own name.

    A work whose result is not `whole` writes files one by one. If the last one cannot be flushed, it is there all the
    same.
    """

    name = ""
    whole = True

    @property
    def family(self) -> str:
        return self.name.split("/")[0]

    def begin(self, home: Path) -> None:
        """What is there before."""

    def act(self, home: Path, board: Board) -> Any:
        """What is disturbed. The board gets what the work says is saved. Returns what every such work must return."""
        raise NotImplementedError

    def again(self, home: Path, board: Board) -> Any:
        """What a user does after a fault. It returns the same."""
        return self.act(home, board)

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        """Check what a fault has left, and say what it is. `before` and `after` are the contents around the work."""
        raise NotImplementedError


def part(everything: dict[str, Any], name: str) -> dict[str, Any]:
    """What lies below one folder, without hidden files."""
    below = {path[len(name) + 1 :]: value for path, value in everything.items() if path.startswith(f"{name}/")}
    return {path: value for path, value in below.items() if not path.startswith(".")}


class Save(Work):
    """`save_pretrained` of one model, over another one or where nothing is."""

    def __init__(self, over: bool) -> None:
        self.name = "save/over" if over else "save/new"
        self._over = over

    def _model(self, seed: int) -> mom.MoM:
        made = mom.MoM(CONFIG, seed=seed)
        made.tokenizer = tokenizer()
        return made

    def begin(self, home: Path) -> None:
        if self._over:
            self._model(0).save_pretrained(home / "model")

    def act(self, home: Path, board: Board) -> Any:
        model = self._model(1)
        model.save_pretrained(home / "model")
        board.mark(0, 1)
        return digest(model)

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        found = part(contents(home), "model")
        old, new = part(before, "model"), part(after, "model")
        if not (home / "model").exists():
            need(not board[0] and (not self._over or not exchange), "the model folder is missing")
            try:
                mom.MoM.from_pretrained(home / "model")
            except CheckpointError as error:
                need(not self._over or "rename that to model" in str(error), f"no way out is named: {error}")
                return "missing, and says so" if self._over else "nothing yet"
            raise Lost("a model was read where none is")
        need(found in (old, new), f"the model folder is neither the old nor the new one: {sorted(found)}")
        need(not board[0] or found == new, "the new model was saved, the old one is there")
        verify_folder(home / "model")
        need(digest(mom.MoM.from_pretrained(home / "model")) == digest(self._model(int(found == new))), "other bits")
        return "new" if found == new else "old"


class SaveTokenizer(Work):
    """`Tokenizer.save` over another tokenizer: file by file, each of them the old or the new one."""

    name = "save/tokenizer"
    whole = False

    def begin(self, home: Path) -> None:
        tokenizer("some other words ").save(home / "words")

    def act(self, home: Path, board: Board) -> Any:
        made = tokenizer()
        made.save(home / "words")
        board.mark(0, 1)
        return made.sha256

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        found = part(contents(home), "words")
        old, new = part(before, "words"), part(after, "words")
        need(all(found[name] in (old.get(name), new.get(name)) for name in found), "a file is neither old nor new")
        need(set(found) == set(new), f"files are missing: {sorted(set(new) - set(found))}")
        need(not board[0] or found == new, "the new tokenizer was saved, the old one is there")
        mom.Tokenizer.load(home / "words")
        return "new" if found == new else "old"


class Prepare(Work):
    """`mom.data.prepare` into a new folder, over earlier data, or into a folder that holds other files, too."""

    def __init__(self, kind: str) -> None:
        self.name = f"prepare/{kind}"
        self._kind = kind

    def _prepare(self, home: Path, seed: int) -> Any:
        return prepare(
            home / "texts", home / "data", tokenizer=home / "words", seed=seed, val_fraction=0.4, split="blank_line",
            progress=False,
        )  # fmt: skip

    def begin(self, home: Path) -> None:
        rng = np.random.default_rng(2)
        (home / "texts").mkdir()
        for name in ("one.txt", "two.txt"):
            (home / "texts" / name).write_text("\n\n".join(sentence(rng) for _ in range(6)))
        tokenizer().save(home / "words")
        if self._kind == "new":
            return
        self._prepare(home, 0)
        if self._kind == "beside":
            (home / "data" / "mine.txt").write_text("mine")

    def act(self, home: Path, board: Board) -> Any:
        made = self._prepare(home, 1)
        board.mark(0, 1)
        return untimed(made)

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        found = part(contents(home), "data")
        old, new = part(before, "data"), part(after, "data")
        need(self._kind != "beside" or found.get("mine.txt") == old["mine.txt"], "another file of the folder is lost")
        if found == new:
            TokenFile(home / "data")
            return "new"
        need(not board[0], "the new data were written, they are not there")
        if found == old and self._kind != "new":
            TokenFile(home / "data")
            return "old"
        need(self._kind == "new" and not found or self._kind == "beside" or not exchange, f"a mixture: {sorted(found)}")
        try:
            TokenFile(home / "data")
        except DataError as error:
            need(self._kind == "new" or "interrupted" in str(error).lower(), f"no reason is named: {error}")
            return "nothing yet" if self._kind == "new" else "incomplete, and says so"
        raise Lost(f"incomplete data were read: {sorted(found)}")


def newest(run_dir: Path) -> int:
    """The step that a run goes on from, or 0. Every checkpoint there must be whole."""
    found, passed_over = latest_valid(run_dir)
    need(not passed_over, f"damaged checkpoints: {passed_over}")
    return 0 if found is None else int(found.name[-8:])


class Marks:
    """A callback that tells which checkpoints are there: for each seed the newest step."""

    def __init__(self, board: Board, slots: dict[int, int]) -> None:
        self._board, self._slots = board, slots

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "checkpoint":
            self._board.mark(self._slots[record.get("seed", 0)], record["step"])


class Stop(Exception):
    """Ends a run without a chance to save."""


class StopAt:
    def __init__(self, step: int) -> None:
        self._step = step

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "train" and record["step"] == self._step:
            raise Stop


class Train(Work):
    """`mom.train` with checkpoints, a log and an evaluation; the same run resumed after it was killed."""

    def __init__(self, resumed: bool) -> None:
        self.name = "resume/train" if resumed else "train/new"
        self._resumed = resumed

    def _train(self, home: Path, resume: bool, callbacks: list[Any]) -> tuple[Any, mom.MoM]:
        model = mom.MoM(CONFIG, seed=int(resume and newest(home / "run") > 0))
        result = mom.train(
            model, home / "data", run_dir=home / "run", resume=resume, callbacks=callbacks, progress=False, steps=3,
            batch_size=2, sequence_length=16, lr=0.01, warmup=1, eval_every=2, eval_batches=1, save_every=1,
            keep_last=2, seed=5,
        )  # fmt: skip
        return result, model

    def begin(self, home: Path) -> None:
        (home / "data").mkdir()
        rng = np.random.default_rng(0)
        for name, count in (("train.bin", 600), ("val.bin", 60)):
            (home / "data" / name).write_bytes((np.cumsum(rng.integers(1, 3, count)) % 270).astype("<u2").tobytes())
        if self._resumed:
            try:
                self._train(home, False, [StopAt(2)])
            except Stop:
                return
            raise AssertionError("the run was not stopped")

    def act(self, home: Path, board: Board) -> Any:
        result, model = self._train(home, self._resumed, [Marks(board, {0: 0})])
        if self._resumed:
            need(result.records[0]["step"] == 2, f"the run began again at step {result.records[0]['step']}")
        return digest(model), result.history

    def run(self, home: Path, resume: bool) -> Any:
        """Train from the beginning, or go on."""
        result, model = self._train(home, resume, [])
        return digest(model), result.history

    def again(self, home: Path, board: Board) -> Any:
        return self.run(home, True)

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        found = newest(home / "run")
        least = max(board[0], 1 if self._resumed else 0)
        need(found >= least, f"the newest checkpoint is of step {found}, one of step {least} was saved")
        return f"step {found}"


class Finetune(Work):
    """`mom.glue.finetune` with two seeds, checkpoints, the best model and results; the same work resumed."""

    SEEDS = (3, 4)

    def __init__(self, resumed: bool) -> None:
        self.name = "resume/finetune" if resumed else "finetune/new"
        self._resumed = resumed

    def run(self, home: Path, resume: bool, callbacks: Sequence[Any] = (), body: Any = None) -> Any:
        """Fine-tune from the beginning, or go on."""
        model = home / "model" if body is None else body
        return mom.glue.finetune(
            model, "sst2", home / "glue", seeds=self.SEEDS, run_dir=home / "run", out_dir=home / "out",
            resume=resume, callbacks=callbacks, progress=False, epochs=1, batch_size=4, lr=0.01, warmup=1, patience=0,
            eval_every=1,
        )  # fmt: skip

    def begin(self, home: Path) -> None:
        model = mom.MoM(CONFIG, seed=0)
        model.tokenizer = tokenizer()
        model.save_pretrained(home / "model")
        rng = np.random.default_rng(2)
        (home / "glue").mkdir()
        for name, count in (("train", 8), ("dev", 4)):
            rows = [f"{sentence(rng)}\t{i % 2}" for i in range(count)]
            (home / "glue" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
        if self._resumed:
            try:
                self.run(home, False, [StopAt(2)])
            except Stop:
                return
            raise AssertionError("the run was not stopped")

    def act(self, home: Path, board: Board) -> Any:
        marks = Marks(board, {seed: slot for slot, seed in enumerate(self.SEEDS)})
        result = self.run(home, self._resumed, [marks])
        if self._resumed:
            first = next(record for record in result.seeds[0].loop.records if record["kind"] == "train")
            need(first["step"] == 2, f"the run began again at step {first['step']}")
        return self.result(result)

    def again(self, home: Path, board: Board) -> Any:
        return self.result(self.run(home, True))

    @staticmethod
    def result(result: Any) -> Any:
        """What all such works return."""
        return digest(result.model), untimed(result.to_dict())["seeds"]

    def look(self, home: Path, board: Board, before: dict[str, Any], after: dict[str, Any], exchange: bool) -> str:
        steps = []
        for slot, seed in enumerate(self.SEEDS):
            steps.append(newest(home / "run" / "sst2" / f"seed-{seed}"))
            least = max(board[slot], 1 if self._resumed and slot == 0 else 0)
            need(steps[-1] >= least, f"seed {seed} has a checkpoint of step {steps[-1]}, one of step {least} was saved")
        if (home / "out" / "sst2" / "model").exists():
            verify_folder(home / "out" / "sst2" / "model")
        results = home / "out" / "sst2" / "results.json"
        need(not results.exists() or untimed(json.loads(results.read_text())) is not None, "results.json")
        return f"steps {steps}"


def works() -> Iterator[Work]:
    yield from (Save(over=True), Save(over=False), SaveTokenizer())
    yield from (Prepare("new"), Prepare("over"), Prepare("beside"))
    yield from (Train(resumed=False), Finetune(resumed=False))
    yield from (Train(resumed=True), Finetune(resumed=True))
