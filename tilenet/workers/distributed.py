"""Send blocks to Dask workers, and collect the results.

Dask only distributes: tasks carry the paths of a run and some block indices, and journal lines come
back. No models, open files or pixels of an image pass through it; shards of a pyramid and labels of
blocks do (`map_in_order`). Only as many flights are sent as there are workers, so that a million
blocks never become a million futures, and a worker that dies takes one block with it.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from tilenet.address import absolute
from tilenet.errors import EnvironmentFault, ImageError, SettingsError, counted, first_line, one_line
from tilenet.jobs.compute import finish, progress_counter, skip_background
from tilenet.jobs.job import Job
from tilenet.jobs.request import Request
from tilenet.predict import predictors
from tilenet.prefetch import prefetched
from tilenet.runner import Report
from tilenet.store import CoarserBlock, Progress, Store
from tilenet.workers.flights import Flight, PendingOutput, Queue, seconds_per_flight
from tilenet.workers.submitted_jobs import jobs_of
from tilenet.workers.worker import FlightResult, Task, compute_blocks

if TYPE_CHECKING:
    from distributed import Client, Future

LOG = logging.getLogger("tilenet")
S = TypeVar("S")
T = TypeVar("T")
# Longest wait in seconds for a result before the workers are counted again.
WAKE = 1.0
# Seconds without a worker after which the user is told; then again after twice, four times... as long, and each hour.
PATIENCE, LONGEST_SILENCE = 60.0, 3600.0
# Flights sent to an adaptive cluster beyond twice its number of workers, so that it grows.
MORE = 8
# Most bytes of a pickled callable: a larger one contains a model instead of naming one.
LARGEST_CALLABLE = 2**14


def check_sendable(image: Any, model: Any) -> None:
    """Refuse an image or a model that a worker cannot open by itself (`ImageError`, `SettingsError`)."""
    if not isinstance(image, str | Path):
        raise ImageError(f"{type(image).__name__}: workers open images by themselves. Give a path, or no client")
    if isinstance(model, str | Path):
        return
    name = type(model).__name__
    if predictors.is_network(model):
        raise SettingsError(
            f"{name}: workers load models by themselves. Save a UNet with tilenet.save_model and give its path; of "
            f"another network give MODULE:FUNCTION, such as my_networks:build: a function that returns it"
        )
    try:
        size = len(pickle.dumps(model))
    except Exception as error:  # pickle raises many kinds
        raise SettingsError(
            f"{name}: cannot be sent to workers ({one_line(error)}). Give a callable of an importable module"
        ) from error
    if size > LARGEST_CALLABLE:
        raise SettingsError(f"{name}: has {size} bytes pickled, for every block. Let it load them when it is called")


def check_client(client: Any) -> None:
    """Refuse what is no client of a Dask cluster, or is an asynchronous one, which gives coroutines."""
    if not all(hasattr(client, name) for name in ("submit", "nthreads", "loop")):
        said = repr(client) if isinstance(client, str) else "..."
        raise SettingsError(
            f"client {client!r} is not a client of a Dask cluster. Give client=distributed.Client({said})"
        )
    if getattr(client, "asynchronous", False):
        raise SettingsError("the client is asynchronous, and this call is not. Give client=distributed.Client(...)")


def task_of(store: Store, job: Job, request: Request) -> Task:
    """Return the task that workers are sent for a run."""
    # The working directory may hold a file or a folder with the name of a packaged model; the job knows which is meant.
    model = job.source if isinstance(request.model, str | Path) else request.model
    return Task(str(store.path), store.run, absolute(request.image), model, request.footprint)


def fill_by_workers(store: Store, job: Job, client: Client, request: Request, *, progress: Progress | None) -> Report:
    """Have workers compute the pending blocks of a store, and finish it; closes store and job in any case."""
    try:
        if store.complete:
            return Report()
        predictors.free_device(job.network)
        started, skipped = monotonic(), skip_background(job, store, store.layout.tissue_map)
        advance = progress_counter(job, store.pending(), progress)
        output = PendingOutput(task_of(store, job, request), store, job, advance, report=Report(skipped=skipped))
        for _ in work_off(client, [output]):
            output.report.seconds = monotonic() - started
            output.raise_if_failed()
        finish(store, make_shards=partial(map_in_order, client, CoarserBlock.shard))
        output.report.finished = monotonic() - started - output.report.seconds
        return output.report
    finally:
        store.close()
        job.close()


def work_off(client: Client, outputs: Iterable[PendingOutput]) -> Iterator[PendingOutput]:
    """Have workers fill outputs, drawn lazily, from one queue; yield each output when its last block has returned.

    Without workers it waits until one comes. `EnvironmentFault` if the scheduler is lost.
    """
    return _Dispatch(client, Queue(outputs)).work_off()


class _Dispatch:
    """Send the flights of a queue to the workers of a client, and receive the results."""

    def __init__(self, client: Client, queue: Queue) -> None:
        self._client, self._queue = client, queue
        self._arrivals: SimpleQueue[tuple[Flight, Any]] = SimpleQueue()
        self._futures: dict[int, Future[Any]] = {}
        self._workers: list[str] = []
        self._count_again = 0.0
        self._had_worker, self._alone_since, self._say_so_after = False, monotonic(), PATIENCE

    def work_off(self) -> Iterator[PendingOutput]:
        while True:
            self._send()
            while self._queue.ended:
                yield self._queue.ended.popleft()
            if not self._futures:
                return
            for flight, result in self._arrived():
                del self._futures[flight.number]
                if isinstance(result, CancelledError):
                    raise self._lost(result)
                if not isinstance(result, FlightResult):
                    result = _result_of_error(result, flight)
                self._queue.conclude(flight, result)

    def _send(self) -> None:
        """Keep as many flights underway as there are workers, or as an adaptive cluster may grow to."""
        if monotonic() >= self._count_again:
            self._workers = self._find_workers()
            self._count_again = monotonic() + WAKE
            self._say_if_alone()
        adaptive, workers = getattr(self._client.cluster, "_adaptive", None), len(self._workers)
        most = max(1, min(adaptive.maximum, 2 * workers + MORE) if adaptive else workers)
        while len(self._futures) < most and (flight := self._queue.take(most)):
            self._submit(flight, seconds_per_flight(most))

    def _find_workers(self) -> list[str]:
        try:
            return list(self._client.nthreads())
        except Exception as error:  # the type depends on where the connection breaks
            raise self._lost(error) from error

    def _say_if_alone(self) -> None:
        """Say again and again that no worker has come, or that none is left: jobs may wait in a queue for hours."""
        if jobs := jobs_of(self._client.cluster):
            jobs.raise_if_in_vain()
        if self._workers:
            self._had_worker, self._alone_since, self._say_so_after = True, monotonic(), PATIENCE
        elif (alone := monotonic() - self._alone_since) >= self._say_so_after:
            self._say_so_after += min(self._say_so_after, LONGEST_SILENCE)
            yet, remark = "any more" if self._had_worker else "yet", f". {jobs.remark()}" if jobs else ""
            n = self._queue.unwritten()
            waiting = f"{counted(n, 'block')} wait{'s' * (n == 1)}"
            LOG.warning("no worker %s, for %.0f min: %s%s", yet, alone / 60, waiting, remark)

    def _submit(self, flight: Flight, seconds: float) -> None:
        others = [worker for worker in self._workers if worker not in flight.refused_by] if flight.refused_by else []
        preferred = {"workers": others, "allow_other_workers": True} if others else {}
        task = (flight.output.task, flight.blocks, flight.id, seconds)
        try:
            future = self._client.submit(compute_flight, *task, key=flight.name, pure=False, **preferred)
        except Exception as error:
            raise self._lost(error) from error
        self._futures[flight.number] = future
        self._client.loop.add_callback(self._watch, flight, future)

    async def _watch(self, flight: Flight, future: Future[Any]) -> None:
        """Put the result or the exception of a future into the queue; runs in the client's event loop thread."""
        try:
            result = await future
        except Exception as error:
            result = error
        self._arrivals.put((flight, result))

    def _arrived(self) -> Iterator[tuple[Flight, Any]]:
        """Wait at most `WAKE` seconds for the next result, and yield all that have arrived."""
        try:
            yield self._arrivals.get(timeout=WAKE)
            while True:
                yield self._arrivals.get_nowait()
        except Empty:
            return

    def _lost(self, error: Exception) -> EnvironmentFault:
        where = self._client.scheduler.address if self._client.scheduler else "the scheduler"
        return EnvironmentFault(f"{where}: the scheduler is lost ({type(error).__name__}). Run again with --resume")


def map_in_order(client: Client, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what a function makes of each item on the workers of a client, in order.

    Only a few items are underway at a time. What workers fail at is done in this process, which raises if it fails too.
    """
    for item, future in prefetched(partial(_submitted, client, function), items, 1 + 2 * _count(client)):
        yield _result_of(client, function, item, future)


def _submitted(client: Client, function: Callable[[S], T], item: S) -> tuple[S, Future[T] | None]:
    with suppress(Exception):  # if the scheduler is lost, this process does the work
        return item, client.submit(function, item, key=f"tilenet-{function.__name__}-{uuid4().hex}", pure=False)
    return item, None


def _result_of(client: Client, function: Callable[[S], T], item: S, future: Future[T] | None) -> T:
    while future is not None:
        try:
            return future.result(timeout=WAKE)  # type: ignore[no-any-return]
        except TimeoutError:
            if future.done() or not _count(client):
                break
        except Exception as error:  # a worker died, or cannot see the files; a damaged file raises again below
            LOG.info("a worker failed (%s): this process does its part", first_line(error))
            break
    return function(item)


def _count(client: Client) -> int:
    with suppress(Exception):
        return len(client.nthreads())
    return 0


def compute_flight(task: Task, blocks: Sequence[int], flight: str, seconds: float) -> FlightResult:
    """Compute blocks on a worker and return the result; this is the function of the Dask task."""
    from distributed import get_worker

    return replace(compute_blocks(task, blocks, flight=flight, seconds=seconds), worker=get_worker().address)


def _result_of_error(error: Exception, flight: Flight) -> FlightResult:
    if type(error).__name__ != "KilledWorker":
        return FlightResult(refusal=one_line(error))
    # Dask sent the flight to several workers, and all died. At most one of them had begun it.
    if flight.output.store.is_begun(flight.id):
        return FlightResult(death=True)
    return FlightResult(refusal="workers die before they begin it")
