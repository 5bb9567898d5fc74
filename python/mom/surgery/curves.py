"""What the loss does when more and more modules are left out, before and after some more training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._arguments import count
from .._arguments import seed as seed_of
from .._extras import need
from ..analysis import audit
from ..analysis.restart import routed_halves
from ..model import MoM
from ..training import train
from .modules import checked_half
from .pruning import CRITERIA, number_that_stays, prune

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["PAPER", "PruneCurve", "prune_curve"]

#: The paper's claim (arXiv:2407.06677): half of the attention modules and a quarter of the feed-forward modules can go.
PAPER = {"attn": 0.5, "ffn": 0.25}


@dataclass(frozen=True)
class PruneCurve:
    """What `prune_curve` has found.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for each model: ``half`` (``"attn"``, ``"ffn"`` or ``"paper"``, both halves at once), ``attn`` and ``ffn``
        (modules that each block keeps), ``parameters``, ``loss`` in nats per token, ``rise`` above the whole model's,
        and, with recovery steps, ``recovered`` and ``recovered_rise``. The first row is the whole model; its
        ``recovered`` is its loss after as many steps, which is what the other models' are to be compared with.
    receipts : list of dict
        The receipts of `prune`, one for each row but the first.
    recovery_steps : int
    """

    table: pandas.DataFrame
    receipts: list[dict[str, Any]]
    recovery_steps: int

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss against the share of modules kept, for each half, before and after recovery."""
        pyplot = need("matplotlib.pyplot", "plots", "matplotlib")
        ax = pyplot.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
        assert ax is not None
        whole = self.table.iloc[0]
        columns = ["loss", *(["recovered"] if self.recovery_steps else [])]
        for half, name, marker in (("attn", "attention", "o"), ("ffn", "feed-forward", "s")):
            rows = self.table[(self.table["half"] == half) | (self.table["half"] == "whole")]
            rows = rows.sort_values(half)
            for column, style in zip(columns, ("--", "-"), strict=False):
                if len(rows) > 1:
                    label = f"{name}{', trained on' if column == 'recovered' else ''}"
                    color = "black" if half == "attn" else "0.5"
                    ax.plot(rows[half] / whole[half], rows[column], style, marker=marker, color=color, label=label)
        for _, row in self.table[self.table["half"] == "paper"].iterrows():
            share = (row["attn"] + row["ffn"]) / (whole["attn"] + whole["ffn"])
            ax.plot(share, row[columns[-1]], "*", color="black", markersize=12, label="half and a quarter left out")
        ax.set_xlabel("share of modules kept")
        ax.set_ylabel("loss (nats per token)")
        ax.legend(frameon=False)
        return ax


def prune_curve(
    model: MoM,
    data: Any,
    *,
    halves: Sequence[str] = ("attn", "ffn"),
    by: str = "drop_one",
    reroute: str = "next",
    recovery_steps: int = 0,
    train_data: Any = None,
    paper: bool = True,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> PruneCurve:
    """Leave out modules of each half one after the other, down to two, and measure the loss of every model.

    Parameters
    ----------
    model : MoM
    data : array of int, shape (B, T), TokenFile or path
        What the criterion and the losses are measured on; see `mom.analysis.audit`.
    halves : sequence of {"attn", "ffn"}
    by, reroute, seed
        See `prune`.
    recovery_steps : int
        Steps of training of each model after the operation, and of the whole model; 0 for none.
    train_data : path or TokenFile, optional
        What they are trained on; needed with recovery steps.
    paper : bool
        Also measure the paper's claim, `PAPER`: both halves at once. It is left out where fewer than two modules of a
        half would stay.
    training : dict, optional
        Further fields of `mom.TrainingConfig` for the recovery, such as ``lr`` and ``batch_size``.
    **options
        Further arguments of `audit`, such as ``sequence_length`` and ``batches``.

    Returns
    -------
    PruneCurve

    Raises
    ------
    ValueError
        If an argument is out of range, or recovery steps have no data.

    Examples
    --------
    >>> import mom
    >>> import numpy as np
    >>> model = mom.MoM(mom.MoMConfig.preset("demo"), seed=0)
    >>> ids = np.random.default_rng(0).integers(0, 2048, (4, 16))
    >>> curve = mom.surgery.prune_curve(model, ids, halves=["ffn"], by="usage", paper=False)
    >>> curve.table["ffn"].tolist()
    [4, 3, 2]
    """
    pandas = need("pandas", "tables", "pandas")
    if by not in CRITERIA:
        raise ValueError(f"by: {by!r} is not one of {', '.join(map(repr, CRITERIA))}")
    seed_of(seed)
    if count(recovery_steps, "recovery_steps", 0) and train_data is None:
        raise ValueError("train_data: needed for recovery_steps")
    known = routed_halves(model.config)
    if not set(halves) <= set(known):
        raise ValueError(f"halves: {list(halves)}; the halves with a router are {known}")
    counts = {half: checked_half(model, half) for half in halves}
    cuts = [(half, {half: gone / counts[half]}) for half in halves for gone in range(1, counts[half] - 1)]
    if paper and all(half in known and _can_lose(model, half, share) for half, share in PAPER.items()):
        cuts.append(("paper", PAPER))

    def recovered(changed: MoM) -> dict[str, float]:
        if not recovery_steps:
            return {}
        settings = {"steps": recovery_steps, "progress": False, "seed": seed, **(training or {})}
        train(changed, train_data, **settings)
        return {"recovered": audit(changed, data, ["usage"], seed=seed, **options).loss}

    whole = audit(model, data, ["usage"], seed=seed, **options).loss
    rows = [_row("whole", model, whole, whole, recovered(model.copy()))]
    receipts = []
    for half, shares in cuts:
        changed, receipt = prune(model, by=by, data=data, reroute=reroute, seed=seed, **shares, **options)
        rows.append(_row(half, changed, receipt["after"]["loss"], whole, recovered(changed)))
        receipts.append(receipt)
    if recovery_steps:
        for row in rows:
            row["recovered_rise"] = row["recovered"] - rows[0]["recovered"]
    return PruneCurve(pandas.DataFrame(rows), receipts, recovery_steps)


def _can_lose(model: MoM, half: str, share: float) -> bool:
    return number_that_stays(checked_half(model, half), share) >= 2


def _row(half: str, model: MoM, loss: float, whole: float, more: dict[str, float]) -> dict[str, Any]:
    config = model.config
    return {"half": half, "attn": config.num_attn, "ffn": config.num_ffn, "parameters": model.num_parameters,
            "loss": loss, "rise": loss - whole, **more}  # fmt: skip
