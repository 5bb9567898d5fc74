"""A signal either ends a run early or is sent again when the run is over: none gets lost."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mom.distributed.shared_memory import run
from mom.training.signals import stop_signals


@pytest.fixture
def arrived() -> Iterator[list[int]]:
    """Signals that reach the handlers of the program around."""
    numbers: list[int] = []
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, lambda n, _: numbers.append(n)) for number in handled]
    yield numbers
    for number, old in zip(handled, before, strict=True):
        signal.signal(number, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_nobody_acts_on_is_sent_again(number: int, arrived: list[int]) -> None:
    with stop_signals() as signals:
        os.kill(os.getpid(), number)
        assert signals == [signal.Signals(number).name] and not arrived
    assert arrived == [number]


def test_one_that_is_acted_on_is_not(arrived: list[int]) -> None:
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.handled = True
    with pytest.raises(KeyboardInterrupt), stop_signals() as signals, signals.at_once():
        os.kill(os.getpid(), signal.SIGINT)
    assert arrived == []


def test_the_second_signal_of_any_kind_acts_as_usual(arrived: list[int]) -> None:
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == ["SIGINT"] and arrived == [signal.SIGTERM]
        signals.handled = True
    assert arrived == [signal.SIGTERM]


def test_other_threads_leave_signals_alone(arrived: list[int]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    inside: list[object] = []

    def run() -> None:
        with stop_signals() as signals:
            inside.extend([signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)])
            assert signals == []

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == handlers


def test_repeats_of_a_signal_are_ignored_on_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mom.training.signals._REPEATED", 0.5)

    def work() -> list[str]:
        seen = []
        with stop_signals() as signals:
            signals.handled = True
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            seen += signals
            time.sleep(0.6)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        return seen

    assert run(2, work) == [["SIGINT"]] * 2


def test_a_handler_of_another_library_stays(tmp_path: Path) -> None:
    with (tmp_path / "stacks").open("w+") as file:
        faulthandler.register(signal.SIGUSR1, file)
        try:
            with stop_signals() as signals:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert signals == []
        finally:
            faulthandler.unregister(signal.SIGUSR1)
        file.seek(0)
        assert "test_a_handler_of_another_library_stays" in file.read()
