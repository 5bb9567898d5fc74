"""What the report says: its sections, from the results of all stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..glue import TASKS, task_score
from .claims import LOSS_MARGIN, RULES, Interval, interval
from .drawing import Line, dots, lines
from .findings import (
    Claim,
    Results,
    Values,
    difference,
    losses_of,
    pruned,
    rouge_of,
    shown,
    values_of,
)
from .page import Block, Figure, Heading, Items, Table, Text
from .plan import Plan
from .shapes import LABELS, MODELS, VARIANTS

__all__ = ["Facts", "blocks_of", "plan_rows"]

_DASH = "–"


@dataclass(frozen=True)
class Facts:
    """What the report is about.

    Attributes
    ----------
    plan : Plan
    hours, spent : float
        Planned, and used.
    seed : int
    machine, text : str
        In words.
    command : str
        Makes the report again.
    rerun : str
        Begins the command that computes a stage again.
    digests : dict of str to str
        SHA-256 sum of the results of each stage.
    left_out : dict of str to str
        What was left out, and why.
    """

    plan: Plan
    hours: float
    spent: float
    seed: int
    machine: str
    text: str
    command: str
    rerun: str
    digests: Mapping[str, str]
    left_out: Mapping[str, str]

    def figure(
        self, name: str, stage: str, caption: str, svg: str = "", alt: str = "", table: Table | None = None
    ) -> Figure:
        """A figure with the command and hash of its stage."""
        return Figure(name, caption, f"{self.rerun} {stage}", self.digests[stage], svg, alt, table)


def blocks_of(facts: Facts, results: Results, claims: Sequence[Claim]) -> list[Block]:
    """The whole report."""
    return [
        Text(
            "A reproduction of Mixture-of-Modules (arXiv:2407.06677) at the scale that this machine allows. The "
            "models here are far smaller than those of the paper. So a verdict says what this run shows, and no more."
        ),
        Text(f"`{facts.command}` made it. It had {60 * facts.hours:.3g} minutes and used {facts.spent / 60:.1f}, "
             f"on {facts.machine}. The same command goes on after an interruption."),
        *_claims(claims), *_plan(facts), *_losses(facts, results), *_framework(facts, results),
        *_pruning(facts, results), *_ledger(facts, results), *_glue(facts, results), *_xsum(facts, results),
        *_again(facts),
    ]  # fmt: skip


# ---------------------------------------------------------------------- claims and plan
def _claims(claims: Sequence[Claim]) -> Iterator[Block]:
    yield Heading("What this run says about the claims of the paper", "claims")
    rows, last = [], ""
    for claim in claims:
        rows.append([claim.group if claim.group != last else "", claim.words, claim.verdict, claim.found])
        last = claim.group
    yield Table(["claim of the paper", "looked at here", "this run", "difference (95 % interval)"], rows, 4)
    yield Text("The rules:")
    yield Items(RULES)


def plan_rows(plan: Plan, hours: float) -> list[tuple[str, str]]:
    """The plan in words."""
    tasks = ", ".join(TASKS[name].title for name in plan.glue_tasks)
    size = plan.size
    return [
        ("time", f"{hours:g} hours"),
        ("models", f"{size.name}: width {size.width}, {size.positions} positions, {size.vocab_size:,} tokens"),
        ("training", f"{plan.steps * size.tokens:,} tokens each, {plan.steps:,} steps of {size.tokens:,}"),
        ("phase one", f"{plan.phase_one:,} of these steps, in models with two phases"),
        ("seeds", str(plan.seeds)),
        ("trainings", f"{len(VARIANTS) * plan.seeds}, {plan.processes} side by side"),
        ("pruning, FLOPs", f"on up to {plan.measured_batches} batches"),
        ("GLUE", f"{tasks}; {plan.glue_steps} steps each" if tasks else "left out"),
        ("XSUM", f"{plan.xsum_steps} steps, {plan.xsum_rows} summaries" if plan.xsum_steps else "left out"),
    ]


def _plan(facts: Facts) -> Iterator[Block]:
    yield Heading("The plan", "plan")
    yield Text("Made before the work began, from the hours and from the measured speed of training steps; "
               f"it is in `plan.json`. The text: {facts.text}.")  # fmt: skip
    yield Table(["", ""], [list(row) for row in plan_rows(facts.plan, facts.hours)], 2)
    if facts.left_out:
        yield Text("Left out:")
        yield Items(list(left_out_words(facts.left_out)))


def left_out_words(left_out: Mapping[str, str]) -> Iterator[str]:
    """What was left out, with the pieces of a stage that have the same reason together."""
    together: dict[tuple[str, str], list[str]] = {}
    for name, why in left_out.items():
        stage, _, piece = name.partition("/")
        together.setdefault((stage, why), []).append(piece)
    for (stage, why), pieces in together.items():
        yield f"`{stage}`{': ' if any(pieces) else ''}{', '.join(filter(None, pieces))}: {why}"


# ---------------------------------------------------------------------- losses
def _there(results: Results) -> list[str]:
    return [variant for variant, _, _ in VARIANTS if losses_of(results, variant)]


def _losses(facts: Facts, results: Results) -> Iterator[Block]:
    yield Heading("Training", "training")
    there = _there(results)
    if not there:
        yield Text("No model was trained in time.")
        return
    yield Text(
        "All models have equally many parameters and read the same number of tokens in the same order. A model with "
        "two phases spends half of them on a plain GPT-2, whose layers become its modules. The loss is that on unseen "
        "text, in nats per token."
    )
    rows = []
    for variant in there:
        own = {name: done for name, done in results["models"].items() if name.partition("-seed")[0] == variant}
        loss = interval(list(losses_of(results, variant).values()))
        first = next(iter(own.values()))
        speed = sum(done["speed"] for done in own.values()) / len(own)
        rows.append([LABELS[variant], f"{first['result']['parameters']:,}", str(loss.n), f"{loss.mean:.3f}",
                     _ends(loss), f"{first['result']['tokens']:,}", f"{speed:,.0f}"])  # fmt: skip
    head = ["model", "parameters", "seeds", "loss", "95 % interval", "tokens", "tokens per second"]
    yield facts.figure("models", "models", "The trained models. The last column is the speed of the last phase, on one "
                       "thread of this machine, and no part of the hash.", table=Table(head, rows))  # fmt: skip
    yield facts.figure("losses", "models", "Loss on unseen text while training: means over seeds, with 95 % intervals.",
                       lines([_curve(results, variant) for variant in there], "tokens", "loss (nats per token)", _ALT),
                       _ALT)  # fmt: skip
    base = losses_of(results, "gpt2")
    rest = [(LABELS[v], losses_of(results, v)) for v in there if v != "gpt2"]
    if base and rest:
        yield _differences(
            facts, "differences", "models", rest, base, "loss minus that of the GPT-2 (nats per token)", True
        )
    pairs = [
        (LABELS[v], difference(losses_of(results, v), losses_of(results, f"{v}-direct"))) for v in ("deep", "shallow")
    ]
    told = [f"{label} {shown(found)}" for label, found in pairs if found.n]
    if told:
        yield Text(f"Phase one changes the loss at equal tokens: {'; '.join(told)}.")


_ALT = "Lines of the loss on unseen text against tokens, one for each kind of model"


def _ends(found: Interval, form: str = ".3f") -> str:
    return f"{found.low:{form}} to {found.high:{form}}" if found.is_known else _DASH


def _curve(results: Results, variant: str) -> Line:
    found: dict[int, list[float]] = {}
    for name, done in results["models"].items():
        if name.partition("-seed")[0] == variant:
            for tokens, loss in done["result"]["curve"]:
                found.setdefault(tokens, []).append(loss)
    means = [interval(found[tokens]) for tokens in sorted(found)]
    return Line(
        LABELS[variant], sorted(found), [m.mean for m in means], [m.low for m in means], [m.high for m in means]
    )


def _differences(
    facts: Facts, name: str, stage: str, rest: Sequence[tuple[str, Values]], base: Values, label: str, lower: bool
) -> Figure:
    rows = []
    for words, values in rest:
        seeds = sorted(values.keys() & base.keys())
        if not seeds:
            continue
        rows.append((words, difference(values, base), [values[s] - base[s] for s in seeds]))
    alt = f"For each model, the {label}: mean, interval and seeds. " + "; ".join(f"{w} {shown(f)}" for w, f, _ in rows)
    side = "Left" if lower else "Right"
    caption = (f"The {label}, in pairs of equal seeds. Squares are means, circles are seeds, and bars are "
               f"95 % intervals. {side} of zero is better than the GPT-2.")  # fmt: skip
    return facts.figure(name, stage, caption, dots(rows, label, alt), alt)


# ---------------------------------------------------------------------- measurements
def _framework(facts: Facts, results: Results) -> Iterator[Block]:
    found = results.get("framework", {})
    if not found:
        return
    yield Heading("One framework", "framework")
    yield Text(
        "The layers of each trained GPT-2 become the modules of a MoM, and `mom.Force` prescribes the order of the "
        "layers as routes. The MoM must then compute what the GPT-2 computes. With the free routes of new routers it "
        "computes something else. Other variants (experts, shared layers, early exits) are not trained here, so the "
        "run says nothing about them."
    )
    rows = [[name, f"{r['loss']:.5f}", f"{r['as_mom']:.5f}", f"{r['difference']:.1e}", f"{r['free']:.3f}"]
            for name, r in ((name, done["result"]) for name, done in found.items())]  # fmt: skip
    head = ["model", "loss", "loss as a MoM", "largest difference of logits", "loss with free routes"]
    yield facts.figure("framework", "framework", "A GPT-2 written as a MoM.", table=Table(head, rows))


def _pruning(facts: Facts, results: Results) -> Iterator[Block]:
    found = results.get("pruning", {})
    if not found:
        return
    yield Heading("Pruning", "pruning")
    yield Text(
        "Modules are taken out of the trained deep MoM, the least needed first. Tokens then take their next best "
        "choice, and nothing is trained afterwards. The paper reports comparable performance without half of the "
        "attention modules or a quarter of the FFN modules."
    )
    kinds = (("attn", "attention modules"), ("ffn", "FFN modules"))
    one = next(iter(found.values()))["result"]
    curves, rows = [], []
    for half, words in kinds:
        counts = [count for count, _, _ in one[half]]
        rises = [interval([100 * value for value in pruned(results, half, count).values()]) for count in counts]
        share = [100 * count / one[half][0][1] for count in counts]
        curves.append(Line(words, share, [r.mean for r in rises], [r.low for r in rises], [r.high for r in rises]))
        rows += [[words, f"{count} of {one[half][0][1]}", f"{rise.mean:+.2f} %", _ends(rise, "+.2f")]
                 for count, rise in zip(counts, rises, strict=True)]  # fmt: skip
    alt = "Rise of the loss against the share of modules that are taken out, for attention and FFN modules"
    yield facts.figure(
        "pruning", "pruning", "Rise of the loss on unseen text: means over seeds, with 95 % intervals. The "
        f"dashed line is the margin of the rules, {100 * LOSS_MARGIN:g} %.",
        lines(curves, "modules taken out (%)", "rise of the loss (%)", alt, 100 * LOSS_MARGIN), alt,
        Table(["half", "taken out", "rise of the loss", "95 % interval"], rows, 2),
    )  # fmt: skip


def _ledger(facts: Facts, results: Results) -> Iterator[Block]:
    if not results.get("ledger"):
        return
    yield Heading("Work and memory", "ledger")
    yield Text(
        "FLOPs are those of a training step with the routes that the trained model takes, by `mom.ledger`. Memory is "
        "that of a training step, by `MoM.memory_plan`: parameters, gradients, AdamW's moments, activations and "
        "temporaries. Each figure in brackets is the difference to the GPT-2."
    )
    rows = []
    columns = (("flops", 1e6, ".2f"), ("flops_full", 1e6, ".2f"), ("memory", 1e6, ".1f"), ("activations", 1e6, ".1f"),
               ("active", 1e3, ".0f"))  # fmt: skip
    for model in MODELS:
        layers = values_of(results, "ledger", model, "layers")
        if not layers:
            continue
        row = [LABELS[model], f"{next(iter(layers.values())):.0f}"]
        for name, unit, form in columns:
            own, base = (values_of(results, "ledger", m, name) for m in (model, "gpt2"))
            change = difference(own, base, relative=True).mean if model != "gpt2" else math.nan
            beside = f" ({100 * change:+.1f} %)" if math.isfinite(change) else ""
            row.append(f"{interval(list(own.values())).mean / unit:{form}}{beside}")
        rows.append(row)
    head = ["model", "layers", "MFLOP per token", "full attention, no head", "memory (MB)", "activations (MB)",
            "active parameters (k)"]  # fmt: skip
    yield facts.figure("ledger", "ledger", "The paper reports 16 % fewer FLOPs and 42 or 43 % less memory for its "
                       "large shallow model.", table=Table(head, rows))  # fmt: skip


# ---------------------------------------------------------------------- tasks
def _glue(facts: Facts, results: Results) -> Iterator[Block]:
    found = results.get("glue", {})
    if not found:
        return
    yield Heading("GLUE", "glue")
    yield Text(f"Each model is fine-tuned for {facts.plan.glue_steps} steps, and scored on up to "
               f"{facts.plan.glue_dev_rows} rows of the dev set. Scores are in percent, beside those of the majority "
               "class.")  # fmt: skip
    scores: dict[str, dict[str, Values]] = {}
    baselines: dict[str, float] = {}
    for unit, done in found.items():
        model, _, rest = unit.partition("-seed")
        task = done["result"]["task"]
        baselines[task] = 100 * task_score(done["result"]["baseline"])
        scores.setdefault(task, {}).setdefault(model, {})[int(rest.partition("-")[0])] = 100 * done["result"]["score"]
    rows: list[list[str]] = []
    pairs: list[tuple[str, Values, Values]] = []
    for task in (task for task in facts.plan.glue_tasks if task in scores):
        means = [interval(list(scores[task].get(model, {}).values())) for model in MODELS]
        rows.append([TASKS[task].title, f"{baselines[task]:.1f}", *(_mean_and_n(mean) for mean in means)])
        pairs += [(f"{TASKS[task].title}: {LABELS[model]}", scores[task][model], scores[task].get("gpt2", {}))
                 for model in MODELS[1:] if model in scores[task]]  # fmt: skip
    head = ["task", "majority", *(LABELS[model] for model in MODELS)]
    alt = "For each task and MoM, the score minus that of the GPT-2: mean, interval and seeds"
    drawn = [
        (w, difference(new, old), [new[s] - old[s] for s in sorted(new.keys() & old.keys())]) for w, new, old in pairs
    ]
    drawn = [row for row in drawn if row[1].n]
    caption = ("Scores, the mean over seeds." if not drawn else
               "Scores, the mean over seeds, and differences to the GPT-2. Right of zero is better.")  # fmt: skip
    picture = dots(drawn, "score minus that of the GPT-2 (points)", alt) if drawn else ""
    yield facts.figure("glue", "glue", caption, picture, alt, Table(head, rows))


def _mean_and_n(found: Interval) -> str:
    return f"{found.mean:.1f} (n={found.n})" if found.n else _DASH


def _xsum(facts: Facts, results: Results) -> Iterator[Block]:
    found = results.get("xsum", {})
    if not found:
        return
    yield Heading("XSUM", "xsum")
    yield Text(f"Each model is fine-tuned for {facts.plan.xsum_steps} steps and then summarises "
               f"{next(iter(found.values()))['result']['rows']} articles. ROUGE is in percent.")  # fmt: skip
    rows: list[list[str]] = []
    first: Mapping[str, Any] = next(iter(found.values()))["result"]
    names = list(first["rouge"])
    for model in MODELS:
        own = [done["result"] for unit, done in found.items() if unit.partition("-seed")[0] == model]
        if own:
            rows.append([LABELS[model], str(len(own)), f"{interval([r['loss'] for r in own]).mean:.3f}",
                         *(f"{interval([r['rouge'][name] for r in own]).mean:.2f}" for name in names)])  # fmt: skip
    rows += [[name, _DASH, _DASH, *(f"{values[n]:.2f}" for n in names)] for name, values in first["lead"].items()]
    base = rouge_of(results, "gpt2")
    rest = [(LABELS[m], rouge_of(results, m)) for m in MODELS[1:] if base.keys() & rouge_of(results, m).keys()]
    table = Table(
        ["model", "seeds", "loss", *(name.upper().replace("ROUGE", "ROUGE-").replace("--", "-") for name in names)],
        rows,
    )
    picture = (
        _differences(facts, "xsum", "xsum", rest, base, "mean ROUGE minus that of the GPT-2", False) if rest else None
    )
    caption = "Scores of summaries beside the first sentences of the articles (LEAD)."
    yield facts.figure("xsum", "xsum", caption + (f" {picture.caption}" if picture else ""),
                       picture.svg if picture else "", picture.alt if picture else "", table)  # fmt: skip


def _again(facts: Facts) -> Iterator[Block]:
    yield Heading("The same again", "again")
    yield Text(
        "The command beside a figure computes its numbers again in a temporary folder, and says whether they have the "
        "same bits. It works in the folder in which the report was made. Models that a stage needs are those that are "
        f"there; `{facts.rerun} models` trains them again, and `{facts.rerun} models/gpt2-seed{facts.seed}` trains "
        "one. The bits are the same for any number of threads. Another kind of processor or compiler may round "
        "otherwise."
    )
    yield Text("`plan.json` holds the plan. With `mom reproduce --plan plan.json --out_dir NEW`, and with the same "
               "data, everything is computed anew.")  # fmt: skip
