"""The rules by which a run supports, contradicts or cannot decide a claim, on made-up numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mom.report.claims import (
    CANNOT,
    CONTRADICTS,
    LOSS_MARGIN,
    SUPPORTS,
    Interval,
    better,
    comparable,
    equal,
    fewer,
    interval,
)
from mom.report.findings import Claim, claims_of, difference, glue_scores, shown


def test_the_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    reach = 4.302652729696 / math.sqrt(3)  # the 97.5 % point of t with two degrees of freedom, and a deviation of 1
    assert found.mean == 2.0 and found.n == 3
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach), rel=1e-9)
    assert not interval([1.0]).is_known and math.isnan(interval([]).mean)


ONE = Interval(-1.0, math.nan, math.nan, 1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-2, -1, SUPPORTS), (1, 2, CONTRADICTS), (-1, 1, CANNOT), (-1, 0, CANNOT)]
)
def test_better(low: float, high: float, verdict: str) -> None:
    """A lower loss is better, and so is a higher score."""
    found = Interval((low + high) / 2, low, high, 3)
    assert better(found, True) == verdict
    assert better(Interval(-found.mean, -high, -low, 3), False) == verdict
    assert better(ONE, True) == CANNOT


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-9, 0.9, SUPPORTS), (1.1, 2, CONTRADICTS), (0.9, 1.1, CANNOT), (-9, 9, CANNOT)]
)
def test_comparable(low: float, high: float, verdict: str) -> None:
    """With a margin of 1: much better is comparable, too."""
    assert comparable(Interval(0, low, high, 3), 1.0, True) == verdict
    assert comparable(Interval(0, -high, -low, 3), 1.0, False) == verdict
    assert comparable(ONE, 1.0, True) == CANNOT


def test_fewer_needs_an_interval_unless_the_shape_decides() -> None:
    assert fewer(ONE) == CANNOT and fewer(ONE, exact=True) == SUPPORTS
    assert fewer(Interval(1.0, math.nan, math.nan, 1), exact=True) == CONTRADICTS
    assert fewer(Interval(-1.0, -2.0, -0.1, 3)) == SUPPORTS and fewer(interval([]), exact=True) == CANNOT


def test_equal() -> None:
    assert equal([0.0, -1e-5]) == SUPPORTS and equal([0.0, -1e-2]) == CONTRADICTS and equal([]) == CANNOT


# ------------------------------------------------------------------ whole results
def results(seeds: int = 3, unigram: float = 6.0) -> dict[str, Any]:
    """A run in which the deep MoM is better, the shallow one is as good, and attention modules cannot go."""
    losses = {"gpt2": 5.0, "deep": 4.5, "shallow": 5.01}
    found: dict[str, Any] = {"data": {"text": {"result": {"unigram": unigram}}}}
    for stage in ("models", "ledger", "pruning", "framework", "glue", "xsum"):
        found[stage] = {}
    for seed in range(seeds):
        wobble = 0.001 * seed
        for model, loss in losses.items():
            name = f"{model}-seed{seed}"
            size = {"gpt2": 1.0, "deep": 2.0, "shallow": 0.8}[model]
            found["models"][name] = {"result": {"loss": loss + wobble * len(model)}}
            found["ledger"][name] = {"result": {"flops": size + wobble, "memory": size}}
            found["glue"][f"{name}-sst2"] = {
                "result": {"task": "sst2", "score": 0.5 + size / 10 + wobble, "baseline": {"accuracy": 0.5}}
            }
            found["xsum"][name] = {"result": {"rouge": {"rouge1": 0.0, "rouge2": 0.0}}}
        found["framework"][f"gpt2-seed{seed}"] = {"result": {"loss": 5.0, "as_mom": 5.0 + 1e-6}}
        found["pruning"][f"deep-seed{seed}"] = {
            "result": {
                "loss": 4.5, "attn": [[0, 8, 4.5], [4, 8, 5.5 + wobble]], "ffn": [[0, 8, 4.5], [2, 8, 4.51 + wobble]],
            }
        }
    return found


def verdicts(claims: list[Claim]) -> list[str]:
    return [claim.verdict for claim in claims]


def test_all_claims_of_a_run() -> None:
    assert verdicts(claims_of(results())) == [
        SUPPORTS,  # one framework
        CONTRADICTS, SUPPORTS,  # pruning of attention and FFN modules
        SUPPORTS, SUPPORTS, CANNOT,  # deep: loss, GLUE, and XSUM, where nobody can summarise
        SUPPORTS, CONTRADICTS, CANNOT,  # shallow: loss, GLUE (two points lower), XSUM
        SUPPORTS, SUPPORTS,  # FLOPs, memory
    ]  # fmt: skip


def test_with_one_seed_only_what_needs_no_seed_is_decided() -> None:
    found = claims_of(results(1))
    assert [claim.words.partition(" (")[0] for claim in found if claim.verdict != CANNOT] == [
        "a trained GPT-2 is a MoM with fixed routes", "less memory in training",
    ]  # fmt: skip
    assert "one seed" in found[3].found


def test_models_that_learned_nothing_cannot_decide() -> None:
    """All losses are above that of the frequencies of tokens."""
    found = claims_of(results(unigram=4.0))
    told = {claim.words: claim for claim in found}
    for words in ("lower loss on unseen text", "comparable loss on unseen text",
                  "a quarter of the FFN modules can go at a comparable loss"):  # fmt: skip
        assert told[words].verdict == CANNOT and "nothing was learned" in told[words].found


def test_nothing_measured_decides_nothing() -> None:
    found = claims_of({})
    assert set(verdicts(found)) == {CANNOT} and all("not measured" in claim.found for claim in found)


def test_pairs_are_of_equal_seeds() -> None:
    assert difference({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 0.5, 8: 0.0}) == Interval(0.5, 0.5, 0.5, 2)
    assert difference({0: 3.0}, {0: 2.0}, relative=True).mean == 0.5
    assert shown(interval([])) == "not measured"


def test_seeds_without_all_tasks_have_no_mean_score() -> None:
    found = results(2)
    found["glue"]["gpt2-seed1-rte"] = {"result": {"task": "rte", "score": 0.9, "baseline": {"accuracy": 0.5}}}
    assert set(glue_scores(found, "gpt2")) == {0, 1} == set(glue_scores(found, "deep"))  # nobody else has the task
    for model in ("deep", "shallow"):
        found["glue"][f"{model}-seed1-rte"] = found["glue"]["gpt2-seed1-rte"]
    assert set(glue_scores(found, "gpt2")) == {1} == set(glue_scores(found, "deep"))
    assert LOSS_MARGIN == 0.02
