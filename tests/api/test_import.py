"""`import mom` loads what it needs at once and leaves the rest for when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mom

#: Large, or drawing in a lot; each has its own moment.
LATER = (
    "tqdm", "tokenizers", "safetensors", "importlib.metadata", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn",
    "torch", "transformers", "datasets", "huggingface_hub", "mom.reference", "mom.demo", "mom.cli", "mom.data",
    "mom.evaluate", "mom.glue", "mom.ops", "mom.sklearn", "mom.training", "mom.xsum", "argparse",
    "unittest", "email", "http", "asyncio", "multiprocessing", "mom.analysis", "mom.accounting",
)  # fmt: skip


def test_import_leaves_large_modules_for_later() -> None:
    code = f"import sys, mom; print(*[name for name in {LATER!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    numpy = "import sys, numpy; print(*sys.modules)"
    there = subprocess.run([sys.executable, "-c", numpy], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) - set(there.stdout.split()) == set()


def test_submodules_and_later_names_are_there_when_used() -> None:
    pytest.importorskip("sklearn")
    code = (
        "import sys, mom; assert not set(mom._SUBMODULES) & set(vars(mom)) - {'distributed', 'files'}\n"
        "names = [*mom.__all__, *mom._SUBMODULES]; assert set(names) <= set(dir(mom))\n"
        "print(*[name for name in names if getattr(mom, name) is not getattr(mom, name)])\n"
        "assert mom.analysis is sys.modules['mom.analysis'] and mom.train is mom.training.train\n"
        "assert mom.AdamW is mom.training.AdamW and mom.TextClassifier is mom.sklearn.TextClassifier"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mom' has no attribute 'rooting'"):
        mom.rooting  # noqa: B018
