"""Training: configuration, the loop, callbacks and resumable state."""

from .config import TrainingConfig
from .finetune import FinetuneConfig
from .loop import TrainingResult, evaluate_loss, train
from .recipe import RECIPES, PretrainResult, pretrain

__all__ = [
    "RECIPES", "FinetuneConfig", "PretrainResult", "TrainingConfig", "TrainingResult", "evaluate_loss", "pretrain",
    "train",
]  # fmt: skip
