"""Yield the regions of a complete mask, or its objects, one by one, for GeoJSON files and tables.

A region is a set of pixels of one value that are connected by their edges; an object is all pixels of one number in one
plane. The mask is read strip by strip; memory holds one strip, and the outlines that are not closed yet.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from tilenet.errors import SettingsError
from tilenet.export.corners import Ring
from tilenet.export.outlines import Region, regions
from tilenet.export.placement import MaskPlacement, find_grid
from tilenet.masks.protected import check_file_place, refuse_protected
from tilenet.masks.tiff_mask import TILE, open_mask
from tilenet.readers.calibrated import parse_pixel_size, sizes_differ
from tilenet.resolution import size_text
from tilenet.store import AnyMask

# Number of pixels to read at once, and to outline at once.
BAND, STRIP = 2**27, 2**24
Progress = Callable[[int, int], None]
LOG = logging.getLogger("tilenet")
ENDINGS = {"a table": (".csv",), "a table of counts": (".csv",), "a GeoJSON": (".geojson", ".json")}


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


def has_volumes(mask: AnyMask) -> bool:
    """Return whether objects extend over planes: those of a network of three axes, or those that were linked."""
    if not mask.has_objects or max(mask.shape[:-2], default=1) == 1:
        return False
    return len(mask.info["model"]["footprint"]) > 2 or "link" in mask.info["record"]


@contextmanager
def open_placed(
    mask: str | PathLike[str], image: Any, *, pixel_size: Any = None
) -> Iterator[tuple[AnyMask, MaskPlacement]]:
    """Open a mask to export, and find where it lies in its image; the arguments are those of `tilenet.write_geojson`.

    The caller checks the mask for damage, which reads all of it, when nothing else can be refused any more.
    """
    with open_mask(mask) as opened:
        grid = find_grid(opened, image)
        if pixel_size is not None:
            opened.given_pixel_size = _given_size(pixel_size, opened, grid)
        yield opened, grid


def check_export_place(
    out: Path,
    mask: AnyMask,
    image: Any,
    *,
    replace: bool,
    is_ours: Callable[[Path], bool],
    kind: str,
) -> None:
    """Raise if a file that says what is in a mask must not be put at a path, or has another ending than its `kind`.

    See `tilenet.masks.protected.check_file_place` for the arguments.
    """
    refuse_protected(out, image=mask.info["image"]["path"])
    check_file_place(out, replace=replace, is_ours=is_ours, kind=kind, image=image, mask=mask.path)
    if out.suffix.lower() not in ENDINGS[kind]:
        raise SettingsError(f"{out}: {kind} is written as {' or '.join(ENDINGS[kind])}. Change the ending")


def _given_size(pixel_size: Any, mask: AnyMask, grid: MaskPlacement) -> tuple[float, ...]:
    """Return micrometres along the last axes of a mask that lacks some, given those of its image at level 0."""
    sizes = parse_pixel_size(pixel_size)
    if len(sizes) > 2 and "z" not in mask.axes:
        raise SettingsError(f"{mask.path}: has no axis z. Give --pixel-size for y and x")
    known = mask.pixel_size[-len(sizes) :]
    if len(sizes) > 2 and _states_z_alone(mask):
        known = (None, *known[1:])
    if None not in known:
        lacks_z = len(sizes) == 2 and "z" in mask.axes and mask.pixel_size[-3] is None
        leave_out = "Leave --pixel-size out. If that is wrong, segment again with --pixel-size"
        raise SettingsError(
            f"{mask.path}: has pixels of {' x '.join(f'{n:g}' for n in known)} um already. "
            f"{'Give --pixel-size for z, too: Z,Y,X' if lacks_z else leave_out}"
        )
    steps = tuple(map(float, (grid.thickness, *grid.step)))[-len(sizes) :]
    stated = [n and n / step for n, step in zip(known, steps, strict=True)]
    if sizes_differ(sizes, stated):
        raise SettingsError(
            f"{mask.path}: the pixels of its image are known to be {size_text(stated)}, and --pixel-size is "
            f"{size_text(sizes)}. Give the known sizes as they are"
        )
    found = tuple(n or size * step for n, size, step in zip(known, sizes, steps, strict=True))
    _remark_z(mask, found)
    return found


def _states_z_alone(mask: AnyMask) -> bool:
    """Return whether a size along z is all that the file of an image stated of its pixels, as far as its mask tells.

    Such a size is often a default of the program that wrote the file, so that another may replace it.
    """
    return None in mask.pixel_size[-2:] or len(mask.info["record"].get("pixel_size") or ()) == 2


def _remark_z(mask: AnyMask, sizes: Sequence[float]) -> None:
    """Say which size along z a volume has, if its mask states one and the caller gave sizes."""
    if not has_volumes(mask) or (stated := mask.pixel_size[-3]) is None:
        return
    if len(sizes) == 2:
        LOG.warning("%s: along z its pixels stay %s. Give Z,Y,X to replace it", mask.path, size_text([stated]))
    elif sizes_differ(sizes[:1], [stated]):
        LOG.warning(
            "%s: its pixels along z are taken as %s, as asked; the mask says %s%s",
            *(mask.path, size_text(sizes[:1]), size_text([stated])),
            ", by which its objects were separated. Segment again to separate them by the new size"
            if mask.info["record"].get("spacing")
            else "",
        )


def shapes_of(mask: AnyMask, progress: Progress | None = None) -> Iterator[Shape]:
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
