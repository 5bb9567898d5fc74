"""Mixture-of-Modules language models with a C core.

The public names are imported here and nowhere defined; see `mom.MoM`, `mom.MoMConfig`, `mom.train` and the
submodules ``glue`` and ``xsum`` (fine-tuning), ``evaluate`` (metrics), ``ops`` (every operator on plain arrays),
``reference`` (the NumPy twin), ``routing``, ``data``.
"""

from . import _openmp as _openmp  # first: it loads the extension
from . import glue, ops, xsum
from ._version import __version__
from .config import MoMConfig
from .errors import CheckpointError, ConfigError, DataError, MomError, TrainingError
from .estimators import TextClassifier, TextRegressor
from .generation import Decoder
from .memory import MemoryPlan
from .model import Block, ModelOutput, Module, MoM, MoMForSequenceClassification, Pool, Router, Routes
from .optim import AdamW, clip_grad_norm
from .runtime import cpu_info, get_num_threads, set_cpu_level, set_num_threads
from .tokenizer import Tokenizer
from .training import FinetuneConfig, TrainingConfig, pretrain, train

__all__ = [
    "AdamW", "Block", "CheckpointError", "ConfigError", "DataError", "Decoder", "FinetuneConfig", "MemoryPlan", "MoM",
    "MoMConfig", "MoMForSequenceClassification", "ModelOutput", "Module", "MomError", "Pool", "Router", "Routes",
    "TextClassifier", "TextRegressor", "Tokenizer", "TrainingConfig", "TrainingError", "__version__", "clip_grad_norm",
    "cpu_info", "get_num_threads", "glue", "ops", "pretrain", "set_cpu_level", "set_num_threads", "train", "xsum",
]  # fmt: skip
