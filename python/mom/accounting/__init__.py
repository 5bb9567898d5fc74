"""Counting: what a model computes and reads, and twins that compute or hold as much as another model."""

from .counted import ledger
from .table import Ledger, LedgerRow
from .twin import Match, match

__all__ = ["Ledger", "LedgerRow", "Match", "ledger", "match"]
