"""Signals that end a process, and those that do not."""

import os
import signal
import time

import pytest

from tilenet import interrupts
from tilenet.interrupts import Interrupted, interruptible


@pytest.fixture
def ended(monkeypatch):
    """Return the exit codes that the process would have ended with."""
    codes = []
    monkeypatch.setattr(interrupts, "GRACE", 0.05)
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_a_signal_that_somebody_else_handles_ends_nothing(ended):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with interruptible(lambda: None):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (seen, ended) == ([signal.SIGUSR1] * 2, [])


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_one_that_is_not_followed_ends_the_process_after_its_last_words(ended, number):
    said = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with pytest.raises(Interrupted), interruptible(lambda: said.append("last words")):
            os.kill(os.getpid(), signal.SIGUSR1)
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except Interrupted:
                time.sleep(0.3)  # what a library is busy with
                raise
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (said, ended) == (["last words"], [128 + number])
