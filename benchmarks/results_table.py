"""Makes the tables of docs/results.md from the files that the commands on that page write.

    python benchmarks/results_table.py runs/gpt2 runs/mom --output docs/results.md

Each folder belongs to one model: ``*/log.jsonl`` and ``*/step-*`` of its phases of pre-training, ``valid.json``,
``glue*/TASK/results.json`` (several such folders are for several seeds) and ``xsum/rouge.json``. Missing results are
left out of the tables. With ``--output`` the tables replace the text between the document's marks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mom.glue import TASKS, GlueTask

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
#: A task counts as learnt if its median is so many standard errors of the baseline above the baseline.
CLEARLY = 2.0


def read(path: Path) -> Any:
    """A JSON file's content, or None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, all columns but the first to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def phases(folder: Path) -> list[dict[str, Any]]:
    """The phases of pre-training in their order: settings and log."""
    found = []
    for log in folder.glob("*/log.jsonl"):
        last = max(log.parent.glob("step-*"), default=None, key=lambda path: path.name)
        if last is not None:
            config = read(last / "training.json")["config"]
            records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            found.append({"folder": log.parent, "config": config, "records": records})
    return sorted(found, key=lambda phase: phase["records"][0]["time"])


def pretraining(models: Sequence[Path]) -> str:
    """Sizes, tokens and losses."""
    import mom

    rows = []
    for folder in models:
        total = 0
        runs = phases(folder)
        for number, run in enumerate(runs):
            config = run["config"]
            tokens = config["steps"] * config["batch_size"] * config["accumulation"] * config["sequence_length"]
            total += tokens
            name = folder.name if len(runs) == 1 else f"{folder.name}, phase {number + 1}"
            model = mom.MoM.from_pretrained(run["folder"] / "model")
            train = [r["lm_loss"] for r in run["records"] if r["kind"] == "train"]
            cells = [f"{statistics.mean(train[-50:]):.3f}", "", "", ""]
            valid = read(folder / "valid.json") if number == len(runs) - 1 else None
            if valid is not None:
                whole = valid[-1]
                cells[1:] = [f"{whole['loss']:.3f}", f"{whole['perplexity']:.1f}", f"{whole['bits_per_byte']:.3f}"]
            rows.append([name, f"{model.num_parameters:,}", f"{tokens:,}", f"{total:,}", *cells])
    head = ["model", "parameters", "tokens", "in all", "train loss", "valid loss", "perplexity", "bits per byte"]
    return table(head, rows)


def margin(task: GlueTask, baseline: float, rows: int) -> float:
    """`CLEARLY` standard errors of the baseline on so many rows: of a share, or of a correlation that is none."""
    error = 1.0 if task.metrics[0] in ("matthews", "pearson") else math.sqrt(baseline * (1.0 - baseline))
    return CLEARLY * error / math.sqrt(rows)


def deciding(task: GlueTask) -> str:
    """The metric that says whether a task is learnt: accuracy, or else the first correlation."""
    return "accuracy" if "accuracy" in task.metrics else task.metrics[0]


def glue_results(folder: Path, task: str) -> dict[str, Any] | None:
    """A task's results with the seeds of all its folders."""
    found = [read(path) for path in sorted(folder.glob(f"glue*/{task}/results.json"))]
    for result in found[1:]:
        if result["config"] != found[0]["config"]:
            raise SystemExit(f"{folder}: {task}: the seeds have unequal settings")
    return {**found[0], "seeds": [seed for result in found for seed in result["seeds"]]} if found else None


def glue(models: Sequence[Path]) -> str:
    """Dev metrics in percent beside the majority-class baseline, and where they are clearly above it."""
    rows = []
    for task in TASKS.values():
        found = [glue_results(folder, task.name) for folder in models]
        known = next((result for result in found if result is not None), None)
        if known is None:
            continue
        for number, metric in enumerate(task.metrics):
            baseline = known["baseline"][metric]
            cells = [task.title if number == 0 else "", metric, f"{100 * baseline:.1f}"]
            for result in found:
                if result is None:
                    cells.append("")
                    continue
                values = [100 * seed[metric] for seed in result["seeds"]]
                text = f"{statistics.median(values):.1f}"
                text += f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
                above = statistics.median(values) / 100 - baseline
                learnt = metric == deciding(task) and above > margin(task, baseline, result["dev_rows"])
                cells.append(f"**{text}**" if learnt else text)
            runs, config = known["seeds"], known["config"]
            about = [str(len(runs)), f"{known['train_rows']:,}", f"{max(seed['steps'] for seed in runs):,}",
                     f"{config['batch_size'] * config.get('accumulation', 1)}", f"{known['dev_rows']:,}"]  # fmt: skip
            rows.append([*cells, *(about if number == 0 else [""] * len(about))])
    names = [folder.name for folder in models]
    return table(["task", "metric", "majority", *names, "seeds", "train rows", "steps", "of", "dev rows"], rows)


def summaries(models: Sequence[Path]) -> str:
    """ROUGE beside the LEAD baselines."""
    rows, found = [], {folder.name: read(folder / "xsum" / "rouge.json") for folder in models}
    scores = [values for values in found.values() if values is not None]
    if not scores:
        return ""
    kinds = list(scores[0]["rouge"])

    def row(name: str, rouge: dict[str, float], loss: str) -> list[str]:
        return [name, *(f"{rouge[kind]:.2f}" for kind in kinds), loss]

    rows = [row(name, scores[0][name], "") for name in ("LEAD-1", "LEAD-3")]
    rows += [row(n, v["rouge"], f"{v['loss']:.3f}") for n, v in found.items() if v is not None]
    return table([f"{scores[0]['rows']} documents", *(kind.replace("rouge", "ROUGE-") for kind in kinds), "loss"], rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="FOLDER", help="a model's folder; its name is shown")
    parser.add_argument("--output", type=Path, metavar="FILE", help="document to put the tables into")
    arguments = parser.parse_args()
    parts = [
        ("Pre-training", pretraining(arguments.models)),
        ("GLUE, dev sets, in percent", glue(arguments.models)),
        ("XSUM, test set", summaries(arguments.models)),
    ]
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts if body)
    if arguments.output is None:
        print(text)
        return 0
    document = arguments.output.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"{arguments.output}: no {BEGIN} ... {END}", file=sys.stderr)
        return 1
    arguments.output.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
