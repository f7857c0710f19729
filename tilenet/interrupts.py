"""SIGINT and SIGTERM: cleaned up after, and within seconds whatever a library is busy with."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# Seconds that blocks in flight have to be finished; a store survives a kill, so no more are needed.
GRACE = 3.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal, made an exception that nothing which catches errors catches."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible(last_words: Callable[[], None]) -> Iterator[None]:
    """Raise `Interrupted` on the first signal, ignore more; end the process if that takes too long.

    Python runs a signal's handler between two of its own steps, so not while a forward pass
    of minutes or a read that hangs is under way. A thread that the C handler wakes has no
    such wait.

    Parameters
    ----------
    last_words : callable
        Called before a process that does not end by itself is ended.
    """
    before = {number: signal.signal(number, _interrupt) for number in SIGNALS}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, last_words), name="tilenet-signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        theirs.close()  # ends the thread, unless a signal woke it
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, _ignore)
    raise Interrupted(number)


def _ignore(number: int, frame: Any) -> None:
    """Let what the first signal began come to its end."""


def _watch(woken: socket.socket, last_words: Callable[[], None]) -> None:
    # Every signal that has a handler in Python wakes it, those of others too.
    while (number := woken.recv(1)) and number[0] not in SIGNALS:
        pass
    if number:  # not closed here: a second signal would have nowhere to be written to
        time.sleep(GRACE)
        last_words()
        os._exit(128 + number[0])
    woken.close()
