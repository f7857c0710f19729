"""An image reduced to cells: the coarse view of it, window by window, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.geometry import Box, ceil_div
from tilenet.readers.image import READERS, Image, Pixels
from tilenet.store.tissue_map import MOST_CELLS

# Pixels along a cell, where the image is not so large that there would be too many cells.
CELL = 16
# Pixels along a window, one of which each reader holds.
WINDOW = 2048

Means = NDArray[np.float32]
Edges = list[NDArray[np.intp]]
Reduce = Callable[[Pixels, Edges, Edges], NDArray[Any]]


@dataclass(frozen=True)
class Window:
    """A part of one plane: the pixels of some `cells`, which along y and x go from `starts` to `stops` in its box."""

    box: Box
    cells: tuple[slice, slice]
    starts: Edges
    stops: Edges


def cells_of(covers: tuple[int, int]) -> tuple[int, int]:
    """Return the number of cells along y and x for a plane of so many pixels.

    >>> cells_of((3000, 2000)), cells_of((100_000, 5))
    ((188, 125), (2041, 1))
    """
    side = max(CELL, ceil_div(max(covers), MOST_CELLS))
    return ceil_div(covers[0], side), ceil_div(covers[1], side)


def pixels_read(image: Image) -> int:
    """Return how many pixels are read to find tissue."""
    return prod(coarsest(image, cells_of(plane_of(image))).box_shape)


def plane_of(image: Image) -> tuple[int, int]:
    """Return the pixels of an image along y and x."""
    y, x = image.box_shape[-2:]
    return y, x


def coarsest(image: Image, cells: tuple[int, int]) -> Image:
    """Return the coarsest level that has a pixel for every cell at least; the image's own has."""
    levels = [image.at_level(k) for k in range(image.level, len(image.levels))]
    fine = [level for level in levels if all(n >= c for n, c in zip(plane_of(level), cells, strict=True))]
    return min(fine, key=lambda level: prod(plane_of(level)))


def reduced(image: Image, cells: tuple[int, int], reduce: Reduce) -> NDArray[Any]:
    """Return each cell's pixels reduced, the largest of all planes: (C, *cells). Holds a few windows at a time."""
    out: NDArray[Any] | None = None

    def read(window: Window) -> NDArray[Any]:
        pixels = image.read_inside(window.box)
        return reduce(pixels.reshape(len(pixels), *window.box.shape[-2:]), window.starts, window.stops)

    with ThreadPoolExecutor(READERS, "cells") as pool:
        for window, values in _ahead(pool, read, _windows(image, cells)):
            if out is None:
                out = np.full((len(values), *cells), 0 if values.dtype.kind == "u" else -np.inf, values.dtype)
            place = (slice(None), *window.cells)
            out[place] = np.maximum(out[place], values)
    assert out is not None
    return out


def _ahead(
    pool: Executor, read: Callable[[Window], NDArray[Any]], windows: Iterator[Window]
) -> Iterator[tuple[Window, NDArray[Any]]]:
    """Yield windows with what is read of them; a few are read ahead, however many there are."""
    reading = deque((window, pool.submit(read, window)) for window in islice(windows, 2 * READERS))
    try:
        while reading:
            window, values = reading.popleft()
            yield window, values.result()
            reading.extend((window, pool.submit(read, window)) for window in islice(windows, 1))
    finally:
        for _, values in reading:
            values.cancel()


def _windows(image: Image, cells: tuple[int, int]) -> Iterator[Window]:
    """Yield every plane in windows of whole cells, about `WINDOW` px a side."""
    shape = plane_of(image)
    sides = [max(1, WINDOW * count // n) for n, count in zip(shape, cells, strict=True)]
    along = [[slice(a, min(a + side, n)) for a in range(0, n, side)] for n, side in zip(cells, sides, strict=True)]
    edges = [_edges(n, count) for n, count in zip(shape, cells, strict=True)]
    for plane, y, x in product(list(product(*map(range, image.box_shape[:-2]))), *along):
        starts, stops = ([e[k][some] for e, some in zip(edges, (y, x), strict=True)] for k in (0, 1))
        first = [int(a[0]) for a in starts]
        box = Box((*plane, *first), (*(p + 1 for p in plane), *(int(b[-1]) for b in stops)))
        starts, stops = ([e - n for e, n in zip(ends, first, strict=True)] for ends in (starts, stops))
        yield Window(box, (y, x), starts, stops)


def _edges(n: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return first and last (exclusive) of the `n` pixels that each cell touches.

    >>> [edge.tolist() for edge in _edges(5, 2)]
    [[0, 2], [3, 5]]
    """
    k = np.arange(cells, dtype=np.intp)
    return k * n // cells, -(-(k + 1) * n // cells)


def _along(function: np.ufunc, pixels: NDArray[Any], starts: Edges, stops: Edges, dtype: Any) -> NDArray[Any]:
    """Return (C, *cells) of pixels (C, y, x)."""
    for axis, (a, b) in enumerate(zip(starts, stops, strict=True), start=1):
        # Every second piece lies between two cells; the last cell ends where the pixels end.
        pairs = np.stack([a, b], axis=1).ravel()[:-1]
        pixels = function.reduceat(pixels, pairs, axis=axis, dtype=dtype).take(np.arange(0, len(pairs), 2), axis=axis)
    return pixels


def mean_of(pixels: Pixels, starts: Edges, stops: Edges) -> Means:
    """Return the mean of the pixels of each cell; of integers it is that of exact sums."""
    whole = pixels.dtype.kind in "ui" and pixels.dtype.itemsize <= 4
    sums = _along(np.add, pixels, starts, stops, np.int64 if whole else np.float64)
    rows, columns = (b - a for a, b in zip(starts, stops, strict=True))
    return np.asarray(sums / np.outer(rows, columns), np.float32)


def any_of(pixels: Pixels, starts: Edges, stops: Edges, *, name: str) -> NDArray[np.uint8]:
    """Return whether a pixel of each cell is not 0; of a mask that has channels, they must be alike."""
    if (pixels != pixels[:1]).any():
        raise SettingsError(
            f"{name}: is a picture in colour, not a mask of tissue. Give one that is 0 on glass; --tissue alone, said "
            f"last, finds tissue by itself"
        )
    return _along(np.maximum, (pixels[:1] != 0).view(np.uint8), starts, stops, np.uint8)
