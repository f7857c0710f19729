"""Bands of rows: how a tile goes through an unpadded network piece by piece, and how much memory that takes.

In a network that neither pads nor clamps (`AxisFootprint.spoiled` is zero), each output row depends
only on input rows, not on where the tile ends. So the first band of rows gives the first output rows,
and each further `step` input rows give `step` more output rows, as every layer keeps the earlier rows
that it still needs. The result is that of the whole tile, but only the activations of one band are in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tilenet.footprint import AxisFootprint
from tilenet.geometry import round_down

# Bytes of a band's float32 activations in the U-Net's first block, and the most pixels of a band. The deepest layers
# read all their weights for each band: with two thirds of these bytes, wf 5 and 6 take 4 to 7 % more time. More bytes
# save no time.
BAND_BYTES, MOST_PIXELS = 96_000_000, 2**20
# A band's rows are a multiple of this many steps, so that Winograd squares fit the deepest layer's rows exactly.
BAND_STEPS = 4


def can_band(axis: AxisFootprint) -> bool:
    """Return whether a tile can be computed in bands along this axis: its ends affect no output pixel."""
    return axis.spoiled == (0, 0)


def pools_by_two(pool_size: Sequence[int]) -> bool:
    """Return whether pooling is 2x2, so that a U-Net block can be computed a few rows at a time, too."""
    return tuple(pool_size) == (2, 2)


def band_pixels(channels: int) -> int:
    """Return the number of input pixels of a band, for a network whose first block has `channels` channels.

    >>> band_pixels(64), band_pixels(4)
    (375000, 1048576)
    """
    return min(MOST_PIXELS, BAND_BYTES // (4 * channels))


def split_rows(axis: AxisFootprint, length: int, width: int, pixels: int) -> list[tuple[int, int]]:
    """Return the input rows (start, stop) of each band of about `pixels` pixels.

    The tile has `length` rows, a legal length, of `width` pixels each. The number of rows of the
    first band is a legal length, too; that of every other band is a multiple of the step.

    >>> split_rows(AxisFootprint(step=16, lost=92, smallest=188), 1228, 1228, 500_000)
    [(0, 396), (396, 780), (780, 1164), (1164, 1228)]
    """
    unit = BAND_STEPS * axis.step
    rows = max(unit, round_down(pixels // width, unit))
    starts = [0, *range(axis.legal_at_least(rows), length, rows)]
    return list(zip(starts, [*starts[1:], length], strict=True))


@dataclass(frozen=True)
class Demand:
    """How many bytes of memory a forward pass takes."""

    # Bytes for each input pixel of a batch, whether or not its activations are in memory.
    per_pixel: float
    # Bytes for each input pixel whose activations are in memory at the same time.
    in_band: float = 0
    # Footprint along the rows, if a tile is computed in bands. By default the activations of all pixels are in
    # memory at the same time.
    axis: AxisFootprint | None = None
    # Number of pixels of a band.
    pixels: int = MOST_PIXELS

    def of(self, shape: Sequence[int], batch: int = 1) -> int:
        """Return the bytes that a forward pass over a batch of tiles of input shape `shape` takes.

        >>> Demand(per_pixel=10, in_band=1000).of((100, 100), batch=2)
        20200000
        """
        pixels = held = prod(shape) * batch
        if self.axis is not None:
            length, width = shape[-2], shape[-1] * batch
            held = width * max(stop - start for start, stop in split_rows(self.axis, length, width, self.pixels))
        return int(self.per_pixel * pixels + self.in_band * held)
