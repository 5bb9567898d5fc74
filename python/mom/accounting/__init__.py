"""Counting: what a model computes and reads, and twins that compute or hold as much as another model."""

from .counted import Ledger, LedgerRow, ledger

__all__ = ["Ledger", "LedgerRow", "ledger"]
