"""One check of "an iterable of texts" and one of "labels", for every place where they come in.

A table, a mapping or a set can be iterated over like a list, but yields names of columns, keys, or texts in no order.
Such arguments are refused, with what to write instead. A table of one column counts as this column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arguments import as_array
from ..errors import DataError

__all__ = ["checked_labels", "checked_texts", "is_missing", "missing_rows"]

_SHOWN = 5


def checked_texts(values: Any, name: str = "texts", what: str = "texts", width: int = 1) -> Iterable[Any]:
    """The items of an argument that holds texts, not yet checked one by one.

    Parameters
    ----------
    values : iterable
        A list, an iterator, a column of a table, a one-dimensional array, or a table of one column.
    name : str
        Name of the argument.
    what : str
        What is expected, for messages.
    width : int
        An array of two dimensions with so many columns is accepted if this is more than 1: its rows are pairs.

    Raises
    ------
    DataError
        If the argument is a single string, a mapping, a set, a table of several columns, an array of another number of
        dimensions, or no iterable at all.
    """
    column = _column(values, name, what, width)
    shape = _shape(column)
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == width > 1):
        way_out = f"; {name}.ravel() has one dimension" if 1 in shape[1:] else ""
        raise DataError(f"{name}: expected {what}, got an array of shape {shape}{way_out}")
    if not isinstance(column, Iterable) and not hasattr(type(column), "__getitem__"):
        raise DataError(f"{name}: expected {what} in a list or another iterable, got a {type(column).__name__}")
    return column  # type: ignore[no-any-return]


def texts_or_pairs(values: Any, name: str = "X") -> list[tuple[str, ...]]:
    """Texts or pairs of texts, each as a tuple.

    Raises
    ------
    DataError
        As `checked_texts`; also if one is neither, some are pairs and some are not, or there are none.
    """
    found: list[tuple[str, ...]] = []
    for i, value in enumerate(checked_texts(values, name, width=2)):
        row = (
            (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else ()
        )
        if not 1 <= len(row) <= 2 or not all(isinstance(text, str) for text in row):
            what = f"no text ({value!r})" if is_missing(value) else type(value).__name__
            raise DataError(f"{name}: row {i}: expected a string or a pair of strings, got {what}")
        if found and len(row) != len(found[0]):
            raise DataError(f"{name}: row {i} has {len(row)} texts, row 0 has {len(found[0])}")
        found.append(tuple(str(text) for text in row))
    if not found:
        raise DataError(f"{name}: there are no texts")
    return found


def checked_labels(values: Any, name: str = "y") -> npt.NDArray[Any]:
    """Labels as an array, (N,).

    Parameters
    ----------
    values : iterable
        A list, a column of a table, a one-dimensional array, or a table of one column.
    name : str
        Name of the argument.

    Raises
    ------
    DataError
        If the argument is no column, if labels are missing (the message names their rows), or if some labels are
        strings and others are not.
    """
    column = _column(values, name, "labels")
    if isinstance(column, Iterator):
        column = list(column)
    masked = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else None
    array = as_array(column, name)
    if array.ndim != 1:
        way_out = f"; {name}.ravel() has one dimension" if 1 in array.shape[1:] else ""
        raise DataError(f"{name}: shape {array.shape}, expected (N,){way_out}")
    # NumPy makes the string 'nan' of a missing label among strings, so the items themselves are looked at.
    items = column if isinstance(column, Sequence) else array
    missing = missing_rows(items) if masked is None else np.flatnonzero(masked).tolist()
    if missing:
        shown = items[missing[0]] if masked is None else "masked"
        raise DataError(f"{name}: {_rows(missing)} no label ({shown})")
    if array.dtype.kind in "OUS":
        _check_kinds(items, name)
    return array


def is_missing(value: Any) -> bool:
    """Whether a value stands for "no value": None, NaN, pandas' NA, NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating, np.datetime64, np.timedelta64)) and bool(value != value)


def missing_rows(values: Sequence[Any] | npt.NDArray[Any]) -> list[int]:
    """Numbers of the rows that have no value."""
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        rows: list[int] = np.flatnonzero(values != values).tolist()
        return rows
    return [row for row, value in enumerate(values) if is_missing(value)]


def _column(values: Any, name: str, what: str, width: int = 1) -> Any:
    """The argument, or the only column of a table. Whatever yields something else than rows is refused."""
    if isinstance(values, (str, bytes, bytearray)):
        kind = "string" if isinstance(values, str) else type(values).__name__
        raise DataError(f"{name}: expected {what}, got a {kind}; put it into a list: [{name}]")
    if isinstance(values, Mapping):
        kind = type(values).__name__
        raise DataError(f"{name}: expected {what}, got a {kind}; its values are list({name}.values())")
    if isinstance(values, Set) and not isinstance(values, Sequence) and not hasattr(values, "mapping"):
        kind = type(values).__name__
        raise DataError(f"{name}: expected {what}, got a {kind}, which has no order; sorted({name}) has one")
    columns = _columns_of(values)
    if columns is None:
        return values
    if len(columns) != 1:
        kind = type(values).__name__
        example = f", as in {name}[{columns[0]!r}]" if columns else ""
        if len(columns) == width:
            example += f"; for pairs: list(zip({name}[{columns[0]!r}], {name}[{columns[1]!r}]))"
        shown = ", ".join(map(repr, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
        raise DataError(
            f"{name}: expected {what}, got a {kind} of {len(columns)} columns ({shown}); choose one of them{example}"
        )
    column = values.iloc[:, 0] if hasattr(type(values), "iloc") else values[columns[0]]
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _columns_of(values: Any) -> list[Any] | None:
    """Names of the columns of a table (of pandas, polars, PyArrow, `datasets`, or a structured array), else None."""
    kind = type(values)  # a column of pandas has its labels as attributes
    if hasattr(kind, "column_names"):
        return None if values.column_names is None else list(values.column_names)
    if hasattr(kind, "columns") and hasattr(kind, "shape"):
        return list(values.columns)
    names = getattr(getattr(values, "dtype", None), "names", None) if isinstance(values, np.ndarray) else None
    return None if names is None else list(names)


def _shape(values: Any) -> tuple[int, ...]:
    """The shape of an array of any library; (N,) of everything else."""
    shape = getattr(values, "shape", None)
    return tuple(shape) if isinstance(shape, (tuple, list)) else (-1,)


def _rows(rows: list[int]) -> str:
    """The first few rows for a message."""
    shown = ", ".join(map(str, rows[:_SHOWN]))
    if len(rows) == 1:
        return f"row {shown} has"
    return f"rows {shown}{f' and {len(rows) - _SHOWN} more' if len(rows) > _SHOWN else ''} have"


def _check_kinds(labels: Iterable[Any], name: str) -> None:
    """Raise if some labels are strings and others are not: NumPy would make strings of all."""
    first: dict[bool, tuple[int, Any]] = {}
    for row, label in enumerate(labels):
        first.setdefault(isinstance(label, str), (row, label))
        if len(first) == 2:
            (string_row, string), (other_row, other) = first[True], first[False]
            raise DataError(
                f"{name}: labels of two kinds: {string!r} in row {string_row} and {other!r} in row {other_row}"
            )
