"""Several modules in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis import audit
from ..model import MoM
from ..model.tensors import Module
from .aligning import aligned, distance
from .modules import checked_half, facts_of, numbers_of, outputs_of, with_modules
from .pruning import smaller
from .result import SurgeryResult

__all__ = ["merge"]

Groups = Sequence[Sequence[int]]
Floats = NDArray[np.float32]


def merge(
    model: MoM,
    *,
    attn: Groups = (),
    ffn: Groups = (),
    data: Any = None,
    align: bool = True,
    **options: Any,
) -> SurgeryResult:
    """Put each group of modules into one, in every block: the mean of their tensors and of their outputs of the router.

    The neurons of feed-forward modules, and the heads of attention modules, come in no particular order. So they are
    first put into the order in which they are most alike those of the group's first module.

    Parameters
    ----------
    model : MoM
    attn, ffn : sequence of groups
        Each group has at least two numbers of modules; it becomes the module of the lowest number. At least two modules
        stay.
    data : array of int, shape (B, T), TokenFile or path, optional
        If given, modules count by how often they are used (`mom.analysis.audit`), as in arXiv:2310.01334; otherwise
        equally. The receipt then has the loss before and after.
    align : bool
        Whether neurons and heads are put into order (needs SciPy).
    **options
        Further arguments of `mom.analysis.audit`, such as ``sequence_length`` and ``batches``.

    Returns
    -------
    SurgeryResult
        The receipt has under ``distance``, by half and block, how far the group's modules were from the first one
        before and after the alignment: the norm of the difference of all matrices, as a share of the first one's.

    Raises
    ------
    ValueError
        If a group is no group of modules that exist, or a module is in two groups.
    TypeError
        If an argument is unknown, or needs data to have an effect.

    Notes
    -----
    Equal modules give their own bits. Modules that do different things do not become one that does both: compare with
    `mom.surgery.prune`, and train on.

    Examples
    --------
    >>> import mom
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> changed, receipt = mom.surgery.merge(model, ffn=[(0, 3)])
    >>> receipt["kept"]["ffn"]
    [[0, 1, 2]]
    """
    if data is None and options:
        raise TypeError(f"{next(iter(options))}: is no argument of merge, or has no effect without data")
    groups = {half: _checked(model, half, given) for half, given in (("attn", attn), ("ffn", ffn)) if len(given)}
    found = None if data is None else audit(model, data, ["usage"], **options)
    source, table = model.copy(), None if found is None else found.table
    distances = {
        half: [_merge_in(source, half, block, of_half, table, align) for block in range(len(model.blocks))]
        for half, of_half in groups.items()
    }
    counts = {half: checked_half(model, half) for half in groups}
    gone = {half: {m for group in of_half for m in group[1:]} for half, of_half in groups.items()}
    kept = {half: [[m for m in range(n) if m not in gone[half]]] * len(model.blocks) for half, n in counts.items()}
    config = smaller(model.config, {half: len(kept[half][0]) for half in kept}, "next")
    changed = with_modules(source, config, kept)
    receipt: dict[str, Any] = {
        "surgery": "merge", "align": align, "groups": groups, "kept": kept, "distance": distances,
        "before": facts_of(model), "after": facts_of(changed),
    }  # fmt: skip
    if found is not None:
        receipt["before"]["loss"] = found.loss
        receipt["after"]["loss"] = audit(changed, data, ["usage"], **options).loss
    return SurgeryResult(changed, receipt)


def _checked(model: MoM, half: str, groups: Groups) -> list[list[int]]:
    count = checked_half(model, half)
    if model.config.router_kind == "norm":
        raise ValueError(f"{half}: the projections of a 'norm' router are as wide as their number allows")
    listed = [sorted(numbers_of(group, half)) for group in groups]
    members = [m for group in listed for m in group]
    if any(len(group) < 2 for group in listed) or len(set(members)) < len(members):
        raise ValueError(f"{half}: {list(groups)} are no groups of at least two modules, each module in one at most")
    if not set(members) <= set(range(count)):
        raise ValueError(f"{half}: {list(groups)} has modules beyond the {count} that are there")
    if count - len(members) + len(listed) < 2:
        raise ValueError(f"{half}: {list(groups)} leaves fewer than two modules; a router needs two")
    return listed


def _merge_in(
    model: MoM, half: str, block: int, groups: list[list[int]], table: Any, align: bool
) -> list[dict[str, float]]:
    """Put the mean of each group into its first module, and the mean of their outputs into its output."""
    part = model.blocks[block]
    pool, router = (
        (part.attention_pool, part.attention_router) if half == "attn" else (part.ffn_pool, part.ffn_router)
    )
    assert router is not None
    owns = model.config.owner(part.place, half) == part.place  # otherwise the modules are those of an earlier block
    distances = []
    for group in groups:
        use = _usage(model, half, block, group, table)
        for rows_of in outputs_of(router, model.config):
            rows_of[group[0]] = _mean([rows_of[m].copy() for m in group], use)
        if not owns:
            continue
        first, *others = group
        moved = [_tensors(pool[m]) for m in others]
        if align:
            moved = [aligned(_tensors(pool[first]), tensors, model.config.n_head) for tensors in moved]
        before = max(distance(_tensors(pool[first]), _tensors(pool[m])) for m in others)
        distances.append({"before": before, "after": max(distance(_tensors(pool[first]), each) for each in moved)})
        for short, tensor in pool[first].parameters.items():
            tensor[...] = _mean([tensor.copy(), *(each[short] for each in moved)], use)
    return distances


def _usage(model: MoM, half: str, block: int, group: list[int], table: Any) -> list[float]:
    """How often each module of a group is used, in all blocks that have these modules; 1 if that is not known."""
    if table is None:
        return [1.0] * len(group)
    blocks = range(len(model.blocks)) if model.config.shared_pools in (half, "both") else [block]
    rows = table[(table["half"] == half) & table["block"].isin(list(blocks)) & table["module"].notna()]
    usage = rows.groupby("module")["usage"].sum()
    return [float(usage[m]) for m in group]


def _tensors(module: Module) -> dict[str, Floats]:
    return {short: tensor.copy() for short, tensor in module.parameters.items()}


def _mean(arrays: list[Floats], weights: list[float]) -> Floats:
    """The weighted mean, as the first array plus differences: of equal arrays, it is these."""
    total = sum(weights) or 1.0
    mean = arrays[0].astype(np.float64)
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        mean += weight / total * (array.astype(np.float64) - arrays[0])
    return mean.astype(np.float32)

