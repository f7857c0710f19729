"""Regions of a plane of labels as polygons along the edges of pixels: exact, strip by strip.

A region is a set of pixels of one value that are connected by their edges (4-connected). Pixels that
touch only at a corner are two regions, since a polygon pinched off at a point is not valid. The outline
and the holes of a region are rings of corners that touch at points at most, valid for OGC and GeoJSON.

An outline that the border of a strip cuts is continued in the strip below. The two parts are matched by
the column of the vertical edge that crosses the border, so the result does not depend on the strips.
Memory holds one strip, and the outlines of the regions that reach its lower border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tilenet.export.corners import Chain, Corners, Integers, Ring, Rows, Runs, connected, with_borders


@dataclass(frozen=True)
class Region:
    """One region: the value of its pixels, and its outline with its holes."""

    value: int
    # int32 (n, 2): y and x of the corners of the outline, then of the holes. Each ring begins at its first vertex in
    # reading order, which is not repeated at the end. As (x, y) with y upwards, the outline runs counter-clockwise.
    rings: tuple[Ring, ...]

    @cached_property
    def bottom(self) -> int:
        """The row after its last one."""
        return int(self.rings[0][:, 0].max())


def regions(strips: Iterable[Rows]) -> Iterator[Region]:
    """Yield the regions of a plane, ordered by their last rows, then by their first vertices.

    `strips` are integers (h, width), the plane from top to bottom; 0 is background. Their heights change nothing.

    >>> plane = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    >>> [region] = regions([plane[:2], plane[2:]])
    >>> [ring.tolist() for ring in region.rings]
    [[[0, 0], [0, 3], [3, 3], [3, 0]], [[1, 1], [2, 1], [2, 2], [1, 2]]]
    """
    tracer = _Tracer()
    above: Rows | None = None
    for strip in strips:
        # Start with a row of background above the plane: the topmost outlines begin on its lower border.
        yield from tracer.add(np.zeros_like(strip[:1]) if above is None else above, strip[0])
        above = strip
    if above is not None:
        yield from tracer.add(above, np.zeros_like(above[0]))


class _Piece:
    """An outline that is not closed yet, and where its end is registered."""

    def __init__(self, chain: Chain) -> None:
        self.parts, self.value, self.root, self.pinched = [chain.ring], chain.value, chain.root, chain.pinched
        self.end: tuple[dict[int, _Piece], int] = ({}, 0)

    def absorb(self, other: _Piece) -> None:
        self.parts += other.parts
        self.root = max(self.root, other.root)
        self.pinched |= other.pinched
        self.register(*other.end)

    def register(self, ends: dict[int, _Piece], x: int) -> None:
        """Register where the piece ends, so that the piece that continues it is matched to it."""
        ends[x] = self
        self.end = (ends, x)

    def closed(self) -> Ring:
        """Return the whole outline, starting at its first vertex in reading order."""
        ring: Ring = np.concatenate(self.parts)
        first = int(np.lexsort((ring[:, 1], ring[:, 0]))[0])
        return np.roll(ring, -first, axis=0)


class _Tracer:
    """The regions and outlines that are carried over from strip to strip."""

    def __init__(self) -> None:
        self._top, self._next_root = -1, 0
        # Pixel values of the row above, and the roots of their regions.
        self._values, self._roots = np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Open pieces, by the column of the edge that crosses the border: those that continue below, and those that
        # come from below.
        self._leaving: dict[int, _Piece] = {}
        self._coming: dict[int, _Piece] = {}
        self._rings: dict[int, list[Ring]] = {}
        self._value_of: dict[int, int] = {}

    def add(self, strip: Rows, below: Rows) -> Iterator[Region]:
        """Yield the regions that end in a strip, given the row below it."""
        rows = with_borders(strip, below)
        runs = Runs(rows)
        root_of_run = self._join(runs, strip[0])
        self._take_up(Corners(rows).chains(self._top, runs, root_of_run))
        self._top += len(strip)
        self._values, self._roots = strip[-1].astype(np.int64), runs.along_row(len(strip) - 1, root_of_run)
        going_on = self._roots[(self._values == below) & (self._values != 0)]
        yield from self._ended(set(np.unique(going_on).tolist()))

    def _join(self, runs: Runs, first_row: Rows) -> Integers:
        """Return the root of each run: the number of its region, as far as the region is known yet."""
        count, component = runs.components()
        first = runs.along_row(0, component)
        same = (self._values == first_row) & (self._values != 0) if len(self._values) else np.zeros(len(first), bool)
        old, place = np.unique(self._roots[same] if same.any() else np.zeros(0, np.int64), return_inverse=True)
        groups, group = connected(len(old) + count, place, len(old) + first[same])
        root = np.full(groups, self._next_root + count)
        np.minimum.at(root, group, np.concatenate([old, self._next_root + np.arange(count)]))
        self._next_root += count
        self._merge(dict(zip(old.tolist(), root[group[: len(old)]].tolist(), strict=True)))
        found: Integers = root[group[len(old) :]][component]
        return found

    def _merge(self, root_of: dict[int, int]) -> None:
        """Replace the roots of regions that turn out to be parts of others."""
        changed = {old: new for old, new in root_of.items() if old != new}
        for old in changed.keys() & self._rings.keys():
            self._rings.setdefault(changed[old], []).extend(self._rings.pop(old))
            self._value_of[changed[old]] = self._value_of.pop(old)
        for piece in (*self._leaving.values(), *self._coming.values()) if changed else ():
            piece.root = changed.get(piece.root, piece.root)

    def _take_up(self, chains: Iterator[Chain]) -> None:
        """Close the outlines that are complete, and keep the open ones for the strip below."""
        leaving: dict[int, _Piece] = {}
        coming: dict[int, _Piece] = {}
        for chain in chains:
            if chain.ends is None:
                self._close(chain.ring, chain)
                continue
            (head, from_above), (tail, to_above) = chain.ends
            piece = _Piece(chain)
            if not to_above:
                piece.register(leaving, tail)
            if from_above:
                earlier = self._leaving.pop(head)
                earlier.absorb(piece)
                piece = earlier
            else:
                coming[head] = piece
            if to_above:
                later = self._coming.pop(tail)
                if later is piece:
                    self._close(piece.closed(), piece)
                else:
                    piece.absorb(later)
        assert not self._leaving and not self._coming
        self._leaving, self._coming = leaving, coming

    def _close(self, ring: Ring, of: Chain | _Piece) -> None:
        self._rings.setdefault(of.root, []).extend(_split_pinched(ring) if of.pinched else [ring])
        self._value_of[of.root] = of.value

    def _ended(self, going_on: set[int]) -> Iterator[Region]:
        found = []
        for root in [root for root in self._rings if root not in going_on]:
            # The outline comes first: it has a vertex before those of all holes in reading order.
            rings = sorted(self._rings.pop(root), key=_first)
            found.append(Region(self._value_of.pop(root), tuple(rings)))
        yield from sorted(found, key=lambda region: (region.bottom, _first(region.rings[0])))


def _first(ring: Ring) -> tuple[int, int]:
    return int(ring[0, 0]), int(ring[0, 1])


def _split_pinched(ring: Ring) -> Iterator[Ring]:
    """Split an outline at the vertices that it passes twice, and yield the simple rings.

    >>> ring = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0]])
    >>> [part.tolist() for part in _split_pinched(ring)]
    [[[1, 1], [1, 2], [2, 2], [2, 1]], [[0, 0], [0, 1], [1, 1], [1, 0]]]
    """
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for y, x in ring.tolist():
        if (begin := place.get((y, x))) is not None:
            yield _rotated(path[begin:])
            for vertex in path[begin:]:
                del place[vertex]
            del path[begin:]
        place[y, x] = len(path)
        path.append((y, x))
    yield _rotated(path)


def _rotated(path: list[tuple[int, int]]) -> Ring:
    """Return a ring that starts at its first vertex in reading order."""
    first = path.index(min(path))
    return np.array(path[first:] + path[:first], np.int32)
