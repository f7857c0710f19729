"""Regions that a user drew, as a map of tissue: every cell that one of them overlaps, however little, has tissue."""

from __future__ import annotations

from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from tilenet.drawn_regions import covered, read_regions
from tilenet.readers.image import Image
from tilenet.readers.resampled import at_resolution, step_of
from tilenet.resolution import Resolution
from tilenet.store import TissueMap
from tilenet.store.tissue_map import MOST_CELLS
from tilenet.tissue.cells import cells_of
from tilenet.tissue.detection import Tissue

ENDINGS = (".geojson", ".json")
QUARTERS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])

Edges = NDArray[np.float64]


def names_regions(tissue: Any) -> bool:
    """Return whether what a user gave as tissue is the path of a file of regions."""
    return isinstance(tissue, str | PathLike) and Path(tissue).suffix.lower() in ENDINGS


def tissue_in_regions(path: str | Path, image: Image, resolution: Resolution) -> Tissue:
    """Return where the regions of a GeoJSON file lie in an image, which is segmented at a resolution.

    `SettingsError` as `read_regions`; if all of them lie outside of the image.
    """
    drawn = [region for region in read_regions(path, named=False) if region.area.area]
    covers = at_resolution(image, resolution).plane_shape()
    ends, cells = image.plane_shape(0), np.zeros(cells_of(covers), bool)
    # In pixels at full resolution. The last pixels of a coarser grid may reach beyond the image.
    rows, columns = (
        np.array([min(float(Fraction(k * n, count) * step), end) for k in range(count + 1)])
        for n, count, step, end in zip(covers, cells.shape, step_of(image, resolution), ends, strict=True)
    )
    covered(drawn, (0, 0, columns[-1], rows[-1]), "the image")
    for region in drawn:
        _mark(cells, region.area, rows, columns)
    facts = {"method": "given", "looked_at": list(ends), "regions": len(drawn)}
    where = f"the region of {path}" if len(drawn) == 1 else f"the {len(drawn)} regions of {path}"
    return Tissue(TissueMap(cells, covers), facts, f"in {where}")


def _mark(cells: NDArray[np.bool_], area: shapely.MultiPolygon, rows: Edges, columns: Edges) -> None:
    """Mark the cells between some edges that an area overlaps: squares of them are quartered where its outline runs."""
    shapely.prepare(area)
    # What lies between the edges of a cell is disjoint from an area that only touches the cell.
    (top, left), (bottom, right) = (
        [np.nextafter(edges, toward) for edges in (rows, columns)] for toward in (np.inf, -np.inf)
    )
    at: NDArray[np.intp] = np.zeros((1, 2), np.intp)
    side = MOST_CELLS
    while side and len(at):
        (y, x), (y_end, x_end) = at.T * side, np.minimum((at + 1) * side, cells.shape).T
        squares = shapely.box(left[x], top[y], right[x_end], bottom[y_end])
        meets = shapely.intersects(area, squares)
        whole = meets if side == 1 else shapely.covers(area, squares)
        for row, column in at[whole] * side:
            cells[row : row + side, column : column + side] = True
        quarters = (2 * at[meets & ~whole, None] + QUARTERS).reshape(-1, 2)
        side //= 2
        at = quarters[(quarters * side < cells.shape).all(axis=1)]
