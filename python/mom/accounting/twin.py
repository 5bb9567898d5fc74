"""The twin: a configuration of given form that computes, or holds, as much as another model."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._arguments import count, number
from .._html import html_table
from .._reading import shown
from ..config import MoMConfig
from ..errors import ConfigError
from ..model.network import Network
from .batch import Batch, batch_of
from .counted import ledger
from .loads import expected_load
from .shapes import Place, Trained, all_parameters, fixed_parameters, places_of
from .work import Number, Step, half_work, head_work

__all__ = ["Match", "match"]

#: What can be made equal, and what the words say.
FIGURES = {
    "train_flops": "FLOPs of a training step", "params": "parameters", "active_params": "active parameters",
    "bytes": "bytes of weights that a forward pass reads",
}  # fmt: skip
#: Fields that may vary, the finest first.
FIELDS = ("n_inner", "n_embd", "n_layer", "depth_per_chunk", "chunks", "num_ffn", "num_attn")
#: A twin within this difference is as good as any; then the least change of the shape decides.
_CLOSE = 0.001
#: Most times that a field may grow, and most combinations of coarse fields that are tried.
_GROWTH, _COMBINATIONS = 4, 512


@dataclass(frozen=True, repr=False)
class Match:
    """What `match` has found.

    Attributes
    ----------
    config : MoMConfig
        The twin.
    on : str
    figure, wanted : int or float
        The twin's figure, and that of the other model.
    changed : dict of str to (int, int)
        The fields that vary: before and after.
    """

    config: MoMConfig
    on: str
    figure: Number
    wanted: Number
    changed: dict[str, tuple[int, int]]

    @property
    def difference(self) -> float:
        """The twin's figure against the other's: 0.01 is one percent more."""
        return float(self.figure / self.wanted - 1)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(name, f"{old:,} -> {new:,}") for name, (old, new) in self.changed.items()]
        return [*rows, (FIGURES[self.on], f"{self.figure:,.0f}"), ("of the other model", f"{self.wanted:,.0f}"),
                ("difference", f"{self.difference:+.3%}")]  # fmt: skip

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={new}" for name, (_, new) in self.changed.items())
        return (
            f"<Match: {fields}; {FIGURES[self.on]} {self.figure:,.0f} for {self.wanted:,.0f}, "
            f"difference {self.difference:+.3%}>"
        )

    def _repr_html_(self) -> str:
        return html_table("Match", [], self._rows())


def match(
    config: MoMConfig,
    like: MoMConfig | Network,
    on: str = "train_flops",
    by: str | Sequence[str] = ("n_inner",),
    *,
    batch: int = 1,
    length: int | None = None,
    factor: float = 1.2,
) -> Match:
    """Solve for the twin: a configuration like `config` that computes, or holds, as much as another model.

    The fields `by` take integer values, ``n_embd`` multiples of ``n_head``; the others stay. Among values within 0.1 %
    of the other model those win that change the shape least. Without such values, those with the least difference win.
    Expected routes count, see `mom.ledger`.

    Parameters
    ----------
    config : MoMConfig
        Where the search begins.
    like : MoMConfig or model
    on : {"train_flops", "params", "active_params", "bytes"}
        FLOPs of a training step (forward and backward, causal attention, with head); all parameters; those that a token
        uses; or the bytes of weights that a forward pass reads.
    by : str or sequence of str
        Among ``"n_embd"``, ``"n_inner"``, ``"n_layer"`` (the depth of a plain GPT-2), ``"chunks"``,
        ``"depth_per_chunk"``, ``"num_attn"`` and ``"num_ffn"``. Each grows to four times its value at most, but for
        ``n_inner``. If ``n_inner`` is among them, the difference is small.
    batch, length : int
        Of the batch that is counted; `length` is by default the smaller ``n_positions``.
    factor : float
        It is an error if the best twin differs by more than this factor.

    Returns
    -------
    Match

    Raises
    ------
    ConfigError
        If no value comes within the factor.
    ValueError
        For a field that cannot vary, or has no effect on the figure.

    Examples
    --------
    >>> import mom
    >>> small = mom.MoMConfig.preset("mom-small")
    >>> found = mom.match(small, like=mom.MoMConfig.preset("gpt2"), on="params", by="n_inner")
    >>> abs(found.difference) < 0.005
    True
    """
    other = like.config if isinstance(like, Network) else like
    for name, value in (("config", config), ("like", other)):
        if not isinstance(value, MoMConfig):
            raise TypeError(f"{name}: expected a MoMConfig, got {type(value).__name__} {shown(value)}")
    if on not in FIGURES:
        raise ValueError(f"on: {shown(on)} is not one of {', '.join(map(repr, FIGURES))}")
    fields = _fields(config, by)
    shape = (count(batch, "batch", 1), _length(config, other, length))
    most = number(factor, "factor", 1.0, "at least 1")
    wanted = _figure(other, shape, on, batch_of(other, shape))
    rows = batch_of(config, shape)

    def figure_of(candidate: MoMConfig) -> Number:
        return _figure(candidate, shape, on, rows)

    _check_effect(config, fields, on, figure_of)
    twin, figure = _search(config, fields, wanted, figure_of)
    before = {name: _value(config, name) for name in fields}
    found = Match(twin, on, figure, wanted, {name: (old, _value(twin, name)) for name, old in before.items()})
    if not 1 / most <= figure / wanted <= most:
        raise ConfigError(
            f"by: no value of {', '.join(fields)} comes within a factor of {most:g} of {wanted:,.0f} {FIGURES[on]}; "
            f"the nearest, {', '.join(f'{name}={_value(twin, name)}' for name in fields)}, has {figure:,.0f}. "
            "Let another field vary, or begin with a configuration of another size"
        )
    return found


def _fields(config: MoMConfig, by: str | Sequence[str]) -> list[str]:
    fields = [by] if isinstance(by, str) else list(by)
    if not fields:
        raise ValueError(f"by: is empty; name a field that may vary, such as 'n_inner', of {', '.join(FIELDS)}")
    without = {"n_layer": not config.is_vanilla} | dict.fromkeys(
        ("chunks", "depth_per_chunk", "num_attn", "num_ffn"), config.is_vanilla
    )
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"by: {shown(name)} is not one of {', '.join(FIELDS)}{hint}")
        if without.get(name):
            kind = "a plain GPT-2" if config.is_vanilla else "a model with blocks"
            raise ValueError(f"by: {name} has no effect on {kind}")
    if len(set(fields)) < len(fields):
        raise ValueError(f"by: {fields} names a field twice")
    return fields


def _check_effect(
    config: MoMConfig, fields: Sequence[str], on: str, figure_of: Callable[[MoMConfig], Number]
) -> None:
    """Raise if a field changes nothing about the figure."""
    for name in fields:
        try:
            more = config.replace(**{name: _value(config, name) + _step(config, name)})
        except ConfigError:  # another field goes with it
            continue
        if figure_of(more) == figure_of(config):
            raise ValueError(f"by: {name} has no effect on the {FIGURES[on]} of this configuration; leave it out")


def _length(config: MoMConfig, other: MoMConfig, length: int | None) -> int:
    longest = min(config.n_positions, other.n_positions)
    chosen = longest if length is None else count(length, "length", 1)
    if chosen > longest:
        raise ValueError(f"length: {chosen}, but the smaller n_positions is {longest}")
    return chosen


def _value(config: MoMConfig, name: str) -> int:
    value = {"n_inner": config.inner_size, "depth_per_chunk": config.rounds}.get(name)
    found: int = getattr(config, name) if value is None else value
    return found


def _step(config: MoMConfig, name: str) -> int:
    return config.n_head if name == "n_embd" else 1


# ---------------------------------------------------------------------- the search
def _search(
    config: MoMConfig, fields: Sequence[str], wanted: Number, figure_of: Callable[[MoMConfig], Number]
) -> tuple[MoMConfig, Number]:
    """Try the values of coarse fields, from small changes to large ones; for each, bisect the finest field."""
    fine = next(name for name in FIELDS if name in fields)
    coarse = [name for name in fields if name != fine]
    best: tuple[tuple[float, float], MoMConfig, Number] | None = None
    for values in _combinations(config, coarse):
        for candidate in _nearest(config, values, fine, wanted, figure_of):
            figure = figure_of(candidate)
            difference = abs(math.log(figure / wanted)) if figure > 0 else math.inf
            change = sum(abs(math.log(_value(candidate, name) / max(_value(config, name), 1))) for name in fields)
            rank = (0.0 if difference <= _CLOSE else difference, change)
            if best is None or rank < best[0]:
                best = (rank, candidate, figure)
    if best is None:
        raise ConfigError(f"by: no values of {', '.join(fields)} make a valid configuration")
    return best[1], best[2]


def _values(config: MoMConfig, name: str) -> list[int]:
    """Values of a field, from small changes to large ones."""
    have, step = _value(config, name), _step(config, name)
    found = range(step, _GROWTH * max(have, 1) + 1, step)
    return sorted(found, key=lambda value: abs(math.log(value / max(have, 1))))


def _combinations(config: MoMConfig, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Values of several fields, at most `_COMBINATIONS` of them; those that change the shape least come first."""
    each = [_values(config, name) for name in names]
    while math.prod(map(len, each)) > _COMBINATIONS:
        longest = max(range(len(each)), key=lambda i: len(each[i]))
        each[longest] = each[longest][: len(each[longest]) // 2]
    for values in itertools.product(*each):
        yield dict(zip(names, values, strict=True))


def _nearest(
    config: MoMConfig, values: dict[str, int], name: str, wanted: Number, figure_of: Callable[[MoMConfig], Number]
) -> list[MoMConfig]:
    """With these values, the configurations on both sides of the figure, which grows with the field `name`."""
    have, step = _value(config, name), _step(config, name)
    low, high = 1, max((64 if name == "n_inner" else _GROWTH) * max(have, 1) // step, 1)

    def at(steps: int) -> MoMConfig:
        return config.replace(**values, **{name: steps * step})

    try:
        while high - low > 1:
            middle = (low + high) // 2
            if figure_of(at(middle)) < wanted:
                low = middle
            else:
                high = middle
        return [at(low), at(high)]
    except ConfigError:  # such as bind_ffn_attn, which ties two fields
        return []


# ---------------------------------------------------------------------- figures, without a table
def _figure(config: MoMConfig, shape: tuple[int, int], on: str, batch: Batch) -> Number:
    """One figure of a configuration: as the ledger has it, but half-rounds that are alike are computed once."""
    if on == "params":
        return all_parameters(config) + sum(fixed_parameters(config).values())
    if on == "active_params":
        return ledger(config, 1, 1).active_parameters
    if batch.needed is not None:  # the last round differs
        whole = ledger(config, *shape)
        return whole.bytes if on == "bytes" else whole.flops()
    return _sums(config, batch, on)


def _sums(config: MoMConfig, batch: Batch, on: str) -> Number:
    known: dict[tuple[bool, str, int], Number] = {}
    trained = Trained()
    total: Number = 0
    head = head_work(config, batch, True, trained)

    def worth(entry: Any) -> Number:
        value: Number = entry.bytes if on == "bytes" else 2 * (entry.forward + entry.backward)
        return value

    def of_round(place: Place, which: int, number: int) -> Number:
        half = place.halves[which]
        # All rounds of a kind are alike, but for the state in the first one and tokens that skip for good.
        key = (place.block is not None, half.name, number if half.final_skip else min(number, 1))
        if key not in known:
            step = Step.of(True, False, trained, place.number, half.name)
            work = half_work(half, expected_load(half, batch, False, number), batch, number == 0, step)
            known[key] = sum(worth(entry) for entry in work)
        return known[key]

    for place in places_of(config):
        total += sum(of_round(place, which, number) for which in range(2) for number in range(place.rounds))
    return total + worth(head)
