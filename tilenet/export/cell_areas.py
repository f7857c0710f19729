"""How much of an area lies in the marked cells of a map."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray


def area_in_cells(
    area: Any, cells: NDArray[np.bool_], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> float:
    """Return how much of an area (a valid geometry) lies in those cells (h, w) of a grid that are marked.

    `rows` and `columns` are the edges of the cells along y (h + 1) and x (w + 1), in ascending order.

    >>> edges = np.array([0.0, 2.0, 4.0])
    >>> area_in_cells(shapely.box(1, 0, 4, 1), np.array([[False, True], [True, True]]), edges, edges)
    2.0
    """
    if area.is_empty:
        return 0.0
    left, top, right, bottom = area.bounds
    (y0, y1), (x0, x1) = _between(rows, top, bottom), _between(columns, left, right)
    # Neighbours in a row are one rectangle: these are far fewer than cells.
    steps = np.diff(cells[y0:y1, x0:x1].astype(np.int8), axis=1, prepend=0, append=0)
    row, first = np.nonzero(steps == 1)
    _, last = np.nonzero(steps == -1)
    boxes = shapely.box(columns[x0 + first], rows[y0 + row], columns[x0 + last], rows[y0 + row + 1])
    return float(shapely.intersection(area, shapely.union_all(boxes)).area)


def _between(edges: NDArray[np.float64], low: float, high: float) -> tuple[int, int]:
    """Return the range of cells that lie, in part at least, between two places."""
    return max(int(np.searchsorted(edges, low, "right")) - 1, 0), int(np.searchsorted(edges, high, "left"))
