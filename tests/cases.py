"""One table of shapes per operator, for tests and benchmarks.

A case has a kind: ``small`` (readable by eye), ``odd`` (no size a multiple of a vector), ``edge`` (ones
and zeros), ``realistic`` (sizes of a training step). Letters as everywhere; I and O are the inputs and
outputs of a linear layer. `Case.flops` counts the multiplications and additions of products, forward
once and backward twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mom.routers import KINDS

__all__ = ["CASES", "Case", "cases_of", "parameters"]


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call of an operator."""

    operator: str
    kind: str
    sizes: dict[str, int]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = "-".join(f"{letter}{size}" for letter, size in self.sizes.items())
        options = "".join(f"-{name}={value}" for name, value in self.options.items())
        return f"{self.operator}-{self.kind}-{sizes}{options}"

    def __getitem__(self, letter: str) -> int:
        return self.sizes[letter]

    @property
    def flops(self) -> int:
        """Floating point operations of products, forward and backward; 0 for element-wise operators."""
        s = self.sizes
        if self.operator == "linear":
            return 6 * s["N"] * s["I"] * s["O"]
        if self.operator == "gemm":
            return 2 * s["m"] * s["n"] * s["k"]
        if self.operator == "attention":
            return 6 * s["B"] * s["T"] * (s["T"] + 1) * s["C"]
        if self.operator in ("lm_head", "lm_head_gradient"):
            return 6 * s["N"] * s["C"] * s["V"]
        if self.operator == "routed_linear":
            return 6 * s["N"] * s["K"] * s["I"] * s["O"]
        if self.operator == "router":
            inputs = s["C"]
            if KINDS[self.options["kind"]].recurrent:
                inputs = (4 if self.options.get("random") else 3) * (s["C"] + s["R"])
            return 6 * s["N"] * s["R"] * (inputs + s["S"])
        return 0


def _cases(operator: str, *rows: tuple[Any, ...]) -> list[Case]:
    return [Case(operator, row[0], row[1], row[2] if len(row) > 2 else {}) for row in rows]


_ELEMENTS = (
    ("edge", {"N": 0}),
    ("edge", {"N": 1}),
    ("small", {"N": 6}),
    ("odd", {"N": 37}),
    ("realistic", {"N": 70001}),
)

CASES: dict[str, list[Case]] = {
    "layernorm": _cases(
        "layernorm",
        ("edge", {"N": 0, "C": 8}),
        ("edge", {"N": 1, "C": 1}),
        ("small", {"N": 2, "C": 4}),
        ("odd", {"N": 71, "C": 33}),
        ("realistic", {"N": 512, "C": 256}),
    ),
    "linear": _cases(
        "linear",
        ("edge", {"N": 0, "I": 3, "O": 2}),
        ("edge", {"N": 1, "I": 1, "O": 1}),
        ("small", {"N": 3, "I": 4, "O": 2}),
        ("odd", {"N": 71, "I": 33, "O": 47}),
        ("odd", {"N": 71, "I": 33, "O": 47}, {"out_in": True}),
        ("odd", {"N": 70, "I": 301, "O": 35}, {"bias": False}),
        ("realistic", {"N": 512, "I": 256, "O": 512}),
    ),
    "gelu": _cases("gelu", *_ELEMENTS),
    "dropout": _cases("dropout", *((kind, sizes, {"p": 0.25}) for kind, sizes in _ELEMENTS)),
    "ste": _cases("ste", *_ELEMENTS),
    "embedding": _cases(
        "embedding",
        ("edge", {"B": 0, "T": 3, "V": 4, "P": 3, "C": 2}),
        ("edge", {"B": 1, "T": 1, "V": 1, "P": 1, "C": 1}),
        ("small", {"B": 2, "T": 3, "V": 5, "P": 4, "C": 4}),
        ("odd", {"B": 3, "T": 17, "V": 29, "P": 19, "C": 37}),
        ("odd", {"B": 3, "T": 17, "V": 29, "P": 19, "C": 37}, {"p": 0.5}),
        ("realistic", {"B": 2, "T": 256, "V": 1000, "P": 256, "C": 128}),
    ),
    "attention": _cases(
        "attention",
        ("edge", {"B": 0, "T": 3, "C": 4, "H": 2}),
        ("edge", {"B": 1, "T": 1, "C": 1, "H": 1}),
        ("small", {"B": 2, "T": 4, "C": 4, "H": 2}),
        ("odd", {"B": 2, "T": 67, "C": 45, "H": 3}),
        ("odd", {"B": 2, "T": 67, "C": 45, "H": 3}, {"mask": "left"}),
        ("odd", {"B": 2, "T": 67, "C": 45, "H": 3}, {"mask": "left", "masked_query": "reference"}),
        ("odd", {"B": 3, "T": 35, "C": 14, "H": 2}, {"mask": "right", "p": 0.2}),
        ("odd", {"B": 2, "T": 37, "C": 30, "H": 2}, {"mask": "random", "masked_query": "reference", "p": 0.1}),
        ("small", {"B": 2, "T": 9, "C": 4, "H": 2}, {"scaled": False}),
        ("edge", {"B": 2, "T": 5, "C": 4, "H": 2}, {"active": 0.0}),
        ("odd", {"B": 2, "T": 167, "C": 45, "H": 3}, {"active": 0.6}),
        ("odd", {"B": 3, "T": 37, "C": 30, "H": 2}, {"active": 0.5, "mask": "random", "p": 0.1}),
        ("odd", {"B": 3, "T": 37, "C": 30, "H": 2}, {"active": 0.5, "mask": "left", "masked_query": "reference"}),
        ("odd", {"B": 5, "T": 150, "C": 27, "H": 3}, {"lengths": True}),
        ("odd", {"B": 6, "T": 61, "C": 32, "H": 2}, {"lengths": True, "mask": "random", "active": 0.7, "p": 0.2}),
        ("odd", {"B": 2, "T": 167, "C": 45, "H": 3}, {"precision": "bfloat16"}),
        ("odd", {"B": 5, "T": 150, "C": 27, "H": 3}, {"precision": "bfloat16", "lengths": True, "active": 0.6}),
        ("realistic", {"B": 2, "T": 192, "C": 128, "H": 2}),
        ("realistic", {"B": 1, "T": 300, "C": 80, "H": 1}, {"active": 0.8}),
        ("realistic", {"B": 1, "T": 300, "C": 160, "H": 2}, {"precision": "bfloat16"}),
    ),
    "cross_entropy": _cases(
        "cross_entropy",
        ("edge", {"N": 0, "V": 3}),
        ("edge", {"N": 1, "V": 1}),
        ("small", {"N": 4, "V": 5}),
        ("odd", {"N": 71, "V": 131}),
        ("realistic", {"N": 128, "V": 4000}),
    ),
    "lm_head": _cases(
        "lm_head",
        ("edge", {"N": 0, "V": 3, "C": 2}),
        ("edge", {"N": 1, "V": 1, "C": 1}),
        ("edge", {"N": 3, "V": 4, "C": 2}, {"labelled": 0.0}),
        ("small", {"N": 4, "V": 5, "C": 3}),
        ("odd", {"N": 71, "V": 131, "C": 33}),
        ("realistic", {"N": 300, "V": 2000, "C": 64}),
    ),
    "lm_head_gradient": _cases(
        "lm_head_gradient",
        ("edge", {"N": 0, "V": 3, "C": 2}),
        ("edge", {"N": 0, "V": 0, "C": 2}),
        ("edge", {"N": 1, "V": 1, "C": 1}),
        ("edge", {"N": 3, "V": 4, "C": 2}, {"labelled": 0.0}),
        ("edge", {"N": 5, "V": 4, "C": 2}, {"precision": "bfloat16"}),
        ("small", {"N": 4, "V": 5, "C": 3}),
        ("odd", {"N": 71, "V": 131, "C": 33}),
        *(("odd", {"N": 33, "V": v, "C": 19}) for v in (511, 512, 513, 1025)),
        ("odd", {"N": 33, "V": 1025, "C": 19}, {"precision": "bfloat16"}),
        ("odd", {"N": 1300, "V": 37, "C": 9}, {"labelled": 1.0}),
        ("realistic", {"N": 300, "V": 2000, "C": 64}),
        ("realistic", {"N": 300, "V": 2000, "C": 64}, {"precision": "bfloat16"}),
        # Several slices of wte; several chunks of rows as well.
        *(
            ("realistic", sizes, {"precision": precision, "labelled": 1.0})
            for sizes in ({"N": 20, "V": 3100, "C": 1400}, {"N": 50, "V": 175000, "C": 12})
            for precision in ("float32", "bfloat16")
        ),
    ),
    "label_loss": _cases(
        "label_loss",
        *(
            ("small", {"B": b, "L": n}, {"loss": loss})
            for b, n in ((1, 1), (5, 3))
            for loss in ("regression", "single_label_classification", "multi_label_classification")
        ),
    ),
    "gemm": _cases(
        "gemm",
        ("edge", {"m": 0, "n": 3, "k": 2}),
        ("edge", {"m": 2, "n": 0, "k": 2}),
        ("edge", {"m": 2, "n": 3, "k": 0}),
        ("edge", {"m": 1, "n": 1, "k": 1}),
        ("edge", {"m": 1, "n": 65, "k": 3}),
        ("small", {"m": 3, "n": 4, "k": 5}),
        ("odd", {"m": 13, "n": 33, "k": 17}),
        ("odd", {"m": 13, "n": 33, "k": 17}, {"transpose_a": True}),
        ("odd", {"m": 13, "n": 33, "k": 17}, {"transpose_b": True}),
        ("odd", {"m": 13, "n": 33, "k": 17}, {"transpose_a": True, "transpose_b": True}),
        ("odd", {"m": 200, "n": 301, "k": 403}),
        ("odd", {"m": 197, "n": 65, "k": 259}, {"transpose_a": True, "transpose_b": True}),
        ("odd", {"m": 7, "n": 2100, "k": 9}),
        ("realistic", {"m": 512, "n": 256, "k": 256}),
    ),
    "router": _cases(
        "router",
        ("edge", {"N": 0, "C": 3, "R": 2, "S": 2}, {"kind": "gru"}),
        ("edge", {"N": 1, "C": 1, "R": 1, "S": 1}, {"kind": "naive"}),
        ("edge", {"N": 1, "C": 1, "R": 1, "S": 1}, {"kind": "gru"}),
        ("small", {"N": 3, "C": 4, "R": 2, "S": 3}, {"kind": "naive"}),
        *(
            ("odd", {"N": 37, "C": 19, "R": 21, "S": 5}, {"kind": kind.name, **option})
            for kind in KINDS.values()
            for option in ({}, {"first": True}, {"random": True})
            if kind.recurrent or (kind.scored and not option)
        ),
        ("realistic", {"N": 256, "C": 128, "R": 128, "S": 5}, {"kind": "gru"}),
    ),
    "scores": _cases(
        "scores",
        ("edge", {"N": 0, "S": 2}),
        ("edge", {"N": 3, "S": 1}),
        ("small", {"N": 4, "S": 3}),
        ("odd", {"N": 71, "S": 9}, {"temperature": 0.2}),
        ("odd", {"N": 71, "S": 9}, {"temperature": None}),
        ("realistic", {"N": 2048, "S": 5}, {"temperature": 0.2}),
    ),
    "topk": _cases(
        "topk",
        ("edge", {"N": 0, "S": 2, "K": 1}),
        ("edge", {"N": 3, "S": 4, "K": 0}),
        ("small", {"N": 4, "S": 3, "K": 3}),
        ("odd", {"N": 71, "S": 9, "K": 2}),
        ("odd", {"N": 71, "S": 9, "K": 2}, {"renormalise": True}),
        ("realistic", {"N": 2048, "S": 5, "K": 1}, {"renormalise": True}),
    ),
    "forced_choices": _cases(
        "forced_choices",
        ("edge", {"N": 0, "S": 3, "K": 2, "M": 2}),
        ("edge", {"N": 3, "S": 3, "K": 0, "M": 2}),
        ("edge", {"N": 3, "S": 2, "K": 2, "M": 2}, {"renormalise": True}),
        ("small", {"N": 4, "S": 4, "K": 3, "M": 3}),
        ("odd", {"N": 171, "S": 9, "K": 4, "M": 6}),
        ("odd", {"N": 171, "S": 9, "K": 4, "M": 6}, {"renormalise": True}),
        ("odd", {"N": 171, "S": 5, "K": 3, "M": 5}, {"renormalise": True, "forbidden": True}),
        ("odd", {"N": 71, "S": 9, "K": 4, "M": 6}, {"forbidden": True, "free": True, "renormalise": True}),
        ("odd", {"N": 71, "S": 70, "K": 3, "M": 68}, {"scored": False}),
        ("realistic", {"N": 2048, "S": 5, "K": 2, "M": 4}, {"renormalise": True}),
    ),
    "attention_probabilities": _cases(
        "attention_probabilities",
        ("edge", {"B": 1, "T": 3, "C": 4, "H": 2, "R": 0}),
        ("edge", {"B": 1, "T": 1, "C": 1, "H": 1, "R": 1}),
        ("small", {"B": 2, "T": 4, "C": 4, "H": 2, "R": 2}),
        ("odd", {"B": 3, "T": 67, "C": 45, "H": 3, "R": 2}),
        ("odd", {"B": 2, "T": 35, "C": 45, "H": 3, "R": 3}, {"mask": "left"}),
        ("odd", {"B": 2, "T": 35, "C": 45, "H": 3, "R": 2}, {"mask": "left", "masked_query": "reference"}),
        ("odd", {"B": 3, "T": 37, "C": 30, "H": 2, "R": 3}, {"active": 0.5, "mask": "random"}),
        ("odd", {"B": 6, "T": 61, "C": 32, "H": 2, "R": 4}, {"lengths": True, "mask": "random", "active": 0.7}),
        ("odd", {"B": 2, "T": 37, "C": 32, "H": 2, "R": 2}, {"precision": "bfloat16", "scaled": False}),
    ),
    "routed_linear": _cases(
        "routed_linear",
        ("edge", {"N": 0, "K": 1, "M": 2, "I": 2, "O": 3}),
        ("edge", {"N": 1, "K": 1, "M": 1, "I": 1, "O": 1}),
        ("edge", {"N": 5, "K": 0, "M": 2, "I": 2, "O": 3}),
        ("small", {"N": 4, "K": 2, "M": 3, "I": 4, "O": 2}),
        ("odd", {"N": 71, "K": 2, "M": 5, "I": 33, "O": 47}),
        ("odd", {"N": 71, "K": 2, "M": 5, "I": 33, "O": 47}, {"gathered": False}),
        ("odd", {"N": 71, "K": 3, "M": 5, "I": 33, "O": 19}, {"dense": True}),
        ("realistic", {"N": 512, "K": 2, "M": 4, "I": 128, "O": 256}),
    ),
    "routed_combine": _cases(
        "routed_combine",
        ("edge", {"N": 0, "K": 1, "M": 2, "C": 3}),
        ("edge", {"N": 5, "K": 0, "M": 2, "C": 3}),
        ("small", {"N": 4, "K": 2, "M": 3, "C": 4}),
        ("odd", {"N": 71, "K": 2, "M": 5, "C": 33}),
        ("odd", {"N": 71, "K": 2, "M": 5, "C": 33}, {"weighted": False}),
        ("realistic", {"N": 512, "K": 2, "M": 4, "C": 256}),
    ),
    "routed_scores": _cases(
        "routed_scores",
        ("edge", {"N": 0, "K": 1, "M": 2, "I": 2, "O": 3}),
        ("small", {"N": 4, "K": 2, "M": 3, "I": 4, "O": 2}),
        ("odd", {"N": 71, "K": 2, "M": 5, "I": 33, "O": 47}),
        ("odd", {"N": 71, "K": 2, "M": 5, "I": 33, "O": 47}, {"gathered": True}),
        ("odd", {"N": 71, "K": 2, "M": 5, "I": 33, "O": 47}, {"weighted": False}),
    ),
    "routed_layernorm": _cases(
        "routed_layernorm",
        ("edge", {"N": 0, "K": 1, "M": 2, "C": 3}),
        ("edge", {"N": 5, "K": 0, "M": 2, "C": 3}),
        ("small", {"N": 4, "K": 2, "M": 3, "C": 4}),
        ("odd", {"N": 171, "K": 2, "M": 5, "C": 33}),
        ("realistic", {"N": 512, "K": 2, "M": 4, "C": 128}),
    ),
    "balance_loss": _cases(
        "balance_loss",
        ("edge", {"L": 1, "N": 0, "S": 2}),
        ("small", {"L": 2, "N": 4, "S": 3}),
        ("odd", {"L": 3, "N": 301, "S": 7}),
        ("odd", {"L": 3, "N": 301, "S": 7}, {"depthwise": True}),
        ("odd", {"L": 3, "N": 301, "S": 7}, {"definition": "reference"}),
        ("odd", {"L": 2, "N": 301, "S": 7}, {"probabilities": False, "masked": True}),
        ("edge", {"L": 2, "N": 3, "S": 2}, {"masked": "all"}),
        ("realistic", {"L": 4, "N": 2048, "S": 5}, {"masked": True}),
    ),
    "adamw": _cases(
        "adamw",
        ("edge", {"tensors": 0}),
        ("small", {"tensors": 3}),
        ("odd", {"tensors": 9}),
    ),
    "column_sum": _cases(
        "column_sum",
        ("edge", {"N": 0, "C": 3}),
        ("small", {"N": 3, "C": 4}),
        ("odd", {"N": 71, "C": 33}, {"scaled": True, "chosen": True}),
        ("realistic", {"N": 2048, "C": 256}),
    ),
}


def cases_of(operator: str, *kinds: str) -> list[Case]:
    """Cases of an operator, of the given kinds or all."""
    return [case for case in CASES[operator] if not kinds or case.kind in kinds]


def parameters(*kinds: str) -> list[Any]:
    """All cases as values for ``pytest.mark.parametrize``, named."""
    return [pytest.param(case, id=str(case)) for name in CASES for case in cases_of(name, *kinds)]
