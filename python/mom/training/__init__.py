"""Training: configuration, the loop, callbacks and resumable state."""

from .config import TrainingConfig
from .finetune import FinetuneConfig
from .loop import TrainingResult, evaluate_loss, train

__all__ = ["FinetuneConfig", "TrainingConfig", "TrainingResult", "evaluate_loss", "train"]
