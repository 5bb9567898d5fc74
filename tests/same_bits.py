"""Hashes of results of the package, to show that two versions compute the same bits.

Run this script once with each version on the same machine, then compare the two files:

    python tests/same_bits.py --out before.json
    python tests/same_bits.py --out after.json
    python tests/same_bits.py --compare before.json after.json

Every case is computed at every instruction-set level and with every number of threads. The file maps
"case/level/threads" to one SHA-256 per part of the result: losses, gradients, parameters, routes, tokens and so on.
The comparison names the parts that differ. Levels, machines and compilers round differently, so compare only files
that one machine wrote.

The script uses public names of the package only, so it runs unchanged with every version. The tables of runs are in
`same_bits_cases.py`.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mom
from mom.data.prepare import prepare
from same_bits_cases import DROPOUT, GENERATION, SMALL, TRAINING, Generation, Training

#: The parts of a result: numbers, texts and arrays by name, nested as it suits the case.
Parts = dict[str, Any]
Case = Callable[[], Parts]

#: Optimizer steps of a training run of the table.
_STEPS = 4


# ---------------------------------------------------------------------------------------------------- training runs
def new_model(config: mom.MoMConfig, dtype: str = "float32", from_vanilla: bool = False) -> Any:
    """A model, or a classifier if the configuration has labels."""
    if config.num_labels is not None:
        return mom.MoMForSequenceClassification(config, seed=1, dtype=dtype)
    if from_vanilla:
        return mom.MoM.from_vanilla(mom.MoM(config.vanilla_config(), seed=2), config, seed=1, dtype=dtype)
    return mom.MoM(config, seed=1, dtype=dtype)


def inputs(run: Training, rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of a forward pass, but for the labels."""
    vocab, shape = run.config.vocab_size, (run.batch, run.length)
    lengths = rng.integers(1, run.length + 1, run.batch)
    lengths[rng.integers(run.batch)] = run.length
    if run.rows == "packed":
        return {"tokens": rng.integers(1, vocab, lengths.sum()), "lengths": lengths}
    tokens = rng.integers(1, vocab, shape)
    place, lengths = np.arange(run.length), lengths[:, None]
    if run.rows == "left":
        return {"tokens": tokens, "attention_mask": (place >= run.length - lengths).astype(np.int64)}
    if run.rows == "right":
        return {"tokens": tokens, "attention_mask": (place < lengths).astype(np.int64)}
    if run.rows == "holes":
        return {"tokens": tokens, "attention_mask": ((rng.random(shape) < 0.7) | (place == 3)).astype(np.int64)}
    if run.rows == "pads":
        return {"tokens": np.where(place < lengths, tokens, 0)}
    if run.rows == "positions":
        return {"tokens": tokens, "positions": rng.permuted(np.broadcast_to(place, shape), axis=1)}
    assert run.rows == "full", run.rows
    return {"tokens": tokens}


def labels(run: Training, given: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Labels for the arguments of a forward pass."""
    count, kind = run.config.num_labels, run.config.problem_type
    if count is None:
        tokens = given["tokens"]
        scored = (rng.random(tokens.shape) < run.labelled) & (given.get("attention_mask", 1) == 1)
        return np.where(scored, tokens, -100)
    if kind == "multi_label_classification":
        return rng.integers(0, 2, (run.batch, count)).astype(np.float32)
    if count == 1 or kind == "regression":
        return rng.standard_normal((run.batch, count))
    return rng.integers(0, count, run.batch)


def train(run: Training) -> Parts:
    """Losses and norms of all steps, the last gradients, the final parameters, and one forward pass with those."""
    rng = np.random.default_rng(zlib.crc32(run.name.encode()))
    model = new_model(run.config, run.dtype, run.from_vanilla)
    model.activation_checkpointing = run.checkpointing
    model.train()
    optimizer = mom.AdamW(model, lr=0.01)
    losses: list[Any] = []
    gradients: Any = None
    for step in range(_STEPS):
        for _ in range(run.micro_batches):
            given = inputs(run, rng)
            out = model(labels=labels(run, given, rng), return_logits=False, **given)
            losses += [out.loss, out.lm_loss, out.balance_loss, out.num_labelled]
            model.backward()
        if step == _STEPS - 1:
            gradients = digest([dict(model.gradients), dict(model.has_gradient)])
        losses.append(update(model, optimizer, at_once=step % 2 == 0))
    model.eval()
    out = model(return_logits=True, return_routes=True, **inputs(run, rng))
    return {
        "losses": losses, "gradients": gradients, "parameters": dict(model.parameters),
        "random state": model.random_state, "logits": out.logits, "routes": routes(out),
    }  # fmt: skip


def update(model: Any, optimizer: mom.AdamW, at_once: bool) -> float:
    """Clip, step and zero the gradients, in one call or in three; the norm."""
    if at_once:
        return optimizer.step(0.5, zero_grad=True)
    norm = mom.clip_grad_norm(model, 0.5)
    optimizer.step()
    model.zero_grad()
    return norm


def routes(out: Any) -> list[Any]:
    """Scores, indices and weights of all halves, blocks and rounds."""
    if hasattr(out.routes, "index"):
        return [
            [out.routes.scores[half][n], out.routes.index[half][n], out.routes.weight[half][n]]
            if half in out.routes.index else None
            for half in ("attn", "ffn") for n in range(len(out.routes.rounds))
        ]  # fmt: skip
    # versions before routes were arrays
    rounds = [entry for half in ("attn", "ffn") for block in out.routes[half] for entry in block]
    return [entry and [entry["scores"], entry["index"], entry["weight"]] for entry in rounds]


# ------------------------------------------------------------------------------------------------------- generation
def generate(case: Generation) -> Parts:
    """New tokens, and logits and routes along the way of a decoder that is used step by step."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    vocab = case.config.vocab_size
    prompts = [rng.integers(0, vocab, length) for length in case.lengths]
    model = new_model(case.config, case.dtype)
    tokens = model.generate(prompts, 18, weights=case.weights, **case.sampling)

    decoder = mom.Decoder(model, case.weights, capacity=40)
    logits = [decoder.prefill(prompts)]
    for _ in range(3):
        logits.append(decoder.step(logits[-1].argmax(axis=1)))
    decoder.reorder([len(prompts) - 1, *range(len(prompts))])
    logits.append(decoder.step(rng.integers(0, vocab, len(prompts) + 1)))
    places = [block.place for block in model.blocks]
    rounds = range(case.config.rounds if places else 0)
    routes = [decoder.route(p, r, half) for p, r, half in itertools.product(places, rounds, ("attn", "ffn"))]
    logits.append(decoder.prefill(rng.integers(0, vocab, (len(prompts) + 1, 6))))
    return {
        "tokens": tokens, "logits": logits, "routes": routes, "continued": decoder.generate(5, **case.sampling),
        "lengths": decoder.lengths, "last logits": decoder.logits,
    }  # fmt: skip


def search_beams(width: int) -> Parts:
    """A beam search written with a decoder's steps and reordering."""
    model = new_model(mom.MoMConfig(**{**SMALL, "initializer_range": 0.3}))
    decoder = mom.Decoder(model)
    logits = decoder.prefill([[1, 2, 3, 4]])
    totals, beams, seen = np.zeros(1), [[]], [logits]
    for _ in range(9):
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        values += totals[:, None] - np.log(np.exp(values).sum(axis=1, keepdims=True))
        best = np.argsort(-values, axis=None, kind="stable")[:width]
        origin, token = np.unravel_index(best, values.shape)
        totals, beams = values.ravel()[best], [[*beams[o], int(t)] for o, t in zip(origin, token, strict=True)]
        decoder.reorder(origin)
        logits = decoder.step(token)
        seen.append(logits)
    return {"tokens": beams, "logits": seen, "totals": totals}


# ------------------------------------------------------------------------------------------------------------ tasks
class Listener:
    """A callback that keeps the losses of a run's steps and the scores of its evaluations."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.evaluations: list[Any] = []

    def record(self, record: Mapping[str, Any]) -> None:
        """Keep a record's numbers."""
        if record["kind"] == "train":
            self.steps.append([record["step"], record["loss"], record["lr"]])
        elif record["kind"] == "eval":
            self.evaluations.append([record["step"], record["score"] if "score" in record else record["val_loss"]])

    def close(self) -> None:
        """Nothing to close."""

    def parts(self) -> Parts:
        """What was kept."""
        return {"losses": self.steps, "history": self.evaluations}


class Tasks:
    """Texts in a temporary folder, and the cases that train on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs = itertools.count()

    def cases(self) -> dict[str, Case]:
        """All cases by name."""
        return {
            "task train and resume": self.train_and_resume,
            "task train bf16 checkpointed": self.train_checkpointed,
            "task pretrain two phases": self.pretrain,
            "task glue cola": self.glue_cola,
            "task glue stsb bf16": self.glue_stsb,
            "task glue sst2 routers only": self.glue_routers,
            "task xsum": self.xsum,
            "task xsum bf16 checkpointed": self.xsum_checkpointed,
            "task classifier": self.classifier,
            "task regressor head only": self.regressor,
            "generate summaries with 1 beam": functools.partial(self.summaries, 1),
            "generate summaries with 3 beams": functools.partial(self.summaries, 3),
        }

    # ------------------------------------------------------------------ texts
    def sentences(self, count: int, seed: int) -> list[str]:
        """Sentences of 4 to 9 words."""
        rng = np.random.default_rng(seed)
        words = "the a red old lamp door cat river runs falls opens sings near under over again today".split()
        return [" ".join(rng.choice(words, rng.integers(4, 10))).capitalize() + "." for _ in range(count)]

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Of 320 tokens."""
        return mom.Tokenizer.train(self.sentences(200, 0), 320)

    @functools.cached_property
    def tokens(self) -> Path:
        """A folder of token files."""
        source, out = self.folder / "documents", self.folder / "tokens"
        source.mkdir()
        for i in range(20):
            (source / f"{i:02}.txt").write_text("\n".join(self.sentences(40, 100 + i)), encoding="utf-8")
        prepare(source, out, tokenizer=self.tokenizer, val_fraction=0.2, progress=False)
        return out

    @functools.cached_property
    def glue_files(self) -> Path:
        """Task files of CoLA and STS-B."""
        for split, count in (("train", 42), ("dev", 15)):
            texts, others = self.sentences(count, 1), self.sentences(count, 2)
            self.write("glue/CoLA", split, [f"x\t{i % 2}\t\t{text}" for i, text in enumerate(texts)])
            header = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
            rows = [
                f"{i}\tg\tf\t2024\t{i}\tnone\tnone\t{a}\t{b}\t{i * 7 % 51 / 10}"
                for i, (a, b) in enumerate(zip(texts, others, strict=True))
            ]
            self.write("glue/STS-B", split, ["\t".join(header), *rows])
        return self.folder / "glue"

    @functools.cached_property
    def xsum_files(self) -> Path:
        """Documents and summaries as JSON lines."""
        for split, count in (("train", 30), ("validation", 9), ("test", 5)):
            pairs = zip(self.sentences(4 * count, 3), self.sentences(4 * count, 4), strict=True)
            rows = [{"id": str(i), "document": f"{a} {b}", "summary": a} for i, (a, b) in enumerate(pairs)]
            self.write("xsum", split, [json.dumps(row) for row in rows[:count]], ".jsonl")
        return self.folder / "xsum"

    def write(self, folder: str, split: str, lines: Sequence[str], suffix: str = ".tsv") -> None:
        """A file of one split."""
        path = self.folder / folder / f"{split}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def model(self, dtype: str = "float32", **fields: Any) -> Any:
        """A language model with the tokenizer."""
        size = {"vocab_size": self.tokenizer.vocab_size, "n_positions": 48, "n_embd": 32, "n_inner": 64}
        made = mom.MoM(mom.MoMConfig(**{**SMALL, **size, **fields}), seed=3, dtype=dtype)
        made.tokenizer = self.tokenizer
        return made

    def new_folder(self) -> Path:
        """A folder that is not there yet."""
        return self.folder / f"run-{next(self._runs)}"

    # ------------------------------------------------------------------ language models
    def train(self, model: Any, run_dir: Path, **settings: Any) -> tuple[Any, Parts]:
        """A run of `mom.train`: its result, and the parts to hash."""
        heard = Listener()
        result = mom.train(
            model, self.tokens, run_dir=run_dir, steps=6, batch_size=3, sequence_length=32, accumulation=2, lr=0.01,
            warmup=2, eval_every=3, eval_batches=2, progress=False, callbacks=[heard], **settings,
        )  # fmt: skip
        return result, {"last": [result.lm_loss, result.val_loss], "parameters": dict(model.parameters)} | heard.parts()

    def train_and_resume(self) -> Parts:
        """A run, and its second half again from the checkpoint in the middle."""
        folder, settings = self.new_folder(), {"router_type": "gru-random-softmax", **DROPOUT}
        result, whole = self.train(self.model(**settings), folder, save_every=3)
        shutil.rmtree(result.checkpoint)
        result, again = self.train(self.model(**settings), folder, save_every=3, resume=True)
        assert digest(again["parameters"]) == digest(whole["parameters"]), "a resumed run has other bits"
        return whole | {"resumed": again}

    def train_checkpointed(self) -> Parts:
        """With other settings of optimizer and schedule."""
        model = self.model("bfloat16", balance_counts="step")
        settings = {"schedule": "linear", "final_lr": 0.2, "clip": 0.3, "sampling": "consecutive", "weight_decay": 0.3}
        return self.train(model, self.new_folder(), activation_checkpointing=True, **settings)[1]

    def pretrain(self) -> Parts:
        """A plain GPT-2, and the Mixture-of-Modules made of it."""
        parts, vanilla = {}, None
        for phase in ("vanilla", "mom"):
            heard = Listener()
            result = mom.pretrain(
                self.model().config, self.tokens, self.new_folder(), phase=phase, vanilla=vanilla, tokens=8000,
                progress=False, callbacks=[heard],
            )  # fmt: skip
            vanilla = result.model
            parts[phase] = {"parameters": dict(result.model.parameters)} | heard.parts()
        return parts

    # ------------------------------------------------------------------ fine-tuning
    def glue(self, model: Any, task: str, data: Any, **settings: Any) -> Parts:
        """A run of `mom.glue.finetune`."""
        heard = Listener()
        result = mom.glue.finetune(
            model, task, data, epochs=2, batch_size=4, lr=0.003, progress=False, callbacks=[heard], **settings
        )
        return {
            "metrics": [result.metrics, result.score, result.baseline],
            "seeds": [[seed.seed, seed.metrics, seed.score] for seed in result.seeds],
            "parameters": dict(result.model.parameters),
        } | heard.parts()

    def glue_cola(self) -> Parts:
        """Two seeds, accumulation and dropout."""
        return self.glue(self.model(), "cola", self.glue_files, seeds=(0, 1), accumulation=2, dropout=0.1)

    def glue_stsb(self) -> Parts:
        """Regression on pairs of sentences."""
        return self.glue(self.model("bfloat16"), "stsb", self.glue_files, schedule="cosine", warmup=0.2)

    def glue_routers(self) -> Parts:
        """Only routers and head learn."""
        rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(self.sentences(40, 5))]
        return self.glue(self.model(), "sst2", {"train": rows[:30], "dev": rows[30:]}, train="routers", patience=1)

    def xsum_run(self, model: Any, **settings: Any) -> Parts:
        """A run of `mom.xsum.finetune`, the scores and the summaries."""
        heard = Listener()
        result = mom.xsum.finetune(
            model, self.xsum_files, max_summary=16, epochs=2, batch_size=4, lr=0.003, progress=False,
            callbacks=[heard], **settings,
        )  # fmt: skip
        scores = mom.xsum.evaluate(result.model, self.xsum_files, num_beams=2)
        return {
            "validation": [result.val_loss, result.train_rows, result.val_rows],
            "scores": [scores.rouge, scores.loss, scores.summaries], "parameters": dict(result.model.parameters),
        } | heard.parts()  # fmt: skip

    def xsum(self) -> Parts:
        """Accumulation over summaries of unequal length, and dropout."""
        return self.xsum_run(self.model(), accumulation=2, dropout=0.1)

    def xsum_checkpointed(self) -> Parts:
        """Less memory."""
        return self.xsum_run(self.model("bfloat16"), activation_checkpointing=True, schedule="constant")

    def classifier(self) -> Parts:
        """A classifier with a new model and a tokenizer of its own."""
        texts, config = self.sentences(40, 6), mom.MoMConfig(**{**SMALL, "vocab_size": 300, "n_positions": 48})
        made = mom.TextClassifier(config, epochs=2, batch_size=8, validation_fraction=0.2, dropout=0.1, seed=5)
        made.fit(texts, ["even" if i % 2 == 0 else "odd" for i in range(len(texts))])
        return {"probabilities": made.predict_proba(texts), "parameters": dict(made.model_.parameters)}

    def regressor(self) -> Parts:
        """A regressor whose head alone learns."""
        texts = self.sentences(40, 7)
        made = mom.TextRegressor(self.model(), epochs=2, batch_size=8, train="head", seed=5)
        made.fit(texts, [len(text) / 40 for text in texts])
        return {"values": made.predict(texts), "parameters": dict(made.model_.parameters)}

    def summaries(self, num_beams: int) -> Parts:
        """Generated texts."""
        model = self.model(initializer_range=0.3)
        options = {"max_summary": 14, "num_beams": num_beams, "no_repeat_ngram_size": num_beams}
        return {"texts": mom.xsum.summarize(model, self.sentences(6, 8), **options)}


# ----------------------------------------------------------------------------------------------------- the machinery
#: The part that stands for a case that raised an exception.
_FAILED = "failed"


def feed(sha: Any, value: Any) -> None:
    """Add a value to a hash: numbers as float64, arrays with type and shape, mappings in the order of their names."""
    if isinstance(value, np.ndarray):
        sha.update(f"{value.dtype.str}{value.shape}".encode())
        sha.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value):
            sha.update(f"{name}:".encode())
            feed(sha, value[name])
    elif value is None or isinstance(value, str):
        sha.update(repr(value).encode())
    elif isinstance(value, Iterable):
        sha.update(b"[")
        for item in value:
            feed(sha, item)
        sha.update(b"]")
    else:
        sha.update(np.float64(value).tobytes())


def digest(value: Any) -> str:
    """SHA-256 of nested numbers, texts and arrays."""
    sha = hashlib.sha256()
    feed(sha, value)
    return sha.hexdigest()


def all_cases(folder: Path) -> dict[str, Case]:
    """Every case by name; `folder` is for files."""
    found: list[tuple[str, Case]] = [
        *((f"train {run.name}", functools.partial(train, run)) for run in TRAINING),
        *((f"generate {case.name}", functools.partial(generate, case)) for case in GENERATION),
        *((f"generate {width} beams", functools.partial(search_beams, width)) for width in (2, 5)),
        *Tasks(folder).cases().items(),
    ]
    assert len(dict(found)) == len(found), "two cases have the same name"
    return dict(found)


def hashed(case: Case) -> dict[str, str]:
    """Hash of each part of a case; of a case that fails, the reason instead."""
    try:
        return {part: digest(value) for part, value in case().items()}
    except Exception as error:
        traceback.print_exc()
        return {_FAILED: repr(error)}


def compute(cases: Mapping[str, Case], levels: Sequence[str], threads: Sequence[int]) -> dict[str, dict[str, str]]:
    """Hashes of all parts by "case/level/threads"; a line per case on standard error."""
    hashes = {}
    for number, (name, case) in enumerate(cases.items(), 1):
        started = time.perf_counter()
        for level, count in itertools.product(levels, threads):
            mom.set_cpu_level(level)
            mom.set_num_threads(count)
            hashes[f"{name}/{level}/{count}"] = hashed(case)
        print(f"{number}/{len(cases)} {name}: {time.perf_counter() - started:.2f} s", file=sys.stderr, flush=True)
    return hashes


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What is not the same in two sets of hashes."""
    lines = [f"{key}: only in the first" for key in first if key not in second]
    lines += [f"{key}: only in the second" for key in second if key not in first]
    for key in first:
        a, b = first[key], second.get(key)
        if b is not None and a != b:
            parts = [part for part in {**a, **b} if a.get(part) != b.get(part)]
            lines.append(f"{key}: {', '.join(parts)}")
    return lines


def thread_differences(hashes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Where the number of threads changes a result."""
    by_threads: dict[str, dict[str, Any]] = {}
    for key, parts in hashes.items():
        case, count = key.rsplit("/", 1)
        by_threads.setdefault(count, {})[case] = parts
    (first, reference), *others = by_threads.items()
    return [f"{first} and {n} threads: {line}" for n, other in others for line in differences(reference, other)]


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="compute all hashes and write them to this file")
    action.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help="list the differences of two files")
    levels = mom.cpu_info()["levels"]
    parser.add_argument("--levels", nargs="+", choices=levels, default=levels, help="default: all of this machine")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose name contains it")
    return parser.parse_args()


def main() -> int:
    """0 if nothing differs."""
    asked = arguments()
    if asked.compare:
        first, second = (json.loads(path.read_text(encoding="utf-8")) for path in asked.compare)
        lines = differences(first, second)
        print("\n".join(lines) or f"{len(first)} results are the same", flush=True)
        return int(bool(lines))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: case for name, case in all_cases(Path(folder)).items() if asked.only in name}
        if not cases:
            print(f"--only: no case has {asked.only!r} in its name", file=sys.stderr)
            return 2
        hashes = compute(cases, asked.levels, asked.threads)
    asked.out.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    lines = [f"{key}: {parts[_FAILED]}" for key, parts in hashes.items() if _FAILED in parts]
    lines += thread_differences(hashes)
    print("\n".join(lines) or "the number of threads changes nothing")
    print(f"{len(cases)} cases, {len(hashes)} results, {time.perf_counter() - started:.0f} s")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
