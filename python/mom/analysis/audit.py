"""The causal audit: cheap measures of modules beside what really happens to the loss without them."""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import PathLike, as_ids, count, flag
from .._arguments import seed as seed_of
from .._extras import need
from .._progress import shown
from ..data import TokenFile
from ..interventions.resolve import ContradictionError
from ..model import MoM
from .measures import MEASURES, OF_MODULES, OF_ROUNDS, Floats, Item, items_of, of_batch
from .pictures import plot_audit

__all__ = ["Audit", "audit", "own_copy"]


class Audit:
    """What `audit` has found.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per half, block and module, and then a row per half, block and round. Columns ``half, block, round,
        module``, and for each measure its value and the ends of its 95 % interval, such as ``usage, usage_low,
        usage_high``. What does not apply to a row is NaN.
    loss, loss_low, loss_high : float
        Of the model as it is, in nats per token.
    tokens : int
        Tokens of the data.
    measures : tuple of str
    """

    def __init__(self, items: Sequence[Item], loss: Floats, drawn: dict[str, Floats], tokens: int) -> None:
        pandas = need("pandas", "a table of measures", "pandas")
        self.measures, self.tokens, self._drawn = tuple(drawn), tokens, drawn
        self.loss = float(loss[0])
        self.loss_low, self.loss_high = (float(end) for end in np.quantile(loss[1:], [0.025, 0.975]))
        columns: dict[str, Any] = {
            "half": [item.half for item in items], "block": [item.block for item in items],
            "round": pandas.array([item.round for item in items], dtype="Int64"),
            "module": pandas.array([item.module for item in items], dtype="Int64"),
        }  # fmt: skip
        for measure, values in drawn.items():
            low, high = _quantiles(values[1:])
            columns |= {measure: values[0], f"{measure}_low": low, f"{measure}_high": high}
        self.table = pandas.DataFrame(columns)

    def _pair(self, a: str, b: str, half: str | None) -> tuple[Floats, Floats]:
        for name, measure in (("a", a), ("b", b)):
            if measure not in self.measures:
                raise ValueError(
                    f"{name}: {measure!r} was not measured; there are {', '.join(map(repr, self.measures))}"
                )
        chosen = self.table["half"].isin([half] if half else ["attn", "ffn"]).to_numpy()
        first, second = self._drawn[a][:, chosen], self._drawn[b][:, chosen]
        both = np.isfinite(first[0]) & np.isfinite(second[0])
        if both.sum() < 3:
            raise ValueError(f"b: {a!r} and {b!r} have {both.sum()} rows in common; a correlation needs 3")
        return first[:, both], second[:, both]

    def correlation(self, a: str, b: str, half: str | None = None) -> float:
        """Spearman's rank correlation of two measures over the rows that have both.

        Parameters
        ----------
        a, b : str
            Measures of modules, or measures of rounds.
        half : {"attn", "ffn"}, optional
            Only rows of this half; by default all.
        """
        first, second = self._pair(a, b, half)
        return float(_rank_correlation(first[:1], second[:1])[0])

    def correlation_interval(self, a: str, b: str, half: str | None = None) -> tuple[float, float]:
        """Ends of the 95 % interval of `correlation`, from the same bootstrap over sequences as the table."""
        first, second = self._pair(a, b, half)
        low, high = _quantiles(_rank_correlation(first[1:], second[1:])[:, None])
        return float(low[0]), float(high[0])

    def plot(self, against: str = "drop_one") -> Any:
        """A panel for each measure of modules against `against`, and one for each half with the measures of rounds.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return plot_audit(self, against)

    def __repr__(self) -> str:
        modules = int(self.table["module"].notna().sum())
        return (
            f"<Audit: {modules} modules, {len(self.table) - modules} half-rounds, {self.tokens:,} tokens, loss "
            f"{self.loss:.4f} [{self.loss_low:.4f}, {self.loss_high:.4f}]; {', '.join(self.measures)}>"
        )

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self).strip('<>'))}</b>{self.table.to_html(float_format='{:.4f}'.format)}"


def _quantiles(drawn: Floats) -> tuple[Floats, Floats]:
    """Ends of the 95 % interval of each column; NaN where a sample has no value."""
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def _rank_correlation(a: Floats, b: Floats) -> Floats:
    """Spearman's correlation of each row of `a` with that of `b`; NaN if one lacks a value, or all are equal."""
    ranks = [_ranks(values) for values in (a, b)]
    left, right = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (left * right).sum(axis=1) / np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found[np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1)] = np.nan
    return found


def _ranks(values: Floats) -> Floats:
    """Rank of each value in its row; equal values share the mean of their ranks."""
    below = (values[:, None, :] < values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    found: Floats = below + (equal + 1) / 2
    return found


def audit(
    model: MoM | PathLike,
    data: npt.ArrayLike | TokenFile | PathLike,
    measures: Sequence[str] = MEASURES,
    *,
    sequence_length: int | None = None,
    batch_size: int = 8,
    batches: int | None = None,
    samples: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Measure modules and rounds, cheaply and by what the loss really does without them.

    Parameters
    ----------
    model : MoM or path
    data : array of int, shape (B, T), TokenFile or path
        Token ids; or a token file, or a folder made by `mom.data.prepare` (its ``val.bin``, or else ``train.bin``), of
        which windows that do not overlap are taken.
    measures : sequence of str
        See below.
    sequence_length : int, optional
        Tokens of a window of a file; by default the model's ``n_positions``, at most 1024.
    batch_size : int
        Sequences computed together.
    batches : int, optional
        At most so many batches; by default all.
    samples : int
        Bootstrap samples of sequences for the intervals.
    seed : int
        Of the random routes and of the bootstrap.
    progress : bool
        Show a bar, in a terminal or a notebook.

    Returns
    -------
    Audit

    Raises
    ------
    ValueError, TypeError
        If the model has no routers, a measure is unknown, not possible or contradicts interventions that are active in
        the model, or there are no data.

    Notes
    -----
    Measures of a module, over all rounds of its block:

    ``usage``
        Share of pairs of a token and a round in which the module runs.
    ``weight``
        Mean weight that the router gives it, 0 where it does not run.
    ``norm``
        Mean Euclidean norm of its output before the weight, over the tokens that run it.
    ``reap``
        The same, each norm times its weight.
    ``taylor``
        Minus the sum of gradient times output over its tokens: what the loss would rise by without these outputs if it
        were linear, in nats per token.
    ``drop_one``
        What the loss rises by if the router may not choose the module (`mom.Forbid`), in nats per token.

    Measures of a half of a round, all of them the rise of the loss in nats per token:

    ``skip_round``
        No token runs a module there (`mom.Force` to SKIP).
    ``random_router``
        Choices are uniformly random (`mom.RandomRoutes`).
    ``frozen_router``
        Tokens repeat the choices that they made in the first round of the block. That round itself has no value.

    Random routers draw the same noise in all passes. Intervals are percentiles of a bootstrap over sequences. A change
    reaches no half-round before it, so passes begin at the half-round of their change. The gradients and the random
    state of the model stay as they are.

    Examples
    --------
    >>> import mom
    >>> import numpy as np
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> ids = np.random.default_rng(0).integers(0, 2048, (4, 16))
    >>> result = mom.analysis.audit(model, ids, ["usage", "drop_one"])
    >>> len(result.table)
    16
    >>> -1.0 <= result.correlation("usage", "drop_one") <= 1.0
    True
    """
    model = MoM.resolve(model)
    chosen, items = _check_measures(measures, model), items_of(model)
    if not items:
        raise ValueError("model: has no routers, so there is nothing to audit")
    batch_size, samples = count(batch_size, "batch_size", 1), count(samples, "samples", 2)
    seed_of(seed)
    flag(progress, "progress")
    losses: list[Floats] = []
    parts: dict[str, list[tuple[Floats, Floats]]] = {measure: [] for measure in chosen}
    tokens = 0
    with own_copy(model) as own:
        number, take = sequences_of(own, data, sequence_length)
        begins = range(0, number, batch_size)[: None if batches is None else count(batches, "batches", 1)]
        for begin in shown(begins, "audit", "batch", progress, len(begins)):
            ids = take(begin, min(begin + batch_size, number))
            try:
                sums, found = of_batch(own, ids, chosen, items, seed)
            except ContradictionError as error:
                raise ValueError(
                    "measures: leave out those that contradict interventions which are active in the model, or end "
                    f"the block of intervene ({error})"
                ) from error
            losses.append(sums / (ids.shape[1] - 1))
            tokens += ids.size
            for measure, pair in found.items():
                parts[measure].append(pair)
    drawn = _bootstrap(sum(map(len, losses)), samples, seed)
    tables = {}
    for measure, pairs in parts.items():
        top, bottom = (drawn @ np.concatenate(arrays, axis=1).T for arrays in zip(*pairs, strict=True))
        tables[measure] = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.nan)
    return Audit(items, drawn @ np.concatenate(losses) / drawn.sum(axis=1), tables, tokens)


def _bootstrap(sequences: int, samples: int, seed: int) -> Floats:
    """How often each sequence counts, shape (1 + samples, sequences). In the first row all count once."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(sequences, np.full(sequences, 1.0 / sequences), size=samples)
    return np.concatenate([np.ones((1, sequences)), drawn.astype(np.float64)])


def _check_measures(measures: Sequence[str], model: MoM) -> list[str]:
    given = [measures] if isinstance(measures, str) else list(measures)
    for measure in given:
        if measure not in MEASURES:
            raise ValueError(f"measures: {measure!r} is not one of {', '.join(map(repr, MEASURES))}")
    if not given:
        raise ValueError("measures: is empty")
    forcing = [measure for measure in given if measure in OF_ROUNDS]
    if model.config.routing_all_possible_path and forcing:
        raise ValueError(
            f"measures: {forcing[0]!r} forces choices, which this model does not make: every token uses all modules. "
            f"Choose among {', '.join(map(repr, OF_MODULES))}"
        )
    return list(dict.fromkeys(given))


@contextlib.contextmanager
def own_copy(model: MoM) -> Iterator[MoM]:
    """A copy in evaluation mode with the interventions that are active.

    Its backward pass goes down to the first block, for captures, and leaves out most gradients of weights.
    """
    own = model.copy()
    own.eval()
    names = [name for name in own.parameters if name.startswith(f"transformer.h.{own.config.places().index('block')}.")]
    own.train_only(([name for name in names if ".router." in name] or names)[0])
    if not model.interventions:
        yield own
        return
    with own.intervene(model.interventions):
        yield own
    for scope in model.scopes:
        scope.touched.update(range(len(scope.rules)))


def sequences_of(
    model: MoM, data: Any, sequence_length: int | None
) -> tuple[int, Callable[[int, int], npt.NDArray[np.int32]]]:
    """The number of sequences, and what gives the token ids of sequences ``[begin, end)``."""
    positions = model.config.n_positions
    if not isinstance(data, (str, os.PathLike, TokenFile)):
        if sequence_length is not None:
            raise ValueError("sequence_length: is for token files; an array has sequences already")
        ids = as_ids(data, "data")
        if ids.shape[1] < 2 or not len(ids):
            raise ValueError(f"data: shape {ids.shape}; sequences of at least 2 tokens are needed")
        return len(ids), lambda begin, end: ids[begin:end]
    length = min(1024, positions) if sequence_length is None else count(sequence_length, "sequence_length", 2)
    if length > positions:
        raise ValueError(f"sequence_length: {length} is above {positions}, the model's n_positions")
    file = data if isinstance(data, TokenFile) else _open(Path(data), model.config.vocab_size)
    windows = len(file) // length
    if not windows:
        raise ValueError(f"data: {len(file)} tokens, fewer than one window of {length}; give a smaller sequence_length")
    return windows, lambda begin, end: file.windows(np.arange(begin, end) * length, length)


def _open(path: Path, vocab_size: int) -> TokenFile:
    if path.is_dir():
        path = path / ("val.bin" if (path / "val.bin").is_file() else "train.bin")
    return TokenFile(path, vocab_size=vocab_size)
