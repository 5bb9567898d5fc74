"""What the routing laboratory costs: interventions in a train step, and the audit and the oracle beside whole passes.

    python benchmarks/bench_laboratory.py

*step* is forward, backward and AdamW. A step with an intervention and one without take turns. The ratio is the median
over these pairs, with a 95 % interval of that median. *audit* and *oracle* are timed as they are, and again with every
pass computed from its first layer and its first token on. Results of both ways are compared. Weights are fresh.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from common import at_least, new_report, seconds_of, write_report

import mom
from mom.analysis import audit, measures, oracle, trials

STEPS = ("plain", "own routes replayed", "one input captured", "one output captured", "losses of tokens")


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """Ends of the 95 % interval of the median, from the binomial distribution of ranks."""
    ordered, n = sorted(values), len(values)
    reach = int(0.98 * n**0.5)
    return ordered[max(0, n // 2 - reach)], ordered[min(n - 1, (n - 1) // 2 + reach)]


def step_ratios(model: mom.MoM, ids: Any, pairs: int) -> list[dict[str, Any]]:
    """Seconds of a train step, and the ratio of each kind to a plain one that ran beside it."""
    optimizer = mom.AdamW(model, lr=1e-12)  # routes stay as they are
    place = f"block0.round{model.config.rounds - 1}.ffn"
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "own routes replayed": {"routes": model(ids, return_routes=True).routes},
        "one input captured": {"capture": f"{place}.input"},
        "one output captured": {"capture": f"{place}.output"},
        "losses of tokens": {"return_token_losses": True},
    }

    def step(kind: str) -> float:
        def run() -> None:
            model(ids, labels=ids, **options[kind])
            model.backward()
            optimizer.step(1.0, zero_grad=True)

        return seconds_of(run)

    rows = []
    for kind in STEPS:
        step("plain"), step(kind)
        ratios, times = [], []
        for pair in range(pairs):
            order = ("plain", kind) if pair % 2 else (kind, "plain")
            found = [step(each) for each in order]
            mine, plain = found if order[0] == kind else found[::-1]
            ratios.append(mine / plain)
            times.append(mine)
        low, high = interval_of_median(ratios)
        rows.append({"step": kind, "best": min(times), "ratio": statistics.median(ratios), "low": low, "high": high})
    return rows


@contextlib.contextmanager
def whole_passes() -> Iterator[None]:
    """The audit and the oracle compute every pass from its beginning, with the same routes and interventions."""

    def increase(self: Any, number: int, half: str, rules: Any = (), routes: Any = None) -> Any:
        self.model.random_state = self.random_state
        out = self.model(self.ids, labels=self.ids, interventions=rules, routes=routes, keep=False,
                         return_token_losses=True)  # fmt: skip
        return np.nansum(out.token_losses, axis=1, dtype=np.float64) - self.losses

    def batch(self: Any, state: Any, rows: Any, site: Any) -> Any:
        tokens = np.broadcast_to(self.ids, (len(rows), len(self.ids))).copy()
        out = self.model(tokens, labels=tokens, routes=self.routes(rows), keep=False, return_token_losses=True)
        return np.nansum(out.token_losses, axis=1, dtype=np.float64) - np.nansum(state.losses[: site.token])

    with mock.patch.object(measures._Batch, "increase", increase), mock.patch.object(trials.Trials, "_batch", batch):
        yield


def both_ways(call: Callable[[], Any]) -> tuple[dict[str, float], Any, Any]:
    """Seconds of the wall clock and of the processor, as it is and with whole passes; and what the two returned."""
    row, results = {}, []
    for name, context in (("ours", contextlib.nullcontext()), ("whole", whole_passes())):
        with context:
            wall, processor = time.perf_counter(), time.process_time()
            results.append(call())
            row[name], row[f"{name}_processor"] = time.perf_counter() - wall, time.process_time() - processor
    return row, *results


def time_audit(model: mom.MoM, ids: Any) -> dict[str, Any]:
    """All measures."""
    audit(model, ids[:1])
    row, ours, whole = both_ways(lambda: audit(model, ids))
    np.testing.assert_allclose(ours.table["drop_one"], whole.table["drop_one"], atol=1e-5)
    return {"what": "audit", "tokens": ids.size, **row}


def time_oracle(model: mom.MoM, ids: Any, samples: int, what: str, **where: Any) -> dict[str, Any]:
    """A greedy search in one sequence. `where` says what may change."""
    oracle(model, ids[:1], samples=8, **where)
    row, ours, whole = both_ways(lambda: oracle(model, ids[:1], samples=samples, **where))
    np.testing.assert_allclose(ours.table["start"], whole.table["start"], rtol=1e-5)
    return {"what": what, "tokens": ids.shape[1], "routes": int(ours.table["evaluated"][0]), **row}


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="demo", help="configuration (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads (%(default)s)")
    parser.add_argument("--batch", type=at_least(1), default=8, help="sequences of a train step (%(default)s)")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of train steps; 0: none (%(default)s)")
    parser.add_argument("--audit", type=int, default=512, help="sequences of the audit; 0: none (%(default)s)")
    parser.add_argument("--length", type=at_least(2), default=128, help="tokens of a sequence (%(default)s)")
    parser.add_argument("--lengths", default="64,128", help="tokens of a sequence of the oracle (%(default)s)")
    parser.add_argument("--samples", type=at_least(1), default=1000, help="routes that the oracle tries (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file (none)")
    a = parser.parse_args()
    report = new_report("laboratory", {name: str(value) for name, value in vars(a).items()})
    mom.set_num_threads(a.threads)
    model = mom.MoM(mom.MoMConfig.preset(a.preset), seed=0)
    lengths = [int(length) for length in a.lengths.split(",") if length]
    random = np.random.default_rng(0)
    ids = random.integers(0, model.config.vocab_size, (max(a.batch, a.audit), max([a.length, *lengths]))).astype(
        np.int32
    )
    if a.pairs:
        print(f"{'step':<26}{'best ms':>9}{'ratio':>8}{'95 % interval':>18}")
        report["steps"] = step_ratios(model.copy(), ids[: a.batch, : a.length], a.pairs)
        for row in report["steps"]:
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            print(f"{row['step']:<26}{1e3 * row['best']:>9.2f}{row['ratio']:>8.3f}{interval:>18}")
    print(f"\n{'search':<22}{'tokens':>8}{'ours':>9}{'whole passes':>14}{'ratio':>7}   seconds of the wall clock")
    report["searches"] = [time_audit(model, ids[: a.audit, : a.length])] if a.audit else []
    for length in lengths:
        last = [model.config.chunks * model.config.rounds - 1]
        part = ids[:, :length]
        report["searches"] += [
            time_oracle(model, part, a.samples, "oracle"),
            time_oracle(model, part, a.samples, "oracle, last round", rounds=last),
            time_oracle(model, part, a.samples, "oracle, middle token", tokens=[length // 2]),
        ]
    for row in report["searches"]:
        times = f"{row['ours']:>9.2f}{row['whole']:>14.2f}{row['whole'] / row['ours']:>7.2f}"
        processor = f"{row['ours_processor']:.2f} and {row['whole_processor']:.2f} of the processor"
        print(f"{row['what']:<22}{row['tokens']:>8}{times}   {processor}")
    write_report(report, a.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
