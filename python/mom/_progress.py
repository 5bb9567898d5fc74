"""Progress bars in terminals and notebooks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["bar", "can_draw_bars", "shown"]

Item = TypeVar("Item")
#: Work that takes less than so many seconds shows no bar.
_DELAY = 2.0


def can_draw_bars() -> bool:
    """Whether standard error is a terminal, or this process is a notebook's kernel that can draw bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    notebook = type(shell).__name__ == "ZMQInteractiveShell" and importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr.isatty() or notebook


def bar(**settings: Any) -> Any:
    """A bar of tqdm, for terminals and notebooks."""
    from tqdm.auto import tqdm  # imported here, since it takes a sixth of the time to import this package

    return tqdm(dynamic_ncols=True, **settings)


def shown(items: Iterable[Item], label: str, unit: str, wanted: bool, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar if they take long, it is wanted and can be drawn."""
    if not (wanted and can_draw_bars()):
        yield from items
        return
    with bar(desc=label, unit=unit, total=total, delay=_DELAY, leave=False) as drawn:
        for item in items:
            yield item
            drawn.update()
