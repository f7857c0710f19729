"""What is measured of the shapes of a mask: once, for all files that are written of it together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tilenet.export.areas import extent
from tilenet.export.descriptors import COLUMNS, ShapeDescriptors
from tilenet.export.intensities import Intensities, Measurements
from tilenet.export.placement import MaskPlacement
from tilenet.export.shapes import Progress, Shape, shapes_of
from tilenet.store import AnyMask

LOG = logging.getLogger("tilenet")


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
        return [*(COLUMNS if self.forms else ()), *(self.bright.columns() if self.bright else ())]

    def shapes(self, progress: Progress | None) -> Iterator[MeasuredShape]:
        """Yield the shapes of the mask, see `shapes_of`, but those of which nothing lies in the image."""
        every = (MeasuredShape(shape, self) for shape in shapes_of(self.mask, progress))
        return self._in_image(every) if self.grid.has_pixels_outside(self.mask.shape) else every

    def _in_image(self, shapes: Iterator[MeasuredShape]) -> Iterator[MeasuredShape]:
        """Yield the shapes that are somewhere in the image; say how many are not."""
        outside = 0
        for shape in shapes:
            if shape.extent[1]:
                yield shape
            else:
                outside += 1
        if outside:
            LOG.warning(
                "%s: %d of its outlines lie in a row or column beyond the image, where a coarser level is rounded up, "
                "and are left out",
                *(self.mask.path, outside),
            )


class MeasuredShape:
    """A shape, and what is measured of it when it is first asked for."""

    def __init__(self, shape: Shape, measuring: Measuring) -> None:
        self.shape, self._measuring = shape, measuring

    @cached_property
    def extent(self) -> tuple[int, float, tuple[float, float]]:
        """Its pixels, how many of them lie in the image, and the centroid (y, x) of these."""
        return extent(self.shape.rings, self._measuring.grid)

    @cached_property
    def form(self) -> dict[str, str]:
        """Its form by column; empty if that is not asked for."""
        return self._measuring.forms.of(self.shape) if self._measuring.forms else {}
