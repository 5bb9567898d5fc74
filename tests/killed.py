"""Runs a piece of work in a fork that is killed at one of its calls to the system."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

from mom.files import atomic

#: What a writer asks of the system, and of this package's own steps.
CALLS = [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
         (atomic, "_exchange"), (shutil, "rmtree")]  # fmt: skip


def killed_at(number: int, after: bool, work: Callable[[], object], patches: dict[str, Any] | None = None) -> bool:
    """Run `work` in a fork that is killed at its so many-th call, or after it. Returns whether it was killed.

    `patches` are other functions in place of some of `CALLS`.
    """
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            made = 0

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **more: Any) -> Any:
                    nonlocal made
                    made += 1
                    mine = made == number
                    if mine and not after:
                        os.kill(os.getpid(), signal.SIGKILL)
                    try:
                        return real(*arguments, **more)
                    finally:
                        if mine:
                            os.kill(os.getpid(), signal.SIGKILL)

                return call

            for where, name in CALLS:
                setattr(where, name, counted((patches or {}).get(name, getattr(where, name))))
            work()
        os._exit(0)
    return bool(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
