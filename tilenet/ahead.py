"""Batches of tiles, read before the network needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import ceil_div
from tilenet.plan import Block, Plan, Tile
from tilenet.readers.image import READERS, Image

# How many batches are read before they are needed.
AHEAD = 2
T = TypeVar("T")
Timed = tuple[T, float]


@dataclass(frozen=True)
class BatchTiles:
    """One batch: tiles of one block with the same input shape; `last` if it is the block's last batch."""

    block: Block
    tiles: tuple[Tile, ...]
    last: bool


def batches_ahead(batch: int, *, asynchronous: bool) -> int:
    """Return how many batches to read ahead: enough to keep all readers busy if the predictor works asynchronously.

    >>> batches_ahead(1, asynchronous=False), batches_ahead(1, asynchronous=True), batches_ahead(4, asynchronous=True)
    (2, 8, 2)
    """
    return max(AHEAD, ceil_div(2 * READERS, batch)) if asynchronous else AHEAD


class Batch(NamedTuple):
    """A batch that is being read; its pixels (N, C, *n) are complete when all `reads` are done."""

    work: BatchTiles
    pixels: NDArray[Any]
    reads: list[Future[Timed[None]]]


@dataclass(frozen=True)
class Reading:
    """Reads batches of `image`, `ahead` of them in advance, into arrays that `allocate` returns."""

    image: Image
    ndim: int
    ahead: int
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]

    def batches(self, pool: ThreadPoolExecutor, works: Iterator[BatchTiles]) -> Iterator[Batch]:
        """Yield batches in order, while the next ones are being read."""
        ahead = deque(self._begin(pool, work) for work in islice(works, self.ahead))
        while ahead:
            yield ahead.popleft()
            ahead.extend(self._begin(pool, work) for work in islice(works, 1))

    def _begin(self, pool: ThreadPoolExecutor, work: BatchTiles) -> Batch:
        try:
            pixels = self._empty(work.tiles)
        except MemoryError as error:  # reported to the caller that waits for the pixels
            failed: Future[Timed[None]] = Future()
            failed.set_exception(error)
            return Batch(work, np.empty(0), [failed])
        places = zip(work.tiles, pixels, strict=True)
        return Batch(work, pixels, [pool.submit(timed, self._read, tile, place) for tile, place in places])

    def _empty(self, tiles: Sequence[Tile]) -> NDArray[Any]:
        """Return an array (N, C, *n) for tiles of one shape, its channels last in memory if the image's are."""
        n, channels, dtype = len(tiles), self.image.n_channels, self.image.dtype.newbyteorder("=")
        shape = tiles[0].read.shape[-self.ndim :]
        if self.image.channels_last:
            return np.moveaxis(self.allocate((n, *shape, channels), dtype), -1, 1)
        return self.allocate((n, channels, *shape), dtype)

    def _read(self, tile: Tile, place: NDArray[Any]) -> None:
        # A tile is one plane long along the outer axes, which the network never sees.
        place[...] = self.image.read(tile.read).reshape(place.shape)


def all_batches(plan: Plan, indices: Iterable[int]) -> Iterator[BatchTiles]:
    """Yield the batches of the given blocks, in order."""
    for index in indices:
        block = plan[index]
        batches = list(block.batches(plan.batch))
        for tiles in batches:
            yield BatchTiles(block, tiles, last=tiles is batches[-1])


def timed(action: Callable[..., T], *arguments: Any) -> Timed[T]:
    """Return the result of a call, and the seconds it took."""
    started = perf_counter()
    return action(*arguments), perf_counter() - started
