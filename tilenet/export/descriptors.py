"""The form of regions and objects: their perimeter, their axes and how convex they are.

They are those of scikit-image's `regionprops` [1] for the whole label image, `perimeter_crofton`, `axis_major_length`,
`axis_minor_length`, `eccentricity` and `solidity`, and are computed from the corners of outlines, so that no pixel is
needed any more. Outlines follow the edges of pixels, so their plain length is up to 4 / pi times that of a smooth
object. The Crofton formula counts instead how often lines of four directions cross the outline. Where pixels are not
square, each direction has the weight that MorphoLibJ [2] gives it; scikit-image has no perimeter then.

[1] https://scikit-image.org/docs/stable/api/skimage.measure.html
[2] D. Legland, I. Arganda-Carreras, P. Andrey, Bioinformatics 32 (2016); its class `IntrinsicVolumes2D`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, hypot, pi, prod, sqrt
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tilenet.export.shapes import Shape, has_volumes
from tilenet.readers.calibrated import sizes_differ
from tilenet.store import AnyMask

COLUMNS = (
    *("perimeter_px", "perimeter_um", "circularity", "axis_major_px", "axis_major_um"),
    *("axis_minor_px", "axis_minor_um", "eccentricity", "solidity"),
)
PX, UM = "px", "um"
# Sides of a hull at the centres of pixels are multiples of 1 / length, and are known better than this.
ROUNDING = 1e-7
AT_ONCE = 2**18  # edges
# Python's integers, since sums of squares over a large object do not fit into 64 bits.
Moments = NDArray[Any]


class ShapeDescriptors:
    """Measures forms in the units that a mask has.

    Lengths in pixels are left out if pixels are known not to be square, and for volumes. What has no unit is measured
    in micrometres, or in pixels if their size is unknown.
    """

    def __init__(self, mask: AnyMask) -> None:
        sizes = mask.pixel_size[-3 if has_volumes(mask) else -2 :]
        self._units: dict[str, tuple[float, ...]] = {}
        known = tuple(size for size in sizes if size is not None)
        if len(sizes) == 2 and (len(known) < 2 or not sizes_differ(known[:1], known[1:])):
            self._units[PX] = (1.0, 1.0)
        if len(known) == len(sizes):
            self._units[UM] = known  # the last one, in which what has no unit is measured

    def of(self, shape: Shape) -> dict[str, str]:
        """Return the values of a region or an object in one plane by column."""
        edges = Edges(shape)
        moments = edges.moments()
        pixels, covariance, crossings = int(moments[0, 0]), _covariance(moments), edges.crossings()
        values = {"solidity": pixels / edges.pixels_of_hull()}
        for unit, sizes in self._units.items():
            values |= _axes(covariance, sizes, unit)
            values[f"perimeter_{unit}"] = length = perimeter(crossings, *sizes)
            values["circularity"] = 4 * pi * pixels * prod(sizes) / length**2
        return _texts(values)

    def of_solid(self, moments: Moments) -> dict[str, str]:
        """Return the axes of an object of a volume by column; nothing else is known of it."""
        if UM not in self._units:
            return {}
        values = _axes(_covariance(moments), self._units[UM], UM)
        del values["eccentricity"]  # of an ellipsoid there are several
        return _texts(values)


class Edges:
    """The straight edges of all outlines and holes of a shape, between two corners each, as (n, 2): y and x."""

    def __init__(self, shape: Shape) -> None:
        outlines = [part.rings[0] for part in shape.parts]
        rings = [*outlines, *(hole for part in shape.parts for hole in part.rings[1:])]
        ends = np.cumsum([len(ring) for ring in rings])
        following = np.arange(1, ends[-1] + 1)
        following[ends - 1] = [0, *ends[:-1]]
        self._from = np.concatenate(rings)
        self._to = self._from[following]
        self._of_outlines = int(ends[len(outlines) - 1])

    def crossings(self) -> tuple[int, int, int]:
        """Return how many pixel sides run along y and along x, and how many pairs of diagonal neighbours are parted."""
        along_y, along_x = np.abs(self._to - self._from).sum(axis=0).tolist()
        # Where pixels touch diagonally, the vertex between them is a corner twice.
        places = np.sort(self._from[:, 0].astype(np.int64) << 32 | self._from[:, 1])
        touching = int((places[1:] == places[:-1]).sum())
        # Two pairs at a vertex within an edge, one at a corner, none where pixels touch diagonally.
        return along_y, along_x, 2 * (along_y + along_x) - len(places) - 2 * touching

    def moments(self) -> Moments:
        """Return the sum of p p^T over all pixels, with p = (1, y, x) of the pixel, in integers."""
        origin, sums = self._from[0], np.zeros((3, 3))
        for first in range(0, len(self._from), AT_ONCE):
            # Floats hold integers up to 2^53 exactly, and do not overflow where a region is as large as a slide.
            begin, end = ((at[first : first + AT_ONCE] - origin).astype(np.float64) for at in (self._from, self._to))
            # A vertical edge stands for all pixels on its left, with a sign, so horizontal ones stand for none.
            sums += (_power_sums(end[:, 0]) - _power_sums(begin[:, 0])) @ _power_sums(begin[:, 1]).T
        (n, x, xx), (y, xy, _), (yy, _, _) = [[round(value) for value in row] for row in sums.tolist()]
        y0, x0 = origin.tolist()
        shift = np.array([[1, 0, 0], [y0, 1, 0], [x0, 0, 1]], object)
        found: Moments = shift @ np.array([[n, y, x], [y, yy, xy], [x, xy, xx]], object) @ shift.T
        return found

    def pixels_of_hull(self) -> int:
        """Return how many pixels have their centre within the convex hull of the middles of all sides of pixels."""
        begin, end = self._from[: self._of_outlines], self._to[: self._of_outlines]
        ahead = np.sign(end - begin)
        # In halves of a pixel, in which these middles are integers.
        middles = np.concatenate([2 * begin + ahead, 2 * end - ahead])
        ring = shapely.get_coordinates(shapely.convex_hull(shapely.linestrings(middles)))[:-1]
        ring = np.roll(ring, -int(ring[:, 0].argmin()), axis=0)
        last = int(ring[:, 0].argmax())
        chains = ring[: last + 1], np.concatenate([ring[last:], ring[:1]])[::-1]
        rows = np.arange(ring[0, 0] + 1, ring[last, 0], 2)
        left, right = np.sort([np.interp(rows, *chain.T) for chain in chains], axis=0)
        first, stop = np.ceil((left - ROUNDING - 1) / 2), np.floor((right + ROUNDING + 1) / 2)
        return int((stop - first).sum())


def perimeter(crossings: tuple[int, int, int], height: float, width: float) -> float:
    """Return the perimeter by the Crofton formula, given the size of a pixel."""
    along_y, along_x, diagonal = crossings
    angle = atan2(height, width)
    across = angle * along_y * height + (pi / 2 - angle) * along_x * width
    return (across + pi / 4 * diagonal * height * width / hypot(height, width)) / 2


def lifted(moments: Moments, z: int) -> Moments:
    """Return the moments of a plane as those of a volume, with p = (1, z, y, x)."""
    lift = np.array([[1, 0, 0], [z, 0, 0], [0, 1, 0], [0, 0, 1]], object)
    found: Moments = lift @ moments @ lift.T
    return found


def _power_sums(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of 1, k and k^2 over k = 0 .. n - 1 as (3, len(n)); of a negative n less those over n .. -1."""
    return np.stack([n, n * (n - 1) / 2, n * (n - 1) * (2 * n - 1) / 6])


def _covariance(moments: Moments) -> NDArray[np.float64]:
    """Return the covariance of the places of pixels, in pixels."""
    n, first = moments[0, 0], moments[0, 1:]
    # Exact up to the division: the difference of large sums is small.
    found: NDArray[np.float64] = (n * moments[1:, 1:] - np.outer(first, first)).astype(np.float64) / float(n) ** 2
    return found


def _axes(covariance: NDArray[np.float64], sizes: Sequence[float], unit: str) -> dict[str, float]:
    """Return the axes of the ellipse, or ellipsoid, of the same second moments as the pixels, and its eccentricity."""
    variances = np.linalg.eigvalsh(covariance * np.outer(sizes, sizes)).clip(0)
    least, most = float(variances[0]), float(variances[-1])
    major, minor = (sqrt(4 * (len(sizes) + 2) * variance) for variance in (most, least))
    eccentricity = sqrt(1 - least / most) if most else 0.0
    return {f"axis_major_{unit}": major, f"axis_minor_{unit}": minor, "eccentricity": eccentricity}


def _texts(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{values[name]:.7g}" for name in COLUMNS if name in values}
