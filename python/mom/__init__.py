"""Mixture-of-Modules language models with a C core.

Begin with `mom.MoM`, `mom.MoMConfig`, `mom.prepare` and `mom.train`. Submodules are loaded when they are first used:

``data``            tokenizer, reading text, token files
``glue``, ``xsum``  fine-tuning on these tasks
``distributed``     ranks: processes that train one model together
``evaluate``        metrics, perplexity of texts
``analysis``        routes: use of modules, paths of tokens, statistics, pictures, what they do to the loss
``surgery``         changes of a trained model's modules
``sweep``           many runs: grids of trials, their tables, comparisons and curves
``report``          the paper's workflow at the scale of the machine, with a report
``accounting``      what a model computes and reads, counted; twins of equal size
``ops``             every operator on plain arrays
``reference``       the same maths in readable NumPy
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import _openmp as _openmp  # must come first: it loads the extension
from ._version import __version__
from .config import MoMConfig
from .errors import CheckpointError, ConfigError, DataError, MomError, RankError, TrainingError, TrainingInterrupted
from .familiar import attribute
from .interventions import Bias, Forbid, Force, Intervention, Patch, RandomRoutes, Scale, TopK, Zero
from .model import (
    Block,
    Decoder,
    MemoryPlan,
    ModelOutput,
    Module,
    MoM,
    MoMForSequenceClassification,
    Pool,
    Router,
    Routes,
)
from .runtime import cpu_info, get_num_threads, set_cpu_level, set_num_threads

if TYPE_CHECKING:
    from . import accounting as accounting
    from . import analysis, data, evaluate, glue, ops, reference, xsum
    from . import cli as cli
    from . import demo as demo
    from . import distributed as distributed
    from . import files as files
    from . import report as report
    from . import sklearn as sklearn
    from . import surgery as surgery
    from . import sweep as sweep
    from . import training as training
    from .accounting import ledger, match
    from .data.prepare import prepare
    from .data.tokenizer import Tokenizer
    from .sklearn import TextClassifier as TextClassifier
    from .sklearn import TextRegressor as TextRegressor
    from .training import AdamW, FinetuneConfig, TrainingConfig, clip_grad_norm, pretrain, train

__all__ = [
    "AdamW", "Bias", "Block", "CheckpointError", "ConfigError", "DataError", "Decoder", "FinetuneConfig", "Forbid",
    "Force", "Intervention", "MemoryPlan", "MoM", "MoMConfig", "MoMForSequenceClassification", "ModelOutput", "Module",
    "MomError", "Patch", "Pool", "RandomRoutes", "RankError", "Router", "Routes", "Scale", "Tokenizer", "TopK",
    "TrainingConfig", "TrainingError", "TrainingInterrupted", "Zero", "__version__", "analysis", "clip_grad_norm",
    "cpu_info", "data", "evaluate", "get_num_threads", "glue", "ledger", "match", "ops", "prepare", "pretrain",
    "reference", "set_cpu_level", "set_num_threads", "train", "xsum",
]  # fmt: skip

_SUBMODULES = (
    "accounting", "analysis", "cli", "data", "demo", "distributed", "evaluate", "files", "glue", "ops", "reference",
    "report", "sklearn", "surgery", "sweep", "training", "xsum",
)  # fmt: skip
#: Names that are loaded when they are first used, each with the submodule that defines it. `TextClassifier` and
#: `TextRegressor` need scikit-learn, so they are not in ``__all__``: ``from mom import *`` works without scikit-learn.
_LATER = {
    **dict.fromkeys(("ledger", "match"), "accounting"),
    "Tokenizer": "data.tokenizer",
    "prepare": "data.prepare",
    **dict.fromkeys(("AdamW", "FinetuneConfig", "TrainingConfig", "clip_grad_norm", "pretrain", "train"), "training"),
    **dict.fromkeys(("TextClassifier", "TextRegressor"), "sklearn"),
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        value = attribute(sys.modules[__name__], [__name__], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES, *_LATER})
