"""The models, their tensors, outputs and routes, generation, and how much memory they need."""

from .beam import Hypothesis, TokenDecoder, beam_search
from .classifier import MoMForSequenceClassification
from .counting import Counts
from .decoder import Decoder
from .language_model import MoM
from .memory_plan import MemoryPlan, plan_for
from .network import Network
from .output import ModelOutput
from .routes import Routes
from .tensors import Block, Module, Pool, Router, TensorMap

__all__ = [
    "Block", "Counts", "Decoder", "Hypothesis", "MemoryPlan", "MoM", "MoMForSequenceClassification", "ModelOutput",
    "Module", "Network", "Pool", "Router", "Routes", "TensorMap", "TokenDecoder", "beam_search", "plan_for",
]  # fmt: skip
