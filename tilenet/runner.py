"""The loop: read ahead, predict, write behind.

It knows neither files nor PyTorch: an image is something to `read` boxes from, a predictor
any callable, a sink something to `write` whole blocks to. All arithmetic was done by the
plan; all decisions about pixels by the `Decision`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tilenet.decide import Arrays, Decision, block_buffers
from tilenet.errors import EnvironmentFault
from tilenet.footprint import Footprint
from tilenet.plan import Block, Plan, Tile
from tilenet.readers.image import Image, Pixels

READERS = 4
# Batches read before they are needed, and blocks finished but not yet on disk: what bounds
# the memory beside the activations.
AHEAD, BEHIND = 2, 2


T = TypeVar("T")
Timed = tuple[T, float]
Reads = list[Future[Timed[Pixels]]]


class Predictor(Protocol):
    """What turns a batch of tiles into logits."""

    footprint: Footprint

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return logits (N, K, *m) of raw pixels (N, C, *n)."""


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
    with ThreadPoolExecutor(READERS, "read") as readers, ThreadPoolExecutor(1, "write") as writer:
        behind: deque[tuple[Block, Future[Timed[object]]]] = deque()
        buffers: Arrays = {}
        try:
            for work, reads in _read_ahead(readers, image, _all_work(plan, sink.pending())):
                if work.block.index not in report.failures:
                    try:
                        buffers = _compute(work, reads, predictor, decide, buffers, report)
                        progress(sum(tile.write.size for tile in work.tiles))
                    except EnvironmentFault:
                        raise
                    except Exception as error:  # one bad block must not stop the others
                        report.failures[work.block.index] = reason_of(error)
                if work.last:
                    if work.block.index not in report.failures:
                        behind.append((work.block, writer.submit(_timed, sink.write, work.block.index, buffers)))
                    buffers = {}
                    _settle(behind, report, leave=BEHIND - 1)
            _settle(behind, report, leave=0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    report.seconds = perf_counter() - started
    return report


def _all_work(plan: Plan, indices: Iterable[int]) -> Iterator[Work]:
    for index in indices:
        block = plan[index]
        batches = list(block.batches(plan.batch))
        for tiles in batches:
            yield Work(block, tiles, last=tiles is batches[-1])


def _read_ahead(pool: ThreadPoolExecutor, image: Image, works: Iterator[Work]) -> Iterator[tuple[Work, Reads]]:
    def submit(work: Work) -> tuple[Work, Reads]:
        return work, [pool.submit(_timed, image.read, tile.read) for tile in work.tiles]

    ahead = deque(submit(work) for work in islice(works, AHEAD))
    while ahead:
        yield ahead.popleft()
        ahead.extend(submit(work) for work in islice(works, 1))


def _compute(
    work: Work, reads: Reads, predictor: Predictor, decide: Decision, buffers: Arrays, report: Report
) -> Arrays:
    """Predict one batch into the buffers of its block; returns them."""
    started = perf_counter()
    ndim = predictor.footprint.ndim
    # Outer axes are one plane long in every tile: the network never sees them.
    found = [read.result() for read in reads]
    batch = np.stack([pixels.reshape(pixels.shape[:1] + pixels.shape[-ndim:]) for pixels, _ in found])  # (N, C, *n)
    there = perf_counter()
    logits = predictor(batch)  # (N, K, *m)
    for tile, of_tile in zip(work.tiles, logits, strict=True):
        arrays = decide(kept_of(tile, of_tile, ndim))
        buffers = buffers or block_buffers(arrays, ndim, work.block.box.shape)
        place: tuple[Any, ...] = (..., *tile.write.relative_to(work.block.box.start).slices)
        for name, values in arrays.items():
            buffers[name][place] = values.reshape(buffers[name][place].shape)
    report.read += sum(seconds for _, seconds in found)
    report.waited += there - started
    report.computed += perf_counter() - there
    return buffers


def _timed(action: Callable[..., T], *arguments: Any) -> Timed[T]:
    """Return what an action gives, and the seconds it took."""
    started = perf_counter()
    return action(*arguments), perf_counter() - started


def kept_of(tile: Tile, logits: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Return the logits (K, *n) that a tile writes, of those that the network gave for it."""
    kept: NDArray[Any] = logits[(slice(None), *tile.crop.slices[-ndim:])]
    if not np.isfinite(kept).all():
        raise FloatingPointError(f"the network's output at {tile.write} is not finite")
    return kept


def _settle(behind: deque[tuple[Block, Future[Timed[object]]]], report: Report, *, leave: int) -> None:
    """Wait until at most `leave` blocks are still being written."""
    while len(behind) > leave:
        block, write = behind.popleft()
        report.written += write.result()[1]
        report.blocks += 1
        report.pixels += block.box.size


def reason_of(error: Exception) -> str:
    """Return what went wrong, on one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
