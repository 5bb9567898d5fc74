"""Speed and memory of one train step, beside PyTorch and the machine's own matrix product.

One step is forward, backward, clipping to norm 1 and AdamW with weight decay on all but LayerNorms
and biases. Implementations take turns in every round, so a slow moment of the machine affects all of them. Each
measurement runs in a process of its own, so the peak resident memory belongs to one implementation. README.md in this
folder says what the columns mean.

    python benchmarks/bench_train_step.py --torch-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from common import at_least, new_report, some_of, write_report  # noqa: E402

#: Workload: sequences per step B and their length T.
WORKLOADS: dict[str, tuple[int, int]] = {"mini": (8, 256), "base": (4, 512), "small": (1, 1024)}
#: Its presets: the MoM and the plain GPT-2.
PRESETS = {"mini": ("mini", "mini-vanilla"), "base": ("base", "base-vanilla"), "small": ("mom-small", "gpt2")}

#: What a worker may be asked for that is not a train step.
MACHINE = "machine"

LEARNING_RATE = 1e-5
ADAMW = {"lr": LEARNING_RATE, "betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1}
MAX_NORM = 1.0


@dataclass(frozen=True)
class Implementation:
    """One contestant.

    Attributes
    ----------
    library : str
        ``"torch"`` or ``"mom"``: which interpreter runs it.
    vanilla : bool
        A plain GPT-2 instead of the MoM.
    dtype : str
        ``"float32"`` or ``"bfloat16"``.
    fused : bool
        PyTorch's fused attention and GELU (MoM in PyTorch only; the plain GPT-2 always has them).
    hugging_face : bool
        GPT-2 of the package ``transformers`` instead of the small one here.
    compiled : bool
        Through ``torch.compile``.
    yardsticks : tuple of str
        Ratios are taken against the fastest of these.
    """

    library: str
    vanilla: bool = False
    dtype: str = "float32"
    fused: bool = False
    hugging_face: bool = False
    compiled: bool = False
    yardsticks: tuple[str, ...] = ()


_NANOGPT = ("torch-nanogpt", "torch-nanogpt-compiled")
_HF = ("torch-hf", "torch-hf-compiled")


def _bf16(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}-bf16" for name in names)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "torch-mom": Implementation("torch"),
    "torch-mom-fused": Implementation("torch", fused=True, yardsticks=("torch-mom",)),
    "torch-nanogpt": Implementation("torch", vanilla=True),
    "torch-nanogpt-compiled": Implementation("torch", vanilla=True, compiled=True),
    "torch-nanogpt-bf16": Implementation("torch", vanilla=True, dtype="bfloat16", yardsticks=("torch-nanogpt",)),
    "torch-nanogpt-compiled-bf16": Implementation("torch", vanilla=True, dtype="bfloat16", compiled=True),
    "torch-hf": Implementation("torch", vanilla=True, hugging_face=True),
    "torch-hf-compiled": Implementation("torch", vanilla=True, hugging_face=True, compiled=True),
    "torch-hf-bf16": Implementation("torch", vanilla=True, dtype="bfloat16", hugging_face=True),
    "torch-hf-compiled-bf16": Implementation("torch", vanilla=True, dtype="bfloat16", hugging_face=True, compiled=True),
    "mom": Implementation("mom", yardsticks=("torch-mom",)),
    "mom-bf16": Implementation("mom", dtype="bfloat16", yardsticks=("torch-mom",)),
    "mom-vanilla": Implementation("mom", vanilla=True, yardsticks=_NANOGPT + _HF),
    "mom-vanilla-bf16": Implementation("mom", vanilla=True, dtype="bfloat16", yardsticks=_bf16(_NANOGPT) + _bf16(_HF)),
}
DEFAULT_IMPLEMENTATIONS = [
    "torch-mom", "torch-nanogpt", "torch-nanogpt-bf16", "mom", "mom-bf16", "mom-vanilla", "mom-vanilla-bf16",
]  # fmt: skip


class Unavailable(Exception):
    """An implementation cannot run in this environment; the message says why."""


# --------------------------------------------------------------------------- shared by all workers
def load_config_class() -> type:
    """`MoMConfig` of this checkout, without importing the package.

    The interpreter that has PyTorch need not have the compiled package: the configuration module
    is plain Python, so it is loaded by path, as part of a package that holds nothing else.
    """
    package = "_mom_configuration"
    if package not in sys.modules:
        folder = HERE.parent / "python" / "mom"
        spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
        module = importlib.util.module_from_spec(spec)
        module.__path__ = [str(folder)]
        sys.modules[package] = module
    return importlib.import_module(f"{package}.config").MoMConfig


def random_batches(vocab_size: int, steps: int, batch: int, length: int, seed: int):
    """Tokens for every step: ndarray of int32, shape (steps, B, T), the same for all contestants."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, vocab_size, (steps, batch, length), dtype=np.int32)


def initial_value(name: str, shape: tuple[int, ...], config: Any, seed: int):
    """Initial parameter, float32, that depends on its name, shape and the seed only.

    Both MoMs start from the same numbers and hence route alike: the same work on both sides.
    """
    import numpy as np

    if "layernorm" in name or "ln_" in name or name.endswith(".bias"):
        return np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
    std = config.initializer_range
    if name.endswith(".c_proj.weight"):
        std /= (2 * config.n_layer) ** 0.5
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, np.float32) * np.float32(std)


def multiplications(
    config: Any, batch: int, length: int, chosen: Mapping[str, Iterable[Any]] | None = None
) -> dict[str, float]:
    """Floating-point operations of one train step by part: 2 per multiplication, forward and 2x backward.

    Only work that the result needs is counted, even if an implementation does more. Modules count by the tokens routed
    to them. Routers count without the product with the first round's zero state. Attention counts on and below the
    diagonal, between tokens that chose a module. The head counts for scored positions. Anchors count in full, and
    recomputation does not count.

    Parameters
    ----------
    config : MoMConfig
    batch, length : int
        B and T.
    chosen : mapping of str to iterable of ndarray of int, shape (B, T, K), optional
        Choices of every round of every block by half (``"attn"``, ``"ffn"``); a half with a single
        module needs no entry. Not needed for a plain GPT-2.

    Returns
    -------
    dict of str to float
        ``anchors``, ``modules``, ``routers``, ``attention``, ``head``.
    """
    import numpy as np

    width, inner, router = config.n_embd, config.inner_size, config.router_dim
    tokens = batch * length
    per_row = {"attn": 4 * width * width, "ffn": 2 * width * inner}
    modules_in = {"attn": config.num_attn, "ffn": config.num_ffn}
    full_triangle = batch * length * (length + 1) // 2
    count = dict.fromkeys(("anchors", "modules", "routers", "attention", "head"), 0.0)
    count["head"] = batch * (length - 1) * width * config.vocab_size
    places = config.places()
    anchors, blocks = places.count("anchor"), places.count("block")
    count["anchors"] = anchors * tokens * (per_row["attn"] + per_row["ffn"])
    pairs = anchors * full_triangle
    for half, size in modules_in.items():
        if not blocks:
            continue
        if size == 1:
            count["modules"] += blocks * config.rounds * tokens * per_row[half]
            pairs += blocks * config.rounds * full_triangle if half == "attn" else 0
            continue
        gates = 4 if config.router_random else 3
        scores = router * config.num_choices(half)
        if config.router_kind == "naive":
            routing = config.rounds * (width * router + scores)
        else:
            state_products = (config.rounds - 1) * gates * router * router
            routing = config.rounds * (gates * width * router + scores) + state_products
        count["routers"] += blocks * tokens * routing
        if chosen is None or half not in chosen:
            raise ValueError(f"chosen: no choices for half {half!r}, which has {size} modules")
        rounds_seen = 0
        for index in chosen[half]:
            used = np.asarray(index).reshape(batch, length, -1) < size
            if config.routing_all_possible_path:
                used = np.ones((batch, length, size), bool)
            count["modules"] += int(used.sum()) * per_row[half]
            if half == "attn":
                active = used.any(axis=-1)
                pairs += int((active * active.cumsum(axis=1)).sum())
            rounds_seen += 1
        if rounds_seen != blocks * config.rounds:
            raise ValueError(f"chosen: {rounds_seen} rounds for half {half!r}, expected {blocks * config.rounds}")
    count["attention"] = 2 * pairs * width
    return {part: 2.0 * 3.0 * value for part, value in count.items()}


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far."""
    # The kernel carries ru_maxrss over from the parent through fork and exec; VmHWM starts afresh.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --------------------------------------------------------------------------- workers
@dataclass
class Contestant:
    """A model ready to be timed.

    Attributes
    ----------
    step : callable
        One train step on tokens (B, T) of int32; returns the loss before the update.
    choices : callable or None
        Router choices for tokens (B, T), as `multiplications` takes them; None for a plain GPT-2.
    config : MoMConfig
    versions : dict of str to str
    """

    step: Callable[[Any], float]
    choices: Callable[[Any], dict[str, list[Any]]] | None
    config: Any
    versions: dict[str, str]


def _preset(name: str, vanilla: bool) -> str:
    return PRESETS[name][vanilla]


def hugging_face_gpt2(config: Any, seed: int) -> Any:
    """GPT-2 of the package ``transformers``, with PyTorch's fused attention."""
    try:
        import torch
        import transformers
        from transformers.models.gpt2 import modeling_gpt2
    except ImportError as error:
        raise Unavailable(f"{sys.executable} has no transformers ({error})") from None
    torch.manual_seed(seed)
    theirs = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd, n_layer=config.n_layer,
        n_head=config.n_head, n_inner=config.n_inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    try:
        return transformers.GPT2LMHeadModel._from_config(theirs, attn_implementation="sdpa")
    except ValueError:  # before version 4.42 GPT-2 had no such attention: put it where the composed one is

        def fused(_self: Any, query: Any, key: Any, value: Any, *_: Any) -> tuple[Any, None]:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True), None

        modeling_gpt2.GPT2Attention._attn = fused
        return transformers.GPT2LMHeadModel._from_config(theirs, attn_implementation="eager")


def build_torch(request: Mapping[str, Any]) -> Contestant:
    """A PyTorch contestant."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable(f"{sys.executable} has no PyTorch ({error}); name one that has with --torch-python") from None
    implementation = IMPLEMENTATIONS[request["implementation"]]
    torch.set_num_threads(request["threads"])
    config = load_config_class().preset(_preset(request["config"], implementation.vanilla))
    versions = {"torch": torch.__version__}
    if implementation.hugging_face:
        model = hugging_face_gpt2(config, request["seed"])
        versions["transformers"] = sys.modules["transformers"].__version__
    elif implementation.vanilla:
        from torch_nanogpt import TorchGPT

        model = TorchGPT(config, seed=request["seed"])
    else:
        from torch_mom import TorchMoM

        model = TorchMoM(config, seed=request["seed"], fused=implementation.fused)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(torch.from_numpy(initial_value(name, tuple(value.shape), config, request["seed"])))
    decayed, plain = [], []
    for name, value in model.named_parameters():
        exempt = "layernorm" in name or "ln_" in name or name.endswith(".bias")
        (plain if exempt else decayed).append(value)
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=implementation.dtype == "bfloat16")
    run = torch.compile(model) if implementation.compiled else model

    def step(tokens: Any) -> float:
        tokens = torch.from_numpy(tokens).long()
        with autocast:
            if implementation.vanilla and not implementation.hugging_face:
                targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -100)], dim=1)
                loss = run(tokens, targets)[1]
            else:
                loss = run(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def choices(tokens: Any) -> dict[str, list[Any]]:
        with torch.no_grad():
            routes = model(torch.from_numpy(tokens).long()).routes
        return {half: [route.index.numpy() for rounds in blocks for route in rounds] for half, blocks in routes.items()}

    return Contestant(step, None if implementation.vanilla else choices, config, versions)


def build_mom(request: Mapping[str, Any]) -> Contestant:
    """A contestant of this package."""
    try:
        import mom
    except ImportError as error:
        raise Unavailable(f"{sys.executable} cannot import mom ({error})") from None
    if not hasattr(mom, "MoM"):
        raise Unavailable(f"{sys.executable} has a package mom without the class MoM")
    implementation = IMPLEMENTATIONS[request["implementation"]]
    mom.set_num_threads(request["threads"])
    config = mom.MoMConfig.preset(_preset(request["config"], implementation.vanilla))
    model = mom.MoM(config, seed=request["seed"], dtype=implementation.dtype)
    if not implementation.vanilla:
        for name, value in model.parameters.items():
            value[...] = initial_value(name, value.shape, config, request["seed"])
    optimizer = mom.AdamW(model, **ADAMW)

    def step(tokens: Any) -> float:
        out = model(tokens, labels=tokens)
        model.backward()
        optimizer.step(MAX_NORM, zero_grad=True)
        return float(out.loss)

    def choices(tokens: Any) -> dict[str, list[Any]]:
        routes = model(tokens, return_routes=True).routes
        return {half: list(index) for half, index in routes.index.items()}

    versions = {"mom": str(getattr(mom, "__version__", "unknown"))}
    return Contestant(step, None if implementation.vanilla else choices, config, versions)


def measure_step(request: Mapping[str, Any]) -> dict[str, Any]:
    """Time the steps of one contestant in this process."""
    implementation = IMPLEMENTATIONS[request["implementation"]]
    contestant = (build_torch if implementation.library == "torch" else build_mom)(request)
    batch, length = WORKLOADS[request["config"]]
    warmup, steps = request["warmup"], request["steps"]
    batches = random_batches(contestant.config.vocab_size, warmup + steps, batch, length, request["seed"])
    losses, seconds, cpu_seconds = [], [], []
    for tokens in batches:
        start, cpu_start = time.perf_counter(), time.process_time()
        losses.append(contestant.step(tokens))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak = peak_resident_bytes()
    # Routes are read after the timing and the memory reading, on the last batch and the final weights.
    chosen = contestant.choices(batches[-1]) if contestant.choices else None
    return {
        "tokens_per_second": steps * batch * length / sum(seconds[warmup:]),
        "step_seconds": seconds[warmup:],
        "cpus_used": sum(cpu_seconds[warmup:]) / sum(seconds[warmup:]),
        "losses": losses,
        "peak_bytes": peak,
        "flop": multiplications(contestant.config, batch, length, chosen),
        "versions": contestant.versions,
    }


def measure_machine(request: Mapping[str, Any]) -> dict[str, Any]:
    """GFLOP/s of the machine's peak, by dtype, and of NumPy's float32 matrix product at 2048 x 2048 x 2048."""
    import numpy as np

    peak = {}
    with contextlib.suppress(ImportError):
        from mom.runtime import machine_peak

        peak = {dtype: machine_peak(dtype, request["threads"], seconds=0.3) for dtype in ("float32", "bfloat16")}

    size = 2048
    generator = np.random.default_rng(request["seed"])
    a, b = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty((size, size), np.float32)
    np.matmul(a, b, out=out)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return {"gflops": 2e-9 * size**3 / min(seconds), "peak": peak, "versions": {"numpy": np.__version__}}


def worker(request: Mapping[str, Any]) -> int:
    """Entry point of a measuring process: one JSON object on the last line of standard output."""
    try:
        result = measure_machine(request) if request["implementation"] == MACHINE else measure_step(request)
    except Unavailable as reason:
        result = {"unavailable": str(reason)}
    print(json.dumps(result))
    return 0


# --------------------------------------------------------------------------- parent
def ask(python: str, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Run one worker; a failure comes back as ``{"unavailable": reason}``."""
    threads = str(request["threads"])
    limits = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [python, str(Path(__file__).resolve()), "--worker", json.dumps(request)]
    try:
        done = subprocess.run(
            command, env={**os.environ, **limits}, capture_output=True, text=True, timeout=timeout, check=False
        )
    except OSError as error:
        return {"unavailable": f"cannot start {python}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"unavailable": f"took longer than {timeout:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    complaint = done.stderr.strip().splitlines()
    return {"unavailable": f"exit status {done.returncode}: {complaint[-1] if complaint else 'no message'}"}


def summarise(samples: list[dict[str, Any]], matmul_gflops: float | None, peak: float | None) -> dict[str, Any]:
    """Best and median of an implementation's runs; `peak` is the machine's in the implementation's dtype."""
    speeds = [sample["tokens_per_second"] for sample in samples]
    tokens = speeds[0] * sum(samples[0]["step_seconds"]) / len(samples[0]["step_seconds"])
    flop = sum(samples[-1]["flop"].values())
    gflops = 1e-9 * flop * max(speeds) / tokens
    return {
        "tokens_per_second_best": max(speeds),
        "tokens_per_second_median": statistics.median(speeds),
        "peak_bytes": max(sample["peak_bytes"] for sample in samples),
        "flop_per_step": flop,
        "flop_by_part": samples[-1]["flop"],
        "gflops_best": gflops,
        "share_of_matmul": gflops / matmul_gflops if matmul_gflops else None,
        "share_of_peak": gflops / peak if peak else None,
        "final_loss": samples[-1]["losses"][-1],
        "versions": samples[-1]["versions"],
    }


def compare(
    name: str, results: Mapping[str, dict[str, Any]], samples: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any] | None:
    """Ratios of an implementation to the fastest of its yardsticks that ran."""
    ran = [yardstick for yardstick in IMPLEMENTATIONS[name].yardsticks if yardstick in results]
    if name not in results or not ran:
        return None
    against = max(ran, key=lambda yardstick: results[yardstick]["tokens_per_second_best"])
    mine, theirs = results[name], results[against]
    rounds = zip(samples[name], samples[against], strict=True)
    paired = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in rounds]
    return {
        "against": against,
        "speed_best": mine["tokens_per_second_best"] / theirs["tokens_per_second_best"],
        "speed_median_of_rounds": statistics.median(paired),
        "memory": mine["peak_bytes"] / theirs["peak_bytes"],
    }


def print_table(
    config: str, results: Mapping[str, dict[str, Any]], ratios: Mapping[str, Any], absent: Mapping[str, str]
) -> None:
    """The figures of one configuration."""
    batch, length = WORKLOADS[config]
    print(f"\n{config}: B {batch}, T {length}")
    print(
        f"{'implementation':<28}{'best tok/s':>11}{'median':>9}{'peak GB':>9}{'GFLOP/step':>12}{'GFLOP/s':>9}"
        f"{'of matmul':>11}{'of peak':>9}{'loss':>9}"
    )
    for name, row in results.items():
        matmul, peak = (
            f"{100 * row[share]:.0f} %" if row[share] else "-" for share in ("share_of_matmul", "share_of_peak")
        )
        print(
            f"{name:<28}{row['tokens_per_second_best']:>11,.0f}{row['tokens_per_second_median']:>9,.0f}"
            f"{row['peak_bytes'] / 1e9:>9.2f}{row['flop_per_step'] / 1e9:>12.1f}{row['gflops_best']:>9.1f}"
            f"{matmul:>11}{peak:>9}{row['final_loss']:>9.4f}"
        )
    for name, reason in absent.items():
        print(f"{name:<28}unavailable: {reason}")
    for name, ratio in ratios.items():
        print(
            f"{name} / {ratio['against']}: speed {ratio['speed_best']:.2f}x best to best, "
            f"{ratio['speed_median_of_rounds']:.2f}x median over rounds; memory {ratio['memory']:.2f}x"
        )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that was asked for; returns what is written as JSON."""
    base = {"threads": arguments.threads, "seed": arguments.seed, "warmup": arguments.warmup, "steps": arguments.steps}
    report = new_report("train_step", {**base, "runs": arguments.runs, "adamw": ADAMW, "max_norm": MAX_NORM})
    report["implementations"] = {name: dataclasses.asdict(IMPLEMENTATIONS[name]) for name in arguments.implementations}
    report["configs"] = {}
    matmul_rounds: list[float] = []
    peak_rounds: dict[str, list[float]] = {}
    for config in arguments.configs:
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.implementations}
        absent: dict[str, str] = {}
        matmul_here: list[float] = []
        peak_here: dict[str, list[float]] = {}
        for number in range(arguments.runs):
            yardstick = ask(sys.executable, {**base, "implementation": MACHINE}, arguments.timeout)
            if "gflops" in yardstick:
                matmul_here.append(yardstick["gflops"])
                for dtype, rate in yardstick["peak"].items():
                    peak_here.setdefault(dtype, []).append(rate)
                report["machine"]["numpy"] = yardstick["versions"]["numpy"]
            for name in arguments.implementations:
                if name in absent:
                    continue
                python = arguments.torch_python if IMPLEMENTATIONS[name].library == "torch" else sys.executable
                sample = ask(python, {**base, "implementation": name, "config": config}, arguments.timeout)
                if "unavailable" in sample:
                    absent[name] = sample["unavailable"]
                    print(f"{config} {name}: unavailable: {absent[name]}", file=sys.stderr)
                    continue
                samples[name].append(sample)
                print(
                    f"{config} run {number + 1}/{arguments.runs} {name}: {sample['tokens_per_second']:,.0f} tok/s, "
                    f"{sample['peak_bytes'] / 1e9:.2f} GB, {sample['cpus_used']:.1f} CPUs",
                    file=sys.stderr,
                )
        matmul = max(matmul_here, default=None)
        # A contestant that failed in a later round has not been measured alongside the others.
        results = {
            name: summarise(samples[name], matmul, max(peak_here.get(IMPLEMENTATIONS[name].dtype, []), default=None))
            for name in samples if name not in absent
        }  # fmt: skip
        ratios = {name: ratio for name in results if (ratio := compare(name, results, samples)) is not None}
        report["configs"][config] = {
            "batch": WORKLOADS[config][0], "length": WORKLOADS[config][1], "results": results, "ratios": ratios,
            "unavailable": absent, "samples": samples, "numpy_matmul_gflops": matmul_here,
            "peak_gflops": peak_here,
        }  # fmt: skip
        print_table(config, results, ratios, absent)
        matmul_rounds += matmul_here
        for dtype, rates in peak_here.items():
            peak_rounds.setdefault(dtype, []).extend(rates)
    if matmul_rounds:
        print(
            f"\nNumPy float32 matmul 2048^3, {arguments.threads} threads: best {max(matmul_rounds):.1f}, "
            f"median {statistics.median(matmul_rounds):.1f} GFLOP/s over {len(matmul_rounds)} rounds"
        )
    for dtype, rates in peak_rounds.items():
        print(f"Peak of the machine, {dtype}: best {max(rates):.1f}, median {statistics.median(rates):.1f} GFLOP/s")
    return report


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--configs",
        type=some_of(WORKLOADS),
        default=["mini", "base"],
        help=f"comma-separated, of {', '.join(WORKLOADS)} (%(default)s)",
    )
    parser.add_argument(
        "--implementations", type=some_of(IMPLEMENTATIONS), default=DEFAULT_IMPLEMENTATIONS,
        help=f"comma-separated, of {', '.join(IMPLEMENTATIONS)} (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--runs", type=at_least(1), default=5, help="rounds over all implementations (%(default)s)")
    parser.add_argument("--warmup", type=at_least(0), default=2, help="untimed steps of a run (%(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=4, help="timed steps of a run (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=2, help="threads of every implementation (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of tokens and parameters (%(default)s)")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has PyTorch (this one)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds one run may take (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("bench_train_step.json"), help="JSON file (%(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the benchmark from the command line."""
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        return worker(json.loads(sys.argv[2]))
    arguments = parse_arguments()
    report = run(arguments)
    write_report(report, arguments.output)
    return 0 if any(entry["results"] for entry in report["configs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
