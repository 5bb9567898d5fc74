"""What an operation on a model gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._html import html_table
from .._json import to_json
from ..model import MoM

__all__ = ["SurgeryResult"]


@dataclass(frozen=True, repr=False)
class SurgeryResult:
    """A changed model, and what was done.

    Attributes
    ----------
    model : MoM
        A new model. The one that was operated on is as it was.
    receipt : dict
        JSON values: ``surgery``, its name; ``before`` and ``after``, a hash of the weights and the number of
        parameters; ``kept``, by half and block the numbers that the modules had before, in their new order; and what
        else the operation measured.
    """

    model: MoM
    receipt: dict[str, Any]

    def __iter__(self) -> Any:
        return iter((self.model, self.receipt))

    def __repr__(self) -> str:
        before, after = (self.receipt[when]["parameters"] for when in ("before", "after"))
        return f"<SurgeryResult: {self.receipt['surgery']}; {before:,} parameters before, {after:,} after>"

    def _repr_html_(self) -> str:
        rows = ([name, to_json(value, indent=None).strip()] for name, value in self.receipt.items())
        return html_table(repr(self).strip("<>"), [], rows, text_columns=2)
