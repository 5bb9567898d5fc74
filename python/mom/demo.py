"""The demonstration ``mom demo``: both phases of the recipe on real text in a few minutes, then the routes."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ._arguments import PathLike
from .analysis import format_paths, module_use, plot_module_use, token_names
from .config import MoMConfig
from .data import Documents, TextDocuments, TokenFile, standard_library_text
from .data.prepare import prepare
from .data.tokenizer import Tokenizer
from .errors import DataError
from .model import MoM
from .runtime import cpu_info
from .training import TrainingConfig, evaluate_loss, train
from .training.recipe import seconds_per_step

__all__ = ["run_demo"]


#: Characters of text to use. The time is too short to train on more.
_MAX_CHARS = 4_000_000
_BATCH_SIZE = 8
_EVAL_BATCHES = 16
#: Share of the time that goes to the plain GPT-2 of phase one.
_PHASE_ONE = 0.4
_SHOWN_TOKENS = 10


def run_demo(
    text: PathLike | None = None,
    out_dir: PathLike = "mom-demo",
    minutes: float = 2.0,
    seed: int = 0,
    steps: int | None = None,
) -> dict[str, float]:
    """Train a small Mixture-of-Modules and show what it has learnt and how it routes.

    Parameters
    ----------
    text : path, optional
        File or folder of text; by default the source of Python's standard library.
    out_dir : path
        Folder for the token files (``data``), the two models (``vanilla``, ``model``) and ``module_use.png``.
    minutes : float
        About how long both phases train together; the number of steps follows from the measured speed.
    seed : int
        Seed of weights, data order and sampling.
    steps : int, optional
        Train each phase for so many steps, however long it takes. The results then have the same bits every time.

    Returns
    -------
    dict of str to float
        Validation losses ``vanilla``, ``before`` and ``after`` (of phase two), ``skip_share`` and ``seconds``.

    Raises
    ------
    ValueError
        If an argument is out of range.
    DataError
        If the text cannot be read or is too short.
    """
    if not 0.0 < minutes < math.inf:
        raise ValueError(f"minutes: {minutes} is not a positive finite number")
    if steps is not None and steps < 1:
        raise ValueError(f"steps: {steps} is less than 1")
    started = time.perf_counter()
    out = Path(out_dir)
    cpu = cpu_info()
    length = f"about {minutes:g} minutes" if steps is None else f"2 x {steps} steps"
    print(f"mom demo: level {cpu['level']}, {cpu['threads']} threads, {length} of training\n")

    config = MoMConfig.preset("demo")
    tokenizer, config = _prepare_text(text, out / "data", config, seed)
    validation = TokenFile(out / "data" / "val.bin", vocab_size=config.vocab_size)

    def loss_of(model: MoM) -> float:
        return evaluate_loss(model, validation, _BATCH_SIZE, config.n_positions, _EVAL_BATCHES)

    vanilla = MoM(config.vanilla_config(), seed=seed)
    print(
        f"2. Phase one: pre-train a plain GPT-2 of {vanilla.config.n_layer} layers "
        f"({vanilla.num_parameters:,} parameters)"
    )
    vanilla.tokenizer = tokenizer
    untrained = loss_of(vanilla)
    settings = TrainingConfig(
        batch_size=_BATCH_SIZE, sequence_length=config.n_positions, lr=1.5e-3, seed=seed, eval_every=0,
        eval_batches=_EVAL_BATCHES, final_lr=0.1,
    )  # fmt: skip
    done = _train_phase(60.0 * minutes * _PHASE_ONE, steps, vanilla, out / "data", settings, "GPT-2")
    losses = {"untrained": untrained, "vanilla": loss_of(vanilla)}
    vanilla.save_pretrained(out / "vanilla")
    print(f"   validation loss {untrained:.3f} -> {losses['vanilla']:.3f} in {done} steps\n")

    model = MoM.from_vanilla(vanilla, config, seed=seed)
    print(
        f"3. Phase two: its layers become {config.num_attn} attention and {config.num_ffn} feed-forward modules;\n"
        f"   routers choose {config.routing_top_k} of them, or SKIP, per token in each of {config.rounds} rounds "
        f"({model.num_parameters:,} parameters)"
    )
    losses["before"] = loss_of(model)
    done = _train_phase(60.0 * minutes * (1.0 - _PHASE_ONE), steps, model, out / "data", settings, "MoM")
    losses["after"] = loss_of(model)
    model.save_pretrained(out / "model")
    print(f"   validation loss {losses['before']:.3f} -> {losses['after']:.3f} in {done} steps\n")

    _show_losses(losses)
    _show_text(model, tokenizer, validation, seed)
    losses["skip_share"] = _show_routes(model, tokenizer, validation, out)
    seconds = time.perf_counter() - started
    print(f"Model and tokenizer are in {out / 'model'}; all of it took {seconds:.0f} seconds. To go on:")
    print(f"   mom generate --model {out / 'model'} --prompt 'import' --temperature 0.8 --top_k 40")
    print(f"   mom train --init_from {out / 'model'} --data {out / 'data'} --run_dir {out / 'run'} --steps 1000")
    return {**losses, "seconds": seconds}


def _prepare_text(text: PathLike | None, folder: Path, config: MoMConfig, seed: int) -> tuple[Tokenizer, MoMConfig]:
    """Make token files and a new tokenizer from a bounded sample of the text."""
    documents = standard_library_text() if text is None else Documents(text, on_error="skip")
    texts = _sample(documents)
    name = documents.names[0]
    print(f"1. Text: {name}, {sum(map(len, texts)):,} characters of it")
    meta = prepare(
        TextDocuments(texts, name=name),
        folder,
        vocab_size=config.vocab_size,
        val_fraction=0.05,
        seed=seed,
        progress=False,
    )
    counts = {file: entry["tokens"] for file, entry in meta["files"].items()}
    for file in ("train.bin", "val.bin"):
        if counts.get(file, 0) <= config.n_positions:
            raise DataError(
                f"text: {name} gives {counts.get(file, 0)} tokens for {file}, "
                f"more than {config.n_positions} are needed; use a longer text"
            )
    print(
        f"   a new vocabulary of {meta['vocab_size']:,} tokens; {counts['train.bin']:,} tokens to train on, "
        f"{counts['val.bin']:,} to validate\n"
    )
    return Tokenizer.load(folder), config.replace(vocab_size=meta["vocab_size"])


def _sample(documents: Documents) -> list[str]:
    """The first documents, as many as make up `_MAX_CHARS` characters."""
    texts: list[str] = []
    parts: list[str] = []
    room = _MAX_CHARS
    for piece in documents:
        parts.append(piece.text[:room])
        room -= len(parts[-1])
        if piece.end or not room:
            texts.append("".join(parts))
            parts = []
        if not room:
            break
    return texts


class _Deadline:
    """A callback that ends training at a deadline, in case the machine has become much slower than measured."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    def record(self, record: dict[str, Any]) -> bool:
        return time.perf_counter() > self._end

    def close(self) -> None:
        """Nothing to do."""


def _train_phase(
    seconds: float, steps: int | None, model: MoM, data: Path, settings: TrainingConfig, description: str
) -> int:
    """Train for `steps` steps or, if that is None, for about the given time. Returns the number of steps."""
    deadline = _Deadline(1.25 * seconds if steps is None else math.inf)
    if steps is None:
        steps = max(10, int(seconds / seconds_per_step(model.config, _BATCH_SIZE, model.config.n_positions)))
    done = train(model, data, settings, steps=steps, callbacks=[deadline], description=description)
    if done.stopped_early:
        print(f"   (the machine has become busy: stopped after {done.step} of {steps} steps)")
    return done.step


def _show_losses(losses: dict[str, float]) -> None:
    print("4. Validation loss (nats per token) and perplexity")
    for name, label in (
        ("untrained", "plain GPT-2, untrained"), ("vanilla", "plain GPT-2 after phase one"),
        ("before", "MoM at the start of phase two"), ("after", "MoM at its end"),
    ):  # fmt: skip
        print(f"   {label:32}{losses[name]:7.3f}{math.exp(losses[name]):11.1f}")
    print()


def _show_text(model: MoM, tokenizer: Tokenizer, validation: TokenFile, seed: int) -> None:
    prompt = validation.read(0, 16)
    new = min(80, model.config.n_positions - len(prompt))
    tokens = model.generate(prompt, new, temperature=0.8, top_k=40, seed=seed)
    print("5. The model's own words, after >>>>")
    told = f"{tokenizer.decode(prompt)}>>>>{tokenizer.decode(tokens[len(prompt) :])}"
    print("\n".join(f"   | {line}" for line in told.splitlines()), end="\n\n")


def _show_routes(model: MoM, tokenizer: Tokenizer, validation: TokenFile, out: Path) -> float:
    length = model.config.n_positions
    rows = min(_BATCH_SIZE, len(validation) // length)
    ids = validation.windows(np.arange(rows) * length, length)
    routes = model(ids, return_routes=True).routes
    first = ids[0, :_SHOWN_TOKENS]
    first_routes = model(first, return_routes=True).routes
    assert routes is not None and first_routes is not None
    use = module_use(routes)
    print(f"6. Routes of {ids.size:,} validation tokens: share of choices per module")
    for half, title in (("attn", "attention"), ("ffn", "feed-forward")):
        count = use[half].share.shape[1] - 1
        print(f"   {title:14}" + "".join(f"{half[0].upper()}{j}".rjust(7) for j in range(count)) + "   SKIP")
        for label, row in zip(use[half].labels, use[half].share, strict=True):
            print(f"   {label:14}" + "".join(f"{value:7.0%}" for value in row))
    skip_share = float(np.mean([u.skip_share for u in use.values()]))
    print(f"   SKIP in all: {skip_share:.1%}\n")

    names = token_names(tokenizer, first)
    print(f"7. Paths of the first {len(first)} tokens (A: attention, F: feed-forward, -: nothing but SKIP)")
    table = format_paths(first_routes, names)
    print("\n".join(f"   {line}" for line in table.splitlines()), end="\n\n")

    picture = out / "module_use.png"
    try:
        plot_module_use(routes).savefig(picture, dpi=120)
        print(f"Heat map of module use: {picture}")
    except ImportError as error:
        print(f"No heat map: {error}", file=sys.stderr)
    return skip_share
