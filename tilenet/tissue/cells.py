"""Reduction of an image to a coarse grid of cells, window by window, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.geometry import Box, ceil_div
from tilenet.prefetch import prefetched
from tilenet.readers.image import READERS, Image, Pixels
from tilenet.store.tissue_map import MOST_CELLS

# Side of a cell in pixels. Cells are larger where an image would otherwise have more than MOST_CELLS along an axis.
CELL = 16
# Side in pixels of a window. Each reader thread holds one window.
WINDOW = 2048

Means = NDArray[np.float32]
Edges = list[NDArray[np.intp]]
Reduce = Callable[[Pixels, Edges, Edges], NDArray[Any]]


class Stretch(NamedTuple):
    """Neighbouring cells of one axis, about `WINDOW` px of it.

    `first` and `stop` are the pixels from the first cell to the last; `starts` and `stops` those of each cell, relative
    to `first`.
    """

    cells: slice
    first: int
    stop: int
    starts: NDArray[np.intp]
    stops: NDArray[np.intp]


# A rectangle of cells in one plane: the box of its pixels, and its cells along y and x.
Window = tuple[Box, Stretch, Stretch]


def cells_of(covers: tuple[int, int]) -> tuple[int, int]:
    """Return the number of cells along y and x for a plane of `covers` pixels.

    >>> cells_of((3000, 2000)), cells_of((100_000, 5))
    ((188, 125), (2041, 1))
    """
    side = max(CELL, ceil_div(max(covers), MOST_CELLS))
    return ceil_div(covers[0], side), ceil_div(covers[1], side)


def pixels_read(image: Image) -> int:
    """Return how many pixels the tissue search reads."""
    return prod(coarsest(image, cells_of(image.plane_shape())).box_shape)


def coarsest(image: Image, cells: tuple[int, int]) -> Image:
    """Return the coarsest level with at least one pixel per cell; the level of `image` itself always qualifies."""
    levels = [image.at_level(k) for k in range(image.level, len(image.levels))]
    fine = [level for level in levels if all(n >= c for n, c in zip(level.plane_shape(), cells, strict=True))]
    return min(fine, key=lambda level: prod(level.plane_shape()))


def reduced(image: Image, cells: tuple[int, int], reduce: Reduce) -> NDArray[Any]:
    """Reduce the pixels of each cell, then take the maximum over all planes: (C, *cells).

    Only a few windows are in memory at a time.
    """
    out: NDArray[Any] | None = None

    def read(window: Window) -> NDArray[Any]:
        box, y, x = window
        pixels = image.read_inside(box).reshape(-1, *box.shape[-2:])
        return reduce(pixels, [y.starts, x.starts], [y.stops, x.stops])

    def begin(window: Window) -> tuple[Window, Future[NDArray[Any]]]:
        return window, pool.submit(read, window)

    pool = ThreadPoolExecutor(READERS, "cells")
    try:
        for (_, y, x), reading in prefetched(begin, _windows(image, cells), 2 * READERS):
            values = reading.result()
            if out is None:
                out = np.full((len(values), *cells), 0 if values.dtype.kind == "u" else -np.inf, values.dtype)
            place = (slice(None), y.cells, x.cells)
            out[place] = np.maximum(out[place], values)
    finally:
        pool.shutdown(cancel_futures=True)
    assert out is not None
    return out


def _windows(image: Image, cells: tuple[int, int]) -> Iterator[Window]:
    """Yield windows of whole cells, about `WINDOW` px a side, that cover every plane."""
    rows, columns = map(_stretches, image.plane_shape(), cells)
    for plane in np.ndindex(*image.box_shape[:-2]):
        for y, x in product(rows, columns):
            yield Box((*plane, y.first, x.first), (*(p + 1 for p in plane), y.stop, x.stop)), y, x


def _stretches(n: int, cells: int) -> list[Stretch]:
    """Cut an axis of `n` pixels and some cells into stretches."""
    starts, stops = _edges(n, cells)
    side = max(1, WINDOW * cells // n)
    found = []
    for start in range(0, cells, side):
        some = slice(start, min(start + side, cells))
        first, stop = int(starts[start]), int(stops[some.stop - 1])
        found.append(Stretch(some, first, stop, starts[some] - first, stops[some] - first))
    return found


def _edges(n: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the start and (exclusive) stop of each cell along an axis of `n` pixels; neighbours may share a pixel.

    >>> [edge.tolist() for edge in _edges(5, 2)]
    [[0, 2], [3, 5]]
    """
    k = np.arange(cells, dtype=np.intp)
    return k * n // cells, -(-(k + 1) * n // cells)


def _along(function: np.ufunc, pixels: NDArray[Any], starts: Edges, stops: Edges, dtype: Any) -> NDArray[Any]:
    """Reduce pixels (C, y, x) to cells (C, *cells) with a ufunc."""
    for axis, (a, b) in enumerate(zip(starts, stops, strict=True), start=1):
        # Every second segment lies between two cells and is dropped. The last cell ends with the pixels, so its stop
        # is left out.
        pairs = np.stack([a, b], axis=1).ravel()[:-1]
        pixels = function.reduceat(pixels, pairs, axis=axis, dtype=dtype).take(np.arange(0, len(pairs), 2), axis=axis)
    return pixels


def mean_of(pixels: Pixels, starts: Edges, stops: Edges) -> Means:
    """Return the mean of each cell's pixels; the sums of integers of up to 32 bits are exact."""
    whole = pixels.dtype.kind in "ui" and pixels.dtype.itemsize <= 4
    sums = _along(np.add, pixels, starts, stops, np.int64 if whole else np.float64)
    rows, columns = (b - a for a, b in zip(starts, stops, strict=True))
    return np.asarray(sums / np.outer(rows, columns), np.float32)


def any_of(pixels: Pixels, starts: Edges, stops: Edges, *, name: str) -> NDArray[np.uint8]:
    """Return whether any pixel of each cell is nonzero; the channels of a mask must be identical."""
    if (pixels[1:] != pixels[:1]).any():
        raise SettingsError(
            f"{name}: is a picture in colour, not a mask of tissue. Give one that is 0 on glass; --tissue alone, said "
            f"last, finds tissue by itself"
        )
    return _along(np.maximum, (pixels[:1] != 0).view(np.uint8), starts, stops, np.uint8)
