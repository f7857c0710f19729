"""One block of a coarser level from the shards of the finer one, nearest pixels [::2]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import Box, ceil_div
from tilenet.store.layout import Layout

# Pixels of a block of a level, or None where all of them are background.
Read = Callable[[int, int], NDArray[Any] | None]


def shrink(layout: Layout, level: int, index: int, *, read: Read) -> NDArray[Any]:
    """Return a block of `level` made of the blocks of the level above; holds one of them at a time."""
    box = layout.box(level, index)
    pixels = np.zeros(box.shape, layout.mask_dtype)
    for source in sources(layout, level, index):
        finer = read(level - 1, source)
        if finer is None:
            continue
        found = layout.box(level - 1, source)
        reached = halved(found) & box
        origin = doubled(reached).relative_to(found.start).start
        steps = (1,) * (box.ndim - 2) + (2, 2)
        lengths = zip(origin, reached.shape, steps, strict=True)
        picked = finer[tuple(slice(a, a + n * s, s) for a, n, s in lengths)]
        pixels[reached.relative_to(box.start).slices] = picked
    return pixels


def sources(layout: Layout, level: int, index: int) -> Iterator[int]:
    """Yield the blocks of the finer level that have a pixel of this block."""
    box = doubled(layout.box(level, index)) & Box.of_shape(layout.levels[level - 1])
    along = (range(a // n, ceil_div(b, n)) for a, b, n in zip(box.start, box.stop, layout.block, strict=True))
    for position in product(*along):
        yield layout.index(level - 1, position)


def halved(box: Box) -> Box:
    """Return the pixels of the coarser level that are taken from `box`: its even ones.

    >>> halved(Box((3, 4), (8, 9)))
    Box(start=(2, 2), stop=(4, 5))
    """
    n = box.ndim - 2
    return Box(
        box.start[:n] + tuple(ceil_div(a, 2) for a in box.start[n:]),
        box.stop[:n] + tuple(ceil_div(b, 2) for b in box.stop[n:]),
    )


def doubled(box: Box) -> Box:
    """Return the pixels of the finer level that `box` covers."""
    n = box.ndim - 2
    return Box(
        box.start[:n] + tuple(2 * a for a in box.start[n:]),
        box.stop[:n] + tuple(2 * b for b in box.stop[n:]),
    )
