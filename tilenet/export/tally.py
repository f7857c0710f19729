"""Counting the lines of a table: by class, in tissue, and in regions that a user drew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tilenet.drawn_regions import Drawn, covered
from tilenet.errors import SettingsError
from tilenet.export.areas import pixel_sizes
from tilenet.export.cell_areas import area_in_cells
from tilenet.export.in_regions import InRegion, Within
from tilenet.export.opened import has_volumes
from tilenet.export.placement import DECIMALS, MaskPlacement
from tilenet.export.shapes import class_names
from tilenet.export.totals import Measured, sizes_of
from tilenet.store import AnyMask, TissueMap


class Tally:
    """Counts in `found` the lines of a table, by what they say, so that a table that is read again gives the same.

    `drawn` are regions to count in; `positive` says whether to count what is positive.
    """

    def __init__(
        self, mask: AnyMask, out: Path, grid: MaskPlacement, drawn: Sequence[Drawn] = (), *, positive: bool
    ) -> None:
        self.found, self._tissue = _empty_result(mask, out, grid), mask.tissue
        self.found.regions = _regions(drawn, mask, grid, self.found) if drawn else []
        self._within = Within(drawn) if drawn else None
        if positive:
            self.found.count_positive()
        # As floats, once: a table may have a million lines.
        self._step = tuple(map(float, grid.step))

    def add(self, line: Mapping[str, Any]) -> list[str]:
        """Count a line, given its values by column, as numbers or as text; return the names of its regions."""
        name, x, y = line["class"], float(line["x"]), float(line["y"])
        self.found.counts[name] += 1
        pixels, cut = sizes_of(line, self.found)
        self.found.area_px[name] += pixels
        if cut is not None and self.found.size is not None:
            # In integers, so that the order of lines does not matter.
            whole = round(pixels * self.found.size, DECIMALS)
            self.found.beyond[name] += round((whole - cut) * 10**DECIMALS)
        has_tissue = self._has_tissue(x, y)
        self.found.in_tissue[name] += has_tissue
        regions = [self.found.regions[k] for k in self._within.at(x, y)] if self._within else []
        for region in regions:
            region.counts[name] += 1
            region.in_tissue[name] += has_tissue
        if self.found.positive and line["positive"]:
            counting: list[Measured | InRegion] = [self.found, *regions]
            for counted in counting:
                counted.judged[name] += 1
                counted.positive[name] += int(line["positive"])
        return [region.name for region in regions]

    def _has_tissue(self, x: float, y: float) -> bool:
        if self._tissue is None:
            return False
        along = zip((y, x), self._step, self._tissue.covers, strict=True)
        return self._tissue.holds(*(min(int(at / step), n - 1) for at, step, n in along))


def _empty_result(mask: AnyMask, out: Path, grid: MaskPlacement) -> Measured:
    """Return the measurements of a mask before its first shape, with a count of 0 for each class."""
    (pixel, voxel), inside = pixel_sizes(mask), grid.inside(mask.shape)
    none = dict.fromkeys(class_names(mask).values(), 0)
    found = Measured(out, Counter(none), Counter(none), mask.has_objects, pixel_um2=pixel, mask_px=prod(mask.shape))
    found.in_tissue, found.inside = Counter(none), prod(inside) / prod(mask.shape[-2:])
    if mask.tissue is not None:
        found.tissue_share = mask.tissue.tissue_fraction(mask.box, inside)
        found.only_regions = "regions" in mask.info["tissue"]
    found.volumes, found.voxel_um3 = has_volumes(mask), voxel
    if found.volumes:
        first, planes = mask.origin[-3], mask.shape[-3]
        found.inside *= sum(map(grid.plane_share, range(first, first + planes))) / planes
    return found


def _regions(drawn: Sequence[Drawn], mask: AnyMask, grid: MaskPlacement, found: Measured) -> list[InRegion]:
    """Return the regions before the first shape, with their areas as far as the mask covers them."""
    if max(mask.shape[:-2], default=1) > 1:
        first = ",".join(f"{at}:{at + 1}" for at in mask.origin[:-2])
        raise SettingsError(
            f"{mask.path}: has several planes, and regions are drawn in one. Segment one alone, such as "
            f"--roi {first},:,:"
        )
    (x0, y0), (x1, y1) = (grid.place_point(y, x) for y, x in ((0, 0), mask.shape[-2:]))
    parts, none = covered(drawn, (x0, y0, x1, y1)), dict.fromkeys(found.counts, 0)
    regions = [InRegion(region.name, Counter(none), in_tissue=Counter(none)) for region in drawn]
    if found.pixel_um2 is not None:
        um2 = found.pixel_um2 / float(prod(grid.step))
        for region, part in zip(regions, parts, strict=True):
            region.mm2 = part.area * um2 / 1e6
            if mask.tissue is not None:
                region.tissue_mm2 = _tissue_in(part, mask.tissue, grid) * um2 / 1e6
    return regions


def _tissue_in(area: Any, tissue: TissueMap, grid: MaskPlacement) -> float:
    """Return how many pixels of the image are tissue in an area of it."""
    ends = grid.limit or (np.inf, np.inf)
    rows, columns = (
        np.minimum(edges * float(step), end) for edges, step, end in zip(tissue.edges(), grid.step, ends, strict=True)
    )
    return area_in_cells(area, tissue.tissue, rows, columns)
