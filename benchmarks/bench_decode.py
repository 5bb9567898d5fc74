"""Tokens per second of cached decoding, beside the memory's bandwidth and Hugging Face's ``generate``.

Generating reads every executed weight once per token, so the speed is bounded by bandwidth divided by bytes. The
bandwidth is measured with a triad in the same rounds. Contestants take turns in every round, so a slow moment of the
machine affects all of them. They run in two processes, one per interpreter, that live as long as the benchmark.

    python benchmarks/bench_decode.py --torch-python /path/to/venv/bin/python

With ``--perplexity MODEL TOKENS`` it prints instead how much bfloat16 and int8 weights raise a trained model's
perplexity on a token file. Every token then goes through a step of the decoder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from common import Process, at_least, integers, new_report, serve, write_report  # noqa: E402

TRIAD = "triad"
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Contestant:
    """One thing to time.

    Attributes
    ----------
    library : {"mom", "torch"}
    model : str
        Preset (mom), or ``"gpt2"`` for Hugging Face's default configuration, which has the same size.
    weights : str
        Number format of the weights.
    batch : int
        Sequences generated at once.
    """

    library: str
    model: str
    weights: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.library} {self.model} {self.weights} B={self.batch}"


# --------------------------------------------------------------------------- workers
class MomWorker:
    """Times decoders and the triad."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import mom

        self.mom, self.settings = mom, settings
        mom.set_num_threads(settings["threads"])
        self.models: dict[str, Any] = {}
        self.decoders: dict[tuple[str, str], Any] = {}

    def facts(self) -> dict[str, Any]:
        return {"mom": self.mom.__version__, **self.mom.cpu_info()}

    def model(self, name: str) -> Any:
        if name not in self.models:
            self.models[name] = self.mom.MoM(self.mom.MoMConfig.preset(name), seed=0)
        return self.models[name]

    def decoder(self, c: Contestant) -> Any:
        key = (c.model, c.weights)
        if key not in self.decoders:
            self.decoders[key] = self.mom.Decoder(self.model(c.model), c.weights)
        decoder = self.decoders[key]
        decoder.clear()
        decoder.prefill(prompts(c.batch, self.settings["prompt"], self.model(c.model).config.vocab_size))
        return decoder

    def sample(self, c: Contestant) -> float:
        """Seconds per token and sequence."""
        decoder, new = self.decoder(c), self.settings["new"]
        decoder.generate(2)
        start = time.perf_counter()
        decoder.generate(new)
        return (time.perf_counter() - start) / new

    def bytes_per_step(self, c: Contestant) -> dict[str, float]:
        """Bytes of weights of a step, on average over the tokens that `sample` generates.

        ``executed`` counts a matrix as often as a round of the step runs it for some sequence, ``distinct`` once.
        Routers, biases and LayerNorms are float32.
        """
        decoder, model = self.decoder(c), self.model(c.model)
        config, width = model.config, WEIGHT_BYTES[c.weights]
        sizes = {n: a.size * (width if is_converted(n) else 4) for n, a in model.parameters.items()}
        always = sum(s for n, s in sizes.items() if not n.startswith("transformer.h.") and "wpe" not in n)
        blocks = {block.place: block for block in model.blocks}
        for i in range(len(config.places())):
            if i not in blocks:
                always += sum(s for n, s in sizes.items() if n.startswith(f"transformer.h.{i}."))
        executed = distinct = 0.0
        steps = min(self.settings["new"], 16) if blocks else 1
        for _ in range(steps):
            decoder.generate(1)  # the next call reads it
            seen: dict[str, int] = {}
            for place, block in blocks.items():
                for half, pool, router in (
                    ("attn", block.attention_pool, block.attention_router), ("ffn", block.ffn_pool, block.ffn_router)
                ):  # fmt: skip
                    for r in range(config.rounds):
                        chosen = range(len(pool))
                        if router is not None and not config.routing_all_possible_path:
                            chosen = sorted(set(decoder.route(place, r, half)["index"].ravel().tolist()))
                        for m in chosen:
                            if m < len(pool):
                                for n in pool[m]._names.values():
                                    seen[n] = seen.get(n, 0) + 1
                        for n in router._names.values() if router is not None else ():
                            if r or "h2h.weight" not in n:
                                seen[n] = seen.get(n, 0) + 1
            executed += sum(count * sizes[n] for n, count in seen.items())
            distinct += sum(sizes[n] for n in seen)
        return {"executed": always + executed / steps, "distinct": always + distinct / steps}

    def triad(self) -> float:
        """GB/s of a[i] = b[i] + s * c[i], 12 bytes per element."""
        return float(self.mom.runtime.memory_bandwidth(threads=self.settings["threads"], repeats=3).triad)


def is_converted(name: str) -> bool:
    """Whether the decoder stores this parameter in its own format."""
    matrices = ("c_attn", "c_proj", "c_fc")
    return name == "transformer.wte.weight" or (name.endswith("weight") and any(m in name for m in matrices))


def prompts(batch: int, length: int, vocab_size: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab_size, (batch, length))


class TorchWorker:
    """Times Hugging Face's ``generate``."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch, self.transformers, self.settings = torch, transformers, settings
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(0)
        self.models: dict[str, Any] = {}
        self.first: dict[str, float] = {}  # seconds of the prompt and the first token, the best so far

    def facts(self) -> dict[str, Any]:
        return {"torch": self.torch.__version__, "transformers": self.transformers.__version__}

    def sample(self, c: Contestant) -> float:
        if c.weights not in self.models:
            config = self.transformers.GPT2Config()
            model = self.transformers.GPT2LMHeadModel(config).eval().to(getattr(self.torch, c.weights))
            self.models[c.weights] = model
        model = self.models[c.weights]
        ids = self.torch.from_numpy(prompts(c.batch, self.settings["prompt"], model.config.vocab_size))

        def seconds(new: int) -> float:
            start = time.perf_counter()
            with self.torch.inference_mode():
                model.generate(
                    ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                    do_sample=False, pad_token_id=0,
                )  # fmt: skip
            return time.perf_counter() - start

        # The prompt and the first token are taken off.
        self.first[c.name] = min(self.first.get(c.name, math.inf), seconds(1))
        return (seconds(self.settings["new"] + 1) - self.first[c.name]) / self.settings["new"]

    def bytes_per_step(self, c: Contestant) -> dict[str, float]:
        return {}


def worker(kind: str, settings: dict[str, Any]) -> int:
    """Answers the benchmark's questions."""

    def answer(own: Any, what: str, contestant: Any) -> Any:
        return own.triad() if what == TRIAD else getattr(own, what)(Contestant(**contestant))

    return serve(lambda: (MomWorker if kind == "mom" else TorchWorker)(settings), answer)


# --------------------------------------------------------------------------- parent
def perplexity(folder: str, tokens: str, windows: int, length: int, threads: int) -> int:
    """What converted weights cost: mean loss of the same text, token by token, for every format."""
    import numpy as np

    import mom
    from mom.data import TokenFile

    mom.set_num_threads(threads)
    model = mom.MoM.from_pretrained(folder)
    file = TokenFile(tokens, vocab_size=model.config.vocab_size)
    starts = np.linspace(0, len(file) - length - 1, windows).astype(int)
    text = np.stack([np.asarray(file.windows([s], length)).reshape(-1)[:length] for s in starts])
    losses: dict[str, float] = {}
    for weights in WEIGHT_BYTES:
        decoder = mom.Decoder(model, weights, capacity=length)
        logits, total = decoder.prefill(text[:, :1]), 0.0
        for t in range(1, length):
            wide = logits.astype(np.float64)
            wide -= wide.max(axis=1, keepdims=True)
            total += float((np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(windows), text[:, t]]).sum())
            logits = decoder.step(text[:, t])
        losses[weights] = total / (windows * (length - 1))
    print(f"{windows * (length - 1):,} tokens")
    for weights, loss in losses.items():
        change = 100 * (math.exp(loss - losses["float32"]) - 1)
        print(f"{weights:>9}  loss {loss:.5f}  perplexity {math.exp(loss):9.4f}  {change:+.3f} %")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="gpt2,mom-small", help="presets of this package")
    parser.add_argument("--weights", default="float32,bfloat16,int8")
    parser.add_argument("--batches", type=integers, default=[1, 8], help="sequences generated at once (1,8)")
    parser.add_argument("--torch-python", help="interpreter with PyTorch and transformers")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--prompt", type=at_least(1), default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=at_least(1), default=24, help="timed tokens of a sample")
    parser.add_argument("--threads", type=at_least(1), default=2)
    parser.add_argument("--output", type=Path, default=Path("bench_decode.json"), help="JSON file (%(default)s)")
    parser.add_argument("--perplexity", nargs=2, metavar=("MODEL", "TOKENS"), help="measure that instead")
    parser.add_argument("--windows", type=at_least(1), default=16, help="of --perplexity")
    parser.add_argument("--length", type=at_least(2), default=256, help="tokens of a window")
    parser.add_argument("--worker", choices=("mom", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return worker(options.worker, json.loads(options.settings))
    if options.perplexity:
        return perplexity(*options.perplexity, options.windows, options.length, options.threads)

    settings = {"threads": options.threads, "prompt": options.prompt, "new": options.new}
    report = new_report("decode", {**settings, "rounds": options.rounds})
    processes = {"mom": Process(__file__, sys.executable, "mom", settings)}
    contestants = [
        Contestant("mom", model, weights, batch)
        for model in options.models.split(",")
        for weights in options.weights.split(",")
        for batch in options.batches
    ]
    if "unavailable" in processes["mom"].hello:
        raise SystemExit(processes["mom"].hello["unavailable"])
    if options.torch_python:
        processes["torch"] = Process(__file__, options.torch_python, "torch", settings)
        if "unavailable" in processes["torch"].hello:
            print(f"without PyTorch: {processes['torch'].hello['unavailable']}")
            del processes["torch"]
        else:
            contestants += [Contestant("torch", "gpt2", w, b) for w in ("float32", "bfloat16") for b in options.batches]

    for c in contestants:
        processes[c.library].ask("sample", vars(c))  # models and decoders are made now
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    triad: list[float] = []
    for done in range(options.rounds):
        triad.append(processes["mom"].ask(TRIAD))
        for c in contestants:
            seconds[c.name].append(processes[c.library].ask("sample", vars(c)))
        triad.append(processes["mom"].ask(TRIAD))
        print(f"round {done + 1} of {options.rounds}: triad {triad[-2]:.1f} and {triad[-1]:.1f} GB/s", file=sys.stderr)
    bandwidth = max(triad)
    rows = []
    for c in contestants:
        samples = seconds[c.name]
        row: dict[str, Any] = {**vars(c), "seconds_per_step": samples, "best": c.batch / min(samples),
                               "median": c.batch / statistics.median(samples)}  # fmt: skip
        row["bytes"] = processes[c.library].ask("bytes_per_step", vars(c))
        if row["bytes"]:
            moved = row["bytes"]["executed"]
            row["bound"] = c.batch * bandwidth * 1e9 / moved
            # Each sample beside the triads around it, and the best beside the best.
            row["share_best"] = moved / min(samples) * 1e-9 / bandwidth
            row["share_distinct_best"] = row["bytes"]["distinct"] / min(samples) * 1e-9 / bandwidth
            row["share_median"] = statistics.median(
                moved / s * 1e-9 / max(triad[2 * i : 2 * i + 2]) for i, s in enumerate(samples)
            )
        other = seconds.get(Contestant("torch", "gpt2", c.weights, c.batch).name)
        if c.library == "mom" and c.model == "gpt2" and other:
            row["times_torch_best"] = min(other) / min(samples)
            row["times_torch_median"] = statistics.median(a / b for a, b in zip(other, samples, strict=True))
        rows.append(row)
    report |= {kind: process.hello["facts"] for kind, process in processes.items()}
    report |= {"triad": triad, "rows": rows}
    for process in processes.values():
        process.end()
    print_table(rows, triad, options)
    write_report(report, options.output)
    return 0


def print_table(rows: list[dict[str, Any]], triad: list[float], options: argparse.Namespace) -> None:
    print(
        f"{options.threads} threads, prompt of {options.prompt}, {options.new} new tokens, {options.rounds} rounds; "
        f"triad: best {max(triad):.1f}, median {statistics.median(triad):.1f} GB/s"
    )
    print(
        f"{'':7}{'model':<11}{'weights':<10}{'B':>3}{'tok/s':>9}{'median':>9}{'MB/step':>9}{'GB/s':>7}{'bound':>9}"
        f"{'share':>7}{'median':>8}{'once':>6}{'x HF':>7}{'median':>8}"
    )
    for r in rows:
        line = f"{r['library']:<7}{r['model']:<11}{r['weights']:<10}{r['batch']:>3}{r['best']:>9.1f}{r['median']:>9.1f}"
        if r["bytes"]:
            moved = r["bytes"]["executed"]
            line += (
                f"{moved / 1e6:>9.1f}{1e-9 * moved / min(r['seconds_per_step']):>7.1f}{r['bound']:>9.1f}"
                f"{100 * r['share_best']:>6.0f}%{100 * r['share_median']:>7.0f}%{100 * r['share_distinct_best']:>5.0f}%"
            )
        if "times_torch_best" in r:
            line += f"{r['times_torch_best']:>7.2f}{r['times_torch_median']:>8.2f}"
        print(line)


if __name__ == "__main__":
    raise SystemExit(main())
