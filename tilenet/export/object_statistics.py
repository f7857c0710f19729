"""How the values of each object vary: their standard deviation, the least and the largest, summed up block by block.

Integers of up to 32 bits are summed as integers, without rounding, so that neither blocks nor their order change a
digit. Real numbers and larger integers are summed as differences from the first value of their object that was seen.
These sums are rounded, but lose no digits where values are large and nearly equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Squares of 32 bits are summed in two halves, so that 2^32 of them do not overflow 64 bits.
BITS = 32


class ObjectStatistics:
    """The spread of values over each object, by its number, 1 to `n_objects`.

    `wanted` says of which values of a pixel, and `exact` whether all are integers of up to 32 bits, in any type.
    """

    def __init__(self, wanted: Sequence[bool], n_objects: int, *, exact: bool) -> None:
        self._row = {value: row for row, value in enumerate(np.flatnonzero(wanted).tolist())}
        shape, self._exact = (len(self._row), n_objects + 1), exact
        self._pixels = np.zeros(shape, np.int64)
        self._least, self._most = np.full(shape, np.inf), np.full(shape, -np.inf)
        self._sums = np.zeros(shape, np.int64 if exact else np.float64)
        self._squares = np.zeros((2, *shape), np.uint64) if exact else np.zeros((1, *shape))
        self._origin = None if exact else np.full(shape, np.nan)

    @np.errstate(invalid="ignore")  # of real numbers that are NaN or infinite
    def add(self, place: int, objects: NDArray[np.int64], value: NDArray[Any]) -> None:
        """Add pixels: the place of a value in `wanted`, and the number of the object (n) and the value (n) of each.

        Pixels of one value may be fewer than those of another.
        """
        if place not in self._row or not len(objects):
            return
        k, starts = self._row[place], np.flatnonzero(np.diff(objects, prepend=-1))  # of runs of pixels of one object
        of = objects[starts]
        np.add.at(self._pixels[k], of, np.diff(starts, append=len(objects)))
        np.minimum.at(self._least[k], of, np.minimum.reduceat(value, starts).astype(np.float64))
        np.maximum.at(self._most[k], of, np.maximum.reduceat(value, starts).astype(np.float64))
        numbers = value.astype(np.int64) if self._exact else self._differences(k, objects, value, starts)
        np.add.at(self._sums[k], of, np.add.reduceat(numbers, starts))
        for total, squares in zip(self._squares[:, k], _squares(numbers), strict=True):
            np.add.at(total, of, np.add.reduceat(squares, starts))

    def of(self, place: int, number: int) -> tuple[float, ...]:
        """Return the standard deviation of a value over an object, the least and the largest; nothing if not wanted.

        All are NaN if no pixel was added. The deviation is that of all pixels, as NumPy's `std` and scikit-image's
        `intensity_std`: squares are divided by their number, not by one less.
        """
        if place not in self._row:
            return ()
        k = self._row[place]
        # Python's integers do not overflow.
        pixels, total = int(self._pixels[k, number]), self._sums[k, number].item()
        if not pixels:
            return nan, nan, nan
        squares = sum(part << BITS * i if i else part for i, part in enumerate(self._squares[:, k, number].tolist()))
        # In this order, NaN stays NaN.
        deviation = sqrt(max(pixels * squares - total**2, 0)) / pixels
        return deviation, float(self._least[k, number]), float(self._most[k, number])

    def _differences(
        self, k: int, objects: NDArray[np.int64], value: NDArray[Any], starts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return how far values are from the first one of their object that was seen."""
        assert self._origin is not None
        origin, first = self._origin[k], starts[np.isnan(self._origin[k, objects[starts]])]
        origin[objects[first[::-1]]] = value[first[::-1]]
        found: NDArray[np.float64] = value.astype(np.float64) - origin[objects]
        return found


def _squares(numbers: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the squares of real numbers, or the lower and the upper half of the squares of integers."""
    if numbers.dtype.kind == "f":
        return (numbers**2,)
    squares = np.abs(numbers).astype(np.uint64) ** 2
    return squares & np.uint64(2**BITS - 1), squares >> np.uint64(BITS)
