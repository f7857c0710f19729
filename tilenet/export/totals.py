"""What a table of a mask amounts to: how many shapes of each class, what they cover, and how dense they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilenet.export.areas import cut_size
from tilenet.export.in_regions import InRegion, Within
from tilenet.export.placement import DECIMALS, MaskPlacement
from tilenet.store.tissue_map import TissueMap


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
    in_tissue : dict
        Number of lines by class whose centroid lies in tissue: whole blocks are computed, so that shapes outside are
        found too. Zeros without a tissue map.
    regions : list of InRegion
        What lies in each region that a user drew, in the order of their file: `name`, `counts`, `mm2`, `per_mm2`,
        `positive`.
    positive, judged : dict
        Number of lines by class that are positive, and of those that are positive or negative: an object without a
        finite pixel is neither. Empty if that was not asked for.
    beyond : dict
        How much of `area_px` by class lies beyond the image, in thousandths of a um2 or um3.
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
    in_tissue: Counter[str] = field(default_factory=Counter)
    regions: list[InRegion] = field(default_factory=list)
    positive: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)

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
        return _per(self.in_tissue, self.tissue_mm2)

    @property
    def per_mm2(self) -> dict[str, float]:
        """Number of lines by class per square millimetre of all planes; empty if the pixel size is unknown."""
        return _per(self.counts, self.mm2)

    @property
    def per_mm3(self) -> dict[str, float]:
        """Number of objects by class per cubic millimetre of a volume; empty if the pixel size is unknown."""
        return _per(self.counts, self.mm3)

    def count_positive(self) -> None:
        """Begin to count what is positive: 0 of each class, in each region too."""
        none = dict.fromkeys(self.counts, 0)
        whole: list[Measured | InRegion] = [self, *self.regions]
        for counted in whole:
            counted.positive, counted.judged = Counter(none), Counter(none)


def _per(counts: Counter[str], size: float | None) -> dict[str, float]:
    """Return counts per unit of a size; empty if that is 0 or unknown."""
    return {name: count / size for name, count in counts.items()} if size else {}


def sizes_of(line: Mapping[str, Any], found: Measured) -> tuple[int, float | None]:
    """Return the pixels of a line of a table, and its `cut_size`."""
    pixels, um = ("volume_px", "volume_um3") if found.volumes else ("area_px", "area_um2")
    n = int(line[pixels])
    return n, None if found.inside == 1 else cut_size(n, found.size, line[um])


class Tally:
    """Counts the lines of a table, by what they say, so that a table that is read again gives the same numbers.

    Parameters
    ----------
    found : Measured
        What is counted, changed in place.
    tissue : TissueMap or None
        The tissue map of the mask.
    grid : MaskPlacement
        Where the mask lies in its image.
    within : Within or None
        Where the `found.regions` are.
    """

    def __init__(
        self, found: Measured, tissue: TissueMap | None, grid: MaskPlacement, within: Within | None = None
    ) -> None:
        self._found, self._tissue, self._within = found, tissue, within
        # As floats, once: a table may have a million lines.
        self._step = tuple(map(float, grid.step))

    def add(self, line: Mapping[str, Any]) -> list[str]:
        """Count a line, given its values by column, as numbers or as text; return the names of its regions."""
        name, x, y = line["class"], float(line["x"]), float(line["y"])
        self._found.counts[name] += 1
        pixels, cut = sizes_of(line, self._found)
        self._found.area_px[name] += pixels
        if cut is not None and self._found.size is not None:
            # In integers, so that the order of lines does not matter.
            whole = round(pixels * self._found.size, DECIMALS)
            self._found.beyond[name] += round((whole - cut) * 10**DECIMALS)
        self._found.in_tissue[name] += self._has_tissue(x, y)
        regions = [self._found.regions[k] for k in self._within.at(x, y)] if self._within else []
        for region in regions:
            region.counts[name] += 1
        if self._found.positive and line["positive"]:
            counting: list[Measured | InRegion] = [self._found, *regions]
            for counted in counting:
                counted.judged[name] += 1
                counted.positive[name] += int(line["positive"])
        return [region.name for region in regions]

    def _has_tissue(self, x: float, y: float) -> bool:
        if self._tissue is None:
            return False
        along = zip((y, x), self._step, self._tissue.covers, strict=True)
        return self._tissue.holds(*(min(int(at / step), n - 1) for at, step, n in along))
