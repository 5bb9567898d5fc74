"""Settings of the documentation site. Build it with `make docs`.

The source folder of the site is the root of the repository. So a relative link leads to the same page on the site and
on a code host, and no page is copied. A link to a file that is no page, such as a script, becomes a download.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import mom
from mom import config, runtime, training

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "mom"
author = "The mom developers"
copyright = author
version = release = mom.__version__

# Folders that hold no pages are excluded, because Sphinx would search them for pages.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "mom_c/README.md", "benchmarks/README.md", "notebooks/*.ipynb"]
exclude_patterns = ["docs/_build", "docs/_templates", ".*", "build", "dist", "python", "tests", "**/.ipynb_checkpoints"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode", "numpydoc"]
highlight_language = "text"
nb_execution_mode = "off"  # the stored outputs are shown
myst_heading_anchors = 4

# The reference lists what `__all__` of each module lists. numpydoc reads the sections of a docstring.
templates_path = [str(Path(__file__).parent / "_templates")]  # absolute: autosummary would look in the source folder
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings name the types
default_role = "py:obj"  # docstrings write names in single backticks
numpydoc_show_class_members = False  # the template of a class shows the methods
autosummary_context = {
    # Names that `mom` has as well have their page there. The pages of their modules link to it.
    "also_in_mom": {
        module.__name__: [name for name in module.__all__ if name in mom.__all__]
        for module in (config, runtime, training)
    },
    # The comment on a value is found only in the module that defines the value.
    "home_of_values": {
        "mom.glue": "mom.glue.tasks",
        "mom.training": "mom.training.recipe",
        "mom.xsum": "mom.xsum.rows",
    },
}
# Some names differ in case only. Their pages need names of their own where file names have no case.
autosummary_filename_map = {
    name: f"{name}-class"
    for name in (
        "mom.analysis.Audit", "mom.analysis.Oracle", "mom.analysis.Playground", "mom.analysis.View",
        "mom.reference.AdamW",
    )
}  # fmt: skip

html_theme = "furo"
html_title = "mom"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}


def adapt_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """Adapt what only a code host shows: lists of the files in a folder.

    A link to a folder becomes plain text. The README of a folder gets the other pages of the folder as children in the
    sidebar.
    """
    source[0] = re.sub(r"\[([^\]]+)\]\([\w./-]+/\)", r"\1", source[0])
    if page in ("docs/derivations/README", "docs/lab-notes/README"):
        source[0] += "\n\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", adapt_folders)
