"""Group blocks into flights for workers, and handle the results; independent of Dask.

::

    pending blocks of the outputs  -->  Flight  -->  a worker  -->  FlightResult
         ^                                                           |
         |-- its time was up: the rest waits again  <----------------|
         '-- a worker refused it, or died: tried again  <------------'

Scheduling has a cost per flight, not per block, so small blocks are sent together. A worker
computes them one after the other. If it dies, each block that it had not written is sent again
in a flight of its own, so that only the block that kills workers is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

from tilenet.errors import BlocksFailed, TilenetError
from tilenet.jobs.compute import raise_if_failed
from tilenet.jobs.job import Job
from tilenet.runner import Report
from tilenet.store import Store
from tilenet.workers.worker import BlockResult, FlightResult, Task

# How many workers may refuse a flight, or die of a block, before the blocks are taken to be the cause.
TRIES = 4
# Most blocks of a flight: they share the cost of scheduling.
MOST = 64
# Flights per worker into which the remaining blocks are divided. With fewer, some workers would idle at the end.
ROUNDS = 4
# Most flights that return in a second: a rate that a client and a scheduler handle with ease.
PER_SECOND = 50


def blocks_per_flight(left: int, workers: int) -> int:
    """Return how many of the remaining blocks make a flight; the last blocks are sent one by one.

    >>> [blocks_per_flight(left, 4) for left in (10**6, 500, 100, 20, 3)]
    [64, 31, 6, 1, 1]
    """
    return min(MOST, max(1, left // (ROUNDS * max(1, workers))))


def seconds_per_flight(workers: int) -> float:
    """Return after how many seconds a worker begins no further block, so that few flights return at once.

    >>> [seconds_per_flight(workers) for workers in (1, 50, 1000)]
    [1.0, 1.0, 20.0]
    """
    return max(1.0, workers / PER_SECOND)


@dataclass(eq=False)
class PendingOutput:
    """One output that workers fill; many outputs may share the queue."""

    # What workers are sent.
    task: Task
    # The output, with its lease held by this process.
    store: Store
    # The job as this process made it; each worker makes its own.
    job: Job
    # Called with the number of pixels of each block that is written.
    advance: Callable[[int], None] = lambda pixels: None
    # Shown in the keys of Dask tasks; default the name of the output.
    name: str = ""
    report: Report = field(default_factory=Report)
    # What ended the output before its last block.
    error: Exception | None = None
    # Blocks that were taken and have no final result yet.
    in_flight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.name = self.name or self.store.path.stem
        self._ahead, self._pending = deque[int](), iter(self.store.pending())

    def take(self, workers: int) -> tuple[int, ...]:
        """Return the blocks of the next flight; empty if no block waits."""
        self._look_ahead(MOST * ROUNDS * max(1, workers))
        some = min(len(self._ahead), blocks_per_flight(len(self._ahead), workers))
        self.in_flight += some
        return tuple(self._ahead.popleft() for _ in range(some))

    def _look_ahead(self, blocks: int) -> None:
        self._ahead.extend(islice(self._pending, max(0, blocks - len(self._ahead))))

    @property
    def done(self) -> bool:
        """Whether no block waits or is in flight."""
        self._look_ahead(1)
        return not (self._ahead or self.in_flight)

    def give_back(self, blocks: Iterable[int]) -> None:
        """Put blocks back at the front of the queue."""
        for index in reversed(list(blocks)):
            self._ahead.appendleft(index)
            self.in_flight -= 1

    def note(self, index: int, result: BlockResult) -> None:
        """Record the final result of a block."""
        self.in_flight -= 1
        if result.line:
            self.store.adopt(result.line)
            self.report.add(result.report)
            self.advance(result.report.pixels)
        else:
            self.report.failures[index] = result.failure

    def abort(self, error: Exception) -> None:
        """Stop the output with an error: no more of its blocks are taken."""
        self.error = self.error or error
        self._ahead.clear()
        self._pending = iter(())

    def raise_if_failed(self) -> None:
        """Raise the error that ended the output, or `BlocksFailed` if some blocks could not be computed."""
        if self.error:
            raise self.error
        raise_if_failed(self.report, self.job)


@dataclass(frozen=True)
class Flight:
    """A few blocks of an output that are sent to a worker together, in the order in which they are computed."""

    output: PendingOutput
    blocks: tuple[int, ...]
    # Unique among the flights of a queue.
    number: int
    # Addresses of the workers that refused these blocks.
    refused_by: tuple[str, ...] = ()
    # What one of those workers suffered from, so that the blocks are not to blame.
    fault: TilenetError | None = None
    # How many workers died of the block, in a flight of one block; else 0.
    deaths: int = 0

    @property
    def id(self) -> str:
        """Unique across runs too, because a scheduler may still know the flights of an earlier run."""
        return f"{self.output.task.run[:12]}-{self.number}"

    @property
    def name(self) -> str:
        """Task key, as shown on Dask's dashboard."""
        first, last = self.blocks[0], self.blocks[-1]
        return f"tilenet-{self.output.name}-{first}{f'..{last}' if last != first else ''}-{self.id}"


class Queue:
    """The blocks of many outputs in one queue; outputs are drawn lazily, so that only a few are open at a time."""

    def __init__(self, outputs: Iterable[PendingOutput]) -> None:
        self.ended = deque[PendingOutput]()
        self._outputs, self._begun = iter(outputs), deque[PendingOutput]()
        self._again, self._numbers = deque[Flight](), count()

    def take(self, workers: int) -> Flight | None:
        """Return the next flight, sized for `workers` workers; None if no block waits."""
        while self._again:
            flight = self._again.popleft()
            if not flight.output.error:
                return flight
            self._drop(flight.output, len(flight.blocks))
        for output in self._waiting():
            if blocks := output.take(workers):
                return self._flight(output, blocks)
        return None

    def unwritten(self) -> int:
        """Return how many blocks of the outputs that were begun are not written yet."""
        return sum(1 for output in self._begun if not output.error for _ in output.store.pending())

    def _waiting(self) -> Iterator[PendingOutput]:
        yield from self._begun
        for output in self._outputs:
            self._begun.append(output)
            yield output
            self._end_if_done(output)

    def conclude(self, flight: Flight, result: FlightResult) -> None:
        """Process the result of a flight: record finished blocks, and requeue or retry the others."""
        output = flight.output
        left = output.in_flight - len(flight.blocks)
        try:
            output.store.forget(flight.id)
            for index, block in result.done.items():
                output.note(index, block)
        except TilenetError as error:  # one output that cannot be written must not stop the others
            output.abort(error)
            self._drop(output, output.in_flight - left)
            return
        undone = tuple(index for index in flight.blocks if index not in result.done)
        if result.fault and not result.refusal:
            output.abort(result.fault)
        if output.error or not undone:
            self._drop(output, len(undone))
        elif result.death:
            self._after_death(flight, undone)
        elif result.refusal:
            refused_by, fault = (*flight.refused_by, result.worker), flight.fault or result.fault
            self._after_refusal(replace(flight, blocks=undone, refused_by=refused_by, fault=fault), result.refusal)
        else:
            output.give_back(undone)
            self._end_if_done(output)

    def _after_death(self, flight: Flight, undone: tuple[int, ...]) -> None:
        """Retry each block alone; the worker died while it computed the first one, since it goes in order."""
        output, died = flight.output, flight.deaths + 1
        if died >= TRIES:
            output.note(undone[0], BlockResult(failure=f"{died} workers died of it"))
            self._end_if_done(output)
            return
        for index in undone:
            of_it = died if index == undone[0] else 0
            history = {"refused_by": flight.refused_by, "fault": flight.fault, "deaths": of_it}
            self._again.append(self._flight(output, (index,), **history))

    def _after_refusal(self, flight: Flight, refusal: str) -> None:
        output, blocks = flight.output, flight.blocks
        if len(flight.refused_by) < TRIES:
            self._again.append(replace(flight, number=next(self._numbers)))
        elif flight.fault:
            output.abort(flight.fault)
            self._drop(output, len(blocks))
        elif not output.report.blocks:
            # No block of this output was ever computed, so all others would be refused too.
            where = f"block {blocks[0]} at {output.job.plan[blocks[0]].box}"
            output.abort(BlocksFailed(f"{output.task.out}: {where} was refused {TRIES} times: {refusal}"))
            self._drop(output, len(blocks))
        elif len(blocks) > 1:
            self._again.extend(self._flight(output, (index,)) for index in blocks)
        else:
            output.note(blocks[0], BlockResult(failure=refusal))
            self._end_if_done(output)

    def _flight(self, output: PendingOutput, blocks: tuple[int, ...], **history: Any) -> Flight:
        return Flight(output, blocks, next(self._numbers), **history)

    def _drop(self, output: PendingOutput, blocks: int) -> None:
        output.in_flight -= blocks
        self._end_if_done(output)

    def _end_if_done(self, output: PendingOutput) -> None:
        if output in self._begun and output.done:
            self._begun.remove(output)
            self.ended.append(output)
