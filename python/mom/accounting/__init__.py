"""Counting: what a model computes and reads, and twins that compute or hold as much as another model."""

from .counted import Ledger, LedgerRow, ledger
from .twin import Match, match

__all__ = ["Ledger", "LedgerRow", "Match", "ledger", "match"]
