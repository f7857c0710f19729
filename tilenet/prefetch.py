"""What is begun before it is needed, such as the reading of batches of tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
S = TypeVar("S")
T = TypeVar("T")
Timed = tuple[T, float]


def prefetched(begin: Callable[[S], T], items: Iterable[S], most: int) -> Iterator[T]:
    """Yield what `begin` returns for each item, in order; the first `most` are begun before the first is yielded.

    If the caller stops early, what was begun is dropped. Dask then cancels its futures; a pool goes on with those that
    it was given, unless it is shut down with `cancel_futures`.

    >>> [*prefetched(str, range(4), 2)]
    ['0', '1', '2', '3']
    """
    left = iter(items)
    begun = deque(map(begin, islice(left, most)))
    while begun:
        yield begun.popleft()
        begun.extend(map(begin, islice(left, 1)))


@dataclass(frozen=True)
class BatchTiles:
    """One batch: tiles of one block with the same input shape; `last` if it is the block's last batch."""

    block: Block
    tiles: tuple[Tile, ...]
    last: bool


def prefetch_depth(batch: int, *, asynchronous: bool) -> int:
    """Return how many batches to read ahead: enough to keep all readers busy if the predictor works asynchronously.

    >>> [prefetch_depth(batch, asynchronous=True) for batch in (1, 3, 4)], prefetch_depth(1, asynchronous=False)
    ([8, 3, 2], 2)
    """
    return max(AHEAD, ceil_div(2 * READERS, batch)) if asynchronous else AHEAD


class Batch(NamedTuple):
    """A batch that is being read; its pixels (N, C, *n) are complete when all `reads` are done."""

    work: BatchTiles
    pixels: NDArray[Any]
    reads: list[Future[Timed[None]]]


@dataclass(frozen=True)
class BatchReader:
    """Reads batches of `image`, `ahead` of them in advance, into arrays that `allocate` returns."""

    image: Image
    ndim: int
    ahead: int
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]

    def batches(self, pool: ThreadPoolExecutor, works: Iterator[BatchTiles]) -> Iterator[Batch]:
        """Return batches in order, while the next ones are being read."""
        return prefetched(partial(self._begin, pool), works, self.ahead)

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
