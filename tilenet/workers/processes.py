"""Processes of this machine that find objects: without Dask, and each for as long as one step of a run.

Only the command line starts them. Python starts a process with the main module of its parent, so a script of the
user's would run again in each of them.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from tilenet.errors import first_line
from tilenet.prefetch import prefetched

S = TypeVar("S")
T = TypeVar("T")
LOG = logging.getLogger("tilenet")
REMEDY = "If memory ran out, a smaller --memory begins fewer"
_most = ContextVar("most", default=1)


@contextmanager
def several_processes(most: int) -> Iterator[None]:
    """Allow so many processes within a context; without it, there is only the caller's."""
    before = _most.set(most)
    try:
        yield
    finally:
        _most.reset(before)


def most_processes() -> int:
    """Return how many processes are allowed."""
    return _most.get()


def map_in_processes(
    function: Callable[[S], T], items: Iterable[S], count: int, *, otherwise: Callable[[S], T]
) -> Iterator[T]:
    """Yield what a function makes of each item, in order, in `count` processes.

    What fails there is done by `otherwise` in this process, while the others are idle, so that it may take all memory.
    If one is killed or cannot begin, all end, and half as many begin with what is left; the third time, this one does
    it alone.
    """
    left = deque(items)
    for n, fewer in pairwise((count, count // 2, count // 4, 0)):
        if n and left:
            yield from _in_pool(function, left, n, otherwise=otherwise)
            if left:
                then = f"{fewer} of {n} begin again" if fewer else "this one does what is left"
                LOG.warning("one of the processes that find objects was killed, or cannot begin: %s. %s", then, REMEDY)
    yield from map(otherwise, left)


def _in_pool(function: Callable[[S], T], left: deque[S], count: int, *, otherwise: Callable[[S], T]) -> Iterator[T]:
    """Take items from those that are left, and yield what is made of them, until a process is killed."""
    # A forked process would inherit the locks of PyTorch's threads.
    context = get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    underway: deque[Future[T]] = deque()
    pool = ProcessPoolExecutor(count, context, _begin, (watched,))

    def begun(item: S) -> Future[T]:
        underway.append(_submitted(pool, function, item))
        return underway[-1]

    try:
        for future in prefetched(begun, tuple(left), 2 * count):
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                return
            item = left.popleft()
            underway.popleft()
            if error:
                LOG.info("a process failed (%s): this one does its part", first_line(error))
                wait(underway)
            yield otherwise(item) if error else future.result()
    except BaseException:
        held.close()  # ends the processes at once
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held.close()
        watched.close()


def _submitted(pool: ProcessPoolExecutor, function: Callable[[S], T], item: S) -> Future[T]:
    try:
        return pool.submit(function, item)
    except (BrokenExecutor, OSError) as error:  # a process was killed; or none can be started
        failed: Future[T] = Future()
        failed.set_exception(BrokenExecutor(first_line(error)))
        return failed


def _begin(watched: Connection) -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the parent, and end when that wants it or is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(watched,), name="tilenet-parent", daemon=True).start()


def _end_with(watched: Connection) -> None:
    with suppress(EOFError):  # the other end is closed, by the parent or as it ended
        watched.recv()
    os._exit(1)
