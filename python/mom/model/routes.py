"""How the tokens of a batch were routed, as arrays: read, compared, edited, saved, and given back to a model."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from .._arguments import PathLike
from .._extras import need
from .._html import html_table
from .._reading import read_bytes
from ..config import MoMConfig
from ..errors import DataError
from ..files.folders import write_file
from ..interventions.layout import layout_of
from ..interventions.selection import FREE, HALVES, NONE, choices_to_keep, rounds_of, selected

if TYPE_CHECKING:
    import pandas

__all__ = ["Routes", "of_rounds", "read_routes", "rounds_of_blocks", "routes_of_rows"]

Value = TypeVar("Value")
_FORMAT = 1
#: Of `Routes.to_pandas`.
_COLUMNS = ["row", "position", "token", "block", "round", "half", "choice", "module", "weight", "score"]


class Routes(Mapping[str, list[list[dict[str, NDArray[Any]] | None]]]):
    """How the tokens of a batch were routed.

    A half with a single module has no router and no entry in the mappings. Arrays are copies that a program may change,
    but `edit` is the safer way. ``model(tokens, routes=routes)`` forces all choices.

    Attributes
    ----------
    tokens : ndarray of int32, shape (B, T), or (N,) for packed rows
        Token ids.
    mask : ndarray of bool, as `tokens`, or None
        False for padding. None: there is no padding.
    lengths : ndarray of int32, shape (B,), or None
        Of packed rows.
    index : dict of str to ndarray of int16, shape (L, B, T, K) or (L, N, K)
        By half: kept choices as the router numbers them, in falling order of score. The first axis has the rounds of
        all blocks in order. Numbers from ``num_modules[half]`` on mean SKIP. -1 is free, -2 none, -3 the best SKIP.
    scores : dict of str to ndarray of float32, shape (L, B, T, S) or (L, N, S)
    weight : dict of str to ndarray of float32, as `index`
        Kept scores, renormalised with softmax, before any straight-through sign.
    rounds : list of (int, int)
        (block, round) of each entry of the first axis.
    num_modules : dict of str to int
        By half.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> routes = model([[1, 2, 3]], return_routes=True).routes
    >>> routes.module["ffn"].shape == routes.index["ffn"].shape
    True
    >>> again = model([[1, 2, 3]], routes=routes, return_routes=True).routes
    >>> again == routes
    True
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        index: dict[str, NDArray[np.int16]],
        scores: dict[str, NDArray[np.float32]],
        weight: dict[str, NDArray[np.float32]],
        rounds: list[tuple[int, int]],
        num_modules: dict[str, int],
        lengths: NDArray[np.int32] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.tokens, self.mask, self.lengths = tokens, mask, lengths
        self.index, self.scores, self.weight = index, scores, weight
        self.rounds, self.num_modules = rounds, num_modules

    @property
    def module(self) -> dict[str, NDArray[np.int16]]:
        """As `index`, with ``num_modules[half]`` for every choice that runs no module; free entries stay -1."""
        return {half: np.where(i == FREE, i, _modules(i, self.num_modules[half])) for half, i in self.index.items()}

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.tokens) if self.lengths is None else len(self.lengths)

    def of_row(self, array: NDArray[Any], row: int) -> NDArray[Any]:
        """The part of an array with the axes of `tokens`, or with an axis of rounds before them, of one sequence."""
        rounds = array.ndim > self.tokens.ndim + 1
        if self.lengths is None:
            part: NDArray[Any] = array[:, row] if rounds else array[row]
            return part
        end = int(np.cumsum(self.lengths)[row])
        begin = end - int(self.lengths[row])
        part = array[:, begin:end] if rounds else array[begin:end]
        return part

    # ------------------------------------------------------------------ comparison
    def __eq__(self, other: object) -> bool:
        """Whether tokens, padding and all choices are the same. Scores and weights are not compared."""
        if not isinstance(other, Routes):
            return NotImplemented
        return (
            self.rounds == other.rounds
            and self.num_modules == other.num_modules
            and _same(self.tokens, other.tokens)
            and _same(self.lengths, other.lengths)
            and _same(self.mask, other.mask)
            and self.index.keys() == other.index.keys()
            and all(_same(value, other.index[half]) for half, value in self.index.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def agreement(self, other: Routes) -> dict[str, NDArray[np.float64]]:
        """Share of equal choices.

        Parameters
        ----------
        other : Routes
            Of the same tokens, and of a model with as many rounds and modules.

        Returns
        -------
        dict of str to ndarray of float64, shape (L,)
            By half: the share of real tokens' entries that run the same module, or both none.

        Raises
        ------
        ValueError
            If the two do not fit together.
        """
        if not isinstance(other, Routes):
            raise TypeError(f"other: expected Routes, got {type(other).__name__}")
        if not _same(self.tokens, other.tokens) or not _same(self.lengths, other.lengths):
            raise ValueError("other: is of other tokens")
        if self.rounds != other.rounds or {h: i.shape for h, i in self.index.items()} != {
            h: i.shape for h, i in other.index.items()
        }:
            raise ValueError("other: has other rounds, halves or numbers of choices")
        real = np.ones(self.tokens.shape, bool) if self.mask is None else self.mask
        mine, yours = self.module, other.module
        return {
            half: np.array([np.mean(a[real] == b[real]) for a, b in zip(mine[half], yours[half], strict=True)])
            for half in mine
        }

    # ------------------------------------------------------------------ editing
    def edit(
        self,
        half: str,
        to: int | str | Sequence[int | str],
        round: int | tuple[int, int] | Sequence[int | tuple[int, int]] | None = None,
        tokens: int | Sequence[int] | None = None,
        rows: int | Sequence[int] | None = None,
    ) -> Routes:
        """A copy in which some choices are others.

        Parameters
        ----------
        half : {"attn", "ffn"}
        to : int, "SKIP", "free", or a list of at most K of them
            What each chosen token does. Entries after those that are named become none. ``"free"`` is one choice of
            the router; ``["free"] * K`` leaves all K choices to it.
        round : int, (block, round), or a list of these, optional
            By default all rounds. A number counts over the blocks, as `rounds` does. A tuple of two is a pair.
        tokens : int or sequence of int, optional
            Positions, counted from each sequence's first real token; by default all.
        rows : int or sequence of int, optional
            Sequences; by default all.

        Returns
        -------
        Routes
            Scores and weights are those of this object.

        Raises
        ------
        ValueError, TypeError
            If something does not exist. The message names the argument.
        """
        if not isinstance(half, str) or half not in self.index:
            raise ValueError(f"half: {half!r} has no router here; those with one are {list(self.index)}")
        index = self.index[half]
        entries = choices_to_keep(to, self.num_modules[half], self.scores[half].shape[-1], index.shape[-1], free=True)
        layout = layout_of(self.tokens, self.mask, self.lengths)
        chosen = selected(layout, tokens, rows)
        edited = index.reshape(len(self.rounds), self.tokens.size, index.shape[-1]).copy()
        for number in rounds_of([round] if isinstance(round, tuple) else round, self.rounds, "round"):
            edited[number, chosen] = entries
        return Routes(
            self.tokens, {**self.index, half: edited.reshape(index.shape)}, self.scores, self.weight, self.rounds,
            self.num_modules, self.lengths, self.mask,
        )  # fmt: skip

    # ------------------------------------------------------------------ tables and files
    def to_pandas(self) -> pandas.DataFrame:
        """A row per sequence, position, block, round, half and choice of a real token.

        Returns
        -------
        pandas.DataFrame
            Columns ``row, position, token, block, round, half, choice, module, weight, score``. `module` is a number,
            ``"SKIP"``, or ``"free"`` where `edit` leaves the choice to the router. `score` is NaN where the choice has
            none.
        """
        pandas = need("pandas", "a table of routes", "pandas")
        layout = layout_of(self.tokens, self.mask, self.lengths)
        real = np.flatnonzero(layout.real)
        parts = []
        for half, index in self.index.items():
            K, S = index.shape[-1], self.scores[half].shape[-1]
            flat = index.reshape(len(self.rounds), self.tokens.size, K)[:, real]
            scores = self.scores[half].reshape(len(self.rounds), self.tokens.size, S)[:, real]
            known = (flat >= 0) & (flat < S)
            score = np.take_along_axis(scores, np.where(known, flat, 0).astype(np.int64), axis=-1)
            number, token, choice = (a.ravel() for a in np.indices(flat.shape))
            modules = _modules(flat, self.num_modules[half]).ravel()
            named = np.where(modules == self.num_modules[half], "SKIP", modules.astype(object))
            parts.append(pandas.DataFrame({
                "row": layout.row[real][token], "position": layout.position[real][token],
                "token": layout.tokens[real][token],
                "block": np.array([b for b, _ in self.rounds])[number],
                "round": np.array([r for _, r in self.rounds])[number],
                "half": half, "choice": choice,
                "module": np.where(flat.ravel() == FREE, "free", named),
                "weight": self.weight[half].reshape(len(self.rounds), self.tokens.size, K)[:, real].ravel(),
                "score": np.where(known, score, np.nan).ravel(),
            }))  # fmt: skip
        if not parts:
            return pandas.DataFrame(columns=_COLUMNS)
        table = pandas.concat(parts, ignore_index=True)
        return table if table.empty else table.sort_values(["row", "position", "block", "round"], kind="stable",
                                                           ignore_index=True)  # fmt: skip

    def save(self, path: PathLike) -> None:
        """Write everything to one ``.npz`` file, whole or not at all."""
        facts = {"format": _FORMAT, "rounds": self.rounds, "num_modules": self.num_modules}
        arrays = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8), "tokens": self.tokens}
        arrays |= {k: v for k, v in (("lengths", self.lengths), ("mask", self.mask)) if v is not None}
        for half in self.index:
            arrays |= {f"{half}.index": self.index[half], f"{half}.scores": self.scores[half],
                       f"{half}.weight": self.weight[half]}  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path: PathLike) -> Routes:
        """Read a file that `save` has written.

        Raises
        ------
        DataError
            If it is no such file.
        """
        content = io.BytesIO(read_bytes(path, DataError))
        if not is_zipfile(content):  # NumPy would try to read it as a pickle
            raise DataError(f"{path}: is no file of routes (not a whole .npz file)")
        try:
            with np.load(content, allow_pickle=False) as file:
                arrays = dict(file)
            facts = json.loads(arrays.pop("facts").tobytes())
            if facts["format"] != _FORMAT:
                raise DataError(f"{path}: format {facts['format']}, this version reads {_FORMAT}")
            halves = {half: int(facts["num_modules"][half]) for half in HALVES if f"{half}.index" in arrays}
            index, scores, weight = (
                {half: arrays[f"{half}.{kind}"] for half in halves} for kind in ("index", "scores", "weight")
            )
            routes = cls(
                arrays["tokens"], index, scores, weight, [(int(b), int(r)) for b, r in facts["rounds"]],
                {half: int(n) for half, n in facts["num_modules"].items()}, arrays.get("lengths"), arrays.get("mask"),
            )  # fmt: skip
            routes._check_forms()
            return routes
        except DataError:
            raise
        except (KeyError, ValueError, TypeError, EOFError, AttributeError, OverflowError, RecursionError, BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise DataError(f"{path}: is no file of routes ({error})") from None

    def _check_forms(self) -> None:
        """Raise unless the arrays, as a file has them, fit together."""
        if len(set(self.rounds)) < len(self.rounds) or any(min(pair) < 0 for pair in self.rounds):
            raise ValueError(f"rounds: {self.rounds} are not different pairs (block, round)")
        if sorted(self.num_modules) != sorted(HALVES) or min(self.num_modules.values()) < 1:
            raise ValueError(f"num_modules: {self.num_modules}, expected at least 1 for each of {', '.join(HALVES)}")
        kinds: list[tuple[str, NDArray[Any], type, tuple[int, ...]]] = []
        shape = self.tokens.shape
        for half, index in self.index.items():
            for name, array, dtype, last in (
                ("index", index, np.int16, index.shape[-1]),
                ("scores", self.scores[half], np.float32, self.scores[half].shape[-1]),
                ("weight", self.weight[half], np.float32, index.shape[-1]),
            ):
                kinds.append((f"{half}.{name}", array, dtype, (len(self.rounds), *shape, last)))
        if self.lengths is not None:
            kinds.append(("lengths", self.lengths, np.int32, (len(self.lengths),)))
        if self.mask is not None:
            kinds.append(("mask", self.mask, np.bool_, shape))
        kinds.append(("tokens", self.tokens, np.int32, shape))
        for name, array, kind, expected in kinds:
            if array.dtype != kind or array.shape != expected:
                raise ValueError(
                    f"{name}: {array.dtype} {array.shape}, expected {np.dtype(kind)} {expected} beside the tokens"
                )
        if (self.lengths is None) != (len(shape) == 2) or (
            self.lengths is not None and ((self.lengths < 1).any() or int(self.lengths.sum()) != len(self.tokens))
        ):
            raise ValueError("lengths: do not fit the tokens")

    def _size(self) -> str:
        return f"{self.rows} sequences, {self.tokens.size} tokens, {len(self.rounds)} rounds"

    def __repr__(self) -> str:
        halves = ", ".join(f"{half} top-{i.shape[-1]} of {self.num_modules[half]}" for half, i in self.index.items())
        return f"<Routes: {self._size()}; {halves or 'none'}>"

    def _repr_html_(self) -> str:
        rows, real = [], layout_of(self.tokens, self.mask, self.lengths).real
        for half, module in self.module.items():
            L, K = len(module), module.shape[-1]
            chosen = module.reshape(L, -1, K)[:, real]
            skip = f"{(chosen == self.num_modules[half]).mean():.1%}" if chosen.size else "none"
            rows.append([half, self.num_modules[half], K, skip])
        return html_table(f"Routes: {self._size()}", ["", "modules", "choices", "SKIP"], rows)

    # ------------------------------------------------------------------ the earlier form
    def __getitem__(self, half: str) -> list[list[dict[str, NDArray[Any]] | None]]:
        if half not in HALVES:
            raise KeyError(f"routes: no {half!r}; routes.index, .module, .weight and .scores have arrays by half")
        warnings.warn(
            "routes[half][block][round] is going away; use routes.index[half], routes.scores[half] and "
            "routes.weight[half], which have the rounds of all blocks on their first axis",
            DeprecationWarning, stacklevel=2,
        )  # fmt: skip
        nested: list[list[dict[str, NDArray[Any]] | None]] = [[] for _ in range(1 + max((b for b, _ in self.rounds),
                                                                                        default=-1))]  # fmt: skip
        for number, (block, _) in enumerate(self.rounds):
            found = half in self.index
            nested[block].append(
                {"scores": self.scores[half][number], "index": self.index[half][number],
                 "weight": self.weight[half][number]} if found else None
            )  # fmt: skip
        return nested

    def __iter__(self) -> Iterator[str]:
        return iter(HALVES)

    def __len__(self) -> int:
        return len(HALVES)


def _same(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or np.array_equal(a, b))


def _modules(index: NDArray[np.int16], modules: int) -> NDArray[np.int16]:
    """Numbers of modules; `modules` for SKIP, and for free entries and none."""
    return np.where((index < 0) | (index > modules), modules, index).astype(np.int16)


def of_rounds(config: MoMConfig, read: Callable[[int, int, int], Value]) -> dict[str, list[list[Value]]]:
    """``read(place, round, half)`` for every round of every block, as lists ``[half][block][round]``."""
    blocks = [place for place, kind in enumerate(config.places()) if kind == "block"]
    return {
        half: [[read(place, r, number) for r in range(config.rounds)] for place in blocks]
        for number, half in enumerate(HALVES)
    }


def rounds_of_blocks(config: MoMConfig) -> list[tuple[int, int, int]]:
    """(place, block, round) of the rounds of all blocks in order."""
    places = [place for place, kind in enumerate(config.places()) if kind == "block"]
    return [(place, block, r) for block, place in enumerate(places) for r in range(config.rounds)]


def read_routes(
    found: Mapping[tuple[int, int, int], dict[str, NDArray[Any]]],
    config: MoMConfig,
    tokens: NDArray[np.int32],
    lengths: NDArray[np.int32] | None,
    mask: NDArray[np.uint8] | None = None,
) -> Routes:
    """Routes as the core returns them for these tokens."""
    rounds = rounds_of_blocks(config)
    arrays: dict[str, dict[str, NDArray[Any]]] = {"index": {}, "scores": {}, "weight": {}}
    for number, half in enumerate(HALVES):
        entries = [found.get((place, r, number)) for place, _, r in rounds]
        present = [entry for entry in entries if entry is not None]
        if not present:
            continue
        for kind, by_half in arrays.items():
            stacked = np.stack([entry[kind] for entry in present])
            by_half[half] = stacked.reshape(len(rounds), *tokens.shape, stacked.shape[-1])
    return Routes(
        tokens.copy(), arrays["index"], arrays["scores"], arrays["weight"], [(b, r) for _, b, r in rounds],
        {"attn": config.num_attn, "ffn": config.num_ffn}, None if lengths is None else lengths.copy(),
        None if mask is None else mask.astype(bool),
    )  # fmt: skip


def routes_of_rows(
    config: MoMConfig, tokens: Sequence[Sequence[int]], records: Sequence[Sequence[Sequence[tuple[NDArray[Any], ...]]]]
) -> Routes:
    """Routes of packed rows from a decoder's records: by row and call (index, weight, scores) of all half-rounds."""
    rounds = rounds_of_blocks(config)
    halves = [half for half in HALVES if config.is_routed(half)]
    calls = [call for row in records for call in row]
    arrays: dict[str, dict[str, NDArray[Any]]] = {"index": {}, "weight": {}, "scores": {}}
    for number, half in enumerate(halves if rounds else []):
        parts = [[call[number + len(halves) * r] for r in range(len(rounds))] for call in calls]
        most = max(index.shape[1] for part in parts for index, _, _ in part)
        for which, (kind, by_half) in enumerate(arrays.items()):
            joined = [np.stack([_widened(entry[which], most, kind) for entry in part]) for part in parts]
            by_half[half] = np.concatenate(joined, axis=1)
    lengths = [len(row) for row in tokens]
    return Routes(
        np.concatenate([np.array(row, np.int32) for row in tokens]), arrays["index"], arrays["scores"],
        arrays["weight"], [(b, r) for _, b, r in rounds], {"attn": config.num_attn, "ffn": config.num_ffn},
        np.array(lengths, np.int32),
    )  # fmt: skip


def _widened(array: NDArray[Any], columns: int, kind: str) -> NDArray[Any]:
    """Choices (N, K) with columns of none, up to as many as another call has kept."""
    if kind == "scores" or array.shape[1] == columns:
        return array
    missing = columns - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=NONE if kind == "index" else 0)
