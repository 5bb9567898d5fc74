"""Another order of modules."""

from __future__ import annotations

from collections.abc import Sequence

from ..model import MoM
from .modules import checked_half, facts_of, numbers_of, with_modules
from .result import SurgeryResult

__all__ = ["permute"]


def permute(model: MoM, *, attn: Sequence[int] | None = None, ffn: Sequence[int] | None = None) -> SurgeryResult:
    """Put the modules of every block into another order, with their outputs of the routers.

    The model computes the same, up to the order in which the outputs of modules are added. The inverse permutation
    gives the bits of the weights back.

    Parameters
    ----------
    model : MoM
    attn, ffn : sequence of int, optional
        The numbers that the modules have now, in their new order.

    Returns
    -------
    SurgeryResult

    Raises
    ------
    ValueError
        If an argument is no permutation, or the half has no router with outputs.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> changed, receipt = mom.surgery.permute(model, ffn=[2, 0, 3, 1])
    >>> receipt["kept"]["ffn"]
    [[2, 0, 3, 1]]
    """
    kept: dict[str, list[list[int]]] = {}
    for half, order in (("attn", attn), ("ffn", ffn)):
        if order is None:
            continue
        count = checked_half(model, half)
        order = numbers_of(order, half)
        if sorted(order) != list(range(count)):
            raise ValueError(f"{half}: {order} is no order of the {count} modules 0 to {count - 1}")
        kept[half] = [order] * len(model.blocks)
    changed = with_modules(model, model.config, kept)
    receipt = {"surgery": "permute", "before": facts_of(model), "after": facts_of(changed), "kept": kept}
    return SurgeryResult(changed, receipt)
