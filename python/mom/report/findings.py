"""From the results of all stages to comparisons over seeds, and to the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .claims import LOSS_MARGIN, SCORE_MARGIN, Interval, better, comparable, equal, fewer, interval

__all__ = ["Claim", "Results", "claims_of", "difference", "glue_scores", "losses_of", "pruned", "rouge_of", "values_of"]

#: By stage and name of the unit, what `mom.report.box` keeps.
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
#: By seed.
Values = dict[int, float]


@dataclass(frozen=True)
class Claim:
    """A claim and what the run says.

    Attributes
    ----------
    group, words : str
        The claim of the paper, and what of it is looked at.
    verdict : str
    found : str
        The numbers.
    figure : str
        Name of the figure or table with them.
    """

    group: str
    words: str
    verdict: str
    found: str
    figure: str


# ---------------------------------------------------------------------- values by seed
def values_of(results: Results, stage: str, variant: str, name: str) -> Values:
    """A number of each seed of a variant."""
    found = {}
    for unit, done in results.get(stage, {}).items():
        which, _, seed = unit.partition("-seed")
        if which == variant:
            found[int(seed)] = float(done["result"][name])
    return found


def losses_of(results: Results, variant: str) -> Values:
    """The validation loss of each seed."""
    return values_of(results, "models", variant, "loss")


def glue_scores(results: Results, model: str) -> Values:
    """The mean score over tasks, in percent, of each seed that has all tasks that some seed has of all models."""
    scores: dict[int, dict[str, float]] = {}
    for unit, done in results.get("glue", {}).items():
        which, _, rest = unit.partition("-seed")
        if which == model:
            scores.setdefault(int(rest.partition("-")[0]), {})[done["result"]["task"]] = 100 * done["result"]["score"]
    tasks = {done["result"]["task"] for done in results.get("glue", {}).values()}
    return {seed: sum(own.values()) / len(own) for seed, own in scores.items() if own.keys() == tasks}


def rouge_of(results: Results, model: str) -> Values:
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L, in percent, of each seed."""
    found = {}
    for unit, done in results.get("xsum", {}).items():
        which, _, seed = unit.partition("-seed")
        if which == model:
            scores = list(done["result"]["rouge"].values())
            found[int(seed)] = sum(scores) / len(scores)
    return found


def pruned(results: Results, half: str, removed: int) -> Values:
    """The rise of the loss, relative to that of the whole model, without so many modules."""
    found = {}
    for unit, done in results.get("pruning", {}).items():
        for count, _, loss in done["result"][half]:
            if count == removed:
                found[int(unit.partition("-seed")[2])] = loss / done["result"]["loss"] - 1
    return found


def difference(new: Values, old: Values, relative: bool = False) -> Interval:
    """New minus old, in pairs of equal seeds; relative to the old value if that is wanted."""
    seeds = sorted(new.keys() & old.keys())
    return interval([new[s] / old[s] - 1 if relative else new[s] - old[s] for s in seeds])


# ---------------------------------------------------------------------- claims
def shown(found: Interval, form: str = "+.3f", scale: float = 1.0, unit: str = "") -> str:
    """An interval in words."""
    if not found.n or math.isnan(found.mean):
        return "not measured"
    mean = f"{scale * found.mean:{form}}{unit}"
    if not found.is_known:
        return f"{mean} (one seed)"
    return f"{mean} ({scale * found.low:{form}} to {scale * found.high:{form}}; {found.n} seeds)"


def _percent(found: Interval) -> str:
    return shown(found, "+.1f", 100, " %")


def claims_of(results: Results) -> list[Claim]:
    """All claims, each with the verdict."""
    return [*_framework(results), *_redundancy(results), *_deep(results), *_shallow(results)]


def _framework(results: Results) -> list[Claim]:
    group = "One framework for Transformers and their variants"
    gaps = [done["result"]["as_mom"] - done["result"]["loss"] for done in results.get("framework", {}).values()]
    found = f"largest difference of the losses {max(map(abs, gaps)):.1e} ({len(gaps)} models)" if gaps else "not measured"
    return [Claim(group, "a trained GPT-2 is a MoM with fixed routes", equal(gaps), found, "framework")]


def _redundancy(results: Results) -> list[Claim]:
    group = "Redundancy can be learned away"
    claims = []
    for half, words, share in (("attn", "half of the attention modules", 0.5), ("ffn", "a quarter of the FFN modules", 0.25)):
        done = next(iter(results.get("pruning", {}).values()), None)
        count = round(share * done["result"][half][0][1]) if done else 0
        rise = interval(list(pruned(results, half, count).values()))
        claims.append(Claim(group, f"{words} can go at a comparable loss", comparable(rise, LOSS_MARGIN, True),
                            f"loss {_percent(rise)} without {count} modules", "pruning"))  # fmt: skip
    return claims


def _deep(results: Results) -> list[Claim]:
    group = "Better models at equal parameters (deep MoM against GPT-2)"
    loss = difference(losses_of(results, "deep"), losses_of(results, "gpt2"))
    glue = difference(glue_scores(results, "deep"), glue_scores(results, "gpt2"))
    rouge = difference(rouge_of(results, "deep"), rouge_of(results, "gpt2"))
    return [
        Claim(group, "lower loss on unseen text", better(loss, True), f"{shown(loss)} nats per token", "losses"),
        Claim(group, "higher mean score on GLUE (paper: +1.4)", better(glue, False), f"{shown(glue, '+.2f')}", "glue"),
        Claim(group, "higher ROUGE on XSUM (paper: +1)", better(rouge, False), f"{shown(rouge, '+.2f')}", "xsum"),
    ]


def _shallow(results: Results) -> list[Claim]:
    group = "Equal models at less cost (shallow MoM against GPT-2)"
    loss = difference(losses_of(results, "shallow"), losses_of(results, "gpt2"), relative=True)
    glue = difference(glue_scores(results, "shallow"), glue_scores(results, "gpt2"))
    rouge = difference(rouge_of(results, "shallow"), rouge_of(results, "gpt2"))

    def cost(name: str) -> Interval:
        return difference(*(values_of(results, "ledger", m, name) for m in ("shallow", "gpt2")), relative=True)

    flops, memory = cost("flops"), cost("memory")
    return [
        Claim(group, "comparable loss on unseen text", comparable(loss, LOSS_MARGIN, True), _percent(loss), "losses"),
        Claim(group, "comparable mean score on GLUE", comparable(glue, SCORE_MARGIN, False), shown(glue, "+.2f"), "glue"),
        Claim(group, "comparable ROUGE on XSUM", comparable(rouge, SCORE_MARGIN, False), shown(rouge, "+.2f"), "xsum"),
        Claim(group, "fewer FLOPs (paper: -16 %)", fewer(flops), _percent(flops), "ledger"),
        Claim(group, "less memory in training (paper: -42 or -43 %)", fewer(memory, exact=True),
              "not measured" if not memory.n else f"{100 * memory.mean:+.1f} %", "ledger"),
    ]  # fmt: skip
