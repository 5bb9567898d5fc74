"""`import mom` loads what it needs at once and leaves the rest for when it is used."""

from __future__ import annotations

import subprocess
import sys

#: Large, or drawing in a lot; each has its own moment.
LATER = (
    "tqdm", "tokenizers", "safetensors", "importlib.metadata", "matplotlib", "pyarrow", "scipy", "sklearn", "torch",
    "transformers", "datasets", "huggingface_hub", "mom.reference", "mom.demo", "mom.cli", "argparse", "unittest",
    "email", "http", "asyncio", "multiprocessing",
)  # fmt: skip


def test_import_leaves_large_modules_for_later() -> None:
    code = f"import sys, mom; print(*[name for name in {LATER!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    numpy = "import sys, numpy; print(*sys.modules)"
    there = subprocess.run([sys.executable, "-c", numpy], capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) - set(there.stdout.split()) == set()
