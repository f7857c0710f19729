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

from collections.abc import Mapping, Sequence
from math import atan2, hypot, pi, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.export.edges import Edges, Moments
from tilenet.export.opened import has_volumes
from tilenet.readers.calibrated import sizes_differ
from tilenet.store import AnyMask

COLUMNS = (
    *("perimeter_px", "perimeter_um", "circularity", "axis_major_px", "axis_major_um"),
    *("axis_minor_px", "axis_minor_um", "eccentricity", "solidity"),
)
PX, UM = "px", "um"


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

    def of(self, edges: Edges, moments: Moments) -> list[dict[str, str]]:
        """Return the values of regions, or objects in one plane, by column."""
        pixels, covariance, crossings = moments[:, 0, 0].astype(np.float64), _covariance(moments), edges.crossings()
        values = {"solidity": pixels / edges.pixels_of_hulls()}
        for unit, sizes in self._units.items():
            values |= _axes(covariance, sizes, unit)
            values[f"perimeter_{unit}"] = length = perimeter(crossings, *sizes)
            values["circularity"] = 4 * pi * pixels * prod(sizes) / length**2
        return _texts(values)

    def of_solid(self, moments: Moments) -> dict[str, str]:
        """Return the axes of an object of a volume by column, given its moments (4, 4); nothing else is known of it."""
        if UM not in self._units:
            return {}
        values = _axes(_covariance(moments[np.newaxis]), self._units[UM], UM)
        del values["eccentricity"]  # of an ellipsoid there are several
        return _texts(values)[0]


def perimeter(crossings: Sequence[NDArray[np.int64]], height: float, width: float) -> NDArray[np.float64]:
    """Return perimeters by the Crofton formula, given the size of a pixel."""
    along_y, along_x, diagonal = crossings
    angle = atan2(height, width)
    across = angle * along_y * height + (pi / 2 - angle) * along_x * width
    found: NDArray[np.float64] = (across + pi / 4 * diagonal * height * width / hypot(height, width)) / 2
    return found


def lifted(moments: Moments, z: int, origin: NDArray[Any]) -> Moments:
    """Return moments (3, 3) from an origin (y, x) in a plane as those of a volume, with p = (1, z, y, x)."""
    y, x = origin.tolist()
    lift = np.array([[1, 0, 0], [z, 0, 0], [y, 1, 0], [x, 0, 1]], object)
    found: Moments = lift @ moments @ lift.T
    return found


def _covariance(moments: Moments) -> NDArray[np.float64]:
    """Return the covariance (m, d, d) of the places of pixels, in pixels."""
    n, first = moments[:, :1, :1], moments[:, 1:, :1]
    # Exact up to the division: the difference of large sums is small.
    difference = n * moments[:, 1:, 1:] - first * first.transpose(0, 2, 1)
    found: NDArray[np.float64] = difference.astype(np.float64) / n.astype(np.float64) ** 2
    return found


def _axes(covariance: NDArray[np.float64], sizes: Sequence[float], unit: str) -> dict[str, NDArray[np.float64]]:
    """Return the axes of the ellipses, or ellipsoids, of the same second moments as the pixels, and eccentricities."""
    variances = np.linalg.eigvalsh(covariance * np.outer(sizes, sizes)).clip(0)
    least, most = variances[:, 0], variances[:, -1]
    major, minor = (np.sqrt(4 * (len(sizes) + 2) * variance) for variance in (most, least))
    ratio = np.divide(least, most, out=np.ones_like(most), where=most > 0)
    return {f"axis_major_{unit}": major, f"axis_minor_{unit}": minor, "eccentricity": np.sqrt(1 - ratio)}


def _texts(values: Mapping[str, NDArray[np.float64]]) -> list[dict[str, str]]:
    names = [name for name in COLUMNS if name in values]
    lines = zip(*(values[name].tolist() for name in names), strict=True)
    return [dict(zip(names, [f"{value:.7g}" for value in line], strict=True)) for line in lines]
