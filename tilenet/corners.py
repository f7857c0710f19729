"""Where the outlines of a strip of labels turn, all at once, and in which order they are walked.

Outlines run along the edges of pixels with their region on the right hand: east along its top, south
along its right side, west, north. Along a row of vertices the places where an outline begins to
head east, and those where one ceases to, alternate, whatever the regions are; so the k-th is followed
by the k-th, and so for each heading. No outline is walked pixel by pixel.

A strip has the row of pixels below it too, and decides all that happens on the vertices between.
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
# The four pixels about a vertex are north-west, north-east, south-west, south-east; k ^ 1 is the one beside
# pixel k, k ^ 2 the one above or below it, k ^ 3 the one across. Heading in and out where pixel k stands
# alone, and where it is missing to the three others.
ALONE = ((SOUTH, WEST), (WEST, NORTH), (EAST, SOUTH), (NORTH, EAST))
MISSING = ((EAST, NORTH), (SOUTH, EAST), (NORTH, WEST), (WEST, SOUTH))


class Chain(NamedTuple):
    """A part of an outline, or all of one.

    Attributes
    ----------
    ring : numpy.ndarray
        int32 (n, 2): y and x of its corners. Of a whole outline, from its first in reading order.
    value : int
        Of its region.
    root : int
        Of its region; -1 where the strip does not show it.
    pinched : bool
        Whether it comes to vertices where its region touches itself across a corner.
    ends : tuple or None
        Of a part: (column, whether at the upper border) of the vertical edges where it begins and ends.
    """

    ring: Ring
    value: int
    root: int
    pinched: bool
    ends: tuple[tuple[int, bool], tuple[int, bool]] | None


def framed(strip: Rows, below: Rows) -> Rows:
    """Return a strip (h, width) with the row below it, and background on either side: (h + 1, width + 2)."""
    rows = np.zeros((len(strip) + 1, strip.shape[1] + 2), strip.dtype)
    rows[:-1, 1:-1], rows[-1, 1:-1] = strip, below
    return rows


class Runs:
    """The pixels of each row that lie beside each other and have one value; background is in none.

    Parameters
    ----------
    rows : numpy.ndarray
        What `framed` returned.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows, self._width = rows, rows.shape[1] - 2
        begins = (rows[:-1, 1:-1] != rows[:-1, :-2]) & (rows[:-1, 1:-1] != 0)
        self._start: Integers = np.flatnonzero(begins)

    def at(self, y: Integers, x: Integers) -> Integers:
        """Return the runs that some pixels (no background) belong to."""
        found: Integers = np.searchsorted(self._start, y * self._width + x, side="right") - 1
        return found

    def along_row(self, y: int, of_run: Integers) -> Integers:
        """Return what belongs to the run of each pixel of a row, -1 for background."""
        found = np.full(self._width, -1)
        x = np.flatnonzero(self._rows[y, 1:-1])
        found[x] = of_run[self.at(np.full_like(x, y), x)]
        return found

    def components(self) -> tuple[int, Integers]:
        """Return into how many parts the strip falls, and to which each run belongs."""
        rows, (y, x) = self._rows, np.divmod(self._start, self._width)
        value = rows[y, x + 1]
        # Where runs of two rows overlap, the overlap begins where one of the two does.
        over = (y > 0) & (rows[y - 1, x + 1] == value)
        under = (y < len(rows) - 2) & (rows[y + 1, x + 1] == value)
        run = np.arange(len(y))
        above, below = self.at(y[over] - 1, x[over]), self.at(y[under] + 1, x[under])
        return connected(len(y), np.concatenate([run[over], run[under]]), np.concatenate([above, below]))


def connected(n: int, a: Integers, b: Integers) -> tuple[int, Integers]:
    """Return the number of groups among n things of which a[i] and b[i] belong together, and the group of each."""
    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    count, group = connected_components(links, directed=False)
    return int(count), group.astype(np.int64)


class Corners:
    """The corners of a strip in reading order, and the vertical edges that cross its borders.

    Parameters
    ----------
    rows : numpy.ndarray
        What `framed` returned.
    """

    def __init__(self, rows: Rows) -> None:
        self._last = len(rows) - 1
        found = np.concatenate([*_turns(rows), *_crossings(rows)], axis=1)
        found = found[:, np.argsort(found[0] * rows.shape[1] + found[1], kind="stable")]
        self._y, self._x, self._value, self._into, self._out, self._turns, self._pinched = found
        self._following = self._links()

    def _links(self) -> Integers:
        """Return which corner follows each; -1 for the strip below."""
        following = np.full(len(self._y), -1)
        for heading in (EAST, SOUTH, WEST, NORTH):
            begins, ceases = self._out == heading, self._into == heading
            # On the lowest vertices, the edges below belong to the next strip.
            begins &= (heading != SOUTH) | (self._y < self._last)
            ceases &= (heading != NORTH) | (self._y < self._last)
            start, stop = np.flatnonzero(begins), np.flatnonzero(ceases)
            if heading in (SOUTH, NORTH):
                start, stop = (found[np.argsort(self._x[found], kind="stable")] for found in (start, stop))
            following[start] = stop
        return following

    def _order(self) -> tuple[list[int], list[int], int]:
        """Return all corners chain by chain, where each chain begins, and how many are parts; those come first."""
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
        """Return the root of the pixel beside the vertical edge at each corner, -1 where there is none in the strip."""
        found = np.full(len(self._y), -1)
        inside = self._y < self._last
        for some, left in ((inside & (self._out == SOUTH), 1), (inside & (self._into == NORTH), 0)):
            found[some] = root_of_run[runs.at(self._y[some], self._x[some] - left)]
        return found

    def chains(self, top: int, runs: Runs, root_of_run: Integers) -> Iterator[Chain]:
        """Yield the outlines, parts of outlines first; `top` is the strip's first row in the plane."""
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
            yield Chain(points[edges[k] : edges[k + 1]], value, roots[k], pinched[k], both)

    def _end(self, corner: int) -> tuple[int, bool]:
        return int(self._x[corner]), bool(self._y[corner] == 0)


def _turns(rows: Rows) -> Iterator[Integers]:
    """Yield the corners by their kinds, each (7, n): y, x, value, heading in and out, 1, whether pinched."""
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
    """Yield where vertical edges cross the upper border, and where they cross the lower one and do not turn there."""
    first, last, below = rows[0], rows[-2], rows[-1]
    # The pixel whose right, and whose left, side the edge is: what its outline heads to.
    for own, other, heading in ((slice(None, -1), slice(1, None), SOUTH), (slice(1, None), slice(None, -1), NORTH)):
        x = np.flatnonzero((first[own] != 0) & (first[own] != first[other]))
        yield _events(np.zeros_like(x), x, first[own][x], _ends_at_top(heading), turns=False)
        straight = (last[own] != 0) & (last[own] == below[own])
        x = np.flatnonzero(straight & (last[own] != last[other]) & (below[own] != below[other]))
        yield _events(np.full_like(x, len(rows) - 1), x, last[own][x], _ends_at_top(heading)[::-1], turns=False)


def _ends_at_top(heading: int) -> tuple[int, int]:
    """Return where an outline comes from, and goes to, in a strip that begins where it heads south, or north."""
    return (NOWHERE, SOUTH) if heading == SOUTH else (NORTH, NOWHERE)


def _events(
    y: Integers, x: Integers, value: Rows, headings: Sequence[int], *, turns: bool = True, pinched: Any = False
) -> Integers:
    found = np.empty((7, len(y)), np.int64)
    found[0], found[1], found[2], found[5], found[6] = y, x, value, turns, pinched
    found[3], found[4] = headings
    return found


def area_and_centroid(rings: Sequence[Ring]) -> tuple[int, tuple[float, float]]:
    """Return the pixels within rings, holes left out, and the mean of y and of x over them, from corners counted.

    >>> area_and_centroid([np.array([[0, 0], [0, 3], [2, 3], [2, 0]])])
    (6, (1.0, 1.5))
    """
    # From the first corner, so that products stay small.
    first, doubled, moments = rings[0][0], 0.0, np.zeros(2)
    for ring in rings:
        at = (ring - first).astype(np.float64)
        after = np.roll(at, -1, axis=0)
        cross = at[:, 1] * after[:, 0] - after[:, 1] * at[:, 0]
        doubled += cross.sum()
        moments += ((at + after) * cross[:, None]).sum(axis=0)
    y, x = (first + moments / (3 * doubled)).tolist()
    return round(abs(doubled) / 2), (y, x)
