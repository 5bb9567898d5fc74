"""Making the command ``lm_eval`` of lm-evaluation-harness know the model ``mom``.

The harness finds models in a table of its own and has no way for other packages to add to it. So either a process
registers the model before it runs the harness's command (`run`), or, once and on request, a start-up file is put beside
the installed packages (`install`): it waits for the import of the harness's table and adds one line to it. It imports
nothing and costs nothing otherwise.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from .._extras import need
from ..files.folders import write_file

__all__ = ["install", "run", "uninstall"]

_NAME = "mom_lm_eval_hook"
_HOOK = '''"""Adds the model "mom" to lm-evaluation-harness.

Written by 'mom lm_eval --register', removed by 'mom lm_eval --unregister'.
"""

import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "lm_eval.models":
            return None
        import importlib.util

        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                from lm_eval.api.registry import model_registry

                if "mom" not in model_registry:
                    model_registry.register("mom", target="mom.evaluate.harness:MomLM")

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


def _files(folder: Path | None) -> tuple[Path, Path]:
    folder = Path(sysconfig.get_paths()["purelib"]) if folder is None else folder
    return folder / f"{_NAME}.py", folder / f"{_NAME}.pth"


def install(folder: Path | None = None) -> Path:
    """Let every later Python process of this environment know the model.

    Parameters
    ----------
    folder : Path, optional
        Where packages are installed; by default this Python's.

    Returns
    -------
    Path
        The start-up file (a module of the same name lies beside it).
    """
    module, start = _files(folder)
    write_file(module, _HOOK)
    write_file(start, f"import {_NAME}\n")
    return start


def uninstall(folder: Path | None = None) -> None:
    """Undo `install`."""
    for file in reversed(_files(folder)):
        file.unlink(missing_ok=True)


def run(arguments: Sequence[str]) -> int:
    """The harness's own command in this process, with the model registered.

    Raises
    ------
    ImportError
        Without the package; the message names the extra.
    """
    need("lm_eval", "evaluation with lm-evaluation-harness", "lm-eval")
    from lm_eval.__main__ import cli_evaluate

    from . import harness as _harness  # noqa: F401  registers the model

    before = sys.argv
    sys.argv = ["lm_eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
