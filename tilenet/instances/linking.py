"""Link objects of neighbouring planes into volumes, for a network that finds the objects of each plane by itself.

The measure of two objects is the intersection over union of their pixels, one plane laid on the other. They are linked
if it is at least a threshold, and if each is the other's best partner: of equally good ones, that whose first pixel
comes first. So an object has one link up and one down at most, and linked objects are chains. Cellpose joins the masks
of planes by the same measure (`stitch_threshold` [1]).

Pixels are counted, and measures compared, in whole numbers: neither the order of the blocks nor rounding decides.

[1] C. Stringer, T. Wang, M. Michaelos, M. Pachitariu, Nature Methods 18 (2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilenet.geometry import Box, boxes_of

Counts = NDArray[np.int64]
# A measure has four digits of 24 bits. Two different fractions of wholes below 2^39 pixels differ by 2^-78 or more, so
# they differ in these digits; and a remainder below 2^39, times 2^24, fits 64 bits.
BITS, DIGITS = 24, 4


class Labels(Protocol):
    """Labels of the objects of all planes, an array in memory or on disk: 0 is background, no two planes share any."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels along the axes."""

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the labels of a box."""


def linked(labels: Labels, axes: str, block: Sequence[int], least: float) -> Counts:
    """Return the chain, 1..m, of each object along z, in the order of the labels of the objects.

    Boxes with the sides of `block` are read once, column by column, and one of them and a plane are held. If labels
    follow the order of first pixels, so do the chains. `least` is the threshold, above 0 and at most 1.
    """
    z = axes.index("z")
    sizes, overlaps = [np.zeros((0, 2), np.int64)], [np.zeros((0, 3), np.int64)]
    for column in boxes_of(Box.of_shape(labels.shape), (*block[:z], labels.shape[z], *block[z + 1 :])):
        above = None
        for box in boxes_of(column, block):
            for plane in np.moveaxis(labels[box.slices], z, 0):
                sizes.append(_counted([plane]))
                if above is not None:
                    overlaps.append(_counted([above, plane]))
                above = plane
    return chains(_summed(overlaps), _summed(sizes), least)


def chains(overlaps: Counts, sizes: Counts, least: float) -> Counts:
    """Return the chain of each object, 1..m in the order of their first objects.

    `overlaps` (k, 3) are an object, one of the next plane, and in how many places both have a pixel; `sizes` (n, 2) all
    objects in ascending order, and their numbers of pixels; `least` is the threshold as the decimal number that Python
    prints: 0.1 is a tenth.

    Object 1 lies over 2 and 3, and 2 is the better partner; 3 has none:

    >>> sizes = np.array([[1, 10], [2, 8], [3, 4]])
    >>> overlaps = np.array([[1, 2, 6], [1, 3, 3]])
    >>> chains(overlaps, sizes, 0.25).tolist(), chains(overlaps, sizes, 0.51).tolist()
    ([1, 1, 2], [1, 2, 3])
    """
    pairs, shared = np.searchsorted(sizes[:, 0], overlaps[:, :2]), overlaps[:, 2]
    union, threshold = sizes[pairs, 1].sum(axis=1) - shared, Fraction(str(least))
    # In Python's integers, which do not overflow.
    reaches = np.frompyfunc(lambda a, b: a * threshold.denominator >= b * threshold.numerator, 2, 1)
    kept = reaches(shared, union).astype(bool)
    (above, below), measure = pairs[kept].T, _digits(shared[kept], union[kept])
    mutual = _best(above, below, measure) & _best(below, above, measure)
    first = np.arange(len(sizes))
    first[below[mutual]] = above[mutual]
    while not np.array_equal(first, further := first[first]):
        first = further
    found: Counts = np.cumsum(first == np.arange(len(sizes)))[first]
    return found


def _best(own: Counts, other: Counts, measure: Sequence[Counts]) -> NDArray[np.bool_]:
    """Return for each pair of objects whether `other` is the best partner of `own`."""
    order = np.lexsort((other, *(-digit for digit in reversed(measure)), own))
    best = np.zeros(len(own), bool)
    best[order[np.diff(own[order], prepend=-1) != 0]] = True
    return best


def _digits(part: Counts, whole: Counts) -> list[Counts]:
    """Return fractions as digits, the most significant first, which are in the same order and equal only if they are.

    >>> [int(digit[0]) / 2**BITS for digit in _digits(np.array([3]), np.array([4]))]
    [0.75, 0.0, 0.0, 0.0]
    """
    digits = []
    for _ in range(DIGITS):
        digit, part = np.divmod(part << BITS, whole)
        digits.append(digit)
    return digits


def _counted(planes: Sequence[NDArray[Any]]) -> Counts:
    """Return the labels that pixels have in planes (all above 0), and how many pixels have them: (k, planes + 1)."""
    flat = [plane.ravel() for plane in planes]
    begins = np.ones(flat[0].size, bool)
    begins[1:] = np.any([labels[1:] != labels[:-1] for labels in flat], axis=0)
    starts = np.flatnonzero(begins)  # of runs of pixels with equal labels
    columns = [labels[starts].astype(np.int64) for labels in flat]
    runs = np.stack([*columns, np.diff(starts, append=begins.size)], axis=1)
    return _summed([runs[runs.all(axis=1)]])


def _summed(parts: Iterable[Counts]) -> Counts:
    """Return counts (k, labels + 1) with those of equal labels added up, in the order of the labels."""
    rows = np.concatenate(list(parts))
    rows = rows[np.lexsort(rows[:, -2::-1].T)]
    starts = np.flatnonzero((np.diff(rows[:, :-1], axis=0, prepend=-1) != 0).any(axis=1))
    return np.concatenate([rows[starts, :-1], np.add.reduceat(rows[:, -1:], starts)], axis=1)
