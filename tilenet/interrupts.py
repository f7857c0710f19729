"""SIGINT and SIGTERM: end a run cleanly, and within seconds even if a library call does not return."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Seconds that blocks in progress get to finish. A store survives being killed, so a longer wait is not needed.
GRACE = 3.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal as an exception; derived from BaseException so that ``except Exception`` does not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible(last_words: Callable[[], None]) -> Iterator[None]:
    """Raise `Interrupted` on the first signal, ignore later ones, and end a process that takes longer than `GRACE`.

    Python runs a signal handler between two bytecode instructions of the main thread, so not during
    a forward pass of minutes or a read that hangs. A thread woken through `signal.set_wakeup_fd` does
    not have to wait for that. It calls `last_words` just before it ends the process.
    """
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    woken_before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)  # asyncio's, or -1
    threading.Thread(target=_watch, args=(ours, last_words), name="tilenet-signals", daemon=True).start()
    try:
        yield
    finally:
        _wake(woken_before)
        theirs.close()  # ends the thread, unless a signal has already woken it
        for number, handler in before.items():
            signal.signal(number, handler)


def _wake(descriptor: int) -> None:
    """Have signals written to a file descriptor again; to none if it was closed meanwhile."""
    try:
        signal.set_wakeup_fd(descriptor)
    except (OSError, ValueError):
        signal.set_wakeup_fd(-1)


def _interrupt(number: int, frame: Any) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, _ignore)
    raise Interrupted(number)


def _ignore(number: int, frame: Any) -> None:
    """Do nothing, so that the cleanup begun by the first signal can finish."""


def _watch(woken: socket.socket, last_words: Callable[[], None]) -> None:
    # Every signal with a Python handler writes to this socket, including handlers installed by other code.
    while (number := woken.recv(1)) and number[0] not in SIGNALS:
        pass
    if number:  # the socket stays open, because a second signal is written to it too
        time.sleep(GRACE)
        last_words()
        os._exit(128 + number[0])
    woken.close()
