"""What lies in regions that a user drew.

A shape lies in a region if its centroid does, on the border too: this is how QuPath assigns objects to annotations
(PathObjectTileCache.containsCentroid in its source).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import shapely

from tilenet.drawn_regions import Drawn

# Rows of the image that are looked up together.
BAND = 512


@dataclass
class InRegion:
    """What lies in a region that a user drew.

    Attributes
    ----------
    name : str
        Its name, which no other region of the file has.
    counts : dict
        Number of lines by class.
    mm2 : float or None
        Area of the part of it that the mask covers; None if the pixel size is unknown.
    positive, judged : dict
        How many of them are positive, and how many positive or negative; empty if that was not asked for.
    tissue_mm2 : float or None
        How much of `mm2` the tissue map counts as tissue; None also without a tissue map.
    in_tissue : dict
        Number of lines by class whose centroid lies in tissue, too. Zeros without a tissue map.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    mm2: float | None = None
    positive: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    tissue_mm2: float | None = None
    in_tissue: Counter[str] = field(default_factory=Counter)

    @property
    def per_mm2(self) -> dict[str, float]:
        """Number of lines by class per square millimetre; empty if the area is 0 or unknown."""
        return per_size(self.counts, self.mm2)

    @property
    def per_mm2_of_tissue(self) -> dict[str, float]:
        """Number of lines by class in tissue per square millimetre of it; empty without tissue, or a map of it."""
        return per_size(self.in_tissue, self.tissue_mm2)


def per_size(counts: Counter[str], size: float | None) -> dict[str, float]:
    """Return counts per unit of a size; empty if that is 0 or unknown."""
    return {name: count / size for name, count in counts.items()} if size else {}


class Within:
    """Finds the regions that a point lies in."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        self._areas = [region.area for region in drawn]
        shapely.prepare(self._areas)
        # Once: a slide has hundreds of bands, and a file may have thousands of regions.
        self._bounds: list[list[float]] = shapely.bounds(self._areas).tolist()
        self._bands: dict[int, list[tuple[int, list[float]]]] = {}

    def at(self, x: float, y: float) -> list[int]:
        """Return the numbers, in order, of the regions that a point in pixels of the image lies in."""
        # Comparisons of numbers, because a query of an index costs as much as a hundred of them.
        return [
            number
            for number, (left, top, right, bottom) in self._near(int(y // BAND))
            if left <= x <= right and top <= y <= bottom and shapely.intersects_xy(self._areas[number], x, y)
        ]

    def _near(self, band: int) -> list[tuple[int, list[float]]]:
        """Return the numbers of the regions that reach into a band of rows, and their bounds."""
        if band not in self._bands:
            first, last = band * BAND, (band + 1) * BAND
            self._bands[band] = [
                (number, box) for number, box in enumerate(self._bounds) if box[1] <= last and box[3] >= first
            ]
        return self._bands[band]
