"""What the ranks of a run make sure of together: that they are alike, whether the run goes on, who speaks."""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .. import _core
from ..distributed import Communicator
from ..errors import ConfigError, RankError
from ..model import Network
from ..runtime import cpu_info, set_cpu_level
from .fingerprint import shown_fact
from .signals import StopSignals

__all__ = ["Together"]

#: The parameters of all ranks are compared after so many steps.
_STEPS_BETWEEN_COMPARISONS = 100


class Together:
    """The ranks of a run.

    Parameters
    ----------
    ranks : Communicator
    model : Network

    Attributes
    ----------
    signal : str or None
        The signal that ends the run on all ranks.
    stop : bool
        Whether a callback of any rank ends it.
    """

    def __init__(self, ranks: Communicator, model: Network) -> None:
        self.ranks, self.model = ranks, model
        self.signal: str | None = None
        self.stop = False
        self._compared = 0

    @property
    def speaks(self) -> bool:
        """Whether this rank shows progress, calls callbacks and writes files."""
        return self.ranks.rank == 0

    def say(self, text: str) -> None:
        """Print a line to standard error, on one rank."""
        if self.speaks:
            print(text, file=sys.stderr)

    def agree(self, signals: StopSignals, stop: bool, step: int) -> None:
        """Take note of signals and stops on all ranks, and now and then compare their parameters.

        Raises
        ------
        RankError
            If another rank has failed, or parameters differ.
        """
        compares = self.ranks.size > 1 and step >= self._compared + _STEPS_BETWEEN_COMPARISONS
        checksum = zlib.crc32(_core.parameter_block(self.model.core)) if compares else 0  # type: ignore[arg-type]
        said = self.ranks.exchange((signals[:1], stop, checksum))
        self.signal = next((names[0] for names, _, _ in said if names), self.signal)
        self.stop |= any(stops for _, stops, _ in said)
        if compares:
            self._compared = step
            self._check_checksums([checksum for _, _, checksum in said], step)

    def _check_checksums(self, checksums: list[int], step: int) -> None:
        usual = Counter(checksums).most_common(1)[0][0]
        other = [rank for rank, checksum in enumerate(checksums) if checksum != usual]
        if other:
            names = " and ".join(f"rank {rank}" for rank in other)
            raise RankError(
                f"after step {step}, the parameters of {names} differ from those of the other ranks: a fault of memory "
                "or network, or a program that changes the model on some ranks only. Resume from the newest checkpoint",
                other,
            )

    def use_common_level(self) -> None:
        """Let all ranks use the same kernels: those of the lowest level of any rank."""
        own = cpu_info()
        said = self.ranks.exchange((own["level"], own["levels"]))
        order = max((levels for _, levels in said), key=len)
        lowest = min((level for level, _ in said), key=order.index)
        if any(level != lowest for level, _ in said):
            have = ", ".join(f"rank {rank}: {level}" for rank, (level, _) in enumerate(said))
            self.say(f"all ranks use level {lowest}, the lowest of {have}")
            set_cpu_level(lowest)

    def check_alike(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise unless all ranks have the same model, settings, data, weights and version.

        Raises
        ------
        ConfigError
            Naming a rank and what differs.
        """
        own = {f"{part}.{name}": value for part, values in fingerprint.items() for name, value in values.items()}
        own["weights"] = zlib.crc32(_core.parameter_block(self.model.core))  # type: ignore[arg-type]
        said = self.ranks.exchange(own)
        for rank, other in enumerate(said):
            differing = [name for name in said[0] if said[0][name] != other.get(name)]
            if differing:
                shown = "; ".join(
                    f"{name.partition('.')[2] or name}: {shown_fact(other.get(name))} "
                    f"(rank 0: {shown_fact(said[0][name])})"
                    for name in differing[:3]
                )
                raise ConfigError(f"rank {rank} has another run than rank 0: {shown}")
