"""Yield the regions of a complete mask, or its objects, one by one, for GeoJSON files and tables.

A region is a set of pixels of one value that are connected by their edges; an object is all pixels of one number in one
plane. The mask is read strip by strip; memory holds one strip, and the outlines that are not closed yet.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from tilenet.export.corners import Ring
from tilenet.export.outlines import Region, regions
from tilenet.masks.tiff_mask import TILE
from tilenet.store import AnyMask, Progress

# Number of pixels to read at once, and to outline at once.
BAND, STRIP = 2**27, 2**24


@dataclass(frozen=True)
class Shape:
    """A region, or all regions of an object in one plane."""

    # Value of the class, or number of the object.
    value: int
    # Of the class.
    name: str
    # One region, or several for an object whose pixels are not all connected.
    parts: Sequence[Region]
    # Counted from the first of the image; 0 along an axis that the mask lacks.
    t: int
    z: int
    # The same from run to run.
    id: UUID

    @property
    def rings(self) -> list[Ring]:
        """The outlines and holes of all parts."""
        return [ring for part in self.parts for ring in part.rings]


def shapes_of(mask: AnyMask, progress: Progress | None) -> Iterator[Shape]:
    """Yield the shapes of a mask, plane by plane, ordered by their last rows."""
    names, objects = class_names(mask), mask.has_objects
    planes, height = list(product(*map(range, mask.shape[:-2]))), mask.shape[-2]
    for number, index in enumerate(planes):

        def advance(row: int, done: int = number * height) -> None:
            if progress:
                progress(done + row, len(planes) * height)

        plane = plane_id(mask, index)
        at = {axis: i + first for axis, i, first in zip(mask.axes, index, mask.origin, strict=False)}
        traced = regions(_strips(mask, index, advance))
        last_rows = _last_rows(_strips(mask, index)) if objects else None
        for value, parts in _by_value(traced, last_rows):
            name = names[0] if objects else names.get(value, f"class {value}")
            own = shape_id(plane, value, parts[0].rings[0][0])
            yield Shape(value, name, parts, at.get("t", 0), at.get("z", 0), own)


def plane_id(mask: AnyMask, plane: tuple[int, ...]) -> UUID:
    """Return the id of a plane of a mask, which no other mask or plane has."""
    # Not of the processor and the libraries that computed the mask, which may differ from run to run.
    info = {name: value for name, value in mask.info.items() if name != "computed"}
    return uuid5(uuid5(NAMESPACE_OID, json.dumps(info, sort_keys=True)), str(plane))


def shape_id(plane: UUID, value: int, corner: NDArray[Any]) -> UUID:
    """Return the id of a shape in a plane of an id, given the first corner (y, x) of its first part."""
    y, x = corner.tolist()
    return uuid5(plane, f"{value} {y} {x}")


def class_names(mask: AnyMask) -> dict[int, str]:
    """Return the names of the classes that shapes may have, by mask value; numbered objects have a single class, 0."""
    labels: Mapping[str, Any] = mask.info["card"]["labels"]
    names = {int(value): str(name) for value, name in labels.items() if value.isdecimal()}
    if not mask.has_objects:
        return names
    return {0: next(iter(names.values())) if len(names) == 1 else "object"}


def _strips(
    mask: AnyMask, plane: tuple[int, ...], advance: Callable[[int], None] = lambda row: None
) -> Iterator[NDArray[Any]]:
    """Yield a plane in strips from top to bottom, reading whole rows of chunks at once unless they are too large."""
    height, width = mask.shape[-2:]
    band = max(1, min(getattr(mask.levels[0], "chunks", (TILE, TILE))[-2], BAND // width))
    rows = max(1, STRIP // width)
    for top in range(0, height, band):
        pixels = mask.read(0, (*plane, slice(top, min(top + band, height))))
        for first in range(0, len(pixels), rows):
            yield pixels[first : first + rows]
        advance(top + len(pixels))


def _last_rows(strips: Iterable[NDArray[Any]]) -> dict[int, int]:
    """Return, for each value, the row after its last one."""
    found: dict[int, int] = {}
    top = 0
    for strip in strips:
        # Row by row, since assigning to each value there is much faster than sorting the pixels of the strip.
        last = np.zeros(int(strip.max()) + 1, np.int64)
        for y, row in enumerate(strip, top + 1):
            last[row] = y
        last[0] = 0
        values = np.flatnonzero(last)
        found |= dict(zip(values.tolist(), last[values].tolist(), strict=True))
        top += len(strip)
    return found


def _by_value(traced: Iterable[Region], last_rows: Mapping[int, int] | None) -> Iterator[tuple[int, Sequence[Region]]]:
    """Yield regions one by one or, given the last row of each value, the regions of a value together after that row."""
    if last_rows is None:
        yield from ((region.value, (region,)) for region in traced)
        return
    parts: dict[int, list[Region]] = {}
    ends: list[tuple[int, int]] = []
    for region in traced:
        while ends and ends[0][0] < region.bottom:
            whole = heapq.heappop(ends)[1]
            yield whole, parts.pop(whole)
        if region.value not in parts:
            parts[region.value] = []
            heapq.heappush(ends, (last_rows[region.value], region.value))
        parts[region.value].append(region)
    while ends:
        whole = heapq.heappop(ends)[1]
        yield whole, parts.pop(whole)
