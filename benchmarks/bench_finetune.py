"""Examples per second of fine-tuning on GLUE sentences, beside Hugging Face's GPT-2 for sequence classification.

Both sides train on the same batches of rows of similar length, from the same weights. This package packs the rows;
Hugging Face pads them to the longest row of the batch. Contestants take turns in every round, so a slow moment of the
machine affects all of them. They run in two processes, one per interpreter, that live as long as the benchmark.
README.md in this folder says what is compared.

    python benchmarks/bench_finetune.py --data glue --torch-python /path/to/venv/bin/python

With ``--share`` it measures instead what share of the time of ``mom.glue.finetune`` is spent on reading, tokenising and
metrics, for this package's contestants.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_train_step import ADAMW, MAX_NORM, PRESETS  # noqa: E402
from common import Process, at_least, new_report, serve, some_of, write_report  # noqa: E402

#: Contestant: the library that runs it, and how.
CONTESTANTS = {
    "mom-vanilla": ("mom", "plain"),
    "mom": ("mom", "mom"),
    "hf-eager": ("torch", "eager"),
    "hf-sdpa": ("torch", "sdpa"),
}
YARDSTICKS = ("hf-eager", "hf-sdpa")
DTYPES = ("float32", "bfloat16")

#: Made-up sentences: medians of the number of words of each text, and the deviation of its logarithm; log-normal. Those
#: of CoLA's and RTE's train sets.
WORDS = {"cola": ((7, 0.44),), "rte": ((31, 0.67), (8, 0.42))}
MADE_UP_ROWS = {"train": 2000, "dev": 300}


# --------------------------------------------------------------------------- data
def made_up(task: Any, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Splits of rows with a task's columns, of random words."""
    import numpy as np

    rng = np.random.default_rng(seed)
    syllables = np.array(["ka", "lo", "mi", "ne", "ru", "sha", "to", "vi", "pe", "dun"])
    lexicon = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(3000)]

    def text(median: float, spread: float) -> str:
        count = int(np.clip(np.round(rng.lognormal(np.log(median), spread)), 1, 240))
        return " ".join(lexicon[i] for i in (rng.pareto(1.0, count) * 20).astype(int) % len(lexicon)).capitalize() + "."

    return {
        split: [
            {**{column: text(*words) for column, words in zip(task.hub_texts, WORDS[task.name], strict=True)},
             "label": int(rng.integers(len(task.labels)))}
            for _ in range(count)
        ]
        for split, count in MADE_UP_ROWS.items()
    }  # fmt: skip


def sentences(options: argparse.Namespace, name: str) -> tuple[Any, Any, str]:
    """A task, a source of its splits for `read_glue`, and where that comes from."""
    from mom.glue import find_task

    task = find_task(name)
    if options.data is not None and Path(options.data).is_dir():
        return task, options.data, "GLUE's files"
    return task, made_up(task, options.seed), f"made-up, log-normal numbers of words, (median, sigma) {WORDS[name]}"


def build_model(preset: str, texts: Any, options: argparse.Namespace, dtype: str = "float32") -> Any:
    """A language model with a tokenizer trained on the texts."""
    import mom

    config = mom.MoMConfig.preset(preset)
    model = mom.MoM(config, seed=options.seed, dtype=dtype)
    model.tokenizer = mom.Tokenizer.train([text for row in texts for text in row], min(config.vocab_size, 8192))
    return model


def choose_batches(rows: list[Any], options: argparse.Namespace) -> list[Any]:
    """Batches of an epoch as fine-tuning draws them: as many as are wanted, from short to long."""
    import numpy as np

    from mom.data.batches import bucketed

    lengths = np.array([len(row) for row in rows])
    batches = bucketed(lengths, options.batch_size, np.random.default_rng(options.seed))
    batches = [batch for batch in batches if len(batch) == options.batch_size] or batches
    batches.sort(key=lambda batch: int(lengths[batch].sum()))
    at = (np.arange(options.steps) + 0.5) / options.steps * len(batches)
    return [batches[int(i)] for i in at]


# --------------------------------------------------------------------------- workers
def load_batches(path: str) -> list[tuple[list[Any], Any]]:
    """Token rows and labels of every batch."""
    import numpy as np

    with np.load(path) as file:
        cuts = np.cumsum(file["lengths"])[:-1]
        rows = np.split(file["tokens"], cuts)
        size = int(file["batch_size"])
        labels = file["labels"]
    return [(rows[i : i + size], labels[i : i + size]) for i in range(0, len(rows), size)]


class MomWorker:
    """Trains this package's classifiers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import mom

        self.mom = mom
        mom.set_num_threads(settings["threads"])
        self.made: dict[str, Callable[[], dict[str, Any]]] = {}

    def facts(self) -> dict[str, Any]:
        return {"mom": self.mom.__version__, **self.mom.cpu_info()}

    def make(self, about: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        from mom.data.batches import pack_rows

        batches = load_batches(about["batches"])
        model = self.mom.MoMForSequenceClassification.from_pretrained(about["folders"][about["how"]], about["dtype"])
        optimizer = self.mom.AdamW(model, **ADAMW)

        def step(rows: list[Any], labels: Any) -> float:
            tokens, lengths = pack_rows(rows)
            loss = model(tokens, labels, lengths=lengths, return_logits=False).loss
            model.backward()
            optimizer.step(MAX_NORM, zero_grad=True)
            return float(loss)

        return lambda: timed(step, batches)


class TorchWorker:
    """Trains Hugging Face's GPT-2."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(settings["threads"])

    def facts(self) -> dict[str, Any]:
        return {"torch": self.torch.__version__, "transformers": self.transformers.__version__}

    def model(self, folder: str, how: str, pad: int) -> Any:
        """The classifier with one kind of attention.

        Where the installed version has no fused attention for GPT-2 (before 4.42), it is put in the place of the
        composed one. Padding is on the right, so with causal attention no real token sees it: no mask is needed, which
        is in favour of the fused kernel.
        """
        kind = self.transformers.GPT2ForSequenceClassification
        options = {"pad_token_id": pad, "use_cache": False, "torch_dtype": self.torch.float32}
        if how == "eager":
            return kind.from_pretrained(folder, attn_implementation="eager", **options)
        try:
            return kind.from_pretrained(folder, attn_implementation="sdpa", **options)
        except ValueError:
            model = kind.from_pretrained(folder, attn_implementation="eager", **options)

        def fused(query: Any, key: Any, value: Any, *_: Any) -> tuple[Any, None]:
            return self.torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True), None

        for layer in model.transformer.h:
            layer.attn._attn = fused
        return model

    def make(self, about: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        import numpy as np

        torch = self.torch
        batches = load_batches(about["batches"])
        model = self.model(about["folders"]["plain"], about["how"], about["pad"]).train()
        decayed = [v for n, v in model.named_parameters() if not ("ln_" in n or n.endswith(".bias"))]
        plain = [v for n, v in model.named_parameters() if "ln_" in n or n.endswith(".bias")]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, **ADAMW, fused=True)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=about["dtype"] == "bfloat16")
        masked = about["how"] == "eager"

        def step(rows: list[Any], labels: Any) -> float:
            lengths = np.array([len(row) for row in rows])
            real = np.arange(lengths.max()) < lengths[:, None]
            tokens = np.full(real.shape, about["pad"])
            tokens[real] = np.concatenate(rows)
            mask = torch.from_numpy(real.astype(np.int64)) if masked else None
            with autocast:
                loss = model(torch.from_numpy(tokens), attention_mask=mask, labels=torch.from_numpy(labels)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.item())

        return lambda: timed(step, batches)


def timed(step: Callable[[list[Any], Any], float], batches: list[tuple[list[Any], Any]]) -> dict[str, Any]:
    """Seconds of a pass over the batches, processor time, and the losses."""
    cpu, started = time.process_time(), time.perf_counter()
    losses = [step(*batch) for batch in batches]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpus": (time.process_time() - cpu) / seconds, "losses": losses}


def worker(kind: str, settings: dict[str, Any]) -> int:
    """Answers the benchmark's questions: makes a contestant, or times a pass of the one that it made before."""
    made: dict[str, Callable[[], dict[str, Any]]] = {}

    def answer(own: Any, what: str, about: Any) -> Any:
        if what == "make":
            made[about["name"]] = own.make(about)
            return None
        if what == "forget":
            made.clear()
            return None
        return made[about]()

    return serve(lambda: (MomWorker if kind == "mom" else TorchWorker)(settings), answer)


# --------------------------------------------------------------------------- parent
def prepare(name: str, size: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes models and batches for the workers, and says what they are."""
    import numpy as np

    from mom.data.encode import encode_texts
    from mom.glue import read_glue
    from mom.training.adapt import classifier_from

    task, source, origin = sentences(options, name)
    train = read_glue(source, task, "train")
    folders = {}
    for how, preset in zip(("mom", "plain"), PRESETS[size], strict=True):
        body = build_model(preset, train.texts, options)
        classifier = classifier_from(body, task.num_labels, "single_label_classification", options.seed)
        folders[how] = str(folder / how)
        classifier.save_pretrained(folders[how], naming="huggingface" if how == "plain" else "canonical")
    rows, cut = encode_texts(body.tokenizer, train.texts, body.config.n_positions)
    chosen = choose_batches(rows, options)
    picked = [rows[i] for batch in chosen for i in batch]
    lengths = np.array([len(row) for row in picked])
    tokens = np.concatenate(picked)
    labels = np.asarray(train.labels)[np.concatenate(chosen)].astype(np.int64)
    np.savez(folder / "batches.npz", tokens=tokens, lengths=lengths, labels=labels, batch_size=options.batch_size)
    unused = np.setdiff1d(np.arange(body.config.vocab_size), tokens)
    if not unused.size:
        raise SystemExit("every id of the vocabulary occurs in the sentences; none is left for padding")
    by_batch = np.split(lengths, np.cumsum([len(batch) for batch in chosen])[:-1])
    return {
        "folders": folders, "batches": str(folder / "batches.npz"), "pad": int(unused[-1]), "origin": origin,
        "rows": len(rows), "cut": cut, "examples": len(lengths), "tokens": int(lengths.sum()),
        "padded_tokens": int(sum(len(part) * part.max() for part in by_batch)),
    }  # fmt: skip


def measure(name: str, size: str, processes: dict[str, Process], options: argparse.Namespace) -> dict[str, Any]:
    """All contestants of one task and size."""
    with tempfile.TemporaryDirectory() as folder:
        about = prepare(name, size, Path(folder), options)
        samples: dict[str, list[dict[str, Any]]] = {}
        for contestant in options.contestants:
            library, how = CONTESTANTS[contestant]
            for dtype in options.dtypes if library in processes else ():
                key = f"{contestant} {dtype}"
                processes[library].ask("make", {**about, "name": key, "how": how, "dtype": dtype})
                processes[library].ask("sample", key)  # memory is asked for and kernels are chosen now
                samples[key] = []
        for done in range(options.runs):
            for key, found in samples.items():
                found.append(processes[CONTESTANTS[key.split()[0]][0]].ask("sample", key))
                speed, cpus = about["examples"] / found[-1]["seconds"], found[-1]["cpus"]
                print(f"{name} {size} run {done + 1}/{options.runs} {key}: {speed:,.0f} examples/s, {cpus:.1f} CPUs",
                      file=sys.stderr)  # fmt: skip
        for process in processes.values():
            process.ask("forget")
    speeds = {key: [about["examples"] / s["seconds"] for s in found] for key, found in samples.items()}
    results: dict[str, Any] = {}
    for key, found in speeds.items():
        contestant, dtype = key.split()
        row = {"best": max(found), "median": statistics.median(found), "first_loss": samples[key][0]["losses"][0]}
        ran = [f"{y} {dtype}" for y in YARDSTICKS if f"{y} {dtype}" in speeds]
        if contestant not in YARDSTICKS and ran:
            against = max(ran, key=lambda y: max(speeds[y]))
            pairs = zip(found, speeds[against], strict=True)
            row |= {"against": against, "times_best": row["best"] / max(speeds[against]),
                    "times_median": statistics.median(a / b for a, b in pairs)}  # fmt: skip
        results[key] = row
    del about["folders"], about["batches"]
    return {"data": about, "results": results, "samples": samples}


def print_table(name: str, size: str, found: dict[str, Any], options: argparse.Namespace) -> None:
    data = found["data"]
    print(
        f"\n{name}, {size} ({' and '.join(PRESETS[size])}): {data['origin']}; {options.steps} batches of "
        f"{options.batch_size}, {data['tokens'] / data['examples']:.1f} tokens per example, "
        f"{100 * (data['padded_tokens'] / data['tokens'] - 1):.1f} % padding where rows are padded"
    )
    print(f"{'contestant':<14}{'dtype':<10}{'examples/s':>11}{'median':>9}{'x HF':>7}{'median':>8}  against")
    for key, row in found["results"].items():
        contestant, dtype = key.split()
        line = f"{contestant:<14}{dtype:<10}{row['best']:>11,.1f}{row['median']:>9,.1f}"
        if "against" in row:
            line += f"{row['times_best']:>7.2f}{row['times_median']:>8.2f}  {row['against']}"
        print(line)


def share(name: str, size: str, how: str, dtype: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one call of `mom.glue.finetune`, and of what in it is not model work."""
    import mom
    from mom.glue import finetuning as glue

    task, source, _origin = sentences(options, name)
    preset = PRESETS[size][("mom", "plain").index(how)]
    model = build_model(preset, glue.read_glue(source, task, "train").texts, options, dtype)
    spent = {"reading": 0.0, "tokenising": 0.0, "metrics": 0.0}
    names = {"read_glue": "reading", "encode_texts": "tokenising", "baseline_metrics": "metrics",
             "glue_metrics": "metrics"}  # fmt: skip
    originals = {function: getattr(glue, function) for function in names}

    def clocked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return run

    mom.set_num_threads(options.threads)
    for function, part in names.items():
        setattr(glue, function, clocked(originals[function], part))
    try:
        started = time.perf_counter()
        result = glue.finetune(model, task, source, epochs=options.epochs, patience=0, progress=False,
                               batch_size=options.batch_size)  # fmt: skip
        total = time.perf_counter() - started
    finally:
        for function, original in originals.items():
            setattr(glue, function, original)
    return {**spent, "training_steps": result.seeds[0].loop.seconds, "total": total,
            "share": sum(spent.values()) / total}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", type=some_of(WORDS), default=list(WORDS), help="comma-separated (cola,rte)")
    parser.add_argument("--sizes", type=some_of(PRESETS), default=["mini"], help="comma-separated (mini)")
    parser.add_argument("--contestants", type=some_of(CONTESTANTS), default=list(CONTESTANTS),
                        help=f"comma-separated, of {', '.join(CONTESTANTS)} (all)")  # fmt: skip
    parser.add_argument("--dtypes", type=some_of(DTYPES), default=list(DTYPES), help="comma-separated (both)")
    parser.add_argument("--data", help="folder with GLUE's CoLA and RTE; without it sentences are made up")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="rows of a batch (%(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=12, help="batches of a run (%(default)s)")
    parser.add_argument("--runs", type=at_least(1), default=5, help="rounds over all contestants (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads of every contestant (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of weights and batches (%(default)s)")
    parser.add_argument("--torch-python", help="interpreter with PyTorch and transformers")
    parser.add_argument("--share", action="store_true", help="measure reading, tokenising and metrics instead")
    parser.add_argument("--epochs", type=at_least(1), default=1, help="of --share (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("bench_finetune.json"), help="JSON file (%(default)s)")
    parser.add_argument("--worker", choices=("mom", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker, json.loads(options.settings))

    kept = ("threads", "seed", "batch_size", "steps", "runs", "epochs")
    report = new_report("finetune", {name: getattr(options, name) for name in kept} | {"adamw": ADAMW})
    if options.share:
        report["share"] = {}
        for name in options.tasks:
            for size, contestant, dtype in itertools.product(options.sizes, options.contestants, options.dtypes):
                library, how = CONTESTANTS[contestant]
                if library != "mom":
                    continue
                key = f"{name} {size} {contestant} {dtype}"
                found = report["share"][key] = share(name, size, how, dtype, options)
                parts = ", ".join(f"{part} {found[part]:.2f} s" for part in ("reading", "tokenising", "metrics"))
                print(f"{key}: {parts} of {found['total']:.1f} s: {100 * found['share']:.1f} %", flush=True)
        write_report(report, options.output)
        return 0

    processes = {"mom": Process(__file__, sys.executable, "mom", {"threads": options.threads})}
    if "unavailable" in processes["mom"].hello:
        raise SystemExit(processes["mom"].hello["unavailable"])
    if options.torch_python:
        processes["torch"] = Process(__file__, options.torch_python, "torch", {"threads": options.threads})
        if "unavailable" in processes["torch"].hello:
            print(f"without PyTorch: {processes['torch'].hello['unavailable']}")
            del processes["torch"]
    report |= {kind: process.hello["facts"] for kind, process in processes.items()}
    report["measured"] = {}
    for name in options.tasks:
        for size in options.sizes:
            found = measure(name, size, processes, options)
            report["measured"][f"{name} {size}"] = found
            print_table(name, size, found, options)
    for process in processes.values():
        process.end()
    write_report(report, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
