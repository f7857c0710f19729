"""Find the corners of all outlines in a strip of labels at once, and the order in which they are walked.

Outlines run along the edges of pixels with their region on the right hand: east along its top, south
along its right side, then west and north. Along a row of vertices, the places where an outline begins
to head east alternate with the places where one stops heading east, whatever the regions are. So the
k-th beginning is followed by the k-th stop, and likewise for the other headings (along columns for
south and north). No outline is walked pixel by pixel.

A strip comes with the row of pixels below it, and finds all corners on the vertices between the two.
The corners on its upper border belong to the strip above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Rows = NDArray[Any]
Integers = NDArray[np.int64]
Ring = NDArray[np.int32]

NOWHERE, EAST, SOUTH, WEST, NORTH = range(-1, 4)
# The four pixels around a vertex are 0 north-west, 1 north-east, 2 south-west, 3 south-east; k ^ 1 is beside
# pixel k, k ^ 2 above or below it, k ^ 3 diagonally opposite. ALONE[k] holds the headings in and out of the
# vertex where pixel k differs from both neighbours; MISSING[k] those where the other three pixels have one
# value, and pixel k has another.
ALONE = ((SOUTH, WEST), (WEST, NORTH), (EAST, SOUTH), (NORTH, EAST))
MISSING = ((EAST, NORTH), (SOUTH, EAST), (NORTH, WEST), (WEST, SOUTH))


class Chain(NamedTuple):
    """An outline, or the part of one that lies in a strip."""

    # int32 (n, 2): y and x of its corners. A whole outline starts with its first corner in reading order.
    ring: Ring
    # Value of its region.
    value: int
    # Number by which its region is known across strips; -1 if this strip does not show it.
    root: int
    # Whether it passes vertices where its region touches itself only diagonally.
    pinched: bool
    # Of a part: (column, whether at the upper border) of the vertical edges where it begins and ends.
    ends: tuple[tuple[int, bool], tuple[int, bool]] | None


def with_borders(strip: Rows, below: Rows) -> Rows:
    """Return a strip (h, width) with the row below it, and background on both sides: (h + 1, width + 2)."""
    rows = np.zeros((len(strip) + 1, strip.shape[1] + 2), strip.dtype)
    rows[:-1, 1:-1], rows[-1, 1:-1] = strip, below
    return rows


class Runs:
    """The runs of a strip `with_borders`: adjacent pixels of a row with one value; background belongs to no run."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._width = rows, rows.shape[1] - 2
        begins = (rows[:-1, 1:-1] != rows[:-1, :-2]) & (rows[:-1, 1:-1] != 0)
        self._start: Integers = np.flatnonzero(begins)

    def at(self, y: Integers, x: Integers) -> Integers:
        """Return the index of the run that each of the given pixels, none of them background, belongs to."""
        found: Integers = np.searchsorted(self._start, y * self._width + x, side="right") - 1
        return found

    def along_row(self, y: int, of_run: Integers) -> Integers:
        """Return, for each pixel of row `y`, the entry of `of_run` for its run; -1 for background."""
        found = np.full(self._width, -1)
        x = np.flatnonzero(self._rows[y, 1:-1])
        found[x] = of_run[self.at(np.full_like(x, y), x)]
        return found

    def components(self) -> tuple[int, Integers]:
        """Return the number of connected components in the strip, and the component of each run."""
        rows, (y, x) = self._rows, np.divmod(self._start, self._width)
        value = rows[y, x + 1]
        # Where runs of adjacent rows overlap, the overlap begins with one of the two: testing the first pixel
        # of each run finds all overlaps.
        over = (y > 0) & (rows[y - 1, x + 1] == value)
        under = (y < len(rows) - 2) & (rows[y + 1, x + 1] == value)
        run = np.arange(len(y))
        above, below = self.at(y[over] - 1, x[over]), self.at(y[under] + 1, x[under])
        return connected(len(y), np.concatenate([run[over], run[under]]), np.concatenate([above, below]))


def connected(n: int, a: Integers, b: Integers) -> tuple[int, Integers]:
    """Group n items, of which a[i] and b[i] belong together; return the number of groups and the group of each."""
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    count, group = connected_components(links, directed=False)
    return int(count), group.astype(np.int64)


class Corners:
    """The corners of a strip `with_borders` in reading order, and the vertical edges that cross its borders."""

    def __init__(self, rows: Rows) -> None:
        self._last = len(rows) - 1
        found = np.concatenate([*_turns(rows), *_crossings(rows)], axis=1)
        found = found[:, np.argsort(found[0] * rows.shape[1] + found[1], kind="stable")]
        self._y, self._x, self._value, self._into, self._out, self._turns, self._pinched = found
        self._following = self._links()

    def _links(self) -> Integers:
        """Return which corner follows each one; -1 if the outline leaves the strip there."""
        following = np.full(len(self._y), -1)
        for heading in (EAST, SOUTH, WEST, NORTH):
            begins, ceases = self._out == heading, self._into == heading
            # Edges below the lowest vertices belong to the next strip.
            begins &= (heading != SOUTH) | (self._y < self._last)
            ceases &= (heading != NORTH) | (self._y < self._last)
            start, stop = np.flatnonzero(begins), np.flatnonzero(ceases)
            if heading in (SOUTH, NORTH):
                start, stop = (found[np.argsort(self._x[found], kind="stable")] for found in (start, stop))
            following[start] = stop
        return following

    def _order(self) -> tuple[list[int], list[int], int]:
        """Return all corners chain by chain, where each chain begins, and how many are parts; parts come first."""
        preceded = np.zeros(len(self._following), np.bool_)
        preceded[self._following[self._following >= 0]] = True
        following = self._following.tolist()
        seen = bytearray(len(following))
        order: list[int] = []
        begins: list[int] = []
        parts = np.flatnonzero(~preceded).tolist()
        for first in (*parts, *range(len(following))):
            if seen[first]:
                continue
            begins.append(len(order))
            corner = first
            while corner >= 0 and not seen[corner]:
                seen[corner] = 1
                order.append(corner)
                corner = following[corner]
        return order, begins, len(parts)

    def _roots(self, runs: Runs, root_of_run: Integers) -> Integers:
        """Return the root of the pixel beside the vertical edge at each corner; -1 if the strip has no such edge."""
        found = np.full(len(self._y), -1)
        inside = self._y < self._last
        for some, left in ((inside & (self._out == SOUTH), 1), (inside & (self._into == NORTH), 0)):
            found[some] = root_of_run[runs.at(self._y[some], self._x[some] - left)]
        return found

    def chains(self, top: int, runs: Runs, root_of_run: Integers) -> Iterator[Chain]:
        """Yield the outlines, parts of outlines first; `top` is the row of the plane at which the strip begins."""
        listed, begins, n_parts = self._order()
        if not listed:
            return
        order, begin = np.array(listed), np.array(begins)
        values = np.maximum.reduceat(self._value[order], begin).tolist()
        roots = np.maximum.reduceat(self._roots(runs, root_of_run)[order], begin).tolist()
        pinched = np.logical_or.reduceat(self._pinched[order] != 0, begin).tolist()
        turns = self._turns[order] != 0
        kept = order[turns]
        points = np.stack([self._y[kept] + top, self._x[kept]], axis=1).astype(np.int32)
        edges = np.concatenate([[0], np.cumsum(turns)])[[*begins, len(order)]].tolist()
        ends = [*begins[1:], len(order)]
        for k, value in enumerate(values):
            both = (self._end(listed[begins[k]]), self._end(listed[ends[k] - 1])) if k < n_parts else None
            # Copied: a view would keep the corners of the whole strip in memory.
            yield Chain(points[edges[k] : edges[k + 1]].copy(), value, roots[k], pinched[k], both)

    def _end(self, corner: int) -> tuple[int, bool]:
        return int(self._x[corner]), bool(self._y[corner] == 0)


def _turns(rows: Rows) -> Iterator[Integers]:
    """Yield the corners of each kind as (7, n): y, x, value, heading in, heading out, 1, whether pinched."""
    across, down = rows[:, 1:] != rows[:, :-1], rows[1:] != rows[:-1]
    y, x = np.nonzero((across[:-1] | across[1:]) & (down[:, :-1] | down[:, 1:]))
    about = [rows[y + south, x + east] for south in (0, 1) for east in (0, 1)]
    for k in range(4):
        own, beside, above, opposite = about[k], about[k ^ 1], about[k ^ 2], about[k ^ 3]
        alone = (own != 0) & (own != beside) & (own != above)
        yield _events(y[alone] + 1, x[alone], own[alone], ALONE[k], pinched=opposite[alone] == own[alone])
        missing = (opposite != 0) & (opposite == beside) & (opposite == above) & (own != opposite)
        yield _events(y[missing] + 1, x[missing], opposite[missing], MISSING[k])


def _crossings(rows: Rows) -> Iterator[Integers]:
    """Yield the vertical edges that cross the upper border, and those that cross the lower one without a turn there."""
    first, last, below = rows[0], rows[-2], rows[-1]
    # An edge on the right side of its pixel (`own`) is walked south, one on the left side north.
    for own, other, heading in ((slice(None, -1), slice(1, None), SOUTH), (slice(1, None), slice(None, -1), NORTH)):
        x = np.flatnonzero((first[own] != 0) & (first[own] != first[other]))
        yield _events(np.zeros_like(x), x, first[own][x], _ends_at_top(heading), turns=False)
        straight = (last[own] != 0) & (last[own] == below[own])
        x = np.flatnonzero(straight & (last[own] != last[other]) & (below[own] != below[other]))
        yield _events(np.full_like(x, len(rows) - 1), x, last[own][x], _ends_at_top(heading)[::-1], turns=False)


def _ends_at_top(heading: int) -> tuple[int, int]:
    """Return the headings in and out of an outline that crosses a strip's upper border heading south, or north."""
    return (NOWHERE, SOUTH) if heading == SOUTH else (NORTH, NOWHERE)


def _events(
    y: Integers, x: Integers, value: Rows, headings: Sequence[int], *, turns: bool = True, pinched: Any = False
) -> Integers:
    found = np.empty((7, len(y)), np.int64)
    found[0], found[1], found[2], found[5], found[6] = y, x, value, turns, pinched
    found[3], found[4] = headings
    return found


def area_and_centroid(rings: Sequence[NDArray[Any]]) -> tuple[float, tuple[float, float]]:
    """Return the area within rings, in pixels, without holes, and its centroid (y, x), which is NaN if it is 0.

    Coordinates are those of corners: the centre of the first pixel is (0.5, 0.5).

    >>> area, centroid = area_and_centroid([np.array([[0, 0], [0, 3], [2, 3], [2, 0]])])
    >>> float(area), centroid
    (6.0, (1.0, 1.5))
    """
    # Measured from the first corner, so that products stay small.
    first, doubled, moments = rings[0][0], 0.0, np.zeros(2)
    for ring in rings:
        at = (ring - first).astype(np.float64)
        after = np.roll(at, -1, axis=0)
        cross = at[:, 1] * after[:, 0] - after[:, 1] * at[:, 0]
        doubled += cross.sum()
        moments += ((at + after) * cross[:, None]).sum(axis=0)
    y, x = (first + moments / (3 * doubled)).tolist() if doubled else (np.nan, np.nan)
    return abs(doubled) / 2, (y, x)
