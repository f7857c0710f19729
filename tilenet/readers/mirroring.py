"""Mirror padding, in one place: build a read beyond the borders of an image from a read inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import mirror


@dataclass(frozen=True)
class Reflection:
    """How to build a mirrored read from a plain one, along one axis."""

    # The plain read: the shortest range that holds every pixel needed.
    start: int
    stop: int
    # Parts of the plain read, forward and backward, to concatenate in this order.
    runs: tuple[slice, ...]

    def unfolded(self, pixels: NDArray[Any], axis: int) -> NDArray[Any]:
        """Return the mirrored read built from a plain one; the order of axes in memory is kept."""
        if self.runs == (slice(None),):
            return pixels
        return np.concatenate([pixels[(slice(None),) * axis + (run,)] for run in self.runs], axis=axis)


def fold(start: int, stop: int, length: int) -> Reflection:
    """Plan a mirrored read of ``start:stop`` on an axis of `length` pixels.

    >>> fold(-2, 4, 5)
    Reflection(start=0, stop=4, runs=(slice(2, 0, -1), slice(0, 4, 1)))
    """
    if 0 <= start and stop <= length:
        return Reflection(start, stop, (slice(None),))
    source = np.fromiter((mirror(i, length) for i in range(start, stop)), np.intp, stop - start)
    lowest, steps = int(source.min()), np.diff(source)
    # A run ends where the direction turns. On an axis of one pixel, where the step is 0, every run is one pixel.
    ends = np.union1d(np.flatnonzero(np.diff(steps)), np.flatnonzero(steps == 0)) + 1
    return Reflection(lowest, int(source.max()) + 1, tuple(map(_run, np.split(source - lowest, ends))))


def _run(places: NDArray[np.intp]) -> slice:
    """Return the slice that selects consecutive places, ascending or descending."""
    first, last = int(places[0]), int(places[-1])
    step = -1 if last < first else 1
    return slice(first, last + step if last + step >= 0 else None, step)
