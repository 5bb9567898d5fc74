"""Draws what bench_scaling.py has measured: one picture for each sweep, into docs/images/.

    python benchmarks/plot_scaling.py bench_scaling.json

One line is the time per token of the best step. The other is the time expected if the first point's time grew in
proportion to the multiplications. Areas are the parts of the step (medians).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
AXES = {
    "length": "tokens per sequence", "pool": "modules per pool", "rounds": "rounds",
    "skip": "share of choices that are SKIP", "threads": "threads",
}  # fmt: skip
#: Sweeps whose values double.
DOUBLING = ("length", "pool", "rounds")


def draw(sweep: str, rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """One picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter

    tokens = [row["shape"][0] * row["shape"][1] for row in rows]
    values = [row["value"] for row in rows]
    if sweep == "skip":  # what came out, not what was aimed at
        values = [statistics.mean(row["forced"].values()) for row in rows]
    best = [1e6 * min(row["step_seconds"]) / n for row, n in zip(rows, tokens, strict=True)]
    work = [row["flop"] / n for row, n in zip(rows, tokens, strict=True)]
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    parts = [
        [1e6 * statistics.median(row["part_seconds"][part]) / n for row, n in zip(rows, tokens, strict=True)]
        for part in ("forward", "backward", "optimizer")
    ]
    axes.stackplot(
        values, parts, labels=("forward", "backward", "optimizer"), colors=("#9ecae1", "#6baed6", "#fdae6b"), alpha=0.7
    )
    axes.plot(values, best, "o-", color="#08306b", label="step")
    ideal = [best[0] * w / work[0] for w in work]
    label = "in proportion to multiplications"
    if sweep == "threads":
        ideal, label = [best[0] / n for n in values], "in proportion to threads"
    axes.plot(values, ideal, "--", color="#444444", label=label)
    if sweep in DOUBLING:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_formatter(NullFormatter())
    if sweep != "skip":
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[sweep])
    axes.set_ylabel("microseconds per token")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path, help="JSON file of bench_scaling.py")
    parser.add_argument("--out_dir", type=Path, default=IMAGES, help="folder for the pictures (docs/images)")
    a = parser.parse_args()
    report = json.loads(a.results.read_text(encoding="utf-8"))
    settings = report["settings"]
    a.out_dir.mkdir(parents=True, exist_ok=True)
    for sweep, rows in report["sweeps"].items():
        title = f"Train step of '{settings['preset']}', {settings['dtype']}, {settings['tokens']} tokens"
        if sweep != "threads":
            title += f", {settings['threads']} threads"
        path = a.out_dir / f"scaling_{sweep}.png"
        draw(sweep, rows, title, path)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
