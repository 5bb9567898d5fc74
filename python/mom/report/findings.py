"""From the results of all stages to comparisons over seeds, and to the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..glue import task_score
from .claims import CANNOT, LEAST_ROUGE, LOSS_MARGIN, SCORE_MARGIN, Interval, better, comparable, equal, fewer, interval

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
    tasks = _whole_tasks(results)
    scores: dict[int, dict[str, float]] = {}
    for unit, done in results.get("glue", {}).items():
        which, _, rest = unit.partition("-seed")
        task = done["result"]["task"]
        if which == model and task in tasks:
            scores.setdefault(int(rest.partition("-")[0]), {})[task] = 100 * done["result"]["score"]
    return {seed: sum(own.values()) / len(own) for seed, own in scores.items() if own.keys() == tasks}


def _whole_tasks(results: Results) -> set[str]:
    """The tasks that some seed has of all models."""
    models: dict[tuple[str, str], set[str]] = {}
    for unit, done in results.get("glue", {}).items():
        which, _, rest = unit.partition("-seed")
        models.setdefault((done["result"]["task"], rest.partition("-")[0]), set()).add(which)
    every = set().union(*models.values())
    return {task for (task, _), own in models.items() if own == every}


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
    return shown(found, "+.2f", 100, " %")


def claims_of(results: Results) -> list[Claim]:
    """All claims, each with the verdict."""
    return [*_framework(results), *_redundancy(results), *_deep(results), *_shallow(results)]


def _framework(results: Results) -> list[Claim]:
    group = "One framework for Transformers and their variants"
    gaps = [done["result"]["as_mom"] - done["result"]["loss"] for done in results.get("framework", {}).values()]
    found = (
        f"largest difference of the losses {max(map(abs, gaps)):.1e} ({len(gaps)} models)" if gaps else "not measured"
    )
    return [Claim(group, "a trained GPT-2 is a MoM with fixed routes", equal(gaps), found, "framework")]


def _if_learned(verdict: str, found: str, learned: bool) -> tuple[str, str]:
    """The verdict, unless the models have learned nothing."""
    return (verdict, found) if learned or "not measured" in found else (CANNOT, f"{found}; nothing was learned")


def _mean(values: Values) -> float:
    return sum(values.values()) / len(values) if values else math.nan


def _text_learned(results: Results, *variants: str) -> bool:
    """Whether one of these knows more than how often each token occurs."""
    unigram = [done["result"]["unigram"] for done in results.get("data", {}).values()]
    return any(_mean(losses_of(results, variant)) < unigram[0] for variant in variants) if unigram else False


def _glue_learned(results: Results, *models: str) -> bool:
    """Whether one of these is above the majority class, in the mean over tasks."""
    scores = {
        done["result"]["task"]: task_score(done["result"]["baseline"])
        for done in results.get("glue", {}).values()
        if done["result"]["task"] in _whole_tasks(results)
    }
    majority = 100 * sum(scores.values()) / len(scores) if scores else math.inf
    return any(_mean(glue_scores(results, model)) > majority for model in models)


def _xsum_learned(results: Results, *models: str) -> bool:
    return any(_mean(rouge_of(results, model)) >= LEAST_ROUGE for model in models)


def _redundancy(results: Results) -> list[Claim]:
    group = "Redundancy can be learned away"
    learned = _text_learned(results, "deep")
    claims = []
    for half, words, share in (
        ("attn", "half of the attention modules", 0.5),
        ("ffn", "a quarter of the FFN modules", 0.25),
    ):
        done = next(iter(results.get("pruning", {}).values()), None)
        count = round(share * done["result"][half][0][1]) if done else 0
        rise = interval(list(pruned(results, half, count).values()))
        found = f"loss {_percent(rise)} without {count} modules" if rise.n else "not measured"
        claims.append(Claim(group, f"{words} can go at a comparable loss",
                            *_if_learned(comparable(rise, LOSS_MARGIN, True), found, learned), "pruning"))  # fmt: skip
    return claims


def _tasks(results: Results, group: str, model: str, deep: bool) -> list[Claim]:
    """The claims about GLUE and XSUM."""
    found = []
    for name, scores, learned, paper in (
        ("mean score on GLUE", glue_scores, _glue_learned(results, model, "gpt2"), "+1.4"),
        ("ROUGE on XSUM", rouge_of, _xsum_learned(results, model, "gpt2"), "+1"),
    ):
        change = difference(scores(results, model), scores(results, "gpt2"))
        verdict = better(change, False) if deep else comparable(change, SCORE_MARGIN, False)
        words = f"higher {name} (paper: {paper})" if deep else f"comparable {name}"
        figure = "glue" if "GLUE" in name else "xsum"
        found.append(Claim(group, words, *_if_learned(verdict, shown(change, "+.2f"), learned), figure))
    return found


def _deep(results: Results) -> list[Claim]:
    group = "Better models at equal parameters (deep MoM against GPT-2)"
    loss = difference(losses_of(results, "deep"), losses_of(results, "gpt2"))
    words = shown(loss) + (" nats per token" if loss.n else "")
    decided = _if_learned(better(loss, True), words, _text_learned(results, "deep", "gpt2"))
    return [Claim(group, "lower loss on unseen text", *decided, "losses"), *_tasks(results, group, "deep", True)]


def _shallow(results: Results) -> list[Claim]:
    group = "Equal models at less cost (shallow MoM against GPT-2)"
    loss = difference(losses_of(results, "shallow"), losses_of(results, "gpt2"), relative=True)
    decided = _if_learned(
        comparable(loss, LOSS_MARGIN, True), _percent(loss), _text_learned(results, "shallow", "gpt2")
    )

    def cost(name: str) -> Interval:
        new, old = (values_of(results, "ledger", model, name) for model in ("shallow", "gpt2"))
        return difference(new, old, relative=True)

    flops, memory = cost("flops"), cost("memory")
    return [
        Claim(group, "comparable loss on unseen text", *decided, "losses"), *_tasks(results, group, "shallow", False),
        Claim(group, "fewer FLOPs (paper: -16 %)", fewer(flops), _percent(flops), "ledger"),
        Claim(group, "less memory in training (paper: -42 or -43 %)", fewer(memory, exact=True),
              "not measured" if not memory.n else f"{100 * memory.mean:+.1f} %", "ledger"),
    ]  # fmt: skip
