"""Training: configuration, the loop, callbacks and resumable state."""

from .config import TrainingConfig
from .loop import TrainingResult, evaluate_loss, train

__all__ = ["TrainingConfig", "TrainingResult", "evaluate_loss", "train"]
