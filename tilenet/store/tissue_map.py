"""A coarse map of where there is tissue in the y, x plane of an image, stored with the mask.

The map alone decides, in integer arithmetic, which blocks are computed, so that every process and every resumed run
comes to the same answer. A map that was found, or drawn, is widened by the network's context: what is only context is
computed, but is no tissue.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import Box, ceil_div

# Most cells along a side: half a megabyte of bits before compression.
MOST_CELLS = 2048
# Blue, which stands out from stains and from the colours of classes.
TISSUE_COLOR = (0, 160, 255)

Pixel = NDArray[np.int64]


class _Divided(Protocol):
    """What has blocks, as a `Plan` and a `Layout` do; its last two axes are y and x."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def block(self) -> tuple[int, ...]: ...
    @property
    def origin(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, eq=False)
class TissueMap:
    """A map of equal cells over the y, x plane of an image; one for all planes of a stack.

    Attributes
    ----------
    cells : numpy.ndarray
        bool (h, w): whether a cell has tissue, or is context of tissue. They decide which blocks are computed.
    covers : (int, int)
        Pixels of the whole image along y and x, at the resolution that the network sees; the mask may be a part of it.
    own : numpy.ndarray or None
        bool (h, w): whether a cell has tissue itself. None: as `cells`, in a mask that the user gave.

    Examples
    --------
    >>> found = TissueMap(np.array([[True, False], [False, False]]), (100, 80))
    >>> found.meets(Box((0, 0), (50, 41))), found.meets(Box((50, 0), (100, 80)))
    (True, False)
    >>> found.tissue_fraction(Box((0, 0), (50, 80)))
    0.5
    """

    cells: NDArray[np.bool_]
    covers: tuple[int, int]
    own: NDArray[np.bool_] | None = None

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """Whether a cell has tissue itself, as far as is known: bool (h, w)."""
        return self.cells if self.own is None else self.own

    def meets(self, box: Box) -> bool:
        """Return whether tissue, or context, is in a box of image pixels, whose last two axes are y and x."""
        y, x = box.start[-2:], box.stop[-2:]
        return bool(self._counts([(y[0], x[0])], [(y[1], x[1])])[0, 0])

    def at(self, y: Pixel, x: Pixel) -> NDArray[np.bool_]:
        """Return whether there is tissue at some rows and columns of image pixels: (rows, columns)."""
        along = zip((y, x), self.cells.shape, self.covers, strict=True)
        found: NDArray[np.bool_] = self.tissue[np.ix_(*(pixel * cells // n for pixel, cells, n in along))]
        return found

    def holds(self, y: int, x: int) -> bool:
        """Return whether there is tissue at one image pixel."""
        (rows, columns), (height, width) = self.cells.shape, self.covers
        return bool(self.tissue[y * rows // height, x * columns // width])

    def edges(self) -> tuple[Pixel, Pixel]:
        """Return the rows (h + 1) and columns (w + 1) of image pixels at which cells begin, and where the last end."""
        rows, columns = (
            np.array([ceil_div(k * n, cells) for k in range(cells + 1)])
            for n, cells in zip(self.covers, self.cells.shape, strict=True)
        )
        return rows, columns

    def blocks_with_tissue(self, divided: _Divided) -> NDArray[np.bool_]:
        """Return for each block along y and x, in order, whether it has tissue, and is computed: (rows, columns)."""
        origin, shape = (divided.origin or (0,) * len(divided.shape))[-2:], divided.shape[-2:]
        along = [
            [(first + a, first + min(a + side, n)) for a in range(0, n, side)]
            for first, n, side in zip(origin, shape, divided.block[-2:], strict=True)
        ]
        found: NDArray[np.bool_] = self._counts(*along) > 0
        return found

    def fraction_in_blocks(self, divided: _Divided) -> float:
        """Return the fraction of the pixels that lies in blocks with tissue."""
        along = zip(divided.shape[-2:], divided.block[-2:], strict=True)
        pixels = np.outer(*(np.minimum(side, n - np.arange(0, n, side)) for n, side in along))
        return float((pixels * self.blocks_with_tissue(divided)).sum() / pixels.sum())

    def tissue_fraction(self, box: Box, inside: tuple[float, float] | None = None) -> float:
        """Return the fraction of the pixels of a box that lies in cells with tissue; its last two axes are y and x.

        `inside` says how many of its rows and columns count, to fractions of the last ones; None: all.
        """
        rows, columns = (
            np.bincount(np.arange(a, b) * cells // n, np.clip(length - np.arange(b - a), 0, 1), minlength=cells)
            for a, b, length, cells, n in zip(
                *(box.start[-2:], box.stop[-2:], inside or box.shape[-2:], self.cells.shape, self.covers), strict=True
            )
        )
        return float(rows @ self.tissue @ columns / (rows.sum() * columns.sum()))

    def _counts(self, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> NDArray[np.int64]:
        """Return how many `cells` ranges of pixel rows and columns touch: (rows, columns)."""
        (y0, y1), (x0, x1) = (
            np.array([(a * cells // pixels, ceil_div(b * cells, pixels)) for a, b in ranges]).T
            for ranges, cells, pixels in zip((rows, columns), self.cells.shape, self.covers, strict=True)
        )
        sums = self._sums
        counts: NDArray[np.int64] = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)]
        return counts + sums[np.ix_(y0, x0)]

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        """Number of `cells` above and left of each corner: a summed-area table."""
        return np.pad(self.cells.cumsum(axis=0, dtype=np.int64).cumsum(axis=1), ((1, 0), (1, 0)))

    @property
    def fraction(self) -> float:
        """Fraction of the cells that have tissue themselves."""
        return float(self.tissue.mean())

    @property
    def sha256(self) -> str:
        """Checksum of what decides which blocks are computed."""
        facts = [list(self.cells.shape), list(self.covers), np.packbits(self.cells).tobytes().hex()]
        return sha256(json.dumps(facts).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the map as plain values, with one bit per cell, row by row, deflated, in base64."""
        values = {"cells": list(self.cells.shape), "covers": list(self.covers), "bits": _packed(self.cells)}
        return values if self.own is None else values | {"own": _packed(self.own)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TissueMap:
        """Return the map that `to_json` described; `ValueError` for values that it cannot have returned."""
        h, w = map(int, values["cells"])
        y, x = map(int, values["covers"])
        if not (1 <= h <= min(y, MOST_CELLS) and 1 <= w <= min(x, MOST_CELLS)):
            raise ValueError(f"a tissue map of {y} x {x} px cannot have {h} x {w} cells")
        own = _unpacked(values["own"], h, w) if "own" in values else None
        return cls(_unpacked(values["bits"], h, w), (y, x), own)


def _packed(cells: NDArray[np.bool_]) -> str:
    return base64.b64encode(zlib.compress(np.packbits(cells).tobytes(), 9)).decode()


def _unpacked(bits: str, h: int, w: int) -> NDArray[np.bool_]:
    size = ceil_div(h * w, 8)
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(bits), size + 1)
    except zlib.error as error:
        raise ValueError(f"the tissue map is damaged: {error}") from error
    if len(packed) != size:
        raise ValueError(f"the tissue map has {len(packed)} bytes, not {size}")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=h * w).reshape(h, w).astype(bool)
