"""The plan: which pixels to read, compute and write, decided before any pixel is read.

A plan is a grid of blocks, and a block is a grid of tiles. Both are computed from their index on
demand, with integers only, so that a plan of a billion tiles takes no time or memory::

    block  = one shard of every output array
    +-----------------+-----------------+        a tile reads more than it writes:
    | tile   tile     | tile   tile     |            . . . . . . . .
    |                 |                 |            .  +-------+  .   read  (dots)
    | tile   tile     | tile   tile     |            .  | write |  .   write (box)
    +-----------------+-----------------+            .  +-------+  .
    |                 |                 |            . . . . . . . .

Every tile's uncropped output starts on one global grid of `Footprint.step` pixels. The grid
belongs to the image: a plan of a part of the image (`Plan.origin`) does not shift it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import overload

from tilenet.footprint import AxisFootprint, Footprint
from tilenet.geometry import Box, boxes_of, ceil_div, cell_box, cell_position


@dataclass(frozen=True, slots=True)
class Tile:
    """One forward pass: the pixels that the network sees, and the part of its output that is kept.

    Attributes
    ----------
    read : Box
        What the network sees, in image pixels; it may leave the image.
    write : Box
        What this tile alone fills, in pixels counted from the plan's origin.
    crop : Box
        `write`, inside the network's output.
    """

    read: Box
    write: Box
    crop: Box


def tile_of(footprint: Footprint, write: Box, origin: Sequence[int] = ()) -> Tile:
    """Return the tile that computes exactly the pixels of `write`, wherever that box lies.

    `write` is counted from `origin`, a pixel of the image; default its first pixel.

    >>> tile_of(Footprint.valid(1, lost=2), Box((4,), (9,))).read
    Box(start=(2,), stop=(11,))
    >>> tile_of(Footprint.valid(1, lost=2), Box((4,), (9,)), (100,)).read
    Box(start=(102,), stop=(111,))
    """
    inside = write.shifted(origin) if origin else write
    spans = [axis.span(a, b) for axis, a, b in zip(footprint.axes, inside.start, inside.stop, strict=True)]
    read = Box(tuple(r[0] for r, _ in spans), tuple(r[1] for r, _ in spans))
    crop = Box(tuple(c[0] for _, c in spans), tuple(c[1] for _, c in spans))
    return Tile(read, write, crop)


@dataclass(frozen=True, slots=True)
class Block:
    """One shard of every output array: the unit of work, of writing and of resuming.

    Attributes
    ----------
    index : int
        Index in the plan.
    position : tuple of int
        Position in the grid of blocks, which is also the shard's coordinates.
    box : Box
        The block's pixels, counted from the plan's origin and clipped to the plan.
    footprint : Footprint
        Footprint of the network, with the outer axes in front.
    tile : tuple of int
        Side lengths of its tiles.
    origin : tuple of int
        Origin of the plan.
    """

    index: int
    position: tuple[int, ...]
    box: Box
    footprint: Footprint
    tile: tuple[int, ...]
    origin: tuple[int, ...] = ()

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles, in array order, from a new iterator each time; together they write every pixel of the box once."""
        for write in boxes_of(self.box, self.tile):
            yield tile_of(self.footprint, write, self.origin)

    def batches(self, size: int) -> Iterator[tuple[Tile, ...]]:
        """Yield the tiles in batches of at most `size` tiles of the same input shape.

        The batches depend only on the block, so that a resumed run repeats them.
        """
        ordered = sorted(self.tiles, key=lambda tile: tile.read.shape, reverse=True)
        for _, group in groupby(ordered, key=lambda tile: tile.read.shape):
            tiles = tuple(group)
            for i in range(0, len(tiles), size):
                yield tiles[i : i + size]


@dataclass(frozen=True, slots=True)
class Plan(Sequence[Block]):
    """Blocks of tiles over an image; ``plan[i]`` is computed from ``i`` on demand.

    Attributes
    ----------
    shape : tuple of int
        Shape of what is written: the image without its ``c`` axis, or a part of it.
    footprint : Footprint
        One entry per axis; trivial entries for the axes that the network is looped over.
    tile, block : tuple of int
        Side lengths in pixels of what a tile writes, and of a block. A block consists of whole tiles.
    batch : int
        Largest number of tiles in one forward pass.
    origin : tuple of int
        Pixel of the image at which the part that is written begins; empty if that is the first pixel.
    """

    shape: tuple[int, ...]
    footprint: Footprint
    tile: tuple[int, ...]
    block: tuple[int, ...]
    batch: int = 1
    origin: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(map(ceil_div, self.shape, self.block))

    def __len__(self) -> int:
        return prod(self.grid)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        """Return a block by its index, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"the plan has {len(self)} blocks, no block {index}")
        index %= len(self)
        position = cell_position(index, self.grid)
        box = cell_box([p * b for p, b in zip(position, self.block, strict=True)], self.block, self.shape)
        return Block(index, position, box, self.footprint, self.tile, self.origin)

    @property
    def n_tiles(self) -> int:
        """Number of tiles in all blocks together."""
        return prod(map(_count_tiles, self.shape, self.tile, self.block))

    @property
    def largest_batch(self) -> int:
        """Number of tiles in the largest batch: `batch`, or fewer if no block has as many of one shape.

        >>> Plan((64, 64), Footprint.same(2, reach=1), tile=(32, 32), block=(64, 64), batch=9).largest_batch
        4
        """
        # No block has more tiles along an axis than the first.
        return 1 if self.batch == 1 else max(map(len, self[0].batches(self.batch)))

    @property
    def largest_read(self) -> tuple[int, ...]:
        """Input shape of the largest tile."""
        first = Box((0,) * len(self.shape), tuple(map(min, self.tile, self.shape)))
        return tile_of(self.footprint, first, self.origin).read.shape

    @property
    def pixels_read(self) -> int:
        """Number of input pixels of all tiles together."""
        axes = zip(self.footprint.axes, self.shape, self.tile, self.origin or (0,) * len(self.shape), strict=True)
        return prod(_read_along(axis, n, t, start) for axis, n, t, start in axes)

    @property
    def redundancy(self) -> float:
        """Number of input pixels read per pixel written."""
        return self.pixels_read / prod(self.shape)


def _read_along(axis: AxisFootprint, n: int, tile: int, origin: int = 0) -> int:
    """Return how many input pixels the tiles read along an axis to write `n` pixels, starting at `origin`."""

    def length(written: int) -> int:
        # The length is the same for every tile, because the tile side is a multiple of the step.
        (start, stop), _ = axis.span(origin, origin + written)
        return stop - start

    return n // tile * length(tile) + (length(n % tile) if n % tile else 0)


def _count_tiles(n: int, tile: int, block: int) -> int:
    return n // block * (block // tile) + ceil_div(n % block, tile)
