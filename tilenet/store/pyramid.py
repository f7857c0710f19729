"""Blocks of coarser levels, made from the shards of the next finer level: nearest pixels, [::2]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import Box, ceil_div
from tilenet.store import codec
from tilenet.store.damage import Damage, read_verified
from tilenet.store.journal import Written
from tilenet.store.layout import Layout
from tilenet.store.metadata import array_document


class Damaged(Exception):
    """Raised if a file to be read is not what was written; its one argument is the `Damage`."""


@dataclass(frozen=True)
class CoarserBlock:
    """A block of a coarser level, to be made by any process that can read the files of the store."""

    # Of the store.
    path: Path
    layout: Layout
    level: int
    index: int
    # The blocks of the finer level that hold its pixels, and what was written for each (None: all background).
    finer: Mapping[int, Written | None]

    def shard(self) -> bytes | None:
        """Return its encoded shard, None if all of it is background; only one finer block is in memory at a time."""
        box = self.layout.box(self.level, self.index)
        pixels = np.zeros(box.shape, self.layout.mask_dtype)
        for index in self.finer:
            finer = self._read(index)
            if finer is None:
                continue
            found = self.layout.box(self.level - 1, index)
            reached = halved(found) & box
            origin = doubled(reached).relative_to(found.start).start
            steps = (1,) * (box.ndim - 2) + (2, 2)
            lengths = zip(origin, reached.shape, steps, strict=True)
            picked = finer[tuple(slice(a, a + n * s, s) for a, n, s in lengths)]
            pixels[reached.relative_to(box.start).slices] = picked
        return codec.encode(self._document(self.level), box, pixels)

    def _read(self, index: int) -> NDArray[Any] | None:
        level, written = self.level - 1, self.finer[index]
        if written is None:
            return None
        name = self.layout.files(level, index)[0]
        data = read_verified(self.path / name, written)
        if data is None:
            raise Damaged(Damage(name, "damaged", str(level), index))
        return codec.decode(self._document(level), name.partition("/")[2], data, self.layout.box(level, index))

    def _document(self, level: int) -> bytes:
        return array_document(self.layout.arrays[str(level)], self.layout.zarr_format)


# A function that makes the shards of blocks, and yields them in the order of the blocks.
ShardMaker = Callable[[Iterable[CoarserBlock]], Iterator[bytes | None]]


def sources(layout: Layout, level: int, index: int) -> Iterator[int]:
    """Yield the blocks of the finer level that hold pixels of this block."""
    box = doubled(layout.box(level, index)) & Box.of_shape(layout.levels[level - 1])
    along = (range(a // n, ceil_div(b, n)) for a, b, n in zip(box.start, box.stop, layout.block, strict=True))
    for position in product(*along):
        yield layout.index(level - 1, position)


def halved(box: Box) -> Box:
    """Return the box of the coarser level whose pixels come from `box`, from its even pixels.

    >>> halved(Box((3, 4), (8, 9)))
    Box(start=(2, 2), stop=(4, 5))
    """
    return Box(*((*end[:-2], *(ceil_div(n, 2) for n in end[-2:])) for end in (box.start, box.stop)))


def doubled(box: Box) -> Box:
    """Return the box of the finer level that `box` covers."""
    return Box(*((*end[:-2], *(2 * n for n in end[-2:])) for end in (box.start, box.stop)))
