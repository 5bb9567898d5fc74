"""A report as blocks, and the blocks as one page of HTML and as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Block", "Figure", "Heading", "Items", "Table", "Text", "as_html", "as_markdown"]


@dataclass(frozen=True)
class Heading:
    """A heading of the second level. `name` is its address in the page."""

    words: str
    name: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph. Words in backticks are code."""

    words: str


@dataclass(frozen=True)
class Items:
    """A list of paragraphs."""

    words: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table. The first `text_columns` hold words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Figure:
    """A figure or table with what made it.

    Attributes
    ----------
    name : str
        Of the file ``figures/<name>.svg``.
    caption : str
    command : str
        Computes the numbers again.
    digest : str
        SHA-256 sum of the numbers.
    svg : str
        The picture; may be empty.
    alt : str
        What the picture shows, in words.
    table : Table or None
    """

    name: str
    caption: str
    command: str
    digest: str
    svg: str = ""
    alt: str = ""
    table: Table | None = None


Block = Heading | Text | Items | Table | Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --page: #fff; --soft: #666; --line: #ccc; --code: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --page: #16181b; --soft: #a5a5a5; --line: #444; --code: #24272b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 52rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2em; border-bottom: 1px solid var(--line); line-height: 1.3; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; }
th { border-bottom: 2px solid var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; } td.number { white-space: nowrap; }
figure { margin: 1.2rem 0 2rem; }
figure svg { display: block; width: 100%; max-width: 38rem; height: auto; color: var(--ink); }
figure svg text { stroke: var(--page); stroke-width: 4px; paint-order: stroke; stroke-linejoin: round; }
figcaption { color: var(--ink); } .made { color: var(--soft); font-size: .8rem; }
code { background: var(--code); padding: .1em .3em; border-radius: 3px; font-size: .88em; overflow-wrap: anywhere; }
strong.supports::before { content: "\\2713\\00a0"; } strong.contradicts::before { content: "\\2717\\00a0"; }
strong.cannot { font-weight: normal; } strong.cannot::before { content: "?\\00a0"; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding-right: .4rem; } }
@media print {
  :root { --ink: #000; --page: #fff; --soft: #444; --line: #999; --code: #f2f2f2; }
  body { max-width: none; font-size: 11pt; } svg, tr, li { break-inside: avoid; } h2, thead { break-after: avoid; }
  figcaption, .made { break-before: avoid; } figure svg { max-width: 30rem; }
  .wide { overflow: visible; }
}
"""
_VERDICTS = {"supports": "supports", "contradicts": "contradicts", "cannot decide": "cannot"}


# ---------------------------------------------------------------------- HTML
def as_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file and no network."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _words(text: str) -> str:
    """Escaped text in which words in backticks are code."""
    parts = html.escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        name = f' id="{html.escape(block.name)}"' if block.name else ""
        return f"<h2{name}>{_words(block.words)}</h2>"
    if isinstance(block, Text):
        return f"<p>{_words(block.words)}</p>"
    if isinstance(block, Items):
        return "<ul>" + "".join(f"<li>{_words(words)}</li>" for words in block.words) + "</ul>"
    if isinstance(block, Table):
        return _html_table(block)
    inner = block.svg + (_html_table(block.table) if block.table else "")
    return (
        f'<figure id="figure-{html.escape(block.name)}">\n{inner}<figcaption>{_words(block.caption)}</figcaption>\n'
        f'<div class="made">Made by <code>{html.escape(block.command)}</code><br>SHA-256 of the numbers '
        f"<code>{block.digest}</code></div>\n</figure>"
    )


def _html_table(table: Table) -> str:
    def cell(value: str, column: int, kind: str) -> str:
        number = ' class="number"' if column >= table.text_columns else ""
        known = _VERDICTS.get(value)
        inner = f'<strong class="{known}">{value}</strong>' if known else _words(value)
        return f"<{kind}{number}>{inner}</{kind}>"

    head = "".join(cell(name, i, "th") for i, name in enumerate(table.head))
    rows = "\n".join("<tr>" + "".join(cell(v, i, "td") for i, v in enumerate(row)) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>\n'


# ---------------------------------------------------------------------- Markdown
def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The same as Markdown. Pictures are the files ``figures/<name>.svg`` beside it."""
    return "\n\n".join([f"# {title}", *(_markdown(block) for block in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.words}"
    if isinstance(block, Text):
        return block.words
    if isinstance(block, Items):
        return "\n".join(f"- {words}" for words in block.words)
    if isinstance(block, Table):
        return _markdown_table(block)
    parts = []
    if block.svg:
        parts.append(f"![{block.alt}](figures/{block.name}.svg)")
    if block.table:
        parts.append(_markdown_table(block.table))
    parts += [block.caption, f"Made by `{block.command}`, SHA-256 of the numbers `{block.digest}`"]
    return "\n\n".join(parts)


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---" if i < table.text_columns else "--:" for i in range(len(table.head))]
    return "\n".join([line(table.head), line(rule), *(line(row) for row in table.rows)])
