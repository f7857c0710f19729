"""Signals that end a process, and those that do not."""

import os
import signal
import socket
import time

import pytest
from faults import wait_until

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


def test_the_file_descriptor_that_signals_were_written_to_before_gets_them_again(ended):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())  # as asyncio does
    try:
        with interruptible(lambda: None):
            pass
        assert signal.set_wakeup_fd(before) == theirs.fileno()
    finally:
        signal.set_wakeup_fd(before)
        ours.close()
        theirs.close()


def test_a_file_descriptor_that_was_closed_meanwhile_is_left_alone(ended):
    handlers = [signal.getsignal(number) for number in interrupts.SIGNALS]
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        with interruptible(lambda: None):
            theirs.close()
        assert signal.set_wakeup_fd(before) == -1
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] == handlers
    finally:
        signal.set_wakeup_fd(before)
        ours.close()


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_one_that_is_not_followed_ends_the_process_after_its_last_words(ended, number):
    said = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with pytest.raises(Interrupted), interruptible(lambda: said.append("last words")):
            os.kill(os.getpid(), signal.SIGUSR1)
            try:
                os.kill(os.getpid(), number)
                time.sleep(60)
            except Interrupted:
                wait_until(lambda: ended)  # what a library is busy with
                raise
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (said, ended) == (["last words"], [128 + number])
