"""Writes the tables and plots of docs/evidence.md from the results beside this file.

    python benchmarks/evidence/tables.py

A table replaces what stands in the document between its marks, ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.
Without results there is no table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mom import MoMConfig
from mom.files.folders import write_file
from mom.glue import TASKS, GlueTask
from mom.sweep import compare, plot, read_grid
from mom.sweep.comparing import chosen
from mom.sweep.tables import numbers_of
from mom.sweep.trial import Record, read_records

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
#: The loss over all held-out text.
LOSS = "whole_val_loss"


# ---------------------------------------------------------------------- reading
def variants(grid: str) -> list[str]:
    """Names of the variants of a grid, in its order."""
    return [variant["name"] for variant in read_grid(HERE / f"{grid}.toml").variants]


def trials(folder: Path, grid: str) -> dict[str, list[Record]]:
    """The trials of each variant that has any, in the order of the grid."""
    records = list(read_records(folder)) if folder.is_dir() else []
    named = {name for record in records for name in record.names}
    return {name: chosen(records, name, "name") for name in variants(grid) if name in named}


def mean(records: Iterable[Record], name: str) -> float:
    """The mean of a number in ``done.json``; NaN if they do not have it."""
    found = [numbers_of(record.done).get(name, math.nan) for record in records]
    return statistics.fmean(found)


def runs_of_modules(records: Sequence[Record], half: str) -> float:
    """Attention or feed-forward modules that a token runs in one pass, ordinary layers included."""
    config = MoMConfig(**records[0].settings["model"])
    if config.is_vanilla:
        return float(config.n_layer)
    ordinary = config.num_bottom_layers + config.num_top_layers
    choices = config.chunks * config.rounds * config.routing_top_k
    skip = mean(records, f"routes.{half}.skip")
    return ordinary + choices * (1 - skip)


# ---------------------------------------------------------------------- writing
def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table. All columns but the first `words` stand to the right. Without rows there is none."""
    rows = list(rows)
    if not rows:
        return ""
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def number(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def losses(records: Sequence[Record]) -> str:
    """Mean and, of several seeds, standard deviation."""
    found = [numbers_of(record.done)[LOSS] for record in records]
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.3f}{spread}"


def difference(folder: Path, name: str, other: str) -> str:
    """The difference of the losses of two variants, with its interval if there are several pairs of seeds."""
    seeds = [{record.flat["seed"] for record in read_records(folder) if one in record.names} for one in (name, other)]
    if name == other or not seeds[0] & seeds[1]:
        return ""
    found = compare(folder, name, other, value=LOSS)
    interval = "" if found.n == 1 else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.difference:+.3f}{interval}"


def central(results: Path) -> str:
    """Sizes, work and losses of the central comparison."""
    folder, rows = results / "central", []
    for name, records in trials(folder, "central").items():
        rows.append([
            name, f"{mean(records, 'parameters'):,.0f}", number(mega_flops(results, records), 1),
            *(number(runs_of_modules(records, half), 1) for half in ("attn", "ffn")),
            str(len(records)), losses(records), difference(folder, name, "GPT-2"),
        ])  # fmt: skip
    head = ["model", "parameters", "MFLOP", "attention", "feed-forward", "seeds", "loss", "minus GPT-2's"]
    return markdown(head, rows)


def levers(results: Path) -> str:
    """Losses of the ablations, and how tokens move."""
    folder, rows = results / "levers", []
    for name, records in trials(folder, "levers").items():
        moves = [
            number(mean(records, f"routes.{half}.{figure}"), digits)
            for figure, digits in (("kept", 2), ("distinct", 1), ("skip", 2)) for half in ("attn", "ffn")
        ]  # fmt: skip
        rows.append([
            name, number(mean(records, "parameters") / 1e6), str(len(records)), losses(records),
            difference(folder, name, "MoM"), difference(folder, name, "GPT-2"), *moves,
        ])  # fmt: skip
    rows.sort(key=lambda row: float(row[3].split()[0]))
    head = ["what is changed", "million parameters", "seeds", "loss", "minus MoM's", "minus GPT-2's", "stay: attention",
            "feed-forward", "met: attention", "feed-forward", "SKIP: attention", "feed-forward"]  # fmt: skip
    return markdown(head, rows)


def sharing(results: Path) -> str:
    """Losses of models that share one half, or both, over the depth."""
    folder = results / "sharing"
    rows = [[name, f"{mean(records, 'parameters'):,.0f}", str(len(records)), losses(records),
             difference(folder, name, "nothing shared")]
            for name, records in trials(folder, "sharing").items()]  # fmt: skip
    return markdown(["model", "parameters", "seeds", "loss", "minus that of nothing shared"], rows)


# ---------------------------------------------------------------------- tasks, pruning and routes
def pieces(results: Path, kind: str, records: Iterable[Record]) -> list[dict[str, Any]]:
    """What `tasks.py` has found for trials, as far as it has."""
    paths = [results / "tasks" / record.folder.name / f"{kind}.json" for record in records]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def mega_flops(results: Path, records: Sequence[Record]) -> float:
    found = [piece["per_token"] for piece in pieces(results, "flops", records)]
    return statistics.fmean(found) / 1e6 if found else math.nan


def deciding(task: GlueTask) -> str:
    """The metric that says whether a task is learnt: accuracy, or else the first correlation."""
    return "accuracy" if "accuracy" in task.metrics else task.metrics[0]


def margin(task: GlueTask, baseline: float, rows: int) -> float:
    """Two standard errors of the baseline on so many rows: of a share, or of a correlation that is none."""
    error = 1.0 if task.metrics[0] in ("matthews", "pearson") else math.sqrt(baseline * (1.0 - baseline))
    return 2.0 * error / math.sqrt(rows)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, with the lowest and the highest of several."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else text


def glue(results: Path) -> str:
    """Dev scores in percent beside the majority's. What is clearly above it is bold."""
    found = trials(results / "central", "central")
    names = [name for name in found if any(pieces(results, task, found[name]) for task in TASKS)]
    rows = []
    for task in TASKS.values():
        scores = {name: pieces(results, task.name, found[name]) for name in names}
        first = next((known[0] for known in scores.values() if known), None)
        if first is None:
            continue
        metric = deciding(task)
        baseline, cells = first["baseline"][metric], []
        for known in scores.values():
            values = [100 * piece["metrics"][metric] for piece in known]
            clear = values and statistics.fmean(values) / 100 - baseline > margin(task, baseline, first["dev_rows"])
            text = spread(values) if values else ""
            cells.append(f"**{text}**" if clear else text)
        about = [f"{first['train_rows']:,}", f"{first['steps']:,}", f"{first['dev_rows']:,}"]
        rows.append([task.title, metric, f"{100 * baseline:.1f}", *cells, *about])
    return markdown(["task", "metric", "majority", *names, "train rows", "steps", "dev rows"], rows, words=2)


def xsum(results: Path) -> str:
    """ROUGE beside the LEAD baselines."""
    found = trials(results / "central", "central")
    scores = {name: known for name, records in found.items() if (known := pieces(results, "xsum", records))}
    if not scores:
        return ""
    first = next(iter(scores.values()))[0]
    kinds = list(first["rouge"])
    rows = [[lead, *(f"{values[kind]:.2f}" for kind in kinds), ""] for lead, values in first["lead"].items()]
    rows += [
        [name, *(spread([piece["rouge"][kind] for piece in known], 2) for kind in kinds),
         spread([piece["loss"] for piece in known], 3)]
        for name, known in scores.items()
    ]  # fmt: skip
    head = [f"{first['rows']} documents", *(kind.replace("rouge", "ROUGE-") for kind in kinds), "loss"]
    return markdown(head, rows)


def pruning(results: Path) -> str:
    """How much the loss rises with fewer modules, those of least effect left out or random ones."""
    rows = []
    for name, records in trials(results / "central", "central").items():
        found = pieces(results, "prune", records)
        for number, entry in enumerate(found[0]["drop_one"] if found else ()):
            rises = [piece["drop_one"][number]["rise"] for piece in found]
            by_chance = [rise for piece in found if (rise := _rise(piece["random"], entry)) is not None]
            rows.append([
                name, f"{entry['attn']} + {entry['ffn']}", spread(rises, 3),
                spread(by_chance, 3) if by_chance else "",
            ])  # fmt: skip
    return markdown(["model", "modules left", "loss rises by", "random ones left out"], rows, words=2)


def _rise(rows: Iterable[dict[str, Any]], entry: dict[str, Any]) -> float | None:
    """The rise with the same number of modules."""
    same = [row["rise"] for row in rows if all(row[name] == entry[name] for name in ("half", "attn", "ffn"))]
    return same[0] if same else None


def travels(results: Path) -> list[tuple[str, dict[str, Any]]]:
    """What `travel.py` has found, with the name of the variant and the number of its steps."""
    found = []
    for grid in ("central", "levers"):
        for name, records in trials(results / grid, grid).items():
            for record in records:
                path = results / "travel" / f"{record.folder.name}.json"
                if path.is_file():
                    label = f"{name}, {record.flat['steps']:,} steps"
                    found.append((label, json.loads(path.read_text(encoding="utf-8"))))
    return found


def rounds(results: Path) -> str:
    """What routers read and get, by round."""
    rows = []
    for name, found in travels(results):
        for half, title in (("attn", "attention"), ("ffn", "feed-forward")):
            cells = [
                ", ".join(number(row[name], 2) for row in found[half] if row.get(name) is not None)
                for name in ("stay", "input", "state", "added")
            ]
            gradients = ", ".join(number(1000 * row["gradient"], 0) for row in found[half] if "gradient" in row)
            rows.append([name, title, *cells, gradients])
    head = ["model", "half", "stay", "what is read", "state", "added", "gradient, thousandths"]
    return markdown(head, rows, words=2)


def oracles(results: Path) -> str:
    """How much better other routes for the same modules would be."""
    rows = []
    for name, whole in travels(results):
        if "oracle" not in whole:
            continue
        found = whole["oracle"]
        stay = [number(found["stay"][half][who]) for half in ("attn", "ffn") for who in ("router", "oracle")]
        rows.append([
            name, f"{found['regret']:.3f} ({found['low']:.3f} to {found['high']:.3f})",
            number(found["random_regret"], 3), *stay,
        ])  # fmt: skip
    head = ["model", "regret", "of random routes", "attention stays", "oracle", "feed-forward stays", "oracle"]
    return markdown(head, rows)


#: The tables by the names of their marks.
TABLES: dict[str, Callable[[Path], str]] = {
    "central": central, "glue": glue, "xsum": xsum, "pruning": pruning, "levers": levers, "rounds": rounds,
    "oracles": oracles, "sharing": sharing,
}  # fmt: skip


def replaced(document: str, name: str, table: str) -> str:
    """The document with a table between its marks."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not found or not last:
        raise SystemExit(f"the document has no {begin} ... {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def draw(results: Path, images: Path) -> None:
    """Curves of the central comparison, if it has results."""
    names = list(trials(results / "central", "central"))
    if not names:
        return
    figure: Any = plot(results / "central", names)
    figure.savefig(images / "evidence_losses.png", dpi=200)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--output", type=Path, default=DOCS / "evidence.md", help="document to put the tables into")
    parser.add_argument("--images", type=Path, default=DOCS / "images", help="folder for the plots")
    arguments = parser.parse_args()
    text = arguments.output.read_text(encoding="utf-8")
    for name, made in TABLES.items():
        if table := made(arguments.results):
            text = replaced(text, name, table)
    write_file(arguments.output, text.encode())
    draw(arguments.results, arguments.images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
