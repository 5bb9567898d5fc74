"""Loads the extension with a short spin between parallel regions.

GNU OpenMP lets a thread that waits for the next parallel region spin for milliseconds before it sleeps. Where another
process wants the same core, that makes a step many times slower. The library reads the environment variable once, when
it is loaded with the extension. So the variable is set only while the extension is loaded. If the user has set it, it
is not changed.
"""

from __future__ import annotations

import os

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
#: Iterations of a loop around the processor's pause instruction, which take some tens of microseconds.
_SPINS = "2000"

_ask = not any(name in os.environ for name in _NAMES)
if _ask:
    os.environ["GOMP_SPINCOUNT"] = _SPINS
try:
    from . import _core  # noqa: F401
finally:
    if _ask:
        del os.environ["GOMP_SPINCOUNT"]
