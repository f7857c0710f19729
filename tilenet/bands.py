"""Bands of rows: how a tile goes through an unpadded network piece by piece, and what memory that takes.

Of a network that neither pads nor clamps (`AxisFootprint.spoiled` is zero), each row of the output
depends on rows of the input alone, not on where the tile ends. So the first rows make an output of
their own, each `step` rows after them make `step` rows more, and what a layer needs of earlier rows
it keeps: the result is the tile's, with the activations of a band in memory instead of the tile's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tilenet.footprint import AxisFootprint
from tilenet.geometry import round_down

# Bytes of the first block's activations in a band, float32, and most pixels of one. The deepest layers read all their
# weights for each band: with two thirds of these bytes, wf 5 and 6 take 4 to 7 % more time, with more no less.
BAND_BYTES, MOST_PIXELS = 96_000_000, 2**20
# Rows of a band are so many steps, or a multiple: then the deepest layer has whole squares of Winograd's.
STEPS = 4


def can_band(axis: AxisFootprint) -> bool:
    """Tell whether rows of the output depend on nothing but rows of the input."""
    return axis.spoiled == (0, 0)


def halves(pool_size: Sequence[int]) -> bool:
    """Tell whether pooling is 2x2, so that a block of the network, too, can be done a few rows at a time."""
    return tuple(pool_size) == (2, 2)


def band_pixels(channels: int) -> int:
    """Return the input pixels of a band of a network whose first block has so many channels.

    >>> band_pixels(64), band_pixels(4)
    (375000, 1048576)
    """
    return min(MOST_PIXELS, BAND_BYTES // (4 * channels))


def split_rows(axis: AxisFootprint, length: int, width: int, pixels: int) -> list[tuple[int, int]]:
    """Return the input rows of each band of so many pixels, of a legal `length` of rows `width` pixels long.

    The first band is a legal input, all others are a multiple of the step.

    >>> split_rows(AxisFootprint(step=16, lost=92, smallest=188), 1228, 1228, 500_000)
    [(0, 396), (396, 780), (780, 1164), (1164, 1228)]
    """
    unit = STEPS * axis.step
    rows = max(unit, round_down(pixels // width, unit))
    starts = [0, *range(axis.legal_at_least(rows), length, rows)]
    return list(zip(starts, [*starts[1:], length], strict=True))


@dataclass(frozen=True)
class Demand:
    """Bytes that a pass through a network takes.

    Attributes
    ----------
    per_pixel : float
        For each input pixel of a batch, from its pixels to its logits.
    in_band : float
        For each input pixel whose activations are in memory at a time.
    axis : AxisFootprint, optional
        Of the rows, where a tile is done in bands; default all pixels are in memory at a time.
    pixels : int
        Those of a band.
    """

    per_pixel: float
    in_band: float = 0
    axis: AxisFootprint | None = None
    pixels: int = MOST_PIXELS

    def of(self, shape: Sequence[int], batch: int = 1) -> int:
        """Return the bytes of a pass over a batch of tiles that read `shape`.

        >>> Demand(per_pixel=10, in_band=1000).of((100, 100), batch=2)
        20200000
        """
        pixels = held = prod(shape) * batch
        if self.axis is not None:
            length, width = shape[-2], shape[-1] * batch
            held = width * max(stop - start for start, stop in split_rows(self.axis, length, width, self.pixels))
        return int(self.per_pixel * pixels + self.in_band * held)
