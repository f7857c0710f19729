"""Where the pixels of a mask lie in its image at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.masks.provenance import image_of, refuse_another, resolution_of
from tilenet.readers.image import Image
from tilenet.readers.resampled import step_of
from tilenet.resolution import AS_STORED, downsample_factor
from tilenet.store import AnyMask

# Of coordinates, and of areas and volumes in tables.
DECIMALS = 3


@dataclass(frozen=True)
class MaskPlacement:
    """Where the pixels of a mask lie in its image.

    `origin` (y, x) is in pixels of the mask, `step` is the size of a mask pixel in image pixels, and `limit` is where
    the image ends: the last pixels of a coarser grid may reach beyond it. `thickness` is how many planes of the image
    one of the mask stands for, and `depth` how many of the mask's planes the image has, the last one perhaps in part.
    """

    origin: tuple[int, int]
    step: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    limit: tuple[int, int] | None = None
    thickness: Fraction = Fraction(1)
    depth: Fraction | None = None

    def place(self, corners: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Return x and y (n, 2) in image pixels of corners of pixels of the mask (n, 2): y and x."""
        placed = corners.astype(np.int64) + self.origin
        if all(step.denominator == 1 for step in self.step):
            placed *= [step.numerator for step in self.step]
        else:
            placed = np.round(placed * self._steps, DECIMALS)
        if self.limit:
            placed = np.minimum(placed, self.limit)
        return placed[:, ::-1]

    def place_point(self, y: float, x: float) -> tuple[float, float]:
        """Return x and y of a point in image pixels."""
        at = [(a + first) * step for a, first, step in zip((y, x), self.origin, self._steps, strict=True)]
        down, right = map(min, at, self.limit) if self.limit else at
        return right, down

    @cached_property
    def _steps(self) -> tuple[float, float]:
        """The size of a mask pixel in image pixels as floats, once: a mask may have a million shapes."""
        y, x = map(float, self.step)
        return y, x

    @cached_property
    def end(self) -> NDArray[np.float64] | None:
        """Where the image ends along y and x, in pixels of the mask; None if the mask cannot reach beyond it."""
        if self.limit is None:
            return None
        return np.array([float(n / f - a) for n, f, a in zip(self.limit, self.step, self.origin, strict=True)])

    def inside(self, shape: Sequence[int]) -> tuple[float, float]:
        """Return how many rows and columns of a mask of a shape lie in the image, to fractions of the last ones."""
        height, width = shape[-2:]
        if self.end is None:
            return height, width
        y, x = self.end.tolist()
        return min(height, y), min(width, x)

    def has_pixels_outside(self, shape: Sequence[int]) -> bool:
        """Return whether the last row or column of a mask of a shape lies beyond the image altogether."""
        return self.end is not None and bool((self.end <= np.array(shape[-2:]) - 1).any())

    def plane_share(self, z: int) -> float:
        """Return which share of a plane of the mask, counted from the first of the image, lies in the image."""
        return 1.0 if self.depth is None else float(min(max(self.depth - z, Fraction(0)), Fraction(1)))

    def locate(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return y and x (n, 2) in pixels of the mask of points (n, 2): x and y in pixels of the image."""
        found: NDArray[np.float64] = points[:, ::-1] / np.array(self.step, np.float64) - self.origin
        return found


def find_grid(mask: AnyMask, image: Any) -> MaskPlacement:
    """Return where a mask lies in its image, which is opened if it is given, or is not at full resolution.

    `ImageNotFound` or `ImageError` if the given image cannot be opened, `OutputMismatch` if the image is needed and
    missing, or is not the one that the mask was made from.
    """
    if image is None and is_full(mask):
        return MaskPlacement((mask.origin[-2], mask.origin[-1]))
    of = f"level {mask.info['record']['level']} of {mask.info['image']['path']}"
    why = f"is of {of}, and where that lies at full resolution only the image says"
    with image_of(mask, image, why) as opened:
        refuse_another(opened, mask)
        return grid_in(opened, mask)


def grid_in(image: Image, mask: AnyMask) -> MaskPlacement:
    """Return where a mask lies in its image, which is open, at the level that was segmented."""
    resolution, origin = resolution_of(mask), (mask.origin[-2], mask.origin[-1])
    if is_full(mask):
        return MaskPlacement(origin)
    deep = [image.levels[k].shape[image.axes.index("z")] if "z" in image.axes else 1 for k in (0, resolution.level)]
    thickness = downsample_factor(*deep)
    return MaskPlacement(origin, step_of(image, resolution), image.plane_shape(0), thickness, deep[0] / thickness)


def is_full(mask: AnyMask) -> bool:
    """Return whether pixels of a mask are those of its image at full resolution."""
    resolution = resolution_of(mask)
    return resolution.level == 0 and resolution.factor == AS_STORED
