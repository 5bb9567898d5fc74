"""Costs that do not depend on the amount of work: the import, a forward pass over one short sentence, Python in a step.

    python benchmarks/bench_overheads.py

*import* is the time of the statement `import mom` in a fresh interpreter. It includes NumPy; NumPy's share is also
printed. *sentence* is ``model(tokens)`` of the `mini` preset for a batch of one. *Python in a step* is the time of the
calls of a train step of a tiny model that is not spent in the extension. There is no loop over tokens in it, but NumPy
checks the range of ids and labels. After a long step the interpreter's own code is also no longer in the caches.
Therefore the time is printed as a share of the step, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import at_least, best_and_median, new_report, seconds_of, write_report


def import_times(repeats: int) -> dict[str, list[float]]:
    """Seconds of ``import mom`` and of ``import numpy``, taking turns."""
    times: dict[str, list[float]] = {"mom": [], "numpy": []}
    for _ in range(repeats):
        for name, values in times.items():
            code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            values.append(float(done.stdout))
    return times


def sentence_times(lengths: list[int], threads: list[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of a forward pass over one sentence."""
    import numpy as np

    import mom

    model = mom.MoM(mom.MoMConfig.preset("mini"))
    rng = np.random.default_rng(0)
    rows = []
    for n in threads:
        mom.set_num_threads(n)
        for length in lengths:
            tokens = rng.integers(0, model.config.vocab_size, (1, length), dtype=np.int32)
            for logits in (False, True):
                run = lambda: model(tokens, keep=False, return_logits=logits)  # noqa: B023, E731
                run()
                best, median = best_and_median(seconds_of(run) for _ in range(repeats))
                rows.append({"threads": n, "tokens": length, "logits": logits, "best": best, "median": median})
    return rows


class Watched:
    """An object of the extension whose methods are timed."""

    def __init__(self, core: Any) -> None:
        self.__dict__.update(core=core, seconds=0.0)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.core, name)
        if not callable(found):
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return found(*args, **kwargs)
            finally:
                self.__dict__["seconds"] += time.perf_counter() - started

        return timed

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.core, name, value)


def python_times(lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    """Seconds of a train step outside of the extension; the model is tiny, so that they stand out."""
    import numpy as np

    import mom

    config = mom.MoMConfig.preset(
        "mini", vocab_size=64, n_positions=max(lengths), n_embd=8, n_head=1, n_inner=8, router_dim=4
    )
    mom.set_num_threads(1)
    model = mom.MoM(config)
    optimizer = mom.AdamW(model, lr=1e-5)
    core, step_core = Watched(model._core), Watched(optimizer._core)
    model._core, optimizer._core = core, step_core
    rows = []
    for length in lengths:
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length), dtype=np.int32)

        def parts() -> tuple[float, float]:
            before = core.seconds + step_core.seconds
            whole = seconds_of(lambda: (model(tokens, labels=tokens), model.backward(), optimizer.step(1.0)))  # noqa: B023
            model.zero_grad()
            return whole - (core.seconds + step_core.seconds - before), whole

        parts()
        outside, whole = zip(*(parts() for _ in range(repeats)), strict=True)
        best, median = best_and_median(outside)
        rows.append({"tokens": length, "best": best, "median": median, "step_median": best_and_median(whole)[1]})
    return rows


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=at_least(1), default=10, help="imports (%(default)s)")
    parser.add_argument("--passes", type=at_least(1), default=100, help="forward passes and steps (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file (none)")
    a = parser.parse_args()
    report = new_report("overheads", {"repeats": a.repeats, "passes": a.passes})
    report["import"] = import_times(a.repeats)
    for name, values in report["import"].items():
        best, median = best_and_median(values)
        print(f"import {name:<8} best {best:.3f} s, median {median:.3f} s")
    print(f"\n{'sentence through mini':<24}{'threads':>8}{'tokens':>8}{'best ms':>9}{'median':>8}")
    report["sentence"] = sentence_times([1, 10, 30], [1, 2], a.passes)
    for row in report["sentence"]:
        what = "with logits" if row["logits"] else "forward"
        times = f"{1e3 * row['best']:>9.2f}{1e3 * row['median']:>8.2f}"
        print(f"{what:<24}{row['threads']:>8}{row['tokens']:>8}{times}")
    print(f"\n{'Python in a step':<24}{'tokens':>16}{'best us':>9}{'median':>8}{'of the step':>13}")
    report["python"] = python_times([16, 256, 4096], a.passes)
    for row in report["python"]:
        print(
            f"{'':<24}{row['tokens']:>16}{1e6 * row['best']:>9.0f}{1e6 * row['median']:>8.0f}"
            f"{100 * row['median'] / row['step_median']:>11.1f} %"
        )
    write_report(report, a.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
