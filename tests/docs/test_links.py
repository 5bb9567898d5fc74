"""Relative links of the documents lead to files, and their anchors to headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "docs/derivations", "docs/lab-notes", "mom_c", "benchmarks")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(path: Path) -> list[str]:
    """Targets of the relative links, inline and by reference."""
    text = re.sub(r"(`+)[^`]+\1", "code", prose(path))  # brackets in code make no link
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as code hosts and the site make them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,4} (.+)$", prose(path), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        anchor = slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{slug}-{number}"
        found.add(anchor)
    return found


def problems(path: Path) -> list[str]:
    """Links of a document that lead nowhere."""
    broken = []
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_and_anchors_lead_somewhere(path: Path) -> None:
    assert problems(path) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# What a *signal* does, in `C`\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "b.md"
    page.write_text(
        "# B\n[1](a.md#what-a-signal-does-in-c) [2](a.md#twice-1) [3](#b) [`4`](a.md) [5](https://example.org/c#d)\n"
        "[6](a.md#twice-2) [7](#c) ![8](c.png) [`9`](../c.md) `f[i](x)`\n```python\nf[i](x)\n```\n[10]: c.md\n",
        encoding="utf-8",
    )
    assert problems(page) == ["a.md#twice-2", "#c", "c.png", "../c.md", "c.md"]


@pytest.mark.parametrize("folder", ["docs", "docs/derivations", "docs/lab-notes"])
def test_the_readme_of_a_folder_lists_its_pages(folder: str) -> None:
    """And the entry page of the site has them in its contents, where Sphinx would only warn."""
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"README.md", "index.md", "reference.md"}
    assert pages <= set(links(ROOT / folder / "README.md"))
    if folder == "docs":
        entries = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
        assert {page.removesuffix(".md") for page in pages} <= set(entries)


def test_a_document_leads_to_every_notebook() -> None:
    linked = {(path.parent / link.partition("#")[0]).resolve() for path in DOCUMENTS for link in links(path)}
    notebooks = set((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks and notebooks <= linked
