"""Code that several families of operators share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from .. import _core

__all__ = ["Float", "Partial", "is_bfloat16", "use_level"]

Float = NDArray[np.float32]
#: Gradients so far, see `add_to` in `mom.ops`.
Partial = tuple["Float | None", ...]


@contextmanager
def use_level(level: str) -> Iterator[None]:
    """Run the body of a ``with`` statement at an instruction-set level, then restore the level before.

    The level belongs to the process, not to the thread.

    Parameters
    ----------
    level : str
        One of ``mom.cpu_info()["levels"]``.

    Examples
    --------
    >>> import numpy as np, mom
    >>> with mom.ops.use_level("baseline"):
    ...     mom.ops.gelu_forward(np.zeros(2, dtype=np.float32))
    array([0., 0.], dtype=float32)
    """
    previous = _core.set_cpu_level(level)
    try:
        yield
    finally:
        _core.set_cpu_level(previous)


def is_bfloat16(precision: str) -> bool:
    """Whether a product's factors are bfloat16 rather than float32."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision: {precision!r}, expected 'float32' or 'bfloat16'")
    return precision == "bfloat16"
