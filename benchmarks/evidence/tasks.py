"""Fine-tunes, prunes and counts the models of the central comparison. What has a result is not done again.

    python benchmarks/evidence/tasks.py runs/central --glue glue --xsum xsum --data data/valid --out_dir results/tasks

Each model gets the folder ``out_dir/HASH`` with a JSON file for each piece of work:

- ``sst2.json``, ``qnli.json``, ``stsb.json``, ``qqp.json``, ``mnli.json``: fine-tuned on the task and scored on its dev
  set. The seed is that of the pre-training, so three seeds of a model spread by both.
- ``xsum.json``: fine-tuned on summaries, and 500 articles of the test set summarised greedily.
- ``prune.json``: the losses with fewer and fewer modules, of a model with routers.
- ``flops.json``: FLOPs of a forward pass of a token, counted from the routes on unseen text.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import mom
from mom.data import TokenFile
from mom.files.folders import write_json
from mom.sweep.trial import Record, read_records

_COMMON: dict[str, Any] = {"batch_size": 32, "lr": 3e-4, "evals_per_epoch": 1, "max_length": 128}
#: Tasks on which such small models clear their baseline, and how long they are trained.
GLUE: dict[str, dict[str, Any]] = {
    "sst2": {"epochs": 1}, "qnli": {"max_steps": 125}, "stsb": {"epochs": 2}, "qqp": {"max_steps": 125},
    "mnli": {"max_steps": 125},
}  # fmt: skip
#: Of fine-tuning on summaries.
XSUM: dict[str, Any] = {"batch_size": 8, "lr": 3e-4, "epochs": 1, "evals_per_epoch": 1, "max_summary": 48}
#: Names of the variants that are fine-tuned.
TUNED = ("GPT-2", "one choice", "as published, deep, two phases")


def glue(model: mom.MoM, record: Record, task: str, data: Path) -> dict[str, Any]:
    """Score a model fine-tuned on a task."""
    result = mom.glue.finetune(
        model, task, data, seeds=[record.flat["seed"]], progress=False, **_COMMON, **GLUE[task]
    )  # fmt: skip
    return {"metrics": result.metrics, "baseline": result.baseline, "train_rows": result.train_rows,
            "dev_rows": result.dev_rows, "steps": result.seeds[0].loop.steps}  # fmt: skip


def xsum(model: mom.MoM, record: Record, data: Path) -> dict[str, Any]:
    """ROUGE of a model fine-tuned on summaries."""
    tuned = mom.xsum.finetune(model, data, seed=record.flat["seed"], progress=False, **XSUM).model
    scores = mom.xsum.evaluate(tuned, data, "test", max_summary=XSUM["max_summary"], no_repeat_ngram_size=3)
    return {"rouge": scores.rouge, "lead": scores.lead, "loss": scores.loss, "rows": len(scores.documents)}


def prune(model: mom.MoM, data: Path) -> dict[str, Any]:
    """Losses with fewer modules, by `drop_one` and at random."""
    common: dict[str, Any] = {"batches": 8, "batch_size": 8}
    return {
        by: mom.surgery.prune_curve(model, data, by=by, paper=by == "drop_one", **common).table.to_dict("records")
        for by in ("drop_one", "random")
    }


def flops(model: mom.MoM, data: Path) -> dict[str, Any]:
    """FLOPs of a token's forward pass, the head included."""
    length = model.config.n_positions
    ids = TokenFile(data, vocab_size=model.config.vocab_size).windows(np.arange(8) * length, length)
    with model.evaluating():
        routes = None if model.config.is_vanilla else model(ids, return_routes=True, keep=False).routes
    found = mom.ledger(model, ids.shape[0], ids.shape[1], routes, training=False)
    return {"per_token": found.flops() / ids.size}


def pieces(record: Record, arguments: argparse.Namespace) -> dict[str, Callable[[mom.MoM], dict[str, Any]]]:
    """The work for a model, by the names of files."""
    found: dict[str, Callable[[mom.MoM], dict[str, Any]]] = {"flops": lambda model: flops(model, arguments.data)}
    if record.settings["model"]["chunks"]:
        found["prune"] = lambda model: prune(model, arguments.data)
    if any(name in TUNED for name in record.names):
        for task in GLUE:
            found[task] = lambda model, task=task: glue(model, record, task, arguments.glue)  # type: ignore[misc]
        found["xsum"] = lambda model: xsum(model, record, arguments.xsum)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder of the sweep central.toml, with its models")
    for name, what in (("glue", "folder of GLUE"), ("xsum", "folder of XSUM"), ("data", "unseen text, prepared"),
                       ("out_dir", "folder for the results")):  # fmt: skip
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    mom.set_num_threads(arguments.threads)
    for record in read_records(arguments.dir):
        for name, work in pieces(record, arguments).items() if record.done else ():
            path = arguments.out_dir / record.folder.name / f"{name}.json"
            if path.exists():
                continue
            model = mom.MoM.from_pretrained(record.folder / "model", dtype=record.settings["dtype"])
            found = work(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
            print(f"{', '.join(record.names)}, seed {record.flat['seed']}: {name}", flush=True)


if __name__ == "__main__":
    main()
