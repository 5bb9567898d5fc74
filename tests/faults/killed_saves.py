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


def _save_on_and_on(path: Path, number: int, board: Board) -> None:
    """Save a model again and again. All parameters of save `number` have the value `number`."""
    model = mom.MoM(CONFIG, seed=0)
    model.tokenizer = tokenizer()
    board.mark(1, 1)
    while True:
        number += 1
        for array in model.parameters.values():
            array[...] = number
        model.save_pretrained(path)
        board.mark(0, number)


def _number_in(path: Path) -> int:
    """The number of the save that a folder holds, whole."""
    verify_folder(path)
    model = mom.MoM.from_pretrained(path)
    found = {float(value) for array in model.parameters.values() for value in np.unique(array)}
    need(len(found) == 1, f"a mixture of saves: {sorted(found)}")
    return int(found.pop())


def _kill_once(path: Path, number: int, rng: random.Random) -> tuple[int, int]:
    """Kill a process that saves. Returns the newest save that the process had finished, and the one in the folder."""
    board = Board()
    board.mark(0, number)
    child = os.fork()
    if child == 0:
        try:
            _save_on_and_on(path, number, board)
        finally:
            os._exit(1)
    while not board[1]:
        time.sleep(0.0005)
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    need(os.WIFSIGNALED(status), "the process that saves ended by itself")
    return board[0], _number_in(path)


def killed_saves(seconds: float, seed: int, limit: int | None = None) -> Killed:
    """Kill saves for so long, or so often: half of them in memory, half on the disk."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    homes = [new_home(False), new_home(True)]
    numbers, problems = [1, 1], []
    kills = newer = leftovers = 0
    longest = 0.0
    try:
        for home in homes:
            model = mom.MoM(CONFIG, seed=0)
            for array in model.parameters.values():
                array[...] = 1
            model.save_pretrained(home / "model")
        while time.monotonic() < end and (limit is None or kills < limit) and not problems:
            which = kills % 2
            path, began = homes[which] / "model", time.monotonic()
            try:
                told, found = _kill_once(path, numbers[which], rng)
                need(told <= found <= told + 1, f"save {told} was finished, the folder holds {found}")
                newer += found > told
                leftovers += len(os.listdir(homes[which])) > 1
                numbers[which] = found
            except (Lost, OSError, mom.MomError) as error:
                problems.append(f"saves, kill {kills + 1}: {error} (--part saves --seed {seed})")
            kills += 1
            longest = max(longest, time.monotonic() - began)
        for home in homes:
            mom.MoM(CONFIG, seed=0).save_pretrained(home / "model")
            if os.listdir(home) != ["model"]:
                problems.append(f"saves: left over after the next save: {sorted(os.listdir(home))} (--seed {seed})")
    finally:
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)
    return Killed(kills, newer, leftovers, problems, longest)
