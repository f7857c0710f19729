"""The loop: read ahead, predict, write behind.

It knows neither files nor PyTorch: an image is something to `read` boxes from, a predictor
any callable, a sink something to `write` whole blocks to. All arithmetic was done by the
plan; all decisions about pixels by the `Decision`, here or where the predictor computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import Arrays, Decision, block_buffers, not_finite
from tilenet.errors import EnvironmentFault
from tilenet.footprint import Footprint
from tilenet.geometry import ceil_div
from tilenet.plan import Block, Plan, Tile
from tilenet.readers.image import READERS, Image

# Batches read before they are needed, and blocks finished but not yet on disk: what bounds
# the memory beside the activations.
AHEAD, BEHIND = 2, 2


T = TypeVar("T")
Timed = tuple[T, float]
Reads = list[Future[Timed[None]]]
# Waits for a batch that was begun, and gives the arrays of each of its tiles.
Finish = Callable[[], Sequence[Arrays]]


class Predictor(Protocol):
    """What turns a batch of tiles into logits."""

    footprint: Footprint

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return logits (N, K, *m) of raw pixels (N, C, *n)."""


@runtime_checkable
class DecidingPredictor(Protocol):
    """A predictor that decides by itself, where it computes, and may do so while the loop goes on.

    Attributes
    ----------
    in_flight : int
        Most batches that are begun and not finished.
    """

    in_flight: int

    def room(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array that a batch is read into, from where it is sent fastest."""

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Finish:
        """Begin with raw pixels (N, C, *n); either this or what it returns raises what goes wrong."""


class Sink(Protocol):
    """Where blocks go."""

    def pending(self) -> Iterable[int]:
        """Return the indices of the blocks that are still to be written."""

    def write(self, index: int, arrays: Arrays) -> object:
        """Store the arrays of one whole block; called once per block, from one thread."""


@dataclass
class Report:
    """What a run did.

    Attributes
    ----------
    blocks, pixels : int
        Computed and written by this run.
    skipped : int
        Blocks written as background, because there is no tissue in them.
    seconds : float
        From the first read to the last write.
    read, waited, computed, written : float
        Seconds in which tiles were read, by `READERS` threads together; the network waited for
        them; it ran, and its output was decided upon; blocks were written, by a thread of its own.
    finished : float
        Seconds for the pyramid and the check of every file, afterwards.
    failures : dict
        Of the blocks that could not be computed, by index: the reason.
    """

    blocks: int = 0
    pixels: int = 0
    skipped: int = 0
    seconds: float = 0.0
    read: float = 0.0
    waited: float = 0.0
    computed: float = 0.0
    written: float = 0.0
    finished: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Add what another process did: sums of all but the failures."""
        for name, value in vars(other).items():
            if name != "failures":
                setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Work:
    """One batch: tiles of one block, one input shape."""

    block: Block
    tiles: tuple[Tile, ...]
    last: bool


def run(
    plan: Plan,
    image: Image,
    predictor: Predictor,
    *,
    decide: Decision,
    sink: Sink,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Report:
    """Compute every pending block and hand it to the sink.

    A block that raises is noted in the report, and the others are done; what concerns the
    machine (`EnvironmentFault`) ends the run.

    Parameters
    ----------
    plan, image, predictor, decide, sink
        What to compute, from what, how, and where to.
    progress : callable
        Called with the number of pixels each batch has added.
    """
    report, started = Report(), perf_counter()
    begin, in_flight = beginning(predictor, decide)
    reading = Reading(image, predictor.footprint.ndim, ahead=AHEAD)
    if isinstance(predictor, DecidingPredictor):
        reading = replace(reading, ahead=ceil_div(2 * READERS, plan.batch), room=predictor.room)
    with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(1, "write") as writer:
        blocks = _Blocks(predictor.footprint.ndim, sink, writer, report=report, progress=progress)
        begun: deque[tuple[Work, Finish | None]] = deque()
        try:
            for work, batch, reads in _read_ahead(readers, reading, _all_work(plan, sink.pending())):
                begun.append((work, blocks.begin(work, batch, reads, begin=begin)))
                if len(begun) == in_flight:
                    blocks.finish(*begun.popleft())
            for work, finish in begun:
                blocks.finish(work, finish)
            blocks.settle(leave=0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    report.seconds = perf_counter() - started
    return report


def beginning(predictor: Predictor, decide: Decision) -> tuple[Callable[..., Finish], int]:
    """Return what begins a batch of tiles, and how many batches may be begun at once."""
    if isinstance(predictor, DecidingPredictor):
        return partial(predictor.begin, decide=decide), predictor.in_flight

    def begin(batch: NDArray[Any], tiles: Sequence[Tile]) -> Finish:
        logits, ndim = predictor(batch), predictor.footprint.ndim  # (N, K, *m)
        made = [decide(kept_of(tile, of_tile, ndim)) for tile, of_tile in zip(tiles, logits, strict=True)]
        return lambda: made

    return begin, 1


@dataclass(frozen=True)
class Reading:
    """What batches are read from, how many `ahead`, and into what."""

    image: Image
    ndim: int
    ahead: int
    room: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = np.empty

    def begin(self, pool: ThreadPoolExecutor, work: Work) -> tuple[Work, NDArray[Any], Reads]:
        """Begin to read the tiles of a batch (N, C, *n)."""
        inner, image = work.tiles[0].read.shape[-self.ndim :], self.image
        batch = self.room((len(work.tiles), image.n_channels, *inner), image.dtype.newbyteorder("="))
        return (
            work,
            batch,
            [pool.submit(_timed, self._read, tile, place) for tile, place in zip(work.tiles, batch, strict=True)],
        )

    def _read(self, tile: Tile, place: NDArray[Any]) -> None:
        # Outer axes are one plane long in every tile: the network never sees them.
        place[...] = self.image.read(tile.read).reshape(place.shape)


class _Blocks:
    """The blocks of a run: filled batch by batch, in their order, and written when they are whole."""

    def __init__(
        self,
        ndim: int,
        sink: Sink,
        writer: ThreadPoolExecutor,
        *,
        report: Report,
        progress: Callable[[int], None],
    ) -> None:
        self._ndim, self._sink, self._writer = ndim, sink, writer
        self._report, self._progress = report, progress
        self._buffers: Arrays = {}
        self._behind: deque[tuple[Block, Future[Timed[object]]]] = deque()

    def begin(self, work: Work, batch: NDArray[Any], reads: Reads, *, begin: Callable[..., Finish]) -> Finish | None:
        """Begin a batch (N, C, *n) once its tiles are read; None where its block has failed."""
        if work.block.index in self._report.failures:
            return None
        with self._noting(work.block):
            started = perf_counter()
            self._report.read += sum([read.result()[1] for read in reads])
            self._report.waited += perf_counter() - started
            with self._computing():
                return begin(batch, work.tiles)
        return None

    def finish(self, work: Work, finish: Finish | None) -> None:
        """Put a batch into the buffers of its block, and hand the block to the writer if it was the last."""
        block, failures = work.block, self._report.failures
        with self._noting(block), self._computing():
            made = finish() if finish is not None else ()
            if block.index not in failures:
                for tile, arrays in zip(work.tiles, made, strict=True):
                    self._put(block, tile, arrays)
                self._progress(sum(tile.write.size for tile in work.tiles))
        if work.last:
            if block.index not in failures:
                write = self._writer.submit(_timed, self._sink.write, block.index, self._buffers)
                self._behind.append((block, write))
            self._buffers = {}
            self.settle(leave=BEHIND - 1)

    def settle(self, *, leave: int) -> None:
        """Wait until at most `leave` blocks are still being written."""
        while len(self._behind) > leave:
            block, write = self._behind.popleft()
            self._report.written += write.result()[1]
            self._report.blocks += 1
            self._report.pixels += block.box.size

    def _put(self, block: Block, tile: Tile, arrays: Arrays) -> None:
        self._buffers = self._buffers or block_buffers(arrays, self._ndim, block.box.shape)
        place: tuple[Any, ...] = (..., *tile.write.relative_to(block.box.start).slices)
        for name, values in arrays.items():
            self._buffers[name][place] = values.reshape(self._buffers[name][place].shape)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            self._report.computed += perf_counter() - started

    @contextmanager
    def _noting(self, block: Block) -> Iterator[None]:
        """Note what is raised as the failure of a block: one bad block must not stop the others."""
        try:
            yield
        except EnvironmentFault:
            raise
        except Exception as error:
            self._report.failures.setdefault(block.index, reason_of(error))


def _all_work(plan: Plan, indices: Iterable[int]) -> Iterator[Work]:
    for index in indices:
        block = plan[index]
        batches = list(block.batches(plan.batch))
        for tiles in batches:
            yield Work(block, tiles, last=tiles is batches[-1])


def _read_ahead(
    pool: ThreadPoolExecutor, reading: Reading, works: Iterator[Work]
) -> Iterator[tuple[Work, NDArray[Any], Reads]]:
    ahead = deque(reading.begin(pool, work) for work in islice(works, reading.ahead))
    while ahead:
        yield ahead.popleft()
        ahead.extend(reading.begin(pool, work) for work in islice(works, 1))


def _timed(action: Callable[..., T], *arguments: Any) -> Timed[T]:
    """Return what an action gives, and the seconds it took."""
    started = perf_counter()
    return action(*arguments), perf_counter() - started


def kept_of(tile: Tile, logits: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Return the logits (K, *n) that a tile writes, of those that the network gave for it."""
    kept: NDArray[Any] = logits[(slice(None), *tile.crop.slices[-ndim:])]
    if not np.isfinite(kept).all():
        raise not_finite(tile.write)
    return kept


def reason_of(error: Exception) -> str:
    """Return what went wrong, on one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
