"""The lines of a table: class, size and position of each region or object.

Areas and centroids are exactly those of the pixels, as far as these lie in the image: the last ones of a coarser mask
may reach beyond it. They are computed from the outlines (shoelace formula).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.export.areas import MinimumSize, um_of
from tilenet.export.edges import Moments
from tilenet.export.measuring import MeasuredShape, Measuring
from tilenet.export.placement import DECIMALS, MaskPlacement
from tilenet.export.shapes import Shape
from tilenet.export.totals import Measured, sizes_of

# x and y in pixels of the image at full resolution, from its upper left corner; sizes in pixels of the mask.
COLUMNS = (
    *("id", "class", "object", "t", "z", "x", "y", "area_px", "area_um2", "volume_px", "volume_um3"),
    *("left", "top", "right", "bottom", "front", "back"),
)
# Weight of a plane of an object that lies beyond the image, so that what lies there altogether has a centroid.
LITTLE = 1e-9


@dataclass
class _Solid:
    """Measurements of one object of a volume, summed up plane by plane; `second` only if it is asked for."""

    first: Shape
    pixels: int = 0
    inside: float = 0
    weight: float = 0
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    low: NDArray[np.int64] = field(default_factory=lambda: np.full(3, np.iinfo(np.int64).max))
    high: NDArray[np.int64] = field(default_factory=lambda: np.full(3, np.iinfo(np.int64).min))
    second: Moments = field(default_factory=lambda: np.zeros((4, 4), object))

    def add(self, measured: MeasuredShape, grid: MaskPlacement, *, second: bool) -> None:
        """Add the part of the object that lies in one more plane."""
        shape, (pixels, inside, centre) = measured.shape, measured.extent
        share, (low, high) = grid.plane_share(shape.z), measured.box
        inside *= share
        self.pixels += pixels
        self.inside += inside
        self.weight += inside or LITTLE
        self.moments += (inside or LITTLE) * np.array([shape.z + share / 2, *centre])
        self.low = np.minimum(self.low, [shape.z, *low])
        self.high = np.maximum(self.high, [shape.z + 1, *high])
        if second:
            self.second += measured.lifted_moments


def lines_of(
    shapes: Iterable[MeasuredShape], measuring: Measuring, found: Measured, least: MinimumSize
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the value, and the line by column, of each shape or object of a volume; count smaller ones in `found`."""
    grid, forms, bright = measuring.grid, measuring.forms, measuring.bright
    solids = _solids(shapes, grid, second=forms is not None) if found.volumes else None
    things: Iterable[MeasuredShape | _Solid] = shapes if solids is None else solids
    for thing in things:
        values = _line_of_solid(thing, grid, found) if isinstance(thing, _Solid) else _line(thing, grid, found)
        line = dict(zip(COLUMNS, values, strict=True))
        if least.excludes(*sizes_of(line, found)):
            found.left_out += 1
        elif isinstance(thing, _Solid):
            value, form = thing.first.value, forms.of_solid(thing.second) if forms else {}
            yield value, line | form | (bright.of(value) if bright else {})
        else:
            yield thing.shape.value, line | thing.form | thing.bright


def _solids(shapes: Iterable[MeasuredShape], grid: MaskPlacement, *, second: bool) -> Iterable[_Solid]:
    """Return the objects of a volume, in the order of their first planes."""
    solids: dict[int, _Solid] = {}
    for measured in shapes:
        value = measured.shape.value
        if value not in solids:
            solids[value] = _Solid(measured.shape)
        solids[value].add(measured, grid, second=second)
    return solids.values()


def _line(measured: MeasuredShape, grid: MaskPlacement, found: Measured) -> list[object]:
    """Return the values of the line of a shape, in the order of `COLUMNS`."""
    shape, (pixels, inside, (y, x)) = measured.shape, measured.extent
    number, size = shape.value if found.objects else "", (pixels, um_of(inside, found.pixel_um2), "", "")
    place, box = _point(grid, y, x), measured.place
    return [shape.id, shape.name, number, shape.t, shape.z, *place, *size, *box, shape.z, shape.z + 1]


def _line_of_solid(solid: _Solid, grid: MaskPlacement, found: Measured) -> list[object]:
    shape, (z, y, x) = solid.first, (solid.moments / solid.weight).tolist()
    size = ("", "", solid.pixels, um_of(solid.inside, found.voxel_um3))
    place, box = _point(grid, y, x), grid.place(np.stack([solid.low, solid.high])[:, 1:]).ravel().tolist()
    middle = round(z, DECIMALS)
    return [shape.id, shape.name, shape.value, shape.t, middle, *place, *size, *box, solid.low[0], solid.high[0]]


def _point(grid: MaskPlacement, y: float, x: float) -> list[float]:
    return [round(value, DECIMALS) for value in grid.place_point(y, x)]
