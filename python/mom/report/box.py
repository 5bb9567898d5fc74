"""The folder of a reproduction: its settings, its finished pieces of work, and the time that was spent."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._json import from_words, sha256_of
from .._reading import kind_of
from .._version import __version__
from ..errors import ConfigError, MomError
from ..files.atomic import remove_folder
from ..files.folders import write_json
from ..sweep.trial import read_words
from .plan import Plan

__all__ = ["DONE", "SETTINGS", "TIME_UP", "Box", "Unit", "check_settings"]

DONE, SETTINGS, CLOCK = "done.json", "settings.json", "clock.json"
#: Why work was left out.
TIME_UP = "the time was up"
#: The hours may be exceeded by this share before work is broken off.
_GRACE = 1.1


@dataclass(frozen=True)
class Unit:
    """A piece of work with a folder of its own.

    Attributes
    ----------
    stage, name : str
        ``stage/name`` is its folder.
    work : callable
        Gets the folder, and returns JSON values that the same work gives again, to the same bits.
    """

    stage: str
    name: str
    work: Callable[[Path], dict[str, Any]]


def check_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a new folder; raise if the folder has others.

    Raises
    ------
    ConfigError
        Saying what is different, and what to do.
    """
    if kind_of(out / SETTINGS) is None:
        foreign = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if foreign:
            raise ConfigError(f"out_dir: {out} holds {foreign[0]!r} and no reproduction; choose a new folder")
        write_json(out / SETTINGS, settings, words=True)
        return
    before = read_words(out / SETTINGS)
    for name, value in settings.items():
        if name != "version" and before.get(name) != value:
            raise ConfigError(
                f"{name}: {out} was begun with {before.get(name)!r}, now it is {value!r}. Repeat the first value to go "
                "on, or choose another out_dir for a new reproduction"
            )


class Box:
    """A reproduction at work.

    Parameters
    ----------
    out : Path
        Its folder, which exists.
    plan : Plan
    seconds : float
        For everything.
    seed : int
        The first one.
    say : callable
        Gets lines about the progress.
    shows : bool
        Whether trainings show their progress.

    Attributes
    ----------
    seeds : list of int
    left_out : dict of str to str
        By ``stage`` or ``stage/name``: why work was left out.
    """

    def __init__(
        self, out: Path, plan: Plan, seconds: float, seed: int, say: Callable[[str], None], shows: bool = False
    ) -> None:
        self.out, self.plan, self.seconds, self.say, self.shows = out, plan, seconds, say, shows
        self.seeds = [seed + number for number in range(plan.seeds)]
        self.left_out: dict[str, str] = {}
        self._before = read_words(out / CLOCK)["seconds"] if kind_of(out / CLOCK) else 0.0
        self._begun = time.monotonic()

    # ------------------------------------------------------------------ time
    @property
    def spent(self) -> float:
        """Seconds of all calls together. Of a call that was killed, what came after its last piece is not known."""
        return float(self._before) + time.monotonic() - self._begun

    def note_time(self, before: float = 0.0) -> None:
        """Keep the time that was spent. `before`: seconds before this object was made."""
        self._begun -= before
        write_json(self.out / CLOCK, {"seconds": self.spent}, words=True)

    @property
    def left(self) -> float:
        """Seconds until work is broken off."""
        return _GRACE * self.seconds - self.spent

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[list[str]]:
        """A block in which training is asked to stop after some seconds, as by a batch system (SIGUSR1).

        The list that the block gets has an element if that has happened.
        """
        fired: list[str] = []
        name = getattr(signal, "SIGUSR1", None)
        if name is None or threading.current_thread() is not threading.main_thread():
            yield fired
            return

        main = threading.main_thread().ident or 0  # a signal to this thread also ends its waiting

        def ask() -> None:
            fired.append("time")
            signal.pthread_kill(main, name)

        before = signal.signal(name, lambda *_: None)  # it may come when no training is at work
        timer = threading.Timer(max(0.0, seconds), ask)
        timer.daemon = True
        timer.start()
        try:
            yield fired
        finally:
            timer.cancel()
            timer.join()
            signal.signal(name, before)

    # ------------------------------------------------------------------ pieces of work
    def results(self, stage: str) -> dict[str, dict[str, Any]]:
        """By name, the finished pieces of a stage: ``result``, ``sha256`` and ``seconds``."""
        found = sorted((self.out / stage).glob(f"*/{DONE}"))
        return {path.parent.name: read_words(path) for path in found}

    def run(self, unit: Unit, needed: bool = False) -> dict[str, Any] | None:
        """Run a piece of work that is not done yet. None if the time is up.

        A failure is an error if the work is `needed`. Otherwise the work is left out, and the next call tries it again.
        """
        own = self.out / unit.stage / unit.name
        if kind_of(own / DONE) is not None:
            return read_words(own / DONE)
        if self.left <= 0:
            self.left_out[f"{unit.stage}/{unit.name}"] = TIME_UP
            return None
        try:
            done = self.work(unit, own)
        except MomError as error:
            if needed:
                raise
            self.left_out[f"{unit.stage}/{unit.name}"] = str(error)
            self.say(f"{unit.stage}/{unit.name}: failed: {error}")
            return None
        if done is None:
            self.left_out[f"{unit.stage}/{unit.name}"] = TIME_UP
        else:
            write_json(own / DONE, done, words=True)
            for checkpoint in list(own.rglob("step-*")):
                remove_folder(checkpoint)
            self.say(f"{unit.stage}/{unit.name}: {done['seconds']:.0f} s")
        self.note_time()
        return done

    def work(self, unit: Unit, folder: Path) -> dict[str, Any] | None:
        """Do a piece of work in a folder; what ``done.json`` says of it. None if it was broken off."""
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with self.limited(self.left) as fired:
            try:
                result = from_words(unit.work(folder))
            except KeyboardInterrupt:
                if fired:
                    return None
                raise
        return {"result": result, "sha256": sha256_of(result), "seconds": time.monotonic() - begun,
                "version": __version__}  # fmt: skip
