"""What is measured of the shapes of a mask: once, for all files that are written of it together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.export.areas import Extent, extent, extents
from tilenet.export.descriptors import COLUMNS, ShapeDescriptors, lifted
from tilenet.export.edges import Edges, Moments, boxes_of
from tilenet.export.intensities import Intensities, Measurements
from tilenet.export.placement import MaskPlacement
from tilenet.export.shapes import Shape, shapes_of
from tilenet.store import AnyMask, Progress

LOG = logging.getLogger("tilenet")
# Of the shapes that are measured together: so many that calls cost little, and so few that they take little memory.
CORNERS = 2**15


@dataclass(frozen=True)
class Measuring:
    """What is measured of each shape of a mask."""

    mask: AnyMask
    # Where it lies in its image.
    grid: MaskPlacement
    # What measures forms, and what was measured of the image over each object; None if not asked for.
    forms: ShapeDescriptors | None
    bright: Measurements | None

    @classmethod
    def begin(
        cls, mask: AnyMask, grid: MaskPlacement, image: Any, intensities: Intensities, *, shapes: bool
    ) -> Measuring:
        """Measure the image over the objects; raise before the mask is read if that cannot be done."""
        if intensities:
            intensities.check(mask, image)
        mask.refuse_damage()
        measured = intensities.measure(mask, image) if intensities else None
        return cls(mask, grid, ShapeDescriptors(mask) if shapes else None, measured)

    def columns(self) -> list[str]:
        """Return the names of all columns that this adds to a table."""
        return [*(COLUMNS if self.forms else ()), *(self.bright.columns if self.bright else ())]

    def shapes(self, progress: Progress | None) -> Iterator[MeasuredShape]:
        """Yield the shapes of the mask, see `shapes_of`, but those of which nothing lies in the image."""
        every = self._measured(progress)
        return self._in_image(every) if self.grid.has_pixels_outside(self.mask.shape) else every

    def _measured(self, progress: Progress | None) -> Iterator[MeasuredShape]:
        for shapes in _groups(shapes_of(self.mask, progress)):
            group = _Group(shapes, self)
            yield from (MeasuredShape(shape, group, k) for k, shape in enumerate(shapes))

    def _in_image(self, shapes: Iterator[MeasuredShape]) -> Iterator[MeasuredShape]:
        """Yield the shapes that are somewhere in the image; say how many are not."""
        outside = 0
        for shape in shapes:
            if shape.extent.inside:
                yield shape
            else:
                outside += 1
        if outside:
            LOG.warning(
                "%s: %d of its outlines lie in a row or column beyond the image, where a coarser level is rounded up, "
                "and are left out",
                *(self.mask.path, outside),
            )


def _groups(shapes: Iterable[Shape]) -> Iterator[list[Shape]]:
    """Yield shapes in groups of some corners, and larger ones alone."""
    group: list[Shape] = []
    corners = 0
    for shape in shapes:
        own = sum(map(len, shape.rings))
        if group and corners + own > CORNERS:
            yield group
            group, corners = [], 0
        group.append(shape)
        corners += own
    if group:
        yield group


class _Group:
    """Shapes that are measured together, when the first of them is asked for: one call for many is much faster.

    A shape that is alone may be as large as a slide: what is asked for of all shapes takes its rings one by one.
    """

    def __init__(self, shapes: Sequence[Shape], measuring: Measuring) -> None:
        self._shapes, self._grid, self._forms = shapes, measuring.grid, measuring.forms
        self._is_alone, self.bright = len(shapes) == 1, measuring.bright

    @cached_property
    def edges(self) -> Edges:
        return Edges(self._shapes)

    @cached_property
    def boxes(self) -> NDArray[np.int32]:
        return boxes_of(self._shapes) if self._is_alone else self.edges.boxes

    @cached_property
    def extents(self) -> list[Extent]:
        if self._is_alone:
            return [extent(self._shapes[0].rings, self._grid)]
        return extents(self._shapes, self.edges, self._grid)

    @cached_property
    def places(self) -> list[list[float]]:
        found: list[list[float]] = self._grid.place(self.boxes.reshape(-1, 2)).reshape(-1, 4).tolist()
        return found

    def rings_of(self, number: int) -> Iterator[NDArray[Any]]:
        rings = self._shapes[number].rings
        if self._is_alone:
            yield from map(self._grid.place, rings)
            return
        first = self.edges.bounds[number]
        for ring in rings:
            yield self._corners[first : first + len(ring)]
            first += len(ring)

    @cached_property
    def _corners(self) -> NDArray[Any]:
        return self._grid.place(self.edges.corners)

    @cached_property
    def moments(self) -> Moments:
        return self.edges.moments()

    @cached_property
    def forms(self) -> list[dict[str, str]]:
        return self._forms.of(self.edges, self.moments) if self._forms else [{}] * len(self._shapes)


class MeasuredShape:
    """A shape, and what is measured of it when it, or another one of its group, is first asked for."""

    def __init__(self, shape: Shape, group: _Group, number: int) -> None:
        self.shape, self._group, self._number = shape, group, number

    @property
    def extent(self) -> Extent:
        """How much it covers."""
        return self._group.extents[self._number]

    @property
    def box(self) -> NDArray[np.int32]:
        """Its bounding box (2, 2) in pixels of the mask: its least y and x, then its largest."""
        found: NDArray[np.int32] = self._group.boxes[self._number]
        return found

    @property
    def place(self) -> list[float]:
        """Left, top, right and bottom of its bounding box, in pixels of the image."""
        return self._group.places[self._number]

    def rings(self) -> Iterator[NDArray[Any]]:
        """Yield its outlines and holes in pixels of the image (n, 2): x and y."""
        return self._group.rings_of(self._number)

    @property
    def lifted_moments(self) -> Moments:
        """The sum of p p^T over its pixels (4, 4), with p = (1, z, y, x), in integers."""
        return lifted(self._group.moments[self._number], self.shape.z, self._group.edges.origins[self._number])

    @property
    def form(self) -> dict[str, str]:
        """Its form by column; empty if that is not asked for."""
        return self._group.forms[self._number]

    @cached_property
    def bright(self) -> dict[str, str]:
        """What was measured of the image over its object, by column; empty if that is not asked for."""
        bright = self._group.bright
        return bright.of(self.shape.value) if bright else {}
