"""Metrics of summaries: ROUGE, computed by the package rouge-score, and the LEAD baselines."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np

from .._extras import need
from ..data.columns import checked_texts

__all__ = ["ROUGE", "lead", "rouge", "sentences"]

#: What `rouge` returns.
ROUGE = ("rouge1", "rouge2", "rougeL")

#: Words after which a full stop does not end a sentence.
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st sgt lt col gen capt rev hon vs etc jr sr inc ltd co corp".split())
#: The characters that ROUGE compares, in lower case.
_COMPARED = re.compile("[a-z0-9]")
_END = re.compile(r"""[.!?]+["'\u2019\u201d)\]]*(?=\s+["'\u2018\u201c(\[]*[A-Z0-9\u00a3$\u20ac])""")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures, in percent, with Porter stemming.

    Parameters
    ----------
    predictions, references : sequence of str
        As many predictions as references. An empty prediction scores 0.

    Returns
    -------
    dict of str to float
        ``rouge1``, ``rouge2``, ``rougeL``.

    Warns
    -----
    UserWarning
        If a text is not empty but holds none of the letters a to z and no digit. ROUGE compares nothing else, so such a
        text scores 0.

    Raises
    ------
    ValueError
        If there are no predictions, or not as many predictions as references.
    ImportError
        Without rouge-score. The message says what to install.
    """
    predictions = list(checked_texts(predictions, "predictions"))
    references = list(checked_texts(references, "references"))
    for name, texts in (("predictions", predictions), ("references", references)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}: row {row}: expected a string, got {type(text).__name__}")
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"predictions: {len(predictions)} of them for {len(references)} references")
    scoring = need("rouge_score.rouge_scorer", "ROUGE", "rouge-score")
    for name, texts in (("predictions", predictions), ("references", references)):
        mute = [row for row, text in enumerate(texts) if text.strip() and not _COMPARED.search(text.lower())]
        if mute:
            warnings.warn(
                f"{name}: {len(mute)} of {len(texts)} hold no letter a to z and no digit, which is all that ROUGE "
                f"compares, so they score 0; the first is row {mute[0]}",
                stacklevel=2,
            )
    scorer = scoring.RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        [score[name].fmeasure for name in ROUGE]
        for score in (scorer.score(wanted, found) for wanted, found in zip(references, predictions, strict=True))
    ]
    return {name: float(value) for name, value in zip(ROUGE, 100.0 * np.mean(scores, axis=0), strict=True)}


def sentences(text: str) -> list[str]:
    """Split a text into sentences, at line ends and at full stops, exclamation and question marks before a capital.

    Examples
    --------
    >>> sentences("Mr. Hill left. He was late!\\nNobody saw him at 4.30 p.m. on Monday.")
    ['Mr. Hill left.', 'He was late!', 'Nobody saw him at 4.30 p.m. on Monday.']
    """
    found = []
    for line in text.split("\n"):
        start = 0
        for match in _END.finditer(line):
            word = line[start : match.start()].rsplit(None, 1)[-1:]
            plain = word[0].lstrip("\"'(\u2018\u201c").lower() if word else ""
            if match[0].startswith(".") and (plain in _ABBREVIATIONS or re.fullmatch(r"[a-z]|([a-z]\.)+[a-z]", plain)):
                continue
            found.append(line[start : match.end()].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def lead(document: str, count: int) -> str:
    """The baseline LEAD-`count`: the document's first sentences.

    Parameters
    ----------
    document : str
    count : int
        1 and 3 are usual.
    """
    if count < 1:
        raise ValueError(f"count: {count} is less than 1")
    return " ".join(sentences(document)[:count])
