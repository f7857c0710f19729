"""How much of each cell of a grid an area covers: exactly, in a time that grows with the length of its outline.

Each piece of the outline within a cell tells how much of the row lies on its right: of its own cell a part, of all
cells after that the whole width (Green's theorem, as in renderers of fonts).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]


def area_in_cells(area: Any, cells: NDArray[np.bool_], rows: Numbers, columns: Numbers) -> float:
    """Return how much of an area lies in those cells (h, w) of a grid that are marked; see `cell_areas`."""
    if area.is_empty:
        return 0.0
    left, top, right, bottom = area.bounds
    (y0, y1), (x0, x1) = (
        (max(int(np.searchsorted(edges, low, "right")) - 1, 0), int(np.searchsorted(edges, high, "left")))
        for edges, low, high in ((rows, top, bottom), (columns, left, right))
    )
    near = cells[y0:y1, x0:x1]
    return float(cell_areas(area, rows[y0 : y1 + 1], columns[x0 : x1 + 1])[near].sum()) if near.any() else 0.0


def cell_areas(area: Any, rows: Numbers, columns: Numbers) -> Numbers:
    """Return how much of each cell (h, w) an area covers.

    Parameters
    ----------
    area : shapely.Geometry
        A valid one, within the grid.
    rows, columns : numpy.ndarray
        Edges of the cells along y (h + 1) and x (w + 1), in ascending order.

    Examples
    --------
    >>> cell_areas(shapely.box(1, 0, 4, 1), np.array([0.0, 2.0]), np.array([0.0, 2.0, 4.0]))
    array([[1., 2.]])
    """
    begin, end, sign = _edges(area)
    begin, end, row, of = _cut(begin, end, 1, rows)
    sign = sign[of]
    begin, end, column, of = _cut(begin, end, 0, columns)
    row, height = row[of], sign[of] * (begin - end)[:, 1]
    shape = len(rows) - 1, len(columns) - 1
    right = height * (columns[column + 1] - (begin + end)[:, 0] / 2)
    own, after = (_summed(row, column, weights, shape) for weights in (right, height))
    before = np.cumsum(after, axis=1) - after
    found: Numbers = own + before * np.diff(columns)
    return found


def _edges(area: Any) -> tuple[Numbers, Numbers, Numbers]:
    """Return both ends (n, 2) of the edges of all rings, and -1 for those of rings that run the other way."""
    rings, polygon = shapely.get_rings(shapely.get_parts(area), return_index=True)
    outer = np.diff(polygon, prepend=-1) > 0
    signs = np.where(shapely.is_ccw(rings) == outer, 1.0, -1.0)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    return points[:-1][joined], points[1:][joined], signs[ring[1:][joined]]


def _cut(begin: Numbers, end: Numbers, axis: int, edges: Numbers) -> tuple[Numbers, Numbers, Places, Places]:
    """Cut straight lines where they cross some edges across an axis.

    Returns
    -------
    tuple
        Both ends of the pieces, in the direction of their lines; between which edges each lies; its line.
    """
    low, high = np.sort([begin[:, axis], end[:, axis]], axis=0)
    most = len(edges) - 2
    first = np.clip(np.searchsorted(edges, low, "right") - 1, 0, most)
    last = np.clip(np.searchsorted(edges, high, "left") - 1, first, most)
    pieces = last - first + 1
    of = np.repeat(np.arange(len(begin)), pieces)
    between = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    from_, to = begin[of], end[of]
    along = (to - from_)[:, axis]
    ends = []
    for which, at in ((0, from_[:, axis]), (1, to[:, axis])):
        # The edge at which a piece begins or ends, which depends on the direction; none beyond the ends of its line.
        met = np.clip(edges[between + (which ^ (along < 0))], low[of], high[of])
        share = np.divide(met - from_[:, axis], along, out=np.full(len(of), float(which)), where=along != 0)
        ends.append(from_ + share[:, None] * (to - from_))
        ends[-1][:, axis] = np.where(along == 0, at, met)
    return ends[0], ends[1], between, of


def _summed(row: Places, column: Places, weights: Numbers, shape: tuple[int, int]) -> Numbers:
    height, width = shape
    return np.bincount(row * width + column, weights, height * width).astype(np.float64).reshape(shape)
