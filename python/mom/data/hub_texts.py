"""Texts of a data set on the Hugging Face Hub, through the library `datasets`. They are read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import DataError
from .records import load_from_hub
from .sources import TextDocuments

__all__ = ["HUB", "hub_documents"]

#: Prefix of the name of a data set among the sources of text.
HUB = "hub:"


class _Texts:
    """One column of a split, read anew in every pass."""

    def __init__(self, name: str, config: str | None, split: str, key: str) -> None:
        self._name, self._config, self._split, self._key = name, config, split, key

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(load_from_hub(self._name, self._config, self._split, streaming=True)):
            if self._key not in row:
                columns = ", ".join(map(repr, row))
                raise DataError(f"{self._name}: row {number}: no key {self._key!r}; there are {columns}")
            yield row[self._key]


def hub_documents(
    name: str, *, split: str = "train", key: str = "text", on_error: str = "raise", max_chars: int = 1 << 16
) -> TextDocuments:
    """Documents of a data set on the Hub.

    Parameters
    ----------
    name : str
        Such as ``"Skylion007/openwebtext"``. A configuration follows a colon:
        ``"Salesforce/wikitext:wikitext-103-raw-v1"``. The prefix ``hub:`` may stand before it.
    split : str
        Of the data set.
    key : str
        Column that holds the text.
    on_error, max_chars
        As for `Documents`.

    Returns
    -------
    TextDocuments
        Each pass reads the data set again, from the network or from the library's cache.

    Raises
    ------
    DataError
        While iterating: if the library is not installed, the Hub does not answer, or there is no such column.
    """
    title = name.removeprefix(HUB)
    repository, _, config = title.partition(":")
    if not repository:
        raise DataError(f"name: {name!r} names no data set; expected owner/name or owner/name:configuration")
    texts = _Texts(repository, config or None, split, key)
    return TextDocuments(texts, name=f"{HUB}{title}", on_error=on_error, max_chars=max_chars)
