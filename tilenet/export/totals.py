"""What tables and polygons of a mask amount to: how many shapes of each class, what they cover, how dense they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilenet.export.areas import cut_size
from tilenet.export.in_regions import InRegion, per_size
from tilenet.export.placement import DECIMALS


@dataclass
class Outlined:
    """The result of `write_geojson`.

    Attributes
    ----------
    path : Path
        The file.
    features : dict
        Number of features by classification.
    vertices : int
        Corners of all polygons.
    objects, volumes : bool
        Whether features are objects rather than regions of a class; and whether objects extend over planes, with a
        feature in each plane.
    left_out : int
        Number of shapes smaller than `min_area`.
    """

    path: Path
    features: Counter[str] = field(default_factory=Counter)
    vertices: int = 0
    objects: bool = False
    volumes: bool = False
    left_out: int = 0


@dataclass
class Measured:
    """The result of `write_table`.

    Attributes
    ----------
    path : Path
        The file.
    counts : dict
        Number of lines by class; 0 for a class of the mask without any.
    area_px : dict
        Number of mask pixels by class, in all planes together.
    objects, volumes : bool
        Whether lines are objects rather than regions of a class; and whether objects extend over planes.
    pixel_um2, voxel_um3 : float or None
        Area and volume of a pixel of the mask, if its size is known.
    mask_px : int
        Number of pixels of the mask, in all planes and with the background.
    inside : float
        Share of the mask that lies in its image: of a coarser one, the last row, column or plane may reach beyond.
        Areas and densities are those of what lies inside.
    left_out : int
        Number of shapes smaller than `min_area`.
    tissue_share : float or None
        Share of the mask that its tissue map counts as tissue; None without a tissue map.
    only_regions : bool
        Whether drawn regions, as tissue, said where to look. What lies elsewhere is not known, so that there is no
        density of the whole plane.
    in_tissue : dict
        Number of lines by class whose centroid lies in tissue: whole blocks are computed, so that shapes outside are
        found too. Zeros without a tissue map.
    regions : list of InRegion
        What lies in each region that a user drew, in the order of their file: `name`, `counts`, `mm2`, `per_mm2`,
        `positive`, `tissue_mm2`, `in_tissue`, `per_mm2_of_tissue`.
    positive, judged : dict
        Number of lines by class that are positive, and of those that are positive or negative: an object without a
        finite pixel is neither. Empty if that was not asked for.
    beyond : dict
        How much of `area_px` by class lies beyond the image, in thousandths of a um2 or um3.
    outlined : Outlined or None
        What `write_geojson` would return, if polygons were written too.
    """

    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    area_px: Counter[str] = field(default_factory=Counter)
    objects: bool = False
    volumes: bool = False
    pixel_um2: float | None = None
    voxel_um3: float | None = None
    mask_px: int = 0
    inside: float = 1.0
    left_out: int = 0
    tissue_share: float | None = None
    only_regions: bool = False
    in_tissue: Counter[str] = field(default_factory=Counter)
    regions: list[InRegion] = field(default_factory=list)
    positive: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)
    outlined: Outlined | None = None

    @property
    def _px(self) -> float:
        return self.mask_px * self.inside

    @property
    def size(self) -> float | None:
        """Area of a pixel of the mask, or volume of one of a mask of volumes; None if it is unknown."""
        return self.voxel_um3 if self.volumes else self.pixel_um2

    def covered_um(self, name: str) -> float | None:
        """Return what the lines of a class cover in um2, or um3 for volumes; None if the pixel size is unknown."""
        if self.size is None:
            return None
        whole = self.area_px[name] * self.size
        return whole - self.beyond[name] / 10**DECIMALS if self.beyond[name] else whole

    def covered_share(self, name: str) -> float:
        """Return the share of the mask that the lines of a class cover, of whole pixels if their size is unknown."""
        covered = self.covered_um(name)
        if self.inside == 1 or covered is None or self.size is None:
            return self.area_px[name] / self.mask_px
        return min(1.0, covered / (self._px * self.size))  # what is rounded in a table may be a little more

    @property
    def mm2(self) -> float | None:
        """Square millimetres of the mask, of all planes; None if the pixel size is unknown, or for volumes."""
        return None if self.pixel_um2 is None or self.volumes else self._px * self.pixel_um2 / 1e6

    @property
    def mm3(self) -> float | None:
        """Cubic millimetres of the mask of a volume; None if the size of its voxels is unknown."""
        return None if self.voxel_um3 is None or not self.volumes else self._px * self.voxel_um3 / 1e9

    @property
    def tissue_mm2(self) -> float | None:
        """Square millimetres of tissue; None also without a tissue map."""
        return None if self.mm2 is None or self.tissue_share is None else self.mm2 * self.tissue_share

    @property
    def per_mm2_of_tissue(self) -> dict[str, float]:
        """Number of lines by class with their centroid in tissue, per square millimetre of it; empty without a map."""
        return per_size(self.in_tissue, self.tissue_mm2)

    @property
    def per_mm2(self) -> dict[str, float]:
        """Number of lines by class per square millimetre of all planes; empty if either is unknown."""
        return {} if self.only_regions else per_size(self.counts, self.mm2)

    @property
    def per_mm3(self) -> dict[str, float]:
        """Number of objects by class per cubic millimetre of a volume; empty if the pixel size is unknown."""
        return per_size(self.counts, self.mm3)

    def count_positive(self) -> None:
        """Begin to count what is positive: 0 of each class, in each region too."""
        none = dict.fromkeys(self.counts, 0)
        whole: list[Measured | InRegion] = [self, *self.regions]
        for counted in whole:
            counted.positive, counted.judged = Counter(none), Counter(none)


def sizes_of(line: Mapping[str, Any], found: Measured) -> tuple[int, float | None]:
    """Return the pixels of a line of a table, and its `cut_size`."""
    pixels, um = ("volume_px", "volume_um3") if found.volumes else ("area_px", "area_um2")
    n = int(line[pixels])
    return n, None if found.inside == 1 else cut_size(n, found.size, line[um])
