"""Training: configuration, the loop, the optimizer, callbacks and checkpoints."""

from .config import FinetuneConfig, TrainingConfig
from .optimizer import AdamW, clip_grad_norm
from .pretraining import TrainingResult, evaluate_loss, train
from .recipe import RECIPES, PretrainResult, pretrain
from .schedules import cosine_schedule, linear_schedule

__all__ = [
    "RECIPES", "AdamW", "FinetuneConfig", "PretrainResult", "TrainingConfig", "TrainingResult", "clip_grad_norm",
    "cosine_schedule", "evaluate_loss", "linear_schedule", "pretrain", "train",
]  # fmt: skip
