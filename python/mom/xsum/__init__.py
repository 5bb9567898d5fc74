"""XSUM with a language model: fine-tune on "document TL;DR: summary", generate, and compare with the LEAD baselines.

Examples
--------
>>> import mom
>>> rows = [{"document": "It rained all day. Nobody left.", "summary": "It rained."}]
>>> model = mom.MoM(mom.MoMConfig.preset("demo", n_positions=32, n_embd=32))
>>> model.tokenizer = mom.Tokenizer.train([rows[0]["document"]], 290)
>>> result = mom.xsum.finetune(
...     model, {"train": rows, "validation": rows}, max_summary=8, epochs=1, progress=False
... )
>>> result.train_rows
1
"""

from .finetuning import XsumResult, finetune
from .metrics import lead, rouge, sentences
from .reader import XsumData, read_xsum
from .rows import PROMPT
from .summaries import XsumScores, evaluate, format_examples, summarize

__all__ = [
    "PROMPT", "XsumData", "XsumResult", "XsumScores", "evaluate", "finetune", "format_examples", "lead", "read_xsum",
    "rouge", "sentences", "summarize",
]  # fmt: skip
