"""Saves that are killed at random moments: afterwards the folder holds a save that was complete, and the newest one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from children import Board
from injection import new_home
from works import CONFIG, Lost, need, tokenizer

import mom
from mom.files.folders import verify_folder


class Killed(NamedTuple):
    """How killed saves went: how many, how often the save at hand counted, what was left beside, and what was wrong."""

    kills: int
    newer: int
    leftovers: int
    problems: list[str]
    longest: float


def _save_on_and_on(model: mom.MoM, path: Path, number: int, board: Board) -> None:
    """Save a model again and again. All parameters of save `number` have the value `number`."""
    board.mark(1, 1)
    while True:
        number, began = number + 1, time.monotonic()
        for array in model.parameters.values():
            array[...] = number
        model.save_pretrained(path)
        board.mark(0, number)
        board.mark(2, int(1e6 * (time.monotonic() - began)))


def _number_in(path: Path) -> int:
    """The number of the save that a folder holds, whole."""
    verify_folder(path)
    model = mom.MoM.from_pretrained(path)
    found = {float(value) for array in model.parameters.values() for value in np.unique(array)}
    need(len(found) == 1, f"a mixture of saves: {sorted(found)}")
    return int(found.pop())


class _Folder:
    """A folder in which saves are killed.

    Parameters
    ----------
    model : MoM
    on_disk : bool
        Whether the folder is on the disk, rather than in memory.
    """

    def __init__(self, model: mom.MoM, on_disk: bool) -> None:
        self.home = new_home(on_disk)
        self._model, self._number, self._span = model, 1, 0.02
        for array in model.parameters.values():
            array[...] = 1
        model.save_pretrained(self.home / "model")

    def kill_once(self, rng: random.Random) -> bool:
        """Kill a process that saves. Returns whether the folder then holds the save that was under way."""
        board, path = Board(), self.home / "model"
        board.mark(0, self._number)
        child = os.fork()
        if child == 0:
            try:
                _save_on_and_on(self._model, path, self._number, board)
            finally:
                os._exit(1)
        while not board[1]:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 3.0 * self._span))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        need(os.WIFSIGNALED(status), "the process that saves ended by itself")
        self._span = 0.9 * self._span + 0.1 * (board[2] / 1e6 or 2.0 * self._span)  # of one save
        told, found = board[0], _number_in(path)
        need(told <= found <= told + 1, f"save {told} was finished, the folder holds {found}")
        self._number = found
        return found > told

    def leftovers(self) -> list[str]:
        return sorted(set(os.listdir(self.home)) - {"model"})


def killed_saves(seconds: float, seed: int, limit: int | None = None) -> Killed:
    """Kill saves for so long, or so often: half of them in memory, half on the disk."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    model = mom.MoM(CONFIG, seed=0)
    model.tokenizer = tokenizer()
    folders = [_Folder(model, False), _Folder(model, True)]
    problems: list[str] = []
    kills = newer = leftovers = 0
    longest = 0.0
    try:
        while time.monotonic() < end and (limit is None or kills < limit) and not problems:
            folder, began = folders[kills % 2], time.monotonic()
            kills += 1
            try:
                newer += folder.kill_once(rng)
            except (Lost, OSError, mom.MomError) as error:
                problems.append(f"saves, kill {kills}: {error} (--part saves)")
            leftovers += bool(folder.leftovers())
            longest = max(longest, time.monotonic() - began)
        for folder in folders:
            model.save_pretrained(folder.home / "model")
            if folder.leftovers():
                problems.append(f"saves: left over after the next save: {folder.leftovers()} (--part saves)")
    finally:
        for folder in folders:
            shutil.rmtree(folder.home, ignore_errors=True)
    return Killed(kills, newer, leftovers, problems, longest)
