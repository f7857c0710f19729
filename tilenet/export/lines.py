"""The lines of a table: class, size and position of each region or object.

Areas and centroids are exactly those of the pixels. They are computed from the outlines (shoelace formula).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.export.corners import area_and_centroid
from tilenet.export.forms import Edges, Forms, Moments, lifted
from tilenet.export.measured import Measured
from tilenet.export.placement import Grid
from tilenet.export.shapes import Shape

# x and y in pixels of the image at full resolution, from its upper left corner; sizes in pixels of the mask.
COLUMNS = (
    *("id", "class", "object", "t", "z", "x", "y", "area_px", "area_um2", "volume_px", "volume_um3"),
    *("left", "top", "right", "bottom", "front", "back"),
)
DECIMALS = 3


@dataclass
class _Solid:
    """Measurements of one object of a volume, summed up plane by plane; `second` only if it is asked for."""

    first: Shape
    pixels: int = 0
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    low: NDArray[np.int64] = field(default_factory=lambda: np.full(3, np.iinfo(np.int64).max))
    high: NDArray[np.int64] = field(default_factory=lambda: np.full(3, np.iinfo(np.int64).min))
    second: Moments = field(default_factory=lambda: np.zeros((4, 4), object))

    def add(self, shape: Shape, *, second: bool) -> None:
        """Add the part of the object that lies in one more plane."""
        area, centre, low, high = _area_and_box(shape)
        self.pixels += area
        self.moments += area * np.array([shape.z + 0.5, *centre])
        self.low = np.minimum(self.low, [shape.z, *low])
        self.high = np.maximum(self.high, [shape.z + 1, *high])
        if second:
            self.second += lifted(Edges(shape).moments(), shape.z)


def lines_of(
    shapes: Iterable[Shape], grid: Grid, found: Measured, forms: Forms | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the value, and the line by column, of each shape or object of a volume."""
    if found.volumes:
        for solid in _solids(shapes, second=forms is not None):
            line = dict(zip(COLUMNS, _line_of_solid(solid, grid, found), strict=True))
            yield solid.first.value, line | (forms.of_solid(solid.second) if forms else {})
    else:
        for shape in shapes:
            line = dict(zip(COLUMNS, _line(shape, grid, found), strict=True))
            yield shape.value, line | (forms.of(shape) if forms else {})


def _solids(shapes: Iterable[Shape], *, second: bool) -> Iterable[_Solid]:
    """Return the objects of a volume, in the order of their first planes."""
    solids: dict[int, _Solid] = {}
    for shape in shapes:
        if shape.value not in solids:
            solids[shape.value] = _Solid(shape)
        solids[shape.value].add(shape, second=second)
    return solids.values()


def _area_and_box(shape: Shape) -> tuple[int, tuple[float, float], NDArray[Any], NDArray[Any]]:
    """Return the number of pixels, the centroid, and the bounding box's two corners of a shape: y, x in mask pixels."""
    area, centre = area_and_centroid([ring for part in shape.parts for ring in part.rings])
    corners = np.concatenate([part.rings[0] for part in shape.parts])
    return area, centre, corners.min(axis=0), corners.max(axis=0)


def _line(shape: Shape, grid: Grid, found: Measured) -> list[object]:
    """Return the values of the line of a shape, in the order of `COLUMNS`."""
    area, (y, x), low, high = _area_and_box(shape)
    number, size = shape.value if found.objects else "", (area, _times(area, found.pixel_um2), "", "")
    place, box = _point(grid, y, x), _box(grid, low, high)
    return [shape.id, shape.name, number, shape.t, shape.z, *place, *size, *box, shape.z, shape.z + 1]


def _line_of_solid(solid: _Solid, grid: Grid, found: Measured) -> list[object]:
    """Return the values of the line of an object in a volume, in the order of `COLUMNS`."""
    shape, (z, y, x) = solid.first, (solid.moments / solid.pixels).tolist()
    size = ("", "", solid.pixels, _times(solid.pixels, found.voxel_um3))
    place, box = _point(grid, y, x), _box(grid, solid.low[1:], solid.high[1:])
    middle = round(z, DECIMALS)
    return [shape.id, shape.name, shape.value, shape.t, middle, *place, *size, *box, solid.low[0], solid.high[0]]


def _times(pixels: int, size: float | None) -> float | str:
    return "" if size is None else round(pixels * size, DECIMALS)


def _point(grid: Grid, y: float, x: float) -> list[float]:
    """Return x and y of a point in pixels of the image."""
    return [round(value, DECIMALS) for value in grid.place_point(y, x)]


def _box(grid: Grid, low: NDArray[Any], high: NDArray[Any]) -> list[float]:
    """Return left, top, right and bottom of a bounding box in pixels of the image."""
    placed: list[float] = grid.place(np.stack([low, high]).astype(np.int32))[:2].ravel().tolist()
    return placed
