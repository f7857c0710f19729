"""Where the pixels of a mask lie in its image at full resolution."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilenet.corners import Ring
from tilenet.errors import ImageError, OutputMismatch
from tilenet.geometry import ceil_div
from tilenet.readers import open_image
from tilenet.resolution import AS_STORED, covered, recorded
from tilenet.store import Mask
from tilenet.tiff_mask import TiffMask

DECIMALS = 3


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a mask lie in its image: `origin` (y, x) on the grid of the mask, `step` in image pixels.

    `limit` is where the image ends: the last pixels of a coarser grid reach beyond it.
    """

    origin: tuple[int, int]
    step: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    limit: tuple[int, int] | None = None

    def place(self, ring: Ring) -> NDArray[Any]:
        """Return x and y (n + 1, 2) of a ring in image pixels, its first vertex at its end too."""
        corners = np.concatenate([ring, ring[:1]]).astype(np.int64) + self.origin
        if all(step.denominator == 1 for step in self.step):
            corners *= [step.numerator for step in self.step]
        else:
            corners = np.round(corners * [float(step) for step in self.step], DECIMALS)
        if self.limit:
            corners = np.minimum(corners, self.limit)
        return corners[:, ::-1]


def find_grid(mask: Mask | TiffMask, image: str | Path | None) -> Grid:
    """Return where a mask lies; its image is opened only if it is of a coarser level or another pixel size.

    Raises
    ------
    OutputMismatch
        If the image is not there, or is another.
    """
    record, origin = mask.info["record"], (mask.origin[-2], mask.origin[-1])
    by = recorded(record["level"], record["factor"], record["mpp"]).factor
    if record["level"] == 0 and by == AS_STORED:
        return Grid(origin)
    source = mask.info["image"]["path"] if image is None else image
    try:
        with open_image(source, axes=record["axes"]) as opened:
            full, stored = (_in_plane(opened.axes, opened.levels[k].shape) for k in (0, record["level"]))
    except (ImageError, IndexError) as error:
        raise OutputMismatch(
            f"{mask.path}: is of level {record['level']} of {source}, and where that lies at full resolution only "
            f"the image says ({error}). Name it with --image"
        ) from error
    ends = [a + n for a, n in zip(origin, mask.shape[-2:], strict=True)]
    if any(end > ceil_div(n * f.denominator, f.numerator) for end, n, f in zip(ends, stored, by, strict=True)):
        raise OutputMismatch(
            f"{mask.path}: reaches to {ends}, beyond level {record['level']} of {source}. Give its image"
        )
    y, x = (covered(n, m) * f for n, m, f in zip(full, stored, by, strict=True))
    return Grid(origin, (y, x), full)


def _in_plane(axes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[axes.index("y")], shape[axes.index("x")]
