"""Measures models: GLUE's official metrics, ROUGE and the LEAD baselines, perplexity and bits per byte of texts."""

from ..glue.metrics import baseline_metrics, glue_metrics, task_score
from ..xsum.metrics import lead, rouge, sentences
from .perplexity import TextLoss, TokenFileLoss, text_losses, token_file_loss

__all__ = [
    "TextLoss", "TokenFileLoss", "baseline_metrics", "glue_metrics", "lead", "rouge", "sentences", "task_score",
    "text_losses", "token_file_loss",
]  # fmt: skip
