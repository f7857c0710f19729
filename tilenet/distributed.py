"""Blocks to Dask workers, outcomes back.

Dask does the distribution. It is told the paths of a run and the number of a block, and a
journal line comes back: no pixels, models or open files pass through it. There are as many
blocks in flight as there are workers, so that a million blocks are never a million futures,
and a worker that dies takes one block with it.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

from tilenet import predict
from tilenet.compute import Progress, counted, finish, raise_if_failed
from tilenet.errors import BlocksFailed, EnvironmentFault, ImageError, SettingsError
from tilenet.footprint import Footprint
from tilenet.job import Job
from tilenet.runner import Report
from tilenet.store import Store
from tilenet.worker import Outcome, Task, compute_block

if TYPE_CHECKING:
    from distributed import Client, Future

# How many workers may refuse a block, or die of it (Dask's own default of `allowed-failures`, and one).
TRIES = 4
# Seconds after which the workers are counted again.
WAKE = 1.0
# Blocks in flight beyond twice the workers of a cluster that grows with its work.
MORE = 8
# Bytes of a pickled callable: more is a model, not the name of one.
LARGEST_CALLABLE = 2**14


@dataclass
class Slide:
    """One output that workers fill; many may share the queue.

    Attributes
    ----------
    task : Task
        What workers are told.
    store : Store
        Held by this process.
    job : Job
        As it was settled here; each worker settles its own.
    advance : callable
        Called with the pixels of each block that is written.
    name : str
        For people, in the names of tasks; default that of the output.
    report : Report
        What was done so far.
    error : Exception or None
        What ended it before its last block.
    """

    task: Task
    store: Store
    job: Job
    advance: Callable[[int], None] = lambda pixels: None
    name: str = ""
    report: Report = field(default_factory=Report)
    error: Exception | None = None
    in_flight: int = 0
    all_sent: bool = False

    def raise_if_failed(self) -> None:
        """Raise what ended it, or `BlocksFailed` for the blocks that could not be computed."""
        if self.error:
            raise self.error
        raise_if_failed(self.report, self.job)


@dataclass(frozen=True)
class Flight:
    """One block on its way; `refused_by` are the workers that could not compute it."""

    slide: Slide
    index: int
    refused_by: tuple[str, ...] = ()


def check_sendable(image: Any, model: Any) -> None:
    """Refuse an image or a model that a worker could not open by itself (`ImageError`, `SettingsError`)."""
    if not isinstance(image, str | Path):
        raise ImageError(f"{type(image).__name__}: workers open images by themselves. Give a path, or no client")
    if isinstance(model, str | Path):
        return
    name = type(model).__name__
    if predict.is_network(model):
        raise SettingsError(
            f"{name}: workers load models by themselves. Save it with tilenet.save_model and give the path, "
            f"or give a callable of an importable module that loads it"
        )
    if (size := len(pickle.dumps(model))) > LARGEST_CALLABLE:
        raise SettingsError(f"{name}: has {size} bytes pickled, for every block. Let it load them when it is called")


def task_of(store: Store, image: str | Path, model: Any, *, footprint: Footprint | None = None) -> Task:
    """Return what workers are told of a run."""
    model = _absolute(model) if isinstance(model, str | Path) else model
    return Task(str(store.path), store.run, _absolute(image), model, footprint)


def fill_by_workers(
    store: Store, job: Job, client: Client, *, names: Mapping[str, Any], progress: Progress | None = None
) -> Report:
    """Have workers compute what a store still lacks, then finish and close it.

    Parameters
    ----------
    store, job
        What is to be filled, and how.
    client : distributed.Client
        Of the cluster.
    names : mapping
        What workers open: ``image``, ``model`` and ``footprint``, see `task_of`.
    progress : callable, optional
        Called with the pixels done and the pixels in all.

    Raises
    ------
    BlocksFailed, EnvironmentFault, OutputLocked
        If blocks could not be computed, if the scheduler is lost, if another run took over.
    """
    try:
        if store.complete:
            return Report()
        advance, started = counted(job, store.pending(), progress), monotonic()
        slide = Slide(task_of(store, **names), store, job, advance)
        for _ in work_off(client, [slide]):
            slide.report.seconds = monotonic() - started
            slide.raise_if_failed()
        finish(store)
        slide.report.finished = monotonic() - started - slide.report.seconds
        return slide.report
    finally:
        store.close()
        job.image.close()


def work_off(client: Client, slides: Iterable[Slide]) -> Iterator[Slide]:
    """Have workers fill many outputs, from one queue; yield each when its last block is back.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    slides : iterable of Slide
        Taken as the queue needs them, so that few are open at a time.

    Raises
    ------
    EnvironmentFault
        If the scheduler is lost. What is written stays written.
    """
    return _Queue(client, slides).work_off()


class _Queue:
    def __init__(self, client: Client, slides: Iterable[Slide]) -> None:
        self._client = client
        self._waiting, self._again = self._blocks_of(slides), deque[Flight]()
        self._arrivals: SimpleQueue[tuple[str, Flight, Any]] = SimpleQueue()
        self._futures: dict[str, Future[Any]] = {}
        self._ended: deque[Slide] = deque()
        self._workers: list[str] = []
        self._count_again, self._number = 0.0, count()

    def work_off(self) -> Iterator[Slide]:
        while True:
            self._send()
            while self._ended:
                yield self._ended.popleft()
            if not self._futures:
                return
            for key, flight, answer in self._arrived():
                del self._futures[key]
                self._settle(flight, answer)

    def _blocks_of(self, slides: Iterable[Slide]) -> Iterator[Flight]:
        for slide in slides:
            for index in slide.store.pending():
                if slide.error:
                    break
                slide.in_flight += 1
                yield Flight(slide, index)
            slide.all_sent = True
            self._end_if_done(slide)

    def _send(self) -> None:
        """Keep as many blocks in flight as there are workers, or may come if there is work."""
        if monotonic() >= self._count_again:
            self._workers = self._find_workers()
            self._count_again = monotonic() + WAKE
        adaptive = getattr(self._client.cluster, "_adaptive", None)
        workers = len(self._workers)
        while len(self._futures) < max(1, min(adaptive.maximum, 2 * workers + MORE) if adaptive else workers):
            flight = self._again.popleft() if self._again else next(self._waiting, None)
            if flight is None:
                return
            self._submit(flight)

    def _find_workers(self) -> list[str]:
        try:
            return list(self._client.nthreads())
        except Exception as error:  # of several kinds, as the connection breaks here or there
            raise self._lost(error) from error

    def _submit(self, flight: Flight) -> None:
        slide = flight.slide
        key = f"tilenet-{slide.name or Path(slide.task.out).stem}-{flight.index}-{next(self._number)}"
        others = [worker for worker in self._workers if worker not in flight.refused_by] if flight.refused_by else []
        preferred = {"workers": others, "allow_other_workers": True} if others else {}
        try:
            future = self._client.submit(answer, slide.task, flight.index, key=key, pure=False, **preferred)
        except Exception as error:
            raise self._lost(error) from error
        self._futures[key] = future
        self._client.loop.add_callback(self._watch, key, flight, future)

    async def _watch(self, key: str, flight: Flight, future: Future[Any]) -> None:
        """Put what becomes of a future into the queue; runs in the client's own thread."""
        try:
            found = await future
        except Exception as error:
            found = error
        self._arrivals.put((key, flight, found))

    def _arrived(self) -> Iterator[tuple[str, Flight, Any]]:
        """Wait a while for the next outcome; yield all that are there."""
        try:
            yield self._arrivals.get(timeout=WAKE)
            while True:
                yield self._arrivals.get_nowait()
        except Empty:
            return

    def _settle(self, flight: Flight, found: Any) -> None:
        slide, index = flight.slide, flight.index
        if isinstance(found, CancelledError):
            raise self._lost(found)
        worker, outcome = found if isinstance(found, tuple) else ("", _outcome_of(found))
        if outcome.refusal and not slide.error and len(flight.refused_by) + 1 < TRIES:
            self._again.append(replace(flight, refused_by=(*flight.refused_by, worker)))
            return
        slide.in_flight -= 1
        if outcome.line:
            slide.store.adopt(outcome.line)
            slide.report.add(outcome.report)
            slide.advance(outcome.report.pixels)
        elif outcome.fault:
            slide.error = slide.error or outcome.fault
        elif outcome.refusal and not slide.report.blocks:
            # Nobody could even begin: every other block would be refused too.
            where = f"block {index} at {slide.job.plan[index].box}"
            slide.error = slide.error or BlocksFailed(
                f"{slide.task.out}: {where} was refused {TRIES} times: {outcome.refusal}"
            )
        else:
            slide.report.failures[index] = outcome.failure or outcome.refusal
        self._end_if_done(slide)

    def _end_if_done(self, slide: Slide) -> None:
        if slide.all_sent and not slide.in_flight:
            self._ended.append(slide)

    def _lost(self, error: Exception) -> EnvironmentFault:
        where = self._client.scheduler.address if self._client.scheduler else "the scheduler"
        return EnvironmentFault(f"{where}: the scheduler is lost ({type(error).__name__}). Run again with --resume")


def answer(task: Task, index: int) -> tuple[str, Outcome]:
    """Run on a worker: compute a block; return its address and the outcome."""
    from distributed import get_worker

    return get_worker().address, compute_block(task, index)


def _outcome_of(error: Exception) -> Outcome:
    if type(error).__name__ == "KilledWorker":
        return Outcome(failure=f"{error.allowed_failures + 1} workers died of it")  # type: ignore[attr-defined]
    return Outcome(refusal=f"{type(error).__name__}: {error}")


def _absolute(name: str | Path) -> str:
    """Return where a file lies, for a process with another working directory; other names as they are."""
    return str(Path(name).absolute()) if Path(name).exists() else str(name)
