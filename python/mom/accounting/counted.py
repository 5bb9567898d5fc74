"""The ledger: what a pass computes and reads, row by row, and its totals."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._arguments import count, flags
from .._extras import need
from .._html import html_table
from .._reading import shown
from ..config import MoMConfig
from ..files.names import canonical_names
from ..model.counting import PARTS
from ..model.network import Network
from ..model.routes import Routes, rounds_of_blocks
from .batch import Batch, batch_of
from .loads import Load, expected_load, real_load, share_with_module
from .shapes import Half, Place, Trained, fixed_parameters, places_of, trained_parts
from .work import Entry, Number, Step, half_work, head_work

if TYPE_CHECKING:
    import pandas

__all__ = ["Ledger", "LedgerRow", "ledger"]


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
        See `mom.model.counting.Counts`.
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
    def of(cls, entry: Entry, place: Place | None = None, round: int | None = None, half: str | None = None) -> LedgerRow:
        where = (None, None) if place is None else (place.number, place.block)
        return cls(
            *where, round, half, entry.module, entry.part, entry.tokens, entry.forward, entry.backward,
            entry.recomputed, entry.bytes, entry.hidden,
        )  # fmt: skip


class Ledger:
    """What a pass computes and which weights it reads; made by `mom.ledger`.

    Attributes
    ----------
    config : MoMConfig
    rows : tuple of LedgerRow
    training : bool
        Whether backward is counted.
    expected : bool
        Whether the routes are expected ones. The numbers are then means, and need not be integers.
    sequences, tokens : int
        Of the batch; `tokens` are real ones.
    unique_parameters : int
        Numbers in all parameters, each counted once. The tied head is ``transformer.wte.weight``.
    active_parameters : float
        Numbers in the parameters that a token uses, each once: a mean over the real tokens.
    """

    def __init__(
        self, config: MoMConfig, rows: Sequence[LedgerRow], batch: Batch, training: bool, expected: bool, active: float
    ) -> None:
        self.config, self.rows, self.training, self.expected = config, tuple(rows), training, expected
        self.sequences, self.tokens = batch.sequences, batch.num_real
        self._active = active

    # ------------------------------------------------------------------ totals
    def _sum(self, column: str, parts: Sequence[str] = PARTS) -> Number:
        return sum(getattr(row, column) for row in self.rows if row.part in parts)

    def by_part(self, column: str = "forward") -> dict[str, Number]:
        """A column's sum over the rows of each part: ``"forward"``, ``"backward"``, ``"recomputed"``, ``"bytes"``."""
        if column not in ("forward", "backward", "recomputed", "bytes"):
            raise ValueError(f"column: {shown(column)} is not one of 'forward', 'backward', 'recomputed', 'bytes'")
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
        return int(self.parameters())

    @property
    def active_parameters(self) -> Number:
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
        body = self._active if active else sum(h.parameters for p in places_of(self.config) for h in p.halves)
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
        numbered, counted = ("place", "block", "round", "module"), ("tokens", "forward", "backward", "recomputed", "bytes")
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
            forward, backward, again, read = (self._sum(c, [part]) for c in ("forward", "backward", "recomputed", "bytes"))
            if forward or backward:
                out.append((part, *map(_short, (forward, backward, again, read)), f"{(forward + backward) / whole:.1%}"))
        sums = (self.forward, self.backward, self.recomputed, self.bytes)
        return [*out, ("all", *map(_short, sums), "100.0%")]

    def _title(self) -> str:
        kind = "training" if self.training else "forward pass"
        routes = "" if self.config.is_vanilla else ", expected routes" if self.expected else ", real routes"
        return f"{kind}, {self.tokens:,} tokens in {self.sequences:,} sequences{routes}"

    def __str__(self) -> str:
        head = ("multiply-adds", "forward", "backward", "again", "bytes", "share")
        table = [f"{name:14}" + "".join(f"{text:>12}" for text in rest) for name, *rest in [head, *self.lines()]]
        totals = [
            ("FLOPs", self.flops()), ("  full attention", self.flops("full")), ("  without head", self.flops(head=False)),
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


# ---------------------------------------------------------------------- making one
def ledger(
    model: MoMConfig | Network,
    batch: int | None = None,
    length: int | None = None,
    routes: Routes | None = None,
    training: bool = True,
    *,
    labels: ArrayLike | bool | None = None,
    logits: bool = False,
    activation_checkpointing: bool | None = None,
    trainable: str | Sequence[str] | None = None,
) -> Ledger:
    """Count what a pass computes, without computing it.

    Useful work counts: pairs that attention sees, real rows, modules that run. With real routes, the numbers are those
    that the core counts itself (`MoM.counting`), to the last multiply-add. Without routes they are means: each row makes
    K distinct choices, uniform over all outputs of the router, those for SKIP included. Rows are independent.

    Parameters
    ----------
    model : MoMConfig, MoM or MoMForSequenceClassification
        A configuration is enough; no weights are made.
    batch, length : int, optional
        Sequences, and tokens of each. By default those of the routes, or 1 sequence of ``n_positions`` tokens.
    routes : Routes, optional
        As a call has returned them. They also say which tokens are padding, and the lengths of packed rows.
    training : bool
        Whether backward is counted, too.
    labels : array of int, as the routes' tokens, or bool, optional
        Labels of the call; -100 does not count. By default a real token has a label. False: there are none.
    logits : bool
        The call returns the logits of all rows.
    activation_checkpointing : bool, optional
        By default the model's attribute; False for a configuration.
    trainable : str or sequence of str, optional
        Patterns of the names of trained parameters, as for `MoM.train_only`; by default the model's own choice.

    Returns
    -------
    Ledger

    Raises
    ------
    ValueError
        If the routes are not those of such a model, have free entries, or do not fit the labels or the shape.

    Examples
    --------
    >>> import mom
    >>> one = mom.ledger(mom.MoMConfig.preset("gpt2"), batch=8, length=1024)
    >>> other = mom.ledger(mom.MoMConfig.preset("mom-small"), batch=8, length=1024)
    >>> round(other.flops() / one.flops(), 2)
    1.22
    """
    if not isinstance(model, (MoMConfig, Network)):
        raise TypeError(
            f"model: expected a MoMConfig or a model, got {type(model).__name__} {shown(model)}. For a named "
            "configuration use MoMConfig.preset('demo')"
        )
    config = model if isinstance(model, MoMConfig) else model.config
    training, logits = flags(training=training, logits=logits)
    if activation_checkpointing is None:
        activation_checkpointing = False if isinstance(model, MoMConfig) else model.activation_checkpointing
    (checkpointing,) = flags(activation_checkpointing=activation_checkpointing)
    if routes is not None:
        _check_routes(config, routes)
    shape = _shape(config, batch, length, routes)
    if isinstance(labels, (bool, np.bool_)):
        labels = None if labels else False
    rows = batch_of(config, shape, routes, labels, logits)
    training = training and (labels is not False or config.num_labels is not None)
    trained = trained_parts(config, _trained(model, config, trainable))
    entries, active = [], 0.0
    for place in places_of(config):
        found, used = _of_place(config, place, rows, routes, training, checkpointing, trained)
        entries += found
        active += used
    entries.append(LedgerRow.of(head_work(config, rows, training, trained)))
    expected = routes is None and any(half.routed and not half.all_paths for p in places_of(config) for half in p.halves)
    return Ledger(config, entries, rows, training, expected, active)


def _of_place(
    config: MoMConfig, place: Place, batch: Batch, routes: Routes | None, training: bool, checkpointing: bool, trained: Trained
) -> tuple[list[LedgerRow], float]:
    """The rows of a place, and how many numbers of its parameters a token uses."""
    last_place = place.number + 1 == len(config.places())
    rows, used = [], 0.0
    loads: dict[str, list[Load]] = {"attn": [], "ffn": []}
    for round_number in range(place.rounds):
        saves = last_place and round_number + 1 == place.rounds and not place.halves[1].routed
        for half in place.halves:
            if routes is None or place.block is None:
                load = expected_load(half, batch, saves)
            else:
                load = real_load(half, batch, routes, place.block * place.rounds + round_number, saves)
            loads[half.name].append(load)
            step = Step.of(training, checkpointing, trained, place.number, half.name)
            work: Iterator[Entry] = half_work(half, load, batch, round_number == 0, step)
            rows += [LedgerRow.of(entry, place, round_number, half.name) for entry in work]
    for half in place.halves:
        used += half.router_parameters + half.module_parameters * _modules_used(half, place, batch, routes)
    return rows, used


def _modules_used(half: Half, place: Place, batch: Batch, routes: Routes | None) -> float:
    """How many modules of a half a token uses in all rounds together, each counted once: a mean over real tokens."""
    if not place.rounds:
        return 0.0
    if not half.routed or half.all_paths:
        return float(half.modules)
    if routes is None or place.block is None:
        return half.modules * (1.0 - (1.0 - half.choices / half.outputs) ** place.rounds)
    first = place.block * place.rounds
    module = routes.module[half.name][first : first + place.rounds].reshape(place.rounds, len(batch.row), -1)[:, batch.real]
    used = np.zeros((module.shape[1], half.modules + 1), bool)
    for chosen in np.moveaxis(module, 1, 0).reshape(module.shape[1], -1).T:
        used[np.arange(len(used)), chosen] = True
    return float(used[:, :-1].sum() / max(len(used), 1))


def _trained(model: MoMConfig | Network, config: MoMConfig, patterns: str | Sequence[str] | None) -> Mapping[str, bool]:
    if patterns is None:
        return dict.fromkeys(canonical_names(config), True) if isinstance(model, MoMConfig) else model.trainable
    chosen = [patterns] if isinstance(patterns, str) else list(patterns)
    known = canonical_names(config)
    for pattern in chosen:
        if not isinstance(pattern, str) or not fnmatch.filter(known, pattern):
            raise ValueError(f"trainable: {shown(pattern)} fits no parameter of this model")
    return {name: any(fnmatch.fnmatchcase(name, pattern) for pattern in chosen) for name in known}


def _shape(config: MoMConfig, batch: int | None, length: int | None, routes: Routes | None) -> tuple[int, int]:
    """Sequences and tokens of each; those of routes may be packed, so that only the longest is told."""
    if routes is None:
        sequences = 1 if batch is None else count(batch, "batch", 1)
        longest = config.n_positions if length is None else count(length, "length", 1)
        if longest > config.n_positions:
            raise ValueError(f"length: {longest}, n_positions is {config.n_positions}")
        return sequences, longest
    have = (routes.rows, routes.tokens.shape[1] if routes.lengths is None else int(routes.lengths.max()))
    for name, given, is_there in (("batch", batch, have[0]), ("length", length, have[1])):
        if given is not None and given != is_there:
            raise ValueError(f"{name}: {given}, but the routes have {is_there}; leave it out")
    return have


def _check_routes(config: MoMConfig, routes: Routes) -> None:
    if not isinstance(routes, Routes):
        raise TypeError(f"routes: expected mom.Routes, got {type(routes).__name__}")
    rounds = [(block, number) for _, block, number in rounds_of_blocks(config)]
    if routes.rounds != rounds:
        raise ValueError(f"routes: have {len(routes.rounds)} rounds, and the model's blocks have {len(rounds)}")
    for name, modules in (("attn", config.num_attn), ("ffn", config.num_ffn)):
        if rounds and (routes.num_modules[name] != modules or (modules > 1) != (name in routes.index)):
            raise ValueError(f"routes: are of {routes.num_modules[name]} {name} modules, and the model has {modules}")
