"""The straight edges of the outlines of many shapes, in one array: what is measured of all of them at once.

Shapes are small and many, and a call of NumPy or shapely costs as much as the work on one of them. So everything here
is an array of the edges of all shapes, shape by shape, or one of the shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tilenet.export.corners import Integers, Ring
from tilenet.export.shapes import Shape

AT_ONCE = 2**18  # edges
# Pixels along y and x within which the sums of `areas_and_centroids` are exact: those of at most 2 * 2^20 edges, of
# products up to 2 * 2^30, stay below 2^53.
SMALL = 2**10 - 1
# Python's integers, since sums of squares over a large object do not fit into 64 bits.
Moments = NDArray[Any]


class Edges:
    """The straight edges of all outlines and holes of shapes, between two corners each, as (n, 2): y and x."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes, rings = shapes, [shape.rings for shape in shapes]
        lengths = np.array([len(ring) for ring in chain.from_iterable(rings)])
        ends = np.cumsum(lengths)
        following = np.arange(1, ends[-1] + 1)
        following[ends - 1] = ends - lengths
        self.corners = np.concatenate(list(chain.from_iterable(rings)))
        self._following = following
        # Where the first ring of each shape begins, and where the last ring of the last one ends.
        self.bounds: Integers = np.append(0, ends)[np.cumsum([0, *map(len, rings)])]
        outlines = [ring is part.rings[0] for shape in shapes for part in shape.parts for ring in part.rings]
        self._of_outline = np.repeat(outlines, lengths)

    @cached_property
    def boxes(self) -> NDArray[np.int32]:
        """The bounding box of each shape (m, 2, 2): its least y and x, then its largest."""
        return boxes_of(self._shapes)

    @property
    def origins(self) -> NDArray[np.int32]:
        """The first corner of each shape (m, 2)."""
        found: NDArray[np.int32] = self.corners[self.bounds[:-1]]
        return found

    @property
    def are_small(self) -> NDArray[np.bool_]:
        """Whether `areas_and_centroids` are exact (m)."""
        found: NDArray[np.bool_] = np.all(self.boxes[:, 1] - self.boxes[:, 0] <= SMALL, axis=1)
        return found

    def areas_and_centroids(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the pixels (m) and the centroid (m, 2) of each shape, as `area_and_centroid` does of one."""
        at = (self.corners - self._of_edges(self.origins)).astype(np.float64)
        after = at[self._following]
        cross = at[:, 1] * after[:, 0] - after[:, 1] * at[:, 0]
        doubled = self._per_shape(np.add, cross)
        moments = self._per_shape(np.add, (at + after) * cross[:, np.newaxis])
        return np.abs(doubled) / 2, self.origins + moments / (3 * doubled)[:, np.newaxis]

    def crossings(self) -> tuple[Integers, Integers, Integers]:
        """Return how many pixel sides run along y and along x, and how many pairs of diagonal neighbours are parted."""
        sides = np.abs(self._ends() - self.corners)
        along_y, along_x = np.add.reduceat(sides, self.bounds[:-1], axis=0, dtype=np.int64).T
        # Where pixels touch diagonally, the vertex between them is a corner twice. Shapes have corners in common, too,
        # so the vertices of their boxes are numbered one box after the other.
        low, high = self.boxes.transpose(1, 0, 2)
        heights, widths = (high.astype(np.int64) - low + 1).T
        before = np.cumsum(heights * widths) - heights * widths
        y, x = (self.corners - self._of_edges(low)).T
        places = np.sort(self._of_edges(before) + y * self._of_edges(widths) + x)
        touching = self._per_shape(np.add, (np.diff(places, prepend=-1) == 0).astype(np.int64))
        # Two pairs at a vertex within an edge, one at a corner, none where pixels touch diagonally.
        return along_y, along_x, 2 * (along_y + along_x) - np.diff(self.bounds) - 2 * touching

    def moments(self) -> Moments:
        """Return the sum of p p^T over all pixels (m, 3, 3), with p = (1, y, x) from `origins`, in integers."""
        origins, sums = self._of_edges(self.origins), np.zeros((len(self.bounds) - 1, 3, 3))
        for first in range(0, len(self.corners), AT_ONCE):
            some = slice(first, first + AT_ONCE)
            # Floats hold integers up to 2^53 exactly, and do not overflow where a region is as large as a slide.
            ends = self.corners[some], self.corners[self._following[some]]
            at, after = ((corners - origins[some]).astype(np.float64).T for corners in ends)
            # A vertical edge stands for all pixels on its left, with a sign, so horizontal ones stand for none.
            heights, lengths = _power_sums(after[0]) - _power_sums(at[0]), _power_sums(at[1])
            bounds = np.clip(self.bounds - first, 0, heights.shape[1]).tolist()
            for k, (start, stop) in enumerate(pairwise(bounds)):
                sums[k] += heights[:, start:stop] @ lengths[:, start:stop].T
        whole = np.array([round(value) for value in sums.ravel().tolist()], object).reshape(sums.shape)
        (n, x, xx), (y, xy, _), (yy, _, _) = whole.transpose(1, 2, 0)
        return np.array([[n, y, x], [y, yy, xy], [x, xy, xx]]).transpose(2, 0, 1)

    def pixels_of_hulls(self) -> Integers:
        """Return how many pixels have their centre within the convex hull of the middles of all sides of pixels (m)."""
        ahead = np.sign(self._ends() - self.corners)
        into = np.empty_like(ahead)
        into[self._following] = ahead
        # Outlines have their shape on the right. So a hull turns only beside corners at which its outline turns right.
        right = self._of_outline & (into[:, 1] * ahead[:, 0] > into[:, 0] * ahead[:, 1])
        # In halves of a pixel, in which these middles are integers.
        middles = 2 * self.corners[right, np.newaxis] + np.stack([-into[right], ahead[right]], axis=1)
        of_shape = np.repeat(self._of_edges(np.arange(len(self.bounds) - 1))[right], 2)
        hulls = shapely.convex_hull(shapely.linestrings(middles.reshape(-1, 2), indices=of_shape))
        return _pixels_in(hulls)

    def _ends(self) -> Ring:
        """Return the second corners of the edges."""
        return self.corners[self._following]

    def _of_edges(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return for each edge what is given of its shape."""
        return np.repeat(values, np.diff(self.bounds), axis=0)

    def _per_shape(self, function: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        """Return for each shape the sum, say, of what is given of its edges."""
        found: NDArray[Any] = function.reduceat(values, self.bounds[:-1], axis=0)
        return found


def boxes_of(shapes: Sequence[Shape]) -> NDArray[np.int32]:
    """Return the bounding box of each shape (m, 2, 2): its least y and x, then its largest."""
    outlines = [[part.rings[0] for part in shape.parts] for shape in shapes]
    corners = np.concatenate(list(chain.from_iterable(outlines)))
    begins = np.cumsum([0, *(sum(map(len, rings)) for rings in outlines[:-1])])
    return np.stack([bound.reduceat(corners, begins, axis=0) for bound in (np.minimum, np.maximum)], axis=1)


def _power_sums(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of 1, k and k^2 over k = 0 .. n - 1 as (3, len(n)); of a negative n less those over n .. -1."""
    return np.stack([n, n * (n - 1) / 2, n * (n - 1) * (2 * n - 1) / 6])


def _pixels_in(hulls: NDArray[Any]) -> Integers:
    """Return how many pixels have their centre within convex polygons (m) of y and x in halves of a pixel."""
    points, of_point = shapely.get_coordinates(hulls, return_index=True)
    (y, x), (next_y, next_x) = points[:-1].astype(np.int64).T, points[1:].astype(np.int64).T
    # With y to the right, as shapely has it here, these edges have their hull at larger x.
    is_left = (next_y > y) == shapely.is_ccw(shapely.get_exterior_ring(hulls))[of_point[:-1]]
    # The centres of pixels have odd coordinates; rows at which two edges meet are those of the lower one.
    first, stop = np.minimum(y, next_y) | 1, np.maximum(y, next_y)
    rows = np.where(of_point[:-1] == of_point[1:], (stop - first + 1) // 2, 0)
    edge = np.repeat(np.arange(len(rows)), rows)
    at = first[edge] + 2 * (np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows))
    # Of a line through (y, x): x at this row, as a fraction of integers. Then which pixels begin and end there.
    height = (next_y - y)[edge]
    across, height = (x[edge] * height + (at - y[edge]) * (next_x - x)[edge]) * np.sign(height), np.abs(height)
    columns = np.where(is_left[edge], (height - across) // (2 * height), (across + height) // (2 * height))
    found: Integers = np.bincount(of_point[edge], columns, len(hulls)).astype(np.int64)
    return found
