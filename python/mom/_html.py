"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["html_table"]


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A table in HTML.

    Parameters
    ----------
    title : str
        Stands above it in bold.
    head : sequence of str
        Names of the columns; may be empty.
    rows : iterable of sequence
        Their texts are escaped. Lines of a text become lines of the cell.
    text_columns : int
        How many columns, from the left, hold words and not numbers.
    """

    def cell(value: object, column: int, kind: str = "td") -> str:
        side = "left" if column < text_columns else "right"
        text = html.escape(str(value)).replace("\n", "<br>")
        return f"<{kind} style='text-align:{side}'>{text}</{kind}>"

    lines = ["".join(cell(name, i, "th") for i, name in enumerate(head))] if head else []
    lines += ["".join(cell(value, i) for i, value in enumerate(row)) for row in rows]
    return f"<b>{html.escape(title)}</b><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
