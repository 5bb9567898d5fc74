"""Why tokens travel or stay: what the router of a trained model reads and gets in each round, and what an oracle finds.

    python benchmarks/evidence/travel.py runs/levers/HASH/model --data data/valid --output found.json

By half and round of the first block:

- ``stay``: share of tokens whose first choice is that of the round before;
- ``skip``: share of choices that are SKIP;
- ``input``, ``state``: mean cosine between what the router reads (the stream), or its state, and that of the round
  before;
- ``added``: length of what the half adds to the stream, as a share of the length of the stream;
- ``gradient``: length of the gradient of the language-model loss, summed over tokens, at the router's state of a token;
  the mean over tokens.

The oracle searches for better routes for the same modules (`mom.analysis.oracle`). ``stay`` of the oracle is that of
its routes, at the tokens whose routes it may change.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mom
from mom.data import TokenFile
from mom.files.folders import write_json

Floats = npt.NDArray[Any]


def cosine(a: Floats, b: Floats) -> float:
    """The mean over rows of the cosine between them."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean((a * b).sum(axis=-1) / np.maximum(lengths, 1e-30)))


def stays(routes: mom.Routes, half: str, tokens: Any = slice(None)) -> list[float]:
    """Share of tokens that keep their first choice, for each round but the first."""
    first = routes.module[half][..., 0][..., tokens]  # (rounds, B, T)
    return [float((now == before).mean()) for before, now in zip(first[:-1], first[1:], strict=True)]


def by_round(model: mom.MoM, ids: npt.NDArray[Any]) -> dict[str, list[dict[str, float | None]]]:
    """The figures of all rounds, by half."""
    with model.evaluating():
        out = model(ids, labels=ids, return_routes=True, capture="block0.*")
        model.zero_grad()
        model.backward(scales={"lm": 1.0})
    routes, found = out.routes, dict[str, list[dict[str, float | None]]]()
    assert routes is not None and out.captured is not None
    for half in routes.index:
        stay: list[float | None] = [None, *stays(routes, half)]
        before: dict[str, Floats] = {}
        rows = found.setdefault(half, [])
        for number, (block, round_) in enumerate(routes.rounds):
            if block:
                break
            place = f"block0.round{round_}.{half}"
            now = {name: out.captured[f"{place}.{name}"] for name in ("input", "state", "output")
                   if f"{place}.{name}" in out.captured}  # fmt: skip
            skipped = routes.module[half][number] == routes.num_modules[half]
            row: dict[str, float | None] = {"stay": stay[number], "skip": float(skipped.mean())}
            row.update({name: cosine(now[name], before[name]) for name in ("input", "state")
                        if name in before and name in now})  # fmt: skip
            lengths = {name: np.linalg.norm(value, axis=-1) for name, value in now.items()}
            row["added"] = float(np.mean(lengths["output"] / lengths["input"]))
            if "state" in now:
                slope = out.captured.gradients[f"{place}.state"]
                row["gradient"] = float(np.linalg.norm(slope, axis=-1).mean() * slope[..., 0].size)
            rows.append(row)
            before = now
    return found


def oracle(model: mom.MoM, ids: npt.NDArray[Any], samples: int, changed: int) -> dict[str, Any]:
    """Better routes for the last tokens of each sequence."""
    tokens = range(ids.shape[1] - 1 - changed, ids.shape[1] - 1)
    with model.evaluating():
        found = mom.analysis.oracle(model, ids, samples=samples, tokens=tokens, progress=False)
        own = model(ids, return_routes=True, keep=False).routes
    assert own is not None
    rows = list(tokens)
    both = {"router": own, "oracle": found.routes}
    stay = {
        half: {who: float(np.mean(stays(routes, half, rows))) for who, routes in both.items()} for half in own.index
    }
    return {
        "sequences": len(ids), "tokens": changed, "regret": found.regret, "low": found.regret_low,
        "high": found.regret_high, "random_regret": found.random_regret, "stay": stay,
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model with routers")
    parser.add_argument("--data", required=True, help="token file or prepared folder of unseen text")
    parser.add_argument("--sequences", type=int, default=16, help="sequences of 256 tokens that are measured")
    parser.add_argument("--searched", type=int, default=16, help="sequences of 64 tokens for the oracle; 0: none")
    parser.add_argument("--samples", type=int, default=2000, help="routes that the oracle tries for each sequence")
    parser.add_argument(
        "--changed", type=int, default=8, help="tokens of a sequence that the oracle may send elsewhere"
    )
    parser.add_argument("--dtype", default="bfloat16", help="number format of the passes, as in training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    mom.set_num_threads(arguments.threads)
    model = mom.MoM.from_pretrained(arguments.model, dtype=arguments.dtype)
    text = TokenFile(arguments.data, vocab_size=model.config.vocab_size)
    length = model.config.n_positions
    found: dict[str, Any] = by_round(model, text.windows(np.arange(arguments.sequences) * length, length))
    if arguments.searched:
        short = min(64, length)
        ids = text.windows(np.arange(arguments.searched) * length, short)
        found["oracle"] = oracle(model, ids, arguments.samples, arguments.changed)
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
