"""Signals end the long calls of the tokenizers library at once, and cutting them into short calls changes no token."""

from __future__ import annotations

import random
import signal
import string
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.data import library_calls, tokenizer
from mom.data.cuts import safe_parts
from mom.data.library_calls import Stopped, groups, interruptible

CHILD = Path(__file__).with_name("tokenising_child.py")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["train", "long", "batch", "prepare"])
def test_a_signal_ends_the_work(kind: str, number: signal.Signals) -> None:
    """The work takes ten seconds and more. On an idle machine the reaction takes less than 0.2 s."""
    with subprocess.Popen([sys.executable, str(CHILD), kind], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "begun\n"
        time.sleep(0.7)
        sent = time.monotonic()
        child.send_signal(number)
        name, clock = child.stdout.readline().split()
        assert name == ("KeyboardInterrupt" if number == signal.SIGINT else "SystemExit")
        assert float(clock) - sent < 4.0
    assert child.returncode == 0


def long_texts() -> list[str]:
    """Texts of words, of lines, of digits and marks, of white space, and without any place to cut."""
    rng = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation + " \n\t" * 6 + "äß東京😀"
    return [
        "".join(rng.choices(letters, k=5000)), " ".join("".join(rng.choices(letters, k=7)) for _ in range(700)),
        "ab" * 2500, "x" * 3000 + " " * 2000, "don't we'll 12,345.6 " * 200, " \n \n" * 1000, "東京都" * 1500,
        "<|endoftext|>" * 300,
    ]  # fmt: skip


@pytest.mark.parametrize("longest", [16, 100, 1000])
def test_cuts_change_no_token(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = long_texts()
    made = mom.Tokenizer.train(texts, 600)
    want = {special: made.encode_batch(texts, special=special) for special in (False, True)}
    for module in (library_calls, tokenizer):
        monkeypatch.setattr(module, "LONGEST_CALL", longest)
    for special, rows in want.items():
        for got in (made.encode_batch(texts, special=special), [made.encode(text, special=special) for text in texts]):
            assert all(np.array_equal(a, b) and a.dtype == np.int32 for a, b in zip(got, rows, strict=True))
    for text in texts:
        assert "".join(safe_parts(text, longest)) == text
    assert max(map(len, safe_parts("word " * 1000, longest))) <= longest


def test_groups_hold_all_texts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_calls, "LONGEST_CALL", 10)
    texts = ["", "a" * 4, "b" * 6, "c", "d" * 11, "", "e" * 10]
    assert list(groups(texts)) == [["", "a" * 4, "b" * 6], ["c"], ["d" * 11], ["", "e" * 10]]
    assert list(groups([])) == []


def test_results_and_errors_come_from_the_thread() -> None:
    assert interruptible(lambda check: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda check: 1 // 0)
    with pytest.raises(mom.errors.DataError, match="texts: expected str, got int in row 1"):
        mom.Tokenizer.train(["a", 5], 300)  # type: ignore[list-item]
    inside: list[Any] = []
    thread = threading.Thread(target=lambda: inside.append(interruptible(lambda check: threading.current_thread())))
    thread.start()
    thread.join()
    assert inside == [thread], "other threads do not handle signals, so they need no further thread"


def test_what_nobody_waits_for_is_told_to_stop() -> None:
    """The texts of a tokenizer in training are no longer read."""
    ended = threading.Event()

    def call(check: Any) -> None:
        try:
            while True:
                check()
                time.sleep(0.01)
        except Stopped:
            ended.set()

    timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            interruptible(call)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()
