"""The loop: read ahead, predict, write behind.

The loop knows neither files nor PyTorch: an image is anything to `read` boxes from, a predictor is
any callable, and blocks are handed, whole, to a function. The plan has done all arithmetic.
The `Decision` turns logits into mask values, here or where the predictor computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import Arrays, Decision, decide_each, zeros_like
from tilenet.errors import EnvironmentFault, first_line
from tilenet.footprint import Footprint
from tilenet.plan import Block, Plan, Tile
from tilenet.prefetch import Batch, BatchReader, Timed, all_batches, prefetch_depth, timed
from tilenet.readers.image import READERS, Image

# Most blocks that are finished but not yet on disk. Together with the batches read ahead, this bounds the memory beside
# the activations.
BEHIND = 2
# Ends the reason why a block failed, if pixels of the image are the cause.
OF_THE_IMAGE = "as there are pixels in the image that are not finite"
# Stores the arrays of one whole block, by its index.
Write = Callable[[int, Arrays], object]
# Waits for a batch that was begun, and returns the arrays of each of its tiles.
Finish = Callable[[], Sequence[Arrays]]


class Predictor(Protocol):
    """A callable that turns a batch of tiles into logits."""

    footprint: Footprint

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return logits (N, K, *m) of raw pixels (N, C, *n)."""


@runtime_checkable
class DecidingPredictor(Protocol):
    """A predictor that applies the `Decision` itself, where it computes, and may do so asynchronously."""

    # Most batches that may be begun and not finished.
    in_flight: int

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array into which a batch is read, in memory from which it is sent fastest."""

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Finish:
        """Begin a batch of raw pixels (N, C, *n); either this or the returned function raises any error."""


@dataclass
class Report:
    """What a run did.

    Attributes
    ----------
    blocks, pixels : int
        Number of blocks, and of their pixels, that this run computed and wrote.
    skipped : int
        Number of blocks written as background, because there is no tissue in them.
    seconds : float
        Time from the first read to the last write.
    read, waited, computed, written : float
        Seconds spent reading tiles (the sum over `READERS` threads), waiting for them, computing
        and deciding, and writing blocks (in a thread of its own).
    finished : float
        Seconds spent afterwards on the pyramid and on checking every file.
    objects : float
        Seconds spent finding numbered objects.
    failures : dict
        For each block that could not be computed, by index, the reason.
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
    objects: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        """Add the numbers of another process's report, but not its failures."""
        for name, value in vars(other).items():
            if name != "failures":
                setattr(self, name, getattr(self, name) + value)


def run(
    plan: Plan,
    image: Image,
    predictor: Predictor,
    *,
    decide: Decision,
    pending: Iterable[int],
    write: Write,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Report:
    """Compute every pending block and write it: `write` gets the arrays of one block at a time, from one thread.

    If a block fails, the report notes it, and the other blocks are still computed. Only an `EnvironmentFault` ends the
    run. `progress` is called with the number of pixels that a batch has added.
    """
    report, started, computer = Report(), perf_counter(), deciding(predictor)
    compute, ndim = partial(computer.begin, decide=decide), predictor.footprint.ndim
    ahead = prefetch_depth(plan.batch, asynchronous=computer.in_flight > 1)
    reading = BatchReader(image, ndim, ahead=ahead, allocate=computer.allocate)
    with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(1, "write") as writer:
        blocks = _Blocks(ndim, write, writer, report=report, progress=progress)
        underway: deque[tuple[Batch, Finish | None]] = deque()
        try:
            for batch in reading.batches(readers, all_batches(plan, pending)):
                underway.append((batch, blocks.begin(batch, compute)))
                if len(underway) == computer.in_flight:
                    blocks.finish(*underway.popleft())
            while underway:
                blocks.finish(*underway.popleft())
            blocks.await_writes(leave=0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    report.seconds = perf_counter() - started
    return report


def deciding(predictor: Predictor) -> DecidingPredictor:
    """Return a predictor that decides: the given one, or a wrapper that decides in NumPy."""
    return predictor if isinstance(predictor, DecidingPredictor) else _Deciding(predictor)


class _Deciding:
    """Any predictor as a `DecidingPredictor`: one batch after the other, decided in NumPy."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self.in_flight = predictor, 1

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def begin(self, batch: NDArray[Any], tiles: Sequence[Tile], decide: Decision) -> Finish:
        made = decide_each(decide, tiles, self._predictor(batch), self._predictor.footprint.ndim)
        return lambda: made


class _Blocks:
    """The blocks of a run: filled batch by batch, in order, and written when they are complete."""

    def __init__(
        self, ndim: int, write: Write, writer: ThreadPoolExecutor, *, report: Report, progress: Callable[[int], None]
    ) -> None:
        self._ndim, self._write, self._writer = ndim, write, writer
        self._report, self._progress = report, progress
        self._buffers: Arrays = {}
        self._behind: deque[tuple[Block, Future[Timed[object]]]] = deque()

    def begin(self, batch: Batch, compute: Callable[..., Finish]) -> Finish | None:
        """Begin a batch once its tiles are read; return None if its block has failed."""
        block, tiles = batch.work.block, batch.work.tiles
        if block.index in self._report.failures:
            return None
        with self._noting(batch):
            started = perf_counter()
            self._report.read += sum([read.result()[1] for read in batch.reads])
            self._report.waited += perf_counter() - started
            with self._computing():
                return compute(batch.pixels, tiles)
        return None

    def finish(self, batch: Batch, finish: Finish | None) -> None:
        """Copy a batch to the buffers of its block; if it is the block's last batch, hand the block to the writer."""
        work, block, failures = batch.work, batch.work.block, self._report.failures
        with self._noting(batch), self._computing():
            made = finish() if finish is not None else ()
            if block.index not in failures:
                for tile, arrays in zip(work.tiles, made, strict=True):
                    self._put(block, tile, arrays)
        self._progress(sum(tile.write.size for tile in work.tiles))
        if work.last:
            if block.index not in failures:
                write = self._writer.submit(timed, self._write, block.index, self._buffers)
                self._behind.append((block, write))
            self._buffers = {}
            self.await_writes(leave=BEHIND - 1)

    def await_writes(self, *, leave: int) -> None:
        """Wait until at most `leave` blocks are still being written."""
        while len(self._behind) > leave:
            block, write = self._behind.popleft()
            self._report.written += write.result()[1]
            self._report.blocks += 1
            self._report.pixels += block.box.size

    def _put(self, block: Block, tile: Tile, arrays: Arrays) -> None:
        self._buffers = self._buffers or zeros_like(arrays, self._ndim, block.box.shape)
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
    def _noting(self, batch: Batch) -> Iterator[None]:
        """Note any error as a failure of the batch's block, because one bad block must not stop the others."""
        try:
            yield
        except EnvironmentFault:
            raise
        except Exception as error:
            self._report.failures.setdefault(batch.work.block.index, _reason(batch.pixels, error))


def _reason(pixels: NDArray[Any], error: Exception) -> str:
    """Return why a batch failed; for logits that are not finite, whether pixels of the image are the cause."""
    reason = first_line(error)
    if isinstance(error, FloatingPointError) and pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        return f"{reason}, {OF_THE_IMAGE}"
    return reason
