"""The ledger: what a pass computes and reads, row by row, and its totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import flags
from .._extras import need
from .._html import html_table
from .._reading import shown
from ..config import MoMConfig
from ..model.counting import PARTS
from .shapes import Place, all_parameters, fixed_parameters
from .work import Entry, Number

if TYPE_CHECKING:
    import pandas

__all__ = ["Ledger", "LedgerRow"]

#: Columns that are added up.
_COLUMNS = ("forward", "backward", "recomputed", "bytes")


@dataclass(frozen=True)
class LedgerRow:
    """A row of a ledger. The head has no place, and an anchor layer no block.

    Attributes
    ----------
    place, block, round : int or None
    half : {"attn", "ffn"} or None
    module : int or None
        None where a half has a single module, and for what its modules share.
    part : str
        See `mom.model.Counts`.
    tokens : int or float
        Real rows that the part works on; of the scores, those that are queries.
    forward, backward, recomputed : int or float
        Multiply-adds.
    bytes : int or float
        Of the weights that a forward pass reads here.
    hidden : int or float
        Multiply-adds forward of hidden pairs, which count only in the convention of full attention.
    """

    place: int | None
    block: int | None
    round: int | None
    half: str | None
    module: int | None
    part: str
    tokens: Number
    forward: Number
    backward: Number
    recomputed: Number
    bytes: Number
    hidden: Number

    @classmethod
    def of(
        cls, entry: Entry, place: Place | None = None, round: int | None = None, half: str | None = None
    ) -> LedgerRow:
        number, block = (None, None) if place is None else (place.number, place.block)
        return cls(
            number, block, round, half, entry.module, entry.part, entry.tokens, entry.forward, entry.backward,
            entry.recomputed, entry.bytes, entry.hidden,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Ledger:
    """What a pass computes and which weights it reads; made by `mom.ledger`.

    Attributes
    ----------
    config : MoMConfig
    rows : tuple of LedgerRow
    sequences, tokens : int
        Of the batch; `tokens` are real ones.
    training : bool
        Whether backward is counted.
    expected : bool
        Whether the routes are expected ones. The numbers are then means, and need not be integers.
    used_in_body : float
        Numbers in the parameters of the places that a token uses, each once: a mean over the real tokens.
    """

    config: MoMConfig
    rows: tuple[LedgerRow, ...]
    sequences: int
    tokens: int
    training: bool
    expected: bool
    used_in_body: float

    # ------------------------------------------------------------------ totals
    def _sum(self, column: str, parts: Sequence[str] = PARTS) -> Number:
        total: Number = sum(getattr(row, column) for row in self.rows if row.part in parts)
        return total

    def by_part(self, column: str = "forward") -> dict[str, Number]:
        """A column's sum over the rows of each part: ``"forward"``, ``"backward"``, ``"recomputed"``, ``"bytes"``."""
        if column not in _COLUMNS:
            raise ValueError(f"column: {shown(column)} is not one of {', '.join(map(repr, _COLUMNS))}")
        return {part: self._sum(column, [part]) for part in PARTS}

    @property
    def forward(self) -> Number:
        """Multiply-adds of the forward pass."""
        return self._sum("forward")

    @property
    def backward(self) -> Number:
        """Multiply-adds of backward; 0 without training. What it computes a second time is not among them."""
        return self._sum("backward")

    @property
    def recomputed(self) -> Number:
        """Multiply-adds that backward computes a second time."""
        return self._sum("recomputed")

    @property
    def bytes(self) -> Number:
        """Bytes of weights that a forward pass reads. A module counts in every round in which a row reaches it."""
        return self._sum("bytes")

    @property
    def unique_parameters(self) -> int:
        """Numbers in all parameters, each counted once. The tied head is ``transformer.wte.weight``."""
        return int(self.parameters())

    @property
    def active_parameters(self) -> Number:
        """Numbers in the parameters that a token uses, each once: a mean over the real tokens; see `parameters`."""
        return self.parameters(active=True)

    def parameters(self, active: bool = False, embeddings: bool = True) -> Number:
        """Numbers in the parameters.

        Parameters
        ----------
        active : bool
            Only those that a token uses, each once: a mean over the real tokens. Of the position embedding that is one
            row. The token embedding counts whole, since it is also the head, but in a classifier one row of it.
        embeddings : bool
            Without them, neither embeddings nor the head count.
        """
        active, embeddings = flags(active=active, embeddings=embeddings)
        body = self.used_in_body if active else all_parameters(self.config)
        sizes = fixed_parameters(self.config)
        if not embeddings:
            return body + sizes["ln_f"]
        if active:
            sizes["wpe"] = self.config.n_embd
            sizes["wte"] = sizes["wte"] if self.config.num_labels is None else self.config.n_embd
        return body + sum(sizes.values())

    def flops(self, attention: str = "causal", head: bool = True, recomputed: bool = False) -> Number:
        """Floating-point operations, two for each multiply-add, of the forward pass and, in training, of backward.

        Parameters
        ----------
        attention : {"causal", "full"}
            Which pairs count: those that a query sees, or all of its sequence, as many published figures do.
        head : bool
            Whether the output head counts.
        recomputed : bool
            Whether that counts which backward computes a second time.
        """
        head, recomputed = flags(head=head, recomputed=recomputed)
        if attention not in ("causal", "full"):
            raise ValueError(f"attention: {shown(attention)} is not one of 'causal', 'full'")
        columns = ("forward", "backward", *(("recomputed",) if recomputed else ()))
        parts = PARTS if head else tuple(part for part in PARTS if part != "head")
        total = sum(self._sum(column, parts) for column in columns)
        if attention == "full":
            for row in self.rows:
                if row.part == "scores" and row.hidden:
                    ratio = [getattr(row, column) / row.forward for column in columns]
                    total += row.hidden * sum(ratio) if self.expected else round(row.hidden * sum(ratio))
        return 2 * total

    def totals(self) -> dict[str, Number]:
        """All totals by name, under each convention."""
        return {
            "multiply-adds forward": self.forward, "multiply-adds backward": self.backward,
            "multiply-adds recomputed": self.recomputed,
            "FLOPs": self.flops(), "FLOPs without head": self.flops(head=False),
            "FLOPs, full attention": self.flops("full"),
            "FLOPs, full attention, without head": self.flops("full", head=False),
            "parameters": self.parameters(), "parameters without embeddings": self.parameters(embeddings=False),
            "active parameters": self.parameters(active=True),
            "active parameters without embeddings": self.parameters(active=True, embeddings=False),
            "bytes of weights read": self.bytes,
        }  # fmt: skip

    # ------------------------------------------------------------------ tables
    def to_pandas(self) -> pandas.DataFrame:
        """A row per place, round, half, module and part.

        Returns
        -------
        pandas.DataFrame
            Columns ``place, block, round, half, module, part, tokens, forward, backward, recomputed, bytes``; see
            `LedgerRow`. What a row does not have is missing.
        """
        pandas = need("pandas", "a table of the ledger", "pandas")
        numbered, counted = ("place", "block", "round", "module"), ("tokens", *_COLUMNS)
        columns: dict[str, Any] = {}
        for name in ("place", "block", "round", "half", "module", "part", *counted):
            values = [getattr(row, name) for row in self.rows]
            if name in numbered:
                columns[name] = pandas.array(values, dtype="Int64")
            elif name in counted:
                columns[name] = np.array(values, np.float64 if self.expected else np.int64)
            else:
                columns[name] = values
        return pandas.DataFrame(columns)

    def lines(self) -> list[tuple[str, ...]]:
        """The table of parts as words: part, multiply-adds forward, backward and again, bytes, share of the FLOPs."""
        whole = self.forward + self.backward or 1
        out = []
        for part in PARTS:
            forward, backward, again, read = (self._sum(column, [part]) for column in _COLUMNS)
            if forward or backward:
                share = f"{(forward + backward) / whole:.1%}"
                out.append((part, *map(_short, (forward, backward, again, read)), share))
        return [*out, ("all", *(_short(self._sum(column)) for column in _COLUMNS), "100.0%")]

    def _title(self) -> str:
        kind = "training" if self.training else "forward pass"
        routes = "" if self.config.is_vanilla else ", expected routes" if self.expected else ", real routes"
        return f"{kind}, {self.tokens:,} tokens in {self.sequences:,} sequences{routes}"

    def __str__(self) -> str:
        head = ("multiply-adds", "forward", "backward", "again", "bytes", "share")
        table = [f"{name:14}" + "".join(f"{text:>12}" for text in rest) for name, *rest in [head, *self.lines()]]
        totals = [
            ("FLOPs", self.flops()), ("  full attention", self.flops("full")),
            ("  without head", self.flops(head=False)),
            ("parameters", self.parameters()), ("  active", self.parameters(active=True)),
            ("  without embeddings", self.parameters(embeddings=False)),
        ]  # fmt: skip
        return "\n".join([self._title(), *table, *(f"{name:22}{_short(value):>10}" for name, value in totals)])

    def __repr__(self) -> str:
        facts = ((self.flops(), "FLOPs"), (self.parameters(), "parameters"), (self.parameters(active=True), "active"))
        return f"<Ledger: {self._title()}; {', '.join(f'{_short(value)} {name}' for value, name in facts)}>"

    def _repr_html_(self) -> str:
        head = ["multiply-adds", "forward", "backward", "computed again", "bytes of weights", "share"]
        totals = [(name, _short(value)) for name, value in self.totals().items()]
        return html_table(f"Ledger: {self._title()}", head, self.lines()) + html_table("Totals", [], totals)


def _short(value: Number) -> str:
    """A number with three or four digits and the unit's prefix."""
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f}"
