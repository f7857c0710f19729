"""The one mirror of pixels: a read beyond the borders of an image, out of one inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import mirror


@dataclass(frozen=True)
class Fold:
    """How one axis of a mirrored read comes out of a plain one.

    Attributes
    ----------
    start, stop : int
        The plain read: the shortest range that holds every pixel needed.
    runs : tuple of slice
        Its parts, forward and backward, one behind the other.
    """

    start: int
    stop: int
    runs: tuple[slice, ...]

    def unfolded(self, pixels: NDArray[Any], axis: int) -> NDArray[Any]:
        """Return the mirrored read of a plain one; neighbours in memory stay so."""
        if self.runs == (slice(None),):
            return pixels
        return np.concatenate([pixels[(slice(None),) * axis + (run,)] for run in self.runs], axis=axis)


def fold(start: int, stop: int, length: int) -> Fold:
    """Plan a mirrored read of ``start:stop`` on an axis of that length.

    >>> fold(-2, 4, 5)
    Fold(start=0, stop=4, runs=(slice(2, 0, -1), slice(0, 4, 1)))
    """
    if 0 <= start and stop <= length:
        return Fold(start, stop, (slice(None),))
    source = np.fromiter((mirror(i, length) for i in range(start, stop)), np.intp, stop - start)
    lowest, steps = int(source.min()), np.diff(source)
    # An axis of one pixel does not turn, it stands still.
    ends = np.union1d(np.flatnonzero(np.diff(steps)), np.flatnonzero(steps == 0)) + 1
    return Fold(lowest, int(source.max()) + 1, tuple(map(_run, np.split(source - lowest, ends))))


def _run(places: NDArray[np.intp]) -> slice:
    """Return the slice that gives evenly spaced places."""
    first, last = int(places[0]), int(places[-1])
    step = -1 if last < first else 1
    return slice(first, last + step if last + step >= 0 else None, step)
